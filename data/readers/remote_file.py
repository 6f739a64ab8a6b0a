"""A file behind HTTP, read in ranges of bytes: a subset of it costs only what the subset holds."""

import io
import time
from collections import OrderedDict

import requests

from e2e_utils.errors import InputError

BLOCK_BYTES = 1 << 20  # at least this much is asked for at once
CACHED_BLOCKS = 8  # so that small reads that jump back and forth cost nothing
TIMEOUT = (15, 60)  # s: to connect, without a new byte
ATTEMPTS, FIRST_DELAY = 4, 0.5  # s, doubled after each failure


def is_remote(source: object) -> bool:
    """Whether a string names a file behind HTTP."""
    return isinstance(source, str) and source.startswith(("http://", "https://"))


class RemoteFile(io.RawIOBase):
    """Seekable, read-only; ``name`` is the URL, ``received`` counts the bytes that came.

    Raises InputError where the server cannot be reached, does not send ranges, or changes the file
    while it is read.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        self.name = url
        self.received = 0
        self.version: str | None = None  # ETag or date, where the server tells one
        self.footer: object = None  # of a parquet file, kept by who reads it
        self._session = requests.Session()
        self._position = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self.size = 1  # for the first request, whose answer tells the size
        self._request(0, 1)

    def __str__(self) -> str:
        return self.name

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def read(self, size: int = -1) -> bytes:
        stop = self.size if size is None or size < 0 else min(self._position + size, self.size)
        content = self._bytes(self._position, stop) if stop > self._position else b""
        self._position += len(content)
        return content

    def readinto(self, buffer: memoryview) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self._session.close()
        super().close()

    def _bytes(self, start: int, stop: int) -> bytes:
        """The bytes from ``start`` to ``stop``; blocks that are not at hand come in one request."""
        numbers = range(start // BLOCK_BYTES, (stop - 1) // BLOCK_BYTES + 1)
        missing = [number for number in numbers if number not in self._blocks]
        blocks = {number: self._blocks[number] for number in numbers if number in self._blocks}
        if missing:
            first = missing[0] * BLOCK_BYTES
            content = self._request(first, min((missing[-1] + 1) * BLOCK_BYTES, self.size))
            for number in range(missing[0], missing[-1] + 1):
                at = number * BLOCK_BYTES - first
                blocks[number] = content[at : at + BLOCK_BYTES]
        for number in numbers:
            self._blocks[number] = blocks[number]
            self._blocks.move_to_end(number)
        while len(self._blocks) > CACHED_BLOCKS:
            self._blocks.popitem(last=False)
        whole = b"".join(blocks[number] for number in numbers)
        at = start - numbers[0] * BLOCK_BYTES
        return whole[at : at + stop - start]

    def _request(self, start: int, stop: int) -> bytes:
        headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        reason = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(FIRST_DELAY * 2 ** (attempt - 1))
            try:
                answer = self._session.get(self.name, headers=headers, timeout=TIMEOUT)
            except requests.RequestException as error:
                reason = type(error).__name__
                continue
            self.received += len(answer.content)
            if answer.status_code >= 500 or answer.status_code == 429:
                reason = f"HTTP {answer.status_code}"
                continue
            self._check(answer, start)
            if len(answer.content) == min(stop, self.size) - start:
                return answer.content
            reason = f"{len(answer.content)} bytes"
        raise InputError(
            f"{self.name}: expected bytes {start} to {stop - 1}, found {reason}; try again, or "
            "download the file (make data)"
        )

    def _check(self, answer: requests.Response, start: int) -> None:
        """Refuse answers that are not the range, and note size and version of the file."""
        content_range = answer.headers.get("Content-Range", "")
        total = content_range.rpartition("/")[2]
        is_range = content_range.startswith(f"bytes {start}-") and total.isdigit()
        if answer.status_code != 206 or not is_range:
            raise InputError(
                f"{self.name}: expected a range of bytes, found HTTP {answer.status_code} "
                f"{answer.reason}; download the whole file (make data)"
            )
        version = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        if self.version is not None and version != self.version:
            raise InputError(
                f"{self.name}: expected one version while reading, found another; try again"
            )
        self.version, self.size = version, int(total)
