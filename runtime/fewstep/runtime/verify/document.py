"""What one ``fewstep verify`` found, over all precisions: the data of a report."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from fewstep.runtime.verify.report import Report, finite


@dataclass(frozen=True)
class Unavailable:
    """A precision that cannot run here. It fails verification if it was asked for by name."""

    precision: str
    reason: str
    asked: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class TensorError:
    """One tensor of a graph, beside the reference.

    ``error``: max |x − x'| / max |x|, with x the reference's; infinite where only one of them is
    NaN, ``None`` without a reference. ``largest``: largest magnitude of x', infinite if any
    number of it is NaN or infinite.
    """

    tensor: str
    node: str
    operator: str
    error: float | None
    largest: float

    @property
    def finite(self) -> bool:
        """Whether it is free of NaN and infinite numbers."""
        return math.isfinite(self.largest)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, which has no infinity: it becomes ``None``."""
        error = None if self.error is None else finite(self.error)
        return asdict(self) | {
            "error": error,
            "largest": finite(self.largest),
            "finite": self.finite,
        }


@dataclass(frozen=True)
class Divergence:
    """Where the tensors of one graph leave the reference's, in topological order.

    Attributes:
        graph: the graph's name.
        precision: of the graph that was examined.
        backend: what ran the graph; the reference runs in ONNX Runtime on the CPU.
        reference: what it was compared with; empty if there was nothing to compare with.
        rollout: the golden one whose inputs were used.
        step: of that rollout; 0 is the first.
        image: place in the batch.
        tolerance: the error that a tensor may have.
        compared: tensors that were looked at.
        tensors: all tensors, of the reference if there is one.
        first: the first tensor beyond the tolerance; without a reference, the first not finite.
        before: the tensors that its node reads, those made by other nodes of the graph.
        weights: the weights that its node reads.
        first_not_finite: the first tensor with NaN or infinite numbers the reference lacks.
        worst: the tensor with the largest error of those looked at.
    """

    graph: str
    precision: str
    backend: str
    reference: str
    rollout: str
    step: int
    image: int
    tolerance: float
    compared: int
    tensors: int
    first: TensorError | None
    before: tuple[TensorError, ...]
    weights: tuple[str, ...]
    first_not_finite: TensorError | None
    worst: TensorError | None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        tensors = {
            "first": self.first and self.first.as_dict(),
            "before": [each.as_dict() for each in self.before],
            "weights": list(self.weights),
            "first_not_finite": self.first_not_finite and self.first_not_finite.as_dict(),
            "worst": self.worst and self.worst.as_dict(),
        }
        return asdict(self) | tensors


@dataclass(frozen=True)
class Verification:
    """Everything one command found."""

    name: str
    bundle: str
    machine: dict[str, str]
    packages: dict[str, str | None]
    reports: tuple[Report, ...]
    unavailable: tuple[Unavailable, ...] = ()
    divergences: tuple[Divergence, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether something was verified, all of it passed, and all that was named could run."""
        ran = bool(self.reports) and not any(each.asked for each in self.unavailable)
        return ran and all(report.passed for report in self.reports)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "name": self.name,
            "bundle": self.bundle,
            "passed": self.passed,
            "machine": self.machine,
            "packages": self.packages,
            "reports": [each.as_dict() for each in self.reports],
            "unavailable": [each.as_dict() for each in self.unavailable],
            "divergences": [each.as_dict() for each in self.divergences],
        }
