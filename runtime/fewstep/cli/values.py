"""Several values of one option: repeated, after one another, or with commas between them.

    --class 1 --class 2     --class 1 2     --class 1,2

all mean the same, for every option of a command that may be given more than once, but ``--text``.
What is left to the arguments of a command (``BUNDLE``) stays theirs wherever it stands:
``fewstep generate --class Dress bundle``.
"""

from __future__ import annotations

import contextlib
import itertools
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

WHOLE = frozenset({"--class"})
"""Options whose values may have commas of their own; who reads them cuts them."""

_ONE = frozenset({"--text"})  # a sentence: with commas, and never several without their option
_JOINED = frozenset({"--negative"})  # a sentence that may say several things

_UsageError: Any = typer.BadParameter.__base__


class ValuesCommand(TyperCommand):
    """A command whose repeatable options take several values at once."""

    @property
    def whole(self) -> frozenset[str]:
        """Options whose values are not cut at commas."""
        return WHOLE

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Spell out what the command line shortens, then parse it."""
        parameters = self.get_params(ctx)
        words = spelled_out(args, parameters, self.whole)
        _refuse_twice(words, parameters, ctx)
        try:
            return super().parse_args(ctx, words)
        except _UsageError as error:
            error.ctx = error.ctx or ctx  # the parser does not say of an option without its value
            _say_plainly(error)
            raise


def _refuse_twice(words: Sequence[str], parameters: Sequence[Any], ctx: Any) -> None:
    """Refuse an option of one value that is given again, whose first value would be lost.

    Args:
        words: of :func:`spelled_out`, so that every value stands with its option.
        parameters: as there.
        ctx: of the command.
    """
    options = {each: p for p in parameters for each in p.opts if _takes_one(p)}
    found: dict[str, list[str]] = {}
    words = [*words[: words.index("--") if "--" in words else len(words)], ""]
    for word, following in itertools.pairwise(words):
        name, equals, value = word.partition("=")
        if name in options:
            found.setdefault(options[name].name, []).append(value if equals else following)
    for param in options.values():
        if len(values := found.get(param.name, [])) > 1:
            option = max(param.opts, key=len)
            listed = ", ".join(values)
            one = f": of several things, {option} {shlex.quote(listed)}"
            advice = one if option in _JOINED else ""
            raise _UsageError(f"{option} takes one value, got {listed}{advice}", ctx)


def _takes_one(param: Any) -> bool:
    """Whether it is an option of one value at most."""
    valued = param.param_type_name == "option" and not getattr(param, "is_flag", False)
    return valued and not getattr(param, "count", False) and not param.multiple


def _say_plainly(error: Any) -> None:
    """Put what pydantic says of a value, if it is pydantic that refuses it, in plain words."""
    from pydantic import ValidationError

    from fewstep.runtime.settings import plain

    if isinstance(error.__cause__, ValidationError):
        first = error.__cause__.errors()[0]
        error.message = f"{plain(first['msg'])}, got {str(first['input'])!r}"


def spelled_out(
    arguments: Sequence[str], parameters: Sequence[Any], whole: frozenset[str] = WHOLE
) -> list[str]:
    """A command line with the name of its option before every value.

    Args:
        arguments: of the command, without its name.
        parameters: its options and arguments, as typer has them.
        whole: options that are not cut at commas.
    """
    options = {each: p for p in parameters for each in (*p.opts, *p.secondary_opts)}
    places = sum(max(p.nargs, 1) for p in parameters if p.param_type_name == "argument")
    words = list(arguments)
    end = words.index("--") if "--" in words else len(words)
    spelled: list[_Word] = []
    option = ""  # of which the next words are values
    expects = False  # whether the next word has to be one, whatever it looks like
    for word in words[:end]:
        name, equals, value = word.partition("=")
        if expects:
            spelled.append(_Word(word, option))
            option, expects = option if _takes_more(options, option) else "", False
        elif name in options and name.startswith("-"):
            known = options[name]
            takes = not getattr(known, "is_flag", False) and not getattr(known, "count", False)
            option, expects = name if takes else "", takes and not equals
            if takes and equals:
                spelled.append(_Word(value, name))
                option = name if _takes_more(options, name) else ""
            elif not takes:
                spelled.append(_Word(word))
        elif word.startswith("-") and word != "-":
            spelled.append(_Word(word))  # unknown here; the parser says so
            option = ""
        else:
            spelled.append(_Word(word, option, loose=bool(option)))
    free = sum(1 for word in spelled if word.free) + len(words[end + 1 :])
    _leave_to_arguments(spelled, places - free)
    found = [part for word in spelled for part in word.spelled(options, whole)]
    if expects:
        found.append(option)  # without a value; the parser says so
    return found + words[end:]


class _Word:
    """A word of a command line; ``loose``: it follows another value of its ``option``."""

    def __init__(self, text: str, option: str = "", *, loose: bool = False) -> None:
        self.text, self.option, self.loose = text, option, loose

    @property
    def free(self) -> bool:
        """Whether it is an argument of the command."""
        return not self.option and (not self.text.startswith("-") or self.text == "-")

    def spelled(self, options: dict[str, Any], whole: frozenset[str]) -> list[str]:
        """With its option's name, once for every value in it."""
        if not self.option:
            return [self.text]
        cut = _takes_more(options, self.option) and self.option not in whole
        cut = cut and not _is_there(self.text)  # a file's name may have commas
        values = [part.strip() for part in self.text.split(",")] if cut else [self.text]
        if not all(values):  # an empty one: as it was given, for whoever reads it to refuse
            values = [self.text]
        if self.option.startswith("--"):
            return [f"{self.option}={value}" for value in values]
        return [part for value in values for part in (self.option, value)]


def _leave_to_arguments(words: list[_Word], missing: int) -> None:
    """Leave words after values to the command's arguments, as many as these lack: those that are
    there as files first, else the last."""
    loose = [word for word in words if word.loose]
    loose.sort(key=lambda word: _is_there(word.text))
    for word in loose[max(0, len(loose) - max(missing, 0)) :] if missing > 0 else ():
        word.option = ""


def _takes_more(options: dict[str, Any], name: str) -> bool:
    """Whether an option's value may be followed by others."""
    return bool(getattr(options[name], "multiple", False)) and name not in _ONE


def _is_there(text: str) -> bool:
    with contextlib.suppress(OSError, ValueError):  # no name of a file
        return Path(text).exists()
    return False
