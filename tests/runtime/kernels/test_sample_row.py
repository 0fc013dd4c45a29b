"""One row of logits: the search for its code at every edge of chunks, lanes and groups.

Covered: vocabularies at and around multiples of 4, of the chunk (128) and of the groups (4,096),
up to 65,536; where all weights are equal, and sums therefore exact, the code is known exactly,
excluded codes and whole excluded chunks included; elsewhere the uniform must fall in the code's
interval of the float64 CDF. The first of the most likely codes at low temperatures, uniformity at
huge ones, log-probabilities, unusable rows, and the documented order of sums bit by bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.runtime.kernels.exponential import exponential
from fewstep.runtime.kernels.logarithm import logarithm
from fewstep.runtime.kernels.sample_tokens import LOWEST_TEMPERATURE, sample_row

_CHUNK = 128
_SIZES = (
    *(1, 2, 3, 4, 5, 127, 128, 129, 255, 256, 257, 1000),
    *(4095, 4096, 4097, 4224, 4225, 8192, 8193, 65_535, 65_536),
)
_LOWEST = np.float32(LOWEST_TEMPERATURE)
_LAST = 1 - 2.0**-24  # the largest uniform; the smallest is 2**-24
Floats = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]


def _sample(logits: Floats, temperature: float, uniform: float) -> tuple[int, float]:
    code, found = sample_row(logits, np.float32(temperature), np.float32(uniform))
    return code, float(found)


def _uniforms(count: int, seed: int = 0) -> list[float]:
    """As the kernel gets them: the upper 23 bits plus a half; both ends among them."""
    drawn = np.random.default_rng(seed).integers(0, 2**23, count)
    return [2.0**-24, *((drawn + 0.5) / 2**23).tolist(), _LAST]


def _logits(codes: int, spread: float = 3.0, seed: int = 0) -> Floats:
    return np.random.default_rng([codes, seed]).normal(0, spread, codes).astype(np.float32)


def _softmax(logits: Floats, temperature: float) -> Wide:
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    return np.asarray(weights / weights.sum())


# --- exactly known codes


@pytest.mark.parametrize("temperature", [0.3, 1.0, 7.0])
@pytest.mark.parametrize("codes", _SIZES)
def test_equal_logits_are_divided_evenly_to_the_last_bit(codes: int, temperature: float) -> None:
    logits = np.full(codes, -2.5, np.float32)
    for uniform in _uniforms(60):
        code, found = _sample(logits, temperature, uniform)
        assert code == int(uniform * codes)  # u·V has 40 bits: exact in float64
        assert found == pytest.approx(-math.log(codes), rel=1e-6)


@pytest.mark.parametrize("codes", [c for c in _SIZES if c > 1])
def test_an_edge_belongs_to_the_code_after_it(codes: int) -> None:
    """First code whose cumulated weight *exceeds* the uniform's share of the total."""
    logits = np.full(codes, -np.inf, np.float32)
    logits[[0, codes - 1]] = 1.0
    for uniform, code in ((0.5 - 2**-24, 0), (0.5, codes - 1), (0.5 + 2**-24, codes - 1)):
        assert _sample(logits, 1.0, uniform)[0] == code
        assert _sample(logits, 2.0, uniform)[0] == code


@given(
    codes=st.sampled_from([5, 128, 130, 700, 4097, 5000]),
    excluded=st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 700)), max_size=8),
    draw=st.integers(0, 2**23 - 1),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
)
def test_excluded_codes_and_chunks_are_stepped_over(
    codes: int, excluded: list[tuple[int, int]], draw: int, temperature: float
) -> None:
    """Runs of −∞ anywhere, whole chunks and groups among them; the others are equal."""
    logits = np.zeros(codes, np.float32)
    for first, length in excluded:
        logits[first % codes :][:length] = -np.inf
    allowed = np.flatnonzero(logits == 0)
    for uniform in (2.0**-24, (draw + 0.5) / 2**23, _LAST):
        code, found = _sample(logits, temperature, uniform)
        if len(allowed) == 0:
            assert math.isnan(found)
        else:
            assert code == allowed[int(uniform * len(allowed))]
            assert found == pytest.approx(-math.log(len(allowed)), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("codes", _SIZES)
def test_the_only_code_left_is_taken_wherever_it_is(codes: int) -> None:
    edges = {0, 1, 3, 4, 127, 128, 131, 4095, 4096, codes // 2, codes - 2, codes - 1}
    for only in sorted(edge for edge in edges if 0 <= edge < codes):
        for rest in (-np.inf, np.float32(-1e30), np.float32(-120)):
            logits = np.full(codes, rest, np.float32)
            logits[only] = 0.0
            for temperature in (0.0, 0.5, 1.0):
                for uniform in (2.0**-24, 0.5, _LAST):
                    assert _sample(logits, temperature, uniform) == (only, 0.0)


@pytest.mark.parametrize(("codes", "allowed"), [(4, 3), (7, 6), (128, 100), (300, 130), (4500, 99)])
def test_rounding_never_leads_past_the_last_code_that_is_left(codes: int, allowed: int) -> None:
    """The largest uniform; in some of these rows the parts add up to less than their sum."""
    for seed in range(1000):
        logits = _logits(codes, spread=1.0, seed=seed)
        logits[allowed:] = -np.inf
        ends = _softmax(logits, 0.8).cumsum()
        code, _ = _sample(logits, 0.8, _LAST)
        assert code < allowed
        assert ends[code] > 1 - 1e-6


# --- the float64 CDF


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 2.5])
@pytest.mark.parametrize("codes", _SIZES)
def test_the_uniform_falls_in_the_interval_of_the_code(codes: int, temperature: float) -> None:
    logits = _logits(codes)
    weights = _softmax(logits, temperature)
    ends = weights.cumsum()
    parted, uniforms = 0, _uniforms(300 if codes < 10_000 else 60)
    for uniform in uniforms:
        code, _ = _sample(logits, temperature, uniform)
        assert weights[code] > 0
        assert ends[code] - weights[code] - 2e-6 < uniform < ends[code] + 2e-6
        parted += code != np.searchsorted(ends, uniform, side="right")
    # An edge within rounding of the uniform: at 65,536 codes, 1.5e-5 apart, a few in a hundred.
    assert parted <= 1 + 0.08 * len(uniforms) * (codes > 10_000)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("codes", [2, 127, 128, 129, 1000, 4097])
