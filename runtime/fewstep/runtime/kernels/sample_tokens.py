"""Guidance, softmax, sampling and confidence in one pass over the logits.

For every masked position of every image, with logits ``c`` (conditional) and ``u``
(unconditional), guidance scale s, sampling temperature τ and masking temperature μ:

    l          = c + s·(c − u)
    token      ~ softmax(l / τ)                    by inverse CDF of one uniform; argmax if τ = 0
    confidence = log_softmax(l)[token] + μ·g       g = −log(−log v), v a second uniform

A known position keeps its token and gets confidence +∞; in Halton-MaskGIT's confidence sampler it
draws a token again. The order of these operations, and the absence of τ in the confidence, are
those of the official AdaNAT sampler. Other forms take other confidences (``choices.CONFIDENCES``):
log_softmax(l / τ)[token], or l[token], before the noise.

The row is cut into chunks of 128 codes. One pass leaves the maximum of each chunk and its sum of
exponentials relative to that maximum; the chunk that holds the sample is then read once more.
Sums are taken in a fixed order, the one of ``sample_tokens.cu`` (there a warp owns a chunk and a
lane four neighbouring codes), so that both give the same bits.

Shapes: logits ``[B, N, V]`` float32, tokens ``[B, N]`` int32, parameters ``[B, 4]`` float32 in the
order of :data:`PARAMETERS`, seeds ``[B]`` uint64.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fewstep.runtime.kernels.compiled import helper, kernel
from fewstep.runtime.kernels.exponential import exponential
from fewstep.runtime.kernels.guidance import guide
from fewstep.runtime.kernels.logarithm import logarithm
from fewstep.runtime.kernels.philox import uniforms

PARAMETERS = ("mask_ratio", "masking_temperature", "sampling_temperature", "guidance")
"""Columns of the ``[B, 4]`` parameter array, in the order of AdaNAT's actions."""

LOWEST_TEMPERATURE = 1e-30
"""Sampling temperatures below this take the most likely code."""

_TEMPERED, _LOGIT = 1, 2
_CHUNK, _LANES, _PER_LANE = 128, 32, 4
_WIDTHS = (16, 8, 4, 2, 1)  # of a tree over the lanes
_COLDEST = np.float32(LOWEST_TEMPERATURE)
_ONE, _ZERO = np.float32(1), np.float32(0)
_NAN, _NOTHING = np.float32(np.nan), np.float32(-np.inf)
Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]


@kernel
def sample_tokens(
    conditional: Floats,
    unconditional: Floats,
    tokens: Ids,
    parameters: Floats,
    seeds: npt.NDArray[np.uint64],
    step: int,
    mask_token: int,
    sampled: Ids,
    confidence: Floats,
    error: Ids,
    confidence_of: int,
    mask: npt.NDArray[np.uint8],
    resample: int,
) -> None:
    """Sample every masked position.

    Args:
        conditional: logits ``[B, N, V]``.
        unconditional: logits ``[B, N, V]``, or ``[1, N, V]`` shared by all images; not read for
            images whose guidance is 0.
        tokens: ids ``[B, N]``; ``mask_token`` marks the positions to sample.
        parameters: ``[B, 4]``, columns as in :data:`PARAMETERS`.
        seeds: ``[B]``.
        step: index of the step, part of the random counter.
        mask_token: id of a masked position.
        sampled: out, ids ``[B, N]``.
        confidence: out, ``[B, N]``.
        error: in and out, ``[1]``: becomes 1 if a logit is NaN or +∞, a row is all −∞, or a
            sampling temperature is NaN; the token is then 0.
        confidence_of: index in ``choices.CONFIDENCES``.
        mask: ``[B, N]``; 0 where a token is given. Read with ``resample`` only.
        resample: not 0 where known positions that are not given draw a token again, and keep their
            confidence of +∞.
    """
    batch, count, codes = conditional.shape
    row, weights, lanes, maxima, sums, tempered = _scratch(codes)
    for image in range(batch):
        masking_temperature, temperature = parameters[image, 1], parameters[image, 2]
        guidance = parameters[image, 3]
        for position in range(count):
            known = tokens[image, position] != mask_token
            if known and (resample == 0 or mask[image, position] == 0):
                sampled[image, position] = tokens[image, position]
                confidence[image, position] = np.inf
                continue
            if guidance == 0:
                _copy(conditional[image, position], row)
            else:
                shared = image % unconditional.shape[0]
                guide(conditional[image, position], unconditional[shared, position], guidance, row)
            u, v = uniforms(seeds[image], step, position)
            code, found = _sample(
                row, temperature, u, weights, lanes, maxima, sums, tempered, confidence_of
            )
            if math.isnan(found):
                error[0] = 1
            gumbel = -logarithm(-logarithm(v))
            sampled[image, position] = code
            noisy = found + masking_temperature * gumbel
            confidence[image, position] = np.float32(np.inf) if known else noisy


