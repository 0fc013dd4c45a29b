"""From a policy network's raw actions to the parameters of a step.

AdaNAT (``PPO.py`` of the official repository), with the residuals only if ``residual`` is set,
step t of T and r = (t + 1 − 10⁻³) / T:

    mask ratio           = sigmoid (a₀ + logit(cos(π·r/2)))
    masking temperature  = softplus(a₁ + softplus⁻¹(1 − r))
    sampling temperature = softplus(a₂ + softplus⁻¹(1))
    guidance scale       = softplus(a₃ + softplus⁻¹((t + 10⁻³) / T))

Shapes: action ``[B, 4]`` float32 → parameters ``[B, 4]`` float32, same columns.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt


def residuals(step: int, steps: int) -> npt.NDArray[np.float32]:
    """What is added to the four actions of ``step`` so that zero actions follow the schedule."""
    r = (step + 1 - 1e-3) / steps
    ratio = math.cos(math.pi * r / 2)
    values = (
        math.log(ratio / (1 - ratio)),
        _inverse_softplus(1 - r),
        _inverse_softplus(1.0),
        _inverse_softplus((step + 1e-3) / steps),
    )
    return np.array(values, np.float32)


def policy_parameters(
    *,
    action: npt.NDArray[np.float32],
    step: int,
    steps: int,
    residual: int,
    parameters: npt.NDArray[np.float32],
) -> None:
    """Write the parameters ``[B, 4]`` of one step from ``action [B, 4]``."""
    raw = action + residuals(step, steps) if residual else action
    parameters[:, 0] = 0.5 * (np.tanh(0.5 * raw[:, 0]) + 1)  # sigmoid that never overflows
    parameters[:, 1:] = np.logaddexp(0, raw[:, 1:])


def _inverse_softplus(value: float) -> float:
    return math.log(math.expm1(value))
