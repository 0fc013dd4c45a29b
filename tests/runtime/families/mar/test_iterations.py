"""Which tokens an iteration decides, and which positions LazyMAR computes again.

Covered: counts for every number of iterations against the official code in NumPy and float32
tensors' rules, the published table of LazyMAR and its stretching, refreshes, and how many
positions are computed between them.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.runtime.families.mar.iterations import (
    SURPLUS,
    counts,
    recomputed,
    refreshes,
    share,
)

# RETAIN_RATIO_SCHEDULE of models/basic.py in feihongyan1/LazyMAR, of 64 iterations.
_TABLE = [1.0] * 20 + [0.6] + [0.5] * 4 + [0.4] * 5 + [0.15] * 5 + [0.12] * 5 + [0.05] * 24


def _official(tokens: int, iterations: int) -> list[int]:
    """``sample_tokens`` of models/mar.py in LTH14/mar: masks that are counted."""
    masked, found = np.float32(tokens), []
    for step in range(iterations):
        ratio = np.cos(math.pi / 2.0 * (step + 1) / iterations)
        wanted = np.float32(np.floor(tokens * ratio))
        following = np.maximum(np.float32(1), np.minimum(masked - np.float32(1), wanted))
        found.append(int(masked if step >= iterations - 1 else masked - following))
        masked = following
    return found


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 9, 16, 49, 64, 100, 255, 256])
def test_counts_are_the_official_ones(tokens: int) -> None:
    for iterations in range(1, tokens + 1):
        found = counts(tokens, iterations)
        assert [*found] == _official(tokens, iterations)
        assert len(found) == iterations
        assert sum(found) == tokens
        assert min(found) >= 1


@given(tokens=st.integers(1, 4096), data=st.data())
def test_every_iteration_decides_a_token(tokens: int, data: st.DataObject) -> None:
    iterations = data.draw(st.integers(1, tokens))
    found = counts(tokens, iterations)
    assert (len(found), sum(found), min(found) >= 1) == (iterations, tokens, True)


def test_known_counts() -> None:
    assert counts(16, 6) == (1, 2, 2, 3, 4, 4)
    assert counts(16, 16) == (1,) * 16
    assert counts(16, 1) == (16,)
    assert counts(256, 64)[:3] == (1, 1, 1)
    assert counts(256, 64)[-3:] == (6, 6, 6)
    assert counts(6, 4) == (1, 1, 2, 2)  # ⌊6·cos⌋ is 5, 4, 2


def test_the_table_is_lazymars() -> None:
    assert [share(step, 64) for step in range(64)] == _TABLE


@pytest.mark.parametrize("iterations", [1, 2, 7, 16, 32, 63, 100, 256])
def test_the_table_is_stretched_over_other_numbers_of_iterations(iterations: int) -> None:
    found = [share(step, iterations) for step in range(iterations)]
    assert found == [_TABLE[math.floor(64 * step / iterations)] for step in range(iterations)]
    assert found[0] == 1.0
    assert found == sorted(found, reverse=True)


def test_refreshes_are_lazymars() -> None:
    """``global_force_fresh`` of models/mar_cache.py, with start_step 5 and fresh_t 9."""
    found = [step for step in range(64) if refreshes(step, 5, 9)]
    assert found == [0, 1, 2, 3, 4, 5, 14, 23, 32, 41, 50, 59]
    assert [step for step in range(8) if refreshes(step, 1, 3)] == [0, 1, 4, 7]
    assert all(refreshes(step, 1, 1) for step in range(64))


@given(first=st.integers(1, 300), every=st.integers(1, 300))
def test_the_first_iteration_computes_everything(first: int, every: int) -> None:
    assert refreshes(0, first, every)
    assert refreshes(first, first, every)


def test_positions_are_those_of_lazymar() -> None:
    """``fresh_num`` of models/basic.py for its 320 positions."""
    decided = counts(256, 64)
    for step in range(1, 64):
        least = decided[step] + decided[step - 1] + 15
        wanted = max(least, int(320 * _TABLE[step]))
        assert recomputed(320, share(step, 64), decided[step - 1], decided[step]) == wanted
    assert recomputed(320, 0.05, 6, 6) == 27
    assert recomputed(320, 0.12, 6, 6) == 38


@given(
    positions=st.integers(2, 400),
    part=st.floats(0, 1),
    previous=st.integers(1, 64),
    following=st.integers(1, 64),
)
def test_what_has_to_be_computed_is_and_no_more_than_there_is(
    positions: int, part: float, previous: int, following: int
) -> None:
    found = recomputed(positions, part, previous, following)
    assert min(positions, previous + following + SURPLUS) <= found <= positions
    assert found >= int(positions * part)
    assert recomputed(positions, 1.0, previous, following) == positions
