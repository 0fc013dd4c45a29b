"""Replaying golden rollouts: does this engine compute what PyTorch computed?

Teacher-forced: the recorded tokens of every step go through the transformer (and policy), so one
wrong token cannot hide behind another. Free-running: the same seeds are generated from scratch.

Every figure belongs to a graph, so that a failure says where to look:

==================  ====================  ========================================================
graph               figure                meaning
==================  ====================  ========================================================
``transformer``     ``logit_error``       max |l − l'| / max(1, max |l|), l PyTorch's logits
..                  ``mean_logit_error``  mean |l − l'| over the same range
..                  ``argmax_agreement``  fraction of positions with the same most likely code
..                  ``kl_nats``           mean of KL(p ‖ p') = Σ p (ln p − ln p'), p = softmax(l)
the policy          ``action_error``      max |a − a'| / max(1, max |a|) of the raw actions
``decoder``         ``psnr_db``           10 log₁₀(1 / mean squared difference), images in 0…1
``loop``            ``token_agreement``   fraction of equal final tokens, free-running
==================  ====================  ========================================================

The policy reads the features of the transformer under test, so a wrong transformer can fail its
figure too. Polygraphy's comparers judge each output array against one tolerance, and have neither
a divergence of distributions nor a fraction of equal codes; none fits.
"""

from __future__ import annotations

from fewstep.runtime.verify.document import (
    Divergence,
    TensorError,
    Unavailable,
    Verification,
)
from fewstep.runtime.verify.figures import largest_errors, logit_figures, psnr
from fewstep.runtime.verify.markdown import (
    as_markdown,
    divergence_lines,
    require_report_path,
    unavailable_line,
    write_report,
)
from fewstep.runtime.verify.marks import mark
from fewstep.runtime.verify.replay import golden, rollouts, teacher_forced, verify
from fewstep.runtime.verify.report import LOOP, TITLES, Check, Report
from fewstep.runtime.verify.thresholds import THRESHOLDS, Thresholds

__all__ = [
    "LOOP",
    "THRESHOLDS",
    "TITLES",
    "Check",
    "Divergence",
    "Report",
    "TensorError",
    "Thresholds",
    "Unavailable",
    "Verification",
    "as_markdown",
    "divergence_lines",
    "golden",
    "largest_errors",
    "logit_figures",
    "mark",
    "psnr",
    "require_report_path",
    "rollouts",
    "teacher_forced",
    "unavailable_line",
    "verify",
    "write_report",
]
