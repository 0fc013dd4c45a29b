"""The loop: what it learns, what it writes down, and that nothing that happens changes the result.

Trainings are of the tiny bundle's policy on 8×8 images with a small feature network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.calibration.policy.stand_ins import (
    SmallNetwork,
    assert_same_weights,
    opened_training,
    small_options,
    weights_of,
)
from torch import Tensor

from fewstep.calibration.policy import ppo, state, training
from fewstep.calibration.policy.data import read_images
from fewstep.calibration.policy.distances import frechet_distance
from fewstep.calibration.policy.environment import Environment
from fewstep.calibration.policy.features import Features
from fewstep.calibration.policy.options import PolicyOptions
from fewstep.calibration.policy.rewards import REWARDS, Adversarial, Static
from fewstep.calibration.policy.state import CHECKPOINT, Row
from fewstep.runtime.devices import Array
from fewstep.runtime.errors import CalibrationError
from fewstep.runtime.families.masked.model import MaskedModel
from fewstep.runtime.generator import Generator

_UPDATES = 4
_METRICS = {"reward", "reward_deviation", "action_deviation", "loss", "value_error"}
_LEARNT = {"discriminator_loss", "discriminator_accuracy"}
_EVALUATED = {"frechet_distance", "schedule"}


def _run(options: PolicyOptions, work: Path) -> tuple[dict[str, Tensor], list[Row]]:
    with opened_training(options, work) as opened:
        history = opened.run().history
        return weights_of(opened), history


@pytest.fixture(scope="module")
def long(tiny_bundle: Path, data: Path) -> PolicyOptions:
    """Four updates, with a checkpoint after every second."""
    return small_options(tiny_bundle, data, updates=_UPDATES, evaluate_every=2)


@pytest.fixture(scope="module")
def whole(
    long: PolicyOptions, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Tensor], list[Row]]:
    """Weights and history of that training, uninterrupted."""
    torch.set_num_threads(1)
    return _run(long, tmp_path_factory.mktemp("whole"))


# --- what is written down


def test_the_history_has_a_row_per_update_and_one_before(
    whole: tuple[dict[str, Tensor], list[Row]],
) -> None:
    history = whole[1]
    assert [row["update"] for row in history] == [0, 1, 2, 3, 4]
    assert history[0].keys() == {"update"} | _EVALUATED
    for row in history[1:]:
        evaluated = _EVALUATED if row["update"] % 2 == 0 else set()
        assert row.keys() == {"update"} | _METRICS | _LEARNT | evaluated
        assert all(math.isfinite(value) for value in row.values() if isinstance(value, float))
        assert 0 < row["reward"] < 1
    assert [row["action_deviation"] for row in history[1:]] == pytest.approx(
        np.linspace(0.4, 0.1, 4)
    )


def test_the_first_evaluation_is_of_the_bundles_own_policy(
    whole: tuple[dict[str, Tensor], list[Row]], tiny_bundle: Path, data: Path
) -> None:
    """Its schedule and its distance, from images that the exported graph makes."""
    options = small_options(tiny_bundle, data)
    seeds = np.random.default_rng([0, 1]).integers(2**63, size=10)
    with Generator.open(tiny_bundle, threads=1) as generator:
        made = generator.generate(
            class_ids=[row % 5 for row in range(10)],
            seed=[int(each) for each in seeds],
            schedule="policy",
            steps=options.steps,
        )
    row, device, network = whole[1][0], torch.device("cpu"), SmallNetwork()
    wide = made.trace.parameters.astype(float)
    np.testing.assert_allclose(row["schedule"]["mean"], wide.mean(1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(row["schedule"]["deviation"], wide.std(1), rtol=1e-3, atol=1e-5)
    real = np.load(data)["images"]
    expected = frechet_distance(network.pooled(made.images, device), network.pooled(real, device))
    assert row["frechet_distance"] == pytest.approx(expected, rel=1e-3)


def test_the_best_actor_is_that_of_the_smallest_distance(
    long: PolicyOptions, tmp_path: Path
) -> None:
    seen: dict[int, dict[str, Tensor]] = {}
    with opened_training(long, tmp_path) as opened:

        def log(row: Row) -> None:
            seen[row["update"]] = {k: v.clone() for k, v in opened.actor.state_dict().items()}

        reached = opened.run(log)
        assert reached.best is not None
        best = min(
            (row for row in reached.history if "frechet_distance" in row),
            key=lambda row: float(row["frechet_distance"]),
        )
        assert reached.best["update"] == best["update"]
        assert reached.best["frechet_distance"] == best["frechet_distance"]
        assert_same_weights(opened.best_actor().state_dict(), seen[best["update"]])


@pytest.mark.parametrize("reward", REWARDS)
def test_every_reward_trains(reward: str, tiny_bundle: Path, data: Path, tmp_path: Path) -> None:
    options = small_options(tiny_bundle, data, reward=reward)
    weights, history = _run(options, tmp_path)
    assert all(torch.isfinite(each).all() for each in weights.values())
    assert (history[1].keys() >= _LEARNT) == (reward == "adversarial")


# --- what happens does not change the result


def test_the_same_training_gives_the_same_weights(
    long: PolicyOptions, whole: tuple[dict[str, Tensor], list[Row]], tmp_path: Path
) -> None:
    torch.rand(7)  # random numbers drawn elsewhere
    weights, history = _run(long, tmp_path)
    assert_same_weights(weights, whole[0])
    assert history == whole[1]


def test_another_seed_gives_others(
    long: PolicyOptions, whole: tuple[dict[str, Tensor], list[Row]], tmp_path: Path
) -> None:
    options = PolicyOptions(**{**vars(long), "seed": 1, "updates": 2})
    weights, _ = _run(options, tmp_path)
    assert any(not torch.equal(weights[key], whole[0][key]) for key in weights)


def test_another_batch_gives_nearly_the_same(
    long: PolicyOptions, whole: tuple[dict[str, Tensor], list[Row]], tmp_path: Path
) -> None:
    """Not bit by bit: sums of a larger batch are rounded otherwise."""
    _, history = _run(PolicyOptions(**{**vars(long), "batch": 64}), tmp_path)
    for a, b in zip(history, whole[1], strict=True):
        assert a.get("reward", 0) == pytest.approx(b.get("reward", 0), abs=0.01)


_MOMENTS: dict[str, tuple[object, str, int]] = {
    "in the first evaluation": (Environment, "follow", 1),
    "in the first rollouts": (Environment, "explore", 1),
    "in later rollouts": (Environment, "explore", 4),
    "before an update": (ppo, "update", 3),
    "in an optimizer's step": (ppo, "stepped", 37),
    "in the discriminator": (Adversarial, "learn", 2),
    "before the last checkpoint": (state, "save", 3),
    "before the first checkpoint": (state, "save", 1),
}


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("moment", _MOMENTS)
def test_a_training_that_was_interrupted_ends_with_the_same_weights(
    moment: str,
    after: bool,
    long: PolicyOptions,
    whole: tuple[dict[str, Tensor], list[Row]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place, name, call = _MOMENTS[moment]
    function, calls = getattr(place, name), [0]

    def interrupted(*given: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == call and not after:
            raise KeyboardInterrupt
        result = function(*given, **named)
        if calls[0] == call:
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patched:
        patched.setattr(place, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            _run(long, tmp_path)
    torch.rand(3)  # another process has other random numbers
    weights, history = _run(long, tmp_path)
    assert_same_weights(weights, whole[0])
    assert history == whole[1]


def test_interrupted_after_every_update_it_still_ends_the_same(
    long: PolicyOptions, whole: tuple[dict[str, Tensor], list[Row]], tmp_path: Path
) -> None:
    for stop in (0, 1, 2, 3):

        def log(row: Row, stop: int = stop) -> None:
            if row["update"] == stop:
                raise KeyboardInterrupt

        with opened_training(long, tmp_path) as opened, pytest.raises(KeyboardInterrupt):
            opened.run(log)
    weights, _ = _run(long, tmp_path)
    assert_same_weights(weights, whole[0])


def test_a_finished_training_is_not_trained_further(
    long: PolicyOptions,
    whole: tuple[dict[str, Tensor], list[Row]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _run(long, tmp_path)
    monkeypatch.setattr(Environment, "explore", None)
    reported: list[Row] = []
    with opened_training(long, tmp_path) as opened:
        opened.run(reported.append)
        assert_same_weights(weights_of(opened), whole[0])
    assert reported == whole[1]


def test_a_checkpoint_of_other_options_is_refused(long: PolicyOptions, tmp_path: Path) -> None:
    short = PolicyOptions(**{**vars(long), "updates": 1})
    _run(short, tmp_path)
    with pytest.raises(CalibrationError, match="another training: updates 1 instead of 4"):
        _run(long, tmp_path)


# --- what stops it


@pytest.mark.parametrize("what", ["reward", "loss"])
def test_nan_stops_it_with_the_last_good_checkpoint_kept(
    what: str,
    long: PolicyOptions,
    whole: tuple[dict[str, Tensor], list[Row]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place, name = (Adversarial, "score") if what == "reward" else (ppo, "loss_of")
    function, calls = getattr(place, name), [0]

    def broken(*given: Any, **named: Any) -> Tensor:
        calls[0] += 1
        result: Tensor = function(*given, **named)
        return result * math.nan if calls[0] > (3 if what == "reward" else 65) else result

    with monkeypatch.context() as patched:
        patched.setattr(place, name, broken)
        with pytest.raises(CalibrationError) as caught:
            _run(long, tmp_path)
    text = str(caught.value)
    assert text.startswith("update 4: ")
    assert ("a reward is NaN" if what == "reward" else "the loss became nan") in text
    assert f"the checkpoint of update 2 is kept in {tmp_path}. If it happens again, lower" in text
    weights, _ = _run(long, tmp_path)  # from that checkpoint
    assert_same_weights(weights, whole[0])


def test_nan_before_any_checkpoint_says_so(
    long: PolicyOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: Any) -> Any:
        raise CalibrationError("something is NaN")

    monkeypatch.setattr(Environment, "follow", broken)
    with pytest.raises(CalibrationError, match="something is NaN; there is no checkpoint yet"):
        _run(long, tmp_path)
    assert not (tmp_path / CHECKPOINT).exists()


# --- what it learns


class _LikesGuidance(Static):
    """Rewards the mean guidance of a rollout, which it learns behind the images' back."""

    guidance = torch.zeros(0)

    def score(self, features: Features, condition: Array) -> Tensor:
        return self.guidance


