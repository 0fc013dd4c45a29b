"""One step of the ancestral sampler of a diffusion, with guidance and a learned variance.

As the official MAR code samples (``diffusion/gaussian_diffusion.py`` and ``models/diffloss.py`` of
LTH14/mar, after Nichol and Dhariwal, 2021), without clipping:

    ε   = εu + s·(εc − εu)                       without guidance εc
    v   = (the second half of the head's output, conditional, + 1) / 2
    x'  = a·x − b·ε + τ·exp(½·(v·high + (1 − v)·low))·n

a and b are the two coefficients of the official mean, x₀ = (x − √(1−ᾱ)·ε)/√ᾱ put into
μ = c₁·x₀ + c₂·x, multiplied out: a = c₁/√ᾱ + c₂, b = c₁·√(1/ᾱ − 1). So the large 1/√ᾱ at the first
timesteps meets nothing of its size. high and low are the logarithms of the largest and the least
variance. n is normal noise of the image's seed, the token's position and step t + 1, at timestep t;
there is none in the last step of a diffusion.

Shapes: x ``[P, K, C]``, denoised ``[P, K, 2·C]`` float32, P = B or, with guidance, 2·B, conditional
half first; coefficients ``[S, 5]`` float32: a, b, ½·low, ½·high, and whether there is noise.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fewstep.runtime.kernels.compiled import kernel
from fewstep.runtime.kernels.exponential import exponential
from fewstep.runtime.kernels.normal import NUMBERS, normals

COEFFICIENTS = 5
"""Of a step: a, b, ½·low, ½·high, noise."""

_HALF, _ONE = np.float32(0.5), np.float32(1)
_LARGEST = np.float32(87)  # of an exponent


@kernel
def diffusion_step(
    denoised: npt.NDArray[np.float32],
    coefficients: npt.NDArray[np.float32],
    counter: npt.NDArray[np.int32],
    timestep: npt.NDArray[np.int32],
    seeds: npt.NDArray[np.uint64],
    positions: npt.NDArray[np.int32],
    parameters: npt.NDArray[np.float32],
    x: npt.NDArray[np.float32],
    error: npt.NDArray[np.int32],
) -> None:
    """Take one step.

    Args:
        denoised: what the head gives, ``[P, K, 2·C]``.
        coefficients: of all diffusions, ``[S, 5]``.
        counter: ``[1]``, which of them.
        timestep: ``[1]``, 0 … 999.
        seeds: ``[B]``.
        positions: of the tokens in the image, ``[K, P]``.
        parameters: guidance scale s (1 is none) and temperature τ, ``[2]``.
        x: in and out, ``[P, K, C]``; both halves become the same.
        error: in and out, ``[1]``: becomes 1 if a number is not finite.
    """
    batch, (rows, count, channels) = len(seeds), x.shape
    given = coefficients[counter[0]]
    a, b, low, high, noisy = given[0], given[1], given[2], given[3], given[4]
    guidance, temperature = parameters[0], parameters[1]
    step = timestep[0] + 1
    for image in range(batch):
        for k in range(count):
            for channel in range(channels):
                noise = denoised[image, k, channel]
                if rows > batch:
                    other = denoised[image + batch, k, channel]
                    noise = other + guidance * (noise - other)
                new = a * x[image, k, channel] - b * noise
                if noisy != 0:
                    if channel % NUMBERS == 0:
                        four = normals(seeds[image], positions[k, image], step, channel // NUMBERS)
                    part = (denoised[image, k, channels + channel] + _ONE) * _HALF
                    exponent = part * high + (_ONE - part) * low
                    deviation = exponent  # kept where it is not finite, so that x is not either
                    if np.isfinite(exponent):
                        deviation = exponential(min(exponent, _LARGEST))
                    new += deviation * four[channel % NUMBERS] * temperature
                if not np.isfinite(new):
                    error[0] = 1
                for row in range(image, rows, batch):
                    x[row, k, channel] = new
