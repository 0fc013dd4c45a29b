"""Generations by the bundle's own engines, with a PyTorch policy in the policy graph's place.

The decode loop is the runtime's, unchanged: the exploring policy is one more engine, which reads
the features from the device, draws an action around the network's output, writes it back, and
remembers both. So a policy is tuned on what is deployed, quantized graphs and TensorRT included.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fewstep.runtime.devices import Array, Buffer, Device
from fewstep.runtime.engines import BoundEngine
from fewstep.runtime.errors import CalibrationError
from fewstep.runtime.generator import Generator
from fewstep.runtime.policies import rules_of
from fewstep.runtime.records import TensorInfo
from fewstep.runtime.result import Result
from fewstep.runtime.settings import settings_of


@dataclass(frozen=True)
class Rollouts:
    """Whole generations, B images in T steps with A actions each.

    ``images [B, H, W, 3]`` uint8; ``condition`` of each; ``features [T, B, N, C]`` float16,
    ``actions [T, B, A]`` and ``log_probabilities [T, B]`` float32 as the policy saw and chose
    them; ``parameters [T, B, A]``: what the family made of them.
    """

    images: npt.NDArray[np.uint8]
    condition: Array
    features: Tensor
    actions: Tensor
    log_probabilities: Tensor
    parameters: npt.NDArray[np.float32]


class ExploringPolicy:
    """The engine of a policy graph that draws its actions: Gaussian around the actor's output.

    Args:
        name: of the graph it stands for.
        inputs: of that graph.
        outputs: of that graph.
        device: where the loop's buffers live.
    """

    capturable = False  # it reads the features in the middle of the sequence
    warm_up = 1

    def __init__(
        self,
        name: str,
        inputs: Mapping[str, TensorInfo],
        outputs: Mapping[str, TensorInfo],
        device: Device,
    ) -> None:
        self.name, self.inputs, self.outputs = name, inputs, outputs
        self._device = device
        self._actor: nn.Module | None = None
        self._deviation, self._noise = 0.0, list[_Noise]()
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def follow(self, actor: nn.Module, deviation: float, noise: Sequence[_Noise]) -> None:
        """Act by ``actor`` with this standard deviation from now on; forget what was seen.

        Every image has noise of its own, so that its actions depend on no other in the batch.
        """
        self._actor, self._deviation, self.seen = actor, deviation, []
        self._noise = list(noise)

    def bind(self, bindings: Mapping[str, Buffer]) -> BoundEngine:
        """Bind the buffers of features, step and action."""
        return BoundEngine(self.name, functools.partial(self._act, dict(bindings)))

    def close(self) -> None:
        """Nothing to release."""

    @torch.no_grad()
    def _act(self, bindings: Mapping[str, Buffer]) -> None:
        """Choose the actions of one step."""
        assert self._actor is not None
        features = torch.from_numpy(self._device.download(bindings["features"]))
        if self._deviation:  # as they are kept, so that an update sees what the actor saw
            features = features.half()
            if not torch.isfinite(features).all():
                raise CalibrationError("the features are NaN, or beyond half precision")
        step = torch.from_numpy(self._device.download(bindings["step"]))
        place = next(self._actor.parameters()).device
        mean: Tensor = self._actor(features.float().to(place), step.to(place)).cpu()
        action = mean
        if self._deviation:
            noise = torch.stack([each.draw(mean.shape[1]) for each in self._noise])
            action = mean + self._deviation * noise
            density = log_probability(action, mean, self._deviation)
            self.seen.append((features, action, density))
        self._device.upload(bindings["action"], action.numpy())


class _Noise:
    """Standard normal numbers of one image, or the same with the other sign."""

    def __init__(self, seed: int, sign: int) -> None:
        self._random, self._sign = torch.Generator().manual_seed(seed), sign

    def draw(self, count: int) -> Tensor:
        """``[count]``, other ones at every step."""
        return self._sign * torch.randn(count, generator=self._random)


def log_probability(action: Tensor, mean: Tensor, deviation: float) -> Tensor:
    """Log-density ``[B]`` of actions ``[B, A]`` under a Gaussian of equal deviations."""
    density: Tensor = torch.distributions.Normal(mean, deviation).log_prob(action)  # type: ignore[no-untyped-call]
    return density.sum(-1)


class Environment:
    """Makes rollouts with one generator, batch by batch.

    Args:
        generator: of the bundle whose policy is tuned; one of its policy engines is replaced.
        policy: name of that policy.
        steps: of every generation.
    """

    def __init__(self, generator: Generator, policy: str, steps: int) -> None:
        self._generator = generator
        following = rules_of(generator.bundle).settings(policy, steps)
        self._settings = settings_of(generator.model.info.defaults, following)
        engine = generator.engines[policy]
        self._policy = ExploringPolicy(policy, engine.inputs, engine.outputs, generator.device)
        generator.replace_engine(policy, self._policy)

    @property
    def device(self) -> torch.device:
        """Where the engines run, and so the networks that are trained."""
        stream = self._generator.device.cuda_stream
        return torch.device("cpu" if stream is None else f"cuda:{stream.ordinal}")

    def explore(
        self, actor: nn.Module, condition: Array, seeds: Sequence[int], *, deviation: float
    ) -> Rollouts:
        """Generate two images per condition, with actions drawn around the actor's.

        Both have the same seed and opposite noise on their actions (antithetic sampling): at the
        first step, where their states are the same, what they owe to condition and seed cancels in
        the gradient, and later it does in part.

        Args:
            actor: maps features and step to the mean action.
            condition: class ids ``[P]`` or text states ``[P, L, D]`` of the pairs.
            seeds: ``[P]``, of the images; they also decide the actions drawn.
            deviation: standard deviation of the actions, above 0.
        """
        condition, seeds = np.repeat(condition, 2, 0), [each for each in seeds for _ in range(2)]
        parts = list(self._batches(actor, condition, seeds, deviation))
        return Rollouts(
            images=np.concatenate([each.images for each, _ in parts]),
            condition=condition,
            features=torch.cat([seen[0] for _, seen in parts], 1),
            actions=torch.cat([seen[1] for _, seen in parts], 1),
            log_probabilities=torch.cat([seen[2] for _, seen in parts], 1),
            parameters=_parameters([each for each, _ in parts]),
        )

    def follow(
        self, actor: nn.Module, condition: Array, seeds: Sequence[int]
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        """Images ``[B, H, W, 3]`` and parameters ``[T, B, A]`` by the actor's own actions."""
        parts = [each for each, _ in self._batches(actor, condition, seeds, 0.0)]
        return (
            np.concatenate([each.images for each in parts]),
            _parameters(parts),
        )

    def _batches(
        self, actor: nn.Module, condition: Array, seeds: Sequence[int], deviation: float
    ) -> Iterator[tuple[Result, tuple[Tensor, ...]]]:
        most = self._generator.max_batch
        for first in range(0, len(condition), most):
            rows = slice(first, first + most)
            signs = (1 - 2 * (row % 2) for row in range(first, len(seeds)))
            noise = [_Noise(*each) for each in zip(seeds[rows], signs, strict=False)]
            self._policy.follow(actor, deviation, noise)
            request = self._generator.family.request(
                self._generator.model,
                condition[rows],
                np.array(seeds[rows], np.uint64),
                self._settings,
            )
            result, seen = self._generator.run(request), self._policy.seen
            yield result, tuple(torch.stack(each) for each in zip(*seen, strict=True))


def _parameters(results: Sequence[Result]) -> npt.NDArray[np.float32]:
    """What the policy's actions came to, ``[T, B, A]``."""
    return np.concatenate([each.trace.decisions["parameters"] for each in results], 1)
