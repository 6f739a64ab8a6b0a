"""Boosted jets: simulation, and the memory and time of streaming a contiguous HDF5 file."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

from benchmarks.timing import row
from data.simulate import jets8, top_gun
from data.simulate.boosted import rows_of, unpacked

SIMULATED = 200  # jets
GOAL = 100  # images/s/core, what the project asks of its simulation
STREAMED = (200, 800)  # jets: 0.1 and 0.4 GB as the official file stores them
LIMIT_GB = 1.0  # of memory, whatever the size of the file

# In a process of its own, so that the peak is that of the streaming: VmHWM, as getrusage's maximum
# is inherited from the process that started this one.
STREAM = """
import json, re, sys, time
from pathlib import Path
from data.readers.hdf5 import iter_images
from e2e_utils.sparse_images import SparseImages
start = time.perf_counter()
SparseImages.from_chunks(iter_images(sys.argv[1], "jet"), sys.argv[2])
seconds = time.perf_counter() - start
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
print(json.dumps({"seconds": seconds, "peak": peak}))
"""


def write_contiguous(path: Path, images: np.ndarray, n_events: int) -> None:
    """A file as the official unlabelled one: no chunks, no compression."""
    with h5py.File(path, "w") as file:
        pixels = file.create_dataset("jet", (n_events, *images.shape[1:]), "f4")
        for first in range(0, n_events, len(images)):
            last = min(first + len(images), n_events)
            pixels[first:last] = images[: last - first]


def measure() -> list[dict]:
    """Rates of the two simulations; memory and rate of the stream."""
    rates = {}
    for name, simulate in (
        ("boosted top", lambda n, seed: [top_gun.simulate_shard(n, "nominal", seed)]),
        (
            "8-channel jet",
            lambda n, seed: [jets8.simulate_shard(max(n // 2, 1), top, seed) for top in (0, 1)],
        ),
    ):
        simulate(1, np.random.SeedSequence(0))  # compiles, makes the pools
        start = time.process_time()
        shards = simulate(SIMULATED, np.random.SeedSequence(1))
        rates[name] = SIMULATED / (time.process_time() - start)
    some = rows_of(shards[0], np.arange(50))
    images = unpacked(some).transpose(0, 2, 3, 1)  # (n, C, H, W) -> (n, H, W, C)
    streamed = {}
    with tempfile.TemporaryDirectory() as folder:
        for n_events in STREAMED:
            path, store = Path(folder) / f"{n_events}.h5", Path(folder) / f"store{n_events}"
            write_contiguous(path, images, n_events)
            done = subprocess.run(
                [sys.executable, "-c", STREAM, str(path), str(store)],
                capture_output=True,
                text=True,
                check=True,
            )
            streamed[n_events] = json.loads(done.stdout)
    last = streamed[STREAMED[-1]]
    grown = (last["peak"] - streamed[STREAMED[0]]["peak"]) * 1024 / 1e9
    simulated = [
        row(f"{name} simulation, one core (CPU time)", rate, GOAL, "the goal of 100", "images/s")
        for name, rate in rates.items()
    ]
    return [
        *simulated,
        row("contiguous HDF5 streamed into the sparse store", STREAMED[-1] / last["seconds"], None,
            "", "images/s"),
        row("peak memory of that, imports included", last["peak"] * 1024 / 1e9, LIMIT_GB,
            "the limit of 1 GB", "GB"),
        row(f"growth of the peak, {STREAMED[0]} to {STREAMED[1]} jets", max(grown, 0.0), None, "",
            "GB"),
    ]  # fmt: skip
