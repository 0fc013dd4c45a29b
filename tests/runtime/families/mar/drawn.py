"""The random numbers of MAR, from Philox in NumPy's integers and in float64.

Independent of the kernels: whole arrays at once, and sine and cosine of NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Words = npt.NDArray[np.uint64]

_LOW, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox(counter: Sequence[npt.ArrayLike], seed: int) -> tuple[Words, Words, Words, Words]:
    """Four words of 32 bits for every counter of a grid."""
    a, b, c, d = np.broadcast_arrays(*(np.asarray(each, np.uint64) for each in counter))
    first, second = np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32)
    for _ in range(10):
        left, right = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a, b = (right >> _SHIFT) ^ b ^ first, right & _LOW
        c, d = (left >> _SHIFT) ^ d ^ second, left & _LOW
        first = (first + np.uint64(0x9E3779B9)) & _LOW
        second = (second + np.uint64(0xBB67AE85)) & _LOW
    return a, b, c, d


def noise(seeds: Sequence[int], step: int, tokens: int, channels: int) -> Tensor:
    """Normal numbers of a step, ``[B, L, C]`` float64, by the method of Box and Muller."""
    position, four = np.arange(tokens)[:, None], np.arange(-(-channels // 4))[None]
    found = []
    for seed in seeds:
        words = philox((position, step, four, 1), seed)
        u = [((word >> np.uint64(9)).astype(np.float64) + 0.5) / 2**23 for word in words]
        pairs = ((np.sqrt(-2 * np.log(u[at])), 2 * np.pi * u[at + 1]) for at in (0, 2))
        numbers = [r * turn(angle) for r, angle in pairs for turn in (np.cos, np.sin)]
        found.append(np.stack(numbers, axis=-1).reshape(tokens, -1)[:, :channels])
    return torch.from_numpy(np.stack(found))


def orders(seeds: Sequence[int], tokens: int, given: npt.NDArray[np.bool_] | None = None) -> Tensor:
    """As the official code has them, ``[B, L]``: the first ones of each stay masked the longest.

    Args:
        seeds: of the images.
        tokens: of an image, L.
        given: ``[B, L]``, tokens that are never masked: they come last.
    """
    found = []
    for row, seed in enumerate(seeds):
        word = philox((np.arange(tokens), 0, 0, 2), seed)[0].astype(np.int64)
        drawn = word if given is None else np.where(given[row], -1, word)
        found.append(np.argsort(drawn, kind="stable")[::-1].copy())
    return torch.from_numpy(np.stack(found))
