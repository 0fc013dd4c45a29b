"""CLIP text encoders beside text-conditional U-ViTs, as AdaNAT's CC3M model has one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.export.changed import configured
from tests.tiny_amused import END, START, TEXT, vocabulary, write_text_encoder

from fewstep.export import presets
from fewstep.export.flow import export
from fewstep.export.models.clip_text import CLIPTextModelWithProjection
from fewstep.export.text_encoder import places
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.condition import TextCondition
from fewstep.runtime.errors import CheckpointError

_FITTING: dict[str, Any] = {
    "hidden_size": 12,
    "max_position_embeddings": 3,
    "hidden_act": "gelu",
    "eos_token_id": 2,
}
"""To the tiny U-ViT, which reads text states ``[3, 12]``."""


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    return write_text_encoder(tmp_path / "clip", **_FITTING)


def _exported(files: dict[str, Any], encoder: Path, folder: Path, **options: Any) -> Bundle:
    given = files | {"unconditional_text": None, "text_encoder": encoder} | options
    return export("maskgit", given, folder / "bundle")


def _condition(bundle: Bundle) -> TextCondition:
    condition = bundle.manifest.model.condition
    assert isinstance(condition, TextCondition)
    return condition


def _last_states(folder: Path) -> np.ndarray[Any, Any]:
    """Of the empty text, padded with 0, after the last norm: as ``train.py`` of AdaNAT."""
    ids = vocabulary([("c", "a"), ("ca", "t</w>")])
    state = load_file(folder / "model.safetensors")
    model = presets.load(CLIPTextModelWithProjection, state, folder, {**TEXT, **_FITTING})
    with torch.no_grad():
        found: np.ndarray[Any, Any] = model(torch.tensor([[ids[START], ids[END], 0]]))[2][0].numpy()
    return found


def test_a_bundle_gets_the_encoder_its_tokenizer_and_the_empty_text(
    tiny_text_checkpoints: dict[str, Any], encoder: Path, tmp_path: Path, quick: None
) -> None:
    bundle = _exported(tiny_text_checkpoints, encoder, tmp_path)
    condition = _condition(bundle)
    assert (condition.length, condition.width) == (3, 12)
    assert condition.encoder is not None
    # The authors pad with 0, whatever the tokenizer says.
    assert (condition.encoder.tokens, condition.encoder.pad_id) == (3, 0)
    assert bundle.manifest.graphs["text_encoder"].inputs["ids"].shape == ("batch", 3)
    assert "tokenizer.json" in bundle.manifest.files
    found = bundle.arrays("unconditional.npz")["text"]
    np.testing.assert_allclose(found, _last_states(encoder), rtol=0, atol=1e-6)
    read = bundle.manifest.provenance.checkpoints
    assert {"text_encoder", "text_encoder/config", "text_encoder/vocab"} <= read.keys()


def _pipeline(encoder: Path, folder: Path, number: str = "") -> Path:
    """The folder of a pipeline of diffusers, with the tokenizer in one of its own."""
    inner = shutil.copytree(encoder, folder / f"text_encoder{number}")
    (folder / f"tokenizer{number}").mkdir()
    for name in ("vocab.json", "merges.txt"):
        (inner / name).rename(folder / f"tokenizer{number}" / name)
    return inner


def test_a_pipelines_encoder_is_found(
    tiny_text_checkpoints: dict[str, Any], encoder: Path, tmp_path: Path, quick: None
) -> None:
    inner = _pipeline(encoder, tmp_path / "p")
    bundle = _exported(tiny_text_checkpoints, tmp_path / "p", tmp_path)
    found = bundle.arrays("unconditional.npz")["text"]
    np.testing.assert_allclose(found, _last_states(encoder), rtol=0, atol=1e-6)
    read = bundle.manifest.provenance.checkpoints
    assert {"text_encoder", "text_encoder/config", "text_encoder/vocab"} <= read.keys()
    apart = (inner, tmp_path / "p" / "tokenizer")
    assert places(tmp_path / "p") == places(inner) == apart
    assert places(encoder) == (encoder, encoder)


def test_one_of_several_encoders_has_to_be_named(encoder: Path, tmp_path: Path) -> None:
    _pipeline(encoder, tmp_path / "p")
    second = _pipeline(encoder, tmp_path / "p", "_2")
    with pytest.raises(CheckpointError, match="several text encoders; pass one .*/text_encoder_2"):
        places(tmp_path / "p")
    assert places(second) == (second, tmp_path / "p" / "tokenizer_2")


def test_states_of_the_empty_text_may_still_be_given(
    tiny_text_checkpoints: dict[str, Any], encoder: Path, tmp_path: Path, quick: None
) -> None:
    path = tiny_text_checkpoints["unconditional_text"]
    bundle = _exported(tiny_text_checkpoints, encoder, tmp_path, unconditional_text=path)
    np.testing.assert_array_equal(bundle.arrays("unconditional.npz")["text"], np.load(path))
    assert _condition(bundle).encoder is not None


def test_a_policy_is_guided_by_the_encoders_empty_text(
    tiny_text_checkpoints: dict[str, Any], encoder: Path, tmp_path: Path, quick: None
) -> None:
    size = {"in_channels": 32, "hidden_size": 16, "grid_size": 4}
    files = configured(tiny_text_checkpoints, tmp_path, policy=size)
    bundle = _exported(files, encoder, tmp_path, untrained_policy=True)
    assert list(bundle.manifest.graphs) == ["transformer", "policy", "decoder", "text_encoder"]


@pytest.mark.parametrize("whole", [False, True])
def test_encoders_without_projection_and_whole_models_are_read(
    whole: bool,
    tiny_text_checkpoints: dict[str, Any],
    encoder: Path,
    tmp_path: Path,
    quick: None,
) -> None:
    """``CLIPTextModel``, and ``CLIPModel`` as laion publishes bigG."""
    expected, state = _last_states(encoder), load_file(encoder / "model.safetensors")
    said: dict[str, Any] = {**TEXT, **_FITTING}
    if whole:
        state |= {"vision_model.post_layernorm.weight": torch.ones(4)}
        state |= {"logit_scale": torch.ones(())}
        said = {"architectures": ["CLIPModel"], "projection_dim": 12, "text_config": said}
    else:
        del state["text_projection.weight"]
        said["architectures"] = ["CLIPTextModel"]
    save_file(state, encoder / "model.safetensors")
    (encoder / "config.json").write_text(json.dumps(said))
    bundle = _exported(tiny_text_checkpoints, encoder, tmp_path)
    found = bundle.arrays("unconditional.npz")["text"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": 8}, "text width 12 but the text encoder's is 8"),
        ({"max_position_embeddings": 77}, "tokens of a text 3 but the text encoder's is 77"),
        ({"vocab_size": 500}, r"its ids go up to 515, and the encoder knows 0 … 499"),
        ({"num_attention_heads": 5}, "num_attention_heads must divide hidden_size 12, got 5"),
        ({"name": "T5Model"}, "or CLIPTextModel or BertModel, got T5Model"),
    ],
)
def test_encoders_that_do_not_fit_are_refused(
    changes: dict[str, Any], words: str, tiny_text_checkpoints: dict[str, Any], tmp_path: Path
) -> None:
    heads = changes.pop("num_attention_heads", 2)
    folder = write_text_encoder(tmp_path / "clip", **{**_FITTING, **changes})
    said = json.loads((folder / "config.json").read_text()) | {"num_attention_heads": heads}
    (folder / "config.json").write_text(json.dumps(said))
    with pytest.raises(CheckpointError, match=words) as caught:
        _exported(tiny_text_checkpoints, folder, tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "bundle").exists()


def test_a_model_of_classes_takes_none(
    tiny_checkpoints: dict[str, Any], encoder: Path, tmp_path: Path
) -> None:
    given = tiny_checkpoints | {"text_encoder": encoder}
    with pytest.raises(CheckpointError, match="class-conditional transformer takes no --text-enc"):
        export("adanat", given, tmp_path / "bundle")


def test_another_folder_is_told(tiny_text_checkpoints: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="clip is no folder; expected that of a text encoder"):
        _exported(tiny_text_checkpoints, tmp_path / "clip", tmp_path)
    (tmp_path / "clip").mkdir()
    with pytest.raises(CheckpointError, match="config.json: no such file"):
        _exported(tiny_text_checkpoints, tmp_path / "clip", tmp_path)
