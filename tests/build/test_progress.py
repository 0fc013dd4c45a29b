"""The monitor of a build: what it reports, and that it never stops a build.

The monitor's base class is a stand-in; that the real builder calls it is in test_tensorrt_builder.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fewstep.build.progress import monitor

_MODULE = SimpleNamespace(IProgressMonitor=type("IProgressMonitor", (), {}))


class Told:
    """A monitor and what it reported."""

    def __init__(self) -> None:
        self.reports: list[tuple[str, float]] = []
        self.monitor: Any = monitor(_MODULE, self._report)

    def _report(self, phase: str, done: float) -> None:
        self.reports.append((phase, done))


def test_the_outermost_phase_gives_the_fraction_and_the_innermost_the_name() -> None:
    told = Told()
    told.monitor.phase_start("build", None, 4)
    told.monitor.step_complete("build", 0)
    told.monitor.phase_start("tactics", "build", 2)
    told.monitor.step_complete("tactics", 0)
    told.monitor.step_complete("build", 1)
    told.monitor.phase_finish("tactics")
    told.monitor.step_complete("build", 3)
    told.monitor.phase_finish("build")
    assert told.reports == [("build", 0.25), ("tactics", -1.0), ("tactics", 0.5), ("build", 1.0)]


@pytest.mark.parametrize("phase", ["build", "tactics"])
def test_steps_are_answered_with_true(phase: str) -> None:
    told = Told()
    told.monitor.phase_start("build", None, 2)
    told.monitor.phase_start("tactics", "build", 2)
    assert told.monitor.step_complete(phase, 0) is True  # None would stop the build


def test_phases_without_steps_or_out_of_order_do_no_harm() -> None:
    told = Told()
    assert told.monitor.step_complete("never started", 0) is True
    told.monitor.phase_start("empty", None, 0)
    told.monitor.step_complete("empty", 0)
    told.monitor.phase_finish("never started")
    told.monitor.phase_finish("empty")
    told.monitor.phase_start("next", None, 2)
    told.monitor.step_complete("next", 1)
    assert told.reports == [("empty", 1.0), ("next", 1.0)]
