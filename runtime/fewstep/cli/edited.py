"""What ``fewstep edit`` paints anew, and how :func:`fewstep.cli.produce.produce` makes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.cli.animation import Step
from fewstep.cli.produce import Maker
from fewstep.cli.record import Record
from fewstep.runtime.edit.edit import Edit
from fewstep.runtime.edit.given import Box
from fewstep.runtime.edit.paint import painted
from fewstep.runtime.errors import RequestError
from fewstep.runtime.files import sha256
from fewstep.runtime.generator import Generator
from fewstep.runtime.preview import StepPreview
from fewstep.runtime.progress import Progress
from fewstep.runtime.result import Result


@dataclass(frozen=True)
class Region:
    """What is painted anew of a picture, and how: the options of ``fewstep edit``, not all at once.

    ``outpaint``: as it was given, or by side. ``fit``: ``None`` if it was not given.
    """

    mask: Path | None = None
    box: Box | None = None
    outpaint: Mapping[str, int] | str | None = None
    strength: float | None = None
    fit: str | None = None
    blend: bool = False

    def record(self, image: Path, growth: Mapping[str, int] | None) -> dict[str, Any]:
        """What pictures say of the one that they were made of, which grew so by side."""
        said = {
            "image": sha256(image),
            "mask": None if self.mask is None else sha256(self.mask),
            "box": self.box,
            "outpaint": growth,
            "strength": self.strength,
            "fit": self.fit or "crop",
            "blend": self.blend,
        }
        return {name: value for name, value in said.items() if value is not None}


def again(record: Record, like: Path, image: Path, given: Region) -> Region:
    """The region of an edit that is made again, of files that can be read.

    A mask has to be given again, since a record has its hash alone. A box, sides to outpaint or a
    strength that are given take the place of all that said what is painted anew.

    Raises:
        RequestError: the picture is no edit, is one of another image, or has another mask.
    """
    if "edit" not in record:
        raise RequestError(f"{like} is no edit: make it again with fewstep generate --like")
    told = record["edit"]
    if sha256(image) != told["image"]:
        raise RequestError(f"{image} is not what {like} was made of: give that one as --image")
    fit, blend = given.fit or told["fit"], given.blend or told["blend"]
    others = (given.box, given.outpaint, given.strength)
    other = any(each is not None for each in others)
    if other or (given.mask is not None and "mask" not in told):
        return replace(given, fit=fit, blend=blend)
    if "mask" in told and given.mask is None:
        raise RequestError(f"{like} was made with a mask: give it too, as --mask")
    if given.mask is not None and sha256(given.mask) != told["mask"]:
        raise RequestError(f"{given.mask} is not the mask of {like}: give that one as --mask")
    box = tuple(told["box"]) if "box" in told else None
    return Region(given.mask, box, told.get("outpaint"), told.get("strength"), fit, blend)


class EditMaker(Maker):
    """Makes edits of one picture; ``keep_steps``: for :meth:`steps`."""

    def __init__(self, generator: Generator, planned: Edit, *, keep_steps: bool) -> None:
        super().__init__(generator)
        self._planned, self._keep = planned, keep_steps
        self._steps: dict[int, list[Step]] = {}

    def make(self, asked: Mapping[str, Any], progress: Progress) -> Result:
        """Images; ``asked`` as of ``Generator.request``."""
        self._steps = {}
        watch = self._watch if self._keep else None
        return painted(self.generator, self._planned, asked, progress=progress, callback=watch)

    def steps(self, result: Result) -> list[Step]:
        """How those that were made last came about, a batch beside the other."""
        found = []
        for _, parts in sorted(self._steps.items()):
            pixels = np.concatenate([each.pixels for each in parts])
            undecided = np.concatenate([each.undecided for each in parts])
            found.append(Step(pixels, undecided, parts[0].caption))
        return found

    def _watch(self, step: int, preview: StepPreview) -> None:
        shown = Step(preview.pixels, preview.undecided, preview.caption)
        self._steps.setdefault(step, []).append(shown)
