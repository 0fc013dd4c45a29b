"""``fewstep estimate``."""

from __future__ import annotations

from typing import Annotated

import typer

from fewstep.build.gpus import GPUS
from fewstep.cli.common import PRECISIONS, BundleArgument, JsonOption, build_module, errors, show
from fewstep.cli.settings import given


def estimate_command(
    context: typer.Context,
    bundle: BundleArgument,
    device: Annotated[
        list[str] | None,
        typer.Option(
            help=f"{', '.join(GPUS)} (one or more); without it all.",
            autocompletion=lambda: list(GPUS),
        ),
    ] = None,
    batch: Annotated[int, typer.Option(help="Images decoded together.")] = 1,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            help="fp32, fp16, bf16, int8, fp8 (one or more); without it all.",
            autocompletion=lambda: list(PRECISIONS),
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """What a GPU needs at least, by published specifications: a bound, not a measurement.

    No GPU is needed, and no builder: the extra `build` brings what counts the graphs' operations.
    """
    from fewstep.runtime.bundle import Bundle

    opened = Bundle.read(bundle)
    module, tables = build_module("estimate"), build_module("estimate_tables")
    with errors.status("counting operations"):
        found = module.estimate(
            opened,
            devices=device or (),
            precisions=precision or (),
            batch=batch,
            **given(context),
        )
    show(found.as_dict(), tables.estimate_tables(found, stages=bool(device)), as_json)
