"""A picture that is larger than the bundle's: in which windows it is painted, one after the other.

Every window is one edit of the bundle's size: what is known in it stays, the rest is decided. So
that there is enough to go by, a window is known by half at least where such a one is left.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
            raise RequestError(
                f"outpaint must be whole pixels, at least 0, got {brief(pixels)} for {side}"
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


def windows(
    unknown: Bools, size: tuple[int, int], step: tuple[int, int], origin: tuple[int, int]
) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of windows that together cover what is unknown, in their order.

    Of those that are known by half at least, the one with most that is unknown comes next; where
    there is none, the one with most that is known. Of several, the one nearest to the middle.

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
    while unknown.any():
        counts = _counts(unknown, rows, columns, size)
        enough = (counts > 0) & (counts <= size[0] * size[1] // 2)
        score = np.where(enough, counts, -counts)  # fewest unknown, but some, where none is known
        score = np.where(counts == 0, np.iinfo(np.int64).min, score)
        best = score == score.max()
        row, column = np.unravel_index(np.where(best, off, np.inf).argmin(), off.shape)
        place = tuple(
            slice(int(start), int(start) + length)
            for start, length in zip((rows[row], columns[column]), size, strict=True)
        )
        unknown[place] = False
        yield place[0], place[1]


def _starts(length: int, window: int, step: int, origin: int) -> npt.NDArray[np.int64]:
    """Where windows may begin along one side: whole steps from the origin, and both ends."""
    last = length - window
    return np.unique([0, last, *range(origin % step, last + 1, step)])


def _counts(
    unknown: Bools,
    rows: npt.NDArray[np.int64],
    columns: npt.NDArray[np.int64],
    size: tuple[int, int],
) -> npt.NDArray[np.int64]:
    """Unknown pixels in the window at every row and column."""
    sums = np.zeros((unknown.shape[0] + 1, unknown.shape[1] + 1), np.int32)
    np.cumsum(unknown, 0, np.int32, sums[1:, 1:])
    np.cumsum(sums, 1, out=sums)
    right, below = columns + size[1], rows + size[0]
    found = sums[np.ix_(below, right)] - sums[np.ix_(rows, right)]
    found = found - sums[np.ix_(below, columns)] + sums[np.ix_(rows, columns)]
    return found.astype(np.int64)
