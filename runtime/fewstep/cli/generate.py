"""``fewstep generate``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from fewstep.cli.common import (
    BackendOption,
    BundleArgument,
    DeviceOption,
    JsonOption,
    PrecisionOption,
    errors,
    say_notes,
    show,
)
from fewstep.cli.settings import given
from fewstep.runtime.errors import RequestError

if TYPE_CHECKING:
    from fewstep.runtime.condition import Condition


def generate_command(
    context: typer.Context,
    bundle: BundleArgument,
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="Class id or name; repeat for more.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help=".npy of text states [B, L, D], for text bundles.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Images per class.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the first image; others count up.")] = 0,
    out_path: Annotated[
        Path, typer.Option("--out", help="Picture file (several images make a grid) or folder.")
    ] = Path("fewstep.png"),
    trace: Annotated[
        Path | None, typer.Option(help="GIF of the images being decided, step by step.")
    ] = None,
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Generate images from a bundle."""
    from fewstep.cli import animation, pictures
    from fewstep.runtime.bundle import Bundle
    from fewstep.runtime.families import model_of
    from fewstep.runtime.generator import Generator, checked_request
    from fewstep.runtime.settings import settings_of

    pictures.check_suffix(out_path)
    if trace is not None:
        animation.check_suffix(trace)
    opened, settings = Bundle.read(bundle), given(context)
    settings_of(opened.manifest.model.defaults, settings)
    condition, labels = conditions(opened.manifest.model.condition, classes, text, count)
    asked = {"class_ids": None, "text": None, **condition, "seed": seed}
    checked_request(model_of(opened), settings=settings, **asked)  # before engines load
    with Generator.open(opened, backend=backend, device=device, precision=precision) as generator:
        with errors.status("generating (the first run here compiles the kernels, once)"):
            result = generator.generate(**condition, seed=seed, **settings)
        say_notes(generator)
        pictures.write(result, labels, out_path)
        written = [out_path]
        if trace is not None:
            scale = pictures.scale_for(result)
            frames = animation.step_frames(generator, result, labels, scale=scale)
            animation.save_animation(frames, trace)
            written.append(trace)
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


def conditions(
    info: Condition, classes: Sequence[str] | None, text: Path | None, count: int
) -> tuple[dict[str, Any], list[str]]:
    """Class ids or names, or a file of text states, as arguments of ``Generator.generate``.

    Returns:
        The arguments, for ``count`` images of each class or text; and a label for each.

    Raises:
        RequestError: an unknown class, neither classes nor text, an unreadable file.
    """
    from fewstep.runtime.condition import ClassCondition, condition_of, read_text

    if text is not None:
        states = condition_of(info, None, read_text(text))
        labels = [f"text {row}" for row in range(len(states))]
        return {"text": states.repeat(count, 0)}, labels
    if not classes:
        kind = "--class" if isinstance(info, ClassCondition) else "--text"
        raise RequestError(f"nothing to generate: give {kind}")
    if not isinstance(info, ClassCondition):
        raise RequestError("this bundle is text-conditional: give --text, not --class")
    ids = [info.class_id(name) for name in classes]
    info.array(ids)
    return {"class_ids": [i for i in ids for _ in range(count)]}, [info.label(i) for i in ids]
