"""Where a build is, as TensorRT reports it through an ``IProgressMonitor``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Report = Callable[[str, float], None]
"""Takes the phase that the builder is in, and the fraction of the outermost one that is done."""


def monitor(module: Any, report: Report) -> Any:
    """An ``IProgressMonitor`` that reports every phase."""
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
            return True

        def phase_finish(self, phase: str) -> None:
            if phase in phases:
                phases.remove(phase)

    return Monitor()
