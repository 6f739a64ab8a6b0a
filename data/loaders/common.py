"""What the loaders share: which source is taken, which files are read, what a dataset says."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from data.readers.remote_file import RemoteFile, is_remote
from e2e_utils import paths
from e2e_utils.errors import InputError
from e2e_utils.files import sha256
from e2e_utils.profiles import PROFILES, SOURCES, check_choice

SOURCE_WORDS = {
    "official": "official events",
    "standin": "simulated stand-in events",
    "file": "events of the given files",
}
STORE_VERSION = 1  # raise it when the stores' layout or the treatment of their values changes

File = Path | RemoteFile
Paths = str | Path | Sequence[str | Path]
# Makes the stand-in files: (catalog entry, profile) -> files, number of events together.
Simulate = Callable[[dict, str], tuple[Sequence[Path], int]]


def catalog_files(
    catalog: dict,
    source: str,
    profile: str,
    simulate: Callable[[dict, str], tuple[Sequence[Path], int]],
) -> tuple[str, list[Path], int]:
    """Which source it is, its files, and how many events the profile takes of them together.

    ``simulate`` makes the stand-in files: (catalog entry, profile) -> files, number of events.
    """
    check_choice("source", source, SOURCES)
    check_choice("profile", profile, PROFILES)
    official = [paths.OFFICIAL / entry["name"] for entry in catalog["file"]]
    missing = [file for file in official if not file.is_file()]
    if source == "official" and missing:
        check_official(missing[0])
    if source == "standin" or missing:
        files, n_events = simulate(catalog, profile)
        return "standin", [Path(file) for file in files], n_events
    return "official", official, catalog["events"][profile]


def check_official(file: Path) -> None:
    """Raise InputError where an official file is missing."""
    if not file.is_file():
        raise InputError(
            f"{file}: expected the official file, found none; fetch it with "
            "`make data DATA_SOURCE=official`"
        )


def as_paths(path: Paths) -> list[Path]:
    """The files that a path, a list of paths or a string with commas names; InputError for none."""
    if isinstance(path, str):
        path = [part.strip() for part in path.split(",") if part.strip()]
    elif isinstance(path, Path):
        path = [path]
    if not path:
        raise InputError("DATA: expected one or more files, found none; name them")
    return [Path(file).expanduser() for file in path]


def given_files(path: Paths) -> list[File]:
    """As `as_paths`, but URLs are opened; the caller closes them."""
    parts = path.split(",") if isinstance(path, str) else path
    parts = (
        [parts]
        if isinstance(parts, Path)
        else [part.strip() if isinstance(part, str) else part for part in parts]
    )
    if not any(map(is_remote, parts)):
        return as_paths(path)
    return [RemoteFile(part) if is_remote(part) else Path(part).expanduser() for part in parts]


def files_fingerprint(name: str, files: Sequence[File], lengths: Sequence[int]) -> str:
    """16 hex digits that change with the content of the files, their order and the limits.

    ``name`` tells stores of one layout from those of another.
    """
    contents = [
        sha256(file) if isinstance(file, Path) else [file.name, file.size, file.version]
        for file in files
    ]
    content = json.dumps([name, STORE_VERSION, contents, list(lengths)])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def source_files(
    catalog: dict, source: str, profile: str, path: Paths | None, simulate: Simulate
) -> tuple[str, list[Path], int | None]:
    """`catalog_files` or, with a ``path``, "file", the files that it names, and no limit (None)."""
    check_choice("source", source, SOURCES)
    check_choice("profile", profile, PROFILES)
    if path is None:
        return catalog_files(catalog, source, profile, simulate)
    return "file", given_files(path), None


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
