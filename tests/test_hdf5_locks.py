"""HDF5 on file systems without ``flock`` (DVS, some mounts of Lustre)."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from data.loaders import load_electron_photon
from e2e_utils import paths

NO_LOCKS = """
#include <errno.h>
int flock(int file, int operation) { errno = ENOLCK; return -1; }
"""
PROGRAM = """
import sys
from data.readers.hdf5 import open_hdf5
import h5py
with open_hdf5(sys.argv[1]) as file:
    print(file["y"][:].tolist())
with h5py.File(sys.argv[2], "w") as file:  # as the simulations write, and see what is there
    file["y"] = [2.0]
with h5py.File(sys.argv[2]) as file:
    print(file["y"][:].tolist())
"""


def test_files_are_read_and_written_where_flock_fails(tmp_path: Path, write_events) -> None:
    compiler = shutil.which("gcc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("needs Linux and gcc")
    (tmp_path / "locks.c").write_text(NO_LOCKS)
    library = tmp_path / "locks.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, tmp_path / "locks.c"], check=True)
    environment = {k: v for k, v in os.environ.items() if k != "HDF5_USE_FILE_LOCKING"}
    environment["LD_PRELOAD"] = str(library)

    def run(program: str, *arguments: object) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", program, *map(str, arguments)]
        return subprocess.run(
            command, env=environment, cwd=paths.ROOT, capture_output=True, text=True
        )

    path = write_events("a.hdf5", [0, 1])
    locked = run("import sys, h5py; h5py.File(sys.argv[1])", path)
    assert "unable to lock file" in locked.stderr  # so the library does what it is for
    done = run(PROGRAM, path, tmp_path / "b.hdf5")
    assert done.stdout == "[0, 1]\n[2.0]\n", done.stderr


def test_files_are_read_without_asking_for_a_lock(data_folder, write_events, monkeypatch) -> None:
    path, original = write_events("a.hdf5", [0, 1]), h5py.File

    def without_locks(name: object, mode: str = "r", locking: bool | None = None) -> h5py.File:
        if locking is not False:
            raise OSError(
                37, "unable to lock file, errno = 37, error message = 'No locks available'"
            )
        return original(name, mode, locking=locking)

    monkeypatch.setattr(h5py, "File", without_locks)
    np.testing.assert_array_equal(load_electron_photon(path=path).y, [0, 1])
