"""The kernels' own exponential against float64, over its whole range."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fewstep.runtime.kernels.exponential import exponential


def test_relative_error_is_that_of_its_documentation() -> None:
    arguments = np.concatenate(
        [
            np.linspace(-86.99, 87, 40_001),
            -np.logspace(-30, 1, 5_001),
            # Where the reduction changes its integer, both sides of it.
            *((np.arange(-125, 125) + 0.5) * math.log(2) + shift for shift in (-1e-5, 0, 1e-5)),
        ]
    ).astype(np.float32)
    arguments = arguments[(arguments > -87) & (arguments <= 87)]
    found = np.array([exponential(x) for x in arguments], np.float64)
    expected = np.exp(arguments.astype(np.float64))
    assert (np.abs(found / expected - 1) < 1.2e-7).all()


@pytest.mark.parametrize(
    ("argument", "expected"),
    [(0.0, 1.0), (-0.0, 1.0), (-87.0, 0.0), (-1e30, 0.0), (-math.inf, 0.0)],
)
def test_ends_are_exact(argument: float, expected: float) -> None:
    assert float(exponential(np.float32(argument))) == expected


def test_rises_by_no_more_than_a_rounding_as_its_argument_falls() -> None:
    arguments = np.linspace(-3, 0, 30_001, dtype=np.float32)
    values = np.array([exponential(x) for x in arguments], np.float32)
    assert (np.diff(values) >= -np.spacing(values[1:])).all()
