"""Generations with an exploring policy: the runtime's own loop, and actions that are what is said.

References: the exported graph of the same actor, the transformer's features run again, NumPy's
Gaussian density, and the runtime's kernel for parameters.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.calibration.policy.stand_ins import randomised
from tests.masked import masked_model

from fewstep.calibration.policy.environment import Environment, Rollouts, log_probability
from fewstep.calibration.policy.imitation import imitate
from fewstep.calibration.policy.networks import Shape, actor_of, new_actor
from fewstep.calibration.policy.options import smoothed
from fewstep.calibration.policy.store import add_policy
from fewstep.export.models import FixedPolicy, PolicyNet
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.engines import run_once
from fewstep.runtime.families.masked.model import MaskedPolicyInfo
from fewstep.runtime.families.masked.request import MaskedRequest
from fewstep.runtime.generator import Generator
from fewstep.runtime.kernels.policy_parameters import policy_parameters
from fewstep.runtime.result import Result
from fewstep.runtime.verify import verify

_STEPS = 4
_CLASSES = np.array([0, 4, 2, 2, 1, 3, 0], np.int32)
_SEEDS = [3, 11, 2**63 - 1, 0, 8, 5, 6]


@pytest.fixture
def actor(tiny_bundle: Path) -> PolicyNet:
    """That of the bundle."""
    return actor_of(Bundle.read(tiny_bundle), "policy")


@pytest.fixture
def environment(generator: Generator) -> Environment:
    """Of the bundle, in four steps."""
    return Environment(generator, "policy", _STEPS)


def _numpy_density(action: np.ndarray, mean: np.ndarray, deviation: float) -> np.ndarray:
    z = (action - mean) / deviation
    return np.asarray((-0.5 * z**2 - np.log(deviation) - 0.5 * np.log(2 * np.pi)).sum(-1))


def test_log_probability_is_the_gaussian_density() -> None:
    random = np.random.default_rng(0)
    action, mean = random.standard_normal((2, 9, 4))
    found = log_probability(torch.from_numpy(action), torch.from_numpy(mean), 0.3)
    np.testing.assert_allclose(found.numpy(), _numpy_density(action, mean, 0.3), rtol=1e-12)


def test_following_gives_the_images_of_the_exported_graph(
    environment: Environment, actor: PolicyNet, tiny_bundle: Path
) -> None:
    images, parameters = environment.follow(actor, _CLASSES, _SEEDS)
    with Generator.open(tiny_bundle, threads=1) as plain:
        expected = plain.generate(
            class_ids=_CLASSES.tolist(), seed=_SEEDS, schedule="policy", steps=_STEPS
        )
    np.testing.assert_allclose(parameters, expected.trace.parameters, rtol=1e-5, atol=1e-6)
    assert np.abs(images.astype(int) - expected.images).max() <= 1


def test_smoothed_actions_are_those_of_the_runtime(
    actor: PolicyNet, tiny_bundle: Path, bundle_copy: Path
) -> None:
    """Of a tuning, of the bundle that it ends in, and of AdaGen's formula in NumPy."""
    bundle = Bundle.read(tiny_bundle)
    with Generator.open(smoothed(bundle, "policy", 0.6), threads=1) as opened:
        environment = Environment(opened, "policy", _STEPS)
        explored = environment.explore(actor, _CLASSES, _SEEDS, deviation=0.4)
        _, followed = environment.follow(actor, _CLASSES, _SEEDS)
    expected, before = np.empty((14, 4), np.float32), explored.actions[0].numpy().astype(float)
    for step in range(_STEPS):
        action = explored.actions[step].numpy().astype(float)
        before = 0.6 * before + 0.4 * action if step else action
        policy_parameters(
            action=before.astype(np.float32),
            **MaskedPolicyInfo(residual=True).offsets(step, _STEPS),
            parameters=expected,
            error=np.zeros(1, np.int32),
        )
        np.testing.assert_allclose(explored.parameters[step], expected, rtol=1e-5, atol=1e-6)
    info = masked_model(bundle).policies["policy"].model_copy(update={"smoothing": 0.6})
    add_policy(Bundle.read(bundle_copy), "policy-smooth", actor, info)
    with Generator.open(bundle_copy, threads=1) as opened:
        assert verify(opened).passed
        replayed = opened.generate(
            class_ids=_CLASSES.tolist(), seed=_SEEDS, schedule="policy-smooth", steps=_STEPS
        )
    np.testing.assert_allclose(followed, replayed.trace.parameters, rtol=1e-5, atol=1e-6)
    assert Bundle.read(tiny_bundle) == bundle  # nothing was written


