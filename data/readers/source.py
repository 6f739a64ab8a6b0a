"""What the readers take: a path, or any seekable binary file."""

from pathlib import Path
from typing import BinaryIO

from e2e_utils.errors import InputError

FETCH_AGAIN = "get the file again (make data) or give another one"

Source = str | Path | BinaryIO


def name_of(source: Source) -> str:
    """What error messages call a file."""
    return str(source if isinstance(source, str | Path) else getattr(source, "name", "the file"))


def check_present(source: Source, kind: str) -> None:
    """Raise InputError where a path names no file, or an empty one; ``kind``: what is expected."""
    if isinstance(source, str | Path):
        if not Path(source).is_file():
            raise InputError(f"{source}: expected {kind}, found none; check the path")
        if Path(source).stat().st_size == 0:
            raise InputError(f"{source}: expected {kind}, found an empty file; {FETCH_AGAIN}")
