"""Jets: simulation, size against dense float32, and batches against pyarrow and h5py."""

import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.timing import row, side_by_side
from data.loaders import load_quark_gluon
from data.readers.nested_parquet import iter_columns, nested
from data.simulate.jets import simulate_shard
from e2e_utils.sparse_images import SparseImages

SIMULATED = 300  # jets
GOAL = 100  # images/s/core, what the project asks of its simulation
JETS, BATCH = 512, 64


def write_official(images: np.ndarray, folder: Path) -> tuple[Path, Path]:
    """The images as parquet with a row group a jet, and as the HDF5 edition (gzip)."""
    parquet, hdf5 = folder / "jets.parquet", folder / "jets.hdf5"
    pq.write_table(pa.table({"X_jets": nested(images)}), parquet, row_group_size=1)
    with h5py.File(hdf5, "w") as file:
        last = images.transpose(0, 2, 3, 1)  # (n, C, H, W) -> (n, H, W, C)
        file.create_dataset("X_jets", data=last, chunks=(1, *last.shape[1:]), compression="gzip")
    return parquet, hdf5


def measure() -> list[dict]:
    """Rates of the simulation and of batches; sizes of the files."""
    simulate_shard(1, True, np.random.SeedSequence(0))  # compiles, makes the pools
    start = time.process_time()
    for quark in (False, True):
        simulate_shard(SIMULATED // 2, quark, np.random.SeedSequence(1))
    simulated = SIMULATED / (time.process_time() - start)

    images = load_quark_gluon("standin", "quick").images
    dense_bytes = 4 * int(np.prod(images.shape))  # of one jet
    sparse_bytes = sum(array.nbytes for array in images.events()) / len(images)
    order = np.random.default_rng(0).permutation(min(JETS, len(images)))
    batches = order[: len(order) // BATCH * BATCH].reshape(-1, BATCH)
    with tempfile.TemporaryDirectory() as name:
        parquet, hdf5 = write_official(images.dense(np.arange(len(order))).numpy(), Path(name))
        keys = {"X_jets": {"shape": [-1, *images.shape], "dtype": "float64"}}
        chunks = (chunk["X_jets"] for chunk in iter_columns(parquet, keys))
        store = SparseImages.from_chunks(chunks, Path(name) / "store")
        with pq.ParquetFile(parquet) as official, h5py.File(hdf5) as edition:

            def ours() -> None:
                for rows in batches:
                    store.dense(rows)

            def with_pyarrow() -> None:
                for rows in batches:
                    lists = official.read_row_groups(list(rows), columns=["X_jets"])
                    flat = lists["X_jets"].combine_chunks().flatten().flatten().flatten()
                    pixels = flat.to_numpy().astype(np.float32).reshape(-1, *images.shape)
                    torch.from_numpy(pixels)

            def with_h5py() -> None:
                for rows in batches:
                    pixels = edition["X_jets"][np.sort(rows)]
                    torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()

            seconds = side_by_side(
                {"ours": ours, "pyarrow": with_pyarrow, "h5py": with_h5py}, repeats=3
            )
    rates = {name: batches.size / t for name, t in seconds.items()}
    return [
        row("jet simulation, one core (CPU time)", simulated, GOAL, "the goal of 100", "images/s"),
        row("jets per GB in the sparse store", 1e9 / sparse_bytes, 1e9 / dense_bytes,
            "dense float32", "jets"),
        row(f"shuffled batches of {BATCH} jets", rates["ours"], rates["pyarrow"],
            "pyarrow on the official layout", "images/s"),
        row(f"shuffled batches of {BATCH} jets", rates["ours"], rates["h5py"],
            "h5py on the HDF5 edition (gzip)", "images/s"),
    ]  # fmt: skip
