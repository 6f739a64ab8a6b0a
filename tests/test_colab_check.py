"""`make colab-check` without Colab's packages: the copy of the working tree, the three runs."""

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from e2e_utils.errors import InputError
from tools import colab_check

COUNT = """
from IPython.display import display
count = globals().get("count", 0) + 1
print("run", count)
place = display("", display_id="place")
"""
UPDATE = "display(str(count), display_id='place', update=True)"


def test_the_copy_holds_the_files_as_they_are_now(tmp_path: Path, monkeypatch) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    subprocess.run(["git", "init", "-q", str(tree)], check=True)
    files = {".gitignore": "ignored\n", "new.py": "edited", "ignored": "large"}
    for name, text in files.items():
        (tree / name).write_text(text)
    monkeypatch.setattr(colab_check, "ROOT", tree)
    address = colab_check.copy_of_the_working_tree(tmp_path / "copy")
    subprocess.run(["git", "clone", "-q", "--depth=1", address, tmp_path / "clone"], check=True)
    assert {path.name for path in (tmp_path / "clone").iterdir()} == {
        ".git",
        ".gitignore",
        "new.py",
    }
    status = ["git", "-C", str(tree), "status", "--porcelain"]
    assert "?? new.py" in subprocess.run(status, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--python", "nosuchpython"], "nosuchpython: expected a program"),
        (["task_of_nobody"], "task_of_nobody: expected a task folder"),
    ],
)
def test_wrong_arguments_are_found_before_anything_is_installed(
    tmp_path: Path, capsys, arguments, found
) -> None:
    folders = ["--environment", str(tmp_path / "env"), "--folder", str(tmp_path / "check")]
    with pytest.raises(SystemExit) as stopped:
        colab_check.main([*arguments, *folders])
    assert stopped.value.code == InputError.exit_code
    assert found in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_another_interpreter_gets_an_environment_of_its_own(tmp_path: Path, monkeypatch) -> None:
    made = []

    def check(command: list[str]) -> str:
        if "-c" in command:
            return command[0].removeprefix("python")
        made.extend(command[:1] if "venv" in command else [])
        return "[]"

    monkeypatch.setattr(colab_check, "_check", check)
    monkeypatch.setattr(colab_check, "remove", lambda folder: folder.mkdir(exist_ok=True))
    for python in ("python3.13", "python3.13", "python3.12"):
        colab_check.environment(tmp_path / "env", python)
    assert made == ["python3.13", "python3.12"]


@pytest.mark.parametrize(
    ("last", "printed", "error"),
    [("", ["run 1", "run 2", "run 1"], None), ("assert count < 2", ["run 1", "run 2"], "assert")],
)
def test_a_notebook_runs_again_and_after_a_restart(tmp_path: Path, last, printed, error) -> None:
    nb = new_notebook(cells=[new_code_cell(source) for source in (COUNT, UPDATE, last)])
    nbformat.write(nb, tmp_path / "a.ipynb")
    result = subprocess.run(
        [sys.executable, str(colab_check.SESSION), str(tmp_path / "a.ipynb")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    reports = [json.loads(line) for line in result.stdout.splitlines()]
    assert [report["printed"] for report in reports] == printed
    assert [report["run"] for report in reports] == ["first", "again", "restart"][: len(printed)]
    assert result.returncode == bool(error)
    assert (error or "") in reports[-1]["error"]
    assert not any(report["error"] for report in reports[:-1])


def test_the_session_knows_nothing_of_the_callers_shell(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PROFILE", "full")
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror/simple")
    variables = colab_check.colab_home(tmp_path / "home")
    assert variables["PIP_INDEX_URL"] == "https://mirror/simple"
    assert "PROFILE" not in variables
    assert variables["HOME"] == str(tmp_path / "home")
