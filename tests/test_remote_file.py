"""Ranges of a file behind HTTP: the same bytes as the file, no more than needed, clear errors."""

import io

import numpy as np
import pytest

from data.readers import remote_file
from data.readers.remote_file import ChangedError, RemoteFile, is_remote, is_safe, version_of
from e2e_utils.errors import InputError
from tests.flaky_server import Served, flaky_server


@pytest.fixture
def server():
    with flaky_server() as running:
        yield running


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch) -> None:
    monkeypatch.setattr(remote_file, "BLOCK_BYTES", 1000)


@pytest.fixture
def remote(server, tmp_path):
    """Opener of a file of the server, with a part file of its own."""
    return lambda name="a", **options: RemoteFile(
        f"{server.address}/{name}", tmp_path / f"{name}.part", **options
    )


CONTENT = np.random.default_rng(0).bytes(10_500)


def test_random_reads_give_the_file_s_bytes(server, remote) -> None:
    server.files["/a"] = Served([CONTENT])
    local, rng = io.BytesIO(CONTENT), np.random.default_rng(1)
    with remote() as file:
        assert file.size == len(CONTENT)
        for _ in range(60):
            at, length = int(rng.integers(0, 10_600)), int(rng.integers(0, 4000))
            assert file.seek(at) == local.seek(at)
            assert file.read(length) == local.read(length)
            assert file.tell() == local.tell()
        file.seek(-10, io.SEEK_END)
        assert file.read() == CONTENT[-10:]
        assert file.received == sum(request.sent for request in server.requests) == len(CONTENT)


def test_small_neighbouring_reads_are_one_request(server, remote) -> None:
    server.files["/a"] = Served([CONTENT])
    with remote() as file:
        for _ in range(20):
            file.read(45)
    assert [request.sent for request in server.requests] == [1000]


def test_ranges_are_kept_and_only_the_gaps_between_them_fetched(server, remote) -> None:
    server.files["/a"] = Served([CONTENT])
    with remote() as file:
        file.fetch(5000, 6000)
        file.fetch(1000, 2000)
    with remote() as file:
        file.fetch(500, 7000)
        file.seek(500)
        assert file.read(6500) == CONTENT[500:7000]
    sent = [(request.first_byte, request.sent) for request in server.requests]
    assert sent == [(5000, 1000), (1000, 1000), (500, 500), (2000, 3000), (6000, 1000)]
    assert all(request.if_range for request in server.requests[1:])


def test_dropped_range_is_resumed(server, remote) -> None:
    server.files["/a"] = Served([CONTENT], drops=[700])
    with remote() as file:
        file.fetch(2000, 4000)
        assert file.resumed
        file.seek(2000)
        assert file.read(2000) == CONTENT[2000:4000]
    assert [request.sent for request in server.requests] == [700, 1300]


def test_server_without_ranges_gives_a_beginning_and_is_then_left(server, remote) -> None:
    server.files["/a"] = Served([CONTENT], honours_range=False)
    with remote() as file:
        file.fetch(0, 3000)
        assert file.received == 3000
        with pytest.raises(InputError, match="a range of bytes, found HTTP 200"):
            file.fetch(8000, 9000)


@pytest.mark.parametrize(
    ("served", "expected"),
    [
        (None, "HTTP 404"),
        (Served([CONTENT], statuses=[503] * 9), "HTTP 503"),
        (Served([b"<html>"], content_type="text/html"), "HTML page"),
    ],
)
def test_unusable_servers_are_reported(server, remote, served, expected) -> None:
    if served:
        server.files["/a"] = served
    with remote() as file, pytest.raises(InputError, match=expected) as error:
        file.read(1)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="404"):
        version_of(f"{server.address}/b")


@pytest.mark.parametrize("honours_if_range", [True, False])
@pytest.mark.parametrize("other", [CONTENT[::-1], CONTENT[:1500]])
@pytest.mark.parametrize("reopen", [True, False])
def test_versions_are_not_mixed(server, remote, honours_if_range, other, reopen) -> None:
    """Not within a run, nor between two: what was received is forgotten."""
    server.files["/a"] = Served([CONTENT, other], honours_if_range=honours_if_range)
    file = remote()
    file.fetch(0, 1000)
    if reopen:
        file.close()
        file = remote()
    with file, pytest.raises(ChangedError, match="another version"):
        file.fetch(2000, 3000)
    with remote() as file:
        assert file.read(1200) == other[:1200]


def test_damaged_journal_or_part_is_not_trusted(server, remote, tmp_path) -> None:
    server.files["/a"] = Served([CONTENT])
    journal, part = tmp_path / "a.part.json", tmp_path / "a.part"
    for damage in (
        lambda: journal.write_text("{"),
        lambda: journal.write_text("[]"),
        lambda: part.write_bytes(b""),
        lambda: journal.write_text(journal.read_text().replace("/a", "/b")),
    ):
        with remote() as file:
            file.fetch(0, 2000)
        damage()
        with remote() as file:
            assert not file.resumed
            assert file.read(2000) == CONTENT[:2000]


def test_urls_are_told_from_paths_and_safe_ones_from_others() -> None:
    assert is_remote("https://example.org/a.parquet")
    assert not is_remote("data/a.parquet")
    assert is_safe("https://example.org/a")
    for url in ("http://example.org/a", "http://localhost.example.org", "file:///a", "a"):
        assert not is_safe(url)
    assert not is_safe("http://127.0.0.1:80@example.org/a")
