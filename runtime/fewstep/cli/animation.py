"""A GIF of images being decided, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from fewstep.cli.pictures import Pixels, grid, steps_of
from fewstep.runtime.engines import run_once
from fewstep.runtime.errors import OutputError
from fewstep.runtime.families import Preview
from fewstep.runtime.files import replacing
from fewstep.runtime.generator import Generator, batches
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


def step_frames(
    generator: Generator, result: Result, labels: Sequence[str], *, scale: int = 1
) -> list[Image.Image]:
    """One frame per step: what there is of the images, under a veil where it may still change.

    Args:
        generator: the generator that made ``result`` (its engines draw the frames).
        result: a result whose images fill ``len(labels)`` rows evenly.
        labels: one per row.
        scale: magnification of each image.

    Raises:
        EngineError: an engine fails.
    """
    frames = []
    for step in range(steps_of(result)):
        preview = generator.family.preview(generator.model, result.trace, step)
        pictures = _veiled(_decoded(generator, preview), preview.undecided)
        rows = pictures.reshape(len(labels), -1, *pictures.shape[1:])
        frames.append(grid(rows, labels, preview.caption, scale=scale))
    return frames


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


def _decoded(generator: Generator, preview: Preview) -> Pixels:
    """The images of a preview, decoded in batches no larger than the generator's."""
    engine, parts = generator.engines[preview.graph], []
    for rows in batches(len(preview.undecided), generator.max_batch):
        inputs = {name: np.ascontiguousarray(array[rows]) for name, array in preview.inputs.items()}
        image = run_once(generator.device, engine, inputs)[preview.output]
        parts.append(np.rint(image.clip(0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1))
    return np.concatenate(parts)


def _veiled(pixels: Pixels, undecided: npt.NDArray[np.bool_]) -> Pixels:
    """Tint the undecided cells, ``[B, rows, columns]``, of ``pixels [B, H, W, 3]``."""
    _, rows, columns = undecided.shape
    tall, wide = pixels.shape[1] // rows, pixels.shape[2] // columns
    cells = undecided.repeat(tall, 1).repeat(wide, 2)[..., None]
    tinted = np.where(cells, 0.25 * pixels + 0.75 * _VEIL, pixels)
    return tinted.astype(np.uint8)
