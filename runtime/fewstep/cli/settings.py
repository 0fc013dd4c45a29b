"""Options for the settings of the bundle's family, the same for every command that takes them.

The families themselves say which settings there are. Commands start before their bundle is read,
so the options are those of all families, and their values stay text until the bundle's family
reads them (:func:`fewstep.runtime.settings.settings_of`).
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from fewstep.cli.app import Command, options_of
from fewstep.runtime.errors import RequestError

if TYPE_CHECKING:
    from fewstep.runtime.families import Family

_GIVEN = "fewstep.settings"
_ABSENT: tuple[Any, ...] = (None, (), [])


class SettingsCommand(Command):
    """A command with an option for every setting of any family; see :func:`given`."""

    repeated: ClassVar[bool] = False
    panel: ClassVar[str] = "Settings of the bundle's family"

    def taken(self, family: Family) -> Collection[str]:
        """Names of the family's settings that become options."""
        return family.Settings.model_fields.keys()

    @property
    def whole(self) -> frozenset[str]:
        """Those, and settings that are lists of a value for every step."""
        from fewstep.runtime.families import family_of, kinds

        lists = {name for kind in kinds() for name in family_of(kind).Settings.lists}
        return super().whole | {f"--{name.replace('_', '-')}" for name in lists}

    def get_params(self, ctx: Any) -> list[Any]:
        """The command's own options, then the settings; families are imported only here."""
        return [*super().get_params(ctx), *self._settings]

    def invoke(self, ctx: Any) -> Any:
        """Put the settings aside: the command's function has no arguments for them."""
        values = {option.name: ctx.params.pop(option.name) for option in self._settings}
        found = {name: [*each] for name, each in values.items() if each not in _ABSENT}
        lists = self.whole
        for name, each in found.items():
            option = f"--{name.replace('_', '-')}"
            if not self.repeated and len(each) > 1:
                raise RequestError(_one_value(option, each, lists))
            if option in lists:
                found[name] = [*map(_unbracketed, each)]
        ctx.meta[_GIVEN] = found if self.repeated else {n: each[0] for n, each in found.items()}
        return super().invoke(ctx)

    @functools.cached_property
    def _settings(self) -> list[Any]:
        return _options(self.panel, _helps(self.taken))


class RepeatedSettingsCommand(SettingsCommand):
    """The same with options that may be repeated; see :func:`combinations`."""

    repeated = True
    panel = f"{SettingsCommand.panel}; repeat one for more"


class StartCommand(SettingsCommand):
    """A command with an option for every setting of a fixed schedule that policies start as."""

    panel = "Settings of a fixed --start, by the bundle's family"

    def taken(self, family: Family) -> Collection[str]:
        """Names of the family's settings that become options."""
        return family.policies.schedule_settings if family.policies else ()


def given(context: typer.Context) -> dict[str, Any]:
    """Settings that the command line gives, as text by name."""
    found: dict[str, Any] = context.meta[_GIVEN]
    return found


def combinations(context: typer.Context) -> list[dict[str, Any]]:
    """Every combination of settings that are given once or more, no two of the same words; one
    without any if none is."""
    given_all: dict[str, list[str]] = context.meta[_GIVEN]
    found = {name: list(dict.fromkeys(each)) for name, each in given_all.items()}
    return [dict(zip(found, each, strict=True)) for each in itertools.product(*found.values())]


def _one_value(option: str, values: Sequence[str], lists: Collection[str]) -> str:
    """Say that an option takes one value, and how numbers for every step are written as one."""
    said = f"{option} takes one value, got {', '.join(values)}"
    numbers = [each for value in values for each in re.split(r"[\s,()\[\]]+", value) if each]
    if option not in lists or not all(map(_is_number, numbers)):
        return said
    return f"{said}; a value for every step is written with commas: {option} {','.join(numbers)}"


def _unbracketed(value: str) -> str:
    """A list as its numbers alone: ``[0,1,2]`` is 0,1,2."""
    text = value.strip()
    return text[1:-1] if text[:1] + text[-1:] in ("[]", "()") else value


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def options(settings: Mapping[str, Any]) -> list[object]:
    """Settings as words of a command line."""
    words: list[object] = []
    for name, value in settings.items():
        words += [f"--{name.replace('_', '-')}", value]
    return words


def _options(panel: str, helps: Mapping[str, str]) -> list[Any]:
    """Settings as typer makes options of a function's arguments."""
    arguments = []
    for name, text in helps.items():
        option = typer.Option(help=text, metavar="VALUE", rich_help_panel=panel)
        keyword = inspect.Parameter.KEYWORD_ONLY
        annotation = Annotated[list[str] | None, option]
        arguments.append(inspect.Parameter(name, keyword, default=None, annotation=annotation))
    return options_of(arguments)


def _helps(taken: Callable[[Family], Collection[str]]) -> dict[str, str]:
    """What every setting is, of those taken, and in which families where that differs."""
    from fewstep.runtime.families import family_of, kinds

    said: dict[str, dict[str, list[str]]] = {}
    for kind in kinds():
        family = family_of(kind)
        for name in taken(family):
            text = family.Settings.model_fields[name].description or ""
            said.setdefault(name, {}).setdefault(text, []).append(kind)
    return {name: _help(texts, len(kinds())) for name, texts in said.items()}


def _help(texts: dict[str, list[str]], families: int) -> str:
    """``texts``: families by what they say of one setting."""
    if [len(kinds) for kinds in texts.values()] == [families]:
        return next(iter(texts))
    return " ".join(f"{', '.join(kinds)}: {text}" for text, kinds in texts.items())
