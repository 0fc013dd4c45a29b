"""Walking a program: what every run of a graph read and wrote, decisions free and forced.

Every call is compared with the function of its graph, applied to what it was given, and what lies
between calls with what the program says; on the CPU, and on a device whose memory holds garbage
until something is written to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.runtime.ledger import Ledger
from tests.runtime.programs import (
    SHAPE,
    NumpyEngine,
    assert_halved,
    halving,
    halving_engines,
    tensors,
)
from tests.runtime.queue_device import QueuedEngine, QueueDevice

from fewstep.runtime.devices import Array, BufferSpec, Device
from fewstep.runtime.devices.cpu import CpuDevice
from fewstep.runtime.engines import Engine
from fewstep.runtime.errors import EngineError
from fewstep.runtime.observe import Call, observe
from fewstep.runtime.program import Copy, Program, Run, View

Engines = Mapping[str, Engine]

_STEPS = 3


@pytest.fixture(params=[CpuDevice, QueueDevice])
def place(request: pytest.FixtureRequest) -> tuple[Device, Engines]:
    """A device, and engines on it."""
    device, engines = request.param(), halving_engines()
    if isinstance(device, QueueDevice):
        return device, {name: QueuedEngine(each, device) for name, each in engines.items()}
    return device, engines


def _random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).random(shape, np.float32)


def _observed(
    place: tuple[Device, Engines], batch: int, forced: Mapping[str, Array] | None = None
) -> list[Call]:
    program, start = halving(batch, _STEPS, constant=False), _random(batch, *SHAPE)
    return list(observe(program, *place, {"start": start}, forced))


def _assert_computed(calls: list[Call]) -> None:
    """Assert that every output is the function of its inputs."""
    for call in calls:
        assert call.inputs.keys() == {"image", "offset"}
        assert call.inputs["offset"] == [0.5]
        np.testing.assert_array_equal(call.outputs["half"], call.inputs["image"] / 2 + 0.5)


# --- free


def test_every_run_is_told_with_its_inputs_and_outputs(place: tuple[Device, Engines]) -> None:
    calls = _observed(place, 2)
    assert [(call.graph, call.step) for call in calls] == [("halve", t) for t in range(_STEPS)]
    _assert_computed(calls)
    images = [calls[0].inputs["image"], *(call.outputs["half"] for call in calls)]
    assert_halved(np.stack(images), _random(2, *SHAPE), _STEPS)


def test_arrays_are_copies(place: tuple[Device, Engines]) -> None:
    program, kept = halving(2, _STEPS, constant=False), list[tuple[Array, Array]]()
    for call in observe(program, *place, {"start": _random(2, *SHAPE)}):
        for name, value in {**call.inputs, **call.outputs}.items():
            assert name in ("image", "offset", "half")
            kept.append((value, value.copy()))
    assert all((value == copy).all() for value, copy in kept)


def test_inputs_broadcast_and_the_others_are_those_of_the_program(
    place: tuple[Device, Engines],
) -> None:
    program = halving(2, 1, constant=False)
    (call,) = observe(program, *place, {"start": 4.0})
    assert (call.inputs["image"] == 4).all()
    (call,) = observe(program, *place, {"offset": 7.0})
    assert (call.inputs["image"] == 0.25).all()
    assert (call.outputs["half"] == 7.125).all()


def test_a_constant_has_no_place_here(place: tuple[Device, Engines]) -> None:
    with pytest.raises(ValueError, match="computes everything itself"):
        list(observe(halving(1, 1), *place, {}))


# --- forced


def test_forced_decisions_take_the_place_of_all_rows(place: tuple[Device, Engines]) -> None:
    forced = _random(_STEPS + 1, 2, *SHAPE, seed=9)
    calls = _observed(place, 2, {"images": forced})
    _assert_computed(calls)
    for call in calls:
        np.testing.assert_array_equal(call.inputs["image"], forced[call.step])


def test_what_a_program_decides_itself_is_forced_to_the_same(place: tuple[Device, Engines]) -> None:
    """A replay of a run is the run."""
    free = _observed(place, 2)
    decided = np.stack([free[0].inputs["image"], *(call.outputs["half"] for call in free)])
    for one, other in zip(free, _observed(place, 2, {"images": decided}), strict=True):
        np.testing.assert_array_equal(one.inputs["image"], other.inputs["image"])
        np.testing.assert_array_equal(one.outputs["half"], other.outputs["half"])


@given(batch=st.integers(1, 5), images=st.integers(1, 5))
def test_images_are_cut_or_repeated(batch: int, images: int) -> None:
    """As halves of guidance are: the conditional one, and again."""
    forced = _random(_STEPS + 1, images, *SHAPE, seed=2)
    calls = _observed((CpuDevice(), halving_engines()), batch, {"images": forced})
    for call in calls:
        for row in range(batch):
            np.testing.assert_array_equal(
                call.inputs["image"][row], forced[call.step, row % images]
            )


def test_longer_rows_are_cut_along_every_dimension(place: tuple[Device, Engines]) -> None:
    forced = _random(_STEPS + 1, 2, 4, 3, 5, seed=4)
    for call in _observed(place, 2, {"images": forced}):
        np.testing.assert_array_equal(call.inputs["image"], forced[call.step, :, :3, :2, :2])


def test_what_is_no_decision_is_not_forced(place: tuple[Device, Engines]) -> None:
    forced: dict[str, Array] = {
        name: np.ones((_STEPS, 2, *SHAPE), np.float32) for name in ("half", "start", "nothing")
    }
    for free, other in zip(_observed(place, 2), _observed(place, 2, forced), strict=True):
        np.testing.assert_array_equal(free.outputs["half"], other.outputs["half"])


def test_forced_values_become_the_buffers_type(place: tuple[Device, Engines]) -> None:
    forced = _random(_STEPS + 1, 2, *SHAPE, seed=1).astype(np.float64)
    for call in _observed(place, 2, {"images": forced}):
        assert call.inputs["image"].dtype == np.float32
        np.testing.assert_array_equal(call.inputs["image"], forced[call.step].astype(np.float32))


def test_a_decision_in_another_shape_is_forced_where_the_program_sees_it() -> None:
    """Scales of different lengths in one buffer, ``[steps, most]``: a row holds less at first."""
    x, y, wide = View("x"), View("y"), View("wide")
    buffers = {
        "x": BufferSpec((2, 128), "float32", "output"),
        "y": BufferSpec((2, 64), "float32"),
        "wide": BufferSpec((2, 64), "float32", "input"),
    }
    ops = (
        Copy(x[0].reshaped(2, 3), y.reshaped(2, 3)),
        Copy(y.reshaped(2, 3), x[0].reshaped(2, 3)),
        Run("same", {"a": x[0].reshaped(2, 3), "b": wide}),
    )
    same = NumpyEngine(
        "same", tensors(a=("r", "c")), tensors(b=(2, 64)), lambda a: np.zeros((2, 64))
    )
    program = Program(buffers, ops, decisions=("x",))
    forced = np.arange(16, dtype=np.float32).reshape(2, 2, 4)
    (call,) = observe(program, CpuDevice(), {"same": same}, {}, {"x": forced})
    assert call.inputs["a"].tolist() == [[0, 1, 2], [4, 5, 6]]


# --- what it leaves


@pytest.fixture
def ledger() -> Iterator[tuple[Ledger, dict[str, NumpyEngine]]]:
    device, engines = Ledger(), halving_engines()
    yield device, engines
    assert device.nothing_open
    assert engines["halve"].open == 0


def test_all_is_released_at_the_end(ledger: tuple[Ledger, dict[str, NumpyEngine]]) -> None:
    _observed(ledger, 2)
    assert ledger[1]["halve"].runs == _STEPS
    assert ledger[0].asked == len(ledger[1]["halve"].bound) == 1


def test_all_is_released_when_one_has_seen_enough(
    ledger: tuple[Ledger, dict[str, NumpyEngine]],
) -> None:
    calls = observe(halving(2, _STEPS, constant=False), *ledger, {})
    next(calls)
    assert not ledger[0].nothing_open
    calls.close()  # type: ignore[attr-defined]
    assert ledger[1]["halve"].runs == 1


@pytest.mark.parametrize("failure", [EngineError("broken"), KeyboardInterrupt()])
def test_an_engine_that_fails_leaves_nothing(
    ledger: tuple[Ledger, dict[str, NumpyEngine]], failure: BaseException
) -> None:
    ledger[1]["halve"].failure = failure
    with pytest.raises(type(failure)):
        _observed(ledger, 2)


def test_what_is_queued_is_waited_for_before_anything_is_released() -> None:
    device, engines = QueueDevice(), halving_engines()
    queued: dict[str, Any] = {name: QueuedEngine(each, device) for name, each in engines.items()}
    queued["halve"].refusal = EngineError("broken")
    with pytest.raises(EngineError, match="broken"):
        _observed((device, queued), 2)
    assert device.open == engines["halve"].open == 0
