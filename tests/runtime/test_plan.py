"""Plans: what a run gives, what is bound and captured, and what is left after something failed.

On the program of ``programs.py``, whose images are known in closed form, on the CPU, on a device
that keeps account (``ledger.py``) and on one with a queue of its own (``queue_device.py``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.runtime.ledger import Ledger
from tests.runtime.programs import SHAPE, NumpyEngine, assert_halved, halving, halving_engines
from tests.runtime.queue_device import QueuedEngine, QueueDevice

from fewstep.runtime.devices import Array, Buffer, Device, Direct, Part, Workspace
from fewstep.runtime.devices.cpu import CpuDevice, host_array
from fewstep.runtime.engines import BoundEngine, Engine
from fewstep.runtime.errors import DeviceError, EngineError
from fewstep.runtime.plan import Plan
from fewstep.runtime.program import Copy, Program, Run, View

Engines = dict[str, NumpyEngine]


@pytest.fixture
def engines() -> Engines:
    return halving_engines()


def _plan(engines: Mapping[str, Engine], device: Device | None = None, steps: int = 3) -> Plan:
    """A plan for two images."""
    return Plan(halving(2, steps, constant=False), device or CpuDevice(), engines, {})


def _start(seed: int = 0) -> Array:
    return np.random.default_rng(seed).random((2, *SHAPE), np.float32)


# --- what a run gives


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_run_gives_outputs_and_decisions(engines: Engines, steps: int) -> None:
    plan, start = _plan(engines, steps=steps), _start()
    found = plan.run({"start": start, "offset": 0.25})
    assert found.keys() == {"images", "pixels"}
    assert_halved(found["images"], start, steps, 0.25)
    pixels = np.round(np.clip(found["images"][-1], 0, 1) * 255).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(found["pixels"], pixels, atol=1)


def test_results_are_copies(engines: Engines) -> None:
    plan = _plan(engines)
    first = plan.run({"start": 0.0})
    kept = {name: value.copy() for name, value in first.items()}
    plan.run({"start": 1.0, "offset": 0.0})
    for name, value in kept.items():
        np.testing.assert_array_equal(first[name], value)


def test_inputs_start_as_the_program_says_and_stay_as_they_were_given(engines: Engines) -> None:
    plan, start = _plan(engines), _start()
    np.testing.assert_allclose(plan.run({})["images"][0], np.full((2, *SHAPE), 0.25))
    assert_halved(plan.run({"start": start})["images"], start, 3)
    assert_halved(plan.run({"offset": 1.0})["images"], start, 3, 1.0)


def test_constants_are_read_from_where_they_are(engines: Engines) -> None:
    device, start = CpuDevice(), _start()
    with device.workspace(halving(2, 3, constant=False).buffers) as elsewhere:
        offset = elsewhere["offset"]
        plan = Plan(halving(2, 3), device, engines, {"offset": offset})
        for value in (0.5, 0.125):
            host_array(offset)[:] = value
            assert_halved(plan.run({"start": start})["images"], start, 3, value)
    assert engines["twice"].bound == []


def test_unusable_numbers_are_an_error_of_one_run(engines: Engines) -> None:
    plan, start = _plan(engines), _start()
    for _ in range(2):
        with pytest.raises(EngineError, match="NaN or infinite numbers.*fewstep verify"):
            plan.run({"start": start, "offset": np.nan})
        assert_halved(plan.run({"offset": 0.5})["images"], start, 3)


# --- what is bound


def test_an_engine_is_bound_once_for_every_set_of_views(engines: Engines) -> None:
    _plan(engines, steps=7)
    assert len(engines["halve"].bound) == 1
    program, turns = halving(2, 4, constant=False), (View("work"), View("half"))
    apart = tuple(
        replace(op, bindings={**op.bindings, "half": turns[op.step % 2]})
        for op in program.ops
        if isinstance(op, Run)
    )
    Plan(replace(program, ops=apart), CpuDevice(), engines, {})
    ends = {bindings["half"].pointer for bindings in engines["halve"].bound[1:]}
    assert len(engines["halve"].bound) - 1 == len(ends) == 2


def test_what_is_bound_stays_where_it_is(engines: Engines) -> None:
    plan = _plan(engines)
    before = [{name: each.pointer for name, each in b.items()} for b in engines["halve"].bound]
    for _ in range(3):
        plan.run({"start": _start()})
    after = [{name: each.pointer for name, each in b.items()} for b in engines["halve"].bound]
    assert before == after
    assert engines["halve"].runs == 9


def test_closing_releases_bindings_and_memory_and_may_be_repeated(engines: Engines) -> None:
    device = Ledger()
    plan = _plan(engines, device)
    assert (engines["halve"].open, len(device.open), len(device.replays)) == (1, 1, 1)
    for _ in range(2):
        plan.close()
        assert engines["halve"].open == 0
        assert device.nothing_open
    assert not engines["halve"].closed  # it is the generator's


# --- what is captured


class _Capturing(CpuDevice):
    """Notes what it is asked to capture."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[int, Workspace | None]] = []

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
        self.asked.append((warm_up, workspace))
        return Direct(parts)


