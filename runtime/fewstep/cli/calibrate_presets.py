"""``fewstep calibrate presets``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli.common import (
    BackendOption,
    BundleArgument,
    DeviceOption,
    JsonOption,
    PrecisionOption,
    ThreadsOption,
    calibration_module,
    command,
    progress_bar,
    say_verdict,
    say_warning,
    show,
)
from fewstep.cli.settings import combinations
from fewstep.cli.texts import TextFileOption, calibration_text


def presets_command(
    context: typer.Context,
    bundle: BundleArgument,
    reference: Annotated[
        Path,
        typer.Option(
            help="Real images: a folder, an .npz of images, or an .npz of statistics (mu, sigma)."
        ),
    ],
    images: Annotated[int, typer.Option(help="Images by each of the settings.")] = 2000,
    seed: Annotated[int, typer.Option(help="Seed of the first image; others count up.")] = 0,
    text_file: TextFileOption = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="Inception's weights, for FID; without, EfficientNet's distances."),
    ] = None,
    resize: Annotated[
        int | None,
        typer.Option(min=8, help="Cut out the middle square of real images, bring it to this."),
    ] = None,
    within: Annotated[
        tuple[float, float],
        typer.Option(
            help="Parts of the least distance that fast and balanced may be above it.",
            metavar="FAST BALANCED",
        ),
    ] = (0.25, 0.05),
    seconds: Annotated[
        float, typer.Option(help="How long to time each of the settings on average.")
    ] = 3.0,
    batch: Annotated[int, typer.Option(min=1, help="Images decoded together, but for times.")] = 8,
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    threads: ThreadsOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Measure milliseconds of an image against its distance to real ones, and make presets of it.

    Every combination of settings is tried; without any, those that the family suggests. The fastest
    near the best becomes the preset fast, a nearer one balanced, and the best one best: fewstep
    generate --preset fast.
    """
    from fewstep.cli.tables import curve_table

    flow = calibration_module("presets.flow")
    given = [each for each in combinations(context) if each]
    request = flow.PresetsRequest(
        bundle=bundle,
        reference=reference,
        candidates=tuple(given),
        images=images,
        seed=seed,
        text=calibration_text(bundle, text_file),
        weights=weights,
        resize=resize,
        within=within,
        seconds=seconds,
        backend=backend,
        device=device,
        precision=precision,
        threads=threads,
        batch=batch,
    )
    with progress_bar("reading the bundle") as progress:
        outcome = flow.calibrate_presets(request, progress)
    for warning in outcome.warnings:
        say_warning(warning)
    show(outcome.as_dict(), [curve_table(outcome.curve)], as_json)
    if not as_json:
        names = [name for point in outcome.curve.points for name in point.presets]
        again = command("compare", bundle, *(word for name in names for word in ("--preset", name)))
        say_verdict([f"presets {', '.join(names)} → {bundle}"], [again])
