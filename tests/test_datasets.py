"""Loading electrons and photons: which source, which events, and every kind of bad file."""

import errno
import inspect
import sys
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from data.catalog import dataset
from data.loaders import electron_photon, load_electron_photon, prepare, two_photon_file
from data.simulate import egamma
from e2e_utils import paths
from e2e_utils.errors import InputError, command_line

OFFICIAL_NAMES = (
    "SinglePhotonPt50_IMGCROPS_n249k_RHv1.hdf5",
    "SingleElectronPt50_IMGCROPS_n249k_RHv1.hdf5",
)


@pytest.fixture
def official(data_folder, write_events, monkeypatch):
    """Official files with 30 photons and 25 electrons, and a profile of 40 events."""
    for label, (name, n) in enumerate(zip(OFFICIAL_NAMES, (30, 25), strict=True)):
        write_events(name, np.full(n, label), seed=label).rename(paths.OFFICIAL / name)
    catalog = dataset("electron_photon")
    events = {"smoke": 40, "quick": 40, "standard": 60, "full": 498000}
    monkeypatch.setattr(electron_photon, "dataset", lambda _: {**catalog, "events": events})
    return [paths.OFFICIAL / name for name in OFFICIAL_NAMES]


def test_official_files_are_preferred_and_balanced(official, capsys) -> None:
    events = load_electron_photon("auto", "quick")
    assert events.source == "official"
    assert events.words == "official events"
    assert events.files == list(OFFICIAL_NAMES)
    assert np.bincount(events.y).tolist() == [20, 20]
    assert len(events) == len(events.images) == 40
    assert events.description in capsys.readouterr().out
    with h5py.File(official[1]) as file:
        first_electron = file["X"][0].transpose(2, 0, 1)
    np.testing.assert_array_equal(events.images.dense([20])[0].numpy(), first_electron)
    assert np.bincount(load_electron_photon("official", "full").y).tolist() == [25, 25]


def test_fresh_stand_ins_are_made_with_a_seed_of_their_own(
    data_folder, write_events, monkeypatch
) -> None:
    made = []
    ordinary = inspect.signature(egamma.generate).parameters["seed"].default

    def generate(n_events, folder, seed=ordinary):
        made.append((n_events, folder, seed))
        return [write_events(f"{label}.hdf5", [label] * 3, seed=seed) for label in (0, 1)]

    monkeypatch.setattr(egamma, "generate", generate)
    fresh = load_electron_photon("standin", "smoke", fresh=True)
    seen = load_electron_photon("standin", "smoke")
    sizes = [dataset("electron_photon")[key]["smoke"] for key in ("fresh_events", "events")]
    folders = [paths.STANDIN / "fresh", paths.STANDIN]
    seeds = [electron_photon.FRESH_SEED, ordinary]
    assert made == list(zip(sizes, folders, seeds, strict=True))
    assert seeds[0] != seeds[1]
    assert fresh.source == seen.source == "standin"
    assert fresh.fingerprint != seen.fingerprint


def test_fresh_official_events_are_the_official_events(official) -> None:
    seen, fresh = (load_electron_photon("official", "quick", fresh=f) for f in (False, True))
    assert fresh.fingerprint == seen.fingerprint


def test_two_photon_file_follows_the_source(data_folder, monkeypatch, capsys) -> None:
    def generate(n_events, directory):
        return directory / f"n{n_events}.root"

    module = SimpleNamespace(generate=generate)
    monkeypatch.setitem(sys.modules, "data.simulate.two_photons", module)
    assert two_photon_file("auto", "quick") == (paths.STANDIN / "n1000.root", "standin")
    assert "stand-in" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"1000Ev.root: .*make data DATA_SOURCE=official"):
        two_photon_file("official", "quick")
    with pytest.raises(InputError, match=r"other.root: expected a ROOT file, found none"):
        two_photon_file("auto", "quick", "other.root")
    official = paths.OFFICIAL / "SIM_DoubleGammaPt50_Pythia8_1000Ev.root"
    official.parent.mkdir(parents=True, exist_ok=True)
    official.write_bytes(b"")
    assert two_photon_file("auto", "quick") == (official, "official")
    assert two_photon_file("standin", "quick")[1] == "standin"
    assert two_photon_file("auto", "quick", official) == (official, "file")


def test_swapped_official_files(official) -> None:
    photon, electron = official
    photon.rename(paths.OFFICIAL / "other")
    electron.rename(photon)
    (paths.OFFICIAL / "other").rename(electron)
    with pytest.raises(InputError, match="expected label 0 for every event, found 1"):
        load_electron_photon("official", "quick")


