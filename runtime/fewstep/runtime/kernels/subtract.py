"""The difference of two arrays of one shape, ``out = a − b``, float32."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def subtract(
    a: npt.NDArray[np.float32], b: npt.NDArray[np.float32], out: npt.NDArray[np.float32]
) -> None:
    """Write ``a − b``.

    Memory is all that this takes, so that there is nothing to compile.

    Args:
        a: of any shape.
        b: of the same.
        out: out, of the same.
    """
    with np.errstate(invalid="ignore", over="ignore"):  # later steps find what is not finite
        np.subtract(a, b, out)
