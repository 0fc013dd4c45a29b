"""What all commands have in common: help that wraps and cuts nothing, ``-h``, ``-q`` and ``-v``.

``App`` is ``typer.Typer`` with these. rich's tables of options cut names at narrow terminals, and
click's own help breaks them at hyphens, so the help is laid out here.
"""

from __future__ import annotations

import inspect
import shutil
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from fewstep.cli.common import command, say_error, say_more, say_versions, set_verbosity
from fewstep.cli.values import ValuesCommand
from fewstep.runtime.errors import RequestError

_USAGE = 2  # what click ends with on bad usage
_UsageError: Any = typer.BadParameter.__base__
_SHARED = "Any command"
_KINDS = {"int": "N", "float": "X", "Path": "PATH"}
_started = time.perf_counter()


class EndOfFileError(Exception):
    """An ``EOFError`` of a command."""


class _Shared:
    """A command or group with the options of any command, before or after a command's name."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The command's own options, then those of any command."""
        own: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        return [*own, *shared_options()]

    def invoke(self, ctx: Any) -> Any:
        """Take the shared options, then run."""
        quiet, verbose = ctx.params.pop("quiet"), ctx.params.pop("verbose")
        if ctx.parent is None:
            set_verbosity(0)
        if quiet and verbose:
            raise RequestError("-q prints less and -v prints more: pass one")
        if quiet or verbose:
            set_verbosity(-1 if quiet else 1)
        if not isinstance(self, TyperGroup):
            say_versions()
        try:
            result = super().invoke(ctx)  # type: ignore[misc]
        except EOFError as error:  # which click takes for the end of input, and says "Aborted."
            raise EndOfFileError(str(error)) from error
        if ctx.parent is None:
            say_more(f"{time.perf_counter() - _started:.2f} s from start to end")
        return result

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help; nothing in it is cut."""
        formatter.write("\n".join(_help(self, ctx)) + "\n")


class Command(_Shared, ValuesCommand):
    """A command of an ``App``."""


class Group(_Shared, TyperGroup):
    """A group of an ``App``; the outermost one says bad usage in one line."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Show the help where a command is missing."""
        if not args and not ctx.resilient_parsing:
            print(ctx.get_help())
            ctx.exit(_USAGE)
        return list(super().parse_args(ctx, args))

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the command line; bad usage is one line on stderr and exit code 2."""
        standalone = options.get("standalone_mode", True)
        try:
            code = super().main(*args, **(options | {"standalone_mode": False}))
        except _UsageError as error:
            if not standalone:
                raise
            see = command(*_path(error.ctx), "--help")
            say_error(f"{error.format_message().rstrip('.')}; see {see}")
            code = _USAGE
        except typer.Abort as error:  # what click makes of an EOFError
            raise (error.__cause__ or error) from None
        if not standalone:
            return code
        sys.exit(code if isinstance(code, int) else 0)


class App(typer.Typer):
    """``typer.Typer`` whose commands are of these classes."""

    def __init__(self, **options: Any) -> None:
        ours: dict[str, Any] = {
            "cls": Group,
            "add_completion": False,
            "pretty_exceptions_enable": False,
            "rich_markup_mode": None,
            "context_settings": {"help_option_names": ["-h", "--help"]},
        }
        super().__init__(**(ours | options))

    def command(self, name: str | None = None, **options: Any) -> Any:
        """As that of ``Typer``, with another class unless one is given."""
        return super().command(name, **({"cls": Command} | options))


def options_of(parameters: Iterable[inspect.Parameter]) -> list[Any]:
    """Parameters as typer makes options of a function's arguments."""

    def function() -> None: ...

    function.__signature__ = inspect.Signature(list(parameters))  # type: ignore[attr-defined]
    app = typer.Typer(add_completion=False)
    app.command()(function)
    return list(get_command(app).params)


def shared_options() -> list[Any]:
    """The options of any command, new each time."""
    return options_of(
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in (("quiet", _Quiet), ("verbose", _Verbose))
    )


_Quiet = Annotated[
    bool,
    typer.Option("-q", "--quiet", help="Only results and errors.", rich_help_panel=_SHARED),
]
_Verbose = Annotated[
    bool,
    typer.Option(
        "-v",
        "--verbose",
        help="More: times, versions, and why other engines were passed over.",
        rich_help_panel=_SHARED,
    ),
]


