"""From a policy network's raw actions to the parameters of a scale of VAR.

AdaGen (``LeapLabTHU/AdaGen``), with offsets o that make an action of 0 the ordinary settings:

    guidance             = softplus(a₀ + o₀) · s/(S − 1)     at scale s of S
    top-k                = 4096 · sigmoid(a₁ + o₁)           whatever the size of the codebook
    top-p                = sigmoid(a₂ + o₂)
    sampling temperature = softplus(a₃ + o₃)

Shapes: action ``[B, 4]`` float32 → parameters ``[B, 4]`` float32, same columns. In float64,
rounded once: top-k is truncated later, so that a zero action at o₁ = logit(900/4096) must give
900 and not the number below it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fewstep.runtime.kernels.activations import sigmoid, softplus
from fewstep.runtime.kernels.compiled import kernel

TOP_K_RANGE = 4096
"""What the top-k of a policy ends at."""


@kernel
def sampling_parameters(
    action: npt.NDArray[np.float32],
    guidance_offset: float,
    top_k_offset: float,
    top_p_offset: float,
    temperature_offset: float,
    guidance_scale: float,
    parameters: npt.NDArray[np.float32],
    error: npt.NDArray[np.int32],
) -> None:
    """Write the parameters ``[B, 4]`` of one scale from ``action [B, 4]``.

    Args:
        action: ``[B, 4]``, as the policy network gives it.
        guidance_offset: added to column 0 before the activation.
        top_k_offset: added to column 1.
        top_p_offset: added to column 2.
        temperature_offset: added to column 3.
        guidance_scale: multiplies the guidance; 0 at the first scale, 1 at the last.
        parameters: out, ``[B, 4]``.
        error: in and out, ``[1]``: becomes 1 if an action is not finite.
    """
    if not np.isfinite(action).all():
        error[0] = 1
    for image in range(len(action)):
        guidance = softplus(action[image, 0] + guidance_offset)
        parameters[image, 0] = guidance * guidance_scale
        parameters[image, 1] = TOP_K_RANGE * sigmoid(action[image, 1] + top_k_offset)
        parameters[image, 2] = sigmoid(action[image, 2] + top_p_offset)
        parameters[image, 3] = softplus(action[image, 3] + temperature_offset)
