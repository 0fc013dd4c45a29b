"""The published models, recognised by the keys and shapes of their checkpoints.

Configurations as in ``configs/`` of the official AdaNAT repository: ImageNet 256×256 (AdaNAT-L)
and CC3M. Head count and text length leave no trace in the shapes, so other sizes need ``--config``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fewstep.export.checkpoint import State, load_into, mismatches
from fewstep.export.models import PolicyNet, UViT, VQModel
from fewstep.runtime.errors import CheckpointError

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Published:
    """One published configuration: constructor arguments under the name of its data set."""

    name: str
    arguments: Mapping[str, Any]


TRANSFORMERS = (
    Published(
        "AdaNAT-L, ImageNet 256×256",
        {"embed_dim": 768, "depth": 24, "num_heads": 8, "num_classes": 1001},
    ),
    Published(
        "AdaNAT, CC3M 256×256",
        {"embed_dim": 1152, "depth": 28, "num_heads": 16, "clip_dim": 1280, "num_clip_token": 77},
    ),
)
POLICIES = (
    Published("AdaNAT-L policy, ImageNet", {"in_channels": 768, "hidden_size": 512}),
    Published("AdaNAT policy, CC3M", {"in_channels": 1152, "hidden_size": 512}),
)
TOKENIZERS = (
    Published(
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
)


def transformer(state: State, path: Path, arguments: Mapping[str, Any] | None) -> UViT:
    """Load a U-ViT, from ``arguments`` or as a published size."""
    return _load(UViT, TRANSFORMERS, state, path, arguments)


def policy(state: State, path: Path, arguments: Mapping[str, Any] | None) -> PolicyNet:
    """Load a policy network, from ``arguments`` or as a published size."""
    return _load(PolicyNet, POLICIES, state, path, arguments)


def tokenizer(state: State, path: Path, arguments: Mapping[str, Any] | None) -> VQModel:
    """Load a VQGAN, from ``arguments`` or as a published size."""
    return _load(VQModel, TOKENIZERS, state, path, arguments)


def _load(
    kind: Callable[..., Model],
    published: Iterable[Published],
    state: State,
    path: Path,
    arguments: Mapping[str, Any] | None,
) -> Model:
    """Build on the meta device, then adopt the checkpoint's tensors.

    Raises:
        CheckpointError: unknown arguments, no published size fits, or keys and shapes differ.
    """
    if arguments is not None:
        model = _build(kind, arguments, path)
        load_into(model, state, path)
        return model
    closest = ""
    for entry in published:
        model = _build(kind, entry.arguments, path)
        problems = mismatches(model, state)
        if not problems:
            load_into(model, state, path)
            return model
        closest = min(closest or problems, problems, key=len)
    names = ", ".join(entry.name for entry in published)
    raise CheckpointError(
        f"{path} is none of the published sizes ({names}); describe yours with --config. "
        f"Against the nearest: {closest}"
    )


def _build(kind: Callable[..., Model], arguments: Mapping[str, Any], path: Path) -> Model:
    try:
        with torch.device("meta"):
            return kind(**arguments)
    except (TypeError, ValueError, ArithmeticError, LookupError, RuntimeError) as error:
        raise CheckpointError(f"{path}: the configuration does not build: {error}") from error


def strip_prefix(state: Mapping[str, Tensor], prefix: str) -> State:
    """The entries under ``prefix``, without it."""
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
