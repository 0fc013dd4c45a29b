"""The CPU device: workspaces and their buffers, checked copies, spans, capture, closing.

Covered: sizes of buffer specs, the host side of a workspace (zeros, writes that broadcast, reads
that copy), memory that is not to be had, buffers that share memory with their rows, uploads that
never broadcast, and a closed workspace and device.
"""

from __future__ import annotations

import gc
import time
import weakref

import numpy as np
import numpy.typing as npt
import pytest

from fewstep.runtime.devices import BufferSpec, Device, Part, Role, Workspace
from fewstep.runtime.devices.cpu import CpuBuffer, CpuDevice, CpuWorkspace, host_array
from fewstep.runtime.errors import DeviceError, OutOfMemoryError


class _Foreign:
    """A buffer of some other device."""

    shape, dtype, pointer = (1,), np.dtype(np.int32), 0

    def __getitem__(self, rows: int | slice) -> _Foreign:
        return self

    def view(self, shape: tuple[int, ...]) -> _Foreign:
        return self


@pytest.fixture
def device() -> CpuDevice:
    return CpuDevice()


def _buffer(device: CpuDevice, shape: tuple[int, ...], dtype: str) -> CpuBuffer:
    return device.workspace({"buffer": BufferSpec(shape, dtype)})["buffer"]


# --- workspaces


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((2, 3), "float32", 24),
        ((2, 3), "float16", 12),
        ((5,), "uint64", 40),
        ((), "int32", 4),
        ((4, 0), "int32", 0),
        ((1 << 40, 1 << 20), "float32", 1 << 62),  # no overflow on the way
    ],
)
def test_bytes_of_a_spec(shape: tuple[int, ...], dtype: str, expected: int) -> None:
    assert BufferSpec(shape, dtype).bytes == expected


def test_is_a_device_with_workspaces(device: CpuDevice) -> None:
    as_device: Device = device
    workspace: Workspace = as_device.workspace({"x": BufferSpec((2,), "int32")})
    assert workspace["x"].shape == (2,)


@pytest.mark.parametrize(
    ("dtype", "role"),
    [("float16", "input"), ("int32", "status"), ("uint8", "output"), ("uint64", "internal")],
)
def test_buffers_have_the_shape_type_and_address_asked_for(
    device: CpuDevice, dtype: str, role: Role
) -> None:
    specs = {"a": BufferSpec((2, 3), dtype, role), "b": BufferSpec((7,), dtype, role)}
    workspace = device.workspace(specs)
    for name, spec in specs.items():
        buffer = workspace[name]
        assert (buffer.shape, buffer.dtype) == (spec.shape, np.dtype(dtype))
        assert buffer.pointer == buffer.array.ctypes.data
        assert buffer.array.nbytes == spec.bytes
    assert not np.shares_memory(workspace["a"].array, workspace["b"].array)
    assert workspace["a"] is workspace["a"]  # a bound engine knows it by its address


def test_inputs_start_as_zeros(device: CpuDevice) -> None:
    np.full((64, 64), 1.0, np.float32)  # memory that the allocator may hand out again
    specs = {"x": BufferSpec((64, 64), "float32", "input"), "i": BufferSpec((3,), "int32", "input")}
    workspace = device.workspace(specs)
    assert not workspace.read("x").any()
    assert not workspace.read("i").any()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (7, [[7, 7, 7], [7, 7, 7]]),
        ([[1], [2]], [[1, 1, 1], [2, 2, 2]]),
        (np.array([[True, False, True]]), [[1, 0, 1], [1, 0, 1]]),
    ],
)
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_writes_broadcast(
    device: CpuDevice, values: npt.ArrayLike, expected: list[list[int]], dtype: str
) -> None:
    workspace = device.workspace({"x": BufferSpec((2, 3), dtype, "input")})
    workspace.write("x", np.asarray(values).astype(dtype))
    assert workspace.read("x").tolist() == expected
    assert workspace.read("x").dtype == np.dtype(dtype)


def test_plain_numbers_are_written_to_every_type(device: CpuDevice) -> None:
    types = ("int32", "uint8", "uint64", "float32")
    workspace = device.workspace({name: BufferSpec((2,), name, "input") for name in types})
    for name in types:
        workspace.write(name, 1)
        assert workspace.read(name).tolist() == [1, 1]


@pytest.mark.parametrize("shape", [(2,), (2, 2, 3)])
def test_writes_that_do_not_fit_are_refused_and_change_nothing(
    device: CpuDevice, shape: tuple[int, ...]
) -> None:
    workspace = device.workspace({"x": BufferSpec((2, 3), "int32", "input")})
    with pytest.raises(ValueError, match="broadcast"):
        workspace.write("x", np.ones(shape, np.int32))
    assert not workspace.read("x").any()


def test_fractions_are_never_cut_off_on_the_way_into_integers(device: CpuDevice) -> None:
    workspace = device.workspace({"x": BufferSpec((2,), "int32", "input")})
    with pytest.raises(TypeError, match="cast"):
        workspace.write("x", np.array([0.5, 1.5]))


def test_reads_and_writes_copy(device: CpuDevice) -> None:
    workspace = device.workspace({"x": BufferSpec((2,), "int32", "status")})
    values = np.array([1, 2], np.int32)
    workspace.write("x", values)
    values[:] = 9
    out = workspace.read("x")
    assert out.tolist() == [1, 2]
    out[:] = 9
    assert workspace.read("x").tolist() == [1, 2]


