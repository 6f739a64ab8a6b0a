"""Metrics against scikit-learn, closed forms and naive loops; intervals against toys."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn import metrics as reference

from e2e_utils import metrics
from e2e_utils.metrics import bootstrap_interval, paired_bootstrap, resample, roc_auc


def toy(n: int, seed: int, decimals: int = 12) -> tuple[np.ndarray, ...]:
    """Labels, probabilities (rounded, so that they tie) and weights."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    score = 1 / (1 + np.exp(-rng.normal(y - 0.5)))
    return y, score.round(decimals), rng.integers(0, 4, n).astype(float)


@pytest.mark.parametrize("decimals", [12, 2, 1])
@pytest.mark.parametrize("seed", range(5))
def test_against_scikit_learn(seed: int, decimals: int) -> None:
    y, score, w = toy(700, seed, decimals)
    for weight in (None, w):
        options = {"sample_weight": weight}
        assert roc_auc(y, score, weight) == pytest.approx(
            reference.roc_auc_score(y, score, **options), rel=1e-12
        )
        assert metrics.accuracy(y, score, weight) == pytest.approx(
            reference.accuracy_score(y, score >= 0.5, **options)
        )
        assert metrics.log_loss(y, score.clip(0.01, 0.99), weight) == pytest.approx(
            reference.log_loss(y, score.clip(0.01, 0.99), **options)
        )
        fpr, tpr, _ = reference.roc_curve(y, score, drop_intermediate=False, **options)
        used = slice(None) if weight is None else weight > 0  # scikit-learn drops the others
        own_fpr, own_tpr = metrics.roc_curve(
            y[used], score[used], None if weight is None else weight[used]
        )
        np.testing.assert_allclose(own_fpr, fpr, atol=1e-12)
        np.testing.assert_allclose(own_tpr, tpr, atol=1e-12)
        for efficiency in np.sqrt([0.11, 0.26, 0.65]):  # between the points of the curve
            passing = np.interp(efficiency, tpr, fpr)
            assert metrics.background_rejection(y, score, weight, efficiency) == pytest.approx(
                1 / passing, rel=1e-9
            )


def test_regression_against_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(85, 500, 400)
    found, w = truth * rng.normal(1, 0.2, 400), rng.integers(0, 4, 400).astype(float)
    pairs = {
        metrics.mean_absolute_error: reference.mean_absolute_error,
        metrics.root_mean_squared_error: reference.root_mean_squared_error,
        metrics.mean_relative_error: reference.mean_absolute_percentage_error,
        metrics.r_squared: reference.r2_score,
    }
    for ours, theirs in pairs.items():
        for weight in (None, w):
            expected = theirs(truth, found, sample_weight=weight)
            assert ours(truth, found, weight) == pytest.approx(expected, rel=1e-12)
    assert metrics.r_squared(truth, np.full(400, truth.mean())) == pytest.approx(0, abs=1e-12)


def test_weights_are_repetitions() -> None:
    y, score, w = toy(300, 1, 1)
    repeated = np.repeat(np.arange(300), w.astype(int))
    for metric in (
        roc_auc,
        metrics.accuracy,
        metrics.background_rejection,
        metrics.expected_calibration_error,
    ):
        assert metric(y, score, w) == pytest.approx(metric(y[repeated], score[repeated]))


@pytest.mark.parametrize("distance", [0.0, 0.5, 1.2])
def test_two_gaussians(distance: float) -> None:
    n = 100_000  # quantiles in place of random draws: no fluctuation
    quantiles = norm.ppf((np.arange(n) + 0.5) / n)
    y = np.repeat([0, 1], n)
    score = np.concatenate([quantiles, quantiles + distance])
    assert roc_auc(y, score) == pytest.approx(norm.cdf(distance / np.sqrt(2)), abs=2e-5)
    wanted = 1 / norm.sf(norm.isf(0.7) + distance)
    found = metrics.background_rejection(y, score, signal_efficiency=0.7)
    assert found == pytest.approx(wanted, rel=2e-3)


def test_ties_count_one_half() -> None:
    assert roc_auc([0, 1], [0.3, 0.3]) == 0.5
    assert roc_auc([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.8]) == pytest.approx(3.5 / 4)
    assert metrics.background_rejection([0, 1, 0, 1], [0.5] * 4) == pytest.approx(2.0)


def test_rejection_is_bounded_by_the_background_events() -> None:
    y, score = np.r_[np.zeros(40), np.ones(10)], np.arange(50.0)
    assert metrics.background_rejection(y, score) == 40


def test_calibration_error() -> None:
    y, score, _ = toy(5000, 2)
    bins = np.minimum((score * 15).astype(int), 14)
    expected = sum(
        abs(y[bins == b].mean() - score[bins == b].mean()) * np.mean(bins == b)
        for b in np.unique(bins)
    )
    assert metrics.expected_calibration_error(y, score) == pytest.approx(expected)
    assert metrics.expected_calibration_error([0, 1, 1, 1], [0.75] * 4) == 0
    assert metrics.expected_calibration_error([0, 0, 1, 1], [0.0, 0.0, 1.0, 1.0]) == 0
    assert metrics.expected_calibration_error([1, 1, 0, 0], [0.0, 0.0, 1.0, 1.0]) == 1


