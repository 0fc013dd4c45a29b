"""Fixed schedules: mask ratio, temperatures and guidance of every step.

Step t of T has r = (t + 1) / T. The mask ratio γ(r) falls from 1 to 0 along one of the curves of
MaskGIT (section 3.3 and ``mask_schedule.py`` of google-research/maskgit): concave ones keep many
tokens masked for long, convex ones decide many at once. Temperatures and guidance are straight
ramps: start + (end − start)·r. Each of the four may also be a list with a value for every step.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fewstep.runtime.errors import RequestError, choose
from fewstep.runtime.families.masked.settings import RAMPS
from fewstep.runtime.policies import POLICY
from fewstep.runtime.settings import PerStep, ramp_or_list

MASK_RATIOS: dict[str, Callable[[float, int], float]] = {
    "cosine": lambda r, n: math.cos(math.pi * r / 2),
    "arccos": lambda r, n: math.acos(r) / (math.pi / 2),
    "linear": lambda r, n: 1 - r,
    "square": lambda r, n: 1 - r**2,
    "cubic": lambda r, n: 1 - r**3,
    "exponential": lambda r, n: 1 - 2 ** (-math.log2(n) * (1 - r)),
    "square-root": lambda r, n: 1 - math.sqrt(r),
    "logarithmic": lambda r, n: -math.log2(r) / math.log2(n),
}
"""Mask ratio curves γ(r, N) for r in (0, 1] and N tokens, unclipped."""

_MARGIN = 1e-3  # keeps AdaNAT's residuals finite at the first and last step


Values = tuple[float, float] | PerStep


@dataclass(frozen=True)
class Schedule:
    """A fixed rule for every step; what is given as a list has a value for every step.

    Args:
        mask_ratio: a name in :data:`MASK_RATIOS`, or ratios 0 … 1.
        guidance: guidance scale s ≥ 0 in cond + s·(cond − uncond); 0 is no guidance.
        sampling_temperature: divides the logits before sampling; 0 takes the most likely code.
        masking_temperature: scales the Gumbel noise on confidences; 0 is greedy.

    Raises:
        RequestError: unknown name, a ratio above 1, or a negative or non-finite number.
    """

    mask_ratio: str | PerStep = "cosine"
    guidance: Values = (0.0, 3.0)
    sampling_temperature: Values = (1.0, 1.0)
    masking_temperature: Values = (4.5, 0.0)

    def __post_init__(self) -> None:
        if isinstance(self.mask_ratio, PerStep):
            if max(self.mask_ratio.values) > 1:
                raise RequestError(f"mask ratios must be 0 … 1, got {self.mask_ratio}")
        elif self.mask_ratio not in MASK_RATIOS:
            raise RequestError(choose("schedule", self.mask_ratio, [*MASK_RATIOS, POLICY]))
        for name in RAMPS:
            try:
                object.__setattr__(self, name, ramp_or_list(getattr(self, name)))
            except ValueError as error:
                raise RequestError(f"{name} {error}") from error

    @property
    def guided(self) -> bool:
        """Whether any step needs the unconditional half."""
        scales = self.guidance
        return any(scales.values if isinstance(scales, PerStep) else scales)

    def check(self, steps: int) -> None:
        """Refuse lists that are for another number of steps.

        Raises:
            RequestError: they are.
        """
        named = {"schedule": self.mask_ratio, **{name: getattr(self, name) for name in RAMPS}}
        lengths = {name: len(each) for name, each in named.items() if isinstance(each, PerStep)}
        if set(lengths.values()) - {steps}:
            got = ", ".join(f"{name} {length}" for name, length in lengths.items())
            most = max(lengths.values())
            raise RequestError(
                f"lists need one value for every step: steps {steps}, got {got}; for {most} steps "
                f"say so (--steps {most}, or steps={most})"
            )

    @functools.lru_cache(maxsize=64)  # noqa: B019 (schedules are small and few)
    def parameters(self, steps: int, num_tokens: int) -> npt.NDArray[np.float32]:
        """Parameters ``[T, 4]`` in the order of ``kernels.sample_tokens.PARAMETERS``, read-only.

        Raises:
            RequestError: a list is for another number of steps.
        """
        self.check(steps)
        rows = [
            (
                self._ratio(step, steps, num_tokens),
                _at(self.masking_temperature, step, steps),
                _at(self.sampling_temperature, step, steps),
                _at(self.guidance, step, steps),
            )
            for step in range(steps)
        ]
        found = np.array(rows, np.float32)
        found.flags.writeable = False  # it is kept for the next request
        return found

    def _ratio(self, step: int, steps: int, num_tokens: int) -> float:
        if isinstance(self.mask_ratio, PerStep):
            return self.mask_ratio.values[step]
        ratio = MASK_RATIOS[self.mask_ratio]((step + 1) / steps, num_tokens)
        return min(1.0, max(0.0, ratio))


def policy_offsets(step: int, steps: int, *, residual: bool) -> dict[str, float]:
    """What ``kernels.policy_parameters`` adds to a policy's actions at one step, by argument.

    With r = (t + 1 − 10⁻³) / T, AdaNAT's heuristic residual (``PPO.py``) is logit(cos(π·r/2)),
    softplus⁻¹(1 − r), softplus⁻¹(1) and softplus⁻¹((t + 10⁻³) / T), so that a zero action follows
    that schedule; 0 without ``residual``.
    """
    names = ("ratio_offset", "masking_offset", "sampling_offset", "guidance_offset")
    if not residual:
        return dict.fromkeys(names, 0.0)
    r = (step + 1 - _MARGIN) / steps
    ratio = math.cos(math.pi * r / 2)
    offsets = (
        math.log(ratio / (1 - ratio)),
        _inverse_softplus(1 - r),
        _inverse_softplus(1.0),
        _inverse_softplus((step + _MARGIN) / steps),
    )
    return dict(zip(names, offsets, strict=True))


def _inverse_softplus(value: float) -> float:
    return math.log(math.expm1(value))


def _at(values: Values, step: int, steps: int) -> float:
    if isinstance(values, PerStep):
        return values.values[step]
    start, end = values
    return start + (end - start) * ((step + 1) / steps)
