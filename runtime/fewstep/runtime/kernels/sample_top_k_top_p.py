"""Guidance, top-k, nucleus and sampling (VAR's ``sample_with_top_k_top_p_``, one kernel).

For every position whose token is not given, with logits c (conditional) and u (unconditional) and
the parameters guidance t, top-k, top-p and sampling temperature T of its image:

    l     = c + t·(c − u)
    top-k   drops what is below the k-th largest l; ties with it stay
    top-p   sorts what is left, smallest first and equal ones in the order of codes, and drops it
            while the probability dropped, at temperature 1, stays within 1 − p; never the last
    token ~ softmax(l / T) over what is kept, by inverse CDF of one uniform

Probabilities are whole numbers: exp(l − max), times 2⁴⁰, truncated. Their sums do not depend on
the order, so that this and ``sample_top_k_top_p.cu`` give the same tokens, however each adds them
up. A sum of 65,536 of them is below 2⁵⁷. Nothing is sorted: both limits come from the largest
digit of the logits' bits down to the smallest, by histograms of 256 bins.

Shapes: logits ``[B, N, V]`` float32, parameters ``[B, 4]`` float32 in the order of
:data:`PARAMETERS`, seeds ``[B]`` uint64, tokens ``[B, N]`` int32.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fewstep.runtime.kernels.compiled import helper, kernel
from fewstep.runtime.kernels.exponential import exponential
from fewstep.runtime.kernels.guidance import guide
from fewstep.runtime.kernels.philox import uniforms
from fewstep.runtime.kernels.sample_tokens import LOWEST_TEMPERATURE

PARAMETERS = ("guidance", "top_k", "top_p", "sampling_temperature")
"""Columns of the ``[B, 4]`` parameter array, in the order of AdaGen's actions."""

_COLDEST = np.float32(LOWEST_TEMPERATURE)
_ONE, _NOTHING = np.float32(1), np.float32(-np.inf)
_UNIT = np.float32(2.0**40)
_BINS, _BITS = 256, 8
_SIGN, _EVERY_BIT = np.uint32(0x80000000), np.uint32(0xFFFFFFFF)
Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]
Keys = npt.NDArray[np.uint32]
Wide = npt.NDArray[np.int64]


@kernel
def sample_top_k_top_p(
    conditional: Floats,
    unconditional: Floats,
    parameters: Floats,
    seeds: npt.NDArray[np.uint64],
    step: int,
    given: Ids,
    tokens: Ids,
    error: Ids,
    mask_token: int,
) -> None:
    """Sample every position that is not given.

    Args:
        conditional: logits ``[B, N, V]``, V up to 65,536.
        unconditional: logits ``[B, N, V]``, or ``[1, N, V]`` shared by all images; not read for
            images whose guidance is 0.
        parameters: ``[B, 4]``, columns as in :data:`PARAMETERS`. Top-k is truncated to a whole
            number; below 1, or V and more, it drops nothing. Top-p of 1 and more drops nothing,
            0 leaves one code. Below ``LOWEST_TEMPERATURE`` the first of the most likely codes
            that are kept is taken.
        seeds: ``[B]``.
        step: index of the step, part of the random counter.
        given: ids ``[B, N]``; where one is not negative it is the token, and no logit is read.
        tokens: out, ids ``[B, N]``.
        error: in and out, ``[1]``: becomes 1 if a logit is NaN or +∞, a row is all −∞, a parameter
            is NaN or negative, or a given id is no code; the token is then 0.
        mask_token: an id that may be given although it is no code, or −1.
    """
    batch, count, codes = conditional.shape
    row, values = np.empty(codes, np.float32), np.empty(codes, np.float32)
    kept_codes, keys = np.empty(codes, np.int32), np.empty(codes, np.uint32)
    masses, histogram = np.empty(codes, np.int64), np.empty(_BINS, np.int64)
    for image in range(batch):
        guidance, top_k = parameters[image, 0], parameters[image, 1]
        top_p, temperature = parameters[image, 2], parameters[image, 3]
        usable = guidance >= 0 and top_k >= 0 and top_p >= 0 and temperature >= 0
        for position in range(count):
            token = int(given[image, position])
            if token < 0 and usable:
                if guidance == 0:
                    for code in range(codes):
                        row[code] = conditional[image, position, code]
                else:
                    shared = image % unconditional.shape[0]
                    other = unconditional[shared, position]
                    guide(conditional[image, position], other, guidance, row)
                left = _keep(row, top_k, top_p, kept_codes, values, keys, masses, histogram)
                u, _ = uniforms(seeds[image], step, position)
                token = _draw(kept_codes[:left], values[:left], temperature, u, masses)
            if token < 0 or (token >= codes and token != mask_token):
                token = 0
                error[0] = 1
            tokens[image, position] = token


