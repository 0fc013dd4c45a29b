"""Precision and recall against the definition, pair by pair; and what must hold of them.

The Fréchet distance is tested in ``tests/calibration/policy/test_distances.py``; here it is
compared once more, with the other formula: the eigenvalues of C₁·C₂.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.calibration.evaluation import metrics
from fewstep.calibration.evaluation.metrics import inception_score, precision_recall
from fewstep.calibration.policy.distances import Matrix, frechet_distance


def _by_definition(generated: Matrix, real: Matrix, k: int) -> tuple[float, float]:
    def radius(of: Matrix, i: int) -> float:
        others = sorted(math.dist(of[i], each) for j, each in enumerate(of) if j != i)
        return others[k - 1]

    def inside(point: Matrix, of: Matrix) -> bool:
        return any(math.dist(point, centre) <= radius(of, j) for j, centre in enumerate(of))

    precision = sum(inside(each, real) for each in generated) / len(generated)
    return precision, sum(inside(each, generated) for each in real) / len(real)


@given(st.integers(0, 2**32), st.integers(1, 4), st.floats(0, 2), st.integers(1, 4))
def test_precision_and_recall_are_those_of_the_definition(
    seed: int, width: int, shift: float, k: int
) -> None:
    rng = np.random.default_rng(seed)
    generated = rng.standard_normal((9, width)) + shift
    real = rng.standard_normal((12, width))
    found = precision_recall(generated, real, neighbours=k)
    assert found == pytest.approx(_by_definition(generated, real, k))


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    sets = rng.standard_normal((23, 5)), rng.standard_normal((31, 5)) * 1.5
    whole = precision_recall(*sets)
    monkeypatch.setattr(metrics, "_BLOCK", 7)
    assert precision_recall(*sets) == whole
    assert whole[0] > 0 and 0 < whole[1] < 1


def test_equal_sets_have_precision_and_recall_one() -> None:
    features = np.random.default_rng(1).standard_normal((50, 8)).astype(np.float32)
    assert precision_recall(features, features) == (1.0, 1.0)
    shuffled = features[::-1]
    assert precision_recall(shuffled, features) == (1.0, 1.0)


def test_images_that_are_there_many_times_are_inside_their_own_ball() -> None:
    """Balls of no width: distances between equal vectors have to be exactly zero."""
    features = np.random.default_rng(2).uniform(5, 9, (6, 1280)).astype(np.float32).repeat(5, 0)
    assert precision_recall(features, features) == (1.0, 1.0)


def test_few_modes_cost_recall_and_strays_cost_precision() -> None:
    rng = np.random.default_rng(3)
    modes = np.array([[0.0, 0.0], [100.0, 0.0]])
    real = modes.repeat(40, 0) + rng.standard_normal((80, 2))
    one_mode = real[:40] + 0.01
    precision, recall = precision_recall(one_mode, real)
    assert precision == 1.0 and recall == pytest.approx(0.5, abs=0.05)
    strays = np.concatenate([real, [[0.0, 500.0]] * 20 + rng.standard_normal((20, 2)) * 9])
    precision, recall = precision_recall(strays, real)
    assert precision == pytest.approx(0.8) and recall == 1.0


@pytest.mark.parametrize(("rows", "width"), [((3, 9), (4, 4)), ((9, 9), (4, 5))])
def test_too_few_rows_or_other_widths_are_refused(
    rows: tuple[int, int], width: tuple[int, int]
) -> None:
    sets = [np.zeros((n, d)) for n, d in zip(rows, width, strict=True)]
    with pytest.raises(ValueError, match="equal width and more than 3 rows"):
        precision_recall(*sets)


def test_frechet_distance_by_the_eigenvalues_of_the_product() -> None:
    rng = np.random.default_rng(4)
    a = rng.standard_normal((60, 6)) @ rng.standard_normal((6, 6))
    b = rng.standard_normal((70, 6)) @ rng.standard_normal((6, 6)) + 1
    covariances = [np.cov(each.T) for each in (a, b)]
    roots = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).astype(complex)).real.sum()
    shift = a.mean(0) - b.mean(0)
    expected = shift @ shift + sum(map(np.trace, covariances)) - 2 * roots
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_the_inception_score_of_sure_and_even_classes_is_their_number() -> None:
    """And 1 where all images are the same, in every split."""
    logits = np.tile(50 * np.eye(4), (500, 1))
    mean, deviation = inception_score(logits)
    assert mean == pytest.approx(4, rel=0.03) and 0 < deviation < 0.05
    assert inception_score(np.ones((300, 7))) == pytest.approx((1, 0))


@given(st.integers(2, 450))
def test_splits_of_the_inception_score_hold_every_image_once(count: int) -> None:
    """As many as hundreds of images, one at least, with torch-fidelity's order."""
    logits = np.random.default_rng(count).standard_normal((count, 5)) * 3
    order = np.random.RandomState(2020).permutation(count)
    parts = max(1, count // 100)
    scores = []
    for part in range(parts):
        rows = order[part * count // parts : (part + 1) * count // parts]
        p = np.exp(logits[rows]) / np.exp(logits[rows]).sum(1, keepdims=True)
        entropies = -(p * np.log(p)).sum(1).mean(), -(p.mean(0) * np.log(p.mean(0))).sum()
        scores.append(math.exp(entropies[1] - entropies[0]))  # mutual information
    expected = float(np.mean(scores)), float(np.std(scores))
    assert inception_score(logits) == pytest.approx(expected, abs=1e-9)
