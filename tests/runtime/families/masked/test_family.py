"""What the masked family tells commands: corners, decisions, previews, rollouts, what counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fewstep.runtime.engines import run_once
from fewstep.runtime.families import Model
from fewstep.runtime.families.masked import FAMILY
from fewstep.runtime.families.masked.family import MaskedTrace
from fewstep.runtime.families.masked.model import MaskedModel, MaskedPolicyInfo
from fewstep.runtime.families.masked.program import MaskedKey
from fewstep.runtime.families.masked.settings import MaskedSettings
from fewstep.runtime.generator import Generator

_MASK = 24


def _info(generator: Generator) -> MaskedModel:
    assert isinstance(generator.model.info, MaskedModel)
    return generator.model.info


def _with(generator: Generator, **changes: object) -> Model:
    """The tiny model with another description."""
    return replace(generator.model, info=_info(generator).model_copy(update=changes))


# --- corners


def _ranges(model: Model, batch: int) -> dict[tuple[str, str], set[tuple[int, ...]]]:
    """Shapes of every input over the corners, by graph and tensor."""
    found: dict[tuple[str, str], set[tuple[int, ...]]] = {}
    for key in FAMILY.corners(model, batch):
        for run, shapes in FAMILY.program(model, key).runs():
            for tensor in model.graphs[run.graph].inputs:
                found.setdefault((run.graph, tensor), set()).add(shapes[tensor])
    return found


@pytest.mark.parametrize("batch", [1, 4])
def test_corners_run_every_graph_with_the_rows_that_images_need(
    generator: Generator, batch: int
) -> None:
    """The transformer with the images alone and with both halves, all others with the images."""
    found = _ranges(generator.model, batch)
    assert found == {
        ("transformer", "tokens"): {(batch, 16), (2 * batch, 16)},
        ("transformer", "condition"): {(batch,), (2 * batch,)},
        ("policy", "features"): {(batch, 16, 32)},
        ("policy", "step"): {(batch,)},
        ("decoder", "tokens"): {(batch, 16)},
    }
    first = next(iter(FAMILY.corners(generator.model, batch)))
    assert (first.batch, first.guided) == (batch, True)


def test_without_an_unconditional_text_nothing_is_guided(text_generator: Generator) -> None:
    condition = text_generator.model.info.condition.model_copy(update={"unconditional_file": None})
    model = _with(text_generator, condition=condition)
    found = _ranges(model, 3)
    assert found["transformer", "text"] == {(3, 3, 12)}


# --- decisions and traces


def test_decisions_are_of_the_conditional_half(generator: Generator) -> None:
    key = MaskedKey(2, 3, guided=True, policy=None)
    outputs = {
        "tokens": np.arange(4 * 4 * 16).reshape(4, 4, 16),
        "sampled": np.zeros((3, 2, 16)),
        "parameters": np.zeros((3, 2, 4)),
        "pixels": np.zeros((2, 8, 8, 3)),
    }
    found = FAMILY.decisions(generator.model, key, outputs)
    assert found.keys() == {"tokens", "sampled", "parameters"}
    np.testing.assert_array_equal(found["tokens"], outputs["tokens"][:, :2])


def test_a_trace_ends_with_what_the_image_is_made_of(generator: Generator) -> None:
    result = generator.generate(class_ids=[1, 2], steps=3)
    trace = result.trace
    assert isinstance(trace, MaskedTrace)
    np.testing.assert_array_equal(trace.final, trace.sampled[-1])
    np.testing.assert_array_equal(result.tokens, trace.final)
    assert {name: value.shape for name, value in trace.decisions.items()} == {
        "tokens": (4, 2, 16),
        "sampled": (3, 2, 16),
        "parameters": (3, 2, 4),
    }


# --- previews


def test_a_preview_is_decoded_from_the_samples_of_its_step(generator: Generator) -> None:
    result = generator.generate(class_ids=[1, 2], steps=4, schedule="linear")
    for step in range(4):
        found = FAMILY.preview(generator.model, result.trace, step)
        assert (found.graph, found.output) == ("decoder", "image")
        np.testing.assert_array_equal(found.inputs["tokens"], result.trace.sampled[step])
        assert found.undecided.shape == (2, 4, 4)
        masked = (result.trace.tokens[step + 1] == _MASK).reshape(2, 4, 4)
        np.testing.assert_array_equal(found.undecided, masked)
        decided = 4 * (step + 1)
        assert found.caption == f"step {step + 1} of 4: {decided} of 16 tokens decided"
    image = run_once(generator.device, generator.engines["decoder"], found.inputs)["image"]
    pixels = np.round(np.clip(image, 0, 1) * 255).transpose(0, 2, 3, 1)
    assert np.abs(pixels - result.images).max() <= 1


def test_the_last_step_leaves_nothing_undecided(generator: Generator) -> None:
    """A policy may mask tokens again at the end, and the image is made of its samples anyway."""
    tokens = np.full((3, 1, 16), _MASK, np.int32)
    sampled = np.zeros((2, 1, 16), np.int32)
    trace = MaskedTrace(tokens, sampled, np.zeros((2, 1, 4), np.float32), _MASK)
    before, last = (FAMILY.preview(generator.model, trace, step) for step in (0, 1))
    assert before.undecided.all()
    assert not last.undecided.any()
    assert last.caption.endswith("16 of 16 tokens decided")


# --- golden rollouts


def test_the_default_schedule_and_every_policy_are_rolled_out(generator: Generator) -> None:
    policies = {**_info(generator).policies, "policy-8": MaskedPolicyInfo(residual=False, steps=8)}
    defaults = MaskedSettings(steps=12, schedule="arccos", guidance=(1.0, 2.0))
    found = FAMILY.rollouts(_with(generator, policies=policies, defaults=defaults))
    assert list(found) == ["arccos", "policy", "policy-8"]
    assert found["arccos"] == {**defaults.model_dump(exclude={"preset"}), "steps": 4}
    assert found["policy"] == {"steps": 4, "schedule": "policy-exported", "decoder": "full"}
    assert found["policy-8"] == {"steps": 4, "schedule": "policy-8", "decoder": "full"}


def test_a_default_policy_is_rolled_out_once(generator: Generator) -> None:
    found = FAMILY.rollouts(_with(generator, defaults=MaskedSettings(schedule="policy")))
    assert list(found) == ["policy"]


def test_few_tokens_take_few_steps(generator: Generator) -> None:
    found = FAMILY.rollouts(_with(generator, grid=(1, 3)))
    assert {settings["steps"] for settings in found.values()} == {3}


# --- what counts


def test_only_masked_positions_of_the_transformer_count(generator: Generator) -> None:
    tokens = np.array([[_MASK, 3, _MASK], [1, _MASK, 2]], np.int32)
    found = FAMILY.counted(generator.model, "transformer", {"tokens": tokens})
    assert found is not None
    assert found.tolist() == [[True, False, True], [False, True, False]]
    for graph in ("decoder", "policy"):
        assert FAMILY.counted(generator.model, graph, {"tokens": tokens}) is None
