"""Requests to a masked model: numbers that are accepted, which policy is chosen, edits, and what is
refused with which words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fewstep.runtime.errors import RequestError
from fewstep.runtime.families.masked.model import MaskedModel, MaskedPolicyInfo
from fewstep.runtime.families.masked.request import MaskedRequest, schedule_of
from fewstep.runtime.families.masked.schedule import Schedule
from fewstep.runtime.families.masked.settings import MaskedSettings
from fewstep.runtime.generator import Generator
from fewstep.runtime.settings import settings_of


def _settings(**given: Any) -> MaskedSettings:
    """Settings of a caller, for a bundle without defaults of its own."""
    return settings_of(MaskedSettings(), {"steps": 4, **given})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 2.5}, "steps must be an integer, got 2.5"),
        ({"guidance": "much"}, "guidance must be a number, a pair"),
        ({"guidance": (1.0, 2.0, 3.0)}, "lists need one value for every step: steps 8, got"),
        ({"guidance": (1.0, 2.0, None)}, "guidance must be numbers, one for every step"),
        ({"guidance": (1.0, None)}, "guidance must be a number, a pair"),
        ({"guidence": 1.0}, "unknown setting 'guidence'.*Did you mean 'guidance'"),
        ({"strength": 1.0}, "unknown setting 'strength'; expected one of: decoder, .*steps"),
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
        steps=np.int32(3),
        guidance=np.float32(2),
    )
    np.testing.assert_array_equal(plain.tokens, numpy.tokens)


# --- several policies


@pytest.fixture
def several(generator: Generator) -> MaskedModel:
    """The model with a policy for 4 steps, one for 8, and the exported one before both."""
    model = generator.bundle.manifest.model
    assert isinstance(model, MaskedModel)
    policies = {
        **model.policies,
        **{f"policy-{each}": MaskedPolicyInfo(residual=True, steps=each) for each in (4, 8)},
    }
    return model.model_copy(update={"policies": policies})


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
    assert schedule_of(several, _settings(schedule=name, steps=steps)) == expected


def test_a_curve_is_a_schedule_in_a_bundle_with_policies_too(several: MaskedModel) -> None:
    found = schedule_of(several, _settings(schedule="arccos", guidance=2))
    assert found == Schedule("arccos", guidance=(2.0, 2.0))


@pytest.mark.parametrize("name", ["policy", "policy-4"])
def test_every_policy_decides_the_ramps(several: MaskedModel, name: str) -> None:
    with pytest.raises(RequestError, match="the policy decides guidance: leave it out"):
        schedule_of(several, _settings(schedule=name, guidance=2.0))


def test_unknown_names_are_refused_with_those_there_are(several: MaskedModel) -> None:
    with pytest.raises(RequestError, match="unknown schedule 'policy-5'; .*policy-4, policy-8"):
        schedule_of(several, _settings(schedule="policy-5"))


def test_ramps_of_the_defaults_are_no_choice_of_the_caller(several: MaskedModel) -> None:
    defaults = MaskedSettings(guidance=(1.0, 2.0), schedule="policy")
    assert schedule_of(several, settings_of(defaults, {})) == "policy-8"
    found = schedule_of(several, settings_of(defaults, {"schedule": "linear"}))
    assert found == Schedule("linear", guidance=(1.0, 2.0))


# --- what is asked for


def test_a_request_holds_what_was_asked_for(generator: Generator) -> None:
    found = generator.request(class_ids=[3, 1], seed=[7, 5], steps=3, guidance=(0, 2))
    assert isinstance(found, MaskedRequest)
    assert (found.condition.tolist(), found.condition.dtype.name) == ([3, 1], "int32")
    assert (found.seeds.tolist(), found.seeds.dtype.name) == ([7, 5], "uint64")
    assert (found.steps, found.guided, found.policy) == (3, True, None)
    expected = Schedule(guidance=(0.0, 2.0)).parameters(3, 16)
    np.testing.assert_array_equal(found.parameters, expected)
    assert found.given is found.mask is None


def test_the_policy_has_no_parameters_and_is_guided(generator: Generator) -> None:
    found = generator.request(class_ids=[3], schedule="policy", steps=5)
    assert (found.policy, found.parameters, found.guided) == ("policy", None, True)
    assert not generator.request(class_ids=[3], guidance=0).guided


# --- edits


def _edit(**changed: Any) -> dict[str, Any]:
    whole = {"given": np.arange(32).reshape(2, 16) % 24, "mask": np.ones((2, 16), np.uint8)}
    return {name: value for name, value in (whole | changed).items() if value is not None}


def test_tokens_to_keep_are_part_of_the_request(generator: Generator) -> None:
    edit = _edit()
    found = generator.request(class_ids=[0, 1], edit=edit)
    np.testing.assert_array_equal(found.given, edit["given"])
    np.testing.assert_array_equal(found.mask, edit["mask"])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_edit(mask=None), "need `mask`, and `given` or `image`"),
        (_edit(given=None), "need `mask`, and `given` or `image`"),
        (_edit(more=np.zeros(3)), "need `mask`, and `given` or `image`"),
        (_edit(given=np.zeros((2, 15))), r"given must be \[2, 16\], got \[2, 15\]"),
        (_edit(mask=np.zeros((1, 16))), r"mask must be \[2, 16\], got \[1, 16\]"),
        (_edit(given=3), r"given must be \[2, 16\], got \[\]"),
        (_edit(given=np.full((2, 16), 24), mask=np.zeros((2, 16))), "must be codes, 0 … 23"),
        (_edit(given=np.full((2, 16), -1), mask=np.zeros((2, 16))), "must be codes, 0 … 23"),
    ],
)
def test_edits_that_are_refused(generator: Generator, edit: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        generator.request(class_ids=[0, 1], edit=edit)


def test_what_is_generated_anew_need_not_be_a_code(generator: Generator) -> None:
    given = np.full((2, 16), -1)
    request = generator.request(class_ids=[0, 1], edit=_edit(given=given))
    np.testing.assert_array_equal(request.given, given)
