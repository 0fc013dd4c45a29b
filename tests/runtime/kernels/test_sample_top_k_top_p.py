"""Top-k, nucleus and sampling against the official rule, written again in NumPy and float64.

Covered: which codes are kept, at random, with ties at the k-th largest logit and at the edge of
the nucleus, at both ends of top-k and top-p, from 1 code to 65,536; the distribution of the tokens
and the interval of each; both ends of the temperature; guidance with own and shared unconditional
logits; given ids; batches; unusable logits, parameters and ids.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.runtime.kernels.philox import uniforms
from fewstep.runtime.kernels.sample_top_k_top_p import kept, sample_top_k_top_p

_ALL = 1e9  # a top-k that drops nothing
_SIZES = (1, 2, 3, 31, 256, 257, 1000, 4096, 8193, 65_536)
Array = npt.NDArray[Any]


def _logits(codes: int, spread: float = 2.0, seed: int = 0) -> Array:
    return np.random.default_rng([codes, seed]).normal(0, spread, codes).astype(np.float32)


def _kept(logits: Array, top_k: float, top_p: float) -> tuple[Array, Array]:
    """The official rule, and which codes are too close to the edge of the nucleus to tell."""
    wide, k, p = logits.astype(np.float64), int(top_k), float(np.float32(top_p))
    mask = wide > -np.inf
    if 0 < k < len(wide):
        mask &= wide >= np.sort(wide)[-k]
    if p >= 1:
        return mask, np.zeros_like(mask)
    order = np.argsort(np.where(mask, wide, -np.inf), kind="stable")
    weights = np.where(mask, np.exp(wide - wide.max()), 0)[order]
    cumulated = weights.cumsum() / weights.sum()
    dropped = cumulated <= 1 - p
    dropped[-1] = False
    mask[order[dropped]] = False
    unsure = np.zeros_like(mask)
    unsure[order[np.abs(cumulated - (1 - p)) < 3e-7]] = True
    return mask, unsure


def _sample(
    conditional: Array,
    parameters: tuple[float, ...] | Array,
    *,
    unconditional: Array | None = None,
    ids: Array | None = None,
    seeds: Array | None = None,
    step: int = 0,
    flag: int = 0,
    mask_token: int = -1,
) -> tuple[Array, int]:
    """Tokens ``[B, N]`` and the error flag; parameters of one image hold for all."""
    batch, count, codes = conditional.shape
    other = np.full((1, count, codes), np.nan, np.float32)  # not read without guidance
    tokens, error = np.full((batch, count), -99, np.int32), np.array([flag], np.int32)
    sample_top_k_top_p(
        conditional=np.ascontiguousarray(conditional, np.float32),
        unconditional=other if unconditional is None else unconditional,
        parameters=np.resize(np.asarray(parameters, np.float32), (batch, 4)),
        seeds=np.arange(5, 5 + batch, dtype=np.uint64) if seeds is None else seeds,
        step=step,
        given=np.full((batch, count), -1, np.int32) if ids is None else ids,
        tokens=tokens,
        error=error,
        mask_token=mask_token,
    )
    return tokens, int(error[0])


def _softmax(logits: Array, temperature: float, left: Array) -> Array:
    wide = logits.astype(np.float64)
    weights = np.where(left, np.exp((wide - wide[left].max()) / temperature), 0)
    return np.asarray(weights / weights.sum())


# --- what is kept


@pytest.mark.parametrize("codes", _SIZES)
def test_the_kept_set_is_the_official_one(codes: int) -> None:
    for seed, top_k in enumerate((1, 2, 30.9, 900, codes - 1, codes, codes + 1, 0, 0.99)):
        for top_p in (0, 1e-6, 0.3, 0.95, 0.9999, 1, 2):
            logits = _logits(codes, spread=0.5 + seed, seed=seed)
            expected, unsure = _kept(logits, top_k, top_p)
            found = kept(logits, float(top_k), float(top_p))
            np.testing.assert_array_equal(found[~unsure], expected[~unsure])


@given(
    values=st.lists(st.sampled_from([-math.inf, -40, -1.5, -0.0, 0.0, 0.25, 3]), min_size=1),
    top_k=st.integers(0, 12),
    top_p=st.sampled_from([0, 1e-3, 0.2, 0.55, 0.8, 0.99, 1]),
)
def test_ties_are_those_of_a_stable_sort(values: list[float], top_k: int, top_p: float) -> None:
    logits = np.array([*values, 0.5], np.float32)
    expected, unsure = _kept(logits, top_k, top_p)
    found = kept(logits, float(top_k), float(top_p))
    np.testing.assert_array_equal(found[~unsure], expected[~unsure])


@given(codes=st.integers(1, 300), top_p=st.floats(0, 1, width=32))
def test_of_equal_codes_the_first_are_dropped_to_the_last_bit(codes: int, top_p: float) -> None:
    dropped = min(math.floor((1 - Fraction(top_p)) * codes), codes - 1)
    found = kept(np.full(codes, -7.5, np.float32), _ALL, top_p)
    assert found.tolist() == [False] * dropped + [True] * (codes - dropped)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_ties_with_the_kth_largest_stay(top_k: int) -> None:
    logits = np.array([1, 2, 5, 2, 7, 2, -0.0, 0.0], np.float32)
    ties = {1: [4], 2: [2, 4], 3: [1, 2, 3, 4, 5]}
    assert np.flatnonzero(kept(logits, float(top_k), 1.0)).tolist() == ties[top_k]


def test_zeros_of_both_signs_are_equal() -> None:
    logits = np.array([-1, 0.0, -0.0, 0.0], np.float32)
    assert kept(logits, 1.0, 1.0).tolist() == [False, True, True, True]
    assert kept(logits, 1.0, 0.0).tolist() == [False, False, False, True]


def test_without_top_p_only_the_last_of_the_largest_is_left() -> None:
    logits = np.array([3, 9, 1, 9, 2], np.float32)
    assert np.flatnonzero(kept(logits, _ALL, 0.0)).tolist() == [3]


def test_the_nucleus_is_of_what_top_k_leaves_at_temperature_1() -> None:
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    assert kept(logits, _ALL, 0.75).tolist() == [True, True, True, False]
    assert kept(logits, 2.0, 0.55).tolist() == [True, False, False, False]
    tokens, _ = _sample(np.tile(logits, (1, 500, 1)), (0, 0, 0.75, 50))
    assert set(tokens[0].tolist()) == {0, 1, 2}


@pytest.mark.parametrize("bad", [math.nan, math.inf, None])
def test_nothing_is_kept_of_an_unusable_row(bad: float | None) -> None:
    logits = np.full(9, -np.inf, np.float32)
    logits[4] = -np.inf if bad is None else bad
    assert not kept(logits, 3.0, 0.5).any()
    assert not kept(_logits(9), math.nan, 0.5).any()


# --- what is drawn


@pytest.mark.parametrize(
    "parameters", [(0, 0, 1, 1), (0, 40, 1, 0.7), (0, 0, 0.8, 1.6), (0, 60, 0.9, 1), (0, 1, 1, 3)]
)
def test_tokens_follow_the_softmax_over_what_is_kept(parameters: tuple[float, ...]) -> None:
    logits, count = _logits(200, spread=1.5), 40_000
    tokens, error = _sample(np.tile(logits, (2, count // 2, 1)), parameters)
    left, _ = _kept(logits, parameters[1], parameters[2])
    expected = _softmax(logits, parameters[3], left)[left] * count
    counts = np.bincount(tokens.ravel(), minlength=200)
    assert error == 0
    assert counts[left].sum() == count
    freedom = left.sum() - 1
    value = ((counts[left] - expected) ** 2 / expected).sum()
    assert value <= freedom + 6 * math.sqrt(2 * freedom) + 12 * (freedom > 0) + 1e-6


@given(
    codes=st.sampled_from([1, 2, 33, 256, 300, 1000]),
    top_k=st.sampled_from([0, 1, 5, 250, 5000]),
    top_p=st.sampled_from([0, 0.3, 0.96, 1]),
    temperature=st.sampled_from([1e-30, 0.3, 1, 4, math.inf]),
    guidance=st.sampled_from([0, 0.5, 4]),
    shared=st.booleans(),
    step=st.integers(0, 9),
    seed=st.integers(0, 2**64 - 1),
)
def test_the_uniform_falls_in_the_interval_of_the_token(
    codes: int,
    top_k: float,
    top_p: float,
    temperature: float,
    guidance: float,
    shared: bool,
    step: int,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    conditional = rng.normal(0, 2, (2, 3, codes)).astype(np.float32)
    other = rng.normal(0, 1, (1 if shared else 2, 3, codes)).astype(np.float32)
    seeds = rng.integers(0, 2**64, 2, np.uint64)
    tokens, error = _sample(
        conditional,
        (guidance, top_k, top_p, temperature),
        unconditional=other,
        seeds=seeds,
        step=step,
    )
    guided = conditional + np.float32(guidance) * (conditional - other)
    assert error == 0
    for image, position in np.ndindex(2, 3):
        left, unsure = _kept(guided[image, position], top_k, top_p)
        if unsure.any():
            continue
        weights = _softmax(guided[image, position], temperature, left)
        end = weights.cumsum()[tokens[image, position]]
        uniform = float(uniforms(np.uint64(seeds[image]), step, position)[0])
        assert left[tokens[image, position]]
        assert end - weights[tokens[image, position]] - 1e-6 < uniform < end + 1e-6


@pytest.mark.parametrize("codes", _SIZES)
def test_equal_logits_are_divided_evenly_to_the_last_bit(codes: int) -> None:
    for temperature in (0.3, 1, 7):
        tokens, _ = _sample(np.full((1, 40, codes), -2.5), (0, 0, 1, temperature))
        expected = [int(float(uniforms(np.uint64(5), 0, n)[0]) * codes) for n in range(40)]
        assert tokens[0].tolist() == expected


@pytest.mark.parametrize("temperature", [0, 1e-45, 1e-31])
def test_below_the_lowest_temperature_the_first_of_the_largest_kept_is_taken(
    temperature: float,
) -> None:
    logits = np.minimum(_logits(300), 1.5)
    logits[[40, 90, 290]] = 2
    rows = np.tile(logits, (1, 20, 1))
    assert (_sample(rows, (0, 0, 1, temperature))[0] == 40).all()
    assert (_sample(rows, (0, 1, 1, temperature))[0] == 40).all()
    assert (_sample(rows, (0, 3, 0.5, temperature))[0] == 90).all()
    assert (_sample(rows, (0, 0, 0, temperature))[0] == 290).all()


def test_excluded_codes_are_never_drawn() -> None:
    logits = _logits(300)
    logits[:100] = logits[180:] = -np.inf
    for parameters in ((0, 0, 1, 1), (0, 299, 0.999, 1), (0, 0, 1, math.inf)):
        tokens, error = _sample(np.tile(logits, (1, 500, 1)), parameters)
        assert (tokens >= 100).all()
        assert (tokens < 180).all()
        assert error == 0


def test_a_code_that_the_condition_excludes_stays_excluded_under_guidance() -> None:
    logits, other = np.zeros((1, 200, 9), np.float32), np.zeros((1, 200, 9), np.float32)
    logits[:, :, 5:] = -np.inf
    other[:, :, 7:] = -np.inf
    tokens, error = _sample(logits, (3, 8, 0.99, 1), unconditional=other)
    assert set(tokens[0].tolist()) <= set(range(5))
    assert error == 0


def test_logits_at_both_ends_of_float32_do_not_overflow() -> None:
    logits = np.full((1, 40, 300), -3e38, np.float32)
    logits[:, :, [7, 299]] = 3e38
    for parameters in ((0, 0, 1, 1), (0, 5, 0.9, 0.5), (0, 5, 0.9, 1e-30)):
        tokens, error = _sample(logits, parameters)
        assert set(tokens[0].tolist()) == {7, 299}
        assert error == 0


# --- what is given, and batches


def test_given_ids_are_the_tokens_and_their_logits_are_not_read() -> None:
    logits = np.tile(_logits(50), (2, 4, 1))
    free, _ = _sample(logits, (0, 9, 0.9, 1))
    ids = np.array([[-1, 3, -7, 0], [49, -1, -(2**31), 8]], np.int32)
    logits[ids >= 0] = np.nan
    tokens, error = _sample(logits, (0, 9, 0.9, 1), ids=ids)
    np.testing.assert_array_equal(tokens, np.where(ids < 0, free, ids))
    assert error == 0


@pytest.mark.parametrize("wrong", [50, 51, 2**31 - 1])
def test_a_given_id_that_is_no_code_sets_the_flag(wrong: int) -> None:
    ids = np.array([[3, wrong]], np.int32)
    tokens, error = _sample(np.zeros((1, 2, 50)), (0, 0, 1, 1), ids=ids)
    assert (tokens.tolist(), error) == ([[3, 0]], 1)


def test_a_given_mask_token_stays_and_is_no_error() -> None:
    ids = np.array([[3, 50, -1, 51]], np.int32)
    logits = np.full((1, 4, 50), np.nan, np.float32)
    logits[0, 2] = _logits(50)
    tokens, error = _sample(logits, (0, 1, 1, 1), ids=ids, mask_token=50)
    assert (tokens.tolist(), error) == ([[3, 50, int(logits[0, 2].argmax()), 0]], 1)
    assert _sample(logits[:, :3], (0, 1, 1, 1), ids=ids[:, :3], mask_token=50)[1] == 0


def test_an_image_does_not_depend_on_its_batch() -> None:
    rng = np.random.default_rng(3)
    conditional = rng.normal(0, 2, (3, 5, 133)).astype(np.float32)
    other = rng.normal(0, 2, (3, 5, 133)).astype(np.float32)
    parameters = np.array([[1, 20, 0.9, 1], [0, 0, 1, 0], [0.5, 0, 0.5, 2]], np.float32)
    seeds = np.array([1, 2**63, 7], np.uint64)
    together, _ = _sample(conditional, parameters, unconditional=other, seeds=seeds)
    for image in range(3):
        row = slice(image, image + 1)
        alone, _ = _sample(
            conditional[row], parameters[row], unconditional=other[row], seeds=seeds[row]
        )
        np.testing.assert_array_equal(alone, together[row])


# --- what is unusable


@pytest.mark.parametrize("bad", [math.nan, math.inf, "all"])
@pytest.mark.parametrize("parameters", [(0, 0, 1, 1), (0, 5, 0.5, 0), (2, 0, 0.5, 1)])
def test_an_unusable_row_sets_the_flag_and_gives_0(
    bad: float | str, parameters: tuple[float, ...]
) -> None:
    logits, other = np.tile(_logits(40), (1, 3, 1)), np.zeros((1, 3, 40), np.float32)
    sound, flag = _sample(logits, parameters, unconditional=other)
    assert flag == 0
    logits[0, 1, slice(None) if bad == "all" else 39] = -np.inf if bad == "all" else bad
    tokens, error = _sample(logits, parameters, unconditional=other)
    assert error == 1
    assert tokens[0].tolist() == [sound[0, 0], 0, sound[0, 2]]


@pytest.mark.parametrize("bad", [math.nan, -1e-3, -math.inf])
@pytest.mark.parametrize("column", range(4))
def test_a_parameter_that_is_nan_or_negative_sets_the_flag_and_gives_0(
    bad: float, column: int
) -> None:
    logits, parameters = np.tile(_logits(40), (2, 3, 1)), np.tile([0, 9, 0.5, 1], (2, 1))
    sound, _ = _sample(logits, parameters)
    parameters[1, column] = bad
    tokens, error = _sample(logits, parameters, unconditional=logits)
    assert error == 1
    assert tokens.tolist() == [sound[0].tolist(), [0, 0, 0]]


def test_the_flag_is_never_taken_down() -> None:
    assert _sample(np.zeros((1, 1, 4)), (0, 0, 1, 1), flag=1)[1] == 1
