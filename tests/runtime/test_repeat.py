"""Operations that a program repeats: listed and bound once, run and observed as often as they say.

Covered: what a program tells of them; runs on the CPU and on a device with a queue, whole and step
by step; parts of a captured sequence; observation with forced decisions; what is upstream of a
graph; views that do not fit; words for people.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.runtime.programs import SHAPE, NumpyEngine, halving, halving_engines
from tests.runtime.queue_device import QueuedEngine, QueueDevice

from fewstep.runtime.devices import BufferSpec
from fewstep.runtime.devices.cpu import CpuDevice
from fewstep.runtime.inspect import listed
from fewstep.runtime.observe import observe
from fewstep.runtime.plan import Plan
from fewstep.runtime.program import Copy, Program, Repeat, Run, View

_OUTPUTS = {"halve": ("half",)}


def _repeating(times: int, again: int = 1) -> Program:
    """``start`` halved so many times, kept as ``images[1]``, and again, as ``images[2]``."""
    whole = halving(1, 2, constant=False)
    bindings = {"image": View("work"), "offset": View("offset"), "half": View("half")}

    def halved(step: int, count: int) -> tuple[Repeat, Copy]:
        body = Run("halve", bindings, step), Copy(View("work"), View("half"), step)
        return Repeat(count, body, step), Copy(View("images", step + 1), View("work"), step)

    ops = (Copy(View("work"), View("start")), *halved(0, times), *halved(1, again))
    return replace(whole, ops=ops)


@pytest.fixture
def engines() -> dict[str, NumpyEngine]:
    return halving_engines()


def _expected(start: float, times: int) -> float:
    """With the offset 0.5: what halves is the distance to 1."""
    return 1 + (start - 1) * 0.5**times


def test_what_a_program_tells_of_them() -> None:
    program = _repeating(3, 2)
    assert program.graphs == ("halve",)
    assert program.engine_stages == {"halve"}
    assert [type(op) for op in program.different()] == [Copy, Run, Copy, Copy, Run, Copy, Copy]
    assert [type(op) for op in program.unrolled()].count(Run) == 5
    assert [run.step for run, _ in program.runs()] == [0, 0, 0, 1, 1]


def test_they_run_as_often(engines: dict[str, NumpyEngine]) -> None:
    plan = Plan(_repeating(4, 2), CpuDevice(), engines, {})
    images = plan.run({"start": 0.25})["images"]
    np.testing.assert_allclose(images[1], np.full((1, *SHAPE), _expected(0.25, 4)), rtol=1e-6)
    np.testing.assert_allclose(images[2], np.full((1, *SHAPE), _expected(0.25, 6)), rtol=1e-6)
    assert (engines["halve"].runs, len(engines["halve"].bound)) == (6, 1)


def test_they_are_captured_as_often(engines: dict[str, NumpyEngine]) -> None:
    device = QueueDevice()
    queued = {name: QueuedEngine(each, device) for name, each in engines.items()}
    plan = Plan(_repeating(4, 2), device, queued, {})
    for start in (0.25, 0.75):
        images = plan.run({"start": start})["images"]
        np.testing.assert_allclose(images[2].max(), _expected(start, 6), rtol=1e-6)


def test_steps_end_after_them(engines: dict[str, NumpyEngine]) -> None:
    seen = dict[int, float]()
    plan = Plan(_repeating(3, 1), CpuDevice(), {"halve": _uncaptured(engines["halve"])}, {})
    plan.run(
        {"start": 0.0}, lambda step, found: seen.update({step: found["images"][step + 1].max()})
    )
    assert seen == {0: _expected(0, 3), 1: _expected(0, 4)}


def _uncaptured(engine: NumpyEngine) -> NumpyEngine:
    """The same engine, whose work nothing captures."""
    engine.capturable = False
    return engine


def test_every_repetition_is_observed(engines: dict[str, NumpyEngine]) -> None:
    calls = [*observe(_repeating(3, 2), CpuDevice(), engines, {"start": 0.0})]
    halves = [float(call.outputs["half"].max()) for call in calls]
    assert halves == [_expected(0, times) for times in range(1, 6)]
    assert [call.step for call in calls] == [0, 0, 0, 1, 1]


def test_what_is_upstream_of_a_graph_keeps_them_whole() -> None:
    program = _repeating(3, 2)
    found = program.upstream("halve", _OUTPUTS)
    assert len([*found.runs()]) == 5
    nothing = program.upstream("another", {"another": ("x",), **_OUTPUTS})
    assert nothing.ops == ()


def test_their_views_are_checked() -> None:
    program = halving(1, 1, constant=False)
    wrong = Repeat(2, (Copy(View("work"), View("absent")),))
    with pytest.raises(ValueError, match="there is no such buffer"):
        replace(program, ops=(wrong,))
    bindings = {"image": View("work"), "offset": View("offset"), "half": View("line")[1:2]}
    misplaced = Repeat(2, (Run("halve", bindings),))
    buffers = {**program.buffers, "line": BufferSpec((2, *SHAPE), "float32")}
    with pytest.raises(ValueError, match="multiple of 256"):
        replace(program, buffers=buffers, ops=(misplaced,))


def test_in_words_they_say_how_often() -> None:
    found = [(each["op"], each["times"]) for each in listed(_repeating(7))]
    assert found == [
        *(("copy", "1"), ("run", "7"), ("copy", "7"), ("copy", "1")),
        *(("run", "1"), ("copy", "1"), ("copy", "1")),
    ]
