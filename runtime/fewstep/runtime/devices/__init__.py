"""Devices: where memory and kernels live.

A decode loop is written once against :class:`Device`: it takes one :class:`Workspace` of named
buffers, enqueues copies, engines and kernels, and reads results only after the sequence is over.
On ``cpu`` every call runs at once; ``cuda`` captures the same sequence into one graph.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from fewstep.runtime.errors import DeviceError

if TYPE_CHECKING:
    from fewstep.runtime.engines import BoundEngine

Array = npt.NDArray[Any]

Role = Literal["input", "status", "output", "internal"]
"""``input``: written by the host before a run; ``output``: read by it after; ``status``: both;
``internal``: never seen by the host."""


ALIGNMENT = 256
"""Of every address that an engine is given, in bytes; TensorRT asks for it."""

_SMALLEST_FLOAT = 2  # bytes: half precision


def aligned_width(width: int) -> int:
    """Numbers of a row of a cache of floats, ``width`` or the next such: of rows that follow each
    other any may begin a tensor that an engine reads, in half precision too."""
    unit = ALIGNMENT // _SMALLEST_FLOAT
    return -(-width // unit) * unit


@dataclass(frozen=True)
class BufferSpec:
    """One buffer of a workspace.

    ``aligned_rows``: every row along the first dimension starts at a multiple of
    :data:`ALIGNMENT` on a GPU, for buffers whose rows engines read or write; not for those that the
    host writes.
    """

    shape: tuple[int, ...]
    dtype: str
    role: Role = "internal"
    aligned_rows: bool = False

    def __post_init__(self) -> None:
        if self.aligned_rows and self.role in ("input", "status"):
            raise ValueError(f"the host cannot write a buffer of aligned rows, role {self.role}")

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return np.dtype(self.dtype).itemsize

    @property
    def bytes(self) -> int:
        """Size of the contents."""
        return math.prod(self.shape) * self.itemsize

    @property
    def row_stride(self) -> int:
        """Bytes from the start of a row to that of the next, on a GPU."""
        size = math.prod(self.shape[1:]) * self.itemsize
        return -(-size // ALIGNMENT) * ALIGNMENT if self.aligned_rows else size

    @property
    def padded(self) -> bool:
        """Whether there is anything between its rows on a GPU."""
        rows = self.shape[0] if self.shape else 1
        return rows > 1 and rows * self.row_stride != self.bytes

    @property
    def padded_bytes(self) -> int:
        """What it takes on a GPU."""
        size = self.shape[0] * self.row_stride if self.shape else self.bytes
        return -(-size // ALIGNMENT) * ALIGNMENT


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

    def view(self, shape: tuple[int, ...]) -> Buffer:
        """The first elements in another shape, sharing the memory.

        Raises:
            DeviceError: there are not so many, or padding lies between them.
        """
        ...


def require_room(shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    """Raise ``DeviceError`` unless a buffer of a shape has the elements of the other."""
    if math.prod(wanted) > math.prod(shape):
        raise DeviceError(f"a buffer of shape {shape} has no {wanted}")


class ClosedOnExit(ABC):
    """A context manager that closes itself."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Release what is held; closing twice is fine."""


class Workspace(AbstractContextManager["Workspace"], Protocol):
    """Named buffers, allocated together and released together."""

    def __getitem__(self, name: str) -> Buffer: ...

    def write(self, name: str, values: npt.ArrayLike) -> None:
        """Set the host side of an input (broadcast to its shape); the next run reads it."""
        ...

    def read(self, name: str) -> Array:
        """A copy of the host side of an output, as of the last run that was waited for."""
        ...

    def send(self) -> None:
        """Enqueue the inputs' way to the device."""
        ...

    def fetch(self) -> None:
        """Enqueue the outputs' way to the host."""
        ...

    def close(self) -> None:
        """Release the memory; closing twice is fine."""
        ...


class Replay(Protocol):
    """A sequence of enqueues that one call enqueues again."""

    def __call__(self) -> None: ...

    def close(self) -> None:
        """Release what the replay holds; closing twice is fine."""
        ...


@dataclass(frozen=True)
class Part:
    """Some enqueues of a sequence, and how often they are enqueued before the next part."""

    enqueue: Callable[[], None]
    times: int = 1

    def __call__(self) -> None:
        """Enqueue them as often as that."""
        for _ in range(self.times):
            self.enqueue()


class Direct:
    """A replay that simply enqueues all parts again."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts

    def __call__(self) -> None:
        for part in self.parts:
            part()

    def close(self) -> None:
        """Nothing to release."""


@dataclass(frozen=True)
class CudaStream:
    """Where engines run on a GPU: its number, and the handle of the device's stream."""

    ordinal: int
    handle: int


class Device(Protocol):
    """Memory, kernels and timing of one place of execution."""

    name: str

    @property
    def cuda_stream(self) -> CudaStream | None:
        """The stream that engines must enqueue on; ``None`` on the CPU."""
        ...

    def require_thread(self) -> None:
        """Raise ``DeviceError`` if the device belongs to another thread."""
        ...

    def require(self) -> None:
        """Raise ``DeviceError`` if this thread cannot use the device now."""
        ...

    def workspace(self, specs: Mapping[str, BufferSpec]) -> Workspace:
        """Allocate the named buffers; the host side of inputs starts as zeros.

        Raises:
            OutOfMemoryError: there is not enough memory; nothing was allocated.
        """
        ...

    def upload(self, buffer: Buffer, values: Array) -> None:
        """Copy host values of the same shape into a buffer, and wait."""
        ...

    def download(self, buffer: Buffer) -> Array:
        """Copy a buffer to the host, waiting for all that was enqueued before."""
        ...

    def copy(self, target: Buffer, source: Buffer) -> None:
        """Enqueue a copy between two contiguous buffers of the same shape and dtype."""
        ...

    def launch(self, kernel: str, **arguments: Buffer | int | float | None) -> None:
        """Enqueue a kernel of :mod:`fewstep.runtime.kernels` by name."""
        ...

    def run(self, engine: BoundEngine) -> None:
        """Enqueue a graph on the buffers that it is bound to."""
        ...

    def span(self, stage: str) -> AbstractContextManager[None]:
        """Attribute the time of what the block enqueues to ``stage``."""
        ...

    def timings(self) -> dict[str, float]:
        """Milliseconds per stage since the last call, of work that was waited for."""
        ...

    def capture(
        self,
        parts: Sequence[Part],
        *,
        warm_up: int = 1,
        check_capturable: Callable[[], None] = lambda: None,
        workspace: Workspace | None = None,
    ) -> Replay:
        """Make a sequence of enqueues repeatable with one call; it may run on the way.

        Args:
            parts: what to repeat.
            warm_up: how often it has to run before.
            check_capturable: raises if something in the sequence cannot be captured; called just
                before.
            workspace: where the sequence writes; a device that captures compares what the first
                replay leaves there with what the last run left.

        Raises:
            DeviceError: the sequence cannot be captured, or a replay gives something else.
        """
        ...

    def synchronize(self) -> None:
        """Wait for all that was enqueued."""
        ...

    def close(self) -> None:
        """Release everything; using the device afterwards raises ``DeviceError``."""
        ...
