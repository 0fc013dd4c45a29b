"""log in float32 for positive normal arguments, from additions and multiplications alone.

x = m·2ⁿ with √½ ≤ m < √2, then the degree-8 polynomial of the Cephes library (``logf``) in m − 1.
Relative error below 2·10⁻⁷, also near 1, where the logarithm itself vanishes. Written out for the
reason of ``exponential.py``: the same bits wherever these operations are IEEE float32.
"""

from __future__ import annotations

import numpy as np

from fewstep.runtime.kernels.compiled import helper

_SQRT_HALF = np.float32(0.707106781186547524)
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(-2.12194440e-4)
_HALF, _ONE = np.float32(0.5), np.float32(1)
_P0 = np.float32(7.0376836292e-2)
_P1 = np.float32(-1.1514610310e-1)
_P2 = np.float32(1.1676998740e-1)
_P3 = np.float32(-1.2420140846e-1)
_P4 = np.float32(1.4249322787e-1)
_P5 = np.float32(-1.6668057665e-1)
_P6 = np.float32(2.0000714765e-1)
_P7 = np.float32(-2.4999993993e-1)
_P8 = np.float32(3.3333331174e-1)


@helper
def logarithm(x: np.float32) -> np.float32:
    """``log(x)`` for finite x ≥ 2⁻¹²⁶."""
    bits = np.float32(x).view(np.int32)
    n = np.float32((bits >> 23) - 126)
    m = np.int32((bits & 0x7FFFFF) | 0x3F000000).view(np.float32)  # ½ ≤ m < 1
    if m < _SQRT_HALF:
        n -= _ONE
        m += m
    m -= _ONE
    square = m * m
    p = _P0 * m + _P1
    p = p * m + _P2
    p = p * m + _P3
    p = p * m + _P4
    p = p * m + _P5
    p = p * m + _P6
    p = p * m + _P7
    p = p * m + _P8
    y = p * m * square
    y += n * _LN2_LOW
    y -= _HALF * square
    return np.float32(m + y + n * _LN2_HIGH)
