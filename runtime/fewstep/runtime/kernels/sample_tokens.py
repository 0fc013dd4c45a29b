"""Guidance, softmax, sampling and confidence in one go.

For every masked position of every image, with logits ``c`` (conditional) and ``u``
(unconditional), guidance scale s, sampling temperature τ and masking temperature μ:

    l          = c + s·(c − u)
    token      ~ softmax(l / τ)                    by inverse CDF of one uniform; argmax if τ = 0
    confidence = log_softmax(l)[token] + μ·g       g = −log(−log v), v a second uniform

A known position keeps its token and gets confidence +∞. The order of these operations, and the
absence of τ in the confidence, are those of the official AdaNAT sampler.

Sums are taken in a fixed order (16 lanes, chunks of 64 codes, then chunk by chunk in float64), so
that results do not depend on the processor's vector width.

Shapes: logits ``[B, N, V]`` float32, tokens ``[B, N]`` int32, parameters ``[B, 4]`` float32 in the
order of :data:`PARAMETERS`, seeds ``[B]`` uint64.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fewstep.runtime.kernels.compiled import kernel
from fewstep.runtime.kernels.exponential import exponential
from fewstep.runtime.kernels.philox import uniforms

PARAMETERS = ("mask_ratio", "masking_temperature", "sampling_temperature", "guidance")
"""Columns of the ``[B, 4]`` parameter array, in the order of AdaNAT's actions."""

_CHUNK, _LANES = 64, 16
_ONE = np.float32(1)
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
        error: in and out, ``[1]``: becomes 1 if a logit is NaN or +∞, or a row is all −∞.
    """
    batch, count, codes = conditional.shape
    logits = np.empty(codes, np.float32)
    weights, ends, lanes = _scratch(codes)
    for image in range(batch):
        masking_temperature, temperature = parameters[image, 1], parameters[image, 2]
        guidance = parameters[image, 3]
        for position in range(count):
            if tokens[image, position] != mask_token:
                sampled[image, position] = tokens[image, position]
                confidence[image, position] = np.inf
                continue
            if guidance == 0:
                logits[:] = conditional[image, position]
            else:
                shared = image % unconditional.shape[0]
                _guide(
                    conditional[image, position], unconditional[shared, position], guidance, logits
                )
            u, v = uniforms(seeds[image], step, position)
            code, log_probability = _sample(logits, temperature, u, weights, ends, lanes)
            if math.isnan(log_probability):
                error[0] = 1
            gumbel = np.float32(-math.log(-math.log(v)))
            sampled[image, position] = code
            confidence[image, position] = log_probability + masking_temperature * gumbel


@kernel
def sample_row(
    logits: Floats, temperature: np.float32, uniform: np.float32
) -> tuple[int, np.float32]:
    """Sample one code from ``logits [V]``, which are overwritten by logits minus their maximum.

    Returns the code and its log-probability at temperature 1; NaN if the row has a NaN or +∞ or
    nothing but −∞.
    """
    weights, ends, lanes = _scratch(len(logits))
    return _sample(logits, temperature, uniform, weights, ends, lanes)


@kernel
def _scratch(codes: int) -> tuple[Floats, npt.NDArray[np.float64], Floats]:
    """Room for the weights in whole chunks, zero past the last code; for chunk sums; for lanes."""
    chunks = -(-codes // _CHUNK)
    weights = np.zeros(chunks * _CHUNK, np.float32)
    return weights, np.empty(chunks, np.float64), np.empty(_LANES, np.float32)


@kernel
def _sample(
    logits: Floats,
    temperature: np.float32,
    uniform: np.float32,
    weights: Floats,
    ends: npt.NDArray[np.float64],
    lanes: Floats,
) -> tuple[int, np.float32]:
    highest = _subtract_maximum(logits, lanes)
    if not math.isfinite(highest):
        return 0, np.float32(np.nan)
    _cumulate(logits, _ONE, weights, ends, lanes)
    total = ends[-1]
    if temperature == 0:
        code = int(np.argmax(logits))
    else:
        if temperature != 1:
            _cumulate(logits, temperature, weights, ends, lanes)
        code = _inverse_cdf(weights, ends, uniform)
    return code, logits[code] - np.float32(math.log(total))


@kernel
def _guide(conditional: Floats, unconditional: Floats, guidance: np.float32, out: Floats) -> None:
    for code in range(len(out)):
        c = conditional[code]
        guided = c + guidance * (c - unconditional[code])
        out[code] = c if c == -np.inf else guided  # an excluded code stays excluded


@kernel
def _subtract_maximum(logits: Floats, lanes: Floats) -> np.float32:
    """Subtract the maximum in place and return it; NaN if any logit is NaN."""
    lanes[:] = -np.inf
    whole = len(logits) // _LANES * _LANES
    invalid = 0
    for start in range(0, whole, _LANES):
        for lane in range(_LANES):
            value = logits[start + lane]
            lanes[lane] = value if value > lanes[lane] else lanes[lane]
            invalid += value != value
    highest = np.float32(lanes.max())
    for code in range(whole, len(logits)):
        highest = max(highest, logits[code])
        invalid += logits[code] != logits[code]
    if invalid > 0:
        return np.float32(np.nan)
    for code in range(len(logits)):
        logits[code] -= highest
    return highest


@kernel
def _cumulate(
    logits: Floats,
    temperature: np.float32,
    weights: Floats,
    ends: npt.NDArray[np.float64],
    lanes: Floats,
) -> None:
    """Write ``exp(logits / temperature)`` and the running sum after each chunk."""
    if temperature == 1:
        for code in range(len(logits)):
            weights[code] = exponential(logits[code])
    else:
        for code in range(len(logits)):
            weights[code] = exponential(logits[code] / temperature)
    total = 0.0
    for chunk in range(len(ends)):
        lanes[:] = 0
        for start in range(chunk * _CHUNK, (chunk + 1) * _CHUNK, _LANES):
            for lane in range(_LANES):
                lanes[lane] += weights[start + lane]
        for lane in range(_LANES):
            total += lanes[lane]
        ends[chunk] = total


@kernel
def _inverse_cdf(weights: Floats, ends: npt.NDArray[np.float64], uniform: np.float32) -> int:
    """First code whose cumulated weight exceeds ``uniform`` of the total."""
    target = uniform * ends[-1]
    chunk = 0
    while ends[chunk] <= target and chunk < len(ends) - 1:
        chunk += 1
    cumulated = ends[chunk - 1] if chunk > 0 else 0.0
    found = chunk * _CHUNK
    for code in range(chunk * _CHUNK, (chunk + 1) * _CHUNK):
        if weights[code] > 0:
            found = code  # rounding may leave the target past the chunk's own sum
            cumulated += weights[code]
            if cumulated > target:
                break
    return found
