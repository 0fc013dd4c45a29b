"""Tiny models, their random weights, and files around these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.export import presets
from fewstep.export.checkpoint import Checkpoint
from fewstep.export.models import PolicyNet, UViT, VQModel

State = dict[str, Tensor]

UVIT: dict[str, Any] = {
    "img_size": 2,
    "codebook_size": 5,
    "embed_dim": 8,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 3,
}
POLICY: dict[str, Any] = {"in_channels": 8, "hidden_size": 4, "grid_size": 2}
VQGAN: dict[str, Any] = {
    "ddconfig": {
        "z_channels": 32,
        "resolution": 4,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1, 1],
        "num_res_blocks": 1,
    },
    "n_embed": 5,
    "embed_dim": 32,
}
ARGUMENTS: dict[type[nn.Module], dict[str, Any]] = {UViT: UVIT, PolicyNet: POLICY, VQModel: VQGAN}


def weights(kind: type[nn.Module], seed: int = 0) -> State:
    torch.manual_seed(seed)
    return {
        key: torch.rand_like(each) for key, each in kind(**ARGUMENTS[kind]).state_dict().items()
    }


def read(kind: type[nn.Module], content: object, folder: Path) -> tuple[nn.Module, Checkpoint]:
    torch.save(content, folder / "file.pth")
    model, found = presets.read(kind, folder / "file.pth", ARGUMENTS[kind])
    return model, found
