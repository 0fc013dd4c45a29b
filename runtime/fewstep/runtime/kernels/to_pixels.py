"""Decoder output to pixels: ``[B, 3, H, W]`` float32 in 0…1 → ``[B, H, W, 3]`` uint8, rounded."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fewstep.runtime.kernels.compiled import kernel

_ZERO, _ONE, _SCALE = np.float32(0), np.float32(1), np.float32(255)


@kernel
def to_pixels(
    image: npt.NDArray[np.float32],
    pixels: npt.NDArray[np.uint8],
    error: npt.NDArray[np.int32],
) -> None:
    """Clamp, scale to 0…255, round to nearest (ties to even) and move channels last.

    Args:
        image: ``[B, 3, H, W]``.
        pixels: out, ``[B, H, W, 3]``.
        error: in and out, ``[1]``: becomes 1 if a value is NaN.
    """
    batch, height, width, channels = pixels.shape
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                for c in range(channels):
                    if np.isnan(image[b, c, y, x]):
                        error[0] = 1
                    value = min(max(image[b, c, y, x], _ZERO), _ONE)
                    pixels[b, y, x, c] = np.uint8(np.rint(value * _SCALE))
