"""Top-k confidence masking: keep the most confident tokens, mask the rest again.

With N tokens, mask ratio γ and confidences sorted ascending:

    k    = min(⌊N·γ⌋, N − 1)
    next = mask where confidence < sorted[k], else the sampled token

Strictly less, as in the official AdaNAT sampler: k positions are masked, fewer on a tie with the
k-th. N·γ is taken in float32, as there.

Shapes: confidence and sampled ``[B, N]``, parameters ``[B, 4]``, next tokens ``[B, N]`` or, with
guidance, ``[2B, N]`` (the same twice: conditional and unconditional half).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fewstep.runtime.kernels.compiled import kernel


@kernel
def remask(
    confidence: npt.NDArray[np.float32],
    sampled: npt.NDArray[np.int32],
    parameters: npt.NDArray[np.float32],
    mask_token: int,
    next_tokens: npt.NDArray[np.int32],
) -> None:
    """Write the next step's tokens.

    Args:
        confidence: ``[B, N]``; +∞ for positions that stay known.
        sampled: ids ``[B, N]``.
        parameters: ``[B, 4]``, the mask ratio in column 0.
        mask_token: id of a masked position.
        next_tokens: out, ids ``[B, N]`` or ``[2B, N]``.
    """
    batch, count = confidence.shape
    for image in range(batch):
        masked = int(np.floor(np.float32(count) * parameters[image, 0]))
        kth = max(0, min(masked, count - 1))
        threshold = np.sort(confidence[image])[kth]
        for position in range(count):
            again = confidence[image, position] < threshold
            token = mask_token if again else sampled[image, position]
            for half in range(image, len(next_tokens), batch):
                next_tokens[half, position] = token
