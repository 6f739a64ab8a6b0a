"""Quark and gluon jets: both schemas, the HDF5 edition, both resolutions, what is refused."""

import inspect
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional

from data.catalog import dataset
from data.loaders import (
    jets,
    load_fresh_super_resolution,
    load_quark_gluon,
    load_super_resolution,
)
from data.simulate import jets as simulation
from e2e_utils import paths
from e2e_utils.errors import InputError
from e2e_utils.jet_resolution import low_resolution
from tests.official_files import CASES, N, jet_columns, low_resolution_columns, write_parquet

check = CASES["quark_gluon"].check


@pytest.fixture(scope="module")
def columns() -> dict[str, np.ndarray]:
    return low_resolution_columns()


@pytest.mark.parametrize("row_group", [1, 7, 100])
@pytest.mark.parametrize("low", [False, True])
def test_both_schemas_give_the_same_jets(tmp_path, columns, data_folder, row_group, low) -> None:
    chosen = columns if low else jet_columns()
    path = write_parquet(tmp_path / "a.parquet", chosen, row_group)
    check(load_quark_gluon(path=path), columns)
    check(load_super_resolution(path=str(path)), columns)


def test_parquet_and_hdf5_together(tmp_path, columns, data_folder) -> None:
    case = CASES["quark_gluon in HDF5"]
    files = [
        case.write(tmp_path / "a.h5", case.make()),
        write_parquet(tmp_path / "a.parquet", columns),
    ]
    both = load_quark_gluon(path=files)
    assert len(both) == 2 * N
    check(both, {key: np.concatenate([values] * 2) for key, values in columns.items()})


def test_low_resolution_pair(tmp_path, columns, data_folder) -> None:
    path = write_parquet(tmp_path / "a.parquet", columns)
    low, high = load_super_resolution(path=path).pair(np.array([5, 2]))
    assert low.shape == (2, 3, 64, 64)
    np.testing.assert_array_equal(high.numpy(), columns["X_jets"][[5, 2]])
    np.testing.assert_allclose(low.numpy(), columns["X_jets_LR"][[5, 2]], rtol=1e-6, atol=1e-6)
    assert float(high.sum()) == pytest.approx(4 * float(low.sum()), rel=1e-4)


def test_low_resolution_is_padding_and_average_pooling(columns) -> None:
    images = columns["X_jets"]
    padded = functional.pad(torch.from_numpy(images).double(), (1, 2, 1, 2))
    expected = functional.avg_pool2d(padded, 2).numpy()
    np.testing.assert_allclose(low_resolution(images.astype(np.float64)), expected, rtol=1e-12)
    one = np.zeros((125, 125))
    one[0, 0], one[1, 2], one[124, 124] = 4, 8, 12
    low = low_resolution(one)
    assert {tuple(place): low[tuple(place)] for place in np.argwhere(low)} == {
        (0, 0): 1, (1, 1): 2, (62, 62): 3,
    }  # fmt: skip
    with pytest.raises(ValueError, match="125"):
        low_resolution(np.zeros((3, 64, 64)))


@pytest.mark.parametrize(
    ("load", "load_fresh", "name"),
    [
        (load_quark_gluon, partial(load_quark_gluon, "standin", fresh=True), "quark_gluon"),
        (load_super_resolution, load_fresh_super_resolution, "quark_gluon_superresolution"),
    ],
)
def test_fresh_stand_ins_are_made_with_a_seed_of_their_own(
    tmp_path, data_folder, monkeypatch, load, load_fresh, name
) -> None:
    made = []
    ordinary = inspect.signature(simulation.generate).parameters["seed"].default

    def generate(n_events, folder, seed=ordinary):
        made.append((n_events, folder, seed))
        return write_parquet(tmp_path / f"{seed}.parquet", jet_columns())

    monkeypatch.setattr(simulation, "generate", generate)
    fresh = load_fresh(profile="smoke")
    seen = load("standin", "smoke")
    sizes = [dataset(name)[key]["smoke"] for key in ("fresh_events", "events")]
    folders, seeds = [paths.STANDIN / "fresh", paths.STANDIN], [jets.FRESH_SEED, ordinary]
    assert made == list(zip(sizes, folders, seeds, strict=True))
    assert seeds[0] != seeds[1]
    assert fresh.source == seen.source == "standin"


def refusal(path, load=load_quark_gluon) -> str:
    with pytest.raises(InputError) as error:
        load(path=path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


def test_wrong_columns_and_shapes(tmp_path, data_folder) -> None:
    columns, path = jet_columns(), tmp_path / "a.parquet"
    images = columns["X_jets"]
    write_parquet(path, {key: columns[key] for key in ("X_jets", "pt", "y")})
    assert "expected a column 'm0', found X_jets, pt, y" in refusal(path)
    for wrong in (images[:, :, :64, :64], images.transpose(0, 2, 3, 1)):
        write_parquet(path, {**columns, "X_jets": wrong})
        assert "shape (3, 125, 125)" in refusal(path)
    write_parquet(path, {**columns, "X_jets": columns["pt"]})
    assert "list<list<list<double>>>" in refusal(path)


def test_damage_within_a_file(tmp_path, columns, data_folder) -> None:
    path = write_parquet(tmp_path / "a.parquet", columns)
    content = path.read_bytes()
    path.write_bytes(content[:40_000] + bytes(4000) + content[44_000:])
    assert "damage" in refusal(path)
    path.rename(tmp_path / "a.hdf5")
    assert "HDF5" in refusal(tmp_path / "a.hdf5")


def test_another_low_resolution_is_refused(tmp_path, columns, data_folder) -> None:
    low = columns["X_jets_LR"].copy()
    low[9, 1] *= 1.01
    path = write_parquet(tmp_path / "a.parquet", {**columns, "X_jets_LR": low})
    assert "event 9" in refusal(path, load_super_resolution)
    assert pq.read_metadata(path).num_row_groups == N
