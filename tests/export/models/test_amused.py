"""aMUSEd's networks beside recordings of diffusers, and the sizes that are published.

Covered: logits with the options of the published models and with all others; whole generations,
replayed with the recorded noise; images and token ids; the graph's own form with one condition per
image and any grid; export; published sizes; configuration files; what constructors refuse.
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
from fewstep.export.onnx_graph import export_graph
from fewstep.export.parts import part_of
from fewstep.export.parts.amused import constructor_arguments
from fewstep.export.source import Graph

Recorded = Callable[[str], dict[str, npt.NDArray[Any]]]
Layouts = dict[str, dict[str, torch.Size]]
Data = dict[str, npt.NDArray[Any]]

_MASKED = 64
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
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_logits_are_the_official_ones(
    name: str, dtype: torch.dtype, transformers: dict[str, UVit2DModel], recorded: Recorded
) -> None:
    """With the published options; with bias, plain norms and one width on the whole grid."""
    data = recorded(name)
    ids, *conditions = _inputs(data)
    _close(transformers[name](ids.to(dtype), *conditions), data["out/logits"])


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


def test_all_weights_can_be_trained(recorded: Recorded) -> None:
    """Also where a feature is 0 everywhere, as the responses of a new network may be."""
    arguments = json.loads(str(recorded("amused")["cfg"]))["uvit2d"]
    model = UVit2DModel(**arguments)
    torch.nn.init.zeros_(model.down_block.res_blocks[0].channelwise_linear_1.weight)  # type: ignore[arg-type, union-attr]
    model(*_inputs(recorded("amused"))).square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@torch.no_grad()
@pytest.mark.parametrize("run", ["cos", "lin"])
def test_generations_are_the_official_ones(
    run: str,
    transformers: dict[str, UVit2DModel],
    tokenizers: dict[str, VQModel],
    recorded: Recorded,
) -> None:
    """Every token of every step with the recorded noise, and the images that come of it."""
    data = recorded("amused")
    said = json.loads(str(data["cfg"]))["runs"][run]
    steps, ids = said["num_inference_steps"], torch.full((2, 6, 6), _MASKED)
    for step in range(steps):
        np.testing.assert_array_equal(ids, data[f"out/{run}/ids_in"][step])
        logits = _guided(transformers["amused"], data, ids, said["guidance_scale"])
        if step == steps - 1:
            _close(logits, data[f"out/{run}/logits_last"])
        ids = _step(logits, ids, step, data, run, said)
    _close(tokenizers["amused"](ids.flatten(1)), data[f"out/{run}/image01"])


def _guided(model: UVit2DModel, data: Data, ids: Tensor, guidance: float) -> Tensor:
    _, states, pooled, micro = _inputs(data)
    conditional: Tensor = model(ids, states, pooled, micro)
    if guidance <= 1:
        return conditional
    negative = (torch.from_numpy(data[f"in/neg_{name}"]) for name in ("enc", "pooled"))
    unconditional: Tensor = model(ids, *negative, micro)
    return unconditional + guidance * (conditional - unconditional)


def _step(
    logits: Tensor, ids: Tensor, step: int, data: Data, run: str, said: dict[str, Any]
) -> Tensor:
    """One step of the official scheduler, with its noise as it was recorded."""
    steps, flat, masked = said["num_inference_steps"], ids.flatten(1), ids.flatten(1) == _MASKED
    log_p = logits.flatten(2).transpose(1, 2).log_softmax(-1)
    gumbel = torch.from_numpy(data[f"in/{run}/gumbel_f16"][step].astype(np.float32))
    sampled = torch.where(masked, (log_p + gumbel.reshape(log_p.shape)).argmax(-1), flat)
    if step == steps - 1:
        return sampled.reshape(ids.shape)
    ratio = torch.tensor(step + 1) / steps
    linear = said.get("masking_schedule") == "linear"
    share = 1 - ratio if linear else torch.cos(ratio * np.pi / 2)
    again = torch.floor(36 * share).long().minimum(masked.sum(1) - 1).clamp(min=1)
    temperature = said["temperature"]
    first, last = temperature if isinstance(temperature, list) else (temperature, 0.01)
    noise = -torch.log(-torch.log(torch.from_numpy(data[f"in/{run}/uniform_conf"][step])))
    confidence = log_p.gather(2, sampled[..., None])[..., 0]
    confidence = confidence + torch.linspace(first, last, steps)[step] * noise
    confidence = confidence.masked_fill(~masked, float("inf"))
    cut_off = confidence.sort(1).values.gather(1, again[:, None])
    return torch.where(confidence < cut_off, _MASKED, sampled).reshape(ids.shape)


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


# --- export


def test_the_transformer_can_be_exported(
    transformers: dict[str, UVit2DModel], recorded: Recorded, tmp_path: Path
) -> None:
    ids, states, pooled, _ = _inputs(recorded("amused"))
    graph = TextToTokens(transformers["amused"], image_size=(24, 24)).eval()
    inputs = {"tokens": ids.flatten(1).int(), "text": packed(pooled, states)}
    info = export_graph("transformer", Graph(graph, inputs, ("logits",)), tmp_path)
    assert info.outputs["logits"].shape == ("batch", 36, 64)


def test_the_tokenizer_can_be_exported(tokenizers: dict[str, VQModel], tmp_path: Path) -> None:
    tokens = torch.arange(32, dtype=torch.int32).reshape(2, 16)
    graph = Graph(tokenizers["amused"], {"tokens": tokens}, ("image",))
    info = export_graph("decoder", graph, tmp_path)
    assert info.outputs["image"].shape == ("batch", 3, 16, 16)


# --- published sizes and configurations


def _hollow(shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """Tensors of these shapes in one number's memory each."""
    return {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}


def test_published_transformers_are_recognised(layouts: Layouts) -> None:
    shapes = layouts[_PUBLISHED_256]
    small = presets.load(UVit2DModel, _hollow(shapes), Path("x"), None)
    assert (small.sample_size, small.halves, small.codebook_size) == (16, False, 8192)
    more = {
        "down_block.downsample.norm.weight": torch.Size([768]),
        "down_block.downsample.conv.weight": torch.Size([768, 768, 2, 2]),
        "up_block.upsample.norm.weight": torch.Size([768]),
        "up_block.upsample.conv.weight": torch.Size([768, 768, 2, 2]),
    }
    large = presets.load(UVit2DModel, _hollow(shapes | more), Path("x"), None)
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
