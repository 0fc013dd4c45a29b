"""A thread that owns a generator: it opens it, makes the images of jobs in turn, and closes it.

Jobs of one kind run together. Nothing waits while there is nothing else to do; where others have
just come, a batch that has room waits for more for some milliseconds at most.

A job is refused where it would wait for as long as a full batch takes or the one that runs, by the
times of those before, or for ``max_wait_s``. So however many ask, those that are taken wait no
longer than that; jobs of one kind are in the batch after the one that runs.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import InvalidStateError
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import DeviceLostError, FewstepError
from fewstep.runtime.families import Model, model_of
from fewstep.runtime.generator import Generator
from fewstep.runtime.preview import StepPreview
from fewstep.runtime.result import Result
from fewstep.server.errors import BusyError, GoneError, UnavailableError
from fewstep.server.job import Job, Made, Parameters, Step
from fewstep.server.notes import note_nothing
from fewstep.server.order import StepCount
from fewstep.server.queue import Times, batches, images

WINDOW_S = 0.004
"""How long a batch with room waits for more, where others have just come."""

MAX_JOBS = 256
"""That wait; each takes some memory, whatever its time."""


class Watcher(Protocol):
    """Who counts what a worker does; see :class:`fewstep.server.metrics.Metrics`."""

    def batch(self, model: str, count: int, timings_ms: Mapping[str, float]) -> None: ...

    def waited(self, model: str, seconds: float) -> None: ...


@dataclass(frozen=True)
class Opening:
    """How a generator is opened; as of ``Generator.open``."""

    bundle: Bundle
    backend: str = "auto"
    device: str = "auto"
    precision: str = "auto"
    threads: int = 0
    max_batch: int = 8

    def __call__(self) -> Generator:
        options = {name: getattr(self, name) for name in ("backend", "device", "precision")}
        return Generator.open(
            self.bundle, threads=self.threads, max_batch=self.max_batch, **options
        )


class Worker:
    """Makes the images of one model.

    Args:
        name: of the model.
        opening: opens its generator, in the worker's thread.
        watcher: is told what was made.
        max_wait_s: jobs that would wait so long are refused; ``None``: as long as a batch takes.
        changed: called in the worker's thread when it has opened, closed or failed.
    """

    def __init__(
        self,
        name: str,
        opening: Opening,
        watcher: Watcher,
        *,
        max_wait_s: float | None = None,
        changed: Callable[[Worker], None] = lambda worker: None,
    ) -> None:
        self.name, self.bundle = name, opening.bundle
        self.model: Model = model_of(opening.bundle)
        self.steps_of = StepCount(self.model)
        self.generator: Generator | None = None
        self.failure: FewstepError | None = None
        self._opening, self._watcher, self._changed = opening, watcher, changed
        self._max_wait_s = max_wait_s
        self._times = Times()
        self._jobs, self._arrivals = deque[Job](), deque[float](maxlen=2)
        self._running, self._since, self._last = list[Job](), 0.0, (0, 0.0)
        self._stopping = False
        self._condition = threading.Condition()
        self._thread = threading.Thread(target=self._live, name=f"worker {name}", daemon=True)

    # Other threads

    def start(self) -> None:
        """Begin to open the generator."""
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether it takes jobs."""
        return self.generator is not None and self.failure is None and not self._stopping

    @property
    def queued(self) -> int:
        """Jobs that wait."""
        return len(self._waiting())

    @property
    def running(self) -> Sequence[Job]:
        """Jobs that run."""
        return tuple(self._running)

    def submit(self, job: Job) -> Job:
        """Queue a job; its ``future`` has the images, or what went wrong.

        Raises:
            BusyError: it would wait too long.
            UnavailableError: the model is not open.
        """
        with self._condition:
            self._require_ready()
            waiting = self._waiting()
            wait_s, most_s = self._wait_s([*waiting, job]), self._most_wait_s(job)
            busy = waiting or self._running
            if busy and (wait_s >= most_s or len(waiting) >= MAX_JOBS):
                raise BusyError(
                    f"busy: a request would wait about {wait_s:.1f} s, {most_s:.1f} s are the "
                    "most; try again later",
                    max(wait_s - most_s, 0.05),
                )
            job.since = time.perf_counter()
            self._jobs.append(job)
            self._arrivals.append(job.since)
            self._condition.notify()
        return job

    def drain(self) -> None:
        """Take no more, refuse those that wait; what runs is finished."""
        with self._condition:
            self._stopping = True
            self._refuse_waiting(UnavailableError("the server is shutting down"))
            self._condition.notify()

    def stop(self) -> None:
        """:meth:`drain`, and wait until the generator is closed."""
        self.drain()
        if self._thread.is_alive():
            self._thread.join()

    def _require_ready(self) -> None:
        if self.failure is not None:
            raise UnavailableError(f"{self.name}: {self.failure}")
        if self._stopping:
            raise UnavailableError("the server is shutting down")
        if self.generator is None:
            raise UnavailableError(f"{self.name} is being opened; see /ready")

    def _waiting(self) -> list[Job]:
        return [job for job in tuple(self._jobs) if not job.future.done()]

    def _wait_s(self, jobs: Sequence[Job]) -> float:
        """How long the last of some jobs waits, for what runs and for those before it."""
        left = 0.0
        if running := self._running:
            took = time.perf_counter() - self._since
            left = max(0.0, self._times.ms(running[0].kind, images(running)) / 1e3 - took)
        return left + self._times.wait_ms(jobs, self._most) / 1e3

    def _most_wait_s(self, job: Job) -> float:
        if self._max_wait_s is not None:
            return self._max_wait_s
        running = [(each.kind, images(self._running)) for each in self._running[:1]]
        return max(self._times.ms(*each) for each in ((job.kind, self._most), *running)) / 1e3

    @property
    def _most(self) -> int:
        return self._opening.max_batch if self.generator is None else self.generator.max_batch

    def _refuse_waiting(self, error: FewstepError) -> None:
        while self._jobs:
            _settle(self._jobs.popleft(), error)

    # The worker's own thread

    def _live(self) -> None:
        try:
            generator = self._opening()
            self._warm_up(generator)
        except BaseException as error:
            self._fail(error)
            return
        note_nothing()
        with generator:
            self.generator = generator
            self._changed(self)
            while self.failure is None and (batch := self._next()):
                self._serve(generator, batch)
        self._changed(self)

    def _fail(self, error: BaseException) -> None:
        if not isinstance(error, FewstepError):
            traceback.print_exception(error, file=sys.stderr)
            error = UnavailableError(f"{type(error).__name__}: {error}")
        with self._condition:
            self.failure = error
            self._refuse_waiting(UnavailableError(f"{self.name}: {error}"))
        self._changed(self)

    def _warm_up(self, generator: Generator) -> None:
        """Make an image, so that kernels are compiled and the plan of most requests is there."""
        request = generator.family.request(
            generator.model,
            generator.model.info.condition.examples(1),
            np.zeros(1, np.uint64),
            generator.model.info.defaults,
        )
        for _ in range(2):  # the first one compiles, and says nothing of those to come
            result = generator.run(request)
        self._times.add(None, 1, result.timings_ms["total"])

    def _next(self) -> list[Job]:
        """The jobs to run now, which are waited for; none when it stops."""
        with self._condition:
            self._running = []
            until: float | None = None
            while True:
                self._jobs = deque(self._waiting())
                if not self._jobs:
                    if self._stopping:
                        return []
                    self._condition.wait()
                    continue
                now = time.perf_counter()
                until = now + WINDOW_S if until is None else until
                if now >= until or not self._others_come(now):
                    break
                self._condition.wait(until - now)
            batch = batches(tuple(self._jobs), self._most)[0]
            batch = [job for job in batch if job.future.set_running_or_notify_cancel()]
            for job in batch:
                self._jobs.remove(job)
            self._running, self._since = batch, time.perf_counter()
        return batch or self._next()

    def _others_come(self, now: float) -> bool:
        """Whether the next batch has room, and others came just before."""
        first = batches(tuple(self._jobs), self._most)[0]
        if not first[0].joins or images(first) >= self._most or self._stopping:
            return False
        jobs, ended = self._last
        together = jobs > 1 and now - ended < WINDOW_S
        close = len(self._arrivals) == 2 and now - self._arrivals[0] < WINDOW_S
        return together or close

    def _serve(self, generator: Generator, batch: list[Job]) -> None:
        start = time.perf_counter()
        try:
            made = self._made(generator, batch)
        except _AbandonedError:
            for job in batch:
                _settle(job, GoneError("the request was interrupted"))
        except DeviceLostError as error:
            for job in batch:
                _settle(job, UnavailableError(f"{self.name}: {error}"))
            self._fail(error)
            return
        except FewstepError as error:
            if len(batch) > 1:  # together they may be too much, or one is to blame
                for job in batch:
                    self._serve(generator, [job])
                return
            _settle(batch[0], error)
        except Exception as error:  # a defect, which must not end all that come after
            traceback.print_exception(error, file=sys.stderr)
            for job in batch:
                _settle(job, error)
        else:
            end = time.perf_counter()
            self._times.add(batch[0].kind, images(batch), (end - start) * 1e3)
            self._watcher.batch(self.name, images(batch), made[0].timings_ms)
            self._running = []  # before its clients come back
            for job, each in zip(batch, made, strict=True):
                waited = start - job.since
                self._watcher.waited(self.name, waited)
                each.timings_ms["queue"] = waited * 1e3
                _settle(job, each)
        self._last = len(batch), time.perf_counter()

    def _made(self, generator: Generator, batch: list[Job]) -> list[Made]:
        first = batch[0]
        watched = any(job.on_step is not None for job in batch)
        callback = _Callback(generator, batch) if watched else None
        if first.edit is not None:
            result = generator.edit(**first.edit, **first.settings, callback=callback).result
        else:
            asked: dict[str, Any] = {
                name: [each for job in batch for each in job.asked[name]] for name in first.asked
            }
            seeds = [seed for job in batch for seed in job.seeds]
            request = generator.request(**asked, seed=seeds, **first.settings)
            result = generator.run(request, callback=callback)
        parameters = _parameters(generator, result.request, result.trace)
        return [_part(result, job, at, parameters) for job, at in _places(batch)]


