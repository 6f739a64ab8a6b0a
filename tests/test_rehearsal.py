"""The rehearsal with official files, in small: files of official size, and their host's faults."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import requests

from data import catalog
from data.catalog import dataset
from data.partial import fetch_first
from data.readers.nested_parquet import iter_columns
from tests.official_files import CASES, N
from tests.rehearsal import __main__ as rehearsal
from tests.rehearsal import files, host

BLOCKS = 16 << 20  # bytes that may be fetched beside the events, of either version


@pytest.fixture
def standins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], object]:
    """A few events of a case in place of those that its simulation makes."""

    def replace(name: str, copies: int = 1) -> dict:
        case, columns = CASES[name], CASES[name].make()
        paths = tuple(case.write(tmp_path / f"{i}-{case.name}", columns) for i in range(copies))
        module = getattr(files, case.simulation)
        monkeypatch.setattr(module, "generate", lambda *_: paths if copies > 1 else paths[0])
        return columns

    return replace


def served_from(address: host.Host, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the catalog name the host's addresses."""
    text = catalog.CATALOG_FILE.read_text(encoding="utf-8")
    changed = folder / "catalog.toml"
    changed.write_text(rehearsal.with_addresses(text, address), encoding="utf-8")
    monkeypatch.setattr(catalog, "CATALOG_FILE", changed)


@pytest.mark.parametrize(
    ("case", "name", "writer"),
    [
        ("top_mass", "top_mass", files.write_tops),
        ("quark_gluon", "quark_gluon", files.write_quark_gluon),
    ],
)
def test_parquet_files_of_official_size(
    case: str, name: str, writer: Callable, standins: Callable, data_folder: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    columns = standins(case)
    file = dataset(name)["file"][0]
    image = next(key for key in columns if np.ndim(columns[key]) == 4)
    served = writer([file], N, tmp_path / "served", True)
    path = served[file["name"]]
    assert path.stat().st_size == file["bytes"][0]
    metadata = pq.read_metadata(path)
    n_all = next(iter(file["keys"].values()))["shape"][0]
    assert (metadata.num_rows, metadata.num_row_groups) == (n_all, n_all)
    with host.serving(served, changing=(file["name"],)) as server:
        served_from(server, tmp_path, monkeypatch)
        part = fetch_first(dataset(name)["file"][0], N)
        one = server.files[file["name"]]
        assert one.version == 2
        assert set(one.faults) == {"503", "dropped", "another version"}
        assert one.sent < BLOCKS < path.stat().st_size / 10
    with pq.ParquetFile(path) as all_jets:  # the same jets again
        assert all_jets.read_row_group(N + 5).equals(all_jets.read_row_group(5))
    (found,) = iter_columns(part, file["keys"])
    expected = columns[image].copy()
    expected[1] = 0
    assert len(found[image]) == N
    np.testing.assert_array_equal(found[image][4:], expected[4:])
    assert found[image][1].max() == 0
    assert found[image][2, 0, 60, 60] == np.float32(files.OUTLIERS[name][0])
    assert found[image][3, 1, 60, 60] == np.float32(files.OUTLIERS[name][1])


def test_a_contiguous_file_of_30_gb(
    standins: Callable, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = standins("jets8", copies=3)
    file = dataset("jets8")["file"][0]
    served = files.write_jets8(dataset("jets8")["file"], N, tmp_path / "served", True)
    path = served[file["name"]]
    assert path.stat().st_size == file["bytes"][0]
    assert path.stat().st_blocks * 512 < 20e6  # a hole
    with host.serving(served) as server:
        served_from(server, tmp_path, monkeypatch)
        part = fetch_first(dataset("jets8")["file"][0], 5)
        one = server.files[file["name"]]
        assert one.sent < 5 * 125 * 125 * 8 * 4 + BLOCKS
        assert set(one.faults) >= {"503", "dropped"}
    with h5py.File(part) as found:
        expected = columns["jet"][:5].copy()
        expected[1] = 0
        np.testing.assert_array_equal(found["jet"][:], expected)


def test_showers_are_repeated_in_packed_chunks(
    standins: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = standins("electron_photon", copies=2)
    monkeypatch.setattr(files, "CHUNK", 4)
    monkeypatch.setattr(files, "length", lambda _: 30)
    monkeypatch.setattr(files, "official_bytes", lambda _: 500_000)
    entries = dataset("electron_photon")["file"]
    made = files.write_showers(entries, N, tmp_path / "served", True)
    for file in entries:
        path = made[file["name"]]
        assert path.stat().st_size == 500_000
        with h5py.File(path) as found:
            x = found["X"][:]
            expected = columns["X"].copy()
            expected[1] = 0
            np.testing.assert_array_equal(x[:N], expected)
            np.testing.assert_array_equal(x[N : 2 * N], expected)
            assert set(found["y"][:]) == {file["label"]}


def test_the_host_refuses_drops_and_changes(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(range(256)) * 4096)
    size, wanted = path.stat().st_size, {"Range": "bytes=10-19", "If-Range": '"v1"'}
    with host.serving({"a.bin": path}, changing=("a.bin",)) as server:
        url = server.url("a.bin")
        assert requests.get(url).status_code == 503
        with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
            requests.get(url)
        part = requests.get(url, headers=wanted)
        assert (part.status_code, part.content) == (206, bytes(range(10, 20)))
        server.files["a.bin"].drops = 0
        whole = requests.get(url, headers=wanted)  # the third answer: another version
        assert (whole.status_code, len(whole.content)) == (200, size)
        assert whole.headers["ETag"] == '"v2"'
        beyond = requests.get(url, headers={"Range": f"bytes={size}-"})
        assert beyond.status_code == 416
        assert beyond.headers["Content-Range"] == f"bytes */{size}"
        assert requests.get(server.url("b.bin")).status_code == 404
        assert server.files["a.bin"].faults == {
            "503": 1, "dropped": 1, "another version": 1, "416": 1
        }  # fmt: skip


def test_a_dataset_of_which_too_much_was_sent_is_named(tmp_path: Path) -> None:
    file, path = dataset("higgs")["file"][0], tmp_path / "a"
    with path.open("wb") as hole:
        hole.truncate(file["bytes"][0])
    with host.serving({file["name"]: path}) as server:
        one = server.files[file["name"]]
        one.sent = 150_000_000
        assert rehearsal.too_much(server, "quick") == []
        one.sent = 300_000_000
        (problem,) = rehearsal.too_much(server, "quick")
        assert problem.startswith("higgs: 300,000,000 bytes sent, at most ")
