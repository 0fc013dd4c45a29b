"""Which plans are kept, what they share, and what happens when memory runs out.

On a device that keeps account of what is open and has only so much room (``ledger.py``): reuse;
both bounds and their order, against a simulation; constants; running out of memory as a plan is
made and as it runs; that nothing stays open after closing, nor after a plan that cannot be made.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime.ledger import Ledger, bytes_of
from tests.runtime.programs import SHAPE, NumpyEngine, assert_halved, halving, halving_engines

from fewstep.runtime.devices import Array
from fewstep.runtime.errors import DeviceError, EngineError, OutOfMemoryError
from fewstep.runtime.memory import MAX_PLANS, Plans

Key = tuple[int, int]
"""Batch and steps."""

_SHARED, _SEED = 4, 4
"""Bytes of the constant, and of what else its program needs."""


@pytest.fixture
def engines() -> dict[str, NumpyEngine]:
    return halving_engines()


def _open(
    engines: dict[str, NumpyEngine], device: Ledger, *, constant: bool = False, **options: Any
) -> Plans:
    def make(key: Any) -> Any:
        return halving(*key, constant=constant)

    return Plans(device, engines, make, **options)


def _bytes(*key: int) -> int:
    return bytes_of(halving(*key, constant=False).buffers)


def _steps(device: Ledger) -> list[int]:
    """Steps of the open plans, oldest first."""
    return [len(entry.read("images")) - 1 for entry in device.open if "images" in entry.names]


def _assert_usable(plans: Plans, key: Key) -> None:
    start: Array = np.random.default_rng(3).random((key[0], *SHAPE), np.float32)
    assert_halved(plans.run(key, {"start": start})["images"], start, key[1])


# --- what is kept


def test_a_plan_is_made_once_and_kept(engines: dict[str, NumpyEngine]) -> None:
    device = Ledger()
    plans = _open(engines, device)
    plan = plans.get((1, 2))
    assert plans.get((1, 2)) is plan
    assert plans.get((1, 3)) is not plan
    assert plans.get((2, 2)) is not plan
    assert plans.get((1, 2)) is plan
    assert device.asked == 3
    assert plan.program.bytes == _bytes(1, 2) == device.open[0].bytes
    _assert_usable(plans, (1, 2))


def test_at_most_so_many_are_kept_and_the_least_recently_used_goes(
    engines: dict[str, NumpyEngine],
) -> None:
    device = Ledger()
    plans = _open(engines, device)
    for steps in range(1, MAX_PLANS + 1):
        plans.get((1, steps))
    assert _steps(device) == list(range(1, MAX_PLANS + 1))
    plans.get((1, 1))  # used again: no longer the first to go
    plans.run((1, 2), {})  # and neither is this
    plans.get((1, MAX_PLANS + 1))
    plans.get((1, MAX_PLANS + 2))
    assert _steps(device) == [1, 2, *range(5, MAX_PLANS + 3)]
    assert len(device.replays) == MAX_PLANS
    assert engines["halve"].open == MAX_PLANS


@pytest.mark.parametrize("missing", [0, 1])
def test_plans_may_fill_their_bytes_exactly(engines: dict[str, NumpyEngine], missing: int) -> None:
    device, keys = Ledger(), [(1, 2), (1, 3), (1, 4)]
    limit = sum(_bytes(*key) for key in keys) - missing
    plans = _open(engines, device, max_plan_bytes=limit)
    for key in keys:
        plans.get(key)
    assert _steps(device) == ([3, 4] if missing else [2, 3, 4])


def test_one_plan_alone_may_need_more(engines: dict[str, NumpyEngine]) -> None:
    device = Ledger()
    plans = _open(engines, device, max_plan_bytes=1)
    for steps in (2, 5, 3):
        _assert_usable(plans, (1, steps))
        assert _steps(device) == [steps]


@settings(max_examples=60)
@given(
    wanted=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 16)), min_size=1, max_size=40),
    limit=st.floats(0.3, 12),
)
def test_the_cache_is_that_of_a_simulation(wanted: list[Key], limit: float) -> None:
    """Room is made before a plan is, so that not even its making takes more."""
    device, most = Ledger(), int(limit * _bytes(1, 8))
    plans = _open(halving_engines(), device, max_plan_bytes=most)
    kept: dict[Key, int] = {}  # from the least to the most recently used
    largest = 0
    for key in wanted:
        plan, size = plans.get(key), _bytes(*key)
        if key not in kept:
            while kept and (len(kept) == MAX_PLANS or sum(kept.values()) + size > most):
                kept.pop(next(iter(kept)))
        kept.pop(key, None)
        kept[key] = size
        largest = max(largest, size)
        assert plan.workspace in device.open
        assert sorted(entry.bytes for entry in device.open) == sorted(kept.values())
    assert device.peak <= max(most, largest)
    plans.close()
    assert device.nothing_open


# --- constants


def test_a_constant_is_computed_once_and_outlives_the_plans(
    engines: dict[str, NumpyEngine],
) -> None:
    """It does not count among the bytes of the plans."""
    device = Ledger()
    size = _bytes(1, 2) - _SHARED  # the constant is no buffer of the plan's own
    plans = _open(engines, device, constant=True, max_plan_bytes=size)
    first = plans.get((1, 2))
    assert [entry.bytes for entry in device.open] == [_SHARED, size]
    constant = device.open[0]
    assert constant.read("offset") == [0.5]
    second = plans.get((1, 3))
    assert device.open == [constant, second.workspace]
    assert first.workspace not in device.open
    assert (engines["twice"].runs, engines["twice"].open) == (1, 0)
    assert device.asked == 4  # the constant, what its program needs besides, two plans
    _assert_usable(plans, (2, 3))
    assert {each["offset"].pointer for each in engines["halve"].bound} == {
        constant["offset"].pointer
    }


def test_a_constant_that_fails_leaves_nothing_and_is_computed_again(
    engines: dict[str, NumpyEngine],
) -> None:
    device = Ledger()
    plans = _open(engines, device, constant=True)
    engines["twice"].failure = EngineError("broken")
    with pytest.raises(EngineError, match="broken"):
        plans.get((1, 2))
    assert device.nothing_open
    assert engines["twice"].open == 0
    _assert_usable(plans, (1, 2))


# --- closing


def test_closing_leaves_nothing_open_and_may_be_repeated(engines: dict[str, NumpyEngine]) -> None:
    device = Ledger()
    plans = _open(engines, device, constant=True)
    for key in ((1, 2), (1, 3), (4, 2)):
        plans.get(key)
    assert len(device.open) == 4
    assert len(device.replays) == 3
    for _ in range(2):
        plans.close()
        assert device.nothing_open
        assert engines["halve"].open == 0


# --- plans that cannot be made


@pytest.mark.parametrize("failure", [DeviceError("no capture"), KeyboardInterrupt()])
def test_a_plan_that_fails_leaves_the_others(
    engines: dict[str, NumpyEngine], failure: BaseException
) -> None:
    device = Ledger()
    plans = _open(engines, device)
    plans.get((1, 2))
    before = list(device.open)
    device.failure = failure
    with pytest.raises(type(failure)):
        plans.get((1, 3))
    assert device.open == before
    device.failure = None
    _assert_usable(plans, (1, 3))


# --- out of memory


def test_without_room_the_other_plans_go_and_it_is_tried_once_more(
    engines: dict[str, NumpyEngine],
) -> None:
    device = Ledger(room=sum(_bytes(1, steps) for steps in (2, 3, 4)) - 1)
    plans = _open(engines, device)
    plans.get((1, 2))
    plans.get((1, 3))
    device.asked = 0
    plan = plans.get((1, 4))
    assert device.asked == 2
    assert device.open == [plan.workspace]
    assert len(device.replays) == 1
    assert plans.get((1, 4)) is plan


def test_without_room_to_launch_the_other_plans_go_too(engines: dict[str, NumpyEngine]) -> None:
    """A driver may allocate as late as that."""
    device = Ledger()
    plans = _open(engines, device)
    kept, late = plans.get((1, 2)), plans.get((1, 3))
    device.late = 1
    _assert_usable(plans, (1, 3))
    assert kept.workspace not in device.open and late.workspace not in device.open
    assert [entry.bytes for entry in device.open] == [_bytes(1, 3)]
    _assert_usable(plans, (1, 3))
    device.late = 1
    with pytest.raises(OutOfMemoryError):  # no other plan is left to drop
        plans.run((1, 3), {})
    _assert_usable(plans, (1, 3))


def test_what_does_not_even_fit_alone_is_an_error_and_smaller_plans_go_on(
    engines: dict[str, NumpyEngine],
) -> None:
    device = Ledger(room=2 * _bytes(1, 2))
    plans = _open(engines, device)
    plans.get((1, 2))
    device.asked = 0
    with pytest.raises(OutOfMemoryError):
        plans.get((8, 2))
    assert device.asked == 2
    assert device.nothing_open
    with pytest.raises(OutOfMemoryError):
        plans.get((8, 2))
    assert device.asked == 3  # there was nothing to drop, hence no second try
    _assert_usable(plans, (1, 2))


def test_room_for_constants_is_made_too(engines: dict[str, NumpyEngine]) -> None:
    device = Ledger()

    def make(key: Any) -> Any:
        return halving(*key, constant=key == (1, 2))

    plans = Plans(device, engines, make)
    plans.get((1, 9))
    device.room = device.used  # not even the constant fits beside it
    plan = plans.get((1, 2))
    assert [entry.bytes for entry in device.open] == [_SHARED, plan.program.bytes]
    _assert_usable(plans, (1, 2))


@pytest.mark.parametrize(
    ("room", "asked"), [(_SHARED - 1, 1), (_SHARED, 2), (_SHARED + _SEED - 1, 2)]
)
def test_a_constant_without_room_leaves_nothing_open(
    engines: dict[str, NumpyEngine], room: int, asked: int
) -> None:
    """Room for neither it, or for it and not for what else its program needs."""
    device = Ledger(room=room)
    with pytest.raises(OutOfMemoryError):
        _open(engines, device, constant=True).get((1, 2))
    assert device.asked == asked
    assert device.nothing_open
