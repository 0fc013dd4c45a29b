"""Builds that report and stop: the monitor alone, and Ctrl-C while work is under way.

The monitor's base class is a stand-in; that the real builder calls it is in test_tensorrt_builder.
"""

from __future__ import annotations

import os
import signal
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from fewstep.build.progress import interruptible, monitor

_WAIT_S = 30.0
_MODULE = SimpleNamespace(IProgressMonitor=type("IProgressMonitor", (), {}))


class Told:
    """A monitor and what it reported."""

    def __init__(self) -> None:
        self.reports: list[tuple[str, float]] = []
        self.cancelled = threading.Event()
        self.monitor: Any = monitor(_MODULE, self._report, self.cancelled)

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
def test_steps_are_answered_with_true_until_the_build_is_cancelled(phase: str) -> None:
    told = Told()
    told.monitor.phase_start("build", None, 2)
    told.monitor.phase_start("tactics", "build", 2)
    assert told.monitor.step_complete(phase, 0) is True  # None would stop the build
    told.cancelled.set()
    assert told.monitor.step_complete(phase, 1) is False


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


def test_work_runs_in_another_thread_and_its_result_or_error_comes_back() -> None:
    cancelled = threading.Event()
    assert interruptible(threading.current_thread, cancelled) is not threading.main_thread()
    with pytest.raises(ZeroDivisionError):
        interruptible(lambda: 1 / 0, cancelled)
    assert not cancelled.is_set()


@pytest.mark.parametrize("fails", [False, True])
def test_ctrl_c_stops_the_work_waits_for_its_end_and_raises(fails: bool) -> None:
    cancelled, ended = threading.Event(), threading.Event()

    def work() -> str:
        os.kill(os.getpid(), signal.SIGINT)
        assert cancelled.wait(_WAIT_S)
        ended.set()
        if fails:  # as the builder does, which then gives no engine
            raise RuntimeError("cancelled")
        return "too late to be wanted"

    with pytest.raises(KeyboardInterrupt):
        interruptible(work, cancelled)
    assert ended.is_set()


@pytest.mark.parametrize("started", [False, True])
def test_ctrl_c_as_the_thread_starts_stops_the_work_too(
    monkeypatch: pytest.MonkeyPatch, started: bool
) -> None:
    cancelled, begun, ended = threading.Event(), threading.Event(), threading.Event()
    start = threading.Thread.start

    def interrupted(self: threading.Thread) -> None:
        if started:
            start(self)
            assert begun.wait(_WAIT_S)
        raise KeyboardInterrupt

    def work() -> None:
        begun.set()
        assert cancelled.wait(_WAIT_S)
        ended.set()

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        interruptible(work, cancelled)
    assert ended.is_set() == started
