"""The line of jobs: which run together, who may stand in it, and how long that takes.

Jobs of the same kind are images of the same complete settings, so one batch makes them: images
have seeds of their own, and do not depend on what is made beside them.

**Who is refused.** A job has a limit, and is refused if it would wait that long. Let F be the time
of a full batch of its settings, or of the batch that runs, if that takes longer.

* The limit is F for who begins another batch where others of the same settings and size wait.
  With requests of one kind, whatever the load, that is one full batch behind the one that runs.
* It is three quarters of F for all where nothing of other settings or size runs or waits, and
  within the last F as many were refused as a batch holds. Then at least twice as many come as can
  be served, and a batch that begins to wait later is full as well: so what is accepted has its
  images after 1.75 F. Else, who comes just after a batch began may wait for all of it.
* It is 2 F, or half a second if that is more, for the first of its settings and size, and for who
  joins a batch that waits. A flood of one kind cannot use that: it has one such place. What differs
  in settings cannot run together, so that a few mixed requests at once make a line of many small
  batches, which F alone would refuse. The price: under mixed load requests wait up to this limit,
  at capacity as at ten times that.

**Who goes before whom.** Batches run in the order of their first jobs. A newcomer joins the first
batch of its kind that has room, which lengthens the wait of all behind: so only if none of them
gets beyond its own limit by that.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

MIXED_S = 0.5
"""Of a limit that allows for other settings: at least so long, whatever a batch takes."""

_CROWDED = 0.75  # of a full batch: the limit where twice as many come as can be served
_REFUSALS = 256  # whose times are kept
_KINDS = 64  # of batches whose times are kept
_NEWEST = 0.4  # weight of the newest time
_UNKNOWN_MS = 1_000.0  # of an image, before any was made


class Countable(Protocol):
    """What has to be known of a job: ``kind``, and whether others of it may ``join``; ``count``
    images; ``timed`` and ``load``: what its time is known by, and in proportion to; ``until``: the
    time by which it is to run, if others come."""

    until: float

    @property
    def kind(self) -> Hashable: ...

    @property
    def joins(self) -> bool: ...

    @property
    def count(self) -> int: ...

    @property
    def timed(self) -> Hashable: ...

    @property
    def load(self) -> int: ...


Queued = TypeVar("Queued", bound=Countable)


def images(batch: Sequence[Countable]) -> int:
    """Images of a batch."""
    return sum(job.count for job in batch)


class Times:
    """Milliseconds of batches, by their kind and load: newer ones count more."""

    def __init__(self) -> None:
        self._kinds: OrderedDict[Hashable, dict[int, float]] = OrderedDict()
        self._unit_ms: float | None = None

    def add(self, kind: Hashable, load: int, ms: float) -> None:
        """Count in what a batch took. ``load``: its images, of edits times windows."""
        known = self._kinds.setdefault(kind, {})
        known[load] = _newer(known.get(load), ms)
        self._unit_ms = _newer(self._unit_ms, ms / load)
        self._kinds.move_to_end(kind)
        while len(self._kinds) > _KINDS:
            self._kinds.popitem(last=False)

    def ms(self, kind: Hashable, load: int) -> float:
        """What a batch will take: as the last ones did, or in proportion to the nearest load."""
        known = self._kinds.get(kind)
        if not known:
            return load * (_UNKNOWN_MS if self._unit_ms is None else self._unit_ms)
        near = min(known, key=lambda each: (abs(each - load), each))
        return known[near] * load / near

    def seconds(self, batch: Sequence[Countable]) -> float:
        """The same of some jobs."""
        return self.ms(batch[0].timed, sum(job.load for job in batch)) / 1e3 if batch else 0.0


@dataclass(frozen=True)
class Place(Generic[Queued]):
    """Where a job would stand: with the jobs of ``batch``, or behind all. ``wait_s``: until it
    runs; ``most_s``: its limit."""

    batch: list[Queued] | None
    wait_s: float
    most_s: float


@dataclass
class Line(Generic[Queued]):
    """Jobs that wait, in the batches that they will run in.

    Args:
        times: of batches.
        max_wait_s: everybody's limit, if one is given.
        gone: whether a job need not run any more.
        refused: when newcomers were, the last one last; by the clock of ``until``.
    """

    times: Times
    max_wait_s: float | None = None
    gone: Callable[[Queued], bool] = lambda job: False
    refused: deque[float] = field(default_factory=lambda: deque(maxlen=_REFUSALS))
    batches: list[list[Queued]] = field(default_factory=list)

    def __iter__(self) -> Iterator[Queued]:
        """Jobs that wait; from other threads too."""
        return (job for each in tuple(self.batches) for job in tuple(each) if not self.gone(job))

    def tidy(self) -> None:
        """Drop who has gone."""
        kept = ([job for job in batch if not self.gone(job)] for batch in self.batches)
        self.batches = [batch for batch in kept if batch]

    def place(
        self, job: Queued, most: int, running: Sequence[Queued], took_s: float, now: float
    ) -> Place[Queued]:
        """The place for a newcomer.

        Args:
            job: that comes.
            most: images of a batch; a job with more of them runs alone.
            running: jobs that run.
            took_s: how long they have.
            now: by the clock of ``until``.
        """
        self.tidy()
        run_s = self.times.seconds(running)
        # What takes longer than it was to take by x, is expected to take x more.
        waits = [abs(run_s - took_s) if running else 0.0]
        for batch in self.batches:
            waits.append(waits[-1] + self.times.seconds(batch))
        full_s = max(self.times.ms(job.timed, most) / 1e3, run_s)
        crowded = self._is_crowded(most, full_s, now)
        joining_s, beginning_s = self._limits_s(job, full_s, running, crowded)
        for at, batch in enumerate(self.batches):
            if _fits(job, batch, most):
                more = self.times.seconds([*batch, job]) - self.times.seconds(batch)
                behind = zip(self.batches[at + 1 :], waits[at + 1 :], strict=False)
                ends = ((min(each.until for each in later), wait) for later, wait in behind)
                if more <= 0 or all(now + wait + more <= end for end, wait in ends):
                    return Place(batch, waits[at], joining_s)
        return Place(None, waits[-1], beginning_s)

    def add(self, job: Queued, place: Place[Queued], now: float) -> None:
        """Let a job stand in its place."""
        job.until = now + max(place.most_s, place.wait_s)
        if place.batch is None:
            self.batches.append([job])
        else:
            place.batch.append(job)

    def _is_crowded(self, most: int, full_s: float, now: float) -> bool:
        """Whether as many as a batch holds were refused within the time of one."""
        return len(self.refused) >= most and now - self.refused[-most] < full_s

    def _limits_s(
        self, job: Queued, full_s: float, running: Sequence[Queued], crowded: bool
    ) -> tuple[float, float]:
        """Of a newcomer: to join a batch that waits, and to begin another."""
        if self.max_wait_s is not None:
            return self.max_wait_s, self.max_wait_s
        waiting = [_alike(each, job) for each in self]
        if crowded and all(waiting) and all(_alike(each, job) for each in running):
            return _CROWDED * full_s, _CROWDED * full_s
        mixed_s = max(2 * full_s, MIXED_S)
        return mixed_s, full_s if any(waiting) else mixed_s


def _alike(job: Countable, other: Countable) -> bool:
    return (job.kind, job.count) == (other.kind, other.count)


def _fits(job: Countable, batch: Sequence[Countable], most: int) -> bool:
    first = batch[0]
    same = job.joins and first.joins and job.kind == first.kind
    return same and images(batch) + job.count <= most


def _newer(known: float | None, new: float) -> float:
    return new if known is None else known + _NEWEST * (new - known)
