"""``fewstep compare``."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from fewstep.cli.common import (
    PRECISIONS,
    BackendOption,
    DeviceOption,
    JsonOption,
    ThreadsOption,
    command,
    progress_bar,
    say_next,
    say_note,
    say_warning,
    show,
)
from fewstep.cli.settings import combinations, options
from fewstep.cli.texts import NegativeOption, TextFileOption, TextOption, Texts
from fewstep.runtime.errors import FewstepError, RequestError

if TYPE_CHECKING:
    from fewstep.cli.comparison import Entry, Row
    from fewstep.cli.order import Order
    from fewstep.runtime import bench
    from fewstep.runtime.bundle import Bundle
    from fewstep.runtime.generator import Generator

_HTML = (".html", ".htm")
_SHOWN = 4  # classes, where none is named
_MOST = 64  # images of a row


def compare_command(
    context: typer.Context,
    bundles: Annotated[list[Path], typer.Argument(help="Bundle folders.", metavar="BUNDLE...")],
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", help="Class id or name, or several; a few of all by default."),
    ] = None,
    text: TextOption = None,
    text_file: TextFileOption = None,
    negative: NegativeOption = None,
    count: Annotated[int, typer.Option(min=1, help="Images per class, a seed for each.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the first image; others count up.")] = 0,
    out_path: Annotated[
        Path,
        typer.Option(
            "--out", help="Picture (.png, .jpg, .jpeg, .webp) or page (.html, .htm) to write."
        ),
    ] = Path("comparison.png"),
    columns: Annotated[
        int | None, typer.Option(min=1, help="Images side by side in a picture.")
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            help="fp32, or what was made for the bundle (fp16, bf16, int8, fp8); repeat for more.",
            autocompletion=lambda: ["auto", *PRECISIONS],
        ),
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Timed runs of each, after one untimed.")] = 5,
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
    as_json: JsonOption = False,
) -> None:
    """The same images by different settings, precisions or bundles, on one sheet with times.

    Every bundle in every precision is run with every combination of settings. Seeds and classes are
    the same in all rows, so what differs comes from the settings. Times are of one image at a time,
    in turns.
    """
    from fewstep.cli import comparison, pictures
    from fewstep.runtime.bundle import Bundle
    from fewstep.runtime.files import require_writable
    from fewstep.runtime.settings import settings_of

    pictures.check_suffix(out_path, (*pictures.SUFFIXES, *_HTML), folder=False)
    if columns is not None and out_path.suffix.lower() in _HTML:
        raise RequestError("--columns is for pictures: a page has every row in one line")
    require_writable(out_path)
    wanted = combinations(context)
    opened = [Bundle.read(path) for path in bundles]
    texts = Texts(text, text_file, negative)
    orders = [_order(each, classes, texts, count, seed) for each in opened]
    for each in opened:
        for settings in wanted:
            settings_of(each.manifest.model.defaults, settings)  # wrong ones are known at once
    if any(each.conditions != orders[0].conditions for each in orders):
        raise RequestError("--class means other classes in one bundle than in another: give ids")
    order, left_out = orders[0], dict[str, str]()
    with contextlib.ExitStack() as stack:
        how = {"backend": backend, "device": device, "threads": threads}
        made = _generators(stack, opened, precision or ["auto"], how, left_out)
        found, others = comparison.entries(made, wanted, order)
        left_out |= others
        with progress_bar(f"timing {len(found)} rows") as progress:
            rows, report = _rows(found, order, runs, progress)
    title = _title(rows, order, report)
    if out_path.suffix.lower() in _HTML:
        heads = [
            f"{label}, seed {each}" for label, each in zip(order.labels, order.seeds, strict=True)
        ]
        _write(out_path, comparison.page(rows, title, heads))
    else:
        pictures.save(comparison.picture(rows, title, columns), out_path)
    for name, reason in left_out.items():
        say_note(f"left out: {name} ({reason})")
    for warning in report.warnings:
        say_warning(warning)
    summary = {
        "sheet": str(out_path),
        "title": title,
        "machine": report.machine,
        "rows": [row.as_dict() for row in rows],
        "left_out": left_out,
        "warnings": list(report.warnings),
    }
    show(summary, [_table(rows), escape(_verdict(rows, out_path))], as_json)
    if not as_json:
        best = _fastest(rows)
        opener = best.entry.generator
        built = opener.bundle.manifest.engines
        usual = opener.precision if not precision else "" if built else "fp32"  # what auto takes
        where = _given(
            precision=(opener.precision, usual), backend=(backend, "auto"), device=(device, "auto")
        )
        say_next(_again(best, order, classes, texts, count, where))


def _order(
    bundle: Bundle, classes: Sequence[str] | None, given: Texts, count: int, seed: int
) -> Order:
    """The images of every row; a few classes if none are named, or texts that nobody wrote.

    Raises:
        RequestError: as :func:`fewstep.cli.order.ordered`, or more images than fit on a sheet.
    """
    from fewstep.cli.order import order_of_texts, ordered
    from fewstep.runtime.condition import ClassCondition

    info = bundle.manifest.model.condition
    texts = given.of(info)
    if not classes and texts is None:
        examples = info.examples(_SHOWN)
        if not isinstance(info, ClassCondition):
            return order_of_texts(examples, count, seed, check=_check_images)
        classes = [str(each) for each in dict.fromkeys(examples.tolist())]
    negative = given.negative
    return ordered(info, classes, texts, count, seed, negative=negative, check=_check_images)


def _check_images(count: int) -> None:
    if count > _MOST:
        raise RequestError(f"a row of {count:,} images is too long: at most {_MOST}")


def _generators(
    stack: contextlib.ExitStack,
    bundles: Sequence[Bundle],
    precisions: Sequence[str],
    how: Mapping[str, Any],
    left_out: dict[str, str],
) -> dict[str, Generator]:
    """An open generator for every bundle and precision that is there, by what tells them apart.

    Raises:
        FewstepError: that of the first, if none can be opened.
    """
    from fewstep.runtime.generator import Generator

    found, errors = dict[str, Generator](), list[FewstepError]()
    for bundle, place in zip(bundles, _places(bundles), strict=True):
        for precision in dict.fromkeys(precisions):
            parts = [place] * (len(bundles) > 1) + [precision] * (len(precisions) > 1)
            try:
                opened = Generator.open(bundle, precision=precision, **how)
            except FewstepError as error:
                left_out[", ".join(parts) or place] = str(error)
                errors.append(error)
            else:
                found[", ".join(parts)] = stack.enter_context(opened)
    if not found:
        raise errors[0]
    return found


def _places(bundles: Sequence[Bundle]) -> list[str]:
    """Names of folders, or their paths where names are the same."""
    names = [bundle.path.resolve().name for bundle in bundles]
    if len(set(names)) == len(names):
        return names
    paths = [str(bundle.path) for bundle in bundles]
    if len(set(paths)) < len(paths):
        raise RequestError("a bundle is given twice: repeat settings or --precision instead")
    return paths


def _rows(
    entries: Sequence[Entry], order: Order, runs: int, progress: Any
) -> tuple[list[Row], bench.Report]:
    """The images of every entry, and their times in turns."""
    from fewstep.cli.comparison import Row
    from fewstep.runtime import bench
    from fewstep.runtime.load import OthersLoad

    contenders = {
        each.name: bench.contender(each.generator, batch=1, settings=each.given) for each in entries
    }
    watch = OthersLoad()
    measured = bench.measure(contenders, runs=runs, progress=progress)
    report = bench.report(entries[0].generator, measured, watch.share())
    everything = order.take(range(len(order)))
    rows = list[Row]()
    for entry, times in zip(entries, measured, strict=True):
        progress(f"images of {entry.name}", len(rows) / len(entries))
        made = entry.generator.generate(**everything, **entry.given)
        for note in made.notes:
            say_note(f"{entry.name}: {note}" if entry.name else note)
        rows.append(Row(entry, made.images, times))
    return rows, report


def _title(rows: Sequence[Row], order: Order, report: bench.Report) -> str:
    """What all rows share, and where they were made."""
    from fewstep.cli.comparison import shared
    from fewstep.cli.pictures import drawn

    first, last = order.seeds[0], order.seeds[-1]
    seeds = f"seed {first}" if first == last else f"seeds {first} … {last}"
    labels = list(dict.fromkeys(order.labels))
    shown = ", ".join(map(drawn, labels[:6])) + (
        f" and {len(labels) - 6} more" if len(labels) > 6 else ""
    )
    devices = dict.fromkeys(row.entry.generator.device.name for row in rows)
    where = ", ".join(dict.fromkeys([*devices, report.machine.get("processor", "")]))
    runs = rows[0].measured.runs
    timed = f"median of {runs} runs" if runs > 1 else "time of 1 run"
    parts = (shared(rows), shown, seeds, f"{timed} of one image on {where.strip(', ')}")
    return "; ".join(filter(None, parts))


def _table(rows: Sequence[Row]) -> Table:
    from fewstep.cli.comparison import shared

    fastest, title = _fastest(rows).measured.total_ms.p50, escape(shared(rows)) or None
    table = Table("", "ms an image", "images/s", "× fastest", title=title, title_justify="left")
    for row in rows:
        time = row.measured.total_ms.p50
        numbers = (f"{time:.1f}", f"{row.measured.images_per_s:.1f}", f"{time / fastest:.2f}")
        table.add_row(escape(row.entry.name), *numbers)
    return table


def _fastest(rows: Sequence[Row]) -> Row:
    return min(rows, key=lambda row: row.measured.total_ms.p50)


def _verdict(rows: Sequence[Row], path: Path) -> str:
    best = _fastest(rows)
    slowest = max(row.measured.total_ms.p50 for row in rows)
    time = best.measured.total_ms.p50
    times = f", {slowest / time:.1f} × as fast as the slowest" if len(rows) > 1 else ""
    return f"fastest: {best.entry.name} with {time:.1f} ms an image{times} → {path}"


def _again(
    row: Row,
    order: Order,
    classes: Sequence[str] | None,
    texts: Texts,
    count: int,
    how: Sequence[object],
) -> str:
    """The command that makes the images of a row alone, or times it where nobody has the texts."""
    generator = row.entry.generator
    how = [*options(row.entry.given), *how]
    if order.text is not None and not texts.words:
        return command("bench", generator.bundle.path, *how)
    asked: list[object] = texts.words
    for each in classes or (dict.fromkeys(order.conditions) if order.text is None else ()):
        asked += ["--class", each]
    how += _given(count=(count, 1), seed=(order.seeds[0], 0))
    return command("generate", generator.bundle.path, *asked, *how)


def _given(**options: tuple[object, object]) -> list[object]:
    """Options with a value and a default each, as words, without those that have their default."""
    words: list[object] = []
    for name, (value, default) in options.items():
        if value != default:
            words += [f"--{name}", value]
    return words


def _write(path: Path, content: str) -> None:
    from fewstep.runtime.files import replacing

    with replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")
