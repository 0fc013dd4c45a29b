"""Guidance, softmax, sampling and confidence in one go.

For every masked position of every image, with logits ``c`` (conditional) and ``u``
(unconditional), guidance scale s, sampling temperature τ and masking temperature μ:

    l          = c + s·(c − u)
    token      ~ softmax(l / τ)                    by inverse CDF of one uniform; argmax if τ = 0
    confidence = log_softmax(l)[token] + μ·g       g = −log(−log v), v a second uniform

A known position keeps its token and gets confidence +∞. The order of these operations, and the
absence of τ in the confidence, are those of the official AdaNAT sampler.

Shapes: logits ``[B, N, V]`` float32, tokens ``[B, N]`` int32, parameters ``[B, 4]`` float32 in the
order of :data:`PARAMETERS`, seeds ``[B]`` uint64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.runtime.kernels.philox import uniforms

PARAMETERS = ("mask_ratio", "masking_temperature", "sampling_temperature", "guidance")
"""Columns of the ``[B, 4]`` parameter array, in the order of AdaNAT's actions."""

_CHUNK = 64
Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]


def sample_tokens(
    *,
    conditional: Floats,
    unconditional: Floats | None,
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
        unconditional: logits ``[B, N, V]``, or ``[1, N, V]`` shared by all images, or ``None``
            for no guidance.
        tokens: ids ``[B, N]``; ``mask_token`` marks the positions to sample.
        parameters: ``[B, 4]``, columns as in :data:`PARAMETERS`.
        seeds: ``[B]``.
        step: index of the step, part of the random counter.
        mask_token: id of a masked position.
        sampled: out, ids ``[B, N]``.
        confidence: out, ``[B, N]``.
        error: in and out, ``[1]``: becomes 1 if a logit is NaN or a row is all −∞.
    """
    for image in range(tokens.shape[0]):
        sampled[image] = tokens[image]
        confidence[image] = np.inf
        masked = np.flatnonzero(tokens[image] == mask_token)
        if masked.size == 0:
            continue
        logits = conditional[image, masked]
        _, masking_temperature, sampling_temperature, guidance = parameters[image]
        if unconditional is not None and guidance != 0:
            shared = unconditional.shape[0] == 1
            logits += guidance * (logits - unconditional[0 if shared else image, masked])
        u, v = uniforms(int(seeds[image]), step, masked)
        chosen, log_probability = sample_rows(logits, sampling_temperature, u)
        if np.isnan(log_probability).any():
            error[0] = 1
        sampled[image, masked] = chosen
        gumbel = -np.log(-np.log(v))
        confidence[image, masked] = log_probability + masking_temperature * gumbel


def sample_rows(
    logits: Floats, temperature: np.float32 | float, uniform: Floats
) -> tuple[npt.NDArray[np.intp], Floats]:
    """Sample one code per row of ``logits [R, V]``, which is overwritten.

    Returns the ids ``[R]`` and their log-probabilities at temperature 1 ``[R]`` (NaN where the
    row holds a NaN, +∞ or nothing but −∞).
    """
    rows = np.arange(len(logits))
    with np.errstate(invalid="ignore"):  # −∞ − −∞ is the NaN that is reported
        logits -= logits.max(axis=1, keepdims=True)
    weights, total = _exponentials(logits)
    if temperature == 1:
        chosen = _inverse_cdf(weights, uniform)
    elif temperature == 0:
        chosen = logits.argmax(axis=1)
    else:
        scaled, _ = _exponentials(logits / temperature)
        chosen = _inverse_cdf(scaled, uniform)
    # A row with a NaN may point past the end; its log-probability is NaN all the same.
    chosen = np.minimum(chosen, logits.shape[1] - 1)
    return chosen, logits[rows, chosen] - np.log(total)


def _exponentials(logits: Floats) -> tuple[Floats, Floats]:
    """``exp(logits)`` in chunks ``[R, V/64, 64]``, padded with zeros, and its row sums."""
    count, codes = logits.shape
    chunks = -(-codes // _CHUNK)
    weights = np.zeros((count, chunks * _CHUNK), np.float32)
    np.exp(logits, out=weights[:, :codes])
    return weights.reshape(count, chunks, _CHUNK), weights.sum(axis=1)


def _inverse_cdf(weights: Floats, uniform: Floats) -> npt.NDArray[np.intp]:
    """First code whose cumulated weight exceeds ``uniform`` of the total.

    Two levels (chunk, then code within it) keep sums short and their rounding small.
    """
    rows = np.arange(len(weights))
    ends = np.cumsum(weights.sum(axis=2), axis=1, dtype=np.float64)  # [R, chunks]
    target = uniform * ends[:, -1]
    chunk = np.minimum((ends <= target[:, None]).sum(axis=1), ends.shape[1] - 1)
    before = np.where(chunk > 0, ends[rows, chunk - 1], 0.0)
    inside = np.cumsum(weights[rows, chunk], axis=1, dtype=np.float64)  # [R, 64]
    offset = (inside <= (target - before)[:, None]).sum(axis=1)
    # Rounding may leave the target past the chunk's own sum: then its last code of any weight.
    last = _CHUNK - 1 - np.argmax(weights[rows, chunk][:, ::-1] > 0, axis=1)
    found: npt.NDArray[Any] = chunk * _CHUNK + np.minimum(offset, last)
    return found
