"""Activations of policies, in float64: these few numbers decide a whole step."""

from __future__ import annotations

import math

from fewstep.runtime.kernels.compiled import inlined


@inlined
def sigmoid(x: float) -> float:
    """``1 / (1 + exp(−x))``, which never overflows."""
    return 0.5 * (math.tanh(0.5 * x) + 1)


@inlined
def softplus(x: float) -> float:
    """``log(1 + exp(x))``, which never overflows."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
