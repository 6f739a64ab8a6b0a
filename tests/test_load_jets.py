"""Quark and gluon jets: sources, formats, subsets by ranges of bytes, errors of broken files."""

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional

from data.catalog import dataset as catalog_dataset
from data.loaders import jets, load_quark_gluon, load_super_resolution, prepare
from data.readers import remote_file
from data.readers.nested_parquet import nested
from e2e_utils import paths
from e2e_utils.errors import InputError
from e2e_utils.jet_resolution import low_resolution
from tests.flaky_server import Served, flaky_server

N = 24
PROFILES = {"smoke": 8, "quick": 16, "standard": 20, "full": 60}


@pytest.fixture(scope="module")
def images(sparse_array) -> np.ndarray:
    return sparse_array(N, (3, 125, 125), 0.01) * 10


@pytest.fixture
def columns(images) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    y = np.arange(N) % 2.0
    return {"X_jets": images, "pt": rng.uniform(70, 240, N), "m0": rng.uniform(8, 46, N), "y": y}


@pytest.fixture
def write(tmp_path, columns):
    """Writer of files in the official schemas, a row group a jet, with columns replaced."""

    def write(name: str = "a.parquet", low: bool = False, row_group: int = 1, **changes):
        chosen = columns | changes
        if low:
            pooled = low_resolution(chosen["X_jets"].astype(np.float64))
            chosen = {"X_jets_LR": pooled} | chosen
        table = {
            key: nested(values) if np.ndim(values) == 4 else values
            for key, values in chosen.items()
        }
        path = tmp_path / name
        pq.write_table(pa.table(table), path, row_group_size=row_group, compression="snappy")
        return path

    return write


@pytest.fixture
def official(data_folder, write, columns, monkeypatch):
    """The three official files of task 2h, eight jets each, and small profiles."""
    names = [entry["name"] for entry in catalog_dataset("quark_gluon")["file"]]
    for k, name in enumerate(names):
        part = {key: values[8 * k : 8 * k + 8] for key, values in columns.items()}
        write("part.parquet", **part).rename(paths.OFFICIAL / name)
    entry = catalog_dataset("quark_gluon")
    monkeypatch.setattr(jets, "dataset", lambda _: {**entry, "events": PROFILES})
    return names


def check_same(loaded, columns, n=N) -> None:
    np.testing.assert_array_equal(loaded.images.dense().numpy(), columns["X_jets"][:n])
    np.testing.assert_array_equal(loaded.y, columns["y"][:n])
    np.testing.assert_array_equal(loaded.pt, columns["pt"][:n])
    np.testing.assert_array_equal(loaded.m0, columns["m0"][:n])
    assert len(loaded) == n
    assert loaded.y.dtype == np.int64


# Good files