def test_two_images_of_a_pair_differ_in_the_sign_of_their_noise(
    environment: Environment, actor: PolicyNet
) -> None:
    found = environment.explore(actor, _CLASSES, _SEEDS, deviation=0.5)
    assert found.condition.tolist() == np.repeat(_CLASSES, 2).tolist()
    mean = actor(found.features[0].float(), torch.zeros(14)).detach()
    noise = (found.actions[0] - mean) / 0.5
    torch.testing.assert_close(noise[0::2], -noise[1::2], rtol=0, atol=2e-3)
    assert len({round(float(each), 4) for each in noise[0::2].flatten()}) == 28


@pytest.fixture
def rollouts(environment: Environment, actor: PolicyNet) -> Rollouts:
    """Seven pairs."""
    return environment.explore(actor, _CLASSES, _SEEDS, deviation=0.4)


def test_rollouts_hold_every_step_of_every_image(rollouts: Rollouts) -> None:
    assert rollouts.images.shape == (14, 8, 8, 3)
    assert rollouts.features.shape == (_STEPS, 14, 16, 32)
    assert rollouts.features.dtype == torch.float16
    assert rollouts.actions.shape == rollouts.parameters.shape == (_STEPS, 14, 4)
    assert rollouts.log_probabilities.shape == (_STEPS, 14)


def test_parameters_are_what_the_kernel_makes_of_the_actions(rollouts: Rollouts) -> None:
    for step in range(_STEPS):
        expected, error = np.empty((14, 4), np.float32), np.zeros(1, np.int32)
        policy_parameters(
            action=rollouts.actions[step].numpy(),
            **MaskedPolicyInfo(residual=True).offsets(step, _STEPS),
            parameters=expected,
            error=error,
        )
        np.testing.assert_allclose(rollouts.parameters[step], expected, rtol=1e-6)


def test_log_probabilities_are_of_the_actions_around_the_actors(
    rollouts: Rollouts, actor: PolicyNet
) -> None:
    for step in range(_STEPS):
        with torch.no_grad():
            mean = actor(rollouts.features[step].float(), torch.full((14,), step)).numpy()
        expected = _numpy_density(rollouts.actions[step].numpy(), mean, 0.4)
        # The features were kept in half precision.
        np.testing.assert_allclose(rollouts.log_probabilities[step], expected, atol=0.02)


