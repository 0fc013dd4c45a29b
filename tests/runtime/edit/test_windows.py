"""Windows over a picture that is larger than one.

Covered: that they cover what is unknown, for any region; that each is known by half where that is
possible; where they lie; how growth is said, and refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.runtime.edit.windows import growth_of, windows
from fewstep.runtime.errors import RequestError

_SIZE = (8, 8)


def _grown(left: int = 0, top: int = 0, right: int = 0, bottom: int = 0) -> npt.NDArray[np.bool_]:
    unknown = np.ones((8 + top + bottom, 8 + left + right), bool)
    unknown[top : top + 8, left : left + 8] = False
    return unknown


@given(st.integers(8, 30), st.integers(8, 30), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_windows_cover_what_is_unknown_each_with_a_part_of_it(
    height: int, width: int, part: float, seed: int
) -> None:
    unknown = np.random.default_rng(seed).random((height, width)) < part
    left = unknown.copy()
    for window in windows(unknown, _SIZE, (2, 2), (0, 0)):
        rows, columns = window.place
        assert (rows.stop - rows.start, columns.stop - columns.start) == _SIZE
        assert min(rows.start, columns.start) >= 0
        assert (rows.stop <= height, columns.stop <= width) == (True, True)
        assert window.paints.any()
        assert left[window.place][window.paints].all()
        left[window.place] &= ~window.paints
    assert not left.any()


@given(
    st.integers(8, 40),
    st.integers(8, 40),
    st.lists(st.tuples(*[st.integers(0, 39)] * 4), min_size=1, max_size=4),
    st.sampled_from([1, 2, 4]),
)
def test_whatever_is_painted_beside_known_pixels_has_a_seam_with_them(
    height: int, width: int, boxes: list[tuple[int, ...]], step: int
) -> None:
    """Every known pixel that touches one that is painted lies in the same window; and, if there are
    three steps in a window, all that are nearer than a step do."""
    unknown = np.zeros((height, width), bool)
    for left, top, right, bottom in boxes:
        unknown[top : top + bottom, left : left + right] = True
    near = step if step < 4 else 1
    for window in windows(unknown, _SIZE, (step, step), (0, 0)):
        known, paints = ~unknown, np.zeros_like(unknown)
        known[window.place], paints[window.place] = False, window.paints
        for row, column in np.argwhere(paints):
            rows, columns = (slice(max(0, at - near), at + near + 1) for at in (row, column))
            assert not known[rows, columns].any()
        unknown[window.place] &= ~window.paints


@given(*[st.integers(0, 20)] * 4)
def test_a_picture_that_grows_is_known_by_half_in_every_window(
    left: int, top: int, right: int, bottom: int
) -> None:
    unknown = _grown(left, top, right, bottom)
    for window in windows(unknown, _SIZE, (2, 2), (top, left)):
        assert unknown[window.place].sum() <= 32
        unknown[window.place] &= ~window.paints


def test_windows_slide_outward_by_half_of_their_size() -> None:
    found = [each.place[1].start for each in windows(_grown(right=10), _SIZE, (2, 2), (0, 0))]
    assert found == [4, 8, 10]


def test_windows_lie_where_tokens_of_the_picture_do() -> None:
    found = [*windows(_grown(left=3), _SIZE, (2, 2), (0, 3))]
    assert [each.place[1].start for each in found] == [0]
    found = [*windows(_grown(left=7), _SIZE, (2, 2), (0, 7))]
    assert [each.place[1].start for each in found] == [3, 0]


def test_a_picture_of_which_nothing_is_known_begins_in_the_middle() -> None:
    first = next(windows(np.ones((24, 24), bool), _SIZE, (2, 2), (0, 0)))
    assert first.place == (slice(8, 16), slice(8, 16))


def test_a_part_of_one_picture_is_one_window() -> None:
    unknown = np.zeros(_SIZE, bool)
    unknown[3, 4] = True
    (window,) = windows(unknown, _SIZE, (2, 2), (0, 0))
    assert window.place == (slice(0, 8), slice(0, 8))
    assert window.paints.sum() == 1
    assert unknown.sum() == 1  # it is the caller's


def test_growth_is_said_as_a_mapping_or_a_text() -> None:
    wanted = {"left": 64, "top": 32, "right": 0, "bottom": 0}
    assert growth_of({"left": 64, "top": 32}) == wanted
    assert growth_of(" left:64, top: 32") == wanted


@pytest.mark.parametrize(
    ("outpaint", "said"),
    [
        ({}, "0 on every side"),
        ({"left": 0}, "0 on every side"),
        ("", "unknown side to outpaint ''"),
        ({"up": 3}, "unknown side to outpaint 'up'; expected one of: bottom, left, right, top"),
        ({"left": -1}, "at least 0, as {'left': 64, 'top': 32}, got {'left': -1}"),
        ({"left": 1.5}, "got {'left': 1.5}"),
        ("left:x", "at least 0, as left:64,top:32, got 'left:x'"),
        ("left:4 right:4", "as left:64,top:32, got 'left:4 right:4'"),
        ("left", "got 'left'"),
        ("left:1,left:2", "says left twice"),
        (64, "pixels by side"),
    ],
)
def test_growth_that_cannot_be_is_refused(outpaint: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        growth_of(outpaint)
