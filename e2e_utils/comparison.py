"""Arms compared on the same test events: the interval of a difference contains the training too.

An arm is one way to get scores; each of its trainings gives one array. Two things fluctuate: which
events are in the test set, and how a training ends. The first is the standard deviation of the
paired bootstrap over events, the second the spread s of an arm's k trainings. The variance of the
difference of two arms' means is their sum,

    v = v_events + s_a^2 / k_a + s_b^2 / k_b,

and its 95 % interval is t sqrt(v), with Student's t for Welch's number of degrees of freedom
v^2 / (sum of (s^2 / k)^2 / (k - 1)): the events, of which there are thousands, add none. An arm
that always ends the same way (trees with a fixed seed, a formula) has one array and no spread.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import t as student_t

from e2e_utils.metrics import Metric, resample

UP, DOWN, EQUAL = "▲", "▼", "="


class Difference(NamedTuple):
    """Mean of one arm minus mean of another, with its 95 % interval over events and trainings."""

    value: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def half_width(
    event_variance: float, training_variances: Sequence[float], counts: Sequence[int]
) -> float:
    """Half of the 95 % interval of a difference of means, or of one mean.

    ``training_variances``: s^2 of every arm, ``counts``: its number of trainings k; an arm with one
    training adds nothing. Source: Welch 1947, doi:10.1093/biomet/34.1-2.28.
    """
    parts = [(s2 / k, k) for s2, k in zip(training_variances, counts, strict=True) if k > 1]
    variance = event_variance + sum(part for part, _ in parts)
    spread = sum(part**2 / (k - 1) for part, k in parts)
    degrees = variance**2 / spread if spread > 0 else np.inf
    return float(student_t.ppf(0.975, degrees) * np.sqrt(variance))


class Comparison:
    """Every arm's metric on the same events, and the differences between arms.

    ``scores``: arm -> one array (N,), or one array per training. ``reference`` is the arm that the
    others are compared with in `table`. ``groups`` as in `e2e_utils.metrics.resample`.
    """

    def __init__(
        self,
        metric: Metric,
        y: ArrayLike,
        scores: Mapping[str, ArrayLike | Sequence[ArrayLike]],
        reference: str,
        *,
        higher_is_better: bool = True,
        n_resamples: int = 300,
        seed: int = 0,
        groups: ArrayLike | None = None,
    ) -> None:
        if reference not in scores:
            raise ValueError(f"reference {reference!r} expected among {', '.join(scores)}")
        self.reference, self.higher_is_better = reference, higher_is_better
        trainings = {
            arm: [np.asarray(s)] if np.ndim(s[0]) == 0 else [np.asarray(one) for one in s]
            for arm, s in scores.items()
        }
        flat = [one for ones in trainings.values() for one in ones]
        samples = resample(metric, y, flat, n_resamples, seed, groups)  # (R, all trainings)
        self.values: dict[str, np.ndarray] = {}  # arm -> (k,)
        self._samples: dict[str, np.ndarray] = {}  # arm -> (R,), mean over its trainings
        start = 0
        for arm, ones in trainings.items():
            self.values[arm] = np.array([metric(y, one) for one in ones])
            self._samples[arm] = samples[:, start : start + len(ones)].mean(axis=1)
            start += len(ones)

    def spread(self, arm: str) -> float | None:
        """Standard deviation between an arm's trainings; None for a single one."""
        values = self.values[arm]
        return float(values.std(ddof=1)) if len(values) > 1 else None

    def interval(self, arm: str) -> tuple[float, float, float]:
        """(value, low, high) of an arm's mean over events and trainings."""
        value = float(self.values[arm].mean())
        half = self._half_width(self._samples[arm], arm)
        return value, value - half, value + half

    def entry(self, arm: str, headline: str | None = None) -> dict:
        """`interval` and `spread` as an entry of metrics.json; with the headline's lead over it."""
        value, low, high = self.interval(arm)
        entry: dict = {"value": value, "low": low, "high": high}
        if (spread := self.spread(arm)) is not None:
            entry["seed_std"] = spread
        if headline not in (None, arm):
            lead = self.difference(headline, arm)._asdict()
            entry["lead"] = lead | {"mark": self.mark(headline, arm)}
        return entry

    def difference(self, arm: str, other: str | None = None) -> Difference:
        """``arm`` minus ``other`` (the reference unless given)."""
        other = self.reference if other is None else other
        value = float(self.values[arm].mean() - self.values[other].mean())
        half = self._half_width(self._samples[arm] - self._samples[other], arm, other)
        return Difference(value, value - half, value + half)

    def mark(self, arm: str, other: str | None = None) -> str:
        """▲ if ``arm`` is clearly better than ``other``, ▼ if clearly worse, else =."""
        difference = self.difference(arm, other)
        if not difference.clear:
            return EQUAL
        return UP if (difference.value > 0) == self.higher_is_better else DOWN

    def better(self, arm: str, other: str | None = None) -> bool:
        """Whether ``arm`` is better than ``other`` by more than the interval."""
        return self.mark(arm, other) == UP

    def table(self, digits: int = 4) -> pd.DataFrame:
        """One row per arm, best first: value, interval, spread, difference to the reference."""
        rows = {}
        for arm in sorted(self.values, key=self._rank):
            value, low, high = self.interval(arm)
            spread = self.spread(arm)
            row = [
                f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]",
                "" if spread is None else f"{spread:.{digits + 1}f}",
                "reference",
            ]
            if arm != self.reference:
                d = self.difference(arm)
                text = f"{d.value:+.{digits}f} [{d.low:+.{digits}f}, {d.high:+.{digits}f}]"
                row[-1] = f"{text} {self.mark(arm)}"
            rows[arm] = row
        columns = ["value", "spread of trainings", f"minus {self.reference}"]
        return pd.DataFrame.from_dict(rows, orient="index", columns=columns)

    def _half_width(self, samples: np.ndarray, *arms: str) -> float:
        variances = [0.0 if (s := self.spread(arm)) is None else s**2 for arm in arms]
        counts = [len(self.values[arm]) for arm in arms]
        return half_width(samples.var(ddof=1), variances, counts)

    def _rank(self, arm: str) -> float:
        mean = self.values[arm].mean()
        return -mean if self.higher_is_better else mean
