"""Top-k confidence masking: keep the most confident tokens, mask the rest again.

With M tokens masked at the start, mask ratio γ and confidences sorted ascending:

    k    = min(⌊M·γ⌋, M − 1)
    next = mask where confidence < sorted[k], else the sampled token

Strictly less, as in the official AdaNAT sampler: k positions are masked, fewer on a tie with the
k-th. M·γ is taken in float32, as there. M is all N tokens there; in an edit it is those that are
decided anew, so that they are decided over all steps, as MaskGIT's are. Where ties are masked, as
in 1d-tokenizer and AutoNAT, confidence ≤ sorted[k − 1] is masked, which is k positions or more.

Where every step has to decide at least one token, with m tokens masked before the step, as in
MaskGIT (``parallel_decode.py`` of google-research/maskgit):

    k    = max(1, min(⌊M·γ⌋, m − 1))

So one token at least stays masked for the last step, even where it is the only one. In
maskgit-torch k = min(max(1, ⌊M·γ⌋), m − 1): the only one is decided.

Shapes: confidence, sampled and mask ``[B, N]``, parameters ``[B, 4]``, next tokens ``[B, N]`` or,
with guidance, ``[2B, N]`` (the same twice: conditional and unconditional half).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fewstep.runtime.kernels.compiled import helper, kernel

_KEPT, _DECIDED = 1, 2


@helper
def _smallest(values: npt.NDArray[np.float32], rank: int) -> np.float32:
    """The element of this rank, from 0, bit by bit on keys in the order of the floats.

    NaN comes last, as in ``numpy.sort``, which would take longer to compile than all else here.
    """
    keys = np.empty(len(values), np.uint32)
    bits = values.view(np.uint32)
    sign = np.uint32(1 << 31)
    for at in range(len(values)):
        if np.isnan(values[at]):
            keys[at] = np.uint32(0xFFFFFFFF)
        else:
            keys[at] = ~bits[at] if bits[at] & sign else bits[at] | sign
    found = np.zeros(1, np.uint32)
    for shift in range(31, -1, -1):
        larger = found[0] | np.uint32(1 << shift)
        below = 0
        for key in keys:
            below += key < larger
        if below <= rank:
            found[0] = larger
    found[0] = found[0] ^ sign if found[0] & sign else ~found[0]
    value: np.float32 = found.view(np.float32)[0]
    return value


@kernel
def remask(
    confidence: npt.NDArray[np.float32],
    sampled: npt.NDArray[np.int32],
    parameters: npt.NDArray[np.float32],
    mask: npt.NDArray[np.uint8],
    mask_token: int,
    at_least_one: int,
    next_tokens: npt.NDArray[np.int32],
    ties: int,
) -> None:
    """Write the next step's tokens.

    Args:
        confidence: ``[B, N]``; +∞ for positions that stay known.
        sampled: ids ``[B, N]``.
        parameters: ``[B, 4]``, the mask ratio in column 0.
        mask: ``[B, N]``; not 0 where the position was masked at the start.
        mask_token: id of a masked position.
        at_least_one: index in ``choices.AT_LEAST_ONE``.
        next_tokens: out, ids ``[B, N]`` or ``[2B, N]``.
        ties: index in ``choices.TIES``.
    """
    batch, count = confidence.shape
    for image in range(batch):
        most, started = 0, 0
        for position in range(count):
            most += confidence[image, position] != np.inf
            started += mask[image, position] != 0
        if not at_least_one:
            most = started
        masked = int(np.floor(np.float32(started) * parameters[image, 0]))
        if at_least_one == _DECIDED:
            masked = max(masked, 1)
        masked = min(masked, most - 1)
        if at_least_one == _KEPT:
            masked = max(masked, 1)
        kth = max(0, min(masked, count - 1))
        with_ties = ties != 0 and kth > 0
        threshold = _smallest(confidence[image], kth - 1 if with_ties else kth)
        for position in range(count):
            again = confidence[image, position] < threshold
            if with_ties:
                known = confidence[image, position] == np.inf
                again = confidence[image, position] <= threshold and not known
            token = mask_token if again else sampled[image, position]
            for half in range(image, len(next_tokens), batch):
                next_tokens[half, position] = token
