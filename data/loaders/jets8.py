"""Jets of eight channels of tasks 2c, 2d, 2g and 2i: unlabelled and labelled, with one split."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.catalog import dataset
from data.loaders.common import (
    LoadedDataset,
    Paths,
    binary_labels,
    check_both_classes,
    described,
    source_files,
)
from data.loaders.stores import Chunk, Keys, Part, first_events, stored
from data.readers.hdf5 import check_images_file, iter_columns, open_hdf5
from e2e_utils import paths
from e2e_utils.sparse_images import SparseImages
from e2e_utils.splits import Splits, split

CHANNELS = ("track pT", "dz", "d0", "ECAL", "HCAL", "BPIX1", "BPIX2", "BPIX3")
CLASSES = ("QCD", "top")  # Y = 0, 1: assumed, the official files do not say
SHAPE = (len(CHANNELS), 125, 125)
NUMBERS = ("Y", "m", "pT")
SPLIT_SEED = 0  # of the one split that all four tasks share
FRESH_SEED = 20260207  # of the stand-in jets that no training sees
UNLABELLED, LABELLED, FULL = range(3)  # places in the catalog


def load_jets8(
    source: str = "auto",
    profile: str = "quick",
    path: Paths | None = None,
    require_both_classes: bool = False,
    labelled: bool = True,
    fresh: bool = False,
) -> "Jets8Dataset":
    """Boosted tops and QCD jets as (8, 125, 125) images: many without, some with a label.

    Channels: see CHANNELS; rows are eta, columns phi; pixels are scaled to 0 to 255 per image and
    channel. ``source`` and ``profile`` as for `load_electron_photon`; of the profile's events one
    in seven is a labelled one. ``path`` reads all jets of other files instead: HDF5 in an official
    schema, one or several (a list, or one string with commas), also URLs; files with Y are the
    labelled ones, m and pT are NaN where a file has none. Without ``labelled`` only the unlabelled
    file is needed and read: what task 2d takes. ``fresh``: labelled stand-in jets that no training
    has seen (simulated with another seed), and none without a label; of the official files there
    are no others, their user takes the test part of the split.

    Raises InputError for unusable files and, if ``require_both_classes``, for labelled jets of one
    class only.
    """
    from data.simulate.jets8 import sizes_of

    def share(n_events: int) -> list[int]:
        return [*sizes_of(n_events).values()][: len(catalog["file"])]

    catalog = _catalog(labelled)
    simulate = _simulate_fresh if fresh else _simulate
    source, files, limit = source_files(catalog, source, profile, path, simulate, share)
    # Of given files, and of those with fresh jets, every jet is read.
    all_jets = limit is None or (fresh and source == "standin")
    sizes = {} if all_jets else sizes_of(limit)
    keys = {file: _keys(file) for file in files}

    def check(file: Path) -> tuple[int, Keys]:
        return check_images_file(file, keys[file], label="Y"), keys[file]

    free, marked = (
        first_events([f for f in files if ("Y" in keys[f]) == with_y], sizes.get(kind), check)
        for kind, with_y in (("unlabelled", False), ("labelled", True))
    )
    unlabelled = stored("jets8", free, _jets, SHAPE)
    store = stored("jets8", marked, _jets, SHAPE, NUMBERS)
    y = store.numbers["Y"].astype(np.int64)
    if require_both_classes:
        check_both_classes(y, files, CLASSES)
    what = (
        f"{len(unlabelled.images):,} jets without and {len(y):,} with a label "
        f"({(y == 0).sum():,} of class 0, {(y == 1).sum():,} of class 1)"
    )
    fingerprint = unlabelled.fingerprint[:8] + store.fingerprint[:8]
    return Jets8Dataset(
        unlabelled.images,
        store.images,
        y,
        store.numbers["m"],
        store.numbers["pT"],
        **described(source, files, fingerprint, what),
    )


def _catalog(labelled: bool) -> dict:
    """The catalog's entry with the files that are needed: the unlabelled and one labelled.

    Of the two labelled official files the one with m and pT, but where only the other is on disk.
    """
    entry = dataset("jets8")
    alone, full = (
        (paths.OFFICIAL / entry["file"][place]["name"]).is_file() for place in (LABELLED, FULL)
    )
    places = [UNLABELLED] + [LABELLED if alone and not full else FULL] * labelled
    return {**entry, "file": [entry["file"][place] for place in places]}


def _simulate(catalog: dict, profile: str) -> tuple[Sequence[Path], int]:
    from data.simulate.jets8 import generate

    n_events = catalog["events"][profile]
    unlabelled, _, full = generate(n_events, paths.STANDIN)
    return [unlabelled, full][: len(catalog["file"])], n_events


def _simulate_fresh(catalog: dict, profile: str) -> tuple[Sequence[Path], int]:
    n_events = catalog["fresh_events"][profile]
    return [simulate_labelled(n_events, paths.STANDIN / "fresh", FRESH_SEED)], n_events


def simulate_labelled(n_events: int, directory: Path, seed: int) -> Path:
    """A labelled file alone, half of it tops: `generate` makes six jets without a label for each.

    Returns at once when the file is there already. Raises InputError when the disk is too full.
    """
    from data.simulate import jets8, shards

    file = directory / jets8.file_name("full", n_events)
    if jets8.is_complete(file, n_events, seed):
        return file
    folder = file.with_name(f".jets8_n{n_events}_s{seed}_{jets8.simulation_version()}.part")
    jobs, of_class = [], []
    for label in (0, 1):
        n_class = (n_events + 1 - label) // 2
        sizes = [
            min(jets8.SHARD_EVENTS, n_class - k) for k in range(0, n_class, jets8.SHARD_EVENTS)
        ]
        seeds = np.random.SeedSequence((seed, label)).spawn(len(sizes))
        jobs += [(size, label == 1, spawned) for size, spawned in zip(sizes, seeds, strict=True)]
        of_class += [label] * len(sizes)
    with shards.workplace(folder, need_bytes=2 * jets8.JET_BYTES * n_events):
        parts = shards.produce(
            jets8.simulate_shard, jobs, folder, weights=[size for size, *_ in jobs],
            label="tops and QCD jets with a label",
            prepare=lambda: jets8.simulate_shard(1, True, np.random.SeedSequence(0)),
        )  # fmt: skip
        halves = tuple(
            [part for part, label in zip(parts, of_class, strict=True) if label == wanted]
            for wanted in (0, 1)
        )
        jets8.write(file, "full", halves, n_events, seed)
    return file


def _keys(file: Path) -> Keys:
    """The datasets to read."""
    with open_hdf5(file) as found:
        numbers = [key for key in NUMBERS if key in found]
    return {
        "jet": {"shape": [-1, *SHAPE[1:], SHAPE[0]], "dtype": "float32"},
        **{key: {"shape": [-1, 1], "dtype": "float32"} for key in numbers},
    }


def _jets(part: Part) -> Iterator[Chunk]:
    """Images, and Y, m and pT; NaN for what the file does not have."""
    numbers = [key for key in NUMBERS if key in part.keys]
    for chunk in iter_columns(part.file, "jet", numbers, part.rows):
        images = chunk.pop("jet")
        if "Y" in chunk:
            binary_labels(part.file, "Y", chunk["Y"], CLASSES)
        absent = np.full(len(images), np.nan)
        yield dict.fromkeys(NUMBERS, absent) | chunk | {"images": images}


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

    def splits(self, validation: float = 0.16) -> Splits:
        """Train, validation and test of the labelled jets, stratified: 64, 16 and 20 %.

        Another share for ``validation`` is taken from or given to the training jets: the test jets
        are the same for all tasks.
        """
        return split(self.y, SPLIT_SEED, (0.8 - validation, validation, 0.2))

    def unlabelled_splits(self, validation: float = 0.16) -> Splits:
        """Of the unlabelled jets, for tasks that test on them (2d); as `splits`."""
        return split(len(self.unlabelled), SPLIT_SEED, (0.8 - validation, validation, 0.2))
