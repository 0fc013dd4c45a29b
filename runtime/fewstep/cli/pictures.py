"""Generated images as files: one picture, a labelled grid, or a file for each image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from fewstep.runtime.errors import OutputError
from fewstep.runtime.files import replacing
from fewstep.runtime.result import Result

Pixels = npt.NDArray[np.uint8]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_MARGIN = 6
_FONT_SIZE = 15
_PAPER = (250, 250, 248)
_INK = (30, 30, 34)
_SIDE = 96


def check_suffix(path: Path) -> None:
    """Refuse file names that are not a picture's, before any work.

    Raises:
        OutputError: a suffix of another kind.
    """
    if path.suffix and path.suffix.lower() not in SUFFIXES and not path.is_dir():
        raise OutputError(f"{path}: expected a folder or a file ending in {', '.join(SUFFIXES)}")


def write(result: Result, labels: Sequence[str], path: Path) -> None:
    """Write one picture, a grid, or a file for each image into a folder.

    Args:
        result: images, as many for each label as for any other, in their order.
        labels: of the conditions.
        path: a picture's name, or a folder's.

    Raises:
        OutputError: the place is not writable.
    """
    rows = result.images.reshape(len(labels), -1, *result.images.shape[1:])
    if not path.suffix or path.is_dir():
        every = [label for label in labels for _ in range(rows.shape[1])]
        for image, label, seed in zip(result.images, every, result.seeds, strict=True):
            name = f"{label}-seed-{seed}.png".replace("/", "-").replace(" ", "-")
            save(Image.fromarray(image), path / name)
    elif len(result.images) == 1:
        save(Image.fromarray(result.images[0]), path)
    else:
        title = f"{len(result.images)} images, {steps_of(result)} steps"
        save(grid(rows, labels, title, scale=scale_for(result)), path)


def grid(images: Pixels, labels: Sequence[str], title: str, *, scale: int = 1) -> Image.Image:
    """Arrange ``images [rows, columns, H, W, 3]`` with a label before each row and a title."""
    rows, columns, height, width, _ = images.shape
    font = ImageFont.load_default(_FONT_SIZE)
    left = _MARGIN * 2 + int(max((font.getlength(label) for label in labels), default=0))
    top = _FONT_SIZE + 3 * _MARGIN
    cell_h, cell_w = height * scale + _MARGIN, width * scale + _MARGIN
    page = Image.new("RGB", (left + columns * cell_w, top + rows * cell_h), _PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((_MARGIN, _MARGIN), title, _INK, font)
    for row in range(rows):
        y = top + row * cell_h
        draw.text((_MARGIN, y + (cell_h - _FONT_SIZE - _MARGIN) // 2), labels[row], _INK, font)
        for column in range(columns):
            tile = Image.fromarray(images[row, column]).resize(
                (width * scale, height * scale), Image.Resampling.NEAREST
            )
            page.paste(tile, (left + column * cell_w, y))
    return page


def save(image: Image.Image, path: Path) -> None:
    """Write a picture, whole or not at all.

    Raises:
        OutputError: the place is not writable.
    """
    with replacing(path) as temporary:
        image.save(temporary)


def steps_of(result: Result) -> int:
    """Steps that the images took; some decisions have one more row, for the end."""
    return min(len(rows) for rows in result.trace.decisions.values())


def scale_for(result: Result) -> int:
    """Magnification that brings small images to a size people can see."""
    return max(1, _SIDE // int(result.images.shape[1]))
