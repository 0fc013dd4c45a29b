"""Checks, and all checks of one precision."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

LOOP = "loop"
"""What ``token_agreement`` belongs to: every graph, and the decode loop around them."""

TITLES = {
    "logit_error": "largest logit error",
    "mean_logit_error": "mean logit error",
    "argmax_agreement": "argmax agreement",
    "kl_nats": "KL divergence, nats",
    "action_error": "largest action error",
    "psnr_db": "PSNR, dB",
    "token_agreement": "token agreement",
}
"""Figures as people read them, in the order of a report."""

AT_LEAST = frozenset(("argmax_agreement", "psnr_db", "token_agreement"))


@dataclass(frozen=True)
class Check:
    """One figure of one graph with its bar.

    ``steps``: the figure at every step, where the replay was teacher-forced. The value is the
    largest of them for largest errors, and otherwise their mean.
    """

    graph: str
    schedule: str
    figure: str
    value: float
    limit: float
    at_most: bool
    steps: tuple[float, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the value meets its bar (NaN never does)."""
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    @property
    def sign(self) -> str:
        """How the value must stand to its bar."""
        return "≤" if self.at_most else "≥"

    @property
    def title(self) -> str:
        """The figure's name as people read it."""
        return TITLES[self.figure]

    @property
    def worst_step(self) -> int | None:
        """The step with the worst figure (NaN is the worst), if there are figures by step."""
        if not self.steps:
            return None
        return int(np.argmax(self.steps) if self.at_most else np.argmin(self.steps))

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, which has no NaN and no infinity: they become ``None``."""
        numbers = {
            "value": finite(self.value),
            "limit": finite(self.limit),
            "steps": [finite(each) for each in self.steps],
        }
        return asdict(self) | numbers | {"passed": self.passed, "worst_step": self.worst_step}


@dataclass(frozen=True)
class Report:
    """All checks of one precision, and what ran it."""

    bundle: str
    precision: str
    checks: tuple[Check, ...]
    backend: str
    device: str

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def failing_graphs(self) -> tuple[str, ...]:
        """Graphs with a failed check of their own, which those of the loop are not."""
        failed = (check.graph for check in self.checks if not check.passed)
        return tuple(dict.fromkeys(graph for graph in failed if graph != LOOP))

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "bundle": self.bundle,
            "precision": self.precision,
            "backend": self.backend,
            "device": self.device,
            "passed": self.passed,
            "failing_graphs": list(self.failing_graphs),
            "checks": [check.as_dict() for check in self.checks],
        }


def finite(value: float) -> float | None:
    """A number as JSON can have it."""
    return float(value) if math.isfinite(value) else None