def test_the_state_is_the_transformers_features_of_the_tokens_so_far(
    generator: Generator,
    environment: Environment,
    actor: PolicyNet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results: list[Result] = []
    run = generator.run

    def recorded(request: MaskedRequest) -> Result:
        results.append(run(request))
        return results[-1]

    monkeypatch.setattr(generator, "run", recorded)
    found = environment.explore(actor, _CLASSES[:3], _SEEDS[:3], deviation=0.4)
    (result,) = results
    for step in range(_STEPS):
        inputs = {"tokens": result.trace.tokens[step], "condition": found.condition}
        features = run_once(generator.device, generator.engines["transformer"], inputs)["features"]
        np.testing.assert_allclose(found.features[step], features, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("batch", [1, 2, 3, 8, 64])
def test_nothing_depends_on_how_many_images_are_made_together(
    batch: int, tiny_bundle: Path, actor: PolicyNet, rollouts: Rollouts
) -> None:
    with Generator.open(tiny_bundle, threads=1, max_batch=batch) as opened:
        environment = Environment(opened, "policy", _STEPS)
        found = environment.explore(actor, _CLASSES, _SEEDS, deviation=0.4)
        images, _ = environment.follow(actor, _CLASSES, _SEEDS)
        alone, _ = environment.follow(actor, _CLASSES[3:4], _SEEDS[3:4])
    assert (found.condition == rollouts.condition).all()
    assert np.abs(found.images.astype(int) - rollouts.images).max() <= 1
    torch.testing.assert_close(found.actions, rollouts.actions, rtol=0, atol=1e-4)
    torch.testing.assert_close(
        found.log_probabilities, rollouts.log_probabilities, rtol=0, atol=1e-3
    )
    assert np.abs(images[3].astype(int) - alone[0]).max() <= 1


def test_seeds_decide_actions_and_images(environment: Environment, actor: PolicyNet) -> None:
    first, again, other = (
        environment.explore(actor, _CLASSES, seeds, deviation=0.4)
        for seeds in (_SEEDS, _SEEDS, [each + 1 for each in _SEEDS[::-1]])
    )
    assert torch.equal(first.actions, again.actions)
    np.testing.assert_array_equal(first.images, again.images)
    assert not torch.isclose(first.actions, other.actions).any()


@pytest.mark.parametrize("deviation", [0.1, 0.6])
def test_actions_are_spread_as_asked(
    deviation: float, environment: Environment, tiny_bundle: Path
) -> None:
    actor = new_actor(Shape(4, 32, 4), _STEPS, adaptive=True)  # its mean is 0
    classes, seeds = np.arange(200, dtype=np.int32) % 5, list(range(200))
    found = environment.explore(actor, classes, seeds, deviation=deviation).actions
    own = found[:, 0::2]  # one of each pair: 3,200 numbers
    assert float(own.std()) == pytest.approx(deviation, rel=0.05)
    assert abs(float(own.mean())) < 0.06 * deviation
    flat = own.transpose(0, 1).flatten(1).numpy()  # [200, 4 steps × 4]
    correlation = np.corrcoef(flat, rowvar=False) - np.eye(16)
    assert np.abs(correlation).max() < 0.3  # steps and parameters are drawn apart


def test_a_fixed_policy_is_followed_too(environment: Environment) -> None:
    policy = randomised(FixedPolicy(_STEPS), seed=1)
    _, parameters = environment.follow(policy, _CLASSES, _SEEDS)
    assert (parameters == parameters[:, :1]).all()  # the same for all images
    assert len(np.unique(parameters[:, 0], axis=0)) == _STEPS


def test_only_the_stood_in_for_engine_is_replaced(generator: Generator) -> None:
    before = dict(generator.engines)
    Environment(generator, "policy", _STEPS)
    assert {name for name in before if generator.engines[name] is not before[name]} == {"policy"}
    assert generator.engines["policy"].inputs == before["policy"].inputs


# --- a network that starts as another


def test_a_small_network_imitates_a_large_one(environment: Environment, actor: PolicyNet) -> None:
    """Held against the large one's actions in states of other images."""
    small = randomised(PolicyNet(32, 4, 16, 4, 16, (32, 16)), seed=5)
    imitate(small, actor, environment, np.arange(32) % 5, list(range(32)), seed=0)
    others = environment.explore(actor, _CLASSES, _SEEDS, deviation=0.1)
    features = others.features.flatten(0, 1).float()
    step = torch.arange(_STEPS).repeat_interleave(others.features.shape[1])
    with torch.no_grad():
        wanted, found = actor(features, step), small(features, step)
    error, spread = (found - wanted).square().mean(), wanted.var(0).mean()
    assert error < 0.5 * spread