def test_a_plan_is_captured_with_its_workspace_after_the_runs_that_engines_need(
    engines: Engines,
) -> None:
    device = _Capturing()
    engines["halve"].warm_up, engines["twice"].warm_up = 3, 9  # the program does not run it
    plan = _plan(engines, device, steps=4)
    assert device.asked == [(3, plan.workspace)]
    assert engines["halve"].runs == 12


@pytest.mark.parametrize(("name", "captured"), [("halve", 0), ("twice", 1)])
def test_only_engines_that_it_runs_can_prevent_a_capture(
    engines: Engines, name: str, captured: int
) -> None:
    device, start = _Capturing(), _start()
    engines[name].capturable = False
    found = _plan(engines, device).run({"start": start})
    assert len(device.asked) == captured
    assert_halved(found["images"], start, 3)


def test_every_binding_is_asked_before_a_capture(engines: Engines) -> None:
    device, bind, asked = _Capturing(), engines["halve"].bind, list[int]()

    def refuse() -> None:
        asked.append(engines["halve"].runs)
        raise EngineError("not now")

    def bind_unready(bindings: Mapping[str, Buffer]) -> BoundEngine:
        return replace(bind(bindings), require_capturable=refuse)

    engines["halve"].bind = bind_unready  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="not now"):
        _plan(engines, device)
    assert asked == [3]
    assert engines["halve"].open == 0


def test_a_captured_plan_runs_no_line_of_its_sequence_again(engines: Engines) -> None:
    device, start = QueueDevice(), _start()
    plan = _plan(_queued(engines, device), device)
    calls: list[str] = []
    for name in ("copy", "launch", "run"):
        setattr(device, name, lambda *_, **__: calls.append("called"))
    found = plan.run({"start": start})
    assert calls == []
    assert device.captured == 1
    assert_halved(found["images"], start, 3)


# --- stages


