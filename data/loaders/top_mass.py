"""Boosted tops of task 2e, as sparse images of tracks and ECAL, with their mass."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from data.catalog import dataset
from data.loaders.common import LoadedDataset, Paths, described, source_files
from data.loaders.stores import Chunk, Keys, Part, first_events, stored
from data.readers.nested_parquet import iter_columns, layout_of
from e2e_utils import paths
from e2e_utils.errors import InputError
from e2e_utils.sparse_images import SparseImages

CHANNELS = ("track pT", "dz", "d0", "ECAL")  # the first ones of the files: the task allows no more
SIZE = 125  # pixels a side
# What the loader calls a column, and its names in the files: the task's text says am.
NAMES = {"m": ("m", "am"), "pt": ("pt", "apt"), "ieta": ("ieta",), "iphi": ("iphi",)}
CHUNK = 40  # jets of 8 x 125 x 125 doubles: 40 MB, and as much again while they are decoded
FRESH_SEED = 20250311  # of the stand-in jets that no training sees


def load_top_mass(
    source: str = "auto",
    profile: str = "quick",
    path: Paths | None = None,
    require_both_classes: bool = False,
    conditions: str = "nominal",
    fresh: bool = False,
    require_masses: bool = True,
) -> "TopMassDataset":
    """Boosted tops as (4, 125, 125) images, with the top's mass and pT in GeV.

    Channels: see CHANNELS; further ones of the files (HCAL, pixel hits) are left out. Rows are eta,
    columns phi. Values are as in the files, outliers included. ``source`` and ``profile`` as for
    `load_electron_photon`. ``path`` reads all jets of other files instead: parquet in the official
    schema with four or more channels, the mass called ``m`` or ``am``; one or several (a list, or
    one string with commas), also URLs. ``conditions`` "harsh" loads stand-ins of a noisier detector
    with more pile-up. ``fresh``: stand-ins that no training has seen (simulated with another seed);
    of the official files there are no others, their user takes the test part of the split.
    ``require_both_classes`` is there for the other loaders' sake: masses have no classes. Unless
    ``require_masses``, files that hold images only will do: their numbers are NaN.

    Raises InputError for unusable files.
    """
    if conditions != "nominal" and path is None:
        source = "standin"
    simulate = partial(_simulate, conditions=conditions, fresh=fresh)
    source, files, limit = source_files(dataset("top_mass"), source, profile, path, simulate)
    shape = (len(CHANNELS), SIZE, SIZE)
    parts = first_events(files, limit, partial(_check, images_only=not require_masses))
    store = stored("top_mass", parts, _jets, shape, tuple(NAMES))
    what = f"{len(store.images):,} boosted tops"
    return TopMassDataset(
        store.images, **store.numbers, **described(source, store.files, store.fingerprint, what)
    )


def _simulate(
    catalog: dict, profile: str, conditions: str, fresh: bool
) -> tuple[Sequence[Path], int]:
    from data.simulate.top_gun import generate

    if fresh:
        n_events, place = catalog["fresh_events"][profile], paths.STANDIN / "fresh"
        return [generate(n_events, place, seed=FRESH_SEED, conditions=conditions)], n_events
    n_events = catalog["events"][profile]
    return [generate(n_events, paths.STANDIN, conditions=conditions)], n_events


def _check(file: Path, images_only: bool = False) -> tuple[int, Keys]:
    """Number of jets, and the columns to read, by their names in the file.

    ``images_only`` accepts a file without the numbers of NAMES.
    """
    images = {"X_jet": {"shape": [-1, -1, SIZE, SIZE], "dtype": "float64"}}
    number = {"shape": [-1], "dtype": "float64"}
    layouts = [images | dict.fromkeys(names, number) for names in product(*NAMES.values())]
    return layout_of(file, *layouts, *([images] if images_only else []))


def _jets(part: Part) -> Iterator[Chunk]:
    file, rows, keys = part
    columns = {name: n for name, names in NAMES.items() for n in names if n in keys}
    first = 0
    for chunk in iter_columns(file, keys, rows, CHUNK):
        channels = chunk["X_jet"].shape[1]
        if channels < len(CHANNELS):
            raise InputError(
                f"{file}: expected {len(CHANNELS)} or more channels in 'X_jet', found {channels}; "
                "bring it to the official schema (data/README.md)"
            )
        jets = dict.fromkeys(NAMES, np.full(len(chunk["X_jet"]), np.nan))
        jets |= {name: chunk[column] for name, column in columns.items()}
        wrong = np.flatnonzero(jets["m"] <= 0)
        if len(wrong):
            raise InputError(
                f"{file}: expected masses above 0 in {columns['m']!r}, found "
                f"{jets['m'][wrong[0]]:g} in event {first + wrong[0]}; remove or repair the event"
            )
        yield jets | {"images": chunk["X_jet"][:, : len(CHANNELS)]}
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
