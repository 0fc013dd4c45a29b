"""Pictures for people: labelled grids and step-by-step animations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from fewstep.runtime.engines import run_once
from fewstep.runtime.files import replacing
from fewstep.runtime.generator import Generator
from fewstep.runtime.result import Result

Pixels = npt.NDArray[np.uint8]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_MARGIN = 6
_FONT_SIZE = 15
_PAPER = (250, 250, 248)
_INK = (30, 30, 34)
_VEIL = np.array((66, 84, 120), np.float32)
_LAST_FRAME_MS, _FRAME_MS = 2_000, 450


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


def step_frames(
    generator: Generator, result: Result, labels: Sequence[str], *, scale: int = 1
) -> list[Image.Image]:
    """One frame per step: what the step decoded to, undecided tokens under a veil.

    Args:
        generator: the generator that made ``result`` (its decoder draws the frames).
        result: a result whose images fill ``len(labels)`` rows evenly.
        labels: one per row.
        scale: magnification of each image.
    """
    trace = result.trace
    count = trace.tokens.shape[2]
    frames = []
    for step, sampled in enumerate(trace.sampled):
        undecided = trace.tokens[step + 1] == trace.mask_token
        if step == len(trace.sampled) - 1:
            undecided[:] = False  # the last step's samples are the image, masked or not
        pictures = _veil(_decode(generator, sampled), undecided, generator)
        decided = count - int(undecided.sum(1).mean())
        title = f"step {step + 1} of {len(trace.sampled)}: {decided} of {count} tokens decided"
        rows = pictures.reshape(len(labels), -1, *pictures.shape[1:])
        frames.append(grid(rows, labels, title, scale=scale))
    return frames


def save(image: Image.Image, path: Path) -> None:
    """Write a picture, whole or not at all.

    Raises:
        OutputError: the place is not writable.
    """
    with replacing(path) as temporary:
        image.save(temporary)


def save_animation(frames: Sequence[Image.Image], path: Path) -> None:
    """Write frames as a GIF that pauses on the last one.

    Raises:
        OutputError: the place is not writable.
    """
    durations = [_FRAME_MS] * (len(frames) - 1) + [_LAST_FRAME_MS]
    with replacing(path) as temporary:
        frames[0].save(
            temporary, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0
        )


def _decode(generator: Generator, tokens: npt.NDArray[np.int32]) -> Pixels:
    """Images of ``tokens [B, N]``, decoded in batches no larger than the generator's."""
    decoder, parts = generator.engines["decoder"], []
    for start in range(0, len(tokens), generator.max_batch):
        batch = np.ascontiguousarray(tokens[start : start + generator.max_batch])
        image = run_once(generator.device, decoder, {"tokens": batch})["image"]
        parts.append(np.rint(image.clip(0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1))
    return np.concatenate(parts)


def _veil(pixels: Pixels, undecided: npt.NDArray[np.bool_], generator: Generator) -> Pixels:
    """Tint the pixels of undecided tokens: ``pixels [B, H, W, 3]``, ``undecided [B, N]``."""
    rows, columns = generator.bundle.manifest.model.grid
    tall, wide = pixels.shape[1] // rows, pixels.shape[2] // columns
    cells = undecided.reshape(-1, rows, columns).repeat(tall, 1).repeat(wide, 2)[..., None]
    tinted = np.where(cells, 0.25 * pixels + 0.75 * _VEIL, pixels)
    return tinted.astype(np.uint8)
