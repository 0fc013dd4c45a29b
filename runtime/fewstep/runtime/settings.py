"""Settings of a request: what they share in all families, and how given ones join the defaults."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Annotated, Any, ClassVar, TypeVar

import numpy as np
from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, ValidationError

from fewstep.runtime.errors import RequestError, choose
from fewstep.runtime.records import Strict

_PLAIN = (  # words of pydantic, and ours
    ("Input should be", "must be"),
    ("a valid integer", "an integer"),
    ("a valid", "a"),
    ("greater than or equal to", "at least"),
    ("less than or equal to", "at most"),
)


def ramp(value: object) -> tuple[float, float]:
    """A number, a pair, or text of the command line as (start, end).

    Raises:
        ValueError: something else, or an end that is negative or not finite.
    """
    ends: Sequence[Any] = (value, value)
    if isinstance(value, str):
        start, _, end = value.partition(":")
        ends = (start, end or start)
    elif isinstance(value, Sequence):
        ends = value
    try:
        if len(ends) != 2 or not all(isinstance(each, (float, str, Real)) for each in ends):
            raise ValueError
        found = float(ends[0]), float(ends[1])
    except (ValueError, OverflowError):
        raise ValueError(
            f"must be a number, a pair (start, end) or START:END, got {value!r}"
        ) from None
    if not (0 <= found[0] < math.inf and 0 <= found[1] < math.inf):
        raise ValueError(f"must be finite and at least 0, got {value!r}")
    return found


@dataclass(frozen=True)
class Alias:
    """What a setting of diffusers' pipelines is called here, where its number is ``less`` less."""

    name: str
    less: int = 0

    def __str__(self) -> str:
        less = f" ({self.less} less: its 10 is {10 - self.less})" if self.less else ""
        return f"{self.name}{less}"

    def value(self, theirs: float) -> float:
        """The number here; none is below 0."""
        return max(0, theirs - self.less)


