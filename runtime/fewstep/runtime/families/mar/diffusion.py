"""The diffusion that tokens are drawn by: which timesteps are taken, and what each one does.

As MAR has it (``diffusion/__init__.py``, ``respace.py`` and ``gaussian_diffusion.py`` of
LTH14/mar): 1,000 timesteps with betas from a squared cosine, of which fewer are taken, with betas
made anew between them. Everything is float64, as there.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

TIMESTEPS = 1000
"""That heads are trained with."""

ANNEALED_END = 950
"""The largest timestep of diffusions that get shorter from iteration to iteration, as DiSA has it
(Qinyu-Allen-Zhao/DiSA); larger ones are merged into it."""

_STRIDED = "ddim"
_LARGEST_BETA = 0.999
_OFFSET = 0.008
_LEAST_VARIANCE = 1e-20


@functools.lru_cache(maxsize=4096)
def timesteps(spacing: str, largest: int = TIMESTEPS - 1) -> tuple[int, ...]:
    """The timesteps that are taken, from the largest down to 0.

    Args:
        spacing: as ``timestep_respacing`` of the official code has it: ``25`` for so many, evenly
            spaced with both ends; ``ddim25`` for so many with one stride from 0; ``10+15`` for so
            many in every one of as many equal parts (there written with commas).
        largest: larger ones are merged into this one.

    Raises:
        ValueError: nothing of this kind, or more timesteps than there are.
    """
    if spacing.startswith(_STRIDED):
        return _merged(_strided(spacing), largest)
    words = spacing.split("+")
    if not all(each.isascii() and each.isdigit() for each in words):
        raise ValueError(f"must be a number, ddimN or numbers with + between them, got {spacing!r}")
    counts = [*map(int, words)]
    size, more = divmod(TIMESTEPS, len(counts))
    found, start = list[int](), 0
    for part, count in enumerate(counts):
        own = size + (part < more)
        if not 1 <= count <= own:
            raise ValueError(f"must be 1 … {own:,} timesteps, got {spacing!r}")
        stride = (own - 1) / (count - 1) if count > 1 else 1.0
        # Added up as the official code does: multiples of the stride round differently.
        at = itertools.accumulate(itertools.repeat(stride, count - 1), initial=0.0)
        found += [start + round(each) for each in at]
        start += own
    return _merged(found, largest)


def _strided(spacing: str) -> list[int]:
    wanted = spacing.removeprefix(_STRIDED)
    count = int(wanted) if wanted.isascii() and wanted.isdigit() else 0
    for stride in range(1, TIMESTEPS):
        if len(found := [*range(0, TIMESTEPS, stride)]) == count:
            return found
    raise ValueError(f"no stride takes so many of {TIMESTEPS:,} timesteps, got {spacing!r}")


def _merged(found: Sequence[int], largest: int) -> tuple[int, ...]:
    return tuple(sorted({min(each, largest) for each in found}, reverse=True))


@functools.lru_cache(maxsize=256)
def coefficients(taken: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """What ``kernels.diffusion_step`` reads of every timestep, ``[S, 5]``: a, b, ½·low, ½·high,
    and whether there is noise.

    Args:
        taken: timesteps, the largest first.
    """
    bars = np.cumprod(1 - _betas())[list(taken[::-1])]
    before = np.append(1.0, bars[:-1])
    betas = 1 - bars / before
    alphas = np.cumprod(1 - betas)
    before = np.append(1.0, alphas[:-1])
    variance = betas * (1 - before) / (1 - alphas)
    low = np.log(np.append(variance[1], variance[1:]) if len(taken) > 1 else [_LEAST_VARIANCE])
    x0 = betas * np.sqrt(before) / (1 - alphas)
    a = x0 / np.sqrt(alphas) + (1 - before) * np.sqrt(1 - betas) / (1 - alphas)
    b = x0 * np.sqrt(1 / alphas - 1)
    noisy = np.arange(len(taken)) > 0
    table = np.stack([a, b, 0.5 * low, 0.5 * np.log(betas), noisy], axis=1)
    return np.ascontiguousarray(table[::-1], np.float32)


def _betas() -> npt.NDArray[np.float64]:
    """Of all timesteps."""

    def bar(t: float) -> float:
        return math.cos((t + _OFFSET) / (1 + _OFFSET) * math.pi / 2) ** 2

    pairs = itertools.pairwise(step / TIMESTEPS for step in range(TIMESTEPS + 1))
    return np.array([min(1 - bar(end) / bar(start), _LARGEST_BETA) for start, end in pairs])
