"""Schedules: the curves of MaskGIT, the ramps, what is refused, and the offsets of AdaNAT.

Covered: every curve falls from near 1 to 0, the concave and convex families of section 3.3 of the
paper, values read off its formulas, ramps and their ends, errors that suggest a remedy; and that
the offsets, put through the policy's activations, give the heuristic schedule at every step. The
authors' own offsets are compared in ``tests/export/test_official_parameters.py``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.runtime.errors import RequestError
from fewstep.runtime.families.masked.model import MaskedPolicyInfo
from fewstep.runtime.families.masked.schedule import MASK_RATIOS, Schedule
from fewstep.runtime.kernels.sample_tokens import PARAMETERS
from fewstep.runtime.policies import POLICY

_TOKENS = 256
_CONCAVE = ("cosine", "arccos", "square", "cubic", "exponential")
_CONVEX = ("square-root", "logarithmic")
_RATIO, _MASKING, _SAMPLING, _GUIDANCE = range(4)


def _ratios(name: str, steps: int, tokens: int = _TOKENS) -> np.ndarray[Any, np.dtype[np.float32]]:
    return Schedule(name).parameters(steps, tokens)[:, _RATIO]


@pytest.mark.parametrize("name", MASK_RATIOS)
@given(steps=st.integers(1, 256), tokens=st.sampled_from([4, 64, 256, 1024]))
def test_ratio_falls_within_zero_and_one_and_ends_at_zero(
    name: str, steps: int, tokens: int
) -> None:
    ratios = _ratios(name, steps, tokens)
    assert ratios.shape == (steps,)
    assert ((ratios >= 0) & (ratios <= 1)).all()
    assert (np.diff(ratios) <= 0).all()
    assert ratios[-1] < 1e-6


@pytest.mark.parametrize("name", MASK_RATIOS)
def test_ratio_starts_near_one_and_falls_strictly(name: str) -> None:
    assert _ratios(name, steps=4096)[0] > 0.98
    assert (np.diff(_ratios(name, steps=64)) < 0).all()


@pytest.mark.parametrize(("names", "side"), [(_CONCAVE, 1), (_CONVEX, -1), (("linear",), 0)])
def test_curvature_is_that_of_the_paper(names: tuple[str, ...], side: int) -> None:
    for name in names:
        ratios = _ratios(name, steps=32).astype(np.float64)
        bend = -np.diff(ratios, n=2)  # positive where concave
        if side == 0:
            assert abs(bend).max() < 1e-6
        else:
            assert (side * bend[1:] > 0).all()


def test_concave_curves_keep_more_tokens_masked_than_convex_ones() -> None:
    middle = {name: float(_ratios(name, steps=2)[0]) for name in MASK_RATIOS}
    assert min(middle[name] for name in _CONCAVE) > middle["linear"] == 0.5
    assert max(middle[name] for name in _CONVEX) < 0.5
    assert set(middle) == {*_CONCAVE, *_CONVEX, "linear"}


@pytest.mark.parametrize(
    ("name", "quarter", "half"),
    [
        ("cosine", 0.9238795, 0.7071068),
        ("arccos", 0.8391380, 0.6666667),
        ("linear", 0.75, 0.5),
        ("square", 0.9375, 0.75),
        ("cubic", 0.984375, 0.875),
        ("exponential", 0.984375, 0.9375),  # 1 - 256^-3/4 = 1 - 1/64, 1 - 256^-1/2 = 1 - 1/16
        ("square-root", 0.5, 0.2928932),
        ("logarithmic", 0.25, 0.125),  # -log2(1/4)/8, -log2(1/2)/8
    ],
)
def test_values_computed_by_hand(name: str, quarter: float, half: float) -> None:
    ratios = _ratios(name, steps=4)
    np.testing.assert_allclose(ratios[:2], [quarter, half], rtol=1e-6)


def test_ramps_are_straight_and_reach_their_end_at_the_last_step() -> None:
    schedule = Schedule(
        guidance=(0.0, 4.0), sampling_temperature=(2.0, 1.0), masking_temperature=(4.0, 0.0)
    )
    parameters = schedule.parameters(4, _TOKENS)
    assert parameters[:, _GUIDANCE].tolist() == [1, 2, 3, 4]
    assert parameters[:, _SAMPLING].tolist() == [1.75, 1.5, 1.25, 1]
    assert parameters[:, _MASKING].tolist() == [3, 2, 1, 0]


def test_equal_ends_are_a_constant() -> None:
    parameters = Schedule(guidance=(2.5, 2.5)).parameters(7, _TOKENS)
    assert (parameters[:, _GUIDANCE] == 2.5).all()


def test_parameters_are_float32_rows_of_four() -> None:
    parameters = Schedule().parameters(5, 16)
    assert parameters.shape == (5, 4)
    assert parameters.dtype == np.float32


@pytest.mark.parametrize(
    ("guidance", "guided"),
    [((0.0, 0.0), False), ((0.0, 3.0), True), ((3.0, 0.0), True), ((1.0, 1.0), True)],
)
def test_guided_unless_guidance_is_zero_throughout(
    guidance: tuple[float, float], guided: bool
) -> None:
    assert Schedule(guidance=guidance).guided is guided


@pytest.mark.parametrize(
    ("wrong", "meant"), [("cosin", "cosine"), ("Linear", "linear"), ("polcy", POLICY)]
)
def test_unknown_name_lists_the_choices_and_suggests_the_nearest(wrong: str, meant: str) -> None:
    with pytest.raises(RequestError) as caught:
        Schedule(wrong)
    message = str(caught.value)
    assert f"unknown schedule '{wrong}'" in message
    assert f"Did you mean '{meant}'?" in message
    assert all(name in message for name in MASK_RATIOS)


def test_a_name_near_nothing_gets_no_suggestion() -> None:
    with pytest.raises(RequestError, match="expected one of") as caught:
        Schedule("zzzzzzzz")
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize("name", ["guidance", "sampling_temperature", "masking_temperature"])
@pytest.mark.parametrize("ramp", [(-1.0, 1.0), (1.0, -0.1), (math.nan, 1.0), (1.0, math.inf)])
def test_negative_and_non_finite_ramps_are_refused(name: str, ramp: tuple[float, float]) -> None:
    with pytest.raises(RequestError, match=f"{name} must be finite and at least 0"):
        Schedule(**{name: ramp})  # type: ignore[arg-type]


# --- offsets of a policy's actions


@given(steps=st.integers(1, 256), data=st.data())
def test_offsets_give_the_heuristic_schedule_through_the_activations(
    steps: int, data: st.DataObject
) -> None:
    step = data.draw(st.integers(0, steps - 1))
    offsets = MaskedPolicyInfo(residual=True).offsets(step, steps)
    r = (step + 1 - 1e-3) / steps
    ratio = 1 / (1 + math.exp(-offsets["ratio_offset"]))
    softplus = [math.log1p(math.exp(value)) for value in list(offsets.values())[1:]]
    assert ratio == pytest.approx(math.cos(math.pi * r / 2), rel=1e-9)
    assert softplus == pytest.approx([1 - r, 1.0, (step + 1e-3) / steps], rel=1e-9)


@pytest.mark.parametrize("residual", [False, True])
def test_offsets_are_named_after_the_columns_in_their_order(residual: bool) -> None:
    assert PARAMETERS == ("mask_ratio", "masking_temperature", "sampling_temperature", "guidance")
    offsets = MaskedPolicyInfo(residual=residual).offsets(0, 4)
    names = ["ratio_offset", "masking_offset", "sampling_offset", "guidance_offset"]
    assert list(offsets) == names
    assert all(type(value) is float for value in offsets.values())


def test_offsets_computed_by_hand() -> None:
    """Step 1 of 4, r = 0.49975."""
    offsets = MaskedPolicyInfo(residual=True).offsets(1, 4)
    cosine = math.cos(0.49975 * math.pi / 2)  # 0.7073844
    assert offsets == pytest.approx(
        {
            "ratio_offset": math.log(cosine / (1 - cosine)),
            "masking_offset": math.log(math.exp(0.50025) - 1),
            "sampling_offset": math.log(math.e - 1),
            "guidance_offset": math.log(math.exp(0.25025) - 1),
        },
        rel=1e-12,
    )
    assert cosine == pytest.approx(0.7073844, abs=1e-7)


def test_without_residual_no_offsets_at_any_step() -> None:
    for step in range(16):
        assert set(MaskedPolicyInfo(residual=False).offsets(step, 16).values()) == {0.0}


def test_offsets_move_one_way_over_the_steps() -> None:
    """Fewer masked tokens, less noise on confidences, more guidance; the temperature stays."""
    rows = np.array(
        [list(MaskedPolicyInfo(residual=True).offsets(t, 64).values()) for t in range(64)]
    )
    change = np.diff(rows, axis=0)
    assert (change[:, [_RATIO, _MASKING]] < 0).all()
    assert (change[:, _GUIDANCE] > 0).all()
    assert (change[:, _SAMPLING] == 0).all()
