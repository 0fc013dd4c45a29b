"""``fewstep export-triton``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli.common import (
    BackendOption,
    BundleArgument,
    JsonOption,
    PrecisionOption,
    ThreadsOption,
    say_next,
    show,
)
from fewstep.runtime.errors import RequestError


def export_triton_command(
    bundle: BundleArgument,
    out: Annotated[Path, typer.Argument(help="Folder of Triton's models; made if absent.")],
    name: Annotated[
        str | None, typer.Option(help="Name of the model; the bundle's own by default.")
    ] = None,
    gpus: Annotated[
        str | None,
        typer.Option(help="GPUs to run on, as 0,1; the CPU without this option."),
    ] = None,
    instances: Annotated[
        int, typer.Option(min=1, help="Instances on each GPU, or on the CPU.")
    ] = 1,
    batch: Annotated[
        int, typer.Option(min=1, help="Images decoded together, of one request or several.")
    ] = 8,
    partial_images: Annotated[
        bool,
        typer.Option(
            "--partial-images",
            help="Send images before the last step to who asks; clients have to read streams then.",
        ),
    ] = False,
    reference: Annotated[
        bool, typer.Option("--reference", help="Name the bundle's place instead of copying it.")
    ] = False,
    backend: BackendOption = "auto",
    precision: PrecisionOption = "auto",
    threads: ThreadsOption = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace a model of this name.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a bundle as a model of Triton Inference Server.

    Triton's Python backend runs it, with the fewstep that its Python has.
    """
    from fewstep.integrations.triton.repository import Served, write_model
    from fewstep.runtime.bundle import Bundle

    served = Served(
        gpus=_numbers(gpus),
        instances=instances,
        batch=batch,
        partial=partial_images,
        backend=backend,
        precision=precision,
        threads=threads,
    )
    copy, opened = not reference, Bundle.read(bundle)
    place = write_model(opened, out, served, name=name, copy=copy, overwrite=force)
    show({"model": place.name, "folder": str(place)}, [f"model {place.name} → {place}"], as_json)
    if not as_json:
        say_next(f"tritonserver --model-repository {out}")


def _numbers(gpus: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(each) for each in (gpus or "").split(",") if each.strip())
    except ValueError:
        raise RequestError(f"--gpus are numbers with commas between them, got {gpus}") from None
