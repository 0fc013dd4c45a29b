"""How the kernels that decide tokens are launched, and those that images end with.

The arguments by name are those of the CPU kernels; their order is that of the ``.cu`` files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from fewstep.runtime.devices import Buffer
from fewstep.runtime.errors import DeviceError
from fewstep.runtime.kernels.launch_base import THREADS, Launch, launch, suffix

MAX_CODES = 65_536
MAX_TOKENS = 4_096
_CHUNK, _WARP = 128, 32


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
    grid = (-(-count // THREADS), rows)
    moved = count * (5 * batch + 4 * rows)
    return launch("initial_tokens", grid, THREADS, "PPiiiiPP", arguments, moved)


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
    confidence_of: int,
    mask: Buffer,
    resample: int,
) -> Launch:
    batch, count, codes = _logits(conditional, unconditional)
    threads = _WARP * min(-(-codes // _CHUNK), THREADS // _WARP)
    shared = int(unconditional.shape[0] == 1)
    arguments = (
        *(conditional, unconditional, shared, tokens, parameters, seeds),
        *(step, mask_token, codes, sampled, confidence, error, confidence_of, mask, resample),
    )
    moved = _logit_bytes(conditional, unconditional) + batch * count * 12
    entry = f"sample_tokens_{suffix(conditional)}"
    return launch(entry, (count, batch), threads, "PPiPPPiiiPPPiPi", arguments, moved)


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
    mask_token: int,
) -> Launch:
    batch, count, codes = _logits(conditional, unconditional)
    shared = int(unconditional.shape[0] == 1)
    arguments = (
        *(conditional, unconditional, shared, parameters, seeds, step),
        *(given, codes, tokens, error, mask_token),
    )
    moved = _logit_bytes(conditional, unconditional) + batch * count * 8
    entry = f"sample_top_k_top_p_{suffix(conditional)}"
    return launch(entry, (count, batch), THREADS, "PPiPPiPiPPi", arguments, moved)


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
    ties: int,
) -> Launch:
    batch, count = confidence.shape
    if count > MAX_TOKENS:
        raise DeviceError(f"the CUDA kernels take at most {MAX_TOKENS:,} tokens, got {count:,}")
    rows = next_tokens.shape[0]
    arguments = (
        *(confidence, sampled, parameters, mask, mask_token, at_least_one),
        *(ties, count, rows, next_tokens),
    )
    moved = count * (9 * batch + 4 * rows)
    return launch("remask", (batch, 1), THREADS, "PPPPiiiiiP", arguments, moved)


def _choose_tokens(
    *, tokens: Buffer, ranks: Buffer, first: Buffer, last: Buffer, given: Buffer
) -> Launch:
    batch, count = tokens.shape
    arguments = (tokens, ranks, first, last, count, given)
    grid = (-(-count // THREADS), batch)
    return launch("choose_tokens", grid, THREADS, "PPPPiP", arguments, batch * (12 * count + 8))


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
    return launch("policy_parameters", grid, 128, "PiddddPP", arguments, batch * 32)


def _smooth_actions(
    *, action: Buffer, before: Buffer, smoothing: float, smoothed: Buffer
) -> Launch:
    count = math.prod(action.shape)
    arguments = (action, before, smoothing, count, smoothed)
    return launch("smooth_actions", (-(-count // 128), 1), 128, "PPdiP", arguments, count * 12)


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
    return launch("sampling_parameters", grid, 128, "PidddddPP", arguments, batch * 32)


def _to_pixels(*, image: Buffer, pixels: Buffer, error: Buffer) -> Launch:
    batch, _, *size = image.shape
    count = math.prod(size)
    arguments = (image, count, pixels, error)
    moved = batch * count * 3 * (image.dtype.itemsize + 1)
    entry = f"to_pixels_{suffix(image)}"
    return launch(entry, (-(-count // THREADS), batch), THREADS, "PiPP", arguments, moved)


LAUNCHES: Mapping[str, Callable[..., Launch]] = {
    "choose_tokens": _choose_tokens,
    "initial_tokens": _initial_tokens,
    "policy_parameters": _policy_parameters,
    "remask": _remask,
    "sample_tokens": _sample_tokens,
    "sample_top_k_top_p": _sample_top_k_top_p,
    "sampling_parameters": _sampling_parameters,
    "smooth_actions": _smooth_actions,
    "to_pixels": _to_pixels,
}
