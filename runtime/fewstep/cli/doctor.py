"""``fewstep doctor``."""

from __future__ import annotations

import typer

from fewstep.cli.common import JsonOption, say_warning, show


def doctor_command(as_json: JsonOption = False) -> None:
    """What this machine can run, and what to install for more."""
    from fewstep.cli.tables import doctor_tables
    from fewstep.runtime.doctor import diagnose

    diagnosis = diagnose()
    show(diagnosis.as_dict(), doctor_tables(diagnosis), as_json)
    for warning in diagnosis.warnings:
        say_warning(warning)
    if not diagnosis.runs:
        raise typer.Exit(1)
