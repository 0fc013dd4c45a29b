"""How far the values of every position have changed from one iteration to the next.

    s = mean over heads of  v·c / max(|v|·|c|, ε)     v now, c before, of one head

As LazyMAR ranks positions (feihongyan1/LazyMAR, ``models/basic.py``). Sums are those of a warp: 32
lanes add every 32nd number, and then each other in a tree.

Shapes: values and cached ``[N, P, W]`` float32, W = heads · d, P = H·B → similarity ``[B, H, N]``
float32: the halves of a batch beside each other.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fewstep.runtime.kernels.compiled import helper, kernel

_LANES = 32
_LEAST = np.float32(1e-20)
_ZERO = np.float32(0)


@helper
def warp_sum(lanes: npt.NDArray[np.float32]) -> np.float32:
    """The sum of 32 numbers as a warp takes it, lane + 16 first; they are used up."""
    offset = _LANES // 2
    while offset:
        for lane in range(offset):
            lanes[lane] += lanes[lane + offset]
        offset //= 2
    return np.float32(lanes[0])


@kernel
def similarity(
    values: npt.NDArray[np.float32],
    cached: npt.NDArray[np.float32],
    heads: int,
    similarity: npt.NDArray[np.float32],
    error: npt.NDArray[np.int32],
) -> None:
    """Write how alike they are, −1 … 1.

    Args:
        values: ``[N, P, W]``.
        cached: ``[N, P, W]``.
        heads: that W is cut into.
        similarity: out, ``[B, H, N]``.
        error: in and out, ``[1]``: becomes 1 if a number is not finite.
    """
    count, rows, width = values.shape
    own, batch = width // heads, len(similarity)
    products, squares = np.empty(_LANES, np.float32), np.empty(_LANES, np.float32)
    others = np.empty(_LANES, np.float32)
    for position in range(count):
        for row in range(rows):
            total = _ZERO
            for head in range(heads):
                products[:], squares[:], others[:] = _ZERO, _ZERO, _ZERO
                for number in range(own):
                    v = values[position, row, head * own + number]
                    c = cached[position, row, head * own + number]
                    products[number % _LANES] += v * c
                    squares[number % _LANES] += v * v
                    others[number % _LANES] += c * c
                norms = np.sqrt(warp_sum(squares)) * np.sqrt(warp_sum(others))
                # The least, as of fmaxf, also where it is NaN: infinity times zero.
                total += warp_sum(products) / (norms if norms > _LEAST else _LEAST)
            alike = total / np.float32(heads)
            if not np.isfinite(alike):
                error[0], alike = 1, _ZERO
            similarity[row % batch, row // batch, position] = alike
