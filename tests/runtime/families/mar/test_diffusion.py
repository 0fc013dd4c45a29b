"""Which timesteps a diffusion takes, and the coefficients of its steps.

Covered: spacings against guided-diffusion's, the cap and the annealing of DiSA, coefficients
against the official formulas in float64, and what cannot be a spacing.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.runtime.families.mar.gaussian import Spaced, cosine_betas, space_timesteps

from fewstep.runtime.families.mar.diffusion import ANNEALED_END, TIMESTEPS, coefficients, timesteps
from fewstep.runtime.families.mar.settings import MarSettings
from fewstep.runtime.settings import settings_of

_STRIDES = ("ddim2", "ddim3", "ddim5", "ddim10", "ddim20", "ddim25", "ddim50", "ddim100", "ddim500")
_SECTIONS = ("10+15", "10+10+10", "1+1+1", "7+100+300", "250+250+250+250", "1+2+3+4+5+6+7", "1000")


def test_evenly_spaced_timesteps_are_guided_diffusions() -> None:
    for count in range(1, TIMESTEPS + 1):
        found = timesteps(str(count))
        assert [*found] == sorted(space_timesteps(str(count)), reverse=True)
        assert len(found) == count
        assert found[-1] == 0
        assert count == 1 or found[0] == 999


@pytest.mark.parametrize("spacing", [*_STRIDES, *_SECTIONS, "ddim1000"])
@pytest.mark.parametrize("largest", [999, 950, 100, 0])
def test_strides_and_sections_are_guided_diffusions(spacing: str, largest: int) -> None:
    wanted = space_timesteps(spacing.replace("+", ","), largest)
    assert [*timesteps(spacing, largest)] == sorted(wanted, reverse=True)


@given(sections=st.lists(st.integers(1, 90), min_size=1, max_size=11))
def test_any_sections_are_guided_diffusions(sections: list[int]) -> None:
    wanted = space_timesteps(",".join(map(str, sections)))
    assert [*timesteps("+".join(map(str, sections)))] == sorted(wanted, reverse=True)


def test_known_timesteps() -> None:
    assert timesteps("5") == (999, 749, 500, 250, 0)  # round(749.25), round(499.5), round(249.75)
    assert timesteps("ddim4") == (750, 500, 250, 0)
    assert timesteps("2+3") == (999, 750, 500, 499, 0)  # round(249.5) is even
    assert timesteps("4", 950) == (950, 666, 333, 0)
    assert timesteps("5", 100) == (100, 0)
    assert timesteps("1000") == tuple(range(999, -1, -1))


@pytest.mark.parametrize(("nominal", "taken"), [(50, 48), (100, 96), (22, 21), (21, 21), (5, 5)])
def test_the_cap_merges_what_lies_above(nominal: int, taken: int) -> None:
    found = timesteps(str(nominal), ANNEALED_END)
    assert len(found) == taken
    assert found[0] == 950


def test_disa_takes_1681_steps_of_the_head() -> None:
    settings = settings_of(MarSettings(), {"diffusion_steps": "50:5"})
    spacings = settings.spacings(64)
    assert settings.largest_timestep == ANNEALED_END
    assert [*map(int, spacings)] == [5 + int((63 - step) / 63 * 45) for step in range(64)]
    assert sum(len(timesteps(each, 950)) for each in spacings) == 1681
    assert sum(map(int, spacings)) == 1733


@pytest.mark.parametrize(
    "spacing", ["1", "2", "3", "5", "25", "100", "1000", "ddim25", "ddim50", "10+15", "1+1+1"]
)
@pytest.mark.parametrize("largest", [999, 950, 300])
def test_coefficients_are_those_of_the_official_formulas(spacing: str, largest: int) -> None:
    taken = timesteps(spacing, largest)
    table = coefficients(taken)
    assert table.dtype == np.float32
    assert table.shape == (len(taken), 5)
    official = Spaced(taken)
    assert official.timestep_map == [*taken[::-1]]
    x, eps = torch.tensor([[0.7, -2.0]]).double(), torch.tensor([[0.3, 1.5]]).double()
    for row, index in zip(table, reversed(range(len(taken))), strict=True):
        a, b, low, high, noisy = map(float, row)
        for values, deviation in ((-1.0, low), (1.0, high), (0.0, (low + high) / 2)):
            out = torch.cat([eps, torch.full((1, 2), values).double()], 1)
            mean, log_variance = official.mean_and_log_variance(index, x, out)
            scale = abs(a) * x.abs() + abs(b) * eps.abs()
            assert float(((a * x - b * eps - mean).abs() / scale).max()) < 3e-7
            assert deviation == pytest.approx(0.5 * float(log_variance[0, 0]), rel=2e-7)
        assert noisy == (index > 0)


def test_the_last_step_gives_the_token_itself() -> None:
    """At the least timestep the mean is x₀: c₁ is 1 and c₂ is 0."""
    beta = cosine_betas()[0]
    for spacing in ("1", "10", "1000"):
        a, b, _, _, noisy = coefficients(timesteps(spacing))[-1]
        assert a == pytest.approx(1 / math.sqrt(1 - beta), rel=1e-6)
        assert b == pytest.approx(math.sqrt(1 / (1 - beta) - 1), rel=1e-5)
        assert noisy == 0


def test_coefficients_of_all_timesteps_are_finite_and_variances_grow() -> None:
    for count in range(1, 1001, 7):
        table = coefficients(timesteps(str(count)))
        assert np.isfinite(table).all()
        assert (table[:, :2] > 0).all()
        if count > 1:  # the last has no noise, and low is that of the one before
            assert (table[:-1, 2] <= table[:-1, 3]).all()


@pytest.mark.parametrize(
    ("spacing", "words"),
    [
        ("0", "must be 1 … 1,000 timesteps, got '0'"),
        ("1001", "must be 1 … 1,000 timesteps, got '1001'"),
        ("501+5", "must be 1 … 500 timesteps, got '501.5'"),
        ("5+0", "must be 1 … 500 timesteps"),
        ("5+", "a number, ddimN or numbers with . between them, got '5.'"),
        ("", "a number, ddimN or numbers"),
        ("-5", "a number, ddimN or numbers"),
        ("5.0", "a number, ddimN or numbers"),
        ("٥", "a number, ddimN or numbers"),
        ("ddim", "no stride takes so many of 1,000 timesteps, got 'ddim'"),
        ("ddim1", "no stride takes so many"),
        ("ddim60", "no stride takes so many"),
        ("ddim-5", "no stride takes so many"),
        ("ddim5+5", "no stride takes so many"),
        ("linear", "a number, ddimN or numbers"),
    ],
)
def test_what_is_no_spacing_is_said(spacing: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as raised:
        timesteps(spacing)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("count", [60, 99, 501, 999])
def test_guided_diffusion_has_none_of_these_strides_either(count: int) -> None:
    for make in (timesteps, space_timesteps):
        with pytest.raises(ValueError, match="stride"):
            make(f"ddim{count}")
