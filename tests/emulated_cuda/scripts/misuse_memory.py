"""Misuse of memory, each caught. Run with lazy streams and 64 MiB of device memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pycuda.driver as cuda
import pytest
from cuda.bindings import driver

Array = npt.NDArray[Any]
Result = Callable[[tuple[Any, ...]], Any]
Pinned = Callable[..., Any]
Captured = pytest.CaptureFixture[str]


def write_at(module: Any, address: int, index: int) -> None:
    write = module.get_function("write_at")
    write(np.intp(address), np.int32(index), block=(1, 1, 1))


def test_output_read_before_synchronizing_is_old(context: Any, pinned: Pinned) -> None:
    stream, allocation, found = cuda.Stream(), cuda.to_device(np.array([5], np.int32)), pinned(-7)
    cuda.memcpy_dtoh_async(found, allocation, stream)
    assert found[0] == -7
    stream.synchronize()
    assert found[0] == 5


@pytest.mark.parametrize(
    ("index", "where"), [(10, "0 bytes past the end"), (-1, "4 bytes before the start")]
)
def test_write_out_of_bounds(module: Any, index: int, where: str, capfd: Captured) -> None:
    allocation = cuda.mem_alloc(40)
    write_at(module, int(allocation), index)
    with pytest.raises(cuda.LogicError, match="illegal address"):
        cuda.Context.synchronize()
    said = capfd.readouterr().err
    assert f"out-of-bounds write {where} of device memory of 40 bytes" in said
    assert "found after write_at" in said


def test_write_past_mapped_memory(module: Any, pinned: Pinned) -> None:
    values = pinned(0, 0, flags=cuda.host_alloc_flags.DEVICEMAP)
    write_at(module, values.base.get_device_pointer(), 2)
    with pytest.raises(cuda.LogicError, match="illegal address"):
        cuda.Context.synchronize()


def test_host_write_past_pinned_memory(context: Any, pinned: Pinned, capfd: Captured) -> None:
    values = pinned(0, 0)
    ctypes.memset(values.ctypes.data, 0, values.nbytes + 1)
    with pytest.raises(cuda.LogicError, match="illegal address"):
        cuda.Context.synchronize()
    assert "pinned memory of 8 bytes, found at cuCtxSynchronize" in capfd.readouterr().err


def test_an_error_stays_until_the_context_is_replaced(module: Any) -> None:
    allocation = cuda.mem_alloc(40)
    write_at(module, int(allocation), 10)
    for _ in range(2):
        with pytest.raises(cuda.LogicError, match="illegal address"):
            cuda.Context.synchronize()
    with pytest.raises(cuda.LogicError, match="illegal address"):
        cuda.mem_alloc(4)
    another = cuda.Device(0).make_context()
    cuda.mem_alloc(4).free()
    cuda.Context.synchronize()
    another.pop()
    another.detach()


def test_copies_past_the_end(context: Any) -> None:
    allocation, values = cuda.mem_alloc(40), np.zeros(11, np.int32)
    with pytest.raises(cuda.LogicError, match="invalid value"):
        cuda.memcpy_htod(allocation, values)
    with pytest.raises(cuda.LogicError, match="invalid value"):
        cuda.memcpy_dtoh(values, allocation)
    with pytest.raises(cuda.LogicError, match="invalid value"):
        cuda.memset_d32(allocation, 0, 11)


def test_copy_of_part_of_a_pinned_buffer_that_leaves_it(context: Any, pinned: Pinned) -> None:
    allocation, values = cuda.mem_alloc(400), pinned(1, 2)
    with_end = driver.cuMemcpyHtoDAsync(int(allocation), values.ctypes.data, 12, 0)
    assert with_end[0].name == "CUDA_ERROR_INVALID_VALUE"


def test_copy_after_free(context: Any) -> None:
    allocation = cuda.mem_alloc(40)
    address = int(allocation)
    allocation.free()
    with pytest.raises(cuda.LogicError, match="invalid value"):
        cuda.memcpy_htod(address, np.zeros(1, np.int32))
    assert driver.cuMemFree(address)[0].name == "CUDA_ERROR_INVALID_VALUE"


@pytest.mark.parametrize("freed", ["device", "pinned"])
def test_captured_copy_after_free(
    context: Any, pinned: Pinned, result: Result, freed: str, capfd: Captured
) -> None:
    stream, allocation, values = cuda.Stream(), cuda.mem_alloc(4), pinned(1)
    mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL
    result(driver.cuStreamBeginCapture(stream.handle, mode))
    cuda.memcpy_htod_async(allocation, values, stream)
    graph = result(driver.cuStreamEndCapture(stream.handle))
    executable = result(driver.cuGraphInstantiate(graph, 0))
    allocation.free() if freed == "device" else values.base.free()
    result(driver.cuGraphLaunch(executable, stream.handle))
    with pytest.raises(cuda.LogicError, match="illegal address"):
        stream.synchronize()
    assert f"not {freed} memory (any more: it was freed)" in capfd.readouterr().err


def test_pointer_of_memory_that_is_not_mapped(context: Any, pinned: Pinned) -> None:
    with pytest.raises(cuda.LogicError, match="invalid value"):
        pinned(1).base.get_device_pointer()


def test_pinned_memory_is_not_device_memory(context: Any, pinned: Pinned) -> None:
    with pytest.raises(cuda.LogicError, match="invalid value"):
        cuda.memcpy_htod(pinned(1).ctypes.data, np.zeros(1, np.int32))


def test_unaligned_fill(context: Any) -> None:
    with pytest.raises(cuda.LogicError, match="invalid value"):
        cuda.memset_d32(int(cuda.mem_alloc(40)) + 2, 0, 1)


def test_out_of_memory(context: Any, pinned: Pinned) -> None:
    half = cuda.mem_alloc(40 << 20)
    with pytest.raises(cuda.MemoryError):
        cuda.mem_alloc(40 << 20)
    half.free()
    cuda.mem_alloc(60 << 20).free()
    pinned(*range(10))