def is_shared(param: Any) -> bool:
    """Whether an option is one of any command."""
    return param.name == "help" or getattr(param, "rich_help_panel", None) == _SHARED


def _path(ctx: Any) -> list[str]:
    """The names of a command and of the groups that it is in, but for the outermost."""
    names = []
    while ctx is not None and ctx.parent is not None:
        names.append(ctx.info_name)
        ctx = ctx.parent
    return names[::-1]


def _help(one: Any, ctx: Any) -> Iterator[str]:
    """The lines of a command's help."""
    width = max(40, min(shutil.get_terminal_size().columns, 100))
    params = [each for each in one.get_params(ctx) if not getattr(each, "hidden", False)]
    arguments = [each for each in params if each.param_type_name == "argument"]
    names = [_argument(each) for each in arguments]
    if isinstance(one, TyperGroup):
        names.append(one.subcommand_metavar)
    usage = " ".join(["fewstep", *_path(ctx), "[OPTIONS]", *names])
    yield from _wrapped(usage, width, "Usage: ", "       ")
    for paragraph in inspect.cleandoc(one.help or "").split("\n\n"):
        yield ""
        yield from _wrapped(paragraph, width, "  ", "  ")
    panels: dict[str, list[tuple[str, str]]] = {}
    for each in params:
        panel = _SHARED if is_shared(each) else getattr(each, "rich_help_panel", None)
        default = "Arguments" if each in arguments else "Options"
        row = (_argument(each) if each in arguments else _option(each, ctx), _text(each))
        panels.setdefault(panel or default, []).append(row)
    if isinstance(one, TyperGroup):
        for panel, row in _commands(one, ctx):
            panels.setdefault(panel, []).append(row)
    for panel, rows in sorted(panels.items(), key=lambda each: each[0] == _SHARED):
        yield from ("", f"{panel}:")
        yield from _rows(rows, width)


def _rows(rows: list[tuple[str, str]], width: int) -> Iterator[str]:
    """Terms with what they mean beside them, or below where a term is too long for its column."""
    column = min(max(len(term) for term, _ in rows) + 4, 30, width // 3)
    for term, text in rows:
        lines = list(_wrapped(text, width, " " * column, " " * column))
        head = f"  {term}"
        if lines and len(head) + 2 <= column:
            lines[0] = head + lines[0][len(head) :]
        else:
            yield head
        yield from lines


def _commands(group: TyperGroup, ctx: Any) -> Iterator[tuple[str, tuple[str, str]]]:
    """The panel of every command, and its name with the first paragraph of its help."""
    for name in group.list_commands(ctx):
        below = group.get_command(ctx, name)
        if below is not None and not below.hidden:
            panel = getattr(below, "rich_help_panel", None) or "Commands"
            yield panel, (name, inspect.cleandoc(below.help or "").split("\n\n")[0])


def _argument(param: Any) -> str:
    return f"{param.name.upper()}{'...' if param.nargs == -1 else ''}"


def _option(param: Any, ctx: Any) -> str:
    """How an option is written, with what it takes."""
    names = (sorted(each, key=len) for each in (param.opts, param.secondary_opts) if each)
    spelled = " / ".join(", ".join(each) for each in names)
    if param.is_flag or param.count:
        return spelled
    annotation = getattr(getattr(param, "type_descriptor", None), "annotation", None)
    name = getattr(annotation, "__name__", "") if "[" not in str(annotation) else str(annotation)
    kind = next((each for key, each in _KINDS.items() if key in name), "VALUE")
    return " ".join([spelled, *[param.metavar or kind] * max(1, param.nargs)])


def _text(param: Any) -> str:
    """Its help, and the default unless there is none or it is off."""
    default = getattr(param, "default", None)
    extra = ""
    if param.required and param.param_type_name == "option":
        extra = "[required]"
    elif default not in (None, (), [], False, True, ""):
        values = default if isinstance(default, list | tuple) else (default,)
        extra = f"[default: {' '.join(map(str, values))}]"
    elif default is True:
        extra = f"[default: {param.opts[0]}]"
    return " ".join(part for part in (" ".join((param.help or "").split()), extra) if part)


def _wrapped(text: str, width: int, first: str, others: str) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()),
        width,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )
