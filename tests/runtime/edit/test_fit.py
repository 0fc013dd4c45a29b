"""Pictures of any size at the bundle's, with their masks.

Covered: that each way keeps what it says; that a picture of the size stays bit by bit; masks and
pictures in one geometry, for any sizes; extreme proportions; refusals.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fewstep.runtime.edit.fit import FITS, fit_of
from fewstep.runtime.errors import RequestError

_SIZE = (8, 12)
_sides = st.integers(1, 40)
_ways = st.sampled_from(FITS[:3])


def _noise(height: int, width: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("how", FITS)
def test_a_picture_of_the_size_stays_as_it_is(how: str) -> None:
    pixels = _noise(*_SIZE)
    fit = fit_of(how, _SIZE, _SIZE)
    np.testing.assert_array_equal(fit.image(Image.fromarray(pixels)), pixels)
    mask = pixels[..., 0] > 99
    np.testing.assert_array_equal(fit.mask(mask), mask)
    assert not fit.padded


@given(_ways, _sides, _sides)
def test_every_way_gives_the_size(how: str, height: int, width: int) -> None:
    fit = fit_of(how, (height, width), _SIZE)
    assert fit.image(Image.fromarray(_noise(height, width))).shape == (*_SIZE, 3)
    assert fit.mask(np.ones((height, width), bool)).shape == _SIZE


@given(_ways, _sides, _sides)
def test_masks_and_pictures_have_one_geometry(how: str, height: int, width: int) -> None:
    """A mask that is enlarged is where its own colour is."""
    fit = fit_of(how, (height, width), (80, 120))
    mask = np.random.default_rng(height * 41 + width).random((height, width)) < 0.5
    picture = Image.fromarray(mask.astype(np.uint8) * 255).convert("RGB")
    left, top, right, bottom = fit.target
    nearest = picture.resize((right - left, bottom - top), Image.Resampling.NEAREST, fit.source)
    wanted = np.zeros((80, 120), bool)
    wanted[top:bottom, left:right] = np.asarray(nearest)[..., 0] > 0
    # Where a centre lies on a pixel's edge, either neighbour is the nearest.
    assert (fit.mask(mask) != wanted).mean() < 0.06
    if how != "crop":
        assert fit.mask(np.ones_like(mask)).sum() == (right - left) * (bottom - top)


@given(_ways, _sides, _sides, st.integers(0, 2**32 - 1))
def test_any_pixel_of_a_mask_counts_where_it_shrinks(
    how: str, height: int, width: int, seed: int
) -> None:
    """The pixel that a masked one's centre falls into is in the mask."""
    fit = fit_of(how, (8 * height, 12 * width), _SIZE)
    mask = np.random.default_rng(seed).random((8 * height, 12 * width)) < 0.02
    found = fit.mask(mask)
    left, top, right, bottom = fit.target
    each = [(fit.source[2] - fit.source[0]) / (right - left)]
    each += [(fit.source[3] - fit.source[1]) / (bottom - top)]
    for row, column in np.argwhere(mask):
        x, y = ((at + 0.5 - fit.source[k]) / each[k] for k, at in enumerate((column, row)))
        if min(each) >= 1 and 0 <= x < right - left and 0 <= y < bottom - top:
            assert found[top + int(y), left + int(x)]


def test_a_stroke_as_thin_as_a_pixel_stays_where_a_mask_shrinks() -> None:
    mask = np.zeros((512, 512), bool)
    mask[255:258] = True
    found = fit_of("crop", (512, 512), (32, 32)).mask(mask)
    assert found.sum(0).tolist() == [2] * 32 and found[15:17].all()
    mask[255] = False
    assert fit_of("stretch", (512, 512), (32, 32)).mask(mask)[16].all()
    assert fit_of("stretch", (512, 512), (32, 32)).mask(mask).sum() == 32


def test_crop_takes_the_middle() -> None:
    pixels = _noise(8, 20)
    found = fit_of("crop", (8, 20), _SIZE).image(Image.fromarray(pixels))
    np.testing.assert_array_equal(found, pixels[:, 4:16])
    mask = pixels[..., 0] > 99
    np.testing.assert_array_equal(fit_of("crop", (8, 20), _SIZE).mask(mask), mask[:, 4:16])


def test_pad_repeats_the_edges_around_the_whole_picture() -> None:
    pixels = _noise(4, 12)
    fit = fit_of("pad", (4, 12), _SIZE)
    assert fit.padded
    assert fit.target == (0, 2, 12, 6)
    wanted = pixels[[0, 0, 0, 1, 2, 3, 3, 3]]
    np.testing.assert_array_equal(fit.image(Image.fromarray(pixels)), wanted)
    assert fit.mask(np.ones((4, 12), bool)).sum(1).tolist() == [0, 0, 12, 12, 12, 12, 0, 0]


def test_stretch_takes_the_whole_picture() -> None:
    mask = np.zeros((4, 4), bool)
    mask[0, 0] = True
    found = fit_of("stretch", (4, 4), _SIZE).mask(mask)
    assert found.sum() == 6 and found[:2, :3].all()


def test_none_changes_nothing() -> None:
    fit = fit_of("none", (30, 50), _SIZE)
    assert fit.image(Image.fromarray(_noise(30, 50))).shape == (30, 50, 3)


@pytest.mark.parametrize("how", FITS[:3])
@pytest.mark.parametrize("size", [(1, 100_000), (100_000, 1), (1, 1)])
def test_extreme_proportions_take_no_memory(how: str, size: tuple[int, int]) -> None:
    """A picture of one row is not enlarged as a whole before its middle is taken."""
    fit = fit_of(how, size, (256, 256))
    image = Image.new("RGB", size[::-1], (10, 20, 30))
    assert (fit.image(image) == (10, 20, 30)).all()
    assert fit.mask(np.ones(size, bool)).any()


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(RequestError, match="unknown fit 'cover'; expected one of: crop, none"):
        fit_of("cover", (1, 1), _SIZE)
