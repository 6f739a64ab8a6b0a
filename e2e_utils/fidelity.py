"""How alike two samples are: Frechet and kernel distances of features, separation of histograms.

Definitions of Kansal et al., arXiv:2211.10295, and the CaloChallenge, arXiv:2410.21611.
"""

import numpy as np

SIZES = 10  # sample sizes of the extrapolation


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """|mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) of samples (n, d), (m, d)."""
    difference = a.mean(0) - b.mean(0)
    c_a, c_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    values, vectors = np.linalg.eigh(c_a)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    # tr (C_a C_b)^(1/2) = tr (C_a^(1/2) C_b C_a^(1/2))^(1/2), which is symmetric
    shared = np.sqrt(np.clip(np.linalg.eigvalsh(root @ c_b @ root), 0, None)).sum()
    return float(difference @ difference + np.trace(c_a) + np.trace(c_b) - 2 * shared)


def fpd(
    real: np.ndarray, generated: np.ndarray, batches: int = 10, seed: int = 0
) -> tuple[float, float]:
    """Frechet physics distance without the bias of finite samples, and its standard error.

    Features (n, d) are divided by the largest |real| of each. The distance of random subsets of
    ten sizes, from a quarter of the events to all of them, evenly spaced in 1/N, is fitted with a
    line; the intercept at 1/N = 0 is the result. Subsets overlap: the error is that of the fit.
    Raises ValueError for fewer than 8 events or for infinite features.
    """
    real, generated = _scaled(real, generated)
    most = min(len(real), len(generated))
    if most < 8:
        raise ValueError(f"8 events or more expected, found {most}")
    sizes = np.round(1 / np.linspace(1 / most, 4 / most, SIZES)).astype(int)
    rng = np.random.default_rng(seed)
    means = []
    for size in sizes:
        draws = [
            frechet_distance(_subset(real, size, rng), _subset(generated, size, rng))
            for _ in range(batches)
        ]
        means.append(np.mean(draws))
    (_, intercept), covariance = np.polyfit(1 / sizes, means, 1, cov=True)
    return float(intercept), float(np.sqrt(covariance[1, 1]))


def polynomial_mmd(a: np.ndarray, b: np.ndarray, degree: int = 4) -> float:
    """Unbiased squared maximum mean discrepancy with kernel (x.y / d + 1)^degree."""
    n, m, d = len(a), len(b), a.shape[1]
    k_aa, k_bb, k_ab = ((x @ y.T / d + 1) ** degree for x, y in ((a, a), (b, b), (a, b)))
    inside = (k_aa.sum() - np.trace(k_aa)) / (n * (n - 1))
    inside += (k_bb.sum() - np.trace(k_bb)) / (m * (m - 1))
    return float(inside - 2 * k_ab.mean())


def kpd(
    real: np.ndarray, generated: np.ndarray, batches: int = 10, size: int = 5000, seed: int = 0
) -> tuple[float, float]:
    """Kernel physics distance: median of `polynomial_mmd` over random batches, and its error.

    Features as in `fpd`; a batch has ``size`` events or half of what there is. The error is half
    of the middle 68 % over the square root of the number of batches.
    """
    real, generated = _scaled(real, generated)
    size = min(size, len(real) // 2, len(generated) // 2)
    rng = np.random.default_rng(seed)
    values = [
        polynomial_mmd(_subset(real, size, rng), _subset(generated, size, rng))
        for _ in range(batches)
    ]
    low, middle, high = np.quantile(values, [0.16, 0.5, 0.84])
    return float(middle), float((high - low) / 2 / np.sqrt(batches))


def separation_power(a: np.ndarray, b: np.ndarray) -> float:
    """1/2 sum (a - b)^2 / (a + b) of histograms made unit-sum: 0 for equal, 1 for disjoint ones."""
    a, b = (np.clip(h, 0, None) / max(np.clip(h, 0, None).sum(), 1e-300) for h in (a, b))
    total = a + b
    return float(0.5 * np.sum((a - b)[total > 0] ** 2 / total[total > 0]))


def _scaled(real: np.ndarray, generated: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    real, generated = (np.asarray(x, np.float64) for x in (real, generated))
    if not (np.isfinite(real).all() and np.isfinite(generated).all()):
        raise ValueError("finite features expected, found NaN or infinity")
    largest = np.abs(real).max(0)
    largest = np.where(largest > 0, largest, 1.0)
    return real / largest, generated / largest


def _subset(x: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    return x[rng.choice(len(x), size, replace=False)]
