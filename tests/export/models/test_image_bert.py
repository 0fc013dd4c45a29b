"""TiTok's MaskGIT generators beside a recording of the official code and PyTorch's own layers.

Covered: the BERT's logits, keys and published sizes; the U-ViT written a second time with
functions of PyTorch, since nothing recorded it; what both do with classes and batches; what their
constructors take and refuse.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.export import presets
from fewstep.export.models.image_bert import ImageBert, MaskedGenerator, UViTBert
from fewstep.export.parts.titok import constructor_arguments
from fewstep.runtime.errors import CheckpointError

Recorded = Callable[[str], dict[str, npt.NDArray[Any]]]
Layouts = dict[str, dict[str, torch.Size]]

TINY: dict[str, Any] = {
    "codebook_size": 6,
    "image_seq_len": 4,
    "condition_num_classes": 3,
    "hidden_size": 8,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 12,
}
TOKENS = torch.tensor([[6, 1, 2, 6], [0, 6, 6, 5]])
CLASSES = torch.tensor([2, 3])  # the second has none
BOTH = pytest.mark.parametrize("kind", [ImageBert, UViTBert])

Kind = Callable[..., MaskedGenerator]


def tiny(kind: Kind, **changes: Any) -> MaskedGenerator:
    """A generator of four tokens, with weights large enough that everything matters."""
    model = kind(**(TINY | changes)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.4, generator=generator)
            if re.search(r"(LayerNorm|norm\d?)\.weight$", name):
                parameter.add_(1)
    return model


@pytest.fixture(scope="module")
def bert(recorded: Recorded) -> ImageBert:
    data = recorded("maskgit1d_vit")
    said = json.loads(str(data["cfg"]))["config"]["model"]
    state = {key[3:]: torch.from_numpy(data[key]) for key in data if key.startswith("sd/")}
    return presets.load(ImageBert, state, Path("x.bin"), said["vq_model"] | said["generator"])


# --- BERT


def _linear(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def _norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_gives_the_official_logits(dtype: torch.dtype, bert: ImageBert, recorded: Recorded) -> None:
    data = recorded("maskgit1d_vit")
    tokens = torch.from_numpy(data["in/ids"]).to(dtype)
    classes = torch.from_numpy(data["in/cond"]).to(dtype)
    none = torch.full_like(classes, bert.condition_num_classes)
    for condition, name in ((classes, "cond"), (none, "uncond")):
        expected = data[f"out/logits_{name}"]
        np.testing.assert_allclose(bert(tokens, condition), expected, rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("run", ["const", "linear", "pcos"])
def test_gives_the_official_logits_within_a_generation(
    run: str, bert: ImageBert, recorded: Recorded
) -> None:
    data = recorded("maskgit1d_vit")
    tokens = torch.from_numpy(data[f"out/{run}/ids_in"][1]).long()
    logits = bert(tokens, torch.from_numpy(data["in/cond"]))
    np.testing.assert_allclose(logits, data[f"out/{run}/logits_c_step1"], rtol=0, atol=1e-4)


def test_has_exactly_the_official_keys(bert: ImageBert, recorded: Recorded) -> None:
    official = {key[3:] for key in recorded("maskgit1d_vit") if key.startswith("sd/")}
    assert bert.state_dict().keys() == official


def _torch_layer(state: dict[str, Tensor], layer: int) -> nn.TransformerEncoderLayer:
    """A layer of the BERT as PyTorch has it."""
    own = nn.TransformerEncoderLayer(
        8, 2, 12, dropout=0.0, activation="gelu", layer_norm_eps=1e-12, batch_first=True
    )
    from_bert = {
        "self_attn.out_proj": "attention.output.dense",
        "linear1": "intermediate.dense",
        "linear2": "output.dense",
        "norm1": "attention.output.LayerNorm",
        "norm2": "output.LayerNorm",
    }
    start = f"model.encoder.layer.{layer}."
    weights = {
        f"{name}.{part}": state[f"{start}{other}.{part}"]
        for name, other in from_bert.items()
        for part in ("weight", "bias")
    }
    for part in ("weight", "bias"):
        rows = [state[f"{start}attention.self.{each}.{part}"] for each in ("query", "key", "value")]
        weights[f"self_attn.in_proj_{part}"] = torch.cat(rows)
    own.load_state_dict(weights)
    return own


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.0, 1e-4], ids=["usual", "tiny embeddings"])
def test_the_bert_is_pytorchs_post_norm_encoder(scale: float) -> None:
    """Embeddings of 1e-4 tell LayerNorm's 1e-12 from any usual epsilon."""
    model = tiny(ImageBert)
    state = model.state_dict()
    embeddings = "model.embeddings."
    for name in ("word", "position", "token_type"):
        state[f"{embeddings}{name}_embeddings.weight"].mul_(scale)
    ids = torch.tensor([[7 + 2, 6, 1, 2, 6], [7 + 3, 0, 6, 6, 5]])
    x = state[f"{embeddings}word_embeddings.weight"][ids]
    x = x + state[f"{embeddings}position_embeddings.weight"]
    x = x + state[f"{embeddings}token_type_embeddings.weight"][0]
    weight, bias = (state[f"{embeddings}LayerNorm.{part}"] for part in ("weight", "bias"))
    x = F.layer_norm(x, (8,), weight, bias, eps=1e-12)
    for layer in range(4):
        x = _torch_layer(state, layer)(x)
    expected = _linear(x, state, "model.lm_head")[:, 1:]
    torch.testing.assert_close(model(TOKENS, CLASSES), expected, rtol=0, atol=1e-4)


