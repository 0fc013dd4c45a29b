"""The order in which tokens are decided, against a stable sort of independent words of Philox.

Covered: permutations with given tokens first, in raster order, whatever their flag; both halves
alike; that an order depends on nothing but the seed, and on given tokens only as they leave it;
equal words; ranks, neighbours and whole orders that are as frequent as of uniform permutations.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.runtime.kernels import reference

from fewstep.runtime.kernels.cpu import KERNELS
from fewstep.runtime.kernels.random_order import random_order

Ids = npt.NDArray[np.int32]
Flags = npt.NDArray[np.uint8]
Seeds = npt.NDArray[np.uint64]


@st.composite
def _cases(draw: st.DrawFn) -> tuple[Seeds, Flags]:
    batch, count = draw(st.integers(1, 3)), draw(st.integers(1, 70))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    part = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    flags = rng.integers(1, 256, (batch, count)) * (rng.random((batch, count)) < part)
    return rng.integers(0, 2**64, batch, np.uint64), flags.astype(np.uint8)


def _order(seeds: npt.ArrayLike, flags: npt.ArrayLike, halves: int = 1) -> Ids:
    """``[L, P]``."""
    known, given = np.asarray(seeds, np.uint64), np.asarray(flags, np.uint8)
    found = np.full((given.shape[1], halves * len(known)), -1, np.int32)
    random_order(seeds=known, given=given, order=found)
    return found


def _many(images: int, count: int) -> Ids:
    """Orders ``[count, images]`` of different seeds, no token given."""
    return _order(np.arange(images), np.zeros((images, count)))


# --- what an order is


@given(case=_cases())
def test_given_tokens_come_first_and_the_words_order_the_others(case: tuple[Seeds, Flags]) -> None:
    seeds, flags = case
    count = flags.shape[1]
    words = reference.philox(seeds[:, None], np.arange(count), 0, 0, 2)[0].astype(np.int64)
    expected = np.where(flags != 0, -1, words).argsort(axis=1, kind="stable")
    np.testing.assert_array_equal(_order(seeds, flags), expected.T)


@given(case=_cases())
def test_every_position_has_one_rank(case: tuple[Seeds, Flags]) -> None:
    seeds, flags = case
    order = _order(seeds, flags)
    for image in range(len(seeds)):
        kept = np.flatnonzero(flags[image])
        assert order[: len(kept), image].tolist() == kept.tolist()
        assert sorted(order[:, image]) == [*range(flags.shape[1])]


@given(case=_cases())
def test_both_halves_are_alike(case: tuple[Seeds, Flags]) -> None:
    np.testing.assert_array_equal(_order(*case, halves=2), np.tile(_order(*case), (1, 2)))


@given(case=_cases())
def test_an_image_alone_has_the_same_order(case: tuple[Seeds, Flags]) -> None:
    together = _order(*case)
    for image, (seed, flags) in enumerate(zip(*case, strict=True)):
        np.testing.assert_array_equal(_order([seed], [flags])[:, 0], together[:, image])


@given(case=_cases())
def test_given_tokens_leave_the_others_in_their_order(case: tuple[Seeds, Flags]) -> None:
    seeds, flags = case
    free, some = _order(seeds, np.zeros_like(flags)), _order(seeds, flags)
    for image in range(len(seeds)):
        left = [at for at in free[:, image] if not flags[image, at]]
        assert some[len(some) - len(left) :, image].tolist() == left


def test_of_equal_words_the_earlier_position_comes_first() -> None:
    """The seed is the first with such a pair."""
    seed, count = 12, 4_096
    words = reference.philox(seed, np.arange(count), 0, 0, 2)[0]
    values, counts = np.unique(words, return_counts=True)
    (pair,) = (np.flatnonzero(words == value) for value in values[counts > 1])
    ranks = np.argsort(_order([seed], np.zeros((1, count)))[:, 0])
    assert ranks[pair[1]] == ranks[pair[0]] + 1


def test_is_launched_by_its_name() -> None:
    assert KERNELS["random_order"] is random_order


# --- as uniform permutations


def test_every_order_of_four_tokens_is_as_frequent() -> None:
    images = 24_000
    found = _many(images, 4).T @ (64, 16, 4, 1)
    counts = [
        np.count_nonzero(found == np.dot(order, (64, 16, 4, 1)))
        for order in itertools.permutations(range(4))
    ]
    assert sum(counts) == images
    # Chi squared of 23 degrees of freedom exceeds 68 in one of 400,000 samples.
    assert sum((each - images / 24) ** 2 / (images / 24) for each in counts) < 68


def test_every_position_has_every_rank_as_often() -> None:
    images, count = 16_000, 32
    order = _many(images, count)
    found = np.stack([np.bincount(row, minlength=count) for row in order])
    expected = images / count
    # Rows and columns of the table have to add up: (count − 1)² degrees of freedom.
    freedom = (count - 1) ** 2
    chi = np.sum((found - expected) ** 2 / expected)
    assert abs(chi - freedom) < 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("distance", [1, 2, 16])
def test_neighbours_in_the_image_are_none_in_the_order(distance: int) -> None:
    """The ranks of two positions are as far apart as of any two: a third of all on average."""
    count, images = 256, 200
    ranks = _many(images, count).argsort(axis=0)
    apart = np.abs(ranks[distance:] - ranks[:-distance]).mean()
    assert apart == pytest.approx((count + 1) / 3, abs=5 * count / np.sqrt(18 * images * count))
