"""PPO: the loss against NumPy and by hand, what an update learns, and what stops it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.calibration.policy.stand_ins import assert_same_weights, randomised
from torch import Tensor, nn

from fewstep.calibration.policy import ppo
from fewstep.calibration.policy.environment import Rollouts, log_probability
from fewstep.calibration.policy.ppo import ActorCritic, PpoOptions
from fewstep.export.models import PolicyNet
from fewstep.runtime.errors import CalibrationError

_DEVIATION = 0.5


def _networks(seed: int = 0) -> ActorCritic:
    actor, critic = PolicyNet(32, 4, 16, 4), PolicyNet(32, 1, 16, 4)
    return ActorCritic(randomised(actor, seed), randomised(critic, seed + 1))


def _rollouts(networks: ActorCritic, count: int = 12, steps: int = 3, seed: int = 0) -> Rollouts:
    """States that are nothing but noise, and actions drawn around the actor's."""
    random = torch.Generator().manual_seed(seed)
    features = torch.randn((steps, count, 16, 32), generator=random).half()
    with torch.no_grad():
        means = [
            networks.actor(features[step].float(), torch.full((count,), step))
            for step in range(steps)
        ]
    mean = torch.stack(means)
    actions = mean + _DEVIATION * torch.randn(mean.shape, generator=random)
    return Rollouts(
        images=np.zeros((count, 8, 8, 3), np.uint8),
        condition=np.zeros(count, np.int32),
        features=features,
        actions=actions,
        log_probabilities=log_probability(actions, mean, _DEVIATION),
        parameters=np.zeros((steps, count, 4), np.float32),
    )


def _update(
    networks: ActorCritic, rollouts: Rollouts, rewards: Tensor, seed: int = 0, **changes: float
) -> dict[str, float]:
    settings = {"learning_rate": 3e-3} | changes
    optimizer = torch.optim.Adam(networks.parameters(), settings["learning_rate"])
    options = PpoOptions(**settings)  # type: ignore[arg-type]
    return ppo.update(
        networks, optimizer, rollouts, rewards, options, deviation=_DEVIATION, seed=seed
    )


# --- rewards


def test_normalised_rewards_have_mean_0_and_deviation_1() -> None:
    rewards = torch.tensor([0.2, 0.7, 0.4, 0.9])
    found = ppo.normalised(rewards).numpy()
    expected = (rewards.numpy() - 0.55) / np.std(rewards.numpy(), ddof=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_equal_rewards_teach_nothing() -> None:
    assert ppo.normalised(torch.full((6,), 0.25)).tolist() == [0.0] * 6


# --- the loss


class _Given(nn.Module):
    """Means and values that are parameters."""

    def __init__(self, mean: Tensor, value: Tensor) -> None:
        super().__init__()
        self.mean, self.value = nn.Parameter(mean), nn.Parameter(value)

    def forward(self, features: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean, self.value


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "moves"),
    [
        (1.0, 1.0, -1.0, True),
        (1.5, 1.0, -1.2, False),  # more likely already than is rewarded
        (0.5, 1.0, -0.5, True),
        (1.5, -1.0, 1.5, True),
        (0.5, -1.0, 0.8, False),  # less likely already
        (1.1, 2.0, -2.2, True),
        (1.2, 0.0, 0.0, False),
    ],
)
def test_clipped_surrogate_by_hand(
    ratio: float, advantage: float, expected: float, moves: bool
) -> None:
    networks = _Given(torch.zeros(1, 4), torch.zeros(1))
    action = torch.full((1, 4), 0.2)
    before = log_probability(action, torch.zeros(1, 4), _DEVIATION) - math.log(ratio)
    batch = (*(torch.zeros(1, 1), torch.zeros(1), action), before, torch.zeros(1))
    loss = ppo.loss_of(
        networks, (*batch, torch.tensor([advantage])), deviation=_DEVIATION, clip=0.2
    )
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    torch.autograd.backward(loss)
    assert networks.mean.grad is not None
    assert bool(networks.mean.grad.any()) == moves


def test_the_loss_is_the_formula() -> None:
    """max over nothing, min over clipped and not, plus half the critic's squared error."""
    networks, random = _networks(), np.random.default_rng(0)
    count = 20
    features = random.standard_normal((count, 16, 32)).astype(np.float16)
    step = random.integers(0, 5, count).astype(np.int32)
    with torch.no_grad():
        mean, value = networks(torch.from_numpy(features).float(), torch.from_numpy(step))
    action = mean.numpy() + 0.5 * random.standard_normal((count, 4)).astype(np.float32)
    before, returns, advantage = random.standard_normal((3, count)).astype(np.float32)
    z = (action.astype(float) - mean.numpy()) / _DEVIATION
    now = (-0.5 * z**2 - np.log(_DEVIATION * np.sqrt(2 * np.pi))).sum(1)
    before = (now + 0.3 * before).astype(np.float32)
    ratio = np.exp(now - before)
    surrogate = np.minimum(ratio * advantage, np.clip(ratio, 0.9, 1.1) * advantage)
    expected = np.mean(-surrogate + 0.5 * (value.numpy() - returns) ** 2)
    batch = (features, step, action, before, returns, advantage)
    found = ppo.loss_of(
        networks, tuple(map(torch.from_numpy, batch)), deviation=_DEVIATION, clip=0.1
    )
    assert float(found.detach()) == pytest.approx(float(expected), rel=1e-4)


