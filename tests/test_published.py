"""The published networks on real events, where a sample of them is at hand."""

import os
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from e2e_utils.metrics import bootstrap_interval, roc_auc
from e2e_utils.paths import ROOT, WEIGHTS
from tools.score import score

SAMPLES = Path(os.environ.get("E2E_REAL_SAMPLES", ROOT.parent / "shared" / "data"))
SAMPLE = SAMPLES / "egamma_real_100.npz"
MODEL = WEIGHTS / "common_task1" / "energy_only.onnx"


@pytest.mark.skipif(not SAMPLE.is_file(), reason="no sample of real images here")
@pytest.mark.skipif(not MODEL.is_file(), reason="nothing published yet")
def test_network_trained_on_stand_ins_orders_real_images(tmp_path: Path) -> None:
    real = np.load(SAMPLE)
    with h5py.File(tmp_path / "real.hdf5", "w") as file:
        file["X"] = np.stack([real["X"], np.zeros_like(real["X"])], axis=-1)  # time unknown
        file["y"] = real["y"].astype(np.float32)
    out = score("common_task1", str(tmp_path / "real.hdf5"), "energy_only", tmp_path / "out.csv")
    predictions = pd.read_csv(out)
    interval = bootstrap_interval(
        roc_auc, predictions.label.to_numpy(), predictions.probability.to_numpy()
    )
    assert interval.low > 0.5  # 0.5 would mean that the simulation has nothing to do with reality
