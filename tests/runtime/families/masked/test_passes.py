"""The transformer passes that the loop makes, and engines that fail or are closed.

Covered: number and batch of the passes, with and without guidance and the reuse of the first one;
large requests; numbers that are not finite; capture, once per plan and only if every engine allows
it; and what a run on a captured plan repeats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices import Buffer, Direct, Part, Workspace
from fewstep.runtime.devices.cpu import CpuDevice, host_array
from fewstep.runtime.engines import BoundEngine, Engine
from fewstep.runtime.engines.onnxruntime import OnnxRuntimeEngine
from fewstep.runtime.errors import EngineError
from fewstep.runtime.families.masked import transformer
from fewstep.runtime.generator import Generator
from fewstep.runtime.records import TensorInfo

_GRAPHS = ("transformer", "policy", "decoder")


@dataclass
class Counting:
    """An engine that notes the batch of every pass, and may spoil an output afterwards."""

    engine: Engine
    batches: list[int] = field(default_factory=list)
    spoil: Callable[[npt.NDArray[Any]], None] | None = None
    closed: int = 0
    capturable: bool = True
    warm_up: int = 1
    ready: bool = True
    open: int = 0
    asked_ready_after: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.engine.name

    @property
    def inputs(self) -> Mapping[str, TensorInfo]:
        return self.engine.inputs

    @property
    def outputs(self) -> Mapping[str, TensorInfo]:
        return self.engine.outputs

    def bind(self, bindings: Mapping[str, Buffer]) -> BoundEngine:
        assert len({buffer.shape[0] for buffer in bindings.values()}) == 1
        bound = self.engine.bind(bindings)

        def run() -> None:
            self.batches.append(next(iter(bindings.values())).shape[0])
            bound.run()
            if self.spoil is not None:
                self.spoil(host_array(bindings[next(iter(self.outputs))]))

        def require() -> None:
            self.asked_ready_after.append(len(self.batches))
            if not self.ready:
                raise EngineError("not now")

        def close() -> None:
            self.open -= 1
            bound.close()

        self.open += 1
        return replace(bound, run=run, require_capturable=require, close=close)

    def close(self) -> None:
        self.closed += 1
        self.engine.close()


@pytest.fixture
def engines(tiny_bundle: Path) -> dict[str, Counting]:
    assert set(Bundle.read(tiny_bundle).manifest.graphs) == set(_GRAPHS)
    return {name: Counting(_engine(tiny_bundle, name)) for name in _GRAPHS}


def _engine(tiny_bundle: Path, graph: str) -> OnnxRuntimeEngine:
    bundle = Bundle.read(tiny_bundle)
    info = bundle.manifest.graphs[graph]
    return OnnxRuntimeEngine(graph, bundle.graph_path(graph), info, threads=1)


def _open(
    tiny_bundle: Path,
    engines: Mapping[str, Engine],
    device: CpuDevice | None = None,
    **options: Any,
) -> Generator:
    return Generator(Bundle.read(tiny_bundle), device or CpuDevice(), engines, **options)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("schedule", ["cosine", "policy"])
def test_guided_passes(
    tiny_bundle: Path, engines: dict[str, Counting], steps: int, schedule: str
) -> None:
    """Step 0 of classes that are new, then T − 1 passes; the unconditional logits of the image
    without tokens once, if guidance may be above 0 at step 0."""
    guidance = {} if schedule == "policy" else {"guidance": (1, 3)}
    settings: dict[str, Any] = {"steps": steps, "schedule": schedule, **guidance}
    following = [6] * (steps - 1)
    with _open(tiny_bundle, engines) as generator:
        passes = engines["transformer"].batches
        generator.generate(class_ids=[0, 1, 2], **settings)
        assert passes == [1, 3, *following]
        assert engines["policy"].batches == ([3] * steps if schedule == "policy" else [])
        assert engines["decoder"].batches == [3]
        passes.clear()
        generator.generate(class_ids=[2, 1, 1], **settings, seed=9)
        assert passes == following
        passes.clear()
        generator.generate(class_ids=[4, 0, 4], **settings, seed=9)
        assert passes == [3, *following]
        passes.clear()
        for _ in range(2):
            generator.generate(class_ids=[1], **settings)
        assert passes == [1, *([2] * (steps - 1) * 2)]


@pytest.mark.parametrize("constants", [True, False])
def test_steps_without_guidance_have_no_unconditional_half(
    tiny_bundle: Path, engines: dict[str, Counting], constants: bool
) -> None:
    settings: dict[str, Any] = {"steps": 4, "guidance": "0,0,2,0"}
    with _open(tiny_bundle, engines, constants=constants) as generator:
        found = generator.generate(class_ids=[0, 1, 1], seed=5, **settings).trace
    assert engines["transformer"].batches == ([3, 3, 6, 3] if constants else [6, 6, 6, 6])
    fresh = {name: _engine(tiny_bundle, name) for name in _GRAPHS}
    with _open(tiny_bundle, fresh, constants=not constants) as generator:
        expected = generator.generate(class_ids=[0, 1, 1], seed=5, **settings).trace
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.sampled, expected.sampled)


@pytest.mark.parametrize("settings", [{}, {"schedule": "policy"}, {"order": "halton"}])
def test_an_image_does_not_depend_on_what_was_asked_before(
    tiny_bundle: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rows for five classes: each goes and comes again, alone and in batches."""
    monkeypatch.setattr(transformer, "_KEPT_BYTES", 2 * 16 * (24 + 32) * 4)
    fresh = {name: _engine(tiny_bundle, name) for name in _GRAPHS}
    bundle = Bundle.read(tiny_bundle)
    with (
        _open(tiny_bundle, fresh, max_batch=2) as generator,
        Generator.open(bundle, threads=1, max_batch=2) as other,
    ):
        other._constants = False
        for seed, classes in enumerate(([0, 3], [3, 4], [1], [1, 0], [2, 2, 0], [4], [1])):
            request: dict[str, Any] = {"class_ids": classes, "seed": seed, "steps": 3, **settings}
            found, expected = generator.generate(**request), other.generate(**request)
            np.testing.assert_array_equal(found.trace.tokens, expected.trace.tokens)
            np.testing.assert_array_equal(found.images, expected.images)


