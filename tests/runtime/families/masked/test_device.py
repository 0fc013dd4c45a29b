"""The loop on a device with memory and a queue of its own, as a GPU has them.

The device below keeps what the host sees apart from what kernels and engines see, fills new
memory with garbage, does nothing before it is waited for, and forbids waiting while a sequence is
captured. The loop must give the same results on it as on the CPU device: nothing is read
back in between, every input is sent, every output is fetched, nothing is read before it is written.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from fewstep.runtime.raster import decode_in_raster_order

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices import Array, Buffer, BufferSpec, Direct, Workspace
from fewstep.runtime.devices.cpu import CpuDevice, CpuWorkspace
from fewstep.runtime.engines import BoundEngine
from fewstep.runtime.engines.onnxruntime import OnnxRuntimeEngine
from fewstep.runtime.errors import EngineError
from fewstep.runtime.generator import Generator
from fewstep.runtime.plan import PlanKey
from fewstep.runtime.records import TensorInfo

Work = Callable[[], None]


class _Queue(CpuDevice):
    """Collects work and does it when it is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self._work: list[Work] = []
        self._capturing = False
        self.captured = 0

    def enqueue(self, work: Work) -> None:
        self.require()
        self._work.append(work)

    def workspace(self, specs: Mapping[str, BufferSpec]) -> CpuWorkspace:
        assert not self._capturing, "allocation during capture"
        self.require()
        return _Apart(self, specs)

    def upload(self, buffer: Buffer, values: Array) -> None:
        self.synchronize()
        super().upload(buffer, values)

    def download(self, buffer: Buffer) -> Array:
        self.synchronize()
        return super().download(buffer)

    def launch(self, kernel: str, **arguments: Buffer | int | float | None) -> None:
        run = super().launch
        self.enqueue(lambda: run(kernel, **arguments))

    def copy(self, target: Buffer, source: Buffer) -> None:
        run = super().copy
        self.enqueue(lambda: run(target, source))

    def capture(
        self,
        sequence: Work,
        *,
        warm_up: int = 1,
        check_capturable: Callable[[], None] = lambda: None,
        workspace: Workspace | None = None,
    ) -> Direct:
        """Run first, then keep what the sequence enqueues; a replay runs no line of it again."""
        for _ in range(warm_up):
            sequence()
            self.synchronize()
        check_capturable()
        self._capturing = True
        sequence()
        self._capturing = False
        kept, self._work = self._work, []
        self.captured += 1
        return Direct(lambda: self._work.extend(kept))

    def synchronize(self) -> None:
        assert not self._capturing, "waiting during capture"
        work, self._work = self._work, []
        for each in work:
            each()


class _Apart(CpuWorkspace):
    """Host arrays apart from the device's, by role."""

    def __init__(self, device: _Queue, specs: Mapping[str, BufferSpec]) -> None:
        super().__init__(specs)
        self._device, self._roles = device, {name: spec.role for name, spec in specs.items()}
        self._host = {
            name: np.zeros(spec.shape, spec.dtype)
            for name, spec in specs.items()
            if spec.role != "internal"
        }
        for name in specs:
            self[name].array.view(np.uint8).fill(0xFB)  # NaN in float32, no code in int32

    def write(self, name: str, values: npt.ArrayLike) -> None:
        assert self._roles[name] in ("input", "status"), f"{name} is never sent"
        np.copyto(self._host[name], values)

    def read(self, name: str) -> Array:
        return self._host[name].copy()

    def send(self) -> None:
        self._copy(("input", "status"), to_device=True)

    def fetch(self) -> None:
        self._copy(("output", "status"), to_device=False)

    def close(self) -> None:
        assert not self._device._work, "released while work was queued"
        super().close()

    def _copy(self, roles: tuple[str, ...], *, to_device: bool) -> None:
        for name, role in self._roles.items():
            if role in roles:
                ends = self[name].array, self._host[name]
                target, source = ends if to_device else ends[::-1]
                self._device.enqueue(functools.partial(np.copyto, target, source))


class _Queued:
    """An engine whose work is queued on the device."""

    warm_up = 1

    def __init__(self, engine: OnnxRuntimeEngine, device: _Queue, *, capturable: bool) -> None:
        self._engine, self._device, self.capturable = engine, device, capturable

    @property
    def name(self) -> str:
        return self._engine.name

    @property
    def inputs(self) -> Mapping[str, TensorInfo]:
        return self._engine.inputs

    @property
    def outputs(self) -> Mapping[str, TensorInfo]:
        return self._engine.outputs

    def bind(self, bindings: Mapping[str, Buffer]) -> BoundEngine:
        bound = self._engine.bind(bindings)
        return replace(bound, run=lambda: self._device.enqueue(bound.run))

    def close(self) -> None:
        self._engine.close()


