"""Tiny models with random weights: their checkpoints in the authors' formats, and their bundles.

The weights are large enough that logits spread over several nats and that condition, step and
tokens all matter: other seeds then give other tokens. The fixtures of ``tests/conftest.py`` and the
kit for GPUs (``tests/gpu/``) are made of these.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fewstep.export.flow import export as export_form
from fewstep.export.models import PolicyNet, UViT, VQModel

_CODES = 24
TRANSFORMER: dict[str, Any] = {
    "img_size": 4,
    "codebook_size": _CODES,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
}
CLASSES: dict[str, Any] = {"num_classes": 6}  # 0 … 4 and the unconditional 5
TEXT: dict[str, Any] = {"clip_dim": 12, "num_clip_token": 3}
TOKENIZER: dict[str, Any] = {
    "ddconfig": {
        "double_z": False,
        "z_channels": 32,
        "resolution": 8,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1, 1],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0.0,
    },
    "n_embed": _CODES,
    "embed_dim": 32,
}
POLICY: dict[str, Any] = {"in_channels": 32, "hidden_size": 16, "grid_size": 4}


def checkpoints(folder: Path) -> dict[str, Any]:
    """Write checkpoint files and their ``--config``: conditioned on classes, with a policy.

    Returns:
        What ``fewstep export adanat`` is given of them, by name of the option.
    """
    config = {
        "transformer": TRANSFORMER | CLASSES,
        "tokenizer": TOKENIZER,
        "policy": POLICY,
        "policy_residual": True,
        "name": "tiny",
        "class_names": ["shirt", "shoe", "bag", "coat", "dress"],
    }
    files = {
        "transformer": folder / "nnet_ema.pth",
        "tokenizer": folder / "vqgan.ckpt",
        "policy": folder / "ckpt_policy.pth",
        "config": folder / "config.json",
    }
    policy = _randomised(PolicyNet(**POLICY), seed=3)
    actor = {f"policy_old.actor.{key}": value for key, value in policy.state_dict().items()}
    transformer = _randomised(UViT(**TRANSFORMER, **CLASSES), seed=1)
    torch.save(transformer.state_dict(), files["transformer"])
    tokenizer = _randomised(VQModel(**TOKENIZER), seed=4)
    torch.save({"state_dict": tokenizer.state_dict()}, files["tokenizer"])
    torch.save({"model": actor}, files["policy"])
    files["config"].write_text(json.dumps(config))
    return files


def text_checkpoints(folder: Path) -> dict[str, Any]:
    """The same conditioned on text, without policy, with the states of the empty text."""
    config = {"transformer": TRANSFORMER | TEXT, "tokenizer": TOKENIZER, "name": "tiny-text"}
    files = {
        "transformer": folder / "nnet_ema.pth",
        "tokenizer": folder / "vqgan.ckpt",
        "config": folder / "config.json",
        "unconditional_text": folder / "empty.npy",
    }
    transformer = _randomised(UViT(**TRANSFORMER, **TEXT), seed=2)
    torch.save(transformer.state_dict(), files["transformer"])
    torch.save(_randomised(VQModel(**TOKENIZER), seed=4).state_dict(), files["tokenizer"])
    shape = (TEXT["num_clip_token"], TEXT["clip_dim"])
    np.save(
        files["unconditional_text"], np.random.default_rng(0).standard_normal(shape, np.float32)
    )
    files["config"].write_text(json.dumps(config))
    return files


def wide_checkpoints(folder: Path) -> dict[str, Any]:
    """:func:`checkpoints` without policy, whose decoder has 64 channels: two in a group, as a
    GroupNorm needs."""
    files = checkpoints(folder)
    config = json.loads(files["config"].read_text())
    del config["policy"], config["policy_residual"]
    config["tokenizer"]["ddconfig"]["ch"] = 64
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        tokenizer = VQModel(**config["tokenizer"])
    torch.save({"state_dict": tokenizer.state_dict()}, files["tokenizer"])
    files["config"].write_text(json.dumps(config))
    return files | {"policy": None}


def export(files: dict[str, Any], out: Path) -> Path:
    """The AdaNAT bundle of :func:`checkpoints`."""
    return export_form("adanat", files, out, command="pytest").path


def export_text(files: dict[str, Any], out: Path) -> Path:
    """The MaskGIT bundle of :func:`text_checkpoints` or :func:`wide_checkpoints`."""
    return export_form("maskgit", files, out, command="pytest").path


def _randomised(module: nn.Module, seed: int) -> nn.Module:
    """Draw every matrix and bias again, at scales that keep activations near 1."""
    random = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            scale = 0.1
        elif parameter.ndim < 2:  # the weight of a norm stays 1
            continue
        else:
            scale = 0.4 if "embeddings" in name else 1.2 * parameter[0].numel() ** -0.5
        with torch.no_grad():
            parameter.normal_(std=scale, generator=random)
    return module
