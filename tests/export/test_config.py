"""The ``--config`` file: what it holds, and how a wrong one is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fewstep.export.config import ExportConfig, read_config
from fewstep.runtime.errors import CheckpointError
from fewstep.runtime.families.masked.settings import MaskedSettings

WHOLE: dict[str, Any] = {
    "transformer": {"img_size": 4, "skip": False, "qk_scale": None},
    "tokenizer": {"ddconfig": {"ch_mult": [1, 2]}, "n_embed": 24, "embed_dim": 32},
    "policy": {"in_channels": 32},
    "policy_residual": True,
    "name": "Größe 4",
    "class_names": ["shirt", "shoe"],
    "defaults": {"steps": 3, "schedule": "arccos", "guidance": [1.0, 2.0]},
}


def written(content: object, folder: Path) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_no_file_and_an_empty_object_are_an_empty_configuration(tmp_path: Path) -> None:
    assert read_config(None) == read_config(written({}, tmp_path)) == ExportConfig()
    assert ExportConfig().settings(MaskedSettings()) == MaskedSettings()


def test_every_key_arrives(tmp_path: Path) -> None:
    config = read_config(written(WHOLE, tmp_path))
    for key in ("transformer", "tokenizer", "policy", "policy_residual", "name"):
        assert getattr(config, key) == WHOLE[key]
    assert config.class_names == ("shirt", "shoe")


def test_defaults_take_the_place_of_the_familys_own(tmp_path: Path) -> None:
    found = read_config(written(WHOLE, tmp_path)).settings(MaskedSettings())
    assert found == MaskedSettings(steps=3, schedule="arccos", guidance=(1.0, 2.0))
    assert found.masking_temperature == MaskedSettings().masking_temperature


@pytest.mark.parametrize(
    "defaults", [{"stesp": 4}, {"steps": "few"}, {"guidance": "much"}], ids=str
)
def test_defaults_that_the_family_does_not_have_are_refused(defaults: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="the configuration's defaults: .*(steps|guidance)"):
        ExportConfig(defaults=defaults).settings(MaskedSettings())


def test_every_problem_is_reported_by_name(tmp_path: Path) -> None:
    path = written({"transfomer": {}, "tokenizer": 5}, tmp_path)
    with pytest.raises(CheckpointError, match=f"{path} is not an export configuration") as caught:
        read_config(path)
    assert "transfomer: Extra inputs are not permitted" in str(caught.value)
    assert "tokenizer: Input should be an object" in str(caught.value)


@pytest.mark.parametrize("text", ["", '{"name": "x",}', "\xff"])
def test_what_is_not_json_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match="file: Invalid JSON"):
        read_config(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent.json: No such file or directory"):
        read_config(tmp_path / "absent.json")
    with pytest.raises(CheckpointError, match="Is a directory"):
        read_config(tmp_path)
