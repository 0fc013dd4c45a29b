"""Actions to parameters against the formulas in float64.

Covered: any offsets, rounded once; the offsets of every step with and without residuals over step
counts, the heuristic schedule that a zero action follows, saturation at huge actions, actions that
are not finite, and the order of the columns.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fewstep.runtime.families.masked.model import MaskedPolicyInfo
from fewstep.runtime.kernels.policy_parameters import policy_parameters
from fewstep.runtime.kernels.sample_tokens import PARAMETERS

Floats = npt.NDArray[np.float32]


@st.composite
def _steps(draw: st.DrawFn) -> tuple[int, int]:
    steps = draw(st.integers(1, 64))
    return draw(st.integers(0, steps - 1)), steps


_ACTIONS = hnp.arrays(np.float32, (3, 4), elements=st.floats(-20, 20, width=32))


@given(action=_ACTIONS, offsets=st.tuples(*[st.floats(-20, 20)] * 4))
def test_any_offsets_are_added_in_float64_and_rounded_once(
    action: Floats, offsets: tuple[float, float, float, float]
) -> None:
    found, error = np.full((3, 4), -1, np.float32), np.zeros(1, np.int32)
    policy_parameters(action, *offsets, found, error)
    raw = action.astype(np.float64) + offsets
    expected = np.log1p(np.exp(raw))
    expected[:, 0] = 1 / (1 + np.exp(-raw[:, 0]))
    # Half a float32 step, and the last bits of the two float64 computations: of the ratio, tanh's.
    np.testing.assert_allclose(found, expected, rtol=2**-24 + 1e-13, atol=1e-15)
    assert error[0] == 0


@given(action=_ACTIONS, when=_steps(), residual=st.booleans())
def test_every_step_agrees_with_the_formulas_in_float64(
    action: Floats, when: tuple[int, int], residual: bool
) -> None:
    found = _parameters(action, *when, residual=residual)
    expected = [_reference([float(a) for a in row], *when, residual=residual) for row in action]
    _assert_close(found, expected)


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 16, 64])
def test_zero_action_with_residual_is_the_heuristic_schedule(steps: int) -> None:
    for step in range(steps):
        found = _parameters(np.zeros((1, 4), np.float32), step, steps, residual=True)[0]
        r = (step + 1 - 1e-3) / steps
        expected = (math.cos(math.pi * r / 2), 1 - r, 1.0, (step + 1e-3) / steps)
        _assert_close(found, expected)


def test_zero_action_without_residual_is_constant() -> None:
    found = _parameters(np.zeros((1, 4), np.float32), step=3, steps=8, residual=False)[0]
    np.testing.assert_allclose(found, [0.5, math.log(2), math.log(2), math.log(2)], rtol=1e-6)


def test_each_action_moves_its_own_parameter_only() -> None:
    base = _parameters(np.zeros((1, 4), np.float32), step=1, steps=4, residual=True)[0]
    for column in range(len(PARAMETERS)):
        action = np.zeros((1, 4), np.float32)
        action[0, column] = 0.75
        moved = _parameters(action, step=1, steps=4, residual=True)[0]
        assert (moved > base).tolist() == [i == column for i in range(4)]


@pytest.mark.parametrize("residual", [False, True])
def test_huge_actions_saturate_without_overflow(residual: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        low = _parameters(np.full((1, 4), -1e4, np.float32), 2, 8, residual=residual)[0]
        high = _parameters(np.full((1, 4), 1e4, np.float32), 2, 8, residual=residual)[0]
    assert low.tolist() == [0, 0, 0, 0]
    assert high[0] == 1
    np.testing.assert_allclose(high[1:], 1e4, rtol=1e-3)


def test_parameters_are_finite_at_every_step_of_long_rollouts() -> None:
    zero = np.zeros((1, 4), np.float32)
    assert all(np.isfinite(_parameters(zero, t, 256, residual=True)).all() for t in range(256))


def test_columns_are_in_the_order_of_the_actions() -> None:
    assert PARAMETERS == (
        "mask_ratio",
        "masking_temperature",
        "sampling_temperature",
        "guidance",
    )


def _parameters(action: Floats, step: int, steps: int, *, residual: bool) -> Floats:
    out = np.full(action.shape, -1, np.float32)
    error = np.zeros(1, np.int32)
    offsets = MaskedPolicyInfo(residual=residual).offsets(step, steps)
    policy_parameters(action=action, **offsets, parameters=out, error=error)
    assert error[0] == 0
    return out


def _assert_close(found: Floats, expected: npt.ArrayLike) -> None:
    """The ratio to two float32 steps of 1; the others relatively, as raw values round at 30."""
    wanted = np.asarray(expected)
    np.testing.assert_allclose(found[..., 0], wanted[..., 0], rtol=1e-6, atol=1.2e-7)
    np.testing.assert_allclose(found[..., 1:], wanted[..., 1:], rtol=1e-5, atol=1e-12)


def _reference(action: list[float], step: int, steps: int, *, residual: bool) -> list[float]:
    """AdaNAT's activations: one sigmoid, three softplus."""
    r = (step + 1 - 1e-3) / steps
    ratio = math.cos(math.pi * r / 2)
    added = [
        math.log(ratio / (1 - ratio)),
        math.log(math.exp(1 - r) - 1),
        math.log(math.e - 1),
        math.log(math.exp((step + 1e-3) / steps) - 1),
    ]
    raw = [a + b * residual for a, b in zip(action, added, strict=True)]
    return [1 / (1 + math.exp(-raw[0])), *(math.log1p(math.exp(value)) for value in raw[1:])]


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", range(4))
def test_an_action_that_is_not_finite_sets_the_error_flag(
    bad: float, column: int, residual: bool
) -> None:
    action, error = np.zeros((2, 4), np.float32), np.zeros(1, np.int32)
    action[1, column] = bad
    offsets = MaskedPolicyInfo(residual=residual).offsets(0, 4)
    policy_parameters(
        action=action, **offsets, parameters=np.empty((2, 4), np.float32), error=error
    )
    assert error[0] == 1


def test_the_error_flag_is_never_taken_down() -> None:
    action, error = np.zeros((1, 4), np.float32), np.ones(1, np.int32)
    policy_parameters(action, 0.0, 0.0, 0.0, 0.0, np.empty((1, 4), np.float32), error)
    assert error[0] == 1
