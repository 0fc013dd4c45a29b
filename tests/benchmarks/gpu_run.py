"""What the parts of the GPU benchmark share: what they are given, what they return, and timing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

Row = dict[str, str | int | float | None]
Tables = dict[str, list[Row]]
"""Tables by title; the rows of one have the same keys, with units in them."""

_LEAST = 3


class LeftOut(Exception):
    """A part that cannot run here, which is no failure; the message says why."""


@dataclass
class Bench:
    """What the parts are given.

    ``cubin``: the kernels for this GPU. ``quick``: small sizes and few repetitions. ``emulated``:
    the driver is the emulated one. ``ends``: when the time for everything is over, by the
    monotonic clock. ``bandwidth_gb_s``: of the card, once it was measured.
    """

    cubin: bytes
    quick: bool
    emulated: bool
    ends: float
    bandwidth_gb_s: float | None = None

    @property
    def left_s(self) -> float:
        """Seconds that are left."""
        return self.ends - time.monotonic()

    def runs(self, many: int) -> int:
        """At most so many repetitions; few in a quick benchmark."""
        return _LEAST if self.quick else many


def in_turn(
    runs: Mapping[str, Callable[[], T]], *, seconds: float, most: int
) -> dict[str, list[T]]:
    """What contenders return, turn by turn, after a round that does not count.

    Args:
        runs: the contenders by name.
        seconds: after which no further round begins, once there were three.
        most: rounds.
    """
    for run in runs.values():
        run()
    taken: dict[str, list[T]] = {name: [] for name in runs}
    ends = time.monotonic() + seconds
    for turn in range(most):
        if turn >= _LEAST and time.monotonic() > ends:
            break
        for name, run in runs.items():
            taken[name].append(run())
    return taken


def repeated(run: Callable[[], T], *, seconds: float, most: int) -> list[T]:
    """The same for one contender."""
    return in_turn({"": run}, seconds=seconds, most=most)[""]


@dataclass(frozen=True)
class Times:
    """What was measured, in milliseconds."""

    values: Sequence[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def least(self) -> float:
        return min(self.values)

    def row(self, what: str, unit: str, scale: float) -> Row:
        """Median and minimum in another unit, of which a millisecond has ``scale``."""
        return {
            f"{what}, median, {unit}": self.median * scale,
            f"{what}, minimum, {unit}": self.least * scale,
        }
