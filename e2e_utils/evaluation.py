"""What a run reports: entries with intervals, and the one schema of every task's metrics.json."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import jsonschema
import numpy as np
from numpy.typing import ArrayLike

from e2e_utils.comparison import DOWN, EQUAL, UP, half_width
from e2e_utils.errors import InputError
from e2e_utils.files import atomic_path
from e2e_utils.metrics import (
    Metric,
    accuracy,
    background_rejection,
    expected_calibration_error,
    mean_absolute_error,
    mean_relative_error,
    r_squared,
    resample,
    roc_auc,
    root_mean_squared_error,
)
from e2e_utils.profiles import PROFILES

CLASSIFIER_METRICS: dict[str, Metric] = {
    "roc_auc": roc_auc,
    "accuracy": accuracy,
    "background_rejection_50": partial(background_rejection, signal_efficiency=0.5),
    "background_rejection_80": partial(background_rejection, signal_efficiency=0.8),
    "expected_calibration_error": expected_calibration_error,
}
REGRESSION_METRICS: dict[str, Metric] = {
    "mae": mean_absolute_error,
    "rmse": root_mean_squared_error,
    "mean_relative_error": mean_relative_error,
    "r2": r_squared,
}
# Resampling adds to it the fluctuations that bias it already: its interval is reflected.
BIASED_UPWARDS = {"expected_calibration_error"}

_LEAD = {  # the headline minus the arm whose entry it is, `Comparison.entry`
    "type": "object",
    "properties": {
        "value": {"type": "number"},
        "low": {"type": "number"},
        "high": {"type": "number"},
        "mark": {"enum": [UP, DOWN, EQUAL]},
    },
    "required": ["value", "low", "high", "mark"],
    "additionalProperties": False,
}
_ENTRY = {
    "type": "object",
    "properties": {
        "value": {"type": "number"},
        "low": {"type": "number"},
        "high": {"type": "number"},
        "seed_std": {"type": "number", "minimum": 0},
        "lead": _LEAD,
    },
    "required": ["value", "low", "high"],
    "additionalProperties": False,
}
_ENTRIES = {"type": "object", "additionalProperties": _ENTRY}
_MODELS = {  # name of a model -> its entries, and "info": parameters, flops, description
    "type": "object",
    "additionalProperties": {
        "type": "object",
        "properties": {"info": {"type": "object"}},
        "additionalProperties": _ENTRY,
    },
}
_COUNT = {"type": "number", "minimum": 0}
METRICS_SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "task": {"type": "string", "minLength": 1},
        "title": {"type": "string"},
        "profile": {"enum": list(PROFILES)},
        "data": {
            "type": "object",
            "properties": {
                "source": {"enum": ["official", "standin", "file"]},
                "train": _COUNT,
                "validation": _COUNT,
                "test": _COUNT,
                "fingerprint": {"type": "string"},
            },
            "required": ["source", "train", "validation", "test", "fingerprint"],
        },
        "seeds": {"type": "array", "items": {"type": "integer"}, "minItems": 1},
        "headline": {"type": "string"},
        "metrics": {**_ENTRIES, "minProperties": 1},
        "baselines": _MODELS,
        "floors": _MODELS,
        "arms": _MODELS,
        "variants": {},
        # What the prose of the notebook asserts -> whether this run shows it.
        "claims": {"type": "object", "additionalProperties": {"type": "boolean"}},
        "parameters": _COUNT,
        "flops": _COUNT,
        "published": {"type": "array", "items": {"type": "string"}, "minItems": 1},
        "device": {"type": "string"},
        "seconds": _COUNT,
        "provenance": {"type": "object"},
    },
    "required": [
        "task", "profile", "data", "seeds", "headline", "metrics", "baselines", "floors", "arms",
        "parameters", "flops", "device", "seconds", "provenance",
    ],
    "additionalProperties": False,
}  # fmt: skip


def metric_entry(
    value: float, low: float, high: float, seed_std: float | None = None
) -> dict[str, float]:
    """One entry of metrics.json; ``seed_std`` only where several seeds were trained."""
    entry = {"value": float(value), "low": float(low), "high": float(high)}
    return entry if seed_std is None else {**entry, "seed_std": float(seed_std)}


def evaluate(
    metrics: Mapping[str, Metric],
    y: ArrayLike,
    scores: ArrayLike | Sequence[ArrayLike],
    n_resamples: int = 1000,
    seed: int = 0,
    groups: ArrayLike | None = None,
) -> dict[str, dict[str, float]]:
    """Entries of several metrics for one model, or for one model trained with several seeds.

    The value is the mean over the seeds, ``seed_std`` the spread between them. The interval (95 %)
    is that of this mean under resampling of the events, or of whole ``groups`` (N,) of them,
    stretched to contain the spread too (`e2e_utils.comparison.half_width`). Metrics
    ``BIASED_UPWARDS`` have the interval reflected at the value ("basic" bootstrap) and cut at zero.
    """
    scores = [scores] if np.ndim(scores[0]) == 0 else list(scores)

    def all_metrics(*arguments: np.ndarray) -> list[float]:
        return [metric(*arguments) for metric in metrics.values()]

    values = np.array([all_metrics(y, score) for score in scores])  # (seeds, metrics)
    samples = resample(all_metrics, y, scores, n_resamples, seed, groups).mean(axis=1)
    intervals = np.quantile(samples, [0.025, 0.975], axis=0).T  # (metrics, 2)
    entries = {}
    variances = samples.var(axis=0, ddof=1) if n_resamples > 1 else np.zeros(len(metrics))
    for name, column, (low, high), variance in zip(
        metrics, values.T, intervals, variances, strict=True
    ):
        value = column.mean()
        spread = np.std(column, ddof=1) if len(column) > 1 else None
        if spread is not None and variance > 0:
            alone = half_width(variance, [], [])
            stretch = half_width(variance, [spread**2], [len(column)]) / alone
            low, high = value - stretch * (value - low), value + stretch * (high - value)
        if name in BIASED_UPWARDS:
            low, high = max(0.0, 2 * value - high), max(value, 2 * value - low)
        entries[name] = metric_entry(value, min(low, value), max(high, value), spread)
    return entries


def evaluate_classifier(
    y: ArrayLike,
    scores: ArrayLike | Sequence[ArrayLike],
    n_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Entries of every ``CLASSIFIER_METRICS`` for P(class 1), one array (N,) or one per seed."""
    return evaluate(CLASSIFIER_METRICS, y, scores, n_resamples, seed)


