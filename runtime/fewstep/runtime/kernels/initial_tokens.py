"""The tokens that a generation starts from: given ones where they are kept, masked elsewhere.

    tokens = mask token where ``mask`` is set, else the given token

With every position masked this starts a new image; with some positions kept it starts an edit:
``sample_tokens`` and ``remask`` never touch a position that is not masked.

Shapes: given ``[B, N]`` int32, mask ``[B, N]`` uint8 → tokens ``[B, N]`` or, with guidance,
``[2B, N]`` int32 (the same twice).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fewstep.runtime.kernels.compiled import kernel


@kernel
def initial_tokens(
    given: npt.NDArray[np.int32],
    mask: npt.NDArray[np.uint8],
    codebook_size: int,
    mask_token: int,
    tokens: npt.NDArray[np.int32],
    error: npt.NDArray[np.int32],
) -> None:
    """Write the tokens of the first step.

    Args:
        given: ids ``[B, N]``, read where ``mask`` is 0.
        mask: ``[B, N]``; not 0 marks the positions to generate.
        codebook_size: number of codes; a kept token is below it.
        mask_token: id of a masked position.
        tokens: out, ids ``[B, N]`` or ``[2B, N]``.
        error: in and out, ``[1]``: becomes 1 if a kept token is no code; it counts as masked.
    """
    batch, count = given.shape
    for row in range(len(tokens)):
        image = row % batch
        for position in range(count):
            token = given[image, position]
            if mask[image, position] != 0:
                token = mask_token
            elif token < 0 or token >= codebook_size:
                token = mask_token
                error[0] = 1
            tokens[row, position] = token
