"""Counter-based random numbers: Philox4x32-10.

Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). The key is
an image's 64-bit seed and the counter is (position, step, 0, 0), so a random number depends on
nothing but the image's seed, the step and the position: not on the batch, the order or the device.
"""

from __future__ import annotations

import numpy as np

from fewstep.runtime.kernels.compiled import helper, inlined

_MULTIPLIER_0 = np.uint64(0xD2511F53)
_MULTIPLIER_1 = np.uint64(0xCD9E8D57)
_KEY_STEP_0 = np.uint64(0x9E3779B9)
_KEY_STEP_1 = np.uint64(0xBB67AE85)
LOW = np.uint64(0xFFFFFFFF)
SHIFT = np.uint64(32)
_ROUNDS = 10
_DROPPED_BITS = np.uint64(9)
_HALF, _SCALE = np.float32(0.5), np.float32(2.0**-23)

Word = np.uint64
"""A 32-bit word, held in 64 bits so that products are exact."""


@helper
def philox(
    c0: Word, c1: Word, c2: Word, c3: Word, k0: Word, k1: Word
) -> tuple[Word, Word, Word, Word]:
    """Four random words for a counter (c0 … c3) and a key (k0, k1), each below 2³²."""
    for _ in range(_ROUNDS):
        product0, product1 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
        c0 = (product1 >> SHIFT) ^ c1 ^ k0
        c1 = product1 & LOW
        c2 = (product0 >> SHIFT) ^ c3 ^ k1
        c3 = product0 & LOW
        k0, k1 = (k0 + _KEY_STEP_0) & LOW, (k1 + _KEY_STEP_1) & LOW
    return c0, c1, c2, c3


@inlined
def unit(word: Word) -> np.float32:
    """A number strictly between 0 and 1: the upper 23 bits plus a half, exact in float32."""
    return (np.float32(word >> _DROPPED_BITS) + _HALF) * _SCALE


@helper
def uniforms(seed: np.uint64, step: int, position: int) -> tuple[np.float32, np.float32]:
    """The two uniforms of a position: for its token, and for the Gumbel noise on its confidence."""
    zero = np.uint64(0)
    seed = np.uint64(seed)
    first, second, _, _ = philox(
        np.uint64(position), np.uint64(step), zero, zero, seed & LOW, seed >> SHIFT
    )
    return unit(first), unit(second)
