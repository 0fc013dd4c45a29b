"""The ``fewstep`` command, a file for each subcommand: thin commands over the packages; results as
tables or JSON.

Imports of anything heavy stay inside the commands, so that ``--help`` and bad arguments answer at
once and ``export`` alone needs torch.
"""

from __future__ import annotations

import re
import sys
from typing import Annotated

import typer

from fewstep import __version__
from fewstep.cli import (
    bench,
    build,
    calibrate,
    demo,
    doctor,
    estimate,
    export,
    generate,
    inspect,
    verify,
)
from fewstep.cli.common import errors, one_line
from fewstep.cli.settings import RepeatedSettingsCommand, SettingsCommand
from fewstep.runtime.errors import FewstepError

__all__ = ["app", "main"]

_CAPABILITY = "--compute-capability"
_INTERRUPTED = 130  # what typer ends with on Ctrl-C

app = typer.Typer(
    name="fewstep",
    help="Put few-step token image generators on NVIDIA edge GPUs. "
    "Any command takes --debug to show where an error came from.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"fewstep {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version."),
    ] = False,
) -> None: ...


app.command("doctor")(doctor.doctor_command)
app.command("demo")(demo.demo_command)
app.add_typer(export.app, name="export")
app.command("build")(build.build_command)
app.add_typer(calibrate.app, name="calibrate")
app.command("inspect", cls=SettingsCommand)(inspect.inspect_command)
app.command("estimate", cls=SettingsCommand)(estimate.estimate_command)
app.command("verify")(verify.verify_command)
app.command("generate", cls=SettingsCommand)(generate.generate_command)
app.command("bench", cls=RepeatedSettingsCommand)(bench.bench_command)


def main() -> None:
    """Entry point: one line and exit code 1 for any ``FewstepError``."""
    debug = "--debug" in sys.argv
    sys.argv = spaced_capabilities([each for each in sys.argv if each != "--debug"])
    try:
        app()
    except FewstepError as error:
        if debug:
            raise
        errors.print(f"[red]error:[/] {one_line(error)}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        errors.print(
            f"[red]error:[/] {type(error).__name__}: {one_line(error)} (a defect of fewstep: "
            "please report it with what --debug shows)",
            highlight=False,
            soft_wrap=True,
        )
        sys.exit(1)
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            errors.print("interrupted; nothing half-written was left behind")
        raise


def spaced_capabilities(arguments: list[str]) -> list[str]:
    """Allow ``--compute-capability 8.6 8.9``: the option's name before every value."""
    spelled: list[str] = []
    option = False
    for argument in arguments:
        value = re.fullmatch(r"[0-9]+\.[0-9]", argument) is not None
        if option and value and spelled[-1] != _CAPABILITY:
            spelled.append(_CAPABILITY)
        option = argument == _CAPABILITY or (option and value)
        spelled.append(argument)
    return spelled
