"""A tiny MAR with random weights: its checkpoints in the authors' formats, and its bundle.

The encoder's width is no multiple of 128, so keys and values are padded in its cache; encoder,
decoder and head have widths of their own, and tokens are patches of two positions a side. The
decoder has blocks on both sides of what is computed for all positions.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from fewstep.export.flow import export as export_form
from fewstep.export.models.kl import AutoencoderKL
from fewstep.export.models.mar import MAR

CLASSES, SIDE = 5, 4
LATENT_SCALE = 0.5
TRANSFORMER: dict[str, Any] = {
    "img_size": 16,
    "vae_stride": 2,
    "patch_size": 2,
    "encoder_embed_dim": 48,
    "encoder_depth": 2,
    "encoder_num_heads": 3,
    "decoder_embed_dim": 32,
    "decoder_depth": 5,
    "decoder_num_heads": 2,
    "vae_embed_dim": 3,
    "class_num": CLASSES,
    "buffer_size": 6,
    "diffloss_d": 2,
    "diffloss_w": 24,
}
TOKENIZER: dict[str, Any] = {
    "embed_dim": 3,
    "ch": 32,
    "ch_mult": [1, 1],
    "num_res_blocks": 1,
    "attn_resolutions": [],
}


def models(seed: int = 0, **transformer: Any) -> tuple[MAR, AutoencoderKL]:
    """The networks; ``transformer``: arguments in the place of ``TRANSFORMER``'s."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        mar = MAR(**{**TRANSFORMER, **transformer})
        tokenizer = AutoencoderKL(**{**TOKENIZER, "embed_dim": mar.vae_embed_dim})
        with torch.no_grad():  # so that class, position and known tokens all matter
            for name, value in mar.named_parameters():
                if "pos_embed" in name or "latent" in name or "class_emb" in name:
                    torch.nn.init.normal_(value, std=0.5)
            mar.diffloss.net.final_layer.linear.weight.mul_(2)
    return mar.eval(), tokenizer.eval()


def checkpoints(folder: Path) -> dict[str, Any]:
    """Write checkpoint files, as their authors' programs do, and their ``--config``.

    Returns:
        What ``fewstep export mar`` is given of them, by name of the option.
    """
    config = {
        "transformer": TRANSFORMER,
        "tokenizer": TOKENIZER,
        "latent_scale": LATENT_SCALE,
        "name": "tiny MAR",
        "class_names": ["ant", "bee", "cow", "dog", "elk"],
        "defaults": {"iterations": 6, "diffusion_steps": "5", "guidance": 2},
        "presets": {"fast": {"iterations": 3, "diffusion_steps": "4:2", "refresh": 2}},
    }
    mar, tokenizer = models()
    averaged = mar.state_dict()
    training = {key: torch.zeros_like(value) for key, value in averaged.items()}
    arguments = argparse.Namespace(buffer_size=6, diffloss_d=2, diffloss_w=24, epochs=3)
    given: dict[str, Any] = {
        "transformer": folder / "checkpoint-last.pth",
        "tokenizer": folder / "kl.ckpt",
        "config": folder / "config.json",
    }
    whole = {"model": training, "model_ema": averaged, "epoch": 3, "args": arguments}
    torch.save(whole, given["transformer"])
    torch.save({"model": tokenizer.state_dict()}, given["tokenizer"])
    given["config"].write_text(json.dumps(config))
    return given


def export(given: dict[str, Any], out: Path) -> Path:
    """Export what :func:`checkpoints` wrote."""
    return export_form("mar", {**given, "encoder": True}, out, command="pytest").path
