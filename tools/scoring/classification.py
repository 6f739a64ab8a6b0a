"""Classifiers: P(class 1) of every event, and the metrics with intervals.

A graph may answer more than the class. An output "m" or "pT" is scored as a regression of it where
the sample knows it.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd

from data.loaders.common import LoadedDataset
from e2e_utils.evaluation import evaluate_classifier, evaluate_regression
from e2e_utils.paths import display_path
from tools.scoring.events import raw_batches, write_table
from tools.wording import Entries, entries_text

NUMBERS = {"m": "m", "pT": "pt"}  # output of a graph -> what the sample calls it


def predict(
    session: onnxruntime.InferenceSession, sample: LoadedDataset, name: str
) -> Iterator[dict[str, np.ndarray]]:
    """P(class 1) and the outputs of NUMBERS, (B,) each, of one batch after the other."""
    entry, (first, *others) = session.get_inputs()[0], (o.name for o in session.get_outputs())
    outputs = {"probability": first} | {other: other for other in others if other in NUMBERS}
    for batch in raw_batches(sample, tuple(entry.shape[1:]), name):
        found = session.run(list(outputs.values()), {entry.name: batch})
        columns = (np.asarray(values, dtype=np.float32).reshape(-1) for values in found)
        yield dict(zip(outputs, columns, strict=True))


def score(
    session: onnxruntime.InferenceSession, sample: LoadedDataset, name: str, out: Path
) -> Entries:
    """Print the metrics of a sample, write event, label and outputs to ``out``.

    Returns the metrics of the classes, with intervals; none for a sample of one class.
    """
    parts = list(predict(session, sample, name))
    found = {output: np.concatenate([part[output] for part in parts]) for output in parts[0]}
    print(f"{len(sample.y):,} events scored; brackets: 95 % bootstrap interval")
    y, probability = sample.y, found["probability"]
    both = np.bincount(y, minlength=2).min() > 0
    entries = evaluate_classifier(y, probability) if both else {}
    alone = f"no metrics: all events have label {y[0]}; mean P(class 1) = {probability.mean():.4f}"
    print(entries_text(entries) if both else f"  {alone}")
    columns = {"event": np.arange(len(sample.y)), "label": sample.y, **found}
    for output in [name for name in NUMBERS if name in found]:
        truth = getattr(sample, NUMBERS[output], None)
        if truth is not None and np.isfinite(truth).all():
            columns[f"true_{output}"] = truth
            print(f"{output}, GeV:\n{entries_text(evaluate_regression(truth, found[output]))}")
    write_table(out, pd.DataFrame(columns))
    print(f"Predictions: {display_path(out)}")
    return entries
