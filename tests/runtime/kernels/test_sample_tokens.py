"""Sampling: its distribution, its log-probabilities, and what it does with unusable logits.

Covered: chi-square tests against softmax(l / temperature) computed in float64, vocabularies that
are and are not multiples of the chunk, guidance with own and shared unconditional logits, both
ends of the temperature, Gumbel noise on the confidence, known positions, excluded codes, and the
error flag. The search within one row is tested in ``test_sample_row.py``.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.runtime.kernels.choices import CONFIDENCES
from fewstep.runtime.kernels.logarithm import logarithm
from fewstep.runtime.kernels.philox import uniforms
from fewstep.runtime.kernels.sample_tokens import sample_tokens

_DRAWS = 40_000
_VOCABULARIES = (1, 2, 63, 64, 65, 100, 127, 128, 129, 130, 300)
Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class _Sampled:
    tokens: Ids
    confidence: Floats
    error: int


# --- distribution


@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0])
@pytest.mark.parametrize("codes", _VOCABULARIES)
def test_tokens_follow_the_softmax(codes: int, temperature: float) -> None:
    logits = _logits(codes, spread=1.5)
    sampled = _draw(logits, sampling=temperature)
    assert _chi_square(sampled.tokens, _softmax(logits, temperature)) < _critical(codes - 1)


def test_the_chi_square_test_notices_another_temperature() -> None:
    logits = _logits(65, spread=1.5)
    sampled = _draw(logits, sampling=1.0)
    assert _chi_square(sampled.tokens, _softmax(logits, 1.1)) > _critical(64)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("guidance", [0.5, 3.0])
def test_guided_tokens_follow_the_guided_softmax(guidance: float, shared: bool) -> None:
    conditional, unconditional = _logits(200, spread=0.7), _logits(200, spread=0.7, seed=9)
    sampled = _draw(
        conditional, unconditional=unconditional, guidance=guidance, sampling=0.8, shared=shared
    )
    guided = conditional + guidance * (conditional - unconditional)
    assert _chi_square(sampled.tokens, _softmax(guided, 0.8)) < _critical(199)


def test_huge_temperature_is_uniform() -> None:
    sampled = _draw(_logits(100, spread=5), sampling=1e9)
    assert _chi_square(sampled.tokens, np.full(100, 0.01)) < _critical(99)


@pytest.mark.parametrize("temperature", [0.0, 1e-4, 1e-30, 1e-31])
def test_no_and_tiny_temperatures_take_the_most_likely_code(temperature: float) -> None:
    logits = np.random.default_rng(5).permutation(300).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampled = _draw(logits, sampling=temperature)
    assert (sampled.tokens == logits.argmax()).all()
    assert sampled.error == 0


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_excluded_codes_are_never_sampled(temperature: float) -> None:
    logits = _logits(400, spread=1)
    logits[:140] = -np.inf  # the whole first chunk, and part of the second
    logits[220:] = -np.inf  # the last two chunks, and part of the second
    sampled = _draw(logits, sampling=temperature)
    assert sampled.error == 0
    assert _chi_square(sampled.tokens, _softmax(logits, temperature)) < _critical(79)
    assert set(np.unique(sampled.tokens).tolist()) <= set(range(140, 220))


@pytest.mark.parametrize("guidance", [0.5, 3.0])
def test_a_code_that_the_condition_excludes_stays_excluded_under_guidance(guidance: float) -> None:
    """Whatever the unconditional half says of it: −∞ too, which would give NaN, or a number."""
    conditional, unconditional = _logits(200, spread=1), _logits(200, spread=1, seed=4)
    conditional[100:] = -np.inf
    unconditional[150:] = -np.inf
    sampled = _draw(conditional, unconditional=unconditional, guidance=guidance)
    assert sampled.error == 0
    guided = conditional[:100] + guidance * (conditional[:100] - unconditional[:100])
    assert _chi_square(sampled.tokens, _softmax(guided, 1)) < _critical(99)


def test_far_apart_logits_do_not_overflow() -> None:
    logits = np.full(129, -1e30, np.float32)
    logits[[3, 128]] = 1e30
    sampled = _draw(logits)
    assert _chi_square(sampled.tokens, _softmax(logits, 1)) < _critical(1)
    np.testing.assert_allclose(sampled.confidence, math.log(0.5), rtol=1e-6)


def test_inverse_cdf_of_the_first_uniform() -> None:
    logits = _logits(200, spread=1)
    sampled = _draw(logits, sampling=0.7, seed=11, step=4)
    uniform = [float(uniforms(np.uint64(11), 4, n)[0]) for n in range(_DRAWS)]
    expected = np.searchsorted(np.cumsum(_softmax(logits, 0.7)), uniform, side="right")
    # The two may part where the uniform falls on an edge, to within rounding: 200 edges of 1e-7.
    assert (sampled.tokens != expected).mean() < 1e-3


# --- confidence


@given(
    batch=st.integers(1, 3),
    count=st.integers(1, 9),
    codes=st.sampled_from(_VOCABULARIES),
    guidance=st.sampled_from([0.0, 0.3, 4.0]),
    temperature=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    seed=st.integers(0, 2**32),
)
def test_confidence_is_the_log_probability_at_temperature_one(
    batch: int, count: int, codes: int, guidance: float, temperature: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    conditional = rng.normal(0, 3, (batch, count, codes)).astype(np.float32)
    unconditional = rng.normal(0, 3, (batch, count, codes)).astype(np.float32)
    found = _sample(
        conditional,
        unconditional,
        np.full((batch, count), codes, np.int32),
        _row(sampling=temperature, guidance=guidance).repeat(batch, axis=0),
        np.arange(batch, dtype=np.uint64),
    )
    wide = conditional.astype(np.float64)
    table = _log_softmax(wide + guidance * (wide - unconditional))
    expected = np.take_along_axis(table, found.tokens[..., None].astype(np.intp), 2)[..., 0]
    assert ((found.tokens >= 0) & (found.tokens < codes)).all()
    np.testing.assert_allclose(found.confidence, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("codes", _VOCABULARIES)
@pytest.mark.parametrize("temperature", [0.0, 0.4, 1.0, 2.0])
def test_other_forms_take_other_confidences(codes: int, temperature: float) -> None:
    """The same tokens; log-softmax after the sampling temperature, or the logit itself."""
    rng = np.random.default_rng(codes)
    conditional, other = (rng.normal(0, 3, (2, 5, codes)).astype(np.float32) for _ in range(2))
    tokens, seeds = np.full((2, 5), codes, np.int32), np.arange(2, dtype=np.uint64)
    row = _row(sampling=temperature, masking=1.5, guidance=0.5).repeat(2, axis=0)
    plain, tempered, logit = (
        _sample(conditional, other, tokens, row, seeds, confidence_of=each) for each in CONFIDENCES
    )
    assert (plain.tokens == tempered.tokens).all()
    assert (plain.tokens == logit.tokens).all()
    wide = conditional.astype(np.float64)
    guided = wide + 0.5 * (wide - other)
    at = plain.tokens[..., None].astype(np.intp)
    gumbel = plain.confidence - np.take_along_axis(_log_softmax(guided), at, 2)[..., 0]
    expected = np.take_along_axis(guided, at, 2)[..., 0] + gumbel
    np.testing.assert_allclose(logit.confidence, expected, rtol=1e-5, atol=5e-5)
    divisor = temperature or 1  # the likeliest code has no probability at temperature 0
    expected = np.take_along_axis(_log_softmax(guided / divisor), at, 2)[..., 0] + gumbel
    np.testing.assert_allclose(tempered.confidence, expected, rtol=1e-5, atol=5e-5)


def test_masking_temperature_scales_gumbel_noise_of_the_second_uniform() -> None:
    logits = _logits(40, spread=1)
    plain, noisy = (_draw(logits, masking=scale, seed=3, step=2) for scale in (0.0, 2.5))
    assert (plain.tokens == noisy.tokens).all()
    uniform = np.array([uniforms(np.uint64(3), 2, n)[1] for n in range(_DRAWS)], np.float64)
    gumbel = -np.log(-np.log(uniform))
    np.testing.assert_allclose(
        (noisy.confidence - plain.confidence)[0], 2.5 * gumbel, rtol=1e-4, atol=1e-5
    )
    # The noise is rounded once to float32, then scaled and added.
    first = [np.float32(-logarithm(value)) for value in uniform.astype(np.float32)]
    single = np.array([-logarithm(value) for value in first], np.float32)
    assert (noisy.confidence == plain.confidence + np.float32(2.5) * single).all()
    # Euler's constant and pi squared over 6, each to 5 standard errors of 40,000 draws.
    assert abs(gumbel.mean() - 0.5772) < 5 * 1.2825 / math.sqrt(_DRAWS)
    assert abs(gumbel.var() - math.pi**2 / 6) < 5 * 3.45 / math.sqrt(_DRAWS)
    assert np.isfinite(noisy.confidence).all()


def test_known_positions_keep_token_and_get_infinite_confidence() -> None:
    tokens = np.array([[4, 8, 0, 8, 7], [1, 2, 3, 4, 5]], np.int32)
    logits = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)
    logits[tokens != 8] = np.nan  # nobody looks at the logits of a known position
    found = _sample(logits, None, tokens, _row().repeat(2, axis=0), np.zeros(2, np.uint64))
    known = tokens != 8
    assert (found.tokens[known] == tokens[known]).all()
    assert np.isposinf(found.confidence[known]).all()
    assert (found.tokens[~known] < 8).all()
    assert np.isfinite(found.confidence[~known]).all()
    assert found.error == 0


def test_known_positions_draw_again_where_the_form_says_so() -> None:
    """As masked ones do, but those that are given; all of them keep their infinite confidence."""
    rng = np.random.default_rng(4)
    logits = rng.normal(0, 2, (2, 30, 40)).astype(np.float32)
    mask, row = (rng.random((2, 30)) < 0.7).astype(np.uint8), _row(masking=2.0).repeat(2, axis=0)
    tokens = np.where(rng.random((2, 30)) < 0.4, 40, rng.integers(0, 40, (2, 30))).astype(np.int32)
    seeds = np.array([1, 2], np.uint64)
    every = _sample(logits, None, np.full_like(tokens, 40), row, seeds)
    found = _sample(logits, None, tokens, row, seeds, mask=mask)
    known, masked = tokens != 40, tokens == 40
    again = masked | (mask != 0)
    np.testing.assert_array_equal(found.tokens, np.where(again, every.tokens, tokens))
    assert np.isposinf(found.confidence[known]).all()
    np.testing.assert_array_equal(found.confidence[masked], every.confidence[masked])


# --- independence of the batch


def test_an_image_does_not_depend_on_its_batch() -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(4, 6, 33)).astype(np.float32)
    other = rng.normal(size=(4, 6, 33)).astype(np.float32)
    seeds = np.array([5, 2**63 + 1, 0, 7], np.uint64)
    parameters = np.concatenate([_row(sampling=s, masking=1, guidance=2) for s in (0, 0.5, 1, 2)])
    tokens = np.where(rng.random((4, 6)) < 0.7, 33, 1).astype(np.int32)
    together = _sample(logits, other, tokens, parameters, seeds)
    for i in range(4):
        row = slice(i, i + 1)
        alone = _sample(logits[row], other[row], tokens[row], parameters[row], seeds[row])
        assert (alone.tokens == together.tokens[row]).all()
        assert (alone.confidence == together.confidence[row]).all()


def test_a_position_does_not_depend_on_the_others_being_masked() -> None:
    logits = np.random.default_rng(4).normal(size=(1, 20, 50)).astype(np.float32)
    everywhere = np.full((1, 20), 50, np.int32)
    some = everywhere.copy()
    some[0, ::2] = 0
    seeds = np.array([1], np.uint64)
    full, part = (_sample(logits, None, tokens, _row(), seeds) for tokens in (everywhere, some))
    assert (full.tokens[0, 1::2] == part.tokens[0, 1::2]).all()


def test_inputs_are_left_as_they_were() -> None:
    rng = np.random.default_rng(1)
    logits, other = (rng.normal(size=(1, 4, 10)).astype(np.float32) for _ in range(2))
    copies = logits.copy(), other.copy()
    _sample(logits, other, np.full((1, 4), 10, np.int32), _row(guidance=2), np.zeros(1, np.uint64))
    assert (logits == copies[0]).all()
    assert (other == copies[1]).all()


# --- unusable logits


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("codes", [64, 65, 128, 129, 300])
@pytest.mark.parametrize("bad", ["nan", "plus infinity", "nothing but minus infinity"])
def test_unusable_logits_raise_the_flag(bad: str, codes: int, temperature: float) -> None:
    logits = np.random.default_rng(0).normal(size=(2, 5, codes)).astype(np.float32)
    if bad == "nan":
        logits[1, 3, codes - 1] = np.nan
    elif bad == "plus infinity":
        logits[1, 3, 0] = np.inf
    else:
        logits[1, 3] = -np.inf
    tokens = np.full((2, 5), codes, np.int32)
    parameters = _row(sampling=temperature).repeat(2, axis=0)
    found = _sample(logits, None, tokens, parameters, np.zeros(2, np.uint64))
    assert found.error == 1
    assert ((found.tokens >= 0) & (found.tokens < codes)).all()


def test_unusable_unconditional_logits_raise_the_flag_only_if_used() -> None:
    logits = np.zeros((1, 1, 4), np.float32)
    broken = np.full((1, 1, 4), np.nan, np.float32)
    tokens, seeds = np.full((1, 1), 4, np.int32), np.zeros(1, np.uint64)
    assert _sample(logits, broken, tokens, _row(guidance=1), seeds).error == 1
    assert _sample(logits, broken, tokens, _row(guidance=0), seeds).error == 0


def test_a_temperature_that_is_not_a_number_raises_the_flag_of_its_image_alone() -> None:
    logits = np.random.default_rng(0).normal(size=(2, 5, 130)).astype(np.float32)
    tokens, seeds = np.full((2, 5), 130, np.int32), np.arange(2, dtype=np.uint64)
    parameters = np.concatenate([_row(sampling=math.nan), _row(sampling=0.5)])
    found = _sample(logits, None, tokens, parameters, seeds)
    assert found.error == 1
    assert (found.tokens[0] == 0).all()
    alone = _sample(logits[1:], None, tokens[1:], parameters[1:], seeds[1:])
    assert alone.error == 0
    assert (found.tokens[1] == alone.tokens[0]).all()


def test_the_flag_is_never_taken_down() -> None:
    tokens, seeds = np.full((1, 1), 4, np.int32), np.zeros(1, np.uint64)
    found = _sample(np.zeros((1, 1, 4), np.float32), None, tokens, _row(), seeds, flag=1)
    assert found.error == 1


# --- helpers


def _draw(
    logits: Floats,
    *,
    unconditional: Floats | None = None,
    shared: bool = False,
    sampling: float = 1.0,
    masking: float = 0.0,
    guidance: float = 0.0,
    seed: int = 7,
    step: int = 0,
) -> _Sampled:
    """One image of ``_DRAWS`` positions that all have the same logits."""

    def everywhere(row: Floats) -> Floats:
        return np.tile(row.astype(np.float32), (1, _DRAWS, 1))

    other = None if unconditional is None else everywhere(unconditional)
    images = 2 if shared else 1  # a second image, so that [1, N, V] is shared and not its own
    return _sample(
        everywhere(logits).repeat(images, axis=0),
        other,
        np.full((images, _DRAWS), len(logits), np.int32),
        _row(sampling=sampling, masking=masking, guidance=guidance).repeat(images, axis=0),
        np.arange(seed - images + 1, seed + 1).astype(np.uint64),
        step=step,
    )


def _sample(
    conditional: Floats,
    unconditional: Floats | None,
    tokens: Ids,
    parameters: Floats,
    seeds: npt.NDArray[np.uint64],
    *,
    step: int = 0,
    flag: int = 0,
    confidence_of: str = "log-probability",
    mask: npt.NDArray[np.uint8] | None = None,
) -> _Sampled:
    sampled = np.full(tokens.shape, -5, np.int32)
    confidence = np.full(tokens.shape, np.nan, np.float32)
    error = np.array([flag], np.int32)
    if unconditional is None:  # without guidance it is not read: a NaN would show
        unconditional = np.full_like(conditional[:1], np.nan)
    sample_tokens(
        conditional=conditional,
        unconditional=unconditional,
        tokens=tokens,
        parameters=parameters,
        seeds=seeds,
        step=step,
        mask_token=conditional.shape[2],
        sampled=sampled,
        confidence=confidence,
        error=error,
        confidence_of=CONFIDENCES.index(confidence_of),
        mask=np.ones(tokens.shape, np.uint8) if mask is None else mask,
        resample=int(mask is not None),
    )
    return _Sampled(sampled, confidence, int(error[0]))


def _row(*, sampling: float = 1.0, masking: float = 0.0, guidance: float = 0.0) -> Floats:
    return np.array([[0.5, masking, sampling, guidance]], np.float32)


def _logits(codes: int, *, spread: float, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(0, spread, codes).astype(np.float32)


def _softmax(logits: Floats, temperature: float) -> npt.NDArray[np.float64]:
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    normalised: npt.NDArray[np.float64] = weights / weights.sum()
    return normalised


def _log_softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    found: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return found


def _chi_square(tokens: Ids, probabilities: npt.NDArray[np.float64]) -> float:
    """Pearson's statistic; codes expected less than 5 times are counted together."""
    observed = np.bincount(tokens.ravel(), minlength=len(probabilities)).astype(np.float64)
    expected = probabilities * tokens.size
    rare = expected < 5
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], max(expected[rare].sum(), 1e-9))
    return float(((observed - expected) ** 2 / expected).sum())


def _critical(freedom: int) -> float:
    """Chi-square value exceeded with probability 1e-6 (Wilson–Hilferty; 4.7534 normal sigmas).

    Tables: 23.9 for 1 degree of freedom (this gives 24.6), 125.6 for 63 (this gives 125.5).
    """
    if freedom == 0:
        return 1e-6
    spread = 2 / (9 * freedom)
    return freedom * (1 - spread + 4.7534 * math.sqrt(spread)) ** 3
