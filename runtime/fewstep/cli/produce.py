"""Generated images on their way into files: all in one picture, or each in its own as soon as its
batch is done."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.cli import animation, pictures
from fewstep.cli.common import command, errors, say_note
from fewstep.cli.counter import Count, counter
from fewstep.cli.fonts import font_for
from fewstep.cli.order import Order, check_images
from fewstep.cli.record import Record, difference, read_record, record_of, same
from fewstep.cli.sheet import Sheet
from fewstep.runtime.errors import OutputError, RequestError
from fewstep.runtime.files import require_writable
from fewstep.runtime.manifest import MANIFEST_NAME

if TYPE_CHECKING:
    from fewstep.runtime.generator import Generator
    from fewstep.runtime.progress import Progress
    from fewstep.runtime.result import Result


_LOOKED_INTO = 5  # images of a folder


@dataclass(frozen=True)
class Target:
    """Where images go, and each the best of how many candidates. ``digits``: of the largest
    condition, for names of files that sort. ``edit``: what pictures say of the one that they were
    made of."""

    path: Path
    trace: Path | None = None
    columns: int | None = None
    scale: int | None = None
    resume: bool = False
    digits: int = 1
    best_of: int = 1
    edit: Mapping[str, Any] | None = None

    @property
    def is_folder(self) -> bool:
        """Whether every image gets a file of its own."""
        return pictures.is_folder(self.path)

    def file(self, order: Order, k: int) -> Path:
        """The file of an image in a folder."""
        return self.path / pictures.file_name(order, k, self.digits)

    def sheet(self, order: Order, size: tuple[int, int], titles: Sequence[str]) -> Sheet:
        """The page for all images of an order, of ``size`` (height, width)."""
        return Sheet.of(
            shown_labels(order),
            order.each,
            size,
            titles,
            columns=self.columns,
            scale=self.scale or pictures.scale_for(size[0]),
        )

    def check_count(self, count: int, size: tuple[int, int]) -> None:
        """Refuse too many images of ``size`` (height, width), before they are listed.

        Raises:
            OutputError: more than a picture takes.
            RequestError: more than a run makes.
        """
        scale = self.scale or pictures.scale_for(size[0])
        for path in (None if self.is_folder else self.path, self.trace):
            if path is not None and count > 1:
                pictures.check_count(count, size, scale, path)
        check_images(count)

    def record(
        self,
        generator: Generator,
        complete: Mapping[str, Any],
        order: Order,
        rows: Sequence[int],
        seeds: Sequence[int] | None = None,
    ) -> Record:
        """What a picture of some images of an order says, all or one; ``seeds``: that they have,
        unless they are the order's."""
        how: dict[str, Any] = {"scale": self.scale, "columns": self.columns}
        how |= {"best_of": self.best_of, "edit": self.edit}
        return record_of(generator, complete, order, rows, seeds, **how)

    def check(self, order: Order, size: tuple[int, int], title: str) -> None:
        """Refuse what cannot be written, before any work.

        Raises:
            OutputError: a place that is not writable, a picture too large for its format.
            RequestError: options that do not go together.
        """
        if self.resume and self.best_of > 1:
            raise RequestError("--resume knows images by their seeds, which --best-of chooses anew")
        if self.is_folder:
            if (self.path / MANIFEST_NAME).is_file():
                raise OutputError(f"{self.path} is a bundle: name another folder as --out")
            pictures.check_image(size, self.scale or 1, self.file(order, 0))
            require_writable(self.file(order, 0))
        else:
            if self.resume:
                raise RequestError("--resume goes on with a folder: name one as --out")
            if len(order) > 1:
                pictures.check_page(self.sheet(order, size, [title]), self.path)
            else:
                pictures.check_image(size, self.scale or 1, self.path)
            require_writable(self.path)
        if self.trace is not None:
            if self.resume:
                raise RequestError("--trace shows images that are made: leave out --resume")
            pictures.check_page(self.sheet(order, size, [title]), self.trace)
            require_writable(self.trace)


def shown_labels(order: Order) -> list[str]:
    """A label for every condition, or its number where no font here has what its name needs."""
    kind = "text" if order.text is not None else "class"
    found = []
    for k in range(0, len(order), order.each):
        label = pictures.drawn(order.labels[k])
        found.append(label if font_for(label) else f"{kind} {order.conditions[k]}")
    return found


