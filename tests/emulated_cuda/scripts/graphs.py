"""Captured graphs: replays with new inputs, lists of nodes, events, branches."""

from __future__ import annotations

import ctypes
import struct
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
GLOBAL = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL
RELAXED = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
EXTERNAL = int(driver.CUevent_record_flags.CU_EVENT_RECORD_EXTERNAL)


def nodes_of(graph: Any, result: Result) -> list[Any]:
    _, count = result(driver.cuGraphGetNodes(graph, 0))
    nodes, _ = result(driver.cuGraphGetNodes(graph, count))
    return list(nodes)


def types_of(graph: Any, result: Result) -> list[str]:
    nodes = nodes_of(graph, result)
    return [result(driver.cuGraphNodeGetType(n)).name.split("TYPE_")[1] for n in nodes]


def captured(stream: Any, sequence: Callable[[], None], result: Result, mode: Any = GLOBAL) -> Any:
    result(driver.cuStreamBeginCapture(stream.handle, mode))
    sequence()
    return result(driver.cuStreamEndCapture(stream.handle))


def launch(
    function: Any,
    allocation: Any,
    value: int,
    block: tuple[int, int, int],
    stream: Any,
    grid: tuple[int, int] = (1, 1),
) -> None:
    """As pycuda's own calls, but for their ``cuFuncSetBlockShape``, which a capture forbids."""
    packed = struct.pack("Pi", int(allocation), value)
    function._launch_kernel(grid, block, packed, 0, stream)


def test_a_pycuda_call_of_a_kernel_ends_a_capture(module: Any, result: Result) -> None:
    """It begins with ``cuFuncSetBlockShape``."""
    stream, allocation = cuda.Stream(), cuda.mem_alloc(8)
    increment = module.get_function("increment")
    result(driver.cuStreamBeginCapture(stream.handle, GLOBAL))
    with pytest.raises(cuda.LogicError, match="cuFuncSetBlockShape failed"):
        increment(allocation, np.int32(2), block=(2, 1, 1), stream=stream)
    assert driver.cuStreamEndCapture(stream.handle)[0].name.endswith("CAPTURE_INVALIDATED")


def test_what_is_captured_so_far_is_told(module: Any, pinned: Pinned, result: Result) -> None:
    stream, allocation, values = cuda.Stream(), cuda.mem_alloc(8), pinned(1, 2)
    status, _, graph, *_ = result(driver.cuStreamGetCaptureInfo(stream.handle))
    assert (status.name.rpartition("_")[2], int(graph)) == ("NONE", 0)
    counts = []

    def sequence() -> None:
        for _ in range(3):
            cuda.memcpy_htod_async(allocation, values, stream)
            graph = result(driver.cuStreamGetCaptureInfo(stream.handle))[2]
            counts.append(result(driver.cuGraphGetNodes(graph, 0))[1])

    graph = captured(stream, sequence, result)
    assert counts == [1, 2, 3]
    result(driver.cuGraphDestroy(graph))


def test_replays_read_new_inputs(module: Any, pinned: Pinned, result: Result, lazy: bool) -> None:
    stream, allocation = cuda.Stream(), cuda.mem_alloc(8)
    source, target = pinned(1, 2), pinned(0, 0)
    increment = module.get_function("increment")

    def sequence() -> None:
        cuda.memcpy_htod_async(allocation, source, stream)
        launch(increment, allocation, 2, (2, 1, 1), stream)
        cuda.memcpy_dtoh_async(target, allocation, stream)

    graph = captured(stream, sequence, result)
    executable = result(driver.cuGraphInstantiate(graph, 0))
    result(driver.cuGraphUpload(executable, stream.handle))
    stream.synchronize()
    np.testing.assert_array_equal(target, [0, 0])  # captured work does not run
    for start in (10, 20):
        source[:] = start
        result(driver.cuGraphLaunch(executable, stream.handle))
        source[:] += lazy
        stream.synchronize()
        np.testing.assert_array_equal(target, start + 1 + lazy)
    result(driver.cuGraphExecDestroy(executable))
    result(driver.cuGraphDestroy(graph))


def test_nodes_tell_what_they_do(module: Any, pinned: Pinned, result: Result) -> None:
    stream, allocation, values = cuda.Stream(), cuda.mem_alloc(8), pinned(1, 2)
    increment, nothing = module.get_function("increment"), HostFunction(lambda _: None)

    def sequence() -> None:
        cuda.memcpy_htod_async(allocation, values, stream)
        cuda.memset_d32_async(allocation, 5, 1, stream)
        launch(increment, allocation, 2, (2, 1, 1), stream, grid=(3, 1))
        address = ctypes.cast(nothing, ctypes.c_void_p).value
        result(driver.cuLaunchHostFunc(stream.handle, driver.CUhostFn(address), 0))

    graph = captured(stream, sequence, result)
    assert types_of(graph, result) == ["MEMCPY", "MEMSET", "KERNEL", "HOST"]
    nodes = nodes_of(graph, result)
    kernel = result(driver.cuGraphKernelNodeGetParams(nodes[2]))
    assert result(driver.cuFuncGetName(kernel.func)) == b"increment"
    assert (kernel.gridDimX, kernel.blockDimX) == (3, 2)
    copy = result(driver.cuGraphMemcpyNodeGetParams(nodes[0]))
    assert copy.dstMemoryType == driver.CUmemorytype.CU_MEMORYTYPE_DEVICE
    assert (int(copy.dstDevice), copy.WidthInBytes) == (int(allocation), 8)
    assert driver.cuGraphKernelNodeGetParams(nodes[0])[0].name == "CUDA_ERROR_INVALID_VALUE"
    result(driver.cuGraphDestroy(graph))


