"""Rows copied over and over into what is behind them.

    target[n, c] = source[n, c mod A]     for c = first … C − 1

Shapes: source ``[N, A, W]`` → target ``[N, C, W]``, of one type. A copy like this makes the second
half of a batch from the first, or fills a cache for every image with the rows of one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def copy_rows(source: npt.NDArray[Any], target: npt.NDArray[Any], first: int) -> None:
    """Write the rows ``first`` … of every ``target[n]``.

    Memory is all that this takes, so that there is nothing to compile.

    Args:
        source: ``[N, A, W]``.
        target: out, ``[N, C, W]``, of the same type; rows below ``first`` stay as they are.
        first: 0 … C.
    """
    rows = np.arange(first, target.shape[1]) % source.shape[1]
    target[:, first:] = source[:, rows]