class _Spans(CpuDevice):
    """Notes spans and what is enqueued in them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, list[str]]] = [("", [])]

    @contextlib.contextmanager
    def span(self, stage: str) -> Iterator[None]:
        self.seen.append((stage, []))
        yield
        self.seen.append(("", []))

    def copy(self, target: Buffer, source: Buffer) -> None:
        self.seen[-1][1].append("copy")
        super().copy(target, source)

    def run(self, engine: BoundEngine) -> None:
        self.seen[-1][1].append(engine.name)
        super().run(engine)

    def launch(self, kernel: str, **arguments: Any) -> None:
        self.seen[-1][1].append(kernel)
        super().launch(kernel, **arguments)


def test_neighbours_of_one_stage_share_a_span(engines: Engines) -> None:
    device = _Spans()
    _plan(engines, device, steps=2).run({})
    assert [each for each in device.seen if each[1]] == [
        ("", ["copy"]),
        ("halve", ["copy", "halve"]),
        ("", ["copy"]),
        ("halve", ["copy", "halve"]),
        ("", ["copy", "to_pixels"]),
    ]


# --- what fails


@pytest.mark.parametrize("failure", [EngineError("broken"), KeyboardInterrupt()])
def test_a_run_that_fails_can_be_repeated(engines: Engines, failure: BaseException) -> None:
    plan, start = _plan(engines), _start()
    engines["halve"].failure = failure
    with pytest.raises(type(failure)):
        plan.run({"start": start})
    assert_halved(plan.run({})["images"], start, 3)


def _queued(engines: Engines, device: QueueDevice, **options: bool) -> dict[str, QueuedEngine]:
    return {name: QueuedEngine(engine, device, **options) for name, engine in engines.items()}


@pytest.mark.parametrize("failure", [EngineError("broken"), KeyboardInterrupt()])
def test_what_an_interrupted_run_enqueued_is_waited_for(
    engines: Engines, failure: BaseException
) -> None:
    """It reads the inputs, which the next run writes: the device refuses that while it is busy."""
    device, start = QueueDevice(), _start()
    queued = _queued(engines, device, capturable=False)
    plan = _plan(queued, device)
    queued["halve"].refusal = failure
    with pytest.raises(type(failure)):
        plan.run({"start": start})
    assert not device.busy
    assert_halved(plan.run({})["images"], start, 3)
    plan.close()
    assert device.open == engines["halve"].open == 0


@pytest.mark.parametrize("failure", [EngineError("broken"), KeyboardInterrupt()])
@pytest.mark.parametrize("late", [False, True], ids=["as it is enqueued", "as it runs"])
def test_a_plan_that_fails_before_its_capture_leaves_nothing(
    engines: Engines, failure: BaseException, late: bool
) -> None:
    """Engines are released, and memory, only after what is queued on them."""
    device = QueueDevice()
    queued = _queued(engines, device)
    if late:
        engines["halve"].failure = failure
    else:
        queued["halve"].refusal = failure
    with pytest.raises(type(failure)):
        _plan(queued, device)
    assert device.open == engines["halve"].open == 0
    _plan(queued, device).close()


@pytest.mark.parametrize("failure", [DeviceError("no capture"), KeyboardInterrupt()])
def test_a_capture_that_fails_leaves_nothing(engines: Engines, failure: BaseException) -> None:
    device = Ledger()
    device.failure = failure
    with pytest.raises(type(failure)):
        _plan(engines, device)
    assert device.nothing_open
    assert engines["halve"].open == 0


def test_buffers_that_an_engine_does_not_take_leave_nothing(engines: Engines) -> None:
    device, program = Ledger(), halving(2, 3, constant=False)
    first, *_ = (op for op in program.ops if isinstance(op, Run))
    wrong = Run("halve", {**first.bindings, "offset": View("start")})
    copy = Copy(View("work"), View("start"))
    with pytest.raises(EngineError, match=r"'halve', tensor 'offset': expected float32 \[1\]"):
        Plan(Program(program.buffers, (copy, first, wrong)), device, engines, {})
    assert device.nothing_open
    assert engines["halve"].open == 0


def test_on_a_device_with_a_queue_of_its_own_results_are_the_same(engines: Engines) -> None:
    """What is not sent, not fetched, or read before it is written would be garbage."""
    for capturable in (True, False):
        device = QueueDevice()
        plan = _plan(_queued(engines, device, capturable=capturable), device)
        for seed in range(3):
            found = plan.run({"start": _start(seed)})
            assert_halved(found["images"], _start(seed), 3)
        with pytest.raises(EngineError, match="NaN"):
            plan.run({"offset": np.nan})
        plan.run({"offset": 0.5})
