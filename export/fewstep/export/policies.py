"""Policy networks of an export: which were given, and those that nothing trained yet."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from fewstep.export import presets
from fewstep.export.models import PolicyNet
from fewstep.export.parts import part_of
from fewstep.export.tuned import TunedPolicy
from fewstep.runtime.errors import CheckpointError

UNTRAINED_SEED = 0
"""What the weights of an untrained policy are drawn from."""

PUBLISHED_GRID = 16
"""Side of the grid of features that every published policy reads."""

Policy = TypeVar("Policy", bound=PolicyNet)


def check_given(policy: Path | None, untrained: bool, tuned: Sequence[Path]) -> None:
    """Refuse policies that contradict each other.

    Raises:
        CheckpointError: they do.
    """
    if policy is not None and untrained:
        raise CheckpointError("--policy and --untrained-policy exclude each other; pass one")
    if tuned and not (policy is not None or untrained):
        raise CheckpointError(
            "--tuned-policy needs another policy beside it: pass --untrained-policy "
            f"--tuned-policy {tuned[0]}"
        )


def check_names(tuned: Sequence[TunedPolicy], reserved: Collection[str]) -> None:
    """Refuse names of tuned policies that are taken.

    Raises:
        CheckpointError: they are.
    """
    names = [each.name for each in tuned]
    if set(reserved) & set(names) or len(set(names)) < len(names):
        raise CheckpointError(
            f"tuned policies need different names, other than {' and '.join(reserved)}; got "
            f"{', '.join(names)}"
        )


def untrained_policy(
    kind: Callable[..., Policy], width: int, side: int, arguments: Mapping[str, object] | None
) -> Policy:
    """A policy network as its training begins.

    Its action is 0 in every state. Its other weights depend on the size alone: PyTorch's CPU
    generator draws them from ``UNTRAINED_SEED``, and is then as it was.

    Args:
        kind: the class of the network.
        width: of the features that it reads.
        side: of the grid that they are on.
        arguments: the constructor's; ``None`` for features of a published width and grid, whose
            published policy they are taken from.

    Raises:
        CheckpointError: no size is known, or unknown arguments.
    """
    if arguments is None and side == PUBLISHED_GRID:
        sizes = (preset.arguments for preset in part_of(kind).sizes)
        arguments = next((each for each in sizes if each["in_channels"] == width), None)
    if arguments is None:
        example = {"in_channels": width, "hidden_size": 512, "grid_size": side}
        raise CheckpointError(
            f"no published policy reads {width} features of {side}×{side} tokens; give the size of "
            f"the untrained one in --config, such as {json.dumps({'policy': example})}"
        )
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(UNTRAINED_SEED)
        policy = presets.build(kind, arguments, "--untrained-policy", device="cpu")
    return policy.eval().requires_grad_(False)
