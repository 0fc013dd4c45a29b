"""The Halton order: beside the official one, beside another way to compute it, and on any grid."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from fewstep.runtime.families.masked.halton import halton_order

_RECORDED = Path(__file__).parents[3] / "data" / "halton_net.npz"


def _radical_inverse(index: int, base: int) -> Fraction:
    """By its definition: digits behind the point, the last one first."""
    value, place = Fraction(0), Fraction(1, base)
    while index:
        value, index, place = value + index % base * place, index // base, place / base
    return value


@pytest.mark.parametrize(
    ("name", "side"), [("halton_mask", 4), ("halton_mask_16", 16), ("halton_mask_24", 24)]
)
def test_is_the_official_order(name: str, side: int) -> None:
    with np.load(_RECORDED, allow_pickle=False) as archive:
        rows, columns = archive[f"aux/{name}"].astype(np.int32).T
    np.testing.assert_array_equal(halton_order(side, side), rows * side + columns)


@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (12, 7), (1, 9), (9, 1), (27, 27), (16, 24)])
def test_is_that_of_exact_fractions(rows: int, columns: int) -> None:
    order: dict[int, None] = {}
    index = 0
    while len(order) < rows * columns:
        index += 1
        row = int(rows * _radical_inverse(index, 2))
        column = int(columns * _radical_inverse(index, 3))
        order.setdefault(row * columns + column)
    assert halton_order(rows, columns).tolist() == list(order)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 2), (20, 36), (50, 50), (64, 64)])
def test_has_every_position_once(rows: int, columns: int) -> None:
    """10,000 points, which the official code takes, leave cells of the last two out."""
    order = halton_order(rows, columns)
    assert order.dtype == np.int32
    np.testing.assert_array_equal(np.sort(order), np.arange(rows * columns))


def test_starts_are_spread_over_the_image() -> None:
    """Of the first positions every quarter of the grid has about as many."""
    first = halton_order(16, 16)[:36]
    quarters = first // 16 // 8 * 2 + first % 16 // 8
    counts = np.bincount(quarters, minlength=4)
    assert counts.min() >= 8
    assert counts.max() <= 10


@pytest.mark.parametrize(("rows", "columns"), [(0, 4), (4, 0), (-1, 4)])
def test_an_empty_grid_is_refused(rows: int, columns: int) -> None:
    with pytest.raises(ValueError, match=f"1 column, got {rows} × {columns}"):
        halton_order(rows, columns)
