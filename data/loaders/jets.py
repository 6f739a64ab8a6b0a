"""Quark and gluon jets of tasks 2h and 2b, as sparse images of tracks, ECAL and HCAL."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from data.catalog import dataset
from data.loaders.common import (
    LoadedDataset,
    Paths,
    Simulate,
    binary_labels,
    check_both_classes,
    described,
    source_files,
)
from data.loaders.stores import Chunk, Keys, Part, first_events, stored
from data.readers import hdf5, nested_parquet
from e2e_utils import paths
from e2e_utils.errors import InputError
from e2e_utils.jet_resolution import PADDING, low_resolution
from e2e_utils.sparse_images import SparseImages

CHANNELS = ("track pT", "ECAL", "HCAL")
SHAPE = (len(CHANNELS), 125, 125)
CLASSES = ("gluon", "quark")
HDF5_SUFFIXES = (".h5", ".hdf5")
NUMBERS = ("y", "pt", "m0")
FRESH_SEED = 20260131  # of the stand-in jets that no training has seen
# Of X_jets_LR against X_jets, both rounded to float32
TOLERANCE = 1e-5


def load_quark_gluon(
    source: str = "auto",
    profile: str = "quick",
    path: Paths | None = None,
    require_both_classes: bool = True,
    fresh: bool = False,
) -> "JetDataset":
    """Quark (label 1) and gluon jets (label 0) as (3, 125, 125) images, with pT and mass in GeV.

    Channels: pT of tracks, energy in ECAL, energy in HCAL (a tower's, shared by 25 pixels); rows
    are eta, columns phi. ``source`` and ``profile`` as for `load_electron_photon`. ``path`` reads
    all jets of other files instead: parquet in the schema of task 2h or 2b, or HDF5 with X_jets
    (n, 125, 125, 3); one or several (a list, or one string with commas), also URLs. ``fresh``:
    stand-in jets that no training has seen (simulated with another seed); of the official files
    there are no others, their user takes the test part of the split.

    Raises InputError for unusable files and, unless ``require_both_classes`` is false, for jets of
    one class only.
    """
    simulate = _simulate_fresh if fresh else _simulate
    return _load("quark_gluon", source, profile, path, require_both_classes, JetDataset, simulate)


def load_super_resolution(
    source: str = "auto",
    profile: str = "quick",
    path: Paths | None = None,
    require_both_classes: bool = False,
) -> "SuperResolutionDataset":
    """The same jets for task 2b: the images, and their low-resolution version (3, 64, 64).

    The low resolution follows exactly from the high one (`jet_resolution`), so only the latter is
    stored. Files that hold X_jets_LR are compared with it as they are read; InputError where they
    differ. Arguments as in `load_quark_gluon`.
    """
    name = "quark_gluon_superresolution"
    return _load(name, source, profile, path, require_both_classes, SuperResolutionDataset)


def _load(
    name: str,
    source: str,
    profile: str,
    path: Paths | None,
    require_both_classes: bool,
    kind: type["JetDataset"],
    simulate: Simulate | None = None,
) -> "JetDataset":
    catalog, simulate = dataset(name), simulate or _simulate
    source, files, limit = source_files(catalog, source, profile, path, simulate)
    store = stored("jets", first_events(files, limit, _check), _jets, SHAPE, NUMBERS)
    y = store.numbers["y"]
    if require_both_classes:
        check_both_classes(y, store.files, CLASSES)
    n_gluon, n_quark = np.bincount(y, minlength=2)
    what = f"{n_quark:,} quark and {n_gluon:,} gluon jets"
    return kind(
        store.images,
        **store.numbers,
        **described(source, store.files, store.fingerprint, what),
    )


def _simulate(catalog: dict, profile: str) -> tuple[Sequence[Path], int]:
    from data.simulate.jets import generate

    n_events = catalog["events"][profile]
    return [generate(n_events, paths.STANDIN)], n_events


def _simulate_fresh(catalog: dict, profile: str) -> tuple[Sequence[Path], int]:
    from data.simulate.jets import generate

    n_events = catalog["fresh_events"][profile]
    return [generate(n_events, paths.STANDIN / "fresh", seed=FRESH_SEED)], n_events


def _check(file: Path) -> tuple[int, Keys]:
    """Number of jets, and the columns to read: with a low resolution, to compare, if there is one.

    In the HDF5 edition channels come last.
    """
    plain, low = (
        dataset(name)["file"][0]["keys"] for name in ("quark_gluon", "quark_gluon_superresolution")
    )
    if not _is_hdf5(file):
        return nested_parquet.layout_of(file, low, plain)
    keys = {**plain, "X_jets": {"shape": [-1, *SHAPE[1:], SHAPE[0]], "dtype": "float32"}}
    return hdf5.check_images_file(file, keys), keys


def _is_hdf5(file: Path) -> bool:
    return str(file).endswith(HDF5_SUFFIXES)


def _jets(part: Part) -> Iterator[Chunk]:
    file, rows, keys = part
    if _is_hdf5(file):
        chunks = hdf5.iter_columns(file, "X_jets", NUMBERS, rows)
    else:
        chunks = nested_parquet.iter_columns(file, keys, rows)
    first = 0
    for chunk in chunks:
        if "X_jets_LR" in chunk:
            _compare(file, chunk, first)
        y = binary_labels(file, "y", chunk["y"], CLASSES)
        yield chunk | {"images": chunk["X_jets"], "y": y}
        first += len(y)


def _compare(file: Path, chunk: Mapping[str, np.ndarray], first: int) -> None:
    """Refuse files whose low resolution is not the pooled high one."""
    ours = low_resolution(chunk["X_jets"])
    close = np.isclose(ours, chunk["X_jets_LR"], rtol=TOLERANCE, atol=TOLERANCE)
    good = close.reshape(len(ours), -1).all(axis=1)  # (b,)
    if not good.all():
        raise InputError(
            f"{file}: expected X_jets_LR as X_jets padded to 128 and averaged over 2 x 2, found "
            f"another image in event {first + int(np.argmin(good))}; get the file again "
            "(make data) or give another one"
        )


def pooled(images: torch.Tensor) -> torch.Tensor:
    """`low_resolution` of tensors (B, C, 125, 125) on their device: (B, C, 64, 64)."""
    return functional.avg_pool2d(functional.pad(images, PADDING * 2), 2)


@dataclass(frozen=True)
class JetDataset(LoadedDataset):
    """Labelled jets and where they come from."""

    images: SparseImages  # N jets of shape (3, 125, 125), see CHANNELS
    y: np.ndarray  # (N,) int64: 0 gluon, 1 quark
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
