"""Ends without cleaning up: the report says what was left, and what its contexts took along."""

from typing import Any

import numpy as np
from cuda.bindings import driver


def value(returned: tuple[Any, ...]) -> Any:
    assert int(returned[0]) == 0, returned[0].name
    return returned[1] if len(returned) == 2 else returned[1:]


value(driver.cuInit(0))
destroyed = value(driver.cuCtxCreate(None, 0, 0))
value(driver.cuMemAlloc(100))
value(driver.cuStreamCreate(0))
value(driver.cuCtxDestroy(destroyed))

value(driver.cuCtxSetCurrent(value(driver.cuDevicePrimaryCtxRetain(0))))
allocation = value(driver.cuMemAlloc(1000))
pinned = value(driver.cuMemHostAlloc(10, 0))
stream = value(driver.cuStreamCreate(0))
value(driver.cuEventCreate(0))
mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL
value(driver.cuStreamBeginCapture(stream, mode))
value(driver.cuMemcpyHtoDAsync(allocation, pinned, 10, stream))
value(driver.cuMemsetD8Async(allocation, 0, 10, stream))
graph = value(driver.cuStreamEndCapture(stream))
executable = value(driver.cuGraphInstantiate(graph, 0))
for _ in range(3):
    value(driver.cuGraphLaunch(executable, stream))
value(driver.cuMemcpyHtoD(allocation, np.zeros(5).ctypes.data, 40))
