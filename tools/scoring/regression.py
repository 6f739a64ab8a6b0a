"""Regressions: the prediction and its uncertainty for every event, the metrics with intervals."""

from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd

from data.loaders.common import LoadedDataset
from e2e_utils.evaluation import evaluate_regression
from e2e_utils.paths import display_path
from tools.scoring.events import raw_batches, write_table
from tools.wording import Entries, entries_text


def score(
    session: onnxruntime.InferenceSession, sample: LoadedDataset, name: str, out: Path
) -> Entries:
    """Print the metrics of a sample with masses ``m``, write truth and outputs to ``out``.

    The model's first output is the prediction; a second one, "sigma", its uncertainty. Returns the
    metrics with intervals; of a sample without masses (NaN) there are none, only outputs.
    """
    entry, outputs = session.get_inputs()[0], [output.name for output in session.get_outputs()]
    parts = [
        session.run(None, {entry.name: batch})
        for batch in raw_batches(sample, tuple(entry.shape[1:]), name)
    ]
    columns = [np.concatenate(part).astype(np.float64) for part in zip(*parts, strict=True)]
    known = np.isfinite(sample.m).all()
    table = pd.DataFrame(
        {"event": np.arange(len(sample.m))} | ({"truth": sample.m} if known else {})
    )
    table = table.assign(**dict(zip(outputs, columns, strict=True)))
    entries = evaluate_regression(sample.m, columns[0]) if known else {}
    if known:
        print(f"{len(table):,} events scored; brackets: 95 % bootstrap interval")
        print(entries_text(entries))
    else:
        print(f"{len(table):,} events scored; no metrics: the sample has no masses")
    if known and "sigma" in table:
        covered = np.mean(np.abs(columns[0] - sample.m) < table["sigma"])
        print(f"  within one sigma: {covered:.1%} of the events")
    write_table(out, table)
    print(f"Predictions: {display_path(out)}")
    return entries
