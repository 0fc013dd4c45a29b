"""MaskGIT's public forms as ``tests.benchmarks.forms`` measures them: networks of about 8 M
parameters, and the authors' loops.

Texts are of the published shapes: AdaNAT's CC3M model reads 77 × 1,280 states that are given, and
aMUSEd's folder has a text encoder of one layer, which reads a text once, before anything is timed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests import tiny_amused
from tests.benchmarks import forms_eager as eager
from tests.tiny_amused import VOCABULARY
from torch import nn

from fewstep.export.models import PolicyNet, UViT, VQModel
from fewstep.export.models.amused_vq import VQModel as AmusedVQ
from fewstep.export.models.clip_text import CLIPTextModelWithProjection
from fewstep.export.models.halton_transformer import HaltonTransformer
from fewstep.export.models.halton_vq import LlamaGenVQ
from fewstep.export.models.image_bert import ImageBert
from fewstep.export.models.maskgit_tokenizer import VQVAE
from fewstep.export.models.maskgit_transformer import BidirectionalTransformer
from fewstep.export.models.titok import TiTok
from fewstep.export.models.uvit2d import UVit2DModel
from fewstep.export.parts import part_of

Networks = dict[str, nn.Module]
Given = dict[str, Path]

_WIDTH = 256


def write_files(form: Form, networks: Networks, folder: Path) -> Given:
    """A file for each network, and their arguments in the configuration."""
    given = {name: folder / f"{name}.pth" for name in networks}
    for name, network in networks.items():
        torch.save(network.state_dict(), given[name])
    arguments = {"transformer": form.arguments, "tokenizer": form.tokenizer_arguments}
    if form.policy:
        arguments["policy"] = form.policy
    (folder / "config.json").write_text(json.dumps({**arguments, **form.config}))
    return {**given, "config": folder / "config.json"}


def write_with_empty_text(form: Form, networks: Networks, folder: Path) -> Given:
    """The same, and random states of the empty text."""
    shape = (form.arguments["num_clip_token"], form.arguments["clip_dim"])
    states = np.random.default_rng(1).standard_normal(shape, np.float32)
    np.save(folder / "empty.npy", states)
    return {**write_files(form, networks, folder), "unconditional_text": folder / "empty.npy"}


def write_pipeline(form: Form, networks: Networks, folder: Path) -> Given:
    """The folder of a pipeline of diffusers."""
    encoder = CLIPTextModelWithProjection(**form.text_encoder)
    transformer = networks["transformer"]
    assert isinstance(transformer, UVit2DModel)
    tiny_amused.write_pipeline(
        folder / "pipeline",
        {
            "transformer": transformer,
            "vqvae": networks["tokenizer"],
            "text_encoder": encoder,
        },
        {
            "transformer": form.arguments,
            "vqvae": form.tokenizer_arguments,
            "text_encoder": form.text_encoder,
        },
        {"mask_token_id": transformer.vocab_size - 1},
    )
    return {"folder": folder / "pipeline"}


@dataclass(frozen=True)
class Form:
    """What is exported, and the authors' loop.

    Args:
        name: of the command.
        transformer: its class.
        arguments: of the transformer.
        tokenizer: its class.
        tokenizer_arguments: of the tokenizer.
        decode: the authors' loop, given transformer, tokenizer, class or text states, and
            ``policy`` and ``info`` if there is a policy.
        passes: how many rows the transformer computes there, for the table.
        policy: arguments of a policy network, if there is one.
        write: checkpoints as the command takes them.
        config: of the command, besides the networks' arguments.
        text_encoder: arguments of the text encoder, where the form brings one.
    """

    name: str
    transformer: Callable[..., nn.Module]
    arguments: Mapping[str, Any]
    tokenizer: Callable[..., nn.Module]
    tokenizer_arguments: Mapping[str, Any]
    decode: Callable[..., object]
    passes: str
    policy: Mapping[str, Any] = field(default_factory=dict)
    write: Callable[[Form, Networks, Path], Given] = write_files
    config: Mapping[str, Any] = field(default_factory=dict)
    text_encoder: Mapping[str, Any] = field(default_factory=dict)

    def networks(self) -> Networks:
        """With PyTorch's initial weights."""
        torch.manual_seed(0)
        found = {
            "transformer": self.transformer(**self.arguments),
            "tokenizer": self.tokenizer(**self.tokenizer_arguments),
        }
        return found | ({"policy": PolicyNet(**self.policy)} if self.policy else {})