def test_a_grid_of_uniforms_gives_every_code_its_share(codes: int, temperature: float) -> None:
    """Without chance: 2¹³ equally spaced uniforms count each probability to one of them."""
    logits, grid = _logits(codes, spread=1.5, seed=1), 2**13
    counts = np.zeros(codes)
    for place in range(grid):
        counts[_sample(logits, temperature, (place + 0.5) / grid)[0]] += 1
    assert np.abs(counts - grid * _softmax(logits, temperature)).max() < 1 + 0.01


# --- both ends of the temperature


@pytest.mark.parametrize(
    "temperature", [0.0, -0.0, 1e-45, 1e-31, np.nextafter(_LOWEST, _LOWEST * 0)]
)
@pytest.mark.parametrize(
    "best", [[0], [127, 128], [5, 6, 7], [255, 300], [130, 4096], [4999], [4, 131, 4999]]
)
def test_below_the_lowest_temperature_the_first_of_the_most_likely_is_taken(
    best: list[int], temperature: float
) -> None:
    logits = np.minimum(_logits(5000), 9.0).astype(np.float32)
    logits[best] = 10.0
    for uniform in _uniforms(3):
        code, found = _sample(logits, temperature, uniform)
        assert code == best[0]
        assert found == pytest.approx(math.log(_softmax(logits, 1)[code]), abs=1e-5)


def test_the_lowest_temperature_itself_chooses_among_the_most_likely() -> None:
    logits = np.full(5000, 9.999, np.float32)
    best = [3, 127, 128, 700, 4999]
    logits[best] = 10.0
    for uniform in _uniforms(20):
        assert _sample(logits, float(_LOWEST), uniform)[0] == best[int(uniform * len(best))]


@pytest.mark.parametrize("temperature", [1e-29, 1e-20, 1e-6])
def test_tiny_temperatures_take_the_most_likely_code(temperature: float) -> None:
    for codes in (2, 128, 129, 4097):
        logits = np.random.default_rng(codes).permutation(codes).astype(np.float32)
        for uniform in _uniforms(3):
            assert _sample(logits, temperature, uniform)[0] == logits.argmax()


