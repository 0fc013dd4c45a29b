"""Decoder output to pixels: ``[B, 3, H, W]`` float32 in 0…1 → ``[B, H, W, 3]`` uint8, rounded."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def to_pixels(*, image: npt.NDArray[np.float32], pixels: npt.NDArray[np.uint8]) -> None:
    """Clamp, scale to 0…255, round to nearest and move channels last."""
    scaled = np.rint(np.clip(image, 0, 1) * np.float32(255))
    np.copyto(pixels, scaled.transpose(0, 2, 3, 1), casting="unsafe")