_VQGAN = {
    **part_of(VQModel).sizes[0].arguments,
    "ddconfig": {**part_of(VQModel).sizes[0].arguments["ddconfig"], "ch": 32},
}
_BERT = {
    "codebook_size": 4096,
    "condition_num_classes": 1000,
    "hidden_size": _WIDTH,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "intermediate_size": 4 * _WIDTH,
    "num_steps": 8,
    "randomize_temperature": 9.5,
    "guidance_scale": 4.5,
    "guidance_decay": "linear",
}
_TITOK = {
    "codebook_size": 4096,
    "token_size": 12,
    "num_latent_tokens": 32,
    "vit_enc_model_size": [_WIDTH, 1, 8],
    "vit_dec_model_size": [_WIDTH, 4, 8],
    "use_l2_norm": False,
    "is_legacy": False,
    "finetune_decoder": False,
}
_POLICY = {"in_channels": _WIDTH, "hidden_size": 512}
FORMS = (
    Form(
        "maskgit-torch",
        BidirectionalTransformer,
        {"dim": _WIDTH, "hidden_dim": 4 * _WIDTH, "num_heads": 8, "n_layers": 8},
        VQVAE,
        {"filters": 32},
        eager.maskgit_torch,
        "16 × 1",
    ),
    Form(
        "titok",
        ImageBert,
        {**_BERT, "image_seq_len": 32},
        TiTok,
        _TITOK,
        eager.titok,
        "15 × 1",
    ),
    Form(
        "halton",
        HaltonTransformer,
        {"hidden_dim": 192, "codebook_size": 16384, "depth": 8, "heads": 6, "mlp_dim": 768},
        LlamaGenVQ,
        {"ch": 32, "z_channels": 64},
        eager.halton,
        "32 × 2",
    ),
    Form(
        "adagen",
        UViT,
        {"embed_dim": _WIDTH, "depth": 8, "num_heads": 8, "num_classes": 1001},
        VQModel,
        _VQGAN,
        eager.adagen,
        "33 × 1",
        policy=_POLICY,
    ),
    Form(
        "adanat",
        UViT,
        {
            "embed_dim": _WIDTH,
            "depth": 8,
            "num_heads": 8,
            "clip_dim": 1280,
            "num_clip_token": 77,
            "num_classes": None,
        },
        VQModel,
        _VQGAN,
        eager.adanat,
        "17 × 1",
        policy=_POLICY,
        write=write_with_empty_text,
        config={"defaults": {"schedule": "policy"}},
    ),
    Form(
        "amused",
        UVit2DModel,
        {
            **dict.fromkeys(("hidden_size", "in_channels", "block_out_channels"), 192),
            "num_res_blocks": 1,
            "block_num_heads": 6,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "intermediate_size": 512,
            "sample_size": 16,
        },
        AmusedVQ,
        {**part_of(AmusedVQ).sizes[0].arguments, "block_out_channels": [32, 64, 64, 128, 192]},
        eager.amused,
        "12 × 2",
        write=write_pipeline,
        text_encoder={
            "vocab_size": VOCABULARY,
            "hidden_size": 768,
            "intermediate_size": 768,
            "projection_dim": 768,
            "num_hidden_layers": 1,
            "eos_token_id": 2,
        },
    ),
)
MASKGIT_256 = Form(
    "titok",
    ImageBert,
    {**_BERT, "image_seq_len": 256},
    VQModel,
    {**_VQGAN, "n_embed": 4096},
    eager.titok,
    "15 × 1",
)
