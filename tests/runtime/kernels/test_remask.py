"""Top-k confidence masking against a sort in plain Python.

Covered: ties, ratios at and beyond both ends, known positions at +infinity, the floor of N times
the ratio in float32, both halves under guidance, and NaN, which must not crash the loop.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fewstep.runtime.kernels.choices import AT_LEAST_ONE, TIES
from fewstep.runtime.kernels.cpu import KERNELS
from fewstep.runtime.kernels.remask import remask

_MASK = 9_999
_RECORDED = Path(__file__).parents[2] / "data" / "maskgit_orig.npz"
Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]

# A few values only, so that ties are common; infinity is a known position.
_CONFIDENCES = st.sampled_from([-7.25, -3.0, -1.0, -0.5, 0.0, 2.5, math.inf])
_RATIOS = st.one_of(st.sampled_from([0.0, 1.0, 1e-30, 0.5, 0.999999]), st.floats(0, 1, width=32))


@st.composite
def _cases(draw: st.DrawFn) -> tuple[Floats, Floats]:
    batch, count = draw(st.integers(1, 4)), draw(st.integers(1, 40))
    confidence = draw(hnp.arrays(np.float32, (batch, count), elements=_CONFIDENCES))
    ratios = draw(hnp.arrays(np.float32, (batch,), elements=_RATIOS))
    return confidence, ratios


@given(case=_cases(), halves=st.sampled_from([1, 2]))
def test_agrees_with_sorting_in_python(case: tuple[Floats, Floats], halves: int) -> None:
    confidence, ratios = case
    found = _remask(confidence, ratios, halves=halves)
    for image in range(len(confidence)):
        expected = _reference(confidence[image], ratios[image])
        for half in range(halves):
            assert found[half * len(confidence) + image].tolist() == expected


@given(case=_cases())
def test_masks_at_most_the_ratio_and_never_a_known_position(case: tuple[Floats, Floats]) -> None:
    confidence, ratios = case
    masked = _remask(confidence, ratios) == _MASK
    assert (masked.sum(axis=1) <= ratios * np.float32(confidence.shape[1])).all()
    assert not masked[np.isposinf(confidence)].any()


@pytest.mark.parametrize(
    ("ratio", "masked"),
    [
        (0.0, []),
        (1e-30, []),
        (0.2499, []),
        (0.25, [2]),
        (0.5, [1, 2]),
        (0.75, [0, 1, 2]),
        (0.9999, [0, 1, 2]),
        (1.0, [0, 1, 2]),
        (7.0, [0, 1, 2]),
        (-1.0, []),
    ],
)
def test_least_confident_are_masked(ratio: float, masked: list[int]) -> None:
    confidence = np.array([[-1.0, -2.0, -3.0, -0.5]], np.float32)
    found = _remask(confidence, np.array([ratio], np.float32))
    assert np.flatnonzero(found[0] == _MASK).tolist() == masked


def test_a_tie_with_the_threshold_stays_known() -> None:
    confidence = np.array([[-2.0, -1.0, -1.0, -1.0]], np.float32)
    found = _remask(confidence, np.array([0.5], np.float32))
    assert found.tolist() == [[_MASK, 1, 2, 3]]


def test_equal_confidences_mask_nothing() -> None:
    found = _remask(np.zeros((1, 16), np.float32), np.array([1.0], np.float32))
    assert found.tolist() == [list(range(16))]


def test_count_times_ratio_is_taken_in_float32() -> None:
    # float32(0.01) lies just below a hundredth: 100 times it is 0.99999998 in float64 and 1 in
    # float32, as in the official sampler.
    ratio = np.float32(0.01)
    assert math.floor(100 * float(ratio)) == 0
    confidence = -np.arange(100, dtype=np.float32)[None]
    assert (_remask(confidence, np.array([ratio])) == _MASK).sum() == 1


def test_nan_neither_crashes_nor_masks_a_known_position() -> None:
    confidence = np.array([[np.nan, np.inf, -1.0, -2.0]], np.float32)
    for ratio in (np.nan, 0.5):
        found = _remask(confidence, np.array([ratio], np.float32))
        assert found[0, 1] == 1


def test_is_launched_by_its_name() -> None:
    assert KERNELS["remask"] is remask


def _remask(
    confidence: Floats,
    ratios: Floats,
    halves: int = 1,
    mask: npt.NDArray[np.uint8] | None = None,
    least: int | None = None,
    ties: int = 0,
) -> Ids:
    """Sampled ids are the positions themselves, so that what is kept can be recognised.

    With ``mask`` every step decides at least one token, if ``least`` says nothing else.
    """
    batch, count = confidence.shape
    parameters = np.full((batch, 4), np.nan, np.float32)
    parameters[:, 0] = ratios
    out = np.full((halves * batch, count), -1, np.int32)
    remask(
        confidence=confidence,
        sampled=np.tile(np.arange(count, dtype=np.int32), (batch, 1)),
        parameters=parameters,
        mask=np.ones((batch, count), np.uint8) if mask is None else mask,
        mask_token=_MASK,
        at_least_one=int(mask is not None) if least is None else least,
        next_tokens=out,
        ties=ties,
    )
    return out


def _decode(count: int, steps: int, started: npt.NDArray[np.uint8], least: int = 1) -> list[int]:
    """Tokens that each step leaves masked, as MaskGIT's loop does, for a cosine schedule."""
    rng = np.random.default_rng(0)
    masked, left = started != 0, []
    for step in range(steps):
        confidence = np.where(masked, rng.standard_normal(count), np.inf)[None].astype(np.float32)
        ratio = np.array([math.cos(math.pi * (step + 1) / steps / 2)], np.float32)
        masked = _remask(confidence, ratio, mask=started[None], least=least)[0] == _MASK
        left.append(int(masked.sum()))
    return left


