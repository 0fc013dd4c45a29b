"""Settings of VAR: ramps over the scales, and text that is read as the same again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fewstep.runtime.errors import RequestError
from fewstep.runtime.families.var.settings import VarSettings
from fewstep.runtime.settings import settings_of


@pytest.mark.parametrize(
    ("guidance", "wanted"),
    [
        (4, [0, 1, 2, 3, 4]),  # VAR's t = cfg · s / (S − 1)
        ("4", [0, 1, 2, 3, 4]),
        ("4:4", [4, 4, 4, 4, 4]),
        ((1, 3), [1, 1.5, 2, 2.5, 3]),
        ("0,1,0,5,0", [0, 1, 0, 5, 0]),
        (0, [0] * 5),
    ],
)
def test_guidance_grows_over_the_scales(guidance: Any, wanted: list[float]) -> None:
    settings = settings_of(VarSettings(), {"guidance": guidance})
    np.testing.assert_allclose(settings.parameters(5)[:, 0], wanted)
    again = settings_of(VarSettings(), settings.model_dump(exclude_none=True))
    assert again == settings


def test_one_scale_takes_the_start_of_a_ramp() -> None:
    assert settings_of(VarSettings(), {"guidance": 3}).parameters(1).tolist()[0][0] == 0


def test_lists_are_for_the_scales_there_are() -> None:
    settings = settings_of(VarSettings(), {"top_k": "9,8,7", "top_p": "1,1,0.5"})
    wanted = np.array([[9, 1], [8, 1], [7, 0.5]])
    np.testing.assert_allclose(settings.parameters(3)[:, 1:3], wanted)
    with pytest.raises(RequestError, match="each of the 4 scales, got top_k 3, top_p 3"):
        settings.parameters(4)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"guidance": ""}, "guidance must be a number, a pair .* got ''"),
        ({"guidance": "abc"}, "got 'abc'"),
        ({"guidance": -1}, "got -1"),
        ({"guidance": 10**400}, "guidance must be a number"),
        ({"guidance": 3e38}, "guidance must be at most 1,000,000"),
        ({"top_k": 10**400}, "top_k must be a number"),
        ({"sampling_temperature": "1e39"}, "sampling_temperature must be at most"),
        ({"top_p": "nan"}, "top_p"),
        ({"scales": 2.5}, "scales must be an integer"),
    ],
)
def test_values_that_do_not_fit_are_said_as_they_were_given(
    given: dict[str, Any], words: str
) -> None:
    with pytest.raises(RequestError, match=words):
        settings_of(VarSettings(), given)


@pytest.mark.parametrize("guidance", [np.array(4.0), np.float32(4), np.int64(4), 4])
def test_one_number_is_a_ramp_in_every_type(guidance: Any) -> None:
    assert settings_of(VarSettings(), {"guidance": guidance}).guidance == (0.0, 4.0)
