"""Edits of pictures by a MAR: encoded in the program, as latents that were given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tests import tiny_mar

from fewstep.runtime import verify
from fewstep.runtime.editing import ENCODER
from fewstep.runtime.errors import RequestError
from fewstep.runtime.families.mar.request import latents_of
from fewstep.runtime.generator import Generator

CLASSES, IMAGES = [1, 4, 2], [5, 0, 9]
SEEDS = np.array(IMAGES, np.uint64)


@pytest.fixture(scope="module")
def generator(mar_bundle: Path) -> Iterator[Generator]:
    with Generator.open(mar_bundle, max_batch=2, threads=1) as made:
        yield made


@pytest.fixture(scope="module")
def image() -> npt.NDArray[np.float32]:
    """Three pictures ``[3, 3, 16, 16]``."""
    return np.random.default_rng(2).random((3, 3, 16, 16), np.float32)


@pytest.fixture(scope="module")
def latents(image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The means of their latents, scaled, by eager PyTorch: ``[3, 3, 8, 8]``."""
    _, tokenizer = tiny_mar.models()
    with torch.no_grad():
        mean = tokenizer.mean(torch.from_numpy(2 * image - 1))
    found: npt.NDArray[np.float32] = (tiny_mar.LATENT_SCALE * mean).numpy()
    return found


def _pixels() -> npt.NDArray[np.bool_]:
    pixels = np.zeros((3, 16, 16), np.bool_)
    pixels[:, 3:5, 8] = True  # cells are 4×4 pixels: the first two rows of the third column
    return pixels


@pytest.mark.parametrize(
    "settings", [{"iterations": 3}, {"guidance": 1}, {"preset": "fast", "iterations": 2}]
)
def test_a_picture_is_as_good_as_its_latents(
    generator: Generator, image: Any, latents: Any, settings: dict[str, Any]
) -> None:
    part = generator.family.variation(generator.model, 0.5, SEEDS)
    found, expected = (
        generator.run(
            generator.request(class_ids=CLASSES, seed=IMAGES, edit={**what, **part}, **settings)
        )
        for what in ({"image": image}, {"latents": latents})
    )
    largest = np.abs(expected.trace.final).max()  # of random weights that is far from 1
    np.testing.assert_allclose(found.trace.final, expected.trace.final, atol=1e-5 * largest)
    assert np.abs(found.images.astype(int) - expected.images).max() <= 1
    own = latents_of(generator.model.info, found.trace.final)
    positions = part["given"].repeat(2, 1).repeat(2, 2)[:, None]  # of tokens that stay
    assert part["given"].sum() == 24
    np.testing.assert_allclose(
        np.where(positions, own, 0), np.where(positions, latents, 0), atol=1e-5
    )
    assert found.timings_ms.keys() - expected.timings_ms.keys() == {ENCODER}


def test_a_region_has_no_more_iterations_than_tokens(generator: Generator, image: Any) -> None:
    """The default is more; it is what was asked for that is refused."""
    part = generator.family.region(generator.model, _pixels())
    assert not part["given"][:, :2, 2].any()
    assert part["given"].sum() == 3 * 14
    edit = {"image": image, **part}
    request = generator.request(class_ids=CLASSES, edit=edit)
    assert request.counts == (1, 1)
    assert generator.run(request).images.shape == (3, 16, 16, 3)
    with pytest.raises(RequestError, match="iterations must be 1 … 2"):
        generator.request(class_ids=CLASSES, edit=edit, iterations=3)


def test_all_anew_is_a_generation(generator: Generator, image: Any) -> None:
    part = generator.family.variation(generator.model, 1, SEEDS)
    request = generator.request(class_ids=CLASSES, seed=7, edit={"image": image, **part})
    made = generator.generate(class_ids=CLASSES, seed=7)
    np.testing.assert_array_equal(generator.run(request).images, made.images)


def test_other_numbers_of_tokens_cannot_be_edited_together(
    generator: Generator, image: Any
) -> None:
    pixels = _pixels()
    pixels[1] = False
    part = generator.family.region(generator.model, pixels)
    with pytest.raises(RequestError, match="as many tokens of every image have to stay"):
        generator.request(class_ids=CLASSES, edit={"image": image, **part})


def test_the_golden_rollouts_judge_the_encoder(generator: Generator) -> None:
    report = verify.verify(generator)
    assert report.passed
    (check,) = (each for each in report.checks if each.graph == ENCODER)
    assert (check.rollout, check.metric) == (ENCODER, "latent_error")


def test_profiles_know_the_encoder(generator: Generator) -> None:
    for batch in (1, 5):
        keys = list(generator.family.corners(generator.model, batch))
        programs = (generator.family.program(generator.model, key) for key in keys)
        rows = {
            shapes["image"][0]
            for each in programs
            for run, shapes in each.runs()
            if run.graph == ENCODER
        }
        assert rows == {batch}
