"""Which jobs run together, and how long they take, as far as that is known.

Jobs of the same kind are images of the same complete settings, so one batch makes them: images
have seeds of their own, and do not depend on what is made beside them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Protocol, TypeVar

_KINDS = 64  # whose times are kept
_NEWEST = 0.4  # weight of the newest time
_UNKNOWN_MS = 1_000.0  # of an image, before any was made


class Countable(Protocol):
    """What has to be known of a job: ``kind``, and whether others of it may ``join``."""

    @property
    def kind(self) -> Hashable: ...

    @property
    def joins(self) -> bool: ...

    @property
    def count(self) -> int: ...


Queued = TypeVar("Queued", bound=Countable)


def batches(jobs: Sequence[Queued], most: int) -> list[list[Queued]]:
    """Jobs in the batches that they will run in: each time the first, and those that may join it.

    Args:
        jobs: in the order of their arrival.
        most: images of a batch; a job with more of them runs alone.
    """
    left, found = list(jobs), list[list[Queued]]()
    while left:
        first, rest = left[0], list[Queued]()
        taken, images = [first], first.count
        for job in left[1:]:
            same = job.joins and first.joins and job.kind == first.kind
            if same and images + job.count <= most:
                taken.append(job)
                images += job.count
            else:
                rest.append(job)
        found.append(taken)
        left = rest
    return found


def images(batch: Sequence[Countable]) -> int:
    """Images of a batch."""
    return sum(job.count for job in batch)


class Times:
    """Milliseconds of batches, by their kind and number of images: newer ones count more."""

    def __init__(self) -> None:
        self._kinds: OrderedDict[Hashable, dict[int, float]] = OrderedDict()
        self._image_ms: float | None = None

    def add(self, kind: Hashable, count: int, ms: float) -> None:
        """Count in what a batch of ``count`` images took."""
        known = self._kinds.setdefault(kind, {})
        known[count] = _newer(known.get(count), ms)
        self._image_ms = _newer(self._image_ms, ms / count)
        self._kinds.move_to_end(kind)
        while len(self._kinds) > _KINDS:
            self._kinds.popitem(last=False)

    def ms(self, kind: Hashable, count: int) -> float:
        """What a batch will take: as the last ones did, or in proportion to the nearest size."""
        known = self._kinds.get(kind)
        if not known:
            return count * (_UNKNOWN_MS if self._image_ms is None else self._image_ms)
        near = min(known, key=lambda each: (abs(each - count), each))
        return known[near] * count / near

    def wait_ms(self, jobs: Sequence[Countable], most: int) -> float:
        """How long the last of some jobs waits for those before it."""
        found = 0.0
        for batch in batches(jobs, most):
            if any(job is jobs[-1] for job in batch):
                return found
            found += self.ms(batch[0].kind, images(batch))
        return found


def _newer(known: float | None, new: float) -> float:
    return new if known is None else known + _NEWEST * (new - known)
