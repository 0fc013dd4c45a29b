"""What a replay must reach in each precision, and where the bars come from."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Thresholds:
    """What a replay must reach: the figures of the module's table, by the same names.

    An infinite bar means that the figure is reported and not judged.
    """

    logit_error: float
    argmax_agreement: float
    token_agreement: float
    psnr_db: float
    mean_logit_error: float = math.inf
    kl_nats: float = math.inf
    action_error: float = math.inf


# Measured on the bundle of samples/fashion with ONNX Runtime on a CPU, the worse of both rollouts:
#
#             logit_error  mean_logit_error  kl_nats  argmax_agreement  psnr_db  token_agreement
#     fp32       @
#     fp16       @
#
# bf16, int8 and fp8 are bars to accept a graph by; nothing here has run in them. Their mean error
# is a tenth of the largest, as in fp32 and fp16, and their KL divergence follows from the largest
# error e: logits off by up to e·R change ln p by at most 2eR (R is their range, 8 to 20 here).
THRESHOLDS: dict[str, Thresholds] = {
    # Differences of rounding only; a free-running token may flip on a tie.
    "fp32": Thresholds(
        logit_error=1e-3,
        mean_logit_error=1e-4,
        argmax_agreement=0.999,
        kl_nats=1e-5,
        action_error=1e-3,
        psnr_db=60.0,
        token_agreement=0.99,
    ),
    # Acceptance bars for reduced precision: a flipped token changes every later step, so free-
    # running agreement says little and the teacher-forced figures decide.
    "fp16": Thresholds(
        logit_error=2e-2,
        mean_logit_error=2e-3,
        argmax_agreement=0.98,
        kl_nats=1e-3,
        action_error=2e-2,
        psnr_db=40.0,
        token_agreement=0.5,
    ),
    "bf16": Thresholds(
        logit_error=1e-1,
        mean_logit_error=1e-2,
        argmax_agreement=0.93,
        kl_nats=1e-2,
        action_error=1e-1,
        psnr_db=32.0,
        token_agreement=0.3,
    ),
    "int8": Thresholds(
        logit_error=3e-1,
        mean_logit_error=3e-2,
        argmax_agreement=0.80,
        kl_nats=5e-2,
        action_error=3e-1,
        psnr_db=25.0,
        token_agreement=0.1,
    ),
    "fp8": Thresholds(
        logit_error=3e-1,
        mean_logit_error=3e-2,
        argmax_agreement=0.80,
        kl_nats=5e-2,
        action_error=3e-1,
        psnr_db=25.0,
        token_agreement=0.1,
    ),
}
