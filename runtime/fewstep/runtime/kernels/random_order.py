"""The order in which the tokens of an image are decided: those that are given, then the rest.

    order[r] = the position with rank r

Given positions come first, in their order in the image. The others follow in a random order, that
of the first words of Philox for the counters (position, 0, 0, 2): a permutation drawn uniformly,
but for words that are equal (then the earlier position comes first; one pair of 4,096 in 512
images).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fewstep.runtime.kernels.compiled import kernel
from fewstep.runtime.kernels.philox import LOW, SHIFT, philox

_ORDER = np.uint64(2)
_POSITION_BITS = np.uint64(16)
_LAST = np.uint64(1 << 48)


@kernel
def random_order(
    seeds: npt.NDArray[np.uint64], given: npt.NDArray[np.uint8], order: npt.NDArray[np.int32]
) -> None:
    """Write the order of every image.

    Args:
        seeds: ``[B]``.
        given: ``[B, L]``, not 0 where a token is given.
        order: out, ``[L, P]``, P = B or 2·B (the same twice).
    """
    batch, count = given.shape
    keys = np.empty(count, np.uint64)
    zero = np.uint64(0)
    for image in range(batch):
        seed = np.uint64(seeds[image])
        for position in range(count):
            at = np.uint64(position)
            word, _, _, _ = philox(at, zero, zero, _ORDER, seed & LOW, seed >> SHIFT)
            drawn = _LAST | (word << _POSITION_BITS) | at
            keys[position] = at if given[image, position] else drawn
        for position in range(count):
            rank = 0
            for other in range(count):
                rank += keys[other] < keys[position]
            for row in range(image, order.shape[1], batch):
                order[rank, row] = position
