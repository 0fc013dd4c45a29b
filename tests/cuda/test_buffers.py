"""Parts of buffers in GPU memory: rows, other shapes, and rows that are aligned.

Every part is written through, and the whole buffer read back on the host.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.runtime.devices import ALIGNMENT, BufferSpec
from fewstep.runtime.devices.cuda import CudaDevice
from fewstep.runtime.errors import DeviceError
from fewstep.runtime.program import View


@pytest.fixture(scope="module")
def module_device(cubin: bytes) -> Iterator[CudaDevice]:
    """A device for many examples."""
    opened = CudaDevice(cubin)
    yield opened
    opened.close()


@st.composite
def _parts(draw: st.DrawFn) -> tuple[BufferSpec, View]:
    """A buffer of aligned rows or not, and a view that no program refuses."""
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=2, max_size=3)))
    aligned = draw(st.booleans())
    spec = BufferSpec(shape, draw(st.sampled_from(["uint8", "float32"])), "output", aligned)
    view, rest = View("x"), shape
    if draw(st.booleans()):
        view, rest = view[draw(st.integers(0, shape[0] - 1))], shape[1:]
    if draw(st.booleans()):
        columns = draw(st.integers(1, math.prod(rest)))
        rest = (math.prod(rest) // columns, columns)
        view = view.reshaped(*rest)
    if draw(st.booleans()):
        first = draw(st.integers(0, rest[0] - 1))
        view = view[first : draw(st.integers(first + 1, rest[0]))]
    return spec, view


@settings(max_examples=80)
@given(_parts(), st.booleans())
def test_what_is_written_to_a_part_is_there_and_nowhere_else(
    module_device: CudaDevice, part: tuple[BufferSpec, View], mapped: bool
) -> None:
    spec, view = part
    if view.wrong_in({"x": spec}):
        return
    module_device.integrated = mapped
    ids = np.arange(math.prod(spec.shape)).reshape(spec.shape)
    with module_device.workspace({"x": spec}) as workspace:
        for row in range(spec.shape[0]):
            module_device.upload(workspace["x"][row], np.zeros(spec.shape[1:], spec.dtype))
        found = view.of(workspace["x"])
        assert found.shape == view.shape_in({"x": spec})
        assert found.pointer == workspace["x"].pointer + view.offset_in({"x": spec})
        module_device.upload(found, np.ones(found.shape, spec.dtype))
        assert (module_device.download(found) == 1).all()
        workspace.fetch()
        module_device.synchronize()
        written = set(ids[workspace.read("x") == 1].tolist())
    expected = ids if view.index is None else ids[view.index]
    if view.shape is not None:
        expected = expected.reshape(-1)[: math.prod(view.shape)].reshape(view.shape)
    if view.rows is not None:
        expected = expected[slice(*view.rows)]
    assert written == set(expected.reshape(-1).tolist())


@pytest.mark.parametrize("shape", [(3, 5), (2, 128)])
def test_aligned_rows_start_at_aligned_places(device: CudaDevice, shape: tuple[int, int]) -> None:
    with device.workspace({"x": BufferSpec(shape, "uint8", "output", True)}) as workspace:
        for row in range(shape[0]):
            assert workspace["x"][row].pointer % ALIGNMENT == 0
            assert workspace["x"][row : row + 1].pointer == workspace["x"][row].pointer


def test_rows_with_padding_between_them_have_no_other_shape(device: CudaDevice) -> None:
    specs = {
        "apart": BufferSpec((3, 5), "float32", "output", aligned_rows=True),
        "side by side": BufferSpec((3, 64), "float32", "output", aligned_rows=True),
        "alone": BufferSpec((1, 5), "float32", "output", aligned_rows=True),
    }
    with device.workspace(specs) as workspace:
        for rows in (workspace["apart"], workspace["apart"][0:2]):
            with pytest.raises(DeviceError, match="have padding between them"):
                rows.view((2, 5))
        assert workspace["apart"][1].view((5, 1)).shape == (5, 1)
        assert workspace["apart"][1:2].view((5,)).shape == (5,)
        assert workspace["side by side"].view((192,)).shape == (192,)
        assert workspace["alone"].view((5,)).shape == (5,)


def test_more_than_there_is_cannot_be_seen(device: CudaDevice) -> None:
    with device.workspace({"x": BufferSpec((3, 4), "int32")}) as workspace:
        with pytest.raises(DeviceError, match=r"a buffer of shape \(3, 4\) has no \(13,\)"):
            workspace["x"].view((13,))
        with pytest.raises(DeviceError, match=r"a buffer of shape \(4,\) has no \(3, 2\)"):
            workspace["x"][2].view((3, 2))
        with pytest.raises(DeviceError, match="must be contiguous"):
            workspace["x"][::2]


def test_a_part_without_rows_has_a_place_and_no_size(device: CudaDevice) -> None:
    """As the cache of a decode before its first step."""
    with device.workspace({"x": BufferSpec((3, 4), "int32")}) as workspace:
        found = workspace["x"][0:0]
        assert (found.shape, found.bytes) == ((0, 4), 0)
        assert found.pointer == workspace["x"].pointer
