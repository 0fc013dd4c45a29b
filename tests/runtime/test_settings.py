"""Settings: what is given joins the defaults, in which forms, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, TypeAdapter, ValidationError

from fewstep.runtime.errors import RequestError
from fewstep.runtime.settings import Ramp, Settings, Whole, settings_of


class _Settings(Settings):
    """Some of every kind."""

    rounds: Whole = 8
    strength: Ramp = (0.0, 3.0)
    heat: float = Field(default=1.0, ge=0)
    way: str = "straight"


_DEFAULTS = _Settings(strength=(1.0, 2.0), way="curved")


def test_what_is_not_given_is_that_of_the_defaults() -> None:
    found = settings_of(_DEFAULTS, {"rounds": 3})
    assert isinstance(found, _Settings)
    assert found.model_dump() == {**_DEFAULTS.model_dump(), "rounds": 3}
    assert settings_of(_DEFAULTS, {}) == _DEFAULTS


def test_none_is_not_given() -> None:
    given = {"rounds": None, "strength": None, "way": None, "heat": 0.5}
    found = settings_of(_DEFAULTS, given)
    assert found.model_dump() == {**_DEFAULTS.model_dump(), "heat": 0.5}
    assert found.model_fields_set == {"heat"}


@given(st.sets(st.sampled_from(sorted(_Settings.model_fields))))
def test_only_what_was_given_counts_as_set(names: set[str]) -> None:
    """The defaults' own do not: a policy is refused beside a ramp that the caller gave."""
    given = {name: getattr(_DEFAULTS, name) for name in names}
    assert settings_of(_DEFAULTS, given).model_fields_set == names


def test_given_settings_do_not_change_the_defaults() -> None:
    before = _DEFAULTS.model_dump()
    settings_of(_DEFAULTS, {"rounds": 1, "strength": 9})
    assert _DEFAULTS.model_dump() == before


def test_settings_go_through_json() -> None:
    import json

    found = settings_of(_DEFAULTS, {"strength": (0.5, 1.5), "rounds": 2})
    again = settings_of(_DEFAULTS, json.loads(json.dumps(found.model_dump())))
    assert again == found


# --- forms


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (2, (2, 2)),
        (0.5, (0.5, 0.5)),
        (np.float32(2), (2, 2)),
        (np.int64(3), (3, 3)),
        ((0, 3), (0, 3)),
        ([1.5, 0], (1.5, 0)),
        ((np.float64(1), 2), (1, 2)),
        ("4", (4, 4)),
        ("0:3", (0, 3)),
        ("1.5:0.25", (1.5, 0.25)),
        ("1e1:0", (10, 0)),
        (" 2 ", (2, 2)),
    ],
)
def test_ramps_are_numbers_pairs_or_text(value: Any, expected: tuple[float, float]) -> None:
    found = settings_of(_DEFAULTS, {"strength": value}).strength
    assert found == expected
    assert [type(end) for end in found] == [float, float]


@pytest.mark.parametrize(
    "value",
    [
        *((1, 2, 3), (1,), (), [1, None], "a", "1:b", "", ":", ":2", "1:2:3", None, {}, b"1"),
        *(np.array([1, 2]), 1j, object()),
    ],
)
def test_what_is_no_ramp_is_refused(value: Any) -> None:
    if value is None:  # is not given
        value = (None, None)
    message = r"strength must be a number, a pair \(start, end\) or START:END, got "
    with pytest.raises(RequestError, match=message):
        settings_of(_DEFAULTS, {"strength": value})


@pytest.mark.parametrize(
    "value", [-1, (0, -0.1), float("nan"), (0, float("inf")), "-2", "0:nan", "inf"]
)
def test_ramps_are_finite_and_not_negative(value: Any) -> None:
    with pytest.raises(RequestError, match="strength must be finite and at least 0, got"):
        settings_of(_DEFAULTS, {"strength": value})


@pytest.mark.parametrize(
    ("value", "expected"), [(3, 3), (np.int32(3), 3), (np.uint8(3), 3), ("12", 12), (-4, -4)]
)
def test_whole_numbers_are_integers_or_text_of_one(value: Any, expected: int) -> None:
    found = settings_of(_DEFAULTS, {"rounds": value}).rounds
    assert (found, type(found)) == (expected, int)


@pytest.mark.parametrize("value", [2.5, 2.0, np.float32(2), "2.5", "two", "", (1,), object()])
def test_what_is_not_whole_is_refused(value: Any) -> None:
    with pytest.raises(RequestError, match="rounds must be an integer, got "):
        settings_of(_DEFAULTS, {"rounds": value})


# --- what is refused


def test_an_unknown_name_is_told_with_those_there_are() -> None:
    with pytest.raises(RequestError) as caught:
        settings_of(_DEFAULTS, {"rounds": 1, "strenght": 2})
    message = str(caught.value)
    assert message.startswith("unknown setting 'strenght'")
    assert "Did you mean 'strength'?" in message
    assert all(name in message for name in _Settings.model_fields)


def test_every_problem_is_told_in_one_line() -> None:
    with pytest.raises(RequestError) as caught:
        settings_of(_DEFAULTS, {"rounds": 1.5, "strength": -1, "heat": "x", "way": 3})
    message = str(caught.value)
    assert "\n" not in message
    for name in ("rounds", "strength", "heat", "way"):
        assert name in message
    assert "Value error" not in message


def test_types_of_a_family_are_checked_alike() -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Ramp).validate_python("x")
    assert TypeAdapter(Ramp).validate_python("1:2") == (1.0, 2.0)
