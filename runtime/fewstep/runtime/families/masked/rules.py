"""What differs between the ways in which authors sample, and no request says.

A bundle's manifest has it, as its form set it. Everything else is one program, one pair of kernels
and settings.
"""

from __future__ import annotations

from typing import Literal

from fewstep.runtime.records import Strict

Place = Literal["before", "after", "inclusive"]
"""Where a curve is read at step t of T: at t/T, (t + 1)/T, or t/(T − 1)."""


class Rules(Strict):
    """How a form samples.

    ``confidence``: of a sampled token, before the noise: log-softmax of the logits, the same after
    the sampling temperature, or the logit itself. ``ties``: what becomes of positions that are as
    confident as the last one that is masked. ``known``: whether positions that are decided keep
    their tokens, or draw others in every step as long as they stay decided. ``last_token``: with
    ``at_least_one``, what becomes of a token that is the only masked one before the last step.

    ``counted``: which number of tokens is rounded down, those masked after a step or those decided;
    in the latter case at least t + 1 are. ``precision`` in which it is computed; ``product`` is a
    mask ratio in float64, and its product with the number of tokens in float32. ``mask_ratio_at``,
    ``guidance_at``, ``temperature_at``: where the schedule and its ramps are read.
    ``sampling_temperature``: whether it divides the logits or multiplies them.

    ``mask_sampled``: logits have one more code, the mask token; where it is drawn the position
    stays masked.
    """

    confidence: Literal["log-probability", "tempered-log-probability", "logit"] = "log-probability"
    known: Literal["kept", "resampled"] = "kept"
    ties: Literal["decided", "masked"] = "decided"
    last_token: Literal["kept", "decided"] = "kept"
    counted: Literal["masked", "decided"] = "masked"
    precision: Literal["product", "float32", "float64"] = "product"
    mask_ratio_at: Place = "after"
    guidance_at: Place = "after"
    temperature_at: Place = "after"
    sampling_temperature: Literal["divides", "multiplies"] = "divides"
    mask_sampled: bool = False


def part(place: Place, step: int, steps: int) -> tuple[int, int]:
    """Where a curve is read, as numerator and denominator; one step alone is at 0 of 1."""
    if place == "inclusive":
        return step, max(1, steps - 1)
    return step + (place == "after"), steps
