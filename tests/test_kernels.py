"""Compiled loops where nothing can be written: no cache, and the same results."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from e2e_utils import kernels, paths

# Root may write everywhere, so places that cannot even be made stand for those that it may not use.
PROGRAM = """
import numpy as np
try:
    import plain
except RuntimeError as error:
    print("no locator" in str(error))
from e2e_utils import metrics
print(metrics.__file__)
print(metrics.roc_auc(np.array([0, 1, 1]), np.array([0.1, 0.2, 0.3])))
"""
SIMULATION = """
import numba
from pathlib import Path
from data.simulate.tracker import radiation_lengths
radiation_lengths(0.3)
folder = Path(numba.config.CACHE_DIR)
print(any(folder.rglob("*.nbi")), folder.is_relative_to(__import__("tempfile").gettempdir()))
print(folder)
"""


def run(program: str, folder: Path, **variables: object) -> list[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA", "XDG"))}
    environment |= {"HOME": "/dev/null", "PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}
    environment |= {name: str(value) for name, value in variables.items()}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_kernels_run_without_a_place_for_their_cache(tmp_path: Path) -> None:
    copy = tmp_path / "e2e_utils"
    shutil.copytree(
        paths.ROOT / "e2e_utils", copy, ignore=shutil.ignore_patterns("__pycache__", "datasets")
    )
    for folder in (tmp_path, copy):
        (folder / "__pycache__").write_text("not a folder")
    (tmp_path / "plain.py").write_text(
        "from numba import njit\n@njit(cache=True)\ndef f(x):\n    return x\n"
    )
    refused, module, auc = run(PROGRAM, tmp_path)
    assert refused == "True"  # so the place is one where numba finds no cache
    assert module == str(copy / "metrics.py")
    assert auc == "1.0"


def test_every_kernel_of_the_ground_floor_is_compiled_this_way() -> None:
    modules = set((paths.ROOT / "e2e_utils").glob("*.py")) - {Path(kernels.__file__)}
    assert not [module for module in modules if "import njit" in module.read_text()]
    assert sum(module.read_text().count("@kernel\n") for module in modules) >= 5


def test_simulations_compile_into_a_temporary_folder_where_data_cannot_be_written(tmp_path) -> None:
    file = tmp_path / "file"
    file.touch()
    temporary, folder = run(SIMULATION, paths.ROOT, E2E_DATA_DIR=file / "below")
    assert temporary == "True True"
    assert not Path(folder).exists()  # removed with the process


def test_a_folder_that_can_be_made_is_kept_and_not_made_yet(tmp_path: Path) -> None:
    assert kernels.writable_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert list(tmp_path.iterdir()) == []
