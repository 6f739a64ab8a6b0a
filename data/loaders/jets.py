"""Quark and gluon jets of tasks 2h and 2b, as sparse images of tracks, ECAL and HCAL."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

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
from data.readers.hdf5 import check_images_file, iter_images, open_hdf5
from data.readers.nested_parquet import check_parquet, has_column, iter_columns, name_of
from data.readers.remote_file import RemoteFile
from e2e_utils import paths
from e2e_utils.errors import InputError
from e2e_utils.files import atomic_path
from e2e_utils.jet_resolution import PADDING, low_resolution
from e2e_utils.profiles import PROFILES, SOURCES, check_choice
from e2e_utils.sparse_images import SparseImages

CHANNELS = ("track pT", "ECAL", "HCAL")
HDF5_SUFFIXES = (".h5", ".hdf5")
NUMBERS = ("y", "pt", "m0")
# Of X_jets_LR against X_jets, both rounded to float32
TOLERANCE = 1e-5


def load_quark_gluon(
    source: str = "auto",
    profile: str = "quick",
    path: Paths | None = None,
    require_both_classes: bool = True,
    max_events: int | None = None,
) -> "JetDataset":
    """Quark (label 0) and gluon jets (label 1) as (3, 125, 125) images, with pT and mass in GeV.

    Channels: pT of tracks, energy in ECAL, energy in HCAL (a tower's, shared by 25 pixels); rows
    are eta, columns phi. ``source`` and ``profile`` as for `load_electron_photon`. ``path`` reads
    all jets of other files instead: parquet in the schema of task 2h or 2b, or HDF5 with X_jets
    (n, 125, 125, 3); one or several (a list, or one string with commas), also URLs.

    ``max_events`` takes the first jets only. Of a URL, and with ``source`` "official" of files that
    are not on disk, only the bytes that hold them are fetched.

    Raises InputError for unusable files and, unless ``require_both_classes`` is false, for jets of
    one class only.
    """
    return _load("quark_gluon", source, profile, path, require_both_classes, max_events, JetDataset)


def load_super_resolution(
    source: str = "auto",
    profile: str = "quick",
    path: Paths | None = None,
    require_both_classes: bool = False,
    max_events: int | None = None,
) -> "SuperResolutionDataset":
    """The same jets for task 2b: the images, and their low-resolution version (3, 64, 64).

    The low resolution follows exactly from the high one (`jet_resolution`), so only the latter is
    stored. Files that hold X_jets_LR are compared with it as they are read; InputError where they
    differ. Arguments as in `load_quark_gluon`.
    """
    return _load(
        "quark_gluon_superresolution",
        source,
        profile,
        path,
        require_both_classes,
        max_events,
        SuperResolutionDataset,
    )


def _load(
    name: str,
    source: str,
    profile: str,
    path: Paths | None,
    require_both_classes: bool,
    max_events: int | None,
    kind: type["JetDataset"],
) -> "JetDataset":
    check_choice("source", source, SOURCES)
    check_choice("profile", profile, PROFILES)
    if max_events is not None and max_events < 1:
        raise InputError(f"max_events: expected 1 or more, found {max_events}; correct it")
    if path is None:
        source, files = _catalog_files(name, source, profile, max_events)
        limit = max_events or dataset(name)["events"][profile]
    else:
        source, files, limit = "file", given_files(path), max_events
    with ExitStack() as opened:
        for file in files:
            if isinstance(file, RemoteFile):
                opened.enter_context(file)
        files, lengths = _lengths(files, limit)
        fingerprint = files_fingerprint("jets", files, lengths)
        folder = paths.CACHE / f"jets_{fingerprint}"
        if not folder.is_dir():
            _build(files, lengths, folder)
    images = SparseImages.open(folder / "images")
    y, pt, m0 = (np.load(folder / f"{number}.npy") for number in NUMBERS)
    if require_both_classes and len(np.unique(y)) < 2:
        names = ", ".join(name_of(file) for file in files)
        raise InputError(
            f"{names}: expected quarks (0) and gluons (1), found only label {y[0]}; give jets of "
            "the other class too"
        )
    n_quark, n_gluon = np.bincount(y, minlength=2)
    names = [Path(name_of(file)).name for file in files]
    description = (
        f"{n_quark:,} quark and {n_gluon:,} gluon jets, {SOURCE_WORDS[source]} ({', '.join(names)})"
    )
    print(f"Data: {description}")
    return kind(
        images,
        y,
        pt,
        m0,
        source=source,
        fingerprint=fingerprint,
        description=description,
        files=names,
    )


# Which files --------------------------------------------------------------------------------------


def _catalog_files(
    name: str, source: str, profile: str, max_events: int | None
) -> tuple[str, list[File]]:
    """Official files on disk, or ranges of remote ones if asked for, or the stand-in."""
    official = official_paths(name)
    if source != "standin":
        missing = [file for file in official if not file.is_file()]
        if not missing:
            return "official", official
        if source == "official":
            if max_events is None:
                check_official(missing[0])
            return "official", [RemoteFile(entry["url"]) for entry in dataset(name)["file"]]
    from data.simulate.jets import generate

    n_events = max_events or dataset(name)["events"][profile]
    return "standin", [generate(n_events + n_events % 2, paths.STANDIN)]


def _lengths(files: list[File], limit: int | None) -> tuple[list[File], list[int]]:
    """The files that are needed for the first ``limit`` jets, and how many of each; checks them."""
    used, lengths = [], []
    for file in files:
        left = None if limit is None else limit - sum(lengths)
        if left == 0:
            break
        rows = check_images_file(file, _hdf5_keys()) if _is_hdf5(file) else _check(file)
        used.append(file)
        lengths.append(rows if left is None else min(rows, left))
    return used, lengths


def _check(file: File) -> int:
    return check_parquet(file, _keys(file))


def _is_hdf5(file: File) -> bool:
    return isinstance(file, Path) and file.suffix in HDF5_SUFFIXES


def _keys(file: File) -> Mapping[str, Mapping]:
    """Columns to read: with the low resolution where the file has one, to compare."""
    low = has_column(file, "X_jets_LR")
    return dataset("quark_gluon_superresolution" if low else "quark_gluon")["file"][0]["keys"]


def _hdf5_keys() -> Mapping[str, Mapping]:
    """The HDF5 edition: channels last."""
    keys = dataset("quark_gluon")["file"][0]["keys"]
    rows, channels, height, width = keys["X_jets"]["shape"]
    images = {"shape": [rows, height, width, channels], "dtype": "float32"}
    return {**keys, "X_jets": images}


# Reading ------------------------------------------------------------------------------------------


def _build(files: Sequence[File], lengths: Sequence[int], folder: Path) -> None:
    """Stream all files once into ``folder``: images/, and y.npy, pt.npy, m0.npy; atomic."""
    numbers: list[dict[str, np.ndarray]] = []

    def chunks() -> Iterator[np.ndarray]:
        for file, n_events in zip(files, lengths, strict=True):
            for chunk in _hdf5(file, n_events) if _is_hdf5(file) else _parquet(file, n_events):
                numbers.append({name: chunk[name] for name in NUMBERS})
                yield chunk["X_jets"]

    with atomic_path(folder) as temporary:
        temporary.mkdir()
        SparseImages.from_chunks(chunks(), temporary / "images")
        for name in NUMBERS:
            np.save(temporary / f"{name}.npy", np.concatenate([part[name] for part in numbers]))


def _parquet(file: File, n_events: int) -> Iterator[dict[str, np.ndarray]]:
    first = 0
    for chunk in iter_columns(file, _keys(file), n_events):
        if "X_jets_LR" in chunk:
            _compare(file, chunk, first)
        yield chunk | {"y": _labels(file, chunk["y"])}
        first += len(chunk["y"])


def _hdf5(file: Path, n_events: int) -> Iterator[dict[str, np.ndarray]]:
    with open_hdf5(file) as stored:
        columns = {name: stored[name][:n_events].astype(np.float64) for name in NUMBERS}
    columns["y"] = _labels(file, columns["y"])
    for name in NUMBERS:
        if not np.isfinite(columns[name]).all():
            raise InputError(
                f"{file}: expected finite values, found NaN or infinity in {name!r}; remove or "
                "repair the event"
            )
    first = 0
    for images in iter_images(file, "X_jets", n_events):
        rows = slice(first, first + len(images))
        yield {"X_jets": images} | {name: column[rows] for name, column in columns.items()}
        first += len(images)


def _labels(file: File, y: np.ndarray) -> np.ndarray:
    wrong = y[~np.isin(y, (0, 1))]
    if len(wrong):
        raise InputError(
            f"{name_of(file)}: expected labels 0 (quark) and 1 (gluon) in 'y', found {wrong[0]:g} "
            f"and {len(wrong) - 1} more near by; correct the labels"
        )
    return y.astype(np.int64)


def _compare(file: File, chunk: Mapping[str, np.ndarray], first: int) -> None:
    """Refuse files whose low resolution is not the pooled high one."""
    ours = low_resolution(chunk["X_jets"])
    close = np.isclose(ours, chunk["X_jets_LR"], rtol=TOLERANCE, atol=TOLERANCE)
    good = close.reshape(len(ours), -1).all(axis=1)  # (b,)
    if not good.all():
        raise InputError(
            f"{name_of(file)}: expected X_jets_LR as X_jets padded to 128 and averaged over 2 x 2, "
            f"found another image in event {first + int(np.argmin(good))}; get the file again "
            "(make data) or give another one"
        )


def pooled(images: torch.Tensor) -> torch.Tensor:
    """`low_resolution` of tensors (B, C, 125, 125) on their device: (B, C, 64, 64)."""
    return functional.avg_pool2d(functional.pad(images, PADDING * 2), 2)


@dataclass(frozen=True)
class JetDataset(LoadedDataset):
    """Labelled jets and where they come from."""

    images: SparseImages  # N jets of shape (3, 125, 125), see CHANNELS
    y: np.ndarray  # (N,) int64: 0 quark, 1 gluon
    pt: np.ndarray  # (N,) float64, GeV
    m0: np.ndarray  # (N,) float64, GeV

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class SuperResolutionDataset(JetDataset):
    """Jets at both resolutions."""

    def pair(
        self, rows: np.ndarray, device: str | torch.device = "cpu"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Low (B, 3, 64, 64) and high resolution (B, 3, 125, 125) of the chosen jets."""
        high = self.images.dense(rows, device)
        return pooled(high), high
