"""Ranges of a file behind HTTP: the same bytes as the file, no more than needed, clear errors."""

import io

import numpy as np
import pytest

from data.readers import remote_file
from data.readers.remote_file import RemoteFile, is_remote
from e2e_utils.errors import InputError
from tests.flaky_server import Served, flaky_server


@pytest.fixture
def server():
    with flaky_server() as running:
        yield running


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch) -> None:
    monkeypatch.setattr(remote_file, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(remote_file, "FIRST_DELAY", 0.0)


CONTENT = np.random.default_rng(0).bytes(10_500)


def test_random_reads_give_the_file_s_bytes(server) -> None:
    server.files["/a"] = Served([CONTENT])
    local, rng = io.BytesIO(CONTENT), np.random.default_rng(1)
    with RemoteFile(f"{server.address}/a") as remote:
        assert remote.size == len(CONTENT)
        for _ in range(60):
            at, length = rng.integers(0, 10_600), int(rng.integers(0, 4000))
            assert remote.seek(at) == local.seek(at)
            assert remote.read(length) == local.read(length)
            assert (
                remote.tell() == min(at, 10_500) + min(length, max(10_500 - at, 0)) or at > 10_500
            )
        remote.seek(-10, io.SEEK_END)
        assert remote.read() == CONTENT[-10:]
        assert remote.received == sum(request.sent for request in server.requests)


def test_small_neighbouring_reads_are_one_request(server) -> None:
    server.files["/a"] = Served([CONTENT])
    with RemoteFile(f"{server.address}/a") as remote:
        for _ in range(20):
            remote.read(45)
    assert [request.sent for request in server.requests] == [1, 1000]


def test_passing_failures_are_tried_again(server) -> None:
    server.files["/a"] = Served([CONTENT], statuses=[None, 503, 429])
    with RemoteFile(f"{server.address}/a") as remote:
        assert remote.read(2500) == CONTENT[:2500]


@pytest.mark.parametrize(
    ("served", "expected"),
    [
        (None, "HTTP 404"),
        (Served([CONTENT], honours_range=False), "HTTP 200"),
        (Served([CONTENT], statuses=[503] * 9), "HTTP 503"),
    ],
)
def test_unusable_servers_are_reported(server, served, expected) -> None:
    if served:
        server.files["/a"] = served
    with pytest.raises(InputError, match=expected) as error:
        RemoteFile(f"{server.address}/a")
    assert "\n" not in str(error.value)


def test_a_change_while_reading_is_noticed(server) -> None:
    server.files["/a"] = Served([CONTENT, CONTENT[::-1]])
    with RemoteFile(f"{server.address}/a") as remote, pytest.raises(InputError, match="version"):
        remote.read(10)


def test_urls_are_told_from_paths() -> None:
    assert is_remote("https://example.org/a.parquet")
    assert not is_remote("data/a.parquet")
