"""Pictures painted anew, in part: an :class:`~fewstep.runtime.edit.edit.Edit` carried out.

A picture of the bundle's size is one request: the bundle's encoder makes tokens of it, those whose
cells are painted anew are decided, the others stay. What is painted anew is filled with the mean
colour of the rest before, so that nothing of it is seen. A larger picture is painted in windows
(:mod:`fewstep.runtime.edit.windows`), each of which knows those before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fewstep.runtime.edit.blend import Weights, blended, seam
from fewstep.runtime.edit.edit import Edit
from fewstep.runtime.edit.fit import Pixels
from fewstep.runtime.edit.given import Bools
from fewstep.runtime.edit.windows import Window, windows
from fewstep.runtime.preview import Callback, StepPreview, steps_of
from fewstep.runtime.progress import Progress, no_progress
from fewstep.runtime.request import derived_seed, seeds_of
from fewstep.runtime.result import Result

if TYPE_CHECKING:
    from fewstep.runtime.generator import Generator

_GREY = 128


def painted(
    generator: Generator,
    planned: Edit,
    every: Mapping[str, Any],
    *,
    progress: Progress = no_progress,
    callback: Callback | None = None,
) -> Result:
    """Carry out an edit.

    Args:
        generator: of a bundle with an encoder.
        planned: what to do.
        every: arguments of :meth:`Generator.request
            <fewstep.runtime.generator.Generator.request>`, a list of seeds among them.
        progress: as of :meth:`Generator.edit <fewstep.runtime.generator.Generator.edit>`.
        callback: as there.

    Raises:
        RequestError: an argument the bundle cannot serve.
        EngineError: a graph failed, or gave NaN.
        DeviceError: as of :meth:`Generator.run <fewstep.runtime.generator.Generator.run>`.
    """
    if planned.size != generator.model.info.image_size or planned.blend:
        found = _Canvas(generator, planned, every).paint(progress, callback)
        return replace(found, notes=(*planned.notes, *found.notes))
    pixels = np.broadcast_to(planned.pixels, (len(every["seed"]), *planned.pixels.shape))
    request = _window_request(generator, pixels, planned.anew, planned.strength, every)
    found = generator.run(request, progress=progress, callback=callback)
    return replace(found, notes=(*planned.notes, *found.notes))


class _Canvas:
    """A picture that is painted in windows, for every seed."""

    def __init__(self, generator: Generator, planned: Edit, every: Mapping[str, Any]) -> None:
        assert planned.anew is not None
        self._generator, self._every = generator, every
        self._pixels = np.repeat(planned.pixels[None], len(every["seed"]), 0)
        self._unknown = planned.anew.copy()
        info = generator.model.info
        found = windows(planned.anew, info.image_size, info.cell, planned.origin)
        self._windows, self._seam = list(found), max(info.cell)

    def paint(self, progress: Progress, callback: Callback | None) -> Result:
        """The result, whose images are of the whole picture."""
        results: list[Result] = []
        steps = 0
        for number, window in enumerate(self._windows):

            def made(what: str, done: float, number: int = number) -> None:
                progress(what, (number + done) / len(self._windows))

            watch = None if callback is None else self._watching(number, steps, callback)
            results.append(self._paint(number, window, made, watch))
            steps += steps_of(results[-1].trace)
        stages = dict.fromkeys(stage for each in results for stage in each.timings_ms)
        sums = {stage: sum(e.timings_ms.get(stage, 0.0) for e in results) for stage in stages}
        notes = tuple(dict.fromkeys(note for each in results for note in each.notes))
        seeds = seeds_of(self._every["seed"], len(self._pixels))
        last = results[-1]
        return replace(last, images=self._pixels, seeds=seeds, timings_ms=sums, notes=notes)

    def _paint(
        self,
        number: int,
        window: Window,
        progress: Progress,
        callback: Callback | None,
    ) -> Result:
        """Paint one window; from then on what it paints is known."""
        place = window.place
        anew, inside = self._unknown[place], (slice(None), *place)
        own: list[int] = self._every["seed"]
        seeds = [derived_seed(each, "window", number) for each in own] if number else own
        every = {**self._every, "seed": seeds}
        request = _window_request(self._generator, self._pixels[inside], anew, None, every)
        result = self._generator.run(request, progress=progress, callback=callback)
        self._pixels = _painted_over(self._pixels, place, result.images, self._weights(window))
        self._unknown = self._unknown.copy()  # previews still know what was unknown
        self._unknown[place] &= ~window.paints
        return result

    def _weights(self, window: Window) -> Weights:
        return seam(window.paints, self._seam)

    def _watching(self, number: int, before: int, callback: Callback) -> Callback:
        """A callback for one window, that is told of the whole picture."""
        window, several = self._windows[number], len(self._windows) > 1
        pixels, unknown, weights = self._pixels, self._unknown, self._weights(window)
        place, said = window.place, ""
        if several:
            said = f"window {number + 1} of {len(self._windows)}, "

        def watch(step: int, preview: StepPreview) -> None:
            rows = slice(preview.rows.start, preview.rows.stop)
            undecided = np.repeat(unknown[None], len(preview.rows), 0)
            left = _enlarged(preview.undecided, place) | ~window.paints  # to other windows
            undecided[(slice(None), *place)] &= left

            def decode() -> Pixels:
                return _painted_over(pixels[rows], place, preview.pixels, weights)

            caption = said + preview.caption
            seen = StepPreview(
                preview.rows, caption, undecided, decode, preview.request, preview.trace
            )
            callback(before + step, seen)

        return watch


def _painted_over(
    pixels: Pixels, place: tuple[slice, slice], new: Pixels, weights: Weights
) -> Pixels:
    """Pictures ``[B, H, W, 3]`` with new ones over a window of them."""
    found, inside = pixels.copy(), (slice(None), *place)
    found[inside] = blended(pixels[inside], new, weights)
    return found


def _window_request(
    generator: Generator,
    pixels: Pixels,
    anew: Bools | None,
    strength: float | None,
    every: Mapping[str, Any],
) -> Any:
    """The request for pictures ``[B, H, W, 3]`` of the bundle's size."""
    family, model, images = generator.family, generator.model, len(pixels)
    if anew is None:
        assert strength is not None
        part = family.variation(model, strength, seeds_of(every["seed"], images))
    else:
        part = family.region(model, np.repeat(anew[None], images, 0))
        pixels = _filled(pixels, anew)
    image = pixels.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    return generator.request(**every, edit={"image": image, **part})


def _filled(pixels: Pixels, anew: Bools) -> Pixels:
    """Pictures whose pixels that are painted anew have the mean colour of the others."""
    kept = pixels[:, ~anew]  # [B, kept pixels, 3]
    filled = pixels.copy()
    filled[:, anew] = np.rint(kept.mean(1, keepdims=True)) if kept.size else _GREY
    return filled


def _enlarged(cells: npt.NDArray[np.bool_], place: tuple[slice, slice]) -> Bools:
    """Cells ``[B, rows, columns]`` as pixels of a window."""
    tall = (place[0].stop - place[0].start) // cells.shape[1]
    wide = (place[1].stop - place[1].start) // cells.shape[2]
    return cells.repeat(tall, 1).repeat(wide, 2)
