"""How the kernels of diffusion are launched, and those that order the tokens that it makes.

The arguments by name are those of the CPU kernels; their order is that of the ``.cu`` files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from fewstep.runtime.devices import Buffer
from fewstep.runtime.errors import DeviceError
from fewstep.runtime.kernels.launch_base import THREADS, Launch, launch
from fewstep.runtime.kernels.launch_tokens import MAX_TOKENS

_ONE_WARP = 32


def _random_order(*, seeds: Buffer, given: Buffer, order: Buffer) -> Launch:
    (batch, count), rows = given.shape, order.shape[1]
    if count > MAX_TOKENS:
        raise DeviceError(f"the CUDA kernels order at most {MAX_TOKENS:,} tokens, got {count:,}")
    arguments = (seeds, given, batch, count, rows, order)
    moved = batch * (8 + count) + 4 * rows * count
    return launch("random_order", (batch, 1), THREADS, "PPiiiP", arguments, moved)


def _gather_tokens(*, source: Buffer, index: Buffer, target: Buffer) -> Launch:
    (batch, count, channels), rows = source.shape, index.shape[1]
    numbers = math.prod(target.shape)
    arguments = (source, index, batch, count, channels, rows, numbers, target)
    moved = 8 * numbers + 4 * math.prod(index.shape)
    return launch("gather_tokens", _grid(numbers), THREADS, "PPiiiiiP", arguments, moved)


def _scatter_tokens(*, source: Buffer, index: Buffer, target: Buffer) -> Launch:
    (batch, count, channels), rows = target.shape, source.shape[1]
    numbers = math.prod(target.shape)
    arguments = (source, index, batch, count, channels, rows, numbers, target)
    moved = 8 * numbers + 4 * batch * count
    return launch("scatter_tokens", _grid(numbers), THREADS, "PPiiiiiP", arguments, moved)


def _start_diffusion(
    *,
    seeds: Buffer,
    positions: Buffer,
    timesteps: Buffer,
    first: int,
    x: Buffer,
    counter: Buffer,
    timestep: Buffer,
) -> Launch:
    rows, count, channels = x.shape
    numbers, batch = math.prod(x.shape), seeds.shape[0]
    sizes = (first, batch, rows, count, channels)
    arguments = (seeds, positions, timesteps, *sizes, x, counter, timestep)
    moved = 4 * numbers + 4 * rows * count
    return launch("start_diffusion", _grid(numbers), THREADS, "PPPiiiiiPPP", arguments, moved)


def _diffusion_step(
    *,
    denoised: Buffer,
    coefficients: Buffer,
    counter: Buffer,
    timestep: Buffer,
    seeds: Buffer,
    positions: Buffer,
    parameters: Buffer,
    x: Buffer,
    error: Buffer,
) -> Launch:
    rows, count, channels = x.shape
    batch = seeds.shape[0]
    numbers = batch * count * channels
    pointers = (denoised, coefficients, counter, timestep, seeds, positions, parameters)
    arguments = (*pointers, batch, rows, count, channels, x, error)
    moved = numbers * (16 if rows == batch else 24) + 4 * batch * count
    return launch("diffusion_step", _grid(numbers), THREADS, "PPPPPPPiiiiPP", arguments, moved)


def _advance(*, timesteps: Buffer, counter: Buffer, timestep: Buffer) -> Launch:
    arguments = (timesteps, timesteps.shape[0], counter, timestep)
    return launch("advance", (1, 1), _ONE_WARP, "PiPP", arguments, 16)


def _grid(numbers: int) -> tuple[int, int]:
    return -(-numbers // THREADS), 1


LAUNCHES: Mapping[str, Callable[..., Launch]] = {
    "advance": _advance,
    "diffusion_step": _diffusion_step,
    "gather_tokens": _gather_tokens,
    "random_order": _random_order,
    "scatter_tokens": _scatter_tokens,
    "start_diffusion": _start_diffusion,
}
