"""Stand-in for task 2a: signal and top-pair events in the format of UCI's HIGGS data.

    python -m data.simulate.higgs --events 22000

writes one gzipped CSV without a header: label (1 signal, 53 %), 21 low-level and 7 high-level
features, ``%.18e``, both classes mixed. What is known of the official file, and how this one
differs: data/README.md.
"""

import argparse
import gzip
import json
from pathlib import Path

import numpy as np

from data.simulate import shards, sources_hash
from e2e_utils.errors import InputError, command_line
from e2e_utils.files import atomic_path, sha256, write_json
from e2e_utils.paths import STANDIN

SIGNAL_FRACTION = 0.53
SHARD_EVENTS = 2000
FEATURES = 28
WRITE_ROWS = 10_000  # of text at a time: 7 MB
CSV_BYTES = 350  # gzipped, of one event


def simulate_shard(n_events: int, signal: bool, seed: np.random.SeedSequence) -> shards.Arrays:
    """``features`` (n_events, 28) float32 of selected events of one class."""
    from data.simulate.higgs_detector import measure
    from data.simulate.higgs_events import Collisions

    collisions, rng = Collisions(signal, seed), np.random.default_rng(seed)
    parts, selected = [], 0
    while selected < n_events:
        parts.append(measure(collisions.batch(), rng).astype(np.float32))
        selected += len(parts[-1])
    return {"features": np.concatenate(parts)[:n_events]}


def file_name(n_events: int) -> str:
    return f"HIGGS_STANDIN_n{n_events}.csv.gz"


def simulation_version() -> str:
    """Changes with the physics, so that files of an older simulation are made again."""
    return sources_hash("higgs.py", "higgs_detector.py", "higgs_events.py")


def record_path(path: Path) -> Path:
    """Beside the CSV, which has no room for it: how it was made."""
    return path.with_name(path.name.removesuffix(".csv.gz") + ".json")


def is_complete(path: Path, n_events: int, seed: int) -> bool:
    """Whether ``path`` is a finished file of this size, seed and simulation."""
    try:
        record = json.loads(record_path(path).read_text())
        size = path.stat().st_size
    except (OSError, ValueError):
        return False
    made = {"events": n_events, "seed": seed, "simulation": simulation_version(), "bytes": size}
    return all(record.get(key) == value for key, value in made.items())


def class_sizes(n_events: int) -> tuple[int, int]:
    """Background and signal events of a file."""
    n_signal = round(SIGNAL_FRACTION * n_events)
    return n_events - n_signal, n_signal


def assemble(parts: tuple[list[Path], list[Path]], path: Path, n_events: int, seed: int) -> None:
    """Mix the shards of background and signal into one CSV and write its record."""
    labels = np.repeat((0, 1), class_sizes(n_events))
    labels = np.random.default_rng(seed).permutation(labels)
    rows = np.empty((n_events, 1 + FEATURES), np.float32)
    rows[:, 0] = labels
    for label, files in enumerate(parts):
        rows[labels == label, 1:] = np.concatenate([shards.load(f)["features"] for f in files])
    if not np.isfinite(rows).all():
        raise InputError(
            f"{path.name}: expected finite features, found others; the disk may be faulty, "
            "generate again"
        )
    with (
        atomic_path(path) as temporary,
        temporary.open("wb") as plain,
        # No name and no time in the header: the same events make the same file.
        gzip.GzipFile("", "wb", compresslevel=4, fileobj=plain, mtime=0) as stream,
    ):
        for first in range(0, n_events, WRITE_ROWS):
            np.savetxt(stream, rows[first : first + WRITE_ROWS], fmt="%.18e", delimiter=",")
    write_json(
        record_path(path),
        {
            "source": "standin",
            "events": n_events,
            "seed": seed,
            "simulation": simulation_version(),
            "bytes": path.stat().st_size,
            "sha256": sha256(path),
        },
    )


def generate(
    n_events: int,
    directory: str | Path | None = None,
    seed: int = 20140219,
    scheduler: str | None = None,
) -> Path:
    """Make ``n_events`` (both classes together) and return the file.

    Returns at once when the file is there already, made with this seed and simulation. An
    interrupted run continues where it stopped. ``scheduler``: see `shards.produce`.

    Raises InputError when the disk is too full or ``n_events`` is below 2.
    """
    if n_events < 2:
        raise InputError(f"--events: expected 2 or more, found {n_events}; both classes need one")
    directory = Path(directory or STANDIN)
    path = directory / file_name(n_events)
    if is_complete(path, n_events, seed):
        return path
    part_folder = directory / f".higgs_n{n_events}_s{seed}_{simulation_version()}.part"
    jobs = [
        (min(SHARD_EVENTS, size - first), label == 1)
        for label, size in enumerate(class_sizes(n_events))
        for first in range(0, size, SHARD_EVENTS)
    ]
    seeds = np.random.SeedSequence(seed).spawn(len(jobs))
    with shards.workplace(part_folder, need_bytes=(CSV_BYTES + 4 * FEATURES) * n_events):
        if is_complete(path, n_events, seed):
            return path  # another process made it while this one waited
        parts = shards.produce(
            simulate_shard,
            [(*job, spawned) for job, spawned in zip(jobs, seeds, strict=True)],
            part_folder,
            scheduler=scheduler,
            weights=[size for size, _ in jobs],
            label="HIGGS events",
        )
        of_class = [
            [part for part, (_, signal) in zip(parts, jobs, strict=True) if signal == label]
            for label in (False, True)
        ]
        assemble((of_class[0], of_class[1]), path, n_events, seed)
    return path


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--events", type=int, default=22000, help="both classes together")
    parser.add_argument("--seed", type=int, default=20140219)
    parser.add_argument("--directory", type=Path, default=STANDIN)
    parser.add_argument("--scheduler", help="synchronous, or tcp://... of a Dask scheduler")
    arguments = parser.parse_args()
    print(generate(arguments.events, arguments.directory, arguments.seed, arguments.scheduler))


if __name__ == "__main__":
    # By its import name: Dask's workers know functions by their module.
    from data.simulate.higgs import main as run

    run()
