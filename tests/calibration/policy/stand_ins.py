"""Small stand-ins for tests of policy tuning: a feature network, real images, a training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.masked import masked_model
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.calibration.policy.data import RealImages, read_images
from fewstep.calibration.policy.environment import Environment
from fewstep.calibration.policy.features import FeatureNetwork, Features
from fewstep.calibration.policy.networks import Shape, actor_of, new_critic
from fewstep.calibration.policy.options import PolicyOptions
from fewstep.calibration.policy.training import Training
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.families.masked.model import MaskedPolicyInfo
from fewstep.runtime.generator import Generator
from fewstep.runtime.policies import PolicyTuning

CLASSES, SIZE = 5, 8


class SmallNetwork(FeatureNetwork):
    """Two random convolutions on 8×8 pixels: maps of 8 and 12 channels, 12 pooled features."""

    name, channels, width, input_size = "small", (8, 12), 12, SIZE

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.fine = nn.Conv2d(3, 8, 3, stride=2, padding=1)
            self.coarse = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.eval().requires_grad_(False)

    def _extract(self, images: Tensor) -> Features:
        fine = F.relu(self.fine(images / 128 - 1))
        coarse = F.relu(self.coarse(fine))
        return Features((fine, coarse), coarse.mean((2, 3)))


def random_images(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noise around a colour of the class ``[n, 8, 8, 3]``, and the classes, in turn."""
    random = np.random.default_rng(seed)
    labels = (np.arange(count) % CLASSES).astype(np.int32)
    colours = np.random.default_rng(99).integers(40, 216, (CLASSES, 1, 1, 3))
    noise = random.integers(-40, 40, (count, SIZE, SIZE, 3))
    return (colours[labels] + noise).astype(np.uint8), labels


def real_images(count: int = 40, seed: int = 0) -> RealImages:
    """Those, as they are read from a file."""
    return RealImages(*random_images(count, seed), sha256="0" * 64)


def randomised(module: nn.Module, seed: int) -> nn.Module:
    """Weights as after a training: every one random, biases and modulations too."""
    random = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        scale = 0.1 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
        with torch.no_grad():
            parameter.normal_(std=0.3 if name == "actions" else scale, generator=random)
    return module


def tuning() -> PolicyTuning:
    """A record of a tuning that never was."""
    return PolicyTuning(
        created="2026-01-01T00:00:00+00:00",
        command="pytest",
        tools={},
        adaptive=True,
        reward="adversarial",
        features="small",
        backend="onnxruntime",
        precision="fp32",
        transformer_sha256="1" * 64,
        images=40,
        data_sha256="2" * 64,
        rollouts=6,
        updates=2,
        seed=0,
        frechet_distance=12.5,
    )


def info(steps: int | None = 3) -> MaskedPolicyInfo:
    """What a manifest says of a tuned policy."""
    return MaskedPolicyInfo(residual=True, steps=steps, tuning=tuning())


def small_options(bundle: Path, data: Path, **changes: Any) -> PolicyOptions:
    """Two updates of six rollouts in three steps, on one thread."""
    settings: dict[str, Any] = {
        **{"steps": 3, "updates": 2, "rollouts": 6, "batch": 4, "threads": 1},
        **{"evaluate_every": 1, "evaluation_images": 10, "learning_rate": 1e-3},
    }
    return PolicyOptions(bundle, data, **(settings | changes))


@contextlib.contextmanager
def opened_training(options: PolicyOptions, work: Path) -> Iterator[Training]:
    """A training of a bundle's first policy with the small network."""
    bundle, work, steps = Bundle.read(options.bundle), Path(work), options.steps
    assert steps is not None
    work.mkdir(exist_ok=True)
    real = read_images(options.data, masked_model(bundle), options.rollouts)
    actor = actor_of(bundle, "policy")
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        critic = new_critic(Shape.of(bundle.graph("policy")), actor.sizes)
    with Generator.open(bundle, threads=1, max_batch=options.batch) as generator:
        yield Training(
            options,
            masked_model(bundle),
            Environment(generator, "policy", steps),
            actor,
            critic,
            real,
            SmallNetwork(),
            work,
            options.signature() | {"data_sha256": real.sha256},
        )


def weights_of(training: Training) -> dict[str, Tensor]:
    """Actor, critic and reward at this moment."""
    found = {key: value.clone() for key, value in training._plain.state_dict().items()}
    reward = training._reward.state().get("discriminator", {})
    return found | {f"reward.{key}": value.clone() for key, value in reward.items()}


def assert_same_weights(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    """Bit by bit."""
    assert a.keys() == b.keys()
    assert [key for key in a if not torch.equal(a[key], b[key])] == []
