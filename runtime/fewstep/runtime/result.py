"""What a generation returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Trace:
    """How the tokens were decided.

    ``tokens [T + 1, B, N]``: ids before each step and after the last; ``mask_token`` where still
    masked. ``sampled [T, B, N]``: ids sampled at each step (known positions keep theirs).
    ``parameters [T, B, 4]``: mask ratio, masking temperature, sampling temperature, guidance.
    """

    tokens: npt.NDArray[np.int32]
    sampled: npt.NDArray[np.int32]
    parameters: npt.NDArray[np.float32]
    mask_token: int


@dataclass(frozen=True)
class Result:
    """Generated images and how they came about.

    ``images [B, H, W, 3]`` uint8; ``tokens [B, N]`` int32, the final ids; ``seeds [B]`` uint64;
    ``timings_ms``: milliseconds per stage (``transformer``, ``policy``, ``sampling``,
    ``decoder``, ``other``) and in ``total``, over the whole request.
    """

    images: npt.NDArray[np.uint8]
    tokens: npt.NDArray[np.int32]
    seeds: npt.NDArray[np.uint64]
    trace: Trace
    timings_ms: dict[str, float]
