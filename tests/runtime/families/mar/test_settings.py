"""Settings of MAR: as Python values, as text, and as JSON that is read as the same again.

Covered: ramps and lists of guidance, temperature and parts that are recomputed; every way to say
diffusion steps, with DiSA's annealing and its cap; and what is refused with which words.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.runtime.errors import RequestError
from fewstep.runtime.families.mar.settings import MarSettings
from fewstep.runtime.settings import PerStep, settings_of

_DECIDED = [0.25, 0.5, 0.875]


def _settings(**given: Any) -> MarSettings:
    return settings_of(MarSettings(), given)


def _again(settings: MarSettings) -> tuple[MarSettings, ...]:
    """The same from a dump, from JSON, and as a manifest reads them."""
    text = settings.model_dump_json()
    return (
        settings_of(MarSettings(), settings.model_dump()),
        settings_of(MarSettings(), json.loads(text)),
        MarSettings.model_validate_json(text),
    )


def test_the_defaults_are_the_authors() -> None:
    defaults = MarSettings()
    assert (defaults.iterations, defaults.diffusion_steps) == (64, "100")
    assert (defaults.guidance, defaults.temperature) == ((1.0, 2.9), (1.0, 1.0))
    assert (defaults.refresh, defaults.refresh_first, defaults.recompute) == (None, 5, None)
    assert (defaults.max_timestep, defaults.preset, defaults.reuse_guidance) == (None, None, False)


@pytest.mark.parametrize(
    ("guidance", "wanted"),
    [
        (3, [1.5, 2, 2.75]),  # cfg_iter = 1 + (cfg − 1)·part
        (3.0, [1.5, 2, 2.75]),
        ("3", [1.5, 2, 2.75]),
        (np.float32(3), [1.5, 2, 2.75]),
        (np.array(3), [1.5, 2, 2.75]),
        (1, [1, 1, 1]),
        (0, [0.75, 0.5, 0.125]),
        ("3:3", [3, 3, 3]),
        ((3, 3), [3, 3, 3]),
        ("2:4", [2.5, 3, 3.75]),
        ([2, 4], [2.5, 3, 3.75]),
        ("4:2", [3.5, 3, 2.25]),
        ("1,2,5", [1, 2, 5]),
        ([1, 2, 5], [1, 2, 5]),
        (np.array([1.0, 2, 5]), [1, 2, 5]),
        (PerStep((1.0, 2.0, 5.0)), [1, 2, 5]),
    ],
)
def test_guidance_grows_with_the_tokens_that_are_decided(guidance: Any, wanted: Any) -> None:
    settings = _settings(guidance=guidance)
    np.testing.assert_allclose(settings.parameters(_DECIDED)[:, 0], wanted, rtol=1e-6)
    for again in _again(settings):
        assert again == settings


@pytest.mark.parametrize(
    ("temperature", "wanted"),
    [
        (0.8, [0.8, 0.8, 0.8]),
        ("0", [0, 0, 0]),
        ("1:0.5", [1, 0.75, 0.5]),  # over the iterations, not the tokens
        ((1, 0), [1, 0.5, 0]),
        ("1,0.9,0", [1, 0.9, 0]),
    ],
)
def test_temperature_runs_over_the_iterations(temperature: Any, wanted: list[float]) -> None:
    settings = _settings(temperature=temperature)
    np.testing.assert_allclose(settings.parameters(_DECIDED)[:, 1], wanted, rtol=1e-6)
    for again in _again(settings):
        assert again == settings


@pytest.mark.parametrize(
    ("recompute", "wanted"),
    [
        (None, None),
        (0.3, (0.3, 0.3, 0.3)),
        ("1:0", (1, 0.5, 0)),
        ("1,0.5,0.1", (1, 0.5, 0.1)),
        ([0, 1, 0], (0, 1, 0)),
    ],
)
def test_parts_run_over_the_iterations(recompute: Any, wanted: Any) -> None:
    settings = _settings(recompute=recompute)
    assert settings.parts(3) == wanted
    for again in _again(settings):
        assert again == settings


def test_one_iteration_takes_the_start_of_ramps() -> None:
    settings = _settings(temperature="0.5:1", recompute="0.25:1", diffusion_steps="50:5")
    assert settings.parameters([0.0]).tolist() == [[1, 0.5]]
    assert settings.parts(1) == (0.25,)
    assert settings.spacings(1) == ("50",)


@pytest.mark.parametrize("name", ["guidance", "temperature", "recompute"])
def test_a_list_of_one_is_for_one_iteration(name: str) -> None:
    """As text it is a ramp that is the same everywhere, as 0.5 alone may be another."""
    settings = _settings(**{name: [0.5]})
    assert getattr(settings, name) == PerStep((0.5,))
    for each in (settings, *_again(settings)):
        found = each.parts(1) if name == "recompute" else each.parameters([0.9])[0].tolist()
        assert found is not None
        assert found[name == "temperature"] == 0.5


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (50, "50"),
        ("50", "50"),
        (" 50 ", "50"),
        (np.int64(50), "50"),
        (np.array(50), "50"),
        ([50], "50"),
        ("ddim50", "ddim50"),
        ("10+15", "10+15"),
        ("50:5", "50:5"),
        (" 50 : 5", "50:5"),
        ((50, 5), "50:5"),
        ([50, 5], "50:5"),
        (np.array([50, 5]), "50:5"),
        ("50,5", "50,5"),
        ("50, 40, 30", "50,40,30"),
        ([50, 40, 30], "50,40,30"),
        (np.array([50, 40, 30]), "50,40,30"),
        (["ddim50", "10+15", 3], "ddim50,10+15,3"),
    ],
)
def test_diffusion_steps_are_kept_as_text(said: Any, kept: str) -> None:
    settings = _settings(diffusion_steps=said)
    assert settings.diffusion_steps == kept
    for again in _again(settings):
        assert again == settings


def test_diffusion_steps_of_every_iteration() -> None:
    assert _settings(diffusion_steps=7).spacings(3) == ("7", "7", "7")
    assert _settings(diffusion_steps="ddim50").spacings(2) == ("ddim50", "ddim50")
    assert _settings(diffusion_steps="9,ddim4,2+3").spacings(3) == ("9", "ddim4", "2+3")
    assert _settings(diffusion_steps="5:5").spacings(2) == ("5", "5")


@given(upper=st.integers(1, 1000), lower=st.integers(1, 1000), iterations=st.integers(2, 256))
def test_annealing_is_disas(upper: int, lower: int, iterations: int) -> None:
    """``schedule_id`` of models/diffloss.py in Qinyu-Allen-Zhao/DiSA, which starts at ``lower``."""
    upper, lower = max(upper, lower), min(upper, lower)
    last = iterations - 1
    wanted = [
        lower + int((last - step) / last * (len(range(lower, upper + 1)) - 1))
        for step in range(iterations)
    ]
    found = _settings(diffusion_steps=(upper, lower)).spacings(iterations)
    assert [*map(int, found)] == wanted
    assert (wanted[0], wanted[-1]) == (upper, lower)


@pytest.mark.parametrize(
    ("given", "largest"),
    [
        ({"diffusion_steps": 100}, 999),
        ({"diffusion_steps": "ddim50"}, 999),
        ({"diffusion_steps": "10+15"}, 999),
        ({"diffusion_steps": "50:5"}, 950),
        ({"diffusion_steps": "50,40,30"}, 950),
        ({"diffusion_steps": "50:5", "max_timestep": 999}, 999),
        ({"diffusion_steps": "50:5", "max_timestep": 5000}, 999),
        ({"diffusion_steps": 100, "max_timestep": 950}, 950),
        ({"diffusion_steps": 100, "max_timestep": "0"}, 0),
    ],
)
def test_annealed_diffusions_are_capped(given: dict[str, Any], largest: int) -> None:
    settings = _settings(**given)
    assert settings.largest_timestep == largest
    for again in _again(settings):
        assert again.largest_timestep == largest


_NUMBER = st.floats(0, 100, allow_nan=False)
_VALUES = st.one_of(
    _NUMBER,
    st.tuples(_NUMBER, _NUMBER),
    st.lists(_NUMBER, min_size=3, max_size=6),
    st.lists(_NUMBER, min_size=2, max_size=6).map(lambda x: PerStep(tuple(x))),
)
_STEPS = st.integers(1, 1000)
_SPACINGS = st.one_of(
    _STEPS,
    st.tuples(_STEPS, _STEPS),
    st.lists(st.one_of(_STEPS, st.sampled_from(["ddim20", "10+20"])), min_size=3, max_size=5),
)
_ANY = st.fixed_dictionaries(
    {},
    optional={
        "preset": st.text(max_size=5),
        "iterations": st.integers(-5, 300),
        "diffusion_steps": _SPACINGS,
        "max_timestep": st.integers(-5, 2000),
        "guidance": _VALUES,
        "temperature": _VALUES,
        "refresh": st.integers(-1, 20),
        "refresh_first": st.integers(-1, 20),
        "recompute": st.one_of(st.floats(0, 1), st.tuples(st.floats(0, 1), st.floats(0, 1))),
        "reuse_guidance": st.booleans(),
    },
)


@given(given=_ANY)
def test_whatever_is_set_is_read_as_the_same_again(given: dict[str, Any]) -> None:
    settings = _settings(**given)
    assert settings.model_fields_set == given.keys()
    for again in _again(settings):
        assert again == settings


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"guidance": ""}, "guidance must be a number, a pair .* got ''"),
        ({"guidance": "abc"}, "guidance must be a number, .* got 'abc'"),
        ({"guidance": "1:2:3"}, "got '1:2:3'"),
        ({"guidance": -1}, "guidance must be finite and at least 0, got -1"),
        ({"guidance": "nan"}, "guidance must be finite"),
        ({"guidance": float("inf")}, "guidance must be finite"),
        ({"guidance": "1,x,3"}, "guidance must be numbers, one for every step"),
        ({"guidance": 10**400}, "guidance must be a number"),
        ({"guidance": 20_000}, "guidance must be at most 10,000, got 1, 20000"),
        ({"guidance": {}}, "guidance must be a number"),
        ({"temperature": "-1"}, "temperature must be finite and at least 0"),
        ({"temperature": "1,1e5"}, "temperature must be at most 10,000, got 1, 100000"),
        ({"recompute": 1.5}, "recompute must be parts, 0 … 1, got 1.5"),
        ({"recompute": "1,2,0"}, "recompute must be parts, 0 … 1, got 1, 2, 0"),
        ({"recompute": -0.5}, "recompute must be finite and at least 0"),
        ({"diffusion_steps": 0}, "diffusion_steps must be at least 1, got 0"),
        ({"diffusion_steps": "5:0"}, "diffusion_steps must be at least 1, got 0"),
        ({"diffusion_steps": "5,0,5"}, "diffusion_steps must be at least 1, got 0"),
        ({"diffusion_steps": -5}, "diffusion_steps must be a number, ddimN .* got '-5'"),
        ({"diffusion_steps": 1001}, "diffusion_steps must be 1 … 1,000 timesteps, got '1001'"),
        ({"diffusion_steps": 5.0}, "diffusion_steps must be a number, ddimN .* got '5.0'"),
        ({"diffusion_steps": True}, "diffusion_steps must be a number, .* got True"),
        ({"diffusion_steps": {}}, "START:END or a list, got {}"),
        ({"diffusion_steps": []}, "diffusion_steps must be a number, ddimN"),
        ({"diffusion_steps": "5 0"}, "diffusion_steps must be a number, ddimN .* got '5 0'"),
        ({"diffusion_steps": "5,,4"}, "diffusion_steps must be a number, ddimN"),
        ({"diffusion_steps": "ddim60"}, "no stride takes so many of 1,000 timesteps"),
        ({"diffusion_steps": "ddim50:5"}, "must be START:END, whole numbers, got 'ddim50:5'"),
        ({"diffusion_steps": "50:5:2"}, "must be START:END, whole numbers"),
        ({"diffusion_steps": "50:"}, "must be START:END, whole numbers"),
        ({"diffusion_steps": "50:5,4"}, "must be START:END, whole numbers"),
        ({"diffusion_steps": ("ddim50", 5)}, "must be START:END, whole numbers"),
        ({"iterations": 2.5}, "iterations must be an integer, got 2.5"),
        ({"iterations": "many"}, "iterations must be an integer, got 'many'"),
        ({"max_timestep": "950.5"}, "max_timestep must be an integer"),
        ({"refresh": 1.0}, "refresh must be an integer"),
        ({"refresh_first": "x"}, "refresh_first must be an integer"),
        ({"reuse_guidance": "perhaps"}, "reuse_guidance must be a boolean"),
        ({"preset": 3}, "preset must be a string, got 3"),
        (
            {"steps": 3},
            "unknown setting 'steps'; expected one of: decoder, diffusion_steps, .*refresh",
        ),
    ],
)
def test_values_that_do_not_fit_are_said_as_they_were_given(
    given: dict[str, Any], words: str
) -> None:
    with pytest.raises(RequestError, match=words) as raised:
        _settings(**given)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"guidance": "1,2"}, "each of the 3 iterations, got guidance 2"),
        ({"guidance": [1, 2, 3, 4]}, "each of the 3 iterations, got guidance 4"),
        ({"temperature": "1,1"}, "each of the 3 iterations, got temperature 2"),
        ({"recompute": "0,1"}, "each of the 3 iterations, got recompute 2"),
        ({"diffusion_steps": "50,5"}, "each of the 3 iterations, got diffusion_steps 2"),
    ],
)
def test_lists_are_for_the_iterations_there_are(given: dict[str, Any], words: str) -> None:
    settings = _settings(**given)
    with pytest.raises(RequestError, match=words):
        settings.parameters(_DECIDED)
        settings.parts(3)
        settings.spacings(3)
