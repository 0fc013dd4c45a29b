"""Decoder output to pixels: rounding, clamping and the order of the axes."""

from __future__ import annotations

import numpy as np
import pytest

from fewstep.runtime.kernels.to_pixels import to_pixels


@pytest.mark.parametrize(
    ("value", "pixel"),
    [
        (0.0, 0),
        (1.0, 255),
        (-0.3, 0),
        (1.7, 255),
        (-np.inf, 0),
        (np.inf, 255),
        (100.4 / 255, 100),
        (100.6 / 255, 101),
        (254.6 / 255, 255),
        (0.4 / 255, 0),
    ],
)
def test_values_are_clamped_and_rounded_to_nearest(value: float, pixel: int) -> None:
    pixels = np.full((1, 2, 2, 3), 77, np.uint8)
    to_pixels(
        image=np.full((1, 3, 2, 2), value, np.float32), pixels=pixels, error=np.zeros(1, np.int32)
    )
    assert np.unique(pixels).tolist() == [pixel]


def test_every_pixel_value_survives_the_round_trip() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(3, axis=1)
    pixels = np.zeros((1, 16, 16, 3), np.uint8)
    to_pixels(
        image=values.astype(np.float32) / np.float32(255),
        pixels=pixels,
        error=np.zeros(1, np.int32),
    )
    assert (pixels[..., 0] == values[0, 0]).all()


def test_channels_move_last_and_rows_stay_rows() -> None:
    image = np.zeros((2, 3, 4, 5), np.float32)
    image[1, 2, 3, 0] = 1.0
    pixels = np.zeros((2, 4, 5, 3), np.uint8)
    to_pixels(image=image, pixels=pixels, error=np.zeros(1, np.int32))
    assert np.argwhere(pixels).tolist() == [[1, 3, 0, 2]]


def test_nan_sets_the_error_flag_and_the_range_does_not() -> None:
    image, error = np.array([-5, 0.5, 7], np.float32).reshape(1, 3, 1, 1), np.zeros(1, np.int32)
    to_pixels(image=image, pixels=np.empty((1, 1, 1, 3), np.uint8), error=error)
    assert error[0] == 0
    image[0, 1] = np.nan
    to_pixels(image=image, pixels=np.empty((1, 1, 1, 3), np.uint8), error=error)
    assert error[0] == 1