@pytest.mark.parametrize("temperature", [1e12, 1e38, float(np.finfo(np.float32).max), math.inf])
def test_huge_temperatures_are_uniform_over_what_is_not_excluded(temperature: float) -> None:
    for codes in (2, 128, 129, 4097):
        logits = _logits(codes)
        logits[codes // 3 : codes // 2] = -np.inf
        allowed = np.flatnonzero(np.isfinite(logits))
        for uniform in _uniforms(30):
            code, _ = _sample(logits, temperature, uniform)
            assert code == allowed[int(uniform * len(allowed))]


# --- log-probabilities


@pytest.mark.parametrize("codes", _SIZES)
def test_the_log_probability_is_that_at_temperature_one(codes: int) -> None:
    logits = _logits(codes, spread=5)
    expected = np.log(_softmax(logits, 1))
    for temperature in (0.0, 0.3, 1.0, 4.0):
        for uniform in _uniforms(3):
            code, found = _sample(logits, temperature, uniform)
            assert found == pytest.approx(expected[code], rel=1e-6, abs=1e-6)


def test_logits_at_both_ends_of_float32_do_not_overflow() -> None:
    logits = np.full(300, -3e38, np.float32)
    logits[[7, 299]] = 3e38
    for temperature in (1e-31, 0.5, 1.0):
        for uniform in _uniforms(5):
            code, found = _sample(logits, temperature, uniform)
            assert code == (299 if uniform > 0.5 and temperature > 1e-30 else 7)
            assert found == pytest.approx(math.log(0.5))


def test_the_row_is_left_as_it_was() -> None:
    logits = _logits(200)
    copy = logits.copy()
    for temperature in (0.0, 0.5, 1.0):
        _sample(logits, temperature, 0.5)
    np.testing.assert_array_equal(logits, copy)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("codes", [1, 127, 128, 129, 4097])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_unusable_logit_anywhere_gives_nan(bad: float, codes: int, temperature: float) -> None:
    for place in sorted({0, codes // 2, codes - 1}):
        logits = _logits(codes)
        logits[place] = bad
        code, found = _sample(logits, temperature, 0.5)
        assert math.isnan(found)
        assert 0 <= code < codes


@pytest.mark.parametrize("codes", [1, 128, 129, 4097])
def test_nothing_but_minus_infinity_gives_nan(codes: int) -> None:
    code, found = _sample(np.full(codes, -np.inf, np.float32), 1.0, 0.5)
    assert math.isnan(found)
    assert 0 <= code < codes


@pytest.mark.parametrize("codes", [1, 128, 129, 4097])
def test_a_temperature_that_is_not_a_number_gives_nan_and_the_first_code(codes: int) -> None:
    code, found = _sample(_logits(codes), math.nan, 0.5)
    assert math.isnan(found)
    assert code == 0


# --- the order of sums


@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0, 1.9])
@pytest.mark.parametrize("codes", [1, 5, 128, 129, 1000, 4096, 4225, 9001])
def test_bits_are_those_of_the_documented_order(codes: int, temperature: float) -> None:
    """Written again in NumPy, whole arrays at a time: what the CUDA kernel must give too."""
    logits = _logits(codes, spread=4, seed=2)
    logits[codes // 2 : codes // 2 + 300] -= 95  # some chunks count for little or nothing
    logits[3 * codes // 4 + 1 :][:140] = -np.inf
    for uniform in _uniforms(10):
        assert _sample(logits, temperature, uniform) == _by_numpy(logits, temperature, uniform)


@dataclass(frozen=True)
class _Sums:
    """Weights at one temperature, relative to each chunk's maximum, and what is added up."""

    weights: Floats  # [chunks, 128]
    lanes: Floats  # [chunks, 32]
    scale: Floats  # [chunks], from a chunk's maximum to the row's
    chunks: Floats  # [groups, chunks per group], relative to the row's maximum
    groups: Floats  # [groups]
    total: np.float32


def _sums(row: Floats, inverse: np.float32) -> _Sums:
    maxima = row.max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        weights = _exponentials((row - maxima) * inverse)
        scale = _exponentials((maxima - row.max()) * inverse)[:, 0]
    lanes = weights[:, 0::4] + weights[:, 1::4] + weights[:, 2::4] + weights[:, 3::4]
    tree = lanes
    while tree.shape[1] > 1:
        tree = np.add(*np.split(tree, 2, axis=1))
    size = -(-len(row) // 32)
    chunks = np.resize(tree[:, 0] * scale, (-(-len(row) // size), size))
    chunks.ravel()[len(row) :] = 0
    groups = chunks.cumsum(axis=1)[:, -1]  # one after the other, unlike NumPy's sum
    return _Sums(weights, lanes, scale, chunks, groups, groups.cumsum()[-1])


def _exponentials(values: Floats) -> Floats:
    """Of what is not NaN, as −∞ minus −∞ is where a chunk has nothing."""
    found = np.zeros(values.shape, np.float32)
    valid = ~np.isnan(values)
    found[valid] = [exponential(value) for value in values[valid]]
    return found


def _by_numpy(logits: Floats, temperature: float, uniform: float) -> tuple[int, float]:
    row = np.full((-(-len(logits) // _CHUNK), _CHUNK), -np.inf, np.float32)
    row.ravel()[: len(logits)] = logits
    log_total = logarithm(_sums(row, np.float32(1)).total)
    if temperature < LOWEST_TEMPERATURE:
        code = int(row.argmax())
    else:
        code = _search(_sums(row, np.float32(1) / np.float32(temperature)), uniform)
    return code, float((row.ravel()[code] - row.max()) - log_total)


def _search(sums: _Sums, uniform: float) -> int:
    """Group, chunk, lane, code; rounding may leave nothing to the last of a level."""
    target = np.float32(uniform) * sums.total
    ends = sums.groups.cumsum()
    group = min(int(np.searchsorted(ends, target, side="right")), len(ends) - 1)
    before = ends[group - 1] if group else np.float32(0)
    place, before = _find(sums.chunks[group], target, before)
    chunk: int = group * sums.chunks.shape[1] + place
    lane, before = _find(sums.lanes[chunk] * sums.scale[chunk], target, before)
    own = sums.weights[chunk, 4 * lane : 4 * lane + 4] * sums.scale[chunk]
    return chunk * _CHUNK + 4 * lane + _find(own, target, before)[0]


def _find(weights: Floats, target: np.float32, before: np.float32) -> tuple[int, np.float32]:
    """The first that takes the running total past the target, or the last with a weight; and the
    total before it."""
    found, start, cumulated = 0, before, before
    for index, weight in enumerate(weights):
        if weight > 0:
            found, start = index, cumulated
        cumulated += weight
        if cumulated > target:
            break
    return found, start
