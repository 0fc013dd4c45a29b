"""What a request to a masked model may set, and what it uses when nothing is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import BeforeValidator, Field

from fewstep.runtime.decoders import DECODER_SETTING
from fewstep.runtime.families.masked.schedule_file import expanded, named_file
from fewstep.runtime.settings import (
    PRESET,
    Alias,
    PerStep,
    RampOrList,
    Settings,
    Whole,
    at_most,
)

CONFIDENCE = "confidence"
"""The order that is not known before: the most confident positions first."""

RAMPS = ("guidance", "sampling_temperature", "masking_temperature")
"""What a fixed schedule ramps, and a policy decides by itself."""

_MOST = 1e6  # logits times more than this leave the range of float32


def _named(value: object) -> object:
    """A schedule's name; mask ratios as their text, so that settings stay plain data."""
    if isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, str):
        value = PerStep.of(list(value))
    return str(value) if isinstance(value, PerStep) else value


class MaskedSettings(Settings):
    """Settings of masked decoding; the values here are the defaults of every bundle that does not
    bring its own."""

    lists: ClassVar[frozenset[str]] = frozenset(("schedule", *RAMPS, "softmax_temperature"))
    diffusers: ClassVar[Mapping[str, Alias]] = {
        "num_inference_steps": Alias("steps"),
        "guidance_scale": Alias("guidance", less=1),
    }

    @classmethod
    def expanded(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """With what ``schedule`` says of every step, if it is a file or a mapping
        (:mod:`fewstep.runtime.families.masked.schedule_file`).

        Raises:
            RequestError: it cannot be read, or a setting is given twice.
        """
        return expanded(given)

    @classmethod
    def file_of(cls, given: Mapping[str, Any]) -> str | None:
        return named_file(given)

    preset: str | None = PRESET
    steps: Whole = Field(default=8, description="Transformer passes.")
    schedule: Annotated[str, BeforeValidator(_named)] = Field(
        default="cosine",
        description="Mask-ratio schedule: cosine, arccos, linear, square, cubic, exponential, "
        "square-root, logarithmic, policy, a policy's name, mask ratios such as "
        "0.9,0.5,0, or a YAML or JSON file with values for every step.",
    )
    guidance: Annotated[RampOrList, at_most(_MOST)] = Field(
        default=(0.0, 3.0),
        description="Guidance scale; START:END is a ramp, 0,1,2 a value for every step.",
    )
    sampling_temperature: Annotated[RampOrList, at_most(_MOST)] = Field(
        default=(1.0, 1.0),
        description="Divides the logits; START:END is a ramp, 1,1,0.9 a value for every step.",
    )
    masking_temperature: Annotated[RampOrList, at_most(_MOST)] = Field(
        default=(4.5, 0.0),
        description="Scales the noise on confidences, 0 is greedy; START:END is a ramp, 3,1,0 a "
        "value for every step.",
    )
    softmax_temperature: Annotated[RampOrList, at_most(_MOST)] = Field(
        default=(1.0, 1.0),
        description="Divides the logits before sampling and confidences, where these are logits "
        "(1d-tokenizer's annealing is 1.3:0.5); START:END is a ramp.",
    )
    guidance_power: Annotated[float, Field(ge=0, le=100)] = Field(
        default=0.0,
        description="Power p of a guidance that rises as (1 − cos(π·rᵖ))/2 of its ramp; 0 is a "
        "straight one.",
    )
    order: str = Field(
        default=CONFIDENCE,
        description="Which positions are decided first: confidence, or an order that is known "
        "before: halton, halton-rolled, random.",
    )
    top_k: Whole = Field(
        default=0, ge=0, description="Sample from so many codes at most, with --order; 0 is all."
    )
    top_p: Annotated[float, Field(ge=0, le=1)] = Field(
        default=1.0, description="Sample from the likeliest codes of this mass, with --order."
    )
    local_steps: Whole = Field(
        default=0,
        ge=0,
        description="Steps after every full one that compute their own positions alone, beside "
        "cached ones (ReCAP: 1), with --order; 0 is none.",
    )
    full_first: Whole = Field(
        default=0, ge=0, description="Steps at the start that are all full, with --local-steps."
    )
    decoder: str = DECODER_SETTING

    @property
    def listed(self) -> bool:
        """Whether anything has a value for every step, which fits one number of steps."""
        ratios = self.schedule.partition(",")[1] != ""
        names = self.lists - {"schedule"}
        return ratios or any(isinstance(getattr(self, name), PerStep) for name in names)
