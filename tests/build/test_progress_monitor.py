"""The monitor of a build: what it reports, and that it never stops a build.

The monitor's base class is a stand-in; that the real builder calls it is in test_tensorrt_builder.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fewstep.build.progress_monitor import progress_monitor

_MODULE = SimpleNamespace(IProgressMonitor=type("IProgressMonitor", (), {}))


class Monitored:
    """A monitor and what it reported."""

    def __init__(self) -> None:
        self.reports: list[tuple[str, float]] = []
        self.monitor: Any = progress_monitor(_MODULE, self._report)

    def _report(self, phase: str, done: float) -> None:
        self.reports.append((phase, done))


def test_the_outermost_phase_gives_the_fraction_and_the_innermost_the_name() -> None:
    found = Monitored()
    found.monitor.phase_start("build", None, 4)
    found.monitor.step_complete("build", 0)
    found.monitor.phase_start("tactics", "build", 2)
    found.monitor.step_complete("tactics", 0)
    found.monitor.step_complete("build", 1)
    found.monitor.phase_finish("tactics")
    found.monitor.step_complete("build", 3)
    found.monitor.phase_finish("build")
    assert found.reports == [("build", 0.25), ("tactics", 0.25), ("tactics", 0.5), ("build", 1.0)]


@pytest.mark.parametrize("phase", ["build", "tactics"])
def test_steps_are_answered_with_true(phase: str) -> None:
    found = Monitored()
    found.monitor.phase_start("build", None, 2)
    found.monitor.phase_start("tactics", "build", 2)
    assert found.monitor.step_complete(phase, 0) is True  # None would stop the build


def test_phases_without_steps_or_out_of_order_do_no_harm() -> None:
    found = Monitored()
    assert found.monitor.step_complete("never started", 0) is True
    found.monitor.phase_start("empty", None, 0)
    found.monitor.step_complete("empty", 0)
    found.monitor.phase_finish("never started")
    found.monitor.phase_finish("empty")
    found.monitor.phase_start("next", None, 2)
    found.monitor.phase_start("inner", "next", 1)
    found.monitor.step_complete("next", 1)
    assert found.reports == [("empty", 1.0), ("inner", 0.0), ("inner", 1.0)]
