"""The part file of a download: ``<file>.part``, and in ``<file>.part.json`` whose version it is.

Functions take it as the stream that appends to it, opened by the caller.
"""

import errno
import fcntl
import json
import os
from pathlib import Path
from typing import BinaryIO

from data.catalog import OfficialFile
from e2e_utils.errors import InputError
from e2e_utils.files import remove


def part_path(path: Path) -> Path:
    """Where the bytes of ``path`` are gathered until it is complete."""
    return path.with_name(f"{path.name}.part")


def validators_path(part: Path) -> Path:
    """Where the server's validators of a part file lie."""
    return part.with_name(f"{part.name}.json")


def keep_others_out(stream: BinaryIO, file: OfficialFile) -> None:
    """Raise InputError if another process is filling the part file: the two would mix it."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(
            f"{file['name']}: expected to be alone, found another process downloading it; "
            "wait for that one"
        ) from error


def part_size(stream: BinaryIO) -> int:
    """Bytes received so far."""
    return os.fstat(stream.fileno()).st_size


def append(stream: BinaryIO, chunk: bytes, file: OfficialFile) -> None:
    """Write at once, so that an interruption loses none of it; InputError on a full disk."""
    try:
        stream.write(chunk)
        stream.flush()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(
            f"{file['name']}: expected disk space for it, found a full disk after "
            f"{part_size(stream):,} bytes; free some, the same command resumes"
        ) from error


def empty(stream: BinaryIO) -> None:
    """Forget what the part file open as ``stream`` holds, and whose version it is."""
    stream.truncate(0)
    remove(validators_path(Path(stream.name)))


def read_validators(file: OfficialFile, stream: BinaryIO) -> dict:
    """Validators of the part received; a part without them, or of another URL, is emptied."""
    path = validators_path(Path(stream.name))
    try:
        validators = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        validators = {}
    if validators.get("url") != file["url"]:
        empty(stream)
        return {}
    return validators
