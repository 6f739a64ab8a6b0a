"""Tests of two samples without a training: coverage, copies, and the worst direction.

Samples are arrays of features (n, d), one row per event.
"""

from collections.abc import Sequence

import numpy as np
import torch

from e2e_utils.comparison import half_width
from e2e_utils.evaluation import metric_entry
from e2e_utils.fidelity import separation_power

COMBINATIONS = 150  # of two or three features, which see what single ones do not


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distances (n, m)."""
    a, b = (torch.as_tensor(np.ascontiguousarray(x), dtype=torch.float32) for x in (a, b))
    return torch.cdist(a, b).numpy()


def neighbourhood(real: np.ndarray, made: np.ndarray, k: int = 5) -> dict[str, np.ndarray]:
    """Precision and density of each generated event (m,), recall and coverage of each real one.

    Sources: Kynkäänniemi et al., arXiv:1904.06991; Naeem et al., arXiv:2002.09797.
    """
    k = min(k, len(real) - 1, len(made) - 1)
    radius_real, radius_made = (np.partition(distances(x, x), k, 1)[:, k] for x in (real, made))
    d = distances(real, made)  # (real, made)
    inside = d <= radius_real[:, None]
    return {
        "precision": inside.any(0),
        "density": inside.sum(0) / k,
        "recall": (d <= radius_made).any(1),
        "coverage": inside.any(1),
    }


def nearest_distance(x: np.ndarray, pool: np.ndarray, size: int = 500) -> np.ndarray:
    """Distance of each event (n,) to the nearest one of a large pool."""
    parts = [distances(x[k : k + size], pool).min(1) for k in range(0, len(x), size)]
    return np.concatenate(parts)


def duplicate_rate(x: np.ndarray, threshold: float) -> float:
    """Share of pairs of events that are nearer than ``threshold``; at least one pair counts."""
    pair = torch.nn.functional.pdist(torch.as_tensor(x, dtype=torch.float32))
    return max(int((pair < threshold).sum()), 1) / len(pair)


def birthday_support(rate: float) -> float:
    """Support of a sample whose pairs are duplicates with ``rate``: the square of the batch size
    with a 50 % chance of a duplicate. Source: Arora, Zhang, arXiv:1706.08224."""
    return 2 * np.log(2) / rate


def directions(k: int, seed: int = 0) -> np.ndarray:
    """The features themselves and random combinations of two or three: (k, k + COMBINATIONS)."""
    rng = np.random.default_rng(seed)
    mixed = np.zeros((k, COMBINATIONS))
    for column in range(COMBINATIONS):
        chosen = rng.choice(k, min(k, 2 + column % 2), replace=False)
        mixed[chosen, column] = rng.choice([-1, 1], len(chosen)) * rng.uniform(0.5, 1, len(chosen))
    return np.concatenate([np.eye(k), mixed], 1)


def ks_statistics(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """sqrt(n m / (n + m)) sup |F_a - F_b| of every column; equal values count as one step."""
    pooled = np.concatenate([a, b])
    order = np.argsort(pooled, 0)
    step = np.where(order < len(a), 1 / len(a), -1 / len(b))
    gap = np.abs(np.cumsum(step, 0))
    value = np.take_along_axis(pooled, order, 0)
    gap[:-1][value[1:] == value[:-1]] = 0  # within a tie
    return gap.max(0) * np.sqrt(len(a) * len(b) / (len(a) + len(b)))


def null_distribution(real: np.ndarray, n: int, draws: int, seed: int = 0) -> np.ndarray:
    """Worst KS statistic, sorted, of random divisions of real events into n against n."""
    rng, values = np.random.default_rng(seed), []
    for _ in range(draws):
        rows = rng.permutation(len(real))[: 2 * n]
        values.append(ks_statistics(real[rows[:n]], real[rows[n:]]).max())
    return np.sort(values)


def p_value(statistic: float | np.ndarray, null: np.ndarray) -> np.ndarray:
    """(1 + number of null values at or above) / (1 + number of null values)."""
    return (1 + len(null) - np.searchsorted(null, statistic, "left")) / (1 + len(null))


def median_p(real: np.ndarray, made: np.ndarray, n: int, null: np.ndarray, draws: int = 9) -> float:
    """Median p-value of the worst KS statistic over random samples of n events each."""
    rng = np.random.default_rng(n)
    values = [
        ks_statistics(
            real[rng.permutation(len(real))[:n]], made[rng.permutation(len(made))[:n]]
        ).max()
        for _ in range(draws)
    ]
    return float(np.median(p_value(np.array(values), null)))


def separations(real: np.ndarray, made: np.ndarray, bins: int = 20) -> np.ndarray:
    """Separation power of every feature (k,), in bins of equal population of the real events."""
    edges = np.quantile(real, np.linspace(0, 1, bins + 1)[1:-1], axis=0)  # (bins - 1, k)
    places = [(x[:, None] > edges).sum(1).T for x in (real, made)]  # (k, n) each
    return np.array(
        [
            separation_power(*(np.bincount(p, minlength=bins) for p in pair))
            for pair in zip(*places, strict=True)
        ]
    )


def distance_entry(values: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Entry of metrics.json from (value, standard error) of each training: the mean, and a 95 %
    interval over errors and the spread between trainings."""
    v, error = np.array(values, dtype=float).T
    spread = float(v.std(ddof=1)) if len(v) > 1 else None
    half = half_width(float(np.mean(error**2)), [(spread or 0.0) ** 2], [len(v)])
    return metric_entry(v.mean(), v.mean() - half, v.mean() + half, spread)
