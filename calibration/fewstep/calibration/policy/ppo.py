"""One update of actor and critic by PPO (Schulman et al., 2017), as AdaNAT's ``PPO.py`` uses it.

The reward comes after the last step and γ = 1, so every step of a rollout has the rollout's reward
as its return: normalised over all rollouts of the update, minus the critic's value it is the
advantage. The loss is the clipped surrogate plus half the critic's squared error. The official
entropy term is left out: with a deviation that is not learned it is constant. Official epochs are
one step over everything; ``minibatches`` makes more of fewer rollouts. Gradients are clipped to a
norm of 1, which the official code does not do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewstep.calibration.policy import workers
from fewstep.calibration.policy.environment import Rollouts, log_probability
from fewstep.runtime.errors import CalibrationError

_LARGEST_GRADIENT = 1.0
_EPSILON = 1e-7  # keeps the division finite when all rewards are equal


@dataclass(frozen=True)
class PpoOptions:
    """``clip``: ε of the objective. ``epochs`` over the rollouts, each in ``minibatches``."""

    learning_rate: float = 3e-4
    clip: float = 0.2
    epochs: int = 5
    minibatches: int = 4


class ActorCritic(nn.Module):
    """Both networks as one module, so that one optimizer and one reduction serve both."""

    def __init__(self, actor: nn.Module, critic: nn.Module) -> None:
        super().__init__()
        self.actor, self.critic = actor, critic

    def forward(self, features: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Mean actions ``[B, A]`` and values ``[B]``."""
        return self.actor(features, step), self.critic(features, step)[:, 0]


def normalised(rewards: Tensor) -> Tensor:
    """Rewards ``[B]`` less their mean, over their deviation, of all processes."""
    every = workers.gathered(rewards)
    return (rewards - every.mean()) / (every.std() + _EPSILON)


def loss_of(
    networks: nn.Module, batch: tuple[Tensor, ...], *, deviation: float, clip: float
) -> Tensor:
    """PPO's loss of one minibatch.

    Args:
        networks: an :class:`ActorCritic`, possibly shared between processes.
        batch: features ``[B, N, C]``, step ``[B]``, action ``[B, A]``, log-probability at the time
            ``[B]``, return ``[B]`` and advantage ``[B]``.
        deviation: of the actions.
        clip: largest relative change of a probability that is rewarded.
    """
    features, step, action, before, returns, advantage = batch
    mean, value = networks(features.float(), step)
    ratio = (log_probability(action, mean, deviation) - before).exp()
    surrogate = torch.min(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    loss: Tensor = (0.5 * (value - returns) ** 2 - surrogate).mean()
    return loss


def update(
    networks: nn.Module,
    optimizer: torch.optim.Optimizer,
    rollouts: Rollouts,
    rewards: Tensor,
    options: PpoOptions,
    *,
    deviation: float,
    seed: int,
) -> dict[str, float]:
    """Train on one set of rollouts.

    Args:
        networks: as in :func:`loss_of`.
        optimizer: of their parameters.
        rollouts: made with the actor as it is.
        rewards: ``[B]``, one per rollout.
        options: learning rate and the like.
        deviation: that the actions were drawn with.
        seed: of the minibatches.

    Returns:
        Metrics of the update: ``loss`` (the last epoch's), ``value_error`` (before the update).

    Raises:
        CalibrationError: rewards, loss or gradients are not finite; nothing was changed by them.
    """
    place = next(networks.parameters()).device
    states = _states(networks, rollouts, normalised(rewards), place)
    random = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    for epoch in range(options.epochs):
        order = torch.randperm(len(states[0]), generator=random)
        for rows in order.chunk(options.minibatches):
            batch = tuple(each[rows].to(place) for each in states)
            loss = loss_of(networks, batch, deviation=deviation, clip=options.clip)
            stepped(optimizer, loss, networks)
            if epoch == options.epochs - 1:
                losses.append(float(loss.detach()))
    error = float((states[5] ** 2).mean())
    return {"loss": sum(losses) / len(losses), "value_error": error}


def stepped(optimizer: torch.optim.Optimizer, loss: Tensor, module: nn.Module) -> None:
    """One step down the gradient, if it is finite.

    Raises:
        CalibrationError: loss or gradient is NaN or infinite.
    """
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    size = float(nn.utils.clip_grad_norm_(module.parameters(), _LARGEST_GRADIENT))
    if not (math.isfinite(size) and math.isfinite(float(loss.detach()))):
        raise CalibrationError(f"the loss became {float(loss.detach())}, its gradient {size}")
    optimizer.step()


@torch.no_grad()
def _states(
    networks: nn.Module, rollouts: Rollouts, returns: Tensor, place: torch.device
) -> tuple[Tensor, ...]:
    """Every step of every rollout as one row, as :func:`loss_of` takes them."""
    if not torch.isfinite(returns).all():
        raise CalibrationError("a reward is NaN or infinite")
    steps, count = rollouts.actions.shape[:2]
    features = rollouts.features.flatten(0, 1)
    step = torch.arange(steps, dtype=torch.int32).repeat_interleave(count)
    value = torch.cat(
        [
            networks(part.float().to(place), at.to(place))[1].cpu()
            for part, at in zip(torch.split(features, 512), torch.split(step, 512), strict=True)
        ]
    )
    returns = returns.cpu().repeat(steps)
    rows = (rollouts.actions.flatten(0, 1), rollouts.log_probabilities.flatten())
    return (features, step, *rows, returns, returns - value)
