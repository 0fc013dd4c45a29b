"""Inception Score (Salimans et al., NeurIPS 2016), and precision and recall of generated images
(Kynkäänniemi et al., NeurIPS 2019, section 3.1).

The manifold of a set of features is the union of balls around them, each as wide as the distance to
the k-th nearest other of the set. Precision: the fraction of generated features in the manifold of
real ones; recall: the fraction of real features in the manifold of generated ones. k = 3, as in the
paper and in ADM's evaluator.
"""

from __future__ import annotations

import itertools

import numpy as np

from fewstep.calibration.policy.distances import Features, Matrix
from fewstep.runtime.progress import Progress, no_progress

NEIGHBOURS = 3
_SPLITS, _IN_A_SPLIT = 10, 100  # of the Inception Score, and images at least in each
_SHUFFLE = 2020  # as torch-fidelity seeds it
_BLOCK = 1_000  # rows whose distances are in memory at a time
_ROUNDING = 1e-12  # of squared norms: below it a distance is that of equal vectors


def inception_score(logits: Features) -> tuple[float, float]:
    """Mean and standard deviation over ten splits, or over fewer of at least 100 images.

    A split's score is exp of the mean KL divergence between an image's classes and the split's.
    Images are shuffled as torch-fidelity does, so that scores are the same.

    Args:
        logits: ``[n, classes]``.
    """
    rows = np.random.RandomState(_SHUFFLE).permutation(len(logits))
    shuffled = np.asarray(logits, np.float64)[rows]
    logs = shuffled - shuffled.max(1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(1, keepdims=True))
    count = max(1, min(_SPLITS, len(logs) // _IN_A_SPLIT))
    bounds = [part * len(logs) // count for part in range(count + 1)]
    scores = []
    for first, end in itertools.pairwise(bounds):
        split = logs[first:end]
        chances = np.exp(split)
        divergence = (chances * (split - np.log(chances.mean(0)))).sum(1)
        scores.append(np.exp(divergence.mean()))
    return float(np.mean(scores)), float(np.std(scores))


def precision_recall(
    generated: Features,
    real: Features,
    *,
    neighbours: int = NEIGHBOURS,
    progress: Progress = no_progress,
) -> tuple[float, float]:
    """Precision and recall, 0 … 1.

    Args:
        generated: features ``[n, d]``.
        real: features ``[m, d]``.
        neighbours: k.
        progress: called after every block.

    Raises:
        ValueError: a set with no more than k rows, or of another width.
    """
    if min(len(generated), len(real)) <= neighbours or generated.shape[1:] != real.shape[1:]:
        raise ValueError(
            f"expected two feature matrices [n, d] of equal width and more than {neighbours} rows, "
            f"got {list(generated.shape)} and {list(real.shape)}"
        )
    middle = np.asarray(real, np.float64).mean(0)  # shorter vectors lose fewer digits
    sets = [np.asarray(each, np.float64) - middle for each in (generated, real)]
    radii = []
    for part, each in enumerate(sets):
        radii.append(_radii(each, neighbours))
        progress("precision and recall", (part + 1) / 4)
    precision = _inside(sets[0], sets[1], radii[1])
    progress("precision and recall", 3 / 4)
    recall = _inside(sets[1], sets[0], radii[0])
    progress("precision and recall", 1.0)
    return precision, recall


def _radii(vectors: Matrix, neighbours: int) -> Matrix:
    """Squared distance from each vector to its k-th nearest other; the nearest is itself."""
    return np.concatenate(
        [
            np.partition(_squared(vectors[first : first + _BLOCK], vectors), neighbours, axis=1)[
                :, neighbours
            ]
            for first in range(0, len(vectors), _BLOCK)
        ]
    )


def _inside(vectors: Matrix, centres: Matrix, radii: Matrix) -> float:
    """Fraction of vectors in any ball."""
    found = [
        (_squared(vectors[first : first + _BLOCK], centres) <= radii).any(1)
        for first in range(0, len(vectors), _BLOCK)
    ]
    return float(np.concatenate(found).mean())


def _squared(a: Matrix, b: Matrix) -> Matrix:
    """Squared distances ``[n, m]``; exactly 0 between equal vectors, for balls of no width."""
    norms = (a * a).sum(1)[:, None] + (b * b).sum(1)
    found: Matrix = norms - 2 * (a @ b.T)
    found[found < _ROUNDING * norms] = 0
    return found
