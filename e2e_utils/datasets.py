"""Events for the tasks: official files where they are on disk, else simulated stand-ins.

Every loader prints one line that says which events were loaded, and keeps them in a cache that is
built once per set of source files: images as SparseImages, tables as memory-mapped arrays.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.catalog import PROFILES, dataset, official_paths
from e2e_utils import paths
from e2e_utils.errors import InputError
from e2e_utils.event_tables import build_store, open_store
from e2e_utils.files import sha256
from e2e_utils.hdf5_schema import check_images_file, iter_images, read_labels
from e2e_utils.sparse_images import SparseImages

SOURCES = ("auto", "official", "standin")
SOURCE_WORDS = {
    "official": "official events",
    "standin": "simulated stand-in events",
    "file": "events of the given files",
}
FRESH_SEED = 20250304  # of the stand-in events that no training sees
STORE_VERSION = 1  # raise it when the stores' layout or the treatment of their values changes
LOW_LEVEL = 21  # of the 28 HIGGS features: measured momenta and b-tags; the others are masses


@dataclass(frozen=True)
class EventDataset:
    """Labelled images and where they come from."""

    images: SparseImages  # N events of shape (C, H, W)
    y: np.ndarray  # (N,) int64
    source: str  # "official", "standin" or "file"
    fingerprint: str  # 16 hex digits of the content of the source files
    description: str  # one line
    files: list[str]  # names, without folders

    def __len__(self) -> int:
        return len(self.y)

    @property
    def words(self) -> str:
        """What the events are, for running text."""
        return SOURCE_WORDS[self.source]


@dataclass(frozen=True)
class HiggsDataset:
    """Labelled HIGGS events and where they come from."""

    features: np.ndarray  # (N, 28) float32, memory-mapped, in UCI's units
    feature_names: tuple[str, ...]  # 28
    y: np.ndarray  # (N,) int64: 1 signal, 0 background
    source: str  # "official", "standin" or "file"
    fingerprint: str  # 16 hex digits of the events
    description: str  # one line
    files: list[str]  # names, without folders

    def __len__(self) -> int:
        return len(self.y)

    @property
    def words(self) -> str:
        """What the events are, for running text."""
        return SOURCE_WORDS[self.source]

    @property
    def low_level(self) -> np.ndarray:
        """The first 21 features (N, 21), a view: momenta, angles and b-tags, no masses."""
        return self.features[:, :LOW_LEVEL]


def load_electron_photon(
    source: str = "auto",
    profile: str = "quick",
    path: str | Path | Sequence[str | Path] | None = None,
    require_both_classes: bool = True,
    fresh: bool = False,
) -> EventDataset:
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
        simulate = _simulate_fresh_electron_photon if fresh else _simulate_electron_photon
        source, files, n_events = _catalog_files(catalog, source, profile, simulate)
        limit = n_events // 2
        labels = [entry["label"] for entry in catalog["file"]]
    else:
        source, files, limit = "file", _as_paths(path), None
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
    return EventDataset(images, y, source, fingerprint, description, names)


def load_higgs(
    source: str = "auto",
    profile: str = "quick",
    path: str | Path | Sequence[str | Path] | None = None,
    require_both_classes: bool = True,
) -> HiggsDataset:
    """Signal (label 1) and top pairs (label 0) of UCI's HIGGS data, in the order of the file.

    ``source`` and ``profile`` as for `load_electron_photon`; of the official file only the first
    1,100,000 rows (fewer in smaller profiles) are read, once. ``path`` reads all events of other
    files in UCI's format instead: one or several, comma, tab or blank separated, also gzipped. The
    last rows are the test set: split with ``e2e_utils.splits.split_last``. Raises InputError for
    unusable files and, unless ``require_both_classes`` is false, for events of one class only.
    """
    catalog = dataset("higgs")
    if path is None:
        source, files, limit = _catalog_files(catalog, source, profile, _simulate_higgs)
    else:
        source, files, limit = "file", _as_paths(path), None
    _, *feature_names = catalog["file"][0]["keys"]
    folder = paths.CACHE / f"higgs_{_state(files, limit)}"
    if not folder.is_dir():
        build_store(files, len(feature_names), folder, limit)
    features, y, fingerprint = open_store(folder)
    names = [file.name for file in files]
    if require_both_classes and len(np.unique(y)) < 2:
        raise InputError(
            f"{', '.join(map(str, files))}: expected signal (1) and background (0), found only "
            f"label {y[0]}; give events of the other class too"
        )
    n_background, n_signal = np.bincount(y, minlength=2)
    description = (
        f"{n_signal:,} signal and {n_background:,} background events, {SOURCE_WORDS[source]} "
        f"({', '.join(names)})"
    )
    print(f"Data: {description}")
    return HiggsDataset(features, tuple(feature_names), y, source, fingerprint, description, names)


def two_photon_file(
    source: str = "auto", profile: str = "quick", path: str | Path | None = None
) -> tuple[Path, str]:
    """ROOT file with events of two photons, and its source: "official", "standin" or "file".

    ``source`` and ``profile`` as in `load_electron_photon`; ``path`` names another file. Raises
    InputError where the file is missing.
    """
    _check_choice("source", source, SOURCES)
    _check_choice("profile", profile, PROFILES)
    (official,) = official_paths("cmssw_double_photon")
    if path is not None:
        file, found = Path(path).expanduser(), "file"
        if not file.is_file():
            raise InputError(f"{file}: expected a ROOT file, found none; check DATA=...")
    elif source == "official" or (source == "auto" and official.is_file()):
        file, found = official, "official"
        _check_official(official)
    else:
        from data.simulate.two_photons import generate

        n_events = dataset("cmssw_double_photon")["events"][profile]
        file, found = generate(n_events, paths.STANDIN), "standin"
    print(f"Data: {SOURCE_WORDS[found]} ({file.name})")
    return file, found


def _prepare_cmssw_inference(source: str, profile: str) -> str:
    images = load_electron_photon(source, profile, fresh=True).description
    file, found = two_photon_file(source, profile)
    return f"{images}; {SOURCE_WORDS[found]} ({file.name})"


# What `make score` reads an independent sample with.
LOADERS: dict[str, Callable[..., EventDataset | HiggsDataset]] = {
    "common_task1": load_electron_photon,
    "task2a_higgs_transformer": load_higgs,
}
# What `make data` does: (source, profile) -> one line that says which events are there.
PREPARATIONS: dict[str, Callable[[str, str], str]] = {
    "common_task1": lambda source, profile: load_electron_photon(source, profile).description,
    "task2a_higgs_transformer": lambda source, profile: load_higgs(source, profile).description,
    "task2f_cmssw_inference": _prepare_cmssw_inference,
}


def prepare(task: str, profile: str, source: str) -> str:
    """Make sure that a task's events are on disk (download, simulate, cache); one-line report."""
    if task not in PREPARATIONS:
        known = ", ".join(PREPARATIONS)
        raise InputError(f"{task}: expected a task with a loader, found none; known: {known}")
    if source == "official":
        from data.catalog import select
        from data.download import fetch_all

        if fetch_all(select([task])):
            raise InputError(
                f"{task}: expected every official file, found some missing (see above); try again, "
                "or use DATA_SOURCE=standin"
            )
    return PREPARATIONS[task](source, profile)


