"""What a generation returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.runtime.devices import Array


@dataclass(frozen=True)
class Result:
    """Generated images and how they came about.

    ``images [B, H, W, 3]`` uint8; ``seeds [B]`` uint64; ``trace``: what was decided at every
    step, of the bundle's family; ``timings_ms``: milliseconds per stage (that of each graph,
    ``sampling``, ``other``) and in ``total``, over the whole request.
    """

    images: npt.NDArray[np.uint8]
    seeds: npt.NDArray[np.uint64]
    trace: Any
    timings_ms: dict[str, float]

    @property
    def tokens(self) -> Array:
        """What the images were decoded from, ``[B, …]``; for token models ids ``[B, N]`` int32."""
        final: Array = self.trace.final
        return final
