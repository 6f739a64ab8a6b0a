"""Stand-in for tasks 2h and 2b: quark and gluon jets as images of tracks, ECAL and HCAL.

    python -m data.simulate.jets --events 6000
    python -m data.simulate.jets --events 6000 --low-resolution

write parquet in the official schemas: X_jets as nested lists 3 x 125 x 125 of doubles (track pT,
ECAL energy, HCAL energy of a tower / 25; GeV), pt and m0 in GeV, y (1 quark, 0 gluon; half of the
jets each, mixed); with --low-resolution also X_jets_LR, 3 x 64 x 64. What is known of the official
files, and how these differ: data/README.md.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.catalog import dataset
from data.readers.nested_parquet import iter_columns
from data.simulate import jet_parquet, shards, sources_hash
from e2e_utils.errors import InputError, command_line
from e2e_utils.jet_resolution import low_resolution
from e2e_utils.paths import STANDIN

SHARD_EVENTS = 500
BATCH = 100  # collisions at a time; about 60 jets pass
ROW_GROUP = 50  # jets: 19 MB of doubles
SHAPE = (3, 125, 125)
JET_BYTES, LOW_RESOLUTION_BYTES = 3500, 5500  # of one jet in the files
SHARD_JET_BYTES = 7000
SEED = 20250308


def simulate_shard(n_events: int, quark: bool, seed: np.random.SeedSequence) -> shards.Arrays:
    """Jets of one class: ``counts`` (n,), ``index`` and ``value`` of active pixels, ``pt``, ``m0``.

    ``index`` counts within the flattened (3, 125, 125) image; ``pt`` and ``m0`` (n,) in GeV.
    """
    from data.simulate.jets_detector import Detector, render
    from data.simulate.jets_events import Dijets, overlay, pools, take
    from data.simulate.jets_reconstruction import select

    detector, pool = Detector(), pools()
    dijets, rng = Dijets(quark, seed), np.random.Generator(np.random.PCG64(seed))
    parts, done = [], 0
    while done < n_events:
        events, partons = dijets.batch(BATCH)
        events = overlay(events, detector.pile_up, detector.vertex_spread, rng, pool)
        rows, jets = select(events, partons, rng)
        images = np.zeros((len(rows), *SHAPE), np.float32)
        axes = np.ascontiguousarray(jets[:, 2:])
        fits = render(rng, *take(events, rows), axes, detector, images)
        flat = images[fits].reshape(fits.sum(), -1)  # (n, 3, 125, 125) -> (n, 46875)
        event, index = np.nonzero(flat)
        parts.append(
            {
                "counts": np.bincount(event, minlength=len(flat)),
                "index": index.astype(np.uint16),
                "value": flat[event, index],
                "pt": jets[fits, 0],
                "m0": jets[fits, 1],
            }
        )
        done += len(flat)
    return _first(
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, n_events
    )


def _first(jets: shards.Arrays, n: int) -> shards.Arrays:
    """The first ``n`` jets of a shard."""
    hits = jets["counts"][:n].sum()
    return {
        name: array[: hits if name in ("index", "value") else n] for name, array in jets.items()
    }


def _dense(jets: shards.Arrays) -> np.ndarray:
    """Images (n, 3, 125, 125) float32 of the jets of a shard."""
    images = np.zeros((len(jets["counts"]), int(np.prod(SHAPE))), np.float32)
    event = np.repeat(np.arange(len(images)), jets["counts"])
    images[event, jets["index"]] = jets["value"]
    return images.reshape(-1, *SHAPE)  # (n, 46875) -> (n, 3, 125, 125)


def iter_jets(parts: list[Path]) -> Iterator[tuple[np.ndarray, float, float]]:
    """Image (3, 125, 125), pT and mass of every jet of the shards, a shard in memory at a time."""
    for part in parts:
        jets = shards.load(part)
        last = np.cumsum(jets["counts"])
        for event, (stop, count) in enumerate(zip(last, jets["counts"], strict=True)):
            hits = slice(stop - count, stop)
            one = {"counts": jets["counts"][event : event + 1]}
            one |= {name: jets[name][hits] for name in ("index", "value")}
            yield _dense(one)[0], jets["pt"][event], jets["m0"][event]


# Files --------------------------------------------------------------------------------------------


def file_name(n_events: int, low_resolution: bool = False) -> str:
    ending = "_LR.parquet" if low_resolution else ".snappy.parquet"
    return f"QCDToGGQQ_IMGjet_STANDIN_n{n_events}{ending}"


def simulation_version() -> str:
    """Changes with the physics, so that files of an older simulation are made again."""
    return sources_hash(
        "barrel.py",
        "jets.py",
        "jets_detector.py",
        "jets_events.py",
        "jets_reconstruction.py",
        "tracker.py",
    )


def is_complete(path: Path, n_events: int, seed: int) -> bool:
    """Whether ``path`` is a finished file of this size, seed and simulation."""
    expected = jet_parquet.record(n_events, seed, simulation_version())
    return jet_parquet.is_complete(path, n_events, expected)


def mixed(
    parts: tuple[list[Path], list[Path]], n_events: int, seed: int
) -> Iterator[dict[str, np.ndarray]]:
    """Chunks of columns with the shards of gluons and of quarks in a random order of labels."""
    labels = np.random.default_rng(seed).permutation(np.arange(n_events) % 2)
    of_class = [iter_jets(files) for files in parts]
    for first in range(0, n_events, ROW_GROUP):
        y = labels[first : first + ROW_GROUP]
        images, pt, m0 = zip(*(next(of_class[label]) for label in y), strict=True)
        chunk = {"X_jets": np.stack(images), "pt": np.array(pt), "m0": np.array(m0), "y": y}
        if not all(np.isfinite(values).all() for values in chunk.values()):
            raise InputError(
                f"{parts[0][0].parent.name}: expected finite jets, found others; the disk may be "
                "faulty, generate again"
            )
        yield chunk


def generate(
    n_events: int,
    directory: str | Path | None = None,
    seed: int = SEED,
    scheduler: str | None = None,
) -> Path:
    """Make ``n_events`` jets (both classes together) in the schema of task 2h; return the file.

    Returns at once when the file is there already, made with this seed and simulation. An
    interrupted run continues where it stopped. ``scheduler``: see `shards.produce`.

    Raises InputError when the disk is too full or ``n_events`` is not a positive even number.
    """
    if n_events < 2 or n_events % 2:
        raise InputError(
            f"--events: expected a positive even number, found {n_events}; half of the jets are "
            "of quarks, half of gluons"
        )
    directory = Path(directory or STANDIN)
    path = directory / file_name(n_events)
    if is_complete(path, n_events, seed):
        return path
    part_folder = directory / f".jets_n{n_events}_s{seed}_{simulation_version()}.part"
    n_class = n_events // 2
    sizes = [min(SHARD_EVENTS, n_class - first) for first in range(0, n_class, SHARD_EVENTS)]
    jobs = [(size, quark) for quark in (False, True) for size in sizes]
    seeds = np.random.SeedSequence(seed).spawn(len(jobs))
    with shards.workplace(part_folder, need_bytes=(JET_BYTES + SHARD_JET_BYTES) * n_events):
        if is_complete(path, n_events, seed):
            return path  # another process made it while this one waited
        parts = shards.produce(
            simulate_shard,
            [(*job, spawned) for job, spawned in zip(jobs, seeds, strict=True)],
            part_folder,
            scheduler=scheduler,
            weights=[size for size, _ in jobs],
            label="quark and gluon jets",
            # Pools are simulated and numba compiles once, before the workers start.
            prepare=lambda: simulate_shard(1, False, np.random.SeedSequence(0)),
        )
        halves = parts[: len(sizes)], parts[len(sizes) :]
        record = jet_parquet.record(n_events, seed, simulation_version())
        jet_parquet.write(path, mixed(halves, n_events, seed), record)
    return path


def generate_low_resolution(
    n_events: int,
    directory: str | Path | None = None,
    seed: int = SEED,
    scheduler: str | None = None,
) -> Path:
    """The same jets in the schema of task 2b, with X_jets_LR; arguments as in `generate`."""
    source = generate(n_events, directory, seed, scheduler)
    path = source.with_name(file_name(n_events, low_resolution=True))
    if is_complete(path, n_events, seed):
        return path
    keys = dataset("quark_gluon")["file"][0]["keys"]
    chunks = iter_columns(source, keys, chunk=ROW_GROUP)
    with_low = (
        {"X_jets_LR": low_resolution(chunk["X_jets"].astype(np.float64))} | chunk
        for chunk in chunks
    )
    with shards.workplace(path.with_suffix(".part"), LOW_RESOLUTION_BYTES * n_events):
        record = jet_parquet.record(n_events, seed, simulation_version())
        jet_parquet.write(path, with_low, record)
    return path


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--events", type=int, default=6000, help="both classes together")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--directory", type=Path, default=STANDIN)
    parser.add_argument("--scheduler", help="synchronous, or tcp://... of a Dask scheduler")
    parser.add_argument("--low-resolution", action="store_true", help="also write task 2b's file")
    arguments = parser.parse_args()
    make = generate_low_resolution if arguments.low_resolution else generate
    print(make(arguments.events, arguments.directory, arguments.seed, arguments.scheduler))


if __name__ == "__main__":
    # By its import name: numba's cache and Dask's workers know functions by their module.
    from data.simulate.jets import main as run

    run()
