"""Metrics in words: their names, and entries with as many digits as the interval allows.

Standard library only.
"""

import math
from collections.abc import Mapping
from typing import Any

METRIC_NAMES = {
    "roc_auc": "ROC-AUC",
    "mae": "MAE",
    "rmse": "RMSE",
    "r2": "R²",
    "mean_relative_error": "mean relative error",
    "fpd": "FPD",
    "kpd": "KPD",
    "c2st_auc_low": "two-sample AUC, low",
    "c2st_auc_high": "two-sample AUC, high",
    "c2st_auc_cnn": "two-sample AUC, CNN",
    "jsd_high": "JSD, high",
    "energy_error": "energy error",  # of the worst channel: |ratio - 1|
    "occupancy_error": "occupancy error",
    "tagger_auc": "tagger ROC-AUC",
    "expected_calibration_error": "calibration error",
    "milliseconds_per_event": "ms per event",
    "background_rejection_50": "background rejection at 50 % efficiency",
    "background_rejection_70": "background rejection at 70 % efficiency",
    "background_rejection_80": "background rejection at 80 % efficiency",
}
MOST_DIGITS = 4  # after the point, of numbers that are not small
SMALL = 0.1


def metric_name(metric: str) -> str:
    """A metric's name as people write it."""
    return METRIC_NAMES.get(metric, metric.replace("_", " "))


def _digits(width: float) -> int:
    """Digits after the point that show two significant ones of a width."""
    return max(0, 1 - math.floor(math.log10(width)))


def digits_of(entry: Mapping[str, float]) -> int:
    """Digits after the point: two significant ones of half the interval, one more for the seeds."""
    half, spread = abs(entry["high"] - entry["low"]) / 2, entry.get("seed_std", 0.0)
    if not (0 < half < math.inf):
        return MOST_DIGITS
    digits = _digits(half)
    if 0 < spread < half:
        digits = min(digits + 1, _digits(spread))
    return digits if abs(entry["value"]) < SMALL else min(digits, MOST_DIGITS)


def format_entry(entry: Mapping[str, float], digits: int | None = None, bold: bool = False) -> str:
    """``0.8049 [0.8012, 0.8085] ± 0.0007``: value, interval, and the spread over several seeds."""
    form, mark = f".{digits_of(entry) if digits is None else digits}f", "**" if bold else ""
    value, low, high = (format(entry[name], form) for name in ("value", "low", "high"))
    text = f"{mark}{value}{mark} [{low}, {high}]"
    if (spread := entry.get("seed_std")) is None:
        return text
    if spread > 0 and not float(format(spread, form)):  # too small for these digits: not zero
        form = f".{_digits(spread) - 1}f"
    return f"{text} ± {spread:{form}}"


def format_lead(entry: Mapping[str, Any]) -> str:
    """``+0.0028 [+0.0014, +0.0042] ▲``: what the headline leads an entry by; else a dash."""
    if (lead := entry.get("lead")) is None:
        return "–"
    form = f"+.{digits_of(lead)}f"
    return f"{lead['value']:{form}} [{lead['low']:{form}}, {lead['high']:{form}}] {lead['mark']}"
