"""Figures that compare an engine's arrays with PyTorch's. NaN in either stays NaN in the figure."""

from __future__ import annotations

import numpy as np

from fewstep.runtime.devices import Array

_MAX_PSNR = 120.0


def logit_figures(actual: Array, expected: Array) -> dict[str, list[float]]:
    """The transformer's figures by step.

    Args:
        actual: logits ``[T, B, K, V]`` of the engine.
        expected: those of PyTorch.
    """
    flat = (len(expected), -1)  # [T, B·K·V]
    with np.errstate(invalid="ignore"):  # ∞ − ∞ is NaN, which fails every bar
        error = np.abs(actual - expected).reshape(flat) / _scale(expected)
        divergence = _kl_nats(expected, actual).reshape(flat)
    agreement = (actual.argmax(-1) == expected.argmax(-1)).reshape(flat)
    found = {
        "logit_error": error.max(1),
        "mean_logit_error": error.mean(1, dtype=np.float64),
        "argmax_agreement": agreement.mean(1),
        "kl_nats": divergence.mean(1),
    }
    return {figure: values.tolist() for figure, values in found.items()}


def largest_errors(actual: Array, expected: Array) -> list[float]:
    """Per step (the first axis) the largest difference, over max(1, largest magnitude of all)."""
    with np.errstate(invalid="ignore"):
        error = np.abs(actual - expected).reshape(len(expected), -1) / _scale(expected)
    return [float(each) for each in error.max(1)]


def psnr(actual: Array, expected: Array, *, peak: float) -> float:
    """Peak signal-to-noise ratio in dB, at most 120."""
    error = float(np.mean((np.asarray(actual, np.float64) - expected) ** 2))
    if error == 0:
        return _MAX_PSNR
    value = 10 * float(np.log10(peak**2 / error))
    return value if value != value else min(_MAX_PSNR, value)  # NaN fails every bar


def _scale(expected: Array) -> float:
    return max(1.0, float(np.abs(expected).max()))


def _kl_nats(expected: Array, actual: Array) -> Array:
    """KL(softmax(expected) ‖ softmax(actual)) over the last axis, in nats."""
    p, q = _log_softmax(expected), _log_softmax(actual)
    # Rounding alone can take the sum below 0, by about 10⁻¹⁶.
    divergence: Array = np.maximum((np.exp(p) * (p - q)).sum(-1), 0.0)
    return divergence


def _log_softmax(logits: Array) -> Array:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result
