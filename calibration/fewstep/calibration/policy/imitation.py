"""A policy that starts as a fixed schedule: from there it has less to learn than from nothing."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from fewstep.calibration.policy.environment import Environment
from fewstep.export.models.policy import FixedPolicy
from fewstep.runtime.devices import Array
from fewstep.runtime.families.masked.schedule import policy_offsets

_STEPS = 400
_MINIBATCH = 256
_LEARNING_RATE = 1e-3
_LEAST = 0.02  # a softplus gets no nearer to 0 within reach of an optimizer
_DEVIATION = 0.1


def actions_of(parameters: npt.NDArray[np.float32], *, residual: bool) -> npt.NDArray[np.float32]:
    """Raw actions ``[T, 4]`` that give ``parameters [T, 4]``: ``kernels.policy_parameters`` undone.

    Mask ratios are kept between 0.02 and 0.98, the others at 0.02 or above.
    """
    rows = []
    for step, (ratio, *others) in enumerate(parameters.astype(float)):
        offsets = list(policy_offsets(step, len(parameters), residual=residual).values())
        ratio = min(1 - _LEAST, max(_LEAST, ratio))
        raw = [math.log(ratio / (1 - ratio))]
        raw += [math.log(math.expm1(max(_LEAST, each))) for each in others]
        rows.append([value - offset for value, offset in zip(raw, offsets, strict=True)])
    return np.array(rows, np.float32)


def imitate(
    actor: nn.Module,
    actions: npt.NDArray[np.float32],
    environment: Environment,
    condition: Array,
    seeds: list[int],
    seed: int,
) -> None:
    """Train ``actor`` to give the same ``actions [T, 4]`` in every state that they lead to.

    Args:
        actor: changed in place.
        actions: raw, per step.
        environment: makes the states, by following the actions with a little noise.
        condition: of the pairs of generations, as :meth:`Environment.explore`.
        seeds: likewise.
        seed: of the minibatches.
    """
    table = FixedPolicy(len(actions))
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
