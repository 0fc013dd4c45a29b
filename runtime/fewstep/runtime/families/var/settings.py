"""What a request to a VAR model may set, and what it uses when nothing is said."""

from __future__ import annotations

from numbers import Real
from typing import Annotated, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer

from fewstep.runtime.errors import RequestError
from fewstep.runtime.settings import PerStep, RampOrList, Settings, Whole, ramp

FIXED = "fixed"
"""The schedule that is no policy: what the settings say."""

SAMPLING = ("guidance", "top_k", "top_p", "sampling_temperature")
"""What a fixed schedule sets, and a policy decides by itself: the columns of the parameters."""

Values = tuple[float, float] | PerStep

_MOST = 1e6  # logits times more than this leave the range of float32


def _from_zero(value: object) -> object:
    """A guidance scale alone is a ramp from 0, as in VAR."""
    alone = value.item() if isinstance(value, np.ndarray) and not value.ndim else value
    if isinstance(alone, str):
        several = ":" in alone or "," in alone
    else:
        several = not isinstance(alone, Real)
    return value if several else (0.0, ramp(alone)[1])


def _plain(value: Values) -> tuple[float, float] | str:
    """As plain data that is read as the same again: one number would be another ramp."""
    if isinstance(value, PerStep):
        return str(value)
    start, end = value
    return f"{start!r}:{end!r}" if start == end else value


def _numbers(value: Values) -> tuple[float, ...]:
    return value.values if isinstance(value, PerStep) else value


def _moderate(value: Values) -> Values:
    if max(_numbers(value)) > _MOST:
        raise ValueError(f"must be at most {_MOST:,.0f}, got {_shown(value)}")
    return value


def _counts(value: Values) -> Values:
    _moderate(value)
    if min(_numbers(value)) < 1:
        raise ValueError(
            f"must be at least 1 (the codebook size switches it off), got {_shown(value)}"
        )
    if any(each % 1 for each in _numbers(value)):
        raise ValueError(f"must be whole numbers, got {_shown(value)}")
    return value


def _shares(value: Values) -> Values:
    if not all(0 < each <= 1 for each in _numbers(value)):
        raise ValueError(f"must be above 0 and at most 1 (1 switches it off), got {_shown(value)}")
    return value


def _shown(value: Values) -> str:
    numbers = dict.fromkeys(f"{each:g}" for each in _numbers(value))
    return ", ".join(numbers)


class VarSettings(Settings):
    """Settings of next-scale prediction. The defaults are those that the authors' FIDs are
    measured with."""

    lists: ClassVar[frozenset[str]] = frozenset(SAMPLING)

    schedule: str = Field(
        default=FIXED,
        description="fixed, or the policy network that sets guidance, top-k, top-p and temperature "
        "per image and scale: policy, or a policy's name.",
    )
    guidance: Annotated[
        RampOrList, BeforeValidator(_from_zero), AfterValidator(_moderate), PlainSerializer(_plain)
    ] = Field(
        default=(0.0, 1.5),
        description="Guidance scale of the last scale, which grows from 0 over the scales; "
        "START:END is another ramp, 0,1,2 a value for every scale.",
    )
    top_k: Annotated[RampOrList, AfterValidator(_counts)] = Field(
        default=(900.0, 900.0),
        description="Codes that are drawn from, the likeliest; the codebook size is all. START:END "
        "is a ramp, 900,600,300 a value for every scale.",
    )
    top_p: Annotated[RampOrList, AfterValidator(_shares)] = Field(
        default=(0.96, 0.96),
        description="Probability of the likeliest codes that are drawn from; 1 is all. START:END "
        "is a ramp, 1,1,0.9 a value for every scale.",
    )
    sampling_temperature: Annotated[RampOrList, AfterValidator(_moderate)] = Field(
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
