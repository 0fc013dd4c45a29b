"""What has changed since it was cached, and which positions are computed again.

Covered: ``similarity`` against cosines in float64, heads of any width, both halves in their places,
vectors of nothing, tiny and huge ones, and numbers that are not finite; ``select_rows`` against a
sort in plain Python: rows of their own order, equal numbers, no tokens that were decided last, all
positions and none of the others; both as LazyMAR uses them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fewstep.runtime.kernels.cpu import KERNELS
from fewstep.runtime.kernels.select_rows import select_rows
from fewstep.runtime.kernels.similarity import similarity

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]


# --- similarity


@st.composite
def _values(draw: st.DrawFn) -> tuple[Floats, Floats, int, int]:
    """Values and cached ones ``[N, P, W]``, heads, and rows of a half."""
    count, batch, halves, heads = (draw(st.integers(1, most)) for most in (6, 3, 2, 4))
    own = draw(st.sampled_from([1, 2, 7, 31, 32, 33, 64, 70]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = (count, batch * halves, heads * own)
    values = rng.standard_normal(shape)
    changed = draw(st.sampled_from([0.0, 1e-3, 1.0, 1e3]))
    cached = values + changed * rng.standard_normal(shape)
    return values.astype(np.float32), cached.astype(np.float32), heads, batch


def _alike(
    values: Floats, cached: Floats, heads: int, batch: int = 1, flag: int = 0
) -> tuple[Floats, int]:
    """``[B, H, N]``, and the flag."""
    count, rows, _ = values.shape
    found = np.full((batch, rows // batch, count), np.nan, np.float32)
    error = np.array([flag], np.int32)
    similarity(values=values, cached=cached, heads=heads, similarity=found, error=error)
    return found, int(error[0])


@given(case=_values())
def test_similarities_are_mean_cosines_of_the_heads(case: tuple[Floats, Floats, int, int]) -> None:
    values, cached, heads, batch = case
    count, rows, width = values.shape
    found, error = _alike(values, cached, heads, batch)
    wide, other = (
        each.astype(np.float64).reshape(count, rows, heads, width // heads)
        for each in (values, cached)
    )
    norms = np.linalg.norm(wide, axis=3) * np.linalg.norm(other, axis=3)
    expected = ((wide * other).sum(3) / norms).mean(2)
    assert error == 0
    for row in range(rows):
        np.testing.assert_allclose(found[row % batch, row // batch], expected[:, row], atol=1e-6)


@given(case=_values(), exponent=st.integers(-25, 25))
def test_neither_size_nor_sign_matters(
    case: tuple[Floats, Floats, int, int], exponent: int
) -> None:
    """Powers of two to the last bit."""
    values, cached, heads, batch = case
    found, _ = _alike(values, cached, heads, batch)
    size = np.float32(2.0**exponent)
    np.testing.assert_array_equal(_alike(size * values, cached, heads, batch)[0], found)
    np.testing.assert_array_equal(_alike(-values, size * cached, heads, batch)[0], -found)


@given(case=_values())
def test_a_row_alone_has_the_same_similarity(case: tuple[Floats, Floats, int, int]) -> None:
    values, cached, heads, batch = case
    together, _ = _alike(values, cached, heads, batch)
    for row in range(values.shape[1]):
        one, other = (each[:, row : row + 1].copy() for each in (values, cached))
        alone, _ = _alike(one, other, heads)
        np.testing.assert_array_equal(alone[0, 0], together[row % batch, row // batch])


def test_a_head_of_nothing_is_not_alike() -> None:
    """It counts as 0 beside the other heads."""
    values = np.ones((1, 1, 6), np.float32)
    cached = values.copy()
    cached[0, 0, 2:4] = 0
    found, error = _alike(values, cached, heads=3)
    assert found[0, 0, 0] == pytest.approx(2 / 3)
    assert error == 0
    found, error = _alike(np.zeros_like(values), values, heads=3)
    assert (found[0, 0, 0], error) == (0, 0)


@pytest.mark.parametrize("size", [1e-12, 1e-15, 1e18])
def test_tiny_and_huge_values_are_neither_an_error_nor_more_alike(size: float) -> None:
    values = np.full((1, 1, 8), size, np.float32)
    found, error = _alike(values, values, heads=2)
    assert 0 <= found[0, 0, 0] <= 1 + 1e-6
    assert error == 0


def test_squares_that_overflow_against_zeros_are_not_alike() -> None:
    """Infinity times zero would be no number."""
    values = np.full((1, 1, 4), 1e25, np.float32)
    found, error = _alike(values, np.zeros_like(values), heads=1)
    assert (found[0, 0, 0], error) == (0, 0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1.0])
def test_what_is_not_finite_sets_the_flag_and_counts_as_changed(
    value: float, cached: bool, size: float
) -> None:
    bad, good = np.ones((3, 2, 8), np.float32), np.ones((3, 2, 8), np.float32)
    good[1] = size
    bad[1, 1, 5] = value
    found, error = _alike(*((good, bad) if cached else (bad, good)), heads=2, batch=2)
    assert error == 1
    assert found[1, 0, 1] == 0
    np.testing.assert_allclose(found[:, 0, [0, 2]], 1, rtol=1e-6)


def test_the_flag_is_never_taken_down() -> None:
    ones = np.ones((1, 1, 1), np.float32)
    assert _alike(ones, ones, heads=1, flag=1)[1] == 1


# --- select_rows


@dataclass(frozen=True)
class Selection:
    """What is selected from, ``[B, H, N]``, and how much."""

    alike: Floats
    known: int
    previous: int
    following: int
    most: int

    def run(self) -> tuple[Ids, Ids]:
        """Selected ``[M, P]`` and rest ``[N − M, P]``."""
        batch, halves, count = self.alike.shape
        selected = np.full((self.most, batch * halves), -1, np.int32)
        rest = np.full((count - self.most, batch * halves), -1, np.int32)
        select_rows(
            similarity=self.alike,
            known=self.known,
            previous=self.previous,
            following=self.following,
            selected=selected,
            rest=rest,
        )
        return selected, rest

    def expected(self, row: int) -> list[int]:
        """All positions of a row, in their order."""
        batch, _, count = self.alike.shape
        alike = self.alike[row % batch, row // batch].tolist()
        following = [*range(self.known, self.known + self.following)]
        previous = [*range(self.known - self.previous, self.known)]
        others = sorted({*range(count)} - {*following, *previous})
        return following + previous + sorted(others, key=lambda at: alike[at])


# A few values, so that equal ones are common; both zeros are equal.
_SIMILARITIES = st.one_of(st.sampled_from([-1.0, -0.0, 0.0, 0.5, 1.0]), st.floats(-1, 1, width=32))


@st.composite
def _selections(draw: st.DrawFn) -> Selection:
    batch, halves, count = (draw(st.integers(1, most)) for most in (3, 2, 24))
    alike = draw(hnp.arrays(np.float32, (batch, halves, count), elements=_SIMILARITIES))
    known = draw(st.integers(0, count))
    previous, following = draw(st.integers(0, known)), draw(st.integers(0, count - known))
    most = draw(st.integers(previous + following, count))
    return Selection(alike, known, previous, following, most)


@given(case=_selections())
def test_agrees_with_sorting_in_python(case: Selection) -> None:
    every = np.concatenate(case.run())
    for row, found in enumerate(every.T.tolist()):
        assert found == case.expected(row)


@given(case=_selections())
def test_nothing_selected_is_more_alike_than_the_rest(case: Selection) -> None:
    """But for the tokens that are always selected."""
    selected, rest = case.run()
    always = case.previous + case.following
    batch = len(case.alike)
    for row in range(selected.shape[1]):
        alike = case.alike[row % batch, row // batch]
        assert alike[rest[:, row]].min(initial=2) >= alike[selected[always:, row]].max(initial=-2)


def test_equal_positions_stay_in_their_order() -> None:
    """Of six, position 2 was decided last and 3 comes next."""
    selected, rest = Selection(np.zeros((1, 1, 6), np.float32), 3, 1, 1, 4).run()
    assert selected[:, 0].tolist() == [3, 2, 0, 1]
    assert rest[:, 0].tolist() == [4, 5]


def test_everything_may_be_selected() -> None:
    alike = np.array([[[0.5, 0.25, 1, 0.75]]], np.float32)
    selected, rest = Selection(alike, 0, 0, 1, 4).run()
    assert selected[:, 0].tolist() == [0, 1, 3, 2]
    assert rest.shape == (0, 1)


def test_halves_and_images_are_columns_half_by_half() -> None:
    alike = np.zeros((2, 2, 4), np.float32)
    for image, half in np.ndindex(2, 2):
        alike[image, half, 2 * half + image] = -1
    selected, _ = Selection(alike, 0, 0, 0, 1).run()
    assert selected.tolist() == [[0, 1, 2, 3]]


def test_what_changed_most_is_computed_again() -> None:
    """Positions whose values were turned by more, of a row in which all are cached."""
    turned = np.array([0.2, 0.9, 0.0, 0.5, 0.3, 0.7])
    cached = np.tile(np.array([[1, 0]], np.float32), (6, 1, 3))
    both = np.stack([np.cos(turned), np.sin(turned)], 1).astype(np.float32)
    values = np.tile(both[:, None], (1, 1, 3))
    alike, _ = _alike(values, cached, heads=3)
    selected, rest = Selection(alike, 3, 1, 1, 4).run()
    assert selected[:, 0].tolist() == [3, 2, 1, 5]
    assert rest[:, 0].tolist() == [4, 0]


def test_they_are_launched_by_their_names() -> None:
    assert KERNELS["similarity"] is similarity
    assert KERNELS["select_rows"] is select_rows
