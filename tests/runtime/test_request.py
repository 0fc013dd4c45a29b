"""What every request has: seeds, in the forms that are accepted, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fewstep.runtime.errors import RequestError
from fewstep.runtime.request import seeds_of


@pytest.mark.parametrize(
    ("seed", "expected"),
    [
        (5, [5, 6, 7]),
        (np.int64(5), [5, 6, 7]),
        ([9, 1, 2**64 - 1], [9, 1, 2**64 - 1]),
        (np.array([3, 2, 1]), [3, 2, 1]),
    ],
)
def test_seeds(seed: Any, expected: list[int]) -> None:
    assert seeds_of(seed, 3).tolist() == expected


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        (1.5, "seeds must be integers, got 1.5"),
        ([1, 2.5, 3], "seeds must be integers, got 2.5"),
        ("abc", "seeds must be integers, got 'a'"),
        ([1, 2], "expected 3 seeds, one per image, got 2"),
        (-1, "seeds must be 0"),
        (2**64 - 2, "seeds must be 0"),
    ],
)
def test_bad_seeds(seed: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        seeds_of(seed, 3)
