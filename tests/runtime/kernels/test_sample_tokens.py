"""Sampling: its distribution, and what it does with unusable logits.

Covered: chi-square tests against softmax(l / temperature) computed in float64, vocabularies that
are and are not multiples of the chunk, guidance with own and shared unconditional logits, both
ends of the temperature, excluded codes, and the error flag. The search within one row is tested in
``test_sample_row.py``, confidences in ``test_confidences.py``.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import numpy.typing as npt
import pytest
from tests.runtime.kernels.sampled import (
    DRAWS,
    VOCABULARIES,
    Ids,
    draw,
    logits_of,
    row_of,
    sample,
    softmax,
)

from fewstep.runtime.kernels.philox import uniforms

# --- distribution


@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0])
@pytest.mark.parametrize("codes", VOCABULARIES)
def test_tokens_follow_the_softmax(codes: int, temperature: float) -> None:
    logits = logits_of(codes, spread=1.5)
    sampled = draw(logits, sampling=temperature)
    assert _chi_square(sampled.tokens, softmax(logits, temperature)) < _critical(codes - 1)


def test_the_chi_square_test_notices_another_temperature() -> None:
    logits = logits_of(65, spread=1.5)
    sampled = draw(logits, sampling=1.0)
    assert _chi_square(sampled.tokens, softmax(logits, 1.1)) > _critical(64)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("guidance", [0.5, 3.0])
def test_guided_tokens_follow_the_guided_softmax(guidance: float, shared: bool) -> None:
    conditional, unconditional = logits_of(200, spread=0.7), logits_of(200, spread=0.7, seed=9)
    sampled = draw(
        conditional, unconditional=unconditional, guidance=guidance, sampling=0.8, shared=shared
    )
    guided = conditional + guidance * (conditional - unconditional)
    assert _chi_square(sampled.tokens, softmax(guided, 0.8)) < _critical(199)


def test_huge_temperature_is_uniform() -> None:
    sampled = draw(logits_of(100, spread=5), sampling=1e9)
    assert _chi_square(sampled.tokens, np.full(100, 0.01)) < _critical(99)


@pytest.mark.parametrize("temperature", [0.0, 1e-4, 1e-30, 1e-31])
def test_no_and_tiny_temperatures_take_the_most_likely_code(temperature: float) -> None:
    logits = np.random.default_rng(5).permutation(300).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampled = draw(logits, sampling=temperature)
    assert (sampled.tokens == logits.argmax()).all()
    assert sampled.error == 0


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_excluded_codes_are_never_sampled(temperature: float) -> None:
    logits = logits_of(400, spread=1)
    logits[:140] = -np.inf  # the whole first chunk, and part of the second
    logits[220:] = -np.inf  # the last two chunks, and part of the second
    sampled = draw(logits, sampling=temperature)
    assert sampled.error == 0
    assert _chi_square(sampled.tokens, softmax(logits, temperature)) < _critical(79)
    assert set(np.unique(sampled.tokens).tolist()) <= set(range(140, 220))


@pytest.mark.parametrize("guidance", [0.5, 3.0])
def test_a_code_that_the_condition_excludes_stays_excluded_under_guidance(guidance: float) -> None:
    """Whatever the unconditional half says of it: −∞ too, which would give NaN, or a number."""
    conditional, unconditional = logits_of(200, spread=1), logits_of(200, spread=1, seed=4)
    conditional[100:] = -np.inf
    unconditional[150:] = -np.inf
    sampled = draw(conditional, unconditional=unconditional, guidance=guidance)
    assert sampled.error == 0
    guided = conditional[:100] + guidance * (conditional[:100] - unconditional[:100])
    assert _chi_square(sampled.tokens, softmax(guided, 1)) < _critical(99)


def test_far_apart_logits_do_not_overflow() -> None:
    logits = np.full(129, -1e30, np.float32)
    logits[[3, 128]] = 1e30
    sampled = draw(logits)
    assert _chi_square(sampled.tokens, softmax(logits, 1)) < _critical(1)
    np.testing.assert_allclose(sampled.confidence, math.log(0.5), rtol=1e-6)


def test_inverse_cdf_of_the_first_uniform() -> None:
    logits = logits_of(200, spread=1)
    sampled = draw(logits, sampling=0.7, seed=11, step=4)
    uniform = [float(uniforms(np.uint64(11), 4, n)[0]) for n in range(DRAWS)]
    expected = np.searchsorted(np.cumsum(softmax(logits, 0.7)), uniform, side="right")
    # The two may part where the uniform falls on an edge, to within rounding: 200 edges of 1e-7.
    assert (sampled.tokens != expected).mean() < 1e-3


# --- independence of the batch


def test_an_image_does_not_depend_on_its_batch() -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(4, 6, 33)).astype(np.float32)
    other = rng.normal(size=(4, 6, 33)).astype(np.float32)
    seeds = np.array([5, 2**63 + 1, 0, 7], np.uint64)
    parameters = np.concatenate([row_of(sampling=s, masking=1, guidance=2) for s in (0, 0.5, 1, 2)])
    tokens = np.where(rng.random((4, 6)) < 0.7, 33, 1).astype(np.int32)
    together = sample(logits, other, tokens, parameters, seeds)
    for i in range(4):
        row = slice(i, i + 1)
        alone = sample(logits[row], other[row], tokens[row], parameters[row], seeds[row])
        assert (alone.tokens == together.tokens[row]).all()
        assert (alone.confidence == together.confidence[row]).all()


def test_a_position_does_not_depend_on_the_others_being_masked() -> None:
    logits = np.random.default_rng(4).normal(size=(1, 20, 50)).astype(np.float32)
    everywhere = np.full((1, 20), 50, np.int32)
    some = everywhere.copy()
    some[0, ::2] = 0
    seeds = np.array([1], np.uint64)
    full, part = (sample(logits, None, tokens, row_of(), seeds) for tokens in (everywhere, some))
    assert (full.tokens[0, 1::2] == part.tokens[0, 1::2]).all()


def test_inputs_are_left_as_they_were() -> None:
    rng = np.random.default_rng(1)
    logits, other = (rng.normal(size=(1, 4, 10)).astype(np.float32) for _ in range(2))
    copies = logits.copy(), other.copy()
    sample(logits, other, np.full((1, 4), 10, np.int32), row_of(guidance=2), np.zeros(1, np.uint64))
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
    parameters = row_of(sampling=temperature).repeat(2, axis=0)
    found = sample(logits, None, tokens, parameters, np.zeros(2, np.uint64))
    assert found.error == 1
    assert ((found.tokens >= 0) & (found.tokens < codes)).all()


def test_unusable_unconditional_logits_raise_the_flag_only_if_used() -> None:
    logits = np.zeros((1, 1, 4), np.float32)
    broken = np.full((1, 1, 4), np.nan, np.float32)
    tokens, seeds = np.full((1, 1), 4, np.int32), np.zeros(1, np.uint64)
    assert sample(logits, broken, tokens, row_of(guidance=1), seeds).error == 1
    assert sample(logits, broken, tokens, row_of(guidance=0), seeds).error == 0


def test_a_temperature_that_is_not_a_number_raises_the_flag_of_its_image_alone() -> None:
    logits = np.random.default_rng(0).normal(size=(2, 5, 130)).astype(np.float32)
    tokens, seeds = np.full((2, 5), 130, np.int32), np.arange(2, dtype=np.uint64)
    parameters = np.concatenate([row_of(sampling=math.nan), row_of(sampling=0.5)])
    found = sample(logits, None, tokens, parameters, seeds)
    assert found.error == 1
    assert (found.tokens[0] == 0).all()
    alone = sample(logits[1:], None, tokens[1:], parameters[1:], seeds[1:])
    assert alone.error == 0
    assert (found.tokens[1] == alone.tokens[0]).all()


def test_the_flag_is_never_taken_down() -> None:
    tokens, seeds = np.full((1, 1), 4, np.int32), np.zeros(1, np.uint64)
    found = sample(np.zeros((1, 1, 4), np.float32), None, tokens, row_of(), seeds, flag=1)
    assert found.error == 1


# --- helpers


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