def test_unguided_passes_never_double_the_batch(
    tiny_bundle: Path, engines: dict[str, Counting]
) -> None:
    with _open(tiny_bundle, engines) as generator:
        generator.generate(class_ids=[0, 1], steps=4, guidance=0)
    assert engines["transformer"].batches == [2, 2, 2, 2]


def test_passes_without_reuse(tiny_bundle: Path, engines: dict[str, Counting]) -> None:
    with _open(tiny_bundle, engines, constants=False) as generator:
        generator.generate(class_ids=[0, 1], steps=3)
    assert engines["transformer"].batches == [4, 4, 4]


def test_large_requests_are_cut_into_batches(
    tiny_bundle: Path, engines: dict[str, Counting]
) -> None:
    with _open(tiny_bundle, engines, max_batch=2) as generator:
        images = generator.generate(class_ids=[0, 1, 2, 3, 4], steps=2, guidance=0).images
    assert len(images) == 5
    assert engines["transformer"].batches == [2, 2, 2, 2, 1, 1]  # all classes are new
    assert engines["decoder"].batches == [2, 2, 1]


def test_closing_releases_every_engine_once(
    tiny_bundle: Path, engines: dict[str, Counting]
) -> None:
    generator = _open(tiny_bundle, engines)
    generator.close()
    generator.close()
    assert [engine.closed for engine in engines.values()] == [1, 1, 1]


@pytest.mark.parametrize(
    ("graph", "schedule"),
    [("transformer", "cosine"), ("transformer", "policy"), ("policy", "policy")],
)
@pytest.mark.parametrize("constants", [True, False])
def test_nan_from_an_engine_is_reported_and_not_remembered(
    tiny_bundle: Path, engines: dict[str, Counting], graph: str, constants: bool, schedule: str
) -> None:
    request: dict[str, Any] = {"class_ids": [0, 1], "steps": 3, "schedule": schedule}
    with _open(tiny_bundle, engines, constants=constants) as generator:
        expected = generator.generate(**request)
        engines[graph].spoil = lambda output: output.fill(np.nan)
        with np.errstate(invalid="ignore"), pytest.raises(EngineError, match="NaN"):
            generator.generate(**request)
        engines[graph].spoil = None
        assert (generator.generate(**request).tokens == expected.tokens).all()


