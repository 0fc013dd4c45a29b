"""aMUSEd's networks beside recordings of diffusers, and the sizes that are published.

Covered: logits with the options of the published models and with all others; images and token ids;
the graph's own form with one condition per image and any grid; published sizes; configuration
files; what constructors refuse. Whole generations are in ``tests/test_official.py``.
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
from torch import Tensor

from fewstep.export import presets
from fewstep.export.models.amused_vq import VQModel
from fewstep.export.models.uvit2d import TextToTokens, UVit2DModel, packed
from fewstep.export.parts import part_of
from fewstep.export.parts.amused import constructor_arguments

Recorded = Callable[[str], dict[str, npt.NDArray[Any]]]
Layouts = dict[str, dict[str, torch.Size]]
Data = dict[str, npt.NDArray[Any]]

_RECORDINGS = ("amused", "amused_options")
_PUBLISHED_256 = "amused UVit2DModel (library defaults)"


def _loaded(kind: Callable[..., Any], data: Data, network: str, name: str) -> Any:
    start = f"sd.{network}/"
    state = {k.removeprefix(start): torch.from_numpy(data[k]) for k in data if k.startswith(start)}
    arguments = json.loads(str(data["cfg"]))[name]
    return presets.load(kind, state, Path("x.safetensors"), arguments)


@pytest.fixture(scope="module")
def transformers(recorded: Recorded) -> dict[str, UVit2DModel]:
    """By the recording."""
    return {n: _loaded(UVit2DModel, recorded(n), "transformer", "uvit2d") for n in _RECORDINGS}


@pytest.fixture(scope="module")
def tokenizers(recorded: Recorded) -> dict[str, VQModel]:
    """By the recording."""
    return {n: _loaded(VQModel, recorded(n), "vqvae", "vqmodel") for n in _RECORDINGS}


def _inputs(data: Data) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Token ids, text states, pooled texts and micro conditions."""
    ids, states, pooled, micro = (
        torch.from_numpy(data[f"in/{name}"]) for name in ("ids", "enc", "pooled", "micro_conds")
    )
    return ids, states, pooled, micro


def _close(found: Tensor, recorded: npt.NDArray[Any]) -> None:
    np.testing.assert_allclose(found.numpy(), recorded, rtol=0, atol=1e-4)


# --- the transformer


@torch.no_grad()
@pytest.mark.parametrize("name", _RECORDINGS)
def test_logits_are_the_official_ones(
    name: str, transformers: dict[str, UVit2DModel], recorded: Recorded
) -> None:
    """With the published options; with bias, plain norms and one width on the whole grid."""
    data = recorded(name)
    ids, *conditions = _inputs(data)
    _close(transformers[name](ids.int(), *conditions), data["out/logits"])


@torch.no_grad()
def test_the_graph_gives_the_official_logits(
    transformers: dict[str, UVit2DModel], recorded: Recorded
) -> None:
    """Of a flat grid, with the text as one tensor and the pipeline's micro conditions."""
    data = recorded("amused")
    ids, states, pooled, _ = _inputs(data)
    graph = TextToTokens(transformers["amused"], image_size=(24, 24)).eval()
    assert (graph.grid, graph.width) == ((6, 6), 24)
    logits = graph(ids.flatten(1).int(), packed(pooled, states))
    _close(logits, data["out/logits"].reshape(2, 64, 36).transpose(0, 2, 1))


@torch.no_grad()
def test_micro_conditions_and_grid_can_be_others(
    transformers: dict[str, UVit2DModel], recorded: Recorded
) -> None:
    """A grid of 3×5; crop and score, too. The recording has others for each image."""
    data = recorded("amused_options")
    ids, states, pooled, micro = _inputs(data)
    text = packed(pooled, states)
    for image, (width, height, top, left, score) in enumerate(micro.tolist()):
        graph = TextToTokens(
            transformers["amused_options"],
            (3, 5),
            image_size=(int(height), int(width)),
            crop=(int(top), int(left)),
            aesthetic_score=score,
        )
        logits = graph(ids[image : image + 1].flatten(1), text[image : image + 1])
        _close(logits[0].T.reshape(10, 3, 5), data["out/logits"][image])


def test_a_condition_is_the_pooled_text_before_the_states() -> None:
    pooled, states = torch.arange(6.0).reshape(2, 3), torch.ones(2, 4, 5)
    found = packed(pooled, states)
    assert found.shape == (2, 5, 5)
    assert found[1, 0].tolist() == [3, 4, 5, 0, 0]
    assert torch.equal(found[:, 1:], states)
    wider = packed(torch.ones(2, 6), states)
    assert torch.equal(wider[:, 1:, :5], states)
    assert not wider[:, 1:, 5:].any()


@torch.no_grad()
@pytest.mark.parametrize("name", _RECORDINGS)
def test_an_image_does_not_depend_on_its_batch(
    name: str, transformers: dict[str, UVit2DModel], recorded: Recorded
) -> None:
    inputs = _inputs(recorded(name))
    together = transformers[name](*inputs)
    alone = transformers[name](*(each[1:] for each in inputs))
    torch.testing.assert_close(together[1:], alone, rtol=0, atol=1e-5)


# --- the tokenizer


@torch.no_grad()
def test_tokens_and_images_are_the_official_ones(
    tokenizers: dict[str, VQModel], recorded: Recorded
) -> None:
    """Of a grid of 3×5, with attention on all levels, narrower codes and another activation."""
    data, tokenizer = recorded("amused_options"), tokenizers["amused_options"]
    ids = tokenizer.encode(torch.from_numpy(data["in/image"]))
    np.testing.assert_array_equal(ids.reshape(2, 3, 5), data["out/encoded"])
    _close(tokenizer.decode(torch.from_numpy(data["in/codes"])), data["out/image"])


