"""A file behind HTTP, fetched in ranges of bytes: what was received once is not asked for again.

The bytes lie in a part file, each at its place, so that a range leaves a hole before it. Beside it,
``<part>.json`` says which ranges are there and of which version of the file (ETag, date, size): a
download resumes after any interruption, and two versions are never mixed.
"""

import contextlib
import io
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from tqdm import tqdm

from e2e_utils.errors import InputError
from e2e_utils.files import check_free, remove, reporting_full_disk, write_json

CHUNK_BYTES = 64 * 1024  # at most this much is received twice after a dropped connection
SAVED_BYTES = 32 << 20  # and this much after a killed process
BLOCK_BYTES = 1 << 20  # reads ask for whole blocks, so that small neighbouring ones are one request
BUSY = (408, 425, 429, 500, 502, 503, 504)
LOCAL = ("localhost", "127.0.0.1", "::1")
T = TypeVar("T")
HTML = ("text/html", "application/xhtml")
BROKEN = (requests.RequestException, urllib3.exceptions.HTTPError, ConnectionError)


@dataclass(frozen=True)
class Patience:
    """How long a server is waited for: times in seconds; attempts in a row without a new byte.

    ``first_attempts`` of them are made where the host never answered: most likely there is no
    way to it, and simulated events need not wait for that to be certain.
    """

    connect_timeout: float = 15
    stall_timeout: float = 60
    attempts: int = 6
    first_delay: float = 1
    longest_delay: float = 60
    first_attempts: int = 3


PATIENCE = Patience()
SILENT: set[str] = set()  # hosts that never answered: not waited for again by this process


class UnreachableError(InputError):
    """No attempt got any answer from the host."""


class ChangedError(InputError):
    """The server has another version than the one received, which was forgotten: begin again."""


class Session(requests.Session):
    """Waits for busy servers (Retry-After, else longer and longer); plain http only to itself."""

    def __init__(self, patience: Patience) -> None:
        super().__init__()

        class Retry(urllib3.Retry):
            def get_retry_after(self, response: object) -> float | None:
                return min(super().get_retry_after(response) or 0, patience.longest_delay) or None

        retry = Retry(
            total=patience.attempts - 1,
            connect=0,  # `fetch` tries these again
            read=0,
            status_forcelist=BUSY,
            backoff_factor=patience.first_delay / 2,
            backoff_max=patience.longest_delay,
            raise_on_status=False,
        )
        self.mount("https://", HTTPAdapter(max_retries=retry))
        self.mount("http://", HTTPAdapter(max_retries=retry))

    def get_adapter(self, url: str) -> HTTPAdapter:
        """Called for every request, redirected ones too."""
        if not is_safe(url):
            raise InputError(f"{url}: expected an https address, found plain http; use https")
        return super().get_adapter(url)


def is_remote(source: object) -> bool:
    """Whether a string names a file behind HTTP."""
    return isinstance(source, str) and source.startswith(("http://", "https://"))


def is_safe(url: str) -> bool:
    """Whether nobody on the way can change what comes: https, or this machine."""
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOCAL)


