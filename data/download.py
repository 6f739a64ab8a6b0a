"""Fetch official files: ``python -m data.download task2h_graph_jets`` (or dataset, file, all).

A download goes into ``<file>.part``, resumes from there after any interruption, and is moved into
place only after every check: size, format at both ends, hash. No checksum is published for most
files, so the first one seen is recorded in ``catalog.lock.json``; content that differs later is
refused, not swapped in.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, TypedDict
from urllib.parse import urlsplit

from data.catalog import OfficialFile, select
from data.disk_space import check_free, readable_size
from data.file_defects import content_defect, hash_defect, lock_defect, size_defect
from data.part_file import empty, keep_others_out, part_path, validators_path
from data.transfer import ACCEPT, Patience, UnreachableError, by_hand, receive
from e2e_utils import paths
from e2e_utils.errors import InputError, command_line
from e2e_utils.files import remove, sha256, write_json

LOCK_FILE = Path(__file__).with_name("catalog.lock.json")
PATIENCE = Patience()


class Locked(TypedDict):
    """What the first complete download of a file looked like."""

    bytes: int
    sha256: str


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
            readable_size(_expected_bytes(f)),
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
    patience: Patience = PATIENCE,
) -> bool:
    """Put one official file into place; returns whether it had to be downloaded.

    Raises InputError when it cannot be had or is not what was expected; whatever lay in its
    place before stays there then.
    """
    path = paths.OFFICIAL / file["name"]
    locked = None if accept_changed else read_lock().get(file["name"])
    recorded = locked["sha256"] if locked else None
    sizes = [locked["bytes"]] if locked else [] if accept_changed else file["bytes"]
    if path.exists() and not refresh:
        size = path.stat().st_size
        broken = content_defect(path, file) or hash_defect(path, file)
        changed = size_defect(size, sizes) or lock_defect(sha256(path), recorded)
        if not broken and not changed:
            _record(file, size, sha256(path))
            return False
        hint = "" if broken else " (--accept-changed keeps it as it is)"
        print(f"{file['name']}: {broken or changed}; downloading it again{hint}")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_path(path)
    with part.open("ab") as stream:
        keep_others_out(stream, file)
        try:
            digest = _receive_checked(file, stream, sizes, recorded, patience)
            os.replace(part, path)
        finally:
            if part.exists() and part.stat().st_size == 0:
                remove(part)
            if not part.exists():
                remove(validators_path(part))
    _record(file, path.stat().st_size, digest)
    return True


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


def _receive_checked(
    file: OfficialFile,
    stream: BinaryIO,
    sizes: list[int],
    recorded: str | None,
    patience: Patience,
) -> str:
    """Fill the part file and check it; returns its SHA-256. One that fails is emptied."""
    part = Path(stream.name)
    for _ in range(2):
        in_one_piece = receive(file, stream, sizes, patience)
        with part.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        broken = content_defect(part, file) or hash_defect(part, file)
        changed = size_defect(part.stat().st_size, sizes) or lock_defect(digest, recorded)
        if not broken and not changed:
            return digest
        empty(stream)
        if in_one_piece:
            break
        # The pieces may be of different versions: once more, from the first byte on.
    if broken:
        raise InputError(f"{file['name']}: {broken}; {by_hand(file)}")
    raise InputError(f"{file['name']}: {changed}; {ACCEPT}")


# The lock file ------------------------------------------------------------------------------------


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


def _record(file: OfficialFile, size: int, digest: str) -> None:
    """Note what was received in the lock file, unless the catalog itself vouches for it."""
    if "sha256" in file or "md5" in file:
        return
    entries = read_lock()
    entry = Locked(bytes=size, sha256=digest)
    if entries.get(file["name"]) != entry:
        write_json(LOCK_FILE, dict(sorted((entries | {file["name"]: entry}).items())))


# Sizes and what is on disk ------------------------------------------------------------------------


def _check_disk_space(files: list[OfficialFile], refresh: bool) -> None:
    """Before anything is requested: room for all that is missing, as far as sizes are known."""
    needed = 0
    for file in files:
        path = paths.OFFICIAL / file["name"]
        part = part_path(path)
        if refresh or not path.exists():
            received = part.stat().st_size if part.exists() else 0
            needed += max(0, (_expected_bytes(file) or 0) - received)
    check_free(needed, files[0]["name"] if len(files) == 1 else f"{len(files)} files")


def _expected_bytes(file: OfficialFile) -> int | None:
    return max(file["bytes"], default=file.get("approximate_bytes"))


def _state(file: OfficialFile) -> str:
    path = paths.OFFICIAL / file["name"]
    part = part_path(path)
    if path.exists():
        return "on disk"
    return f"part of {readable_size(part.stat().st_size)}" if part.exists() else "-"


if __name__ == "__main__":
    main()
