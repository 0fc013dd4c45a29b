"""Images before the last step, for callbacks between steps and for animations."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fewstep.runtime.devices import Device
from fewstep.runtime.engines import Engine, run_once
from fewstep.runtime.families import Preview
from fewstep.runtime.result import pillow_images

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class StepPreview:
    """The images of a batch after a step; they are decoded when they are first asked for.

    ``rows``: of the request, that the batch has. ``caption``: of the step, for people.
    ``undecided [B, rows, columns]``: true where a picture may still change. ``request``: that is
    served. ``trace``: of the batch, whose later steps hold nothing yet.
    """

    rows: range
    caption: str
    undecided: npt.NDArray[np.bool_]
    decode: Callable[[], npt.NDArray[np.uint8]]
    request: Any = None
    trace: Any = None

    @functools.cached_property
    def pixels(self) -> npt.NDArray[np.uint8]:
        """``[B, H, W, 3]`` uint8.

        Raises:
            EngineError: an engine fails.
        """
        return self.decode()

    @functools.cached_property
    def images(self) -> list[Image]:
        """The images as Pillow has them.

        Raises:
            EngineError: an engine fails.
            MissingDependencyError: Pillow is not installed.
        """
        return pillow_images(self.pixels)


Callback = Callable[[int, StepPreview], Any]
"""Takes a step, 0 … T − 1, and what there is of the images after it."""


def decoded(
    device: Device,
    engines: Mapping[str, Engine],
    preview: Preview,
    max_batch: int,
    decoder: str | None = None,
) -> npt.NDArray[np.uint8]:
    """The images of a family's preview, ``[B, H, W, 3]``, at most ``max_batch`` at a time.

    Args:
        device: that the engines are on.
        engines: by graph name.
        preview: what to draw.
        max_batch: images drawn together.
        decoder: the graph that draws, in the place of the preview's.

    Raises:
        EngineError: the engine fails.
    """
    engine, parts = engines[decoder or preview.graph], []
    for first in range(0, len(preview.undecided), max_batch):
        rows = slice(first, first + max_batch)
        inputs = {name: np.ascontiguousarray(array[rows]) for name, array in preview.inputs.items()}
        image = run_once(device, engine, inputs)[preview.output]
        parts.append(np.rint(image.clip(0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1))
    return np.concatenate(parts)


def steps_of(trace: Any) -> int:
    """Steps that were taken; some decisions have one more row, for the end."""
    return min(len(rows) for rows in trace.decisions.values())
