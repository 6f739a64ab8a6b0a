"""Distances between samples against closed forms."""

import numpy as np
import pytest

from e2e_utils.fidelity import fpd, frechet_distance, kpd, polynomial_mmd, separation_power


def exact_normal(n: int, mean: list[float], covariance: np.ndarray, seed: int = 0) -> np.ndarray:
    """A sample (n, d) whose empirical mean and covariance are exactly those given."""
    x = np.random.default_rng(seed).normal(size=(n, len(mean)))
    x -= x.mean(0)
    white = np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False)))
    return x @ white.T @ np.linalg.cholesky(covariance).T + mean


def test_frechet_distance_of_normals_is_the_formula() -> None:
    a = exact_normal(500, [0, 0], np.diag([4.0, 9.0]), 0)
    b = exact_normal(400, [1, -2], np.diag([1.0, 16.0]), 1)
    # 1 + 4 from the means, (2 - 1)^2 + (3 - 4)^2 from the widths
    assert frechet_distance(a, b) == pytest.approx(7.0, rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-6)


def test_frechet_distance_of_correlated_normals() -> None:
    rng = np.random.default_rng(2)
    c_a, c_b = (m @ m.T + np.eye(3) for m in rng.normal(size=(2, 3, 3)))
    a, b = exact_normal(300, [0] * 3, c_a, 0), exact_normal(300, [0] * 3, c_b, 1)
    root = np.sqrt(np.linalg.eigvals(c_a @ c_b).astype(complex)).real.sum()
    expected = np.trace(c_a) + np.trace(c_b) - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_fpd_removes_the_bias_and_finds_a_shift() -> None:
    rng = np.random.default_rng(0)
    a, b, c = rng.normal(size=(3, 4000, 5))
    scale = np.abs(a).max(0)
    same, error = fpd(a, b)
    assert abs(same) < 5e-4
    assert error < 1e-3
    shifted, _ = fpd(a, c + 1.0)
    assert shifted == pytest.approx(np.sum(1 / scale**2), rel=0.1)
    unbiased = frechet_distance(a[:500] / scale, b[:500] / scale)
    assert abs(same) < unbiased / 5


def test_fpd_does_not_depend_on_units() -> None:
    a, b = np.random.default_rng(1).normal(size=(2, 300, 3))
    units = np.array([1.0, 1000.0, 1e-3])
    assert fpd(a, b)[0] == pytest.approx(fpd(a * units, b * units)[0], rel=1e-6, abs=1e-9)


def test_mmd_against_a_loop() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 6, 3))

    def kernel(x: np.ndarray, z: np.ndarray) -> float:
        return (sum(x[i] * z[i] for i in range(3)) / 3 + 1) ** 4

    pairs = [(i, j) for i in range(6) for j in range(6)]
    expected = sum(kernel(x[i], x[j]) for x in (a, b) for i, j in pairs if i != j) / 30
    expected -= 2 * sum(kernel(a[i], b[j]) for i, j in pairs) / 36
    assert polynomial_mmd(a, b) == pytest.approx(expected)


def test_kpd_of_equal_and_of_shifted_samples() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 600, 4))
    assert abs(kpd(a, b)[0]) < 0.02
    assert kpd(a, b + 2)[0] > 10 * abs(kpd(a, b)[0])


def test_unusable_samples_are_refused() -> None:
    x = np.ones((20, 2))
    with pytest.raises(ValueError, match="8 events"):
        fpd(x[:5], x)
    with pytest.raises(ValueError, match="finite"):
        kpd(x, x * np.nan)


def test_separation_power_has_its_ends() -> None:
    assert separation_power(np.array([1, 2, 0]), np.array([2, 4, 0])) == 0
    assert separation_power(np.array([1, 0]), np.array([0, 5])) == 1
    # (0.5 - 0.25)^2 / 0.75 + (0.5 - 0.75)^2 / 1.25, halved  # noqa: ERA001 a formula
    assert separation_power(np.array([1, 1]), np.array([1, 3])) == pytest.approx(1 / 15)
