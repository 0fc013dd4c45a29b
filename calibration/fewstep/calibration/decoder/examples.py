"""Examples: what the full decoder reads in rollouts of the bundle, and the images that it draws.

Nothing but the bundle is needed. Of a training rollout also what previews show of earlier steps is
taken, since previews are drawn by the same decoder, and an image costs far less than a rollout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.calibration.quantize.rollouts import conditions
from fewstep.runtime.condition import ClassCondition
from fewstep.runtime.decoders import DECODER, FULL
from fewstep.runtime.devices import Array
from fewstep.runtime.engines import run_once
from fewstep.runtime.errors import CalibrationError
from fewstep.runtime.families import Preview
from fewstep.runtime.generator import Generator
from fewstep.runtime.preview import steps_of
from fewstep.runtime.progress import Progress, no_progress
from fewstep.runtime.request import batches


@dataclass(frozen=True)
class Examples:
    """Inputs of the full decoder, a row an image, and what it draws of them.

    ``images [n, 3, H, W]`` float16 in 0 … 1. ``grid``: rows and columns of the map that is read.
    """

    inputs: Array
    images: npt.NDArray[np.float16]
    grid: tuple[int, int]

    def __len__(self) -> int:
        return len(self.images)


def examples(
    generator: Generator,
    count: int,
    *,
    seed: int,
    settings: Mapping[str, Any],
    text: Array | None = None,
    earlier: bool = True,
    what: str = "making rollouts",
    progress: Progress = no_progress,
) -> Examples:
    """Make rollouts.

    Args:
        generator: of the bundle.
        count: rollouts.
        seed: of the first; the others count up.
        settings: of them.
        text: states or ids of texts, for text-conditional bundles, taken in turns.
        earlier: whether earlier steps are taken too.
        what: they are for, as it is reported.
        progress: called as they are made.

    Raises:
        RequestError: settings that the bundle cannot serve, or no text.
        CalibrationError: the decoder reads no map of the image.
        EngineError: a graph failed, or gave NaN.
    """
    info = generator.model.info.condition
    name = "class_ids" if isinstance(info, ClassCondition) else "text"
    condition: Any = conditions(info, count, seed, text)
    inputs, images, grid = list[Array](), list[Array](), (0, 0)
    progress(what, 0.0)
    for rows in batches(count, generator.max_batch):
        asked: dict[str, Any] = {name: condition[rows], **settings, "decoder": FULL}
        result = generator.run(generator.request(seed=seed + rows.start, **asked))
        for step in _steps(steps_of(result.trace), earlier=earlier):
            preview = generator.family.preview(generator.model, result.trace, step)
            grid = _grid(generator, preview)
            (read,) = preview.inputs.values()
            inputs.append(np.ascontiguousarray(read))
            drawn = run_once(generator.device, generator.engines[DECODER], preview.inputs)
            images.append(drawn[preview.output].clip(0, 1).astype(np.float16))
        progress(what, rows.stop / count)
    return Examples(np.concatenate(inputs), np.concatenate(images), grid)


def _steps(count: int, *, earlier: bool) -> tuple[int, ...]:
    """The last of ``count`` steps; and those a quarter and half of all before it."""
    last = count - 1
    wanted = (last, last - count // 4, last - count // 2) if earlier else (last,)
    return tuple(dict.fromkeys(wanted))


def _grid(generator: Generator, preview: Preview) -> tuple[int, int]:
    """Rows and columns of what the decoder reads.

    Raises:
        CalibrationError: they are no map of the image.
    """
    _, rows, columns = preview.undecided.shape
    height, width = generator.model.info.image_size
    if len(preview.inputs) != 1 or height % rows or height * columns != width * rows:
        raise CalibrationError(
            f"the decoder of {generator.bundle.path} reads {rows} × {columns} tokens, which are no "
            f"map of an image of {height} × {width}: a small decoder of convolutions cannot draw it"
        )
    return rows, columns
