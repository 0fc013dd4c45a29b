"""Which positions are computed again, and which are taken from caches.

The tokens that are decided next come first, then those decided last, and then the positions that
changed most, which are the least alike; equal ones in their order.

Shapes: similarity ``[B, H, N]`` float32 → selected ``[M, P]`` and rest ``[N − M, P]`` int32,
P = H·B.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fewstep.runtime.kernels.compiled import kernel


@kernel
def select_rows(
    similarity: npt.NDArray[np.float32],
    known: int,
    previous: int,
    following: int,
    selected: npt.NDArray[np.int32],
    rest: npt.NDArray[np.int32],
) -> None:
    """Write the positions.

    Args:
        similarity: ``[B, H, N]``, finite.
        known: tokens that are known: the positions 0 … known − 1.
        previous: the last of these that were decided last.
        following: the next positions, known … known + following − 1, that are decided next.
        selected: out, ``[M, P]``, M ≥ previous + following.
        rest: out, ``[N − M, P]``.
    """
    batch, halves, count = similarity.shape
    most, first, end = len(selected), known - previous, known + following
    for row in range(batch * halves):
        alike = similarity[row % batch, row // batch]
        for position in range(count):
            if known <= position < end:
                rank = position - known
            elif first <= position < known:
                rank = following + position - first
            else:
                own, rank = alike[position], previous + following
                for other in range(count):
                    that = alike[other]
                    ahead = that < own or (that == own and other < position)
                    rank += ahead and not first <= other < end
            if rank < most:
                selected[rank, row] = position
            else:
                rest[rank - most, row] = position
