"""Tiny models of MaskGIT's public forms with random weights, as files of their authors' kind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewstep.export.models.halton_transformer import HaltonTransformer
from fewstep.export.models.halton_vq import LlamaGenVQ
from fewstep.export.models.image_bert import ImageBert, UViTBert
from fewstep.export.models.maskgit_tokenizer import VQVAE
from fewstep.export.models.maskgit_transformer import BidirectionalTransformer
from fewstep.export.models.titok import TiTok

CODES, CLASSES = 24, 5


@dataclass(frozen=True)
class Form:
    """What is exported: the form, the classes of both networks, and their arguments."""

    name: str
    transformer: Any
    transformer_arguments: Mapping[str, Any]
    tokenizer: Any
    tokenizer_arguments: Mapping[str, Any]
    wrapped: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: Path, **changes: Any) -> dict[str, Any]:
        """Checkpoints and configuration, as options of ``fewstep export``.

        ``changes`` are arguments of the transformer in the place of its own.
        """
        arguments = {**self.transformer_arguments, **changes}
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(7)
            networks = {
                "transformer": _random(self.transformer(**arguments)),
                "tokenizer": self.tokenizer(**self.tokenizer_arguments),
            }
        paths = {name: folder / f"{name}.pth" for name in networks}
        for name, network in networks.items():
            state = network.state_dict()
            torch.save({self.wrapped: state} if self.wrapped else state, paths[name])
        said = {"transformer": arguments, "tokenizer": self.tokenizer_arguments, **self.config}
        config = folder / "config.json"
        config.write_text(json.dumps(said))
        return {**paths, "config": config}


def _random(network: nn.Module) -> nn.Module:
    """So that classes, positions and tokens all matter."""
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return network


_TITOK = {
    "codebook_size": CODES,
    "image_seq_len": 16,
    "condition_num_classes": CLASSES,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
_PATCHES = {
    "codebook_size": CODES,
    "token_size": 8,
    "num_latent_tokens": 16,
    "vit_enc_model_size": [32, 1, 2],
    "vit_dec_model_size": [32, 1, 2],
    "use_l2_norm": False,
    "is_legacy": False,
    "finetune_decoder": False,
    "crop_size": 32,
}
FORMS = {
    "maskgit-torch": Form(
        "maskgit-torch",
        BidirectionalTransformer,
        {
            "num_image_tokens": 17,
            "num_codebook_vectors": CODES + CLASSES + 1,
            "dim": 32,
            "hidden_dim": 64,
            "num_heads": 2,
            "n_layers": 2,
            "codebook_size": CODES,
        },
        VQVAE,
        {
            "codebook_size": CODES,
            "embedding_dim": 8,
            "filters": 32,
            "channel_multipliers": [1, 1],
            "num_res_blocks": 1,
        },
        wrapped="state_dict",
    ),
    "titok": Form("titok", ImageBert, {**_TITOK, "num_hidden_layers": 2}, TiTok, _PATCHES),
    "titok, U-ViT": Form("titok", UViTBert, {**_TITOK, "num_hidden_layers": 2}, TiTok, _PATCHES),
    "halton": Form(
        "halton",
        HaltonTransformer,
        {
            "input_size": 4,
            "hidden_dim": 32,
            "codebook_size": CODES,
            "depth": 2,
            "heads": 2,
            "mlp_dim": 64,
            "nclass": CLASSES,
            "register": 3,
        },
        LlamaGenVQ,
        {
            "codebook_size": CODES,
            "encoder_ch_mult": [1, 1],
            "decoder_ch_mult": [1, 1],
            "z_channels": 32,
            "ch": 32,
            "num_res_blocks": 1,
        },
    ),
}
"""By name."""
