"""``fewstep edit``."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from fewstep.cli.common import (
    BackendOption,
    BundleArgument,
    DeviceOption,
    JsonOption,
    PrecisionOption,
    ThreadsOption,
    command,
    say_next,
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

    from fewstep.runtime.edit.given import Box

_BATCH = 8
_AGAIN = "again.png"


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
        str | None,
        typer.Option(
            metavar="FIT",
            help="How the image becomes one of the bundle's size: crop (its middle), pad (its "
            "edges repeated), stretch; none: it is as large or larger, and is painted in windows. "
            "By default crop.",
            autocompletion=lambda: ["crop", "pad", "stretch", "none"],
        ),
    ] = None,
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
    like: Annotated[
        Path | None,
        typer.Option(
            help="Make this edit of the image again, but for what is given beside it; a mask "
            "has to be given too."
        ),
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="Images of each class or text, 1 by default.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the first image, 0 by default; others count up.")
    ] = None,
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
    resume: Annotated[
        bool, typer.Option("--resume", help="Leave out the images that the folder has.")
    ] = False,
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    threads: ThreadsOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Paint parts of a picture anew, let it grow, or vary it.

    For bundles that were exported with --encoder. What is not painted anew keeps its tokens.
    Pictures say how they were made: --like makes them again, of the same image.
    """
    from fewstep.cli import animation, pictures
    from fewstep.cli.edited import EditMaker, Region, again
    from fewstep.cli.order import digits_of
    from fewstep.cli.produce import Target, produce
    from fewstep.cli.record import compare, order_again, read_record
    from fewstep.runtime.bundle import Bundle
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
    _check_kept(image, mask, out_path, trace, like)
    opened, settings = Bundle.read(bundle), given(context)
    settings_of(opened.manifest.model.defaults, settings)
    picture, painted = _read(image), None if mask is None else _read(mask)
    region = Region(mask, _box_of(box), outpaint, strength, fit, blend)
    record = None if like is None else read_record(like)
    if record is not None and like is not None:
        region = again(record, like, image, region)
        settings = record["settings"] | settings
        precision = str(record["precision"]) if precision == "auto" else precision
        scale, columns = scale or record.get("scale"), columns or record.get("columns")
    model = model_of(opened)
    chosen, info = settings_of(model.info.defaults, settings), model.info.condition
    planned = edit_of(
        model,
        picture,
        mask=region.box if painted is None else painted,
        outpaint=region.outpaint,
        strength=region.strength,
        fit=region.fit or "crop",
        blend=region.blend,
    )
    said = region.record(image, planned.growth)
    target = Target(out_path, trace, columns, scale, resume, edit=said)
    texts = Texts(text, text_file, negative).of(info)
    check = functools.partial(target.check_count, size=planned.size)
    order = order_again(record, info, classes, texts, count, seed, negative=negative, check=check)
    target = replace(target, digits=digits_of(info, order))
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
        if record is not None and like is not None:
            compare(generator, record, like)
        taken = compiled(generator)
        maker = EditMaker(generator, planned, keep_steps=trace is not None)
        made = produce(maker, order, settings, target, complete=complete)
        say_notes(generator)
        for note in made.notes:
            say_note(note)
        summary = summary_of(generator, order, complete, made)
    summary |= {"compile_seconds": taken, "edit": said, "box": planned.box}
    show(summary, [escape(line_of(generator, made, target, taken))], as_json)
    if not as_json and like is None and made.images and made.files[0].name != _AGAIN:
        words: list[object] = ["edit", bundle, "--like", made.files[0], "--image", image]
        words += [] if mask is None else ["--mask", mask]
        words += [] if order.text is None or order.prompts else ["--text-file", text_file]
        say_next(command(*words, "--out", _AGAIN))


def _check_kept(
    image: Path, mask: Path | None, out_path: Path, trace: Path | None, like: Path | None
) -> None:
    """Refuse to write over what is read.

    Raises:
        RequestError: a file is both.
    """
    kept = {each.resolve() for each in (image, mask, like) if each is not None}
    for path in (out_path, trace):
        if path is not None and path.resolve() in kept:
            raise RequestError(f"{path} is read for the edit: name another file to write to")


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


def _box_of(text: str | None) -> Box | None:
    if text is None:
        return None
    try:
        left, top, right, bottom = (int(each) for each in text.split(","))
    except ValueError:  # other numbers of them too
        raise RequestError(
            f"--box takes left, top, right and bottom in pixels, as 8,8,24,24, got {text}"
        ) from None
    return left, top, right, bottom
