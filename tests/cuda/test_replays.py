"""What a plan's graph does when it is launched again and again, and what must not go unnoticed.

Covered: a replay gives what the same work gives step by step; plans and generators in turn; a
thousand replays take no memory; work that a capture misses, or repeats differently; an error in
another thread during a capture; memory that is really used up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewstep.runtime.devices import Buffer, BufferSpec, Part
from fewstep.runtime.devices.cuda import CudaDevice
from fewstep.runtime.devices.cuda_driver import load_driver
from fewstep.runtime.devices.cuda_memory import CudaWorkspace
from fewstep.runtime.engines import BoundEngine
from fewstep.runtime.errors import DeviceError, OutOfMemoryError
from fewstep.runtime.families.masked.program import MaskedKey
from fewstep.runtime.generator import Generator
from fewstep.runtime.result import Result

Open = Callable[..., Generator]
Alike = Callable[[Result, Result], None]
Counts = Callable[[], dict[str, int]]

_MANY = 1000
_BLOCK = 2 << 20
"""What a GPU gives at least."""


# --- the same as without a graph


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("policy", [None, "policy"])
def test_a_replay_gives_what_the_same_work_gives_step_by_step(
    on_cuda: Generator, guided: bool, policy: str | None
) -> None:
    plan = on_cuda.plans.get(MaskedKey(3, 4, guided=guided, policy=policy))
    workspace, device = plan.workspace, on_cuda.device
    assert isinstance(workspace, CudaWorkspace)
    ratios = np.linspace(0.8, 0, 4, dtype=np.float32)
    fixed = np.stack([ratios, 3 * ratios, 0.5 + ratios, 4 - ratios], axis=1)
    workspace.write("condition", [4, 0, 2, 5, 5, 5] if guided else [4, 0, 2])
    workspace.write("seeds", np.arange(7, 10, dtype=np.uint64))
    if not policy:
        workspace.write("parameters", fixed[:, None])
    found = []
    for enqueue in (plan._sequence, plan.replay):
        workspace.poison()
        enqueue()
        device.synchronize()
        found.append(workspace.written())
    assert found[0].keys() == {"error", "tokens", "sampled", "pixels"} | (
        {"parameters"} if policy else set()
    )
    for name, expected in found[0].items():
        np.testing.assert_array_equal(found[1][name], expected, err_msg=name)
    assert not found[1]["error"].any()


def test_plans_in_turn_do_not_disturb_each_other(
    open_cuda: Open, on_cuda: Generator, on_cpu: Generator, assert_alike: Alike
) -> None:
    """Of one generator and of two, whose graphs run on one GPU."""
    with open_cuda(on_cuda.bundle.path, max_batch=4) as other:
        for turn in range(3):
            for steps, classes in ((2, [1, 2]), (5, [0]), (2, [3, 3, 3])):
                request: dict[str, Any] = {"class_ids": classes, "steps": steps, "seed": turn}
                expected = on_cpu.generate(**request)
                for generator in (on_cuda, other):
                    assert_alike(generator.generate(**request), expected)


def test_a_thousand_replays_take_no_memory(on_cuda: Generator, live: Counts) -> None:
    plan, free = on_cuda.plans.get(MaskedKey(1, 1, guided=False, policy=None)), set()
    for turn in range(_MANY):
        plan.run({"condition": 1, "seeds": np.uint64(turn)})
        if turn == _MANY // 10:
            before = live()
        if turn >= _MANY // 10:
            free.add(load_driver().mem_get_info()[0])
    assert live() == before
    assert len(free) == 1 or _is_shared(on_cuda)


def _is_shared(generator: Generator) -> bool:
    """Whether other programs use the GPU's memory too: on an integrated one it is the system's."""
    assert isinstance(generator.device, CudaDevice)
    return generator.device.integrated


# --- what a capture may miss


class _InCapture:
    """Does something else than the engine while it is captured."""

    def __init__(self, generator: Generator, name: str, instead: Callable[..., None]) -> None:
        self._bind, self._device = generator.engines[name].bind, generator.device
        self._instead = instead

    def __call__(self, bindings: Mapping[str, Buffer]) -> BoundEngine:
        bound = self._bind(bindings)

        def run() -> None:
            assert isinstance(self._device, CudaDevice)
            if self._device._capturing:
                self._instead(self._device, bindings)
            else:
                bound.run()

        return replace(bound, run=run)


@pytest.mark.parametrize("name", ["transformer", "policy", "decoder"])
def test_an_engine_that_is_missing_from_the_graph_is_named(
    open_cuda: Open, tiny_cuda_bundle: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As one would be that enqueues on another stream: the capture itself succeeds."""
    request: dict[str, Any] = {"class_ids": [1], "steps": 2, "schedule": "policy"}
    with open_cuda(tiny_cuda_bundle) as generator:
        expected = generator.generate(**request).tokens
        generator.plans.close()
        with monkeypatch.context() as patch:
            engine = generator.engines[name]
            patch.setattr(engine, "bind", _InCapture(generator, name, lambda *_: None))
            with pytest.raises(DeviceError, match=f"graph '{name}' left no work in the CUDA graph"):
                generator.generate(**request)
        assert (generator.generate(**request).tokens == expected).all()


