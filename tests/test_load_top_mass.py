"""Boosted tops: sources, names of columns, channels, subsets, errors of broken files."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.catalog import dataset as catalog_dataset
from data.loaders import load_top_mass, prepare, top_mass
from data.readers import remote_file
from data.readers.nested_parquet import image_shape, nested
from e2e_utils import paths
from e2e_utils.errors import InputError
from tests.flaky_server import Served, flaky_server

N = 12
NUMBERS = ("m", "pt", "ieta", "iphi")


@pytest.fixture(scope="module")
def images(sparse_array) -> np.ndarray:
    return sparse_array(N, (8, 125, 125), 0.005) * 100  # both signs, as impact parameters have


@pytest.fixture
def columns(images) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "X_jet": images,
        "m": rng.uniform(85, 500, N),
        "iphi": rng.integers(0, 72, N).astype(float),
        "pt": rng.uniform(400, 1000, N),
        "ieta": rng.integers(12, 44, N).astype(float),
    }


@pytest.fixture
def write(tmp_path, columns):
    """Writer of files in the official schema, a row group a jet, with columns replaced."""

    def write(name: str = "a.parquet", row_group: int = 1, names: dict | None = None, **changes):
        table = {
            (names or {}).get(key, key): nested(values) if np.ndim(values) == 4 else values
            for key, values in (columns | changes).items()
        }
        path = tmp_path / name
        pq.write_table(pa.table(table), path, row_group_size=row_group, compression="snappy")
        return path

    return write


def check_same(loaded, columns, n=N) -> None:
    np.testing.assert_array_equal(loaded.images.dense().numpy(), columns["X_jet"][:n, :4])
    for name in NUMBERS:
        np.testing.assert_array_equal(getattr(loaded, name), columns[name][:n])
    assert len(loaded) == n


# Good files


@pytest.mark.parametrize("row_group", [1, 5, 100])
def test_first_four_channels_with_negative_values(write, columns, data_folder, row_group) -> None:
    path = write(row_group=row_group)
    loaded = load_top_mass(path=path)
    check_same(loaded, columns)
    assert columns["X_jet"][:, 1].min() < 0
    check_same(load_top_mass(path=str(path), max_events=5), columns, 5)
    assert image_shape(path, "X_jet") == (8, 125, 125)


def test_names_of_the_task_s_text(write, columns, data_folder) -> None:
    path = write(names={"m": "am", "pt": "apt"})
    check_same(load_top_mass(path=path), columns)


@pytest.mark.parametrize("channels", [4, 13])
def test_other_numbers_of_channels(write, columns, data_folder, channels) -> None:
    images = np.concatenate([columns["X_jet"]] * 2, axis=1)[:, :channels]
    check_same(load_top_mass(path=write(X_jet=images)), columns)


def test_several_files(write, columns, data_folder) -> None:
    both = load_top_mass(path=f"{write()}, {write('b.parquet', m=columns['m'] + 1)}")
    assert len(both) == 2 * N
    np.testing.assert_array_equal(both.m[N:], columns["m"] + 1)


def test_official_files_are_one_sample_up_to_the_limit(
    data_folder, write, columns, monkeypatch, capsys
) -> None:
    entry = catalog_dataset("top_mass")
    for k, file in enumerate(entry["file"]):
        part = {key: values[k : k + 1] for key, values in columns.items()}
        write("part.parquet", **part).rename(paths.OFFICIAL / file["name"])
    profiles = {"smoke": 3, "quick": 5, "standard": 7, "full": 1000}
    monkeypatch.setattr(top_mass, "dataset", lambda _: {**entry, "events": profiles})
    for profile, size in profiles.items():
        loaded = load_top_mass("auto", profile)
        check_same(loaded, columns, min(size, 7))
        assert loaded.source == "official"
    assert "7 boosted tops, official events" in capsys.readouterr().out


def test_cache_is_built_once_and_follows_the_content(write, columns, data_folder, monkeypatch):
    path = write()
    first = load_top_mass(path=path)
    with monkeypatch.context() as patch:
        patch.setattr(top_mass, "iter_columns", None)  # reading again would fail
        assert load_top_mass(path=path).fingerprint == first.fingerprint
    assert load_top_mass(path=write("b.parquet", pt=columns["pt"] + 1)).fingerprint != (
        first.fingerprint
    )


def test_stand_in_is_made_where_official_files_are_missing(write, data_folder, monkeypatch):
    made = []

    def generate(n_events, folder, conditions):
        made.append((n_events, folder, conditions))
        return write()

    monkeypatch.setattr("data.simulate.top_gun.generate", generate)
    assert load_top_mass("auto", "smoke").source == "standin"
    load_top_mass("standin", max_events=7)
    load_top_mass("auto", "smoke", conditions="harsh")
    assert "stand-in" in prepare("task2e_mass_regression", "smoke", "standin")
    assert [(n, conditions) for n, _, conditions in made] == [
        (300, "nominal"), (7, "nominal"), (300, "harsh"), (300, "nominal"),
    ]  # fmt: skip
    assert made[0][1] == paths.STANDIN


def test_subset_of_a_remote_file_costs_only_its_bytes(write, columns, data_folder, monkeypatch):
    monkeypatch.setattr(remote_file, "BLOCK_BYTES", 4096)
    longer = {name: np.concatenate([values] * 8) for name, values in columns.items()}
    content = write(**longer).read_bytes()
    with flaky_server() as server:
        server.files["/a.parquet"] = Served([content])
        loaded = load_top_mass(path=f"{server.address}/a.parquet", max_events=3)
        check_same(loaded, columns, 3)
        sent = sum(request.sent for request in server.requests)
    assert sent < len(content) / 4


# Broken files


def refusal(path, **arguments) -> str:
    with pytest.raises(InputError) as error:
        load_top_mass(path=path, **arguments)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    assert not list(paths.CACHE.glob("*"))
    return str(error.value)


def test_wrong_columns_and_shapes(write, columns, images, tmp_path, data_folder) -> None:
    table = pq.read_table(write()).drop_columns(["m"])
    pq.write_table(table, tmp_path / "b.parquet")
    assert "expected a column 'm', found X_jet, iphi" in refusal(tmp_path / "b.parquet")
    assert "found (3, 125, 125)" in refusal(write(X_jet=images[:, :3]))
    assert "found (8, 64, 125)" in refusal(write(X_jet=images[:, :, :64]))
    assert "list<list<list<double>>>" in refusal(write(X_jet=columns["pt"]))


@pytest.mark.parametrize("key", ["X_jet", "m", "pt"])
def test_nan(write, columns, data_folder, key) -> None:
    values = columns[key].copy()
    values[7] = np.nan
    assert f"event 7 of {key!r}" in refusal(write(**{key: values}))


def test_impossible_mass(write, columns, data_folder) -> None:
    mass = columns["m"].copy()
    mass[4] = -1
    assert "found -1 in event 4" in refusal(write(m=mass))


def test_damaged_files(write, tmp_path, data_folder) -> None:
    content = write().read_bytes()
    path = tmp_path / "b.parquet"
    for kept, words in ((content[: len(content) // 2], "truncated"), (b"", "empty")):
        path.write_bytes(kept)
        assert words in refusal(path)
    path.unlink()
    assert "found none" in refusal(path)


def test_wrong_arguments(data_folder) -> None:
    for arguments in ({"source": "x"}, {"profile": "x"}, {"max_events": 0}, {"path": " "}):
        with pytest.raises(InputError, match="expected"):
            load_top_mass(**arguments)
