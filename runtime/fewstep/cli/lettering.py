"""Text in pictures: measured, wrapped, never cut."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import ImageDraw, ImageFont

from fewstep.cli.fonts import SIZE, font_for, without_joiners

INK = (30, 30, 34)

AnyFont = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Text:
    """Lines of text with their font; ``width`` and ``height`` in pixels."""

    lines: tuple[str, ...]
    font: AnyFont
    pitch: int

    @property
    def width(self) -> int:
        return max((_length(self.font, line) for line in self.lines), default=0)

    @property
    def height(self) -> int:
        return max(SIZE, self.pitch * len(self.lines))

    def draw(self, page: ImageDraw.ImageDraw, x: int, y: int) -> None:
        """Draw it with its upper left corner at a point."""
        for number, line in enumerate(self.lines):
            page.text((x, y + number * self.pitch), line, INK, self.font)


def fitted(text: str, most: int) -> Text:
    """A text in lines of at most ``most`` pixels.

    Lines break between words, and within a word only where it is wider than a line.

    Args:
        text: what to write; characters that no font has become question marks.
        most: pixels.
    """
    font: AnyFont | None = font_for(text)
    if font is None:
        text = "".join(each if font_for(each) else "?" for each in text)
        font = font_for(text) or font_for("?") or ImageFont.load_default()
    if getattr(font, "layout_engine", None) != ImageFont.Layout.RAQM:
        text = without_joiners(text)
    lines = tuple(_wrapped(text, font, most))
    return Text(lines, font, _pitch(font))


def _wrapped(text: str, font: AnyFont, most: int) -> Iterator[str]:
    line = ""
    for word in text.split():
        joined = f"{line} {word}" if line else word
        if _length(font, joined) <= most:
            line = joined
            continue
        if line:
            yield line
        while _length(font, word) > most and len(word) > 1:
            parts = range(1, len(word))
            fits = bisect.bisect_right(parts, most, key=lambda n: _length(font, word[:n]))
            yield word[: max(1, fits)]
            word = word[max(1, fits) :]
        line = word
    if line:
        yield line


def _length(font: AnyFont, text: str) -> int:
    """Pixels that a line takes, its ink included."""
    left, _, right, _ = font.getbbox(text)
    return int(max(font.getlength(text), right) - min(0, left)) + 1


def _pitch(font: AnyFont) -> int:
    if isinstance(font, ImageFont.FreeTypeFont):
        return sum(font.getmetrics())
    return SIZE
