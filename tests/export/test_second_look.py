"""What an export finds odd about the images of a bundle, in models made wrong on purpose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.export.changed import configured

from fewstep.export.flow import export

_SAMPLE = Path(__file__).parents[2] / "samples" / "fashion"


@pytest.fixture(scope="module")
def sample() -> dict[str, Any]:
    """The trained sample, with a fixed schedule."""
    weights = _SAMPLE / "weights"
    return {
        "transformer": weights / "transformer.safetensors",
        "tokenizer": weights / "tokenizer.safetensors",
        "config": _SAMPLE / "config.json",
    }


def _notes(files: dict[str, Any], folder: Path, **more: Any) -> list[str]:
    notes: list[str] = []
    export("maskgit", files | more, folder / "bundle", note=notes.append)
    return [each for each in notes if "taken for no class" not in each]


def _changed(file: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    from safetensors.torch import load_file, save_file

    state = {key: value.float() for key, value in load_file(file).items()}
    change(state)
    path = folder / file.name
    save_file(state, path)
    return path


def _minus_one_to_one(state: dict[str, torch.Tensor]) -> None:
    state["decoder.conv_out.weight"] *= 2
    state["decoder.conv_out.bias"] = 2 * state["decoder.conv_out.bias"] - 1


def _same_for_all_classes(state: dict[str, torch.Tensor]) -> None:
    state["context_embed.word_embeddings.weight"][:] = 0.5


def _blank(state: dict[str, torch.Tensor]) -> None:
    state["decoder.conv_out.weight"] *= 0


def _untrained(state: dict[str, torch.Tensor]) -> None:
    for key, value in state.items():
        if "word_embeddings" in key:
            value *= 0
    state["mlm_layer.bias"] *= 0


def test_nothing_is_odd_about_the_sample(
    sample: dict[str, Any], tmp_path: Path, quick: None
) -> None:
    assert _notes(sample, tmp_path) == []


def test_another_range_of_pixels_is_seen_and_can_be_said(
    sample: dict[str, Any], tmp_path: Path, quick: None
) -> None:
    tokenizer = _changed(sample["tokenizer"], tmp_path, _minus_one_to_one)
    (note,) = _notes(sample | {"tokenizer": tokenizer}, tmp_path)
    assert "of the decoder's values leave 0 … 1" in note
    assert "--pixel-range" in note


def test_a_range_that_is_said_gives_the_same_pictures(
    sample: dict[str, Any], tmp_path: Path
) -> None:
    import fewstep

    tokenizer = _changed(sample["tokenizer"], tmp_path, _minus_one_to_one)
    made = []
    said = {"tokenizer": tokenizer, "pixel_range": "-1:1"}
    for name, more in (("right", {}), ("said", said)):
        assert _notes(sample | more, tmp_path / name) == []
        with fewstep.open(tmp_path / name / "bundle") as generator:
            made.append(generator.generate(class_ids=[3, 8]).images.astype(int))
    assert np.abs(made[0] - made[1]).max() <= 1


def test_a_range_may_be_in_the_configuration(
    sample: dict[str, Any], tmp_path: Path, quick: None
) -> None:
    tokenizer = _changed(sample["tokenizer"], tmp_path, _minus_one_to_one)
    files = configured(sample, tmp_path, pixel_range=[-1, 1]) | {"tokenizer": tokenizer}
    assert _notes(files, tmp_path) == []


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("transformer", _same_for_all_classes, "two different conditions give the same image"),
        ("transformer", _same_for_all_classes, "guidance changes nothing"),
        ("tokenizer", _blank, "the images are of one colour"),
        ("transformer", _untrained, "the first logits are almost uniform"),
    ],
)
def test_what_is_odd_is_said(
    part: str,
    change: Callable[[dict[str, torch.Tensor]], None],
    said: str,
    sample: dict[str, Any],
    tmp_path: Path,
    quick: None,
) -> None:
    changed = _changed(sample[part], tmp_path, change)
    assert any(said in note for note in _notes(sample | {part: changed}, tmp_path))


def test_a_contact_sheet_shows_every_class(
    sample: dict[str, Any], tmp_path: Path, quick: None
) -> None:
    sheet = tmp_path / "sheet.png"
    export("maskgit", sample, tmp_path / "bundle", contact_sheet=sheet)
    with Image.open(sheet) as picture:
        assert picture.height > 10 * 32
        assert picture.width > 4 * 32


@pytest.mark.parametrize("wrong", ["1", "1:0", "a:b", "0:inf", "0:1:2", "-1e308:1e308"])
def test_what_is_no_range_is_refused(wrong: str, sample: dict[str, Any], tmp_path: Path) -> None:
    from fewstep.runtime.errors import CheckpointError

    with pytest.raises(CheckpointError, match="range"):
        _notes(sample | {"pixel_range": wrong}, tmp_path)
