"""HIGGS stand-in events per second and core, parsing of the CSV, opening of the binary store."""

import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.timing import row, side_by_side
from data.loaders import load_higgs
from data.readers.event_tables import build_store, open_store
from data.simulate.higgs import simulate_shard
from e2e_utils.paths import STANDIN

EVENTS = 1000
GOAL = 60  # accepted events/s/core, what the project asks of its simulation
COPIES, SECONDS = 50, 2.0  # of 22,000 rows: the 1.1 million of the task, to be read in 2 s


def measure() -> list[dict]:
    """Rates of the simulation, of parsing and of opening."""
    start = time.perf_counter()
    for signal in (False, True):
        simulate_shard(EVENTS // 2, signal, np.random.SeedSequence(1))
    simulated = EVENTS / (time.perf_counter() - start)
    dataset = load_higgs("standin", "quick")
    path, names = STANDIN / dataset.files[0], dataset.feature_names
    with tempfile.TemporaryDirectory() as folder:

        def parse() -> None:
            build_store([path], names, Path(folder) / "store")

        def parse_with_numpy() -> None:
            np.loadtxt(path, delimiter=",", dtype=np.float32)

        seconds = side_by_side({"ours": parse, "numpy": parse_with_numpy}, repeats=3)
        n = len(open_store(Path(folder) / "store")[1])
        build_store([path] * COPIES, names, Path(folder) / "all")
        opened = side_by_side(
            {"ours": lambda: open_store(Path(folder) / "all")[0].sum()}, repeats=3
        )
    return [
        row("HIGGS simulation, one core", simulated, GOAL, "the goal of 60", "events/s"),
        row("HIGGS CSV parsed and stored", n / seconds["ours"], n / seconds["numpy"],
            "np.loadtxt", "events/s"),
        row(f"HIGGS binary store, {n * COPIES:,} rows read", n * COPIES / opened["ours"],
            n * COPIES / SECONDS, "the goal of 2 s", "events/s"),
    ]  # fmt: skip