class RemoteFile(io.RawIOBase):
    """Seekable and read-only; ``received`` counts the bytes that came, ``part`` holds them.

    ``advice`` ends error messages. ``inspect`` gets the first bytes, if they are new, and the size,
    if the server tells it, and may raise InputError before anything is written; more bytes than
    ``limit`` are not taken. ``resumed``: not all bytes are of one answer.

    Raises InputError where the server cannot be reached (UnreachableError), sends something else,
    or has changed the file (ChangedError).
    """

    def __init__(
        self,
        url: str,
        part: Path,
        name: str = "",
        advice: str = "try again, or download it by other means and give its path",
        inspect: Callable[[bytes, int | None], None] = lambda start, size: None,
        limit: float = math.inf,
    ) -> None:
        super().__init__()
        self.url, self.part, self.name, self.advice = url, part, name or url, advice
        self.inspect, self.limit, self.patience = inspect, limit, PATIENCE
        self.received, self._answered, self._position = 0, False, 0
        self._journal = part.with_name(f"{part.name}.json")
        self._session = Session(self.patience)
        self._version, self._ranges = self._read_journal()
        self.resumed = bool(self._ranges)
        part.parent.mkdir(parents=True, exist_ok=True)
        self._file = part.open("r+b" if self.resumed else "w+b")

    def __str__(self) -> str:
        return self.name

    @property
    def size(self) -> int:
        """Bytes of the whole file; asks the server, and fetches all where it does not tell."""
        if self._version.get("bytes") is None:
            self.fetch(0, BLOCK_BYTES)
        if self._version.get("bytes") is None:
            self.fetch()
        return self._version["bytes"]

    def fetch(self, start: int = 0, stop: float = math.inf) -> None:
        """Receive what is missing of a range of bytes, else of the file; resumes when cut off."""
        failures, patience = 0, self.patience
        while gap := next(self._gaps(start, min(stop, self._version.get("bytes") or stop)), None):
            before = self.received
            try:
                self._receive(*gap, restart=start == 0)
            except BROKEN as error:
                failures = 1 if self.received > before else failures + 1
                reached, host = self._answered or self.resumed, urlsplit(self.url).netloc
                attempts = patience.attempts if reached else patience.first_attempts
                if failures >= (attempts if reached or host not in SILENT else 1):
                    if not reached:
                        SILENT.add(host)
                    raise (InputError if reached else UnreachableError)(
                        f"{self.name}: expected a download from {self.url}, found "
                        f"{_reason(error, patience)}; {self.advice}"
                        + ("; the same command resumes" if self._ranges else "")
                    ) from error
                time.sleep(min(patience.first_delay * 2 ** (failures - 1), patience.longest_delay))
                self.resumed |= bool(self._ranges)

    def forget(self) -> None:
        """Drop every byte received."""
        self._file.truncate(0)
        remove(self._journal)
        self._version, self._ranges, self.resumed = {}, [], False

    def move_to(self, path: Path) -> None:
        """Put the part file, complete by now, into its place."""
        self._file.close()
        os.replace(self.part, path)
        remove(self._journal)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position}.get(whence)
        self._position = max(0, (self.size if start is None else start) + offset)
        return self._position

    def readinto(self, buffer: memoryview) -> int:
        start, stop = self._position, min(self._position + len(buffer), self.size)
        if start >= stop:
            return 0
        if any(self._gaps(start, stop)):
            first = start // BLOCK_BYTES * BLOCK_BYTES
            self.fetch(first, -(-stop // BLOCK_BYTES) * BLOCK_BYTES)
        self._position = stop
        self._file.seek(start)
        return self._file.readinto(memoryview(buffer)[: stop - start])

    def close(self) -> None:
        if not self.closed:
            self._session.close()
            with contextlib.suppress(OSError):  # of a full disk, which has been reported
                self._file.close()
            if not self._ranges:
                remove(self.part)
        super().close()

    def _receive(self, start: int, stop: float, restart: bool) -> None:
        """One request for a range that is missing; what it brings is kept whatever happens."""
        headers = {"Accept-Encoding": "identity"}  # as it lies there: csv.gz is not unpacked
        if (start, stop) != (0, math.inf):
            headers["Range"] = f"bytes={start}-{'' if stop == math.inf else stop - 1}"
            if version := _strong_etag(self._version) or self._version.get("modified"):
                headers["If-Range"] = version
        timeout = self.patience.connect_timeout, self.patience.stall_timeout
        with self._session.get(self.url, headers=headers, stream=True, timeout=timeout) as answer:
            self._answered = True
            if answer.status_code == 416:  # the file has become shorter
                raise self._changed()
            found = describe(answer, self.name, self.advice)
            is_range = answer.status_code == 206
            body = answer.raw.stream(CHUNK_BYTES, decode_content=False)
            head = b"" if is_range and start else next(body, b"")
            self.inspect(head, found["bytes"])
            if not _same(found, self._version) or (is_range and found["first"] != start):
                raise self._changed()
            if not is_range and start and not restart:
                raise self._refusal("a range of bytes", f"HTTP {answer.status_code}")
            if not is_range and start:
                self.forget()
            self._version = found
            self._store(found["first"], min(stop, found["bytes"] or stop), head, body)

    def _store(self, start: int, stop: float, head: bytes, body: Iterator[bytes]) -> None:
        """Write the body of an answer to its place, as far as ``stop`` (infinity: its end)."""
        bar = {"desc": Path(self.name).name, "unit": "B", "unit_scale": True, "initial": start}
        if stop < math.inf:
            bar["total"] = stop
            check_free(stop - start, self.name, self.part.parent)
        if stop - start <= BLOCK_BYTES:
            bar["disable"] = True
        at = saved = start
        self._file.seek(start)
        with reporting_full_disk(self.part), tqdm(**{"disable": None, **bar}) as progress:
            try:
                for chunk in itertools.chain([head], body):
                    chunk = chunk[: stop - at] if stop < math.inf else chunk
                    if at + len(chunk) > self.limit:
                        raise self._refusal(f"at most {self.limit:,} bytes", "more")
                    self._file.write(chunk)
                    at, self.received = at + len(chunk), self.received + len(chunk)
                    progress.update(len(chunk))
                    if at - saved >= SAVED_BYTES:
                        self._save(saved, at)
                        saved = at
                    if at >= stop:
                        break
            finally:
                self._save(saved, at)
        if stop == math.inf:  # the server did not tell: the end of its answer is the file's
            self._version["bytes"] = at
        elif at < stop:
            raise ConnectionError(f"a connection closed after {at:,} of {stop:,} bytes")

    def _changed(self) -> ChangedError:
        self.forget()
        return ChangedError(
            f"{self.name}: expected the same file at {self.url} as before, found another version; "
            "run it again"
        )

    def _refusal(self, expected: str, found: str) -> InputError:
        return InputError(f"{self.name}: expected {expected}, found {found}; {self.advice}")

    def _gaps(self, start: int, stop: float) -> Iterator[tuple[int, float]]:
        """The ranges between two places that are not at hand."""
        for first, end in self._ranges:
            if start < min(first, stop):
                yield start, min(first, stop)
            start = max(start, end)
        if start < stop:
            yield start, stop

    def _save(self, start: int, stop: int) -> None:
        """Note a range as received, once its bytes are on the disk."""
        if stop == start:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        merged: list[list[int]] = []
        for first, end in sorted([*self._ranges, [start, stop]]):
            if merged and first <= merged[-1][1]:
                merged[-1][1] = max(end, merged[-1][1])
            else:
                merged.append([first, end])
        self._ranges = merged
        write_json(self._journal, {**self._version, "url": self.url, "ranges": merged})

    def _read_journal(self) -> tuple[dict, list[list[int]]]:
        """Version and ranges of the part file; none without a journal, or of another URL."""
        try:
            version = json.loads(self._journal.read_text(encoding="utf-8"))
            ranges = version.pop("ranges")
            if version.pop("url") == self.url and ranges[-1][1] <= self.part.stat().st_size:
                return version, ranges
        except (OSError, ValueError, LookupError, AttributeError, TypeError):
            pass
        return {}, []


def once_more(action: Callable[[], T]) -> T:
    """What ``action`` returns, begun again where the file changes on the server meanwhile."""
    try:
        return action()
    except ChangedError:
        return action()


def version_of(url: str) -> dict:
    """ETag, date and size of a file, for the price of one byte; InputError where there is none."""
    timeout = PATIENCE.connect_timeout, PATIENCE.stall_timeout
    try:
        with Session(PATIENCE) as session:
            answer = session.get(url, headers={"Range": "bytes=0-0"}, stream=True, timeout=timeout)
            return describe(answer, url, "check the address")
    except requests.RequestException as error:
        raise UnreachableError(
            f"{url}: expected an answer, found {_reason(error, PATIENCE)}; check the address"
        ) from error


def describe(answer: requests.Response, name: str, advice: str) -> dict:
    """What an answer says of a file: etag, modified, bytes, and the first byte that it brings.

    Raises InputError for error statuses, and for pages that say 200 but are meant for a person.
    """
    headers, reason = answer.headers, ""
    if answer.status_code not in (200, 206):
        reason = f"HTTP {answer.status_code} {answer.reason}"
    elif headers.get("Content-Type", "").startswith(HTML):
        reason = "an HTML page (an error or a login)"
    if reason:
        raise InputError(f"{name}: expected a file at {answer.url}, found {reason}; {advice}")
    first, total = "0", headers.get("Content-Length", "")
    if answer.status_code == 206:
        first, _, total = headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        first = first.partition("-")[0]
    return {
        "etag": headers.get("ETag"),
        "modified": headers.get("Last-Modified"),
        "bytes": int(total) if total.isdigit() else None,
        "first": int(first) if first.isdigit() else None,
    }


def _same(found: dict, known: dict) -> bool:
    """No validator that both have differs."""
    names = ("etag", "modified", "bytes")
    return not any(known.get(k) and found[k] and known[k] != found[k] for k in names)


def _strong_etag(version: dict) -> str | None:
    """The ETag if it vouches for every byte: a weak one (W/...) must not be used with ranges."""
    etag = version.get("etag")
    return None if etag is None or etag.startswith("W/") else etag


def _reason(error: BaseException, patience: Patience) -> str:
    """The innermost cause of a failed request, in one line without object addresses."""
    if isinstance(error, requests.ConnectTimeout):
        return f"no connection within {patience.connect_timeout:g} s"
    while True:
        if isinstance(error, urllib3.exceptions.ReadTimeoutError | requests.ReadTimeout):
            return f"no data for {patience.stall_timeout:g} s"
        causes = [getattr(error, "reason", None), *error.args]
        cause = next((a for a in causes if isinstance(a, Exception)), None)
        if cause is None:
            text = str(error).rsplit(": ", 1)[-1]
            return " ".join(text.split()) or type(error).__name__
        error = cause
