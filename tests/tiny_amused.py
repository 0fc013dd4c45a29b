"""A tiny aMUSEd with random weights, as a folder of diffusers; and a tiny CLIP text encoder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from torch import nn

from fewstep.export.models.amused_vq import VQModel
from fewstep.export.models.clip_text import CLIPTextModelWithProjection
from fewstep.export.models.uvit2d import UVit2DModel

START, END = "<|startoftext|>", "<|endoftext|>"
TOKENS, VOCABULARY = 7, 516
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 8,
    "intermediate_size": 16,
    "projection_dim": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": TOKENS,
    "eos_token_id": 2,
}
TRANSFORMER: dict[str, Any] = {
    "hidden_size": 16,
    "cond_embed_dim": 12,
    "micro_cond_encode_dim": 4,
    "micro_cond_embed_dim": 20,
    "encoder_hidden_size": 8,
    "vocab_size": 28,
    "codebook_size": 24,
    "in_channels": 16,
    "block_out_channels": 16,
    "num_res_blocks": 1,
    "block_num_heads": 2,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "sample_size": 4,
}
TOKENIZER: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [8, 8],
    "latent_channels": 8,
    "num_vq_embeddings": 24,
    "norm_num_groups": 4,
    "mid_block_add_attention": False,
}
SCHEDULER: dict[str, Any] = {"mask_token_id": 27, "masking_schedule": "cosine"}
PARTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "transformer": (UVit2DModel, TRANSFORMER),
    "vqvae": (VQModel, TOKENIZER),
    "text_encoder": (CLIPTextModelWithProjection, TEXT),
}
"""Classes and arguments of the networks, by their folders."""
_MERGES = (("c", "a"), ("ca", "t</w>"))


def vocabulary(merges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Ids in CLIP's order: bytes, the same at the end of a word, merges, start and end."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"{each}</w>" for each in letters), *map("".join, merges), START, END]
    return {word: index for index, word in enumerate(dict.fromkeys(words))}


def write_tokenizer(
    folder: Path, merges: Sequence[tuple[str, str]] = _MERGES, **files: Mapping[str, Any]
) -> Path:
    """``vocab.json`` and ``merges.txt``, and JSON ``files`` by their stem."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary(merges)))
    lines = ["#version: 0.2", *map(" ".join, merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def save_network(
    folder: Path, network: nn.Module, arguments: Mapping[str, Any], *, file: str, **said: Any
) -> Path:
    """Weights and ``config.json``; ``said`` stands there besides the arguments."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), folder / file)
    (folder / "config.json").write_text(json.dumps({**said, **arguments}))
    return folder


def write_text_encoder(
    folder: Path, name: str = "CLIPTextModelWithProjection", **changes: Any
) -> Path:
    """A CLIP text encoder with its tokenizer in one folder, as transformers saves them."""
    write_tokenizer(folder)
    said = {"architectures": [name]}
    arguments = {**TEXT, **changes}
    network = _random(CLIPTextModelWithProjection, arguments)
    return save_network(folder, network, arguments, file="model.safetensors", **said)


def write_pipeline(
    folder: Path,
    networks: Mapping[str, nn.Module],
    arguments: Mapping[str, Mapping[str, Any]],
    scheduler: Mapping[str, Any] = SCHEDULER,
) -> Path:
    """The folder of a pipeline.

    Args:
        folder: to make.
        networks: ``transformer``, ``vqvae`` and ``text_encoder``.
        arguments: of their constructors, by the same names.
        scheduler: what its configuration says.
    """
    for name, network in networks.items():
        kind = type(network).__name__
        file, said = "diffusion_pytorch_model.safetensors", dict[str, Any](_class_name=kind)
        if name == "text_encoder":
            file, said = "model.safetensors", {"architectures": [kind]}
        save_network(folder / name, network, arguments[name], file=file, **said)
    write_tokenizer(folder / "tokenizer", tokenizer_config={"pad_token": "!"})
    contents = {
        "scheduler/scheduler_config": {"_class_name": "AmusedScheduler", **scheduler},
        "model_index": {"_class_name": "AmusedPipeline"},
    }
    (folder / "scheduler").mkdir()
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def write_amused(
    folder: Path,
    *,
    transformer: Mapping[str, Any] | None = None,
    vqvae: Mapping[str, Any] | None = None,
    text_encoder: Mapping[str, Any] | None = None,
    scheduler: Mapping[str, Any] | None = None,
) -> Path:
    """The folder of a tiny pipeline; arguments are what differs from :data:`PARTS`."""
    given = {"transformer": transformer, "vqvae": vqvae, "text_encoder": text_encoder}
    arguments = {name: {**tiny, **(given[name] or {})} for name, (_, tiny) in PARTS.items()}
    networks = {name: _random(kind, arguments[name]) for name, (kind, _) in PARTS.items()}
    return write_pipeline(folder, networks, arguments, {**SCHEDULER, **(scheduler or {})})


def _random(kind: Any, arguments: Mapping[str, Any]) -> nn.Module:
    """So that texts, positions and tokens all matter."""
    with torch.random.fork_rng(devices=()), torch.no_grad():
        torch.manual_seed(5)
        network: nn.Module = kind(**arguments)
        for value in network.parameters():
            value.add_(0.2 * torch.randn_like(value))
    return network
