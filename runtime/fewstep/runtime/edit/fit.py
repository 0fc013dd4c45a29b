"""How a picture of any size becomes one of the bundle's size, and its mask with it.

``crop`` takes the largest part of the bundle's proportions, from the middle. ``pad`` takes the
whole picture, in the middle, and repeats its edges around it. ``stretch`` takes the whole picture
and changes its proportions. ``none`` changes nothing. Colours are resampled by Lanczos's filter,
masks by the nearest pixel where they are enlarged; where they shrink, a pixel is in the mask if any
that it is made of is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from fewstep.runtime.edit.given import Bools, Box
from fewstep.runtime.errors import RequestError, choose

Pixels = npt.NDArray[np.uint8]

_ROUNDING = 1e-6  # of a pixel

FITS = ("crop", "pad", "stretch", "none")


@dataclass(frozen=True)
class Fit:
    """From which part of a picture to which part of another.

    ``source``: left, top, right, bottom in pixels of the picture, fractions as well. ``target``:
    the same of what it becomes, which has ``size`` (height, width).
    """

    source: tuple[float, float, float, float]
    target: Box
    size: tuple[int, int]

    @property
    def padded(self) -> bool:
        """Whether there is anything beside the picture."""
        return self.target != (0, 0, self.size[1], self.size[0])

    def image(self, picture: Image.Image) -> Pixels:
        """The picture fitted, ``[H, W, 3]``; its edges are repeated where there is more room."""
        left, top, right, bottom = self.target
        inner = (right - left, bottom - top)
        same = picture.size == inner and self.source == (0, 0, *picture.size)
        if not same:
            picture = picture.resize(inner, Image.Resampling.LANCZOS, box=self.source)
        return self._around(np.asarray(picture))

    def mask(self, mask: Bools) -> Bools:
        """A mask of the picture fitted, ``[H, W]``; what is beside the picture stays."""
        left, top, right, bottom = self.target
        found = np.zeros(self.size, np.bool_)
        inner = _resized(mask, self.source[1], self.source[3], bottom - top)
        inner = _resized(inner.T, self.source[0], self.source[2], right - left).T
        found[top:bottom, left:right] = inner
        return found

    def _around(self, inner: Pixels) -> Pixels:
        left, top, right, bottom = self.target
        height, width = self.size
        room = ((top, height - bottom), (left, width - right), (0, 0))
        return np.pad(inner, room, "edge")


def fit_of(how: str, size: tuple[int, int], to: tuple[int, int]) -> Fit:
    """How a picture of ``size`` (height, width) becomes one of ``to``.

    Raises:
        RequestError: an unknown way.
    """
    if how not in FITS:
        raise RequestError(choose("fit", str(how), FITS))
    (height, width), (rows, columns) = size, to
    if how == "none":
        return Fit((0, 0, width, height), (0, 0, width, height), size)
    if how == "stretch" or height * columns == width * rows:
        return Fit((0, 0, width, height), (0, 0, columns, rows), to)
    if how == "crop":
        scale = min(height / rows, width / columns)  # pixels of the picture for one of the result
        taken = min(columns * scale, width), min(rows * scale, height)  # rounding aside
        left, top = (width - taken[0]) / 2, (height - taken[1]) / 2
        return Fit((left, top, width - left, height - top), (0, 0, columns, rows), to)
    scale = max(height / rows, width / columns)
    inner = max(1, round(width / scale)), max(1, round(height / scale))
    left, top = (columns - inner[0]) // 2, (rows - inner[1]) // 2
    return Fit((0, 0, width, height), (left, top, left + inner[0], top + inner[1]), to)


def _resized(mask: Bools, start: float, end: float, count: int) -> Bools:
    """The rows of a mask between start and end, fractions as well, as ``count`` rows.

    A row is the one that its centre lies in; or, where there are more than ``count``, any of those
    that it covers, if only in part.
    """
    each, most = (end - start) / count, len(mask)
    if each <= 1:
        centres = start + (np.arange(count) + 0.5) * each
        nearest: Bools = mask[np.floor(centres).astype(np.int64).clip(0, most - 1)]
        return nearest
    edges = start + np.arange(count + 1) * each
    first = np.floor(edges[:-1] + _ROUNDING).astype(np.int64).clip(0, most - 1)
    last = np.ceil(edges[1:] - _ROUNDING).astype(np.int64).clip(first + 1, most)
    below = np.pad(mask, ((0, 1), (0, 0)))  # ``last`` has to be a row
    found: Bools = np.logical_or.reduceat(below, np.stack([first, last], 1).ravel(), 0)[::2]
    return found
