"""A picture that is larger than the bundle's: in which windows it is painted, one after the other.

Every window is one edit of the bundle's size: what is known in it stays, the rest is decided. So
that there is enough to go by, a window is known by half at least where such a one is left. Unknown
pixels beside known ones are painted by a window that holds both, so that a seam leads from the one
to the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.runtime.edit.given import Bools
from fewstep.runtime.errors import RequestError, brief, choose

SIDES = ("left", "top", "right", "bottom")
MOST_PIXELS = 2**25
"""Of a picture that is painted in windows."""


def growth_of(outpaint: Mapping[str, Any] | str) -> dict[str, int]:
    """Pixels that a picture grows by, on every side.

    Args:
        outpaint: pixels by side; as text ``left:64,top:32``.

    Raises:
        RequestError: no such side, no whole number of at least 0, or nothing.
    """
    said = outpaint
    if isinstance(outpaint, str):
        outpaint = _read(outpaint)
    if not isinstance(outpaint, Mapping):
        raise RequestError(
            f"outpaint must say pixels by side, as in {{'left': 64}}, got {brief(outpaint)}"
        )
    for side, pixels in outpaint.items():
        if side not in SIDES:
            raise RequestError(choose("side to outpaint", str(side), SIDES))
        if not isinstance(pixels, (int, np.integer)) or pixels < 0:
            how = "left:64,top:32" if isinstance(said, str) else "{'left': 64, 'top': 32}"
            raise RequestError(
                f"outpaint must be whole pixels by side, at least 0, as {how}, got {brief(said)}"
            )
    growth = {side: int(outpaint.get(side, 0)) for side in SIDES}
    if not any(growth.values()):
        raise RequestError("outpaint is 0 on every side: nothing grows")
    return growth


def _read(text: str) -> dict[str, Any]:
    """``left:64,top:32`` as a mapping; pixels that are no number stay text."""
    found: dict[str, Any] = {}
    for part in text.split(","):
        side, _, pixels = (each.strip() for each in part.partition(":"))
        if side in found:
            raise RequestError(f"outpaint says {side} twice: {text}")
        found[side] = int(pixels) if pixels.isdecimal() else pixels
    return found


@dataclass(frozen=True, eq=False)
class Window:
    """Rows and columns of a window, and which of its pixels it paints, ``[rows, columns]``."""

    place: tuple[slice, slice]
    paints: Bools


def windows(
    unknown: Bools, size: tuple[int, int], step: tuple[int, int], origin: tuple[int, int]
) -> Iterator[Window]:
    """Windows that together paint what is unknown, in their order.

    Of those that are known by half at least, the one that paints most comes next; where there is
    none, the one with most that is known. Of several, the one nearest to the middle. Pixels that a
    window paints have nothing known outside of it within a step, or, where no window can hold
    that, nothing that touches them; windows of a single step paint all.

    Args:
        unknown: ``[H, W]``, at least as large as a window.
        size: of a window, height and width.
        step: between windows, so that tokens lie where those of others do.
        origin: row and column of the known picture, which steps are counted from.
    """
    unknown = unknown.copy()
    rows = _starts(unknown.shape[0], size[0], step[0], origin[0])
    columns = _starts(unknown.shape[1], size[1], step[1], origin[1])
    middle = np.array(unknown.shape) / 2 - np.array(size) / 2
    off = np.abs(rows - middle[0])[:, None] + np.abs(columns - middle[1])
    reach = max(step)
    done = np.zeros(off.shape, np.bool_)  # can paint nothing more
    while unknown.any():
        counts = np.where(done, 0, _counts(unknown, rows, columns, size))
        if not counts.any():  # windows of few steps hold less
            reach, done[:] = min(reach - 1, 1), False
            continue
        enough = (counts > 0) & (counts <= size[0] * size[1] // 2)
        border = unknown & _near(~unknown, reach)  # painted where it lies well inside of a window
        left_out = _counts(border, rows, columns, size)
        left_out -= _counts(border, rows, columns, size, reach)
        # Fewest unknown, but some, where none is known.
        score = np.where(enough, counts - left_out, -counts)
        score = np.where(counts == 0, np.iinfo(np.int64).min, score)
        best = score == score.max()
        row, column = np.unravel_index(np.where(best, off, np.inf).argmin(), off.shape)
        top, left = int(rows[row]), int(columns[column])
        place = slice(top, top + size[0]), slice(left, left + size[1])
        paints = unknown[place] & ~_near_outside(~unknown, place, reach)
        if not paints.any():
            done[row, column] = True
            continue
        unknown[place] &= ~paints
        yield Window(place, paints)


def _near(known: Bools, reach: int) -> Bools:
    """Pixels with known ones so near, diagonals counted as one."""
    sums, side = _sums(np.pad(known, reach)), 2 * reach + 1
    found: Bools = (
        sums[side:, side:] - sums[:-side, side:] > sums[side:, :-side] - sums[:-side, :-side]
    )
    return found


def _near_outside(known: Bools, place: tuple[slice, slice], reach: int) -> Bools:
    """Pixels of a window that have known ones so near outside of it."""
    around = tuple(slice(max(0, each.start - reach), each.stop + reach) for each in place)
    inside = tuple(
        slice(each.start - wide.start, each.stop - wide.start)
        for each, wide in zip(place, around, strict=True)
    )
    outside = known[around].copy()
    outside[inside] = False
    return _near(outside, reach)[inside]


def _starts(length: int, window: int, step: int, origin: int) -> npt.NDArray[np.int64]:
    """Where windows may begin along one side: whole steps from the origin, and both ends."""
    last = length - window
    return np.unique([0, last, *range(origin % step, last + 1, step)])


def _counts(
    region: Bools,
    rows: npt.NDArray[np.int64],
    columns: npt.NDArray[np.int64],
    size: tuple[int, int],
    margin: int = 0,
) -> npt.NDArray[np.int64]:
    """Pixels of a region ``[H, W]`` in the window at every row and column; with a margin only those
    that are so far from the window's edges, but for edges of the picture."""
    sums = _sums(region)
    top, below = _span(rows, size[0], margin, region.shape[0])
    left, right = _span(columns, size[1], margin, region.shape[1])
    found = sums[np.ix_(below, right)] - sums[np.ix_(top, right)]
    found = found - sums[np.ix_(below, left)] + sums[np.ix_(top, left)]
    return found.astype(np.int64)


def _span(
    starts: npt.NDArray[np.int64], window: int, margin: int, length: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where windows begin and end along one side, without their margins."""
    first = np.where(starts == 0, 0, starts + margin)
    last = np.where(starts + window == length, length, starts + window - margin)
    return first, np.maximum(first, last)


def _sums(region: Bools) -> npt.NDArray[np.int32]:
    """How many pixels of a region lie above and left of every corner, ``[H + 1, W + 1]``."""
    sums = np.zeros((region.shape[0] + 1, region.shape[1] + 1), np.int32)
    np.cumsum(region, 0, np.int32, sums[1:, 1:])
    np.cumsum(sums, 1, out=sums)
    return sums
