"""Normal numbers from Philox against Box and Muller in float64.

Covered: sine and cosine of every uniform, and of both ends; numbers of any seed, position, step and
index, and the largest; moments and the distribution of many; that channels, positions, steps and
seeds are independent; that no counter is one of the other random numbers.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.runtime.kernels import reference

from fewstep.runtime.kernels.compiled import helper
from fewstep.runtime.kernels.normal import cosine_and_sine, normals, pair
from fewstep.runtime.kernels.philox import uniforms

Doubles = npt.NDArray[np.float64]
_WORD = st.integers(0, 2**32 - 1)
_SEED = st.integers(0, 2**64 - 1)
_PART = 2**21  # uniforms at once


@helper
def _turn(turns: npt.NDArray[np.float32], found: npt.NDArray[np.float32]) -> None:
    for at in range(len(turns)):
        found[0, at], found[1, at] = cosine_and_sine(turns[at])


@helper
def _draw(seed: int, step: int, found: npt.NDArray[np.float32]) -> None:
    for position in range(found.shape[0]):
        for index in range(found.shape[1]):
            four = normals(np.uint64(seed), position, step, index)
            for number in range(4):
                found[position, index, number] = four[number]


def _drawn(seed: int, step: int, tokens: int, channels: int) -> Doubles:
    """Numbers of the first positions, ``[tokens, channels]``."""
    found = np.empty((tokens, channels // 4, 4), np.float32)
    _draw(seed, step, found)
    return found.reshape(tokens, channels).astype(np.float64)


# --- sine and cosine


@pytest.mark.parametrize("part", range(2**23 // _PART))
def test_sine_and_cosine_of_every_uniform(part: int) -> None:
    """Also relative to themselves, where they vanish."""
    words = (np.arange(_PART, dtype=np.uint32) + part * _PART).astype(np.float64)
    exact = (words + 0.5) / 2**23
    turns, found = exact.astype(np.float32), np.empty((2, _PART), np.float32)
    assert (turns == exact).all()
    _turn(turns, found)
    expected = np.stack([np.cos(2 * np.pi * exact), np.sin(2 * np.pi * exact)])
    np.testing.assert_allclose(found, expected, rtol=2e-7, atol=0)
    assert np.abs(found).max() <= 1


@pytest.mark.parametrize(
    ("turns", "cosine", "sine"),
    [(0, 1, 0), (0.25, 0, 1), (0.5, -1, 0), (0.75, 0, -1), (1, 1, 0)],
)
def test_quarters_of_a_turn_are_exact(turns: float, cosine: float, sine: float) -> None:
    assert [float(each) for each in cosine_and_sine(np.float32(turns))] == [cosine, sine]


# --- each number


@given(first=_WORD, second=_WORD)
def test_two_words_give_two_numbers_at_right_angles(first: int, second: int) -> None:
    found = np.array(pair(np.uint64(first), np.uint64(second)), np.float64)
    u, v = (float(reference.uniform(np.array(word, np.uint64))) for word in (first, second))
    radius, angle = math.sqrt(-2 * math.log(u)), 2 * math.pi * v
    expected = radius * math.cos(angle), radius * math.sin(angle)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@given(
    seed=_SEED,
    position=st.integers(0, 2**16),
    step=st.integers(0, 1000),
    index=st.integers(0, 63),
)
def test_numbers_are_those_of_philox_and_float64(
    seed: int, position: int, step: int, index: int
) -> None:
    found = normals(np.uint64(seed), position, step, index)
    expected = reference.normals(seed, position, step, 4 * index + 4)[-4:]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_extreme_words_give_finite_numbers() -> None:
    """The smallest uniform gives the largest number, the documented 5.77."""
    largest = math.sqrt(48 * math.log(2))
    assert largest < 5.77
    for first, second in itertools.product((0, 2**32 - 1), repeat=2):
        radius = np.hypot(*np.array(pair(np.uint64(first), np.uint64(second)), np.float64))
        expected = largest if first == 0 else math.sqrt(-2 * math.log1p(-(2.0**-24)))
        assert radius == pytest.approx(expected, rel=1e-6)


def test_counters_are_no_other_random_numbers() -> None:
    """Of position and step a uniform is drawn for a token as well."""
    seed, position, step = 7, 3, 2
    words = reference.philox(seed, position, step, 0, 0)
    own = reference.philox(seed, position, step, 0, 1)
    token = uniforms(np.uint64(seed), step, position)
    assert [float(each) for each in token] == [float(reference.uniform(w)) for w in words[:2]]
    assert not {int(word) for word in words} & {int(word) for word in own}


# --- many numbers


def test_moments_are_those_of_a_normal_distribution() -> None:
    """Within five standard deviations of what the mean of n powers of normal numbers has."""
    numbers = _drawn(seed=2024, step=5, tokens=16_384, channels=64).ravel()
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        error = 5 * math.sqrt(variance / numbers.size)
        assert np.mean(numbers**power) == pytest.approx(mean, abs=error)


def test_the_distribution_is_normal() -> None:
    """After Kolmogorov and Smirnov: the distance to the distribution that one sample of a million
    exceeds is √(ln(2·10⁶) / 2n)."""
    numbers = np.sort(_drawn(seed=99, step=0, tokens=8_192, channels=16).ravel())
    below = np.array([math.erfc(-each / math.sqrt(2)) / 2 for each in numbers.tolist()])
    ranks = np.arange(numbers.size + 1) / numbers.size
    distance = max(np.abs(below - ranks[1:]).max(), np.abs(below - ranks[:-1]).max())
    assert distance < math.sqrt(math.log(2e6) / (2 * numbers.size))


def test_channels_are_independent() -> None:
    """Numbers and their squares: both of a pair have one radius."""
    numbers = _drawn(seed=1, step=1, tokens=32_768, channels=16)
    _assert_uncorrelated(numbers)
    _assert_uncorrelated(numbers**2)


def test_seeds_steps_and_positions_are_independent() -> None:
    own = _drawn(seed=5, step=8, tokens=8_193, channels=4)
    others = [
        own[1:],
        *(_drawn(seed, 8, 8_192, 4) for seed in (6, 5 + 2**32)),
        *(_drawn(5, step, 8_192, 4) for step in (7, 9)),
    ]
    _assert_uncorrelated(np.stack([each.ravel() for each in (own[:-1], *others)], 1))


def _assert_uncorrelated(columns: Doubles) -> None:
    """Within 5.5 standard deviations of a correlation of independent columns."""
    found = np.corrcoef(columns.T) - np.eye(columns.shape[1])
    assert np.abs(found).max() < 5.5 / math.sqrt(len(columns))
