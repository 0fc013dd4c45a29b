"""What tables say of any family: settings, stages in their order, and the manifest's own words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fewstep.cli.tables import settings_text, stages_of
from fewstep.runtime.bench import Measurement, Percentiles
from fewstep.runtime.families.masked.model import MaskedModel

if TYPE_CHECKING:
    from tests.conftest import Terminal


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, ""),
        ({"steps": 8, "schedule": "cosine"}, "steps 8, schedule cosine"),
        ({"guidance": (0.0, 3.0)}, "guidance 0:3"),
        ({"guidance": (1.5, 1.5)}, "guidance 1.5"),
        ({"heat": 0.25, "note": "0:3"}, "heat 0.25, note 0:3"),
        ({"counts": (1, 4, 1)}, "counts 1:4:1"),
    ],
)
def test_settings_are_spelled_as_the_command_line_takes_them(
    settings: dict[str, Any], text: str
) -> None:
    assert settings_text(settings) == text


def _measured(*stages: str) -> Measurement:
    same = Percentiles(1.0, 1.0, 1.0)
    return Measurement("", 1, {}, 1, same, 1.0, dict.fromkeys(stages, same), None)


def test_stages_are_those_of_all_measurements_in_their_order() -> None:
    found = stages_of([_measured("trunk", "head", "other"), _measured("trunk", "device", "other")])
    assert found == ["trunk", "head", "device", "other"]
    assert stages_of([]) == []


def test_inspect_shows_what_the_model_says_of_itself(
    fewstep: Terminal, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MaskedModel, "describe", lambda self: {"scales": "1 + 4"})
    shown = " ".join(fewstep("inspect", tiny_bundle).out.split())
    assert "scales │ 1 + 4" in shown
    assert "image │ 8 × 8" in shown
    assert "5 classes (shirt, shoe, bag, coat, dress)" in shown
    assert "steps 8, schedule cosine, guidance 0:3" in shown
