"""The CPU device: buffers share memory with their rows, copies are checked, closing ends it."""

from __future__ import annotations

import time

import numpy as np
import pytest

from fewstep.runtime.device.cpu import CpuBuffer, CpuDevice, host_array
from fewstep.runtime.errors import DeviceError


class _Foreign:
    """A buffer of some other device."""

    shape, dtype, pointer = (1,), np.dtype(np.int32), 0

    def __getitem__(self, rows: int | slice) -> _Foreign:
        return self


@pytest.fixture
def device() -> CpuDevice:
    return CpuDevice()


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint64, np.uint8])
def test_buffers_have_the_shape_type_and_address_asked_for(
    device: CpuDevice, dtype: type[np.generic]
) -> None:
    buffer = device.empty((2, 3), dtype)
    assert (buffer.shape, buffer.dtype) == ((2, 3), np.dtype(dtype))
    assert buffer.pointer == buffer.array.ctypes.data


def test_upload_and_download_copy(device: CpuDevice) -> None:
    buffer, values = device.empty((2, 2), np.int32), np.array([[1, 2], [3, 4]], np.int32)
    device.upload(buffer, values)
    values[:] = 0
    out = device.download(buffer)
    assert out.tolist() == [[1, 2], [3, 4]]
    out[:] = 9
    assert device.download(buffer).tolist() == [[1, 2], [3, 4]]


def test_rows_share_memory_and_know_their_address(device: CpuDevice) -> None:
    buffer = device.empty((4, 3), np.float32)
    device.upload(buffer, np.zeros((4, 3), np.float32))
    device.upload(buffer[1], np.ones(3, np.float32))
    device.upload(buffer[2:4], np.full((2, 3), 2, np.float32))
    assert device.download(buffer).tolist() == [[0] * 3, [1] * 3, [2] * 3, [2] * 3]
    assert buffer[2].pointer - buffer.pointer == 2 * 3 * 4
    assert buffer[2:].shape == (2, 3)


def test_strided_views_are_no_buffers(device: CpuDevice) -> None:
    with pytest.raises(DeviceError, match="must be contiguous"):
        device.empty((4, 3), np.float32)[::2]
    with pytest.raises(DeviceError, match="must be contiguous"):
        CpuBuffer(np.zeros((3, 2)).T)


@pytest.mark.parametrize("shape", [(3,), (1,), (2, 1), ()])
def test_upload_never_broadcasts(device: CpuDevice, shape: tuple[int, ...]) -> None:
    with pytest.raises(DeviceError, match=r"expected values of shape \(2,\), got"):
        device.upload(device.empty((2,), np.int32), np.zeros(shape, np.int32))


def test_buffers_of_another_device_are_refused(device: CpuDevice) -> None:
    for use in (device.download, lambda b: device.upload(b, np.zeros(1, np.int32)), host_array):
        with pytest.raises(DeviceError, match="expected a buffer of the cpu device, got _Foreign"):
            use(_Foreign())


def test_out_of_memory_advises_a_smaller_batch(device: CpuDevice) -> None:
    with pytest.raises(DeviceError, match="use a smaller batch"):
        device.empty((1 << 55,), np.float32)


def test_launch_runs_a_kernel_on_the_arrays(device: CpuDevice) -> None:
    image, pixels = device.empty((1, 3, 1, 1), np.float32), device.empty((1, 1, 1, 3), np.uint8)
    device.upload(image, np.array([0, 0.2, 1], np.float32).reshape(1, 3, 1, 1))
    error = device.empty((1,), np.int32)
    device.launch("to_pixels", image=image, pixels=pixels, error=error)
    assert device.download(pixels).ravel().tolist() == [0, 51, 255]


def test_captured_sequence_runs_once_per_call(device: CpuDevice) -> None:
    calls: list[int] = []
    run = device.capture(lambda: calls.append(len(calls)))
    assert calls == []
    run()
    run()
    assert calls == [0, 1]


def test_spans_add_up_per_stage_and_start_anew(
    device: CpuDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 0.5, 1.0, 1.25, 2.0, 3.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    for stage in ("a", "b", "a"):
        with device.span(stage):
            pass
    assert device.timings() == {"a": 1500.0, "b": 250.0}
    assert device.timings() == {}


def test_closed_device_refuses_everything() -> None:
    device = CpuDevice()
    buffer = device.empty((1,), np.int32)
    device.close()
    device.close()
    for use in (
        lambda: device.empty((1,), np.int32),
        lambda: device.launch("to_pixels"),
        lambda: device.upload(buffer, np.zeros(1, np.int32)),
        lambda: device.download(buffer),
    ):
        with pytest.raises(DeviceError, match="the cpu device is closed"):
            use()
