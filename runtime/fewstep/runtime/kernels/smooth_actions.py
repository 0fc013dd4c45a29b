"""A policy's actions with those of the step before (AdaGen): s = c·s' + (1 − c)·a.

Shapes: all ``[B, A]`` float32. In float64, rounded once.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def smooth_actions(action: Floats, before: Floats, smoothing: float, smoothed: Floats) -> None:
    """Write the smoothed actions.

    Memory is all that this takes, so that there is nothing to compile.

    Args:
        action: a, ``[B, A]``, of the step.
        before: s', ``[B, A]``, smoothed ones of the step before.
        smoothing: c, 0 … 1.
        smoothed: out, s, ``[B, A]``.
    """
    kept = smoothing * before.astype(np.float64)
    smoothed[:] = kept + (1 - smoothing) * action.astype(np.float64)
