"""``fewstep generate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from fewstep.cli.common import (
    BackendOption,
    BundleArgument,
    DeviceOption,
    JsonOption,
    PrecisionOption,
    errors,
    ramp,
    say_notes,
    show,
)


def generate_command(
    bundle: BundleArgument,
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="Class id or name; repeat for more.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help=".npy of text states [B, L, D], for text bundles.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Images per class.")] = 1,
    steps: Annotated[int | None, typer.Option(help="Transformer passes.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the first image; others count up.")] = 0,
    guidance: Annotated[
        str | None, typer.Option(help="Guidance scale, or START:END for a ramp.")
    ] = None,
    sampling_temperature: Annotated[str | None, typer.Option(help="Number or START:END.")] = None,
    masking_temperature: Annotated[str | None, typer.Option(help="Number or START:END.")] = None,
    schedule: Annotated[
        str | None, typer.Option(help="Mask-ratio schedule (cosine, ...) or policy.")
    ] = None,
    out_path: Annotated[
        Path, typer.Option("--out", help="Picture file (several images make a grid) or folder.")
    ] = Path("fewstep.png"),
    trace: Annotated[
        Path | None, typer.Option(help="GIF of tokens being decided step by step.")
    ] = None,
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Generate images from a bundle."""
    from fewstep.runtime import gallery
    from fewstep.runtime.generator import Generator

    gallery.check_outputs(out_path, trace)
    with Generator.open(bundle, backend=backend, device=device, precision=precision) as generator:
        wanted = gallery.conditions(generator, classes, text, count)
        with errors.status("generating (the first run here compiles the kernels, once)"):
            result = generator.generate(
                **wanted.request,
                steps=steps,
                seed=seed,
                schedule=schedule,
                guidance=ramp("guidance", guidance),
                sampling_temperature=ramp("sampling temperature", sampling_temperature),
                masking_temperature=ramp("masking temperature", masking_temperature),
            )
        say_notes(generator)
        written = gallery.write(result, wanted, out_path)
        if trace is not None:
            written.append(gallery.write_trace(generator, result, wanted, trace))
    summary = {
        "files": [str(path) for path in written],
        "images": len(result.images),
        "backend": generator.backend,
        "device": generator.device.name,
        "precision": generator.precision,
        "passed_over": generator.passed_over,
        "notes": list(generator.notes),
        "timings_ms": result.timings_ms,
    }
    made = f"{len(result.images)} image{'s' if len(result.images) != 1 else ''}"
    how = f"{generator.backend} in {generator.precision} on {generator.device.name}"
    where = ", ".join(map(str, written))
    line = f"{made} in {result.timings_ms['total']:.0f} ms with {how} → {where}"
    show(summary, [escape(line)], as_json)
