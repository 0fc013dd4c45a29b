"""Which cells of a grid some pixels touch, and which tokens a variation decides anew."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fewstep.runtime.condition import ClassCondition
from fewstep.runtime.editing import ENCODER, changed, checked_image, drawn, touched
from fewstep.runtime.errors import RequestError
from fewstep.runtime.families.masked.model import MaskedModel

SEEDS = np.array([0, 1, 2**64 - 1], np.uint64)


def _model(size: tuple[int, int], *, editable: bool = True) -> MaskedModel:
    return MaskedModel(
        grid=(2, 2),
        codebook_size=4,
        mask_token=4,
        feature_width=8,
        image_size=size,
        condition=ClassCondition(num_classes=2, unconditional_id=None),
        editable=editable,
    )


@given(
    pixels=hnp.arrays(np.bool_, hnp.array_shapes(min_dims=3, max_dims=3, max_side=12)),
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
)
def test_a_cell_is_touched_by_any_pixel_that_lies_in_it(
    pixels: npt.NDArray[np.bool_], rows: int, columns: int
) -> None:
    """Each pixel and cell is enlarged to whole numbers of points, and points are compared."""
    _, height, width = pixels.shape
    points = pixels.repeat(rows, 1).repeat(columns, 2)  # height·rows × width·columns
    expected = points.reshape(len(pixels), rows, height, columns, width).any((2, 4))
    found = touched(_model((height, width)), pixels, rows, columns)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "pixels",
    [np.ones((1, 8, 6), np.bool_), np.ones((6, 8), np.bool_), np.ones((1, 6, 8), np.uint8)],
)
def test_pixels_of_another_shape_or_kind_are_refused(pixels: Any) -> None:
    with pytest.raises(RequestError, match=r"true or false \[images, 6, 8\], got "):
        touched(_model((6, 8)), pixels, 2, 2)


@given(strength=st.floats(0, 1, exclude_min=True), tokens=st.integers(1, 500))
def test_a_variation_decides_its_part_anew_and_something_at_least(
    strength: float, tokens: int
) -> None:
    count = changed(strength, tokens)
    assert 1 <= count <= tokens
    assert abs(count - strength * tokens) <= 0.5 or count == 1
    chosen = drawn(count, tokens, SEEDS)
    assert chosen.shape == (3, tokens)
    assert (chosen.sum(1) == count).all()


@pytest.mark.parametrize("strength", [0, -0.5, 1.01, float("nan"), float("inf"), "half"])
def test_another_strength_is_refused(strength: Any) -> None:
    with pytest.raises(RequestError, match="strength must be above 0 and at most 1, got"):
        changed(strength, 16)


def test_seeds_decide_which_tokens_and_no_other_image_does() -> None:
    chosen = drawn(8, 64, SEEDS)
    assert len({row.tobytes() for row in chosen}) == 3
    np.testing.assert_array_equal(drawn(8, 64, SEEDS[1:]), chosen[1:])


def test_every_token_is_as_likely_as_any_other() -> None:
    often = drawn(4, 16, np.arange(4000, dtype=np.uint64)).mean(0)
    assert np.abs(often - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 4000)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((2, 3, 6, 9), np.float32), r"must be floats \[2, 3, 6, 8\] .* \[2, 3, 6, 9\]"),
        (np.zeros((2, 3, 6, 8), np.uint8), "must be floats .* got uint8"),
        ([[1.0], [1.0, 2.0]], "must be floats .* got object"),
        (np.full((2, 3, 6, 8), 1.001), "values outside"),
        (np.full((2, 3, 6, 8), -0.001), "values outside"),
        (np.full((2, 3, 6, 8), np.nan), "NaN"),
    ],
)
def test_pictures_that_do_not_fit_are_refused(image: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        checked_image(_model((6, 8)), 2, image)


def test_a_bundle_without_encoder_says_how_to_get_one() -> None:
    plain = _model((6, 8), editable=False)
    assert not any(graph == ENCODER for graph, _ in plain.tensor_shapes())
    with pytest.raises(RequestError, match="export it again with --encoder"):
        checked_image(plain, 1, np.zeros((1, 3, 6, 8), np.float32))
