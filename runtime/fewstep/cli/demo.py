"""``fewstep demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli.common import export_module, out


def demo_command(
    sample: Annotated[Path, typer.Option(help="Folder of a trained sample.")] = Path(
        "samples/fashion"
    ),
    out_folder: Annotated[Path, typer.Option("--out", help="Where results go.")] = Path(
        "demo-output"
    ),
) -> None:
    """The whole way on the shipped sample: export, verify, generate, time."""
    demo = export_module("demo")
    demo.run(sample, out_folder, out)
