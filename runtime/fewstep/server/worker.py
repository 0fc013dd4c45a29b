"""A thread that owns a generator: it opens it, makes the images of jobs in turn, and closes it.

Jobs of one kind run together. Nothing waits while there is nothing else to do; where others have
just come, a batch that has room waits for more for some milliseconds at most.

A job is refused where it would wait too long, by the times of those before: how long that is, and
who goes before whom, says :mod:`fewstep.server.queue`.
"""

from __future__ import annotations

import math
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import InvalidStateError
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.engines.on_gpu import Gpu
from fewstep.runtime.engines.select import Wanted, require_possible
from fewstep.runtime.errors import DeviceLostError, FewstepError
from fewstep.runtime.families import Model, model_of
from fewstep.runtime.generator import Generator
from fewstep.runtime.request import batches
from fewstep.server.batch import AbandonedError, Watch, parameters_of, part, places
from fewstep.server.errors import BusyError, GoneError, UnavailableError
from fewstep.server.job import Job, Made
from fewstep.server.notes import note_nothing
from fewstep.server.order import Checks
from fewstep.server.queue import Line, Times, images

WINDOW_S = 0.004
"""How long a batch with room waits for more, where others have just come."""

MAX_JOBS = 256
"""That wait; each takes some memory, whatever its time."""

FINISH_S = 60.0
"""How long what runs may take when the server is told to end."""

_CLOSE_S = 15.0
"""How long the window and the batch that were under way then may take, and closing."""

_OPENING = threading.Lock()
"""Of opening: who measures which backend is the fastest must not be slowed down by others."""


