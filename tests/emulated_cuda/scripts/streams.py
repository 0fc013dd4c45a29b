"""Streams, events, launches and host functions."""

from __future__ import annotations

import ctypes
import threading
import time
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

HostFunction = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
NON_BLOCKING = 1


def enqueue(stream: Any, function: Any) -> None:
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert driver.cuLaunchHostFunc(stream.handle, driver.CUhostFn(address), 0)[0] == 0


def test_arguments_of_several_sizes(module: Any) -> None:
    values = np.arange(32, dtype=np.float32)
    source, target = cuda.to_device(values), cuda.mem_alloc(128)
    scale = module.get_function("scale")
    scale.prepare("PPbd")
    scale.prepared_call((1, 1), (32, 1, 1), target, source, 3, 0.5)
    np.testing.assert_array_equal(cuda.from_device(target, 32, np.float32), values * 1.5)


def test_arguments_one_by_one(module: Any, result: Result) -> None:
    loaded = result(driver.cuModuleGetFunction(module_handle(result), b"increment"))
    values = cuda.to_device(np.zeros(8, np.int32))
    arguments = ((int(values), 8), (ctypes.c_void_p, ctypes.c_int))
    result(driver.cuLaunchKernel(loaded, 2, 1, 1, 4, 1, 1, 0, 0, arguments, 0))
    np.testing.assert_array_equal(cuda.from_device(values, 8, np.int32), np.ones(8))


def module_handle(result: Result) -> Any:
    import os
    from pathlib import Path

    image = (Path(os.environ["CHECK_CUBINS"]) / "kernels.cubin").read_bytes()
    return result(driver.cuModuleLoadData(image))


def test_shared_memory_and_attributes(module: Any) -> None:
    values = cuda.to_device(np.arange(64, dtype=np.int32))
    module.get_function("reverse")(values, block=(64, 1, 1), shared=256)
    found = cuda.from_device(values, 64, np.int32)
    np.testing.assert_array_equal(found, np.arange(64)[::-1])
    total = module.get_function("sum")
    total(values, block=(64, 1, 1))
    assert cuda.from_device(values, 1, np.int32)[0] == 2016
    assert total.shared_size_bytes == 256
    assert total.max_threads_per_block == 64
    assert 0 < total.num_regs < 64


def test_more_shared_memory_when_asked(module: Any) -> None:
    values = cuda.to_device(np.arange(64, dtype=np.int32))
    reverse = module.get_function("reverse")
    with pytest.raises(cuda.LogicError, match="invalid value"):
        reverse(values, block=(64, 1, 1), shared=50_000)
    reverse.set_attribute(cuda.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES, 50_000)
    reverse(values, block=(64, 1, 1), shared=50_000)
    assert cuda.from_device(values, 1, np.int32)[0] == 63


def test_a_stream_keeps_its_order(module: Any, pinned: Pinned) -> None:
    stream, values, allocation = cuda.Stream(NON_BLOCKING), pinned(1, 2), cuda.mem_alloc(8)
    increment = module.get_function("increment")
    cuda.memcpy_htod_async(allocation, values, stream)
    for _ in range(3):
        increment(allocation, np.int32(2), block=(2, 1, 1), stream=stream)
    cuda.memcpy_dtoh_async(values, allocation, stream)
    stream.synchronize()
    np.testing.assert_array_equal(values, [4, 5])


def test_the_default_stream_waits_for_the_others(context: Any, pinned: Pinned) -> None:
    stream, values = cuda.Stream(), pinned(0)
    allocation = cuda.to_device(np.array([6], np.int32))
    cuda.memcpy_dtoh_async(values, allocation, stream)
    assert driver.cuStreamSynchronize(0)[0] == 0
    assert values[0] == 6


def test_queries_make_progress(context: Any, pinned: Pinned, lazy: bool) -> None:
    stream, values, allocation = cuda.Stream(), pinned(1), cuda.mem_alloc(4)
    done = cuda.Event()
    cuda.memcpy_htod_async(allocation, values, stream)
    done.record(stream)
    assert stream.is_done() is not lazy
    answers = [done.query() for _ in range(3)]
    assert answers[-1]
    assert stream.is_done()


