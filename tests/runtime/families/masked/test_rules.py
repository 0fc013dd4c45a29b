"""What differs between forms, beside recordings and formulas of the official code.

Covered: how many tokens stay masked, where curves and ramps are read, temperatures that multiply,
guidance that rises along a cosine, and which combinations are refused.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fewstep.runtime.errors import RequestError
from fewstep.runtime.families.masked.rules import Rules
from fewstep.runtime.families.masked.schedule import Schedule

_RECORDED = Path(__file__).parents[3] / "data"
_HALTON = Rules(
    confidence="tempered-log-probability",
    counted="decided",
    precision="float32",
    mask_ratio_at="inclusive",
    guidance_at="inclusive",
    temperature_at="inclusive",
    sampling_temperature="multiplies",
    mask_sampled=True,
)
_ONE_D = Rules(confidence="logit", ties="masked", precision="float64", guidance_at="before")
_AMUSED = Rules(precision="float32", temperature_at="inclusive")
Floats = npt.NDArray[np.float32]


def _masked(schedule: Schedule, steps: int, count: int) -> list[int]:
    """As ``remask`` makes them of the mask ratio, in float32."""
    ratios = schedule.parameters(steps, count)[:, 0]
    return [int(np.float32(count) * ratio) for ratio in ratios]


def _column(schedule: Schedule, steps: int, column: int) -> list[float]:
    found: list[float] = schedule.parameters(steps, 64)[:, column].tolist()
    return found


@pytest.mark.parametrize(
    ("official", "name"),
    [
        ("root", "square-root"),
        ("linear", "linear"),
        ("square", "square"),
        ("cosine", "cosine"),
        ("arccos", "arccos"),
    ],
)
def test_haltons_confidence_sampler_decides_as_many_as_recorded(official: str, name: str) -> None:
    """Its cosine is 1 − cos(π·r/2) of decided tokens; at least t + 1 are after step t."""
    with np.load(_RECORDED / "halton_net.npz") as recorded:
        wanted = recorded[f"aux/sched_{official}_12_16"]
    found = 256 - np.array(_masked(Schedule(name, rules=_HALTON), 12, 256))
    if name == "cosine":
        r = np.linspace(0, 1, 12, dtype=np.float32)
        wanted = (np.float32(256) * (1 - np.cos(r * np.float32(np.pi / 2)))).astype(int)
    assert found.tolist() == np.maximum(wanted, np.arange(1, 13)).tolist()


def test_haltons_own_order_decides_as_the_official_sampler_does() -> None:
    """max(t + 1, int(N·(1 − arccos((t + 1)/T)/(π/2)))), r in float32 and the rest as it comes."""
    for steps, side in ((6, 4), (32, 16), (64, 24), (1, 4)):
        found = Schedule("arccos", rules=_HALTON).decided(steps, np.array([side**2]), side**2)
        wanted = [0]
        for step in range(steps):
            r = np.float32((step + 1) / steps)
            part = np.float32(1) - np.arccos(r) / np.float32(math.pi / 2)
            wanted.append(max(step + 1, int(part * np.float32(side**2))))
        assert found[:, 0].tolist() == wanted


def test_an_order_decides_every_token_that_is_masked() -> None:
    """After step t at least t + 1; never fewer than before."""
    masked = np.array([0, 1, 5, 63, 64])
    for name in ("cosine", "arccos", "exponential", "logarithmic", "square-root"):
        for rules in (Rules(), _HALTON, _ONE_D):
            for steps in (1, 2, 7, 64):
                found = Schedule(name, rules=rules).decided(steps, masked, 64)
                assert found.shape == (steps + 1, 5)
                assert (found[0] == 0).all()
                assert (found[-1] == masked).all()
                least = np.minimum(masked[None], np.arange(steps + 1)[:, None])
                assert (found >= least).all()
                assert (np.diff(found, axis=0) >= 0).all()


def test_float32_rounds_down_where_float64_does_not() -> None:
    """36·cos(π/3): 17 of a tensor in float32, 18 in float64."""
    assert _masked(Schedule("cosine", rules=_AMUSED), 3, 36)[1] == 17
    assert _masked(Schedule("cosine", rules=Rules()), 3, 36)[1] == 18
    assert _masked(Schedule("cosine", rules=Rules(precision="float64")), 3, 36)[1] == 18


def test_as_many_tokens_as_recorded_runs_of_amused() -> None:
    path = _RECORDED / "amused.npz"
    if not path.exists():
        pytest.skip(f"{path.name} is not in tests/data")
    with np.load(path) as recorded:
        runs = {name: recorded[f"out/{name}/ids_in"].reshape(-1, 2, 36) for name in ("cos", "lin")}
    for name, curve in (("cos", "cosine"), ("lin", "linear")):
        masked = (runs[name] == 64).sum(2)
        found = _masked(Schedule(curve, rules=_AMUSED), len(masked), 36)
        assert np.array(found[:-1])[:, None].tolist() == masked[1:, :1].tolist()


@pytest.mark.parametrize("count", [16, 32, 36, 64, 128, 196, 256, 1024])
def test_one_d_tokenizers_count_in_float64(count: int) -> None:
    for steps in range(1, 65):
        r = [(step + 1) / steps for step in range(steps)]
        wanted = [math.floor(count * (math.acos(each) / (math.pi * 0.5))) for each in r]
        assert _masked(Schedule("arccos", rules=_ONE_D), steps, count) == wanted


def test_ramps_are_read_where_the_rules_say() -> None:
    ramp = Schedule("cosine", (0.0, 6.0), (1.0, 1.0), (6.0, 0.0), rules=_ONE_D)
    np.testing.assert_allclose(_column(ramp, 3, 3), [0, 2, 4], atol=1e-6)
    np.testing.assert_allclose(_column(ramp, 3, 1), [4, 2, 0], atol=1e-6)
    halton = Schedule("arccos", (0.0, 6.0), (1.0, 1.0), (6.0, 0.0), rules=_HALTON)
    np.testing.assert_allclose(_column(halton, 4, 3), [0, 2, 4, 6], atol=1e-6)
    np.testing.assert_allclose(_column(halton, 4, 1), [6, 4, 2, 0], atol=1e-6)
    assert _column(halton, 1, 3) == [0]


def test_a_temperature_that_multiplies_is_a_quotient() -> None:
    schedule = Schedule("arccos", sampling_temperature=(1.0, 1.2), rules=_HALTON)
    wanted = 1 / np.linspace(1, 1.2, 6)
    np.testing.assert_allclose(_column(schedule, 6, 2), wanted, rtol=1e-6)
    np.testing.assert_allclose(schedule.ordered(6, 12, 0.9)[:, 3], wanted, rtol=1e-6)
    assert (schedule.ordered(6, 12, 0.9)[:, 1:3] == np.array([12, 0.9], np.float32)).all()


def test_guidance_rises_along_the_power_of_a_cosine() -> None:
    """1d-tokenizer: uncond + (cond − uncond)·(1 + (scale − 1)·(1 − cos(π·(t/T)ᵖ))/2)."""
    scale, power, steps = 5.0, 2.5, 8
    schedule = Schedule("arccos", (0.0, scale - 1), guidance_power=power, rules=_ONE_D)
    wanted = [
        (scale - 1) * (1 - math.cos(math.pi * (step / steps) ** power)) / 2 for step in range(steps)
    ]
    np.testing.assert_allclose(_column(schedule, steps, 3), wanted, rtol=1e-6)


def test_a_softmax_temperature_divides_confidences_too() -> None:
    """l/t + μ·g is in the order of l + t·μ·g, and softmax(l / t / τ) divides by t·τ."""
    schedule = Schedule(
        "arccos", (0.0, 0.0), (2.0, 0.0), (2.0, 0.0), softmax_temperature=(1.3, 0.5), rules=_ONE_D
    )
    ratios = np.arange(1, 9) / 8
    divisor = 0.5 + 0.8 * (1 - ratios)
    wanted = 2 * (1 - ratios) * divisor
    np.testing.assert_allclose(_column(schedule, 8, 1), wanted, atol=1e-6)
    np.testing.assert_allclose(_column(schedule, 8, 2), wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"softmax_temperature": (1.3, 0.5)}, "confidences are logits"),
        ({"sampling_temperature": (0.0, 1.0), "rules": _HALTON}, "above 0"),
        ({"softmax_temperature": (0.0, 1.0), "rules": _ONE_D}, "above 0"),
    ],
)
def test_what_a_form_cannot_do_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Schedule("cosine", **given)
