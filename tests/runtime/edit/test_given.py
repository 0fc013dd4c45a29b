"""Pictures and masks as they are given.

Covered: every mode of Pillow, 16 bits, transparency, all EXIF orientations against a turned array,
arrays; masks as images of any mode, arrays, boxes and transparency; and every refusal.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fewstep.runtime.edit.given import mask_of, picture_of
from fewstep.runtime.errors import RequestError

_MODES = (
    *("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"),
    *("I", "I;16", "I;16L", "I;16B", "I;16N"),
)
_TURNS = {  # what a camera that writes the orientation did to the upright picture
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a.swapaxes(0, 1), 2),
    8: lambda a: np.rot90(a, -1),
}


def _colours(height: int, width: int, channels: int = 3) -> npt.NDArray[np.uint8]:
    rng = np.random.default_rng(height * 100 + width)
    return rng.integers(0, 256, (height, width, channels), np.uint8)


@pytest.mark.parametrize("mode", _MODES)
def test_a_picture_may_have_any_mode(mode: str) -> None:
    found = picture_of(Image.new(mode, (3, 2)))
    assert (found.rgb.mode, found.size) == ("RGB", (2, 3))


@pytest.mark.parametrize("mode", ["F", "LAB"])
def test_modes_without_colours_are_refused(mode: str) -> None:
    with pytest.raises(RequestError, match=f"mode {mode}.*convert it to RGB"):
        picture_of(Image.new(mode, (3, 2)))


@pytest.mark.parametrize("mode", ["I;16", "I"])
def test_16_bits_become_8_over_their_whole_range(mode: str) -> None:
    numbers = np.array([[0, 128, 129, 32_768, 65_406, 65_407, 65_535]], np.uint16)
    image = Image.fromarray(numbers) if mode == "I;16" else Image.fromarray(numbers.astype("i4"))
    assert image.mode == mode
    grey = np.asarray(picture_of(image).rgb)[0, :, 0]
    np.testing.assert_array_equal(grey, np.rint(numbers[0] / 257))


def test_grey_is_three_channels() -> None:
    grey = _colours(2, 3, 1)[..., 0]
    for given_as in (grey, Image.fromarray(grey)):
        np.testing.assert_array_equal(
            np.asarray(picture_of(given_as).rgb), grey[..., None].repeat(3, 2)
        )


@pytest.mark.parametrize("orientation", _TURNS)
def test_pictures_and_masks_are_turned_as_their_exif_says(orientation: int) -> None:
    upright = _colours(2, 3)
    stored, file = np.ascontiguousarray(_TURNS[orientation](upright)), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(file, "PNG", exif=exif)
    np.testing.assert_array_equal(np.asarray(picture_of(Image.open(file)).rgb), upright)
    found = mask_of(Image.open(file), (2, 3))
    np.testing.assert_array_equal(found, np.asarray(Image.fromarray(upright).convert("L")) >= 128)


def test_what_is_less_than_half_opaque_is_transparent_and_white_lies_under_it() -> None:
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 3] = 0, 127, 128
    for given_as in (pixels, Image.fromarray(pixels)):
        found = picture_of(given_as)
        assert found.transparent is not None
        assert found.transparent.tolist() == [[True, True, False]]
        np.testing.assert_allclose(np.asarray(found.rgb)[0, :, 0], [255, 128, 127])


def test_a_palette_may_have_a_transparent_colour() -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([200, 0, 0, 0, 0, 50])
    image.info["transparency"] = 1
    found = picture_of(image)
    assert found.transparent is not None
    assert found.transparent.tolist() == [[False, True]]
    assert np.asarray(found.rgb)[0, 0].tolist() == [200, 0, 0]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGB"])
def test_an_opaque_picture_has_nothing_transparent(mode: str) -> None:
    opaque = Image.new("RGBA", (2, 2), (1, 2, 3, 255)).convert(mode)
    assert picture_of(opaque).transparent is None


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((2, 2, 2), np.uint8), r"uint8 \[H, W\].*got uint8 \[2, 2, 2\]"),
        (np.zeros((2, 2), np.float32), r"got float32 \[2, 2\]"),
        (np.zeros((0, 2), np.uint8), r"got uint8 \[0, 2\]"),
        (np.zeros((1, 2, 2, 3), np.uint8), r"got uint8 \[1, 2, 2, 3\]"),
        (np.zeros(3, np.uint8), r"got uint8 \[3\]"),
        ("cat.png", "Pillow's image or an array of uint8, got 'cat.png'"),
        (None, "got None"),
        (Image.new("RGB", (0, 3)), "no pixels: it is 0 × 3"),
    ],
)
def test_what_is_no_picture_is_refused(image: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        picture_of(image)


def test_a_damaged_file_is_one_line() -> None:
    file = io.BytesIO()
    Image.fromarray(_colours(64, 64)).save(file, "PNG")
    with pytest.raises(RequestError, match="image is damaged"):
        picture_of(Image.open(io.BytesIO(file.getvalue()[:-5_000])))


def test_damaged_exif_is_passed_over() -> None:
    file = io.BytesIO()
    Image.fromarray(_colours(8, 8)).save(file, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\0")
    assert picture_of(Image.open(file)).size == (8, 8)


# --- masks


@given(st.integers(1, 5), st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_a_mask_is_the_same_as_array_or_image(height: int, width: int, seed: int) -> None:
    wanted = np.random.default_rng(seed).random((height, width)) < 0.5
    wanted[0, 0] = True
    grey, size = wanted.astype(np.uint8) * 255, wanted.shape
    holes = np.dstack([np.full((height, width, 3), 9, np.uint8), 255 - grey])
    holed = Image.fromarray(holes)
    for mask in (
        *(wanted, wanted.astype(np.int64), grey, wanted.astype(np.uint8)),
        *(Image.fromarray(grey).convert(mode) for mode in ("1", "L", "P", "RGB", "CMYK", "RGBA")),
        *(holed, np.asarray(holed)),
    ):
        np.testing.assert_array_equal(mask_of(mask, size), wanted)


def test_an_image_is_painted_anew_where_it_is_lighter_than_mid_grey() -> None:
    grey = np.array([[0, 3, 127, 128, 255]], np.uint8)
    assert mask_of(Image.fromarray(grey), (1, 5)).tolist() == [[False, False, False, True, True]]


def test_a_box_is_left_top_right_bottom() -> None:
    found = mask_of((1, 0, 3, 2), (3, 4))
    wanted = np.zeros((3, 4), bool)
    wanted[:2, 1:3] = True
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(mask_of([np.int64(1), 0, 3, 2], (3, 4)), wanted)


@pytest.mark.parametrize(
    "box",
    [(0, 0, 5, 1), (-1, 0, 2, 2), (0, 0, 2), (2, 0, 2, 1), (0, 2, 1, 1), (0.0, 0, 1, 1), ()],
)
def test_a_box_lies_inside_the_image(box: Any) -> None:
    with pytest.raises(RequestError, match="a box is .* inside of the image, 4 × 3"):
        mask_of(box, (3, 4))


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (np.ones((4, 3), bool), "as large as the image, 4 × 3, got 3 × 4"),
        (Image.new("L", (3, 4), 255), "as large as the image, 4 × 3, got 3 × 4"),
        (np.zeros((3, 4), bool), "mask covers nothing"),
        (Image.new("L", (4, 3), 1), "mask covers nothing"),
        (np.ones((3, 4), np.float32), r"mask must be uint8.*got float32"),
        ("mask.png", "mask must be Pillow's image"),
    ],
)
def test_masks_that_cannot_be_used_are_refused(mask: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        mask_of(mask, (3, 4))
