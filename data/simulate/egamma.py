"""Stand-in for common task 1: single electrons and photons of pT 50 GeV in the ECAL barrel.

    python -m data.simulate.egamma --events 24000

writes one HDF5 file a class in the official schema: X (n, 32, 32, 2) float32, rows ieta, columns
iphi, seed crystal at [16][16], channel 0 energy / 50 GeV, channel 1 time / 50 ns (0 where there is
no hit); y (n,) float32, 0 photon, 1 electron. One array more than there: truth (n, 6) float32, what
the simulation knows of each event (columns TRUTH, also in the array's attribute "columns"). What is
known of the official files, and how these differ: data/README.md.
"""

import argparse
import math
from pathlib import Path

import h5py
import numba
import numpy as np

from data.simulate import DETECTOR, shards, sources_hash
from data.simulate.barrel import ETA_CRYSTALS, GRID, MAX_IMPACTS, Detector, cms_crystal
from data.simulate.detector import simulate_hits
from data.simulate.ecal_pulse import hit_time
from e2e_utils.errors import InputError, command_line
from e2e_utils.files import atomic_path
from e2e_utils.paths import STANDIN

PT = 50.0  # GeV
ETA_LIMIT = 1.4  # crops that leave the barrel are dropped: |eta| < 1.2 remains
VERTEX_SPREAD = 5.0  # cm along the beam
ENERGY_UNIT = 50.0  # GeV
TIME_UNIT = 50.0  # ns
CROP = 32  # crystals a side of an image
SEED_AT = 16  # row and column of the seed crystal
# The centre of 5 in 200 real images is not their highest crystal but one within a few per cent of
# it: it was chosen with other constants than the stored energies. Relative; fitted to that share.
SEED_SPREAD = 0.07

EMPTY_IMAGES = 5e-5  # share without any hit; a guess: public notes say "a few" of 498,000

SHARD_EVENTS = 1000
CHUNK_EVENTS = 250  # of the HDF5 files: 2 MB uncompressed
CLASSES = ("Photon", "Electron")  # label 0, 1
# The official electrons have one charge: networks trained on them tell it (data/README.md).
ELECTRON_CHARGE = -1.0
# What is known of each event: direction, vertex (cm), radius (cm) of the photon's conversion or 0,
# photons above 1 GeV that the electron radiated and their energy (GeV).
TRUTH = ("eta", "phi", "vertex_z", "conversion_radius", "radiated_photons", "radiated_energy")


@numba.njit(cache=True, nogil=True)
def crop(rng, grid, noise, row, col, detector, image):
    """Cut the image around (row, col) out of the window and bring it to the official units."""
    for a in range(CROP):
        for b in range(CROP):
            from_row, from_col = row - SEED_AT + a, col - SEED_AT + b
            energy = grid[from_row, from_col]
            image[a, b, 0] = energy / ENERGY_UNIT
            image[a, b, 1] = 0.0
            if energy > 0.0:
                fluctuation = noise[from_row, from_col]
                image[a, b, 1] = hit_time(rng, energy, fluctuation, detector.noise) / TIME_UNIT


@numba.njit(cache=True, nogil=True)
def seed_crystal(rng, grid):
    """(row, column) of the largest energy as whoever chose the crops saw it: to SEED_SPREAD."""
    highest = grid.max()
    row, col, best = 0, 0, 0.0
    for a in range(GRID):
        for b in range(GRID):
            if grid[a, b] > 0.5 * highest:
                seen = grid[a, b] * (1.0 + SEED_SPREAD * rng.standard_normal())
                if seen > best:
                    row, col, best = a, b, seen
    return row, col


