"""The plans that a decoder keeps, and the memory it gives back.

A device that keeps account of what is open shows: reuse, both bounds of the cache and their order,
against a simulation of it; that nothing stays open after closing, nor after a plan that could not
be made, whatever failed; and what happens when memory runs out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.device import Buffer, BufferSpec, Direct
from fewstep.runtime.device.cpu import CpuDevice, CpuWorkspace
from fewstep.runtime.engine import BoundEngine
from fewstep.runtime.engine.onnxruntime import OnnxRuntimeEngine
from fewstep.runtime.errors import DeviceError, EngineError, OutOfMemoryError
from fewstep.runtime.generator import Generator
from fewstep.runtime.masked import MAX_PLANS, MaskedDecoder
from fewstep.runtime.masked_plan import MaskedPlan
from fewstep.runtime.plan import PlanKey, first_pass_buffers, plan_buffers
from fewstep.runtime.schedule import Schedule

_NO_CLASS = np.array(5, np.int32)


class _Entry(CpuWorkspace):
    """A workspace on the ledger while it is open."""

    def __init__(self, ledger: _Ledger, specs: Mapping[str, BufferSpec]) -> None:
        super().__init__(specs)
        self.bytes, self._ledger = _bytes(specs), ledger
        ledger.open.append(self)
        ledger.peak = max(ledger.peak, ledger.used)

    def close(self) -> None:
        if self in self._ledger.open:
            self._ledger.open.remove(self)
        super().close()


class _Replay(Direct):
    """A captured sequence on the ledger while it is open."""

    def __init__(self, ledger: _Ledger, sequence: Callable[[], None]) -> None:
        super().__init__(sequence)
        self._ledger = ledger
        ledger.replays.append(self)

    def __call__(self) -> None:
        if self._ledger.late:
            self._ledger.late -= 1
            raise OutOfMemoryError("no room to launch")
        super().__call__()

    def close(self) -> None:
        if self in self._ledger.replays:
            self._ledger.replays.remove(self)


class _Ledger(CpuDevice):
    """Counts what is open, has only so much room, and fails to capture when told to."""

    def __init__(self, room: int | None = None) -> None:
        super().__init__()
        self.open: list[_Entry] = []
        self.replays: list[_Replay] = []
        self.room, self.peak, self.asked = room, 0, 0
        self.failure: BaseException | None = None
        self.late = 0  # launches that run out of memory

    @property
    def used(self) -> int:
        return sum(entry.bytes for entry in self.open)

    @property
    def nothing_open(self) -> bool:
        return not self.open and not self.replays

    def workspace(self, specs: Mapping[str, BufferSpec]) -> CpuWorkspace:
        self.asked += 1
        if self.room is not None and self.used + _bytes(specs) > self.room:
            raise OutOfMemoryError(f"no room for {_bytes(specs)} bytes")
        return _Entry(self, specs)

    def capture(self, sequence: Callable[[], None], **_: Any) -> Direct:
        if self.failure is not None:
            raise self.failure
        return _Replay(self, sequence)


def _bytes(specs: Mapping[str, BufferSpec]) -> int:
    return sum(spec.bytes for spec in specs.values())


def _key(steps: int, *, guided: bool = False, batch: int = 1) -> PlanKey:
    return PlanKey(batch, steps, guided=guided, policy=None)


def _decoder(generator: Generator, device: CpuDevice, **options: Any) -> MaskedDecoder:
    model = generator.bundle.manifest.model
    return MaskedDecoder(device, generator.engines, model, _NO_CLASS, **options)


def _size(generator: Generator, key: PlanKey) -> int:
    return _bytes(plan_buffers(generator.bundle.manifest.model, generator.engines, key))


def _open_steps(device: _Ledger) -> list[int]:
    """Step counts of the open plans, oldest first."""
    return [len(entry.read("sampled")) for entry in device.open]


# --- what is kept


def test_a_plan_is_made_once_and_kept(generator: Generator) -> None:
    device = _Ledger()
    decoder = _decoder(generator, device)
    plan = decoder.plan(_key(2))
    assert decoder.plan(_key(2)) is plan
    assert decoder.plan(_key(3)) is not plan
    assert decoder.plan(_key(2)) is plan
    assert device.asked == 2
    assert plan.bytes == _size(generator, _key(2)) == device.open[0].bytes


@pytest.mark.parametrize(
    "other",
    [
        PlanKey(3, 2, guided=True, policy=None),
        PlanKey(2, 3, guided=True, policy=None),
        PlanKey(2, 2, guided=False, policy=None),
        PlanKey(2, 2, guided=True, policy="policy"),
        PlanKey(2, 2, guided=True, policy=None, reuse_first=False),
    ],
)
def test_every_part_of_the_key_makes_another_plan(generator: Generator, other: PlanKey) -> None:
    decoder = _decoder(generator, _Ledger())
    plan = decoder.plan(PlanKey(2, 2, guided=True, policy=None))
    assert decoder.plan(other) is not plan
    assert decoder.plan(other).key == other


def test_at_most_so_many_plans_are_kept_and_the_least_recently_used_goes(
    generator: Generator,
) -> None:
    device = _Ledger()
    decoder = _decoder(generator, device)
    for steps in range(1, MAX_PLANS + 1):
        decoder.plan(_key(steps))
    assert _open_steps(device) == list(range(1, MAX_PLANS + 1))
    decoder.plan(_key(1))  # used again: no longer the first to go
    decoder.plan(_key(MAX_PLANS + 1))
    assert _open_steps(device) == [1, *range(3, MAX_PLANS + 2)]
    assert len(device.replays) == MAX_PLANS


@pytest.mark.parametrize("missing", [0, 1])
def test_plans_may_fill_their_bytes_exactly(generator: Generator, missing: int) -> None:
    device, keys = _Ledger(), [_key(2), _key(3), _key(4)]
    limit = sum(_size(generator, key) for key in keys) - missing
    decoder = _decoder(generator, device, max_plan_bytes=limit)
    for key in keys:
        decoder.plan(key)
    assert _open_steps(device) == ([3, 4] if missing else [2, 3, 4])


def test_one_plan_alone_may_need_more(generator: Generator) -> None:
    device = _Ledger()
    decoder = _decoder(generator, device, max_plan_bytes=1)
    for steps in (2, 5, 3):
        plan = decoder.plan(_key(steps))
        assert _open_steps(device) == [steps]
        _assert_usable(plan)


@settings(max_examples=40)
@given(
    wanted=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 16)), min_size=1, max_size=40),
    limit=st.floats(0.3, 12),
)
def test_the_cache_is_that_of_a_simulation(
    generator: Generator, wanted: list[tuple[int, int]], limit: float
) -> None:
    """Room is made before a plan is, so that not even its making takes more."""
    device, unit = _Ledger(), _size(generator, _key(8))
    decoder = _decoder(generator, device, max_plan_bytes=int(limit * unit))
    kept: dict[PlanKey, int] = {}  # from the least to the most recently used
    largest = 0
    for batch, steps in wanted:
        key = _key(steps, batch=batch)
        plan, size = decoder.plan(key), _size(generator, key)
        if key not in kept:
            while kept and (
                len(kept) == MAX_PLANS or sum(kept.values()) + size > int(limit * unit)
            ):
                kept.pop(next(iter(kept)))
        kept.pop(key, None)
        kept[key] = size
        largest = max(largest, size)
        assert plan.workspace in device.open
        assert sorted(entry.bytes for entry in device.open) == sorted(kept.values())
    assert device.peak <= max(int(limit * unit), largest)
    decoder.close()
    assert device.nothing_open


def test_the_first_unconditional_logits_outlive_the_plans_and_do_not_count(
    generator: Generator,
) -> None:
    device, key, shared = _Ledger(), _key(2, guided=True), _first_bytes(generator)
    decoder = _decoder(generator, device, max_plan_bytes=_size(generator, key))
    first = decoder.plan(key)
    assert [entry.bytes for entry in device.open] == [shared, first.bytes]
    kept = device.open[0]
    second = decoder.plan(_key(3, guided=True))
    assert device.open == [kept, second.workspace]
    assert device.asked == 4  # the logits, the inputs of their pass, two plans


# --- closing


def test_closing_leaves_nothing_open(generator: Generator) -> None:
    device = _Ledger()
    decoder = _decoder(generator, device)
    for key in (_key(1), _key(2, guided=True), PlanKey(2, 3, guided=True, policy="policy")):
        decoder.plan(key)
    assert len(device.open) == 4
    assert len(device.replays) == 3
    decoder.close()
    decoder.close()
    assert device.nothing_open


def test_closing_a_plan_twice_is_fine(generator: Generator) -> None:
    device = _Ledger()
    plan = _decoder(generator, device).plan(_key(2))
    plan.close()
    plan.close()
    assert device.nothing_open


def test_a_closed_generator_has_nothing_open(tiny_bundle: Path) -> None:
    device, bundle = _Ledger(), Bundle.read(tiny_bundle)
    engines = {
        name: OnnxRuntimeEngine(name, bundle.graph_path(name), info, threads=1)
        for name, info in bundle.manifest.graphs.items()
    }
    with Generator(bundle, device, engines, max_batch=2, max_plan_bytes=1) as generator:
        generator.generate(class_ids=[0, 1, 2], steps=2)
        assert [len(entry.read("sampled")[0]) for entry in device.open[1:]] == [1]
        generator.generate(class_ids=[0], steps=3, schedule="policy")
        assert len(device.open) == 2  # the unconditional logits and the last plan
    assert device.nothing_open


# --- plans that cannot be made


class _Broken:
    """An engine that fails to run a number of times."""

    def __init__(self, engine: Any, failures: int) -> None:
        self._engine, self.failures = engine, failures

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def bind(self, bindings: Mapping[str, Buffer]) -> BoundEngine:
        bound: BoundEngine = self._engine.bind(bindings)

        def run() -> None:
            self.failures -= 1
            if self.failures >= 0:
                raise EngineError("broken")
            bound.run()

        return replace(bound, run=run)


@pytest.mark.parametrize("failure", [DeviceError("no capture"), KeyboardInterrupt()])
def test_a_capture_that_fails_leaves_nothing_of_its_plan(
    generator: Generator, failure: BaseException
) -> None:
    device = _Ledger()
    decoder = _decoder(generator, device)
    decoder.plan(_key(2))
    before = list(device.open)
    device.failure = failure
    with pytest.raises(type(failure)):
        decoder.plan(_key(3))
    assert device.open == before
    device.failure = None
    assert decoder.plan(_key(3)).workspace in device.open


def test_a_first_pass_that_fails_leaves_nothing_open_and_is_made_again(
    generator: Generator,
) -> None:
    device = _Ledger()
    decoder = _decoder(generator, device)
    broken = _Broken(generator.engines["transformer"], failures=1)
    decoder.engines = {**generator.engines, "transformer": broken}
    with pytest.raises(EngineError, match="broken"):
        decoder.plan(_key(2, guided=True))
    assert device.nothing_open
    plan = decoder.plan(_key(2, guided=True))
    found = plan.run(np.zeros(1, np.int32), np.zeros(1, np.uint64), Schedule().parameters(2, 16))
    expected = generator.generate(class_ids=[0], steps=2, guidance=(0, 3)).tokens
    assert (found.sampled[-1] == expected).all()


# --- out of memory


def test_out_of_memory_drops_the_other_plans_and_tries_once_more(generator: Generator) -> None:
    sizes = [_size(generator, _key(steps)) for steps in (2, 3, 4)]
    device = _Ledger(room=sum(sizes) - 1)
    decoder = _decoder(generator, device)
    decoder.plan(_key(2))
    decoder.plan(_key(3))
    device.asked = 0
    plan = decoder.plan(_key(4))
    assert device.asked == 2
    assert device.open == [plan.workspace]
    assert len(device.replays) == 1
    assert decoder.plan(_key(4)) is plan


def test_out_of_memory_as_a_plan_is_launched_drops_the_other_plans_too(
    generator: Generator,
) -> None:
    """A driver may allocate as late as that."""
    device = _Ledger()
    decoder = _decoder(generator, device)
    kept, late = decoder.plan(_key(2)), decoder.plan(_key(3))
    device.late = 1
    inputs = np.zeros(1, np.int32), np.zeros(1, np.uint64), Schedule().parameters(3, 16)
    expected = decoder.run(_key(3), *inputs)
    assert kept.workspace not in device.open and late.workspace not in device.open
    assert [entry.bytes for entry in device.open] == [_size(generator, _key(3))]
    assert (decoder.run(_key(3), *inputs).tokens == expected.tokens).all()
    device.late = 1
    with pytest.raises(OutOfMemoryError):  # no other plan is left to drop
        decoder.run(_key(3), *inputs)
    decoder.run(_key(3), *inputs)


def test_what_does_not_even_fit_alone_is_an_error_and_the_decoder_goes_on(
    generator: Generator,
) -> None:
    small, large = _key(2), _key(2, batch=8)
    device = _Ledger(room=2 * _size(generator, small))
    decoder = _decoder(generator, device)
    decoder.plan(small)
    device.asked = 0
    with pytest.raises(OutOfMemoryError):
        decoder.plan(large)
    assert device.asked == 2
    assert device.nothing_open
    with pytest.raises(OutOfMemoryError):
        decoder.plan(large)
    assert device.asked == 3  # there was nothing to drop, hence no second try
    _assert_usable(decoder.plan(small))


def test_room_for_the_first_unconditional_logits_is_made_too(generator: Generator) -> None:
    other, key = _key(2, batch=2), _key(2, guided=True)
    shared = _first_bytes(generator)
    device = _Ledger(room=shared + _size(generator, key))
    decoder = _decoder(generator, device)
    decoder.plan(other)
    assert device.used + shared > shared + _size(generator, key)  # no room for the logits
    plan = decoder.plan(key)
    assert [entry.bytes for entry in device.open] == [shared, plan.bytes]
    _assert_usable(plan)


@pytest.mark.parametrize("pieces", range(1, 3))
def test_a_first_pass_without_room_leaves_nothing_open(generator: Generator, pieces: int) -> None:
    """Room for neither the logits, or for them and not for the inputs of their pass."""
    shared = _first_bytes(generator)
    device = _Ledger(room=shared - 1 if pieces == 1 else shared)
    with pytest.raises(OutOfMemoryError):
        _decoder(generator, device).plan(_key(1, guided=True))
    assert device.asked == pieces
    assert device.open == []


def _first_bytes(generator: Generator) -> int:
    return _bytes(first_pass_buffers(generator.bundle.manifest.model, generator.engines))


def _assert_usable(plan: MaskedPlan) -> None:
    batch, steps = plan.key.batch, plan.key.steps
    parameters = Schedule().parameters(steps, 16)
    found = plan.run(np.zeros(batch, np.int32), np.arange(batch, dtype=np.uint64), parameters)
    assert found.sampled.shape == (steps, batch, 16)
    assert ((found.sampled >= 0) & (found.sampled < 24)).all()
