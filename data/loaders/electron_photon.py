"""Electrons and photons in the ECAL barrel, as sparse images."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.catalog import dataset
from data.loaders.common import (
    SOURCE_WORDS,
    STORE_VERSION,
    LoadedDataset,
    as_paths,
    catalog_files,
)
from data.readers.hdf5 import check_images_file, iter_images, read_labels
from e2e_utils import paths
from e2e_utils.errors import InputError
from e2e_utils.files import sha256
from e2e_utils.sparse_images import SparseImages

FRESH_SEED = 20250304  # of the stand-in events that no training sees


def load_electron_photon(
    source: str = "auto",
    profile: str = "quick",
    path: str | Path | Sequence[str | Path] | None = None,
    require_both_classes: bool = True,
    fresh: bool = False,
) -> "EventDataset":
    """Electrons (label 1) and photons (label 0) as (2, 32, 32) images: energy / 50 GeV and time.

    ``source``: "official", "standin" (simulated now if missing) or "auto", the official files if
    they are on disk and the stand-in otherwise. ``profile`` limits the number of events. ``path``
    reads all events of other files with the official schema instead: one file or several (a list,
    or one string with commas), each of one class or of both. ``fresh``: stand-in events that no
    training of common_task1 has seen (simulated with another seed); of the official files there are
    no others, their user takes the test part of the split.

    The events come in the order of the files, class after class: split them with
    ``e2e_utils.splits``, which shuffles. Raises InputError for unusable files and, unless
    ``require_both_classes`` is false, for events of one class only.
    """
    catalog = dataset("electron_photon")
    if path is None:
        simulate = _simulate_fresh if fresh else _simulate
        source, files, n_events = catalog_files(catalog, source, profile, simulate)
        limit = n_events // 2
        labels = [entry["label"] for entry in catalog["file"]]
    else:
        source, files, limit = "file", as_paths(path), None
        labels = [None] * len(files)
    keys = catalog["file"][0]["keys"]
    lengths = [check_images_file(file, keys) for file in files]
    if limit is not None:  # balanced, also where one file is shorter
        lengths = [min(limit, *lengths)] * len(files)
    y = [read_labels(file, "y", n) for file, n in zip(files, lengths, strict=True)]
    for file, label, file_y in zip(files, labels, y, strict=True):
        if label is not None and (file_y != label).any():
            raise InputError(
                f"{file}: expected label {label} for every event, found {1 - label}; "
                "the two files may be swapped, fetch them again (make data)"
            )
    y = np.concatenate(y)
    if require_both_classes and len(np.unique(y)) < 2:
        names = ", ".join(map(str, files))
        raise InputError(
            f"{names}: expected photons (0) and electrons (1), found only label {y[0]}; "
            "give a file of the other class too"
        )
    fingerprint = _fingerprint(files, lengths)
    images = _cached_images(files, lengths, fingerprint)
    n_photon, n_electron = np.bincount(y, minlength=2)
    names = [file.name for file in files]
    description = (
        f"{n_photon:,} photons and {n_electron:,} electrons, {SOURCE_WORDS[source]} "
        f"({', '.join(names)})"
    )
    print(f"Data: {description}")
    return EventDataset(
        images, y, source=source, fingerprint=fingerprint, description=description, files=names
    )


def _simulate(catalog: dict, profile: str) -> tuple[Sequence[Path], int]:
    from data.simulate.egamma import generate

    n_events = catalog["events"][profile]
    return generate(n_events, paths.STANDIN), n_events


def _simulate_fresh(catalog: dict, profile: str) -> tuple[Sequence[Path], int]:
    from data.simulate.egamma import generate

    n_events = catalog["fresh_events"][profile]
    return generate(n_events, paths.STANDIN / "fresh", seed=FRESH_SEED), n_events


def _fingerprint(files: Sequence[Path], lengths: Sequence[int]) -> str:
    """16 hex digits that change with the content of the files, their order and the limits."""
    content = [STORE_VERSION, [sha256(file) for file in files], list(lengths)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _cached_images(files: Sequence[Path], lengths: Sequence[int], fingerprint: str) -> SparseImages:
    folder = paths.CACHE / fingerprint
    if not folder.is_dir():
        sources = zip(files, lengths, strict=True)
        SparseImages.from_chunks(
            (chunk for file, n in sources for chunk in iter_images(file, "X", n)), folder
        )
    return SparseImages.open(folder)


@dataclass(frozen=True)
class EventDataset(LoadedDataset):
    """Labelled images and where they come from."""

    images: SparseImages  # N events of shape (C, H, W)
    y: np.ndarray  # (N,) int64

    def __len__(self) -> int:
        return len(self.y)
