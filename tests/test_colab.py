"""The first cell of the notebooks on Colab: a bare Python with torch, and the notebook alone.

The imitation holds the packages that Colab brings, in the versions of this environment and not in
those of Colab; a machine of Colab is not part of the tests.
"""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from e2e_utils.paths import ROOT, list_tasks

REQUIREMENTS = ROOT / "requirements-colab.txt"
# What requirements-colab.txt leaves to Colab; what these need comes with them.
BROUGHT = (
    "torch", "torchvision", "numpy", "scipy", "scikit-learn", "matplotlib", "h5py", "pandas",
    "pyarrow", "numba", "ipykernel", "nbformat", "jsonschema", "requests", "threadpoolctl", "tqdm",
)  # fmt: skip
RECORDER = "import json, sys\nprint('pip', json.dumps(sys.argv[1:]))\n"
SESSION = """
import json, sys, types
sys.modules["google"] = types.ModuleType("google")
sys.modules["google.colab"] = types.ModuleType("google.colab")
sys.path.append({packages!r})  # what pip would have installed; pip itself does not see it
cell = {cell!r}
exec(cell)
import torch
print("session", json.dumps([os.getcwd(), sys.modules["e2e_utils"].__file__, torch.__file__]))
"""


def first_cell(task: str) -> str:
    """The bootstrap cell: all of the first code cell of a percent script."""
    source = (ROOT / task / f"{task}.py").read_text(encoding="utf-8")
    return re.split(r"\n# %%.*\n", source, maxsplit=2)[2].split("\n# %%")[0]


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def with_dependencies(names: tuple[str, ...]) -> dict[str, importlib.metadata.Distribution]:
    """Installed distributions and all that they require."""
    found, waiting = {}, list(names)
    while waiting:
        name = normalised(waiting.pop())
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # of another platform
        required = [text for text in found[name].requires or () if "extra ==" not in text]
        waiting += [re.match(r"[\w.-]+", text)[0] for text in required]
    return found


def pins() -> set[str]:
    lines = REQUIREMENTS.read_text().splitlines()
    return {normalised(line.split("==")[0]) for line in lines if line and line[0] != "#"}


@pytest.fixture(scope="module")
def colab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Interpreter of a virtual environment that sees what Colab brings, and no pip of its own."""
    folder = tmp_path_factory.mktemp("colab")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    brought = folder / "brought"
    brought.mkdir()
    for distribution in with_dependencies(BROUGHT).values():
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            target = brought / top
            if not target.exists():
                target.symlink_to(Path(distribution.locate_file(top)).resolve())
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    (site / "brought.pth").write_text(f"{brought}\n")
    return folder / "venv" / "bin" / "python"


def test_all_notebooks_begin_with_the_same_cell() -> None:
    cells = {}
    for task in list_tasks():
        code = first_cell(task).replace(task, "TASK").replace("  # fmt: skip", "")
        cells.setdefault(re.sub(r"\s+|,(?=\s*\))", "", code), []).append(task)
    assert len(cells) == 1, list(cells.values())


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no repository to clone from")
def test_the_first_cell_needs_only_torch_and_the_notebook(colab: Path, tmp_path: Path) -> None:
    (tmp_path / "recorder" / "pip").mkdir(parents=True)
    (tmp_path / "recorder" / "pip" / "__main__.py").write_text(RECORDER)
    content = tmp_path / "content"  # the folder in which Colab starts
    content.mkdir()
    cell = first_cell("common_task1")
    assert 'REPOSITORY = ""' in cell
    cell = cell.replace('REPOSITORY = ""', f"REPOSITORY = {ROOT.as_uri()!r}")
    (content / "session.py").write_text(
        SESSION.format(packages=sysconfig.get_path("purelib"), cell=cell)
    )
    result = subprocess.run(
        [colab, "session.py"],
        cwd=content, env={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path),
                          "PYTHONPATH": str(tmp_path / "recorder")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    lines = dict(line.split(" ", 1) for line in result.stdout.splitlines() if line[:2] in "pi se")
    assert json.loads(lines["pip"]) == ["install", "-qr", "requirements-colab.txt"]
    folder, module, torch = json.loads(lines["session"])
    assert folder == str(content / "e2e")
    assert module == str(content / "e2e" / "e2e_utils" / "__init__.py")
    assert "brought" in torch
    assert "The results of common_task1 appear here" in result.stdout


def test_without_an_address_the_first_cell_says_what_to_do(colab: Path, tmp_path: Path) -> None:
    session = SESSION.format(packages="", cell=first_cell("common_task1"))
    result = subprocess.run(
        [colab, "-c", session], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "AssertionError: enter the address of this repository" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_nothing_that_colab_brings_is_pinned_for_it() -> None:
    assert not pins() & with_dependencies(BROUGHT).keys()


def test_pip_would_install_what_is_missing_and_leave_torch(colab: Path, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}  # no other packages
    pip = [sys.executable, "-m", "pip", "--python", str(colab), "install", "-q", "--dry-run"]
    probe = subprocess.run(
        [*pip, "--no-deps", "safetensors", "--retries", "0", "--timeout", "10"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if probe.returncode:
        pytest.skip(f"no package registry here: {probe.stderr.strip().splitlines()[-1]}")
    report = tmp_path / "report.json"
    result = subprocess.run(
        [*pip, "-r", str(REQUIREMENTS), "--report", str(report)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    installed = {
        normalised(item["metadata"]["name"]) for item in json.loads(report.read_text())["install"]
    }
    assert pins() <= installed
    assert not installed & with_dependencies(BROUGHT).keys()
    assert not [name for name in installed if name.startswith(("nvidia", "triton"))]
