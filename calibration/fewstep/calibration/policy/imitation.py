"""A policy that starts as a fixed schedule: from there it has less to learn than from nothing."""

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
    actions: npt.NDArray[np.float32],
    environment: Environment,
    condition: Array,
    seeds: list[int],
    seed: int,
) -> None:
    """Train ``actor`` to give the same ``actions [T, A]`` in every state that they lead to.

    Args:
        actor: changed in place.
        actions: raw, per step.
        environment: makes the states, by following the actions with a little noise.
        condition: of the pairs of generations, as :meth:`Environment.explore`.
        seeds: likewise.
        seed: of the minibatches.
    """
    table = FixedPolicy(*actions.shape)
    with torch.no_grad():
        table.actions.copy_(torch.from_numpy(actions))
    if isinstance(actor, FixedPolicy):
        actor.load_state_dict(table.state_dict())
        return
    rollouts = environment.explore(table, condition, seeds, deviation=_DEVIATION)
    features = rollouts.features.flatten(0, 1)
    step = torch.arange(len(actions)).repeat_interleave(rollouts.features.shape[1]).int()
    optimizer = torch.optim.Adam(actor.parameters(), _LEARNING_RATE)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
    random = torch.Generator().manual_seed(seed)
    for _ in range(_STEPS):
        rows = torch.randint(len(step), (_MINIBATCH,), generator=random)
        wanted = torch.from_numpy(actions)[step[rows].long()]
        loss = F.mse_loss(actor(features[rows].float(), step[rows]), wanted)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        rate.step()
