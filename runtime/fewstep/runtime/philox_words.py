"""Philox4x32-10 for whole arrays, where no kernel runs: orders and choices that the host draws."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def philox_words(
    seeds: npt.NDArray[np.uint64], positions: npt.ArrayLike, step: int, purpose: int
) -> npt.NDArray[np.int64]:
    """The first words for the counters (position, step, 0, purpose), as
    :mod:`fewstep.runtime.kernels.philox` has them.

    Args:
        seeds: ``[B]``, the keys.
        positions: n of them.
        step: second word of the counters.
        purpose: their last word: 2 of orders, 3 of variations.

    Returns:
        ``[B, n]``, 0 … 2³² − 1.
    """
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    shape = (len(seeds), np.size(positions))
    c0 = np.broadcast_to(np.asarray(positions, np.uint64), shape)
    c1 = np.full(shape, step, np.uint64)
    c2, c3 = np.zeros(shape, np.uint64), np.full(shape, purpose, np.uint64)
    k0, k1 = seeds[:, None] & low, seeds[:, None] >> half
    for _ in range(10):
        first, second = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1 = (second >> half) ^ c1 ^ k0, second & low
        c2, c3 = (first >> half) ^ c3 ^ k1, first & low
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return c0.astype(np.int64)
