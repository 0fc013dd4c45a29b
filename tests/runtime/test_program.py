"""Programs as data: views and their places, what a program refuses, what it tells of itself.

Places are compared with NumPy's, and on both kinds of layout, with rows that follow each other and
with rows that are aligned.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.runtime.programs import halving

from fewstep.runtime.devices import BufferSpec
from fewstep.runtime.devices.cpu import CpuBuffer
from fewstep.runtime.program import Copy, Launch, Program, Run, View, views_of

_X = View("x")
_BUFFERS = {"x": BufferSpec((4, 6, 5), "int32"), "one": BufferSpec((), "float64")}


# --- views


@pytest.mark.parametrize(
    ("view", "part"),
    [
        (_X, np.s_[:]),
        (_X[2], np.s_[2]),
        (_X[1:3], np.s_[1:3]),
        (_X[:3], np.s_[:3]),
        (_X[2:2], np.s_[2:2]),
        (_X[3][2:5], np.s_[3, 2:5]),
    ],
)
def test_a_view_is_the_part_of_an_array_that_is_written_the_same(view: View, part: Any) -> None:
    array = np.arange(120, dtype=np.int32).reshape(4, 6, 5)
    found = view.of(CpuBuffer(array))
    assert isinstance(found, CpuBuffer)
    assert np.shares_memory(found.array, array) or not found.array.size
    np.testing.assert_array_equal(found.array, array[part])
    assert view.shape_in(_BUFFERS) == array[part].shape
    assert view.bytes_in(_BUFFERS) == array[part].nbytes


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        (_X.reshaped(2, 7), np.arange(14).reshape(2, 7)),
        (_X[1].reshaped(3, 9), np.arange(30, 57).reshape(3, 9)),
        (_X[1].reshaped(3, 9)[1:3], np.arange(39, 57).reshape(2, 9)),
        (_X[3].reshaped(30), np.arange(90, 120)),
    ],
)
def test_another_shape_is_of_the_first_elements(view: View, expected: Any) -> None:
    array = np.arange(120, dtype=np.int32).reshape(4, 6, 5)
    found = view.of(CpuBuffer(array))
    assert isinstance(found, CpuBuffer)
    np.testing.assert_array_equal(found.array, expected)
    assert view.shape_in(_BUFFERS) == expected.shape


def test_a_whole_scalar_can_be_seen() -> None:
    assert View("one").shape_in(_BUFFERS) == ()
    assert View("one").bytes_in(_BUFFERS) == 8
    assert View("one").wrong_in(_BUFFERS) == ""


@pytest.mark.parametrize(
    "cut",
    [
        lambda: _X[1][2],
        lambda: _X[1:3][0],
        lambda: _X.reshaped(8)[0],
        lambda: _X[1:3][0:1],
        lambda: _X[::2],
        lambda: _X[1:],
    ],
)
def test_what_a_view_cannot_say_is_refused(cut: Any) -> None:
    with pytest.raises(ValueError, match="cannot be cut|part already"):
        cut()


def test_views_are_equal_by_their_parts_and_hashable() -> None:
    assert _X[2][0:3] == View("x", 2, None, (0, 3))
    assert len({_X, _X[1], _X[0:1], _X[1].reshaped(5), View("x")}) == 4


@st.composite
def _drawn(draw: st.DrawFn) -> tuple[BufferSpec, View]:
    """A buffer, aligned or not, and a view within it."""
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=2, max_size=3)))
    spec = BufferSpec(
        shape, draw(st.sampled_from(["uint8", "float32"])), "output", draw(st.booleans())
    )
    view, rest = View("x"), shape
    if draw(st.booleans()):
        view, rest = view[draw(st.integers(0, shape[0] - 1))], shape[1:]
    if draw(st.booleans()):
        most = math.prod(rest)
        rest = (draw(st.integers(1, most)),)
        view = view.reshaped(*rest)
    if draw(st.booleans()):
        first = draw(st.integers(0, rest[0] - 1))
        view = view[first : draw(st.integers(first, rest[0]))]
    return spec, view


@given(_drawn())
def test_an_offset_is_where_the_part_is_in_memory(drawn: tuple[BufferSpec, View]) -> None:
    """Against bytes laid out by hand, row by row at the stride of the buffer."""
    spec, view = drawn
    stride = spec.row_stride
    row = math.prod(spec.shape[1:])
    ids = np.arange(math.prod(spec.shape)).reshape(spec.shape)  # of the elements
    if (wrong := view.wrong_in({"x": spec})) or 0 in view.shape_in({"x": spec}):
        assert wrong in ("", "padding lies between the rows of the buffer")
        return
    found = view.of(CpuBuffer(ids))
    assert isinstance(found, CpuBuffer)
    places = [(int(i) // row) * stride + (int(i) % row) * spec.itemsize for i in found.array.flat]
    assert view.offset_in({"x": spec}) == places[0]
    assert np.diff(places).tolist() == [spec.itemsize] * (len(places) - 1)  # contiguous


def test_rows_that_are_apart_are_refused_only_together() -> None:
    apart = {"x": BufferSpec((3, 5), "int32", "output", aligned_rows=True)}
    for view in (_X, _X[0:2], _X.reshaped(2, 5)):
        assert "padding lies between" in view.wrong_in(apart)
    for view in (_X[2], _X[1:2], _X[1][2:4], _X[1].reshaped(2, 2)):
        assert view.wrong_in(apart) == ""
    side_by_side = {"x": BufferSpec((3, 64), "int32", "output", aligned_rows=True)}
    assert all(each.wrong_in(side_by_side) == "" for each in (_X, _X[0:2], _X.reshaped(2, 5)))
    alone = {"x": BufferSpec((1, 5), "int32", "output", aligned_rows=True)}
    assert _X.reshaped(5).wrong_in(alone) == ""


# --- programs


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (View("y"), "no such buffer"),
        (_X[4], r"the shape \(4, 6, 5\)"),
        (View("x", -1), r"the shape \(4, 6, 5\)"),
        (View("one", 0), r"the shape \(\)"),
        (_X[3:5], r"only the rows of \(4, 6, 5\)"),
        (_X[9:10], r"only the rows of \(4, 6, 5\)"),
        (View("x", rows=(3, 2)), "only the rows"),
        (View("x", rows=(-2, -1)), "only the rows"),
        (_X[0][5:7], r"only the rows of \(6, 5\)"),
        (_X[0].reshaped(31), "only 30 elements"),
        (_X.reshaped(11, 11), "only 120 elements"),
    ],
)
def test_views_of_what_there_is_not_are_refused(view: View, message: str) -> None:
    for op in (Run("g", {"a": view}), Copy(_X, view), Launch("k", {"a": view}, ("a",))):
        with pytest.raises(ValueError, match=message):
            Program(_BUFFERS, (op,))


def test_engines_read_and_write_at_aligned_places_only() -> None:
    """As TensorRT asks for; kernels and copies may work anywhere."""
    buffers = {"x": BufferSpec((8, 32), "float32"), "y": BufferSpec((8, 32), "float32")}
    Program(buffers, (Run("g", {"a": _X[2:3]}), Copy(View("y")[1], _X[1])))
    for view in (_X[1], _X[3:4], _X[0].reshaped(4, 8)[1:2]):
        with pytest.raises(ValueError, match="does not start at a multiple of 256 bytes"):
            Program(buffers, (Run("g", {"a": view}),))
    aligned = {"x": BufferSpec((8, 33), "float32", aligned_rows=True)}
    Program(aligned, (Run("g", {"a": _X[1]}), Run("g", {"a": _X[3:4]})))


def test_a_constant_can_be_seen_like_a_buffer() -> None:
    program = halving(2, 3)
    assert "offset" not in program.buffers
    assert program.every_buffer["offset"] == BufferSpec((1,), "float32")
    assert all(shapes["offset"] == (1,) for _, shapes in program.runs())


def test_what_a_program_tells_of_itself() -> None:
    program = halving(5, 3)
    image = 4 * 5 * 12
    assert program.bytes == image + 4 + 4 * image + 5 * 12 + 2 * image
    assert program.graphs == ("twice", "halve")  # that of the constant first
    assert program.engine_stages == {"halve"}
    runs = list(program.runs())
    assert [run.step for run, _ in runs] == [0, 1, 2]
    for _, shapes in runs:
        assert shapes == {"image": (5, 3, 2, 2), "offset": (1,), "half": (5, 3, 2, 2)}


def test_the_views_of_every_kind_of_operation() -> None:
    assert views_of(Run("g", {"a": _X[0], "b": _X[1]})) == (_X[0], _X[1])
    launch = Launch("k", {"a": _X[0], "n": 3, "f": 0.5, "b": _X[1:2]}, writes=("b",))
    assert views_of(launch) == (_X[0], _X[1:2])
    assert launch.views == {"a": _X[0], "b": _X[1:2]}
    assert views_of(Copy(_X[2], _X[1])) == (_X[2], _X[1])
