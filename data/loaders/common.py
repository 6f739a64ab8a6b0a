"""What the loaders share: which source is taken, which files are read, what a dataset says."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from data.catalog import OfficialFile
from data.readers.remote_file import is_remote
from e2e_utils.errors import InputError
from e2e_utils.files import sha256
from e2e_utils.profiles import PROFILES, SOURCES, check_choice

SOURCE_WORDS = {
    "official": "official events",
    "standin": "simulated stand-in events",
    "file": "events of the given files",
}
STORE_VERSION = 1  # raise it when the stores' layout or the treatment of their values changes

Paths = str | Path | Sequence[str | Path]
# Makes the stand-in files: (catalog entry, profile) -> files, number of events together.
Simulate = Callable[[dict, str], tuple[Sequence[Path], int]]
Share = Callable[[int], Sequence[int]]  # events of all files -> events of each


def catalog_files(
    catalog: dict, source: str, profile: str, simulate: Simulate, share: Share | None = None
) -> tuple[str, list[Path], int]:
    """Which source it is, its files, and how many events the profile takes of them together.

    ``share`` says how many of each file; without it the files are taken in turn.
    """
    check_choice("source", source, SOURCES)
    check_choice("profile", profile, PROFILES)
    entries, n_events = catalog["file"], catalog["events"][profile]
    if source != "standin":
        if share:
            each = zip(entries, share(n_events), strict=True)
            found = [official_files([entry], n, source) for entry, n in each]
        else:
            found = [official_files(entries, n_events, source)]
        if None not in found:
            return "official", [file for files in found for file in files], n_events
    files, n_events = simulate(catalog, profile)
    return "standin", [Path(file) for file in files], n_events


def official_files(
    entries: Sequence[OfficialFile], n_events: int | None, source: str
) -> list[Path] | None:
    """Those of the official files, taken in turn, that hold the first events (None: all).

    A part of a file that holds enough of them will do. With ``source`` "official" what is missing
    is fetched, and InputError says why if it cannot be; with "auto" the answer is then None.
    """
    from data.partial import event_count, fetch_first, on_disk  # the downloader: only needed here

    find = fetch_first if source == "official" else on_disk
    files, left = [], n_events
    for entry in entries:
        if (file := find(entry, left)) is None:
            return None
        files.append(file)
        if n_events is not None and entry is not entries[-1]:
            left -= event_count(file, entry)
            if left <= 0:
                break
    return files


def source_files(
    catalog: dict,
    source: str,
    profile: str,
    path: Paths | None,
    simulate: Simulate,
    share: Share | None = None,
) -> tuple[str, list[Path], int | None]:
    """`catalog_files` or, with a ``path``, "file", the files that it names, and no limit (None)."""
    if path is None:
        return catalog_files(catalog, source, profile, simulate, share)
    check_choice("source", source, SOURCES)
    check_choice("profile", profile, PROFILES)
    return "file", as_paths(path), None


def as_paths(path: Paths) -> list[Path]:
    """The files that ``path`` names: one or several, a list or one string with commas.

    Those behind HTTP are downloaded first. Raises InputError for none.
    """
    parts = path.split(",") if isinstance(path, str) else [path] if isinstance(path, Path) else path
    parts = [part for part in (str(part).strip() for part in parts) if part]
    if not parts:
        raise InputError("DATA: expected one or more files, found none; name them")
    if any(map(is_remote, parts)):
        from data.download import local_copy
    return [local_copy(part) if is_remote(part) else Path(part).expanduser() for part in parts]


def files_fingerprint(name: str, files: Sequence[Path], lengths: Sequence[int]) -> str:
    """16 hex digits that change with the content of the files, their order and the limits.

    ``name`` tells stores of one layout from those of another.
    """
    content = json.dumps([name, STORE_VERSION, [sha256(file) for file in files], list(lengths)])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def binary_labels(file: Path, key: str, y: np.ndarray, classes: tuple[str, str]) -> np.ndarray:
    """Labels (n,) as int64; InputError for others than 0 and 1."""
    wrong = y[~np.isin(y, (0, 1))]
    if len(wrong):
        raise InputError(
            f"{file}: expected labels 0 ({classes[0]}) and 1 ({classes[1]}) in {key!r}, found "
            f"{wrong[0]:g} and {len(wrong) - 1} more near by; correct the labels"
        )
    return y.astype(np.int64)


def check_both_classes(y: np.ndarray, files: Sequence[Path], classes: tuple[str, str]) -> None:
    """Raise InputError where the labels ``y`` are of one class only, or none are there."""
    if len(np.unique(y)) < 2:
        found = f"only label {y[0]}" if len(y) else "no label"
        raise InputError(
            f"{', '.join(map(str, files))}: expected {classes[0]} (0) and {classes[1]} (1), found "
            f"{found}; give events of the other class too"
        )


@dataclass(frozen=True, kw_only=True)
class LoadedDataset:
    """Where events come from: what every dataset says of itself."""

    source_words: ClassVar[dict[str, str]] = SOURCE_WORDS

    source: str  # "official", "standin" or "file"
    fingerprint: str  # 16 hex digits of the events' content
    description: str  # one line
    files: list[str]  # names, without folders

    @property
    def words(self) -> str:
        """What the events are, for running text."""
        return self.source_words[self.source]


def described(source: str, files: Sequence[Path], fingerprint: str, what: str) -> dict[str, object]:
    """The arguments of `LoadedDataset`; prints its description: ``what`` was loaded, from where."""
    names = [Path(str(file)).name for file in files]
    description = f"{what}, {SOURCE_WORDS[source]} ({', '.join(names)})"
    print(f"Data: {description}")
    return {
        "source": source,
        "fingerprint": fingerprint,
        "description": description,
        "files": names,
    }