@dataclass
class Made:
    """What came about: files, how many images were there already, milliseconds by stage, seeds of
    the images that were made, and what to know of them."""

    files: list[Path] = field(default_factory=list)
    images: int = 0
    kept: int = 0
    timings_ms: dict[str, float] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)
    notes: tuple[str, ...] = ()

    def add(self, result: Result) -> None:
        """Count a result in."""
        self.images += len(result.images)
        self.seeds += result.seeds.tolist()
        self.notes = tuple(dict.fromkeys((*self.notes, *result.notes)))
        for stage, each in result.timings_ms.items():
            self.timings_ms[stage] = self.timings_ms.get(stage, 0.0) + each


class Maker:
    """How images are made: each the best of so many candidates."""

    def __init__(self, generator: Generator, best_of: int = 1) -> None:
        self.generator, self.best_of = generator, best_of

    def make(self, asked: Mapping[str, Any], progress: Progress) -> Result:
        """Images; ``asked`` as of ``Generator.request``."""
        from fewstep.runtime.best_of import best_images

        return best_images(self.generator, self.best_of, asked, progress=progress)

    def steps(self, result: Result) -> list[animation.Step]:
        """How those that were made last came about."""
        return animation.steps_shown(self.generator, result)


def produce(
    maker: Maker,
    order: Order,
    settings: Mapping[str, Any],
    target: Target,
    *,
    complete: Mapping[str, Any],
) -> Made:
    """Make the images of an order and write them.

    Args:
        maker: that makes them.
        order: which.
        settings: of the request.
        target: where they go.
        complete: the same settings with all that is not given, for what pictures say.

    Raises:
        OutputError: the place is not writable, or the folder has images of other settings.
    """
    made, generator = Made(), maker.generator
    wanted = list(range(len(order)))
    if target.is_folder and order.prompts is not None:
        _check_prompts(order, target)
    if target.resume:
        wanted = _absent(generator, order, complete, target)
        made.kept = len(order) - len(wanted)
    elif target.is_folder:
        _check_set(generator, order, complete, target)
    if not wanted:
        made.timings_ms = {"total": 0.0}
        return made
    at_once = len(wanted) if target.trace or not target.is_folder else generator.max_batch
    try:
        with counter(len(wanted)) as count:
            for rows in _parts(wanted, at_once):
                asked = {**order.take(rows), **settings}
                result = maker.make(asked, _counting(count, made.images, len(rows)))
                _write(maker, result, order, rows, target, complete, made)
                made.add(result)
    except BaseException:
        if target.is_folder:
            _say_kept(order, target)
        raise
    return made


