"""Compiled loops, cached on disk where a folder for that can be had."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from numba import njit


def kernel(function: Callable) -> Callable:
    """Compile with numba at the first call; the result is cached beside the source or at home.

    A read-only installation without a usable home has no such place, which numba refuses: there
    every process compiles anew.
    """
    try:
        return njit(cache=True)(function)
    except RuntimeError:  # "no locator available"
        return njit(function)


def writable_folder(folder: Path) -> Path:
    """``folder``, or a temporary one of this process where ``folder`` cannot be written or made."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if existing.is_dir() and os.access(existing, os.W_OK):
        return folder
    temporary = Path(tempfile.mkdtemp(prefix="numba-"))
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    return temporary
