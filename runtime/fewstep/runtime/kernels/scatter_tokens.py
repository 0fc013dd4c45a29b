"""Tokens of images from the order in which they were decided to their places.

    target[b, index[k, b]] = source[k, b]

Shapes: source ``[L, P, C]`` float32, index ``[L, P]`` int32, a permutation of 0 … L − 1 in every
column → target ``[B, L, C]`` float32, with P = B or 2·B; the second half is not read.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fewstep.runtime.kernels.compiled import kernel


@kernel
def scatter_tokens(
    source: npt.NDArray[np.float32],
    index: npt.NDArray[np.int32],
    target: npt.NDArray[np.float32],
) -> None:
    """Write every token to its place.

    Args:
        source: ``[L, P, C]``.
        index: ``[L, P]``.
        target: out, ``[B, L, C]``.
    """
    for k in range(source.shape[0]):
        for image in range(target.shape[0]):
            for channel in range(target.shape[2]):
                target[image, index[k, image], channel] = source[k, image, channel]
