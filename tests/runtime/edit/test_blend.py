"""Seams: weights against distances that are counted one by one, and what blending leaves alone."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fewstep.runtime.edit.blend import blended, seam


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 5), st.integers(0, 2**32 - 1))
def test_a_seam_falls_with_the_distance(height: int, width: int, reach: int, seed: int) -> None:
    anew = np.random.default_rng(seed).random((height, width)) < 0.2
    rows, columns = np.indices(anew.shape)
    found = seam(anew, reach)
    for row, column in np.ndindex(anew.shape):
        far = np.maximum(abs(rows - row), abs(columns - column))[anew]
        distance = far.min() if far.size else height + width + reach
        wanted = max(0.0, 1 - distance / (reach + 1))
        np.testing.assert_allclose(found[row, column], wanted, atol=1e-6)


def test_blending_keeps_what_counts_nothing_and_takes_what_counts_all() -> None:
    rng = np.random.default_rng(0)
    kept, new = rng.integers(0, 256, (2, 3, 6, 6, 3), np.uint8)
    anew = np.zeros((6, 6), bool)
    anew[:2, :2] = True
    weights = seam(anew, 1)
    found = blended(kept, new, weights)
    np.testing.assert_array_equal(found[:, weights == 1], new[:, :2, :2].reshape(3, 4, 3))
    np.testing.assert_array_equal(found[:, weights == 0], kept[:, weights == 0])
    half = (kept.astype(int) + new)[:, weights == 0.5] / 2
    np.testing.assert_allclose(found[:, weights == 0.5], half, atol=0.5)
