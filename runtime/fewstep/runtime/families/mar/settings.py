"""What a request to a MAR model may set, and what it uses when nothing is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Annotated, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BeforeValidator, Field

from fewstep.runtime.decoders import DECODER_SETTING
from fewstep.runtime.errors import RequestError
from fewstep.runtime.families.mar.diffusion import ANNEALED_END, TIMESTEPS, timesteps
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

UNGUIDED = 1.0
"""The guidance scale that is none."""

_MOST = 1e4


def _parts(value: Values | None) -> Values | None:
    if value is not None and max(numbers_of(value)) > 1:
        raise ValueError(f"must be parts, 0 … 1, got {shown(value)}")
    return value


def _spacing(value: object) -> object:
    """Diffusion steps as text: a number or ddimN, START:END, or one for every iteration."""
    given = value.tolist() if isinstance(value, np.ndarray) else value
    if isinstance(given, (list, tuple)):
        separator = ":" if len(given) == 2 else ","
        given = separator.join(str(each) for each in given)
    elif isinstance(given, Real) and not isinstance(given, bool):
        given = str(given)
    if not isinstance(given, str):
        raise ValueError(f"must be a number, ddimN, START:END or a list, got {value!r}")
    separator = ":" if ":" in given else ","
    words = [each.strip() for each in given.split(separator)]
    if separator == ":" and (len(words) != 2 or not all(map(_whole, words))):
        raise ValueError(f"must be START:END, whole numbers, got {value!r}")
    for each in words:
        if _whole(each) and int(each) < 1:
            raise ValueError(f"must be at least 1, got {each}")
        timesteps(each)
    return separator.join(words)


def _whole(text: str) -> bool:
    return text.isascii() and text.isdigit()


class MarSettings(Settings):
    """Settings of masked autoregression. The defaults are the authors', with the guidance that they
    evaluate their smallest model with."""

    lists: ClassVar[frozenset[str]] = frozenset(
        ("diffusion_steps", "guidance", "temperature", "recompute")
    )
    diffusers: ClassVar[Mapping[str, Alias]] = {
        "num_inference_steps": Alias("iterations"),
        "guidance_scale": Alias("guidance"),
    }

    preset: str | None = PRESET
    iterations: Whole = Field(
        default=64, description="Transformer passes; each decides some tokens."
    )
    diffusion_steps: Annotated[str, BeforeValidator(_spacing)] = Field(
        default="100",
        description="Steps of the diffusion head for every token. START:END anneals them over the "
        "iterations (DiSA: 50:5); ddim50 takes them with one stride; 50,40,30 is a value for every "
        "iteration.",
    )
    max_timestep: Whole | None = Field(
        default=None,
        description="Largest timestep; larger ones are merged into it. "
        f"[{TIMESTEPS - 1}; {ANNEALED_END} with annealed diffusion steps]",
    )
    guidance: Annotated[RampOrList, ramp_from(UNGUIDED), at_most(_MOST), PLAIN_ENDS] = Field(
        default=(UNGUIDED, 2.9),
        description="Guidance scale at the end, which grows from 1 (none) with the tokens that are "
        "decided; START:END is another ramp, 1,2,3 a value for every iteration.",
    )
    temperature: Annotated[RampOrList, at_most(_MOST)] = Field(
        default=(1.0, 1.0),
        description="Scales the noise of the diffusion; START:END is a ramp, 1,1,0.9 a value for "
        "every iteration.",
    )
    refresh: Whole | None = Field(
        default=None,
        description="Compute everything only in every so many iterations, and between them what "
        "changed most (LazyMAR: 9). [1]",
    )
    refresh_first: Whole = Field(
        default=5, description="Iterations at the start that compute everything, with --refresh."
    )
    recompute: Annotated[RampOrList | None, AfterValidator(_parts)] = Field(
        default=None,
        description="Part of all positions that is computed between refreshes; START:END is a "
        "ramp, 1,0.5,0.1 a value for every iteration. [LazyMAR's table]",
    )
    reuse_guidance: bool = Field(
        default=False,
        description="Take the unconditional half from its difference at the last refresh, with "
        "--refresh.",
    )
    decoder: str = DECODER_SETTING

    def spacings(self, iterations: int) -> tuple[str, ...]:
        """How the timesteps of every iteration are spaced.

        START:END is evaluated as DiSA does: START − ⌊part·(START − END)⌋ from the other end, in
        whole steps.

        Raises:
            RequestError: a list for another number of iterations.
        """
        if ":" in self.diffusion_steps:
            upper, lower = map(int, self.diffusion_steps.split(":"))
            last = max(1, iterations - 1)
            parts = ((last - step) / last for step in range(iterations))
            return tuple(str(lower + int(part * (upper - lower))) for part in parts)
        words = self.diffusion_steps.split(",")
        if len(words) == 1:
            return tuple(words * iterations)
        _require_length("diffusion_steps", len(words), iterations)
        return tuple(words)

    @property
    def largest_timestep(self) -> int:
        """The largest that any diffusion takes."""
        annealed = ":" in self.diffusion_steps or "," in self.diffusion_steps
        known = ANNEALED_END if annealed else TIMESTEPS - 1
        return known if self.max_timestep is None else min(self.max_timestep, TIMESTEPS - 1)

    def parameters(self, decided: Sequence[float]) -> npt.NDArray[np.float32]:
        """Guidance scale and temperature of every iteration, ``[N, 2]``.

        A ramp of the guidance is evaluated at the part of all tokens that is decided, as the
        official linear schedule; one of the temperature at i / (N − 1).

        Args:
            decided: the part after every iteration, 0 … 1.

        Raises:
            RequestError: a list for another number of iterations.
        """
        last = max(1, len(decided) - 1)
        steps = [step / last for step in range(len(decided))]
        columns = [
            _column("guidance", self.guidance, decided),
            _column("temperature", self.temperature, steps),
        ]
        return np.array(columns, np.float32).T.copy()

    def parts(self, iterations: int) -> tuple[float, ...] | None:
        """The part that is recomputed in every iteration; ``None`` for LazyMAR's.

        Raises:
            RequestError: a list for another number of iterations.
        """
        if self.recompute is None:
            return None
        last = max(1, iterations - 1)
        steps = [step / last for step in range(iterations)]
        return tuple(_column("recompute", self.recompute, steps))


def _column(name: str, values: Values, at: Sequence[float]) -> list[float]:
    if isinstance(values, PerStep):
        _require_length(name, len(values), len(at))
        return [*values.values]
    start, end = values
    return [start + (end - start) * each for each in at]


def _require_length(name: str, count: int, iterations: int) -> None:
    if count != iterations:
        raise RequestError(
            f"lists need a value for each of the {iterations} iterations, got {name} {count}"
        )
