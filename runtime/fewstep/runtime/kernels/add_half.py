"""Both halves of a batch from one of them and a difference.

    both[k, b] = own[k, b],  both[k, B + b] = own[k, b] + difference[k, b]

Shapes: own and difference ``[K, B, W]`` → both ``[K, 2·B, W]``, float32.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def add_half(
    own: npt.NDArray[np.float32],
    difference: npt.NDArray[np.float32],
    both: npt.NDArray[np.float32],
) -> None:
    """Write both halves.

    Memory is all that this takes, so that there is nothing to compile.

    Args:
        own: ``[K, B, W]``.
        difference: ``[K, B, W]``.
        both: out, ``[K, 2·B, W]``.
    """
    batch = own.shape[1]
    both[:, :batch] = own
    with np.errstate(invalid="ignore", over="ignore"):  # later steps find what is not finite
        np.add(own, difference, both[:, batch:])
