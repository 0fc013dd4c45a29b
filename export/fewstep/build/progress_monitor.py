"""Where a build is, as TensorRT reports it through an ``IProgressMonitor``."""

from __future__ import annotations

from typing import Any

from fewstep.runtime.progress import Progress


def progress_monitor(module: Any, progress: Progress) -> Any:
    """An ``IProgressMonitor`` that reports every phase, with the fraction of the outermost one."""
    steps: dict[str, int] = {}
    phases: list[str] = []
    done = 0.0

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)

        def phase_start(self, phase: str, parent: str | None, count: int) -> None:
            nonlocal done
            phases.append(phase)
            steps[phase] = max(1, count)
            if len(phases) == 1:
                done = 0.0
            else:
                progress(phase, done)

        def step_complete(self, phase: str, step: int) -> bool:
            nonlocal done
            if phases and phase == phases[0]:
                done = (step + 1) / steps[phase]
                progress(phases[-1], done)
            return True  # any answer but True stops the build, None included

        def phase_finish(self, phase: str) -> None:
            if phase in phases:
                phases.remove(phase)

    return Monitor()
