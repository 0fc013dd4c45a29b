"""Rows copied over and over: which row goes where, and which stays as it is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.runtime.kernels.copy_rows import copy_rows


@given(
    groups=st.integers(1, 4),
    period=st.integers(1, 5),
    rows=st.integers(1, 12),
    data=st.data(),
    dtype=st.sampled_from(["float32", "float16"]),
)
def test_rows_from_the_first_on_are_those_of_the_source_in_turn(
    groups: int, period: int, rows: int, data: st.DataObject, dtype: str
) -> None:
    first = data.draw(st.integers(0, rows))
    source = np.random.default_rng(0).normal(size=(groups, period, 3)).astype(dtype)
    target = np.full((groups, rows, 3), np.nan, dtype)
    copy_rows(source=source, target=target, first=first)
    assert np.isnan(target[:, :first]).all()
    for row in range(first, rows):
        np.testing.assert_array_equal(target[:, row], source[:, row % period])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_bit_arrives(dtype: str) -> None:
    source = np.arange(2**16, dtype=np.uint16).view(dtype).reshape(1, 1, -1)
    target = np.zeros((1, 2, source.shape[2]), dtype)
    copy_rows(source, target, 1)
    assert target[0, 1].tobytes() == source.tobytes()
    assert not target[0, 0].any()
