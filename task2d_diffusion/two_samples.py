"""Tests of two samples: coverage, distances, the worst direction, the nearest generator.

Samples are arrays of features (n, d), one row per event.
"""

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from threadpoolctl import threadpool_limits

from e2e_utils.comparison import half_width
from e2e_utils.evaluation import metric_entry
from e2e_utils.fidelity import fpd, kpd, separation_power
from e2e_utils.parallel import side_by_side

TRIED = (10, 15, 25, 40, 60, 100, 150, 250, 400, 600, 1000)  # sizes of samples
COMBINATIONS = 150  # of two or three features, which see what single ones do not


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distances (n, m)."""
    a, b = (torch.as_tensor(np.ascontiguousarray(x), dtype=torch.float32) for x in (a, b))
    return torch.cdist(a, b).numpy()


def neighbourhood(real: np.ndarray, made: np.ndarray, k: int = 5) -> dict[str, np.ndarray]:
    """Precision of each generated event (m,): it lies among real ones; recall of each real one.

    Source: Kynkäänniemi et al., arXiv:1904.06991.
    """
    k = min(k, len(real) - 1, len(made) - 1)
    radius_real, radius_made = (np.partition(distances(x, x), k, 1)[:, k] for x in (real, made))
    d = distances(real, made)  # (real, made)
    return {
        "precision": (d <= radius_real[:, None]).any(0),
        "recall": (d <= radius_made).any(1),
    }


def nearest_distance(x: np.ndarray, pool: np.ndarray, size: int = 500) -> np.ndarray:
    """Distance of each event (n,) to the nearest one of a large pool."""
    parts = [distances(x[k : k + size], pool).min(1) for k in range(0, len(x), size)]
    return np.concatenate(parts)


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
    rng, values = np.random.default_rng(n), []
    for _ in range(draws):
        pair = (x[rng.permutation(len(x))[:n]] for x in (real, made))
        values.append(ks_statistics(*pair).max())
    return float(np.median(p_value(np.array(values), null)))


class WorstDirection:
    """The worst KS statistic over all `directions`, and how many events it needs for a verdict.

    ``real``: features (n, d). Its distribution for samples without a difference is that of
    ``draws`` random divisions, for each of TRIED that is at most half of n.
    """

    def __init__(self, real: np.ndarray, draws: int) -> None:
        self.turn = directions(real.shape[1])
        self.real = real @ self.turn
        sizes = [n for n in TRIED if 2 * n <= len(real)]
        nulls = side_by_side(null_distribution, [(self.real, n, draws) for n in sizes])
        self.nulls = dict(zip(sizes, nulls, strict=True))

    def events_needed(self, made: np.ndarray, level: float = 0.05) -> float:
        """The smallest sample whose median p-value is below ``level``; infinity if none is."""
        turned = made @ self.turn
        for n in (n for n in self.nulls if n <= len(made)):
            if median_p(self.real, turned, n, self.nulls[n]) < level:
                return n
        return np.inf


@threadpool_limits.wrap(limits=1)  # as `judges.grown_trees`
def log_posteriors(real: np.ndarray, made: Sequence[np.ndarray]) -> np.ndarray:
    """ln of the probability (n, generators) that a classifier of generators gives to real events.

    It has learned to name the generator of events ``made``; the one whose events look most real has
    the highest mean.
    """
    model = HistGradientBoostingClassifier(max_iter=40, max_leaf_nodes=15, early_stopping=False)
    model.fit(np.concatenate(made), np.repeat(np.arange(len(made)), [len(x) for x in made]))
    return np.log(model.predict_proba(real).clip(1e-7))


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


class Standardised:
    """Features (n, d) in units of a sample's spread, cut off at 20; constant ones are left out."""

    def __init__(self, real: np.ndarray) -> None:
        self.mean, self.spread = real.mean(0), real.std(0)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        useful = self.spread > 1e-9
        return ((x - self.mean)[:, useful] / self.spread[useful]).clip(-20, 20)


@threadpool_limits.wrap(limits=1)  # it runs in one process per core
def table_distances(real: np.ndarray, made: np.ndarray) -> dict[str, tuple[float, float]]:
    """Separation power, FPD, KPD, precision and recall of features (n, d), each with its error.

    Precision and recall need as many events of both.
    """
    units, n = Standardised(real), min(len(made), len(real))
    rng, again = np.random.default_rng(0), []
    for _ in range(20):
        drawn = (x[rng.integers(len(x), size=len(x))] for x in (real, made))
        again.append(separations(*drawn).mean())
    found = {"separation": (separations(real, made).mean(), float(np.std(again)))}
    found |= {"fpd": fpd(real, made), "kpd": kpd(real, made, size=1000)}
    near = neighbourhood(units(real[:n]), units(made[:n]))
    return found | {name: mean_and_error(x) for name, x in near.items()}


def mean_and_error(x: np.ndarray) -> tuple[float, float]:
    """Mean of numbers (n,) and its standard error."""
    return float(x.mean()), float(x.std() / np.sqrt(len(x)))


def entries_of(trainings: Sequence[dict[str, tuple[float, float]]]) -> dict[str, dict]:
    """`distance_entry` of each number that the trainings have, without the spread: the interval
    contains it."""
    found = {name: distance_entry([one[name] for one in trainings]) for name in trainings[0]}
    kept = ("value", "low", "high")
    return {name: {key: entry[key] for key in kept} for name, entry in found.items()}


def distance_entry(values: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Entry of metrics.json from (value, standard error) of each training: the mean, and a 95 %
    interval over errors and the spread between trainings."""
    v, error = np.array(values, dtype=float).T
    spread = float(v.std(ddof=1)) if len(v) > 1 else None
    half = half_width(float(np.mean(error**2)), [(spread or 0.0) ** 2], [len(v)])
    return metric_entry(v.mean(), v.mean() - half, v.mean() + half, spread)


def each(values: Sequence[float]) -> str:
    """Results of single trainings as text: an interval of three may leave the possible range."""
    return ", ".join(f"{value:.3g}" for value in values)
