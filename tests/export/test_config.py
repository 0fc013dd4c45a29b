"""The ``--config`` file: what it holds, and how a wrong one is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from fewstep.export.config import ExportConfig, read_config
from fewstep.runtime.errors import CheckpointError
from fewstep.runtime.manifest import Defaults

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


def test_no_file_is_an_empty_configuration() -> None:
    config = read_config(None)
    assert config == ExportConfig()
    assert (config.transformer, config.tokenizer, config.policy) == (None, None, None)
    assert config.defaults == Defaults()


def test_an_empty_object_is_an_empty_configuration(tmp_path: Path) -> None:
    assert read_config(written({}, tmp_path)) == ExportConfig()


def test_every_key_arrives(tmp_path: Path) -> None:
    config = read_config(written(WHOLE, tmp_path))
    for key in ("transformer", "tokenizer", "policy", "policy_residual", "name"):
        assert getattr(config, key) == WHOLE[key]
    assert config.class_names == ("shirt", "shoe")
    assert config.defaults == Defaults(steps=3, schedule="arccos", guidance=(1.0, 2.0))
    assert config.defaults.masking_temperature == Defaults().masking_temperature


def test_a_configuration_does_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        ExportConfig().name = "other"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"transfomer": {}}, "transfomer: Extra inputs are not permitted"),
        ({"defaults": {"stesp": 4}}, "defaults.stesp: Extra inputs are not permitted"),
        ({"defaults": {"steps": 0}}, "defaults.steps: Input should be greater than 0"),
        ({"defaults": {"guidance": [1.0]}}, "defaults.guidance.1: Field required"),
        ({"transformer": 5}, "transformer: Input should be an object"),
        ({"class_names": "shirt"}, "class_names: Input should be a valid array"),
        ([], "file: Input should be an object"),
    ],
)
def test_wrong_content_is_refused_by_name(content: object, message: str, tmp_path: Path) -> None:
    path = written(content, tmp_path)
    with pytest.raises(CheckpointError, match=f"{path} is not an export configuration") as caught:
        read_config(path)
    assert message in str(caught.value)


def test_every_problem_is_reported_together(tmp_path: Path) -> None:
    path = written({"transfomer": {}, "tokeniser": {}}, tmp_path)
    with pytest.raises(CheckpointError, match="transfomer: .*; tokeniser: "):
        read_config(path)


@pytest.mark.parametrize("text", ["", "{", "{'name': 'x'}", '{"name": "x",}', "\xff"])
def test_what_is_not_json_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match="file: Invalid JSON"):
        read_config(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent.json: No such file or directory"):
        read_config(tmp_path / "absent.json")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="Is a directory"):
        read_config(tmp_path)