@kernel
def kept(logits: Floats, top_k: float, top_p: float) -> npt.NDArray[np.bool_]:
    """Which of ``logits [V]`` top-k and top-p leave; none if the kernel would refuse the row.

    A logit of −∞ is never left.
    """
    codes = len(logits)
    kept_codes, values = np.empty(codes, np.int32), np.empty(codes, np.float32)
    keys, masses = np.empty(codes, np.uint32), np.empty(codes, np.int64)
    k, p, histogram = np.float32(top_k), np.float32(top_p), np.empty(_BINS, np.int64)
    mask = np.zeros(codes, np.bool_)
    if k >= 0 and p >= 0:
        left = _keep(logits, k, p, kept_codes, values, keys, masses, histogram)
        for index in range(left):
            mask[kept_codes[index]] = True
    return mask


@helper
def _keep(
    row: Floats,
    top_k: np.float32,
    top_p: np.float32,
    kept_codes: Ids,
    values: Floats,
    keys: Keys,
    masses: Wide,
    histogram: Wide,
) -> int:
    """Write what is kept of ``row [V]``, codes and logits in the order of codes; how many.

    ``values`` are relative to the largest. ``keys``, ``masses`` and ``histogram`` are scratch.
    """
    highest, invalid = _NOTHING, 0
    for value in row:
        highest = value if value > highest else highest
        invalid += value != value
    if invalid > 0 or not math.isfinite(highest):
        return 0
    codes = len(row)
    lowest = np.uint32(0)
    if _ONE <= top_k < codes:
        for code in range(codes):
            keys[code] = _key(row[code])
            masses[code] = 1
        drop = codes - int(top_k)
        lowest, _, _ = _edge(keys, masses, codes, drop, histogram)
    left = 0
    for code in range(codes):
        kept_codes[left], values[left] = code, row[code]
        left += int(_key(row[code]) >= lowest and row[code] > _NOTHING)
    if top_p >= 1:
        return _relative(values, left, highest)
    return _nucleus(kept_codes, values, left, highest, top_p, keys, masses, histogram)


@helper
def _relative(values: Floats, left: int, highest: np.float32) -> int:
    for index in range(left):
        values[index] -= highest
    return left


@helper
def _nucleus(
    kept_codes: Ids,
    values: Floats,
    left: int,
    highest: np.float32,
    top_p: np.float32,
    keys: Keys,
    masses: Wide,
    histogram: Wide,
) -> int:
    total = 0
    for index in range(left):
        keys[index] = _key(values[index])
        masses[index] = _mass(values[index] - highest)
        total += int(masses[index])
    drop = min(int((1.0 - float(top_p)) * float(total)), total - 1)
    edge, mass, rest = _edge(keys, masses, left, drop, histogram)
    ties = rest // mass  # so many of the first codes at the edge are dropped as well
    found = 0
    for index in range(left):
        key = _key(values[index])
        tied = key == edge and ties > 0
        kept_codes[found], values[found] = kept_codes[index], values[index] - highest
        found += int(key >= edge and not tied)
        ties -= int(tied)
    return found


@helper
def _edge(
    keys: Keys, masses: Wide, count: int, drop: int, histogram: Wide
) -> tuple[np.uint32, int, int]:
    """The smallest key at which the mass up to it, ties included, exceeds ``drop``.

    Returns the key, the mass of one that has it, and what of ``drop`` the keys below it leave.
    ``drop`` is below the sum of ``masses [:count]``. Both arrays are overwritten.
    """
    for shift in range(32 - _BITS, -1, -_BITS):
        histogram[:] = 0
        for index in range(count):
            histogram[(keys[index] >> np.uint32(shift)) & np.uint32(_BINS - 1)] += masses[index]
        digit = 0
        while histogram[digit] <= drop:
            drop -= int(histogram[digit])
            digit += 1
        found = 0
        for index in range(count):
            keys[found], masses[found] = keys[index], masses[index]
            found += int(((keys[index] >> np.uint32(shift)) & np.uint32(_BINS - 1)) == digit)
        count = found
    return keys[0], int(masses[0]), drop


@helper
def _key(value: np.float32) -> np.uint32:
    """An integer in the order of floats; 0 and −0 have the same."""
    if value == 0:
        return _SIGN
    bits = np.float32(value).view(np.uint32)
    return bits ^ (_EVERY_BIT if bits & _SIGN else _SIGN)


@helper
def _mass(exponent: np.float32) -> int:
    return int(exponential(exponent) * _UNIT)


@helper
def _draw(
    kept_codes: Ids, values: Floats, temperature: np.float32, uniform: np.float32, masses: Wide
) -> int:
    """A code out of those kept; −1 if there are none."""
    if len(kept_codes) == 0:
        return -1
    if temperature < _COLDEST:
        index = 0
        while values[index] != 0:
            index += 1
        return int(kept_codes[index])
    inverse, total = _ONE / temperature, 0
    for index in range(len(values)):
        masses[index] = _mass(values[index] * inverse)
        total += int(masses[index])
    target = int(float(total) * float(uniform))
    index, cumulated = 0, int(masses[0])
    while cumulated <= target:
        index += 1
        cumulated += int(masses[index])
    return int(kept_codes[index])
