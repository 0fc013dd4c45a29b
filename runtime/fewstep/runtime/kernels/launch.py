"""How each CUDA kernel is launched: entry point, grid, block, arguments, and bytes moved.

The one place that knows the ``.cu`` files' parameter lists; the arguments given by name are those
of the CPU kernels of the same name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fewstep.runtime.devices import Buffer
from fewstep.runtime.errors import DeviceError

Argument = Buffer | int | float | None

ENTRIES = (
    *("copy_rows", "initial_tokens", "policy_parameters", "remask"),
    *("sample_tokens_float", "sample_tokens_half"),
    *("sample_top_k_top_p_float", "sample_top_k_top_p_half", "sampling_parameters"),
    *("to_pixels_float", "to_pixels_half"),
)
"""Entry points of a cubin."""

MAX_CODES = 65_536
MAX_TOKENS = 4_096
_MAX_ROWS = 65_535  # gridDim.y
_THREADS = 256
_CHUNK, _WARP = 128, 32
_WIDE, _NARROW = 16, 2  # bytes that copy_rows moves at once
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


def launch_of(kernel: str, arguments: Mapping[str, Argument]) -> Launch:
    """The launch of a kernel, arguments by name.

    Raises:
        DeviceError: sizes or types that the CUDA kernel does not take.
    """
    return _LAUNCHES[kernel](**arguments)


def _initial_tokens(
    *,
    given: Buffer,
    mask: Buffer,
    codebook_size: int,
    mask_token: int,
    tokens: Buffer,
    error: Buffer,
) -> Launch:
    batch, count = given.shape
    rows = tokens.shape[0]
    arguments = (given, mask, batch, count, codebook_size, mask_token, tokens, error)
    grid = (-(-count // _THREADS), rows)
    moved = count * (5 * batch + 4 * rows)
    return _launch("initial_tokens", grid, _THREADS, "PPiiiiPP", arguments, moved)


def _sample_tokens(
    *,
    conditional: Buffer,
    unconditional: Buffer,
    tokens: Buffer,
    parameters: Buffer,
    seeds: Buffer,
    step: int,
    mask_token: int,
    sampled: Buffer,
    confidence: Buffer,
    error: Buffer,
) -> Launch:
    batch, count, codes = _logits(conditional, unconditional)
    threads = _WARP * min(-(-codes // _CHUNK), _THREADS // _WARP)
    shared = int(unconditional.shape[0] == 1)
    arguments = (
        *(conditional, unconditional, shared, tokens, parameters, seeds),
        *(step, mask_token, codes, sampled, confidence, error),
    )
    moved = _logit_bytes(conditional, unconditional) + batch * count * 12
    entry = f"sample_tokens_{_suffix(conditional)}"
    return _launch(entry, (count, batch), threads, "PPiPPPiiiPPP", arguments, moved)


def _sample_top_k_top_p(
    *,
    conditional: Buffer,
    unconditional: Buffer,
    parameters: Buffer,
    seeds: Buffer,
    step: int,
    given: Buffer,
    tokens: Buffer,
    error: Buffer,
) -> Launch:
    batch, count, codes = _logits(conditional, unconditional)
    shared = int(unconditional.shape[0] == 1)
    arguments = (
        *(conditional, unconditional, shared, parameters, seeds, step),
        *(given, codes, tokens, error),
    )
    moved = _logit_bytes(conditional, unconditional) + batch * count * 8
    entry = f"sample_top_k_top_p_{_suffix(conditional)}"
    return _launch(entry, (count, batch), _THREADS, "PPiPPiPiPP", arguments, moved)


def _logits(conditional: Buffer, unconditional: Buffer) -> tuple[int, int, int]:
    """Batch, positions and codes of the logits."""
    batch, count, codes = conditional.shape
    if codes > MAX_CODES:
        raise DeviceError(
            f"the CUDA kernels sample from at most {MAX_CODES:,} codes, got {codes:,}"
        )
    if unconditional.dtype != conditional.dtype:
        raise DeviceError(
            f"both logits must be of one type, got {conditional.dtype} and {unconditional.dtype}"
        )
    return batch, count, codes


def _logit_bytes(conditional: Buffer, unconditional: Buffer) -> int:
    """Of both, once; without guidance they are the same."""
    own = unconditional.pointer != conditional.pointer
    rows = conditional.shape[0] + (unconditional.shape[0] if own else 0)
    return math.prod((rows, *conditional.shape[1:])) * conditional.dtype.itemsize


def _remask(
    *,
    confidence: Buffer,
    sampled: Buffer,
    parameters: Buffer,
    mask: Buffer,
    mask_token: int,
    at_least_one: int,
    next_tokens: Buffer,
) -> Launch:
    batch, count = confidence.shape
    if count > MAX_TOKENS:
        raise DeviceError(f"the CUDA kernels take at most {MAX_TOKENS:,} tokens, got {count:,}")
    rows = next_tokens.shape[0]
    arguments = (
        *(confidence, sampled, parameters, mask, mask_token, at_least_one),
        *(count, rows, next_tokens),
    )
    moved = count * ((9 if at_least_one else 8) * batch + 4 * rows)
    return _launch("remask", (batch, 1), _THREADS, "PPPPiiiiP", arguments, moved)


def _policy_parameters(
    *,
    action: Buffer,
    ratio_offset: float,
    masking_offset: float,
    sampling_offset: float,
    guidance_offset: float,
    parameters: Buffer,
    error: Buffer,
) -> Launch:
    batch = action.shape[0]
    offsets = (ratio_offset, masking_offset, sampling_offset, guidance_offset)
    arguments = (action, batch, *offsets, parameters, error)
    grid = (-(-batch // 128), 1)
    return _launch("policy_parameters", grid, 128, "PiddddPP", arguments, batch * 32)


def _sampling_parameters(
    *,
    action: Buffer,
    guidance_offset: float,
    top_k_offset: float,
    top_p_offset: float,
    temperature_offset: float,
    guidance_scale: float,
    parameters: Buffer,
    error: Buffer,
) -> Launch:
    batch = action.shape[0]
    numbers = (guidance_offset, top_k_offset, top_p_offset, temperature_offset, guidance_scale)
    arguments = (action, batch, *numbers, parameters, error)
    grid = (-(-batch // 128), 1)
    return _launch("sampling_parameters", grid, 128, "PidddddPP", arguments, batch * 32)


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
    return _launch("copy_rows", (written, groups), _THREADS, "PPiiiii", arguments, moved)


def _to_pixels(*, image: Buffer, pixels: Buffer, error: Buffer) -> Launch:
    batch, _, *size = image.shape
    count = math.prod(size)
    arguments = (image, count, pixels, error)
    moved = batch * count * 3 * (image.dtype.itemsize + 1)
    entry = f"to_pixels_{_suffix(image)}"
    return _launch(entry, (-(-count // _THREADS), batch), _THREADS, "PiPP", arguments, moved)


_LAUNCHES: dict[str, Callable[..., Launch]] = {
    "copy_rows": _copy_rows,
    "initial_tokens": _initial_tokens,
    "policy_parameters": _policy_parameters,
    "remask": _remask,
    "sample_tokens": _sample_tokens,
    "sample_top_k_top_p": _sample_top_k_top_p,
    "sampling_parameters": _sampling_parameters,
    "to_pixels": _to_pixels,
}


def _launch(
    entry: str,
    grid: tuple[int, int],
    threads: int,
    signature: str,
    arguments: tuple[Argument, ...],
    bytes_moved: int,
) -> Launch:
    if grid[1] > _MAX_ROWS:
        raise DeviceError(f"{entry} takes at most {_MAX_ROWS:,} rows, got {grid[1]:,}")
    packed = tuple(_pack(letter, value) for letter, value in zip(signature, arguments, strict=True))
    return Launch(entry, grid, (threads, 1, 1), signature, packed, bytes_moved)


def _pack(letter: str, value: Argument) -> int | float:
    if isinstance(value, (int, float)):
        return float(value) if letter == "d" else int(value)
    assert value is not None
    return value.pointer


def _suffix(buffer: Buffer) -> str:
    try:
        return _SUFFIX[str(buffer.dtype)]
    except KeyError:
        raise DeviceError(
            f"the CUDA kernels read float32 or float16, got {buffer.dtype}; export the graph again"
        ) from None
