"""Writing without half-written files, and content hashes that are computed once."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from e2e_utils.errors import InputError
from e2e_utils.paths import DATA_FILES

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def reporting_full_disk(path: str | Path) -> Iterator[None]:
    """Turn "no space left" while ``path`` is written into an ``InputError``."""
    try:
        yield
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in FULL_DISK
        # Libraries written in C, C++ or Rust raise their own types with the system's words.
        if not full and "No space left on device" not in str(error):
            raise
        raise InputError(
            f"{Path(path).name}: expected disk space to write it, found a full disk; free some "
            "space and run again"
        ) from error


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of ``path`` (file or folder); move it into place on success.

    On an exception the temporary file or folder is removed and ``path`` is left as it was.
    Raises InputError if the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    remove(temporary)
    try:
        with reporting_full_disk(path):
            yield temporary
            if temporary.is_dir():
                remove(path)  # os.replace cannot put a folder over a filled one
            os.replace(temporary, path)
    finally:
        remove(temporary)


def check_free(needed: int, what: str, folder: Path) -> None:
    """Raise InputError if ``what`` needs more bytes than are free on the disk of ``folder``."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{what}: expected {readable_size(needed)} of free disk space, found "
            f"{readable_size(free)}; free some, or set E2E_DATA_DIR to a folder on a larger disk"
        )


def readable_size(size: int | None) -> str:
    """Bytes in kB, MB or GB (powers of 1000); None is unknown."""
    if size is None:
        return "unknown"
    unit, factor = next(((u, f) for u, f in (("GB", 1e9), ("MB", 1e6)) if size >= f), ("kB", 1e3))
    return f"{size / factor:.2f} {unit}"


def remove(path: Path) -> None:
    """Delete a file or a folder if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in one move: readers see the old content or all of the new."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: object) -> None:
    """Write indented JSON in one move."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def with_part(text: str, part: str, content: str, name: str) -> str:
    """``text`` with ``content`` between ``<!-- part:begin -->`` and ``<!-- part:end -->``.

    Raises InputError naming the file where the two markers are not in it.
    """
    begin, end = f"<!-- {part}:begin -->", f"<!-- {part}:end -->"
    head, found, rest = text.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise InputError(
            f"{name}: expected the markers {begin} and {end}, found none; put both into it"
        )
    return f"{head}{begin}\n{content}\n{end}{tail}"


def sha256(path: str | Path) -> str:
    """Hex SHA-256 of a file; for files below ``DATA_FILES`` remembered by size and time."""
    path = Path(path).resolve()
    memory_file = DATA_FILES / "sha256.json"
    remembered = path.is_relative_to(DATA_FILES.resolve())
    stat = path.stat()
    state = [stat.st_size, stat.st_mtime_ns]
    if remembered:
        memory = json.loads(memory_file.read_text()) if memory_file.exists() else {}
        entry = memory.get(path.name, {})
        if entry.get("state") == state:
            return entry["sha256"]
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if remembered:
        memory[path.name] = {"state": state, "sha256": digest}
        write_json(memory_file, memory)
    return digest
