"""Writing that reports a full disk as an input error."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from e2e_utils.errors import InputError
from e2e_utils.files import atomic_path

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def reporting_full_disk(path: str | Path) -> Iterator[None]:
    """Turn "no space left" while ``path`` is written into an ``InputError``."""
    try:
        yield
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in FULL_DISK
        # Libraries written in Rust or C++ raise their own types with the system's words.
        if not full and "No space left on device" not in str(error):
            raise
        raise InputError(
            f"{Path(path).name}: expected disk space to write it, found a full disk; free some "
            "space and run again"
        ) from error


@contextmanager
def writing(path: str | Path) -> Iterator[Path]:
    """``atomic_path`` that reports a full disk; nothing half-written stays."""
    with reporting_full_disk(path), atomic_path(path) as temporary:
        yield temporary
