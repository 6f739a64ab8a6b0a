"""UCI's HIGGS events, as a memory-mapped table."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.catalog import dataset
from data.loaders.common import (
    STORE_VERSION,
    LoadedDataset,
    Paths,
    check_both_classes,
    described,
    official_files,
    source_files,
)
from data.readers.event_tables import build_store, open_store
from e2e_utils import paths
from e2e_utils.errors import InputError
from e2e_utils.splits import Splits, row_hashes, split_last

LOW_LEVEL = 21  # of the 28 HIGGS features: measured momenta and b-tags; the others are masses
CLASSES = ("background", "signal")
OFFICIAL_SAMPLE = "higgs_real_41654.npz"
OFFICIAL_TRAIN, OFFICIAL_VALIDATION = 24_000, 2_000  # rows of it


def load_higgs(
    source: str = "auto",
    profile: str = "quick",
    path: Paths | None = None,
    require_both_classes: bool = True,
) -> "HiggsDataset":
    """Signal (label 1) and top pairs (label 0) of UCI's HIGGS data, in the order of the file.

    ``source`` and ``profile`` as for `load_electron_photon`; of the official file only the first
    1,100,000 rows (fewer in smaller profiles) are read, once. ``path`` reads all events of other
    files in UCI's format instead: one or several, comma, tab or blank separated, with or without a
    header of the official names (in any order), also gzipped, also URLs. The last rows are the test
    set: split with ``e2e_utils.splits.split_last``. Raises InputError for unusable files and,
    unless ``require_both_classes`` is false, for events of one class only.
    """
    catalog = dataset("higgs")
    _, *feature_names = catalog["file"][0]["keys"]
    source, files, limit = source_files(catalog, source, profile, path, _simulate)
    folder = paths.CACHE / f"higgs_{_state(files, limit)}"
    if not folder.is_dir():
        build_store(files, feature_names, folder, limit)
    features, y, fingerprint = open_store(folder)
    if require_both_classes:
        check_both_classes(y, files, CLASSES)
    n_background, n_signal = np.bincount(y, minlength=2)
    what = f"{n_signal:,} signal and {n_background:,} background events"
    if source == "file":  # a sample to score: the official rows are known to repeat themselves
        copies = len(y) - len(np.unique(row_hashes(features)))
        what += f" ({copies:,} exact copies of another)"
    return HiggsDataset(
        features, tuple(feature_names), y, **described(source, files, fingerprint, what)
    )


def _simulate(catalog: dict, profile: str) -> tuple[Sequence[Path], int]:
    from data.simulate.higgs import generate

    n_events = catalog["events"][profile]
    return [generate(n_events, paths.STANDIN)], n_events


def _state(files: Sequence[Path], limit: int | None) -> str:
    """16 hex digits of the files' places, sizes and times.

    Of an official file of 2.8 GB a tenth is used: its full content is not read to name the cache.
    """
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise InputError(f"{missing[0]}: expected a table of events, found no file; check the path")
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    content = json.dumps([STORE_VERSION, stats, limit])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class HiggsDataset(LoadedDataset):
    """Labelled HIGGS events and where they come from."""

    features: np.ndarray  # (N, 28) float32, memory-mapped, in UCI's units
    feature_names: tuple[str, ...]  # 28
    y: np.ndarray  # (N,) int64: 1 signal, 0 background

    def __len__(self) -> int:
        return len(self.y)

    @property
    def low_level(self) -> np.ndarray:
        """The first 21 features (N, 21), a view: momenta, angles and b-tags, no masses."""
        return self.features[:, :LOW_LEVEL]


class OfficialRows(NamedTuple):
    """Official rows beside a run on stand-in events."""

    low_level: np.ndarray  # (N, 21) float32
    y: np.ndarray  # (N,) int64
    splits: Splits  # no row that calibrated the simulation is in any part of a small sample
    description: str


def load_official_rows(profile: str = "quick") -> OfficialRows | None:
    """Official rows that networks trained on stand-ins can be compared on, or None.

    Where the official file is on disk: the rows of the profile, with the task's own test rows. Else
    the sample in the folder `paths.REAL_SAMPLES`, without the rows that the simulation was
    calibrated on: OFFICIAL_TRAIN rows train, OFFICIAL_VALIDATION validate, the others test.
    """
    catalog = dataset("higgs")
    if official_files(catalog["file"], catalog["events"][profile], "auto") is not None:
        rows = load_higgs("official", profile)
        return OfficialRows(rows.low_level, rows.y, split_last(rows.y), rows.description)
    path = paths.REAL_SAMPLES / OFFICIAL_SAMPLE
    if not path.is_file():
        return None
    with np.load(path) as sample:
        rows = sample["rows"][~sample["calibration"]]  # (n, 29), label first
    order = np.random.default_rng(0).permutation(len(rows))
    ends = (OFFICIAL_TRAIN, OFFICIAL_TRAIN + OFFICIAL_VALIDATION)
    words = f"{len(rows):,} official rows that the simulation was not calibrated on"
    splits = Splits(*np.split(order, ends))
    return OfficialRows(rows[:, 1 : 1 + LOW_LEVEL], rows[:, 0].astype(np.int64), splits, words)
