"""Stand-in for tasks 2c, 2d, 2g and 2i: boosted tops and QCD jets as images of eight channels.

    python -m data.simulate.jets8 --events 10500

writes three HDF5 files in the official schemas: unlabelled jets (six in seven), and labelled ones
(one in seven) twice, with Y, and with Y, m and pT. ``jet`` (n, 125, 125, 8) float32 holds pixels
scaled to 0 to 255 per image and channel (channels: `boosted_detector.CHANNELS`), Y (n, 1) is 1 for
tops and 0 for QCD jets, half of the jets each, mixed; m and pT (n, 1) are those of the jet in GeV.
What is known of the official files, and how these differ: data/README.md.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from data.simulate import shards
from e2e_utils.errors import InputError, command_line
from e2e_utils.files import atomic_path
from e2e_utils.paths import STANDIN

if TYPE_CHECKING:
    from data.simulate.boosted_detector import Tracker
    from data.simulate.jets_detector import Detector

SHARD_EVENTS = 500
BATCH = 100  # collisions at a time; about as many jets pass
WRITE_EVENTS = 50  # jets at a time: 25 MB
LABELLED_SHARE = 7  # one jet in so many has a label, as in the official files
LARGEST = 255.0  # value of the largest pixel of each image and channel
JET_BYTES = 20_000  # of one jet in the files, and in the shards
SEED = 20250311
KINDS = ("unlabelled", "labelled", "full")
NAMES = {
    "unlabelled": "Dataset_Specific_Unlabelled",
    "labelled": "Dataset_Specific_labelled",
    "full": "Dataset_Specific_labelled_full_only_for_2i",
}
NUMBERS = {"unlabelled": (), "labelled": ("Y",), "full": ("Y", "m", "pT")}


def detector() -> tuple["Detector", "Tracker"]:
    """The detector of the sample, fitted to published means, spreads and active pixels.

    The samples come from different campaigns: this one has the pile-up of 2012, `top_gun` none but
    a few, and what was kept of the calorimeters differs (data/README.md).
    """
    from data.simulate.boosted_detector import Tracker
    from data.simulate.jets_detector import Detector

    calorimeters = Detector(
        pile_up=20.0,
        core=0.17,
        tail_share=0.11,
        hadron_core=0.45,
        hadron_ecal=0.35,
        hadron_response=0.65,
        hcal_spread=1.5,
        ecal_seed=2.1,
        candidate=4.0,
        ecal_threshold=0.14,
        endcap_threshold=0.45,
        hcal_threshold=1.23,
    )
    tracker = Tracker(
        min_pt=0.35, vertex_z=0.003, merged_hits=0.8, second_hit=0.075, stray_hits=10.0
    )
    return calorimeters, tracker


def scaled(jets: shards.Arrays) -> shards.Arrays:
    """Packed images with the largest pixel of each channel at LARGEST; none is below 0.

    Negative impact parameters and noise vanish: the published means of these channels are too small
    for a scale on which 0 is not 0. An empty channel stays empty.
    """
    from data.simulate import boosted

    positive = jets["value"] > 0
    index, value = jets["index"][positive], jets["value"][positive]
    jet = np.repeat(np.arange(len(jets["counts"])), jets["counts"])[positive]  # (hits,)
    channels, *image = boosted.SHAPE
    channel = channels * jet + index // np.prod(image, dtype=np.uint32)  # of all jets
    largest = np.zeros(channels * len(jets["counts"]), np.float32)
    np.maximum.at(largest, channel, value)
    return {
        "counts": np.bincount(jet, minlength=len(jets["counts"])),
        "index": index,
        "value": (LARGEST * value / largest[channel]).astype(np.float32),
    }


def simulate_shard(n_events: int, top: bool, seed: np.random.SeedSequence) -> dict[str, np.ndarray]:
    """Jets of one class, packed (`boosted.images_of`) and scaled; ``m`` and ``pT`` (n,) in GeV."""
    from data.simulate import boosted
    from data.simulate.boosted_events import PairEvents, laid_over
    from data.simulate.boosted_reconstruction import fat_jets
    from data.simulate.jets_events import pools

    calorimeters, tracker = detector()
    pool, pairs = pools(), PairEvents(top, seed)
    rng = np.random.Generator(np.random.PCG64(seed))
    parts, done = [], 0
    while done < n_events:
        events, origin, hard = pairs.batch(min(BATCH, n_events - done))
        events, origin, vertices = laid_over(
            events, origin, calorimeters.pile_up, calorimeters.vertex_spread, rng, pool
        )
        rows, jets = fat_jets(events, hard, rng)
        images, _, fits = boosted.images_of(
            rng, events, origin, vertices, rows, jets[:, 2:], calorimeters, tracker
        )
        numbers = {"pT": jets[fits, 0], "m": jets[fits, 1]}
        parts.append(scaled(images) | numbers)
        done += len(numbers["m"])
    whole = boosted.joined(parts)
    # Both jets of an event follow each other: mix.
    return boosted.rows_of(whole, rng.permutation(len(whole["m"]))[:n_events])


# Files --------------------------------------------------------------------------------------------


def sizes_of(n_events: int) -> dict[str, int]:
    """How many of ``n_events`` jets each file holds; both labelled files hold the same ones."""
    labelled = max(1, round(n_events / LABELLED_SHARE))
    return {"unlabelled": n_events - labelled, "labelled": labelled, "full": labelled}


def file_name(kind: str, n_events: int) -> str:
    return f"{NAMES[kind]}_STANDIN_n{n_events}.h5"


def simulation_version() -> str:
    from data.simulate.boosted import simulation_version

    return simulation_version("jets8.py", "boosted_reconstruction.py", "jets_reconstruction.py")


def is_complete(path: Path, n_events: int, seed: int) -> bool:
    """Whether ``path`` is a finished file of this size, seed and simulation."""
    try:
        with h5py.File(path) as file:
            return (
                len(file["jet"]) == n_events
                and file.attrs["seed"] == seed
                and file.attrs["simulation"] == simulation_version()
            )
    except (OSError, KeyError):
        return False


def iter_jets(parts: list[Path]) -> Iterator[dict[str, np.ndarray]]:
    """Every jet of the shards, packed, one by one; a shard is in memory at a time."""
    from data.simulate import boosted

    for part in parts:
        jets = shards.load(part)
        for row in range(len(jets["counts"])):
            yield boosted.rows_of(jets, np.array([row]))


def write(
    path: Path, kind: str, halves: tuple[list[Path], list[Path]], n_events: int, seed: int
) -> None:
    """Write QCD jets and tops (the shards of ``halves``) in a random order of labels; atomic."""
    from data.simulate import boosted

    labels = np.random.default_rng((seed, kind == "unlabelled")).permutation(
        np.arange(n_events) % 2
    )
    of_class = [iter_jets(files) for files in halves]
    shape = boosted.SHAPE[1:] + boosted.SHAPE[:1]
    buffer = np.empty((WRITE_EVENTS, *shape), np.float32)  # fresh memory costs more than its use
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        # One jet a chunk, so that any order of reading costs only the jets that are read.
        pixels = file.create_dataset(
            "jet",
            (n_events, *shape),
            "f4",
            chunks=(1, *shape),
            compression="gzip",
            compression_opts=1,
        )
        numbers = {key: np.zeros((n_events, 1), np.float32) for key in NUMBERS[kind]}
        for first in range(0, n_events, WRITE_EVENTS):
            y = labels[first : first + WRITE_EVENTS]
            jets = boosted.joined([next(of_class[label]) for label in y])
            images = buffer[: len(y)]
            boosted.unpacked(jets, images.transpose(0, 3, 1, 2))  # (b, H, W, C) as (b, C, H, W)
            columns = {"Y": y, "m": jets["m"], "pT": jets["pT"]}
            if not all(np.isfinite(jets[key]).all() for key in ("value", "m", "pT")):
                raise InputError(
                    f"{path.name}: expected finite jets, found others; the disk may be faulty, "
                    "generate again"
                )
            rows = slice(first, first + len(y))
            pixels[rows] = images
            for key, values in numbers.items():
                values[rows, 0] = columns[key]
        for key, values in numbers.items():
            file[key] = values
        file.attrs["source"] = "standin"
        file.attrs["seed"] = seed
        file.attrs["simulation"] = simulation_version()


def generate(
    n_events: int,
    directory: str | Path | None = None,
    seed: int = SEED,
    scheduler: str | None = None,
) -> tuple[Path, Path, Path]:
    """Make ``n_events`` jets, all files together; return the files in the order of KINDS.

    Returns at once when the files are there already, made with this seed and simulation. An
    interrupted run continues where it stopped. ``scheduler``: see `shards.produce`.

    Raises InputError when the disk is too full or for fewer than 14 jets.
    """
    if n_events < 2 * LABELLED_SHARE:
        raise InputError(
            f"--events: expected {2 * LABELLED_SHARE} or more, found {n_events}; one jet in "
            f"{LABELLED_SHARE} has a label, and both classes are needed"
        )
    directory = Path(directory or STANDIN)
    sizes = sizes_of(n_events)
    paths = {kind: directory / file_name(kind, sizes[kind]) for kind in KINDS}

    def missing() -> list[str]:
        return [kind for kind in KINDS if not is_complete(paths[kind], sizes[kind], seed)]

    if not missing():
        return tuple(paths.values())
    folder = directory / f".jets8_n{n_events}_s{seed}_{simulation_version()}.part"
    jobs, owners = [], []
    for kind in KINDS[:2]:  # the third has the jets of the second
        for top in (False, True):
            n_class = (sizes[kind] + (not top)) // 2
            parts = [min(SHARD_EVENTS, n_class - k) for k in range(0, n_class, SHARD_EVENTS)]
            seeds = np.random.SeedSequence((seed, KINDS.index(kind), top)).spawn(len(parts))
            jobs += [(size, top, spawned) for size, spawned in zip(parts, seeds, strict=True)]
            owners += [(kind, top)] * len(parts)
    with shards.workplace(folder, need_bytes=2 * JET_BYTES * n_events):
        if missing():  # no other process made them while this one waited
            stored = shards.produce(
                simulate_shard,
                jobs,
                folder,
                scheduler=scheduler,
                weights=[size for size, _, _ in jobs],
                label="tops and QCD jets",
                # Pools are simulated and numba compiles once, before the workers start.
                prepare=lambda: simulate_shard(1, True, np.random.SeedSequence(0)),
            )
            for kind in missing():
                jets = "unlabelled" if kind == "unlabelled" else "labelled"
                halves = tuple(
                    [path for path, owner in zip(stored, owners, strict=True) if owner == (jets, t)]
                    for t in (False, True)
                )
                write(paths[kind], kind, halves, sizes[kind], seed)
    return tuple(paths.values())


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--events", type=int, default=10500, help="all files together")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--directory", type=Path, default=STANDIN)
    parser.add_argument("--scheduler", help="synchronous, or tcp://... of a Dask scheduler")
    arguments = parser.parse_args()
    for path in generate(
        arguments.events, arguments.directory, arguments.seed, arguments.scheduler
    ):
        print(path)


if __name__ == "__main__":
    # By its import name: numba's cache and Dask's workers know functions by their module.
    from data.simulate.jets8 import main as run

    run()
