"""What a request to a VAR model may set, and what it uses when nothing is said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, Field

from fewstep.runtime.decoders import DECODER_SETTING
from fewstep.runtime.errors import RequestError
from fewstep.runtime.settings import (
    PLAIN_ENDS,
    PRESET,
    Alias,
    PerStep,
    RampOrList,
    Settings,
    Values,
    Whole,
    at_most,
    numbers_of,
    ramp_from,
    shown,
)

FIXED = "fixed"
"""The schedule that is no policy: what the settings say."""

SAMPLING = ("guidance", "top_k", "top_p", "sampling_temperature")
"""What a fixed schedule sets, and a policy decides by itself: the columns of the parameters."""

_MOST = 1e6  # logits times more than this leave the range of float32


def _counts(value: Values) -> Values:
    if min(numbers_of(value)) < 1:
        raise ValueError(
            f"must be at least 1 (the codebook size switches it off), got {shown(value)}"
        )
    if any(each % 1 for each in numbers_of(value)):
        raise ValueError(f"must be whole numbers, got {shown(value)}")
    return value


def _shares(value: Values) -> Values:
    if not all(0 < each <= 1 for each in numbers_of(value)):
        raise ValueError(f"must be above 0 and at most 1 (1 switches it off), got {shown(value)}")
    return value


class VarSettings(Settings):
    """Settings of next-scale prediction. The defaults are those that the authors' FIDs are
    measured with."""

    lists: ClassVar[frozenset[str]] = frozenset(SAMPLING)
    diffusers: ClassVar[Mapping[str, Alias]] = {
        "num_inference_steps": Alias("scales"),
        "guidance_scale": Alias("guidance", less=1),
    }

    preset: str | None = PRESET
    schedule: str = Field(
        default=FIXED,
        description="fixed, or the policy network that sets guidance, top-k, top-p and temperature "
        "per image and scale: policy, or a policy's name.",
    )
    guidance: Annotated[RampOrList, ramp_from(0.0), at_most(_MOST), PLAIN_ENDS] = Field(
        default=(0.0, 1.5),
        description="Guidance scale of the last scale, which grows from 0 over the scales; "
        "START:END is another ramp, 0,1,2 a value for every scale.",
    )
    top_k: Annotated[RampOrList, at_most(_MOST), AfterValidator(_counts)] = Field(
        default=(900.0, 900.0),
        description="Codes that are drawn from, the likeliest; the codebook size is all. START:END "
        "is a ramp, 900,600,300 a value for every scale.",
    )
    top_p: Annotated[RampOrList, AfterValidator(_shares)] = Field(
        default=(0.96, 0.96),
        description="Probability of the likeliest codes that are drawn from; 1 is all. START:END "
        "is a ramp, 1,1,0.9 a value for every scale.",
    )
    sampling_temperature: Annotated[RampOrList, at_most(_MOST)] = Field(
        default=(1.0, 1.0),
        description="Divides the logits of the codes that are left, 0 takes the likeliest; "
        "START:END is a ramp, 1.1,1,1 a value for every scale.",
    )
    scales: Whole | None = Field(
        default=None,
        description="Scales to decode, the first ones: leaving out the last is faster and less "
        "sharp. [all]",
    )
    guided_scales: Whole | None = Field(
        default=None,
        description="Scales that are guided, the first ones: the others run without the "
        "unconditional half. [all]",
    )
    reuse_first: bool = Field(
        default=False,
        description="Compute the unconditional half of the first scale once, not for every image; "
        "for models whose first scale is one token.",
    )
    decoder: str = DECODER_SETTING

    def parameters(self, scales: int) -> npt.NDArray[np.float32]:
        """Guidance scale, top-k, top-p and sampling temperature of every scale, ``[S, 4]``.

        A ramp is evaluated at s / (S − 1), as the official code scales its guidance.

        Args:
            scales: of the model, S.

        Raises:
            RequestError: a list for another number of scales.
        """
        columns = {name: getattr(self, name) for name in SAMPLING}
        wrong = {
            name: len(each)
            for name, each in columns.items()
            if isinstance(each, PerStep) and len(each) != scales
        }
        if wrong:
            got = ", ".join(f"{name} {count}" for name, count in wrong.items())
            raise RequestError(f"lists need a value for each of the {scales} scales, got {got}")
        return np.array(
            [[_at(each, step, scales) for each in columns.values()] for step in range(scales)],
            np.float32,
        )


def _at(values: Values, step: int, scales: int) -> float:
    if isinstance(values, PerStep):
        return values.values[step]
    start, end = values
    return start + (end - start) * step / max(1, scales - 1)
