"""What ``sample_tokens`` makes, for tests of tokens and of confidences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fewstep.runtime.kernels.choices import CONFIDENCES
from fewstep.runtime.kernels.sample_tokens import sample_tokens

DRAWS = 40_000
VOCABULARIES = (1, 2, 63, 64, 65, 100, 127, 128, 129, 130, 300)
Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Sampled:
    """Ids and confidences ``[B, N]``, and the error flag."""

    tokens: Ids
    confidence: Floats
    error: int


def draw(
    logits: Floats,
    *,
    unconditional: Floats | None = None,
    shared: bool = False,
    sampling: float = 1.0,
    masking: float = 0.0,
    guidance: float = 0.0,
    seed: int = 7,
    step: int = 0,
) -> Sampled:
    """One image of ``DRAWS`` positions that all have the same logits."""

    def everywhere(row: Floats) -> Floats:
        return np.tile(row.astype(np.float32), (1, DRAWS, 1))

    other = None if unconditional is None else everywhere(unconditional)
    images = 2 if shared else 1  # a second image, so that [1, N, V] is shared and not its own
    return sample(
        everywhere(logits).repeat(images, axis=0),
        other,
        np.full((images, DRAWS), len(logits), np.int32),
        row_of(sampling=sampling, masking=masking, guidance=guidance).repeat(images, axis=0),
        np.arange(seed - images + 1, seed + 1).astype(np.uint64),
        step=step,
    )


def sample(
    conditional: Floats,
    unconditional: Floats | None,
    tokens: Ids,
    parameters: Floats,
    seeds: npt.NDArray[np.uint64],
    *,
    step: int = 0,
    flag: int = 0,
    confidence_of: str = "log-probability",
    mask: npt.NDArray[np.uint8] | None = None,
) -> Sampled:
    sampled = np.full(tokens.shape, -5, np.int32)
    confidence = np.full(tokens.shape, np.nan, np.float32)
    error = np.array([flag], np.int32)
    if unconditional is None:  # without guidance it is not read: a NaN would show
        unconditional = np.full_like(conditional[:1], np.nan)
    sample_tokens(
        conditional=conditional,
        unconditional=unconditional,
        tokens=tokens,
        parameters=parameters,
        seeds=seeds,
        step=step,
        mask_token=conditional.shape[2],
        sampled=sampled,
        confidence=confidence,
        error=error,
        confidence_of=CONFIDENCES.index(confidence_of),
        mask=np.ones(tokens.shape, np.uint8) if mask is None else mask,
        resample=int(mask is not None),
    )
    return Sampled(sampled, confidence, int(error[0]))


def row_of(*, sampling: float = 1.0, masking: float = 0.0, guidance: float = 0.0) -> Floats:
    return np.array([[0.5, masking, sampling, guidance]], np.float32)


def logits_of(codes: int, *, spread: float, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(0, spread, codes).astype(np.float32)


def softmax(logits: Floats, temperature: float) -> npt.NDArray[np.float64]:
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    normalised: npt.NDArray[np.float64] = weights / weights.sum()
    return normalised


def log_softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    found: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return found
