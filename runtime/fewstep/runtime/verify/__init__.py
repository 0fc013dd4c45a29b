"""Replaying golden rollouts: does this engine compute what PyTorch computed?

Forced: the decode runs with the recorded decisions of every step, so that one wrong token cannot
hide behind another. Free-running: the same seeds are generated from scratch.

Every metric belongs to a graph, so that a failure says where to look
(:mod:`fewstep.runtime.verify.metrics`); ``token_agreement``, the fraction of equal tokens,
free-running, belongs to the loop: to every graph, and the decode around them. It is of the final
tokens. Where images are decoded from other numbers, it is of all tokens that an image's decode
decides up to its first step with another one, which changes everything after it.

A graph reads what those before it gave, so a wrong transformer can fail a policy's metric too.
Polygraphy's comparers judge each output array against one tolerance, and have neither a divergence
of distributions nor a fraction of equal codes; none fits.
"""

from __future__ import annotations

from fewstep.runtime.verify.document import (
    Divergence,
    TensorError,
    Unavailable,
    Verification,
)
from fewstep.runtime.verify.golden import Recording, record, recordings, replay
from fewstep.runtime.verify.markdown import (
    as_markdown,
    divergence_lines,
    require_report_path,
    unavailable_line,
    write_report,
)
from fewstep.runtime.verify.marks import mark
from fewstep.runtime.verify.metrics import METRICS
from fewstep.runtime.verify.report import LOOP, TITLES, Check, Report
from fewstep.runtime.verify.tolerances import TOLERANCES, Tolerances
from fewstep.runtime.verify.verify import verify

__all__ = [
    "LOOP",
    "METRICS",
    "TITLES",
    "TOLERANCES",
    "Check",
    "Divergence",
    "Recording",
    "Report",
    "TensorError",
    "Tolerances",
    "Unavailable",
    "Verification",
    "as_markdown",
    "divergence_lines",
    "mark",
    "record",
    "recordings",
    "replay",
    "require_report_path",
    "unavailable_line",
    "verify",
    "write_report",
]
