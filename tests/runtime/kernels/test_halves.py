"""The difference of both halves of a batch, and both halves from one of them and a difference.

Covered: ``subtract`` and ``add_half`` against NumPy, one rounding each and every shape; that the
half that is given stays to the last bit; both one after the other; numbers that are not finite;
buffers that lie in other buffers, as in a decode.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fewstep.runtime.kernels.add_half import add_half
from fewstep.runtime.kernels.cpu import KERNELS
from fewstep.runtime.kernels.subtract import subtract

Floats = npt.NDArray[np.float32]

_LARGE = 2.0**120
_NUMBERS = st.floats(-_LARGE, _LARGE, width=32)


@st.composite
def _pairs(draw: st.DrawFn) -> tuple[Floats, Floats]:
    """Two arrays ``[K, B, W]``."""
    shape = tuple(draw(st.integers(1, most)) for most in (3, 3, 5))
    first, second = (draw(hnp.arrays(np.float32, shape, elements=_NUMBERS)) for _ in range(2))
    return first, second


def _difference(a: Floats, b: Floats) -> Floats:
    out = np.full_like(a, np.nan)
    subtract(a=a, b=b, out=out)
    return out


def _both(own: Floats, difference: Floats) -> Floats:
    count, batch, width = own.shape
    both = np.full((count, 2 * batch, width), np.nan, np.float32)
    add_half(own=own, difference=difference, both=both)
    return both


@given(pair=_pairs())
def test_differences_are_rounded_once(pair: tuple[Floats, Floats]) -> None:
    a, b = pair
    expected = (a.astype(np.longdouble) - b).astype(np.float32)
    np.testing.assert_array_equal(_difference(a, b), expected)


@given(pair=_pairs())
def test_one_half_stays_and_the_other_is_rounded_once(pair: tuple[Floats, Floats]) -> None:
    own, difference = pair
    given, other = np.split(_both(own, difference), 2, axis=1)
    assert given.tobytes() == own.tobytes()
    expected = (own.astype(np.longdouble) + difference).astype(np.float32)
    np.testing.assert_array_equal(other, expected)


@given(pair=_pairs())
def test_a_difference_brings_the_other_half_back(pair: tuple[Floats, Floats]) -> None:
    """To the rounding of the difference and of the sum."""
    own, other = pair
    found = _both(own, _difference(other, own))[:, own.shape[1] :]
    error = np.abs(found.astype(np.float64) - other)
    assert (error <= 2.0**-23 * (np.abs(own.astype(np.float64)) + np.abs(other))).all()


def test_a_difference_of_nothing_makes_both_halves_alike() -> None:
    own = np.random.default_rng(0).standard_normal((4, 3, 8)).astype(np.float32)
    first, second = np.split(_both(own, np.zeros_like(own)), 2, axis=1)
    np.testing.assert_array_equal(second, first)


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4), (1, 1, 1, 1)])
def test_differences_are_of_any_shape(shape: tuple[int, ...]) -> None:
    a, b = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    np.testing.assert_array_equal(_difference(a, b), a - b)


@pytest.mark.filterwarnings("error")
def test_what_is_not_finite_goes_its_way_without_a_warning() -> None:
    largest = np.finfo(np.float32).max
    a = np.array([[[np.inf, np.nan, np.inf, largest]]], np.float32)
    b = np.array([[[1, 1, np.inf, -largest]]], np.float32)
    np.testing.assert_array_equal(_difference(a, b), [[[np.inf, np.nan, np.nan, np.inf]]])
    np.testing.assert_array_equal(_both(a, -b)[0, 1], [np.inf, np.nan, np.nan, np.inf])


def test_only_the_rows_that_are_given_are_written() -> None:
    """Output and difference are rows of buffers for more tokens."""
    every = np.arange(24, dtype=np.float32).reshape(6, 2, 2)
    memory = np.full((5, 4, 2), -1, np.float32)
    add_half(own=every[:3], difference=every[2:5], both=memory[1:4])
    np.testing.assert_array_equal(memory[[0, 4]], -1)
    np.testing.assert_array_equal(memory[1:4, :2], every[:3])
    np.testing.assert_array_equal(memory[1:4, 2:], every[:3] + every[2:5])


@pytest.mark.parametrize("kernel", [subtract, add_half])
def test_they_are_launched_by_their_names(kernel: Any) -> None:
    assert KERNELS[kernel.__name__] is kernel
