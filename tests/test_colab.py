"""Colab without Colab: the notebooks' first cell, and what the requirements files may name.

The whole of it, with Colab's packages, is `make colab-check`.
"""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from e2e_utils import colab
from e2e_utils.errors import InputError
from e2e_utils.paths import ROOT, list_tasks, script_path
from tools.colab_check import VERSIONS, lone_notebook, normalised

# Modules with another name than their package, and some that come with one of the list.
PACKAGE_OF = {
    "IPython": "ipython", "PIL": "matplotlib", "filelock": "torch", "joblib": "scikit-learn",
    "sklearn": "scikit-learn", "urllib3": "requests",
}  # fmt: skip
SESSION = """
import json, os, sys, types
sys.modules["google"] = types.ModuleType("google")
sys.modules["google.colab"] = types.ModuleType("google.colab")
cell = open({cell!r}).read()
for _ in range({times}):
    exec(cell)
print("root", os.getcwd(), sys.modules["e2e_utils"].__file__)
"""
FAKE_PIP = """
import json, pathlib, sys
log = pathlib.Path({log!r})
log.open("a").write(json.dumps(sys.argv[1:]) + "\\n")
first = log.read_text().count("\\n") == 1
names = ["onnx", "uproot"] if first else []
print(json.dumps({{"install": [{{"metadata": {{"name": n}}, "requested": True}} for n in names]}}))
"""


def first_cell(task: str) -> str:
    """The bootstrap cell: all of the first code cell of a percent script."""
    source = script_path(task).read_text(encoding="utf-8")
    return re.split(r"\n# %%.*\n", source, maxsplit=2)[2].split("\n# %%")[0]


def requirements(name: str) -> dict[str, Requirement]:
    lines = (ROOT / name).read_text().splitlines()
    lines = [line.split(" #")[0] for line in lines if line and line[0] not in "#-"]
    return {normalised(r.name): r for r in map(Requirement, lines)}