def evaluate_regression(
    y: ArrayLike,
    predictions: ArrayLike | Sequence[ArrayLike],
    n_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Entries of every ``REGRESSION_METRICS`` for predictions (N,), one array or one per seed."""
    return evaluate(REGRESSION_METRICS, y, predictions, n_resamples, seed)


def validate_metrics(metrics: dict, name: str = "metrics.json") -> None:
    """Raise InputError where ``metrics`` breaks the schema, is not finite or lacks its headline."""
    try:
        jsonschema.validate(metrics, METRICS_SCHEMA)
        json.dumps(metrics, allow_nan=False)
    except jsonschema.ValidationError as error:
        where = "/".join(map(str, error.absolute_path)) or "the top level"
        message = error.message if len(error.message) < 200 else f"{error.message[:200]} ..."
        raise InputError(
            f"{name}: expected the schema of e2e_utils/evaluation.py, found at {where}: {message}; "
            "correct the notebook that wrote it"
        ) from error
    except (TypeError, ValueError) as error:  # not JSON: NaN, infinity, arrays
        raise InputError(
            f"{name}: expected finite plain numbers, found {error}; correct the notebook"
        ) from error
    if metrics["headline"] not in metrics["metrics"]:
        raise InputError(
            f"{name}: expected the headline {metrics['headline']!r} among the metrics, found "
            f"{', '.join(metrics['metrics'])}; correct the notebook"
        )


def write_metrics(path: str | Path, metrics: dict) -> None:
    """Validate and write atomically."""
    validate_metrics(metrics, Path(path).name)
    with atomic_path(path) as temporary:
        text = json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def load_metrics(path: str | Path) -> dict:
    """Read and validate; raises InputError for a missing file, other text than JSON, bad schema."""
    path = Path(path)
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: expected a finished run's metrics, found none; run it"
        ) from error
    except ValueError as error:
        raise InputError(f"{path}: expected JSON, found {error}; run the task again") from error
    validate_metrics(metrics, str(path))
    return metrics
