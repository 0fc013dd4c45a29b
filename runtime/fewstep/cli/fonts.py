"""Fonts for the labels of pictures: one that has every character, or none.

Pillow's own font has Latin letters. What it lacks is looked for in the system's fonts. A character
that a font lacks is drawn as the font's box for what is missing, and that is how it is told.
Scripts that are written from right to left, or whose letters change with their neighbours, also
need Pillow's raqm layout. Without it, or without a font, the caller shows something else.
"""

from __future__ import annotations

import functools
import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import ImageFont, features
from PIL.ImageFont import FreeTypeFont

SIZE = 15
_MOST_TRIED = 400
_SUFFIXES = (".ttf", ".otf", ".ttc")
_NO_CHARACTER = "\U0010fffe"
_PREFERRED = ("notosanscjk", "notosans", "wqy", "droidsansfallback", "unifont", "dejavusans")
_LESS = ("bold", "italic", "oblique", "mono", "condensed", "thin", "light", "black", "emoji")
_SHAPED = (
    (0x0590, 0x08FF),  # Hebrew, Arabic, Syriac and their neighbours, from right to left
    (0x0900, 0x109F),  # scripts of India, Thai, Lao, Tibetan, Burmese
    (0x1780, 0x18AF),  # Khmer, Mongolian
    (0xFB1D, 0xFDFF),  # presentation forms of Hebrew and Arabic
    (0xFE70, 0xFEFF),
    (0x10800, 0x10FFF),  # old scripts from right to left
    (0x1E800, 0x1EFFF),
)


def font_for(text: str, folders: Sequence[Path] | None = None) -> FreeTypeFont | None:
    """A font that draws every character of a text, or ``None``.

    Args:
        text: to be drawn.
        folders: where fonts are; the system's folders if ``None``.
    """
    characters = frozenset(each for each in text if _is_drawn(each))
    shaped = any(first <= ord(each) <= last for each in characters for first, last in _SHAPED)
    if shaped and not features.check("raqm"):
        return None
    return _font(characters, None if folders is None else tuple(folders), shaped)


def system_folders() -> tuple[Path, ...]:
    """Where systems keep fonts; those that are not there do no harm."""
    found = [
        "/usr/share/fonts",
        "/usr/local/share/fonts",
        "/Library/Fonts",
        "/System/Library/Fonts",
    ]
    found += [f"{each}/fonts" for each in os.environ.get("XDG_DATA_DIRS", "").split(":") if each]
    if home := os.environ.get("HOME"):
        data = os.environ.get("XDG_DATA_HOME") or f"{home}/.local/share"
        found += [f"{home}/.fonts", f"{data}/fonts", f"{home}/Library/Fonts"]
    if windows := os.environ.get("WINDIR"):
        found.append(f"{windows}/Fonts")
    return tuple(Path(each) for each in dict.fromkeys(found))


@functools.lru_cache(maxsize=4_096)
def _font(
    characters: frozenset[str], folders: tuple[Path, ...] | None, shaped: bool
) -> FreeTypeFont | None:
    layout = ImageFont.Layout.RAQM if shaped else ImageFont.Layout.BASIC
    own = _own_font()
    if own is not None and not shaped and _has(own, characters):
        return own
    for path in _files(system_folders() if folders is None else folders):
        font = _opened(path, ImageFont.Layout.BASIC)
        if font is not None and _has(font, characters):
            return _opened(path, layout)
    return None


@functools.cache
def _own_font() -> FreeTypeFont | None:
    """Pillow's own; ``None`` where Pillow was built without FreeType."""
    font = ImageFont.load_default(SIZE)
    return font if isinstance(font, FreeTypeFont) else None


@functools.lru_cache(maxsize=_MOST_TRIED)
def _opened(path: Path, layout: ImageFont.Layout) -> FreeTypeFont | None:
    try:
        return ImageFont.truetype(str(path), SIZE, layout_engine=layout)
    except (OSError, ValueError):  # no font, or one of bitmaps in other sizes
        return None


@functools.lru_cache(maxsize=8)
def _files(folders: tuple[Path, ...]) -> tuple[Path, ...]:
    """Font files, the likeliest to have much and to look plain first."""
    found = [path for folder in folders for path in _walk(folder)]
    return tuple(sorted(found, key=_rank)[:_MOST_TRIED])


def _walk(folder: Path) -> Iterator[Path]:
    for root, _, names in os.walk(folder):  # what cannot be read is left out
        for name in sorted(names):
            if name.lower().endswith(_SUFFIXES):
                yield Path(root) / name


def _rank(path: Path) -> tuple[int, bool, int, str]:
    name = path.stem.lower().replace("-", "").replace("_", "")
    order = next((i for i, each in enumerate(_PREFERRED) if each in name), len(_PREFERRED))
    return order, any(each in name for each in _LESS), len(name), str(path)


def _has(font: FreeTypeFont, characters: frozenset[str]) -> bool:
    """Whether a font draws all these characters as something else than what it lacks."""
    absent = _drawn(font, _NO_CHARACTER)
    return all(_drawn(font, each) not in (absent, _NOTHING) for each in characters)


_NOTHING = ((0, 0), b"")


def _drawn(font: FreeTypeFont, character: str) -> tuple[tuple[int, int], bytes]:
    """Size and pixels of a character."""
    try:
        mask = font.getmask(character, mode="L")
    except (OSError, ValueError):  # a damaged glyph, or too large a one
        return _NOTHING
    pixels = bytes(mask)
    return (mask.size, pixels) if any(pixels) else _NOTHING


def _is_drawn(character: str) -> bool:
    """Whether it leaves ink: no space, joiner, mark of direction or variation selector."""
    category, selector = unicodedata.category(character), 0xFE00 <= ord(character) <= 0xFE0F
    return not (category == "Cf" or category[0] == "Z" or character.isspace() or selector)


def without_joiners(text: str) -> str:
    """A text without what only layout by raqm understands; other layouts draw it as a box."""
    return "".join(each for each in text if each.isspace() or _is_drawn(each))
