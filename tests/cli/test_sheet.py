"""Sheets: every image where it belongs, nothing cut off, one size for all titles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageDraw

from fewstep.cli.lettering import fitted
from fewstep.cli.pictures import grid
from fewstep.cli.sheet import MARGIN, Sheet

_TITLE_HEIGHT = 15 + 3 * MARGIN
_LONG = "8 images, schedule cosine, guidance 0:2, sampling temperature 0.8, seeds 100 … 107"


def _images(count: int, height: int = 8, width: int = 10) -> Any:
    return np.random.default_rng(0).integers(0, 200, (count, height, width, 3), np.uint8)


def _count(page: Image.Image, tile: Any) -> int:
    """How often a tile is on a page."""
    pixels, (height, width) = np.asarray(page), tile.shape[:2]
    corners = np.argwhere((pixels == tile[0, 0]).all(-1))
    return sum(np.array_equal(pixels[y : y + height, x : x + width], tile) for y, x in corners)


def test_size_follows_from_its_parts() -> None:
    page = grid(np.zeros((2, 3, 8, 10, 3), np.uint8), ["", ""], "", scale=2)
    assert page.size == (2 * 6 + 3 * (20 + 6), _TITLE_HEIGHT + 2 * (16 + 6))


@pytest.mark.parametrize(
    ("labels", "each", "columns"),
    [(1, 1, None), (1, 25, None), (3, 7, 4), (3, 4, 4), (5, 1, None), (7, 1, 3), (7, 1, 50)],
)
def test_every_image_is_on_the_page_once(labels: int, each: int, columns: int | None) -> None:
    images = _images(labels * each)
    names = [f"name {k} that is long" for k in range(labels)]
    sheet = Sheet.of(names, each, (8, 10), [_LONG], columns=columns, scale=2)
    page = sheet.draw(images, _LONG)
    assert page.size == sheet.page
    assert [_count(page, each.repeat(2, 0).repeat(2, 1)) for each in images] == [1] * len(images)


def test_long_rows_wrap() -> None:
    wide = Sheet.of(["a"], 25, (8, 10), [""]).page
    narrow = Sheet.of(["a"], 25, (8, 10), [""], columns=5).page
    assert narrow[0] < wide[0] and narrow[1] > wide[1]


@pytest.mark.parametrize("below", [False, True])
@pytest.mark.parametrize("name", ["shirt", "a name of many words " * 9, "w" * 255])
def test_no_text_is_cut(name: str, below: bool) -> None:
    """The same drawing on a page that goes on to the right and below leaves no more ink there."""
    labels, each = ([name, name], 1) if below else ([name], 3)
    sheet = Sheet.of(labels, each, (8, 10), [name, _LONG])
    images = np.full((len(labels) * each, 8, 10, 3), 250, np.uint8)
    drawn = [sheet.draw(images, title) for title in (name, _LONG)]
    assert len({page.size for page in drawn}) == 1
    width, height = sheet.page
    roomy = Sheet(*(getattr(sheet, f) for f in sheet.__dataclass_fields__))
    roomy.__dict__["page"] = (width + 400, height + 400)
    for page, title in zip(drawn, (name, _LONG), strict=True):
        more = roomy.draw(images, title)
        blank = more.crop((width, height, width + 1, height + 1)).resize(more.size)
        assert ImageChops.difference(more, blank).crop((width, 0, *more.size)).getbbox() is None
        assert ImageChops.difference(more, blank).crop((0, height, *more.size)).getbbox() is None
        np.testing.assert_array_equal(
            np.asarray(more.crop((0, 0, width, height))), np.asarray(page)
        )


def test_text_wraps_within_its_width_and_keeps_every_character() -> None:
    for text in (_LONG, "x" * 300, "two words", ""):
        found = fitted(text, 120)
        assert found.width <= 120
        assert "".join(found.lines).replace(" ", "") == text.replace(" ", "")
        page = Image.new("RGB", (400, found.height + 40), "white")
        found.draw(ImageDraw.Draw(page), 0, 0)
        box = ImageChops.invert(page).getbbox()
        assert box is None or (box[2] <= 120 and box[3] <= found.height)


def test_characters_of_no_font_are_question_marks() -> None:
    assert fitted("a \U0010fffd b", 100).lines == ("a ? b",)
