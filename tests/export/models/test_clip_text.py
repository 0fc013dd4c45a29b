"""CLIP's text encoder beside a recording of transformers, and the sizes that are published.

Covered: states and vectors of padded, full and odd texts with both activations and both rules for
the end of a text; that later tokens change nothing; the one tensor that a graph gives;
published sizes; configuration files; what the constructor refuses.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from fewstep.export import presets
from fewstep.export.models.clip_text import CLIPTextModelWithProjection, TextStates, quick_gelu
from fewstep.export.parts import part_of
from fewstep.export.parts.amused import constructor_arguments

Recorded = Callable[[str], dict[str, npt.NDArray[Any]]]
Data = dict[str, npt.NDArray[Any]]
Encoder = Callable[..., CLIPTextModelWithProjection]

_RUNS = [(act, end) for act in ("quick_gelu", "gelu") for end in (2, 47)]
_SMALL: dict[str, Any] = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12}


@pytest.fixture(scope="module")
def data(recorded: Recorded) -> Data:
    return recorded("clip_text_tiny")


@pytest.fixture(scope="module")
def state(data: Data) -> dict[str, Tensor]:
    return {key[3:]: torch.from_numpy(data[key]) for key in data if key.startswith("sd/")}


@pytest.fixture(scope="module")
def encoder(data: Data, state: dict[str, Tensor]) -> Encoder:
    """Makes the recorded network, with an activation and an end of texts."""

    def made(hidden_act: str = "quick_gelu", eos_token_id: int = 2) -> CLIPTextModelWithProjection:
        size = json.loads(str(data["cfg"]))["clip"]
        said = {**size, "hidden_act": hidden_act, "eos_token_id": eos_token_id}
        return presets.load(CLIPTextModelWithProjection, state, Path("x"), said)

    return made


@pytest.fixture(scope="module")
def ids(data: Data) -> Tensor:
    return torch.from_numpy(data["in/ids"].astype(np.int64))


def _close(found: Tensor, recorded: npt.NDArray[Any]) -> None:
    np.testing.assert_allclose(found.numpy(), recorded, rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("act", "end"), _RUNS)
def test_texts_are_read_as_transformers_does(
    act: str, end: int, encoder: Encoder, ids: Tensor, data: Data
) -> None:
    """Padded with the end and with 0, cut at 77, and with a larger id than the end before it."""
    vector, before, last = encoder(act, end)(ids.int())
    _close(vector, data[f"out/{act}_{end}/text_embeds"])
    _close(before, data[f"out/{act}/penultimate"])
    _close(last, data[f"out/{act}/last_hidden_state"])


def test_the_recording_tells_both_rules_apart(data: Data) -> None:
    largest, first = (data[f"out/gelu_{end}/text_embeds"] for end in (2, 47))
    np.testing.assert_array_equal(largest[:3], first[:3])
    assert np.abs(largest[3] - first[3]).max() > 0.1


@torch.no_grad()
def test_later_tokens_change_nothing(encoder: Encoder, ids: Tensor) -> None:
    """So a text need not be padded for its states, and shorter ones are read too."""
    model = encoder("gelu", 47)
    vector, before, last = model(ids)
    shorter = model(ids[:, :30])
    torch.testing.assert_close(shorter[1], before[:, :30], rtol=0, atol=1e-5)
    torch.testing.assert_close(shorter[2], last[:, :30], rtol=0, atol=1e-5)
    torch.testing.assert_close(shorter[0][:2], vector[:2], rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_text_without_an_end_is_read_at_its_beginning(encoder: Encoder, ids: Tensor) -> None:
    model = encoder("gelu", 47)
    vector, _, last = model(ids.clamp(max=46))
    torch.testing.assert_close(vector, model.text_projection(last[:, 0]))


@torch.no_grad()
def test_the_layers_are_those_of_pytorch(encoder: Encoder, ids: Tensor) -> None:
    """nn.TransformerEncoderLayer with the same weights, under a causal mask."""
    model = encoder("gelu", 2)
    x = model.text_model.embeddings(ids)
    later = nn.Transformer.generate_square_subsequent_mask(77)
    for layer in model.text_model.encoder.layers:
        own = dict(layer.state_dict())
        state = {
            f"linear{i}.{p}": own[f"mlp.fc{i}.{p}"] for i in (1, 2) for p in ("weight", "bias")
        }
        for part in ("weight", "bias"):
            state |= {f"norm{i}.{part}": own[f"layer_norm{i}.{part}"] for i in (1, 2)}
            state[f"self_attn.out_proj.{part}"] = own[f"self_attn.out_proj.{part}"]
            parts = [own[f"self_attn.{name}_proj.{part}"] for name in "qkv"]
            state[f"self_attn.in_proj_{part}"] = torch.cat(parts)
        same = nn.TransformerEncoderLayer(
            8, 2, 12, activation="gelu", batch_first=True, norm_first=True
        )
        same.load_state_dict(state)
        expected = same.eval()(x, src_mask=later)
        x = layer(x, later)
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-4)


def test_the_tanh_forms_of_gelu_are_known() -> None:
    x = torch.linspace(-4, 4, 41)
    for name in ("gelu_new", "gelu_pytorch_tanh"):
        model = CLIPTextModelWithProjection(**_SMALL, num_hidden_layers=1, hidden_act=name)
        act: Any = model.text_model.encoder.layers[0].mlp.act  # type: ignore[union-attr]
        torch.testing.assert_close(act(x), nn.functional.gelu(x, approximate="tanh"))
    torch.testing.assert_close(quick_gelu(x), nn.functional.gelu(x), rtol=0, atol=0.03)


# --- as a graph


@torch.no_grad()
def test_a_graph_gives_what_a_transformer_reads(encoder: Encoder, ids: Tensor) -> None:
    model = encoder()
    vector, before, last = model(ids)
    amused = TextStates(model, "penultimate", pooled=True)(ids)
    assert amused.shape == (4, 78, 8)
    assert torch.equal(amused[:, 0, :6], vector)
    assert not amused[:, 0, 6:].any()
    assert torch.equal(amused[:, 1:], before)
    assert torch.equal(TextStates(model, "last", pooled=False)(ids), last)


# --- published sizes and configurations


@pytest.mark.parametrize(
    ("index", "millions", "heads", "act"), [(0, 123.65, 12, quick_gelu), (1, 694.66, 20, None)]
)
def test_published_sizes_are_those_of_their_files(
    index: int, millions: float, heads: int, act: Any
) -> None:
    """A text encoder of SDXL has each of these numbers of parameters."""
    size = part_of(CLIPTextModelWithProjection).sizes[index]
    made = presets.build(CLIPTextModelWithProjection, size.arguments, size.name)
    numbers = sum(parameter.numel() for parameter in made.parameters())
    assert round(numbers / 1e6, 2) == millions
    layer: Any = made.text_model.encoder.layers[0]
    assert (layer.self_attn.heads, layer.self_attn.head_width) == (heads, 64)
    assert layer.mlp.act is (act or nn.functional.gelu)


@torch.no_grad()
def test_states_need_no_projection(
    state: dict[str, Tensor], encoder: Encoder, ids: Tensor, data: Data
) -> None:
    """As of ``CLIPTextModel``, whose files have none."""
    size = json.loads(str(data["cfg"]))["clip"] | {"hidden_act": "gelu", "projection_dim": None}
    left = {key: value for key, value in state.items() if key != "text_projection.weight"}
    alone = presets.load(CLIPTextModelWithProjection, left, Path("x"), size)
    found = TextStates(alone, "last", pooled=False)(ids)
    assert torch.equal(found, encoder("gelu", 47)(ids)[2])


def test_a_whole_clip_model_has_a_text_encoder(
    state: dict[str, Tensor], data: Data, tmp_path: Path
) -> None:
    size = json.loads(str(data["cfg"]))["clip"]
    vision = {
        "vision_model.embeddings.class_embedding": torch.zeros(4),
        "visual_projection.weight": torch.zeros(6, 4),
        "logit_scale": torch.zeros(()),
        "text_model.embeddings.position_ids": torch.arange(77)[None],
    }
    torch.save({**state, **vision}, tmp_path / "pytorch_model.bin")
    model, _ = presets.read(CLIPTextModelWithProjection, tmp_path / "pytorch_model.bin", size)
    assert model.state_dict().keys() == state.keys()


def test_arguments_are_those_of_the_folder() -> None:
    alone = {"architectures": ["CLIPTextModelWithProjection"], "hidden_act": "gelu"}
    assert constructor_arguments(CLIPTextModelWithProjection, alone) == {"hidden_act": "gelu"}
    whole = {
        "projection_dim": 1280,
        "text_config": {"hidden_size": 1280, "projection_dim": 512, "top_k": 50},
        "vision_config": {"hidden_size": 1664},
    }
    found = constructor_arguments(CLIPTextModelWithProjection, whole)
    assert found == {"hidden_size": 1280, "projection_dim": 1280}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"hidden_act": "relu"}, "hidden_act must be one of quick_gelu, gelu, gelu_new"),
        ({"num_attention_heads": 3}, "num_attention_heads must divide hidden_size 8, got 3"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a whole number, at least 1, got 0"),
    ],
)
def test_encoders_that_cannot_work_are_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CLIPTextModelWithProjection(**{**_SMALL, **changed})
