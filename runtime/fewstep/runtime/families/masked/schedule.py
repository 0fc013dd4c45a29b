"""Fixed schedules: mask ratio, temperatures and guidance of every step.

Step t of T has r = (t + 1) / T. The mask ratio γ(r) falls from 1 to 0 along one of the curves of
MaskGIT (section 3.3 and ``mask_schedule.py`` of google-research/maskgit): concave ones keep many
tokens masked for long, convex ones decide many at once. Temperatures and guidance are straight
ramps: start + (end − start)·r.
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
from fewstep.runtime.settings import Ramp, ramp

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

POLICY = "policy"
"""The schedule name that hands every decision to the policy network that fits best."""

EXPORTED_POLICY = "policy-exported"
"""The schedule name of the policy that was exported, whose graph is called ``policy``."""


def policy_schedule(graph: str) -> str:
    """The schedule name that chooses the policy with this graph, whatever others there are."""
    return EXPORTED_POLICY if graph == POLICY else graph


_MARGIN = 1e-3  # keeps AdaNAT's residuals finite at the first and last step


@dataclass(frozen=True)
class Schedule:
    """A fixed rule for every step.

    Args:
        mask_ratio: a name in :data:`MASK_RATIOS`.
        guidance: guidance scale s ≥ 0 in cond + s·(cond − uncond); 0 is no guidance.
        sampling_temperature: divides the logits before sampling; 0 takes the most likely code.
        masking_temperature: scales the Gumbel noise on confidences; 0 is greedy.

    Raises:
        RequestError: unknown name, or a negative or non-finite number.
    """

    mask_ratio: str = "cosine"
    guidance: Ramp = (0.0, 3.0)
    sampling_temperature: Ramp = (1.0, 1.0)
    masking_temperature: Ramp = (4.5, 0.0)

    def __post_init__(self) -> None:
        if self.mask_ratio not in MASK_RATIOS:
            raise RequestError(choose("schedule", self.mask_ratio, [*MASK_RATIOS, POLICY]))
        for name in RAMPS:
            try:
                object.__setattr__(self, name, ramp(getattr(self, name)))
            except ValueError as error:
                raise RequestError(f"{name} {error}") from error

    @property
    def guided(self) -> bool:
        """Whether any step needs the unconditional half."""
        return any(self.guidance)

    @functools.lru_cache(maxsize=64)  # noqa: B019 (schedules are small and few)
    def parameters(self, steps: int, num_tokens: int) -> npt.NDArray[np.float32]:
        """Parameters ``[T, 4]`` in the order of ``kernels.sample_tokens.PARAMETERS``, read-only."""
        ratio = MASK_RATIOS[self.mask_ratio]
        rows = []
        for step in range(steps):
            r = (step + 1) / steps
            rows.append(
                (
                    min(1.0, max(0.0, ratio(r, num_tokens))),
                    _at(self.masking_temperature, r),
                    _at(self.sampling_temperature, r),
                    _at(self.guidance, r),
                )
            )
        found = np.array(rows, np.float32)
        found.flags.writeable = False  # it is kept for the next request
        return found


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


def _at(ramp: Ramp, r: float) -> float:
    start, end = ramp
    return start + (end - start) * r
