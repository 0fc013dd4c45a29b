"""``fewstep edit``."""

from __future__ import annotations

from collections.abc import Mapping
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
    ThreadsOption,
    say_note,
    say_notes,
    show,
)
from fewstep.cli.settings import given
from fewstep.cli.texts import NegativeOption, TextFileOption, TextOption, Texts
from fewstep.cli.told import compiled, line_of, summary_of
from fewstep.runtime.errors import RequestError

if TYPE_CHECKING:
    from PIL.Image import Image

_BATCH = 8


def edit_command(
    context: typer.Context,
    bundle: BundleArgument,
    image: Annotated[Path, typer.Option(help="Picture to edit, of any size.")],
    mask: Annotated[
        Path | None,
        typer.Option(
            help="Picture of the same size, white where the image is painted anew; or transparent "
            "there. Without it, an image with transparency is painted anew where it is transparent."
        ),
    ] = None,
    box: Annotated[
        str | None,
        typer.Option(metavar="L,T,R,B", help="Paint this box of the image anew, in its pixels."),
    ] = None,
    outpaint: Annotated[
        str | None,
        typer.Option(
            metavar="SIDE:N,...",
            help="Let the fitted picture grow by pixels on its sides: left:64,top:32.",
        ),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(help="Decide this part of all tokens anew, above 0 and at most 1."),
    ] = None,
    fit: Annotated[
        str,
        typer.Option(
            help="How the image becomes one of the bundle's size: crop (its middle), pad (its "
            "edges repeated), stretch; none: it is as large or larger, and is painted in windows.",
            autocompletion=lambda: ["crop", "pad", "stretch", "none"],
        ),
    ] = "crop",
    blend: Annotated[
        bool,
        typer.Option("--blend", help="Put kept pixels back over the result, with a soft seam."),
    ] = False,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class",
            metavar="CLASS ...",
            help="What to paint: class ids or names, as of fewstep generate.",
        ),
    ] = None,
    text: TextOption = None,
    text_file: TextFileOption = None,
    negative: NegativeOption = None,
    count: Annotated[int, typer.Option(min=1, help="Images of each class or text.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the first image; others count up.")] = 0,
    out_path: Annotated[
        Path,
        typer.Option(
            "--out", help="Picture (.png, .jpg, .webp; several images make a grid) or folder."
        ),
    ] = Path("edited.png"),
    trace: Annotated[
        Path | None, typer.Option(help="GIF of the images being decided, step by step.")
    ] = None,
    columns: Annotated[
        int | None, typer.Option(min=1, help="Images side by side in a grid.")
    ] = None,
    scale: Annotated[
        int | None, typer.Option(min=1, max=64, help="Enlarge pixels to squares of this side.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images decoded together.")] = _BATCH,
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    threads: ThreadsOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Paint parts of a picture anew, let it grow, or vary it.

    For bundles that were exported with --encoder. What is not painted anew keeps its tokens.
    """
    from fewstep.cli import animation, pictures
    from fewstep.cli.edited import EditMaker
    from fewstep.cli.order import ordered
    from fewstep.cli.produce import Target, produce
    from fewstep.runtime.bundle import Bundle
    from fewstep.runtime.condition import ClassCondition
    from fewstep.runtime.edit.edit import edit_of
    from fewstep.runtime.families import family_of, model_of
    from fewstep.runtime.generator import Generator
    from fewstep.runtime.request import checked_request
    from fewstep.runtime.settings import settings_of

    pictures.check_suffix(out_path)
    if trace is not None:
        animation.check_suffix(trace)
    if mask is not None and box is not None:
        raise RequestError("give --mask or --box, not both")
    _check_kept(image, mask, out_path, trace)
    opened, settings = Bundle.read(bundle), given(context)
    model = model_of(opened)
    chosen, info = settings_of(model.info.defaults, settings), model.info.condition
    planned = edit_of(
        model,
        _read(image),
        mask=_read(mask) if mask is not None else _box_of(box),
        outpaint=outpaint,
        strength=strength,
        fit=fit,
        blend=blend,
    )
    said = _said(image, mask, box, planned.growth, strength, fit, blend)
    digits = len(str(info.num_classes - 1)) if isinstance(info, ClassCondition) else 1
    target = Target(out_path, trace, columns, scale, digits=digits, edit=said)
    order = ordered(
        info,
        classes,
        Texts(text, text_file, negative).of(info),
        count,
        seed,
        negative=negative,
        check=lambda images: target.check_count(images, planned.size),
    )
    for k in (0, len(order) - 1):  # before engines load
        checked_request(model, **order.take([k]), settings=settings)
    complete = family_of(model.info.kind).complete(model, chosen)
    target.check(order, planned.size, pictures.title_of(order, complete))
    with Generator.open(
        opened,
        backend=backend,
        device=device,
        precision=precision,
        max_batch=batch,
        threads=threads,
    ) as generator:
        taken = compiled(generator)
        maker = EditMaker(generator, planned, keep_steps=trace is not None)
        made = produce(maker, order, settings, target, complete=complete)
        say_notes(generator)
        for note in made.notes:
            say_note(note)
        summary = summary_of(generator, order, complete, made)
    summary |= {"compile_seconds": taken, "edit": said, "box": planned.box}
    show(summary, [escape(line_of(generator, made, target, taken))], as_json)


def _check_kept(image: Path, mask: Path | None, *written: Path | None) -> None:
    """Refuse to write over what is read.

    Raises:
        RequestError: a file is both.
    """
    kept = {each.resolve() for each in (image, mask) if each is not None}
    for path in written:
        if path is not None and path.resolve() in kept:
            raise RequestError(f"{path} is what is edited: name another file to write to")


def _read(path: Path) -> Image:
    """A picture, read to its end.

    Raises:
        RequestError: it cannot be read.
    """
    from PIL import Image

    from fewstep.cli.record import unreadable
    from fewstep.runtime.edit.given import UNREADABLE

    try:
        image = Image.open(path)
        image.load()
    except UNREADABLE as error:
        raise unreadable(path, error) from error
    return image


def _box_of(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(each) for each in text.split(","))
    except ValueError:
        raise RequestError(
            f"--box takes left, top, right and bottom in pixels, 8,8,24,24, got {text}"
        ) from None


def _said(
    image: Path,
    mask: Path | None,
    box: str | None,
    growth: Mapping[str, int] | None,
    strength: float | None,
    fit: str,
    blend: bool,
) -> dict[str, Any]:
    """What pictures say of the one that they were made of."""
    from fewstep.runtime.files import sha256

    said = {
        "image": sha256(image),
        "mask": None if mask is None else sha256(mask),
        "box": _box_of(box),
        "outpaint": growth,
        "strength": strength,
        "fit": fit,
        "blend": blend,
    }
    return {name: value for name, value in said.items() if value is not None}
