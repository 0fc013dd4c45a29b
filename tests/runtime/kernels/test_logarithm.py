"""log in float32 against NumPy in float64: relative error, also near 1 where log vanishes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.runtime.kernels.logarithm import logarithm


@given(x=st.floats(2**-126, 2**127, width=32))
def test_relative_error_is_below_the_documented_one(x: float) -> None:
    _assert_close(np.float32(x))


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("exponent", range(1, 24))
def test_arguments_near_one_keep_their_relative_precision(sign: int, exponent: int) -> None:
    _assert_close(np.float32(1 + sign * 2.0**-exponent))


def test_log_of_one_is_zero() -> None:
    assert logarithm(np.float32(1)) == 0


@given(word=st.integers(0, 2**23 - 1))
def test_every_uniform_has_a_finite_gumbel_noise(word: int) -> None:
    uniform = np.float32((word + 0.5) * 2.0**-23)
    noise = -logarithm(np.float32(-logarithm(uniform)))
    expected = -np.log(-np.log(np.float64(uniform)))
    assert abs(noise - expected) <= 3e-7 * max(1, abs(expected))


def _assert_close(x: np.float32) -> None:
    expected = np.log(np.float64(x))
    assert abs(logarithm(x) - expected) <= 2e-7 * abs(expected)