class Watcher(Protocol):
    """Who counts what a worker does; see :class:`fewstep.server.metrics.Metrics`."""

    def batch(self, model: str, sizes: Sequence[int], timings_ms: Mapping[str, float]) -> None: ...

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

    def check(self) -> None:
        """Refuse what can be refused without opening anything.

        Raises:
            RequestError: unknown options, or some that do not go together.
            DeviceError: no such GPU, or no driver.
            MissingDependencyError: what the GPU needs is not installed.
        """
        wanted = Wanted.parse(self.backend, self.device, self.precision, self.threads)
        require_possible(self.bundle, wanted)
        if wanted.device == "cuda":
            Gpu.at(wanted.ordinal)

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
        max_wait_s: jobs that would wait so long are refused; ``None``: as ``queue`` has it.
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
        self.checks = Checks(self.model)
        self.generator: Generator | None = None
        self.failure: FewstepError | None = None
        self._opening, self._watcher, self._changed = opening, watcher, changed
        self._times = Times()
        self._line = Line[Job](self._times, max_wait_s, lambda job: job.future.done())
        self._arrivals = deque[float](maxlen=2)
        self._running, self._since, self._last = list[Job](), 0.0, (0, 0.0)
        self._stopping, self._deadline = False, math.inf
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
        return len(tuple(self._line))

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
            now = time.perf_counter()
            took_s = now - self._since
            place = self._line.place(job, self._most, self._running, took_s, now)
            full = self.queued >= MAX_JOBS
            if (self.queued or self._running) and (place.wait_s >= place.most_s or full):
                self._line.refused.append(now)
                raise BusyError(
                    f"busy: a request would wait about {place.wait_s:.1f} s, {place.most_s:.1f} s "
                    "are the most; try again later",
                    max(place.wait_s - place.most_s, 0.05),
                )
            job.since = now
            self._line.add(job, place, now)
            self._arrivals.append(now)
            self._condition.notify()
        return job

    def drain(self) -> None:
        """Take no more, refuse those that wait; what runs is finished, if it takes no longer than
        ``FINISH_S``. What nobody waits for any more is not."""
        with self._condition:
            if not self._stopping:
                self._stopping, self._deadline = True, time.perf_counter() + FINISH_S
            self._refuse_waiting(UnavailableError("the server is shutting down"))
            self._condition.notify()

    def stop(self) -> None:
        """:meth:`drain`, and wait until the generator is closed; not forever, which then is its
        ``failure``."""
        self.drain()
        if not self._thread.is_alive():
            return
        self._thread.join(max(0.0, self._deadline - time.perf_counter()) + _CLOSE_S)
        if self._thread.is_alive():
            self.failure = self.failure or UnavailableError(
                f"{self.name}: what runs did not end in time; the process ends without it"
            )

    def _require_ready(self) -> None:
        if self.failure is not None:
            raise UnavailableError(f"{self.name}: {self.failure}")
        if self._stopping:
            raise UnavailableError("the server is shutting down")
        if self.generator is None:
            raise UnavailableError(f"{self.name} is being opened; see /ready")

    @property
    def _most(self) -> int:
        return self._opening.max_batch if self.generator is None else self.generator.max_batch

    def _refuse_waiting(self, error: FewstepError) -> None:
        _settle_all(self._line, error)
        self._line.tidy()

    # The worker's own thread

    def _live(self) -> None:
        try:
            self._serve_all()
        except BaseException as error:
            self._fail(error)

    def _serve_all(self) -> None:
        with _OPENING:  # one after the other
            if self._stopping:
                return
            generator = self._opening()
            try:
                self._warm_up(generator)
            except BaseException:
                generator.close()
                raise
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
            _settle_all(self._running, UnavailableError(f"{self.name}: {error}"))
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
                self._line.tidy()
                if not self._line.batches:
                    if self._stopping:
                        return []
                    self._condition.wait()
                    continue
                now = time.perf_counter()
                until = now + WINDOW_S if until is None else until
                if now >= until or not self._others_come(now):
                    break
                self._condition.wait(until - now)
            batch = self._line.batches.pop(0)
            batch = [job for job in batch if job.future.set_running_or_notify_cancel()]
            self._running, self._since = batch, time.perf_counter()
        return batch or self._next()

    def _others_come(self, now: float) -> bool:
        """Whether the next batch has room, and others came just before."""
        first = self._line.batches[0]
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
        except AbandonedError:
            _settle_all(batch, GoneError("the request was interrupted"))
        except DeviceLostError as error:
            _settle_all(batch, UnavailableError(f"{self.name}: {error}"))
            self._fail(error)
            return
        except FewstepError as error:
            if len(batch) > 1:  # together they may be too much, or one is to blame
                for at, job in enumerate(batch):
                    if self.failure is None:
                        self._running, self._since = batch[at:], time.perf_counter()
                        self._serve(generator, [job])
                return
            _settle(batch[0], error)
        except Exception as error:  # a defect, which must not end all that come after
            traceback.print_exception(error, file=sys.stderr)
            _settle_all(batch, error)
        else:
            end = time.perf_counter()
            load = sum(job.load for job in batch)
            self._times.add(batch[0].timed, load, (end - start) * 1e3)
            self._watcher.batch(self.name, self._sizes(images(batch)), made[0].timings_ms)
            self._running = []  # before its clients come back
            for job, each in zip(batch, made, strict=True):
                waited = start - job.since
                self._watcher.waited(self.name, waited)
                each.timings_ms["queue"] = waited * 1e3
                _settle(job, each)
        self._last = len(batch), time.perf_counter()

    def _made(self, generator: Generator, batch: list[Job]) -> list[Made]:
        first = batch[0]
        watch = Watch(generator, batch, lambda: self._deadline)
        watch.check()
        watched = any(job.on_step is not None for job in batch)
        options: dict[str, Any] = {
            "progress": watch.progress,
            "callback": watch.step if watched else None,
        }
        if first.edit is not None:
            result = generator.edit(**first.edit, **first.settings, **options).result
        else:
            asked: dict[str, Any] = {
                name: [each for job in batch for each in job.asked[name]] for name in first.asked
            }
            seeds = [seed for job in batch for seed in job.seeds]
            request = generator.request(**asked, seed=seeds, **first.settings)
            result = generator.run(request, **options)
        parameters = parameters_of(generator, result.request, result.trace)
        most = max(self._sizes(len(result.images)))
        return [part(result, job, at, parameters, most) for job, at in places(batch)]

    def _sizes(self, count: int) -> list[int]:
        """The batches of the generator's that so many images are made in."""
        return [rows.stop - rows.start for rows in batches(count, self._most)]


def _settle(job: Job, outcome: Made | BaseException) -> None:
    """Give a job its images or an error, unless its client has cancelled it."""
    try:
        if isinstance(outcome, BaseException):
            job.future.set_exception(outcome)
        else:
            job.future.set_result(outcome)
    except InvalidStateError:
        pass


def _settle_all(jobs: Iterable[Job], error: BaseException) -> None:
    for job in tuple(jobs):
        _settle(job, error)