# --- an update


def test_one_step_over_everything_is_one_step_down_the_formulas_gradient() -> None:
    networks, reference = _networks(), _networks()
    rollouts, rewards = _rollouts(networks), torch.linspace(0, 1, 12)
    _update(networks, rollouts, rewards, epochs=1, minibatches=1)
    returns = ((rewards - rewards.mean()) / (rewards.std() + 1e-7)).repeat(3)
    features, step = rollouts.features.flatten(0, 1).float(), torch.arange(3).repeat_interleave(12)
    mean, value = reference(features, step)
    advantage = (returns - value).detach()
    ratio = (
        log_probability(rollouts.actions.flatten(0, 1), mean, _DEVIATION)
        - rollouts.log_probabilities.flatten()
    ).exp()
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    loss = (0.5 * (value - returns) ** 2 - surrogate).mean()
    optimizer = torch.optim.Adam(reference.parameters(), 3e-3)
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
    optimizer.step()
    for a, b in zip(networks.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-4)


def test_rewarded_actions_become_likelier() -> None:
    torch.manual_seed(0)
    networks = ActorCritic(PolicyNet(32, 4, 16, 4), PolicyNet(32, 1, 16, 4))
    rollouts = _rollouts(networks, count=256)
    rewards = rollouts.actions[:, :, 3].mean(0)  # the guidance
    before = _mean_action(networks, rollouts)
    for seed in range(2):
        _update(networks, rollouts, rewards, seed=seed, learning_rate=5e-4)
    moved = _mean_action(networks, rollouts) - before
    assert moved[3] > 0.01
    assert moved[3] > moved[:3].abs().max()


@torch.no_grad()
def _mean_action(networks: ActorCritic, rollouts: Rollouts) -> Tensor:
    step = torch.zeros(rollouts.features.shape[1])
    action: Tensor = networks.actor(rollouts.features[0].float(), step)
    return action.mean(0)


def test_the_critic_comes_to_expect_what_comes() -> None:
    networks = _networks()
    rollouts, rewards = _rollouts(networks), torch.linspace(0, 1, 12)
    errors = [_update(networks, rollouts, rewards, seed=each)["value_error"] for each in range(6)]
    assert errors[-1] < 0.7 * errors[0]


def test_value_error_is_the_critics_before_the_update() -> None:
    networks = _networks()
    rollouts, rewards = _rollouts(networks), torch.linspace(0, 1, 12)
    returns = (rewards - rewards.mean()) / rewards.std()
    with torch.no_grad():
        values = [
            networks.critic(rollouts.features[step].float(), torch.full((12,), step))[:, 0]
            for step in range(3)
        ]
    expected = float(((torch.stack(values) - returns) ** 2).mean())
    assert _update(networks, rollouts, rewards)["value_error"] == pytest.approx(expected, rel=1e-4)


def test_the_seed_decides_the_minibatches() -> None:
    rollouts = _rollouts(_networks())
    found = []
    for seed in (1, 1, 2):
        networks = _networks()
        _update(networks, rollouts, torch.linspace(0, 1, 12), seed=seed)
        found.append(networks.state_dict())
    assert_same_weights(found[0], found[1])
    assert any(not torch.equal(found[0][key], found[2][key]) for key in found[0])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_rewards_that_are_no_numbers_stop_before_any_change(value: float) -> None:
    networks = _networks()
    before = {key: each.clone() for key, each in networks.state_dict().items()}
    rewards = torch.linspace(0, 1, 12)
    rewards[4] = value
    with pytest.raises(CalibrationError, match="a reward is NaN or infinite"):
        _update(networks, _rollouts(networks), rewards)
    assert_same_weights(networks.state_dict(), before)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_changes_nothing(value: float) -> None:
    networks = _networks()
    before = {key: each.clone() for key, each in networks.state_dict().items()}
    rollouts = _rollouts(networks)
    rollouts.log_probabilities[1, 2] = -value
    with pytest.raises(CalibrationError, match="the loss became (nan|inf|-inf), its gradient"):
        _update(networks, rollouts, torch.linspace(0, 1, 12), minibatches=1)
    assert_same_weights(networks.state_dict(), before)
