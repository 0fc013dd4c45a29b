"""Generated images as files: their names, and what they say of themselves."""

from __future__ import annotations

import contextlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from fewstep.cli.order import Order
from fewstep.cli.record import Record, save_options
from fewstep.cli.sheet import MARGIN, Pixels, Sheet
from fewstep.runtime.class_names import normal
from fewstep.runtime.errors import OutputError
from fewstep.runtime.files import replacing

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_SIDE = 96
_MOST_SIDE = {".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383, ".gif": 65_535}
_MOST_PIXELS = 89_478_485  # above, Pillow takes a picture for an attack when it is opened
_NAME_BYTES = 80
_DRAWN = 300


def check_suffix(path: Path, suffixes: Sequence[str] = SUFFIXES, *, folder: bool = True) -> None:
    """Refuse names of files of another kind, before any work.

    Args:
        path: the name.
        suffixes: of the files that may be.
        folder: whether a folder may be, too.

    Raises:
        OutputError: a suffix of another kind, or a folder that may not be.
    """
    known = path.suffix.lower() in suffixes
    if (is_folder(path) and not folder) or not (known or is_folder(path)):
        kinds = "a folder or a file" if folder else "a file"
        raise OutputError(f"{path}: expected {kinds} ending in {', '.join(suffixes)}")


def is_folder(path: Path) -> bool:
    """Whether a place is for a file for each image."""
    return not path.suffix or _is_dir(path)


def _is_dir(path: Path) -> bool:
    with contextlib.suppress(OSError):  # too long a name, say: whoever writes there says so
        return path.is_dir()
    return False


def check_count(count: int, size: tuple[int, int], scale: int, path: Path) -> None:
    """Refuse more images than any sheet takes, before they are listed; see :func:`check_page`.

    Args:
        count: of images.
        size: of an image, height and width.
        scale: of its pixels.
        path: of the sheet.

    Raises:
        OutputError: too many.
    """
    least = (size[0] * scale + MARGIN) * (size[1] * scale + MARGIN)
    if count * least > _MOST_PIXELS:
        raise OutputError(
            f"{path}: {count:,} images are too many for one picture; name a folder as --out for a "
            "file for each, or pass fewer images"
        )


def check_page(sheet: Sheet, path: Path) -> None:
    """Refuse a sheet that its file's format, or those who open it, cannot take.

    Raises:
        OutputError: it is too large.
    """
    width, height = sheet.page
    if _too_large(width, height, path):
        count = len(sheet.labels) * sheet.each
        raise OutputError(
            f"{path}: {count:,} images make a picture of {width:,} × {height:,} pixels, too large; "
            "name a folder as --out for a file for each, or pass fewer images"
        )


def check_image(size: tuple[int, int], scale: int, path: Path) -> None:
    """Refuse an image of ``size`` (height, width) that its file's format cannot take.

    Raises:
        OutputError: it is too large.
    """
    height, width = size[0] * scale, size[1] * scale
    if _too_large(width, height, path):
        raise OutputError(
            f"{path}: an image of {width:,} × {height:,} pixels is too large: use a smaller --scale"
        )


def _too_large(width: int, height: int, path: Path) -> bool:
    most = _MOST_SIDE.get(path.suffix.lower(), 2**31 - 1)
    return width * height > _MOST_PIXELS or max(width, height) > most


def file_name(order: Order, k: int, digits: int) -> str:
    """The file of an image: its condition's number, its name where it has one, its seed."""
    condition = order.conditions[k]
    name = plain(order.labels[k])
    own = name not in ("", f"class-{condition}", f"text-{condition}")
    kind = "text" if order.text is not None else "class"
    middle = f"-{name}" if own else ""
    return f"{kind}-{condition:0{digits}}{middle}-seed-{order.seeds[k]}.png"


def image_of(name: str) -> tuple[str, int, int] | None:
    """The kind, condition and seed of a file that :func:`file_name` names; ``None`` of others."""
    found = re.fullmatch(r"(class|text)-([0-9]{1,20})(?:-.*)?-seed-([0-9]{1,20})\.png", name)
    return (found[1], int(found[2]), int(found[3])) if found else None


def plain(label: str) -> str:
    """A label as part of a file's name, in any file system: letters, marks, numbers and hyphens."""
    kept = "".join(
        each if unicodedata.category(each)[0] in "LMN" else " " for each in normal(label)
    )
    words = "-".join(kept.split())
    return words.encode()[:_NAME_BYTES].decode(errors="ignore").strip("-")


def drawn(text: str, most: int = _DRAWN) -> str:
    """What is drawn of a text: as much as somebody reads beside a picture."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def grid(images: Pixels, labels: Sequence[str], title: str, *, scale: int = 1) -> Image.Image:
    """Arrange ``images [rows, columns, H, W, 3]`` with a label before each row and a title."""
    rows, columns, height, width, _ = images.shape
    sheet = Sheet(tuple(labels), columns, (height, width), (title,), columns, scale)
    return sheet.draw(images.reshape(rows * columns, height, width, 3), title)


def save(image: Image.Image, path: Path, record: Record | None = None) -> None:
    """Write a picture, whole or not at all, with what it says of itself.

    Raises:
        OutputError: the place is not writable.
    """
    with replacing(path) as temporary:
        image.save(temporary, **save_options(record, path.suffix.lower()))


def enlarged(pixels: Pixels, scale: int) -> Image.Image:
    """One image ``[H, W, 3]`` with every pixel as a square."""
    image = Image.fromarray(pixels)
    size = (image.width * scale, image.height * scale)
    return image if scale == 1 else image.resize(size, Image.Resampling.NEAREST)


def scale_for(height: int) -> int:
    """Magnification that brings small images to a size people can see."""
    return max(1, _SIDE // height)


def title_of(order: Order, settings: Mapping[str, Any]) -> str:
    """How images came about, in one line."""
    count, first, last = len(order), order.seeds[0], order.seeds[-1]
    seeds = f"seed {first}" if count == 1 else f"seeds {first} … {last}"
    if count > 1 and order.seeds != tuple(range(first, first + count)):
        seeds = "seeds as recorded"
    said = [f"{name.replace('_', ' ')} {_value(each)}" for name, each in settings.items()]
    return ", ".join([f"{count:,} image{'s' if count > 1 else ''}", *said, seeds])


def _value(value: Any) -> str:
    if not isinstance(value, (tuple, list)):
        return f"{value:g}" if isinstance(value, float) else f"{value}"
    if len(set(map(str, value))) == 1:
        return _value(value[0])
    shown = [_value(each) for each in value]
    return ":".join(shown) if len(shown) == 2 else f"{shown[0]} … {shown[-1]}"
