"""``fewstep evaluate``."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from fewstep.cli.common import (
    JsonOption,
    ThreadsOption,
    command,
    progress_bar,
    say_next,
    say_note,
    say_warning,
    show,
)
from fewstep.runtime.errors import missing


def evaluate_command(
    images: Annotated[
        Path,
        typer.Argument(help="Folder of pictures, or .npz with arr_0 (uint8 [n, H, W, 3])."),
    ],
    reference: Annotated[
        Path | None,
        typer.Option(
            help="Real images: a folder, an .npz of images, or an .npz of statistics (mu, sigma)."
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Inception's weights, for FID as in papers; without, EfficientNet's distances."
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option("--save-statistics", help="Write mu and sigma of IMAGES, as a reference."),
    ] = None,
    resize: Annotated[
        int | None,
        typer.Option(min=8, help="Cut out the middle square of all images and bring it to this."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images that the network sees at once.")] = 64,
    device: Annotated[
        str, typer.Option(help="auto, cpu, or cuda (cuda:1 is the second) of PyTorch.")
    ] = "auto",
    threads: ThreadsOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Compare images with real ones: FID, Inception Score, KID, precision, recall."""
    if importlib.util.find_spec("torch") is None:
        raise missing("torch", "evaluation")
    flow = importlib.import_module("fewstep.calibration.evaluation.flow")
    with progress_bar(f"features of {images}") as progress:
        found = flow.evaluate(
            images,
            reference,
            weights=weights,
            batch=batch,
            device=device,
            threads=threads,
            resize=resize,
            save=save,
            progress=progress,
        )
    for warning in found.warnings:
        say_warning(warning)
    show(found.as_dict(), _shown(found), as_json)
    if save is not None and not as_json:
        say_note(f"statistics of {found.count:,} images → {save}")
        say_next(command("evaluate", images, "--reference", save, *_same(weights, resize)))


def _shown(found: Any) -> list[Table | str]:
    """A table of the metrics, and a line with the first of them."""
    of = f"{found.count:,} images by {found.features}"
    if not found.metrics:
        return [escape(of)]
    against = "" if found.reference is None else f" against {found.reference}"
    table = Table(title=escape(f"{found.images}{against}"), title_justify="left", show_header=False)
    for name, value in found.metrics.items():
        table.add_row(found.titles[name], f"{value:.4f}")
    name = next(iter(found.metrics))
    return [table, escape(f"{found.titles[name]} {found.metrics[name]:.2f} of {of}")]


def _same(weights: Path | None, resize: int | None) -> list[object]:
    given: list[object] = [] if weights is None else ["--weights", weights]
    return given if resize is None else [*given, "--resize", resize]
