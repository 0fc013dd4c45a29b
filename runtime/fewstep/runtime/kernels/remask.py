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


def remask(
    *,
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
    masked = np.floor(np.float32(count) * parameters[:, 0])
    # A NaN from a policy counts as 0 here; sample_tokens has reported it by then.
    kth = np.clip(np.nan_to_num(masked), 0, count - 1).astype(np.intp)
    threshold = np.sort(confidence, axis=1)[np.arange(batch), kth]
    tokens = np.where(confidence < threshold[:, None], np.int32(mask_token), sampled)
    for start in range(0, len(next_tokens), batch):
        next_tokens[start : start + batch] = tokens
