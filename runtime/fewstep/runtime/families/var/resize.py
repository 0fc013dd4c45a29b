"""Resizing of square maps as matrices: rows and columns of a map are multiplied by one.

``R @ x @ R.T`` resizes ``x [s, s]`` to ``[t, t]`` with ``R [t, s]``. The graphs then need no
operator for it, and one graph serves every scale.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

_CUBIC = -0.75  # PyTorch's coefficient

Matrix = npt.NDArray[np.float32]


def bicubic(source: int, target: int) -> Matrix:
    """``[target, source]``: ``interpolate(mode="bicubic")`` of PyTorch.

    Pixel centres are at halves, borders are repeated, nothing is smoothed before.
    """
    found = np.zeros((target, source))
    for row in range(target):
        place = (row + 0.5) * source / target - 0.5
        first = math.floor(place)
        for offset in range(-1, 3):
            column = min(max(first + offset, 0), source - 1)
            found[row, column] += _weight(place - first - offset)
    return found.astype(np.float32)


def area(source: int, target: int) -> Matrix:
    """``[target, source]``: ``interpolate(mode="area")`` of PyTorch, means of neighbours."""
    found = np.zeros((target, source))
    for row in range(target):
        start, end = row * source // target, -(-(row + 1) * source // target)
        found[row, start:end] = 1 / (end - start)
    return found.astype(np.float32)


def _weight(distance: float) -> float:
    """Keys' cubic convolution kernel."""
    x = abs(distance)
    if x <= 1:
        return ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1
    if x < 2:
        return _CUBIC * (((x - 5) * x + 8) * x - 4)
    return 0.0
