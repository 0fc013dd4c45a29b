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

from fewstep.runtime.kernels.compiled import inlined, kernel

_MARGIN = 1e-3


@kernel
def policy_parameters(
    action: npt.NDArray[np.float32],
    step: int,
    steps: int,
    residual: int,
    parameters: npt.NDArray[np.float32],
    error: npt.NDArray[np.int32],
) -> None:
    """Write the parameters ``[B, 4]`` of one step from ``action [B, 4]``.

    Args:
        action: ``[B, 4]``, as the policy network gives it.
        step: index of the step, 0 … ``steps`` − 1.
        steps: number of steps.
        residual: 1 to add the heuristic schedule, 0 not to.
        parameters: out, ``[B, 4]``.
        error: in and out, ``[1]``: becomes 1 if an action is not finite.
    """
    offsets = np.zeros(4, np.float64)
    if residual:
        r = (step + 1 - _MARGIN) / steps
        ratio = math.cos(math.pi * r / 2)
        offsets[0] = math.log(ratio / (1 - ratio))
        offsets[1] = _inverse_softplus(1 - r)
        offsets[2] = _inverse_softplus(1.0)
        offsets[3] = _inverse_softplus((step + _MARGIN) / steps)
    if not np.isfinite(action).all():
        error[0] = 1
    for image in range(len(action)):
        ratio_logit = action[image, 0] + offsets[0]
        parameters[image, 0] = 0.5 * (math.tanh(0.5 * ratio_logit) + 1)  # never overflows
        for column in range(1, 4):
            parameters[image, column] = _softplus(action[image, column] + offsets[column])


@inlined
def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


@inlined
def _inverse_softplus(value: float) -> float:
    return math.log(math.expm1(value))
