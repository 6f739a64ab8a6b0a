"""The first events of official files: only their bytes are fetched, whatever happens meanwhile."""

import gzip
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import catalog, partial
from data.catalog import OfficialFile
from data.loaders import load_higgs, load_jets8, load_quark_gluon
from data.loaders.common import official_files
from data.partial import fetch_first, on_disk
from data.readers import parquet_footer, remote_file
from data.readers.nested_parquet import nested
from e2e_utils import paths
from e2e_utils.errors import InputError
from tests.flaky_server import FlakyServer, Served, flaky_server

N = 60  # events of a file
BLOCK = 4096
PIXELS = (3, 125, 125)
RNG = np.random.default_rng(7)
IMAGES = np.where(RNG.random((N, *PIXELS)) < 0.02, RNG.random((N, *PIXELS)), 0)
ROWS = np.column_stack([RNG.integers(0, 2, N), RNG.normal(size=(N, 28))])


def hdf5_file(path: Path) -> None:
    """Contiguous, as the official file of unlabelled jets."""
    with h5py.File(path, "w") as file:
        file["jet"] = IMAGES.transpose(0, 2, 3, 1).repeat(3, axis=-1)[..., :8].astype(np.float32)
        file["Y"] = (np.arange(N, dtype=np.float32) % 2)[:, None]


def parquet_file(path: Path) -> None:
    """One row group a jet, Snappy, as the official files."""
    columns = {"X_jets": nested(IMAGES), **{k: np.arange(N, dtype=float) for k in ("pt", "m0")}}
    table = pa.table(columns | {"y": np.arange(N) % 2.0})
    table = table.replace_schema_metadata({"a": "b" * 300})
    pq.write_table(table, path, row_group_size=1, compression="snappy")


def table_file(path: Path) -> None:
    """Numbers in %.18e, gzipped, as UCI's."""
    with gzip.open(path, "wb", compresslevel=1) as file:
        np.savetxt(file, ROWS, "%.18e", ",")


