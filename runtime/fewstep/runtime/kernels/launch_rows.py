"""How the kernels are launched that move rows of caches, and select them.

The arguments by name are those of the CPU kernels; their order is that of the ``.cu`` files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from fewstep.runtime.devices import Buffer
from fewstep.runtime.errors import DeviceError
from fewstep.runtime.kernels.launch_base import THREADS, Launch, launch

MAX_POSITIONS = 8_192
_WARP = 32
_WIDE, _NARROW = 16, 2  # bytes that copy_rows moves at once
_NUMBER = 4  # bytes of a number that gather_rows and scatter_rows move


def _copy_rows(*, source: Buffer, target: Buffer, first: int) -> Launch:
    if source.dtype != target.dtype or source.dtype.itemsize % _NARROW:
        raise DeviceError(
            "copy_rows copies between buffers of one type of 2, 4 or 8 bytes, got "
            f"{source.dtype} and {target.dtype}"
        )
    groups, rows, width = target.shape
    written = rows - first
    if written < 1:
        raise DeviceError(f"copy_rows starts at one of the {rows:,} rows, got {first:,}")
    period, row_bytes = source.shape[1], width * source.dtype.itemsize
    wide = all(each % _WIDE == 0 for each in (row_bytes, source.pointer, target.pointer))
    words = row_bytes // (_WIDE if wide else _NARROW)
    arguments = (source, target, first, period, rows, words, int(wide))
    moved = groups * (min(period, written) + written) * row_bytes
    return launch("copy_rows", (written, groups), THREADS, "PPiiiii", arguments, moved)


def _gather_rows(*, source: Buffer, index: Buffer, width: int, target: Buffer) -> Launch:
    return _moved("gather_rows", source, index, width, target)


def _scatter_rows(*, source: Buffer, index: Buffer, width: int, target: Buffer) -> Launch:
    return _moved("scatter_rows", source, index, width, target)


def _moved(entry: str, source: Buffer, index: Buffer, width: int, target: Buffer) -> Launch:
    groups, (count, rows) = source.shape[0], index.shape
    if target.shape[0] != groups:
        raise DeviceError(
            f"{entry} moves between as many groups, got {groups:,} and {target.shape[0]:,}"
        )
    if source.dtype != target.dtype or source.dtype.itemsize != _NUMBER:
        raise DeviceError(
            f"{entry} moves numbers of one type of 4 bytes, got {source.dtype} and {target.dtype}"
        )
    strides = math.prod(source.shape[1:]), math.prod(target.shape[1:])
    arguments = (source, index, rows, width, *strides, target)
    moved = count * rows * (8 * groups * width + 4)
    return launch(entry, (count * rows, groups), THREADS, "PPiiiiP", arguments, moved)


def _similarity(
    *, values: Buffer, cached: Buffer, heads: int, similarity: Buffer, error: Buffer
) -> Launch:
    count, rows, width = values.shape
    batch = similarity.shape[0]
    arguments = (values, cached, heads, width // heads, batch, similarity, error)
    moved = count * rows * (8 * width + 4)
    return launch("similarity", (count, rows), _WARP, "PPiiiPP", arguments, moved)


def _select_rows(
    *,
    similarity: Buffer,
    known: int,
    previous: int,
    following: int,
    selected: Buffer,
    rest: Buffer,
) -> Launch:
    batch, halves, count = similarity.shape
    if count > MAX_POSITIONS:
        raise DeviceError(
            f"the CUDA kernels select from at most {MAX_POSITIONS:,} positions, got {count:,}"
        )
    most, rows = selected.shape[0], batch * halves
    arguments = (similarity, known, previous, following, batch, count, most, selected, rest)
    return launch("select_rows", (rows, 1), THREADS, "PiiiiiiPP", arguments, 8 * rows * count)


def _subtract(*, a: Buffer, b: Buffer, out: Buffer) -> Launch:
    numbers = math.prod(out.shape)
    grid = (-(-numbers // THREADS), 1)
    return launch("subtract", grid, THREADS, "PPiP", (a, b, numbers, out), 12 * numbers)


def _add_half(*, own: Buffer, difference: Buffer, both: Buffer) -> Launch:
    numbers, half = math.prod(own.shape), math.prod(own.shape[1:])
    grid = (-(-numbers // THREADS), 1)
    arguments = (own, difference, half, numbers, both)
    return launch("add_half", grid, THREADS, "PPiiP", arguments, 16 * numbers)


LAUNCHES: Mapping[str, Callable[..., Launch]] = {
    "add_half": _add_half,
    "copy_rows": _copy_rows,
    "gather_rows": _gather_rows,
    "scatter_rows": _scatter_rows,
    "select_rows": _select_rows,
    "similarity": _similarity,
    "subtract": _subtract,
}
