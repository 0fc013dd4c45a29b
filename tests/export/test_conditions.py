"""Which class id, if any, stands for no class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.export.changed import configured

import fewstep
from fewstep.export.flow import export
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.condition import ClassCondition
from fewstep.runtime.errors import CheckpointError, RequestError

_NONE = {"policy": None, "policy_residual": None}


def _export(
    files: dict[str, Any], folder: Path, **changes: Any
) -> tuple[ClassCondition, list[str], Bundle]:
    notes: list[str] = []
    given = configured(files, folder, **_NONE, **changes) | {"policy": None}
    bundle = export("maskgit", given, folder / "bundle", note=notes.append)
    condition = bundle.manifest.model.condition
    assert isinstance(condition, ClassCondition)
    return condition, notes, bundle


def test_the_last_one_does_by_default_and_this_is_said(
    tiny_checkpoints: dict[str, Any], tmp_path: Path, quick: None
) -> None:
    condition, notes, _ = _export(tiny_checkpoints, tmp_path)
    assert (condition.num_classes, condition.unconditional_id) == (5, 5)
    assert any(
        "the last of the transformer's 6 class ids, 5, is taken for no class" in n for n in notes
    )


def test_none_does_where_the_configuration_says_so(
    tiny_checkpoints: dict[str, Any], tmp_path: Path
) -> None:
    names = ["shirt", "shoe", "bag", "coat", "dress", "hat"]
    condition, notes, bundle = _export(
        tiny_checkpoints, tmp_path, unconditional="none", class_names=names
    )
    assert condition.ids == [0, 1, 2, 3, 4, 5]
    assert condition.unconditional_id is None
    assert not any("no class" in note for note in notes)
    with fewstep.open(bundle) as generator:
        assert generator.generate(class_ids=[5]).images.shape == (1, 8, 8, 3)
        with pytest.raises(RequestError, match="no unconditional class: use guidance 0"):
            generator.generate(class_ids=[5], guidance=2.0)


def test_another_one_may(tiny_checkpoints: dict[str, Any], tmp_path: Path) -> None:
    names = ["nothing", "shoe", "bag", "coat", "dress", "hat"]
    condition, _, bundle = _export(tiny_checkpoints, tmp_path, unconditional=0, class_names=names)
    assert (condition.ids, condition.unconditional_id) == ([1, 2, 3, 4, 5], 0)
    with fewstep.open(bundle) as generator:
        assert len(generator.generate(class_ids=[1, 5]).images) == 2
        with pytest.raises(RequestError, match="got 0 .0 stands for no class."):
            generator.generate(class_ids=[0])


def test_a_model_of_one_class_has_no_guidance(
    tiny_checkpoints: dict[str, Any], tmp_path: Path
) -> None:
    from fewstep.export.models import UViT

    arguments = json.loads(tiny_checkpoints["config"].read_text())["transformer"]
    one = tmp_path / "one.pth"
    torch.save(UViT(**arguments | {"num_classes": 1}).state_dict(), one)
    condition, notes, bundle = _export(
        tiny_checkpoints | {"transformer": one},
        tmp_path,
        transformer=arguments | {"num_classes": 1},
        class_names=None,
    )
    assert (condition.ids, condition.unconditional_id) == ([0], None)
    assert any("one class" in note for note in notes)
    with fewstep.open(bundle) as generator:
        assert len(generator.generate(class_ids=[0]).images) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unconditional": 6}, r"0 … 5, or \"none\", got 6"),
        ({"unconditional": "None"}, 'unconditional: must be a class id or "none", got "None"'),
        ({"unconditional": -1}, 'must be a class id or "none", got -1'),
        ({"unconditional": True}, 'must be a class id or "none", got true'),
        ({"unconditional": 1.0}, 'must be a class id or "none", got 1.0'),
        ({"pixel_range": [-1]}, r"pixel_range: must be \[LOW, HIGH\], got \[-1\]"),
        ({"unconditional": "none"}, "class_names: expected 6 names, got 5"),
        ({"class_names": list("abcdef")}, 'expected 5 names, got 6; the last .*"none"'),
    ],
)
def test_what_does_not_fit_is_refused(
    changes: dict[str, Any],
    message: str,
    tiny_checkpoints: dict[str, Any],
    tmp_path: Path,
    quick: None,
) -> None:
    with pytest.raises(CheckpointError, match=message):
        _export(tiny_checkpoints, tmp_path, **changes)


def test_a_policy_needs_something_to_guide_with(
    tiny_checkpoints: dict[str, Any], tmp_path: Path, quick: None
) -> None:
    files = configured(tiny_checkpoints, tmp_path, unconditional="none", class_names=None)
    with pytest.raises(CheckpointError, match="a policy always uses guidance, which needs a class"):
        export("adanat", files, tmp_path / "bundle")


def test_text_models_have_no_such_class(
    tiny_text_checkpoints: dict[str, Any], tmp_path: Path, quick: None
) -> None:
    files = configured(tiny_text_checkpoints, tmp_path, unconditional="none")
    with pytest.raises(CheckpointError, match="unconditional in --config is for class-conditional"):
        export("maskgit", files, tmp_path / "bundle")
