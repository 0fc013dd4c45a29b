"""``fewstep inspect``."""

from __future__ import annotations

from typing import Annotated

import typer

from fewstep.cli.common import BundleArgument, JsonOption, errors, show
from fewstep.runtime.errors import RequestError


def inspect_command(
    bundle: BundleArgument,
    plan: Annotated[
        bool, typer.Option("--plan", help="Memory of the decode loop instead, buffer by buffer.")
    ] = False,
    batch: Annotated[int, typer.Option(help="With --plan: images decoded together.")] = 1,
    steps: Annotated[int | None, typer.Option(help="With --plan: transformer passes.")] = None,
    schedule: Annotated[str | None, typer.Option(help="With --plan: schedule, or policy.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Graphs, shapes, sizes and provenance of a bundle; checks every hash."""
    from fewstep.runtime.bundle import Bundle
    from fewstep.runtime.inspect import inspect, plan_memory
    from fewstep.runtime.tables import inspect_tables, plan_table

    if plan:
        memory = plan_memory(Bundle.read(bundle), batch=batch, steps=steps, schedule=schedule)
        show(memory.as_dict(), [plan_table(memory)], as_json)
        return
    if (batch, steps, schedule) != (1, None, None):
        raise RequestError("--batch, --steps and --schedule go with --plan")
    inspection = inspect(Bundle.read(bundle))
    show(inspection.as_dict(), inspect_tables(inspection), as_json)
    if inspection.damage:
        errors.print(f"[red]error:[/] damaged: {', '.join(inspection.damage)}", highlight=False)
        raise typer.Exit(1)
