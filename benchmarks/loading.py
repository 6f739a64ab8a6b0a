"""Batches from the sparse store against reading the HDF5 file with h5py."""

import h5py
import numpy as np
import torch

from benchmarks.timing import row, side_by_side
from data.loaders import load_electron_photon
from e2e_utils.paths import STANDIN

BATCH = 256
BATCHES = 20


def measure() -> list[dict]:
    """Rates of batches in order and at random."""
    dataset = load_electron_photon("standin", "quick")
    path = STANDIN / dataset.files[0]
    with h5py.File(path) as file:
        n = len(file["X"])
        order = np.random.default_rng(0).permutation(n)[: BATCH * BATCHES].reshape(BATCHES, BATCH)

        def shuffled_hdf5() -> None:
            for rows in order:  # h5py wants increasing rows
                torch.from_numpy(file["X"][np.sort(rows)]).permute(0, 3, 1, 2).contiguous()

        def shuffled_store() -> None:
            for rows in order:
                dataset.images.dense(rows)

        def sequential_hdf5() -> None:
            for start in range(0, BATCH * BATCHES, BATCH):
                chunk = file["X"][start : start + BATCH]
                torch.from_numpy(chunk).permute(0, 3, 1, 2).contiguous()

        def sequential_store() -> None:
            for start in range(0, BATCH * BATCHES, BATCH):
                dataset.images.dense(np.arange(start, start + BATCH))

        shuffled = side_by_side({"ours": shuffled_store, "h5py": shuffled_hdf5}, repeats=3)
        sequential = side_by_side({"ours": sequential_store, "h5py": sequential_hdf5}, repeats=3)
    events = BATCH * BATCHES
    return [
        row(f"{name} batches of {BATCH}", events / t["ours"], events / t["h5py"],
            "h5py on the official layout (gzip)", "images/s")
        for name, t in (("shuffled", shuffled), ("sequential", sequential))
    ]  # fmt: skip
