"""A policy that starts as another one or a schedule: it has less to learn than from nothing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from fewstep.calibration.policy.environment import Environment
from fewstep.export.models.policy import FixedPolicy
from fewstep.runtime.devices import Array

_STEPS = 400
_MINIBATCH = 256
_LEARNING_RATE = 1e-3
_DEVIATION = 0.1


def imitate(
    actor: nn.Module,
    teacher: nn.Module,
    environment: Environment,
    condition: Array,
    seeds: list[int],
    seed: int,
) -> None:
    """Train ``actor`` to give the actions of ``teacher`` in every state that they lead to.

    Args:
        actor: changed in place.
        teacher: maps features and step to raw actions.
        environment: makes the states, by following the actions with a little noise.
        condition: of the pairs of generations, as :meth:`Environment.explore`.
        seeds: likewise.
        seed: of the minibatches.
    """
    if isinstance(actor, FixedPolicy):
        actor.load_state_dict(teacher.state_dict())
        return
    rollouts = environment.explore(teacher, condition, seeds, deviation=_DEVIATION)
    features = rollouts.features.flatten(0, 1)
    steps, count = rollouts.features.shape[:2]
    step = torch.arange(steps).repeat_interleave(count).int()
    with torch.no_grad():
        parts = zip(*(torch.split(each, _MINIBATCH) for each in (features, step)), strict=True)
        wanted = torch.cat([teacher(each.float(), at) for each, at in parts])
    optimizer = torch.optim.Adam(actor.parameters(), _LEARNING_RATE)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
    random = torch.Generator().manual_seed(seed)
    for _ in range(_STEPS):
        rows = torch.randint(len(step), (_MINIBATCH,), generator=random)
        loss = F.mse_loss(actor(features[rows].float(), step[rows]), wanted[rows])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        rate.step()


def table_of(actions: npt.NDArray[np.float32]) -> FixedPolicy:
    """The policy that takes raw ``actions [T, A]`` whatever it sees."""
    table = FixedPolicy(*actions.shape)
    with torch.no_grad():
        table.actions.copy_(torch.from_numpy(actions))
    return table
