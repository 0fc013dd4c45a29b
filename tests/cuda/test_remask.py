"""``remask`` on the GPU against ``numpy.sort``.

Covered: 1 to 4,096 tokens, ratios from 0 to 1, ties, signs and both zeros, subnormal numbers, known
positions at +∞, NaN, which sorts last, one half and two, batches, and the order of threads.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fewstep.runtime.devices.cuda import CudaDevice
from fewstep.runtime.kernels.cpu import KERNELS

sys.path.append(str(Path(__file__).parent))
if TYPE_CHECKING:
    from tests.cuda import kernel_runs as runs
else:
    import kernel_runs as runs

Array = npt.NDArray[Any]
_MASK = 70_001
_TINY = float(np.finfo(np.float32).smallest_subnormal)
_FEW = st.sampled_from([-math.inf, -7.25, -0.5, -_TINY, -0.0, 0.0, _TINY, 2.5, math.inf, math.nan])
_ANY = st.floats(width=32)
_RATIOS = st.one_of(st.sampled_from([0.0, 1.0, 1e-30, 0.5, 0.999999]), st.floats(0, 1, width=32))


def _remask(
    device: CudaDevice,
    confidence: Array,
    ratios: Array,
    halves: int = 1,
    mask: Array | None = None,
    least: int | None = None,
    ties: int = 0,
) -> Array:
    """Sampled ids tell image and position, so that what is kept can be recognised.

    With ``mask`` every step decides at least one token, if ``least`` says nothing else.
    """
    batch, count = confidence.shape
    parameters = np.full((batch, 4), np.nan, np.float32)  # only the ratio is looked at
    parameters[:, 0] = ratios
    found = runs.launch(
        device,
        "remask",
        inputs={
            "confidence": confidence.astype(np.float32),
            "sampled": np.arange(batch * count, dtype=np.int32).reshape(batch, count),
            "parameters": parameters,
            "mask": np.ones((batch, count), np.uint8) if mask is None else mask,
        },
        outputs={"next_tokens": np.full((halves * batch, count), -1, np.int32)},
        mask_token=_MASK,
        at_least_one=int(mask is not None) if least is None else least,
        ties=ties,
    )
    return found["next_tokens"]


def _by_sorting(confidence: Array, ratios: Array) -> Array:
    batch, count = confidence.shape
    sampled = np.arange(batch * count).reshape(batch, count)
    masked = np.floor(np.float32(count) * ratios.astype(np.float32)).astype(int)
    ranks = np.minimum(masked, count - 1)[:, None]
    threshold = np.take_along_axis(np.sort(confidence, axis=1), ranks, axis=1)
    return np.where(confidence < threshold, _MASK, sampled)


@st.composite
def _cases(draw: st.DrawFn) -> tuple[Array, Array]:
    shape = draw(st.integers(1, 4)), draw(st.integers(1, 40))
    confidence = draw(hnp.arrays(np.float32, shape, elements=draw(st.sampled_from([_FEW, _ANY]))))
    return confidence, draw(hnp.arrays(np.float32, shape[:1], elements=_RATIOS))


@runs.examples(300)
@given(case=_cases(), halves=st.sampled_from([1, 2]))
def test_agrees_with_sorting(device: CudaDevice, case: tuple[Array, Array], halves: int) -> None:
    confidence, ratios = case
    found = _remask(device, confidence, ratios, halves)
    np.testing.assert_array_equal(found, np.tile(_by_sorting(confidence, ratios), (halves, 1)))


@runs.examples(40)
@given(
    count=st.one_of(st.integers(41, 4096), st.sampled_from([255, 256, 257, 512, 1024, 4095, 4096])),
    batch=st.integers(1, 3),
    halves=st.sampled_from([1, 2]),
    kind=st.sampled_from(["normal", "close together", "ties", "known", "any bits"]),
    seed=st.integers(0, 2**32),
)
def test_many_tokens_agree_with_sorting(
    device: CudaDevice, count: int, batch: int, halves: int, kind: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    confidence = rng.normal(-4, 3, (batch, count)).astype(np.float32)
    if kind == "close together":  # in the last digits only
        confidence = (-1 - confidence * np.float32(1e-5)).astype(np.float32)
    elif kind == "ties":
        confidence = np.round(confidence)
    elif kind == "known":
        confidence[rng.random(confidence.shape) < 0.6] = np.inf
    elif kind == "any bits":
        confidence = rng.integers(0, 2**32, (batch, count), np.uint32).view(np.float32)
    ratios = rng.random(batch, np.float32)
    found = _remask(device, confidence, ratios, halves)
    np.testing.assert_array_equal(found, np.tile(_by_sorting(confidence, ratios), (halves, 1)))


@pytest.mark.parametrize("count", [1, 2, 31, 255, 256, 257, 1000, 4096])
def test_so_many_of_different_confidences_are_masked(device: CudaDevice, count: int) -> None:
    confidence = np.random.default_rng(count).permutation(count).astype(np.float32)[None] - 50
    for wanted in sorted({0, 1, count // 3, count - 2, count - 1, count} - {-1}):
        ratio = np.float32((wanted + 0.25) / count)
        found = _remask(device, confidence, np.array([ratio]))
        masked = min(wanted, count - 1)
        assert set(confidence[found == _MASK].tolist()) == set(range(-50, masked - 50))


@pytest.mark.parametrize(
    ("ratio", "masked"),
    [
        (0.0, []),
        (1e-30, []),
        (0.2499, []),
        (0.25, [2]),
        (0.5, [1, 2]),
        (0.75, [0, 1, 2]),
        (1.0, [0, 1, 2]),
        (7.0, [0, 1, 2]),
        (-1.0, []),
        (math.nan, []),
    ],
)
def test_least_confident_are_masked(device: CudaDevice, ratio: float, masked: list[int]) -> None:
    confidence = np.array([[-1.0, -2.0, -3.0, -0.5]], np.float32)
    found = _remask(device, confidence, np.array([ratio]))
    assert np.flatnonzero(found[0] == _MASK).tolist() == masked


def test_both_zeros_are_one_confidence(device: CudaDevice) -> None:
    confidence = np.array([[0.0, -0.0, 0.0, -0.0, 1.0, -0.0, 0.0, -1.0]], np.float32)
    for eighths, masked in ((0, []), (1, [7]), (3, [7]), (6, [7]), (7, [0, 1, 2, 3, 5, 6, 7])):
        found = _remask(device, confidence, np.array([eighths / 8]))
        assert np.flatnonzero(found[0] == _MASK).tolist() == masked


@pytest.mark.parametrize("value", [-3.5, -0.0, 0.0, math.inf, -math.inf, math.nan])
def test_equal_confidences_mask_nothing(device: CudaDevice, value: float) -> None:
    for count in (1, 7, 256, 300):
        confidence = np.full((2, count), value, np.float32)
        found = _remask(device, confidence, np.array([0.5, 1.0]))
        assert (found.ravel() == np.arange(2 * count)).all()


def test_known_positions_are_never_masked(device: CudaDevice) -> None:
    confidence = np.full((1, 100), np.inf, np.float32)
    confidence[0, 10:20] = -np.arange(10)
    for ratio in (0.05, 0.5, 1.0):
        found = _remask(device, confidence, np.array([ratio]))
        assert set(np.flatnonzero(found[0] == _MASK).tolist()) <= set(range(10, 20))


def test_nan_sorts_last_whatever_its_sign(device: CudaDevice) -> None:
    confidence = np.array([[np.nan, -2.0, -np.nan, np.inf, -1.0, 3.0]], np.float32)
    for sixths, masked in ((1, [1]), (2, [1, 4]), (3, [1, 4, 5]), (4, []), (6, [])):
        found = _remask(device, confidence, np.array([(sixths + 0.1) / 6]))
        assert np.flatnonzero(found[0] == _MASK).tolist() == masked


def test_count_times_ratio_is_taken_in_float32(device: CudaDevice) -> None:
    # float32(0.01) lies just below a hundredth: 100 times it is 0.99999998 in float64 and 1 in
    # float32, as in the official sampler.
    ratio = np.float32(0.01)
    assert math.floor(100 * float(ratio)) == 0
    confidence = -np.arange(100, dtype=np.float32)[None]
    assert (_remask(device, confidence, np.array([ratio])) == _MASK).sum() == 1


@pytest.mark.parametrize("order", ["reverse", "shuffled:1", "shuffled:2"])
def test_the_order_of_threads_changes_nothing(
    device: CudaDevice, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The emulated driver can change it; on a GPU this is one more run."""
    monkeypatch.setenv("EMULATED_CUDA_ORDER", order)
    rng = np.random.default_rng(0)
    confidence, ratios = rng.normal(0, 3, (3, 1111)).astype(np.float32), rng.random(3, np.float32)
    found = _remask(device, confidence, ratios, halves=2)
    np.testing.assert_array_equal(found, np.tile(_by_sorting(confidence, ratios), (2, 1)))