def _say_kept(order: Order, target: Target) -> None:
    """Say what a run that ended early leaves, and how to go on."""
    names = _names(target)  # a run may end between writing an image and counting it
    there = sum(target.file(order, k).name in names for k in range(len(order)))
    if not there:
        return
    words = sys.argv[1:] if target.resume else [*sys.argv[1:], "--resume"]
    errors.print(
        f"{there:,} of {len(order):,} images are in {target.path}; go on with: {command(*words)}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _counting(count: Count, before: int, images: int) -> Progress:
    return lambda _, done: count(before + done * images)


def _write(
    maker: Maker,
    result: Result,
    order: Order,
    rows: Sequence[int],
    target: Target,
    complete: Mapping[str, Any],
    made: Made,
) -> None:
    """Write the images ``rows`` of an order, which are those of ``result``.

    Pictures say the seeds that images have; files of a folder are named by those of the order.
    """
    seeds: list[int] = result.seeds.tolist()
    generator = maker.generator
    if target.is_folder:
        for k, seed, pixels in zip(rows, seeds, result.images, strict=True):
            path = target.file(order, k)
            record = target.record(generator, complete, order, [k], [seed])
            pictures.save(pictures.enlarged(pixels, target.scale or 1), path, record)
            made.files.append(path)
    else:
        record = target.record(generator, complete, order, rows, seeds)
        if len(rows) == 1:
            picture = pictures.enlarged(result.images[0], target.scale or 1)
        else:
            title = pictures.title_of(replace(order, seeds=tuple(seeds)), complete)
            _, height, width, _ = result.images.shape
            picture = target.sheet(order, (height, width), [title]).draw(result.images, title)
        pictures.save(picture, target.path, record)
        made.files.append(target.path)
    if target.trace is not None:
        scale = target.scale or pictures.scale_for(result.images.shape[1])
        labels = shown_labels(order)
        frames = animation.step_frames(
            maker.steps(result), labels, scale=scale, columns=target.columns
        )
        record = target.record(generator, complete, order, rows, seeds)
        animation.save_animation(frames, target.trace, record)
        made.files.append(target.trace)


def _absent(
    generator: Generator, order: Order, complete: Mapping[str, Any], target: Target
) -> list[int]:
    """The images whose files are not there.

    Raises:
        OutputError: a file is there that says something else of itself.
    """
    there = _names(target)
    absent = []
    for k in range(len(order)):
        path = target.file(order, k)
        if path.name not in there or not is_there(
            path, target.record(generator, complete, order, [k])
        ):
            absent.append(k)
    return absent


def is_there(path: Path, ours: Record) -> bool:
    """Whether a picture is there, which says the same of itself.

    Raises:
        OutputError: it says something else, or nothing.
    """
    if not path.is_file():
        return False
    try:
        theirs = read_record(path)
    except RequestError as error:
        raise OutputError(f"{error}; remove it, or choose another folder") from error
    if not same(ours, theirs):
        raise OutputError(
            f"{path} was made otherwise ({difference(ours, theirs)}): give the same settings, "
            "or choose another folder"
        )
    return True


def _check_prompts(order: Order, target: Target) -> None:
    """Refuse a folder with images of other prompts in the places of these.

    Raises:
        OutputError: there are some.
    """
    there = _images(target)
    for k, (row, seed) in enumerate(zip(order.conditions, order.seeds, strict=True)):
        name = there.get(("text", row, seed))
        if name is not None and name != target.file(order, k).name:
            raise OutputError(
                f"{target.path} has images of other texts ({name}): choose another folder, or "
                "remove them"
            )


def _check_set(
    generator: Generator, order: Order, complete: Mapping[str, Any], target: Target
) -> None:
    """Refuse to add to images that were made otherwise; say which are to be made again.

    A few of them are looked into, so that a folder of many takes no time.

    Raises:
        OutputError: the folder has images of other settings, weights or precision.
    """
    kind = "class" if order.text is None else "text"
    there = _images(target)
    if not there:
        return
    again = []
    for k, (condition, seed) in enumerate(zip(order.conditions, order.seeds, strict=True)):
        name = there.get((kind, condition, seed))
        if name is not None and target.file(order, k).name == name:
            again.append(name)
    ours = target.record(generator, complete, order, [0])
    for name in dict.fromkeys((*_few(again), *_few(sorted(there.values())))):
        try:
            theirs = read_record(target.path / name)
        except RequestError:  # not ours to judge
            continue
        if said := difference(ours, theirs, of_sets=True):
            raise OutputError(
                f"{target.path} has images that were made otherwise ({said}): choose another "
                "folder, or remove them"
            )
    if again:
        said = (
            f"1 image is in {target.path} already; it is made again (--resume keeps it)"
            if len(again) == 1
            else f"{len(again):,} images are in {target.path} already; they are made again "
            "(--resume keeps them)"
        )
        say_note(said)


def _few(names: Sequence[str]) -> list[str]:
    """The first, the last and some between."""
    last = len(names) - 1
    return [names[last * k // (_LOOKED_INTO - 1)] for k in range(_LOOKED_INTO)] if names else []


def _images(target: Target) -> dict[tuple[str, int, int], str]:
    """Names of the images in a folder, by kind, condition and seed."""
    return {each: name for name in _names(target) if (each := pictures.image_of(name))}


def _names(target: Target) -> set[str]:
    """What is in a folder."""
    return {each.name for each in target.path.iterdir()} if target.path.is_dir() else set()


def _parts(wanted: Sequence[int], most: int) -> list[list[int]]:
    return [list(wanted[first : first + most]) for first in range(0, len(wanted), most)]
