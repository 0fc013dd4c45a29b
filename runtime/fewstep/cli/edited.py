"""Edits as :func:`fewstep.cli.produce.produce` makes them, and their steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fewstep.cli.animation import Step
from fewstep.cli.produce import Maker
from fewstep.runtime.edit.edit import Edit
from fewstep.runtime.edit.paint import painted
from fewstep.runtime.generator import Generator
from fewstep.runtime.preview import StepPreview
from fewstep.runtime.progress import Progress
from fewstep.runtime.result import Result


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
