"""Classifiers: P(class 1) of every event, and the metrics with intervals."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd

from e2e_utils.evaluation import evaluate_classifier
from tools.provenance import display_path
from tools.scoring.events import raw_batches, write_table
from tools.wording import entries_text


def predict(session: onnxruntime.InferenceSession, sample, name: str) -> Iterator[np.ndarray]:
    """P(class 1) of every event, (B,) a batch, in the order of the sample."""
    entry = session.get_inputs()[0]
    for batch in raw_batches(sample, tuple(entry.shape[1:]), name):
        (probability,) = session.run(None, {entry.name: batch})
        yield np.asarray(probability, dtype=np.float32).reshape(-1)


def report(y: np.ndarray, probability: np.ndarray) -> str:
    """All metrics with intervals, one a line; of one class only its mean probability."""
    counts = np.bincount(y, minlength=2)
    if counts.min() == 0:
        return (
            f"  no metrics: all events have label {y[0]}; "
            f"mean P(class 1) = {probability.mean():.4f}"
        )
    return entries_text(evaluate_classifier(y, probability))


def score(session: onnxruntime.InferenceSession, sample, name: str, out: Path) -> None:
    """Print the metrics of a sample, write event, label and probability to ``out``."""
    probability = np.concatenate(list(predict(session, sample, name)))
    print(f"{len(sample.y):,} events scored; brackets: 95 % bootstrap interval")
    print(report(sample.y, probability))
    columns = {"event": np.arange(len(sample.y)), "label": sample.y, "probability": probability}
    write_table(out, pd.DataFrame(columns))
    print(f"Predictions: {display_path(out)}")
