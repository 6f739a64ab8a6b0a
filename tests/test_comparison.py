"""Comparison of arms: intervals against closed forms, and their coverage."""

import numpy as np
import pytest
from scipy.stats import t as student_t

from e2e_utils.comparison import Comparison, half_width
from e2e_utils.metrics import mean_absolute_error, roc_auc


def mean(y: np.ndarray, score: np.ndarray, weight: np.ndarray | None = None) -> float:
    return float(np.average(score, weights=weight))


def test_half_width_is_students_for_one_arm_and_normal_without_trainings() -> None:
    assert half_width(0.0, [4.0], [3]) == pytest.approx(student_t.ppf(0.975, 2) * 2 / 3**0.5)
    assert half_width(4.0, [0.0, 9.0], [1, 1]) == pytest.approx(2 * 1.959964, rel=1e-6)


def test_half_width_of_equal_spreads_has_twice_the_degrees_of_freedom() -> None:
    expected = student_t.ppf(0.975, 4) * np.sqrt(2 * 5.0 / 3)
    assert half_width(0.0, [5.0, 5.0], [3, 3]) == pytest.approx(expected)


@pytest.mark.parametrize(("spread_a", "spread_b"), [(1, 1), (0.3, 0.3), (2, 2), (1.5, 0)])
def test_coverage_of_the_interval(spread_a: float, spread_b: float) -> None:
    """Spreads in units of the events' error; events and trainings both fluctuate."""
    rng, n_events, trainings, covered = np.random.default_rng(5), 100, 3, 0
    repetitions = 2000
    event_error = np.sqrt(2 / n_events)  # of a difference of independent unit-width scores
    for _ in range(repetitions):
        events = rng.normal(size=(2, 1, n_events))
        shift = rng.normal(size=(2, trainings, 1)) * event_error
        shift *= np.array([spread_a, spread_b])[:, None, None]
        scores = events + shift  # (arm, training, event), both arms with mean zero
        values = scores.mean(axis=2)  # (arm, training)
        difference = values[0].mean() - values[1].mean()
        variance = (events[0, 0] - events[1, 0]).var(ddof=1) / n_events
        half = half_width(variance, values.var(axis=1, ddof=1), [trainings] * 2)
        covered += abs(difference) < half
    assert 0.93 < covered / repetitions < 0.97


def test_the_bootstrap_gives_the_events_part_of_the_variance() -> None:
    rng = np.random.default_rng(1)
    y, a, b = np.zeros(400), rng.normal(size=400), rng.normal(size=400)
    comparison = Comparison(mean, y, {"a": a, "b": b}, "b", n_resamples=2000)
    difference = comparison.difference("a")
    expected = 1.959964 * np.std(a - b) / 20
    assert difference.value == pytest.approx(a.mean() - b.mean())
    assert difference.high - difference.value == pytest.approx(expected, rel=0.06)


def test_correlated_arms_are_paired_and_trainings_widen_the_interval() -> None:
    rng = np.random.default_rng(2)
    y = rng.integers(0, 2, 2000)
    common = y + rng.normal(size=2000)
    close = [common + 0.02 * rng.normal(size=2000) + 0.03 * y for _ in range(3)]
    spread = [common + 0.02 * rng.normal(size=2000) + w * y for w in (-0.1, 0.06, 0.13)]
    comparison = Comparison(
        roc_auc, y, {"plain": common, "close": close, "spread": spread}, "plain"
    )
    assert comparison.better("close")
    assert comparison.mark("plain", "close") == "▼"
    assert comparison.mark("spread") == "="  # its mean is as high, its trainings differ
    assert comparison.spread("plain") is None
    lead = comparison.entry("plain", "close")["lead"]
    assert lead == comparison.difference("close")._asdict() | {"mark": comparison.mark("close")}
    assert "lead" not in comparison.entry("plain") | comparison.entry("close", "close")


def test_the_table_is_sorted_and_knows_which_direction_is_better() -> None:
    rng = np.random.default_rng(3)
    y = rng.normal(size=500)
    scores = {"bad": y + rng.normal(size=500), "good": y + 0.1 * rng.normal(size=500)}
    comparison = Comparison(mean_absolute_error, y, scores, "bad", higher_is_better=False)
    table = comparison.table(digits=3)
    assert list(table.index) == ["good", "bad"]
    assert table.loc["good"].iloc[-1].endswith("▲")
    assert table.loc["bad"].iloc[-1] == "reference"


def test_an_unknown_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="'c' expected among a"):
        Comparison(mean, np.zeros(3), {"a": np.zeros(3)}, "c")
