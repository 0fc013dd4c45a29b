"""Classifier-free guidance of logits (Ho and Salimans, 2021), as AdaNAT scales it.

    l = c + s·(c − u)        c conditional, u unconditional, s the guidance scale; 0 is no guidance

A conditional logit of −∞ stays −∞. The kernels for GPUs, ``sample_tokens.cu`` and
``sample_top_k_top_p.cu``, do the same.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fewstep.runtime.kernels.compiled import helper

Floats = npt.NDArray[np.float32]


@helper
def guide(conditional: Floats, unconditional: Floats, guidance: np.float32, out: Floats) -> None:
    """Logits ``[V]`` of one position into the first V of ``out``."""
    for code in range(len(conditional)):
        c = conditional[code]
        guided = c + guidance * (c - unconditional[code])
        out[code] = c if c == -np.inf else guided  # an excluded code stays excluded
