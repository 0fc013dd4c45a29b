"""A GIF of images being decided, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from fewstep.cli.record import Record, save_options
from fewstep.cli.sheet import Pixels, Sheet
from fewstep.runtime.errors import OutputError
from fewstep.runtime.files import replacing
from fewstep.runtime.generator import Generator
from fewstep.runtime.preview import decoded, steps_of
from fewstep.runtime.result import Result

SUFFIX = ".gif"
_VEIL = np.array((66, 84, 120), np.float32)
_LAST_FRAME_MS, _FRAME_MS = 2_000, 450


def check_suffix(path: Path) -> None:
    """Refuse file names that are not a GIF's, before any work.

    Raises:
        OutputError: a suffix of another kind.
    """
    if path.suffix.lower() != SUFFIX:
        raise OutputError(f"{path}: expected a file ending in {SUFFIX}")


@dataclass(frozen=True)
class Step:
    """Images after a step, ``[B, H, W, 3]``, and what of them may still change, ``[B, rows,
    columns]``."""

    pixels: Pixels
    undecided: npt.NDArray[np.bool_]
    caption: str


def steps_shown(generator: Generator, result: Result) -> list[Step]:
    """What there was of the images after every step.

    Args:
        generator: the generator that made ``result`` (its engines draw them).
        result: the images.

    Raises:
        EngineError: an engine fails.
    """
    found = []
    for number in range(steps_of(result.trace)):
        preview = generator.family.preview(generator.model, result.trace, number)
        pixels = decoded(
            generator.device, generator.engines, preview, generator.max_batch, result.decoder
        )
        found.append(Step(pixels, preview.undecided, preview.caption))
    return found


def step_frames(
    steps: Sequence[Step],
    labels: Sequence[str],
    *,
    scale: int = 1,
    columns: int | None = None,
) -> list[Image.Image]:
    """One frame per step: what there is of the images, under a veil where it may still change.

    Args:
        steps: with as many images for every label as for any other, in their order.
        labels: of the conditions.
        scale: magnification of each image.
        columns: images side by side.

    Returns:
        Frames of one size, which has room for any step's caption.
    """
    count, height, width, _ = steps[0].pixels.shape
    captions, each = [step.caption for step in steps], count // len(labels)
    sheet = Sheet.of(labels, each, (height, width), captions, columns=columns, scale=scale)
    return [sheet.draw(_veiled(step.pixels, step.undecided), step.caption) for step in steps]


def save_animation(frames: Sequence[Image.Image], path: Path, record: Record | None = None) -> None:
    """Write frames as a GIF that pauses on the last one.

    Raises:
        OutputError: the place is not writable.
    """
    durations = [_FRAME_MS] * (len(frames) - 1) + [_LAST_FRAME_MS]
    with replacing(path) as temporary:
        frames[0].save(
            temporary,
            "GIF",
            save_all=True,
            append_images=frames[1:],
            duration=durations,
            loop=0,
            **save_options(record, SUFFIX),
        )


def _veiled(pixels: Pixels, undecided: npt.NDArray[np.bool_]) -> Pixels:
    """Tint the undecided cells, ``[B, rows, columns]``, of ``pixels [B, H, W, 3]``."""
    _, rows, columns = undecided.shape
    tall, wide = pixels.shape[1] // rows, pixels.shape[2] // columns
    cells = undecided.repeat(tall, 1).repeat(wide, 2)[..., None]
    tinted = np.where(cells, 0.25 * pixels + 0.75 * _VEIL, pixels)
    return tinted.astype(np.uint8)
