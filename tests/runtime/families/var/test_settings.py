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
