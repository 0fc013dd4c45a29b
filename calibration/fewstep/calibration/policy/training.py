"""The training loop: rollouts → rewards → PPO → discriminator, evaluated and kept as it goes."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fewstep.calibration.policy import ppo, state, workers
from fewstep.calibration.policy.data import RealImages
from fewstep.calibration.policy.distances import frechet_of_gaussians, gaussian
from fewstep.calibration.policy.environment import Environment, Rollouts
from fewstep.calibration.policy.features import FeatureNetwork
from fewstep.calibration.policy.judge import JudgeNetwork
from fewstep.calibration.policy.options import PolicyOptions
from fewstep.calibration.policy.rewards import (
    Adversarial,
    ClassifierScore,
    FeatureDistance,
    Reward,
)
from fewstep.calibration.policy.state import Log, Row, TrainingState
from fewstep.export.models.policy import FixedPolicy
from fewstep.runtime.errors import CalibrationError, EngineError
from fewstep.runtime.families import ModelInfo

_REFERENCE_IMAGES = 4_000
_TABLE_RATE = 100  # an entry of a table is an action; one of a network moves hundreds of weights
_ROLLOUTS, _EVALUATION, _MINIBATCHES, _REAL = range(4)  # what a seed is for


class Training:
    """One tuning run: everything that an update needs, and its resumable state.

    Args:
        options: what was asked for.
        model: of the bundle.
        environment: makes the rollouts.
        actor: the policy to tune, changed in place.
        critic: estimates the reward in a state.
        real: the real images.
        network: the frozen features.
        work: folder of the checkpoint.
        signature: what decides the result; a checkpoint of another one is refused.
    """

    def __init__(
        self,
        options: PolicyOptions,
        model: ModelInfo,
        environment: Environment,
        actor: nn.Module,
        critic: nn.Module,
        real: RealImages,
        network: FeatureNetwork,
        work: Path,
        signature: dict[str, Any],
    ) -> None:
        self._options, self._environment, self._real = options, environment, real
        self._work, self._signature = work, signature
        self._device = environment.device
        self._network = network.to(self._device)
        self._plain = ppo.ActorCritic(actor, critic).to(self._device)
        self._shared = workers.shared(self._plain)
        self._ppo = ppo.PpoOptions(options.learning_rate, epochs=options.policy_epochs)
        rate = options.learning_rate
        actors_rate = rate * _TABLE_RATE if isinstance(actor, FixedPolicy) else rate
        self._optimizer = torch.optim.Adam(
            [
                {"params": self._plain.actor.parameters(), "lr": actors_rate},
                {"params": self._plain.critic.parameters(), "lr": rate},
            ]
        )
        self._reward = reward_of(options, real, network, model, self._device)
        self._reference = gaussian(
            network.pooled(real.images[real.part(_REFERENCE_IMAGES)], self._device)
        )
        self.state = TrainingState()

    @property
    def actor(self) -> nn.Module:
        """The policy as it is now."""
        return self._plain.actor

    def run(self, log: Log = lambda row: None) -> TrainingState:
        """Train to the end, from the checkpoint if there is one.

        Args:
            log: called with the row of every update, those resumed from first; row 0 is the start.

        Returns:
            The history and the best actor.

        Raises:
            CalibrationError: NaN, or a checkpoint of another training; the last good checkpoint
                is kept.
            OutputError: the work folder cannot be written.
        """
        resumed = None if self._options.restart else state.load(self._work, self._signature)
        if resumed is not None:
            self._restore(*resumed)
            for row in self.state.history:
                log(row)
        with self._explained():
            if not self.state.history:
                self._finish({"update": 0, **self._evaluated(0)}, log)
            while self.state.update < self._options.updates:
                self._finish(self._update(), log)
        return self.state

    def _update(self) -> Row:
        """One update, as a row of metrics."""
        options, update = self._options, self.state.update
        deviation = options.deviation_at(update)
        rollouts = self._rollouts(deviation)
        features = self._network.features(rollouts.images, self._device)
        rewards = self._reward.score(features, rollouts.condition)
        every = workers.gathered(rewards)
        row: Row = {
            "update": update + 1,
            "reward": float(every.mean()),
            "reward_deviation": float(every.std()),
            "action_deviation": deviation,
        }
        row |= ppo.update(
            self._shared,
            self._optimizer,
            rollouts,
            rewards,
            self._ppo,
            deviation=deviation,
            seed=int(np.random.default_rng([options.seed, _MINIBATCHES, update]).integers(2**63)),
        )
        random = np.random.default_rng([options.seed, _REAL, update, workers.rank()])
        row |= self._reward.learn(features, rollouts.condition, random)
        if (update + 1) % options.evaluate_every == 0 or update + 1 == options.updates:
            row |= self._evaluated(update + 1)
        return row

    def _rollouts(self, deviation: float) -> Rollouts:
        """This process's share of an update's rollouts."""
        options, update = self._options, self.state.update
        each = math.ceil(options.rollouts / 2 / workers.world())  # pairs
        random = np.random.default_rng([options.seed, _ROLLOUTS, update])
        seeds = random.integers(2**63, size=each * workers.world())
        first = each * workers.rank()
        condition = self._real.conditions(update * len(seeds) + first, each)
        mine = [int(seed) for seed in seeds[first : first + each]]
        return self._environment.explore(self.actor, condition, mine, deviation=deviation)

    def _evaluated(self, update: int) -> Row:
        """Fréchet distance and parameters of the policy's own actions, on the same seeds always."""
        each = math.ceil(self._options.evaluation_images / workers.world())
        first = each * workers.rank()
        random = np.random.default_rng([self._options.seed, _EVALUATION])
        seeds = [int(seed) for seed in random.integers(2**63, size=each * workers.world())]
        images, parameters = self._environment.follow(
            self.actor, self._real.conditions(first, each), seeds[first : first + each]
        )
        pooled = torch.from_numpy(self._network.pooled(images, self._device))
        distance = frechet_of_gaussians(
            *gaussian(workers.gathered(pooled).numpy()), *self._reference
        )
        self._keep_best(update, distance)
        return {"frechet_distance": distance, "schedule": _spread(parameters)}

    def _keep_best(self, update: int, distance: float) -> None:
        best = self.state.best
        if best is None or distance < best["frechet_distance"]:
            weights = {key: each.cpu().clone() for key, each in self.actor.state_dict().items()}
            self.state.best = {
                "update": update,
                "frechet_distance": distance,
                "actor": weights,
            }

    def _finish(self, row: Row, log: Log) -> None:
        """Record a row, and the state where a resumed training would go on from."""
        self.state.update = row["update"]
        self.state.history.append(row)
        if "frechet_distance" in row:
            weights = {
                "networks": self._plain.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "reward": workers.gathered_objects(self._reward.state()),
            }
            if workers.rank() == 0:
                state.save(self._work, self._signature, self.state, weights)
        workers.wait()
        log(row)

    def _restore(self, reached: TrainingState, weights: Any) -> None:
        self.state = reached
        self._plain.load_state_dict(weights["networks"])
        self._optimizer.load_state_dict(weights["optimizer"])
        self._reward.restore(weights["reward"][workers.rank()])

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Say of a training that broke where it did and what is left."""
        try:
            yield
        except (CalibrationError, EngineError) as error:
            kept = [row["update"] for row in self.state.history if "frechet_distance" in row]
            left = (
                f"the checkpoint of update {kept[-1]} is kept in {self._work}"
                if kept
                else "there is no checkpoint yet"
            )
            raise CalibrationError(
                f"update {self.state.update + 1}: {error}; {left}. If it happens again, lower "
                "--learning-rate or --discriminator-learning-rate and choose another --work"
            ) from error

    def judge(self) -> JudgeNetwork:
        """What scores images by the discriminator as it is after the last update.

        Raises:
            CalibrationError: the reward trains none.
        """
        if not isinstance(self._reward, Adversarial):
            raise CalibrationError(f"the reward {self._options.reward} trains no discriminator")
        return self._reward.judge(self._network)

    def best_actor(self) -> nn.Module:
        """A copy of the best actor so far."""
        assert self.state.best is not None
        actor = copy.deepcopy(self.actor).cpu()
        actor.load_state_dict(self.state.best["actor"])
        return actor


def reward_of(
    options: PolicyOptions,
    real: RealImages,
    network: FeatureNetwork,
    model: ModelInfo,
    device: torch.device,
) -> Reward:
    """The reward that was asked for."""
    if options.reward == "classifier":
        return ClassifierScore(real, network, device)
    if options.reward == "feature-distance":
        return FeatureDistance(real, network, device)
    return Adversarial(
        real,
        network,
        model,
        device,
        learning_rate=options.discriminator_learning_rate,
        epochs=options.discriminator_epochs,
        seed=options.seed,
    )


def _spread(parameters: npt.NDArray[np.float32]) -> dict[str, list[list[float]]]:
    """Mean and deviation over images of ``parameters [T, B, A]``, each ``[T][A]``."""
    wide = parameters.astype(np.float64)
    return {"mean": wide.mean(1).tolist(), "deviation": wide.std(1).tolist()}
