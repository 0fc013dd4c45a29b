"""Tokens to the order of their decision and back, against NumPy's own indexing.

Covered: one half and both, any channels, some tokens of an image and all, halves with orders of
their own, every bit of a number, and that one is the inverse of the other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.runtime.kernels.cpu import KERNELS
from fewstep.runtime.kernels.gather_tokens import gather_tokens
from fewstep.runtime.kernels.scatter_tokens import scatter_tokens

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]

_HALVES = st.sampled_from([1, 2])


@st.composite
def _tokens(draw: st.DrawFn) -> tuple[Floats, np.random.Generator]:
    """Tokens ``[B, N, C]``, and what else is drawn by."""
    shape = [draw(st.integers(1, most)) for most in (3, 12, 9)]
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return rng.standard_normal(shape).astype(np.float32), rng


def _permutations(rng: np.random.Generator, count: int, columns: int) -> Ids:
    return np.stack([rng.permutation(count) for _ in range(columns)], 1).astype(np.int32)


def _gathered(source: Floats, index: Ids) -> Floats:
    target = np.full((*index.shape, source.shape[2]), np.nan, np.float32)
    gather_tokens(source=source, index=index, target=target)
    return target


def _scattered(source: Floats, index: Ids, batch: int) -> Floats:
    target = np.full((batch, len(source), source.shape[2]), np.nan, np.float32)
    scatter_tokens(source=source, index=index, target=target)
    return target


@given(tokens=_tokens(), halves=_HALVES, count=st.integers(1, 15))
def test_gathered_tokens_are_those_that_are_named(
    tokens: tuple[Floats, np.random.Generator], halves: int, count: int
) -> None:
    """As often as they are named, and by either half on its own."""
    source, rng = tokens
    batch, every, _ = source.shape
    index = rng.integers(0, every, (count, halves * batch)).astype(np.int32)
    columns = np.concatenate([source] * halves)
    expected = np.take_along_axis(columns, index.T[:, :, None].astype(np.int64), 1)
    np.testing.assert_array_equal(_gathered(source, index), expected.transpose(1, 0, 2))


@given(tokens=_tokens(), halves=_HALVES)
def test_scattered_tokens_are_in_the_places_that_are_named(
    tokens: tuple[Floats, np.random.Generator], halves: int
) -> None:
    """Of two halves the first counts; nothing of the other is read, its index neither."""
    first, rng = tokens
    count, batch, channels = first.shape
    source = np.concatenate([first, np.full((count, batch * (halves - 1), channels), np.nan)], 1)
    index = _permutations(rng, count, batch)
    wrong = np.full((count, batch * (halves - 1)), -(2**30))
    both = np.concatenate([index, wrong], 1).astype(np.int32)
    found = _scattered(source.astype(np.float32), both, batch)
    for image in range(batch):
        expected = np.empty((count, channels), np.float32)
        expected[index[:, image]] = first[:, image]
        np.testing.assert_array_equal(found[image], expected)


@given(tokens=_tokens(), halves=_HALVES)
def test_there_and_back(tokens: tuple[Floats, np.random.Generator], halves: int) -> None:
    source, rng = tokens
    batch, count, _ = source.shape
    index = np.tile(_permutations(rng, count, batch), (1, halves))
    ordered = _gathered(source, index)
    np.testing.assert_array_equal(_scattered(ordered, index, batch), source)
    for half in np.split(ordered, halves, axis=1):
        np.testing.assert_array_equal(half, ordered[:, :batch])


def test_every_bit_arrives() -> None:
    """Also of numbers that are none."""
    bits = np.random.default_rng(0).integers(0, 2**32, (2, 8, 512), np.uint32)
    bits[0, 0, :4] = (0x80000000, 0x00000001, 0x7F800001, 0xFFC12345)
    source, index = bits.view(np.float32), np.tile(np.arange(8, dtype=np.int32)[:, None], (1, 2))
    ordered = _gathered(source, index)
    assert ordered.tobytes() == bits.transpose(1, 0, 2).tobytes()
    assert _scattered(ordered, index, 2).tobytes() == bits.tobytes()


@pytest.mark.parametrize("kernel", [gather_tokens, scatter_tokens])
def test_they_are_launched_by_their_names(kernel: Any) -> None:
    assert KERNELS[kernel.__name__] is kernel
