"""`make check` finds every way in which a published task can disagree with its sources."""

import json
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from fake_project import TASK, finished_run, make_project

from e2e_utils import paths
from tools import check_notebooks, published_files, staleness
from tools.check_notebooks import generated_problems, machine_paths, task_problems
from tools.publish import publish
from tools.results_table import generated_texts
from tools.staleness import stale_reasons


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_project(tmp_path, monkeypatch)
    finished_run("quick")
    publish(TASK, "quick")
    return tmp_path


def edit_notebook(change: Callable[[nbformat.NotebookNode], object]) -> None:
    path = paths.ROOT / TASK / f"{TASK}.ipynb"
    nb = nbformat.read(path, as_version=4)
    change(nb)
    nbformat.write(nb, path)


def error_output() -> nbformat.NotebookNode:
    return nbformat.v4.new_output("error", ename="ValueError", evalue="bad", traceback=[])


def text_output(text: str) -> nbformat.NotebookNode:
    return nbformat.v4.new_output("stream", name="stdout", text=text)


def test_a_published_task_has_no_problems(published: Path) -> None:
    assert task_problems(TASK) == []
    assert generated_problems() == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda nb: nb.cells[2].update(source="1 + 2"), "cell 3 differs from task_demo.py"),
        (lambda nb: nb.cells.pop(), "2 cells, task_demo.py has 3"),
        (lambda nb: nb.cells[2].update(execution_count=7), "execution count 7, not 2"),
        (lambda nb: nb.cells[1].outputs.append(error_output()), "ends with ValueError: bad"),
        (lambda nb: nb.cells[1].outputs.append(text_output("/home/me/x")), "machine's path"),
        (lambda nb: nb.cells[1].outputs.append(text_output("x" * 2_100_000)), "2.1 MB, more than"),
        (lambda nb: nb.metadata.pop("e2e"), "no provenance"),
        (lambda nb: nb.metadata.e2e.update(profile="smoke"), "'smoke' cannot be published"),
        (lambda nb: nb.metadata.e2e.update(key="other"), "of different runs"),
        (lambda nb: nb.cells[1].outputs.clear(), "task_demo.pdf: not made from the present"),
    ],
)
def test_changed_notebooks_are_found(
    published: Path, change: Callable[[nbformat.NotebookNode], object], expected: str
) -> None:
    edit_notebook(change)
    assert any(expected in problem for problem in task_problems(TASK))


@pytest.fixture
def exit_code(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Of the command, without ruff."""
    monkeypatch.setattr(check_notebooks, "ruff_problems", list)

    def run(*arguments: str) -> int:
        with pytest.raises(SystemExit) as end:
            check_notebooks.main([*arguments])
        return end.value.code

    return run


def test_a_changed_script_makes_its_notebook_stale(
    published: Path, exit_code: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """It is named and fails only with STRICT; README may mark it or not."""
    assert exit_code("--strict") == 0
    script, readme = paths.script_path(TASK), published / "README.md"
    script.write_text(script.read_text().replace("1 + 1", "1 + 3"))
    for text in (readme.read_text(), generated_texts()[readme]):
        readme.write_text(text)
        assert exit_code() == 0
        assert "stale: task_demo.ipynb: cell 3 differs from task_demo.py" in capsys.readouterr().out
        assert exit_code("--strict") == 1
    assert ".ipynb) (stale) ·" in readme.read_text()
    assert "*Stale*: the script was changed after this run" in readme.read_text()
    (script.parent / "core.cc").write_text("int x;")
    script.write_text(script.read_text().replace("1 + 3", "1 + 1"))
    assert stale_reasons(TASK) == [
        "task_demo.ipynb: executed with other sources beside task_demo.py"
    ]
    finished_run("quick")
    publish(TASK, "quick")
    assert "stale" not in readme.read_text().lower()


def test_changed_code_is_named(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stale_reasons(TASK) == []
    monkeypatch.setattr(staleness, "code_state", lambda *_: {"e2e_utils/files.py": "a"})
    assert stale_reasons(TASK) == [f"{TASK}: made with earlier code of e2e_utils/files.py"]
    path = paths.WEIGHTS / TASK / "metrics.json"
    metrics = json.loads(path.read_text())
    del metrics["provenance"]["code"]
    path.write_text(json.dumps(metrics))
    assert "made with earlier code, of which no hashes were recorded" in stale_reasons(TASK)[0]


def test_too_many_bytes_are_found(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published_files, "TASK_LIMIT", 50)
    assert any("expected at most 5e-05 MB of weights and models" in p for p in task_problems(TASK))


def test_damaged_weights_are_found(published: Path) -> None:
    weights = paths.WEIGHTS / TASK
    (weights / f"{TASK}.onnx").write_bytes(b"no model")
    (weights / f"{TASK}.safetensors").write_bytes(b"\1")
    problems = "\n".join(task_problems(TASK))
    assert "task_demo.onnx is not the file of the published run" in problems
    assert "task_demo.onnx: not a valid ONNX model" in problems
    assert "expected a safetensors file" in problems
    (weights / f"{TASK}.onnx").unlink()
    assert f"{TASK}: {TASK}.onnx is missing" in task_problems(TASK)


def test_invalid_metrics_are_found(published: Path) -> None:
    path = paths.WEIGHTS / TASK / "metrics.json"
    metrics = json.loads(path.read_text())
    path.write_text(json.dumps({**metrics, "headline": "unknown"}))
    assert any("headline" in problem for problem in task_problems(TASK))


def test_old_generated_texts_are_found(published: Path) -> None:
    readme = published / "README.md"
    readme.write_text(readme.read_text().replace("0.8000", "0.9000"))
    assert generated_problems() == ["README.md: not up to date (make results)"]


def test_machine_paths() -> None:
    home = "/" + "root"  # in two pieces: no file of ours holds such a path
    assert machine_paths(f"saved to {home}/x.npy") == [f"{home}/x.npy"]
    assert machine_paths(r"C:\Users\me") == [r"C:\Users\me"]
    assert machine_paths("build/home/x https://host/home/x $A:\\mathbb{R}$ ~" + f"{home}/y") == []
    assert machine_paths(f"in {paths.ROOT}/data")


def test_the_command_lists_problems_and_exits_with_1(
    published: Path, exit_code: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code() == 0
    (paths.WEIGHTS / TASK / f"{TASK}.pdf").unlink()
    assert exit_code(TASK) == 1
    assert "no task_demo.pdf" in capsys.readouterr().out


def test_ruff_findings_are_listed(published: Path) -> None:
    (published / "bad.py").write_text("import os\nx = undefined\n")
    assert any(problem.startswith("bad.py:") for problem in check_notebooks.ruff_problems())


def test_unformatted_files_are_listed(published: Path) -> None:
    (published / "bad.py").write_text("x = [1,2]\n")
    found = [p for p in check_notebooks.ruff_problems() if p.startswith("bad.py:1: unformatted")]
    assert len(found) == 1
