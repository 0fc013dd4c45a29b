"""Tokens of images in the order in which they are decided, for one half of a batch or both.

    target[k, p] = source[p mod B, index[k, p]]

Shapes: source ``[B, N, C]`` float32, index ``[K, P]`` int32 → target ``[K, P, C]`` float32, with
P = B or 2·B.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fewstep.runtime.kernels.compiled import kernel


@kernel
def gather_tokens(
    source: npt.NDArray[np.float32],
    index: npt.NDArray[np.int32],
    target: npt.NDArray[np.float32],
) -> None:
    """Write the tokens.

    Args:
        source: ``[B, N, C]``.
        index: ``[K, P]``, 0 … N − 1.
        target: out, ``[K, P, C]``.
    """
    batch, channels = source.shape[0], source.shape[2]
    for k in range(index.shape[0]):
        for row in range(index.shape[1]):
            for channel in range(channels):
                target[k, row, channel] = source[row % batch, index[k, row], channel]
