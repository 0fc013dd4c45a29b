"""Edits of pictures by a VAR: encoded in the program, as tokens of all scales that were given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tests import tiny_var

from fewstep.runtime.editing import ENCODER
from fewstep.runtime.errors import RequestError
from fewstep.runtime.generator import Generator

CLASSES, IMAGES = [1, 4, 2], [5, 0, 9]
SEEDS = np.array(IMAGES, np.uint64)


@pytest.fixture(scope="module")
def generator(var_bundle: Path) -> Iterator[Generator]:
    with Generator.open(var_bundle, max_batch=2, threads=1) as made:
        yield made


@pytest.fixture(scope="module")
def image() -> npt.NDArray[np.float32]:
    """Three pictures ``[3, 3, 8, 8]``."""
    return np.random.default_rng(2).random((3, 3, 8, 8), np.float32)


@pytest.fixture(scope="module")
def ids(image: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Their tokens of all scales, by eager PyTorch as the authors write it: ``[3, 30]``."""
    _, vae, _ = tiny_var.models()
    with torch.no_grad():
        maps = vae.img_to_idxBl(torch.from_numpy(2 * image - 1))
    found: npt.NDArray[np.int64] = torch.cat(maps, 1).numpy()
    return found


def _region(generator: Generator) -> dict[str, Any]:
    pixels = np.zeros((3, 8, 8), np.bool_)
    pixels[:, 0, 3] = True
    return generator.family.region(generator.model, pixels)


def test_a_region_touches_cells_of_every_scale(generator: Generator) -> None:
    """Of 3×3 cells a pixel of 8×8 may lie in two: the fourth column ends at 4/8, behind 1/3 and
    before 2/3, and begins at 3/8."""
    (mask, *_) = _region(generator)["mask"]
    touched = [np.flatnonzero(each).tolist() for each in np.split(mask, [1, 5, 14])]
    assert touched == [[0], [0], [1], [1]]
    pixels = np.zeros((1, 8, 8), np.bool_)
    pixels[0, 0, 2] = True  # 2/8 … 3/8, around 1/3
    (mask,) = generator.family.region(generator.model, pixels)["mask"]
    touched = [np.flatnonzero(each).tolist() for each in np.split(mask, [1, 5, 14])]
    assert touched == [[0], [0], [0, 1], [1]]


def test_a_variation_keeps_coarse_scales(generator: Generator) -> None:
    found = {
        part: generator.family.variation(generator.model, part, SEEDS)["mask"]
        for part in (0.1, 0.7, 1)
    }
    assert found[0.1].sum(1).tolist() == [3] * 3
    assert not found[0.1][:, :14].any()
    assert found[0.7].sum(1).tolist() == [21] * 3
    assert found[0.7][:, 14:].all()
    assert not found[0.7][:, :5].any()
    assert len({row.tobytes() for row in found[0.7]}) == 3  # which of 9 is each seed's own
    assert found[1].all()


@pytest.mark.parametrize(
    "settings",
    [{}, {"guidance": 0}, {"schedule": "policy"}, {"scales": 3}, {"guided_scales": 2}]
    + [{"reuse_first": True}],
)
def test_a_picture_is_as_good_as_its_tokens(
    generator: Generator, image: Any, ids: Any, settings: dict[str, Any]
) -> None:
    """In batches of two and one, each with pictures of its own."""
    variation = generator.family.variation(generator.model, 0.7, SEEDS)
    for part in (_region(generator), variation):
        given = np.where(part["mask"], -1, ids)
        found, expected = (
            generator.run(generator.request(class_ids=CLASSES, seed=IMAGES, edit=edit, **settings))
            for edit in ({"image": image, **part}, {"tokens": given})
        )
        np.testing.assert_array_equal(found.trace.tokens, expected.trace.tokens)
        np.testing.assert_array_equal(found.images, expected.images)
        assert found.timings_ms.keys() - expected.timings_ms.keys() == {ENCODER}


def test_all_anew_is_a_generation(generator: Generator, image: Any) -> None:
    part = generator.family.variation(generator.model, 1, SEEDS)
    request = generator.request(class_ids=CLASSES, seed=7, edit={"image": image, **part})
    made = generator.generate(class_ids=CLASSES, seed=7)
    np.testing.assert_array_equal(generator.run(request).images, made.images)


def test_masks_of_another_shape_are_refused(generator: Generator, image: Any) -> None:
    edit = {"image": image, "mask": np.ones((3, 29), np.bool_)}
    with pytest.raises(RequestError, match=r"mask must be integers \[3, 30\]"):
        generator.request(class_ids=CLASSES, edit=edit)
    with pytest.raises(RequestError, match="`image` where `mask` is 0"):
        generator.request(class_ids=CLASSES, edit={"image": image})
