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
        words = _words(seeds, np.arange(count), 0)
        sequence = np.argsort(words, axis=1, kind="stable")
    else:
        sequence = np.broadcast_to(halton_order(*grid).astype(np.int64), (images, count))
    if order == "halton-rolled":
        rolls = _words(seeds, np.zeros(1), _ROLL)[:, 0] * count >> 32
        sequence = np.stack([np.roll(sequence[0], roll) for roll in rolls])
    result = np.empty((images, count), np.int32)
    if given is None:
        np.put_along_axis(result, sequence, np.arange(count, dtype=np.int32)[None], 1)
        return result
    free = ~np.take_along_axis(given, sequence, 1)
    np.put_along_axis(result, sequence, np.where(free, free.cumsum(1) - 1, -1).astype(np.int32), 1)
    return result


def _words(
    seeds: npt.NDArray[np.uint64], positions: npt.ArrayLike, step: int
) -> npt.NDArray[np.int64]:
    """The first words of Philox4x32-10 for the counters (position, step, 0, 2), ``[B, n]``.

    As :mod:`fewstep.runtime.kernels.philox`, for arrays: it runs where no kernel for the CPU does.
    """
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    shape = (len(seeds), np.size(positions))
    c0 = np.broadcast_to(np.asarray(positions, np.uint64), shape)
    c1 = np.full(shape, step, np.uint64)
    c2, c3 = np.zeros(shape, np.uint64), np.full(shape, _ORDER, np.uint64)
    k0, k1 = seeds[:, None] & low, seeds[:, None] >> half
    for _ in range(10):
        first, second = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1 = (second >> half) ^ c1 ^ k0, second & low
        c2, c3 = (first >> half) ^ c3 ^ k1, first & low
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return c0.astype(np.int64)
