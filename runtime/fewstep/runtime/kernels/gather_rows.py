"""Positions of caches that differ from image to image, put together.

    target[a, m, p] = source[a, index[m, p], p]

Shapes: source ``[A, …]``, of each A the first N·P·W numbers as ``[N, P, W]``; index ``[M, P]``
int32 → target ``[A, …]``, of each A the first M·P·W numbers as ``[M, P, W]``. float32, or int32.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from fewstep.runtime.kernels.compiled import kernel

Number = TypeVar("Number", np.float32, np.int32)


@kernel
def gather_rows(
    source: npt.NDArray[Number],
    index: npt.NDArray[np.int32],
    width: int,
    target: npt.NDArray[Number],
) -> None:
    """Write the positions that ``index`` names.

    Args:
        source: ``[A, …]``.
        index: ``[M, P]``, 0 … N − 1.
        width: W.
        target: out, ``[A, …]``.
    """
    count, rows = index.shape
    for a in range(len(source)):
        for m in range(count):
            for row in range(rows):
                to, of = (m * rows + row) * width, (index[m, row] * rows + row) * width
                for number in range(width):
                    target[a, to + number] = source[a, of + number]
