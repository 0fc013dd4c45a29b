"""Device memory, pinned and mapped host memory, copies and fills."""

from __future__ import annotations

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


def test_fresh_memory_is_nan(context: Any, pinned: Pinned) -> None:
    allocation = cuda.mem_alloc(40)
    assert np.isnan(cuda.from_device(allocation, 10, np.float32)).all()


def test_copies_both_ways_and_within(context: Any) -> None:
    values = np.arange(100, dtype=np.int32)
    first, second = cuda.mem_alloc(400), cuda.mem_alloc(400)
    cuda.memcpy_htod(first, values)
    cuda.memcpy_dtod(second, first, 400)
    np.testing.assert_array_equal(cuda.from_device(second, 100, np.int32), values)


def test_copies_of_parts(context: Any) -> None:
    allocation = cuda.to_device(np.arange(100, dtype=np.int32))
    cuda.memcpy_htod(int(allocation) + 40, np.array([-1, -2], np.int32))
    found = cuda.from_device(int(allocation) + 36, 4, np.int32)
    np.testing.assert_array_equal(found, [9, -1, -2, 12])


def test_fills_of_all_widths(context: Any) -> None:
    allocation = cuda.mem_alloc(8)
    cuda.memset_d32(allocation, 0x01020304, 2)
    cuda.memset_d16(allocation, 0x0506, 1)
    cuda.memset_d8(int(allocation) + 7, 9, 1)
    found = cuda.from_device(allocation, 8, np.uint8)
    np.testing.assert_array_equal(found, [6, 5, 2, 1, 4, 3, 2, 9])


def test_pageable_memory_is_read_at_once(context: Any) -> None:
    stream, allocation = cuda.Stream(), cuda.mem_alloc(4)
    values = np.array([1], np.int32)
    cuda.memcpy_htod_async(allocation, values, stream)
    values[0] = 2
    stream.synchronize()
    assert cuda.from_device(allocation, 1, np.int32)[0] == 1


def test_pageable_memory_is_written_before_the_call_returns(context: Any) -> None:
    stream, allocation = cuda.Stream(), cuda.to_device(np.array([3], np.int32))
    values = np.zeros(1, np.int32)
    cuda.memcpy_dtoh_async(values, allocation, stream)
    assert values[0] == 3


def test_pinned_memory_is_read_when_the_stream_comes_to_it(
    context: Any, pinned: Pinned, lazy: bool
) -> None:
    stream, allocation, values = cuda.Stream(), cuda.mem_alloc(4), pinned(1)
    cuda.memcpy_htod_async(allocation, values, stream)
    values[0] = 2
    stream.synchronize()
    assert cuda.from_device(allocation, 1, np.int32)[0] == (2 if lazy else 1)


def test_registered_memory_is_pinned(context: Any, result: Result, lazy: bool) -> None:
    stream, allocation, values = cuda.Stream(), cuda.mem_alloc(64), np.zeros(64, np.uint8)
    # pycuda's register_host_memory gives up its hold of the memory with NumPy 2.
    result(driver.cuMemHostRegister(values.ctypes.data, 64, 0))
    cuda.memcpy_htod_async(allocation, values, stream)
    values[:] = 7
    stream.synchronize()
    assert cuda.from_device(allocation, 1, np.uint8)[0] == (7 if lazy else 0)
    result(driver.cuMemHostUnregister(values.ctypes.data))
    unknown = driver.cuMemHostUnregister(values.ctypes.data)[0].name
    assert unknown == "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED"


def test_default_stream_waits_for_blocking_streams(context: Any, pinned: Pinned) -> None:
    stream, allocation, values = cuda.Stream(), cuda.mem_alloc(4), pinned(5)
    cuda.memcpy_htod_async(allocation, values, stream)
    found = np.zeros(1, np.int32)
    cuda.memcpy_dtoh(found, allocation)
    assert found[0] == 5


def test_free_memory_goes_down_and_up(context: Any) -> None:
    before, total = cuda.mem_get_info()
    allocation = cuda.mem_alloc(1 << 20)
    assert cuda.mem_get_info() == (before - (1 << 20), total)
    allocation.free()
    assert cuda.mem_get_info() == (before, total)


def test_address_range(context: Any) -> None:
    allocation = cuda.mem_alloc(100)
    assert cuda.mem_get_address_range(int(allocation) + 50) == (int(allocation), 100)


def test_mapped_memory_is_the_device_s_too(context: Any, module: Any, pinned: Pinned) -> None:
    values = pinned(1, 2, 3, flags=cuda.host_alloc_flags.DEVICEMAP)
    address = values.base.get_device_pointer()
    module.get_function("increment")(np.intp(address), np.int32(3), block=(4, 1, 1))
    cuda.Context.synchronize()
    np.testing.assert_array_equal(values, [2, 3, 4])
    np.testing.assert_array_equal(cuda.from_device(address, 3, np.int32), [2, 3, 4])
    values.base.free()
    with pytest.raises(cuda.LogicError, match="invalid value"):
        cuda.from_device(address, 3, np.int32)


def test_copies_by_address_alone(context: Any, pinned: Pinned, result: Result) -> None:
    source, target, allocation = pinned(8), pinned(0), cuda.mem_alloc(4)
    result(driver.cuMemcpy(int(allocation), source.ctypes.data, 4))
    result(driver.cuMemcpy(target.ctypes.data, int(allocation), 4))
    assert target[0] == 8
