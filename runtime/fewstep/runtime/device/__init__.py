"""Devices: where memory and kernels live.

A decode loop is written once against :class:`Device`: it allocates buffers, enqueues engines and
launches kernels by name, and never reads a buffer before the sequence is over. On ``cpu`` every
call runs at once; a CUDA device may capture the same sequence into a graph.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Buffer(Protocol):
    """A contiguous array on a device."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def pointer(self) -> int:
        """Address of the first element on the device."""
        ...

    def __getitem__(self, rows: int | slice) -> Buffer:
        """A view of one row, or of a contiguous run of rows, sharing the memory."""
        ...


class Device(Protocol):
    """Memory, kernels and timing of one place of execution."""

    name: str

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Buffer:
        """Allocate an uninitialised buffer."""
        ...

    def upload(self, buffer: Buffer, values: Array) -> None:
        """Copy host values of the same shape into a buffer."""
        ...

    def download(self, buffer: Buffer) -> Array:
        """Copy a buffer to the host, waiting for all that was enqueued before."""
        ...

    def launch(self, kernel: str, **arguments: Buffer | int | float | None) -> None:
        """Enqueue a kernel of :mod:`fewstep.runtime.kernels` by name."""
        ...

    def span(self, stage: str) -> AbstractContextManager[None]:
        """Attribute the time of the block to ``stage``."""
        ...

    def timings(self) -> dict[str, float]:
        """Milliseconds per stage since the last call."""
        ...

    def capture(self, sequence: Callable[[], None]) -> Callable[[], None]:
        """Make a sequence of enqueues repeatable with one call."""
        ...

    def close(self) -> None:
        """Release everything; using the device afterwards raises ``DeviceError``."""
        ...
