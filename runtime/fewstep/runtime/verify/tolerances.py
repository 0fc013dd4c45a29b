"""What a replay must reach in each precision.

Measured with ONNX Runtime on a CPU, the worse of two rollouts: on the bundle of
``samples/fashion``, whose logits reach 8, and on AdaNAT-L's shapes with random weights (L):

===========  ===========  ================  =======  ================  =======  ===============
precision    logit_error  mean_logit_error  kl_nats  argmax_agreement  psnr_db  token_agreement
===========  ===========  ================  =======  ================  =======  ===============
fp32         6.9e-7       6.4e-8            8.6e-13  1                 120      1
fp32, L      9.4e-7       1.7e-7            1.2e-13  1                 107      1
fp16         2.0e-4       2.1e-5            3.6e-8   1                 78.2     1
fp16, L      7.3e-4       1.3e-4            6.1e-8   1                 56.9     0.96
bf16 *       6.7e-3       6.5e-4            3.1e-5   0.984             57.2     0.53
int8 **      3.1e-2       2.7e-3            5.8e-4   0.984             42.2     0.30
===========  ===========  ================  =======  ================  =======  ===============

``*`` emulated: in fp32, with inputs and outputs of what would be bf16 rounded to it. ``**``
products and convolutions with QDQ nodes from ``quantize_static``, calibrated on the golden
rollouts, attention and heads left out. Nothing has run in fp8, whose tolerances are those of int8.
The policies of both bundles give exactly 0 in every precision, so tolerances on actions are those
on logits. Latents were measured on f̂ of VARs with random weights, after the last scale:

===========  ===================================  =================================
precision    4 scales, 16 channels of 4×4         10 scales, 32 channels of 16×16
===========  ===================================  =================================
fp32         6.2e-8                               1.4e-7
fp16         1.3e-4                               2.6e-4
===========  ===================================  =================================

Noise of a diffusion, and the tokens at the end of a free run, were measured on the MAR of
``samples/fashion``, and on MAR-B's shapes with random weights (B), in 8 iterations of 10 diffusion
steps:

===========  =================  ===========  ==========
precision    latent_error of z  noise_error  loop_error
===========  =================  ===========  ==========
fp32         3.3e-7             2.3e-6       1.2e-6
fp32, B      1.4e-6             1.5e-6       1.4e-6
fp16         6.5e-4             6.9e-4       5.4e-4
fp16, B      1.3e-3             6.7e-4       3.5e-4
===========  =================  ===========  ==========

States of texts were measured on the encoder of ``samples/emoji`` (all-MiniLM-L6-v2); in int8 its
weights alone are quantized:

===========  ===========  ============
precision    state_error  state_cosine
===========  ===========  ============
fp32         3.4e-7       1
fp16         1.7e-4       1
int8         2.9e-2       0.999
===========  ===========  ============

Codes of pictures were measured on the encoders of ``samples/fashion``, in bf16 as OpenVINO computes
it: of the golden rollout, and of 100 generated images (N, ``tests/benchmarks/encoded_codes.py``).
The search of the nearest code stays in fp32 in fp16 graphs, and nothing of an encoder is quantized:

===========  ==============================  ====================================
precision    512 codes, 8×8 tokens           VAR: 512 codes, 1 … 8 in 6 scales
===========  ==============================  ====================================
fp32         1                               1
fp16         1                               0.996
fp16, N      0.999                           0.997
bf16         0.945                           0.927
===========  ==============================  ====================================

bf16 has three bits fewer. What makes f̂ of tokens is never quantized: with int8 it is as in fp32
or fp16.

The tolerances of fp32 are about 20 times what was measured. Another order of summation passes; TF32
(10 bits, as fp16) does not, nor did one wrong weight among L's 194 million, 3.6e-5 of the largest
logit. Those of lower precisions are acceptance tolerances, with room for other models: single wrong
weights can hide below them. The mean error may be a tenth of the largest, as was measured nearly
everywhere. Logits whose errors have the standard deviation σ give a KL divergence near σ²/2; its
tolerances are about that for the mean error's, σ being 1.25 of it, on logits that reach 10 to 20.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerances:
    """What a replay must reach: the metrics of the module's table, by the same names.

    An infinite tolerance means that the metric is reported and not judged.
    """

    logit_error: float
    argmax_agreement: float
    token_agreement: float
    psnr_db: float
    mean_logit_error: float = math.inf
    kl_nats: float = math.inf
    action_error: float = math.inf
    latent_error: float = math.inf
    state_error: float = math.inf
    state_cosine: float = -math.inf
    noise_error: float = math.inf
    loop_error: float = math.inf
    code_agreement: float = -math.inf


_EIGHT_BITS = Tolerances(
    logit_error=3e-1,
    mean_logit_error=3e-2,
    argmax_agreement=0.80,
    kl_nats=5e-2,
    action_error=3e-1,
    latent_error=5e-2,
    state_error=1e-1,
    state_cosine=0.99,
    noise_error=3e-1,
    loop_error=1.0,
    psnr_db=25.0,
    code_agreement=0.8,
    token_agreement=0.1,
)

TOLERANCES: dict[str, Tolerances] = {
    # Differences of rounding only; a free-running token may flip on a tie.
    "fp32": Tolerances(
        logit_error=2e-5,
        mean_logit_error=2e-6,
        argmax_agreement=0.999,
        kl_nats=1e-9,
        action_error=2e-5,
        latent_error=3e-6,
        state_error=1e-5,
        state_cosine=0.999999,
        noise_error=1e-4,
        loop_error=5e-2,
        psnr_db=80.0,
        code_agreement=0.99,
        token_agreement=0.99,
    ),
    # Acceptance tolerances for reduced precision: a flipped token changes every later step, so
    # that free-running agreement says little, and the metrics with forced decisions decide.
    "fp16": Tolerances(
        logit_error=2e-2,
        mean_logit_error=2e-3,
        argmax_agreement=0.98,
        kl_nats=1e-3,
        action_error=2e-2,
        latent_error=5e-3,
        state_error=5e-3,
        state_cosine=0.9999,
        noise_error=2e-2,
        loop_error=2e-1,
        psnr_db=40.0,
        code_agreement=0.95,
        token_agreement=0.5,
    ),
    "bf16": Tolerances(
        logit_error=1e-1,
        mean_logit_error=1e-2,
        argmax_agreement=0.93,
        kl_nats=1e-2,
        action_error=1e-1,
        latent_error=5e-2,
        state_error=1e-1,
        state_cosine=0.999,
        noise_error=1e-1,
        loop_error=5e-1,
        psnr_db=32.0,
        code_agreement=0.8,
        token_agreement=0.1,
    ),
    "int8": _EIGHT_BITS,
    "fp8": _EIGHT_BITS,
}
