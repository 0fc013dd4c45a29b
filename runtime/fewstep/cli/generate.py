"""``fewstep generate``."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

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

_BATCH = 8
_AGAIN = "again.png"


def generate_command(
    context: typer.Context,
    bundle: BundleArgument,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class",
            metavar="CLASS ...",
            help="Class ids or names, with spaces or commas between several. all: every class. "
            "random: --count images of classes drawn at random. balanced: --count images of all "
            "classes alike.",
        ),
    ] = None,
    text: TextOption = None,
    text_file: TextFileOption = None,
    negative: NegativeOption = None,
    like: Annotated[
        Path | None,
        typer.Option(
            help="Make the images of this picture again, but for what is given beside it."
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(
            min=1, help="Images of each class, 1 by default; of all, with random or balanced."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the first image, 0 by default; others count up.")
    ] = None,
    out_path: Annotated[
        Path,
        typer.Option(
            "--out", help="Picture (.png, .jpg, .webp; several images make a grid) or folder."
        ),
    ] = Path("fewstep.png"),
    trace: Annotated[
        Path | None, typer.Option(help="GIF of the images being decided, step by step.")
    ] = None,
    columns: Annotated[
        int | None, typer.Option(min=1, help="Images side by side in a grid.")
    ] = None,
    scale: Annotated[
        int | None, typer.Option(min=1, max=64, help="Enlarge pixels to squares of this side.")
    ] = None,
    best_of: Annotated[
        int,
        typer.Option(
            min=1, help="Candidates of each image, of which the bundle's judge keeps one."
        ),
    ] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Images decoded together.")] = _BATCH,
    resume: Annotated[
        bool, typer.Option("--resume", help="Leave out the images that the folder has.")
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Make every N-th image only, to share a run; 1/N first."),
    ] = None,
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    threads: ThreadsOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Generate images from a bundle.

    The same seed, class and settings give the same image, whatever else is made beside it. Pictures
    say how they were made: --like makes them again.
    """
    from fewstep.cli import animation, pictures
    from fewstep.cli.order import digits_of
    from fewstep.cli.produce import Maker, Target, produce
    from fewstep.cli.record import compare, order_again, read_record
    from fewstep.runtime.best_of import check_best_of
    from fewstep.runtime.bundle import Bundle
    from fewstep.runtime.families import family_of, model_of
    from fewstep.runtime.generator import Generator
    from fewstep.runtime.request import checked_request
    from fewstep.runtime.settings import settings_of

    pictures.check_suffix(out_path)
    if trace is not None:
        animation.check_suffix(trace)
    record = None if like is None else read_record(like)
    if record is not None and "edit" in record:
        raise RequestError(
            f"{like} is an edit: make it again with fewstep edit --like {like} --image, and the "
            "image that it was made of"
        )
    opened, settings = Bundle.read(bundle), given(context)
    check_best_of(opened, best_of)
    settings_of(opened.manifest.model.defaults, settings)
    if record is not None:
        settings = record["settings"] | settings
        precision = str(record["precision"]) if precision == "auto" else precision
        scale, columns = scale or record.get("scale"), columns or record.get("columns")
    model = model_of(opened)
    chosen = settings_of(model.info.defaults, settings)
    info = model.info.condition
    target = Target(out_path, trace, columns, scale, resume, best_of=best_of)
    if shard is not None and not target.is_folder:
        raise RequestError("--shard shares a folder: name one as --out")
    texts = Texts(text, text_file, negative).of(info)
    check = functools.partial(target.check_count, size=model.info.image_size)
    shared: dict[str, Any] = {"negative": negative, "shard": shard, "check": check}
    order = order_again(record, info, classes, texts, count, seed, **shared)
    target = replace(target, digits=digits_of(info, order))
    for k in (0, len(order) - 1):  # before engines load
        checked_request(model, **order.take([k]), settings=settings)
    complete = family_of(model.info.kind).complete(model, chosen)
    target.check(order, model.info.image_size, pictures.title_of(order, complete))
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
        made = produce(Maker(generator, best_of), order, settings, target, complete=complete)
        say_notes(generator)
        for note in made.notes:
            say_note(note)
        summary = summary_of(generator, order, complete, made) | {"compile_seconds": taken}
    show(summary, [escape(line_of(generator, made, target, taken))], as_json)
    if not as_json and like is None and made.images and not _is_again(made.files[0]):
        words: list[object] = ["generate", bundle, "--like", made.files[0]]
        states = [] if order.text is None or order.prompts else ["--text-file", text_file]
        say_next(command(*words, *states, "--out", _AGAIN))


def _is_again(path: Path) -> bool:
    return path.resolve() == Path(_AGAIN).resolve()
