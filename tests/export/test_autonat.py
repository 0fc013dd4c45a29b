"""AutoNAT's strategy as a preset: the same as its file, for the transformer that it was searched
for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fewstep.export.autonat import PRESETS
from fewstep.export.config import ExportConfig
from fewstep.export.masked import Models, describe
from fewstep.export.models import UViT, VQModel
from fewstep.export.parts import part_of
from fewstep.runtime.families import Model, example_request
from fewstep.runtime.families.masked.settings import MaskedSettings
from fewstep.runtime.settings import settings_of

_YAML = {
    "manual_ratios": "schedule",
    "manual_temp": "masking_temperature",
    "manual_samp_temp": "sampling_temperature",
    "manual_cfg": "guidance",
}
_WITHOUT_LAST = ("manual_ratios", "manual_temp")


@pytest.fixture(scope="module")
def models() -> Models:
    """Of the published sizes, without memory."""
    import torch

    with torch.device("meta"):
        transformer = UViT(**part_of(UViT).sizes[0].arguments)
        tokenizer = VQModel(**part_of(VQModel).sizes[0].arguments)
    return Models(transformer, tokenizer)


def test_is_what_its_file_says(tmp_path: Path) -> None:
    preset, lines = PRESETS["autonat-8"], []
    for key, name in _YAML.items():
        values = preset[name].split(",")
        values = values[:-1] if key in _WITHOUT_LAST else values
        lines.append(f"{key}: [{', '.join(values)}]")
    path = tmp_path / "AutoNAT_L-T8_strategy.yaml"
    path.write_text("\n".join(lines))
    own, read = (settings_of(MaskedSettings(), each) for each in (preset, {"schedule": path}))
    assert own.model_dump() == read.model_dump()


@pytest.mark.parametrize("at_least_one", [False, True])
def test_belongs_to_the_published_model_under_maskgits_rule(
    models: Models, at_least_one: bool
) -> None:
    model, _ = describe(models, ExportConfig(), at_least_one=at_least_one)
    assert model.presets == (PRESETS if at_least_one else {})
    own: dict[str, Any] = part_of(UViT).sizes[0].arguments  # type: ignore[assignment]
    other, _ = describe(models, ExportConfig(transformer=own), at_least_one=at_least_one)
    assert other.presets == {}


def test_a_request_can_use_it(models: Models) -> None:
    model, _ = describe(models, ExportConfig(), at_least_one=True)
    settings = settings_of(model.defaults, {"preset": "autonat-8"})
    request = example_request(Model(model, graphs={}), settings)
    assert request.steps == 8
    assert request.parameters[-1, :2].tolist() == [0, 0]
    assert request.parameters[0, 2] == pytest.approx(2.8999, abs=1e-4)
