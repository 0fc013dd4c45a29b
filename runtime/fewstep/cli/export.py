"""``fewstep export``: a command for every published form, with the options that the form has."""

from __future__ import annotations

import inspect
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

from fewstep.cli.common import errors, export_module, out
from fewstep.runtime.errors import CheckpointError, choose

if TYPE_CHECKING:
    from fewstep.export.source import Source

_TYPES: dict[str, tuple[Any, Any]] = {
    "file": (Path | None, None),
    "files": (list[Path], ()),
    "flag": (bool, False),
}
"""Type and default of an option by its kind."""

_CONFIG = "Constructor arguments as JSON; not for published sizes."


def _sources() -> dict[str, Source]:
    """All forms; they are known without torch."""
    from fewstep.export.source import sources

    return sources()


class _Forms(TyperGroup):
    """The forms that are known as the command line is read."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(_sources())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        known = _sources()
        if cmd_name not in known:
            raise CheckpointError(choose("form", cmd_name, known))
        source = known[cmd_name]
        one = typer.Typer(add_completion=False)
        panel = f"Forms of the {source.kind} family"
        one.command(cmd_name, help=source.summary, rich_help_panel=panel)(_command(source))
        return typer.main.get_command(one)


app = typer.Typer(
    cls=_Forms,
    help="Export an author's checkpoints to a bundle of ONNX graphs.",
    no_args_is_help=True,
    subcommand_metavar="FORM [OPTIONS]",
)


def _command(source: Source) -> Callable[..., None]:
    """The command of a form: a function with a parameter for every option, as typer reads it."""

    def run(*, out_folder: Path, force: bool, **given: Any) -> None:
        flow = export_module("flow")
        with errors.status("starting") as status:
            bundle = flow.export(
                source.name,
                given,
                out_folder,
                overwrite=force,
                command=shlex.join(["fewstep", *sys.argv[1:]]),
                progress=lambda stage, done: status.update(stage),
            )
        out.print(f"wrote {escape(str(bundle.path))}", highlight=False, soft_wrap=True)

    parameters = [
        *(_parameter(o.name, o.flag, o.help, *_TYPES[o.kind], o.required) for o in source.options),
        _parameter("out_folder", "--out", "Bundle folder to make.", Path, None, required=True),
        _parameter("config", "--config", _CONFIG, Path | None, None),
        _parameter("force", "--force", "Replace an existing bundle.", bool, False),
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {}  # those of the signature count
    return run


def _parameter(
    name: str, flag: str, text: str, kind: Any, default: Any, required: bool = False
) -> inspect.Parameter:
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if required else default,
        annotation=Annotated[kind, typer.Option(flag, help=text)],
    )
