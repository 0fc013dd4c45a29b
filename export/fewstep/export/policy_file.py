"""What the authors' policy checkpoints say of themselves.

``train.py`` of the official AdaNAT repository keeps its command line (``args``) with the weights.
Of it ``heu`` says whether the heuristic schedule is added to the actions, ``gen_steps`` how many
steps the policy was trained for, and ``upd_set`` which parameter each action is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fewstep.export.checkpoint import Checkpoint
from fewstep.export.models import PolicyNet
from fewstep.runtime.errors import CheckpointError

ACTIONS = ("manual_gen_ratios", "manual_temp", "manual_samp_temp", "manual_cfg")
"""Names of the actions in the order in which the decode reads them: mask ratio, masking
temperature, sampling temperature, guidance scale."""


@dataclass(frozen=True)
class StoredPolicy:
    """What a policy's file says; ``None`` where it says nothing.

    ``residual``: the heuristic schedule is added (``heu``). ``steps``: it was trained for.
    ``order``: the column of each of :data:`ACTIONS` among the network's actions.
    """

    residual: bool | None = None
    steps: int | None = None
    order: tuple[int, ...] | None = None


def stored_policy(found: Checkpoint, path: Path) -> StoredPolicy:
    """Read the hyper-parameters beside a policy's weights.

    Args:
        found: what the file holds; hyper-parameters of other names are ignored.
        path: of the file, for messages.

    Raises:
        CheckpointError: a value that the authors' code does not take, or two of one name.
    """
    stored = found.stored
    if twice := sorted(found.disputed & {"heu", "gen_steps", "upd_set"}):
        raise CheckpointError(
            f"{path} says several things of {', '.join(twice)}; save the weights with one set of "
            "args"
        )
    residual = stored.get("heu")
    if residual is not None and residual not in (0, 1):
        raise CheckpointError(f"{path}: heu must be 0 or 1, got {residual!r}")
    steps = stored.get("gen_steps")
    if steps is not None and (type(steps) is not int or steps < 1):
        raise CheckpointError(f"{path}: gen_steps must be a positive integer, got {steps!r}")
    return StoredPolicy(
        None if residual is None else bool(residual), steps, _order(stored.get("upd_set"), path)
    )


def _order(names: Any, path: Path) -> tuple[int, ...] | None:
    if names is None:
        return None
    if isinstance(names, str):
        names = names.replace(",", " ").split()
    found = list(names) if isinstance(names, (list, tuple)) else [names]
    if sorted(map(str, found)) != sorted(ACTIONS):
        raise CheckpointError(
            f"{path}: the policy sets {', '.join(map(str, found))} (upd_set), and a decode needs "
            f"each of {', '.join(ACTIONS)} once"
        )
    return tuple(found.index(name) for name in ACTIONS)


def put_in_order(policy: PolicyNet, order: tuple[int, ...] | None) -> None:
    """Make a policy give its actions in the order of :data:`ACTIONS`."""
    if order is None or order == tuple(range(len(ACTIONS))):
        return
    last, rows = policy.linear3, list(order)
    if last.out_features != len(ACTIONS):
        return  # a policy of another number of actions is refused by its shape
    with torch.no_grad():
        last.weight.copy_(last.weight[rows].clone())
        last.bias.copy_(last.bias[rows].clone())
