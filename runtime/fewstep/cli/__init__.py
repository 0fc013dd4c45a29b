"""The ``fewstep`` command, a file for each subcommand: thin commands over the packages; results as
tables or JSON.

Imports of anything heavy stay inside the commands, so that ``--help`` and bad arguments answer at
once and ``export`` alone needs torch.
"""

from __future__ import annotations

import errno
import sys
from typing import Annotated

import typer

from fewstep import __version__
from fewstep.cli import (
    bench,
    build,
    calibrate,
    compare,
    demo,
    doctor,
    edit,
    estimate,
    evaluate,
    export,
    export_triton,
    generate,
    inspect,
    models,
    serve,
    verify,
)
from fewstep.cli.app import App, EndOfFileError
from fewstep.cli.common import errors, say_error
from fewstep.cli.process import (
    collect_seldom,
    ended_by_signals,
    flush_results,
    prepare_streams,
    warnings_as_notes,
)
from fewstep.cli.settings import RepeatedSettingsCommand, SettingsCommand
from fewstep.runtime.errors import FewstepError, shortened
from fewstep.runtime.unfinished import remove_unfinished

__all__ = ["app", "main"]

_CTRL_C = 130  # what typer ends with then
_INTERRUPTED = {_CTRL_C: "interrupted", 129: "ended by SIGHUP", 143: "ended by SIGTERM"}
_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EMFILE: "allow more open files, as with: ulimit -n 4096",
    errno.ENFILE: "close other programs",
    errno.ENOMEM: "close other programs",
}

app = App(
    name="fewstep",
    help="Put few-step token image generators on NVIDIA edge GPUs. "
    "Any command takes --debug to show where an error came from.",
    add_completion=True,
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
app.command("models")(models.models_command)
app.add_typer(export.app, name="export")
app.command("export-triton")(export_triton.export_triton_command)
app.command("build")(build.build_command)
app.add_typer(calibrate.app, name="calibrate")
app.command("inspect", cls=SettingsCommand)(inspect.inspect_command)
app.command("estimate", cls=SettingsCommand)(estimate.estimate_command)
app.command("verify")(verify.verify_command)
app.command("generate", cls=SettingsCommand)(generate.generate_command)
app.command("edit", cls=SettingsCommand)(edit.edit_command)
app.command("serve")(serve.serve_command)
app.command("compare", cls=RepeatedSettingsCommand)(compare.compare_command)
app.command("evaluate")(evaluate.evaluate_command)
app.command("bench", cls=RepeatedSettingsCommand)(bench.bench_command)


def main() -> None:
    """Entry point: one line and exit code 1 for any error, 2 for bad usage."""
    debug = "--debug" in sys.argv
    sys.argv = [each for each in sys.argv if each != "--debug"]
    prepare_streams()
    collect_seldom()
    with ended_by_signals(), warnings_as_notes():
        code = _ended(debug)
    sys.exit(code)


def _ended(debug: bool) -> int | str | None:
    """Run a command and say how it ended if that was not well; the exit code."""
    try:
        try:
            app()
        finally:
            flush_results()
    except SystemExit as end:
        if end.code in _INTERRUPTED:
            by = _INTERRUPTED[end.code]
            remove_unfinished()
            errors.print(f"{by}; nothing half-written was left behind")
        # Nobody reads on, which click takes for a failure.
        return 0 if isinstance(end.__context__, BrokenPipeError) else end.code
    except BaseException as error:
        if debug:
            raise
        return _said(error)
    return 0


def _said(error: BaseException) -> int:
    """Say in one line what happened, and what to report if that was not foreseen."""
    cause = error.__cause__
    if isinstance(error, typer.Abort | EndOfFileError) and cause is not None:
        error = cause  # an EOFError
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        remove_unfinished()
        errors.print(f"{_INTERRUPTED[_CTRL_C]}; nothing half-written was left behind")
        return _CTRL_C
    say_error(_line(error))
    return 1


def _line(error: BaseException) -> str:
    try:
        message = str(error)
    except Exception:
        message = ""
    if isinstance(error, FewstepError):
        return message
    name = type(error).__name__
    said = shortened(f"{name}: {message}" if message else name, 1_600)
    if isinstance(error, MemoryError):
        return f"out of memory ({said}); try a smaller batch, or close other programs"
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        return f"{said}; {_REMEDIES[error.errno]}"
    return f"{said} (a defect of fewstep: please report it with what --debug shows)"
