"""Builds that show where they are and stop when asked.

TensorRT reports through an ``IProgressMonitor`` in the thread that builds. Building runs in a
thread of its own, so that Ctrl-C reaches Python at once: the monitor then tells the builder to
stop, at its next step.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

Result = TypeVar("Result")
Report = Callable[[str, float], None]
"""Takes the phase that the builder is in, and the fraction of the outermost one that is done."""

_POLL_S = 0.1


def monitor(module: Any, report: Report, cancelled: threading.Event) -> Any:
    """An ``IProgressMonitor`` that reports every phase and stops the build once ``cancelled``."""
    steps: dict[str, int] = {}
    phases: list[str] = []

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)

        def phase_start(self, phase: str, parent: str | None, count: int) -> None:
            phases.append(phase)
            steps[phase] = max(1, count)
            if len(phases) > 1:
                report(phase, -1.0)

        def step_complete(self, phase: str, step: int) -> bool:
            # Any answer but True stops the build, None included.
            if phases and phase == phases[0]:
                report(phases[-1], (step + 1) / steps[phase])
            return not cancelled.is_set()

        def phase_finish(self, phase: str) -> None:
            if phase in phases:
                phases.remove(phase)

    return Monitor()


def interruptible(work: Callable[[], Result], cancelled: threading.Event) -> Result:
    """Run ``work`` in a thread; on Ctrl-C set ``cancelled``, wait for it to end, and raise.

    Raises:
        KeyboardInterrupt: as in this thread; ``work`` has ended.
    """
    future: Future[Result] = Future()

    def run() -> None:
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

    # Not a thread pool: one that is interrupted while it starts a thread does not wait for it.
    thread = threading.Thread(target=run, name="build")
    try:
        thread.start()
        while not wait([future], timeout=_POLL_S).done:
            pass
    except KeyboardInterrupt:
        cancelled.set()
        if not future.cancel():  # it has begun
            wait([future])
        raise
    return future.result()
