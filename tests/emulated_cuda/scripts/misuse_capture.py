"""Calls that are illegal while a stream is being captured, each caught."""

from __future__ import annotations

import threading
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

GLOBAL = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL
THREAD_LOCAL = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
RELAXED = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
NON_BLOCKING = 1


class Capturing:
    """A stream in capture; `end` gives the name of the outcome."""

    def __init__(self, mode: Any = GLOBAL, flags: int = 0) -> None:
        self.stream = cuda.Stream(flags)
        assert int(driver.cuStreamBeginCapture(self.stream.handle, mode)[0]) == 0

    def end(self) -> str:
        return str(driver.cuStreamEndCapture(self.stream.handle)[0].name)


INVALIDATED = "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"

# Each gets the captured stream and some device memory.
_ILLEGAL: dict[str, Callable[[Any, Any], Any]] = {
    "stream synchronize": lambda stream, memory: stream.synchronize(),
    "stream query": lambda stream, memory: stream.is_done(),
    "context synchronize": lambda stream, memory: cuda.Context.synchronize(),
    "allocation": lambda stream, memory: cuda.mem_alloc(4),
    "pinned allocation": lambda stream, memory: cuda.pagelocked_empty(1, np.int32),
    "other stream synchronize": lambda stream, memory: cuda.Stream().synchronize(),
    "synchronous copy": lambda stream, memory: cuda.memcpy_htod(memory, np.zeros(1)),
    "pageable copy": lambda stream, memory: cuda.memcpy_htod_async(memory, np.zeros(1), stream),
}


@pytest.mark.parametrize("call", _ILLEGAL.values(), ids=_ILLEGAL.keys())
@pytest.mark.parametrize("mode", [GLOBAL, THREAD_LOCAL])
@pytest.mark.parametrize("flags", [0, NON_BLOCKING])
def test_illegal_call(context: Any, flags: int, mode: Any, call: Callable[[Any, Any], Any]) -> None:
    allocation, capture = cuda.mem_alloc(8), Capturing(mode, flags)
    with pytest.raises(cuda.LogicError, match="stream capture"):
        call(capture.stream, allocation)
    with pytest.raises(cuda.LogicError, match="stream capture invalidated"):
        cuda.memset_d32_async(allocation, 0, 1, capture.stream)
    assert capture.end() == INVALIDATED


def test_free(context: Any) -> None:
    allocation = cuda.mem_alloc(4)
    capture = Capturing()
    freed = driver.cuMemFree(int(allocation))[0].name
    assert freed == "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"
    assert capture.end() == INVALIDATED
    allocation.free()


def test_default_stream_beside_a_blocking_one(context: Any) -> None:
    allocation, capture = cuda.mem_alloc(4), Capturing(RELAXED)
    with pytest.raises(cuda.LogicError, match="stream capture implicit"):
        cuda.memset_d32_async(allocation, 0, 1, None)
    assert capture.end() == INVALIDATED


def test_default_stream_beside_a_non_blocking_one(context: Any) -> None:
    allocation, capture = cuda.mem_alloc(4), Capturing(RELAXED, NON_BLOCKING)
    cuda.memset_d32_async(allocation, 0, 1, None)
    assert capture.end() == "CUDA_SUCCESS"


def test_default_stream_itself(context: Any) -> None:
    refused = driver.cuStreamBeginCapture(0, GLOBAL)[0].name
    assert refused == "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"


@pytest.mark.parametrize(
    ("mode", "outcome"), [(GLOBAL, INVALIDATED), (THREAD_LOCAL, "CUDA_SUCCESS")]
)
def test_allocation_in_another_thread(context: Any, mode: Any, outcome: str) -> None:
    handle, capture = int(driver.cuCtxGetCurrent()[1]), Capturing(mode)

    def allocate() -> None:
        driver.cuCtxSetCurrent(handle)
        driver.cuMemAlloc(4)

    thread = threading.Thread(target=allocate)
    thread.start()
    thread.join()
    assert capture.end() == outcome


def test_end_in_another_thread(context: Any) -> None:
    handle, capture, results = int(driver.cuCtxGetCurrent()[1]), Capturing(), []

    def end() -> None:
        driver.cuCtxSetCurrent(handle)
        results.append(capture.end())

    thread = threading.Thread(target=end)
    thread.start()
    thread.join()
    assert results == ["CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD"]
    assert capture.end() == "CUDA_SUCCESS"


def test_begin_twice_and_end_without_begin(context: Any) -> None:
    capture = Capturing()
    again = driver.cuStreamBeginCapture(capture.stream.handle, GLOBAL)[0].name
    assert again == "CUDA_ERROR_ILLEGAL_STATE"
    assert capture.end() == "CUDA_SUCCESS"
    assert capture.end() == "CUDA_ERROR_ILLEGAL_STATE"


def test_event_of_a_capture(context: Any) -> None:
    event, capture = cuda.Event(), Capturing()
    event.record(capture.stream)
    with pytest.raises(cuda.LogicError, match="captured event"):
        event.synchronize()
    assert capture.end() == INVALIDATED
    with pytest.raises(cuda.LogicError, match="captured event"):
        event.query()


def test_wait_for_an_event_of_before(context: Any) -> None:
    event = cuda.Event()
    event.record(cuda.Stream())
    capture = Capturing()
    with pytest.raises(cuda.LogicError, match="stream capture isolation"):
        capture.stream.wait_for_event(event)
    assert capture.end() == INVALIDATED


def test_second_stream_that_does_not_return(context: Any) -> None:
    allocation, event, second, capture = (
        cuda.mem_alloc(4),
        cuda.Event(),
        cuda.Stream(),
        Capturing(),
    )
    event.record(capture.stream)
    second.wait_for_event(event)
    cuda.memset_d32_async(allocation, 0, 1, second)
    wrong = driver.cuStreamEndCapture(second.handle)[0].name
    assert wrong == "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED"
    assert capture.end() == "CUDA_ERROR_STREAM_CAPTURE_UNJOINED"
