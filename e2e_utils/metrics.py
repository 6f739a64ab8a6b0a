"""Metrics of classifiers and regressions with weights, and bootstrap intervals for any metric.

A metric is a function (y, score, weight=None) -> number or array. Probabilities and scores are
those of class 1; of a regression, y is the truth and score the prediction.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from e2e_utils.kernels import kernel

Metric = Callable[..., float]


def roc_curve(
    y: np.ndarray, score: np.ndarray, weight: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(false, true positive rate) from (0, 0) to (1, 1); equal scores form one step."""
    positive, score, weight = _both_classes(*_sorted(y, score, weight))
    true = np.cumsum(weight * positive)
    false = np.cumsum(weight) - true
    last = np.append(np.flatnonzero(np.diff(score)), len(score) - 1)  # last event of every tie
    tpr = 1 - np.concatenate([[0.0], true[last] / true[-1]])
    fpr = 1 - np.concatenate([[0.0], false[last] / false[-1]])
    return fpr[::-1], tpr[::-1]


def roc_auc(y: np.ndarray, score: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Area under the ROC curve: P(score of a 1 > score of a 0), ties count one half."""
    return float(_auc(*_both_classes(*_sorted(y, score, weight))))


def accuracy(
    y: np.ndarray, score: np.ndarray, weight: np.ndarray | None = None, threshold: float = 0.5
) -> float:
    """Share of events on their side of the threshold."""
    y, score, weight = _checked(y, score, weight)
    return float(np.average((score >= threshold) == (y == 1), weights=weight))


def background_rejection(
    y: np.ndarray,
    score: np.ndarray,
    weight: np.ndarray | None = None,
    signal_efficiency: float = 0.5,
) -> float:
    """1 / background efficiency at a signal efficiency, linear between the points of the ROC.

    Where less than one background event passes, the rejection is only known from below: the
    (weighted) number of background events is returned.
    """
    positive, score, weight = _both_classes(*_sorted(y, score, weight))
    return float(1 / _background_efficiency(positive, score, weight, signal_efficiency))


def calibration_bins(
    y: np.ndarray, score: np.ndarray, weight: np.ndarray | None = None, n_bins: int = 15
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mean probability, share of class 1, weight) of each filled bin of equal width in [0, 1]."""
    y, score, weight = _checked(y, score, weight)
    sums = _bin_sums(y == 1, score, weight, n_bins)
    total, probability, positive = sums[:, sums[0] > 0]
    return probability / total, positive / total, total


def expected_calibration_error(
    y: np.ndarray, score: np.ndarray, weight: np.ndarray | None = None, n_bins: int = 15
) -> float:
    """Mean |share of class 1 - mean probability| over bins (Guo et al. 2017, arXiv:1706.04599).

    Biased upwards by the bins' fluctuations: about 0.8 sqrt(n_bins p (1 - p) / N) at best.
    """
    mean, share, total = calibration_bins(y, score, weight, n_bins)
    return float(np.average(np.abs(share - mean), weights=total))


def log_loss(y: np.ndarray, score: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Mean binary cross-entropy in nats; probabilities are kept 1e-7 from 0 and 1."""
    y, score, weight = _checked(y, score, weight)
    score = np.clip(score, 1e-7, 1 - 1e-7)
    return float(np.average(-np.log(np.where(y == 1, score, 1 - score)), weights=weight))


def mean_absolute_error(
    y: np.ndarray, score: np.ndarray, weight: np.ndarray | None = None
) -> float:
    """Mean |prediction - truth|."""
    y, score, weight = _checked(y, score, weight)
    return float(np.average(np.abs(score - y), weights=weight))


def root_mean_squared_error(
    y: np.ndarray, score: np.ndarray, weight: np.ndarray | None = None
) -> float:
    """Square root of the mean squared difference of prediction and truth."""
    y, score, weight = _checked(y, score, weight)
    return float(np.sqrt(np.average((score - y) ** 2, weights=weight)))


def mean_relative_error(
    y: np.ndarray, score: np.ndarray, weight: np.ndarray | None = None
) -> float:
    """Mean |prediction - truth| / |truth|."""
    y, score, weight = _checked(y, score, weight)
    return float(np.average(np.abs(score - y) / np.abs(y), weights=weight))


def r_squared(y: np.ndarray, score: np.ndarray, weight: np.ndarray | None = None) -> float:
    """1 - squared error / squared error of the mean: 1 is perfect, 0 is the mean."""
    y, score, weight = _checked(y, score, weight)
    residual = np.average((score - y) ** 2, weights=weight)
    mean = np.average(y, weights=weight)
    return float(1 - residual / np.average((y - mean) ** 2, weights=weight))


class Interval(NamedTuple):
    """A value on all events and its bootstrap interval."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """a - b on the same events, its interval and the two-sided p-value of "no difference"."""

    difference: float
    low: float
    high: float
    p_value: float


def resample(
    metric: Metric,
    y: ArrayLike,
    scores: Sequence[ArrayLike],
    n_resamples: int = 1000,
    seed: int = 0,
    groups: ArrayLike | None = None,
) -> np.ndarray:
    """``metric`` of every score on bootstrap resamples: (n_resamples, n_scores[, ...]).

    A resample gives every event a multinomial count as its weight, the same for all scores. Rows
    that share a number in ``groups`` (N,), such as patches of one jet, are drawn together.
    Resamples that lack a class of integer labels are drawn again.
    """
    y = np.asarray(y)
    ordered = []
    for score in map(np.asarray, scores):
        order = np.argsort(score, kind="stable")
        ordered.append((y[order], score[order], order))
    rng = np.random.default_rng(seed)
    member = np.arange(len(y)) if groups is None else np.unique(groups, return_inverse=True)[1]
    draws = (_counts(y, rng, member) for _ in range(n_resamples))
    return np.array([[metric(t, s, c[order]) for t, s, order in ordered] for c in draws])


def bootstrap_interval(
    metric: Metric,
    y: ArrayLike,
    score: ArrayLike | Sequence[ArrayLike],
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of ``metric``; of its mean over models for a list of scores."""
    scores = _as_list(score)
    value = np.mean([metric(y, s) for s in scores])
    samples = resample(metric, y, scores, n_resamples, seed).mean(axis=1)
    return Interval(float(value), *_percentiles(samples, level))


def paired_bootstrap(
    metric: Metric,
    y: ArrayLike,
    score_a: ArrayLike | Sequence[ArrayLike],
    score_b: ArrayLike | Sequence[ArrayLike],
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    groups: ArrayLike | None = None,
) -> Difference:
    """metric(a) - metric(b), both on the same resamples; lists of scores are averaged.

    ``groups`` as in `resample`.
    """
    a, b = _as_list(score_a), _as_list(score_b)
    value = np.mean([metric(y, s) for s in a]) - np.mean([metric(y, s) for s in b])
    samples = resample(metric, y, a + b, n_resamples, seed, groups)
    samples = samples[:, : len(a)].mean(axis=1) - samples[:, len(a) :].mean(axis=1)
    tail = min(np.sum(samples <= 0), np.sum(samples >= 0))
    p_value = min(1.0, 2 * (tail + 1) / (n_resamples + 1))
    return Difference(float(value), *_percentiles(samples, level), float(p_value))


def roc_band(
    y: ArrayLike,
    score: ArrayLike,
    fpr: np.ndarray,
    n_resamples: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(value, low, high) of the true positive rate at each false positive rate."""

    def tpr_at(y: np.ndarray, score: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
        return np.interp(fpr, *roc_curve(y, score, weight))

    samples = resample(tpr_at, y, [score], n_resamples, seed)[:, 0]
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return tpr_at(y, score), low, high


def _as_list(score: ArrayLike | Sequence[ArrayLike]) -> list[np.ndarray]:
    return [np.asarray(score)] if np.ndim(score[0]) == 0 else [np.asarray(s) for s in score]


def _percentiles(samples: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _counts(y: np.ndarray, rng: np.random.Generator, member: np.ndarray) -> np.ndarray:
    n_groups = member.max() + 1
    while True:
        counts = np.bincount(rng.integers(n_groups, size=n_groups), minlength=n_groups)[member]
        if y.dtype.kind not in "iub" or np.ptp(y[counts > 0]) == np.ptp(y):
            return counts


def _checked(
    y: ArrayLike, score: ArrayLike, weight: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    y, score = np.asarray(y), np.asarray(score, dtype=np.float64)
    weight = np.ones(len(y)) if weight is None else np.asarray(weight, dtype=np.float64)
    if not y.shape == score.shape == weight.shape or y.ndim != 1 or len(y) == 0:
        raise ValueError(f"equal lengths expected: {y.shape}, {score.shape}, {weight.shape}")
    if not np.isfinite(score).all():
        raise ValueError("finite scores expected, found NaN or infinity")
    return y, score, weight


def _sorted(
    y: ArrayLike, score: ArrayLike, weight: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(label is 1, score, weight) by ascending score; the bootstrap's events are sorted already."""
    y, score, weight = _checked(y, score, weight)
    if (score[1:] < score[:-1]).any():
        order = np.argsort(score, kind="stable")
        y, score, weight = y[order], score[order], weight[order]
    return y == 1, score, weight


def _both_classes(
    positive: np.ndarray, score: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if not 0 < weight @ positive < weight.sum():
        raise ValueError("events of both classes expected")
    return positive, score, weight


@kernel
def _auc(positive, score, weight):
    """Sum over ties of (weight of class 1) x (class 0 below + half of class 0 in the tie)."""
    area = below = total = tie_zeros = tie_ones = 0.0
    for i in range(len(score)):
        if positive[i]:
            tie_ones += weight[i]
        else:
            tie_zeros += weight[i]
        if i + 1 == len(score) or score[i + 1] != score[i]:
            area += tie_ones * (below + tie_zeros / 2)
            below += tie_zeros
            total += tie_ones
            tie_zeros = tie_ones = 0.0
    return area / (below * total)


@kernel
def _background_efficiency(positive, score, weight, signal_efficiency):
    """Share of class 0 above the cut that passes the wanted share of class 1, at least 1 event."""
    ones = zeros = 0.0
    for i in range(len(score)):
        if positive[i]:
            ones += weight[i]
        else:
            zeros += weight[i]
    wanted = signal_efficiency * ones
    passed = background = tie_zeros = tie_ones = 0.0
    for i in range(len(score) - 1, -1, -1):
        if positive[i]:
            tie_ones += weight[i]
        else:
            tie_zeros += weight[i]
        if i == 0 or score[i - 1] != score[i]:
            if tie_ones > 0 and passed + tie_ones >= wanted:
                background += tie_zeros * (wanted - passed) / tie_ones
                break
            passed += tie_ones
            background += tie_zeros
            tie_zeros = tie_ones = 0.0
    return max(background, 1.0) / zeros


@kernel
def _bin_sums(positive, score, weight, n_bins):
    """Per bin of equal width in [0, 1]: weight, weight x score, weight of class 1; (3, n_bins)."""
    sums = np.zeros((3, n_bins))
    for i in range(len(score)):
        b = min(max(int(score[i] * n_bins), 0), n_bins - 1)
        sums[0, b] += weight[i]
        sums[1, b] += weight[i] * score[i]
        sums[2, b] += weight[i] * positive[i]
    return sums
