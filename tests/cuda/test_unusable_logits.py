"""NaN, +∞ and rows of nothing but −∞ in ``sample_tokens`` on the GPU: the flag, and nothing else.

Covered, in float32 and float16: every kind at the first, a middle and the last code of
vocabularies around the chunk, in either half of the logits, at every kind of temperature; that the
other positions keep their tokens and confidences to the bit; and everything that must not raise
the flag: logits that nobody reads, excluded codes, and large ones.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.runtime.devices.cuda import CudaDevice

sys.path.append(str(Path(__file__).parent))
if TYPE_CHECKING:
    from tests.cuda import kernel_runs as runs
else:
    import kernel_runs as runs

Array = npt.NDArray[Any]
_MASK = -7
_DTYPES = ("float32", "float16")
_SIZES = (1, 2, 4, 127, 128, 129, 132, 516, 4097)
_IMAGE, _POSITION = 1, 2  # of the row that is spoiled


def _sound(codes: int, dtype: str, *, guidance: float = 0.0) -> runs.Sampling:
    """Two images of four positions without a flaw, one position known."""
    rng = np.random.default_rng(codes)
    tokens = np.full((2, 4), _MASK, np.int32)
    tokens[0, 1] = 0
    return runs.Sampling(
        conditional=rng.normal(0, 2, (2, 4, codes)).astype(dtype),
        unconditional=rng.normal(0, 2, (2, 4, codes)).astype(dtype),
        tokens=tokens,
        parameters=np.array([[0.5, 1, 1, guidance], [0.5, 1, 0.5, guidance]], np.float32),
        seeds=np.array([1, 2**40], np.uint64),
        mask_token=_MASK,
    )


def _assert_only_one_is_lost(
    device: CudaDevice, sound: runs.Sampling, spoiled: runs.Sampling
) -> None:
    """The flag is up, the spoiled position has NaN, and the others are as without it."""
    expected, found = runs.sample(device, sound), runs.sample(device, spoiled)
    assert (expected.error, found.error) == (0, 1)
    assert math.isnan(found.confidence[_IMAGE, _POSITION])
    assert 0 <= found.tokens[_IMAGE, _POSITION] < sound.conditional.shape[2]
    others = np.ones(found.tokens.shape, bool)
    others[_IMAGE, _POSITION] = False
    np.testing.assert_array_equal(found.tokens[others], expected.tokens[others])
    np.testing.assert_array_equal(found.confidence[others], expected.confidence[others])
    runs.assert_same(found, runs.sample_on_cpu(spoiled))


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("codes", _SIZES)
@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf])
def test_one_bad_logit_raises_the_flag(
    device: CudaDevice, bad: float, codes: int, dtype: str
) -> None:
    sound = _sound(codes, dtype)
    for place in sorted({0, codes // 2, codes - 1}):
        for temperature in (0.0, 0.5, 1.0):
            sound.parameters[_IMAGE, 2] = temperature
            logits = sound.conditional.copy()
            logits[_IMAGE, _POSITION, place] = bad
            _assert_only_one_is_lost(device, sound, replace(sound, conditional=logits))


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("codes", _SIZES)
def test_nothing_but_minus_infinity_raises_the_flag(
    device: CudaDevice, codes: int, dtype: str
) -> None:
    for guidance in (0.0, 2.0):
        sound = _sound(codes, dtype, guidance=guidance)
        logits = sound.conditional.copy()
        logits[_IMAGE, _POSITION] = -np.inf
        for temperature in (0.0, 0.5, 1.0):
            sound.parameters[_IMAGE, 2] = temperature
            _assert_only_one_is_lost(device, sound, replace(sound, conditional=logits))


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("codes", _SIZES)
@pytest.mark.parametrize("bad", [math.nan, -math.inf, math.inf])
def test_one_bad_unconditional_logit_raises_the_flag(
    device: CudaDevice, bad: float, codes: int, dtype: str
) -> None:
    """−∞ where the condition allows the code: guidance makes +∞ of it. With +∞, the code is lost:
    −∞, and nothing is wrong unless it is the only one."""
    sound = _sound(codes, dtype, guidance=1.5)
    for place in sorted({0, codes // 2, codes - 1}):
        logits = sound.unconditional.copy()
        logits[_IMAGE, _POSITION, place] = bad
        spoiled = replace(sound, unconditional=logits)
        if bad == math.inf and codes > 1:
            found = runs.sample(device, spoiled)
            runs.assert_follows_the_formulas(spoiled, found)
        else:
            _assert_only_one_is_lost(device, sound, spoiled)


def test_guidance_beyond_float32_raises_the_flag(device: CudaDevice) -> None:
    sound = _sound(300, "float32", guidance=3.0)
    logits = sound.conditional.copy()
    logits[_IMAGE, _POSITION, 200] = 2e38
    _assert_only_one_is_lost(device, sound, replace(sound, conditional=logits))


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("codes", [1, 4, 129, 516])
def test_logits_that_nobody_reads_may_be_anything(
    device: CudaDevice, codes: int, dtype: str
) -> None:
    """Those of known positions, and the unconditional ones of images without guidance."""
    sound = _sound(codes, dtype)
    sound.parameters[1, 3] = 2.0
    conditional, unconditional = sound.conditional.copy(), sound.unconditional.copy()
    conditional[0, 1] = unconditional[0] = np.nan
    spoiled = replace(sound, conditional=conditional, unconditional=unconditional)
    expected, found = runs.sample(device, sound), runs.sample(device, spoiled)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.confidence, expected.confidence)
    assert found.error == 0


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("other", [math.nan, math.inf, -math.inf, 5.0])
def test_what_the_condition_excludes_stays_excluded(
    device: CudaDevice, other: float, dtype: str
) -> None:
    case = _sound(516, dtype, guidance=3.0)
    case.conditional[:, :, 100:400] = -np.inf
    case.unconditional[:, :, 200:300] = other
    found = runs.sample(device, case)
    runs.assert_follows_the_formulas(case, found)
    assert found.error == 0


@pytest.mark.parametrize("dtype", _DTYPES)
def test_the_largest_finite_logits_are_fine(device: CudaDevice, dtype: str) -> None:
    case = _sound(260, dtype)
    case.conditional[:, :, ::7] = np.finfo(dtype).max
    case.conditional[:, :, 3::7] = np.finfo(dtype).min
    found = runs.sample(device, case)
    runs.assert_follows_the_formulas(case, found)
    assert found.error == 0


def test_the_flag_is_never_taken_down(device: CudaDevice) -> None:
    assert runs.sample(device, replace(_sound(5, "float32"), flag=1)).error == 1


@runs.examples(60)
@given(
    codes=st.integers(1, 300),
    dtype=st.sampled_from(_DTYPES),
    guidance=st.sampled_from([0.0, 1.5]),
    seed=st.integers(0, 2**32),
)
def test_any_mixture_is_treated_as_on_the_cpu(
    device: CudaDevice, codes: int, dtype: str, guidance: float, seed: int
) -> None:
    """Sparse bad values anywhere, in both halves."""
    case, rng = _sound(codes, dtype, guidance=guidance), np.random.default_rng(seed)
    for logits in (case.conditional, case.unconditional):
        bad = rng.choice([np.nan, np.inf, -np.inf, -np.inf, -np.inf], logits.shape)
        hit = rng.random(logits.shape) < rng.choice([0, 0.002, 0.5])
        logits[hit] = bad[hit].astype(dtype)
    runs.assert_same(runs.sample(device, case), runs.sample_on_cpu(case))


@pytest.mark.parametrize("codes", [48, 130, 1000])
def test_a_sampling_temperature_that_is_no_number_is_flagged(
    device: CudaDevice, codes: int
) -> None:
    """The token is 0, which every decoder can look up."""
    case = _sound(codes, "float32")
    case.parameters[:, 2] = np.nan
    found = runs.sample(device, case)
    runs.assert_same(found, runs.sample_on_cpu(case))
    assert found.error == 1
    assert (found.tokens[case.tokens == case.mask_token] == 0).all()
