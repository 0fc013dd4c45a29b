"""Settings of a request: what they share in all families, and how given ones join the defaults."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, ValidationError

from fewstep.runtime.errors import RequestError, choose
from fewstep.runtime.records import Strict


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
    except ValueError:
        raise ValueError(
            f"must be a number, a pair (start, end) or START:END, got {value!r}"
        ) from None
    if not (0 <= found[0] < math.inf and 0 <= found[1] < math.inf):
        raise ValueError(f"must be finite and at least 0, got {value!r}")
    return found


def _whole(value: object) -> int:
    try:
        return int(value) if isinstance(value, str) else operator.index(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(f"must be an integer, got {value!r}") from None


Ramp = Annotated[tuple[float, float], BeforeValidator(ramp)]
"""(start, end) of a straight ramp over the steps, both at least 0; a number is a constant."""

Whole = Annotated[int, BeforeValidator(_whole)]
"""An integer, or text that is one."""


class Settings(Strict):
    """What a request may set beside its condition and seeds; families add fields.

    The description of a field is its help on the command line.
    """


Chosen = TypeVar("Chosen", bound=Settings)


def settings_of(defaults: Chosen, given: Mapping[str, Any]) -> Chosen:
    """The defaults with what was given; only what was given counts as set (``model_fields_set``).

    Args:
        defaults: of the bundle.
        given: values by name, as Python or as text; ``None`` is not given.

    Raises:
        RequestError: a name that the family does not have, or a value that does not fit.
    """
    wanted = {name: value for name, value in given.items() if value is not None}
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
        text = each["msg"].removeprefix("Value error, ")
        if "got" not in text:  # pydantic's own do not say what came
            text = f"{text[0].lower()}{text[1:]}, got {each['input']!r}"
        found.append(f"{place} {text}".strip())
    return "; ".join(found)
