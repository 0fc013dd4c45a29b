"""Philox in NumPy's integers and normal numbers in float64, of whole arrays at once.

Independent of the kernels: figure 4 of the paper of Philox, and NumPy's own logarithm, sine and
cosine.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
Doubles = npt.NDArray[np.float64]

_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox(seeds: npt.ArrayLike, *counter: npt.ArrayLike) -> tuple[Words, Words, Words, Words]:
    """The four words of 32 bits for seeds and counters of four words, broadcast."""
    key, *words = np.broadcast_arrays(*(np.asarray(each, np.uint64) for each in (seeds, *counter)))
    c0, c1, c2, c3 = words
    k0, k1 = key & _LOW, key >> _HALF
    for _ in range(10):
        product0, product1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1 = (product1 >> _HALF) ^ c1 ^ k0, product1 & _LOW
        c2, c3 = (product0 >> _HALF) ^ c3 ^ k1, product0 & _LOW
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & _LOW, (k1 + np.uint64(0xBB67AE85)) & _LOW
    return c0, c1, c2, c3


def uniform(words: Words) -> Doubles:
    """The upper 23 bits plus a half."""
    return np.asarray(((words >> np.uint64(9)).astype(np.float64) + 0.5) / 2**23)


def normals(
    seeds: npt.ArrayLike, positions: npt.ArrayLike, step: int, channels: int = 4
) -> Doubles:
    """Normal numbers ``[…, channels]`` of seeds and positions, broadcast."""
    seeds, positions = np.asarray(seeds, np.uint64), np.asarray(positions)
    index = np.arange(-(-channels // 4))
    words = philox(seeds[..., None], positions[..., None], step, index, 1)
    u0, u1, u2, u3 = map(uniform, words)
    found = []
    for first, second in ((u0, u1), (u2, u3)):
        radius, angle = np.sqrt(-2 * np.log(first)), 2 * np.pi * second
        found += [radius * np.cos(angle), radius * np.sin(angle)]
    every = np.stack(found, axis=-1)
    return every.reshape(*every.shape[:-2], -1)[..., :channels]
