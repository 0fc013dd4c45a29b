"""Views of a buffer in another shape, on the CPU; those on a GPU are in ``tests/cuda``."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.runtime.devices import BufferSpec
from fewstep.runtime.devices.cpu import CpuBuffer, CpuDevice
from fewstep.runtime.errors import DeviceError

_SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)


@given(shape=_SHAPES, wanted=_SHAPES)
def test_a_view_is_the_first_elements_or_refused(
    shape: tuple[int, ...], wanted: tuple[int, ...]
) -> None:
    array = np.arange(math.prod(shape), dtype=np.int32).reshape(shape)
    buffer = CpuBuffer(array)
    if math.prod(wanted) > math.prod(shape):
        with pytest.raises(DeviceError, match="a buffer of shape .* has no"):
            buffer.view(wanted)
        return
    found = buffer.view(wanted)
    assert (found.shape, found.dtype) == (wanted, np.dtype(np.int32))
    assert found.array.reshape(-1).tolist() == list(range(math.prod(wanted)))
    assert found.pointer == buffer.pointer or not found.array.size


def test_a_view_shares_its_memory_and_can_be_cut() -> None:
    array = np.zeros((4, 6), np.float32)
    view = CpuBuffer(array)[1].view((2, 3))
    view.array[:] = [[1, 2, 3], [4, 5, 6]]
    assert array[1].tolist() == [1, 2, 3, 4, 5, 6]
    assert not array[[0, 2, 3]].any()
    view[1:2].array[:] = 9
    assert array[1].tolist() == [1, 2, 3, 9, 9, 9]


def test_aligned_rows_lie_side_by_side_on_the_cpu() -> None:
    """Only a GPU pads them; programs refuse such views for both."""
    with CpuDevice().workspace({"x": BufferSpec((3, 5), "int32", "output", True)}) as workspace:
        assert workspace["x"].view((15,)).shape == (15,)


def test_a_copy_between_other_shapes_or_types_is_refused_and_changes_nothing() -> None:
    """As on a GPU: NumPy alone would broadcast."""
    device, target = CpuDevice(), np.zeros((2, 3), np.float32)
    for source in (np.ones((1, 3), np.float32), np.ones(3, np.float32), np.ones((2, 3), np.int32)):
        with pytest.raises(DeviceError, match=r"expected a float32 buffer of shape \(2, 3\), got"):
            device.copy(CpuBuffer(target), CpuBuffer(source))
    assert not target.any()
    device.copy(CpuBuffer(target), CpuBuffer(np.ones((2, 3), np.float32)))
    assert target.all()
