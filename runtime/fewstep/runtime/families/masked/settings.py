"""What a request to a masked model may set, and what it uses when nothing is said."""

from __future__ import annotations

from pydantic import Field

from fewstep.runtime.settings import Ramp, Settings, Whole

RAMPS = ("guidance", "sampling_temperature", "masking_temperature")
"""What a fixed schedule ramps, and a policy decides by itself."""


class MaskedSettings(Settings):
    """Settings of masked decoding; the values here are the defaults of every bundle that does not
    bring its own."""

    steps: Whole = Field(default=8, description="Transformer passes.")
    schedule: str = Field(
        default="cosine", description="Mask-ratio schedule (cosine, …), policy, or a name."
    )
    guidance: Ramp = Field(default=(0.0, 3.0), description="Guidance scale; START:END is a ramp.")
    sampling_temperature: Ramp = Field(
        default=(1.0, 1.0),
        description="Divides the logits; START:END is a ramp.",
    )
    masking_temperature: Ramp = Field(
        default=(4.5, 0.0),
        description="Scales the noise on confidences; 0 is greedy.",
    )