@kernel
def sample_row(
    logits: Floats, temperature: np.float32, uniform: np.float32
) -> tuple[int, np.float32]:
    """Sample one code from ``logits [V]``.

    Returns the code and its log-probability at temperature 1; NaN if the row has a NaN or +∞ or
    nothing but −∞.
    """
    row, weights, lanes, maxima, sums, tempered = _scratch(len(logits))
    _copy(logits, row)
    return _sample(row, temperature, uniform, weights, lanes, maxima, sums, tempered, 0)


@helper
def _scratch(codes: int) -> tuple[Floats, Floats, Floats, Floats, Floats, Floats]:
    """A row in whole chunks, −∞ past the last code; weights and lanes of one chunk; and its
    maximum, sum, and sum at the sampling temperature for every chunk."""
    chunks = -(-codes // _CHUNK)
    row = np.empty(chunks * _CHUNK, np.float32)
    for code in range(codes, len(row)):
        row[code] = _NOTHING
    weights, lanes = np.empty(_CHUNK, np.float32), np.empty(_LANES, np.float32)
    maxima, sums = np.empty(chunks, np.float32), np.empty(chunks, np.float32)
    return row, weights, lanes, maxima, sums, np.empty(chunks, np.float32)


@helper
def _sample(
    row: Floats,
    temperature: np.float32,
    uniform: np.float32,
    weights: Floats,
    lanes: Floats,
    maxima: Floats,
    sums: Floats,
    tempered: Floats,
    confidence_of: int,
) -> tuple[int, np.float32]:
    coldest = temperature < _COLDEST
    inverse = _ONE if coldest else _ONE / temperature
    if inverse == _ONE:
        tempered = sums
    highest = _NOTHING
    for chunk in range(len(maxima)):
        logits = row[chunk * _CHUNK : (chunk + 1) * _CHUNK]
        maxima[chunk] = _maximum(logits, lanes)
        sums[chunk] = _weigh(logits, maxima[chunk], _ONE, weights, lanes)
        if inverse != _ONE:
            tempered[chunk] = _weigh(logits, maxima[chunk], inverse, weights, lanes)
        if math.isnan(maxima[chunk]) or maxima[chunk] > highest:
            highest = maxima[chunk]
        if math.isnan(highest):
            break
    if not math.isfinite(highest) or math.isnan(temperature):
        return 0, _NAN
    _scale(tempered, maxima, highest, inverse)
    if inverse != _ONE:
        _scale(sums, maxima, highest, _ONE)
    code = (
        _most_likely(row)
        if coldest
        else _inverse_cdf(row, maxima, tempered, highest, inverse, uniform, weights, lanes)
    )
    if confidence_of == _LOGIT:
        return code, row[code]
    if confidence_of == _TEMPERED:
        total = _sum_chunks(tempered)
        return code, (row[code] - highest) * inverse - logarithm(total)
    total = _sum_chunks(sums)
    return code, (row[code] - highest) - logarithm(total)


@helper
def _copy(logits: Floats, row: Floats) -> None:
    # A loop, for which less is compiled than for an assignment of slices, which broadcasts.
    for code in range(len(logits)):
        row[code] = logits[code]


@helper
def _most_likely(row: Floats) -> int:
    """The first code with the largest logit; none is NaN."""
    code = 0
    for candidate in range(1, len(row)):
        if row[candidate] > row[code]:
            code = candidate
    return code


@helper
def _maximum(logits: Floats, lanes: Floats) -> np.float32:
    """The largest of a chunk; NaN if any is NaN.

    In a tree, where no comparison waits for the one before; bounds of loops are constants, so that
    they vectorise.
    """
    for lane in range(_LANES):
        a, b = logits[lane], logits[lane + _LANES]
        c, d = logits[lane + 2 * _LANES], logits[lane + 3 * _LANES]
        a, c = b if b > a else a, d if d > c else c
        lanes[lane] = c if c > a else a
    for width in _WIDTHS:
        for lane in range(width):
            a, b = lanes[lane], lanes[lane + width]
            lanes[lane] = b if b > a else a
    invalid = 0
    for code in range(_CHUNK):
        invalid += logits[code] != logits[code]
    return _NAN if invalid > 0 else np.float32(lanes[0])


@helper
def _weigh(
    logits: Floats, highest: np.float32, inverse: np.float32, weights: Floats, lanes: Floats
) -> np.float32:
    """Write ``exp((logits − highest) · inverse)`` of a chunk and return the sum.

    Four neighbouring codes first, then 32 such sums in a tree: a lane, then a warp.
    """
    if highest == _NOTHING:
        for code in range(_CHUNK):
            weights[code] = _ZERO
        return _ZERO
    for code in range(_CHUNK):
        weights[code] = exponential((logits[code] - highest) * inverse)
    for lane in range(_LANES):
        lanes[lane] = _lane_sum(weights, lane)
    for width in _WIDTHS:
        for lane in range(width):
            lanes[lane] += lanes[lane + width]
    return np.float32(lanes[0])


@helper
def _lane_sum(weights: Floats, lane: int) -> np.float32:
    first = lane * _PER_LANE
    pair = weights[first] + weights[first + 1]
    return np.float32((pair + weights[first + 2]) + weights[first + 3])


@helper
def _scale(sums: Floats, maxima: Floats, highest: np.float32, inverse: np.float32) -> None:
    """Make sums of chunks relative to the maximum of the row."""
    for chunk in range(len(sums)):
        sums[chunk] *= exponential((maxima[chunk] - highest) * inverse)


@helper
def _group_sum(group: int, sums: Floats) -> np.float32:
    """Sum over one of at most 32 groups of neighbouring chunks."""
    size = -(-len(sums) // _LANES)
    total = _ZERO
    for chunk in range(group * size, min((group + 1) * size, len(sums))):
        total += sums[chunk]
    return total


@helper
def _groups(chunks: int) -> int:
    """Number of groups that are not empty."""
    return -(-chunks // -(-chunks // _LANES))


@helper
def _sum_chunks(sums: Floats) -> np.float32:
    total = _ZERO
    for group in range(_groups(len(sums))):
        total += _group_sum(group, sums)
    return total


@helper
def _inverse_cdf(
    row: Floats,
    maxima: Floats,
    sums: Floats,
    highest: np.float32,
    inverse: np.float32,
    uniform: np.float32,
    weights: Floats,
    lanes: Floats,
) -> int:
    """First code whose cumulated weight exceeds ``uniform`` of the total.

    Group, then chunk, then lane, then code; at each level rounding may leave the target past the
    last one, which then takes it.
    """
    target = uniform * _sum_chunks(sums)
    last = _groups(len(maxima)) - 1
    cumulated, group = _ZERO, last
    for candidate in range(last):
        after = cumulated + _group_sum(candidate, sums)
        if after > target:
            group = candidate
            break
        cumulated = after
    size = -(-len(maxima) // _LANES)
    found, before = group * size, cumulated
    for chunk in range(group * size, min((group + 1) * size, len(maxima))):
        if sums[chunk] > 0:
            found, before = chunk, cumulated
        cumulated += sums[chunk]
        if cumulated > target:
            break
    logits = row[found * _CHUNK : (found + 1) * _CHUNK]
    _weigh(logits, maxima[found], inverse, weights, lanes)
    scale = exponential((maxima[found] - highest) * inverse)
    return found * _CHUNK + _code_in_chunk(weights, scale, before, target)


@helper
def _code_in_chunk(
    weights: Floats, scale: np.float32, before: np.float32, target: np.float32
) -> int:
    cumulated, found = before, 0
    for lane in range(_LANES):
        weight = _lane_sum(weights, lane) * scale
        if weight > 0:
            found, before = lane, cumulated
        cumulated += weight
        if cumulated > target:
            break
    cumulated, code = before, found * _PER_LANE
    for candidate in range(found * _PER_LANE, (found + 1) * _PER_LANE):
        if weights[candidate] > 0:
            code = candidate
        cumulated += weights[candidate] * scale
        if cumulated > target:
            break
    return code
