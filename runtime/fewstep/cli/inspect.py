"""``fewstep inspect``."""

from __future__ import annotations

from typing import Annotated

import typer

from fewstep.cli.common import BundleArgument, JsonOption, say_error, show
from fewstep.cli.settings import given
from fewstep.runtime.errors import RequestError


def inspect_command(
    context: typer.Context,
    bundle: BundleArgument,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="What a decode runs, and its memory, buffer by buffer."),
    ] = False,
    batch: Annotated[
        int | None, typer.Option(help="With --plan: images decoded together. [1]")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Graphs, shapes, sizes and provenance of a bundle; checks every hash.

    Settings go with --plan.
    """
    from fewstep.cli.tables import inspect_tables, plan_tables
    from fewstep.runtime.bundle import Bundle
    from fewstep.runtime.inspect import inspect, planned_decode

    settings = given(context)
    if plan:
        size = 1 if batch is None else batch
        planned = planned_decode(Bundle.read(bundle), batch=size, **settings)
        show(planned.as_dict(), plan_tables(planned), as_json)
        return
    if batch is not None or settings:
        raise RequestError("only --plan takes --batch and settings: pass --plan too")
    inspection = inspect(Bundle.read(bundle))
    show(inspection.as_dict(), inspect_tables(inspection), as_json)
    if inspection.damage:
        say_error(f"damaged: {', '.join(inspection.damage)}")
        raise typer.Exit(1)
