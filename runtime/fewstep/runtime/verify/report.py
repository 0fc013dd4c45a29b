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
    "latent_error": "largest latent error",
    "state_error": "largest error of text states",
    "state_cosine": "cosine of text states",
    "noise_error": "largest noise error",
    "loop_error": "largest error at the end",
    "psnr_db": "PSNR, dB",
    "code_agreement": "agreement of encoded codes",
    "token_agreement": "token agreement",
}
"""Metrics as people read them, in the order of a report."""

AT_LEAST = frozenset(
    ("argmax_agreement", "state_cosine", "psnr_db", "code_agreement", "token_agreement")
)


@dataclass(frozen=True)
class Check:
    """One metric of one graph with its tolerance.

    ``steps``: the metric of every run of the graph, where there are several. The value is the
    largest of them for largest errors, and otherwise their mean.
    """

    graph: str
    rollout: str
    metric: str
    value: float
    tolerance: float
    at_most: bool
    steps: tuple[float, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the value meets its tolerance (NaN never does)."""
        return self.value <= self.tolerance if self.at_most else self.value >= self.tolerance

    @property
    def wanted(self) -> str:
        """What the value must be, for people."""
        if math.isinf(self.tolerance):
            return "any number"
        return f"{'≤' if self.at_most else '≥'} {self.tolerance:g}"

    @property
    def title(self) -> str:
        """The metric's name as people read it."""
        return TITLES[self.metric]

    @property
    def worst_step(self) -> int | None:
        """The run with the worst value (NaN is the worst), if there are several."""
        if not self.steps:
            return None
        return int(np.argmax(self.steps) if self.at_most else np.argmin(self.steps))

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, which has no NaN and no infinity: they become ``None``."""
        numbers = {
            "value": finite(self.value),
            "tolerance": finite(self.tolerance),
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
