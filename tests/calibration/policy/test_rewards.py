"""Rewards: the discriminator that learns as it goes, and the two static scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.calibration.policy.stand_ins import SmallNetwork, random_images, real_images
from tests.masked import masked_model

from fewstep.calibration.policy.data import RealImages
from fewstep.calibration.policy.discriminator import Discriminator, mean_logit
from fewstep.calibration.policy.features import Features
from fewstep.calibration.policy.options import PolicyOptions
from fewstep.calibration.policy.rewards import (
    REWARDS,
    Adversarial,
    ClassifierScore,
    FeatureDistance,
    check_reward,
)
from fewstep.calibration.policy.training import reward_of
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import CalibrationError
from fewstep.runtime.families.masked.model import MaskedModel

_CPU = torch.device("cpu")
_NETWORK = SmallNetwork()


def _adversarial(model: MaskedModel, epochs: int = 5, seed: int = 0) -> Adversarial:
    return Adversarial(
        real_images(100), _NETWORK, model, _CPU, learning_rate=2e-3, epochs=epochs, seed=seed
    )


def _features(count: int, seed: int, shift: int = 0) -> tuple[Features, np.ndarray]:
    """Of images like the real ones, with every pixel shifted."""
    images, labels = random_images(count, seed)
    shifted = (images.astype(int) + shift).clip(0, 255).astype(np.uint8)
    return _NETWORK.features(shifted, _CPU), labels


# --- adversarial


def test_scores_are_probabilities_by_the_mean_logit(
    model: MaskedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    reward, (features, classes) = _adversarial(model), _features(7, seed=1)
    seen: list[list[torch.Tensor]] = []
    forward = Discriminator.forward

    def watched(self: Discriminator, *given: Any) -> list[torch.Tensor]:
        seen.append(forward(self, *given))
        return seen[-1]

    monkeypatch.setattr(Discriminator, "forward", watched)
    found = reward.score(features, classes)
    (logits,) = seen
    expected = 1 / (1 + np.exp(-mean_logit(logits).numpy().astype(float)))
    assert found.dtype == torch.float32 and not found.requires_grad
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_it_learns_to_tell_two_distributions_apart(model: MaskedModel) -> None:
    reward, random = _adversarial(model), np.random.default_rng(0)
    metrics = [reward.learn(*_features(40, seed, shift=40), random) for seed in range(1, 7)]
    assert metrics[-1]["discriminator_accuracy"] > 0.9
    assert metrics[-1]["discriminator_loss"] < metrics[0]["discriminator_loss"]
    real, made = _features(40, 200), _features(40, 201, shift=40)  # seen by neither
    assert reward.score(*real).mean() > 0.6
    assert reward.score(*made).mean() < 0.4


def test_what_cannot_be_told_apart_is_not(model: MaskedModel) -> None:
    reward, random = _adversarial(model, epochs=1), np.random.default_rng(0)
    metrics = [reward.learn(*_features(40, seed), random) for seed in range(1, 5)]
    assert metrics[-1]["discriminator_accuracy"] < 0.75
    gap = reward.score(*_features(40, 200)).mean() - reward.score(*_features(40, 201)).mean()
    assert abs(float(gap)) < 0.05


def test_a_score_depends_on_no_other_image_and_changes_nothing(model: MaskedModel) -> None:
    reward, (features, classes) = _adversarial(model), _features(6, seed=1)
    reward.learn(*_features(20, seed=2), np.random.default_rng(0))
    before = {key: value.clone() for key, value in reward.state()["discriminator"].items()}
    together = reward.score(features, classes)
    for row in range(6):
        alone = reward.score(features[torch.tensor([row])], classes[row : row + 1])
        torch.testing.assert_close(alone[0], together[row])
    after = reward.state()["discriminator"]
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_learning_leaves_the_feature_network_alone(model: MaskedModel) -> None:
    before = {key: value.clone() for key, value in _NETWORK.state_dict().items()}
    _adversarial(model).learn(*_features(20, seed=2), np.random.default_rng(0))
    assert all(torch.equal(before[key], value) for key, value in _NETWORK.state_dict().items())
    assert all(each.grad is None for each in _NETWORK.parameters())


def test_a_restored_one_goes_on_as_if_nothing_had_happened(model: MaskedModel) -> None:
    whole, broken, resumed = (_adversarial(model, seed=each) for each in (0, 0, 5))
    for reward in (whole, broken):
        reward.learn(*_features(20, seed=2), np.random.default_rng(0))
    resumed.restore(broken.state())
    for reward in (whole, resumed):
        reward.learn(*_features(20, seed=3), np.random.default_rng(1))
    a, b = whole.state()["discriminator"], resumed.state()["discriminator"]
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_the_first_weights_are_the_seeds_and_leave_others_random_numbers_alone(
    model: MaskedModel,
) -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    first, again, other = (_adversarial(model, seed=each).state() for each in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    key = "embed.weight"
    assert torch.equal(first["discriminator"][key], again["discriminator"][key])
    assert not torch.equal(first["discriminator"][key], other["discriminator"][key])


# --- static


def test_the_classifier_prefers_the_wanted_class() -> None:
    reward = ClassifierScore(real_images(100), _NETWORK, _CPU)
    features, classes = _features(40, seed=7)
    wanted = reward.score(features, classes)
    others = [reward.score(features, (classes + each) % 5) for each in range(1, 5)]
    assert wanted.mean() > 0.8
    torch.testing.assert_close(wanted + torch.stack(others).sum(0), torch.ones(40))


def test_feature_distance_is_minus_the_distance_from_the_classes_mean() -> None:
    real, (features, classes) = real_images(100), _features(10, seed=7)
    pooled = _NETWORK.pooled(real.images, _CPU)
    found = FeatureDistance(real, _NETWORK, _CPU).score(features, classes)
    for row, label in enumerate(classes):
        mean = pooled[real.condition == label].astype(float).mean(0)
        expected = -np.sqrt(((features.pooled[row].numpy() - mean) ** 2).sum())
        assert float(found[row]) == pytest.approx(expected, rel=1e-4)


def test_with_text_the_distance_is_from_the_mean_of_all() -> None:
    images, _ = random_images(20)
    real = RealImages(images, np.zeros((20, 3, 12), np.float32), "")
    features, _ = _features(4, seed=7)
    mean = _NETWORK.pooled(images, _CPU).astype(float).mean(0)
    found = FeatureDistance(real, _NETWORK, _CPU).score(features, np.zeros((4, 3, 12), "f4"))
    expected = -np.sqrt(((features.pooled.numpy() - mean) ** 2).sum(1))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)


def test_there_is_no_classifier_of_texts() -> None:
    real = RealImages(random_images(20)[0], np.zeros((20, 3, 12), np.float32), "")
    with pytest.raises(CalibrationError, match="'classifier' needs classes"):
        ClassifierScore(real, _NETWORK, _CPU)


@pytest.mark.parametrize("kind", [ClassifierScore, FeatureDistance])
def test_static_scores_learn_nothing(kind: type[ClassifierScore | FeatureDistance]) -> None:
    reward, (features, classes) = kind(real_images(), _NETWORK, _CPU), _features(8, seed=7)
    before = reward.score(features, classes)
    assert reward.learn(features, classes, np.random.default_rng(0)) == {}
    assert reward.state() == {}
    reward.restore({})
    assert torch.equal(reward.score(features, classes), before)


# --- by name


@pytest.mark.parametrize(
    ("name", "kind"),
    list(zip(REWARDS, (Adversarial, ClassifierScore, FeatureDistance), strict=True)),
)
def test_a_reward_is_chosen_by_its_name(
    name: str, kind: type, options: Callable[..., PolicyOptions], model: MaskedModel
) -> None:
    found = reward_of(options(reward=name), real_images(), _NETWORK, model, _CPU)
    assert isinstance(found, kind)


@pytest.mark.parametrize("name", ["adverserial", "", "fid"])
def test_unknown_rewards_are_refused(name: str) -> None:
    with pytest.raises(
        CalibrationError, match="unknown reward .*adversarial, classifier, feature-distance"
    ):
        check_reward(name)


def test_a_text_bundles_discriminator_learns(tiny_text_bundle: Path) -> None:
    model = masked_model(Bundle.read(tiny_text_bundle))
    text = np.random.default_rng(0).standard_normal((40, 3, 12), np.float32)
    real = RealImages(random_images(40)[0], text, "")
    reward = Adversarial(real, _NETWORK, model, _CPU, learning_rate=2e-3, epochs=5, seed=0)
    random = np.random.default_rng(0)
    for seed in range(1, 5):
        metrics = reward.learn(_features(40, seed, shift=60)[0], text, random)
    assert metrics["discriminator_accuracy"] > 0.9
