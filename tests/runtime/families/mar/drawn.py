"""The random numbers of MAR, by the kernels' references in NumPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from tests.runtime.kernels import reference
from torch import Tensor


def noise(seeds: Sequence[int], step: int, tokens: int, channels: int) -> Tensor:
    """Normal numbers of a step, ``[B, L, C]`` float64."""
    keys = np.array(seeds, np.uint64)[:, None]
    return torch.from_numpy(reference.normals(keys, np.arange(tokens), step, channels))


def orders(seeds: Sequence[int], tokens: int, given: npt.NDArray[np.bool_] | None = None) -> Tensor:
    """As the official code has them, ``[B, L]``: the first ones of each stay masked the longest.

    Args:
        seeds: of the images.
        tokens: of an image, L.
        given: ``[B, L]``, tokens that are never masked: they come last.
    """
    words = reference.philox(np.array(seeds, np.uint64)[:, None], np.arange(tokens), 0, 0, 2)[0]
    drawn = words.astype(np.int64)
    if given is not None:
        drawn = np.where(given, -1, drawn)
    return torch.from_numpy(np.argsort(drawn, axis=1, kind="stable")[:, ::-1].copy())
