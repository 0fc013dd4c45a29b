"""Top-k confidence masking against a sort in plain Python.

Covered: ties, ratios at and beyond both ends, known positions at +infinity, the floor of N times
the ratio in float32, both halves under guidance, and NaN, which must not crash the loop.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fewstep.runtime.kernels.cpu import KERNELS
from fewstep.runtime.kernels.remask import remask

_MASK = 99
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


def _remask(confidence: Floats, ratios: Floats, halves: int = 1) -> Ids:
    """Sampled ids are the positions themselves, so that what is kept can be recognised."""
    batch, count = confidence.shape
    parameters = np.full((batch, 4), np.nan, np.float32)
    parameters[:, 0] = ratios
    out = np.full((halves * batch, count), -1, np.int32)
    remask(
        confidence=confidence,
        sampled=np.tile(np.arange(count, dtype=np.int32), (batch, 1)),
        parameters=parameters,
        mask_token=_MASK,
        next_tokens=out,
    )
    return out


def _reference(confidence: Floats, ratio: np.float32) -> list[int]:
    values = [float(value) for value in confidence]
    k = min(math.floor(np.float32(len(values)) * ratio), len(values) - 1)
    threshold = sorted(values)[k]
    return [_MASK if value < threshold else i for i, value in enumerate(values)]
