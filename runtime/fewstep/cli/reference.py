"""Every command with its arguments and options as Markdown: what ``docs/cli.md`` holds.

    python -m fewstep.cli.reference > docs/cli.md

``typer utils docs`` writes such pages too; its text changes with typer's version, which a test that
compares cannot have, and it cuts summaries short.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer
from typer.main import get_command

from fewstep.cli import app
from fewstep.cli.app import is_shared

_HEAD = """\
# The command line

Written by `python -m fewstep.cli.reference > docs/cli.md` from the commands themselves;
`fewstep COMMAND --help` or `-h` shows the same in a terminal. Before or after the name of any
command:

| Any command | |
|---|---|
| `-q`, `--quiet` | Only results and errors: no notes, no progress, nothing on what to do next. |
| `-v`, `--verbose` | More: times, versions, and why other engines were passed over. |
| `--debug` | Show where an error came from. |

Results are on stdout; notes and progress are on stderr, so `--json` prints nothing but JSON. Every
error that fewstep foresees is one line, and the exit code is 1, or 2 for a command line that cannot
be read. `fewstep --install-completion` sets up the shell's completion of commands, options and
files.
"""


def reference() -> str:
    """The page."""
    group = get_command(app)
    sections = "\n".join(_sections(group, typer.Context(group, info_name="fewstep"), "fewstep"))
    return f"{_HEAD}\n{sections}"


def _sections(command: Any, context: typer.Context, path: str) -> Iterator[str]:
    """A section for each command below, in the order in which ``--help`` lists them."""
    for name in command.list_commands(context):
        below = command.get_command(context, name)
        inner = typer.Context(below, parent=context, info_name=name)
        if hasattr(below, "list_commands"):
            yield from _sections(below, inner, f"{path} {name}")
        else:
            yield _section(below, inner, f"{path} {name}")


def _section(command: Any, context: typer.Context, path: str) -> str:
    params = [each for each in command.get_params(context) if not is_shared(each)]
    arguments = [each for each in params if each.param_type_name == "argument"]
    usage = " ".join([path, *(each.name.upper() for each in arguments), "[OPTIONS]"])
    lines = [f"## {path}", "", f"    {usage}", "", *_paragraphs(command.help), ""]
    panels: dict[str, list[Any]] = {}
    for each in params:
        if not each.hidden:
            panels.setdefault(each.rich_help_panel or "Arguments and options", []).append(each)
    for panel, found in panels.items():
        lines += [f"| {panel} | |", "|---|---|"]
        lines += [f"| {_spelling(each)} | {_text(each)} |" for each in found]
        lines.append("")
    return "\n".join(lines)


def _paragraphs(text: str | None) -> list[str]:
    """A docstring with a line for each paragraph."""
    parts = (text or "").split("\n\n")
    return "\n\n".join(" ".join(part.split()) for part in parts).splitlines()


def _spelling(param: Any) -> str:
    """How an argument or option is written."""
    if param.param_type_name == "argument":
        return f"`{param.name.upper()}`"
    values = "" if param.is_flag else " VALUE" * param.nargs
    return ", ".join(f"`{each}{values}`" for each in (*param.opts, *param.secondary_opts))


def _text(param: Any) -> str:
    """Its help, and the default unless there is none or it is off."""
    text, default = param.help or "", param.default
    if param.param_type_name == "option" and param.required:
        text += " Required."
    elif default is True:
        text += f" Default: `{param.opts[0]}`."
    elif default is not False and default not in (None, (), []):
        values = default if isinstance(default, tuple) else (default,)
        text += f" Default: `{' '.join(map(str, values))}`."
    return text.replace("|", "\\|").strip()


if __name__ == "__main__":
    print(reference(), end="")