def read_hdf5(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        return {key: file[key][:] for key in ("jet", "Y")}


def read_parquet(path: Path) -> dict[str, np.ndarray]:
    table = pq.read_table(path)
    return {k: np.array(table[k].to_pylist(), float) for k in table.column_names}


def read_table(path: Path) -> dict[str, np.ndarray]:
    return {"rows": np.loadtxt(path, delimiter=",", ndmin=2)}


HDF5 = SimpleNamespace(name="a.h5", dataset="jets8", entry=2, write=hdf5_file, read=read_hdf5)
PARQUET = SimpleNamespace(
    name="a.test.parquet", dataset="quark_gluon", entry=0, write=parquet_file, read=read_parquet
)
TABLE = SimpleNamespace(
    name="a.csv.gz", dataset="higgs", entry=0, write=table_file, read=read_table
)
FORMATS = pytest.mark.parametrize("case", [HDF5, PARQUET, TABLE], ids=lambda case: case.name)


@pytest.fixture
def server(data_folder, monkeypatch) -> Iterator[FlakyServer]:
    monkeypatch.setattr(remote_file, "BLOCK_BYTES", BLOCK)
    monkeypatch.setattr(partial, "BLOCK_BYTES", BLOCK)
    monkeypatch.setattr(parquet_footer, "READ_BYTES", BLOCK)
    monkeypatch.setattr(partial, "WHOLE_BYTES", 0)
    with flaky_server() as running:
        yield running


@pytest.fixture
def offered(server, tmp_path) -> Callable[..., OfficialFile]:
    """Puts a file onto the server; its entry of the catalog."""

    def offer(case: SimpleNamespace, **served: object) -> OfficialFile:
        path = tmp_path / case.name
        case.write(path)
        entry = catalog.dataset(case.dataset)["file"][case.entry]
        keys = {
            key: {**schema, "shape": [N, *schema["shape"][1:]]}
            for key, schema in entry["keys"].items()
            if key not in ("m", "pT")
        }
        server.files[f"/{case.name}"] = Served([path.read_bytes()], **served)
        server.requests.clear()
        url = f"{server.address}/{case.name}"
        return {**entry, "name": case.name, "url": url, "keys": keys, "bytes": []}

    return offer


def sent(server: FlakyServer) -> int:
    return sum(request.sent for request in server.requests)


def first(case: SimpleNamespace, tmp_path: Path, n: int) -> dict[str, np.ndarray]:
    return {key: values[:n] for key, values in case.read(tmp_path / case.name).items()}


def names() -> list[str]:
    return sorted(str(p.relative_to(paths.OFFICIAL)) for p in paths.OFFICIAL.rglob("*.*"))


def assert_part(case: SimpleNamespace, path: Path, tmp_path: Path, n: int) -> None:
    """A complete file with the first n events, and nothing left beside it."""
    assert path.name == case.name.replace("a.", f"a.first-{n}.", 1)
    assert names() == [f"parts/{path.name}"]
    expected = first(case, tmp_path, n)
    for key, values in case.read(path).items():
        np.testing.assert_array_equal(values, expected[key])


@FORMATS
def test_only_the_bytes_of_the_first_events_are_fetched(case, offered, server, tmp_path) -> None:
    entry = offered(case)
    path = fetch_first(entry, 6)
    assert_part(case, path, tmp_path, 6)
    size = (tmp_path / case.name).stat().st_size
    assert sent(server) < size * 6 / N + 8 * BLOCK
    assert len(server.requests) < 8
    server.requests.clear()
    assert fetch_first(entry, 6) == fetch_first(entry, 4) == on_disk(entry, 5) == path
    assert on_disk(entry, 7) is None
    assert server.requests == []


@FORMATS
def test_more_events_replace_the_part(case, offered, tmp_path) -> None:
    entry = offered(case)
    fetch_first(entry, 3)
    assert_part(case, fetch_first(entry, 9), tmp_path, 9)


def test_a_part_stays_until_there_is_more(offered, monkeypatch) -> None:
    file = offered(PARQUET)
    part = fetch_first(file, 5)

    def unreachable(*_: object) -> None:
        raise InputError("no way to the whole file")

    monkeypatch.setattr(partial, "fetch", unreachable)
    with pytest.raises(InputError, match="no way"):
        fetch_first(file, N + 1)
    assert on_disk(file, 5) == part


@FORMATS
def test_interrupted_fetch_resumes(case, offered, server, tmp_path, monkeypatch) -> None:
    entry = offered(case, drops=[None, None, None])
    with monkeypatch.context() as patch:
        patch.setitem(partial.FORMATS, entry["format"], (interrupting(entry), None))
        with pytest.raises(KeyboardInterrupt):
            fetch_first(entry, 20)
    assert all(name.startswith("parts/a.") and ".fetched" in name for name in names())
    before = sent(server)
    assert_part(case, fetch_first(entry, 20), tmp_path, 20)
    assert sent(server) < (tmp_path / case.name).stat().st_size * 20 / N + 8 * BLOCK
    assert before > 0


def interrupting(entry: OfficialFile) -> Callable[..., None]:
    """Writes a part, and is interrupted at its end."""
    write = partial.FORMATS[entry["format"]][0]

    def writer(*arguments: object) -> None:
        write(*arguments)
        raise KeyboardInterrupt

    return writer


@FORMATS
def test_dropped_connections_are_resumed(case, offered, server, tmp_path) -> None:
    entry = offered(case, drops=[700, 1000, None, 2000, 10])
    assert_part(case, fetch_first(entry, 20), tmp_path, 20)
    assert sent(server) < (tmp_path / case.name).stat().st_size * 20 / N + 10 * BLOCK


@FORMATS
@pytest.mark.parametrize("honours_if_range", [True, False])
def test_file_that_changes_meanwhile_is_begun_again(
    case, offered, server, tmp_path, honours_if_range
) -> None:
    entry = offered(case)
    (content,) = server.files[f"/{case.name}"].contents
    older = content[:-9] + bytes(9) + b"x" if case is TABLE else content[:100] + content[:-100]
    changing = Served([older, content], honours_if_range=honours_if_range)
    server.files[f"/{case.name}"] = changing
    if case is not TABLE:  # the beginning is read of one version, the rest of the other
        with remote_file.RemoteFile(entry["url"], place_of(entry)) as remote:
            remote.fetch(0, 64)
    assert_part(case, fetch_first(entry, 20), tmp_path, 20)


def place_of(entry: OfficialFile) -> Path:
    return paths.OFFICIAL / "parts" / f"{entry['name']}.fetched"


@FORMATS
def test_complete_file_is_preferred(case, offered, server, tmp_path) -> None:
    entry = offered(case)
    fetch_first(entry, 3)
    whole = paths.OFFICIAL / case.name
    whole.write_bytes((tmp_path / case.name).read_bytes())
    server.requests.clear()
    assert fetch_first(entry, 3) == fetch_first(entry, 30) == on_disk(entry, None) == whole
    assert server.requests == []


@FORMATS
def test_as_many_events_as_there_are_make_the_whole_file(
    case, offered, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("data.download.LOCK_FILE", tmp_path / "lock.json")
    monkeypatch.setattr("data.download.dataset", lambda _: {"file": []})
    entry = offered(case)
    assert fetch_first(entry, N) == paths.OFFICIAL / case.name
    assert names() == [case.name]


def test_small_files_and_other_formats_are_fetched_whole(offered, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("data.download.LOCK_FILE", tmp_path / "lock.json")
    monkeypatch.setattr(partial, "WHOLE_BYTES", 10_000_000)
    entry = {**offered(PARQUET), "approximate_bytes": 9_000_000}
    assert fetch_first(entry, 2) == paths.OFFICIAL / PARQUET.name


def test_files_are_taken_in_turn_and_no_byte_of_those_not_needed(
    offered, server, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("data.download.LOCK_FILE", tmp_path / "lock.json")
    one = offered(PARQUET)
    entries = [{**one, "name": f"{k}.test.parquet", "url": f"{one['url']}{k}"} for k in "abc"]
    for entry in entries:
        server.files[entry["url"].removeprefix(server.address)] = server.files["/" + one["name"]]
    assert official_files(entries, 5, "auto") is None
    assert [p.name for p in official_files(entries, 5, "official")] == ["a.first-5.test.parquet"]
    assert {request.path for request in server.requests} == {"/a.test.parqueta"}
    both = [p.name for p in official_files(entries, N + 5, "official")]
    assert both == ["a.test.parquet", "b.first-5.test.parquet"]
    assert {request.path for request in server.requests} == {"/a.test.parqueta", "/a.test.parquetb"}
    assert [p.name for p in official_files(entries, N + 4, "auto")] == both


@pytest.mark.parametrize(
    ("case", "load"), [(HDF5, load_jets8), (PARQUET, load_quark_gluon), (TABLE, load_higgs)]
)
def test_loaders_fetch_what_the_profile_takes(
    case, load, offered, server, tmp_path, monkeypatch
) -> None:
    entry = offered(case)
    entries = [{**entry, "name": f"{k}{entry['name']}"} for k in range(3 if case is HDF5 else 1)]
    known = {**catalog.dataset(case.dataset), "file": entries, "events": {"smoke": 14}}
    monkeypatch.setattr(f"data.loaders.{load.__module__.split('.')[-1]}.dataset", lambda _: known)
    loaded = load("official", "smoke")
    assert loaded.source == "official"
    assert len(loaded) == (2 if case is HDF5 else 14)
    assert all(".first-" in name for name in loaded.files)
    assert sent(server) < (tmp_path / case.name).stat().st_size * 14 / N + 16 * BLOCK
    server.requests.clear()
    assert load("auto", "smoke").fingerprint == loaded.fingerprint  # the part is there by now
    assert server.requests == []


def test_wrong_schema_and_short_tables_are_refused(offered, server, tmp_path) -> None:
    entry = offered(HDF5)
    entry["keys"]["jet"]["shape"][1] = 124
    with pytest.raises(InputError, match="expected 'jet' of shape"):
        fetch_first(entry, 5)
    entry = offered(TABLE)
    entry["keys"]["label"]["shape"] = [2 * N]
    with pytest.raises(InputError, match=rf"a.csv.gz: expected line {N + 1}"):
        fetch_first(entry, N + 5)
    entry = offered(PARQUET)
    server.files[f"/{PARQUET.name}"] = Served([b"PAR1" + bytes(9000) + b"PAR1"])
    with pytest.raises(InputError, match="expected a complete parquet file"):
        fetch_first(entry, 5)
    assert not [name for name in names() if ".first-" in name]


@pytest.mark.parametrize(
    ("text", "words"),
    [(b"1" * 10_000_000, "expected line 1"), (b"\0" * 10_000_000, "expected line 1")],
)
def test_gzip_bomb_is_not_unpacked(offered, server, text, words) -> None:
    entry = offered(TABLE)
    server.files[f"/{TABLE.name}"] = Served([gzip.compress(text)])
    with pytest.raises(InputError, match=words):
        fetch_first(entry, 5)


@pytest.mark.parametrize("groups", [1, 7, N])
def test_shortened_footer_is_read_by_pyarrow(tmp_path, groups) -> None:
    path, rows_of_group = tmp_path / "a.parquet", math.ceil(N / groups)
    table = pa.table(
        {"x": np.arange(N), "b": np.arange(N) % 2 == 0, "s": [str(k) for k in range(N)]}
    )
    pq.write_table(table, path, row_group_size=rows_of_group)
    for n in (1, 20, N, N + 1):
        with path.open("rb") as file:
            footer, rows, all_rows = parquet_footer.first_row_groups(file, n)
        assert all_rows == N
        assert rows == min(N, math.ceil(n / rows_of_group) * rows_of_group)
        end = parquet_footer.data_end(footer)
        short = path.read_bytes()[:end] + parquet_footer.ending(footer)
        assert pq.read_table(pa.BufferReader(short)).equals(table.slice(0, rows))