@dataclass(frozen=True)
class PerStep:
    """One number for every step, finite and at least 0, in the order of the steps.

    As text the numbers with commas between them, exact, as the command line takes them.

    Raises:
        ValueError: no number, or one that is negative or not finite.
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values or not all(0 <= each < math.inf for each in self.values):
            raise ValueError(f"must be finite and at least 0 at every step, got {[*self.values]}")

    @classmethod
    def of(cls, values: Sequence[Any]) -> PerStep:
        """From numbers, or texts of numbers.

        Raises:
            ValueError: something else among them, or as for the class.
        """
        try:
            if not all(isinstance(each, (str, Real)) for each in values):
                raise ValueError
            return cls(tuple(float(each) + 0.0 for each in values))
        except (ValueError, OverflowError) as error:
            if "must be" in str(error):
                raise
            raise ValueError(f"must be numbers, one for every step, got {values!r}") from None

    def __str__(self) -> str:
        return ",".join(map(repr, self.values))

    def __len__(self) -> int:
        return len(self.values)


Values = tuple[float, float] | PerStep
"""The ends of a ramp, or a number for every step."""


def numbers_of(value: Values) -> tuple[float, ...]:
    """The numbers that say all others."""
    return value.values if isinstance(value, PerStep) else value


def shown(value: Values) -> str:
    """Its numbers for people, each once."""
    return ", ".join(dict.fromkeys(f"{each:g}" for each in numbers_of(value)))


def ramp_or_list(value: object) -> Values:
    """What :func:`ramp` takes, or a number for every step: 1,2,3 or a sequence.

    A sequence of two is a ramp; for two steps write them as text or :class:`PerStep`.

    Raises:
        ValueError: something else, or a number that is negative or not finite.
    """
    if isinstance(value, PerStep):
        return value
    if isinstance(value, str) and "," in value:
        return PerStep.of(value.split(","))
    given: Any = value.tolist() if isinstance(value, np.ndarray) else value
    if isinstance(given, Sequence) and not isinstance(given, str) and len(given) not in (0, 2):
        return PerStep.of(given)
    return ramp(given)


def _plain(value: Values) -> tuple[float, float] | str:
    return str(value) if isinstance(value, PerStep) else value


def _plain_ends(value: Values) -> tuple[float, float] | str:
    """As plain data that is read as the same again, where one number is a ramp from elsewhere."""
    if isinstance(value, PerStep):
        return str(value) if len(value) > 1 else f"{value}:{value}"
    start, end = value
    return f"{start!r}:{end!r}" if start == end else value


def ramp_from(start: float) -> BeforeValidator:
    """Reads a number alone as the end of a ramp from ``start``."""

    def read(value: object) -> object:
        alone = value.item() if isinstance(value, np.ndarray) and not value.ndim else value
        if isinstance(alone, str):
            several = ":" in alone or "," in alone
        else:
            several = not isinstance(alone, Real)
        return value if several else (start, ramp(alone)[1])

    return BeforeValidator(read)


def at_most(most: float) -> AfterValidator:
    """Refuses numbers above ``most``."""

    def checked(value: Values) -> Values:
        if max(numbers_of(value)) > most:
            raise ValueError(f"must be at most {most:,.0f}, got {shown(value)}")
        return value

    return AfterValidator(checked)


def _whole(value: object) -> int:
    try:
        return int(value) if isinstance(value, str) else operator.index(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(f"must be an integer, got {value!r}") from None


Ramp = Annotated[tuple[float, float], BeforeValidator(ramp)]
"""(start, end) of a straight ramp over the steps, both at least 0; a number is a constant."""

RampOrList = Annotated[
    tuple[float, float] | PerStep, BeforeValidator(ramp_or_list), PlainSerializer(_plain)
]
"""A ramp, or a number for every step (1,2,3), which is text in JSON."""

PLAIN_ENDS = PlainSerializer(_plain_ends)
"""For those that :func:`ramp_from` reads."""

PRESET = Field(
    default=None,
    description="Settings that the bundle knows by a name; others given beside it count.",
)
"""The setting ``preset`` of families that have presets (:mod:`fewstep.runtime.presets`)."""

Whole = Annotated[int, BeforeValidator(_whole)]
"""An integer, or text that is one."""


class Settings(Strict):
    """What a request may set beside its condition and seeds; families add fields.

    The description of a field is its help on the command line. ``lists``: names of fields that
    take a number for every step, so commas between numbers belong to one value. ``diffusers``: what
    settings of its pipelines are called here, by their names there.
    """

    lists: ClassVar[frozenset[str]] = frozenset()
    diffusers: ClassVar[Mapping[str, Alias]] = {}

    @classmethod
    def expanded(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """What was given, with every setting by its own name: one may stand for several.

        Raises:
            RequestError: what it stands for cannot be read, or is given twice.
        """
        return given

    @classmethod
    def file_of(cls, given: Mapping[str, Any]) -> str | None:
        """The file that :meth:`expanded` would read for what was given, if any. Who takes settings
        from strangers refuses it."""
        return None


Chosen = TypeVar("Chosen", bound=Settings)


def settings_of(defaults: Chosen, given: Mapping[str, Any]) -> Chosen:
    """The defaults with what was given; only what was given counts as set (``model_fields_set``).

    Args:
        defaults: of the bundle.
        given: values by name, as Python or as text; ``None`` is not given.

    Raises:
        RequestError: a name that the family does not have, or a value that does not fit.
    """
    said = {name: value for name, value in given.items() if value is not None}
    wanted = type(defaults).expanded(said)
    found: Chosen
    typed = tuple((name, type(value), value) for name, value in wanted.items())
    try:
        found = _joined(defaults, typed)
    except TypeError:  # a list, say, which has no hash
        found = _joined.__wrapped__(defaults, typed)
    return found


@functools.lru_cache(maxsize=64)  # requests come with the same settings again and again
def _joined(defaults: Any, given: tuple[tuple[str, type, Any], ...]) -> Any:
    kind, wanted = type(defaults), {name: value for name, _, value in given}
    for name in wanted:
        if name not in kind.model_fields:
            raise RequestError(choose("setting", name, kind.model_fields))
    try:
        chosen = kind.model_validate(wanted)
    except ValidationError as error:
        raise RequestError(problems(error)) from error
    values = dict(defaults) | {name: getattr(chosen, name) for name in wanted}
    return kind.model_construct(_fields_set=set(wanted), **values)


def problems(error: ValidationError) -> str:
    """What pydantic found wrong, in one line."""
    found = []
    for each in error.errors():
        place = ".".join(map(str, each["loc"]))
        text = plain(each["msg"])
        if "got" not in text:  # pydantic's own do not say what came
            text = f"{text[0].lower()}{text[1:]}, got {each['input']!r}"
        found.append(f"{place} {text}".strip())
    return "; ".join(found)


def plain(message: str) -> str:
    """A message of pydantic in this program's words: ``must be at least 1``."""
    text = message.removeprefix("Value error, ").partition(", unable to parse")[0]
    for theirs, ours in _PLAIN:
        text = text.replace(theirs, ours)
    return text
