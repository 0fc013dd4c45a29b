"""What an image is worth: a discriminator trained meanwhile, or a static score to compare with.

A static score can rise while the images get worse. A discriminator sees what the policy makes of
it (AdaNAT, section 4.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.calibration.policy import workers
from fewstep.calibration.policy.data import RealImages
from fewstep.calibration.policy.discriminator import Discriminator, mean_logit
from fewstep.calibration.policy.features import FeatureNetwork, Features, joined
from fewstep.calibration.policy.judge import JudgeNetwork
from fewstep.calibration.policy.ppo import stepped
from fewstep.runtime.devices import Array
from fewstep.runtime.errors import CalibrationError, choose
from fewstep.runtime.families import ModelInfo

ADVERSARIAL = "adversarial"
REWARDS = (ADVERSARIAL, "classifier", "feature-distance")
_MINIBATCH = 64
_FITTED_IMAGES = 10_000
_REAL_IMAGES = 4_000
_UPDATES_KEPT = 6
_FIT_STEPS = 500


class Reward(Protocol):
    """Scores images by their features."""

    def score(self, features: Features, condition: Array) -> Tensor:
        """Rewards ``[B]``, float32, on the host."""
        ...

    def learn(
        self, features: Features, condition: Array, random: np.random.Generator
    ) -> dict[str, float]:
        """Learn from an update's images; metrics for the log."""
        ...

    def state(self) -> dict[str, Any]:
        """What a resumed training needs."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""
        ...


class Adversarial:
    """The sigmoid of a discriminator's mean logit; it learns real from generated as it goes.

    Loss and optimizer as in AdaNAT's ``train.py``: binary cross entropy, Adam with β = (0.5,
    0.999). It learns from the images of the last updates, not of one alone, against real ones of
    the same classes, as an update has few.

    Args:
        real: the real images.
        network: the frozen features.
        model: of the bundle.
        device: where the discriminator is trained.
        learning_rate: of the discriminator.
        epochs: over the images of the last updates.
        seed: of the first weights, and of the real images that are used.
    """

    def __init__(
        self,
        real: RealImages,
        network: FeatureNetwork,
        model: ModelInfo,
        device: torch.device,
        *,
        learning_rate: float,
        epochs: int,
        seed: int,
    ) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            discriminator = Discriminator(network.channels, network.width, model).to(device)
        self._real = real.only(real.part(_REAL_IMAGES))
        # Part by part: the maps of thousands of images are kept, but not on the device.
        parts = np.array_split(self._real.images, -(-len(self._real.images) // _MINIBATCH))
        kept = joined([self._kept(network.features(part, device)) for part in parts])
        pooled = kept.pooled.float().to(device)
        self._mean, self._deviation = pooled.mean(0), pooled.std(0) + 1e-3
        self._real_features = kept
        self._device, self._epochs = device, epochs
        self._plain, self._module = discriminator, workers.shared(discriminator)
        self._optimizer = torch.optim.Adam(
            discriminator.parameters(), learning_rate, betas=(0.5, 0.999)
        )
        self._made: list[tuple[Features, Array]] = []

    @torch.no_grad()
    def score(self, features: Features, condition: Array) -> Tensor:
        """σ(mean logit), 0 … 1."""
        self._plain.eval()
        logits = self._plain(self._scaled(features), self._given(condition))
        return mean_logit(logits).sigmoid().cpu()

    def learn(
        self, features: Features, condition: Array, random: np.random.Generator
    ) -> dict[str, float]:
        """Train on the images of the last updates, this one's among them."""
        self._made = [*self._made, (self._kept(features), condition)][-_UPDATES_KEPT:]
        made = joined([each for each, _ in self._made])
        wanted = np.concatenate([each for _, each in self._made])
        self._plain.train()
        right, losses = list[float](), list[float]()
        for _ in range(self._epochs):
            order = random.permutation(len(wanted))
            for rows in np.array_split(order, max(1, len(order) // _MINIBATCH)):
                like = self._real.like(wanted[rows], random)
                loss, accuracy = self._loss(
                    (self._real_features[torch.from_numpy(like)], self._real.condition[like]),
                    (made[torch.from_numpy(rows)], wanted[rows]),
                )
                stepped(self._optimizer, loss, self._module)
                losses.append(float(loss.detach()))
                right.append(accuracy)
        return {
            "discriminator_loss": float(np.mean(losses)),
            "discriminator_accuracy": float(np.mean(right)),
        }

    def _loss(
        self, real: tuple[Features, Array], made: tuple[Features, Array]
    ) -> tuple[Tensor, float]:
        """Of one minibatch, real and generated in one pass."""
        both = self._scaled(joined([real[0], made[0]]))
        logits = self._module(both, self._given(np.concatenate([real[1], made[1]])))
        # Every head's own mean: the maps have different numbers of positions.
        losses = [F.softplus(-a).mean() + F.softplus(b).mean() for a, b in map(_halves, logits)]
        is_real, is_made = _halves(mean_logit(logits))
        right = torch.cat([is_real > 0, is_made < 0]).float().mean()
        return torch.stack(losses).mean(), float(right)

    def _kept(self, features: Features) -> Features:
        """Features to come back to, in the host's memory."""
        return features.to("cpu", torch.float16)

    def _scaled(self, features: Features) -> Features:
        """On the device, pooled ones by the real images' mean and deviation."""
        wide = features.to(self._device, torch.float32)
        return Features(wide.maps, (wide.pooled - self._mean) / self._deviation)

    def _given(self, condition: Array) -> Tensor:
        return torch.from_numpy(condition).to(self._device)

    def judge(self, network: FeatureNetwork) -> JudgeNetwork:
        """What scores images by the discriminator as it is; ``network``: the features."""
        return JudgeNetwork(network, self._plain, self._mean, self._deviation)

    def state(self) -> dict[str, Any]:
        """Weights, the optimizer's state, and the images of the last updates."""
        return {
            "discriminator": self._plain.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "made": [
                {"maps": list(each.maps), "pooled": each.pooled, "of": torch.from_numpy(condition)}
                for each, condition in self._made
            ],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue with these weights."""
        self._plain.load_state_dict(state["discriminator"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._made = [
            (Features(tuple(each["maps"]), each["pooled"]), each["of"].numpy())
            for each in state["made"]
        ]


def _halves(both: Tensor) -> tuple[Tensor, Tensor]:
    first, second = both.chunk(2)
    return first, second


class Static:
    """A score that learns nothing: fitted to real images once."""

    def learn(
        self, features: Features, condition: Array, random: np.random.Generator
    ) -> dict[str, float]:
        """Nothing to learn."""
        return {}

    def state(self) -> dict[str, Any]:
        """Nothing: it is fitted again from the same images."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""


class ClassifierScore(Static):
    """Probability of the wanted class by logistic regression on pooled features."""

    def __init__(self, real: RealImages, network: FeatureNetwork, device: torch.device) -> None:
        if not real.classes:
            raise CalibrationError(
                "the reward 'classifier' needs classes, and this bundle is text-conditional; "
                "use adversarial or feature-distance"
            )
        rows = real.part(_FITTED_IMAGES)
        pooled = torch.from_numpy(network.pooled(real.images[rows], device))
        self._mean, self._deviation = pooled.mean(0), pooled.std(0) + 1e-6
        labels = torch.from_numpy(real.condition[rows]).long()
        self._head = nn.Linear(pooled.shape[1], int(labels.max()) + 1)
        nn.init.zeros_(self._head.weight)
        nn.init.zeros_(self._head.bias)
        optimizer = torch.optim.Adam(self._head.parameters(), 1e-2, weight_decay=1e-4)
        x = self._scaled(pooled)
        for _ in range(_FIT_STEPS):
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(self._head(x), labels))
            optimizer.step()

    @torch.no_grad()
    def score(self, features: Features, condition: Array) -> Tensor:
        """Probability 0 … 1."""
        logits: Tensor = self._head(self._scaled(features.pooled.cpu()))
        wanted = torch.from_numpy(condition).long()
        probability: Tensor = logits.softmax(1).gather(1, wanted[:, None])[:, 0]
        return probability

    def _scaled(self, pooled: Tensor) -> Tensor:
        return (pooled - self._mean) / self._deviation


class FeatureDistance(Static):
    """Minus the distance of the pooled features from the mean of the real ones of the class."""

    def __init__(self, real: RealImages, network: FeatureNetwork, device: torch.device) -> None:
        rows = real.part(_FITTED_IMAGES)
        pooled = torch.from_numpy(network.pooled(real.images[rows], device))
        self._means = {-1: pooled.mean(0)}
        if real.classes:
            labels = torch.from_numpy(real.condition[rows])
            self._means = {each: pooled[labels == each].mean(0) for each in real.classes}

    def score(self, features: Features, condition: Array) -> Tensor:
        """Minus the Euclidean distance."""
        ids = condition if condition.ndim == 1 else np.full(len(condition), -1)
        wanted = torch.stack([self._means[int(each)] for each in ids])
        distance: Tensor = (features.pooled.cpu() - wanted).norm(dim=1)
        return -distance


def check_reward(name: str) -> None:
    """Raise ``CalibrationError`` unless there is such a reward."""
    if name not in REWARDS:
        raise CalibrationError(choose("reward", name, REWARDS))
