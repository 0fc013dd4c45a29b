"""Golden rollouts: what the file holds, and that it is what PyTorch says and ONNX Runtime repeats.

The bundles under test have 4×4 tokens of 24 codes; golden rollouts are two images in four steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from fewstep.export import Checkpoints
from fewstep.export.config import read_config
from fewstep.export.golden import GOLDEN_FILE
from fewstep.export.masked import Models, load_models
from fewstep.runtime import Generator, Schedule
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.families.masked.schedule import policy_offsets
from fewstep.runtime.kernels.policy_parameters import policy_parameters

Rollout = dict[str, npt.NDArray[Any]]

STEPS, IMAGES, TOKENS, CODES, POSITIONS = 4, 2, 16, 24, 8
SCHEDULES = ("cosine", "policy")
COMMON = {
    "seeds": (IMAGES,),
    "parameters": (STEPS, IMAGES, 4),
    "tokens": (STEPS + 1, IMAGES, TOKENS),
    "sampled": (STEPS, IMAGES, TOKENS),
    "positions": (POSITIONS,),
    "logits": (STEPS, IMAGES, POSITIONS, CODES),
    "image": (IMAGES, 3, 8, 8),
}


def rollouts(bundle: Path) -> dict[str, Rollout]:
    """The arrays of each schedule, read without unpickling anything."""
    found: dict[str, Rollout] = {}
    with np.load(bundle / GOLDEN_FILE, allow_pickle=False) as archive:
        for key in archive.files:
            schedule, _, name = key.partition("/")
            found.setdefault(schedule, {})[name] = archive[key]
    return found


@pytest.fixture(scope="module", params=SCHEDULES)
def rollout(request: pytest.FixtureRequest, tiny_bundle: Path) -> tuple[str, Rollout]:
    """One schedule of the AdaNAT bundle's golden rollouts."""
    return request.param, rollouts(tiny_bundle)[request.param]


@pytest.fixture(scope="module")
def models(tiny_checkpoints: Checkpoints) -> Models:
    """The bundle's models, loaded afresh."""
    files = tiny_checkpoints
    return load_models(files.transformer, files.tokenizer, files.policy, read_config(files.config))


def test_the_manifest_names_the_file(tiny_bundle: Path) -> None:
    bundle = Bundle.read(tiny_bundle)
    assert bundle.manifest.golden == GOLDEN_FILE
    assert bundle.arrays(GOLDEN_FILE).keys() >= {"cosine/tokens", "policy/tokens"}


def test_holds_the_default_schedule_and_the_policy(tiny_bundle: Path) -> None:
    shapes = {
        schedule: {name: value.shape for name, value in found.items()}
        for schedule, found in rollouts(tiny_bundle).items()
    }
    expected = COMMON | {"condition": (IMAGES,)}
    assert shapes == {
        "cosine": expected,
        "policy": expected | {"actions": (STEPS, IMAGES, 4)},
    }


def test_without_a_policy_there_is_the_default_schedule_only(tiny_text_bundle: Path) -> None:
    shapes = {
        schedule: {name: value.shape for name, value in found.items()}
        for schedule, found in rollouts(tiny_text_bundle).items()
    }
    assert shapes == {"cosine": COMMON | {"condition": (IMAGES, 3, 12)}}


def test_the_first_and_the_last_class_are_recorded(rollout: tuple[str, Rollout]) -> None:
    _, found = rollout
    assert found["condition"].tolist() == [0, 4]
    assert len(set(found["seeds"].tolist())) == IMAGES
    assert sorted(set(found["positions"].tolist())) == found["positions"].tolist()


def test_the_tokens_are_one_generation(rollout: tuple[str, Rollout]) -> None:
    _, found = rollout
    tokens, sampled = found["tokens"], found["sampled"]
    assert (tokens[0] == CODES).all()
    assert (sampled < CODES).all()
    known = tokens != CODES
    np.testing.assert_array_equal(sampled[known[:-1]], tokens[:-1][known[:-1]])
    np.testing.assert_array_equal(tokens[1:][known[1:]], sampled[known[1:]])
    assert (known[1:] >= known[:-1]).all()  # what is known stays known


def test_the_logits_are_those_of_a_fresh_forward_pass(
    rollout: tuple[str, Rollout], models: Models
) -> None:
    _, found = rollout
    condition = torch.from_numpy(found["condition"])
    for step, tokens in enumerate(found["tokens"][:-1]):
        with torch.no_grad():
            logits, _ = models.transformer(torch.from_numpy(tokens), condition)
        expected = logits.numpy()[:, found["positions"]]
        np.testing.assert_allclose(found["logits"][step], expected, rtol=0, atol=1e-5)


def test_the_image_is_the_decoded_last_sample(rollout: tuple[str, Rollout], models: Models) -> None:
    _, found = rollout
    with torch.no_grad():
        expected = models.tokenizer(torch.from_numpy(found["sampled"][-1]))
    np.testing.assert_allclose(found["image"], expected, rtol=0, atol=1e-5)


def test_the_cosine_parameters_are_the_schedules(tiny_bundle: Path) -> None:
    expected = Schedule().parameters(STEPS, TOKENS)
    found = rollouts(tiny_bundle)["cosine"]["parameters"]
    np.testing.assert_array_equal(found, np.repeat(expected[:, None], IMAGES, axis=1))


def test_the_actions_are_the_policys_and_became_the_parameters(
    tiny_bundle: Path, models: Models
) -> None:
    found = rollouts(tiny_bundle)["policy"]
    assert models.policy is not None
    condition = torch.from_numpy(found["condition"])
    for step, tokens in enumerate(found["tokens"][:-1]):
        with torch.no_grad():
            _, features = models.transformer(torch.from_numpy(tokens), condition)
            action = models.policy(features, torch.full((IMAGES,), step)).numpy()
        np.testing.assert_allclose(found["actions"][step], action, rtol=0, atol=1e-5)
        expected = np.empty((IMAGES, 4), np.float32)
        policy_parameters(
            action=action,
            **policy_offsets(step, STEPS, residual=True),
            parameters=expected,
            error=np.zeros(1, np.int32),
        )
        np.testing.assert_allclose(found["parameters"][step], expected, rtol=1e-5, atol=1e-5)


def test_onnx_runtime_repeats_it(rollout: tuple[str, Rollout], tiny_bundle: Path) -> None:
    schedule, found = rollout
    with Generator.open(tiny_bundle, threads=1) as generator:
        result = generator.generate(
            class_ids=found["condition"].tolist(),
            seed=found["seeds"].tolist(),
            schedule=schedule,
            steps=STEPS,
        )
    np.testing.assert_array_equal(result.trace.tokens, found["tokens"])
    np.testing.assert_array_equal(result.trace.sampled, found["sampled"])
    np.testing.assert_allclose(result.trace.parameters, found["parameters"], rtol=0, atol=1e-4)
    expected = np.rint(found["image"].transpose(0, 2, 3, 1) * 255)
    assert np.abs(result.images - expected).max() <= 1
