"""One kernel launch: what every list of the kernels' launches is made of."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.runtime.devices import Buffer
from fewstep.runtime.errors import DeviceError

Argument = Buffer | int | float | None

THREADS = 256
"""Of a block, where nothing speaks for another number."""

_MAX_ROWS = 65_535  # gridDim.y
_SUFFIX = {"float32": "float", "float16": "half"}


@dataclass(frozen=True)
class Launch:
    """One kernel launch.

    ``signature`` has one letter per argument, as in :mod:`struct`: P pointer, i int32, d float64.
    ``bytes_moved`` is what must be read and written at least, with every token still masked.
    """

    entry: str
    grid: tuple[int, int]
    block: tuple[int, int, int]
    signature: str
    arguments: tuple[int | float, ...]
    bytes_moved: int


def launch(
    entry: str,
    grid: tuple[int, int],
    threads: int,
    signature: str,
    arguments: tuple[Argument, ...],
    bytes_moved: int,
) -> Launch:
    """A launch with its arguments packed.

    Raises:
        DeviceError: more rows than a grid has.
    """
    if grid[1] > _MAX_ROWS:
        raise DeviceError(f"{entry} takes at most {_MAX_ROWS:,} rows, got {grid[1]:,}")
    packed = tuple(_pack(letter, value) for letter, value in zip(signature, arguments, strict=True))
    return Launch(entry, grid, (threads, 1, 1), signature, packed, bytes_moved)


def _pack(letter: str, value: Argument) -> int | float:
    if isinstance(value, (int, float)):
        return float(value) if letter == "d" else int(value)
    assert value is not None
    return value.pointer


def suffix(buffer: Buffer) -> str:
    """Of the entry point for a buffer's type.

    Raises:
        DeviceError: there is none.
    """
    try:
        return _SUFFIX[str(buffer.dtype)]
    except KeyError:
        raise DeviceError(
            f"the CUDA kernels read float32 or float16, got {buffer.dtype}; export the graph again"
        ) from None
