"""What every request has, in any family: a condition and a seed for each image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fewstep.runtime.errors import RequestError

_MAX_SEED = 2**64 - 1


def seeds_of(seed: int | Sequence[int], count: int) -> npt.NDArray[np.uint64]:
    """One seed per image: ``seed + i``, or those given.

    Raises:
        RequestError: not integers, a wrong number of seeds, or one outside 0 … 2⁶⁴ − 1.
    """
    single = not isinstance(seed, (Sequence, np.ndarray))
    given: list[object] = [seed] if single else list(seed)  # type: ignore[arg-type]
    if wrong_kind := [value for value in given if not isinstance(value, (int, np.integer))]:
        raise RequestError(f"seeds must be integers, got {wrong_kind[0]!r}")
    seeds = [int(value) for value in given]  # type: ignore[call-overload]
    if single:
        seeds = [seeds[0] + i for i in range(count)]
    if len(seeds) != count:
        raise RequestError(f"expected {count} seeds, one per image, got {len(seeds)}")
    if wrong := [value for value in seeds if not 0 <= value <= _MAX_SEED]:
        raise RequestError(f"seeds must be 0 … 2^64 − 1, got {wrong[0]}")
    return np.array(seeds, np.uint64)
