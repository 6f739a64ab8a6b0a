"""Jets of eight channels: which files are needed, one split, memory, what is refused."""

import tracemalloc
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from data.catalog import dataset as catalog_dataset
from data.loaders import LOADERS, jets8, load_jets8, prepare, tasks
from data.readers import hdf5
from e2e_utils import paths
from e2e_utils.errors import InputError
from tests.official_files import CASES, N, jets8_columns, write_hdf5

TASKS = ("task2c_sparse_vae", "task2d_diffusion", "task2g_ssl_vit", "task2i_foundation")
check = CASES["jets8"].check


@pytest.fixture(scope="module")
def columns() -> dict[str, np.ndarray]:
    return jets8_columns()


@pytest.fixture
def write(tmp_path, columns):
    """Writer of files with the chosen keys, or columns replaced."""

    def write(name: str = "a.h5", keys: tuple = ("jet", "Y", "m", "pT"), **changes):
        return write_hdf5(tmp_path / name, {key: (columns | changes)[key] for key in keys})

    return write


@pytest.fixture
def official(data_folder, write, monkeypatch):
    """The three official files, N jets each, and small profiles."""
    entries = catalog_dataset("jets8")["file"]
    for entry in entries:
        write("part.h5", tuple(entry["keys"])).rename(paths.OFFICIAL / entry["name"])
    events = {"smoke": 28, "quick": 70, "standard": 84, "full": 700}
    monkeypatch.setattr(jets8, "dataset", lambda _: {"file": entries, "events": events})
    return [paths.OFFICIAL / entry["name"] for entry in entries]


# Good files


def test_official_files_up_to_the_limit(official, columns, capsys) -> None:
    for profile, unlabelled, labelled in (("smoke", 12, 4), ("quick", 12, 10), ("full", 12, 12)):
        loaded = load_jets8("auto", profile)
        assert loaded.source == "official"
        check(loaded, columns, slice(labelled))
        assert len(loaded.unlabelled) == unlabelled
        assert loaded.files == [official[0].name, official[2].name]
    words = "12 jets without and 10 with a label (5 of class 0, 5 of class 1), official events"
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
    assert (len(alone.unlabelled), len(alone)) == (N, 0)
    assert "official" in prepare("task2d_diffusion", "quick", "auto")


def test_four_tasks_share_one_dataset_and_one_split(official) -> None:
    datasets = [LOADERS[task]("auto", "full") for task in TASKS]
    assert len({loaded.fingerprint for loaded in datasets}) == 1
    first = datasets[0].splits()
    for loaded in datasets[1:]:
        for ours, theirs in zip(first, loaded.splits(), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert sorted(np.concatenate(first)) == list(range(N))
    assert [len(part) for part in first] == [8, 2, 2]
    assert len(np.unique(datasets[0].y[first.test])) == 2
    assert sorted(np.concatenate(datasets[0].unlabelled_splits())) == list(range(N))


def test_given_files_are_labelled_or_not(write, columns, data_folder) -> None:
    labelled, plain = write(), write("b.h5", ("jet",))
    loaded = load_jets8(path=f"{plain}, {labelled}")
    check(loaded, columns)
    assert len(loaded.unlabelled) == N
    assert loaded.source == "file"
    with pytest.raises(InputError, match="found no label"):
        load_jets8(path=plain, require_both_classes=True)


def test_stand_in_of_every_task(write, data_folder, monkeypatch) -> None:
    files = write("u.h5", ("jet",)), write("l.h5", ("jet", "Y")), write("f.h5")
    monkeypatch.setattr("data.simulate.jets8.generate", lambda *_: files)
    monkeypatch.setattr(jets8, "_simulate_fresh", lambda *_: (files[2:], 7))
    for other in ("load_quark_gluon", "load_top_mass"):  # task 2i transfers its encoder to them
        stand_in = SimpleNamespace(description="simulated stand-in events")
        monkeypatch.setattr(tasks, other, lambda *_, stand_in=stand_in: stand_in)
    assert load_jets8("standin", "smoke").files == ["u.h5", "f.h5"]
    assert load_jets8("standin", "smoke", labelled=False).files == ["u.h5"]
    fresh = load_jets8("standin", "smoke", fresh=True)
    assert (fresh.files, len(fresh.unlabelled), len(fresh)) == (["f.h5"], 0, N)
    for task in TASKS:
        assert "stand-in" in prepare(task, "smoke", "standin")


def test_fresh_jets_are_simulated_without_unlabelled_ones(data_folder, monkeypatch) -> None:
    seeds = []

    def shard(n: int, top: bool, seed: np.random.SeedSequence) -> dict[str, np.ndarray]:
        """Two active pixels per jet, the mass of its class."""
        seeds.append((n, seed.entropy))
        index = np.tile(np.array([7, 125**2 + 9], np.uint32), n)
        value, m = np.full(2 * n, 255, np.float32), np.full(n, 170.0 if top else 90.0)
        return {"counts": np.full(n, 2), "index": index, "value": value, "m": m, "pT": m + 400}

    events = {"smoke": 28}, {"smoke": 7}
    entry = {
        "file": catalog_dataset("jets8")["file"],
        "events": events[0],
        "fresh_events": events[1],
    }
    monkeypatch.setattr(jets8, "dataset", lambda _: entry)
    monkeypatch.setattr("data.simulate.jets8.simulate_shard", shard)
    loaded = load_jets8("standin", "smoke", fresh=True)
    assert (len(loaded.unlabelled), len(loaded), loaded.y.sum()) == (0, 7, 3)
    np.testing.assert_array_equal(loaded.m, np.where(loaded.y == 1, 170, 90))
    assert loaded.images.nnz == 14
    assert seeds[-2:] == [(4, (jets8.FRESH_SEED, 0)), (3, (jets8.FRESH_SEED, 1))]
    count = len(seeds)
    load_jets8("standin", "smoke", fresh=True)
    assert len(seeds) == count  # the file is there
    assert not list((paths.STANDIN / "fresh").glob(".*.part"))


# Large files


def test_memory_does_not_grow_with_the_file(write, columns, data_folder, monkeypatch) -> None:
    monkeypatch.setattr(hdf5, "CHUNK_BYTES", 2 * 125 * 125 * 8 * 4)  # two jets
    load_jets8(path=write("b.h5", m=columns["m"] + 1))  # imports and compiles
    path = write()
    tracemalloc.start()
    loaded = load_jets8(path=path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.6 * columns["jet"].nbytes
    check(loaded, columns)


# Broken files


def test_wrong_datasets_and_shapes(write, columns, data_folder) -> None:
    jets, shape = columns["jet"], "expected 'jet' of shape (n, 125, 125, 8)"
    for changes, words in (
        ({"keys": ("Y", "m")}, "expected dataset 'jet'"),
        ({"jet": jets.transpose(0, 3, 1, 2)}, shape),
        ({"jet": jets[..., :4]}, shape),
        ({"jet": jets.astype(np.uint8)}, "uint8"),
        ({"Y": columns["Y"][1:]}, "12 in 'jet', 11 in 'Y'"),
    ):
        load = partial(load_jets8, path=write(**changes))
        with pytest.raises(InputError) as error:
            load()
        assert words in str(error.value)
        assert "a.h5" in str(error.value)
        assert not list(paths.CACHE.glob("*"))
