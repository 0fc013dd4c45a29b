"""The CPU device: NumPy arrays as memory, compiled kernels, wall-clock timing."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.runtime.device import Array, Buffer
from fewstep.runtime.errors import DeviceError
from fewstep.runtime.kernels import KERNELS


class CpuBuffer:
    """A NumPy array seen as a device buffer."""

    __slots__ = ("array", "pointer")

    def __init__(self, array: Array) -> None:
        if not array.flags.c_contiguous:
            raise DeviceError(f"a buffer must be contiguous, got strides {array.strides}")
        self.array = array
        self.pointer = int(array.ctypes.data)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    def __getitem__(self, rows: int | slice) -> CpuBuffer:
        return CpuBuffer(self.array[rows])


def host_array(buffer: Buffer) -> Array:
    """The array behind a CPU buffer."""
    if not isinstance(buffer, CpuBuffer):
        raise DeviceError(f"expected a buffer of the cpu device, got {type(buffer).__name__}")
    return buffer.array


class CpuDevice:
    """Runs every call at once, in the caller's thread."""

    name = "cpu"

    def __init__(self) -> None:
        self._elapsed: defaultdict[str, float] = defaultdict(float)
        self._open = True

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> CpuBuffer:
        """Allocate an uninitialised array.

        Raises:
            DeviceError: the device is closed or the memory is not to be had.
        """
        self._require_open()
        try:
            return CpuBuffer(np.empty(shape, dtype))
        except (MemoryError, ValueError) as error:
            raise DeviceError(
                f"out of memory for a buffer of shape {shape}; use a smaller batch"
            ) from error

    def upload(self, buffer: Buffer, values: Array) -> None:
        """Copy ``values`` (same shape) into ``buffer``."""
        self._require_open()
        target = host_array(buffer)
        if target.shape != values.shape:
            raise DeviceError(f"expected values of shape {target.shape}, got {values.shape}")
        np.copyto(target, values)

    def download(self, buffer: Buffer) -> Array:
        """Copy ``buffer`` out."""
        self._require_open()
        return host_array(buffer).copy()

    def launch(self, kernel: str, **arguments: Buffer | int | float | None) -> None:
        """Run a kernel on the arrays behind the buffers."""
        self._require_open()
        KERNELS[kernel](
            **{
                name: value.array if isinstance(value, CpuBuffer) else value
                for name, value in arguments.items()
            }
        )

    @contextlib.contextmanager
    def span(self, stage: str) -> Iterator[None]:
        """Add the wall-clock time of the block to ``stage``."""
        start = time.perf_counter()
        yield
        self._elapsed[stage] += time.perf_counter() - start

    def timings(self) -> dict[str, float]:
        """Milliseconds per stage since the last call."""
        taken = {stage: seconds * 1e3 for stage, seconds in self._elapsed.items()}
        self._elapsed.clear()
        return taken

    def capture(self, sequence: Callable[[], None]) -> Callable[[], None]:
        """Return the sequence itself: there is no launch overhead to save."""
        return sequence

    def close(self) -> None:
        """Refuse further use."""
        self._open = False

    def _require_open(self) -> None:
        if not self._open:
            raise DeviceError("the cpu device is closed; open the Generator again")
