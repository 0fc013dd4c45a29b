"""``fewstep build``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli.common import BundleArgument, JsonOption, build_module, errors, show
from fewstep.runtime.errors import RequestError


def build_command(
    bundle: BundleArgument,
    kernels: Annotated[bool, typer.Option("--kernels", help="Compile the CUDA kernels.")] = False,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(help="One or more, such as 8.7 8.9; without it all that are supported."),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="Make the graphs in fp16 or bf16 from the fp32 ones.")
    ] = None,
    fp32_heads: Annotated[
        bool, typer.Option(help="Keep the logits' and actions' last product in fp32.")
    ] = True,
    force: Annotated[bool, typer.Option(help="Compile even what is up to date.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compile CUDA kernels, or make graphs of lower precision, ahead of time; needs no GPU."""
    if not kernels and precision is None:
        raise RequestError("nothing to build: pass --kernels, or --precision fp16 or bf16")
    if kernels and precision is not None:
        raise RequestError("--kernels and --precision are built one after the other: pass one")
    if precision is not None:
        _build_variant(bundle, precision, fp32_heads, as_json)
        return
    from fewstep.build.kernels import build_kernels
    from fewstep.runtime.tables import kernels_table

    with errors.status("compiling kernels"):
        compiled = build_kernels(bundle, compute_capability or (), force=force)
    if compiled is None:
        show({"up_to_date": True}, ["the kernels are up to date"], as_json)
        return
    show(compiled.as_dict(), [kernels_table(compiled)], as_json)


def _build_variant(path: Path, precision: str, heads: bool, as_json: bool) -> None:
    from fewstep.runtime.bundle import Bundle
    from fewstep.runtime.tables import variant_tables

    variants = build_module("variants")
    with errors.status("measuring ranges on the golden rollouts, lowering the graphs"):
        _, reports = variants.add_variant(Bundle.read(path), precision, heads=heads)
    show({"graphs": [each.as_dict() for each in reports]}, variant_tables(reports), as_json)
