"""Electrons and photons in the ECAL barrel, as sparse images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from data.catalog import dataset
from data.loaders.common import (
    LoadedDataset,
    Paths,
    binary_labels,
    check_both_classes,
    described,
    source_files,
)
from data.loaders.stores import Chunk, Part, stored
from data.readers.hdf5 import check_images_file, iter_columns, open_hdf5
from e2e_utils import paths
from e2e_utils.errors import InputError
from e2e_utils.sparse_images import SparseImages

SHAPE = (2, 32, 32)
CLASSES = ("photon", "electron")
FRESH_SEED = 20250304  # of the stand-in events that no training sees


def load_electron_photon(
    source: str = "auto",
    profile: str = "quick",
    path: Paths | None = None,
    require_both_classes: bool = True,
    fresh: bool = False,
) -> "EventDataset":
    """Electrons (label 1) and photons (label 0) as (2, 32, 32) images: energy / 50 GeV and time.

    ``source``: "official", "standin" (simulated now if missing) or "auto", the official files if
    they are on disk and the stand-in otherwise. ``profile`` limits the number of events. ``path``
    reads all events of other files with the official schema instead: one file or several (a list,
    or one string with commas), each of one class or of both, also URLs. ``fresh``: stand-in events
    that no training of common_task1 has seen (simulated with another seed); of the official files
    there are no others, their user takes the test part of the split.

    The events come in the order of the files, class after class: split them with
    ``e2e_utils.splits``, which shuffles. Raises InputError for unusable files and, unless
    ``require_both_classes`` is false, for events of one class only.
    """
    catalog = dataset("electron_photon")
    simulate = _simulate_fresh if fresh else _simulate
    source, files, limit = source_files(
        catalog, source, profile, path, simulate, lambda n: [n // 2] * 2
    )
    keys = catalog["file"][0]["keys"]
    lengths = [check_images_file(file, keys) for file in files]
    of_file: dict[Path, int] = {}  # the only label of a file
    if limit is not None:
        of_file = {file: entry["label"] for file, entry in zip(files, catalog["file"], strict=True)}
        lengths = [min(limit // 2, *lengths)] * len(files)  # balanced, also if one is shorter

    def events(part: Part) -> Iterator[Chunk]:
        for chunk in iter_columns(part.file, "X", ["y"], part.rows):
            y = binary_labels(part.file, "y", chunk["y"], CLASSES)
            _check_class(part.file, y, of_file.get(part.file))
            yield {"images": chunk["X"], "y": y}

    parts = [Part(file, rows, keys) for file, rows in zip(files, lengths, strict=True)]
    store = stored("electron_photon", parts, events, SHAPE, ["y"])
    y = store.numbers["y"]
    if require_both_classes:
        check_both_classes(y, files, CLASSES)
    n_photon, n_electron = np.bincount(y, minlength=2)
    what = f"{n_photon:,} photons and {n_electron:,} electrons"
    origin = described(source, files, store.fingerprint, what)
    return EventDataset(store.images, y, truth_of(parts), **origin)


def truth_of(parts: Sequence[Part]) -> pd.DataFrame | None:
    """What the simulation knows of each event (`data.simulate.egamma.TRUTH`); None of others."""
    frames = []
    for part in parts:
        with open_hdf5(part.file) as file:
            if "truth" not in file:
                return None
            columns = [str(name) for name in file["truth"].attrs["columns"]]
            frames.append(pd.DataFrame(file["truth"][: part.rows], columns=columns))
    return pd.concat(frames, ignore_index=True)


def _check_class(file: Path, y: np.ndarray, label: int | None) -> None:
    if label is not None and (y != label).any():
        raise InputError(
            f"{file}: expected label {label} for every event, found {1 - label}; "
            "the two files may be swapped, fetch them again (make data)"
        )


def _simulate(catalog: dict, profile: str) -> tuple[Sequence[Path], int]:
    from data.simulate.egamma import generate

    n_events = catalog["events"][profile]
    return generate(n_events, paths.STANDIN), n_events


def _simulate_fresh(catalog: dict, profile: str) -> tuple[Sequence[Path], int]:
    from data.simulate.egamma import generate

    n_events = catalog["fresh_events"][profile]
    return generate(n_events, paths.STANDIN / "fresh", seed=FRESH_SEED), n_events


@dataclass(frozen=True)
class EventDataset(LoadedDataset):
    """Labelled images and where they come from."""

    images: SparseImages  # N events of shape (C, H, W)
    y: np.ndarray  # (N,) int64
    truth: pd.DataFrame | None = None  # N rows, of stand-in events only

    def __len__(self) -> int:
        return len(self.y)
