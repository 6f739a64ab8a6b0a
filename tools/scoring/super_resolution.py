"""Super-resolution: the physics of the generated images against the true ones of the sample."""

from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd

from data.loaders.common import LoadedDataset
from e2e_utils.evaluation import metric_entry
from e2e_utils.fidelity import fpd
from e2e_utils.jet_observables import NAMES, jet_observables, ratio_of_sums
from e2e_utils.paths import display_path
from tools.scoring.events import write_table
from tools.wording import Entries, entries_text

BATCH = 50  # jets


def generated_observables(
    session: onnxruntime.InferenceSession, sample: LoadedDataset, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Observables of the true and of the generated images of a sample: two tables, a row a jet.

    Noise is standard normal, from NumPy's ``default_rng(seed)``, batch after batch of
    ``BATCH`` jets: the same sample gives the same images.
    """
    rng = np.random.default_rng(seed)
    low_name, *noise = session.get_inputs()
    true, made = [], []
    for first in range(0, len(sample), BATCH):
        rows = np.arange(first, min(first + BATCH, len(sample)))
        low, high = sample.pair(rows)
        feed = {low_name.name: low.numpy()}
        for entry in noise:
            shape = (len(rows), *entry.shape[1:])
            feed[entry.name] = rng.standard_normal(shape, dtype=np.float32)
        (images,) = session.run(None, feed)
        true.append(jet_observables(high.numpy()))
        made.append(jet_observables(images))
    return pd.concat(true, ignore_index=True), pd.concat(made, ignore_index=True)


def physics(true: pd.DataFrame, made: pd.DataFrame) -> Entries:
    """Energies, occupancies and mass, generated over true, and the Frechet distance (95 %)."""
    columns = {f"energy response, {name}": f"{name}_energy" for name in NAMES}
    columns |= {f"occupancy, {name}": f"{name}_hits" for name in NAMES} | {"mass response": "mass"}
    entries = {
        line: ratio_of_sums([made[c].to_numpy()], true[c].to_numpy()) for line, c in columns.items()
    }
    half = len(true) // 2  # of different jets: true ones of the first half, generated of the second
    if half >= 8:
        first, others = true.to_numpy()[:half], {"fpd": made, "FPD of other true jets": true}
        for line, table in others.items():
            value, error = fpd(first, table.to_numpy()[half:])
            entries[line] = metric_entry(value, value - 1.96 * error, value + 1.96 * error)
    return entries


def score(
    session: onnxruntime.InferenceSession, sample: LoadedDataset, name: str, out: Path
) -> Entries:
    """Print and return `physics`, write the observables of every jet, true and generated."""
    seed = int(session.get_modelmeta().custom_metadata_map.get("noise_seed", 0))
    true, made = generated_observables(session, sample, seed)
    print(f"{len(sample):,} jets; generated over true; brackets: 95 % bootstrap interval")
    entries = physics(true, made)
    print(entries_text(entries))
    table = true.add_prefix("true_").join(made.add_prefix("generated_"))
    table.insert(0, "event", np.arange(len(table)))
    table.insert(1, "label", sample.y)
    write_table(out, table)
    print(f"Observables of every jet: {display_path(out)}")
    return entries