def _does_nothing_useful(device: CudaDevice, bindings: Mapping[str, Buffer]) -> None:
    first = next(iter(bindings.values()))
    device.copy(first, first)


@pytest.mark.parametrize(
    ("name", "schedule", "rows"),
    [
        ("transformer", "cosine", 4),  # the first step is computed outside of the graph
        *(("transformer", "policy", 4), ("policy", "policy", 2)),
        *(("decoder", "cosine", 2), ("decoder", "policy", 2)),
    ],
)
def test_a_graph_that_gives_something_else_is_noticed(
    open_cuda: Open,
    tiny_cuda_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    schedule: str,
    rows: int,
) -> None:
    """Engines are bound once for every number of rows that they run with."""
    request: dict[str, Any] = {"class_ids": [1, 2], "steps": 3, "schedule": schedule}
    with open_cuda(tiny_cuda_bundle) as generator:
        engine = generator.engines[name]
        bind, broken = engine.bind, _InCapture(generator, name, _does_nothing_useful)

        def bind_broken(bindings: Mapping[str, Buffer]) -> BoundEngine:
            found = next(iter(bindings.values())).shape[0]
            return broken(bindings) if found == rows else bind(bindings)

        monkeypatch.setattr(engine, "bind", bind_broken)
        with pytest.raises(DeviceError, match="a replay of the captured CUDA graph gives another"):
            generator.generate(**request)


def test_an_error_in_another_thread_leaves_a_capture_alone(
    cubin: bytes, device: CudaDevice, live: Counts
) -> None:
    """Waiting for the whole GPU, to see whether it still works, would end the capture."""
    before, failed, capturing = live(), threading.Event(), threading.Event()
    refusals: list[str] = []

    def fail() -> None:
        with closing(CudaDevice(cubin)) as other:
            capturing.wait(30)
            with pytest.raises(OutOfMemoryError) as refusal:
                other.workspace({"x": BufferSpec((1 << 50,), "uint8")})
            refusals.append(str(refusal.value))
            failed.set()

    thread = threading.Thread(target=fail)
    thread.start()
    with device.workspace({"x": BufferSpec((4,), "int32", "output")}) as workspace:
        runs = 0

        def sequence() -> None:
            nonlocal runs
            runs += 1
            workspace.send()
            if runs == 2:
                capturing.set()
                assert failed.wait(30)
            workspace.fetch()

        device.capture([Part(sequence)]).close()
    thread.join()
    assert "out of memory" in refusals[0]
    assert live() == before


# --- memory that is used up


@pytest.fixture
def nearly_full(device: CudaDevice, emulated: bool) -> Iterator[int]:
    """All of the GPU's memory but a few blocks; gives how much is left."""
    if device.integrated and not emulated:
        pytest.skip("an integrated GPU's memory is the system's: using it up would end programs")
    with ExitStack() as held:
        size = load_driver().mem_get_info()[0]
        while size >= _BLOCK:
            left = load_driver().mem_get_info()[0] - 32 * _BLOCK
            if left < size:
                size //= 2
                continue
            try:
                held.enter_context(device.workspace({"x": BufferSpec((size,), "uint8")}))
            except OutOfMemoryError:  # in pieces
                size //= 2
        yield int(load_driver().mem_get_info()[0])


def test_a_smaller_plan_works_where_a_larger_one_does_not_fit(
    open_cuda: Open,
    on_cpu: Generator,
    tiny_cuda_bundle: Path,
    assert_alike: Alike,
    nearly_full: int,
) -> None:
    with open_cuda(tiny_cuda_bundle, max_batch=1 << 16) as generator:
        small: dict[str, Any] = {"class_ids": [1, 2], "steps": 3, "seed": 5}
        assert_alike(generator.generate(**small), on_cpu.generate(**small))
        batch = _too_many(generator, nearly_full)
        with pytest.raises(OutOfMemoryError, match="out of memory.*use a smaller batch"):
            generator.generate(class_ids=[0] * batch, steps=3)
        assert_alike(generator.generate(**small), on_cpu.generate(**small))


def _too_many(generator: Generator, room: int) -> int:
    key = MaskedKey(1, 3, guided=True, policy=None)
    return 2 * room // generator.family.program(generator.model, key).bytes
