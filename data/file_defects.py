"""What is wrong with a file: its first bytes, its end, its size or its hash.

Every function returns None for a file without the defect, else "expected ..., found ..." for use
in an error message.
"""

import hashlib
import os
import zipfile
from pathlib import Path

import h5py

from data.catalog import OfficialFile

MAGIC = {
    "hdf5": b"\x89HDF\r\n\x1a\n",
    "parquet": b"PAR1",
    "csv.gz": b"\x1f\x8b",
    "idx.gz": b"\x1f\x8b",
    "root": b"root",
    "wheel": b"PK\x03\x04",
}
HTML_STARTS = (b"<!doctype html", b"<html", b"<head", b"<?xml")


def start_defect(start: bytes, file: OfficialFile) -> str | None:
    """Compare the first bytes of a file, however few, with its format."""
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


def lock_defect(digest: str, recorded: str | None) -> str | None:
    """Compare with the SHA-256 of the first download; no record accepts any."""
    if recorded is None or digest == recorded:
        return None
    return f"expected the recorded content (sha256 {recorded}), found {digest}"


def _ends_complete(path: Path, format: str, start: bytes, end: bytes, size: int) -> bool:
    if format == "hdf5":
        try:
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
