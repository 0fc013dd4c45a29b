"""Several values of one option: repeated, after one another, or with commas between them.

    --class 1 --class 2     --class 1 2     --class 1,2

all mean the same, for every option of a command that may be given more than once, but ``--text``.
What is left to the arguments of a command (``BUNDLE``) stays theirs wherever it stands:
``fewstep generate --class Dress bundle``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

WHOLE = frozenset({"--class"})
"""Options whose values may have commas of their own; who reads them cuts them."""

_ONE = frozenset({"--text"})  # a sentence: with commas, and never several without their option


_UsageError: Any = typer.BadParameter.__base__


class ValuesCommand(TyperCommand):
    """A command whose repeatable options take several values at once."""

    @property
    def whole(self) -> frozenset[str]:
        """Options whose values are not cut at commas."""
        return WHOLE

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Spell out what the command line shortens, then parse it."""
        try:
            return super().parse_args(ctx, spelled_out(args, self.get_params(ctx), self.whole))
        except _UsageError as error:
            error.ctx = error.ctx or ctx  # the parser does not say of an option without its value
            _say_plainly(error)
            raise


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
