"""Which tokens an iteration decides, and which positions it computes again.

Everything here is known before the run, so that every iteration has shapes of its own and nothing
is decided on the device.
"""

from __future__ import annotations

import math

SURPLUS = 15
"""Positions that LazyMAR computes again beside those that have to be (feihongyan1/LazyMAR)."""

_TABLE_ENDS = ((20, 1.0), (21, 0.6), (25, 0.5), (30, 0.4), (35, 0.15), (40, 0.12), (64, 0.05))
_TABLE_LENGTH = 64


def counts(tokens: int, iterations: int) -> tuple[int, ...]:
    """Tokens that every iteration decides.

    With M tokens to decide in N iterations, the number still masked after iteration s is

        max(1, min(masked before − 1, ⌊M·cos(π/2·(s + 1)/N)⌋))

    and 0 after the last (``sample_tokens`` of ``models/mar.py`` of LTH14/mar, in float64).

    Args:
        tokens: to decide.
        iterations: 1 … ``tokens``.
    """
    masked, found = tokens, []
    for step in range(1, iterations):
        wanted = math.floor(tokens * math.cos(math.pi / 2 * step / iterations))
        left = max(1, min(masked - 1, wanted))
        found.append(masked - left)
        masked = left
    return (*found, masked)


def share(iteration: int, iterations: int) -> float:
    """The share of positions that LazyMAR computes again: its table of 64 iterations, stretched."""
    at = iteration * _TABLE_LENGTH // iterations
    return next(value for end, value in _TABLE_ENDS if at < end)


def refreshes(iteration: int, first: int, every: int) -> bool:
    """Whether an iteration computes everything again: the first ones, and every so many after."""
    return iteration < first or (iteration - first) % every == 0


def recomputed(positions: int, part: float, previous: int, following: int) -> int:
    """Positions that are computed again in an iteration that computes a part of them.

    Args:
        positions: of tokens and buffer.
        part: of them, 0 … 1.
        previous: tokens that the iteration before decided.
        following: tokens that this one decides.
    """
    least = previous + following + SURPLUS
    return min(positions, max(least, int(positions * part)))
