"""Handles used after their end, threads without a context, host functions that call CUDA."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any

import pycuda.driver as cuda
from cuda.bindings import driver

Result = Callable[[tuple[Any, ...]], Any]

INVALID = "CUDA_ERROR_INVALID_HANDLE"


def name(returned: tuple[Any, ...]) -> str:
    return str(returned[0].name)


def test_stream_after_destroy(context: Any, result: Result) -> None:
    stream = result(driver.cuStreamCreate(0))
    result(driver.cuStreamDestroy(stream))
    assert name(driver.cuStreamSynchronize(stream)) == INVALID
    assert name(driver.cuMemsetD8Async(0, 0, 0, stream)) == INVALID
    assert name(driver.cuStreamDestroy(stream)) == INVALID
    assert int(result(driver.cuStreamCreate(0))) != int(stream)


def test_event_after_destroy(context: Any, result: Result) -> None:
    event = result(driver.cuEventCreate(0))
    result(driver.cuEventDestroy(event))
    assert name(driver.cuEventRecord(event, 0)) == INVALID
    assert name(driver.cuEventSynchronize(event)) == INVALID


def test_graph_after_destroy(context: Any, result: Result) -> None:
    stream = result(driver.cuStreamCreate(0))
    mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL
    result(driver.cuStreamBeginCapture(stream, mode))
    graph = result(driver.cuStreamEndCapture(stream))
    executable = result(driver.cuGraphInstantiate(graph, 0))
    result(driver.cuGraphDestroy(graph))
    assert name(driver.cuGraphInstantiate(graph, 0)) == INVALID
    assert name(driver.cuGraphGetNodes(graph, 0)) == INVALID
    result(driver.cuGraphLaunch(executable, stream))
    result(driver.cuGraphExecDestroy(executable))
    assert name(driver.cuGraphLaunch(executable, stream)) == INVALID


def test_function_after_unload(context: Any, result: Result, cubin: Callable[[str], bytes]) -> None:
    loaded = result(driver.cuModuleLoadData(cubin("kernels")))
    function = result(driver.cuModuleGetFunction(loaded, b"sum"))
    result(driver.cuModuleUnload(loaded))
    assert name(driver.cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0)) == INVALID
    assert name(driver.cuModuleGetFunction(loaded, b"sum")) == INVALID


def test_graph_after_unload(context: Any, result: Result, cubin: Callable[[str], bytes]) -> None:
    stream, memory = result(driver.cuStreamCreate(0)), result(driver.cuMemAlloc(256))
    loaded = result(driver.cuModuleLoadData(cubin("kernels")))
    function = result(driver.cuModuleGetFunction(loaded, b"sum"))
    mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL
    result(driver.cuStreamBeginCapture(stream, mode))
    arguments = ((int(memory),), (ctypes.c_void_p,))
    result(driver.cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, stream, arguments, 0))
    graph = result(driver.cuStreamEndCapture(stream))
    executable = result(driver.cuGraphInstantiate(graph, 0))
    result(driver.cuModuleUnload(loaded))
    result(driver.cuGraphLaunch(executable, stream))
    assert name(driver.cuStreamSynchronize(stream)) == "CUDA_ERROR_ILLEGAL_ADDRESS"


def test_thread_without_context(context: Any, module: Any) -> None:
    stream, outcomes = cuda.Stream(), []

    def use() -> None:
        for call in (
            lambda: cuda.mem_alloc(4),
            stream.synchronize,
            lambda: module.get_function("sum"),
            cuda.Event,
        ):
            try:
                call()
                outcomes.append("done")
            except cuda.Error as error:
                outcomes.append(str(error))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert len(outcomes) == 4
    assert all("invalid context" in outcome for outcome in outcomes), outcomes


def test_stream_of_another_context(context: Any, module: Any) -> None:
    allocation = cuda.mem_alloc(256)
    another = cuda.Device(0).make_context()
    stream = cuda.Stream()
    another.pop()
    try:
        module.get_function("sum")(allocation, block=(1, 1, 1), stream=stream)
        outcome = "done"
    except cuda.LogicError as error:
        outcome = str(error)
    del stream
    another.detach()
    assert "invalid handle" in outcome


def test_host_function_that_calls_cuda(context: Any, result: Result) -> None:
    outcomes: list[str] = []
    kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    function = kind(lambda _: outcomes.append(name(driver.cuCtxSynchronize())))
    address = ctypes.cast(function, ctypes.c_void_p).value
    result(driver.cuLaunchHostFunc(0, driver.CUhostFn(address), 0))
    result(driver.cuCtxSynchronize())
    assert outcomes == ["CUDA_ERROR_NOT_PERMITTED"]
