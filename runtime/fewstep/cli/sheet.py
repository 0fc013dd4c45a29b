"""Sheets of images with labels and a title: where everything goes, known before there are images.

Where labels have several images each, a label stands before its rows; otherwise it stands below its
image. Long rows wrap, as do labels and titles, and a page is as wide as its title needs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from fewstep.cli.fonts import SIZE
from fewstep.cli.lettering import Text, fitted

Pixels = npt.NDArray[np.uint8]

MARGIN = 6
_PAPER = (250, 250, 248)
_TITLE = 480  # pixels of a line, where the images are not wider
_LABEL = 220
_CAPTION = 120
_MOST_COLUMNS = 10


@dataclass(frozen=True)
class Sheet:
    """A page for images of ``size`` (height, width) in pixels.

    ``labels``: one for every ``each`` images. ``titles``: all that it may be given; it has room for
    any. ``columns``: images side by side. ``scale``: of the images. ``below``: labels stand below
    the images; only where ``each`` is 1.
    """

    labels: tuple[str, ...]
    each: int
    size: tuple[int, int]
    titles: tuple[str, ...]
    columns: int
    scale: int = 1
    below: bool = False

    @classmethod
    def of(
        cls,
        labels: Sequence[str],
        each: int,
        size: tuple[int, int],
        titles: Sequence[str],
        *,
        columns: int | None = None,
        scale: int = 1,
    ) -> Sheet:
        """A sheet with the columns that suit it, unless they are given."""
        below = each == 1 and len(labels) > 1
        few = min(each, _MOST_COLUMNS)
        wanted = columns or (math.ceil(math.sqrt(len(labels))) if below else few)
        most = len(labels) if below else each
        return cls(tuple(labels), each, size, tuple(titles), min(wanted, most), scale, below)

    @functools.cached_property
    def page(self) -> tuple[int, int]:
        """Width and height in pixels."""
        content = self._left + self.columns * self._column
        title = max((each.width for each in self._titles.values()), default=0)
        rows = list(self._rows())
        bottom = rows[-1][1] + rows[-1][2] if rows else self._top
        return max(content, title + 2 * MARGIN), bottom

    def draw(self, images: Pixels, title: str) -> Image.Image:
        """The page with ``images [N, H, W, 3]`` and one of its titles."""
        page = Image.new("RGB", self.page, _PAPER)
        draw = ImageDraw.Draw(page)
        self._titles[title].draw(draw, MARGIN, MARGIN)
        height, width = (each * self.scale for each in self.size)
        for first, y, _ in self._rows():
            if not self.below and first % self.each == 0:
                label = self._labels[first // self.each]
                tall = max(height - label.height, 0)
                label.draw(draw, MARGIN, y + tall // 2)
            for place in range(self._in_row(first)):
                x = self._left + place * self._column
                tile = Image.fromarray(images[first + place])
                if self.scale != 1:
                    tile = tile.resize((width, height), Image.Resampling.NEAREST)
                page.paste(tile, (x, y))
                if self.below:
                    self._labels[first + place].draw(draw, x, y + height + MARGIN // 2)
        return page

    def _rows(self) -> Iterator[tuple[int, int, int]]:
        """The first image, y and height of every row."""
        y, tall = self._top, self.size[0] * self.scale + MARGIN
        count = len(self.labels) * self.each
        first = 0
        while first < count:
            height = tall
            if self.below:
                captions = self._labels[first : first + self._in_row(first)]
                height += MARGIN + max((each.height for each in captions), default=0)
            elif first % self.each + self.columns >= self.each:  # the last row of a label
                rows = -(-self.each // self.columns)
                height = max(
                    tall, self._labels[first // self.each].height + MARGIN - (rows - 1) * tall
                )
            yield first, y, height
            y += height
            first += self._in_row(first)

    def _in_row(self, first: int) -> int:
        """Images of the row that begins with image ``first``."""
        end = len(self.labels) if self.below else (first // self.each + 1) * self.each
        return min(self.columns, end - first)

    @functools.cached_property
    def _labels(self) -> tuple[Text, ...]:
        most = max(self.size[1] * self.scale, _CAPTION) if self.below else _LABEL
        return tuple(fitted(label, most) for label in self.labels)

    @functools.cached_property
    def _titles(self) -> dict[str, Text]:
        content = self._left + self.columns * self._column - 2 * MARGIN
        return {title: fitted(title, max(content, _TITLE)) for title in self.titles}

    @functools.cached_property
    def _left(self) -> int:
        if self.below:
            return MARGIN
        return 2 * MARGIN + max((label.width for label in self._labels), default=0)

    @functools.cached_property
    def _column(self) -> int:
        wide = self.size[1] * self.scale
        if self.below:
            wide = max(wide, *(label.width for label in self._labels))
        return wide + MARGIN

    @functools.cached_property
    def _top(self) -> int:
        return 3 * MARGIN + max([SIZE, *(title.height for title in self._titles.values())])
