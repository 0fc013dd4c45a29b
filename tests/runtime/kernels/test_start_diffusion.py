"""What a diffusion starts from, and how it goes on to the next of its timesteps.

Covered: ``start_diffusion`` against normal numbers in float64, for numbers of channels that are and
are not multiples of four, both halves, and that noise depends on nothing but an image's seed and a
token's position; counter and timestep of any of several diffusions in one table; ``advance``
through all of them, and behind the last timestep.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.runtime.kernels import reference

from fewstep.runtime.kernels.advance import advance
from fewstep.runtime.kernels.cpu import KERNELS
from fewstep.runtime.kernels.start_diffusion import start_diffusion

Floats = npt.NDArray[np.float32]
_SEEDS = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=3)
_TIMESTEPS = (980, 500, 0, 950, 3)


def _noise(seeds: npt.ArrayLike, positions: npt.ArrayLike, channels: int) -> Floats:
    """``[P, K, C]`` for positions ``[K, P]``."""
    return _start(seeds, positions, channels)[0]


def _start(
    seeds: npt.ArrayLike, positions: npt.ArrayLike, channels: int, first: int = 0
) -> tuple[Floats, int, int]:
    """Noise, counter and timestep."""
    at = np.asarray(positions, np.int32)
    x = np.full((*at.shape[::-1], channels), np.nan, np.float32)
    counter, timestep = np.full(1, -1, np.int32), np.full(1, -1, np.int32)
    start_diffusion(
        seeds=np.asarray(seeds, np.uint64),
        positions=at,
        timesteps=np.array(_TIMESTEPS, np.int32),
        first=first,
        x=x,
        counter=counter,
        timestep=timestep,
    )
    return x, int(counter[0]), int(timestep[0])


# --- start_diffusion


@given(
    seeds=_SEEDS,
    count=st.integers(1, 5),
    channels=st.integers(1, 20),
    halves=st.sampled_from([1, 2]),
    data=st.data(),
)
def test_noise_is_that_of_seed_and_position_at_step_0(
    seeds: list[int], count: int, channels: int, halves: int, data: st.DataObject
) -> None:
    position = st.integers(0, 65_535)
    drawn = data.draw(
        st.lists(position, min_size=count * len(seeds), max_size=count * len(seeds)), "positions"
    )
    positions = np.tile(np.reshape(drawn, (count, len(seeds))), (1, halves))
    found = _noise(seeds, positions, channels)
    keys = np.tile(np.array(seeds, np.uint64), halves)
    expected = reference.normals(keys[:, None], positions.T, 0, channels)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@given(seeds=_SEEDS, channels=st.integers(1, 9))
def test_both_halves_are_alike(seeds: list[int], channels: int) -> None:
    positions = np.arange(3 * len(seeds)).reshape(3, -1)
    twice = _noise(seeds, np.tile(positions, (1, 2)), channels)
    once = _noise(seeds, positions, channels)
    np.testing.assert_array_equal(twice, np.concatenate([once, once]))


def test_a_token_has_its_noise_wherever_it_is_decided() -> None:
    """Alone, with others, in another order, in another batch, with fewer channels."""
    every = _noise([8, 9], [[5, 0], [2, 1], [7, 2]], 16)
    np.testing.assert_array_equal(_noise([9], [[1]], 16)[0, 0], every[1, 1])
    np.testing.assert_array_equal(_noise([9, 9, 8], [[4, 0, 2]], 16)[2, 0], every[0, 1])
    np.testing.assert_array_equal(_noise([8], [[7], [5]], 7)[0, :, :7], every[0, [2, 0], :7])


def test_seeds_and_positions_have_noise_of_their_own() -> None:
    seeds = [0, 1, 2**32, 2**64 - 1]
    noise = _noise(seeds, np.tile(np.arange(256)[:, None], (1, 4)), 16)
    assert len(np.unique(noise.reshape(-1, 16), axis=0)) == 4 * 256
    assert np.abs(np.corrcoef(noise.reshape(4, -1)) - np.eye(4)).max() < 5 / np.sqrt(256 * 16)


@pytest.mark.parametrize("first", range(len(_TIMESTEPS)))
def test_counter_and_timestep_are_the_first_of_the_diffusion(first: int) -> None:
    noise, counter, timestep = _start([1], [[0]], 4, first)
    assert (counter, timestep) == (first, _TIMESTEPS[first])
    np.testing.assert_array_equal(noise, _noise([1], [[0]], 4))


# --- advance


@given(steps=st.lists(st.integers(0, 999), min_size=1, max_size=9), data=st.data())
def test_every_timestep_comes_in_turn(steps: list[int], data: st.DataObject) -> None:
    """Behind the last it stays there, while the counter counts on."""
    timesteps = np.array(steps, np.int32)
    first = data.draw(st.integers(0, len(steps) - 1), "first")
    counter, timestep = np.array([first], np.int32), np.full(1, -1, np.int32)
    for expected in [*range(first + 1, len(steps)), *[len(steps) - 1] * 2]:
        advance(timesteps=timesteps, counter=counter, timestep=timestep)
        assert timestep[0] == steps[expected]
    assert counter[0] == len(steps) + 1
    assert timesteps.tolist() == steps


def test_they_are_launched_by_their_names() -> None:
    assert KERNELS["start_diffusion"] is start_diffusion
    assert KERNELS["advance"] is advance