class _AbandonedError(Exception):
    """Everybody who asked for the images of a batch has gone."""


class _Callback:
    """Tells the jobs of a batch of every step, and stops it when all have gone."""

    def __init__(self, generator: Generator, batch: Sequence[Job]) -> None:
        self._generator, self._batch = generator, batch

    def __call__(self, number: int, preview: StepPreview) -> None:
        if all(job.gone for job in self._batch):
            raise _AbandonedError
        parameters = _parameters(self._generator, preview.request, preview.trace)
        step = number % self._batch[0].steps  # a large picture is painted in several windows
        for job, at in _places(self._batch):
            rows = range(max(at, preview.rows.start), min(at + job.count, preview.rows.stop))
            if job.on_step is None or job.gone or not rows:
                continue
            here = slice(rows.start - preview.rows.start, rows.stop - preview.rows.start)
            pixels = preview.pixels[here] if step in job.shown else None
            said = _rows(parameters, here, step + 1)
            undecided = preview.undecided[here]
            job.on_step(Step(number, rows.start - at, preview.caption, undecided, said, pixels))


def _places(batch: Sequence[Job]) -> list[tuple[Job, int]]:
    """Jobs, with the row of each one's first image."""
    at, found = 0, []
    for job in batch:
        found.append((job, at))
        at += job.count
    return found


def _parameters(generator: Generator, request: Any, trace: Any) -> Parameters | None:
    told = request is not None and trace is not None
    return generator.family.parameters(generator.model, request, trace) if told else None


def _rows(parameters: Parameters | None, rows: slice, steps: int) -> Parameters | None:
    return parameters and (parameters[0], parameters[1][:steps, rows])


def _part(result: Result, job: Job, at: int, parameters: Parameters | None) -> Made:
    """What a job gets of a result."""
    rows = slice(at, at + job.count)
    return Made(
        pixels=result.images[rows],
        seeds=tuple(result.seeds[rows].tolist()),
        steps=job.steps,
        parameters=_rows(parameters, rows, job.steps),
        timings_ms=dict(result.timings_ms),
        notes=(*job.notes, *result.notes),
        batch=len(result.images),
    )


def _settle(job: Job, outcome: Made | BaseException) -> None:
    """Give a job its images or an error, unless its client has cancelled it."""
    try:
        if isinstance(outcome, BaseException):
            job.future.set_exception(outcome)
        else:
            job.future.set_result(outcome)
    except InvalidStateError:
        pass
