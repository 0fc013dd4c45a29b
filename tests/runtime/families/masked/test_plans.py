"""The plans that a decoder keeps, and the memory it gives back.

A device that keeps account of what is open shows: reuse, both bounds of the cache and their order,
against a simulation of it; that nothing stays open after closing, nor after a plan that could not
be made, whatever failed. What happens when memory runs out: ``test_masked_memory.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fewstep.runtime.masked import MAX_PLANS
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime.ledger import (
    Ledger,
    assert_usable,
    first_pass_bytes,
    open_decoder,
    plan_bytes,
    plan_key,
)

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices import Buffer
from fewstep.runtime.engines import BoundEngine
from fewstep.runtime.engines.onnxruntime import OnnxRuntimeEngine
from fewstep.runtime.errors import DeviceError, EngineError
from fewstep.runtime.families.masked.schedule import Schedule
from fewstep.runtime.generator import Generator
from fewstep.runtime.plan import PlanKey


def _open_steps(device: Ledger) -> list[int]:
    """Step counts of the open plans, oldest first."""
    return [len(entry.read("sampled")) for entry in device.open]


# --- what is kept


def test_a_plan_is_made_once_and_kept(generator: Generator) -> None:
    device = Ledger()
    decoder = open_decoder(generator, device)
    plan = decoder.plan(plan_key(2))
    assert decoder.plan(plan_key(2)) is plan
    assert decoder.plan(plan_key(3)) is not plan
    assert decoder.plan(plan_key(2)) is plan
    assert device.asked == 2
    assert plan.bytes == plan_bytes(generator, plan_key(2)) == device.open[0].bytes


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
    decoder = open_decoder(generator, Ledger())
    plan = decoder.plan(PlanKey(2, 2, guided=True, policy=None))
    assert decoder.plan(other) is not plan
    assert decoder.plan(other).key == other


def test_at_most_so_many_plans_are_kept_and_the_least_recently_used_goes(
    generator: Generator,
) -> None:
    device = Ledger()
    decoder = open_decoder(generator, device)
    for steps in range(1, MAX_PLANS + 1):
        decoder.plan(plan_key(steps))
    assert _open_steps(device) == list(range(1, MAX_PLANS + 1))
    decoder.plan(plan_key(1))  # used again: no longer the first to go
    decoder.plan(plan_key(MAX_PLANS + 1))
    assert _open_steps(device) == [1, *range(3, MAX_PLANS + 2)]
    assert len(device.replays) == MAX_PLANS


@pytest.mark.parametrize("missing", [0, 1])
def test_plans_may_fill_their_bytes_exactly(generator: Generator, missing: int) -> None:
    device, keys = Ledger(), [plan_key(2), plan_key(3), plan_key(4)]
    limit = sum(plan_bytes(generator, key) for key in keys) - missing
    decoder = open_decoder(generator, device, max_plan_bytes=limit)
    for key in keys:
        decoder.plan(key)
    assert _open_steps(device) == ([3, 4] if missing else [2, 3, 4])


def test_one_plan_alone_may_need_more(generator: Generator) -> None:
    device = Ledger()
    decoder = open_decoder(generator, device, max_plan_bytes=1)
    for steps in (2, 5, 3):
        plan = decoder.plan(plan_key(steps))
        assert _open_steps(device) == [steps]
        assert_usable(plan)


@settings(max_examples=40)
@given(
    wanted=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 16)), min_size=1, max_size=40),
    limit=st.floats(0.3, 12),
)
def test_the_cache_is_that_of_a_simulation(
    generator: Generator, wanted: list[tuple[int, int]], limit: float
) -> None:
    """Room is made before a plan is, so that not even its making takes more."""
    device, unit = Ledger(), plan_bytes(generator, plan_key(8))
    decoder = open_decoder(generator, device, max_plan_bytes=int(limit * unit))
    kept: dict[PlanKey, int] = {}  # from the least to the most recently used
    largest = 0
    for batch, steps in wanted:
        key = plan_key(steps, batch=batch)
        plan, size = decoder.plan(key), plan_bytes(generator, key)
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
    device, key, shared = Ledger(), plan_key(2, guided=True), first_pass_bytes(generator)
    decoder = open_decoder(generator, device, max_plan_bytes=plan_bytes(generator, key))
    first = decoder.plan(key)
    assert [entry.bytes for entry in device.open] == [shared, first.bytes]
    kept = device.open[0]
    second = decoder.plan(plan_key(3, guided=True))
    assert device.open == [kept, second.workspace]
    assert device.asked == 4  # the logits, the inputs of their pass, two plans


# --- closing


def test_closing_leaves_nothing_open(generator: Generator) -> None:
    device = Ledger()
    decoder = open_decoder(generator, device)
    for key in (plan_key(1), plan_key(2, guided=True), PlanKey(2, 3, guided=True, policy="policy")):
        decoder.plan(key)
    assert len(device.open) == 4
    assert len(device.replays) == 3
    decoder.close()
    decoder.close()
    assert device.nothing_open


def test_closing_a_plan_twice_is_fine(generator: Generator) -> None:
    device = Ledger()
    plan = open_decoder(generator, device).plan(plan_key(2))
    plan.close()
    plan.close()
    assert device.nothing_open


def test_a_closed_generator_has_nothing_open(tiny_bundle: Path) -> None:
    device, bundle = Ledger(), Bundle.read(tiny_bundle)
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
    device = Ledger()
    decoder = open_decoder(generator, device)
    decoder.plan(plan_key(2))
    before = list(device.open)
    device.failure = failure
    with pytest.raises(type(failure)):
        decoder.plan(plan_key(3))
    assert device.open == before
    device.failure = None
    assert decoder.plan(plan_key(3)).workspace in device.open


def test_a_first_pass_that_fails_leaves_nothing_open_and_is_made_again(
    generator: Generator,
) -> None:
    device = Ledger()
    decoder = open_decoder(generator, device)
    broken = _Broken(generator.engines["transformer"], failures=1)
    decoder.engines = {**generator.engines, "transformer": broken}
    with pytest.raises(EngineError, match="broken"):
        decoder.plan(plan_key(2, guided=True))
    assert device.nothing_open
    plan = decoder.plan(plan_key(2, guided=True))
    found = plan.run(np.zeros(1, np.int32), np.zeros(1, np.uint64), Schedule().parameters(2, 16))
    expected = generator.generate(class_ids=[0], steps=2, guidance=(0, 3)).tokens
    assert (found.sampled[-1] == expected).all()
