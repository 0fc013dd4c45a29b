"""Rows of caches put together and put back, against NumPy's own indexing.

Covered: several groups, columns with positions of their own, groups that are longer than their rows
on either side, rows and numbers that have to stay, every bit of a number, and that one is the
inverse of the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.runtime.kernels.cpu import KERNELS
from fewstep.runtime.kernels.gather_rows import gather_rows
from fewstep.runtime.kernels.scatter_rows import scatter_rows

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Case:
    """Numbers ``[A, N, P, W]``, index ``[M, P]``, and how much longer groups are on both sides."""

    numbers: Floats
    index: Ids
    longer: int
    shorter: int

    @property
    def whole(self) -> Floats:
        """All rows, each group followed by numbers of nobody."""
        return _padded(self.numbers, self.longer)

    @property
    def named(self) -> Floats:
        """The rows that the index names, ``[A, M, P, W]``."""
        columns = np.arange(self.index.shape[1])
        return np.asarray(self.numbers[:, self.index, columns])

    def with_named_times(self, factor: int) -> Floats:
        """All rows, those that the index names multiplied."""
        found = self.numbers.copy()
        for row, places in enumerate(self.index.T):
            found[:, places, row] *= factor
        return _padded(found, self.longer)

    def empty(self) -> Floats:
        """What takes the rows that are named, full of −1."""
        return np.full_like(_padded(self.named, self.shorter), -1)


def _padded(numbers: Floats, more: int) -> Floats:
    flat = numbers.reshape(len(numbers), -1)
    return np.pad(flat, ((0, 0), (0, more)), constant_values=-1)


@st.composite
def _cases(draw: st.DrawFn) -> Case:
    groups, count, rows, width = (draw(st.integers(1, most)) for most in (4, 9, 4, 7))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    some = draw(st.integers(1, count))
    index = np.stack([rng.permutation(count)[:some] for _ in range(rows)], 1)
    numbers = rng.standard_normal((groups, count, rows, width)).astype(np.float32)
    longer, shorter = draw(st.integers(0, 9)), draw(st.integers(0, 9))
    return Case(numbers, index.astype(np.int32), longer, shorter)


@given(case=_cases())
def test_gathered_rows_are_those_that_are_named(case: Case) -> None:
    """What follows the rows of a group stays."""
    target = case.empty()
    width = case.numbers.shape[3]
    gather_rows(source=case.whole, index=case.index, width=width, target=target)
    np.testing.assert_array_equal(target, _padded(case.named, case.shorter))


@given(case=_cases())
def test_scattered_rows_come_to_the_places_that_are_named(case: Case) -> None:
    """The other rows stay, and what follows the rows of a group."""
    target, source = case.whole, _padded(-case.named, case.shorter)
    scatter_rows(source=source, index=case.index, width=case.numbers.shape[3], target=target)
    np.testing.assert_array_equal(target, case.with_named_times(-1))


@given(case=_cases())
def test_there_and_back(case: Case) -> None:
    width, some, target = case.numbers.shape[3], case.empty(), case.with_named_times(0)
    gather_rows(case.whole, case.index, width, some)
    scatter_rows(some, case.index, width, target)
    np.testing.assert_array_equal(target, case.whole)


def test_gathered_rows_may_be_named_twice() -> None:
    source = np.arange(6, dtype=np.float32).reshape(1, 6)  # three positions of one row of two
    target = np.zeros((1, 8), np.float32)
    gather_rows(source, np.array([[2], [0], [2], [2]], np.int32), 2, target)
    assert target.tolist() == [[4, 5, 0, 1, 4, 5, 4, 5]]


def test_every_bit_arrives() -> None:
    """Also of numbers that are none."""
    bits = np.random.default_rng(0).integers(0, 2**32, (2, 6 * 32), np.uint32)
    bits[0, :4] = (0x80000000, 0x00000001, 0x7F800001, 0xFFC12345)
    source, index = bits.view(np.float32), np.arange(6, dtype=np.int32).reshape(3, 2) // 2
    for kernel in (gather_rows, scatter_rows):
        target = np.zeros_like(source)
        kernel(source, index, 32, target)
        assert target.tobytes() == bits.tobytes()


@pytest.mark.parametrize("kernel", [gather_rows, scatter_rows])
def test_ids_are_moved_too(kernel: Any) -> None:
    ids, target = np.array([[7, -1, 2**31 - 1]], np.int32), np.zeros((1, 3), np.int32)
    kernel(ids, np.array([[2], [1], [0]], np.int32), 1, target)
    assert target.tolist() == [[2**31 - 1, -1, 7]]


@pytest.mark.parametrize("kernel", [gather_rows, scatter_rows])
def test_they_are_launched_by_their_names(kernel: Any) -> None:
    assert KERNELS[kernel.__name__] is kernel
