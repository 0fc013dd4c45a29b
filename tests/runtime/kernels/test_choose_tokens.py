"""Which tokens a step decides, where the order of the positions is known before."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fewstep.runtime.kernels.choose_tokens import choose_tokens
from fewstep.runtime.kernels.cpu import KERNELS


@given(batch=st.integers(1, 4), count=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_positions_whose_turn_it_is_are_left_open(batch: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 99, (batch, count)).astype(np.int32)
    ranks = rng.integers(-1, count, (batch, count)).astype(np.int32)
    first, last = np.sort(rng.integers(0, count + 1, (2, batch)), axis=0).astype(np.int32)
    given = np.full((batch, count), -9, np.int32)
    choose_tokens(tokens, ranks, first, last, given)
    for image, position in np.ndindex(batch, count):
        turn = first[image] <= ranks[image, position] < last[image]
        assert given[image, position] == (-1 if turn else tokens[image, position])


def test_is_launched_by_its_name() -> None:
    assert KERNELS["choose_tokens"] is choose_tokens
