"""Jets of eight channels: sources, one split, ranges of bytes, memory, errors of broken files."""

import tracemalloc
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from data.catalog import dataset as catalog_dataset
from data.loaders import LOADERS, jets8, load_jets8, prepare, tasks
from data.readers import hdf5 as hdf5_schema
from data.readers import remote_file
from e2e_utils import paths
from e2e_utils.errors import InputError
from tests.flaky_server import Served, flaky_server

N = 20
TASKS = ("task2c_sparse_vae", "task2d_diffusion", "task2g_ssl_vit", "task2i_foundation")


@pytest.fixture(scope="module")
def pixels(sparse_array) -> np.ndarray:
    """Images (N, 125, 125, 8) with values 0 to 255."""
    return np.abs(sparse_array(N, (125, 125, 8), 0.005)) * 50


@pytest.fixture
def columns(pixels) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "jet": pixels,
        "Y": (np.arange(N) % 2).astype(np.float32)[:, None],
        "m": rng.uniform(40, 300, (N, 1)).astype(np.float32),
        "pT": rng.uniform(400, 900, (N, 1)).astype(np.float32),
    }


@pytest.fixture
def write(tmp_path, columns):
    """Writer of contiguous files with the chosen keys, as the official ones are, or replaced."""

    def write(name: str = "a.h5", keys: tuple = ("jet", "Y", "m", "pT"), **changes):
        path = tmp_path / name
        with h5py.File(path, "w") as file:
            for key in keys:
                file[key] = changes.get(key, columns[key])
        return path

    return write


@pytest.fixture
def official(data_folder, write, monkeypatch):
    """The three official files, 20 jets each, and small profiles."""
    entries = catalog_dataset("jets8")["file"]
    for entry in entries:
        write("part.h5", tuple(entry["keys"])).rename(paths.OFFICIAL / entry["name"])
    events = {"smoke": 28, "quick": 70, "standard": 84, "full": 700}
    monkeypatch.setattr(jets8, "dataset", lambda _: {"file": entries, "events": events})
    return [paths.OFFICIAL / entry["name"] for entry in entries]


def check_labelled(loaded, columns, n=N) -> None:
    expected = columns["jet"][:n].transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(loaded.images.dense().numpy(), expected)
    for ours, name in ((loaded.y, "Y"), (loaded.m, "m"), (loaded.pt, "pT")):
        np.testing.assert_array_equal(ours, columns[name][:n, 0])
    assert loaded.y.dtype == np.int64
    assert len(loaded) == n


# Good files


def test_official_files_up_to_the_limit(official, columns, capsys) -> None:
    for profile, unlabelled, labelled in (("smoke", 20, 4), ("quick", 20, 10), ("full", 20, 20)):
        loaded = load_jets8("auto", profile)
        assert loaded.source == "official"
        check_labelled(loaded, columns, labelled)
        assert len(loaded.unlabelled) == unlabelled
        assert loaded.files == [official[0].name, official[2].name]
    words = "20 jets without and 10 with a label (5 of class 0, 5 of class 1), official events"
    assert words in capsys.readouterr().out


def test_which_official_files_are_needed(official, columns) -> None:
    official[2].unlink()
    loaded = load_jets8("official", "quick")  # the one without mass and pT
    assert loaded.files[1] == official[1].name
    assert np.isnan(loaded.m).all()
    assert np.isnan(loaded.pt).all()
    official[1].unlink()
    with pytest.raises(InputError, match=r"full_only_for_2i.*make data"):
        load_jets8("official", "quick")
    alone = load_jets8("official", "quick", labelled=False)
    assert (len(alone.unlabelled), len(alone)) == (20, 0)
    assert "official" in prepare("task2d_diffusion", "quick", "auto")