@pytest.mark.parametrize(
    ("y", "score", "message"),
    [
        ([1, 1], [0.1, 0.2], "both classes"),
        ([0, 1], [0.1, np.nan], "finite"),
        ([0, 1], [0.1], "equal lengths"),
        ([], [], "equal lengths"),
    ],
)
def test_refusals(y: list, score: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        roc_auc(y, score)


def test_resamples_equal_those_of_scikit_learn() -> None:
    y, score, _ = toy(200, 3, 1)
    found = resample(roc_auc, y, [score], n_resamples=20, seed=5)[:, 0]
    rng = np.random.default_rng(5)
    for value in found:
        rows = rng.integers(200, size=200)
        assert value == pytest.approx(reference.roc_auc_score(y[rows], score[rows]))


def test_rows_of_a_group_are_drawn_together() -> None:
    """Every row four times gives the interval of the rows themselves, not half of it."""
    y, score, _ = toy(200, 3, 1)
    once = resample(roc_auc, y, [score], n_resamples=20, seed=5)
    repeated, groups = (np.repeat(values, 4) for values in (score, np.arange(200)))
    grouped = resample(roc_auc, np.repeat(y, 4), [repeated], 20, seed=5, groups=groups + 7)
    np.testing.assert_allclose(grouped, once)
    assert resample(roc_auc, np.repeat(y, 4), [repeated], 20, seed=5).std() < 0.75 * once.std()


def test_interval_covers_the_truth() -> None:
    distance, rng, covered, width = 1.0, np.random.default_rng(0), 0, []
    truth = norm.cdf(distance / np.sqrt(2))
    for trial in range(120):
        y = rng.integers(0, 2, 300)
        score = rng.normal(distance * y)
        value, low, high = bootstrap_interval(roc_auc, y, score, n_resamples=200, seed=trial)
        assert low < value < high
        covered += low < truth < high
        width.append(high - low)
    assert 106 <= covered <= 119  # 114 expected, standard deviation 2.4
    auc_std = np.sqrt(truth * (1 - truth) / 75) / 1.6  # order of magnitude (Hanley & McNeil)
    assert np.mean(width) == pytest.approx(4 * auc_std, rel=0.35)


def test_interval_of_the_mean_over_seeds() -> None:
    y, score, _ = toy(500, 4)
    rng = np.random.default_rng(0)
    scores = [score + rng.normal(0, 1, 500) for _ in range(3)]
    mean = bootstrap_interval(roc_auc, y, scores, 300)
    assert mean.value == pytest.approx(np.mean([roc_auc(y, s) for s in scores]))
    assert mean.low < mean.value < mean.high


def test_deterministic() -> None:
    y, score, _ = toy(200, 5)
    first = bootstrap_interval(roc_auc, y, score, 50, seed=1)
    assert bootstrap_interval(roc_auc, y, score, 50, seed=1) == first
    assert bootstrap_interval(roc_auc, y, score, 50, seed=2) != first


def test_tiny_samples_are_drawn_until_both_classes_occur() -> None:
    interval = bootstrap_interval(roc_auc, [0, 0, 1], [0.1, 0.5, 0.4], 200)
    assert 0 <= interval.low <= interval.high <= 1


def test_regression_metrics_work_too() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=400)

    def mae(y, prediction, weight=None):
        return np.average(np.abs(y - prediction), weights=weight)

    interval = bootstrap_interval(mae, y, y + rng.normal(size=400), 300)
    assert interval.low < np.sqrt(2 / np.pi) < interval.high


def test_paired_difference() -> None:
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, 2000)
    shared = rng.normal(0.8 * y)
    better, worse = shared + rng.normal(0, 0.3, 2000), shared + rng.normal(0, 0.9, 2000)
    result = paired_bootstrap(roc_auc, y, better, worse, 300)
    assert result.difference == pytest.approx(roc_auc(y, better) - roc_auc(y, worse))
    assert 0 < result.low < result.difference < result.high
    assert result.p_value == pytest.approx(2 / 301)
    opposite = paired_bootstrap(roc_auc, y, worse, better, 300)
    assert opposite.difference == -result.difference
    alone = bootstrap_interval(roc_auc, y, better, 300)
    assert result.high - result.low < alone.high - alone.low  # shared fluctuations cancel
    same = paired_bootstrap(roc_auc, y, better, better, 100)
    assert same == (0.0, 0.0, 0.0, 1.0)


def test_p_value_is_uniform_without_a_difference() -> None:
    rng = np.random.default_rng(2)
    p_values = []
    for _ in range(60):
        y = rng.integers(0, 2, 200)
        a, b = rng.normal(y), rng.normal(y)
        p_values.append(paired_bootstrap(roc_auc, y, a, b, 100).p_value)
    assert 0.35 < np.mean(p_values) < 0.65
    assert np.mean(np.array(p_values) < 0.1) < 0.25


def test_roc_band_contains_the_curve() -> None:
    y, score, _ = toy(800, 6)
    grid = np.linspace(0.05, 0.95, 10)
    value, low, high = metrics.roc_band(y, score, grid, n_resamples=100)
    assert (low <= value).all()
    assert (value <= high).all()
    assert (np.diff(value) >= 0).all()