def test_every_step_decides_a_token_where_the_rule_says_so(device: CudaDevice) -> None:
    """Images that start with all, some, one and no masked tokens."""
    rng = np.random.default_rng(5)
    count = 300
    started = np.stack([np.arange(count) < most for most in (count, 41, 1, 0)]).astype(np.uint8)
    confidence = np.where(started, rng.standard_normal(started.shape), np.inf).astype(np.float32)
    for ratio in (0.0, 0.3, 0.999, 1.0):
        found = _remask(device, confidence, np.full(4, ratio), halves=2, mask=started)
        masked = (found[:4] == _MASK).sum(1)
        undecided = started.sum(1).astype(int)
        wanted = np.floor(undecided.astype(np.float32) * np.float32(ratio)).astype(int)
        expected = np.where(undecided, np.maximum(1, np.minimum(wanted, undecided - 1)), 0)
        np.testing.assert_array_equal(masked, expected)
        np.testing.assert_array_equal(found[:4], found[4:])


@pytest.mark.parametrize("ties", [0, 1])
@pytest.mark.parametrize("least", [0, 1, 2])
def test_every_rule_is_that_of_the_cpu(device: CudaDevice, least: int, ties: int) -> None:
    """Ties, known positions, and images that start with all, some, one and no masked tokens."""
    rng = np.random.default_rng(6)
    started = np.stack([np.arange(300) < most for most in (300, 41, 1, 0)]).astype(np.uint8)
    drawn = rng.integers(-9, 9, started.shape)
    confidence = np.where(started, drawn, np.inf).astype(np.float32)
    for ratio in (0.0, 0.004, 0.3, 0.999, 1.0):
        ratios = np.full(4, ratio, np.float32)
        found = _remask(device, confidence, ratios, 2, started, least, ties)
        expected = np.full((8, 300), -1, np.int32)
        KERNELS["remask"](
            confidence=confidence,
            sampled=np.arange(4 * 300, dtype=np.int32).reshape(4, 300),
            parameters=np.tile(ratios[:, None], (1, 4)),
            mask=started,
            mask_token=_MASK,
            at_least_one=least,
            next_tokens=expected,
            ties=ties,
        )
        np.testing.assert_array_equal(found, expected)