def _catalog_files(
    catalog: dict,
    source: str,
    profile: str,
    simulate: Callable[[dict, str], tuple[Sequence[Path], int]],
) -> tuple[str, list[Path], int]:
    """Which source it is, its files, and how many events the profile takes of them together.

    ``simulate`` makes the stand-in files: (catalog entry, profile) -> files.
    """
    _check_choice("source", source, SOURCES)
    _check_choice("profile", profile, PROFILES)
    official = [paths.OFFICIAL / entry["name"] for entry in catalog["file"]]
    missing = [file for file in official if not file.is_file()]
    if source == "official" and missing:
        _check_official(missing[0])
    if source == "standin" or missing:
        files, n_events = simulate(catalog, profile)
        return "standin", [Path(file) for file in files], n_events
    return "official", official, catalog["events"][profile]


def _simulate_electron_photon(catalog: dict, profile: str) -> tuple[Sequence[Path], int]:
    from data.simulate.egamma import generate

    n_events = catalog["events"][profile]
    return generate(n_events, paths.STANDIN), n_events


def _simulate_fresh_electron_photon(catalog: dict, profile: str) -> tuple[Sequence[Path], int]:
    from data.simulate.egamma import generate

    n_events = catalog["fresh_events"][profile]
    return generate(n_events, paths.STANDIN / "fresh", seed=FRESH_SEED), n_events


def _simulate_higgs(catalog: dict, profile: str) -> tuple[Sequence[Path], int]:
    from data.simulate.higgs import generate

    n_events = catalog["events"][profile]
    return [generate(n_events, paths.STANDIN)], n_events


def _check_official(file: Path) -> None:
    if not file.is_file():
        raise InputError(
            f"{file}: expected the official file, found none; fetch it with "
            "`make data DATA_SOURCE=official`"
        )


def _check_choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise InputError(f"{name}: expected one of {', '.join(known)}, found {value!r}; correct it")


def _as_paths(path: str | Path | Sequence[str | Path]) -> list[Path]:
    if isinstance(path, str):
        path = [part.strip() for part in path.split(",") if part.strip()]
    elif isinstance(path, Path):
        path = [path]
    if not path:
        raise InputError("DATA: expected one or more files, found none; name them")
    return [Path(file).expanduser() for file in path]


def _fingerprint(files: Sequence[Path], lengths: Sequence[int]) -> str:
    """16 hex digits that change with the content of the files, their order and the limits."""
    content = [STORE_VERSION, [sha256(file) for file in files], list(lengths)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


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


def _cached_images(files: Sequence[Path], lengths: Sequence[int], fingerprint: str) -> SparseImages:
    folder = paths.CACHE / fingerprint
    if not folder.is_dir():
        sources = zip(files, lengths, strict=True)
        SparseImages.from_chunks(
            (chunk for file, n in sources for chunk in iter_images(file, "X", n)), folder
        )
    return SparseImages.open(folder)
