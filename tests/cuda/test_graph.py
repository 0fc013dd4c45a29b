"""The captured graph of a plan: its nodes, that it is all that runs, and that it is reusable.

Covered: one launch a generation and nothing beside it; replays with other seeds, classes and
parameters; engines that cannot be captured; sequences that fail or wait while they are captured.
Times are in ``test_times.py``.

Engines are ONNX Runtime on the host (``host_engine.py``): copies and a host node of the graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from tests.cuda.graph_nodes import nodes_of

from fewstep.runtime.devices import BufferSpec, Part
from fewstep.runtime.devices.cuda import CudaDevice, CudaReplay
from fewstep.runtime.devices.cuda_driver import load_bindings
from fewstep.runtime.devices.cuda_graph import CudaGraph
from fewstep.runtime.devices.cuda_memory import CudaWorkspace
from fewstep.runtime.errors import DeviceError, EngineError
from fewstep.runtime.families.masked.program import MaskedKey
from fewstep.runtime.generator import Generator
from fewstep.runtime.result import Result

Open = Callable[..., Generator]
Alike = Callable[[Result, Result], None]
Counts = Callable[[], dict[str, int]]

_SPECS = {
    "given": BufferSpec((2, 3), "int32", "input"),
    "mask": BufferSpec((2, 3), "uint8", "input"),
    "error": BufferSpec((1,), "int32", "status"),
    "tokens": BufferSpec((2, 3), "int32", "output"),
}


@pytest.fixture
def totals(
    on_cuda: Generator, driver_report: Callable[[], dict[str, dict[str, int]]]
) -> Callable[[], dict[str, int]]:
    """What the driver was asked for so far."""
    return lambda: driver_report()["totals"]


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[CudaReplay]:
    """Every capture that is made during the test."""
    made: list[CudaReplay] = []
    capture = CudaDevice.capture

    def counted(device: CudaDevice, parts: Sequence[Part], **options: Any) -> CudaReplay:
        made.append(capture(device, parts, **options))
        return made[-1]

    monkeypatch.setattr(CudaDevice, "capture", counted)
    return made


@pytest.fixture
def workspace(device: CudaDevice) -> Iterator[CudaWorkspace]:
    """Buffers for the kernel ``initial_tokens``."""
    with device.workspace(_SPECS) as opened:
        yield opened


# --- nodes


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("policy", [None, "policy"])
def test_a_graph_is_the_documented_sequence_and_nothing_else(
    on_cuda: Generator, emulated: bool, steps: int, guided: bool, policy: str | None
) -> None:
    """One copy each way, and one of the tokens (and the step) to what the engines are bound to."""
    device = on_cuda.device
    assert isinstance(device, CudaDevice)
    copy = [] if device.integrated else ["memcpy"]
    act = ["memcpy", *_engine(2, 1), "policy_parameters"] if policy else []
    decide = [*act, "sample_tokens_float", "remask"]
    step = ["memcpy", *_engine(2, 2), *decide]
    first = ["gather_rows", "gather_rows", *decide]  # logits and features, which are kept
    end = [*_engine(1, 1), "to_pixels_float"]
    plan = on_cuda.plans.get(MaskedKey(2, steps, guided=guided, policy=policy))
    found = nodes_of(plan.replay)
    expected = [*copy, "initial_tokens", *first, *(step * (steps - 1)), *end, *copy]
    assert Counter(found) == Counter(expected)
    if emulated:  # other drivers promise no order
        assert found == expected


def _engine(inputs: int, outputs: int) -> list[str]:
    return ["memcpy"] * inputs + ["host"] + ["memcpy"] * outputs


def test_copies_and_kernels_of_a_sequence_become_nodes(
    device: CudaDevice, workspace: CudaWorkspace
) -> None:
    replay = device.capture([Part(lambda: _tokens(device, workspace))])
    copies = [] if device.integrated else ["memcpy"]
    assert sorted(nodes_of(replay)) == ["initial_tokens", *copies, *copies]
    replay.close()


# --- replays


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[CudaGraph]:
    """Every graph that is launched during the test."""
    made: list[CudaGraph] = []
    launch = CudaGraph.launch

    def counted(graph: CudaGraph) -> None:
        made.append(graph)
        launch(graph)

    monkeypatch.setattr(CudaGraph, "launch", counted)
    return made


@pytest.mark.parametrize("schedule", ["cosine", "policy"])
def test_a_generation_enqueues_one_graph_and_nothing_beside_it(
    on_cuda: Generator,
    launches: list[CudaGraph],
    monkeypatch: pytest.MonkeyPatch,
    schedule: str,
) -> None:
    request: dict[str, Any] = {"class_ids": [1, 2], "schedule": schedule, "steps": 5}
    on_cuda.generate(**request)
    launches.clear()

    def beside(*_: object, **__: object) -> None:
        raise AssertionError("something is enqueued beside the graph")

    for kind, names in (
        (CudaDevice, ("copy", "download", "launch", "run", "upload", "workspace")),
        (CudaWorkspace, ("fetch", "send")),
    ):
        for name in names:
            monkeypatch.setattr(kind, name, beside)
    on_cuda.generate(**request, seed=9)
    assert len(launches) == 1


@pytest.mark.parametrize("schedule", ["cosine", "policy"])
def test_a_generation_is_one_graph_launch_for_the_driver_too(
    on_cuda: Generator, totals: Counts, launches: list[CudaGraph], schedule: str
) -> None:
    request: dict[str, Any] = {"class_ids": [1, 2], "schedule": schedule, "steps": 5}
    on_cuda.generate(**request)
    launches.clear()
    before = totals()
    on_cuda.generate(**request, seed=9)
    used = {name: value - before[name] for name, value in totals().items()}
    assert len(launches) == used["graph_launches"] == 1
    outside = ("kernel_launches", "copies", "memsets", "host_functions")
    assert {name: used[name] for name in outside} == dict.fromkeys(outside, 0)
    per_step = 3 if schedule == "policy" else 2
    assert used["graph_kernel_launches"] == used["kernels_run"] == 4 + 5 * per_step


def test_images_beyond_max_batch_are_further_launches_of_the_same_graph(
    on_cuda: Generator, totals: Counts
) -> None:
    request: dict[str, Any] = {"class_ids": [0] * 8, "steps": 2}
    on_cuda.generate(**request)
    before = totals()
    on_cuda.generate(**request)
    assert totals()["graph_launches"] - before["graph_launches"] == 2
    assert totals()["kernel_launches"] == before["kernel_launches"]


@pytest.mark.parametrize("schedule", ["cosine", "policy"])
def test_replays_with_other_inputs_are_what_a_fresh_generator_gives(
    open_cuda: Open,
    on_cuda: Generator,
    captures: list[CudaReplay],
    assert_alike: Alike,
    schedule: str,
) -> None:
    path = on_cuda.bundle.path
    requests = list(_requests(schedule))
    fresh = []
    for request in requests:
        with open_cuda(path) as generator:
            fresh.append(generator.generate(**request))
    captures.clear()
    with open_cuda(path) as generator:
        for request, expected in zip([*requests, *requests], [*fresh, *fresh], strict=True):
            assert_alike(generator.generate(**request), expected)
        key = MaskedKey(2, 4, guided=True, policy="policy" if schedule == "policy" else None)
        assert captures == [generator.plans.get(key).replay]
    assert len({each.tokens.tobytes() for each in fresh}) == len(fresh)


def _requests(schedule: str) -> Iterator[dict[str, Any]]:
    shared: dict[str, Any] = {"schedule": schedule, "steps": 4}
    yield shared | {"class_ids": [0, 1], "seed": 0}
    yield shared | {"class_ids": [0, 1], "seed": 2**63}
    yield shared | {"class_ids": [4, 2], "seed": 0}
    if schedule != "policy":
        yield shared | {"class_ids": [0, 1], "guidance": 7.5}
        yield shared | {"class_ids": [0, 1], "sampling_temperature": (3, 0.1)}
        yield shared | {"class_ids": [0, 1], "masking_temperature": (9, 1)}


def test_a_closed_replay_leaves_no_graph(
    device: CudaDevice, workspace: CudaWorkspace, live: Counts
) -> None:
    before = live()
    replay = device.capture([Part(lambda: _tokens(device, workspace))])
    replay()
    device.synchronize()
    for _ in range(2):
        replay.close()
    assert live() == before


# --- engines that cannot be captured


@pytest.mark.parametrize("profile", [False, True])
def test_engines_that_cannot_be_captured_give_the_same_images(
    open_cuda: Open,
    on_cuda: Generator,
    assert_alike: Alike,
    captures: list[CudaReplay],
    profile: bool,
) -> None:
    request: dict[str, Any] = {"class_ids": [3, 0, 3], "steps": 4, "schedule": "policy"}
    expected = on_cuda.generate(**request)
    captures.clear()
    with open_cuda(on_cuda.bundle.path, profile=profile) as generator:
        for engine in generator.engines.values():
            engine.capturable = False  # type: ignore[misc]
        for _ in range(2):
            found = generator.generate(**request)
            assert_alike(found, expected)
    assert not captures
    stages = {"transformer", "policy", "sampling", "decoder"} if profile else set()
    assert set(found.timings_ms) == stages | {"other", "total"}


# --- sequences that fail


@pytest.mark.parametrize("run", [1, 2])
@pytest.mark.parametrize("failure", [EngineError("no"), KeyboardInterrupt()])
def test_a_sequence_that_fails_leaves_no_graph_and_a_usable_stream(
    device: CudaDevice, workspace: CudaWorkspace, live: Counts, failure: BaseException, run: int
) -> None:
    """The first run is outside the capture, the second is the capture."""
    before, runs = live(), 0

    def sequence() -> None:
        nonlocal runs
        runs += 1
        _tokens(device, workspace)
        if runs == run:
            raise failure

    with pytest.raises(type(failure)):
        device.capture([Part(sequence)])
    device.synchronize()
    assert live() == before
    _assert_works(device, workspace)


@pytest.mark.parametrize("reads_back", [False, True])
def test_waiting_while_captured_is_an_error_that_the_device_survives(
    device: CudaDevice, workspace: CudaWorkspace, live: Counts, reads_back: bool
) -> None:
    before, runs = live(), 0

    def sequence() -> None:
        nonlocal runs
        runs += 1
        _tokens(device, workspace)
        if runs == 2:
            device.download(workspace["tokens"]) if reads_back else device.synchronize()

    with pytest.raises(DeviceError, match="captur"):
        device.capture([Part(sequence)])
    assert live() == before
    _assert_works(device, workspace)


def test_an_engine_that_waits_while_captured_is_told_of(
    device: CudaDevice, workspace: CudaWorkspace, live: Counts
) -> None:
    """It waits through the driver itself and takes no notice of the refusal."""
    before, driver, runs = live(), load_bindings(), 0

    def sequence() -> None:
        nonlocal runs
        runs += 1
        _tokens(device, workspace)
        if runs == 2:
            driver.cuStreamSynchronize(driver.CUstream(device.cuda_stream.handle))

    with pytest.raises(DeviceError, match="cannot be captured into a CUDA graph.*an engine waits"):
        device.capture([Part(sequence)])
    assert live() == before
    _assert_works(device, workspace)


def _tokens(device: CudaDevice, workspace: CudaWorkspace) -> None:
    """Inputs to the device, one kernel, outputs back."""
    buffers = {name: workspace[name] for name in _SPECS}
    workspace.send()
    device.launch("initial_tokens", codebook_size=8, mask_token=8, **buffers)
    workspace.fetch()


def _assert_works(device: CudaDevice, workspace: CudaWorkspace) -> None:
    """Both at once and in a graph."""
    workspace.write("given", [[1, 2, 3], [4, 5, 6]])
    workspace.write("mask", np.array([[1, 0, 0], [0, 0, 1]], np.uint8))
    expected = np.array([[8, 2, 3], [4, 5, 8]])
    _tokens(device, workspace)
    device.synchronize()
    assert (workspace.read("tokens") == expected).all()
    workspace.write("given", [[1, 2, 3], [4, 0, 6]])
    replay = device.capture([Part(lambda: _tokens(device, workspace))])
    workspace.write("given", [[1, 2, 7], [4, 5, 6]])
    replay()
    device.synchronize()
    replay.close()
    assert (workspace.read("tokens") == [[8, 2, 7], [4, 5, 8]]).all()