@pytest.mark.parametrize(("count", "steps"), [(36, 36), (64, 64), (256, 256), (64, 40), (16, 3)])
def test_every_step_decides_a_token_where_the_rule_says_so(count: int, steps: int) -> None:
    left = _decode(count, steps, np.ones(count, np.uint8))
    decided = -np.diff([count, *left])
    assert (decided[:-1] >= 1).all()


@given(seed=st.integers(0, 99), count=st.integers(1, 40), steps=st.integers(1, 12))
def test_the_rule_is_that_of_maskgit(seed: int, count: int, steps: int) -> None:
    """Mask ratios are of the tokens that were masked at the start, image by image; one is left
    for the last step."""
    started = (np.random.default_rng(seed).random(count) < 0.6).astype(np.uint8)
    expected, now = [], int(started.sum())
    for step in range(steps):
        ratio = np.float32(math.cos(math.pi * (step + 1) / steps / 2))
        wanted = math.floor(np.float32(started.sum()) * ratio)
        now = min(max(1, min(now - 1, wanted)), now, count - 1)
        expected.append(now)
    assert _decode(count, steps, started) == expected


def test_an_edit_of_few_tokens_is_decided_over_all_steps() -> None:
    """⌊4·cos(π(t + 1)/16)⌋ of 4 tokens stay masked, whatever the picture has besides."""
    started = (np.arange(64) < 4).astype(np.uint8)
    assert _decode(64, 8, started, AT_LEAST_ONE.index("no")) == [3, 3, 3, 2, 2, 1, 0, 0]


@given(case=_cases(), start=st.integers(0, 2**20))
def test_the_only_masked_token_is_decided_where_the_rule_says_so(
    case: tuple[Floats, Floats], start: int
) -> None:
    """k = min(max(1, ⌊M·γ⌋), m − 1), as in maskgit-torch."""
    confidence, ratios = case
    mask = (np.random.default_rng(start).random(confidence.shape) < 0.7).astype(np.uint8)
    found = _remask(confidence, ratios, mask=mask, least=AT_LEAST_ONE.index("last-decided"))
    for image, row in enumerate(confidence):
        wanted = max(1, math.floor(np.float32(mask[image].sum()) * ratios[image]))
        k = min(wanted, int(np.isfinite(row).sum()) - 1, len(row) - 1)
        threshold = np.sort(row)[max(0, k)]
        assert (found[image] == _MASK).tolist() == (row < threshold).tolist()


@given(case=_cases(), least=st.integers(0, 2))
def test_ties_are_masked_where_the_rule_says_so(case: tuple[Floats, Floats], least: int) -> None:
    """Whatever is as confident as the last one that is masked, but no known position."""
    confidence, ratios = case
    mask = np.ones(confidence.shape, np.uint8)
    plain = _remask(_apart(confidence), ratios, mask=mask, least=least) == _MASK
    found = _remask(confidence, ratios, mask=mask, least=least, ties=TIES.index("masked")) == _MASK
    for row, own, tied in zip(confidence, plain, found, strict=True):
        last = row[own & np.isfinite(row)].max(initial=-np.inf)
        assert tied.tolist() == ((row <= last) & np.isfinite(row)).tolist()


def _apart(confidence: Floats) -> Floats:
    """In the same order without ties, known positions as they are."""
    ranks = np.argsort(np.argsort(confidence, axis=1, kind="stable"), axis=1).astype(np.float32)
    return np.where(np.isinf(confidence), np.inf, ranks).astype(np.float32)


@pytest.mark.parametrize("run", ["t8", "t5_cold", "edit"])
def test_as_many_stay_masked_as_in_recorded_runs_of_maskgit(run: str) -> None:
    """Of a port of Google's MaskGIT; in ``edit`` images start with different numbers of tokens."""
    with np.load(_RECORDED) as recorded:
        tokens = recorded[f"out/{run}/ids_in"][:, :, 1:]  # position 0 is the class
        mask_token = json.loads(str(recorded["cfg"]))["mask_token_id"]
    masked = tokens == mask_token
    steps, images, count = masked.shape
    rng = np.random.default_rng(0)
    for step in range(steps - 1):
        noise = rng.standard_normal((images, count)).astype(np.float32)
        confidence = np.where(masked[step], noise, np.float32(np.inf))
        ratio = np.full(images, math.cos(math.pi * (step + 1) / steps / 2), np.float32)
        found = _remask(confidence, ratio, mask=masked[0].astype(np.uint8)) == _MASK
        np.testing.assert_array_equal(found.sum(1), masked[step + 1].sum(1))


def _reference(confidence: Floats, ratio: np.float32) -> list[int]:
    values = [float(value) for value in confidence]
    k = min(math.floor(np.float32(len(values)) * ratio), len(values) - 1)
    threshold = sorted(values)[k]
    return [_MASK if value < threshold else i for i, value in enumerate(values)]
