"""Steps of a diffusion against their formula in float64, and against the official two steps.

Covered: with and without guidance and noise, variances between and outside of both bounds, any row
of the coefficients; that both halves become the conditional one's, and that nothing else is read;
that noise depends on seed, position and timestep alone, and is scaled by the temperature; numbers
that are not finite; with the coefficients of MAR every step of a spacing, and its exact end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.runtime.kernels import reference

from fewstep.runtime.families.mar.diffusion import coefficients, timesteps
from fewstep.runtime.kernels.cpu import KERNELS
from fewstep.runtime.kernels.diffusion_step import COEFFICIENTS, diffusion_step

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """What a step is given: x ``[P, K, C]``, denoised ``[P, K, 2·C]``, positions ``[K, P]``."""

    x: Floats
    denoised: Floats
    seeds: npt.NDArray[np.uint64]
    positions: npt.NDArray[np.int32]
    table: Floats
    counter: int = 0
    timestep: int = 0
    guidance: float = 1.0
    temperature: float = 1.0
    flag: int = 0

    def run(self) -> tuple[Floats, int]:
        """x after the step, and the flag."""
        x, error = self.x.copy(), np.array([self.flag], np.int32)
        diffusion_step(
            denoised=self.denoised,
            coefficients=self.table,
            counter=np.array([self.counter], np.int32),
            timestep=np.array([self.timestep], np.int32),
            seeds=self.seeds,
            positions=self.positions,
            parameters=np.array([self.guidance, self.temperature], np.float32),
            x=x,
            error=error,
        )
        return x, int(error[0])

    def terms(self) -> tuple[Doubles, Doubles, Doubles, Doubles]:
        """Conditional x, what is taken for noise, logarithm of the deviation, and new noise, in
        float64, all ``[B, K, C]``."""
        batch, channels = len(self.seeds), self.x.shape[2]
        wide = self.denoised.astype(np.float64)
        epsilon = wide[:batch, :, :channels]
        if len(wide) > batch:
            other = wide[batch:, :, :channels]
            epsilon = other + float(np.float32(self.guidance)) * (epsilon - other)
        low, high = self.table[self.counter, 2:4].astype(np.float64)
        part = (wide[:batch, :, channels:] + 1) / 2
        places = self.positions[:, :batch].T
        drawn = reference.normals(self.seeds[:, None], places, self.timestep + 1, channels)
        logarithm = part * high + (1 - part) * low
        return self.x[:batch].astype(np.float64), epsilon, logarithm, drawn

    def expected(self) -> tuple[Doubles, Doubles]:
        """x of one half after the step, and how far from it float32 may be."""
        a, b, low, high, noisy = self.table[self.counter].astype(np.float64)
        x, epsilon, logarithm, drawn = self.terms()
        temperature = float(np.float32(self.temperature))
        noise = noisy * np.exp(np.minimum(logarithm, 87)) * drawn * temperature
        sizes = np.abs(self.denoised.astype(np.float64))
        halves = sizes[:, :, : x.shape[2]].reshape(-1, *x.shape).sum(0)
        part = sizes[: len(x), :, x.shape[2] :] + 1
        size = np.abs(a * x) + abs(b) * halves * (1 + abs(self.guidance))
        size += np.abs(noise) * (1 + part * (abs(low) + abs(high)))
        return a * x - b * epsilon + noise, size


def _case(
    batch: int = 2, halves: int = 2, count: int = 3, channels: int = 6, seed: int = 0
) -> Case:
    """Any numbers of usual sizes; variances are outside of their bounds as well."""
    rng = np.random.default_rng(seed)
    rows = halves * batch
    positions = np.stack([rng.permutation(256)[:count] for _ in range(batch)], 1)
    x = rng.standard_normal((batch, count, channels))
    table = rng.standard_normal((4, COEFFICIENTS))
    table[:, 4] = 1
    return Case(
        x=np.tile(x, (halves, 1, 1)).astype(np.float32),
        denoised=(2 * rng.standard_normal((rows, count, 2 * channels))).astype(np.float32),
        seeds=rng.integers(0, 2**64, batch, np.uint64),
        positions=np.tile(positions, (1, halves)).astype(np.int32),
        table=table.astype(np.float32),
    )


def _quiet(case: Case) -> Case:
    """The same without noise, as in the last step."""
    table = case.table.copy()
    table[:, 4] = 0
    return replace(case, table=table)


def _assert_near(case: Case) -> None:
    (found, error), (expected, size) = case.run(), case.expected()
    assert error == 0
    for half in np.split(found.astype(np.float64), len(found) // len(expected)):
        assert (np.abs(half - expected) <= 4e-7 * size).all()


# --- the formula


@given(
    batch=st.integers(1, 3),
    halves=st.sampled_from([1, 2]),
    count=st.integers(1, 5),
    channels=st.integers(1, 18),
    seed=st.integers(0, 2**32),
    counter=st.integers(0, 3),
    timestep=st.integers(0, 999),
    guidance=st.floats(0, 8),
    temperature=st.floats(0, 2),
    noisy=st.booleans(),
)
def test_a_step_is_its_formula(
    batch: int,
    halves: int,
    count: int,
    channels: int,
    seed: int,
    counter: int,
    timestep: int,
    guidance: float,
    temperature: float,
    noisy: bool,
) -> None:
    case = _case(batch, halves, count, channels, seed)
    case = replace(case, counter=counter, timestep=timestep, guidance=guidance)
    _assert_near(replace(case if noisy else _quiet(case), temperature=temperature))


@pytest.mark.parametrize("value", [-300.0, -30.0, -1.0, 0.0, 1.0, 30.0, 300.0])
def test_variances_outside_of_their_bounds_go_on_in_their_line(value: float) -> None:
    """Down to none and up to e⁸⁷."""
    case = _case(seed=3)
    case.denoised[:, :, 6:] = value
    case.table[0] = (0.5, 0.25, -1.5, -1, 1)
    _assert_near(case)
    case.table[0, 2:4] = (1, 2)
    found, error = case.run()
    assert error == 0
    if value == 300:  # an exponent of 151.5
        quiet, _ = _quiet(case).run()
        drawn = reference.normals(case.seeds[:, None], case.positions[:, :2].T, 1, 6)
        np.testing.assert_allclose((found - quiet)[:2], np.exp(87) * drawn, rtol=1e-5)


def test_without_noise_nothing_is_read_of_it() -> None:
    case = _quiet(_case())
    found, _ = case.run()
    case.denoised[:, :, 6:] = np.nan
    case.table[:, 2:4] = np.nan
    other = replace(case, seeds=case.seeds + np.uint64(1), positions=case.positions + 1)
    again, error = other.run()
    np.testing.assert_array_equal(again, found)
    assert error == 0


def test_both_halves_become_what_the_conditional_one_says() -> None:
    """Of the other only its noise is read: neither its x nor its variance."""
    case = replace(_case(), guidance=3.0)
    found, _ = case.run()
    np.testing.assert_array_equal(found[:2], found[2:])
    case.x[2:] = np.nan
    case.denoised[2:, :, 6:] = np.nan
    again, error = case.run()
    np.testing.assert_array_equal(again, found)
    assert error == 0


@pytest.mark.parametrize(("guidance", "half"), [(0.0, 1), (1.0, 0)])
def test_scales_0_and_1_take_one_half(guidance: float, half: int) -> None:
    case = _case()
    denoised = case.denoised[:2].copy()
    denoised[:, :, :6] = case.denoised[2 * half : 2 * half + 2, :, :6]
    alone = replace(case, x=case.x[:2], denoised=denoised, positions=case.positions[:, :2].copy())
    guided, _ = replace(case, guidance=guidance).run()
    np.testing.assert_allclose(guided[:2], alone.run()[0], rtol=1e-5, atol=1e-5)


# --- noise


def _noise(case: Case) -> Floats:
    """What a step adds to nothing, with a deviation of 1."""
    case.table[:] = (0, 0, 0, 0, 1)
    return case.run()[0]


def test_noise_depends_on_seed_position_and_timestep_alone() -> None:
    """Not on x, what is denoised, the counter, the batch or the place in it."""
    case = replace(_case(halves=1), timestep=41)
    noise = _noise(case)
    np.testing.assert_allclose(
        noise, reference.normals(case.seeds[:, None], case.positions.T, 42, 6), rtol=1e-6
    )
    other = replace(
        _case(halves=1, seed=1),
        seeds=case.seeds[::-1].copy(),
        positions=case.positions[::-1, ::-1].copy(),
        timestep=41,
        counter=2,
    )
    np.testing.assert_array_equal(_noise(other), noise[::-1, ::-1])
    alone = replace(_case(1, 1, 1, 6), seeds=case.seeds[1:], timestep=41)
    alone = replace(alone, positions=case.positions[2:, 1:].copy())
    np.testing.assert_array_equal(_noise(alone)[0, 0], noise[1, 2])


def test_every_seed_position_and_timestep_has_noise_of_its_own() -> None:
    case = replace(_case(halves=1, channels=16), timestep=7)
    variants = [
        case,
        replace(case, timestep=8),
        replace(case, seeds=case.seeds + np.uint64(1)),
        replace(case, seeds=case.seeds ^ np.uint64(1 << 63)),
        replace(case, positions=case.positions + 1000),
    ]
    tokens = np.concatenate([_noise(each).reshape(-1, 16) for each in variants])
    assert len(np.unique(tokens, axis=0)) == len(tokens) == 5 * 6


@pytest.mark.parametrize("temperature", [0.0, 0.5, 2.0])
def test_the_temperature_scales_noise(temperature: float) -> None:
    case = _case(halves=1)
    once, scaled = _noise(case), _noise(replace(case, temperature=temperature))
    np.testing.assert_array_equal(scaled, np.float32(temperature) * once)


# --- what is not finite


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("x", (1, 2, 5)),
        ("denoised", (1, 2, 5)),
        ("denoised", (3, 0, 0)),
        ("denoised", (1, 0, 6)),
        ("denoised", (0, 2, 11)),
    ],
    ids=["x", "conditional", "unconditional", "variance", "another variance"],
)
def test_a_number_that_is_not_finite_sets_the_flag(
    name: str, place: tuple[int, int, int], value: float
) -> None:
    """And stays, also one of the variance, whose smallest and largest would be finite."""
    case = replace(_case(), guidance=2.0)
    getattr(case, name)[place] = value
    found, error = case.run()
    assert error == 1
    image, k, channel = place[0] % 2, place[1], place[2] % 6
    finite = np.isfinite(found)
    assert not finite[[image, image + 2], k, channel].any()
    assert np.count_nonzero(~finite) == 2


def test_an_overflow_sets_the_flag() -> None:
    case = _quiet(_case())
    case.x[:] = case.denoised[:] = np.finfo(np.float32).max
    case.table[:, :2] = (1, -1)
    assert case.run()[1] == 1


def test_the_flag_is_never_taken_down() -> None:
    assert replace(_case(), flag=1).run()[1] == 1


def test_is_launched_by_its_name() -> None:
    assert KERNELS["diffusion_step"] is diffusion_step


# --- the official sampler


def _alphas(taken: tuple[int, ...]) -> Doubles:
    """ᾱ of the timesteps that are taken, the largest first: ``betas_for_alpha_bar`` of MAR, whose
    product telescopes, but for the last beta."""
    bar = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    betas = np.minimum(1 - bar[1:] / bar[:-1], 0.999)
    return np.asarray(np.exp(np.cumsum(np.log1p(-betas)))[list(taken)])


def _official(case: Case, alpha: float, before: float, least: float) -> Doubles:
    """``p_sample`` of ``gaussian_diffusion.py``: x₀ first, then the mean of the posterior.

    Args:
        case: what the step is given.
        alpha: ᾱ of the timestep.
        before: ᾱ of the one before, 1 of none.
        least: the smallest variance of the step.
    """
    x, epsilon, _, drawn = case.terms()
    beta = 1 - alpha / before
    start = np.sqrt(1 / alpha) * x - np.sqrt(1 / alpha - 1) * epsilon
    mean = beta * np.sqrt(before) / (1 - alpha) * start
    mean += (1 - before) * np.sqrt(1 - beta) / (1 - alpha) * x
    if before == 1:
        return np.asarray(mean)
    part = (case.denoised[: len(x), :, x.shape[2] :].astype(np.float64) + 1) / 2
    variance = np.exp(part * np.log(beta) + (1 - part) * np.log(least))
    return np.asarray(mean + np.sqrt(variance) * drawn * case.temperature)


@pytest.mark.parametrize("spacing", ["2", "7", "50", "100", "ddim25", "10+15", "1000"])
@pytest.mark.parametrize("largest", [950, 999])
def test_every_step_is_the_official_one(spacing: str, largest: int) -> None:
    taken = timesteps(spacing, largest)
    alphas = np.append(_alphas(taken), 1)
    betas = 1 - alphas[:-1] / alphas[1:]
    least = betas * (1 - alphas[1:]) / (1 - alphas[:-1])
    least[-1] = least[-2]  # not that of the last step, which is 0
    table = coefficients(taken)
    assert table.shape == (len(taken), COEFFICIENTS)
    for counter in {*range(0, len(taken), 17), len(taken) - 2, len(taken) - 1}:
        case = replace(_case(seed=counter), table=table, counter=counter, guidance=2.9)
        case = replace(case, timestep=taken[counter], temperature=0.5)
        np.clip(case.denoised[:, :, 6:], -1, 1, out=case.denoised[:, :, 6:])
        expected = _official(case, alphas[counter], alphas[counter + 1], least[counter])
        found, error = case.run()
        assert error == 0
        assert (np.abs(found[:2] - expected) <= 4e-7 * case.expected()[1]).all()


@pytest.mark.parametrize("spacing", ["1", "2", "25", "ddim50"])
def test_the_last_step_ends_where_noise_that_is_known_began(spacing: str) -> None:
    """x = √ᾱ·x₀ + √(1 − ᾱ)·ε → x₀."""
    taken = timesteps(spacing)
    last, alpha = len(taken) - 1, _alphas(taken)[-1]
    case = replace(_case(halves=1), table=coefficients(taken), counter=last, timestep=taken[last])
    start = case.x.astype(np.float64)
    noisy = np.sqrt(alpha) * start + np.sqrt(1 - alpha) * case.denoised[:, :, :6]
    found, _ = replace(case, x=noisy.astype(np.float32)).run()
    np.testing.assert_allclose(found, start, rtol=1e-6, atol=1e-6 / math.sqrt(alpha))
