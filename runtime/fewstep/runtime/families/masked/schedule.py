"""Fixed schedules: mask ratio, temperatures and guidance of every step.

Step t of T has r = (t + 1) / T, or what the form's ``Rules`` say. The mask ratio γ(r) falls from 1
to 0 along one of the curves of MaskGIT (section 3.3 and ``mask_schedule.py`` of
google-research/maskgit): concave ones keep many tokens masked for long, convex ones decide many at
once. Temperatures and guidance are straight ramps: start + (end − start)·r. Each of the four may
also be a list with a value for every step.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.runtime.errors import RequestError, choose
from fewstep.runtime.families.masked.rules import Rules, part
from fewstep.runtime.families.masked.settings import RAMPS
from fewstep.runtime.policies import POLICY
from fewstep.runtime.settings import PerStep, ramp_or_list

Curve = Callable[[Any, int], Any]

MASK_RATIOS: Mapping[str, Curve] = {
    "cosine": lambda r, n: np.cos(r * math.pi / 2),
    "arccos": lambda r, n: np.arccos(r) / (math.pi / 2),
    "linear": lambda r, n: 1 - r,
    "square": lambda r, n: 1 - r**2,
    "cubic": lambda r, n: 1 - r**3,
    "exponential": lambda r, n: 1 - 2 ** (-math.log2(n) * (1 - r)),
    "square-root": lambda r, n: 1 - np.sqrt(r),
    "logarithmic": lambda r, n: -np.log2(r) / math.log2(n),
}
"""Mask ratio curves γ(r, N) for r in (0, 1] and N tokens, unclipped, in the type of r."""

_DECIDED: Mapping[str, Callable[[Any], Any]] = {
    "linear": lambda r: r,
    "square": lambda r: r**2,
    "cubic": lambda r: r**3,
    "square-root": np.sqrt,
}
"""1 − γ without the rounding of a difference from 1."""

_PER_STEP = (*RAMPS, "softmax_temperature")

Values = tuple[float, float] | PerStep


@dataclass(frozen=True)
class Schedule:
    """A fixed rule for every step; what is given as a list has a value for every step.

    Args:
        mask_ratio: a name in :data:`MASK_RATIOS`, or ratios 0 … 1.
        guidance: guidance scale s ≥ 0 in cond + s·(cond − uncond); 0 is no guidance.
        sampling_temperature: divides the logits before sampling; 0 takes the most likely code. Some
            forms multiply by it.
        masking_temperature: scales the Gumbel noise on confidences; 0 is greedy.
        softmax_temperature: divides the logits before sampling and confidence, above 0; for forms
            whose confidences are logits.
        guidance_power: p of the guidance's ramp (1 − cos(π·rᵖ))/2, a straight one if 0.
        rules: of the form.

    Raises:
        RequestError: unknown name, a ratio above 1, or a number that does not fit.
    """

    mask_ratio: str | PerStep = "cosine"
    guidance: Values = (0.0, 3.0)
    sampling_temperature: Values = (1.0, 1.0)
    masking_temperature: Values = (4.5, 0.0)
    softmax_temperature: Values = (1.0, 1.0)
    guidance_power: float = 0.0
    rules: Rules = field(default_factory=Rules)

    def __post_init__(self) -> None:
        if isinstance(self.mask_ratio, PerStep):
            if max(self.mask_ratio.values) > 1:
                raise RequestError(f"mask ratios must be 0 … 1, got {self.mask_ratio}")
        elif self.mask_ratio not in MASK_RATIOS:
            raise RequestError(choose("schedule", self.mask_ratio, [*MASK_RATIOS, POLICY]))
        for name in _PER_STEP:
            try:
                object.__setattr__(self, name, ramp_or_list(getattr(self, name)))
            except ValueError as error:
                raise RequestError(f"{name} {error}") from error
        if self.rules.sampling_temperature == "multiplies":
            _require_above_0("sampling_temperature", self.sampling_temperature)
        _require_above_0("softmax_temperature", self.softmax_temperature)
        if self.rules.confidence != "logit" and _numbers(self.softmax_temperature) != {1.0}:
            raise RequestError(
                "softmax_temperature is for models whose confidences are logits; use "
                "sampling_temperature"
            )

    @property
    def guided(self) -> bool:
        """Whether any step needs the unconditional half."""
        return any(_numbers(self.guidance))

    def check(self, steps: int) -> None:
        """Refuse lists that are for another number of steps.

        Raises:
            RequestError: they are.
        """
        named = {"schedule": self.mask_ratio, **{name: getattr(self, name) for name in _PER_STEP}}
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
                self._temperature("masking_temperature", step, steps),
                self._sampling(step, steps),
                self._guidance(step, steps),
            )
            for step in range(steps)
        ]
        found = np.array(rows, np.float32)
        found.flags.writeable = False  # it is kept for the next request
        return found

    def ordered(
        self, steps: int, top_k: float = 0.0, top_p: float = 1.0
    ) -> npt.NDArray[np.float32]:
        """Parameters ``[T, 4]`` in the order of ``kernels.sample_top_k_top_p.PARAMETERS``.

        Raises:
            RequestError: a list is for another number of steps.
        """
        self.check(steps)
        rows = [
            (self._guidance(step, steps), top_k, top_p, self._sampling(step, steps))
            for step in range(steps)
        ]
        return np.array(rows, np.float32)

    def decided(
        self, steps: int, masked: npt.NDArray[np.int64], num_tokens: int
    ) -> npt.NDArray[np.int32]:
        """How many tokens are decided before every step and after the last, ``[T + 1, B]``.

        At least t + 1 are after step t, as with Halton-MaskGIT's own sampler.

        Args:
            steps: T.
            masked: tokens that are masked at the start, ``[B]``.
            num_tokens: N.
        """
        found = np.zeros((steps + 1, len(masked)), np.int32)
        for image, count in enumerate(masked.tolist()):
            for step in range(steps - 1):
                left = self._masked(step, steps, count, num_tokens, after=True)
                found[step + 1, image] = min(count, max(step + 1, count - left))
            found[steps, image] = count
        return found

    def _masked(
        self, step: int, steps: int, count: int, num_tokens: int, *, after: bool = False
    ) -> int:
        """How many of ``count`` tokens are masked after a step, before any is decided at least."""
        rules = self.rules
        number = np.float64 if rules.precision == "float64" else np.float32
        if isinstance(self.mask_ratio, PerStep):
            return int(number(count) * number(self.mask_ratio.values[step]))
        top, bottom = part("after" if after else rules.mask_ratio_at, step, steps)
        r: Any = np.float64(top) / np.float64(bottom)
        if rules.precision == "float32":
            evenly = rules.mask_ratio_at == "inclusive" and not after
            r = _linspace(top, bottom) if evenly else np.float32(r)
        ratio = _curve(self.mask_ratio, r, num_tokens)
        if rules.counted == "masked":
            return int(number(count) * number(ratio))
        exact = _DECIDED.get(self.mask_ratio)
        share = 1 - ratio if exact is None else exact(r)
        return count - max(int(number(count) * number(share)), step + 1)

    def _ratio(self, step: int, steps: int, num_tokens: int) -> float:
        """A ratio of which the kernel, in float32, makes the number of tokens of the form."""
        if isinstance(self.mask_ratio, PerStep):
            return self.mask_ratio.values[step]
        top, bottom = part(self.rules.mask_ratio_at, step, steps)
        found = float(_curve(self.mask_ratio, np.float64(top / bottom), num_tokens))
        masked = max(0, self._masked(step, steps, num_tokens, num_tokens))
        if int(np.float32(num_tokens) * np.float32(found)) != masked:
            found = (masked + 0.5) / num_tokens
        return found

    def _temperature(self, name: str, step: int, steps: int) -> float:
        """Of a step; noise on logits that are confidences is divided with them, which is the same
        order as if they were."""
        at = part(self.rules.temperature_at, step, steps)
        return _at(getattr(self, name), step, at) * _at(self.softmax_temperature, step, at)

    def _sampling(self, step: int, steps: int) -> float:
        if self.rules.sampling_temperature == "multiplies":
            at = part(self.rules.temperature_at, step, steps)
            return 1 / _at(self.sampling_temperature, step, at)
        return self._temperature("sampling_temperature", step, steps)

    def _guidance(self, step: int, steps: int) -> float:
        top, bottom = part(self.rules.guidance_at, step, steps)
        if self.guidance_power and not isinstance(self.guidance, PerStep):
            start, end = self.guidance
            wave = math.cos(math.pi * (top / bottom) ** self.guidance_power)
            return start + (end - start) * (1 - wave) / 2
        return _at(self.guidance, step, (top, bottom))


def _linspace(index: int, last: int) -> np.float32:
    """A number of ``torch.linspace(0, 1, last + 1)`` in float32: it counts from the nearer end."""
    step = np.float32(1) / np.float32(last)
    near = index < (last + 1) // 2
    return step * np.float32(index) if near else 1 - step * np.float32(last - index)


def _curve(name: str, r: Any, num_tokens: int) -> Any:
    """A mask ratio 0 … 1, in the type of r."""
    with np.errstate(divide="ignore"):  # a logarithm of 0
        return np.clip(MASK_RATIOS[name](r, num_tokens), 0, 1)


def _numbers(values: Values) -> set[float]:
    return {*(values.values if isinstance(values, PerStep) else values)}


def _require_above_0(name: str, values: Values) -> None:
    if min(_numbers(values)) <= 0:
        raise RequestError(f"{name} must be above 0 for this model, got {min(_numbers(values)):g}")


def _at(values: Values, step: int, at: tuple[int, int]) -> float:
    if isinstance(values, PerStep):
        return values.values[step]
    start, end = values
    return start + (end - start) * (at[0] / at[1])