def test_four_tasks_share_one_dataset_and_one_split(official) -> None:
    datasets = [LOADERS[task]("auto", "full") for task in TASKS]
    assert len({loaded.fingerprint for loaded in datasets}) == 1
    first = datasets[0].splits()
    for loaded in datasets[1:]:
        for ours, theirs in zip(first, loaded.splits(), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert sorted(np.concatenate(first)) == list(range(N))
    assert [len(part) for part in first] == [13, 3, 4]
    assert len(np.unique(datasets[0].y[first.test])) == 2
    assert sorted(np.concatenate(datasets[0].unlabelled_splits())) == list(range(N))


def test_given_files_are_labelled_or_not(write, columns, data_folder) -> None:
    labelled, plain = write(), write("b.h5", ("jet",))
    loaded = load_jets8(path=f"{plain}, {labelled}")
    check_labelled(loaded, columns)
    assert len(loaded.unlabelled) == N
    assert loaded.source == "file"
    check_labelled(load_jets8(path=labelled, max_events=3, require_both_classes=True), columns, 3)
    with pytest.raises(InputError, match="no labelled jet"):
        load_jets8(path=plain, require_both_classes=True)


def test_stand_in_is_made_where_official_files_are_missing(write, data_folder, monkeypatch):
    made = []

    def generate(n_events, folder):
        made.append(n_events)
        assert folder == paths.STANDIN
        return write("u.h5", ("jet",)), write("l.h5", ("jet", "Y")), write("f.h5")

    monkeypatch.setattr("data.simulate.jets8.generate", generate)
    for other in ("load_quark_gluon", "load_top_mass"):  # task 2i transfers its encoder to them
        stand_in = SimpleNamespace(description="simulated stand-in events")
        monkeypatch.setattr(tasks, other, lambda *_, stand_in=stand_in: stand_in)
    assert load_jets8("auto", "smoke").source == "standin"
    assert len(load_jets8("standin", max_events=3)) == 3
    assert len(load_jets8("standin", "smoke", labelled=False)) == 0
    for task in TASKS:
        assert "stand-in" in prepare(task, "smoke", "standin")
    assert made == [280, 21, 280] + [280] * 4


def test_cache_is_built_once(write, columns, data_folder, monkeypatch) -> None:
    path = write()
    first = load_jets8(path=path)
    with monkeypatch.context() as patch:
        patch.setattr(jets8, "iter_images", None)  # reading again would fail
        assert load_jets8(path=path).fingerprint == first.fingerprint
    other = write("b.h5", m=columns["m"] + 1)
    assert load_jets8(path=other).fingerprint != first.fingerprint


# Large files


def test_memory_does_not_grow_with_the_file(write, columns, data_folder, monkeypatch) -> None:
    monkeypatch.setattr(hdf5_schema, "CHUNK_BYTES", 2 * 125 * 125 * 8 * 4)  # two jets
    load_jets8(path=write("b.h5", m=columns["m"] + 1))  # imports and compiles
    path = write()
    tracemalloc.start()
    loaded = load_jets8(path=path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.6 * columns["jet"].nbytes
    check_labelled(loaded, columns)


def test_subset_of_a_remote_file_costs_only_its_bytes(write, columns, data_folder, monkeypatch):
    monkeypatch.setattr(remote_file, "BLOCK_BYTES", 65536)
    path = write()
    content = path.read_bytes()
    jet_bytes = 125 * 125 * 8 * 4
    with flaky_server() as server:
        server.files["/a.h5"] = Served([content])
        loaded = load_jets8(path=f"{server.address}/a.h5", max_events=3)
        check_labelled(loaded, columns, 3)
        assert loaded.files == ["a.h5"]
        sent = sum(request.sent for request in server.requests)
    assert 3 * jet_bytes < sent < 3 * jet_bytes + 10 * 65536


def test_official_subset_comes_from_the_catalog_s_addresses(
    official, columns, data_folder, monkeypatch
) -> None:
    with flaky_server() as server:
        entries = []
        for k, entry in enumerate(catalog_dataset("jets8")["file"]):
            server.files[f"/{k}"] = Served([official[k].read_bytes()])
            entries.append({**entry, "url": f"{server.address}/{k}"})
            official[k].unlink()
        known = {"file": entries, "events": {"smoke": 28, "quick": 70}}
        monkeypatch.setattr(jets8, "dataset", lambda _: known)
        loaded = load_jets8("official", max_events=4)
        check_labelled(loaded, columns, 4)
        assert len(loaded.unlabelled) == 4
        with pytest.raises(InputError, match="make data"):
            load_jets8("official", "smoke")


# Broken files


def refusal(path, **arguments) -> str:
    with pytest.raises(InputError) as error:
        load_jets8(path=path, **arguments)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    assert not list(paths.CACHE.glob("*"))
    return str(error.value)


def test_wrong_datasets_and_shapes(write, columns, pixels, data_folder) -> None:
    assert "expected dataset 'jet'" in refusal(write(keys=("Y", "m")))
    assert "shape (n, 125, 125, 8)" in refusal(write(jet=pixels.transpose(0, 3, 1, 2)))
    assert "shape (n, 125, 125, 8)" in refusal(write(jet=pixels[..., :4]))
    assert "uint8" in refusal(write(jet=pixels.astype(np.uint8)))
    assert "20 in 'jet', 19 in 'Y'" in refusal(write(Y=columns["Y"][1:]))


@pytest.mark.parametrize("key", ["jet", "m", "pT"])
def test_nan(write, columns, data_folder, key) -> None:
    values = columns[key].copy()
    values[7] = np.nan
    assert f"event 7 of {key!r}" in refusal(write(**{key: values}))


def test_labels(write, columns, data_folder) -> None:
    assert "found 3 and 19 more" in refusal(write(Y=np.full((N, 1), 3.0)))
    with pytest.raises(InputError, match="only label 0"):
        load_jets8(path=write(Y=np.zeros((N, 1))), require_both_classes=True)


def test_damaged_files(write, tmp_path, data_folder) -> None:
    content = write().read_bytes()
    path = tmp_path / "b.h5"
    for kept, words in ((content[: len(content) // 2], "truncated"), (b"", "empty")):
        path.write_bytes(kept)
        assert words in refusal(path)
    path.unlink()
    assert "found none" in refusal(path)


def test_wrong_arguments(data_folder) -> None:
    for arguments in ({"source": "x"}, {"profile": "x"}, {"max_events": 0}, {"path": " "}):
        with pytest.raises(InputError, match="expected"):
            load_jets8(**arguments)
