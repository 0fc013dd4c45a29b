"""Orders of positions that are known before a generation: each is a permutation of what is masked,
depends on nothing but the image, and is the one that its name says."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.runtime.families.masked.halton import halton_order
from fewstep.runtime.families.masked.order import ORDERS, ranks
from fewstep.runtime.kernels.cpu import KERNELS

_KNOWN = ORDERS[1:]


def _seeds(*values: int) -> npt.NDArray[np.uint64]:
    return np.array(values, np.uint64)


@pytest.mark.parametrize("order", _KNOWN)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), seed=st.integers(0, 2**64 - 1))
def test_every_position_has_a_turn(order: str, rows: int, columns: int, seed: int) -> None:
    found = ranks(order, (rows, columns), _seeds(seed, 5))
    assert found.dtype == np.int32
    for row in found:
        assert sorted(row) == list(range(rows * columns))


@pytest.mark.parametrize("order", _KNOWN)
def test_given_tokens_have_no_turn_and_the_others_keep_their_order(order: str) -> None:
    seeds = _seeds(3, 2**63)
    where = np.random.default_rng(0).random((2, 35)) < [[0.3], [0.9]]
    free, found = ranks(order, (5, 7), seeds), ranks(order, (5, 7), seeds, where)
    assert (found[where] == -1).all()
    for whole, left, kept in zip(free, found, ~where, strict=True):
        assert sorted(left[kept]) == list(range(int(kept.sum())))
        assert np.argsort(left[kept]).tolist() == np.argsort(whole[kept]).tolist()


@pytest.mark.parametrize("order", _KNOWN)
def test_an_image_does_not_depend_on_its_batch(order: str) -> None:
    together = ranks(order, (6, 6), _seeds(1, 2, 3))
    for image, seed in enumerate((1, 2, 3)):
        assert (ranks(order, (6, 6), _seeds(seed))[0] == together[image]).all()


def test_halton_is_the_same_for_every_image() -> None:
    first, second = ranks("halton", (8, 8), _seeds(1, 2))
    assert (first == second).all()
    assert (first[halton_order(8, 8)] == np.arange(64)).all()


def test_rolled_orders_begin_anywhere_and_go_on_alike() -> None:
    sequence, begins = halton_order(4, 4), set()
    for row in ranks("halton-rolled", (4, 4), np.arange(200, dtype=np.uint64)):
        own = np.argsort(row)
        begin = int(np.flatnonzero(sequence == own[0])[0])
        assert (np.roll(sequence, -begin) == own).all()
        begins.add(begin)
    assert begins == set(range(16))


def test_random_orders_are_those_of_the_kernel() -> None:
    seeds, found = _seeds(0, 7, 2**64 - 1), np.empty((35, 3), np.int32)
    KERNELS["random_order"](seeds, np.zeros((3, 35), np.uint8), found)
    own = ranks("random", (5, 7), seeds)
    np.testing.assert_array_equal(np.argsort(own, axis=1), found.T)


def test_random_orders_differ_from_image_to_image() -> None:
    found = ranks("random", (4, 4), np.arange(2000, dtype=np.uint64))
    assert len({tuple(row) for row in found}) == 2000
    # The first position of 16 is each as often as any: 125 times, to 5 standard errors.
    counts = np.bincount(found.argmin(1), minlength=16)
    assert abs(counts - 125).max() < 5 * np.sqrt(125 * 15 / 16)
