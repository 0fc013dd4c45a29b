"""Orders in which positions are decided that are known before a generation.

``halton``: a quasi-random order that spreads over the image (Besnier et al., ICLR 2025), the same
for every image. ``halton-rolled``: begun at another position for every image. ``random``: a
permutation for every image, from Philox.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fewstep.runtime.families.masked.halton import halton_order
from fewstep.runtime.families.masked.settings import CONFIDENCE
from fewstep.runtime.philox_words import philox_words

ORDERS = (CONFIDENCE, "halton", "halton-rolled", "random")
_ROLL = 2**31  # of the random counter, where no step is
_ORDER = 2  # as the kernel ``random_order`` has it

Ids = npt.NDArray[np.int32]


def ranks(
    order: str,
    grid: tuple[int, int],
    seeds: npt.NDArray[np.uint64],
    given: npt.NDArray[np.bool_] | None = None,
) -> Ids:
    """When each position is decided, ``[B, N]``: 0 first; −1 where a token is given.

    Args:
        order: one of :data:`ORDERS`, but not by confidence.
        grid: rows and columns of positions.
        seeds: ``[B]``.
        given: ``[B, N]``, true where a token is given; nowhere if ``None``.
    """
    images, count = len(seeds), grid[0] * grid[1]
    if order == "random":
        words = philox_words(seeds, np.arange(count), 0, _ORDER)
        sequence = np.argsort(words, axis=1, kind="stable")
    else:
        sequence = np.broadcast_to(halton_order(*grid).astype(np.int64), (images, count))
    if order == "halton-rolled":
        rolls = philox_words(seeds, np.zeros(1), _ROLL, _ORDER)[:, 0] * count >> 32
        sequence = np.stack([np.roll(sequence[0], roll) for roll in rolls])
    result = np.empty((images, count), np.int32)
    if given is None:
        np.put_along_axis(result, sequence, np.arange(count, dtype=np.int32)[None], 1)
        return result
    free = ~np.take_along_axis(given, sequence, 1)
    np.put_along_axis(result, sequence, np.where(free, free.cumsum(1) - 1, -1).astype(np.int32), 1)
    return result