def test_official_files_are_one_sample_up_to_the_limit(official, columns, capsys) -> None:
    for profile, size in PROFILES.items():
        loaded = load_quark_gluon("auto", profile)
        check_same(loaded, columns, min(size, N))
        assert loaded.source == "official"
        assert loaded.files == official[: -(-min(size, N) // 8)]
    assert "12 quark and 12 gluon jets, official events" in capsys.readouterr().out
    check_same(load_quark_gluon("official", "smoke", max_events=11), columns, 11)


@pytest.mark.parametrize("row_group", [1, 7, 100])
@pytest.mark.parametrize("low", [False, True])
def test_both_schemas_give_the_same_jets(write, columns, data_folder, row_group, low) -> None:
    path = write(low=low, row_group=row_group)
    check_same(load_quark_gluon(path=path), columns)
    check_same(load_super_resolution(path=str(path)), columns)


def test_hdf5_edition_and_several_files(tmp_path, write, columns, data_folder) -> None:
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        for key, values in columns.items():
            file[key] = values.transpose(0, 2, 3, 1) if values.ndim == 4 else values
    check_same(load_quark_gluon(path=path), columns)
    both = load_quark_gluon(path=f"{path}, {write()}")
    assert len(both) == 2 * N
    np.testing.assert_array_equal(both.images.dense([N + 3])[0], columns["X_jets"][3])


def test_low_resolution_pair(write, columns, data_folder) -> None:
    low, high = load_super_resolution(path=write(low=True)).pair(np.array([5, 2]))
    assert low.shape == (2, 3, 64, 64)
    np.testing.assert_array_equal(high.numpy(), columns["X_jets"][[5, 2]])
    expected = low_resolution(columns["X_jets"][[5, 2]])
    np.testing.assert_allclose(low.numpy(), expected, rtol=1e-6, atol=1e-6)
    assert float(high.sum()) == pytest.approx(4 * float(low.sum()), rel=1e-4)


def test_low_resolution_is_padding_and_average_pooling(images) -> None:
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


def test_cache_is_built_once_and_follows_the_content(write, columns, data_folder, monkeypatch):
    path = write()
    first = load_quark_gluon(path=path)
    with monkeypatch.context() as patch:
        patch.setattr(jets, "iter_columns", None)  # reading again would fail
        assert load_quark_gluon(path=path).fingerprint == first.fingerprint
    other = write("b.parquet", pt=columns["pt"] + 1)
    assert load_quark_gluon(path=other).fingerprint != first.fingerprint


def test_stand_in_is_made_where_official_files_are_missing(
    write, columns, data_folder, monkeypatch
) -> None:
    made = []

    def generate(n_events, folder):
        made.append((n_events, folder))
        return write()

    monkeypatch.setattr("data.simulate.jets.generate", generate)
    assert load_quark_gluon("auto", "smoke").source == "standin"
    load_super_resolution("standin", "quick")
    load_quark_gluon("standin", max_events=7)
    sizes = (
        catalog_dataset("quark_gluon")["events"]["smoke"],
        catalog_dataset("quark_gluon_superresolution")["events"]["quick"],
        8,
    )
    assert made == [(size, paths.STANDIN) for size in sizes]
    for task in ("task2b_superres_gan", "task2h_graph_jets"):
        assert "stand-in" in prepare(task, "smoke", "standin")


# Ranges of remote files


def test_subset_of_a_remote_file_costs_only_its_bytes(
    write, columns, data_folder, monkeypatch
) -> None:
    monkeypatch.setattr(remote_file, "BLOCK_BYTES", 4096)
    copies = 5
    longer = {name: np.concatenate([values] * copies) for name, values in columns.items()}
    content = write(**longer).read_bytes()
    with flaky_server() as server:
        server.files["/a.parquet"] = Served([content])
        loaded = load_quark_gluon(path=f"{server.address}/a.parquet", max_events=3)
        check_same(loaded, columns, 3)
        assert loaded.files == ["a.parquet"]
        sent = sum(request.sent for request in server.requests)
    footer = pq.ParquetFile(pa.BufferReader(content)).metadata.serialized_size
    footer = max(footer, 65536)  # pyarrow asks for at least this much of the end
    jets_bytes = 3 * (len(content) - footer) / (copies * N)
    assert sent < jets_bytes + footer + 4 * 4096
    assert sent < len(content) / 5


def test_official_subset_comes_from_the_catalog_s_address(
    official, columns, data_folder, monkeypatch
) -> None:
    first = paths.OFFICIAL / official[0]
    with flaky_server() as server:
        server.files["/0"] = Served([first.read_bytes()])
        entry = catalog_dataset("quark_gluon")
        files = [{**file, "url": f"{server.address}/0"} for file in entry["file"]]
        monkeypatch.setattr(jets, "dataset", lambda _: {**entry, "file": files})
        first.unlink()
        check_same(load_quark_gluon("official", max_events=5), columns, 5)
        with pytest.raises(InputError, match="make data"):
            load_quark_gluon("official", "smoke")


# Broken files


def refusal(path, load=load_quark_gluon, **arguments) -> str:
    with pytest.raises(InputError) as error:
        load(path=path, **arguments)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    assert not list(paths.CACHE.glob("*"))
    return str(error.value)


def test_wrong_columns_and_shapes(write, columns, images, tmp_path, data_folder) -> None:
    table = pq.read_table(write()).drop_columns(["m0"])
    pq.write_table(table, tmp_path / "b.parquet")
    assert "expected a column 'm0', found X_jets, pt, y" in refusal(tmp_path / "b.parquet")
    assert "shape (3, 125, 125)" in refusal(write(X_jets=images[:, :, :64, :64]))
    assert "shape (3, 125, 125)" in refusal(write(X_jets=images.transpose(0, 2, 3, 1)))
    assert "list<list<list<double>>>" in refusal(write(X_jets=columns["pt"]))


@pytest.mark.parametrize("key", ["X_jets", "pt", "m0", "y"])
def test_nan(write, columns, data_folder, key) -> None:
    values = columns[key].copy()
    values[7] = np.nan
    assert f"event 7 of {key!r}" in refusal(write(**{key: values}))


def test_labels(write, columns, data_folder) -> None:
    assert "found 2 and 3 more" in refusal(write(y=np.where(np.arange(N) < 4, 2, columns["y"])))
    one_class = write(y=np.zeros(N))
    assert len(load_quark_gluon(path=one_class, require_both_classes=False)) == N
    with pytest.raises(InputError, match="only label 0"):
        load_quark_gluon(path=one_class)


def test_damaged_files(write, tmp_path, data_folder) -> None:
    content = write().read_bytes()
    path = tmp_path / "b.parquet"
    for kept, words in ((content[: len(content) // 2], "truncated"), (b"", "empty")):
        path.write_bytes(kept)
        assert words in refusal(path)
    path.write_bytes(content[:40_000] + bytes(4000) + content[44_000:])
    assert "damage" in refusal(path)
    path.unlink()
    assert "found none" in refusal(path)
    (tmp_path / "a.hdf5").write_bytes(content)
    assert "HDF5" in refusal(tmp_path / "a.hdf5")


def test_another_low_resolution_is_refused(write, images, data_folder) -> None:
    low = low_resolution(images.astype(np.float64))
    low[9, 1] *= 1.01
    path = write(X_jets_LR=low)
    assert "event 9" in refusal(path, load_super_resolution)


def test_wrong_arguments(data_folder) -> None:
    for arguments in ({"source": "x"}, {"profile": "x"}, {"max_events": 0}, {"path": " "}):
        with pytest.raises(InputError, match="expected"):
            load_quark_gluon(**arguments)
