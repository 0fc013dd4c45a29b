"""Actions with those of the step before, in place too, as a decode has them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fewstep.runtime.kernels.cpu import KERNELS
from fewstep.runtime.kernels.smooth_actions import smooth_actions


@given(batch=st.integers(1, 9), smoothing=st.floats(0, 1), seed=st.integers(0, 99))
def test_is_a_mean_of_both(batch: int, smoothing: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    action, before = rng.normal(0, 3, (2, batch, 4)).astype(np.float32)
    expected = smoothing * before.astype(np.float64) + (1 - smoothing) * action
    found = np.empty_like(action)
    smooth_actions(action, before, smoothing, found)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    smooth_actions(action, before, smoothing, action)
    np.testing.assert_array_equal(action, found)


def test_is_launched_by_its_name() -> None:
    assert KERNELS["smooth_actions"] is smooth_actions
