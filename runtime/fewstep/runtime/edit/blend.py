"""Seams between what is kept of a picture and what is painted anew."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fewstep.runtime.edit.fit import Pixels
from fewstep.runtime.edit.given import Bools

Weights = npt.NDArray[np.float32]


def seam(anew: Bools, width: int) -> Weights:
    """How much of the new picture counts, ``[H, W]`` in 0 … 1.

    It is 1 where ``anew [H, W]`` is, and falls in a straight line to 0 at ``width`` + 1 pixels from
    it, diagonals counted as one.
    """
    found, near = anew.astype(np.float32), anew
    for distance in range(1, width + 1):
        near = _grown(near)
        np.maximum(found, near * np.float32(1 - distance / (width + 1)), out=found)
    return found


def blended(kept: Pixels, new: Pixels, weights: Weights) -> Pixels:
    """New pictures ``[B, H, W, 3]`` over one or as many that are kept, by weights ``[H, W]``."""
    share = weights[..., None]
    mixed = kept + (new.astype(np.float32) - kept) * share
    return np.rint(mixed).astype(np.uint8)


def _grown(region: Bools) -> Bools:
    """With all neighbours of its pixels."""
    for axis in (0, 1):
        before, after = np.roll(region, 1, axis), np.roll(region, -1, axis)
        edge = [slice(None), slice(None)]
        edge[axis] = slice(0, 1)
        before[tuple(edge)] = False  # what was rolled around
        edge[axis] = slice(-1, None)
        after[tuple(edge)] = False
        region = region | before | after
    return region
