"""Room on the disk for the official files, and how sizes and places are put into words."""

import shutil
from pathlib import Path

from e2e_utils import paths
from e2e_utils.errors import InputError


def check_free(needed: int, what: str) -> None:
    """Raise InputError if ``what`` needs more bytes than are free for the official files."""
    folder = paths.OFFICIAL
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{what}: expected {readable_size(needed)} of free disk space for "
            f"{shown(paths.OFFICIAL)}, found {readable_size(free)}; free some, or set "
            "E2E_DATA_DIR to a folder on a larger disk"
        )


def readable_size(size: int | None) -> str:
    """Bytes in kB, MB or GB (powers of 1000); None is unknown."""
    if size is None:
        return "unknown"
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.2f} {unit}"
    return f"{size / 1e3:.2f} kB"


def shown(path: Path) -> str:
    """The path, relative to the repository where it lies inside."""
    return str(path.relative_to(paths.ROOT) if path.is_relative_to(paths.ROOT) else path)
