"""Memory of the CUDA device: buffers, and workspaces of one allocation each.

A workspace lays its buffers out by role, inputs first, then status, outputs and internals, so that
one copy takes all inputs to the device and one brings all outputs back. The host side is pinned.
On an integrated GPU (Jetson) host and device share their memory: what the host sees is then
mapped into the GPU's address space, and the two copies fall away.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.runtime.devices import Array, BufferSpec, ClosedOnExit, require_room
from fewstep.runtime.devices.cuda_driver import translated
from fewstep.runtime.errors import DeviceError

_ORDER = ("input", "status", "output", "internal")


class CudaBuffer:
    """An address on the device with a shape and a dtype; the memory belongs to a workspace."""

    __slots__ = ("_row_stride", "dtype", "pointer", "shape")

    def __init__(
        self,
        pointer: int,
        shape: tuple[int, ...],
        dtype: npt.DTypeLike,
        row_stride: int | None = None,
    ) -> None:
        self.pointer, self.shape, self.dtype = pointer, shape, np.dtype(dtype)
        size = math.prod(shape[1:]) * self.dtype.itemsize
        self._row_stride = size if row_stride is None else row_stride

    @property
    def bytes(self) -> int:
        """Size of the contents."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __getitem__(self, rows: int | slice) -> CudaBuffer:
        if isinstance(rows, slice):
            start, stop, step = rows.indices(self.shape[0])
            if step != 1:
                raise DeviceError(f"a buffer must be contiguous, got rows {rows}")
            shape = (max(0, stop - start), *self.shape[1:])
            pointer = self.pointer + start * self._row_stride
            return CudaBuffer(pointer, shape, self.dtype, self._row_stride)
        row = range(self.shape[0])[rows]
        return CudaBuffer(self.pointer + row * self._row_stride, self.shape[1:], self.dtype)

    def view(self, shape: tuple[int, ...]) -> CudaBuffer:
        """The first elements in another shape."""
        require_room(self.shape, shape)
        if self.shape and self.shape[0] > 1 and self._row_stride * self.shape[0] != self.bytes:
            raise DeviceError(f"rows of a buffer of shape {self.shape} have padding between them")
        return CudaBuffer(self.pointer, shape, self.dtype)


