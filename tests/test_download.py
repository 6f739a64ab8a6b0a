"""Downloads against a local server that drops, lies, changes and stalls."""

import errno
import gzip
import hashlib
import io
import json
import subprocess
import sys
import threading
import time
import zipfile
from collections import namedtuple
from unittest import mock

import h5py
import numpy as np
import pytest

from data import catalog, download
from data.file_defects import content_defect
from data.readers import remote_file
from data.readers.remote_file import Patience, RemoteFile
from e2e_utils import files, paths
from e2e_utils.errors import InputError
from tests.flaky_server import Served, flaky_server


def hdf5_bytes(seed: int, n_bytes: int = 400_000) -> bytes:
    """A complete HDF5 file; equal ``n_bytes`` give equal sizes."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file["X"] = np.random.default_rng(seed).integers(0, 256, n_bytes, dtype=np.uint8)
    return buffer.getvalue()


CONTENT = hdf5_bytes(1)
CHANGED = hdf5_bytes(2)
HALF = len(CONTENT) // 2
HTML = b"<!DOCTYPE html><html><body>Please log in</body></html>"


def entry(name: str, url: str, **fields: object) -> str:
    """One file of the test catalog, as TOML."""
    lines = {"name": name, "bytes": [len(CONTENT)], "format": "hdf5"} | fields
    if "requirement" not in lines:
        lines["url"] = url
    text = "\n".join(f"{key} = {json.dumps(value)}" for key, value in lines.items())
    return f'[[events.file]]\n{text}\n[events.file.keys]\nX = {{ shape = [-1], dtype = "uint8" }}\n'


class Workplace:
    """A catalog, a folder of official files and a server, away from the real ones."""

    def __init__(self, folder, server, monkeypatch, capsys):
        self.folder = folder / "official"
        self.lock_file = folder / "catalog.lock.json"
        self.server = server
        self.capsys = capsys
        self.catalog_file = folder / "catalog.toml"
        self.errors = ""
        self.output = ""
        monkeypatch.setattr(catalog, "CATALOG_FILE", self.catalog_file)
        monkeypatch.setattr(paths, "OFFICIAL", self.folder)
        monkeypatch.setattr(download, "LOCK_FILE", self.lock_file)
        monkeypatch.setattr(remote_file, "PATIENCE", Patience(1, 0.2, 3, 0.001, 0.01))

    def offer(self, served: Served | None = None, name: str = "a.hdf5", **fields) -> None:
        """Put a file into the catalog, and onto the server if ``served`` is given."""
        if not self.catalog_file.exists():
            self.catalog_file.write_text(
                '[events]\ntask = ["common_task1"]\ndescription = "d"\nlicence = "l"\n'
                'citation = "c"\npage = "https://example.org/share"\n'
            )
        url = f"{fields.pop('address', self.server.address)}/{name}"
        with self.catalog_file.open("a") as file:
            file.write(entry(name, url, **fields))
        catalog._load.cache_clear()
        if served:
            self.server.files[f"/{name}"] = served

    def run(self, *arguments: str) -> int:
        """Exit code of the command line; ``errors`` and ``output`` hold what it printed."""
        with pytest.raises(SystemExit) as stop:
            download.main(list(arguments or ["events"]))
        self.output, self.errors = self.capsys.readouterr()
        return stop.value.code

    def assert_refused(self, code: int, *words: str, name: str = "a.hdf5") -> None:
        """Exit code 2, and one line of error that names the file and holds the words."""
        assert code == 2
        lines = [line for line in self.errors.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert "Traceback" not in self.errors
        for word in (name, "expected ", "found ", *words):
            assert word in lines[0]

    def files(self) -> set[str]:
        """Names of everything in the folder of official files."""
        return {p.name for p in self.folder.rglob("*")} if self.folder.exists() else set()

    def content(self, name: str = "a.hdf5") -> bytes:
        return (self.folder / name).read_bytes()

    def locked(self) -> dict:
        return json.loads(self.lock_file.read_text()) if self.lock_file.exists() else {}


@pytest.fixture
def place(tmp_path, monkeypatch, capsys):
    with flaky_server() as server:
        yield Workplace(tmp_path, server, monkeypatch, capsys)
    catalog._load.cache_clear()


# What should work ---------------------------------------------------------------------------------


def test_download_then_skip(place):
    place.offer(Served([CONTENT]))
    assert place.run() == 0
    assert place.files() == {"a.hdf5"}
    assert place.content() == CONTENT
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert place.locked() == {"a.hdf5": {"bytes": len(CONTENT), "sha256": digest}}

    assert place.run() == 0
    assert "already complete" in place.output
    assert len(place.server.requests) == 1


def test_dropped_connection_is_resumed_with_exactly_the_missing_bytes(place):
    place.offer(Served([CONTENT], drops=[HALF]))
    assert place.run() == 0
    assert place.content() == CONTENT
    assert place.files() == {"a.hdf5"}
    first, second = place.server.requests
    assert first.sent == HALF
    assert HALF - remote_file.CHUNK_BYTES < second.first_byte <= HALF
    assert second.sent == len(CONTENT) - second.first_byte
    assert second.if_range is not None


def test_part_of_an_earlier_command_is_resumed(place):
    place.offer(Served([CONTENT], drops=[HALF, 0, 0, 0]))
    place.assert_refused(place.run(), place.server.address, "the same command resumes")
    assert place.files() == {"a.hdf5.part", "a.hdf5.part.json"}
    received = (place.folder / "a.hdf5.part").stat().st_size
    assert CONTENT.startswith((place.folder / "a.hdf5.part").read_bytes())

    assert place.run() == 0
    assert place.content() == CONTENT
    assert place.files() == {"a.hdf5"}
    assert place.server.requests[-1].first_byte == received
    assert place.server.requests[-1].sent == len(CONTENT) - received


def test_many_drops_with_progress_are_not_an_error(place):
    quarter = len(CONTENT) // 4
    place.offer(Served([CONTENT], drops=[quarter] * 3 + [None]))
    assert place.run() == 0
    assert place.content() == CONTENT


def test_complete_part_is_not_fetched_again(place, monkeypatch):
    place.offer(Served([CONTENT]))
    with monkeypatch.context() as patch:
        patch.setattr(RemoteFile, "move_to", mock.Mock(side_effect=KeyboardInterrupt))
        assert place.run() == 130
    assert place.files() == {"a.hdf5.part", "a.hdf5.part.json"}
    assert place.run() == 0
    assert [request.sent for request in place.server.requests] == [len(CONTENT)]
    assert place.content() == CONTENT


def test_killed_process_loses_a_piece_at_most(place, tmp_path, monkeypatch):
    monkeypatch.setattr(remote_file, "SAVED_BYTES", 100_000)
    place.offer(Served([CONTENT], stalls_after=HALF))
    part = tmp_path / "a.part"
    url = f"{place.server.address}/a.hdf5"
    code = (
        "import sys, pathlib; from data.readers import remote_file; "
        "remote_file.SAVED_BYTES = 100_000; "
        "remote_file.RemoteFile(sys.argv[1], pathlib.Path(sys.argv[2])).fetch()"
    )
    process = subprocess.Popen([sys.executable, "-c", code, url, str(part)], stderr=subprocess.PIPE)
    while not part.exists() or part.stat().st_size < HALF:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    place.server.files["/a.hdf5"] = Served([CONTENT])
    with RemoteFile(url, part) as remote:
        remote.fetch()
        assert remote.received <= len(CONTENT) - HALF + 100_000
        assert remote.resumed
    assert part.read_bytes() == CONTENT


def test_part_without_validators_is_started_anew(place):
    place.offer(Served([CONTENT]))
    place.folder.mkdir()
    (place.folder / "a.hdf5.part").write_bytes(CHANGED[:HALF])
    assert place.run() == 0
    assert place.server.requests[0].first_byte is None
    assert place.content() == CONTENT


def test_server_that_ignores_range_restarts(place):
    place.offer(Served([CONTENT], drops=[HALF], honours_range=False))
    assert place.run() == 0
    assert place.content() == CONTENT
    assert place.server.requests[1].first_byte > 0
    assert place.server.requests[1].sent == len(CONTENT)


def test_busy_server_is_asked_again(place):
    place.offer(Served([CONTENT], statuses=[503, 429]))
    assert place.run() == 0
    assert place.content() == CONTENT
    assert len(place.server.requests) == 3


def test_server_says_how_long_it_is_busy(place, monkeypatch):
    waits = []
    monkeypatch.setattr("urllib3.util.retry.time.sleep", waits.append)
    monkeypatch.setattr(remote_file, "PATIENCE", Patience(1, 0.2, 3, 0.001, 5))
    place.offer(Served([CONTENT], statuses=[503, 503], retry_after=2))
    assert place.run() == 0
    place.server.files["/a.hdf5"] = Served([CONTENT], statuses=[429], retry_after=86400)
    assert place.run("events", "--refresh") == 0
    assert waits == [2, 2, 5]  # but no longer than our own patience


def test_every_known_size_is_good(place):
    place.offer(Served([CONTENT]), bytes=[17, len(CONTENT)])
    assert place.run() == 0
    assert place.content() == CONTENT


def test_packed_file_is_stored_as_it_lies_on_the_server(place):
    packed = gzip.compress(b"1,2,3\n" * 1000)
    served = Served([packed], content_encoding="gzip", content_type="text/csv")
    place.offer(served, name="a.csv.gz", format="csv.gz", bytes=[len(packed)])
    assert place.run() == 0
    assert place.content("a.csv.gz") == packed


# A file that changes ------------------------------------------------------------------------------


@pytest.mark.parametrize("honours_if_range", [True, False])
def test_file_that_changes_between_the_halves_is_not_mixed(place, honours_if_range):
    served = Served([CONTENT, CHANGED], drops=[HALF], honours_if_range=honours_if_range)
    place.offer(served)
    assert place.run() == 0
    assert place.content() == CHANGED
    assert place.files() == {"a.hdf5"}


def test_change_without_validators_is_found_by_the_hash_and_cured(place):
    md5 = hashlib.md5(CHANGED).hexdigest()
    place.offer(Served([CONTENT, CHANGED], drops=[HALF], etag=False), md5=md5)
    assert place.run() == 0
    assert place.content() == CHANGED
    assert [request.first_byte is None for request in place.server.requests] == [True, False, True]


def test_content_other_than_locked_keeps_the_good_file(place):
    place.offer(Served([CONTENT]))
    assert place.run() == 0
    before = place.locked()
    place.server.files["/a.hdf5"] = Served([CHANGED])

    digest = before["a.hdf5"]["sha256"]
    place.assert_refused(place.run("events", "--refresh"), digest, "--accept-changed")
    assert place.content() == CONTENT
    assert place.files() == {"a.hdf5"}
    assert place.locked() == before

    assert place.run("events", "--refresh", "--accept-changed") == 0
    assert place.content() == CHANGED
    assert place.locked()["a.hdf5"]["sha256"] == hashlib.sha256(CHANGED).hexdigest()


def test_size_other_than_locked_is_refused_before_the_download(place):
    longer = hdf5_bytes(3, 500_000)
    place.offer(Served([CONTENT]), bytes=[len(CONTENT), len(longer)])
    assert place.run() == 0
    place.server.files["/a.hdf5"] = Served([longer])
    code = place.run("events", "--refresh")
    place.assert_refused(code, f"{len(CONTENT):,}", f"{len(longer):,}")
    assert place.content() == CONTENT
    assert place.files() == {"a.hdf5"}


def test_file_on_disk_that_differs_from_the_lock_is_replaced_or_accepted(place):
    place.offer(Served([CONTENT]))
    assert place.run() == 0
    (place.folder / "a.hdf5").write_bytes(CHANGED)
    assert place.run("events", "--accept-changed") == 0
    assert place.content() == CHANGED
    assert len(place.server.requests) == 1

    (place.folder / "a.hdf5").write_bytes(CONTENT)
    place.server.files["/a.hdf5"] = Served([CHANGED])
    assert place.run() == 0
    assert place.content() == CHANGED


def test_file_that_the_catalog_vouches_for_is_not_locked(place):
    place.offer(Served([CONTENT]), sha256=hashlib.sha256(CONTENT).hexdigest())
    assert place.run() == 0
    assert place.content() == CONTENT
    assert not place.lock_file.exists()


def test_copy_of_a_given_file_follows_the_server_and_survives_interruptions(
    place, data_folder
) -> None:
    url = f"{place.server.address}/sample.hdf5?download=1"
    place.server.files["/sample.hdf5?download=1"] = Served([CONTENT], drops=[None, HALF])
    path = download.local_copy(url)
    assert (path.name, path.read_bytes()) == ("sample.hdf5", CONTENT)
    place.server.requests.clear()
    assert download.local_copy(url) == path
    (asked,) = place.server.requests
    assert asked.sent <= 1  # byte, to ask for the version
    (path.parent / "version.json").unlink()  # as if killed right before it was written
    assert download.local_copy(url).read_bytes() == CONTENT
    place.server.files["/sample.hdf5?download=1"] = Served([CHANGED])
    assert download.local_copy(url).read_bytes() == CHANGED
    assert sorted(p.name for p in path.parent.iterdir()) == ["sample.hdf5", "version.json"]
    with pytest.raises(InputError, match="HTTP 404"):
        download.local_copy(f"{place.server.address}/none.hdf5")


# What must be refused -----------------------------------------------------------------------------


def test_wrong_size_is_refused_and_can_be_accepted(place):
    place.offer(Served([CONTENT]), bytes=[12345])
    place.assert_refused(place.run(), "12,345", f"{len(CONTENT):,}", "--accept-changed")
    assert place.files() == set()
    assert place.locked() == {}
    assert place.run("events", "--accept-changed") == 0
    assert place.content() == CONTENT
    assert place.run() == 0  # the lock now vouches for this size


@pytest.mark.parametrize("content_type", ["text/html; charset=utf-8", "application/octet-stream"])
def test_html_page_with_status_200_is_refused(place, content_type):
    place.offer(Served([HTML], content_type=content_type))
    place.assert_refused(place.run(), "HTML page", "https://example.org/share", "a browser")
    assert place.files() == set()


def test_html_page_does_not_harm_the_part(place):
    place.offer(Served([CONTENT], drops=[HALF, 0, 0, 0]))
    place.run()
    part = (place.folder / "a.hdf5.part").read_bytes()
    place.server.files["/a.hdf5"] = Served([HTML], content_type="text/html", honours_range=False)
    place.assert_refused(place.run(), "HTML page")
    assert (place.folder / "a.hdf5.part").read_bytes() == part
    assert not (place.folder / "a.hdf5").exists()


def test_other_content_is_refused(place):
    place.offer(Served([b"PAR1" + bytes(len(CONTENT) - 4)]))
    place.assert_refused(place.run(), "hdf5 content", "PAR1")
    assert place.files() == set()


def test_file_that_is_cut_short_on_the_server_is_refused(place):
    place.offer(Served([CONTENT[:-1000]]), bytes=[])
    place.assert_refused(place.run(), "a complete hdf5 file", f"{len(CONTENT) - 1000:,}")
    assert place.files() == set()


def test_wrong_known_hash_cannot_be_accepted(place):
    place.offer(Served([CONTENT]), sha256=hashlib.sha256(CHANGED).hexdigest())
    place.assert_refused(place.run("events", "--accept-changed"), "expected sha256")
    assert place.files() == set()


def test_not_found(place):
    place.offer()
    place.assert_refused(place.run(), "HTTP 404", place.server.address)
    assert place.files() == set()
    assert len(place.server.requests) == 1


def test_refused_connection_says_what_to_do_by_hand(place, monkeypatch):
    asked = []
    get = remote_file.Session.get
    monkeypatch.setattr(
        remote_file.Session,
        "get",
        lambda self, url, **rest: asked.append(url) or get(self, url, **rest),
    )
    place.server.stop()
    place.offer()
    place.offer(name="b.hdf5")
    code = place.run()
    assert code == 2
    errors = [line for line in place.errors.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    for name, error in zip(("a.hdf5", "b.hdf5"), errors, strict=True):
        assert f"{name}: expected a download from {place.server.address}/{name}" in error
        assert "Connection refused" in error
        assert "0x" not in error
        assert f"a browser from https://example.org/share and put it at {place.folder}" in error
        assert "DATA_SOURCE=standin" in error
    # A host that did not answer is not waited for again.
    assert [url[-6:] for url in asked] == ["a.hdf5"] * 3 + ["b.hdf5"]
    assert place.files() == set()


def test_stall_is_given_up(place):
    place.offer(Served([CONTENT], stalls_after=0))
    place.assert_refused(place.run(), "no data for 0.2 s")
    assert len(place.server.requests) == 3
    assert place.files() == set()


def test_stall_half_way_keeps_the_part(place):
    place.offer(Served([CONTENT], stalls_after=HALF))
    assert place.run() == 0
    assert place.content() == CONTENT
    assert len(place.server.requests) > 1


def test_full_disk_is_seen_before_anything_is_requested(place, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage(0, 0, 1000))
    place.offer(Served([CONTENT]))
    place.assert_refused(place.run(), f"{len(CONTENT) / 1e3:.2f} kB", "1.00 kB")
    assert place.server.requests == []
    assert place.files() == set()


def test_broken_file_on_disk_is_replaced_only_by_a_good_one(place):
    place.offer()
    place.folder.mkdir()
    (place.folder / "a.hdf5").write_bytes(HTML)
    place.assert_refused(place.run(), "HTTP 404")
    assert place.files() == {"a.hdf5"}
    assert place.content() == HTML
    place.server.files["/a.hdf5"] = Served([CONTENT])
    assert place.run() == 0
    assert "downloading it again" in place.output
    assert place.content() == CONTENT


def test_second_process_waits_and_finds_the_file(place, monkeypatch):
    """Two that fill the same part file would mix it."""
    place.offer(Served([CONTENT]))
    waiting = threading.Event()
    monkeypatch.setattr(
        "builtins.print", lambda *words, **_: "waiting" in words[0] and waiting.set()
    )
    file = catalog.select(["a.hdf5"])[0]
    with download.only_one("a.hdf5"):
        second = threading.Thread(target=download.fetch, args=(file,))
        second.start()
        assert waiting.wait(10)
        assert place.server.requests == []
    second.join(10)
    assert place.content() == CONTENT


def test_works_where_there_is_no_fcntl():
    """As on Windows: `import data.download` must not need it."""
    code = "import sys; sys.modules['fcntl'] = None; import data.download, data.partial"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_full_disk_during_the_download(place, monkeypatch):
    place.offer(Served([CONTENT]))
    full = mock.Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr(remote_file.os, "fsync", full)
    place.assert_refused(place.run(), "a full disk", name="a.hdf5.part")


@pytest.mark.parametrize("target", ["http://example.org/a.hdf5", "ftp://example.org/a.hdf5"])
def test_redirect_to_an_address_that_others_can_change_is_refused(place, target):
    place.offer(Served([b""], location=target))
    code = place.run()
    assert code == 2
    assert f"{target}: expected an https address" in place.errors
    assert place.files() == set()


def test_redirects_are_followed(place):
    place.offer(Served([b""], location="/elsewhere"))
    place.server.files["/elsewhere"] = Served([CONTENT])
    assert place.run() == 0
    assert place.content() == CONTENT


@pytest.mark.parametrize("known", [{}, {"bytes": [], "approximate_bytes": len(CONTENT)}])
def test_endless_stream_is_cut_off(place, known):
    place.offer(Served([CONTENT], endless=True), **known)
    place.assert_refused(place.run(), "expected at most", "found more")
    assert place.server.requests[0].sent < 100 * len(CONTENT)


def test_file_much_larger_than_expected_is_refused_before_the_download(place):
    place.offer(Served([CONTENT]), bytes=[], approximate_bytes=len(CONTENT) // 2)
    place.assert_refused(place.run(), "expected at most", f"{len(CONTENT):,}")
    assert place.files() == set()


def test_failure_of_one_does_not_lose_the_others(place):
    place.offer(Served([CONTENT]))
    place.offer(name="b.hdf5")
    place.offer(Served([CHANGED]), name="c.hdf5")
    place.assert_refused(place.run(), "HTTP 404", name="b.hdf5")
    assert place.files() == {"a.hdf5", "c.hdf5"}
    assert (place.content(), place.content("c.hdf5")) == (CONTENT, CHANGED)
    assert "in place: a.hdf5, c.hdf5\n" in place.output
    assert "missing: b.hdf5" in place.errors


# The fallback, the formats, the command line ------------------------------------------------------


def make_wheel(folder) -> bytes:
    """An installable wheel of one package that does nothing."""
    path = folder / "tiny_digits-1.0-py3-none-any.whl"
    metadata = "Metadata-Version: 2.1\nName: tiny-digits\nVersion: 1.0\n"
    tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tiny_digits.py", "")
        wheel.writestr("tiny_digits-1.0.dist-info/METADATA", metadata)
        wheel.writestr("tiny_digits-1.0.dist-info/WHEEL", tags)
        wheel.writestr("tiny_digits-1.0.dist-info/RECORD", "")
    return path.read_bytes()


def test_fallback_wheel_stands_in_for_a_missing_file(place, tmp_path, monkeypatch):
    index = tmp_path / "index"
    index.mkdir()
    wheel = make_wheel(index)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    fallback = {
        "name": "tiny_digits-1.0-py3-none-any.whl",
        "requirement": "tiny-digits==1.0",
        "fallback": True,
        "format": "wheel",
        "bytes": [len(wheel)],
        "sha256": hashlib.sha256(wheel).hexdigest(),
    }
    place.offer()
    place.offer(**fallback)
    assert place.run() == 0
    assert place.files() == {fallback["name"]}
    assert place.content(fallback["name"]) == wheel
    assert "in place of a.hdf5" in place.output

    place.server.requests.clear()
    assert place.run() == 0
    assert place.server.requests == []  # once it is there nothing else is asked for

    (place.folder / fallback["name"]).unlink()
    failure = subprocess.CompletedProcess([], 1, stderr="WARNING: retrying\nERROR: no index\n")
    monkeypatch.setattr(download.subprocess, "run", lambda *_, **__: failure)
    place.assert_refused(place.run(fallback["name"]), "no index", name=fallback["name"])
    assert place.files() == set()


def root_bytes(size: int) -> bytes:
    header = b"root" + (62400).to_bytes(4) + (100).to_bytes(4) + size.to_bytes(4)
    return header + bytes(size - len(header))


@pytest.mark.parametrize(
    ("format", "content"),
    [
        ("hdf5", CONTENT),
        ("parquet", b"PAR1" + bytes(100) + b"PAR1"),
        ("root", root_bytes(500)),
        ("csv.gz", gzip.compress(b"1,2\n", mtime=0)),
    ],
)
def test_formats_are_known_by_both_ends(tmp_path, format, content):
    path = tmp_path / "file"
    file = {"name": "file", "format": format}
    path.write_bytes(content)
    assert content_defect(path, file) is None
    for wrong, word in ((b"", "empty"), (HTML, "HTML page"), (b"junk" + content, "b'ju")):
        path.write_bytes(wrong)
        assert word in content_defect(path, file)
    if format != "csv.gz":  # its end does not show in its bytes: size and hash must tell
        path.write_bytes(content[:-20])
        assert "without its end" in content_defect(path, file)


def test_command_line_without_or_with_unknown_names(place):
    place.offer(Served([CONTENT]))
    assert place.run("cats") == 2
    assert "found 'cats'" in place.errors
    with pytest.raises(SystemExit) as stop:
        download.main([])
    assert stop.value.code == 2


def test_list_shows_what_is_on_disk(place):
    place.offer(Served([CONTENT]))
    place.offer(name="b.hdf5", bytes=[])
    place.run("a.hdf5")
    assert place.run("--list") == 0
    first, second = place.output.splitlines()
    assert "a.hdf5" in first
    assert "on disk" in first
    assert "unknown" in second
    assert len(place.server.requests) == 1


def test_damaged_lock_is_an_input_error(place):
    place.offer(Served([CONTENT]))
    place.lock_file.write_text("{")
    place.assert_refused(place.run(), "JSON", name="catalog.lock.json")
    assert place.files() == set()