@numba.njit(cache=True, nogil=True)
def fill_images(rng, charge, detector, images, truth):
    """Fill ``images`` (n, 32, 32, 2) with electrons (``charge`` -1 or 1) or photons (0).

    ``truth`` (n, 6) receives the columns TRUTH.
    """
    grid, noise = np.zeros((GRID, GRID)), np.zeros((GRID, GRID))
    impacts = np.zeros((MAX_IMPACTS, 6))
    done = 0
    while done < len(images):
        eta = ETA_LIMIT * (2.0 * rng.random() - 1.0)
        phi = 2.0 * math.pi * rng.random()
        z = VERTEX_SPREAD * rng.standard_normal()
        i0, _, history = simulate_hits(
            rng, charge, PT * math.cosh(eta), eta, phi, z, detector, grid, noise, impacts
        )
        row, col = seed_crystal(rng, grid)
        i = i0 + row
        if i - SEED_AT < -ETA_CRYSTALS or i + SEED_AT > ETA_CRYSTALS or grid[row, col] <= 0.0:
            continue
        if min(row, col) < SEED_AT or max(row, col) > GRID - SEED_AT:
            continue
        if rng.random() >= EMPTY_IMAGES:
            crop(rng, grid, noise, row, col, detector, images[done])
        truth[done, 0], truth[done, 1], truth[done, 2] = eta, phi, z
        truth[done, 3], truth[done, 4], truth[done, 5] = history
        done += 1


