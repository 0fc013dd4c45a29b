"""``fewstep export``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from fewstep.cli.common import errors, export_module, out


def export_command(
    family: Annotated[str, typer.Argument(help="adanat or maskgit.")],
    transformer: Annotated[Path, typer.Option(help="Transformer checkpoint.")],
    tokenizer: Annotated[Path, typer.Option(help="VQGAN tokenizer checkpoint.")],
    out_folder: Annotated[Path, typer.Option("--out", help="Bundle folder to make.")],
    policy: Annotated[Path | None, typer.Option(help="Policy checkpoint (adanat).")] = None,
    untrained_policy: Annotated[
        bool,
        typer.Option(
            "--untrained-policy",
            help="Instead: a policy network as AdaNAT initialises it. It follows the heuristic "
            "schedule until fewstep calibrate policy tunes it.",
        ),
    ] = False,
    tuned_policy: Annotated[
        list[Path] | None,
        typer.Option(help="What calibrate policy wrote; repeat for more, the newest last."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Constructor arguments as JSON; not for published sizes.")
    ] = None,
    unconditional_text: Annotated[
        Path | None, typer.Option(help=".npy with the text states of the empty text.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Replace an existing bundle.")] = False,
) -> None:
    """Export an author's checkpoints to a bundle of ONNX graphs."""
    export = export_module()
    files = export.Checkpoints(
        transformer,
        tokenizer,
        policy,
        config,
        unconditional_text,
        tuple(tuned_policy or ()),
        untrained_policy,
    )
    command = shlex.join(["fewstep", *sys.argv[1:]])
    with errors.status("starting") as status:
        bundle = export.export_masked(
            family,
            files,
            out_folder,
            overwrite=force,
            command=command,
            progress=lambda stage: status.update(stage),
        )
    out.print(f"wrote {escape(str(bundle.path))}", highlight=False, soft_wrap=True)
