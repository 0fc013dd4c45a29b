"""The Halton order: in which order Halton-MaskGIT decides the tokens of an image.

Point i = 1, 2, … of the Halton sequence is (h₂(i), h₃(i)), where h_b(i), the radical inverse, has
the digits of i in base b behind the point, the last one first. It lies in a cell of the grid:

    (row, column) = (⌊rows · h₂(i)⌋, ⌊columns · h₃(i)⌋)

Cells come in the order in which they are first visited, as in ``build_halton_mask`` of
``Sampler/halton_sampler.py`` in valeoai/Halton-MaskGIT. That takes 10,000 points of a square grid,
which leaves cells out from 50×50 on, and computes in float32. Here points are taken until every
cell was visited, in whole numbers: the orders are the same wherever the official one is complete.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def halton_order(rows: int, columns: int) -> npt.NDArray[np.int32]:
    """Positions of a grid in their Halton order.

    Args:
        rows: of the grid, at least 1.
        columns: of the grid, at least 1.

    Returns:
        ``[rows · columns]``, each position ``row · columns + column`` once.

    Raises:
        ValueError: the grid has no positions.
    """
    if rows < 1 or columns < 1:
        raise ValueError(f"a grid has at least 1 row and 1 column, got {rows} × {columns}")
    points = 4 * rows * columns
    while True:
        cells = _cells(rows, 2, points) * columns + _cells(columns, 3, points)
        _, first = np.unique(cells, return_index=True)
        if len(first) == rows * columns:
            order: npt.NDArray[np.int32] = cells[np.sort(first)].astype(np.int32)
            return order
        points *= 2


def _cells(size: int, base: int, points: int) -> npt.NDArray[np.int64]:
    """⌊size · h_base(i)⌋ of i = 1 … ``points``."""
    rest = np.arange(1, points + 1, dtype=np.int64)
    numerator, denominator = np.zeros_like(rest), 1
    while rest.any():
        numerator = numerator * base + rest % base
        rest, denominator = rest // base, denominator * base
    return size * numerator // denominator
