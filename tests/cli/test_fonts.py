"""Fonts: one that has all characters, or none; with fonts that are drawn here, and without any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import features

from fewstep.cli import fonts, produce
from fewstep.cli.order import Order

_KATAKANA, _HEBREW = "\u30c6\u30b9\u30c8", "\u05d1\u05d2"


def write_font(path: Path, characters: str, *, box: bool = True) -> Path:
    """A font with a triangle for every character, each of its own height."""
    builder: Any = pytest.importorskip("fontTools.fontBuilder", reason="draws the test's fonts")
    pens: Any = pytest.importorskip("fontTools.pens.ttGlyphPen", reason="draws the test's fonts")
    made = builder.FontBuilder(1000)
    names = [".notdef", *(f"g{ord(each)}" for each in characters)]
    made.setupGlyphOrder(names)
    made.setupCharacterMap({ord(each): f"g{ord(each)}" for each in characters})
    glyphs = {}
    for number, name in enumerate(names):
        pen = pens.TTGlyphPen(None)
        if name != ".notdef" or box:
            corners = [(0, 0), (500, 0), (0, 300 + 40 * number)]
            pen.moveTo(corners[0])
            for corner in corners[1:]:
                pen.lineTo(corner)
            pen.closePath()
        glyphs[name] = pen.glyph()
    made.setupGlyf(glyphs)
    made.setupHorizontalMetrics(dict.fromkeys(names, (600, 0)))
    made.setupHorizontalHeader(ascent=800, descent=-200)
    made.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    made.setupOS2()
    made.setupPost()
    made.save(path)
    return path


def _path(font: Any) -> str:
    return str(font.path)


@pytest.mark.parametrize("box", [True, False])
def test_the_font_that_has_all_characters_is_found(tmp_path: Path, box: bool) -> None:
    write_font(tmp_path / "a.ttf", _KATAKANA[:2], box=box)
    deep = tmp_path / "deep" / "er"
    deep.mkdir(parents=True)
    whole = write_font(deep / "b.ttf", f"{_KATAKANA} ", box=box)
    (tmp_path / "damaged.ttf").write_bytes(b"no font")
    assert _path(fonts.font_for(_KATAKANA, [tmp_path])) == str(whole)
    assert _path(fonts.font_for(_KATAKANA[0], [tmp_path])).endswith("a.ttf")
    assert fonts.font_for(f"{_KATAKANA}\u3042", [tmp_path]) is None


def test_without_fonts_there_is_pillows_own_and_nothing_else(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        assert fonts.font_for("Ankle boot 3", [folder]) is not None
        assert fonts.font_for(_KATAKANA, [folder]) is None
        assert fonts.font_for("T\u6064", [folder]) is None


def test_joiners_and_selectors_do_not_count(tmp_path: Path) -> None:
    write_font(tmp_path / "a.ttf", _KATAKANA)
    hidden = f"{_KATAKANA[0]}\u200d\ufe0f{_KATAKANA[1]}"
    assert fonts.font_for(hidden, [tmp_path]) is not None
    assert fonts.without_joiners(f"{hidden} a") == f"{_KATAKANA[:2]} a"
    assert fonts.font_for("\x07", [tmp_path]) is None
    assert fonts.font_for("\ud800", [tmp_path]) is None


def test_scripts_that_need_a_layout_need_raqm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_font(tmp_path / "hebrew.ttf", _HEBREW)
    monkeypatch.setattr(features, "check", lambda _: False)
    assert fonts.font_for(_HEBREW, [tmp_path]) is None
    assert fonts.font_for("robe", [tmp_path]) is not None
    monkeypatch.undo()
    if features.check("raqm"):
        assert _path(fonts.font_for(_HEBREW, [tmp_path])).endswith("hebrew.ttf")


def test_pictures_show_a_name_or_the_classs_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = Order((7, 7, 2, 2), (0, 1, 2, 3), (_KATAKANA, _KATAKANA, "robe", "robe"), 2)
    monkeypatch.setattr(fonts, "system_folders", lambda: (tmp_path / "none",))
    fonts._font.cache_clear()
    assert produce.shown_labels(order) == ["class 7", "robe"]
    write_font(tmp_path / "a.ttf", _KATAKANA)
    monkeypatch.setattr(fonts, "system_folders", lambda: (tmp_path,))
    fonts._font.cache_clear()
    assert produce.shown_labels(order) == [_KATAKANA, "robe"]
    fonts._font.cache_clear()


def test_folders_of_fonts_need_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    assert not any("~" in str(each) for each in fonts.system_folders())
    monkeypatch.setenv("HOME", "/home/somebody")
    assert Path("/home/somebody/.fonts") in fonts.system_folders()