class CudaWorkspace(ClosedOnExit):
    """Named buffers in one device allocation, with one pinned allocation for the host's side.

    Args:
        driver: ``pycuda.driver``, with the device's context current.
        stream: the pycuda stream that copies are enqueued on.
        specs: what to allocate.
        mapped: whether the host's side is the device's as well (integrated GPUs).
    """

    def __init__(
        self, driver: Any, stream: Any, specs: Mapping[str, BufferSpec], *, mapped: bool
    ) -> None:
        self._driver, self._stream, self._mapped = driver, stream, mapped
        del stream  # the frames of an error must not keep it longer than the device
        self._specs, self._offsets = dict(specs), _offsets(specs)
        self._send_end = _end(self._specs, self._offsets, ("input", "status"))
        self._fetch_start = _end(self._specs, self._offsets, ("input",))
        self._host_end = _end(self._specs, self._offsets, ("input", "status", "output"))
        total = _end(self._specs, self._offsets, _ORDER)
        self._own_bytes = total - self._host_end if mapped else total
        with contextlib.ExitStack() as stack, translated(driver, f"allocating {total:,} bytes"):
            stack.callback(setattr, self, "_stream", None)
            self._staging, seen = self._allocate_staging(stack)
            self._own = self._allocate_device(self._own_bytes, stack)
            self._release = stack.pop_all()
        host_base = seen if mapped else self._own
        internal_base = self._own - self._host_end if mapped else self._own
        self._buffers = {
            name: CudaBuffer(
                (internal_base if spec.role == "internal" else host_base) + self._offsets[name],
                spec.shape,
                spec.dtype,
                spec.row_stride if spec.shape else None,
            )
            for name, spec in self._specs.items()
        }

    def __getitem__(self, name: str) -> CudaBuffer:
        return self._buffers[name]

    def write(self, name: str, values: npt.ArrayLike) -> None:
        """Set the pinned side of an input, broadcasting ``values`` to its shape."""
        np.copyto(self._host(name, ("input", "status")), values)

    def read(self, name: str) -> Array:
        """A copy of the pinned side."""
        return self._host(name, ("input", "status", "output")).copy()

    def written(self) -> dict[str, Array]:
        """Copies of the host side of all that the device writes."""
        return {n: self.read(n) for n in self._specs if self._is(n, "status", "output")}

    @property
    def flagged(self) -> bool:
        """Whether the last run that was waited for raised a status."""
        return any(self.read(name).any() for name in self._specs if self._is(name, "status"))

    def poison(self) -> None:
        """Fill all that the device writes with 0xFF, NaN and no ids, once earlier work is over."""
        with translated(self._driver, "filling memory"):
            self._stream.synchronize()
            self._staging[self._send_end : self._host_end] = 0xFF
            if self._own_bytes:
                self._driver.memset_d8_async(self._own, 0xFF, self._own_bytes, self._stream)

    def send(self) -> None:
        """Enqueue one copy of all inputs."""
        if self._send_end and not self._mapped:
            with translated(self._driver, "copying inputs"):
                source = self._staging[: self._send_end]
                self._driver.memcpy_htod_async(self._own, source, self._stream)

    def fetch(self) -> None:
        """Enqueue one copy of all outputs."""
        if self._host_end > self._fetch_start and not self._mapped:
            with translated(self._driver, "copying outputs"):
                target = self._staging[self._fetch_start : self._host_end]
                source = self._own + self._fetch_start
                self._driver.memcpy_dtoh_async(target, source, self._stream)

    def close(self) -> None:
        """Free both allocations; closing twice is fine."""
        self._buffers, self._staging = {}, np.empty(0, np.uint8)
        if self._stream is not None:  # a sequence that failed half-way may still be running
            with contextlib.suppress(self._driver.Error):
                self._stream.synchronize()
        with contextlib.suppress(self._driver.Error):  # a lost context has freed everything
            self._release.close()
        self._stream = None  # or the stream would outlive the device

    def _allocate_staging(self, stack: contextlib.ExitStack) -> tuple[npt.NDArray[np.uint8], int]:
        """The pinned host side, zeroed, and its address on the device (0 unless mapped)."""
        if self._host_end == 0:
            return np.empty(0, np.uint8), 0
        flags = self._driver.host_alloc_flags.DEVICEMAP if self._mapped else 0
        staging = self._driver.pagelocked_empty(self._host_end, np.uint8, mem_flags=flags)
        stack.callback(staging.base.free)
        staging[:] = 0
        return staging, int(staging.base.get_device_pointer()) if self._mapped else 0

    def _allocate_device(self, size: int, stack: contextlib.ExitStack) -> int:
        if size == 0:
            return 0
        allocation = self._driver.mem_alloc(size)
        stack.callback(allocation.free)
        return int(allocation)

    def _is(self, name: str, *roles: str) -> bool:
        return self._specs[name].role in roles

    def _host(self, name: str, roles: tuple[str, ...]) -> Array:
        spec, start = self._specs[name], self._offsets[name]
        if spec.role not in roles:
            raise DeviceError(f"buffer '{name}' is {spec.role}: the host has no such side of it")
        if not self._buffers:
            raise DeviceError("the workspace is closed; open the Generator again")
        if not spec.aligned_rows:
            return self._staging[start : start + spec.bytes].view(spec.dtype).reshape(spec.shape)
        own = self._staging[start : start + spec.padded_bytes]
        rows = own.view(spec.dtype).reshape(spec.shape[0], -1)  # padding included
        return rows[:, : math.prod(spec.shape[1:])].reshape(spec.shape)


def _offsets(specs: Mapping[str, BufferSpec]) -> dict[str, int]:
    """Start of every buffer, by role and then in the order given."""
    offsets, end = {}, 0
    for name, spec in sorted(specs.items(), key=lambda item: _ORDER.index(item[1].role)):
        offsets[name] = end
        end += spec.padded_bytes
    return offsets


def _end(
    specs: Mapping[str, BufferSpec], offsets: Mapping[str, int], roles: tuple[str, ...]
) -> int:
    """Where the last buffer of these (first) roles ends."""
    ends = (offsets[name] + spec.padded_bytes for name, spec in specs.items() if spec.role in roles)
    return max(ends, default=0)
