"""The evaluation's distances against closed forms, direct sums and their invariants."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from fewstep.calibration.policy import distances

Matrix = npt.NDArray[np.float64]


def normal(n: int, d: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> Matrix:
    return np.random.default_rng(seed).normal(shift, scale, (n, d))


def random_covariance(d: int, seed: int) -> Matrix:
    root = normal(d, d, seed)
    return root @ root.T


def test_frechet_of_diagonal_gaussians_is_the_closed_form() -> None:
    # Commuting covariances: |μ₁ − μ₂|² + Σ (σ₁ − σ₂)².
    mean_a, mean_b = np.array([0.0, 1.0, 2.0]), np.array([1.0, -1.0, 2.5])
    sigma_a, sigma_b = np.array([1.0, 2.0, 0.0]), np.array([3.0, 0.5, 1.5])
    expected = ((mean_a - mean_b) ** 2).sum() + ((sigma_a - sigma_b) ** 2).sum()
    found = distances.frechet_of_gaussians(mean_a, np.diag(sigma_a**2), mean_b, np.diag(sigma_b**2))
    assert found == pytest.approx(expected, rel=1e-9)


def test_frechet_square_root_agrees_with_general_eigenvalues() -> None:
    # tr (C₁·C₂)^½ is the sum of the square roots of the eigenvalues of the plain product.
    a, b, zero = random_covariance(6, 1), random_covariance(6, 2), np.zeros(6)
    trace = np.sqrt(np.linalg.eigvals(a @ b).astype(complex)).sum().real
    expected = np.trace(a) + np.trace(b) - 2 * trace
    assert distances.frechet_of_gaussians(zero, a, zero, b) == pytest.approx(expected, rel=1e-8)


def test_frechet_does_not_depend_on_order_or_rotation() -> None:
    a, b = normal(50, 8, 1), normal(60, 8, 2, scale=1.5, shift=0.3)
    rotation = np.linalg.qr(normal(8, 8, 3))[0]
    expected = distances.frechet_distance(a, b)
    assert distances.frechet_distance(b, a) == pytest.approx(expected, rel=1e-8)
    assert distances.frechet_distance(a @ rotation, b @ rotation) == pytest.approx(
        expected, rel=1e-8
    )


def test_frechet_of_a_set_with_itself_is_zero_even_with_fewer_rows_than_columns() -> None:
    few = normal(10, 30, 0)
    assert distances.frechet_distance(few, few) == pytest.approx(0, abs=1e-5)


def test_frechet_of_fitted_gaussians_approaches_the_true_one() -> None:
    a, b = normal(40_000, 3, 1), normal(40_000, 3, 2, scale=2.0, shift=1.0)
    assert distances.frechet_distance(a, b) == pytest.approx(3 * 1 + 3 * 1, rel=0.03)


def test_squared_mmd_is_the_sum_over_pairs() -> None:
    a, b = normal(5, 4, 1), normal(7, 4, 2)

    def kernel(x: Matrix, y: Matrix) -> float:
        return float((x @ y / 4 + 1) ** 3)

    within_a = [kernel(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j]
    within_b = [kernel(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j]
    across = [kernel(x, y) for x in a for y in b]
    expected = np.mean(within_a) + np.mean(within_b) - 2 * np.mean(across)
    assert distances.squared_mmd(a, b) == pytest.approx(expected, rel=1e-10)


def test_kernel_distance_of_one_distribution_is_about_zero_and_repeats() -> None:
    a, b = normal(1500, 16, 1), normal(1500, 16, 2)
    mean, deviation = distances.kernel_distance(a, b, subsets=20, subset_size=300)
    assert abs(mean) < 3 * deviation / np.sqrt(20) + 0.01
    assert (mean, deviation) == distances.kernel_distance(a, b, subsets=20, subset_size=300)


@pytest.mark.parametrize(
    "distance",
    [
        lambda a, b: distances.frechet_distance(a, b),
        lambda a, b: distances.kernel_distance(a, b, subsets=10, subset_size=200)[0],
    ],
    ids=["frechet", "kernel"],
)
def test_distances_rise_with_noise(distance: Callable[[Matrix, Matrix], float]) -> None:
    real, other = normal(800, 12, 1), normal(800, 12, 2)
    noise = normal(800, 12, 3)
    rising = [distance(real, other + strength * noise) for strength in (0.0, 0.5, 1.0, 2.0)]
    assert rising == sorted(rising)
    assert rising[-1] > 10 * abs(rising[0])


@pytest.mark.parametrize("shapes", [((5, 3), (5, 4)), ((1, 3), (5, 3)), ((5,), (5,))])
def test_unfit_shapes_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    a, b = (np.zeros(shape) for shape in shapes)
    for distance in (distances.frechet_distance, distances.kernel_distance):
        with pytest.raises(ValueError, match="equal width"):
            distance(a, b)