# --- U-ViT


def _uvit_block(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    qkv = _linear(_norm(x, state, f"{name}.norm1"), state, f"{name}.attn.qkv")
    heads = qkv.reshape(*qkv.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)  # [3, B, heads, L, d]
    seen = F.scaled_dot_product_attention(heads[0], heads[1], heads[2])
    x = x + _linear(seen.transpose(1, 2).flatten(2), state, f"{name}.attn.proj")
    hidden = F.gelu(_linear(_norm(x, state, f"{name}.norm2"), state, f"{name}.mlp.fc1"))
    return x + _linear(hidden, state, f"{name}.mlp.fc2")


@torch.no_grad()
def test_the_uvit_is_two_blocks_down_one_between_and_two_up() -> None:
    model = tiny(UViTBert)
    state = model.state_dict()
    ids = torch.tensor([[7 + 2, 6, 1, 2, 6], [7 + 3, 0, 6, 6, 5]])
    x = state["embeddings.weight"][ids] + state["pos_embed"]
    first = _uvit_block(x, state, "in_blocks.0")
    second = _uvit_block(first, state, "in_blocks.1")
    x = _uvit_block(second, state, "mid_block")
    for block, skip in enumerate((second, first)):
        joined = torch.cat([x, skip], dim=-1)
        x = _linear(joined, state, f"out_blocks.{block}.skip_linear")
        x = _uvit_block(x, state, f"out_blocks.{block}")
    expected = _linear(_norm(x, state, "norm"), state, "lm_head")[:, 1:]
    torch.testing.assert_close(model(TOKENS, CLASSES), expected, rtol=0, atol=1e-4)


def test_an_odd_number_of_layers_counts_as_the_even_one_below() -> None:
    even, odd = tiny(UViTBert), tiny(UViTBert, num_hidden_layers=5)
    assert odd.state_dict().keys() == even.state_dict().keys()
    bert: Any = tiny(ImageBert, num_hidden_layers=5)
    assert len(bert.model.encoder.layer) == 5


# --- both


@torch.no_grad()
@BOTH
def test_logits_cover_the_codes_and_the_tokens_of_an_image(kind: Kind) -> None:
    assert tiny(kind)(TOKENS, CLASSES).shape == (2, 4, 6)


@torch.no_grad()
@BOTH
def test_an_image_does_not_depend_on_its_batch(kind: Kind) -> None:
    model = tiny(kind)
    together, alone = model(TOKENS, CLASSES), model(TOKENS[1:], CLASSES[1:])
    torch.testing.assert_close(together[1:], alone, rtol=0, atol=1e-5)


@torch.no_grad()
@BOTH
def test_every_class_every_token_and_every_place_matters(kind: Kind) -> None:
    model = tiny(kind)
    tokens = torch.tensor([[6, 1, 2, 6]])
    given = [(tokens, condition) for condition in range(4)]  # 3 is none
    given += [(torch.tensor([other]), 0) for other in ([6, 1, 3, 6], [6, 2, 1, 6], [4, 1, 2, 6])]
    found = [model(ids, torch.tensor([condition])) for ids, condition in given]
    for index, one in enumerate(found):
        assert not any(torch.allclose(one, other, atol=1e-3) for other in found[index + 1 :])


@BOTH
def test_all_weights_get_gradients(kind: Kind) -> None:
    model = tiny(kind)
    model(TOKENS, CLASSES).square().sum().backward()
    assert all(each.grad is not None for each in model.parameters())


# --- arguments


@pytest.mark.parametrize(
    ("kind", "file", "tokens", "sampling"),
    [
        (ImageBert, "generator_titok_l32.bin (ViT)", 32, (8, 9.5, 4.5, "linear")),
        (ImageBert, "generator_titok_b64.bin (ViT)", 64, (8, 11.0, 3.0, "linear")),
        (UViTBert, "generator_titok_s128.bin (UViT)", 128, (64, 2.8, 6.9, "power-cosine")),
    ],
)
def test_published_generators_are_recognised(
    kind: Kind, file: str, tokens: int, sampling: tuple[Any, ...], layouts: Layouts
) -> None:
    state = {key: torch.zeros(()).expand(shape) for key, shape in layouts[file].items()}
    model = presets.load(kind, state, Path(file), None)
    assert {key: each.shape for key, each in model.state_dict().items()} == layouts[file]
    assert (model.num_tokens, model.codebook_size, model.condition_num_classes) == (
        tokens,
        4096,
        1000,
    )
    assert model.num_attention_heads == 16
    assert tuple(model.sampling.values()) == sampling


def official(**generator: Any) -> dict[str, Any]:
    """A configuration as the authors write them."""
    own = {name: each for name, each in TINY.items() if name != "codebook_size"}
    said = {"dropout": 0.1, "attn_drop": 0.1, "class_label_dropout": 0.1, "num_steps": 8}
    sampling = {"randomize_temperature": 9.5, "guidance_scale": 4.5, "guidance_decay": "linear"}
    length = {"image_seq_len": "${model.vq_model.num_latent_tokens}"}
    vq_model = {
        "codebook_size": 6,
        "token_size": 12,
        "use_l2_norm": True,
        "commitment_cost": 0.25,
        "vit_enc_model_size": "small",
        "vit_dec_model_size": "small",
        "vit_enc_patch_size": 16,
        "vit_dec_patch_size": 16,
        "num_latent_tokens": 4,
        "finetune_decoder": True,
    }
    return {
        "model": {
            "vq_model": vq_model,
            "generator": own | said | sampling | length | generator,
        },
        "dataset": {"preprocessing": {"crop_size": 256}},
    }


@pytest.mark.parametrize(("kind", "model_type"), [(ImageBert, "ViT"), (UViTBert, "UViT")])
def test_official_configurations_are_taken(kind: Kind, model_type: str) -> None:
    generator, tokenizer = constructor_arguments(official(model_type=model_type))
    shapes = {key: each.shape for key, each in kind(**generator).state_dict().items()}
    assert shapes == {key: each.shape for key, each in tiny(kind).state_dict().items()}
    assert kind(**TINY).sampling == {}
    both = {name: each for name, each in tokenizer.items() if name != "crop_size"} | generator
    assert kind(**both).sampling == {
        "num_steps": 8,
        "randomize_temperature": 9.5,
        "guidance_scale": 4.5,
        "guidance_decay": "linear",
    }


@pytest.mark.parametrize("heads", [2, 4])
def test_a_hub_folder_says_its_sizes(heads: int, tmp_path: Path) -> None:
    """Their ``config.json`` has ``image_seq_len`` as a reference, which shapes say better."""
    model = tiny(ImageBert)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(official(num_attention_heads=heads)))
    if heads != 2:
        with pytest.raises(CheckpointError, match="num_attention_heads 4, but is read with 2"):
            presets.read(ImageBert, tmp_path, TINY)
        return
    found, _ = presets.read(ImageBert, tmp_path, TINY)
    torch.testing.assert_close(found(TOKENS, CLASSES), model(TOKENS, CLASSES), rtol=0, atol=1e-5)


def test_a_tokenizers_configuration_has_no_generator() -> None:
    config = official()
    del config["model"]["generator"]
    generator, tokenizer = constructor_arguments(config)
    assert generator == {}
    assert (tokenizer["num_latent_tokens"], tokenizer["crop_size"]) == (4, 256)


@BOTH
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": 9}, "hidden_size 9 must be a multiple of num_attention_heads 2"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a whole number, at least 1, got 0"),
        (
            {"image_seq_len": "${model.vq_model.num_latent_tokens}"},
            "image_seq_len must be a whole number",
        ),
        ({"model_type": "RAR"}, "model_type must be U?ViT, got 'RAR'"),
    ],
)
def test_sizes_that_do_not_build_are_refused(
    kind: Kind, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        kind(**(TINY | changes))


@BOTH
def test_unknown_arguments_are_refused(kind: Kind) -> None:
    with pytest.raises(TypeError, match="unexpected arguments: depth"):
        kind(**TINY, depth=4)