def simulate_images(
    n_events: int,
    electron: bool,
    seed: int | np.random.SeedSequence,
    detector: Detector | None = None,
    charge: float = ELECTRON_CHARGE,
) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 32, 32, 2) float32 of one class and their truth (n, 6), columns TRUTH."""
    rng = np.random.Generator(np.random.PCG64(seed))
    images = np.zeros((n_events, CROP, CROP, 2), dtype=np.float32)
    truth = np.zeros((n_events, len(TRUTH)))
    fill_images(rng, charge if electron else 0.0, detector or Detector(), images, truth)
    return images, truth


def photon_hits(
    rng: np.random.Generator,
    eta: float,
    phi: float,
    z: float = 0.0,
    pt: float = PT,
    detector: Detector | None = None,
) -> dict[str, np.ndarray]:
    """Hits of one photon before cropping: ieta, iphi (CMS numbers), energy in GeV, time in ns."""
    detector = detector or Detector()
    grid, noise = np.zeros((GRID, GRID)), np.zeros((GRID, GRID))
    impacts = np.zeros((MAX_IMPACTS, 6))
    energy = pt * math.cosh(eta)
    i0, j0, _ = simulate_hits(rng, 0.0, energy, eta, phi, z, detector, grid, noise, impacts)
    rows, cols = np.nonzero(grid)
    ieta, iphi = cms_crystal(rows + i0, cols + j0)
    energies = grid[rows, cols]
    parts = zip(energies, noise[rows, cols], strict=True)
    times = np.array([hit_time(rng, *part, detector.noise) for part in parts])
    return {"ieta": ieta, "iphi": iphi, "energy": energies, "time": times}


def simulate_shard(
    n_events: int, electron: bool, seed: np.random.SeedSequence
) -> dict[str, np.ndarray]:
    """One shard: ``truth`` (n, 6), and flat ``index`` into (n, 32, 32), ``energy``, ``time``."""
    images, truth = simulate_images(n_events, electron, seed)
    pixels = images.reshape(-1, 2)  # (n, 32, 32, 2) -> (n * 1024, 2)
    index = np.flatnonzero(pixels[:, 0])
    return {
        "index": index.astype(np.uint32),
        "energy": pixels[index, 0],
        "time": pixels[index, 1],
        "truth": truth.astype(np.float32),
    }


def file_name(label: int, n_class: int) -> str:
    return f"Single{CLASSES[label]}Pt50_STANDIN_n{n_class}.hdf5"


def simulation_version() -> str:
    """Changes with the physics, so that files of an older simulation are made again."""
    return sources_hash(*DETECTOR, "egamma.py")


def is_complete(path: Path, n_class: int, seed: int) -> bool:
    """Whether ``path`` is a finished file of this size, seed and simulation."""
    try:
        with h5py.File(path) as file:
            return (
                file["X"].shape == (n_class, CROP, CROP, 2)
                and file["y"].shape == (n_class,)
                and file.attrs["seed"] == seed
                and file.attrs["simulation"] == simulation_version()
            )
    except (OSError, KeyError):
        return False


def assemble(parts: list[Path], path: Path, label: int, n_class: int, seed: int) -> None:
    """Write the shards of one class into the HDF5 file ``path``, a shard in memory at a time."""
    with atomic_path(path) as temporary:
        with h5py.File(temporary, "w") as file:
            chunk = min(CHUNK_EVENTS, n_class)
            options = {"compression": "gzip", "shuffle": True, "dtype": "f4"}
            X = file.create_dataset(
                "X", (n_class, CROP, CROP, 2), chunks=(chunk, CROP, CROP, 2), **options
            )
            y = file.create_dataset("y", (n_class,), chunks=(n_class,), **options)
            truth = file.create_dataset("truth", (n_class, len(TRUTH)), **options)
            truth.attrs["columns"] = TRUTH
            first = 0
            for part in parts:
                hits = shards.load(part)
                last = min(first + SHARD_EVENTS, n_class)
                pixels = np.zeros(((last - first) * CROP * CROP, 2), dtype=np.float32)
                pixels[hits["index"], 0] = hits["energy"]
                pixels[hits["index"], 1] = hits["time"]
                X[first:last] = pixels.reshape(-1, CROP, CROP, 2)  # (m * 1024, 2) -> images
                truth[first:last] = hits["truth"]
                first = last
            y[:] = float(label)
            file.attrs["source"] = "standin"
            file.attrs["seed"] = seed
            file.attrs["simulation"] = simulation_version()
        check(temporary, path.name)


def check(path: Path, name: str) -> None:
    """Read a finished file back: all values are finite, and next to all images have hits."""
    with h5py.File(path) as file:
        for first in range(0, len(file["X"]), SHARD_EVENTS):
            images = file["X"][first : first + SHARD_EVENTS]
            empty = (images[..., 0].max(axis=(1, 2)) <= 0).sum()
            if not np.isfinite(images).all() or empty > 5:
                raise InputError(
                    f"{name}: expected finite images with hits, found others from event {first}; "
                    "the disk may be faulty, generate again"
                )


def generate(
    n_events: int,
    directory: str | Path | None = None,
    seed: int = 20250303,
    scheduler: str | None = None,
) -> tuple[Path, Path]:
    """Make ``n_events`` (both classes together) and return (photon file, electron file).

    Returns at once when both files are there already, made with this seed and simulation. An
    interrupted run continues where it stopped. ``scheduler``: see `shards.produce`.

    Raises InputError when the disk is too full or ``n_events`` is not a positive even number.
    """
    if n_events < 2 or n_events % 2:
        raise InputError(
            f"--events: expected a positive even number, found {n_events}; "
            "half of the events are photons, half electrons"
        )
    directory = Path(directory or STANDIN)
    n_class = n_events // 2
    paths = tuple(directory / file_name(label, n_class) for label in range(len(CLASSES)))
    if all(is_complete(path, n_class, seed) for path in paths):
        return paths
    part_folder = directory / f".egamma_n{n_events}_s{seed}_{simulation_version()}.part"
    sizes = [min(SHARD_EVENTS, n_class - first) for first in range(0, n_class, SHARD_EVENTS)]
    jobs = [(size, label == 1) for label in range(len(CLASSES)) for size in sizes]
    seeds = np.random.SeedSequence(seed).spawn(len(jobs))
    with shards.workplace(part_folder, need_bytes=1300 * n_events):
        if all(is_complete(path, n_class, seed) for path in paths):
            return paths  # another process made them while this one waited
        parts = shards.produce(
            simulate_shard,
            [(*job, spawned) for job, spawned in zip(jobs, seeds, strict=True)],
            part_folder,
            scheduler=scheduler,
            weights=[size for size, _ in jobs],
            label="electron and photon images",
            prepare=lambda: simulate_shard(0, True, np.random.SeedSequence(0)),
        )
        for label, path in enumerate(paths):
            mine = parts[label * len(sizes) : (label + 1) * len(sizes)]
            assemble(mine, path, label, n_class, seed)
    return paths


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--events", type=int, default=24000, help="both classes together")
    parser.add_argument("--seed", type=int, default=20250303)
    parser.add_argument("--directory", type=Path, default=STANDIN)
    parser.add_argument("--scheduler", help="synchronous, or tcp://... of a Dask scheduler")
    arguments = parser.parse_args()
    for path in generate(
        arguments.events, arguments.directory, arguments.seed, arguments.scheduler
    ):
        print(path)


if __name__ == "__main__":
    # By its import name: numba's cache and Dask's workers know functions by their module.
    from data.simulate.egamma import main as run

    run()
