"""Stand-in for task 2e: boosted top quarks of any mass as images of eight channels.

    python -m data.simulate.top_gun --events 6000

writes parquet in the official schema: X_jet as nested lists 8 x 125 x 125 of doubles (channels:
`boosted_detector.CHANNELS`), m and pt of the top in GeV, iphi and ieta of the image's central
tower. The masses are flat from 85.3 to 500 GeV. What is known of the official files, and how these
differ: data/README.md.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.simulate import jet_parquet, shards
from e2e_utils.errors import InputError, command_line
from e2e_utils.paths import STANDIN

if TYPE_CHECKING:
    from data.simulate.boosted_detector import Tracker
    from data.simulate.jets_detector import Detector

SHARD_EVENTS = 500
BATCH = 100  # collisions at a time, two tops each
ROW_GROUP = 10  # jets: 10 MB of doubles; larger ones are written more slowly
JET_BYTES = 6000  # of one jet in the file
SHARD_JET_BYTES = 9000
SEED = 20250310
CONDITIONS = ("nominal", "harsh")
COLUMNS = ("X_jet", "m", "iphi", "pt", "ieta")


def detector(conditions: str = "nominal") -> tuple["Detector", "Tracker"]:
    """The detector of a sample; "harsh" has more noise and pile-up, to test what a network stands.

    "nominal" is fitted to what is published of active pixels and their means (data/README.md).
    """
    from data.simulate.boosted_detector import Tracker
    from data.simulate.jets_detector import Detector

    nominal = Detector(
        pile_up=1.05,
        hadron_response=0.65,
        hadron_ecal=0.68,
        ecal_seed=0.9,
        hcal_noise=0.24,
        hcal_threshold=0.56,
    )
    if conditions == "nominal":
        return nominal, Tracker()
    harsh = nominal._replace(pile_up=20.0, ecal_noise=0.06, endcap_noise=0.18, hcal_noise=0.3)
    return harsh, Tracker(efficiency=0.88, wrong_hit=0.06, stray_hits=20.0)


def simulate_shard(
    n_events: int, conditions: str, seed: np.random.SeedSequence
) -> dict[str, np.ndarray]:
    """Packed jets (`boosted.images_of`) with ``m``, ``pt`` (n,) in GeV; ``ieta``, ``iphi`` (n,).

    The masses are drawn first; a top that is lost (outside the range of pT, or of the calorimeter)
    is made again with the same mass, so that the spectrum stays flat.
    """
    from data.simulate import boosted
    from data.simulate.boosted_events import (
        GunEvents,
        directions,
        flat_masses,
        in_range,
        laid_over,
    )
    from data.simulate.jets_events import pools

    calorimeters, tracker = detector(conditions)
    pool, gun = pools(), GunEvents(seed)
    rng = np.random.Generator(np.random.PCG64(seed))
    left = {_key(mass): mass for mass in flat_masses(n_events, rng)}
    parts = []
    while left:
        wanted = np.array(list(left.values())[: 2 * BATCH])
        if len(wanted) % 2:  # the other top of the last event is thrown away
            wanted = np.append(wanted, flat_masses(1, rng))
        events, origin, hard = gun.batch(wanted.reshape(-1, 2), rng)
        events, origin, vertices = laid_over(
            events, origin, calorimeters.pile_up, calorimeters.vertex_spread, rng, pool, False
        )
        rows, top = np.nonzero(in_range(hard))
        momenta, mass = hard.momenta[rows, top], hard.mass[rows, top]
        images, seeds, fits = boosted.images_of(
            rng, events, origin, vertices, rows, directions(momenta), calorimeters, tracker
        )
        mass, pt = mass[fits], np.hypot(momenta[fits, 0], momenta[fits, 1])
        # A key is there once: neither an extra top nor a repeated event counts.
        new = [row for row, m in enumerate(mass) if left.pop(_key(m), None) is not None]
        jets = {"m": mass, "pt": pt, "ieta": seeds[:, 0], "iphi": seeds[:, 1]}
        parts.append(boosted.rows_of(images | jets, np.array(new, np.int64)))
    jets = boosted.joined(parts)
    # Tops that were made again are not like the others: mix.
    return boosted.rows_of(jets, rng.permutation(len(jets["m"])))


def _key(mass: float) -> int:
    """A mass in units of 1e-6 GeV: Pythia gives back what it got."""
    return round(1e6 * float(mass))


# Files --------------------------------------------------------------------------------------------


def file_name(n_events: int, conditions: str = "nominal") -> str:
    extra = "" if conditions == "nominal" else f"_{conditions}"
    return f"top_gun_STANDIN{extra}_n{n_events}.parquet"


def simulation_version() -> str:
    from data.simulate.boosted import simulation_version

    return simulation_version("top_gun.py")


def is_complete(path: Path, n_events: int, seed: int) -> bool:
    """Whether ``path`` is a finished file of this size, seed and simulation."""
    expected = jet_parquet.record(n_events, seed, simulation_version())
    return jet_parquet.is_complete(path, n_events, expected)


def chunks(parts: list[Path]) -> Iterator[dict[str, np.ndarray]]:
    """Columns of ROW_GROUP jets at a time, from the shards, one of which is in memory.

    The images (b, 8, 125, 125) float64 are overwritten by those of the next chunk.
    """
    from data.simulate import boosted

    # Doubles as in the file, and always the same: fresh memory costs more than its use.
    buffer = np.empty((ROW_GROUP, *boosted.SHAPE))
    for part in parts:
        jets = shards.load(part)
        for first in range(0, len(jets["counts"]), ROW_GROUP):
            rows = np.arange(first, min(first + ROW_GROUP, len(jets["counts"])))
            some = boosted.rows_of(jets, rows)
            if not all(np.isfinite(some[key]).all() for key in ("value", *COLUMNS[1:])):
                raise InputError(
                    f"{part.parent.name}: expected finite jets, found others; the disk may be "
                    "faulty, generate again"
                )
            images = boosted.unpacked(some, buffer[: len(rows)])
            yield {"X_jet": images} | {key: some[key] for key in COLUMNS[1:]}


def generate(
    n_events: int,
    directory: str | Path | None = None,
    seed: int = SEED,
    scheduler: str | None = None,
    conditions: str = "nominal",
) -> Path:
    """Make ``n_events`` jets in the schema of task 2e; return the file.

    Returns at once when the file is there already, made with this seed and simulation. An
    interrupted run continues where it stopped. ``scheduler``: see `shards.produce`; ``conditions``:
    see `detector`.

    Raises InputError when the disk is too full, or for an impossible number or unknown conditions.
    """
    if n_events < 1:
        raise InputError(f"--events: expected a positive number, found {n_events}; correct it")
    if conditions not in CONDITIONS:
        raise InputError(
            f"conditions: expected one of {', '.join(CONDITIONS)}, found {conditions!r}; correct it"
        )
    directory = Path(directory or STANDIN)
    path = directory / file_name(n_events, conditions)
    if is_complete(path, n_events, seed):
        return path
    folder = directory / f".{path.stem}_s{seed}_{simulation_version()}.part"
    sizes = [min(SHARD_EVENTS, n_events - first) for first in range(0, n_events, SHARD_EVENTS)]
    seeds = np.random.SeedSequence((seed, CONDITIONS.index(conditions))).spawn(len(sizes))
    with shards.workplace(folder, need_bytes=(JET_BYTES + SHARD_JET_BYTES) * n_events):
        if is_complete(path, n_events, seed):
            return path  # another process made it while this one waited
        parts = shards.produce(
            simulate_shard,
            [(size, conditions, spawned) for size, spawned in zip(sizes, seeds, strict=True)],
            folder,
            scheduler=scheduler,
            weights=sizes,
            label="boosted tops",
            # Pools are simulated and numba compiles once, before the workers start.
            prepare=lambda: simulate_shard(1, conditions, np.random.SeedSequence(0)),
        )
        record = jet_parquet.record(n_events, seed, simulation_version())
        # Without a dictionary it is twice as fast, and the file no larger.
        jet_parquet.write(path, chunks(parts), record, use_dictionary=False)
    return path


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--events", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--directory", type=Path, default=STANDIN)
    parser.add_argument("--scheduler", help="synchronous, or tcp://... of a Dask scheduler")
    parser.add_argument("--conditions", choices=CONDITIONS, default="nominal")
    arguments = parser.parse_args()
    print(
        generate(
            arguments.events,
            arguments.directory,
            arguments.seed,
            arguments.scheduler,
            arguments.conditions,
        )
    )


if __name__ == "__main__":
    # By its import name: numba's cache and Dask's workers know functions by their module.
    from data.simulate.top_gun import main as run

    run()
