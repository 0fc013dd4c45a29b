"""Confidences of sampled tokens: the log-probability or what else a form takes, Gumbel noise, and
what becomes of known positions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.runtime.kernels.sampled import (
    DRAWS,
    VOCABULARIES,
    draw,
    log_softmax,
    logits_of,
    row_of,
    sample,
)

from fewstep.runtime.kernels.choices import CONFIDENCES
from fewstep.runtime.kernels.logarithm import logarithm
from fewstep.runtime.kernels.philox import uniforms


@given(
    batch=st.integers(1, 3),
    count=st.integers(1, 9),
    codes=st.sampled_from(VOCABULARIES),
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
    found = sample(
        conditional,
        unconditional,
        np.full((batch, count), codes, np.int32),
        row_of(sampling=temperature, guidance=guidance).repeat(batch, axis=0),
        np.arange(batch, dtype=np.uint64),
    )
    wide = conditional.astype(np.float64)
    table = log_softmax(wide + guidance * (wide - unconditional))
    expected = np.take_along_axis(table, found.tokens[..., None].astype(np.intp), 2)[..., 0]
    assert ((found.tokens >= 0) & (found.tokens < codes)).all()
    np.testing.assert_allclose(found.confidence, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("codes", VOCABULARIES)
@pytest.mark.parametrize("temperature", [0.0, 0.4, 1.0, 2.0])
def test_other_forms_take_other_confidences(codes: int, temperature: float) -> None:
    """The same tokens; log-softmax after the sampling temperature, or the logit itself."""
    rng = np.random.default_rng(codes)
    conditional, other = (rng.normal(0, 3, (2, 5, codes)).astype(np.float32) for _ in range(2))
    tokens, seeds = np.full((2, 5), codes, np.int32), np.arange(2, dtype=np.uint64)
    row = row_of(sampling=temperature, masking=1.5, guidance=0.5).repeat(2, axis=0)
    plain, tempered, logit = (
        sample(conditional, other, tokens, row, seeds, confidence_of=each) for each in CONFIDENCES
    )
    assert (plain.tokens == tempered.tokens).all()
    assert (plain.tokens == logit.tokens).all()
    wide = conditional.astype(np.float64)
    guided = wide + 0.5 * (wide - other)
    at = plain.tokens[..., None].astype(np.intp)
    gumbel = plain.confidence - np.take_along_axis(log_softmax(guided), at, 2)[..., 0]
    expected = np.take_along_axis(guided, at, 2)[..., 0] + gumbel
    np.testing.assert_allclose(logit.confidence, expected, rtol=1e-5, atol=5e-5)
    divisor = temperature or 1  # the likeliest code has no probability at temperature 0
    expected = np.take_along_axis(log_softmax(guided / divisor), at, 2)[..., 0] + gumbel
    np.testing.assert_allclose(tempered.confidence, expected, rtol=1e-5, atol=5e-5)


def test_masking_temperature_scales_gumbel_noise_of_the_second_uniform() -> None:
    logits = logits_of(40, spread=1)
    plain, noisy = (draw(logits, masking=scale, seed=3, step=2) for scale in (0.0, 2.5))
    assert (plain.tokens == noisy.tokens).all()
    uniform = np.array([uniforms(np.uint64(3), 2, n)[1] for n in range(DRAWS)], np.float64)
    gumbel = -np.log(-np.log(uniform))
    np.testing.assert_allclose(
        (noisy.confidence - plain.confidence)[0], 2.5 * gumbel, rtol=1e-4, atol=1e-5
    )
    # The noise is rounded once to float32, then scaled and added.
    first = [np.float32(-logarithm(value)) for value in uniform.astype(np.float32)]
    single = np.array([-logarithm(value) for value in first], np.float32)
    assert (noisy.confidence == plain.confidence + np.float32(2.5) * single).all()
    # Euler's constant and pi squared over 6, each to 5 standard errors of 40,000 draws.
    assert abs(gumbel.mean() - 0.5772) < 5 * 1.2825 / math.sqrt(DRAWS)
    assert abs(gumbel.var() - math.pi**2 / 6) < 5 * 3.45 / math.sqrt(DRAWS)
    assert np.isfinite(noisy.confidence).all()


def test_known_positions_keep_token_and_get_infinite_confidence() -> None:
    tokens = np.array([[4, 8, 0, 8, 7], [1, 2, 3, 4, 5]], np.int32)
    logits = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)
    logits[tokens != 8] = np.nan  # nobody looks at the logits of a known position
    found = sample(logits, None, tokens, row_of().repeat(2, axis=0), np.zeros(2, np.uint64))
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
    mask, row = (rng.random((2, 30)) < 0.7).astype(np.uint8), row_of(masking=2.0).repeat(2, axis=0)
    tokens = np.where(rng.random((2, 30)) < 0.4, 40, rng.integers(0, 40, (2, 30))).astype(np.int32)
    seeds = np.array([1, 2], np.uint64)
    every = sample(logits, None, np.full_like(tokens, 40), row, seeds)
    found = sample(logits, None, tokens, row, seeds, mask=mask)
    known, masked = tokens != 40, tokens == 40
    again = masked | (mask != 0)
    np.testing.assert_array_equal(found.tokens, np.where(again, every.tokens, tokens))
    assert np.isposinf(found.confidence[known]).all()
    np.testing.assert_array_equal(found.confidence[masked], every.confidence[masked])
