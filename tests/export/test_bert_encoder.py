"""BERT as the text encoder of a text-conditional model of AdaNAT, from a folder of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests import tiny
from tests.prompts import WORDS, tokenizer_json

from fewstep.export.flow import export
from fewstep.export.models.bert_text import BertText
from fewstep.runtime.condition import TextCondition
from fewstep.runtime.errors import CheckpointError
from fewstep.runtime.generator import Generator
from fewstep.runtime.verify import verify

_SIZES: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 5,
}


def _bert() -> BertText:
    torch.manual_seed(0)
    return BertText(**_SIZES).eval()


def _folder(place: Path, **changes: Any) -> Path:
    """As transformers saves a BertModel: with a pooler."""
    place.mkdir()
    said = {"architectures": ["BertModel"], "model_type": "bert", **_SIZES, **changes}
    (place / "config.json").write_text(json.dumps(said))
    state = {**_bert().state_dict(), "pooler.dense.weight": torch.zeros(12, 12)}
    save_file(state, place / "model.safetensors")
    (place / "tokenizer.json").write_bytes(tokenizer_json())
    return place


def _given(place: Path, folder: Path) -> dict[str, Any]:
    given = tiny.text_checkpoints(place)
    del given["unconditional_text"]
    return {**given, "text_encoder": folder}


def test_prompts_reach_the_transformer_through_bert(tmp_path: Path) -> None:
    given = _given(tmp_path, _folder(tmp_path / "bert"))
    bundle = export("maskgit", given, tmp_path / "bundle")
    condition = bundle.manifest.model.condition
    assert isinstance(condition, TextCondition) and condition.encoder is not None
    assert (condition.encoder.tokens, condition.encoder.pad_id, condition.length) == (3, 0, 3)
    with torch.no_grad():
        dog, nothing = _bert()(torch.tensor([[1, 7, 2], [1, 2, 0]])).numpy()
    assert (nothing[2] == 0).all()
    with Generator.open(bundle, backend="onnxruntime") as generator:
        np.testing.assert_allclose(generator.model.arrays["unconditional"], nothing, atol=1e-6)
        of_prompt = generator.generate(text="dog", steps=3, guidance=2.0)
        of_states = generator.generate(text=dog[None], steps=3, guidance=2.0)
        assert verify(generator).passed
    np.testing.assert_array_equal(of_prompt.trace.final, of_states.trace.final)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_act": "relu"}, 'hidden_act must be "gelu", got "relu"'),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type must be"),
        ({"architectures": ["T5EncoderModel"]}, "or BertModel, got T5EncoderModel"),
        ({"architectures": None}, "or BertModel, got none"),
        ({"hidden_size": 24}, "does not fit BertText: 35 mis-shaped"),
    ],
)
def test_other_encoders_are_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    folder = _folder(tmp_path / "bert", **changes)
    with pytest.raises(CheckpointError, match=said) as refused:
        export("maskgit", _given(tmp_path, folder), tmp_path / "bundle")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 2_000
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("content", [None, b"{}", b"\xff"])
def test_a_tokenizer_is_needed(tmp_path: Path, content: bytes | None) -> None:
    path = _folder(tmp_path / "bert") / "tokenizer.json"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(CheckpointError, match="holds no (readable )?tokenizer"):
        export("maskgit", _given(tmp_path, path.parent), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
