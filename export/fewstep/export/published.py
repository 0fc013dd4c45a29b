"""The published models, recognised by the keys and shapes of their checkpoints; and new policies.

Configurations as in ``configs/`` of the official AdaNAT repository: ImageNet 256×256 (AdaNAT-L)
and CC3M. Head count and text length leave no trace in the shapes, so other sizes need ``--config``.
"""

from __future__ import annotations

import json
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

UNTRAINED_SEED = 0
"""What the weights of an untrained policy are drawn from."""


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
_PUBLISHED_GRID = 16  # side, in tokens, of every published model
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


def untrained_policy(network: UViT, arguments: Mapping[str, Any] | None) -> PolicyNet:
    """A policy network for a transformer as AdaNAT's training begins with it.

    Its action is 0 in every state. Its other weights depend on the size alone: PyTorch's CPU
    generator draws them from ``UNTRAINED_SEED``, and is then as it was.

    Args:
        network: the transformer.
        arguments: the constructor's; ``None`` for a transformer of a published width and grid,
            whose published policy they are taken from.

    Raises:
        CheckpointError: no size is known, or unknown arguments.
    """
    width, side = network.embed_dim, round(network.num_tokens**0.5)
    if arguments is None and side == _PUBLISHED_GRID:
        sizes = (entry.arguments for entry in POLICIES)
        arguments = next((each for each in sizes if each["in_channels"] == width), None)
    if arguments is None:
        example = {"in_channels": width, "hidden_size": 512, "grid_size": side}
        raise CheckpointError(
            f"no published policy reads {width} features of {side}×{side} tokens; give the size of "
            f"the untrained one in --config, such as {json.dumps({'policy': example})}"
        )
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(UNTRAINED_SEED)
        policy = _build(PolicyNet, arguments, "--untrained-policy", device="cpu")
    return policy.eval().requires_grad_(False)


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


def _build(
    kind: Callable[..., Model],
    arguments: Mapping[str, Any],
    what: Path | str,
    *,
    device: str = "meta",
) -> Model:
    try:
        with torch.device(device):
            return kind(**arguments)
    except (TypeError, ValueError, ArithmeticError, LookupError, RuntimeError) as error:
        raise CheckpointError(f"{what}: the configuration does not build: {error}") from error


def strip_prefix(state: Mapping[str, Tensor], prefix: str) -> State:
    """The entries under ``prefix``, without it."""
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