def test_events_have_order_and_times(context: Any) -> None:
    stream, start, end = cuda.Stream(), cuda.Event(), cuda.Event()
    start.record(stream)
    pause = HostFunction(lambda _: time.sleep(0.02))
    enqueue(stream, pause)
    end.record(stream)
    end.synchronize()
    assert 20 <= end.time_since(start) < 1000
    assert start.time_since(end) == -end.time_since(start)


def test_an_event_is_done_before_the_work_behind_it(
    context: Any, pinned: Pinned, lazy: bool
) -> None:
    stream, allocation = cuda.Stream(), cuda.to_device(np.array([7], np.int32))
    before, after, middle = pinned(0), pinned(0), cuda.Event()
    cuda.memcpy_dtoh_async(before, allocation, stream)
    middle.record(stream)
    cuda.memcpy_dtoh_async(after, allocation, stream)
    middle.synchronize()
    assert (before[0], after[0]) == (7, 0 if lazy else 7)


def test_a_stream_waits_for_another_s_event(context: Any, pinned: Pinned) -> None:
    first, second, ready = cuda.Stream(NON_BLOCKING), cuda.Stream(NON_BLOCKING), cuda.Event()
    values, found, allocation = pinned(4), pinned(0), cuda.mem_alloc(4)
    cuda.memcpy_htod_async(allocation, values, first)
    ready.record(first)
    second.wait_for_event(ready)
    cuda.memcpy_dtoh_async(found, allocation, second)
    second.synchronize()
    assert found[0] == 4


def test_without_the_wait_it_reads_too_early(context: Any, pinned: Pinned, lazy: bool) -> None:
    first, second = cuda.Stream(NON_BLOCKING), cuda.Stream(NON_BLOCKING)
    values, found, allocation = pinned(4), pinned(0), cuda.mem_alloc(4)
    cuda.memcpy_htod_async(allocation, values, first)
    cuda.memcpy_dtoh_async(found, allocation, second)
    second.synchronize()
    assert found[0] == (-1 if lazy else 4)


def test_waiting_for_a_recording_is_not_undone_by_the_next(context: Any, pinned: Pinned) -> None:
    first, second, ready = cuda.Stream(NON_BLOCKING), cuda.Stream(NON_BLOCKING), cuda.Event()
    values, found, allocation = pinned(4), pinned(0), cuda.mem_alloc(4)
    cuda.memcpy_htod_async(allocation, values, first)
    ready.record(first)
    second.wait_for_event(ready)
    ready.record(second)
    cuda.memcpy_dtoh_async(found, allocation, second)
    second.synchronize()
    assert found[0] == 4


def test_host_functions_run_in_order(context: Any, pinned: Pinned, lazy: bool) -> None:
    stream, values, seen = cuda.Stream(), pinned(0), []
    allocation = cuda.to_device(np.array([6], np.int32))
    look = HostFunction(lambda _: seen.append(int(values[0])))
    enqueue(stream, look)
    cuda.memcpy_dtoh_async(values, allocation, stream)
    enqueue(stream, look)
    assert seen == ([] if lazy else [0, 6])
    stream.synchronize()
    assert seen == [0, 6]


def test_work_of_a_destroyed_stream_still_runs(context: Any, pinned: Pinned, lazy: bool) -> None:
    stream, values, allocation = cuda.Stream(), pinned(0), cuda.to_device(np.array([6], np.int32))
    cuda.memcpy_dtoh_async(values, allocation, stream)
    del stream
    assert values[0] == (0 if lazy else 6)
    cuda.Context.synchronize()
    assert values[0] == 6


def test_freeing_waits_for_a_host_function_of_another_thread(context: Any, result: Result) -> None:
    """pycuda frees with Python's lock, which the function needs to go on."""
    stream, allocation, order = cuda.Stream(NON_BLOCKING), cuda.mem_alloc(4), []
    handle, entered = int(driver.cuCtxGetCurrent()[1]), threading.Event()

    def work(_: Any) -> None:
        entered.set()
        time.sleep(0.05)
        order.append("function")

    def wait() -> None:
        result(driver.cuCtxSetCurrent(handle))
        enqueue(stream, function)
        result(driver.cuStreamSynchronize(stream.handle))

    function = HostFunction(work)
    thread = threading.Thread(target=wait)
    thread.start()
    entered.wait()
    allocation.free()
    order.append("free")
    thread.join()
    assert order == ["function", "free"]
