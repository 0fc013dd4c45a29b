"""Work on CUDA streams of the emulated driver: host functions on memory that is the device's.

Nothing of CUDA is imported before it is needed: building works without it.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_HostFunction = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_kept: list[Any] = []  # a graph may call a function as long as the process lives


def is_capturing(stream: int) -> bool:
    """Whether a stream is being captured into a graph.

    Raises:
        RuntimeError: there is no such stream.
    """
    driver = _driver()
    status, found = driver.cuStreamIsCapturing(driver.CUstream(stream))
    if int(status) != 0:
        raise RuntimeError(f"cuStreamIsCapturing says {status.name} of stream {stream:#x}")
    return bool(found != driver.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE)


def enqueue(stream: int, function: Callable[[], None]) -> None:
    """Have a function called when the stream comes to it. It must not raise.

    Raises:
        RuntimeError: the driver refuses it.
    """
    driver, called = _driver(), _HostFunction(lambda _: function())
    _kept.append(called)
    address = ctypes.cast(called, ctypes.c_void_p).value
    (status,) = driver.cuLaunchHostFunc(driver.CUstream(stream), driver.CUhostFn(address), 0)
    if int(status) != 0:
        raise RuntimeError(f"cuLaunchHostFunc says {status.name} on stream {stream:#x}")


def has_context() -> bool:
    """Whether a CUDA context is current in this thread."""
    try:
        status, context = _driver().cuCtxGetCurrent()
    except (ImportError, RuntimeError):  # no cuda-bindings, or no driver
        return False
    return int(status) == 0 and int(context) != 0


def array_at(address: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """Device memory as an array; emulated device memory is the host's."""
    kind = np.dtype(dtype)
    count = math.prod(shape)
    if not count:
        return np.empty(shape, kind)
    content: Any = (ctypes.c_char * (count * kind.itemsize)).from_address(address)
    found: Array = np.frombuffer(content, kind)
    return found.reshape(shape)


def fill(address: int, value: int, size: int) -> None:
    """Set bytes of device memory."""
    ctypes.memset(address, value, size)


def _driver() -> Any:
    from cuda.bindings import driver

    return driver
