"""Actions to the parameters of a scale, against the formulas in float64.

Covered: any offsets and scale, rounded once; that an action of 0 gives the settings of the offsets,
a top-k of 900 to the last bit; saturation at huge actions; actions that are not finite.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fewstep.runtime.kernels.sampling_parameters import sampling_parameters

Floats = npt.NDArray[np.float32]
_ACTIONS = hnp.arrays(np.float32, (3, 4), elements=st.floats(-20, 20, width=32))


def _parameters(
    action: npt.ArrayLike,
    offsets: tuple[float, ...] = (0, 0, 0, 0),
    scale: float = 1,
    flag: int = 0,
) -> tuple[Floats, int]:
    raw, error = np.asarray(action, np.float32), np.array([flag], np.int32)
    found = np.full(raw.shape, -1, np.float32)
    guidance, top_k, top_p, temperature = map(float, offsets)
    sampling_parameters(
        action=raw,
        guidance_offset=guidance,
        top_k_offset=top_k,
        top_p_offset=top_p,
        temperature_offset=temperature,
        guidance_scale=float(scale),
        parameters=found,
        error=error,
    )
    return found, int(error[0])


@given(action=_ACTIONS, offsets=st.tuples(*[st.floats(-20, 20)] * 4), scale=st.floats(0, 1))
def test_any_offsets_are_added_in_float64_and_rounded_once(
    action: Floats, offsets: tuple[float, ...], scale: float
) -> None:
    found, error = _parameters(action, offsets, scale)
    raw = action.astype(np.float64) + offsets
    expected = np.log1p(np.exp(raw)) * (scale, 1, 1, 1)
    expected[:, 1:3] = 1 / (1 + np.exp(-raw[:, 1:3])) * (4096, 1)
    # Half a float32 step, and the last bits of the two float64 computations: of sigmoids, tanh's.
    np.testing.assert_allclose(found, expected, rtol=2**-24 + 1e-13, atol=1e-12)
    assert error == 0


@pytest.mark.parametrize("top_k", [1, 600, 900, 2048, 4095])
def test_an_action_of_0_gives_the_settings_of_the_offsets(top_k: int) -> None:
    """Top-k to the last bit: it is truncated where it is used."""
    offsets = (
        math.log(math.expm1(1.5)),
        math.log(top_k / (4096 - top_k)),
        math.log(0.96 / 0.04),
        math.log(math.expm1(1)),
    )
    found, _ = _parameters(np.zeros((1, 4)), offsets, 7 / 9)
    assert found[0, 1] == top_k
    np.testing.assert_allclose(found[0, [0, 2, 3]], [1.5 * 7 / 9, 0.96, 1], rtol=1e-7)


@pytest.mark.parametrize("huge", [1e3, 1e30, float(np.finfo(np.float32).max)])
def test_huge_actions_saturate(huge: float) -> None:
    found, error = _parameters([[-huge] * 4, [huge] * 4], scale=0.5)
    with np.errstate(over="ignore"):
        assert found.tolist() == [[0] * 4, [np.float32(huge) / 2, 4096, 1, np.float32(huge)]]
    assert error == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("column", range(4))
def test_an_action_that_is_not_finite_sets_the_flag(bad: float, column: int) -> None:
    action = np.zeros((2, 4))
    action[1, column] = bad
    assert _parameters(action)[1] == 1


def test_the_flag_is_never_taken_down() -> None:
    assert _parameters(np.zeros((1, 4)), flag=1)[1] == 1