@torch.no_grad()
def test_a_flat_grid_may_have_any_sides(recorded: Recorded) -> None:
    data = recorded("amused_options")
    arguments = json.loads(str(data["cfg"]))["vqmodel"]
    tokenizer = VQModel(**arguments, grid=(3, 5)).eval()
    state = {k[9:]: torch.from_numpy(data[k]) for k in data if k.startswith("sd.vqvae/")}
    tokenizer.load_state_dict(state)
    codes = torch.from_numpy(data["in/codes"]).flatten(1).int()
    _close(tokenizer.unclamped(codes), data["out/image"])
    _close(tokenizer(codes), data["out/image"].clip(0, 1))


@torch.no_grad()
def test_an_image_that_was_decoded_has_its_size(tokenizers: dict[str, VQModel]) -> None:
    tokenizer = tokenizers["amused"]
    assert tokenizer.downsampling == 4
    assert tokenizer(torch.zeros(1, 16, dtype=torch.int32)).shape == (1, 3, 16, 16)
    assert tokenizer.encode(torch.rand(2, 3, 8, 12)).shape == (2, 6)


# --- published sizes and configurations


def test_published_transformers_are_recognised(layouts: Layouts) -> None:
    """By keys and shapes; amused-512 has a convolution to half the grid and one back, besides."""
    small, large = (
        presets.build(UVit2DModel, size.arguments, size.name) for size in part_of(UVit2DModel).sizes
    )
    shapes = {key: value.shape for key, value in small.state_dict().items()}
    assert shapes == layouts[_PUBLISHED_256]
    assert (small.sample_size, small.halves, small.codebook_size) == (16, False, 8192)
    more = {
        "down_block.downsample.norm.weight": torch.Size([768]),
        "down_block.downsample.conv.weight": torch.Size([768, 768, 2, 2]),
        "up_block.upsample.norm.weight": torch.Size([768]),
        "up_block.upsample.conv.weight": torch.Size([768, 768, 2, 2]),
    }
    assert {key: value.shape for key, value in large.state_dict().items()} == shapes | more
    assert (large.sample_size, large.halves, large.vocab_size) == (32, True, 8256)
    # amused-512's diffusion_pytorch_model.safetensors has 2,433,086,672 bytes with its header.
    numbers = sum(parameter.numel() for parameter in large.parameters())
    assert 0 < 2_433_086_672 - 4 * numbers < 100_000


def test_the_published_tokenizer_has_the_size_of_its_file(recorded: Recorded) -> None:
    """585 MB, and the keys of the recorded one, level by level."""
    (size,) = part_of(VQModel).sizes
    published = presets.build(VQModel, size.arguments, size.name)
    assert round(4 * sum(each.numel() for each in published.parameters()) / 1e6) == 585
    assert published.downsampling == 16
    small = {k[9:] for k in recorded("amused") if k.startswith("sd.vqvae/")}
    assert not [key for key in small if key not in published.state_dict() and "shortcut" not in key]


def test_a_tokenizer_needs_no_encoder(recorded: Recorded) -> None:
    data = recorded("amused")
    state = {k[9:]: torch.from_numpy(data[k]) for k in data if k.startswith("sd.vqvae/")}
    left = {k: v for k, v in state.items() if not k.startswith(("encoder.", "quant_conv."))}
    arguments = json.loads(str(data["cfg"]))["vqmodel"]
    alone = presets.load(VQModel, left, Path("x"), arguments)
    whole = presets.load(VQModel, state, Path("x"), arguments)
    tokens = torch.arange(16).reshape(1, 16)
    assert torch.equal(alone(tokens), whole(tokens))


def test_arguments_are_those_of_the_folder() -> None:
    config = {"_class_name": "UVit2DModel", "_diffusers_version": "0.25.0", "downsample": True}
    assert constructor_arguments(UVit2DModel, config) == {"downsample": True}


# --- what is refused


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"downsample": True}, "downsample and upsample must be the same, got True and False"),
        ({"micro_cond_embed_dim": 384}, "must be 5 times micro_cond_encode_dim 256, got 384"),
        ({"vocab_size": 8000}, "vocab_size must be codebook_size 8192 at least, got 8000"),
        ({"num_attention_heads": 0}, "num_attention_heads must be 1 … hidden_size 1024, got 0"),
        ({"block_num_heads": 800}, "block_num_heads must be 1 … block_out_channels 768, got 800"),
    ],
)
def test_transformers_that_cannot_work_are_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        UVit2DModel(**changed)


def test_half_a_grid_needs_even_sides(transformers: dict[str, UVit2DModel]) -> None:
    with pytest.raises(ValueError, match=r"sides of the grid must be even, got \[4, 5\]"):
        TextToTokens(transformers["amused"], (4, 5), image_size=(16, 20))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"norm_type": "spatial"}, "norm_type must be group, got spatial"),
        ({"act_fn": "tanh"}, "act_fn must be one of silu, swish, mish, gelu, relu, got tanh"),
        ({"norm_num_groups": 48}, "block_out_channels must be multiples of 48, got 64"),
        ({"block_out_channels": (64, 64)}, "down_block_types must have 2 entries, as block_out"),
        ({"up_block_types": ("UpBlock2D",)}, "up_block_types must be of UpDecoderBlock2D, Attn"),
    ],
)
def test_tokenizers_that_cannot_work_are_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        VQModel(**changed)