@pytest.fixture
def content(tmp_path: Path) -> Path:
    """An empty folder, as a session on Colab begins in."""
    (tmp_path / "content").mkdir()
    return tmp_path / "content"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A small repository with what the first cell uses, where git is installed."""
    source = tmp_path / "repository"
    (source / "e2e_utils").mkdir(parents=True)
    for name in ("__init__.py", "colab.py", "errors.py", "paths.py"):
        (source / "e2e_utils" / name).write_text((ROOT / "e2e_utils" / name).read_text())
    (source / "e2e_utils" / "notebook.py").write_text("def show_results(task): print(task)\n")
    git = ["git", "-C", str(source), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *command], check=True)
    return source


def run_cell(
    folder: Path, repository: str, times: int = 1
) -> tuple[subprocess.CompletedProcess, list[list[str]]]:
    """The first cell in a fresh process in ``folder``, with a fake pip; also pip's arguments."""
    tools = folder.parent / "tools"
    (tools / "pip").mkdir(parents=True, exist_ok=True)
    log, cell = tools / "pip.log", tools / "cell.py"
    (tools / "pip" / "__init__.py").touch()
    (tools / "pip" / "__main__.py").write_text(FAKE_PIP.format(log=str(log)))
    cell.write_text(
        first_cell("common_task1").replace('REPOSITORY = ""', f"REPOSITORY = {repository!r}")
    )
    result = subprocess.run(
        [sys.executable, "-c", SESSION.format(cell=str(cell), times=times)], cwd=folder,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "PYTHONPATH": str(tools)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    calls = log.read_text().splitlines() if log.is_file() else []
    return result, [json.loads(line) for line in calls]


def test_all_notebooks_begin_with_the_same_cell() -> None:
    assert len({first_cell(task).replace(f'"{task}"', "TASK") for task in list_tasks()}) == 1


def test_the_first_cell_fetches_once_and_installs_what_is_missing(
    content: Path, repository: Path
) -> None:
    result, calls = run_cell(content, repository.as_uri(), times=2)
    assert result.returncode == 0, result.stderr
    root = content / "e2e"
    assert result.stdout.splitlines() == [
        "Colab: installed onnx, uproot",
        "common_task1",
        "Colab: nothing to install",
        "common_task1",
        f"root {root} {root / 'e2e_utils' / '__init__.py'}",
    ]
    files = [str(root / name) for name in (colab.NOTEBOOK, colab.SIMULATION)]
    assert calls[0][-4:] == ["-r", files[0], "-r", files[1]]

    (root / "kept").touch()  # a restart: the working directory is that of the beginning
    for name in ("HEAD", "config"):
        (repository / ".git" / name).unlink()  # nothing could be fetched any more
    result, _ = run_cell(content, repository.as_uri())
    assert result.returncode == 0, result.stderr
    assert (root / "kept").is_file()


def test_what_is_wrong_with_the_address_is_said(content: Path) -> None:
    result, calls = run_cell(content, "")
    assert "enter the address of this repository in the form field" in result.stderr
    result, calls = run_cell(content, (content / "nothing").as_uri())
    assert result.returncode == 1
    assert f"AssertionError: {(content / 'nothing').as_uri()} could not be fetched" in result.stderr
    assert not calls
    assert list(content.iterdir()) == []


def pip_that_refuses(*refused: str):
    """In place of ``subprocess.run``: fails where one of the files is named."""

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess:
        if any(name in part for part in command for name in refused):
            return subprocess.CompletedProcess(
                command, 1, "", "ERROR: no wheel\n\n[notice] a new release\n"
            )
        return subprocess.CompletedProcess(command, 0, '{"install": []}', "")

    return run


def test_without_a_simulation_official_data_are_left(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    monkeypatch.setattr(colab.subprocess, "run", pip_that_refuses(colab.SIMULATION))
    colab.install_missing()
    assert 'cannot be simulated here, set DATA_SOURCE = "official"' in capsys.readouterr().out
    monkeypatch.setattr(colab.subprocess, "run", pip_that_refuses(colab.NOTEBOOK))
    with pytest.raises(
        InputError, match=r"requirements-colab\.txt: .* found: ERROR: no wheel; run"
    ):
        colab.install_missing()


def test_elsewhere_nothing_is_installed(monkeypatch, capsys) -> None:
    monkeypatch.setattr(colab.subprocess, "run", pip_that_refuses(""))
    colab.install_missing()
    assert capsys.readouterr().out == ""


def test_the_form_of_a_lone_notebook_is_filled_in(tmp_path: Path) -> None:
    for task in list_tasks():
        path = tmp_path / task / f"{task}.ipynb"
        lone_notebook(task, "file:///somewhere", path)
        cells = json.loads(path.read_text())["cells"]
        code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
        for line in ("REPOSITORY = 'file:///somewhere'", "PROFILE = 'smoke'"):
            assert code.count(f"\n{line}") == 1, task


# Requirements -------------------------------------------------------------------------------------


def imports_of(path: Path) -> set[str]:
    """Packages that a file imports anywhere and that are not the project's own."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    names -= set(sys.stdlib_module_names) | {path.name for path in ROOT.glob("*/")}
    return {normalised(PACKAGE_OF.get(name, name)) for name in names}


def used_by_notebooks() -> list[Path]:
    """Sources that a notebook runs: its own folder's, e2e_utils and data."""
    own = [path for task in list_tasks() for path in (ROOT / task).glob("*.py")]
    shared = [path for name in ("e2e_utils", "data") for path in (ROOT / name).rglob("*.py")]
    return own + shared


def test_notebooks_import_what_colab_has_or_installs() -> None:
    there = {*requirements("tests/colab_versions.txt"), *requirements(colab.NOTEBOOK)}
    simulation = requirements(colab.SIMULATION).keys()
    for path in used_by_notebooks():
        more = simulation if path.parent.name == "simulate" else set()
        assert imports_of(path) <= there | more, path


def test_nothing_is_installed_that_colab_has_or_nobody_imports() -> None:
    named = {*requirements(colab.NOTEBOOK), *requirements(colab.SIMULATION)} - {"dask"}
    assert not named & requirements("tests/colab_versions.txt").keys()
    assert named <= set().union(*map(imports_of, used_by_notebooks()))
    assert str(requirements(colab.SIMULATION)["dask"]) == "dask[distributed]"  # of any release


def test_versions_of_colab_are_exact() -> None:
    for name, requirement in requirements("tests/colab_versions.txt").items():
        assert re.fullmatch(r"==[\w.]+", str(requirement.specifier)), name
    assert VERSIONS == ROOT / "tests" / "colab_versions.txt"


def test_the_full_installation_is_pinned_within_the_bounds_of_colab() -> None:
    full = requirements("requirements.txt")
    for name, requirement in full.items():
        assert re.fullmatch(r"==[\w.]+", str(requirement.specifier)), name
    for name, requirement in requirements(colab.NOTEBOOK).items():
        (pin,) = full[name].specifier
        assert requirement.specifier.contains(pin.version), name


@pytest.mark.parametrize(
    ("machine", "has_pythia"),
    [
        ({"sys_platform": "linux", "platform_machine": "x86_64"}, True),
        ({"sys_platform": "linux", "platform_machine": "aarch64"}, False),
        ({"sys_platform": "darwin", "platform_machine": "x86_64"}, False),
        ({"sys_platform": "darwin", "platform_machine": "arm64",
          "platform_version": "Darwin Kernel Version 23.6.0: xnu-10063"}, False),
        ({"sys_platform": "darwin", "platform_machine": "arm64",
          "platform_version": "Darwin Kernel Version 24.1.0: xnu-11215"}, True),
    ],
)  # fmt: skip
def test_pythia_is_required_where_it_has_a_wheel(machine, has_pythia) -> None:
    lines = (ROOT / colab.SIMULATION).read_text().splitlines()
    markers = [Requirement(line).marker for line in lines if line.startswith("pythia8mc")]
    assert any(marker.evaluate(machine) for marker in markers) == has_pythia
