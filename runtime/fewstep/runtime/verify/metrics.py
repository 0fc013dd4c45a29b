"""Metrics that compare what an engine gave with what PyTorch gave, by the kind of a tensor.

Each takes two lists of arrays, one a run of the graph, and gives a number a run. NaN in either
stays NaN in the metric, which meets no tolerance.

=============  ====================  =======================================================
kind           metric                meaning
=============  ====================  =======================================================
``logits``     ``logit_error``       max |l − l'| / max(1, max |l|), l PyTorch's logits
..             ``mean_logit_error``  mean |l − l'| over the same range
..             ``argmax_agreement``  fraction of positions with the same most likely code
..             ``kl_nats``           mean of KL(p ‖ p') = Σ p (ln p − ln p'), p = softmax(l)
``action``     ``action_error``      max |a − a'| / max(1, max |a|) of the raw actions
``latents``    ``latent_error``      max |z − z'| / max(1, max |z|)
``states``     ``state_error``       max |h − h'| / max(1, max |h|), h states of texts
..             ``state_cosine``      mean of h·h' / (|h| |h'|) over the positions of texts
``noise``      ``noise_error``       max |ε − ε'| / max(1, max |ε|), of a diffusion that went on
                                     with what it gave
``image``      ``psnr_db``           10 log₁₀(1 / mean squared difference), images in 0 … 1
``tokens``     ``code_agreement``    fraction of equal codes, the nearest ones to an image's latents
=============  ====================  =======================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fewstep.runtime.devices import Array
from fewstep.runtime.families import TensorKind

_MAX_PSNR = 120.0

Arrays = Sequence[Array]


def largest_errors(actual: Arrays, expected: Arrays) -> list[float]:
    """A run's largest difference, over max(1, largest magnitude of all runs)."""
    return [float(each.max()) for each in _errors(actual, expected)]


def mean_errors(actual: Arrays, expected: Arrays) -> list[float]:
    """A run's mean difference, over the same range."""
    return [float(each.mean(dtype=np.float64)) for each in _errors(actual, expected)]


def argmax_agreement(actual: Arrays, expected: Arrays) -> list[float]:
    """Fraction of positions with the same most likely code; codes are the last axis."""
    pairs = zip(actual, expected, strict=True)
    return [float((a.argmax(-1) == e.argmax(-1)).mean()) for a, e in pairs]


def kl_nats(actual: Arrays, expected: Arrays) -> list[float]:
    """Mean KL(softmax(expected) ‖ softmax(actual)) over the last axis, in nats."""
    found = []
    for a, e in zip(actual, expected, strict=True):
        with np.errstate(invalid="ignore"):  # ∞ − ∞ is NaN
            p, q = _log_softmax(e), _log_softmax(a)
            # Rounding alone can take the sum below 0, by about 10⁻¹⁶.
            found.append(float(np.maximum((np.exp(p) * (p - q)).sum(-1), 0.0).mean()))
    return found


def cosines(actual: Arrays, expected: Arrays) -> list[float]:
    """Mean cosine of the last axis over all positions but those expected to be 0, as padding is."""
    found = []
    for a, e in zip(actual, expected, strict=True):
        a, e = a.astype(np.float64), e.astype(np.float64)
        there = np.abs(e).max(-1) > 0
        a, e = a[there], e[there]
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite becomes NaN
            sizes = np.linalg.norm(a, axis=-1) * np.linalg.norm(e, axis=-1)
            products = (a * e).sum(-1) / np.where(sizes == 0, 1.0, sizes)
        found.append(float(products.mean()) if products.size else 1.0)
    return found


def psnr_db(actual: Arrays, expected: Arrays) -> list[float]:
    """Peak signal-to-noise ratio of images in 0 … 1, at most 120 dB."""
    return [_psnr(a, e) for a, e in zip(actual, expected, strict=True)]


def agreements(actual: Arrays, expected: Arrays) -> list[float]:
    """Fraction of equal numbers."""
    return [float((a == e).mean()) for a, e in zip(actual, expected, strict=True)]


Metric = Callable[[Arrays, Arrays], list[float]]

METRICS: Mapping[TensorKind, Mapping[str, Metric]] = {
    "logits": {
        "logit_error": largest_errors,
        "mean_logit_error": mean_errors,
        "argmax_agreement": argmax_agreement,
        "kl_nats": kl_nats,
    },
    "action": {"action_error": largest_errors},
    "latents": {"latent_error": largest_errors},
    "states": {"state_error": largest_errors, "state_cosine": cosines},
    "noise": {"noise_error": largest_errors},
    "image": {"psnr_db": psnr_db},
    "tokens": {"code_agreement": agreements},
}
"""By the kind of a graph's output; outputs of other kinds are not compared."""


def _errors(actual: Arrays, expected: Arrays) -> list[Array]:
    scale = max(1.0, *(float(np.abs(each).max()) for each in expected))
    with np.errstate(invalid="ignore"):
        return [np.abs(a - e) / scale for a, e in zip(actual, expected, strict=True)]


def _psnr(actual: Array, expected: Array) -> float:
    return psnr_of(float(np.mean((np.asarray(actual, np.float64) - expected) ** 2)))


def psnr_of(error: float) -> float:
    """Peak signal-to-noise ratio, at most 120 dB, of images in 0 … 1 with a mean squared error."""
    if error == 0:
        return _MAX_PSNR
    value = 10 * float(np.log10(1 / error))
    return value if value != value else min(_MAX_PSNR, value)


def _log_softmax(logits: Array) -> Array:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result