def _open(folder: Path, *, capturable: bool = True, **options: Any) -> Generator:
    bundle, device = Bundle.read(folder), _Queue()
    engines = {
        name: _Queued(
            OnnxRuntimeEngine(name, bundle.graph_path(name), info, threads=1),
            device,
            capturable=capturable,
        )
        for name, info in bundle.manifest.graphs.items()
    }
    return Generator(bundle, device, engines, **options)


@pytest.fixture(params=[True, False], ids=["captured", "enqueued"])
def queued(request: pytest.FixtureRequest, tiny_bundle: Path) -> Iterator[Generator]:
    """The tiny bundle on a device of its own kind."""
    with _open(tiny_bundle, capturable=request.param, max_batch=2) as opened:
        yield opened
        assert isinstance(opened.device, _Queue)
        assert (opened.device.captured > 0) == request.param


@pytest.mark.parametrize(
    "settings",
    [
        {"schedule": "cosine", "steps": 4},
        {"schedule": "linear", "steps": 3, "guidance": 0},
        {"schedule": "cosine", "steps": 1, "sampling_temperature": 0.5},
        {"schedule": "policy", "steps": 4},
        {"schedule": "policy", "steps": 1},
    ],
)
def test_results_are_those_of_the_cpu_device(
    generator: Generator, queued: Generator, settings: dict[str, Any]
) -> None:
    for classes, seed in (([3, 1, 4], 7), ([0, 0, 2], 2**50), ([3, 1, 4], 7)):
        found = queued.generate(class_ids=classes, seed=seed, **settings)
        expected = generator.generate(class_ids=classes, seed=seed, **settings)
        np.testing.assert_array_equal(found.trace.tokens, expected.trace.tokens)
        np.testing.assert_array_equal(found.trace.sampled, expected.trace.sampled)
        np.testing.assert_allclose(found.trace.parameters, expected.trace.parameters, rtol=1e-4)
        assert np.abs(found.images.astype(int) - expected.images).max() <= 1


def test_without_reuse_and_with_text_too(text_generator: Generator, tiny_text_bundle: Path) -> None:
    text = np.random.default_rng(8).standard_normal((2, 3, 12), np.float32)
    expected = text_generator.generate(text=text, steps=3, seed=5)
    for reuse_first in (True, False):
        with _open(tiny_text_bundle, reuse_first=reuse_first) as queued:
            found = queued.generate(text=text, steps=3, seed=5)
        np.testing.assert_array_equal(found.trace.tokens, expected.trace.tokens)


def test_edits_are_those_of_the_cpu_device(generator: Generator, queued: Generator) -> None:
    rng = np.random.default_rng(2)
    key = PlanKey(2, 3, guided=True, policy="policy", reuse_first=False)
    classes, seeds = np.array([1, 2], np.int32), np.array([3, 4], np.uint64)
    plans = [each.decoder.plan(key) for each in (queued, generator)]
    for _ in range(3):
        given = rng.integers(0, 24, (2, 16)).astype(np.int32)
        mask = rng.integers(0, 2, (2, 16)).astype(np.uint8)
        found, expected = (plan.run(classes, seeds, None, given=given, mask=mask) for plan in plans)
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_array_equal(found.sampled, expected.sampled)


def test_raster_order_is_that_of_the_cpu_device(generator: Generator, queued: Generator) -> None:
    for guidance in (0.0, 2.0):
        found, _ = decode_in_raster_order(queued, class_ids=[1, 4], seed=3, guidance=guidance)
        expected, _ = decode_in_raster_order(generator, class_ids=[1, 4], seed=3, guidance=guidance)
        np.testing.assert_array_equal(found, expected)


def test_the_error_flag_is_fetched_and_taken_down_by_the_next_run(queued: Generator) -> None:
    plan = queued.decoder.plan(PlanKey(1, 2, guided=False, policy=None))
    classes, seeds = np.zeros(1, np.int32), np.zeros(1, np.uint64)
    parameters = np.array([[0.5, 0, 1, 0], [0, 0, 1, 0]], np.float32)
    expected = plan.run(classes, seeds, parameters)
    unusable = np.where(np.arange(4) == 2, np.float32(np.nan), parameters)
    with pytest.raises(EngineError):
        plan.run(classes, seeds, unusable)
    np.testing.assert_array_equal(plan.run(classes, seeds, parameters).tokens, expected.tokens)
