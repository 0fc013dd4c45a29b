"""What a replay gave beside what was recorded, and the line that says so."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

BAR = 1e-4
"""Largest error of a float; margins of recorded decisions are wider."""

_HALF = 2.0**-11  # largest relative error of rounding to float16


@dataclass
class Comparison:
    """One run, stage by stage.

    ``errors``: the largest error of every stage of floats. ``missed``: stages that miss their bar.
    ``exact``: kinds of whole numbers that were compared, and the first difference of each.
    """

    run: str
    errors: dict[str, float] = field(default_factory=dict)
    missed: set[str] = field(default_factory=set)
    exact: dict[str, str] = field(default_factory=dict)

    @property
    def fine(self) -> bool:
        """Whether something was compared, and all of it is as recorded."""
        compared = bool(self.errors or self.exact)
        return compared and not self.missed and not any(self.exact.values())

    def floats(self, stage: str, found: Array, recorded: Array, *, relative: bool = False) -> None:
        """Compare floats of one shape.

        What was recorded in float16 may differ by its rounding more. With ``relative`` the bar is
        a part of numbers above 1.
        """
        expected = recorded.astype(np.float64)
        if found.shape != expected.shape:
            self._is_missed(stage, np.inf)
            return
        error, room = np.abs(found - expected), np.full(expected.shape, BAR)
        if relative:
            room *= np.maximum(1, np.abs(expected))
        if recorded.dtype == np.float16:
            room += _HALF * np.abs(expected)
        largest = float(error.max()) if error.size else 0.0
        if not (error <= room).all():  # NaN fails too
            self._is_missed(stage, largest)
        before = self.errors.get(stage, 0.0)
        self.errors[stage] = largest if np.isnan(largest) else max(largest, before)

    def ids(self, kind: str, found: Array, recorded: Array, at: str = "") -> None:
        """Compare whole numbers of one shape; ``at`` says where in the run they are."""
        if self.exact.setdefault(kind, ""):
            return
        if found.shape != recorded.shape:
            self.exact[kind] = f"{at} shape {list(found.shape)}, recorded {list(recorded.shape)}"
        elif (found != recorded).any():
            place = tuple(int(each) for each in np.argwhere(found != recorded)[0])
            where = f"{at} {list(place)}".strip()
            self.exact[kind] = f"{where}: {found[place]}, recorded {recorded[place]}"

    def line(self) -> str:
        """The result in one line."""
        floats = [
            f"{stage} {error:.1e}{' (too far)' if stage in self.missed else ''}"
            for stage, error in self.errors.items()
        ]
        equal = [kind for kind, difference in self.exact.items() if not difference]
        other = [f"{kind} differ at {text}" for kind, text in self.exact.items() if text]
        exact = [f"{', '.join(equal)} equal"] if equal else []
        parts = [", ".join(floats), *exact, *other]
        return f"{self.run}: {'; '.join(filter(None, parts))}"

    def _is_missed(self, stage: str, error: float) -> None:
        self.missed.add(stage)
        self.errors[stage] = max(error, self.errors.get(stage, 0.0))
