"""Golden rollouts: what the file holds, and that it is what PyTorch says and ONNX Runtime repeats.

The bundles under test have 4×4 tokens of 24 codes; golden rollouts are two images in four steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.cuda.torch_engine import load

from fewstep.export.golden import GOLDEN_FILE
from fewstep.export.masked import Models
from fewstep.runtime import Generator
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices import Array
from fewstep.runtime.families.masked.model import MaskedPolicyInfo
from fewstep.runtime.families.masked.schedule import Schedule
from fewstep.runtime.kernels.policy_parameters import policy_parameters
from fewstep.runtime.verify import Recording, recordings

STEPS, IMAGES, TOKENS, CODES, POSITIONS, CLASSES = 4, 2, 16, 24, 8, 5


@pytest.fixture(scope="module", params=["cosine", "policy"])
def recording(request: pytest.FixtureRequest, tiny_bundle: Path) -> Recording:
    """One of the AdaNAT bundle's golden rollouts."""
    return recordings(Bundle.read(tiny_bundle))[request.param]


@pytest.fixture(scope="module")
def models(tiny_checkpoints: dict[str, Any]) -> Models:
    """The bundle's models, loaded afresh."""
    return load(tiny_checkpoints)


def outputs(recording: Recording, tensor: str) -> list[Array]:
    """A tensor of all runs that give it."""
    return [run.outputs[tensor] for run in recording.runs.values() if tensor in run.outputs]


def shapes(bundle: Path) -> dict[str, dict[str, list[tuple[int, ...]]]]:
    """Of decisions and outputs, by rollout."""
    found = {}
    for name, recording in recordings(Bundle.read(bundle)).items():
        decided = {each: [value.shape] for each, value in recording.decisions.items()}
        tensors = dict.fromkeys(t for run in recording.runs.values() for t in run.outputs)
        given = {each: [a.shape for a in outputs(recording, each)] for each in tensors}
        found[name] = {**decided, **given}
    return found


COMMON = {
    "tokens": [(STEPS + 1, IMAGES, TOKENS)],
    "sampled": [(STEPS, IMAGES, TOKENS)],
    "parameters": [(STEPS, IMAGES, 4)],
    "logits": [(2 * IMAGES, POSITIONS, CODES)] * STEPS,
    "image": [(IMAGES, 3, 8, 8)],
}


def test_holds_the_default_schedule_and_the_policy(tiny_bundle: Path) -> None:
    assert Bundle.read(tiny_bundle).manifest.golden == GOLDEN_FILE
    actions = {"action": [(IMAGES, 4)] * STEPS}
    assert shapes(tiny_bundle) == {"cosine": COMMON, "policy": COMMON | actions}


def test_without_a_policy_there_is_the_default_schedule_only(tiny_text_bundle: Path) -> None:
    assert shapes(tiny_text_bundle) == {"cosine": COMMON}


def test_the_first_and_the_last_class_are_recorded(recording: Recording) -> None:
    assert recording.condition.tolist() == [0, CLASSES - 1]
    assert len(set(recording.seeds.tolist())) == IMAGES
    positions = recording.positions[TOKENS].tolist()
    assert positions == sorted(set(positions))


def test_the_tokens_are_one_generation(recording: Recording) -> None:
    tokens, sampled = recording.decisions["tokens"], recording.decisions["sampled"]
    assert (tokens[0] == CODES).all()
    assert (sampled < CODES).all()
    known = tokens != CODES
    np.testing.assert_array_equal(sampled[known[:-1]], tokens[:-1][known[:-1]])
    np.testing.assert_array_equal(tokens[1:][known[1:]], sampled[known[1:]])
    assert (known[1:] >= known[:-1]).all()  # what is known stays known


def test_the_logits_are_those_of_a_fresh_forward_pass(recording: Recording, models: Models) -> None:
    nothing = np.full(IMAGES, CLASSES, np.int32)
    condition = torch.from_numpy(np.concatenate([recording.condition, nothing]))
    steps = zip(recording.decisions["tokens"], outputs(recording, "logits"), strict=False)
    for tokens, found in steps:
        with torch.no_grad():
            logits, _ = models.transformer(torch.from_numpy(np.tile(tokens, (2, 1))), condition)
        expected = logits.numpy()[:, recording.positions[TOKENS]]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_the_image_is_the_decoded_last_sample(recording: Recording, models: Models) -> None:
    with torch.no_grad():
        expected = models.tokenizer(torch.from_numpy(recording.decisions["sampled"][-1]))
    np.testing.assert_allclose(outputs(recording, "image")[0], expected, rtol=0, atol=1e-5)


def test_the_cosine_parameters_are_the_schedules(tiny_bundle: Path) -> None:
    expected = Schedule().parameters(STEPS, TOKENS)
    found = recordings(Bundle.read(tiny_bundle))["cosine"].decisions["parameters"]
    np.testing.assert_array_equal(found, np.repeat(expected[:, None], IMAGES, axis=1))


def test_the_actions_are_the_policys_and_became_the_parameters(
    tiny_bundle: Path, models: Models
) -> None:
    found = recordings(Bundle.read(tiny_bundle))["policy"]
    assert models.policy is not None
    condition = torch.from_numpy(found.condition)
    for step, recorded in enumerate(outputs(found, "action")):
        with torch.no_grad():
            tokens = torch.from_numpy(found.decisions["tokens"][step])
            _, features = models.transformer(tokens, condition)
            action = models.policy(features, torch.full((IMAGES,), step)).numpy()
        np.testing.assert_allclose(recorded, action, rtol=0, atol=1e-5)
        expected = np.empty((IMAGES, 4), np.float32)
        policy_parameters(
            action=action,
            **MaskedPolicyInfo(residual=True).offsets(step, STEPS),
            parameters=expected,
            error=np.zeros(1, np.int32),
        )
        parameters = found.decisions["parameters"][step]
        np.testing.assert_allclose(parameters, expected, rtol=1e-5, atol=1e-5)


def test_onnx_runtime_repeats_it(recording: Recording, tiny_bundle: Path) -> None:
    with Generator.open(tiny_bundle, threads=1) as generator:
        result = generator.generate(
            class_ids=recording.condition.tolist(),
            seed=recording.seeds.tolist(),
            **recording.settings,
        )
    decided, trace = recording.decisions, result.trace
    np.testing.assert_array_equal(trace.tokens, decided["tokens"])
    np.testing.assert_array_equal(trace.sampled, decided["sampled"])
    np.testing.assert_allclose(trace.parameters, decided["parameters"], rtol=0, atol=1e-4)
    expected = np.rint(outputs(recording, "image")[0].transpose(0, 2, 3, 1) * 255)
    assert np.abs(result.images - expected).max() <= 1
