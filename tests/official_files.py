"""Small files in the official schemas, and what their loaders should make of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.loaders import (
    load_electron_photon,
    load_higgs,
    load_jets8,
    load_quark_gluon,
    load_super_resolution,
    load_top_mass,
)
from data.loaders.common import LoadedDataset
from data.readers.nested_parquet import nested
from e2e_utils.jet_resolution import low_resolution

N = 12
Columns = Mapping[str, np.ndarray]


def write_parquet(path: Path, columns: Columns, row_group: int = 1) -> Path:
    """Columns with images as nested lists; a row group an event, as in the official files."""
    table = {
        key: nested(values) if np.ndim(values) == 4 else values for key, values in columns.items()
    }
    pq.write_table(pa.table(table), path, row_group_size=row_group, compression="snappy")
    return path


def write_hdf5(path: Path, columns: Columns) -> Path:
    with h5py.File(path, "w") as file:
        for key, values in columns.items():
            file[key] = values
    return path


def write_table(path: Path, columns: Columns, separator: str = ",", fmt: str = "%.18e") -> Path:
    """Text with the label first; gzipped if the name says so."""
    events = np.column_stack([columns["label"], columns["features"]])
    np.savetxt(path, events, fmt=fmt, delimiter=separator)
    return path


def pixels(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """(N, *shape) float32, both signs, half a percent of the pixels active."""
    rng = np.random.default_rng(seed)
    active = rng.random((N, *shape)) < 0.005
    return np.where(active, 50 * rng.normal(size=active.shape), 0).astype(np.float32)


@dataclass(frozen=True)
class Case:
    """A kind of source file: how it is written, and what its loader makes of it."""

    load: Callable[..., LoadedDataset]
    dataset: str  # in the catalog
    simulation: str  # module
    name: str  # of a file
    write: Callable[[Path, Columns], Path]
    make: Callable[[], Columns]
    label: str | None  # column of two classes
    attributes: Mapping[str, str]  # of the loaded dataset: the column they come from
    images: str = "images"
    channels_last: bool = False
    channels: int | None = None  # the first ones are loaded

    def check(self, loaded: LoadedDataset, columns: Columns, rows: object = slice(None)) -> None:
        """Assert that ``loaded`` is these rows of ``columns``."""
        for attribute, column in self.attributes.items():
            values = columns[column][rows]
            found = getattr(loaded, attribute)
            if attribute == self.images:
                values = values.transpose(0, 3, 1, 2) if self.channels_last else values
                values, found = values[:, : self.channels], found.dense().numpy()
            elif column != "features":
                values = values.reshape(-1)
            np.testing.assert_array_equal(found, values)


def _numbers(**limits: tuple[float, float]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {name: rng.uniform(*pair, N) for name, pair in limits.items()}


def egamma_columns() -> Columns:
    return {"X": pixels((32, 32, 2)), "y": np.arange(N, dtype=np.float32) % 2}


def higgs_columns() -> Columns:
    features = np.random.default_rng(0).normal(1, 0.5, (N, 28)).astype(np.float32)
    return {"label": np.arange(N) % 2, "features": features}


def jet_columns() -> Columns:
    numbers = _numbers(pt=(70, 240), m0=(8, 46))
    return {"X_jets": pixels((3, 125, 125))} | numbers | {"y": np.arange(N) % 2.0}


def jet_hdf5_columns() -> Columns:
    columns = jet_columns()
    return {**columns, "X_jets": columns["X_jets"].transpose(0, 2, 3, 1)}


def low_resolution_columns() -> Columns:
    columns = jet_columns()
    return {"X_jets_LR": low_resolution(columns["X_jets"].astype(np.float64))} | columns


def jets8_columns() -> Columns:
    numbers = _numbers(m=(40, 300), pT=(400, 900))
    columns = {"jet": np.abs(pixels((125, 125, 8))), "Y": np.arange(N, dtype=np.float32) % 2}
    columns |= {name: values.astype(np.float32) for name, values in numbers.items()}
    return {name: values.reshape(N, *values.shape[1:] or (1,)) for name, values in columns.items()}


def top_columns() -> Columns:
    numbers = _numbers(m=(85, 500), iphi=(0, 71), pt=(400, 1000), ieta=(12, 43))
    return {"X_jet": pixels((8, 125, 125))} | numbers


JET_ATTRIBUTES = {"images": "X_jets", "y": "y", "pt": "pt", "m0": "m0"}
CASES = {
    "electron_photon": Case(
        load_electron_photon, "electron_photon", "egamma", "a.hdf5", write_hdf5, egamma_columns,
        "y", {"images": "X", "y": "y"}, channels_last=True,
    ),
    "higgs": Case(
        load_higgs, "higgs", "higgs", "a.csv.gz", write_table, higgs_columns,
        "label", {"features": "features", "y": "label"},
    ),
    "quark_gluon": Case(
        load_quark_gluon, "quark_gluon", "jets", "a.parquet", write_parquet, jet_columns,
        "y", JET_ATTRIBUTES,
    ),
    "quark_gluon in HDF5": Case(
        load_quark_gluon, "quark_gluon", "jets", "a.h5", write_hdf5, jet_hdf5_columns,
        "y", JET_ATTRIBUTES, channels_last=True,
    ),
    "super_resolution": Case(
        load_super_resolution, "quark_gluon_superresolution", "jets", "a.parquet", write_parquet,
        low_resolution_columns, "y", JET_ATTRIBUTES,
    ),
    "jets8": Case(
        load_jets8, "jets8", "jets8", "a.h5", write_hdf5, jets8_columns,
        "Y", {"images": "jet", "y": "Y", "m": "m", "pt": "pT"}, channels_last=True,
    ),
    "top_mass": Case(
        load_top_mass, "top_mass", "top_gun", "a.parquet", write_parquet, top_columns,
        None, {"images": "X_jet", "m": "m", "pt": "pt", "ieta": "ieta", "iphi": "iphi"}, channels=4,
    ),
}  # fmt: skip
