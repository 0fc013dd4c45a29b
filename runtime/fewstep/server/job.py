"""What a worker is given, and what it gives back."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.runtime.devices import Array

Parameters = tuple[tuple[str, ...], Array]
"""Names, and numbers ``[T, images, names]`` of every step."""


@dataclass(frozen=True)
class Made:
    """The images of a job.

    ``pixels [B, H, W, 3]`` uint8. ``steps``: that were taken. ``timings_ms``: of the batch that
    made them, by stage, and in ``queue`` what the job waited. ``batch``: how many images were made
    together, of this job and others; of more than fit, as many as do.
    """

    pixels: npt.NDArray[np.uint8]
    seeds: tuple[int, ...]
    steps: int
    parameters: Parameters | None
    timings_ms: dict[str, float]
    notes: tuple[str, ...]
    batch: int


@dataclass(frozen=True)
class Step:
    """The images of a job after a step, 0 … ``steps`` − 1; of a job with more images than a batch,
    those from ``first`` on. Where an edit has several windows, numbers go on from one to the next.

    ``undecided [B, rows, columns]``: true where a picture may still change. ``parameters``: of the
    steps up to this one. ``pixels [B, H, W, 3]`` uint8, if they were wanted.
    """

    number: int
    first: int
    caption: str
    undecided: npt.NDArray[np.bool_]
    parameters: Parameters | None
    pixels: npt.NDArray[np.uint8] | None


@dataclass(eq=False)
class Job:
    """Images of one request.

    ``asked``: classes or texts, one an image, by the name of the argument of ``Generator.request``
    (``class_ids`` or ``text``). ``settings``: complete, with ``negative`` if there is one.
    ``edit``: arguments of ``Generator.edit`` in the place of ``asked``. ``steps``: that there will
    be, in each of so many ``windows``. ``on_step``: called in the worker's thread after every step.
    ``shown``: the steps whose images are wanted. ``notes``: what its client should know. ``until``:
    when it is to run, if others come (:mod:`fewstep.server.queue`).
    """

    kind: tuple[Any, ...]
    asked: Mapping[str, list[Any]]
    seeds: tuple[int, ...]
    settings: Mapping[str, Any]
    steps: int
    edit: Mapping[str, Any] | None = None
    on_step: Callable[[Step], None] | None = None
    shown: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()
    windows: int = 1
    until: float = math.inf
    future: Future[Made] = field(default_factory=Future)
    gone: bool = False
    since: float = field(default_factory=time.perf_counter)

    @property
    def count(self) -> int:
        """Images."""
        return len(self.seeds)

    @property
    def joins(self) -> bool:
        """Whether others of its kind may run with it; edits run alone."""
        return self.edit is None

    @property
    def timed(self) -> Hashable:
        """What its time is known by; how many windows there are comes with ``load``."""
        return (self.kind, self.count) if self.edit is not None else self.kind

    @property
    def load(self) -> int:
        """Images in all windows."""
        return self.count * self.windows

    def leave(self) -> None:
        """Nobody wants it any more: it does not run, or stops as soon as it can."""
        self.gone = True
        self.future.cancel()


def shown_steps(wanted: int, steps: int) -> frozenset[int]:
    """The steps, 0 … ``steps`` − 1, after which ``wanted`` images are shown, evenly spread; the
    last one, which is the image itself, only where all are wanted."""
    if wanted >= steps:
        return frozenset(range(steps))
    return frozenset(-(-(k + 1) * steps // (wanted + 1)) - 1 for k in range(wanted))
