"""Distances between two sets of feature vectors ``[n, d]``: Fréchet and kernel, NumPy only.

* **Fréchet distance** (Heusel et al., NeurIPS 2017, equation 6): the squared 2-Wasserstein
  distance of two Gaussians with the sets' means and covariances,
  ``|μ₁ − μ₂|² + tr(C₁ + C₂ − 2·(C₁·C₂)^½)``. It is biased upwards by few samples, so compare
  only equal counts and look at the floor (real against real).
* **Kernel distance** (Bińkowski et al., ICLR 2018, section 4): the unbiased estimate of the
  squared maximum mean discrepancy (Gretton et al., JMLR 2012, equation 3) under the kernel
  ``k(x, y) = (x·y / d + 1)³``, averaged over random subsets. Real against real gives about 0.

Both depend on the feature network: numbers from another one cannot be compared.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]
Features = npt.NDArray[np.floating]


def frechet_distance(a: Features, b: Features) -> float:
    """Fréchet distance between the Gaussians fitted to two feature sets.

    Raises:
        ValueError: not two matrices of equal width with at least two rows each.
    """
    _check(a, b)
    return frechet_of_gaussians(*gaussian(a), *gaussian(b))


def gaussian(features: Features) -> tuple[Matrix, Matrix]:
    """Mean ``[d]`` and unbiased covariance ``[d, d]``."""
    wide = np.asarray(features, np.float64)
    return wide.mean(0), np.atleast_2d(np.cov(wide, rowvar=False))


def frechet_of_gaussians(mean_a: Matrix, cov_a: Matrix, mean_b: Matrix, cov_b: Matrix) -> float:
    """Fréchet distance of two Gaussians.

    ``(C₁·C₂)^½`` has the trace of ``(C₁^½·C₂·C₁^½)^½``, which is symmetric, so two symmetric
    eigendecompositions replace the square root of a general matrix.
    """
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    mixed = np.linalg.eigvalsh(root @ cov_b @ root).clip(0)
    shift = mean_a - mean_b
    distance = shift @ shift + np.trace(cov_a) + np.trace(cov_b) - 2 * np.sqrt(mixed).sum()
    return float(distance)


def kernel_distance(
    a: Features, b: Features, *, subsets: int = 50, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Kernel distance: mean and standard deviation over random subsets.

    Args:
        a: features ``[n, d]``.
        b: features ``[m, d]``.
        subsets: number of random pairs of subsets.
        subset_size: rows per subset, drawn without replacement; less when a set is smaller.
        seed: of the subsets.

    Raises:
        ValueError: not two matrices of equal width with at least two rows each.
    """
    _check(a, b)
    rng = np.random.default_rng(seed)
    size = min(subset_size, len(a), len(b))
    estimates = [
        squared_mmd(
            a[rng.choice(len(a), size, replace=False)], b[rng.choice(len(b), size, replace=False)]
        )
        for _ in range(subsets)
    ]
    return float(np.mean(estimates)), float(np.std(estimates))


def squared_mmd(a: Features, b: Features) -> float:
    """Unbiased squared maximum mean discrepancy; may be slightly negative."""
    n, m = len(a), len(b)
    within_a, within_b = _kernel(a, a), _kernel(b, b)
    # Pairs of a sample with itself are left out.
    mean_a = (within_a.sum() - np.trace(within_a)) / (n * (n - 1))
    mean_b = (within_b.sum() - np.trace(within_b)) / (m * (m - 1))
    return float(mean_a + mean_b - 2 * _kernel(a, b).mean())


def _kernel(a: Features, b: Features) -> Matrix:
    dots = (a @ b.T).astype(np.float64)  # in the features' own precision
    base: Matrix = dots / a.shape[1] + 1
    return base * base * base


def _check(a: Features, b: Features) -> None:
    fits = a.ndim == b.ndim == 2 and a.shape[1] == b.shape[1] and min(len(a), len(b)) >= 2
    if not fits:
        raise ValueError(
            "expected two feature matrices [n, d] of equal width with at least 2 rows, "
            f"got {list(a.shape)} and {list(b.shape)}"
        )
