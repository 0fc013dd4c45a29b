"""Counter-based random numbers: Philox4x32-10.

Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). The key is
an image's 64-bit seed and the counter is (position, step, 0, 0), so a random number depends on
nothing but the image's seed, the step and the position: not on the batch, the order or the device.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (np.uint32(0x9E3779B9), np.uint32(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_ROUNDS = 10

Words = npt.NDArray[np.uint32]


def philox(counter: tuple[Words, Words, Words, Words], key: tuple[Words, Words]) -> list[Words]:
    """Four random words per counter; all arguments broadcast against each other.

    Args:
        counter: four arrays of uint32.
        key: two arrays of uint32.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0 = c0.astype(np.uint64) * _MULTIPLIERS[0]
        product1 = c2.astype(np.uint64) * _MULTIPLIERS[1]
        high0 = (product0 >> _SHIFT).astype(np.uint32)
        high1 = (product1 >> _SHIFT).astype(np.uint32)
        low0 = (product0 & _LOW).astype(np.uint32)
        low1 = (product1 & _LOW).astype(np.uint32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + _KEY_STEPS[0], k1 + _KEY_STEPS[1]
    return [c0, c1, c2, c3]


def uniforms(
    seed: int, step: int, positions: npt.NDArray[np.integer]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Two uniforms per position, strictly between 0 and 1, for sampling and for Gumbel noise.

    The upper 23 bits of a word, plus a half: every value is exact in float32 and none is 0 or 1.
    """
    position = positions.astype(np.uint32)
    zero = np.zeros(1, np.uint32)
    low, high = np.array([seed & 0xFFFFFFFF], np.uint32), np.array([seed >> 32], np.uint32)
    words = philox((position, np.full(1, step, np.uint32), zero, zero), (low, high))
    first, second = (
        ((word >> np.uint32(9)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23)
        for word in words[:2]
    )
    return first, second
