"""What ``fewstep compare`` shows: rows of images with their times, as a picture or as HTML."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from fewstep.cli import pictures
from fewstep.cli.order import Order
from fewstep.cli.pictures import scale_for
from fewstep.cli.sheet import Pixels, Sheet
from fewstep.runtime import bench
from fewstep.runtime.errors import OutputError, RequestError
from fewstep.runtime.generator import Generator

_STYLE = (
    "body{font:15px sans-serif;margin:1em;color:#1e1e22;background:#fafaf8}"
    "table{border-collapse:collapse}th,td{padding:4px 8px;text-align:left}"
    "td.number{text-align:right}img{image-rendering:pixelated;display:block}"
)

_OWN = "the bundle's own settings"
_WIDE = 1_000  # pixels of images side by side


@dataclass(frozen=True)
class Entry:
    """One generator with one combination of settings.

    ``name`` tells it from the others. ``given``: the settings as the command line has them.
    """

    name: str
    generator: Generator
    given: Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """An entry with its images ``[N, H, W, 3]`` and its times."""

    entry: Entry
    images: Pixels
    measured: bench.Measurement

    @property
    def label(self) -> str:
        """Its name, as much of it as is drawn, and the median time of one image."""
        name = pictures.drawn(self.entry.name, 1_000)
        return f"{name}: {self.measured.total_ms.p50:.1f} ms"

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        generator = self.entry.generator
        return {
            "name": self.entry.name,
            "bundle": str(generator.bundle.path),
            "backend": generator.backend,
            "precision": generator.precision,
            "device": generator.device.name,
            "settings": self.measured.settings,
            "median_ms": self.measured.total_ms.p50,
            "images_per_s": self.measured.images_per_s,
            "runs": self.measured.runs,
        }


def entries(
    generators: Mapping[str, Generator], wanted: Sequence[Mapping[str, Any]], order: Order
) -> tuple[list[Entry], dict[str, str]]:
    """Every generator with every combination that it can serve; and why the others are left out.

    Args:
        generators: by what tells them apart, which is empty for a single one.
        wanted: settings as text.
        order: of images.

    Raises:
        RequestError: none can be served.
    """
    names = _names(wanted)
    found, left_out = list[Entry](), dict[str, str]()
    for kind, generator in generators.items():
        for given, said in zip(wanted, names, strict=True):
            name = ", ".join(filter(None, (kind, said))) or _said(given, _short) or _OWN
            try:
                generator.request(**order.take([0]), **given)
            except RequestError as error:
                left_out[name] = str(error)
            else:
                found.append(Entry(name, generator, given))
    if not found:
        raise RequestError(f"nothing is left to compare: {next(iter(left_out.values()))}")
    return found, left_out


def _names(wanted: Sequence[Mapping[str, Any]]) -> list[str]:
    """What tells combinations apart: short, but in full where several would be called the same."""
    varied = {name for each in wanted for name in each if len({w.get(name) for w in wanted}) > 1}
    shown = [{name: each[name] for name in each if name in varied} for each in wanted]
    short = [_said(each, _short) for each in shown]
    return [
        name if short.count(name) == 1 else _said(each, str)
        for name, each in zip(short, shown, strict=True)
    ]


def _said(settings: Mapping[str, Any], text: Callable[[Any], str]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {text(each)}" for name, each in settings.items())


def _short(value: Any) -> str:
    text = str(value).rpartition("/")[2]
    return text if len(text) <= 40 else f"{text[:39]}…"


def shared(rows: Sequence[Row]) -> str:
    """Settings that were given for all rows alike, unless their names say them."""
    first, others = rows[0].entry.given, [row.entry.given for row in rows[1:]]
    alike = {name: each for name, each in first.items() if all(o[name] == each for o in others)}
    said = _said(alike, _short)
    return "" if all(said in row.entry.name for row in rows) else said


def picture(rows: Sequence[Row], title: str, columns: int | None = None) -> Image.Image:
    """All rows on one page, a label before each; long ones wrap.

    Args:
        rows: in their order.
        title: how they came about.
        columns: images side by side; as many as a page has room for if ``None``.

    Raises:
        OutputError: images of several sizes.
    """
    sizes = {row.images.shape[1:] for row in rows}
    if len(sizes) > 1:
        shown = ", ".join(f"{height}×{width}" for height, width, _ in sorted(sizes))
        raise OutputError(
            f"images are {shown}: a picture takes one size, --out NAME.html takes several"
        )
    height, width, _ = next(iter(sizes))
    images = np.concatenate([row.images for row in rows])
    labels, each, scale = [row.label for row in rows], len(rows[0].images), scale_for(height)
    columns = min(each, columns or max(1, _WIDE // (width * scale)))
    sheet = Sheet(tuple(labels), each, (height, width), (title,), columns, scale)
    return sheet.draw(images, title)


def page(rows: Sequence[Row], title: str, columns: Sequence[str]) -> str:
    """One HTML file with the pictures in it.

    Args:
        rows: in their order.
        title: how they came about.
        columns: what to call the images of every row.
    """
    fastest = min(row.measured.total_ms.p50 for row in rows)
    heads = ("", "ms", "images/s", "× fastest", *columns)
    lines = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>fewstep compare</title>'
        f"<style>{_STYLE}</style></head><body>",
        f"<p>{html.escape(title)}</p><table>",
        f"<tr>{''.join(f'<th>{html.escape(each)}</th>' for each in heads)}</tr>",
        *(f"<tr>{''.join(_cells(row, fastest))}</tr>" for row in rows),
        "</table></body></html>",
    ]
    return "\n".join(lines) + "\n"


def _cells(row: Row, fastest: float) -> Iterator[str]:
    yield f"<td>{html.escape(row.entry.name)}</td>"
    time = row.measured.total_ms.p50
    for value in (f"{time:.1f}", f"{row.measured.images_per_s:.1f}", f"{time / fastest:.2f}"):
        yield f'<td class="number">{value}</td>'
    scale = scale_for(row.images.shape[1])
    for pixels in row.images:
        height, width = (scale * each for each in pixels.shape[:2])
        yield (
            f'<td><img width="{width}" height="{height}" alt="" '
            f'src="data:image/png;base64,{_png(pixels)}"></td>'
        )


def _png(pixels: Pixels) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
