"""AutoNAT's strategy as a preset: the same as its file, for the transformer that it was searched
for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fewstep.export.autonat import PRESETS
from fewstep.export.config import ExportConfig
from fewstep.export.masked import Models, Recipe, describe
from fewstep.export.models import UViT, VQModel
from fewstep.export.parts import part_of
from fewstep.runtime.examples import example_request
from fewstep.runtime.families import Model
from fewstep.runtime.families.masked.settings import MaskedSettings
from fewstep.runtime.settings import settings_of

_YAML = {
    "manual_ratios": "schedule",
    "manual_temp": "masking_temperature",
    "manual_samp_temp": "sampling_temperature",
    "manual_cfg": "guidance",
}
_WITHOUT_LAST = ("manual_ratios", "manual_temp")
_ADAGEN = {"at_least_one": False, "recipe": Recipe()}


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


@pytest.mark.parametrize("form", [{"at_least_one": True}, {"at_least_one": False}, _ADAGEN])
def test_belongs_to_the_published_transformer(models: Models, form: dict[str, Any]) -> None:
    """In MaskGIT's, AdaNAT's and AdaGen's form."""
    model, _ = describe(models, ExportConfig(), **form)
    assert model.presets == PRESETS
    own: dict[str, Any] = part_of(UViT).sizes[0].arguments  # type: ignore[assignment]
    other, _ = describe(models, ExportConfig(transformer=own), **form)
    assert other.presets == {}


def test_decides_several_tokens_in_every_step() -> None:
    """So that a rule of at least one changes nothing."""
    ratios = [float(each) for each in PRESETS["autonat-8"]["schedule"].split(",")]
    masked = [256, *(int(256 * ratio) for ratio in ratios)]
    assert all(after < before - 1 for before, after in zip(masked, masked[1:], strict=False))
    assert masked[-1] == 0


@pytest.mark.parametrize("form", [{"at_least_one": True}, _ADAGEN])
def test_a_request_can_use_it(models: Models, form: dict[str, Any]) -> None:
    model, _ = describe(models, ExportConfig(), **form)
    settings = settings_of(model.defaults, {"preset": "autonat-8"})
    request = example_request(Model(model, graphs={}), settings)
    assert request.steps == 8
    assert request.parameters[-1, :2].tolist() == [0, 0]
    assert request.parameters[0, 2] == pytest.approx(2.8999, abs=1e-4)
