"""What the diffusion of some tokens starts from: normal noise, and the first of its timesteps.

    x[p, k] = noise of the image's seed, the token's position and step 0

Shapes: seeds ``[B]`` uint64, positions ``[K, P]`` int32, timesteps ``[S]`` int32 → x ``[P, K, C]``
float32 with P = B or 2·B (the same twice), counter ``[1]`` and timestep ``[1]`` int32.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fewstep.runtime.kernels.compiled import kernel
from fewstep.runtime.kernels.normal import NUMBERS, normals


@kernel
def start_diffusion(
    seeds: npt.NDArray[np.uint64],
    positions: npt.NDArray[np.int32],
    timesteps: npt.NDArray[np.int32],
    first: int,
    x: npt.NDArray[np.float32],
    counter: npt.NDArray[np.int32],
    timestep: npt.NDArray[np.int32],
) -> None:
    """Write noise, and where the diffusion begins.

    Args:
        seeds: ``[B]``.
        positions: of the tokens in the image, ``[K, P]``.
        timesteps: of all diffusions, ``[S]``.
        first: where this one's begin in ``timesteps``.
        x: out, ``[P, K, C]``.
        counter: out, ``[1]``: becomes ``first``.
        timestep: out, ``[1]``: becomes the timestep there.
    """
    batch, (rows, count, channels) = len(seeds), x.shape
    counter[0] = first
    timestep[0] = timesteps[first]
    for row in range(rows):
        for k in range(count):
            for index in range((channels + NUMBERS - 1) // NUMBERS):
                four = normals(seeds[row % batch], positions[k, row], 0, index)
                for number in range(min(NUMBERS, channels - NUMBERS * index)):
                    x[row, k, NUMBERS * index + number] = four[number]
