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
    for rows, columns in windows(unknown, _SIZE, (2, 2), (0, 0)):
        assert (rows.stop - rows.start, columns.stop - columns.start) == _SIZE
        assert min(rows.start, columns.start) >= 0
        assert (rows.stop <= height, columns.stop <= width) == (True, True)
        assert left[rows, columns].any()
        left[rows, columns] = False
    assert not left.any()


@given(*[st.integers(0, 20)] * 4)
def test_a_picture_that_grows_is_known_by_half_in_every_window(
    left: int, top: int, right: int, bottom: int
) -> None:
    unknown = _grown(left, top, right, bottom)
    for place in windows(unknown, _SIZE, (2, 2), (top, left)):
        assert unknown[place].sum() <= 32
        unknown[place] = False


def test_windows_slide_outward_by_half_of_their_size() -> None:
    found = [place[1].start for place in windows(_grown(right=10), _SIZE, (2, 2), (0, 0))]
    assert found == [4, 8, 10]


def test_windows_lie_where_tokens_of_the_picture_do() -> None:
    found = [*windows(_grown(left=3), _SIZE, (2, 2), (0, 3))]
    assert [place[1].start for place in found] == [0]
    found = [*windows(_grown(left=7), _SIZE, (2, 2), (0, 7))]
    assert [place[1].start for place in found] == [3, 0]


def test_a_picture_of_which_nothing_is_known_begins_in_the_middle() -> None:
    first = next(windows(np.ones((24, 24), bool), _SIZE, (2, 2), (0, 0)))
    assert first == (slice(8, 16), slice(8, 16))


def test_a_part_of_one_picture_is_one_window() -> None:
    unknown = np.zeros(_SIZE, bool)
    unknown[3, 4] = True
    assert [*windows(unknown, _SIZE, (2, 2), (0, 0))] == [(slice(0, 8), slice(0, 8))]
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
        ({"left": -1}, "at least 0, got -1 for left"),
        ({"left": 1.5}, "got 1.5 for left"),
        ("left:x", "got 'x' for left"),
        ("left", "got '' for left"),
        ("left:1,left:2", "says left twice"),
        (64, "pixels by side"),
    ],
)
def test_growth_that_cannot_be_is_refused(outpaint: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        growth_of(outpaint)