@pytest.mark.parametrize("sign", [1, -1])
def test_the_policy_moves_to_what_is_rewarded(
    sign: int, tiny_bundle: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explore, reward = Environment.explore, _LikesGuidance()

    def noted(self: Environment, *given: Any, **named: Any) -> Any:
        rollouts = explore(self, *given, **named)
        reward.guidance = sign * torch.from_numpy(rollouts.parameters[..., 3]).mean(0)
        return rollouts

    monkeypatch.setattr(Environment, "explore", noted)
    monkeypatch.setattr(training, "reward_of", lambda *_: reward)
    options = small_options(
        tiny_bundle, data, updates=6, rollouts=32, batch=32, evaluate_every=3, learning_rate=2e-3
    )
    _, history = _run(options, tmp_path)
    guidance = [np.mean(row["schedule"]["mean"], axis=0)[3] for row in history if "schedule" in row]
    assert sign * (guidance[1] - guidance[0]) > 0.02
    assert sign * (guidance[2] - guidance[0]) > 0.05  # a softplus: below it ends at 0


def test_the_state_of_a_reward_goes_through_the_checkpoint(
    tiny_bundle: Path, data: Path, tmp_path: Path, model: MaskedModel
) -> None:
    """Rewards are restored with what they saved, as plain data that needs no code to load."""
    saved: list[Mapping[str, Any]] = []

    class Remembers(_LikesGuidance):
        def score(self, features: Features, condition: Array) -> Tensor:
            return torch.linspace(0, 1, len(condition))

        def state(self) -> dict[str, Any]:
            return {"seen": [torch.arange(3), {"of": 7}]}

        def restore(self, given: Mapping[str, Any]) -> None:
            saved.append(given)

    options = small_options(tiny_bundle, data)
    for _ in range(2):
        with opened_training(options, tmp_path) as opened:
            opened._reward = Remembers()
            opened.run()
    assert [each["seen"][1] for each in saved] == [{"of": 7}]
    assert len(read_images(data, model, 1).images) == 40