# --- capture


class _Capturing(CpuDevice):
    """Runs a captured sequence on the way, as CUDA does, and counts runs, captures, replays."""

    def __init__(self) -> None:
        super().__init__()
        self.captured, self.replayed, self.waited, self.warmed_up = 0, 0, 0, 0

    def capture(
        self,
        parts: Sequence[Part],
        *,
        warm_up: int = 1,
        check_capturable: Callable[[], None] = lambda: None,
        workspace: Workspace | None = None,
    ) -> Direct:
        for _ in range(warm_up):
            Direct(parts)()
        check_capturable()
        self.captured, self.warmed_up = self.captured + 1, self.warmed_up + warm_up

        def replay() -> None:
            self.replayed += 1
            Direct(parts)()

        return Direct([Part(replay)])

    def synchronize(self) -> None:
        self.waited += 1


@pytest.mark.parametrize("schedule", ["cosine", "policy"])
def test_a_plan_is_captured_once_and_replayed_by_every_run(
    tiny_bundle: Path, engines: dict[str, Counting], schedule: str
) -> None:
    """The run on the way sees inputs of zeros, and must leave no trace of them."""
    device, request = _Capturing(), dict[str, Any](steps=3, schedule=schedule)
    with _open(tiny_bundle, engines, device, max_batch=2) as generator:
        found = generator.generate(class_ids=[1, 4, 2, 3], seed=8, **request)
        assert (device.captured, device.replayed) == (1, 2)
        generator.generate(class_ids=[0, 0], seed=1, **request)
        assert (device.captured, device.replayed) == (1, 3)
    fresh = {name: _engine(tiny_bundle, name) for name in _GRAPHS}
    with _open(tiny_bundle, fresh) as generator:
        expected = generator.generate(class_ids=[1, 4, 2, 3], seed=8, **request)
    np.testing.assert_array_equal(found.trace.tokens, expected.trace.tokens)
    np.testing.assert_array_equal(found.images, expected.images)


@pytest.mark.parametrize("graph", _GRAPHS)
def test_the_engine_that_needs_most_runs_before_a_capture_gets_them(
    tiny_bundle: Path, engines: dict[str, Counting], graph: str
) -> None:
    """TensorRT-RTX needs three; every binding of the plan is asked just before the capture."""
    device, runs = _Capturing(), 3
    engines[graph].warm_up = runs
    with _open(tiny_bundle, engines, device) as generator:
        generator.generate(class_ids=[0, 1], steps=2, schedule="policy")
        assert device.warmed_up == runs
    ready = {name: engine.asked_ready_after for name, engine in engines.items()}
    assert ready["decoder"] == [runs]
    assert ready["policy"] == [2 * runs]  # a run of two steps
    assert ready["transformer"] == [runs + 1]  # as guided pass; the unconditional logits


@pytest.mark.parametrize("graph", _GRAPHS)
def test_an_engine_that_is_not_ready_to_be_captured_is_told_of_and_asked_again(
    tiny_bundle: Path, engines: dict[str, Counting], graph: str
) -> None:
    with _open(tiny_bundle, engines, _Capturing()) as generator:
        engines[graph].ready = False
        with pytest.raises(EngineError, match="not now"):
            generator.generate(class_ids=[0, 1], steps=2, schedule="policy")
        engines[graph].ready = True
        generator.generate(class_ids=[0, 1], steps=2, schedule="policy")
    assert engines[graph].open == 0


@pytest.mark.parametrize("graph", _GRAPHS)
def test_one_engine_that_cannot_be_captured_prevents_it(
    tiny_bundle: Path, engines: dict[str, Counting], graph: str
) -> None:
    device = _Capturing()
    engines[graph].capturable = False
    with _open(tiny_bundle, engines, device) as generator:
        waited = device.waited
        generator.generate(class_ids=[0, 1], steps=2, schedule="policy")
        assert device.waited > waited  # results are read only after that
    assert (device.captured, device.replayed) == (0, 0)
    assert engines["decoder"].batches == [2]
