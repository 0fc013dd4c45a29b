"""BERT as a text encoder beside a recording of transformers: states, padding, sizes, export."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import torch
from torch import Tensor

from fewstep.export.models.bert_text import BertText, constructor_arguments, without_unused
from fewstep.export.onnx_graph import export_graph
from fewstep.export.source import Graph

Recorded = Callable[[str], dict[str, npt.NDArray[Any]]]
Data = dict[str, npt.NDArray[Any]]


@pytest.fixture(scope="module")
def data(recorded: Recorded) -> Data:
    return recorded("bert_text_tiny")


@pytest.fixture(scope="module")
def encoder(data: Data) -> BertText:
    model = BertText(**constructor_arguments(json.loads(str(data["cfg"]))["bert"]))
    state = {key[3:]: torch.from_numpy(data[key]) for key in data if key.startswith("sd/")}
    model.load_state_dict(without_unused(state))
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def ids(data: Data) -> Tensor:
    return torch.from_numpy(data["in/ids"])


def test_states_are_those_of_transformers_and_zero_at_padding(
    encoder: BertText, ids: Tensor, data: Data
) -> None:
    kept = data["in/ids"] != 0
    assert 0 < kept.sum() < kept.size
    states = encoder(ids).numpy()
    np.testing.assert_allclose(states[kept], data["out/states"][kept], atol=2e-5)
    assert not states[~kept].any()


def test_more_padding_changes_nothing(encoder: BertText, ids: Tensor) -> None:
    longer = torch.nn.functional.pad(ids, (0, 4))
    torch.testing.assert_close(encoder(longer)[:, : ids.shape[1]], encoder(ids))


def test_exports(encoder: BertText, ids: Tensor, data: Data, tmp_path: Path) -> None:
    info = export_graph("text_encoder", Graph(encoder, {"ids": ids[:2]}, ("text",)), tmp_path)
    assert info.inputs["ids"].dtype == "int32"
    session = onnxruntime.InferenceSession(tmp_path / "text_encoder.onnx")
    (found,) = session.run(None, {"ids": data["in/ids"]})
    kept = data["in/ids"] != 0
    np.testing.assert_allclose(found[kept], data["out/states"][kept], atol=2e-5)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"model_type": "roberta"}, 'model_type must be "bert", got "roberta"'),
        ({"hidden_act": "relu"}, 'hidden_act must be "gelu", got "relu"'),
    ],
)
def test_other_networks_are_refused(said: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        constructor_arguments(said)


def test_heads_divide_the_width() -> None:
    with pytest.raises(ValueError, match=r"must divide hidden_size \(10\), got 3"):
        BertText(hidden_size=10, num_attention_heads=3, num_hidden_layers=0)