def test_the_way_to_the_device_and_back(device: CpuDevice) -> None:
    roles: dict[str, Role] = {"i": "input", "s": "status", "o": "output"}
    specs = {name: BufferSpec((2,), "int32", role) for name, role in roles.items()}
    with device.workspace(specs) as workspace:
        workspace.write("i", [1, 2])
        workspace.write("s", 0)
        workspace.send()
        assert device.download(workspace["i"]).tolist() == [1, 2]
        device.upload(workspace["o"], np.array([3, 4], np.int32))
        device.upload(workspace["s"], np.array([0, 1], np.int32))
        workspace.fetch()
        device.synchronize()
        assert workspace.read("o").tolist() == [3, 4]
        assert workspace.read("s").tolist() == [0, 1]


def test_closing_a_workspace_releases_its_memory(device: CpuDevice) -> None:
    workspace = device.workspace({"x": BufferSpec((2,), "int32", "input")})
    memory = weakref.ref(workspace["x"].array)
    workspace.close()
    workspace.close()
    gc.collect()
    assert memory() is None
    for use in (
        lambda: workspace["x"],
        lambda: workspace.read("x"),
        lambda: workspace.write("x", 0),
    ):
        with pytest.raises(KeyError):
            use()


def test_a_with_block_closes_the_workspace_and_lets_errors_through(device: CpuDevice) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        device.workspace({"x": BufferSpec((2,), "int32")}) as workspace,
    ):
        assert isinstance(workspace, CpuWorkspace)
        raise ZeroDivisionError
    with pytest.raises(KeyError):
        workspace["x"]


@pytest.mark.parametrize("role", ["input", "internal"])
@pytest.mark.parametrize("elements", [1 << 55, 1 << 61])  # too much for the machine, for NumPy
def test_out_of_memory_tells_the_size_and_advises_a_smaller_batch(
    device: CpuDevice, elements: int, role: Role
) -> None:
    specs = {"small": BufferSpec((2,), "int32"), "x": BufferSpec((elements,), "float32", role)}
    with pytest.raises(OutOfMemoryError, match="use a smaller batch") as caught:
        device.workspace(specs)
    assert f"{4 * elements:,} bytes" in str(caught.value)
    assert isinstance(caught.value, DeviceError)


def test_the_device_is_usable_after_out_of_memory(device: CpuDevice) -> None:
    with pytest.raises(OutOfMemoryError):
        device.workspace({"x": BufferSpec((1 << 55,), "float32")})
    assert _buffer(device, (2,), "float32").shape == (2,)


# --- buffers


def test_upload_and_download_copy(device: CpuDevice) -> None:
    buffer, values = _buffer(device, (2, 2), "int32"), np.array([[1, 2], [3, 4]], np.int32)
    device.upload(buffer, values)
    values[:] = 0
    out = device.download(buffer)
    assert out.tolist() == [[1, 2], [3, 4]]
    out[:] = 9
    assert device.download(buffer).tolist() == [[1, 2], [3, 4]]


def test_rows_share_memory_and_know_their_address(device: CpuDevice) -> None:
    buffer = _buffer(device, (4, 3), "float32")
    device.upload(buffer, np.zeros((4, 3), np.float32))
    device.upload(buffer[1], np.ones(3, np.float32))
    device.upload(buffer[2:4], np.full((2, 3), 2, np.float32))
    assert device.download(buffer).tolist() == [[0] * 3, [1] * 3, [2] * 3, [2] * 3]
    assert buffer[2].pointer - buffer.pointer == 2 * 3 * 4
    assert buffer[2:].shape == (2, 3)


def test_strided_views_are_no_buffers(device: CpuDevice) -> None:
    with pytest.raises(DeviceError, match="must be contiguous"):
        _buffer(device, (4, 3), "float32")[::2]
    with pytest.raises(DeviceError, match="must be contiguous"):
        CpuBuffer(np.zeros((3, 2)).T)


@pytest.mark.parametrize("shape", [(1,), (2, 1)])
def test_upload_never_broadcasts(device: CpuDevice, shape: tuple[int, ...]) -> None:
    with pytest.raises(DeviceError, match=r"expected values of shape \(2,\), got"):
        device.upload(_buffer(device, (2,), "int32"), np.zeros(shape, np.int32))


def test_buffers_of_another_device_are_refused(device: CpuDevice) -> None:
    for use in (device.download, lambda b: device.upload(b, np.zeros(1, np.int32)), host_array):
        with pytest.raises(DeviceError, match="expected a buffer of the cpu device, got _Foreign"):
            use(_Foreign())


# --- work


def test_launch_runs_a_kernel_on_the_arrays(device: CpuDevice) -> None:
    image, pixels = _buffer(device, (1, 3, 1, 1), "float32"), _buffer(device, (1, 1, 1, 3), "uint8")
    device.upload(image, np.array([0, 0.2, 1], np.float32).reshape(1, 3, 1, 1))
    error = _buffer(device, (1,), "int32")
    device.launch("to_pixels", image=image, pixels=pixels, error=error)
    assert device.download(pixels).ravel().tolist() == [0, 51, 255]


def test_captured_sequence_runs_once_per_call(device: CpuDevice) -> None:
    calls: list[int] = []
    run = device.capture([Part(lambda: calls.append(len(calls)))])
    assert calls == []
    run()
    run()
    assert calls == [0, 1]
    run.close()
    run.close()


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
    device.require()
    buffer = _buffer(device, (1,), "int32")
    device.close()
    device.close()
    for use in (
        device.require,
        lambda: device.workspace({}),
        lambda: device.launch("to_pixels"),
        lambda: device.upload(buffer, np.zeros(1, np.int32)),
        lambda: device.download(buffer),
    ):
        with pytest.raises(DeviceError, match="the cpu device is closed"):
            use()
