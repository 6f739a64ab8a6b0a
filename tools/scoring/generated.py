"""A judge of generators: P(generated) of every jet. Labels of the sample are not looked at."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd

from data.loaders.jets8 import Jets8Dataset
from e2e_utils.evaluation import metric_entry
from e2e_utils.paths import display_path
from tools.scoring.events import raw_batches, write_table
from tools.wording import Entries, entries_text


def score(
    session: onnxruntime.InferenceSession, sample: Jets8Dataset, name: str, out: Path
) -> Entries:
    """Print and return the share of jets that the judge takes for generated, write P to ``out``."""
    if len(sample.unlabelled):
        sample = replace(sample, images=sample.unlabelled)
    entry = session.get_inputs()[0]
    parts = [
        session.run(None, {entry.name: batch})[0].reshape(-1)
        for batch in raw_batches(sample, tuple(entry.shape[1:]), name)
    ]
    probability = np.concatenate(parts)
    low, middle, high = np.quantile(probability, [0.16, 0.5, 0.84])
    share = np.mean(probability > 0.5)
    half = 1.96 * np.sqrt(share * (1 - share) / len(probability))
    entries = {"taken for generated (P > 0.5)": metric_entry(share, share - half, share + half)}
    print(f"{len(probability):,} jets scored; brackets: 95 % interval")
    print(entries_text(entries))
    print(f"  P(generated): median {middle:.4f}, middle 68 % from {low:.4f} to {high:.4f}")
    write_table(out, pd.DataFrame({"event": np.arange(len(probability)), "generated": probability}))
    print(f"Predictions: {display_path(out)}")
    return entries
