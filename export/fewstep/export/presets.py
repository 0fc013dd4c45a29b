"""Published sizes, recognised by the keys and shapes of their checkpoints.

Configurations as in ``configs/`` of the official AdaNAT repository: ImageNet 256×256 (AdaNAT-L)
and CC3M. Head count and text length leave no trace in the shapes, so other sizes need ``--config``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from fewstep.export.checkpoint import State, adopt, load_into, mismatches
from fewstep.export.models import PolicyNet, UViT, VQModel
from fewstep.runtime.errors import CheckpointError

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Preset:
    """A published size: constructor arguments under the name of its data set."""

    name: str
    arguments: Mapping[str, Any]


PRESETS: Mapping[Callable[..., nn.Module], tuple[Preset, ...]] = {
    UViT: (
        Preset(
            "AdaNAT-L, ImageNet 256×256",
            {"embed_dim": 768, "depth": 24, "num_heads": 8, "num_classes": 1001},
        ),
        Preset(
            "AdaNAT, CC3M 256×256",
            {
                "embed_dim": 1152,
                "depth": 28,
                "num_heads": 16,
                "clip_dim": 1280,
                "num_clip_token": 77,
            },
        ),
    ),
    PolicyNet: (
        Preset("AdaNAT-L policy, ImageNet", {"in_channels": 768, "hidden_size": 512}),
        Preset("AdaNAT policy, CC3M", {"in_channels": 1152, "hidden_size": 512}),
    ),
    VQModel: (
        Preset(
            "MaskGIT VQGAN f16, 1024 codes",
            {
                "ddconfig": {
                    "double_z": False,
                    "z_channels": 256,
                    "resolution": 256,
                    "in_channels": 3,
                    "out_ch": 3,
                    "ch": 128,
                    "ch_mult": [1, 1, 2, 2, 4],
                    "num_res_blocks": 2,
                    "attn_resolutions": [16],
                    "dropout": 0.0,
                },
                "n_embed": 1024,
                "embed_dim": 256,
            },
        ),
    ),
}
"""By the class of the model."""


def load(
    kind: Callable[..., Model], state: State, path: Path, arguments: Mapping[str, Any] | None
) -> Model:
    """A model with the tensors of a checkpoint, frozen and in evaluation mode.

    Args:
        kind: its class.
        state: the checkpoint's tensors, which the model adopts.
        path: of the checkpoint, for messages.
        arguments: the constructor's; ``None`` for a published size.

    Raises:
        CheckpointError: unknown arguments, no published size fits, or keys and shapes differ.
    """
    if arguments is not None:
        model = build(kind, arguments, path)
        load_into(model, state, path)
        return model
    closest = ""
    for preset in PRESETS[kind]:
        model = build(kind, preset.arguments, path)
        if not (problems := mismatches(model, state)):
            adopt(model, state)
            return model
        closest = min(closest or problems, problems, key=len)
    names = ", ".join(preset.name for preset in PRESETS[kind])
    raise CheckpointError(
        f"{path} is none of the published sizes ({names}); describe yours with --config. "
        f"Against the nearest: {closest}"
    )


def build(
    kind: Callable[..., Model],
    arguments: Mapping[str, Any],
    what: Path | str,
    *,
    device: str = "meta",
) -> Model:
    """A model with new weights; on the meta device with none.

    Raises:
        CheckpointError: arguments that the class does not take.
    """
    try:
        with torch.device(device):
            return kind(**arguments)
    except (TypeError, ValueError, ArithmeticError, LookupError, RuntimeError) as error:
        raise CheckpointError(f"{what}: the configuration does not build: {error}") from error
