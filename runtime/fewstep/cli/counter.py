"""How far a long run is: a bar with rate and time left, or a line a minute in a log."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.progress import BarColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as Bars

from fewstep.cli.common import errors, say_note

_LINE_SECONDS = 60.0

Count = Callable[[float], None]
"""Takes how many are done."""


@contextlib.contextmanager
def counter(total: int, *, clock: Callable[[], float] = time.monotonic) -> Iterator[Count]:
    """Show how many of ``total`` images are done.

    Args:
        total: images.
        clock: seconds.
    """
    pace = Pace(total, clock)
    if not errors.is_terminal:
        said = clock()

        def line(done: float) -> None:
            nonlocal said
            pace.count(done)
            if clock() - said >= _LINE_SECONDS and done < total:
                said = clock()
                say_note(pace.text())

        yield line
        return
    columns = (SpinnerColumn(), BarColumn(), TextColumn("{task.description}"))
    with Bars(*columns, console=errors, transient=True) as bars:
        task = bars.add_task("generating", total=None)

        def bar(done: float) -> None:
            pace.count(done)
            bars.update(task, completed=done, total=total, description=pace.text())

        yield bar


class Pace:
    """Rate and time left. Both begin with the first images that are done: what comes before them
    is loading, and compilation the first time."""

    def __init__(self, total: int, clock: Callable[[], float]) -> None:
        self._total, self._clock = total, clock
        self._first: tuple[float, float] | None = None
        self._last = (0.0, 0.0)

    def count(self, done: float) -> None:
        """Say how many are done now."""
        self._last = (self._clock(), done)
        self._first = self._first or self._last

    def text(self) -> str:
        """Such as ``1,200 of 50,000 images, 20 images/s, 40 min left``."""
        now, done = self._last
        text = f"{done:,.0f} of {self._total:,} images"
        start, before = self._first or self._last
        if now > start and done > before:
            rate = (done - before) / (now - start)
            text += f", {rate:.3g} images/s, {duration((self._total - done) / rate)} left"
        return text


def duration(seconds: float) -> str:
    """A time that people can read."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
