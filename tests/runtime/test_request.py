"""Requests: kinds of numbers that are accepted, and what is refused with which words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fewstep.runtime.errors import RequestError
from fewstep.runtime.generator import Generator
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 2.5}, "steps must be an integer, got 2.5"),
        ({"guidance": "3"}, "guidance must be a number or a pair"),
        ({"guidance": (1.0, 2.0, 3.0)}, "guidance must be a number or a pair"),
        ({"guidance": (1.0, None)}, "guidance must be a number or a pair"),
        ({"sampling_temperature": float("nan")}, "must be finite and at least 0"),
        ({"class_ids": [0.5]}, "class_ids must be a list of integers"),
        ({"class_ids": []}, "class_ids must be a list of integers"),
    ],
)
def test_bad_arguments(generator: Generator, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        generator.generate(**{"class_ids": [0], **arguments})


def test_numpy_numbers_are_numbers(generator: Generator) -> None:
    plain = generator.generate(class_ids=[1], steps=3, guidance=2.0)
    numpy = generator.generate(
        class_ids=np.array([1]),  # type: ignore[arg-type]
        steps=np.int32(3),  # type: ignore[arg-type]
        guidance=np.float32(2),  # type: ignore[arg-type]
    )
    np.testing.assert_array_equal(plain.tokens, numpy.tokens)
