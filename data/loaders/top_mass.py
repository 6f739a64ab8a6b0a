"""Boosted tops of task 2e, as sparse images of tracks and ECAL, with their mass."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.catalog import dataset, official_paths
from data.loaders.common import (
    SOURCE_WORDS,
    File,
    LoadedDataset,
    Paths,
    check_official,
    files_fingerprint,
    given_files,
)
from data.readers.nested_parquet import (
    check_parquet,
    column_names,
    image_shape,
    iter_columns,
    name_of,
)
from data.readers.remote_file import RemoteFile
from e2e_utils import paths
from e2e_utils.errors import InputError
from e2e_utils.files import atomic_path
from e2e_utils.profiles import PROFILES, SOURCES, check_choice
from e2e_utils.sparse_images import SparseImages

CHANNELS = ("track pT", "dz", "d0", "ECAL")  # the first ones of the files: the task allows no more
SIZE = 125  # pixels a side
# What the loader calls a column, and its names in the files: the task's text says am.
NAMES = {"m": ("m", "am"), "pt": ("pt", "apt"), "ieta": ("ieta",), "iphi": ("iphi",)}
CHUNK = 40  # jets of 8 x 125 x 125 doubles: 40 MB, and as much again while they are decoded


def load_top_mass(
    source: str = "auto",
    profile: str = "quick",
    path: Paths | None = None,
    require_both_classes: bool = False,
    max_events: int | None = None,
    conditions: str = "nominal",
) -> "TopMassDataset":
    """Boosted tops as (4, 125, 125) images, with the top's mass and pT in GeV.

    Channels: see CHANNELS; further ones of the files (HCAL, pixel hits) are left out. Rows are eta,
    columns phi. Values are as in the files, outliers included. ``source`` and ``profile`` as for
    `load_electron_photon`. ``path`` reads all jets of other files instead: parquet in the official
    schema with four or more channels, the mass called ``m`` or ``am``; one or several (a list, or
    one string with commas), also URLs.

    ``max_events`` takes the first jets only. Of a URL, and with ``source`` "official" of files that
    are not on disk, only the bytes that hold them are fetched. ``conditions`` "harsh" loads
    stand-ins of a noisier detector with more pile-up. ``require_both_classes`` is there for the
    other loaders' sake: masses have no classes.

    Raises InputError for unusable files.
    """
    check_choice("source", source, SOURCES)
    check_choice("profile", profile, PROFILES)
    if max_events is not None and max_events < 1:
        raise InputError(f"max_events: expected 1 or more, found {max_events}; correct it")
    if path is None:
        source, files = _catalog_files(source, profile, max_events, conditions)
        limit = max_events or dataset("top_mass")["events"][profile]
    else:
        source, files, limit = "file", given_files(path), max_events
    with ExitStack() as opened:
        for file in files:
            if isinstance(file, RemoteFile):
                opened.enter_context(file)
        parts = _parts(files, limit)
        files = [part.file for part in parts]
        fingerprint = files_fingerprint("top_mass", files, [part.rows for part in parts])
        folder = paths.CACHE / f"top_mass_{fingerprint}"
        if not folder.is_dir():
            _build(parts, folder)
    images = SparseImages.open(folder / "images")
    numbers = {name: np.load(folder / f"{name}.npy") for name in NAMES}
    names = [Path(name_of(file)).name for file in files]
    description = f"{len(images):,} boosted tops, {SOURCE_WORDS[source]} ({', '.join(names)})"
    print(f"Data: {description}")
    return TopMassDataset(
        images,
        **numbers,
        source=source,
        fingerprint=fingerprint,
        description=description,
        files=names,
    )


# Which files --------------------------------------------------------------------------------------


def _catalog_files(
    source: str, profile: str, max_events: int | None, conditions: str
) -> tuple[str, list[File]]:
    """Official files on disk, or ranges of remote ones if asked for, or the stand-in."""
    official = official_paths("top_mass")
    if conditions == "nominal" and source != "standin":
        missing = [file for file in official if not file.is_file()]
        if not missing:
            return "official", official
        if source == "official":
            if max_events is None:
                check_official(missing[0])
            return "official", [RemoteFile(file["url"]) for file in dataset("top_mass")["file"]]
    from data.simulate.top_gun import generate

    n_events = max_events or dataset("top_mass")["events"][profile]
    return "standin", [generate(n_events, paths.STANDIN, conditions=conditions)]


class Part(NamedTuple):
    """The first jets of a file."""

    file: File
    rows: int
    columns: dict[str, str]  # entry of NAMES: what the file calls it


def _parts(files: list[File], limit: int | None) -> list[Part]:
    """What the first ``limit`` jets need; checks the files."""
    parts = []
    for file in files:
        left = None if limit is None else limit - sum(part.rows for part in parts)
        if left == 0:
            break
        present = column_names(file)
        columns = {
            name: next((known for known in names if known in present), names[0])
            for name, names in NAMES.items()
        }
        rows = check_parquet(file, _keys(columns, (len(CHANNELS), SIZE, SIZE)))
        parts.append(Part(file, rows if left is None else min(rows, left), columns))
    return parts


def _keys(columns: Mapping[str, str], shape: Sequence[int]) -> dict[str, Mapping]:
    """Columns to read, in the form of data/catalog.toml, with images of ``shape``."""
    keys = {"X_jet": {"shape": [-1, *shape], "dtype": "float64"}}
    return keys | {key: {"shape": [-1], "dtype": "float64"} for key in columns.values()}


# Reading ------------------------------------------------------------------------------------------


def _build(parts: Sequence[Part], folder: Path) -> None:
    """Stream all files once into ``folder``: images/, and m.npy, pt.npy, ...; atomic."""
    numbers: list[dict[str, np.ndarray]] = []

    def chunks() -> Iterator[np.ndarray]:
        for part in parts:
            for chunk in _jets(part):
                numbers.append({name: chunk[name] for name in NAMES})
                yield chunk["X_jet"]

    with atomic_path(folder) as temporary:
        temporary.mkdir()
        SparseImages.from_chunks(chunks(), temporary / "images")
        for name in NAMES:
            column = np.concatenate([chunk[name] for chunk in numbers])
            np.save(temporary / f"{name}.npy", column)


def _jets(part: Part) -> Iterator[dict[str, np.ndarray]]:
    """Chunks of the jets: images (b, 4, 125, 125) and the numbers of NAMES."""
    file, columns = part.file, part.columns
    shape = image_shape(file, "X_jet")
    if len(shape) != 3 or shape[0] < len(CHANNELS) or shape[1:] != (SIZE, SIZE):
        raise InputError(
            f"{name_of(file)}: expected 'X_jet' of shape (8, {SIZE}, {SIZE}), or of any number of "
            f"channels from {len(CHANNELS)}, found {shape}; bring it to the official shape "
            "(data/README.md)"
        )
    first = 0
    for chunk in iter_columns(file, _keys(columns, shape), part.rows, CHUNK):
        jets = {name: chunk[column] for name, column in columns.items()}
        wrong = np.flatnonzero(jets["m"] <= 0)
        if len(wrong):
            raise InputError(
                f"{name_of(file)}: expected masses above 0 in {columns['m']!r}, found "
                f"{jets['m'][wrong[0]]:g} in event {first + wrong[0]}; remove or repair the event"
            )
        yield jets | {"X_jet": chunk["X_jet"][:, : len(CHANNELS)]}
        first += len(jets["m"])


@dataclass(frozen=True)
class TopMassDataset(LoadedDataset):
    """Jets of boosted tops and where they come from."""

    images: SparseImages  # N jets of shape (4, 125, 125), see CHANNELS
    m: np.ndarray  # (N,) float64: mass of the top, GeV
    pt: np.ndarray  # (N,) float64, GeV
    ieta: np.ndarray  # (N,) float64: the central tower, row 0 to 55 of the calorimeter
    iphi: np.ndarray  # (N,) float64: column 0 to 71

    def __len__(self) -> int:
        return len(self.m)
