"""The CPU device: NumPy arrays as memory, compiled kernels, wall-clock timing."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.runtime.devices import (
    Array,
    Buffer,
    BufferSpec,
    ClosedOnExit,
    Direct,
    Part,
    Workspace,
    require_room,
)
from fewstep.runtime.engines import BoundEngine
from fewstep.runtime.errors import DeviceError, OutOfMemoryError
from fewstep.runtime.kernels.cpu import KERNELS


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

    def view(self, shape: tuple[int, ...]) -> CpuBuffer:
        """The first elements in another shape."""
        require_room(self.shape, shape)
        return CpuBuffer(self.array.reshape(-1)[: math.prod(shape)].reshape(shape))


def host_array(buffer: Buffer) -> Array:
    """The array behind a CPU buffer."""
    if not isinstance(buffer, CpuBuffer):
        raise DeviceError(f"expected a buffer of the cpu device, got {type(buffer).__name__}")
    return buffer.array


class CpuWorkspace(ClosedOnExit):
    """Arrays by name; the host side of a buffer is the buffer itself."""

    def __init__(self, specs: Mapping[str, BufferSpec]) -> None:
        self._buffers = {name: CpuBuffer(_allocate(spec)) for name, spec in specs.items()}

    def __getitem__(self, name: str) -> CpuBuffer:
        return self._buffers[name]

    def write(self, name: str, values: npt.ArrayLike) -> None:
        """Set a buffer, broadcasting ``values`` to its shape."""
        np.copyto(self._buffers[name].array, values)

    def read(self, name: str) -> Array:
        """A copy of a buffer."""
        return self._buffers[name].array.copy()

    def send(self) -> None:
        """Nothing to do: the host side is the device's."""

    def fetch(self) -> None:
        """Nothing to do: the host side is the device's."""

    def close(self) -> None:
        """Drop the arrays."""
        self._buffers = {}


class _Span:
    """Adds the time of a block to a stage; a generator would take longer than some kernels."""

    __slots__ = ("_elapsed", "_stage", "_start")

    def __init__(self, elapsed: defaultdict[str, float], stage: str) -> None:
        self._elapsed, self._stage = elapsed, stage

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self._elapsed[self._stage] += time.perf_counter() - self._start


class CpuDevice:
    """Runs every call at once, in the caller's thread."""

    name = "cpu"
    cuda_stream = None

    def __init__(self) -> None:
        self._elapsed: defaultdict[str, float] = defaultdict(float)
        self._open = True

    def require_thread(self) -> None:
        """Any thread may use the CPU."""

    def require(self) -> None:
        """Raise ``DeviceError`` if the device is closed; any thread may use it."""
        if not self._open:
            raise DeviceError("the cpu device is closed; open the Generator again")

    def workspace(self, specs: Mapping[str, BufferSpec]) -> CpuWorkspace:
        """Allocate arrays."""
        self.require()
        return CpuWorkspace(specs)

    def upload(self, buffer: Buffer, values: Array) -> None:
        """Copy ``values`` (same shape) into ``buffer``."""
        self.require()
        target = host_array(buffer)
        if target.shape != values.shape:
            raise DeviceError(f"expected values of shape {target.shape}, got {values.shape}")
        np.copyto(target, values)

    def download(self, buffer: Buffer) -> Array:
        """Copy ``buffer`` out."""
        self.require()
        return host_array(buffer).copy()

    def copy(self, target: Buffer, source: Buffer) -> None:
        """Copy one array into another of the same shape and dtype."""
        self.require()
        to, of = host_array(target), host_array(source)
        if (to.shape, to.dtype) != (of.shape, of.dtype):
            raise DeviceError(
                f"expected a {to.dtype} buffer of shape {to.shape}, got {of.dtype} {of.shape}"
            )
        np.copyto(to, of)

    def launch(self, kernel: str, **arguments: Buffer | int | float | None) -> None:
        """Run a kernel on the arrays behind the buffers."""
        self.require()
        KERNELS[kernel](
            **{
                name: value.array if isinstance(value, CpuBuffer) else value
                for name, value in arguments.items()
            }
        )

    def run(self, engine: BoundEngine) -> None:
        """Run a graph."""
        engine.run()

    def span(self, stage: str) -> AbstractContextManager[None]:
        """Add the wall-clock time of the block to ``stage``."""
        return _Span(self._elapsed, stage)

    def timings(self) -> dict[str, float]:
        """Milliseconds per stage since the last call."""
        taken = {stage: seconds * 1e3 for stage, seconds in self._elapsed.items()}
        self._elapsed.clear()
        return taken

    def capture(
        self,
        parts: Sequence[Part],
        *,
        warm_up: int = 1,
        check_capturable: Callable[[], None] = lambda: None,
        workspace: Workspace | None = None,
    ) -> Direct:
        """Replay by running the sequence itself: there is no launch overhead to save."""
        return Direct(parts)

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def close(self) -> None:
        """Refuse further use."""
        self._open = False


def _allocate(spec: BufferSpec) -> Array:
    try:
        # Outputs and internals are overwritten before they are read: zeros would cost a pass.
        return (np.zeros if spec.role == "input" else np.empty)(spec.shape, spec.dtype)
    except (MemoryError, ValueError) as error:
        raise OutOfMemoryError(
            f"out of memory for a buffer of {spec.bytes:,} bytes; use a smaller batch"
        ) from error
