"""The jobs of one batch: what each is told of its steps, and what it gets of the result."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from fewstep.runtime.generator import Generator
from fewstep.runtime.preview import StepPreview
from fewstep.runtime.result import Result
from fewstep.server.errors import UnavailableError
from fewstep.server.job import Job, Made, Parameters, Step


class AbandonedError(Exception):
    """Everybody who asked for the images of a batch has gone."""


class Watch:
    """Tells the jobs of a batch of every step, and ends the batch when all have gone, or when the
    server has waited long enough for it: after a step if somebody watches, else after every window
    and every batch of the generator's.

    Args:
        generator: that makes it.
        batch: the jobs.
        deadline: when it has to end, by ``time.perf_counter``; infinite while nobody stops it.
    """

    def __init__(
        self, generator: Generator, batch: Sequence[Job], deadline: Callable[[], float]
    ) -> None:
        self._generator, self._batch, self._deadline = generator, batch, deadline

    def check(self) -> None:
        """Raise ``AbandonedError`` where nobody wants the images any more, ``UnavailableError``
        where the deadline has passed."""
        if all(job.gone for job in self._batch):
            raise AbandonedError
        if time.perf_counter() > self._deadline():
            raise UnavailableError("the server is shutting down, and this takes too long for it")

    def progress(self, phase: str, done: float) -> None:
        """Check, as :data:`fewstep.runtime.progress.Progress`."""
        if done < 1:  # what is made is given
            self.check()

    def step(self, number: int, preview: StepPreview) -> None:
        """Check, and tell the jobs, as :data:`fewstep.runtime.preview.Callback`."""
        self.check()
        parameters = parameters_of(self._generator, preview.request, preview.trace)
        step = number % self._batch[0].steps  # a large picture is painted in several windows
        for job, at in places(self._batch):
            rows = range(max(at, preview.rows.start), min(at + job.count, preview.rows.stop))
            if job.on_step is None or job.gone or not rows:
                continue
            here = slice(rows.start - preview.rows.start, rows.stop - preview.rows.start)
            pixels = preview.pixels[here] if step in job.shown else None
            said = _rows(parameters, here, step + 1)
            undecided = preview.undecided[here]
            job.on_step(Step(number, rows.start - at, preview.caption, undecided, said, pixels))


def places(batch: Sequence[Job]) -> list[tuple[Job, int]]:
    """Jobs, with the row of each one's first image."""
    at, found = 0, []
    for job in batch:
        found.append((job, at))
        at += job.count
    return found


def parameters_of(generator: Generator, request: Any, trace: Any) -> Parameters | None:
    """Parameters of every step and image, where a result tells them."""
    told = request is not None and trace is not None
    return generator.family.parameters(generator.model, request, trace) if told else None


def _rows(parameters: Parameters | None, rows: slice, steps: int) -> Parameters | None:
    return parameters and (parameters[0], parameters[1][:steps, rows])


def part(result: Result, job: Job, at: int, parameters: Parameters | None, most: int) -> Made:
    """What a job gets of a result whose images were made by ``most`` together."""
    rows = slice(at, at + job.count)
    return Made(
        pixels=result.images[rows],
        seeds=tuple(result.seeds[rows].tolist()),
        steps=job.steps,
        parameters=_rows(parameters, rows, job.steps),
        timings_ms=dict(result.timings_ms),
        notes=(*job.notes, *result.notes),
        batch=most,
    )
