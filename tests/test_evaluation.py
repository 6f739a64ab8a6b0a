"""Entries with intervals and the schema of metrics.json."""

import copy
import errno
import json

import numpy as np
import pytest

from e2e_utils import metrics
from e2e_utils.comparison import half_width
from e2e_utils.errors import InputError
from e2e_utils.evaluation import (
    CLASSIFIER_METRICS,
    evaluate_classifier,
    load_metrics,
    metric_entry,
    validate_metrics,
    write_metrics,
)


@pytest.fixture
def good() -> dict:
    entry = metric_entry(0.8, 0.79, 0.81)
    return {
        "task": "common_task1",
        "title": "Electron / photon",
        "profile": "quick",
        "data": {
            "source": "standin", "train": 64, "validation": 16, "test": 20, "fingerprint": "00",
            "description": "allowed",
        },
        "seeds": [0, 1],
        "headline": "roc_auc",
        "metrics": {"roc_auc": {**entry, "seed_std": 0.001}},
        "baselines": {"gradient_boosting": {"roc_auc": entry, "info": {"parameters": 3}}},
        "floors": {},
        "arms": {},
        "parameters": 10,
        "flops": 20,
        "device": "CPU",
        "seconds": 1.5,
        "provenance": {"versions": {}},
    }  # fmt: skip


def toy_scores(n_seeds: int, n: int = 600) -> tuple[np.ndarray, list[np.ndarray]]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, n)
    signal = rng.normal(y - 0.5)
    return y, [1 / (1 + np.exp(-signal - rng.normal(0, 0.3, n))) for _ in range(n_seeds)]


def test_entries_of_several_seeds() -> None:
    y, scores = toy_scores(3)
    entries = evaluate_classifier(y, scores, n_resamples=200)
    assert list(entries) == list(CLASSIFIER_METRICS)
    for name, metric in CLASSIFIER_METRICS.items():
        values = [metric(y, score) for score in scores]
        assert entries[name]["value"] == pytest.approx(np.mean(values))
        assert entries[name]["seed_std"] == pytest.approx(np.std(values, ddof=1))
        assert entries[name]["low"] <= entries[name]["value"] <= entries[name]["high"]
    interval = metrics.bootstrap_interval(metrics.roc_auc, y, scores, 200)
    # Wider than that of the events alone, by the share of the trainings in the variance.
    spread = entries["roc_auc"]["seed_std"]
    events = metrics.resample(metrics.roc_auc, y, scores, 200).mean(axis=1).var(ddof=1)
    stretch = half_width(events, [spread**2], [3]) / half_width(events, [], [])
    assert stretch > 1
    for side, alone in (("low", interval.low), ("high", interval.high)):
        found = entries["roc_auc"][side] - interval.value
        assert found == pytest.approx(stretch * (alone - interval.value))
    entry = entries["background_rejection_80"]
    assert entry["value"] < entries["background_rejection_50"]["value"]


@pytest.mark.parametrize("as_list", [True, False])
def test_one_seed_has_no_spread(as_list: bool) -> None:
    y, (score,) = toy_scores(1)
    entries = evaluate_classifier(y, [score] if as_list else score, n_resamples=50)
    assert "seed_std" not in entries["roc_auc"]


def test_interval_of_the_calibration_error_is_below_its_biased_value() -> None:
    rng = np.random.default_rng(3)
    score = rng.uniform(size=4000)
    y = (rng.uniform(size=4000) < score).astype(int)
    entry = evaluate_classifier(y, score, 300)["expected_calibration_error"]
    assert 0 <= entry["low"] < 0.6 * entry["value"]  # the true error is 0
    assert entry["value"] <= entry["high"] < 0.03


def test_constant_score_is_evaluated() -> None:
    y = np.arange(100) % 2
    entries = evaluate_classifier(y, np.full(100, 0.5), 50)
    assert entries["roc_auc"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert entries["background_rejection_50"]["value"] == pytest.approx(2)


def test_round_trip(tmp_path, good) -> None:
    write_metrics(tmp_path / "metrics.json", good)
    assert load_metrics(tmp_path / "metrics.json") == good


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["profile"], "fast", "profile"),
        (["metrics"], {}, "metrics"),
        (["metrics", "roc_auc", "low"], "0.7", "metrics/roc_auc/low"),
        (["metrics", "roc_auc", "value"], float("nan"), "finite"),
        (["baselines", "gradient_boosting", "roc_auc"], 0.7, "baselines"),
        (["data", "source"], "real", "data/source"),
        (["seeds"], [], "seeds"),
        (["seeds"], [0.5], "seeds"),
        (["headline"], "auc", "headline 'auc'"),
        (["metric"], {}, "'metric' was unexpected"),
        (["parameters"], -1, "parameters"),
        (["provenance"], {"array": np.zeros(2)}, "plain"),
    ],
)
def test_schema_refuses(tmp_path, good, path: list, value: object, message: str) -> None:
    broken = copy.deepcopy(good)
    place = broken
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(InputError, match=message) as error:
        write_metrics(tmp_path / "metrics.json", broken)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["task", "data", "headline", "provenance", "arms"])
def test_missing_fields(good, key: str) -> None:
    del good[key]
    with pytest.raises(InputError, match=key):
        validate_metrics(good)


def test_unreadable_files(tmp_path, good) -> None:
    with pytest.raises(InputError, match="found none"):
        load_metrics(tmp_path / "metrics.json")
    (tmp_path / "metrics.json").write_text(json.dumps(good)[:-40])
    with pytest.raises(InputError, match="expected JSON"):
        load_metrics(tmp_path / "metrics.json")


def test_full_disk_keeps_the_previous_file(tmp_path, good, monkeypatch) -> None:
    path = tmp_path / "metrics.json"
    write_metrics(path, good)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(InputError, match="full disk"):
        write_metrics(path, {**good, "seconds": 3})
    assert load_metrics(path) == good
    assert list(tmp_path.iterdir()) == [path]
