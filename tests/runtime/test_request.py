"""Requests: kinds of numbers that are accepted, and what is refused with which words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fewstep.runtime.errors import RequestError
from fewstep.runtime.families.masked.model import MaskedModel, PolicyInfo
from fewstep.runtime.families.masked.schedule import Schedule
from fewstep.runtime.generator import Generator
from fewstep.runtime.request import RAMPS, schedule_of, seeds_of


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


# --- several policies


@pytest.fixture
def several(generator: Generator) -> MaskedModel:
    """The model with a policy for 4 steps, one for 8, and the exported one before both."""
    policies = {
        **generator.bundle.manifest.model.policies,
        **{f"policy-{each}": PolicyInfo(residual=True, steps=each) for each in (4, 8)},
    }
    return generator.bundle.manifest.model.model_copy(update={"policies": policies})


@pytest.mark.parametrize(
    ("name", "steps", "expected"),
    [
        ("policy", 4, "policy-4"),
        ("policy", 8, "policy-8"),
        ("policy", 5, "policy"),
        ("policy-4", 8, "policy-4"),
        ("policy-8", 4, "policy-8"),
        ("policy-exported", 4, "policy"),
    ],
)
def test_policy_is_the_newest_for_the_steps_and_a_name_is_that_one(
    several: MaskedModel, name: str, steps: int, expected: str
) -> None:
    assert schedule_of(several, name, dict.fromkeys(RAMPS), steps) == expected


def test_a_curve_is_a_schedule_in_a_bundle_with_policies_too(several: MaskedModel) -> None:
    found = schedule_of(several, "arccos", dict.fromkeys(RAMPS), 4)
    assert isinstance(found, Schedule)


@pytest.mark.parametrize("name", ["policy", "policy-4"])
def test_every_policy_decides_the_ramps(several: MaskedModel, name: str) -> None:
    with pytest.raises(RequestError, match="the policy decides guidance: leave it out"):
        schedule_of(several, name, dict.fromkeys(RAMPS) | {"guidance": 2.0}, 4)


def test_unknown_names_are_refused_with_those_there_are(several: MaskedModel) -> None:
    with pytest.raises(RequestError, match="unknown schedule 'policy-5'; .*policy-4, policy-8"):
        schedule_of(several, "policy-5", dict.fromkeys(RAMPS), 4)
