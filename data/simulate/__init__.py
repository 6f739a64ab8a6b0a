"""Stand-in events from physics, for when the official files are not on the disk.

numba's cache does not notice a change in a function that a cached one calls, so that every version
of the sources compiles into its own folder.
"""

import hashlib
from pathlib import Path

import numba

from e2e_utils.kernels import writable_folder
from e2e_utils.paths import CACHE

SOURCES = Path(__file__).resolve().parent
# The modules that follow an electron or photon through the detector.
DETECTOR = (
    "barrel.py",
    "detector.py",
    "ecal_pulse.py",
    "ecal_readout.py",
    "ecal_showers.py",
    "tracker.py",
)


def sources_hash(*names: str) -> str:
    """16 hexadecimal digits that identify the named source files of this folder (all: no name)."""
    files = [SOURCES / name for name in names] or sorted(SOURCES.glob("*.py"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


if not numba.config.CACHE_DIR:
    numba.config.CACHE_DIR = str(writable_folder(CACHE / "numba" / sources_hash()))
