"""Normal numbers from Philox, by the method of Box and Muller (1958).

    n₀ = r·cos 2πu₂,  n₁ = r·sin 2πu₂,  r = √(−2 ln u₁)

The key is an image's seed and the counter (position, step, i, 1): no other random number of a
decode has a 1 there. Its four words give the numbers 4i … 4i + 3 of a token. Uniforms have 23 bits,
so that a normal number is at most 5.77 from 0. Sine and cosine are written out, for the reason of
``exponential.py``: the quarter of the turn exactly, then the polynomials of the Cephes library
(``sinf``, ``cosf``) within an eighth of a turn of it.
"""

from __future__ import annotations

import numpy as np

from fewstep.runtime.kernels.compiled import helper
from fewstep.runtime.kernels.logarithm import logarithm
from fewstep.runtime.kernels.philox import LOW, SHIFT, philox, unit

NUMBERS = 4
"""That one counter gives."""

_FOUR, _HALF, _ONE, _MINUS_TWO = (np.float32(each) for each in (4, 0.5, 1, -2))
_QUARTER_TURN = np.float32(1.57079637)
_S0 = np.float32(-1.9515295891e-4)
_S1 = np.float32(8.3321608736e-3)
_S2 = np.float32(-1.6666654611e-1)
_C0 = np.float32(2.443315711809948e-5)
_C1 = np.float32(-1.388731625493765e-3)
_C2 = np.float32(4.166664568298827e-2)
_GAUSSIAN = np.uint64(1)


@helper
def cosine_and_sine(turns: np.float32) -> tuple[np.float32, np.float32]:
    """Of so many turns, 0 … 1."""
    quarters = turns * _FOUR
    nearest = np.floor(quarters + _HALF)
    x = (quarters - nearest) * _QUARTER_TURN
    z = x * x
    sine = ((_S0 * z + _S1) * z + _S2) * z * x + x
    cosine = ((_C0 * z + _C1) * z + _C2) * z * z - _HALF * z + _ONE
    quarter = np.int32(nearest) & 3
    if quarter == 0:
        return cosine, sine
    if quarter == 1:
        return -sine, cosine
    if quarter == 2:
        return -cosine, -sine
    return sine, -cosine


@helper
def pair(first: np.uint64, second: np.uint64) -> tuple[np.float32, np.float32]:
    """Two normal numbers from two words."""
    radius = np.sqrt(_MINUS_TWO * logarithm(unit(first)))
    cosine, sine = cosine_and_sine(unit(second))
    return radius * cosine, radius * sine


@helper
def normals(
    seed: np.uint64, position: int, step: int, index: int
) -> tuple[np.float32, np.float32, np.float32, np.float32]:
    """The numbers 4·index … of a token at a step."""
    seed = np.uint64(seed)
    w0, w1, w2, w3 = philox(
        np.uint64(position),
        np.uint64(step),
        np.uint64(index),
        _GAUSSIAN,
        seed & LOW,
        seed >> SHIFT,
    )
    n0, n1 = pair(w0, w1)
    n2, n3 = pair(w2, w3)
    return n0, n1, n2, n3
