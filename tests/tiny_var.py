"""A tiny VAR with random weights: its checkpoints in the authors' formats, and its bundle.

The width is no multiple of 128, so keys and values are padded in the cache. Logits spread over
several nats, so that class, guidance and tokens all matter.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from fewstep.export.flow import export as export_form
from fewstep.export.models.var import VAR
from fewstep.export.models.var_vae import VQVAE
from fewstep.export.parts.var import AdaGenPolicy

SCALES = (1, 2, 3, 4)
CODES, CLASSES = 40, 5
TRANSFORMER: dict[str, Any] = {
    "num_classes": CLASSES,
    "depth": 2,
    "embed_dim": 48,
    "num_heads": 3,
    "attn_l2_norm": True,
    "patch_nums": list(SCALES),
}
TOKENIZER: dict[str, Any] = {
    "vocab_size": CODES,
    "z_channels": 8,
    "ch": 32,
    "v_patch_nums": list(SCALES),
    "ch_mult": [1, 1],
    "num_res_blocks": 1,
    "using_sa": False,
    "using_mid_sa": False,
}
POLICY: dict[str, Any] = {"in_channels": 48, "hidden_size": 16, "grid_size": 4}
RECIPE: dict[str, Any] = {"guidance": 1.5, "top_k": 20, "top_p": 0.9, "sampling_temperature": 1.0}


def models(seed: int = 0, **transformer: Any) -> tuple[VAR, VQVAE, AdaGenPolicy]:
    """The networks; ``transformer``: arguments in the place of ``TRANSFORMER``'s."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        vae = VQVAE(**TOKENIZER)
        var = VAR(vae, **{**TRANSFORMER, **transformer})
        policy = AdaGenPolicy(**POLICY)
        with torch.no_grad():
            for embedding in (var.pos_start, var.pos_1LC, var.lvl_embed.weight):
                torch.nn.init.normal_(embedding, std=0.5)
            var.head.weight.mul_(6)
            for parameter in policy.parameters():
                parameter.copy_(0.15 * torch.randn(parameter.shape))
    return var.eval(), vae.eval(), policy.eval()


def checkpoints(folder: Path) -> dict[str, Any]:
    """Write checkpoint files and their ``--config``.

    Returns:
        What ``fewstep export var`` is given of them, by name of the option.
    """
    config = {
        "transformer": TRANSFORMER,
        "tokenizer": TOKENIZER,
        "policy": POLICY,
        "policy_schedule": RECIPE,
        "name": "tiny VAR",
        "class_names": ["ant", "bee", "cow", "dog", "elk"],
        "defaults": {"guidance": 2, "top_k": 20, "top_p": 0.9},
    }
    names = ("transformer", "tokenizer", "policy")
    given: dict[str, Any] = {name: folder / f"{name}.pth" for name in names}
    for model, path in zip(models(), given.values(), strict=True):
        torch.save(model.state_dict(), path)
    given["config"] = folder / "config.json"
    given["config"].write_text(json.dumps(config))
    return given


def export(given: dict[str, Any], out: Path) -> Path:
    """Export what :func:`checkpoints` wrote."""
    return export_form("var", {**given, "encoder": True}, out, command="pytest").path
