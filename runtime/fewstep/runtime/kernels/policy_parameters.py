"""From a policy network's raw actions to the parameters of a step.

AdaNAT (``PPO.py`` of the official repository), with the offsets o of the step, which are 0
without the heuristic residual (``schedule.policy_offsets``):

    mask ratio           = sigmoid (a₀ + o₀)
    masking temperature  = softplus(a₁ + o₁)
    sampling temperature = softplus(a₂ + o₂)
    guidance scale       = softplus(a₃ + o₃)

Shapes: action ``[B, 4]`` float32 → parameters ``[B, 4]`` float32, same columns. In float64,
rounded once.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fewstep.runtime.kernels.activations import sigmoid, softplus
from fewstep.runtime.kernels.compiled import kernel


@kernel
def policy_parameters(
    action: npt.NDArray[np.float32],
    ratio_offset: float,
    masking_offset: float,
    sampling_offset: float,
    guidance_offset: float,
    parameters: npt.NDArray[np.float32],
    error: npt.NDArray[np.int32],
) -> None:
    """Write the parameters ``[B, 4]`` of one step from ``action [B, 4]``.

    Args:
        action: ``[B, 4]``, as the policy network gives it.
        ratio_offset: added to column 0 before the activation.
        masking_offset: added to column 1.
        sampling_offset: added to column 2.
        guidance_offset: added to column 3.
        parameters: out, ``[B, 4]``.
        error: in and out, ``[1]``: becomes 1 if an action is not finite.
    """
    if not np.isfinite(action).all():
        error[0] = 1
    for image in range(len(action)):
        parameters[image, 0] = sigmoid(action[image, 0] + ratio_offset)
        parameters[image, 1] = softplus(action[image, 1] + masking_offset)
        parameters[image, 2] = softplus(action[image, 2] + sampling_offset)
        parameters[image, 3] = softplus(action[image, 3] + guidance_offset)
