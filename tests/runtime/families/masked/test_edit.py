"""Edits of pictures by a masked model: encoded in the program, as tokens that were given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from fewstep.runtime import verify
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.editing import ENCODER
from fewstep.runtime.errors import RequestError
from fewstep.runtime.families import family_of
from fewstep.runtime.generator import Generator
from fewstep.runtime.program import Run

CLASSES, IMAGES = [1, 4, 2], [5, 0, 9]
SEEDS = np.array(IMAGES, np.uint64)


@pytest.fixture(scope="module")
def generator(edit_bundle: Path) -> Iterator[Generator]:
    with Generator.open(edit_bundle, max_batch=2, threads=1) as made:
        yield made


@pytest.fixture(scope="module")
def image() -> npt.NDArray[np.float32]:
    """Three pictures ``[3, 3, 8, 8]``."""
    return np.random.default_rng(2).random((3, 3, 8, 8), np.float32)


@pytest.fixture(scope="module")
def ids(edit_bundle: Path, image: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    """Their tokens, by the graph alone."""
    session = onnxruntime.InferenceSession(edit_bundle / "image_encoder.onnx")
    found: npt.NDArray[np.int32] = session.run(["tokens"], {"image": image})[0]
    return found


_PIXELS = np.zeros((3, 8, 8), np.bool_)
_PIXELS[:, 1:4, 5] = True  # cells are 2×2 pixels: the first two rows of the third column


@pytest.mark.parametrize(
    "settings",
    [
        {"schedule": "policy", "steps": 3},
        {"schedule": "cosine", "steps": 3, "guidance": 0},
        {"schedule": "cosine", "steps": 4, "order": "halton"},
        {"schedule": "cosine", "steps": 4, "order": "halton", "local_steps": 1},
    ],
)
def test_a_picture_is_as_good_as_its_tokens(
    generator: Generator, image: Any, ids: Any, settings: dict[str, Any]
) -> None:
    """In batches of two and one, each with pictures of its own."""
    part = generator.family.region(generator.model, _PIXELS)
    assert part["mask"].reshape(3, 4, 4)[:, :2, 2].all()
    assert part["mask"].sum() == 3 * 2
    found, expected = (
        generator.run(
            generator.request(class_ids=CLASSES, seed=IMAGES, edit={**what, **part}, **settings)
        )
        for what in ({"image": image}, {"given": ids})
    )
    np.testing.assert_array_equal(found.trace.tokens, expected.trace.tokens)
    np.testing.assert_array_equal(found.images, expected.images)
    kept = ~part["mask"]
    np.testing.assert_array_equal(found.tokens[kept], ids[kept])
    assert found.timings_ms.keys() - expected.timings_ms.keys() == {ENCODER}


def test_a_variation_keeps_the_other_tokens(generator: Generator, image: Any, ids: Any) -> None:
    part = generator.family.variation(generator.model, 0.25, SEEDS)
    assert (part["mask"].sum(1) == 4).all()
    request = generator.request(
        class_ids=CLASSES,
        seed=IMAGES,
        steps=3,
        edit={"image": image, **part},
    )
    kept = ~part["mask"]
    np.testing.assert_array_equal(generator.run(request).tokens[kept], ids[kept])


def test_all_anew_is_a_generation(generator: Generator, image: Any) -> None:
    part = generator.family.variation(generator.model, 1, SEEDS)
    request = generator.request(class_ids=CLASSES, seed=7, steps=3, edit={"image": image, **part})
    made = generator.generate(class_ids=CLASSES, seed=7, steps=3)
    np.testing.assert_array_equal(generator.run(request).images, made.images)


def test_the_program_begins_with_the_encoder(generator: Generator, image: Any) -> None:
    part = generator.family.variation(generator.model, 0.5, SEEDS)
    request = generator.request(class_ids=CLASSES, steps=2, edit={"image": image, **part})
    key = generator.family.key(generator.model, request, 2)
    program = generator.family.program(generator.model, key)
    first = program.ops[0]
    assert isinstance(first, Run)
    assert first.graph == ENCODER
    assert not program.kept  # step 0 of an edit is not that of a class
    assert not program.constants


def test_profiles_know_the_encoder(generator: Generator) -> None:
    for batch in (1, 5):
        keys = list(generator.family.corners(generator.model, batch))
        assert not keys[0].of_image  # what most requests ask for
        programs = (generator.family.program(generator.model, key) for key in keys)
        rows = {
            shapes["image"][0]
            for each in programs
            for run, shapes in each.runs()
            if run.graph == ENCODER
        }
        assert rows == {batch}


def test_the_golden_rollouts_judge_the_encoder(edit_bundle: Path, generator: Generator) -> None:
    report = verify.verify(generator)
    assert report.passed
    (check,) = (each for each in report.checks if each.graph == ENCODER)
    assert (check.rollout, check.metric, check.value) == (ENCODER, "code_agreement", 1.0)
    recorded = verify.recordings(Bundle.read(edit_bundle))[ENCODER]
    assert recorded.edit.keys() == {"image", "mask"}
    assert (recorded.edit["mask"].sum(1) == 8).all()


def test_codes_of_other_weights_fail(generator: Generator) -> None:
    """Half of them are others: that is no rounding in any precision."""
    recorded = verify.recordings(generator.bundle)[ENCODER]
    run = next(each for each in recorded.runs.values() if each.graph == ENCODER)
    right = run.outputs["tokens"]
    wrong = np.where(np.arange(right.shape[1]) % 2, right, (right + 1) % 24)
    (value,) = verify.METRICS["tokens"]["code_agreement"]([wrong], [right])
    assert value == 0.5
    assert all(value < each.code_agreement for each in verify.TOLERANCES.values())


def test_a_bundle_without_encoder_cannot_edit(tiny_bundle: Path, image: Any) -> None:
    bundle = Bundle.read(tiny_bundle)
    assert not bundle.manifest.model.editable
    with Generator.open(bundle, threads=1) as plain:
        part = plain.family.region(plain.model, _PIXELS)
        with pytest.raises(RequestError, match="export it again with --encoder"):
            plain.request(class_ids=CLASSES, edit={"image": image, **part})


def test_tokens_without_a_place_have_no_region(generator: Generator) -> None:
    """Those of TiTok: one row over the whole picture."""
    model = generator.model.info.model_copy(update={"grid": (1, 16)})
    other = type(generator.model)(model, generator.model.graphs)
    family = family_of("masked")
    with pytest.raises(RequestError, match="no place in the picture"):
        family.region(other, _PIXELS)
    assert family.variation(other, 0.5, SEEDS)["mask"].shape == (3, 16)
