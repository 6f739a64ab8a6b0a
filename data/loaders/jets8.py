"""Jets of eight channels of tasks 2c, 2d, 2g and 2i: unlabelled and labelled, with one split."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

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
from data.readers.hdf5 import check_images_file, iter_images, open_hdf5, readable
from data.readers.remote_file import RemoteFile
from e2e_utils import paths
from e2e_utils.errors import InputError
from e2e_utils.files import atomic_path
from e2e_utils.profiles import PROFILES, SOURCES, check_choice
from e2e_utils.sparse_images import SparseImages, index_dtype
from e2e_utils.splits import Splits, split

CHANNELS = ("track pT", "dz", "d0", "ECAL", "HCAL", "BPIX1", "BPIX2", "BPIX3")
CLASSES = ("QCD", "top")  # Y = 0, 1: assumed, the official files do not say
SHAPE = (len(CHANNELS), 125, 125)
NUMBERS = ("Y", "m", "pT")
SPLIT_SEED = 0  # of the one split that all four tasks share
UNLABELLED, LABELLED, FULL = range(3)  # places in the catalog


def load_jets8(
    source: str = "auto",
    profile: str = "quick",
    path: Paths | None = None,
    require_both_classes: bool = False,
    max_events: int | None = None,
    labelled: bool = True,
) -> "Jets8Dataset":
    """Boosted tops and QCD jets as (8, 125, 125) images: many without, some with a label.

    Channels: see CHANNELS; rows are eta, columns phi; pixels are scaled to 0 to 255 per image and
    channel. ``source`` and ``profile`` as for `load_electron_photon`; of the profile's events one
    in seven is a labelled one. ``path`` reads all jets of other files instead: HDF5 in an official
    schema, one or several (a list, or one string with commas), also URLs; files with Y are the
    labelled ones, m and pT are NaN where a file has none.

    ``max_events`` takes the first jets of each kind only, labelled and unlabelled. Of a URL, and
    with ``source`` "official" of files that are not on disk, only the bytes that hold them are
    fetched. Without ``labelled`` only the unlabelled file is needed and read: what task 2d takes.

    Raises InputError for unusable files and, if ``require_both_classes``, for labelled jets of one
    class only.
    """
    check_choice("source", source, SOURCES)
    check_choice("profile", profile, PROFILES)
    if max_events is not None and max_events < 1:
        raise InputError(f"max_events: expected 1 or more, found {max_events}; correct it")
    if path is None:
        source, files, limits = _catalog_files(source, profile, max_events, labelled)
    else:
        source, files, limits = "file", given_files(path), {False: max_events, True: max_events}
    with ExitStack() as opened:
        for file in files:
            if isinstance(file, RemoteFile):
                opened.enter_context(file)
        kinds = {file: _keys(file) for file in files}
        stores = {}
        for has_labels in (False, True):
            mine = [file for file in files if ("Y" in kinds[file]) == has_labels]
            stores[has_labels] = _store(mine, kinds, limits[has_labels], has_labels)
    images, numbers, fingerprint = stores[True]
    unlabelled, _, unlabelled_fingerprint = stores[False]
    y = numbers["Y"].astype(np.int64)
    names = [Path(str(file)).name for file in files]
    if require_both_classes and len(np.unique(y)) < 2:
        found = f"only label {y[0]}" if len(y) else "no labelled jet"
        raise InputError(
            f"{', '.join(names)}: expected labels 0 and 1, found {found}; give jets of both classes"
        )
    description = (
        f"{len(unlabelled):,} jets without and {len(y):,} with a label "
        f"({(y == 0).sum():,} of class 0, {(y == 1).sum():,} of class 1), {SOURCE_WORDS[source]} "
        f"({', '.join(names)})"
    )
    print(f"Data: {description}")
    return Jets8Dataset(
        unlabelled,
        images,
        y,
        numbers["m"],
        numbers["pT"],
        source=source,
        fingerprint=f"{unlabelled_fingerprint[:8]}{fingerprint[:8]}",
        description=description,
        files=names,
    )


# Which files --------------------------------------------------------------------------------------


def _catalog_files(
    source: str, profile: str, max_events: int | None, labelled: bool
) -> tuple[str, list[File], dict[bool, int]]:
    """Source, the unlabelled and the labelled file, and the limits of both (by: has labels).

    Of the two labelled official files the one with m and pT is taken where it is on disk.
    """
    from data.simulate.jets8 import LABELLED_SHARE, generate, sizes_of

    n_events = dataset("jets8")["events"][profile]
    sizes = sizes_of(n_events)
    limits = {False: max_events or sizes["unlabelled"], True: max_events or sizes["labelled"]}
    official, entries = official_paths("jets8"), dataset("jets8")["file"]
    places = [UNLABELLED]
    if labelled:
        is_only = official[LABELLED].is_file() and not official[FULL].is_file()
        places.append(LABELLED if is_only else FULL)
    if source != "standin":
        missing = [official[place] for place in places if not official[place].is_file()]
        if not missing:
            return "official", [official[place] for place in places], limits
        if source == "official":
            if max_events is None:
                check_official(missing[0])
            return "official", [RemoteFile(entries[place]["url"]) for place in places], limits
    if max_events:  # enough of both kinds
        n_events = LABELLED_SHARE * max(max_events, 2)
    made = generate(n_events, paths.STANDIN)
    return "standin", [made[place] for place in places], limits


def _keys(file: File) -> dict[str, Mapping]:
    """The datasets to read, in the form of data/catalog.toml."""
    with open_hdf5(file) as stored:
        present = set(stored)
    keys = dict(dataset("jets8")["file"][UNLABELLED]["keys"])
    for number in NUMBERS:
        if number in present:
            keys[number] = {"shape": [-1, 1], "dtype": "float32"}
    return keys


# Reading ------------------------------------------------------------------------------------------


def _store(
    files: Sequence[File],
    kinds: Mapping[File, Mapping[str, Mapping]],
    limit: int | None,
    labelled: bool,
) -> tuple[SparseImages, dict[str, np.ndarray], str]:
    """Images, numbers (n,) and fingerprint of the first ``limit`` jets; built where missing."""
    used, lengths = [], []
    for file in files:
        left = None if limit is None else limit - sum(lengths)
        if left == 0:
            break
        rows = check_images_file(file, kinds[file], label="Y")
        used.append(file)
        lengths.append(rows if left is None else min(rows, left))
    if not used:
        pixels = np.zeros(0, index_dtype(SHAPE)), np.zeros(0, np.float32)
        empty = SparseImages(np.zeros(1, np.int64), *pixels, SHAPE)
        return empty, {name: np.zeros(0) for name in NUMBERS}, "0" * 16
    fingerprint = files_fingerprint("jets8", used, lengths)
    folder = paths.CACHE / f"jets8_{fingerprint}"
    if not folder.is_dir():
        numbers = {}
        if labelled:
            columns = [
                _numbers(file, kinds[file], n) for file, n in zip(used, lengths, strict=True)
            ]
            numbers = {name: np.concatenate([part[name] for part in columns]) for name in NUMBERS}
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            SparseImages.from_chunks(_images(used, lengths), temporary / "images")
            for name, values in numbers.items():
                np.save(temporary / f"{name}.npy", values)
    images = SparseImages.open(folder / "images")
    loaded = {
        name: np.load(folder / f"{name}.npy") if labelled else np.zeros(0) for name in NUMBERS
    }
    return images, loaded, fingerprint


def _images(files: Sequence[File], lengths: Sequence[int]) -> Iterator[np.ndarray]:
    for file, n_events in zip(files, lengths, strict=True):
        yield from iter_images(file, "jet", n_events)


def _numbers(file: File, keys: Mapping[str, Mapping], n_events: int) -> dict[str, np.ndarray]:
    """Y, m and pT (n,) float64 of the first jets; NaN for what the file does not have."""
    numbers = {name: np.full(n_events, np.nan) for name in NUMBERS}
    for name in NUMBERS:
        if name not in keys:
            continue
        with open_hdf5(file) as stored, readable(file, name):
            values = stored[name][:n_events].astype(np.float64).reshape(-1)  # (n, 1) -> (n,)
        wrong = np.flatnonzero(~np.isfinite(values))
        if len(wrong):
            raise InputError(
                f"{file}: expected finite values, found NaN or infinity in event {wrong[0]} of "
                f"{name!r}; remove or repair the event"
            )
        numbers[name] = values
    wrong = numbers["Y"][~np.isin(numbers["Y"], (0, 1))]
    if len(wrong):
        raise InputError(
            f"{file}: expected labels 0 and 1 in 'Y', found {wrong[0]:g} and {len(wrong) - 1} "
            "more; correct the labels"
        )
    return numbers


@dataclass(frozen=True)
class Jets8Dataset(LoadedDataset):
    """Jets of both kinds, where they come from, and the split that four tasks share."""

    unlabelled: SparseImages  # U jets of shape (8, 125, 125), see CHANNELS
    images: SparseImages  # the N labelled ones
    y: np.ndarray  # (N,) int64: see CLASSES
    m: np.ndarray  # (N,) float64: mass of the jet, GeV; NaN where not given
    pt: np.ndarray  # (N,) float64, GeV; NaN where not given

    def __len__(self) -> int:
        """How many jets have a label."""
        return len(self.y)

    def splits(self) -> Splits:
        """Train, validation and test of the labelled jets, stratified: 64, 16 and 20 %."""
        return split(self.y, SPLIT_SEED)

    def unlabelled_splits(self) -> Splits:
        """Of the unlabelled jets, for tasks that test on them (2d): 64, 16 and 20 %."""
        return split(len(self.unlabelled), SPLIT_SEED)