def test_arguments_are_copied_when_captured(module: Any, pinned: Pinned, result: Result) -> None:
    stream, allocation = cuda.Stream(), cuda.to_device(np.zeros(1, np.int32))
    write = module.get_function("increment")
    arguments = np.array([int(allocation), 1], np.int64)

    def sequence() -> None:
        write._launch_kernel((1, 1), (1, 1, 1), arguments.view(np.uint8)[:12], 0, stream)

    graph = captured(stream, sequence, result)
    arguments[:] = 0
    executable = result(driver.cuGraphInstantiate(graph, 0))
    result(driver.cuGraphLaunch(executable, stream.handle))
    stream.synchronize()
    assert cuda.from_device(allocation, 1, np.int32)[0] == 1


def test_status_of_a_capture(context: Any, result: Result) -> None:
    stream = cuda.Stream(1)

    def status() -> str:
        return str(result(driver.cuStreamIsCapturing(stream.handle)).name.split("STATUS_")[1])

    assert status() == "NONE"
    result(driver.cuStreamBeginCapture(stream.handle, GLOBAL))
    assert status() == "ACTIVE"
    assert driver.cuStreamQuery(stream.handle)[0].name == "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"
    assert status() == "INVALIDATED"
    driver.cuStreamEndCapture(stream.handle)
    assert status() == "NONE"


def test_events_of_a_graph_take_its_times(context: Any, result: Result) -> None:
    stream = cuda.Stream()
    start, end = result(driver.cuEventCreate(0)), result(driver.cuEventCreate(0))

    def sequence() -> None:
        result(driver.cuEventRecordWithFlags(start, stream.handle, EXTERNAL))
        result(driver.cuEventRecordWithFlags(end, stream.handle, EXTERNAL))

    graph = captured(stream, sequence, result)
    assert types_of(graph, result) == ["EVENT_RECORD", "EVENT_RECORD"]
    executable = result(driver.cuGraphInstantiate(graph, 0))
    assert driver.cuEventElapsedTime(start, end)[0].name == "CUDA_ERROR_INVALID_HANDLE"
    result(driver.cuGraphLaunch(executable, stream.handle))
    stream.synchronize()
    assert 0 <= result(driver.cuEventElapsedTime(start, end)) < 100
    unflagged = driver.cuEventRecordWithFlags(start, stream.handle, EXTERNAL)
    assert unflagged[0].name == "CUDA_ERROR_INVALID_VALUE"  # outside of a capture


def fork(first: Any, second: Any) -> None:
    forked = cuda.Event()
    forked.record(first)
    second.wait_for_event(forked)


def test_a_second_stream_joins_and_returns(module: Any, result: Result) -> None:
    first, second = cuda.Stream(), cuda.Stream()
    allocation = cuda.to_device(np.zeros(1, np.int32))
    increment = module.get_function("increment")

    def sequence() -> None:
        fork(first, second)
        launch(increment, allocation, 1, (1, 1, 1), second)
        fork(second, first)
        launch(increment, allocation, 1, (1, 1, 1), first)

    graph = captured(first, sequence, result)
    assert types_of(graph, result) == ["KERNEL", "KERNEL"]
    executable = result(driver.cuGraphInstantiate(graph, 0))
    result(driver.cuGraphLaunch(executable, second.handle))
    second.synchronize()
    assert cuda.from_device(allocation, 1, np.int32)[0] == 2


def test_branches_without_an_edge_run_in_another_order(
    context: Any, pinned: Pinned, result: Result
) -> None:
    first, second, allocation = cuda.Stream(), cuda.Stream(), cuda.mem_alloc(4)
    target = pinned(0)

    def sequence() -> None:
        fork(first, second)
        cuda.memset_d32_async(allocation, 1, 1, first)
        cuda.memcpy_dtoh_async(target, allocation, second)
        fork(second, first)

    executable = result(driver.cuGraphInstantiate(captured(first, sequence, result), 0))
    result(driver.cuGraphLaunch(executable, first.handle))
    first.synchronize()
    assert target[0] == -1  # read before it was written


def test_relaxed_captures_allow_allocations(context: Any, result: Result) -> None:
    stream = cuda.Stream(1)
    graph = captured(stream, lambda: cuda.mem_alloc(4).free(), result, RELAXED)
    assert nodes_of(graph, result) == []
