"""Contexts and threads, devices, errors' names."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pycuda.driver as cuda
import pytest
from cuda.bindings import driver

Result = Callable[[tuple[Any, ...]], Any]


def in_thread(work: Callable[[], Any]) -> Any:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join()
    return results[0]


def current() -> int:
    return int(driver.cuCtxGetCurrent()[1])


def test_device_is_told_apart_from_a_real_one(context: Any) -> None:
    assert cuda.Device.count() == 1
    assert cuda.Device(0).name() == "Emulated CUDA device sm_87"
    assert cuda.Device(0).compute_capability() == (8, 7)
    assert cuda.Device(0).get_attribute(cuda.device_attribute.CAN_MAP_HOST_MEMORY) == 1
    with pytest.raises(cuda.LogicError, match="invalid device"):
        cuda.Device(1)


def test_errors_have_names_and_words(result: Result) -> None:
    assert result(driver.cuGetErrorName(driver.CUresult(700))) == b"CUDA_ERROR_ILLEGAL_ADDRESS"
    words = result(driver.cuGetErrorString(driver.CUresult(700)))
    assert words == b"illegal address (emulated driver)"


def test_versions(result: Result) -> None:
    assert result(driver.cuDriverGetVersion()) >= 13000


def test_contexts_stack(context: Any) -> None:
    first = current()
    second = cuda.Device(0).make_context()
    assert current() not in (0, first)
    second.pop()
    assert current() == first
    second.detach()


def test_a_context_is_current_in_its_thread_only(context: Any, result: Result) -> None:
    handle = current()
    assert in_thread(current) == 0

    def synchronize() -> tuple[str, str]:
        before = driver.cuCtxSynchronize()[0].name
        result(driver.cuCtxSetCurrent(handle))
        return before, driver.cuCtxSynchronize()[0].name

    assert in_thread(synchronize) == ("CUDA_ERROR_INVALID_CONTEXT", "CUDA_SUCCESS")
    assert current() == handle


def test_primary_context_is_counted(result: Result) -> None:
    cuda.init()
    first = result(driver.cuDevicePrimaryCtxRetain(0))
    assert int(result(driver.cuDevicePrimaryCtxRetain(0))) == int(first)
    result(driver.cuDevicePrimaryCtxRelease(0))
    assert result(driver.cuDevicePrimaryCtxGetState(0))[1] == 1
    result(driver.cuDevicePrimaryCtxRelease(0))
    assert result(driver.cuDevicePrimaryCtxGetState(0))[1] == 0
    assert driver.cuDevicePrimaryCtxRelease(0)[0].name == "CUDA_ERROR_INVALID_CONTEXT"


def test_primary_context_of_pycuda(result: Result) -> None:
    cuda.init()
    context = cuda.Device(0).retain_primary_context()
    context.push()
    allocation = cuda.mem_alloc(16)
    allocation.free()
    context.pop()
    context.detach()
    assert result(driver.cuDevicePrimaryCtxGetState(0))[1] == 0


def test_a_destroyed_context_is_no_use_to_other_threads() -> None:
    cuda.init()
    context = cuda.Device(0).make_context()
    handle, destroyed, ready = current(), threading.Event(), threading.Event()

    def use() -> str:
        driver.cuCtxSetCurrent(handle)
        ready.set()
        destroyed.wait()
        return str(driver.cuMemAlloc(16)[0].name)

    results: list[str] = []
    thread = threading.Thread(target=lambda: results.append(use()))
    thread.start()
    ready.wait()
    context.pop()
    context.detach()
    destroyed.set()
    thread.join()
    assert results == ["CUDA_ERROR_CONTEXT_IS_DESTROYED"]


def test_threads_share_one_context(context: Any, result: Result) -> None:
    """Many calls of several threads at once, for the lock."""
    handle = current()

    def work() -> bool:
        result(driver.cuCtxSetCurrent(handle))
        for _ in range(50):
            address = result(driver.cuMemAlloc(4096))
            result(driver.cuMemsetD8(address, 1, 4096))
            result(driver.cuCtxSynchronize())
            result(driver.cuMemFree(address))
        return True

    results: list[bool] = []
    threads = [threading.Thread(target=lambda: results.append(work())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 4