def test_other_float_types_hold_the_same_quantity(data_folder, write_events, sparse_array) -> None:
    x = sparse_array(2, (32, 32, 2)).astype(np.float64)
    path = write_events("double.hdf5", np.array([0, 1]), x)  # integer labels are unambiguous too
    dense = load_electron_photon(path=path).images.dense()
    np.testing.assert_array_equal(dense.numpy(), x.transpose(0, 3, 1, 2).astype(np.float32))


def make_bad(kind: str, path, sparse_array) -> None:
    """Write the file ``path`` with one defect."""
    x, y = sparse_array(6, (32, 32, 2)), np.array([0, 1, 0, 1, 0, 1], np.float32)
    if kind == "nan":
        x[4, 3, 2, 1] = np.nan
    elif kind == "infinity":
        x[2, 3, 2, 1] = -np.inf
    elif kind == "overflow":
        x = x.astype(np.float64)
        x[3, 0, 0, 0] = 1e300
    elif kind == "shape":
        x = x.transpose(0, 3, 1, 2)
    elif kind == "integers":
        x = (x * 255).astype(np.uint8)
    elif kind == "labels":
        y[3] = 2
    elif kind == "nan label":
        y[3] = np.nan
    elif kind == "one class":
        y[:] = 1
    elif kind == "lengths":
        y = y[:5]
    elif kind == "no events":
        x, y = x[:0], y[:0]
    elif kind == "label column":
        y = y[:, None]
    with h5py.File(path, "w") as file:
        file.create_dataset("X" if kind != "missing key" else "x", data=x)
        file["y"] = y if kind != "text labels" else y.astype("S1")
    content = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "empty file":
        path.write_bytes(b"")
    elif kind == "not HDF5":
        path.write_text("<html>404 not found</html>")
    elif kind == "no file":
        path.unlink()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nan", "found NaN or infinity in event 4 of 'X'"),
        ("infinity", "found NaN or infinity in event 2 of 'X'"),
        ("overflow", "found NaN or infinity in event 3 of 'X'"),
        ("shape", "expected 'X' of shape (n, 32, 32, 2), found (6, 2, 32, 32)"),
        ("label column", "expected 'y' of shape (n), found (6, 1)"),
        ("integers", "expected 'X' of type float32, found uint8"),
        ("text labels", "expected 'y' of type float32, found |S1"),
        ("labels", "expected labels 0 (photon) and 1 (electron) in 'y', found 2"),
        ("nan label", "found NaN or infinity in event 3 of 'y'"),
        ("one class", "expected photon (0) and electron (1), found only label 1"),
        ("lengths", "found 6 in 'X', 5 in 'y'"),
        ("no events", "expected events, found none"),
        ("missing key", "expected dataset 'X', found 'x', 'y'"),
        ("truncated", "expected a complete HDF5 file, found a truncated file"),
        ("empty file", "found an empty file"),
        ("not HDF5", "expected a complete HDF5 file, found something else"),
        ("no file", "expected an HDF5 file, found none"),
    ],
)
def test_bad_files_are_refused(data_folder, tmp_path, sparse_array, kind, message) -> None:
    path = tmp_path / "bad.hdf5"
    make_bad(kind, path, sparse_array)
    with pytest.raises(InputError) as error:
        load_electron_photon(path=str(path))
    assert message in str(error.value)
    assert "bad.hdf5" in str(error.value)
    assert "; " in str(error.value)  # what to do
    assert "\n" not in str(error.value)
    if kind != "one class":  # such a file is complete
        assert list(paths.CACHE.iterdir()) == []


def test_damaged_chunk(data_folder, tmp_path, sparse_array) -> None:
    path = tmp_path / "bad.hdf5"
    with h5py.File(path, "w") as file:
        x = sparse_array(4, (32, 32, 2), occupancy=0.5)
        file.create_dataset("X", data=x, chunks=(2, 32, 32, 2), compression="gzip")
        file["y"] = np.array([0, 1, 0, 1], np.float32)
        chunk = file["X"].id.get_chunk_info(1)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    path.write_bytes(content)
    with pytest.raises(InputError, match="found damaged chunks"):
        load_electron_photon(path=path)
    assert list(paths.CACHE.iterdir()) == []


def test_full_disk_leaves_no_cache(data_folder, write_events, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("e2e_utils.sparse_images.np.save", full)
    with pytest.raises(InputError, match="found a full disk"):
        load_electron_photon(path=write_events("x.hdf5", [0, 1]))
    assert list(paths.CACHE.iterdir()) == []
    monkeypatch.undo()


def test_unknown_task() -> None:
    with pytest.raises(InputError, match="common_task1"):
        prepare("task9", "quick", "auto")


def test_bad_file_ends_a_program_with_code_2(tmp_path, capsys) -> None:
    (tmp_path / "empty.hdf5").touch()
    with pytest.raises(SystemExit) as end:
        command_line(load_electron_photon)(path=tmp_path / "empty.hdf5")
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")
