"""Publishing: all files of a good run, or none."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fake_project import REPOSITORY, TASK, finished_run, make_project

from e2e_utils import paths
from e2e_utils.errors import InputError
from tools import publish as module
from tools import published_files
from tools.check_notebooks import task_problems
from tools.provenance import product_hashes
from tools.publish import publish


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_project(tmp_path, monkeypatch)


def tree(root: Path) -> dict[str, bytes]:
    """Every published file and its content."""
    files = [*(root / TASK).rglob("*"), *(root / "weights").rglob("*"), root / "README.md"]
    return {str(path.relative_to(root)): path.read_bytes() for path in files if path.is_file()}


def test_a_complete_run_is_published(project: Path) -> None:
    finished_run("quick", auc=0.8)
    publish(TASK, "quick")
    assert set(tree(project)) == {
        f"{TASK}/{TASK}.py",
        f"{TASK}/{TASK}.ipynb",
        f"weights/{TASK}/{TASK}.safetensors",
        f"weights/{TASK}/{TASK}.onnx",
        f"weights/{TASK}/{TASK}.pdf",
        f"weights/{TASK}/metrics.json",
        "weights/README.md",
        "README.md",
    }
    assert "0.8000" in (project / "README.md").read_text()


def test_publishing_again_leaves_one_row_and_one_card(project: Path) -> None:
    for auc in (0.8, 0.83):
        finished_run("quick", auc=auc)
        publish(TASK, "quick")
    readme, cards = ((project / name).read_text() for name in ("README.md", "weights/README.md"))
    assert "0.8300" in readme
    assert "0.8000" not in readme
    assert cards.count("## ") == 1
    assert ".part" not in readme + cards


def test_smoke_and_unknown_runs_are_refused(project: Path) -> None:
    finished_run("smoke")
    with pytest.raises(InputError, match="found smoke"):
        publish(TASK, "smoke")
    with pytest.raises(InputError, match="no executed notebook"):
        publish(TASK, "standard")


def test_incomplete_runs_are_refused(project: Path) -> None:
    run = finished_run("quick")
    (run / f"{TASK}.pdf").unlink()
    with pytest.raises(InputError, match=r"no task_demo\.pdf"):
        publish(TASK, "quick")
    finished_run("quick")
    (run / f"{TASK}.onnx").unlink()
    with pytest.raises(InputError, match="products are not those"):
        publish(TASK, "quick")
    assert not (project / "weights").exists()


def test_a_run_of_an_older_script_is_refused(project: Path) -> None:
    finished_run("quick")
    script = paths.script_path(TASK)
    script.write_text(script.read_text() + "\n# a change\n")
    with pytest.raises(InputError, match="found an older"):
        publish(TASK, "quick")


def test_a_run_on_other_files_is_refused(project: Path) -> None:
    finished_run("quick", source="file")
    with pytest.raises(InputError, match="DATA"):
        publish(TASK, "quick")


def test_a_run_with_a_false_claim_is_refused_and_true_ones_stand_in_the_card(project: Path) -> None:
    metrics_file = finished_run("quick") / "metrics.json"
    metrics = json.loads(metrics_file.read_text())
    claims = {"better than boosting": True, "calibrated": False}
    metrics_file.write_text(json.dumps(metrics | {"claims": claims}))
    with pytest.raises(InputError, match="all claims to hold, these do not: calibrated; correct"):
        publish(TASK, "quick")
    metrics_file.write_text(json.dumps(metrics | {"claims": {"better than boosting": True}}))
    publish(TASK, "quick")
    assert "- better than boosting\n" in (project / "weights" / "README.md").read_text()


def test_a_smaller_profile_replaces_a_larger_one_only_on_request(project: Path) -> None:
    finished_run("standard", auc=0.9)
    finished_run("quick", auc=0.8)
    publish(TASK, "standard")
    with pytest.raises(InputError, match="--allow-smaller"):
        publish(TASK, "quick")
    publish(TASK, "quick", allow_smaller=True)
    metrics = json.loads((paths.WEIGHTS / TASK / "metrics.json").read_text())
    assert metrics["profile"] == "quick"


def test_official_rows_are_not_lost_silently(project: Path) -> None:
    metrics_file = finished_run("quick") / "metrics.json"
    metrics = json.loads(metrics_file.read_text())
    arms = {"tuned": {"roc_auc": metrics["metrics"]["roc_auc"], "info": {"description": "tuned"}}}
    metrics_file.write_text(json.dumps(metrics | {"variants": {"official_rows": arms}}))
    publish(TASK, "quick")
    metrics_file.write_text(json.dumps(metrics))
    with pytest.raises(InputError, match=r"found none of tuned; .*E2E_REAL_SAMPLES"):
        publish(TASK, "quick")
    publish(TASK, "quick", allow_smaller=True)


@pytest.mark.parametrize("step", range(1, 4))
def test_a_failure_at_any_step_leaves_everything_as_it_was(
    project: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    finished_run("quick", auc=0.8)
    publish(TASK, "quick")
    before = tree(project)
    finished_run("quick", auc=0.7)
    calls = []
    replace = os.replace

    def failing(source, target):
        # Only moves into place count, not the roll-back's own.
        if len(calls) < step and len(calls) + 1 == step:
            calls.append(target)
            raise OSError(28, "No space left on device")
        calls.append(target)
        replace(source, target)

    monkeypatch.setattr(module.os, "replace", failing)
    with pytest.raises(InputError, match="full disk"):
        publish(TASK, "quick")
    assert tree(project) == before


def test_a_failed_results_table_takes_everything_back(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished_run("quick")
    before = tree(project)

    def broken() -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(module, "update", broken)
    with pytest.raises(RuntimeError, match="broken"):
        publish(TASK, "quick")
    assert tree(project) == before


def test_a_failure_after_a_killed_attempt_keeps_the_last_good_weights(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished_run("quick", auc=0.8)
    publish(TASK, "quick")
    before = tree(project)
    code = (
        "import os, pathlib, signal; from tools.publish import rolled_back_on_error\n"
        f"with rolled_back_on_error([pathlib.Path({str(paths.WEIGHTS / TASK)!r})]):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (paths.WEIGHTS / TASK).exists()
    finished_run("quick", auc=0.7)
    monkeypatch.setattr(module, "update", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        publish(TASK, "quick")
    assert tree(project) == before


def test_a_readme_without_markers_is_found_first(project: Path) -> None:
    finished_run("quick")
    (project / "README.md").write_text("# Title\n")
    with pytest.raises(InputError, match="results:begin"):
        publish(TASK, "quick")
    assert not (project / "weights").exists()


def test_only_the_named_files_are_published(project: Path) -> None:
    finished_run("quick", published=[f"{TASK}.onnx"])
    publish(TASK, "quick")
    weights = paths.WEIGHTS / TASK
    assert {path.name for path in weights.iterdir()} == {
        f"{TASK}.onnx", f"{TASK}.pdf", "metrics.json",
    }  # fmt: skip
    provenance = json.loads((weights / "metrics.json").read_text())["provenance"]
    assert list(provenance["products"]) == [f"{TASK}.onnx"]
    assert list(provenance["left_out"]) == [f"{TASK}.safetensors"]
    assert task_problems(TASK) == []
    cards = (paths.WEIGHTS / "README.md").read_text()
    assert f"`make {TASK} PROFILE=quick` also makes `{TASK}.safetensors`." in cards


def test_names_that_no_file_has_are_refused(project: Path) -> None:
    finished_run("quick", published=[f"{TASK}.onnx", "ensemble.*"])
    with pytest.raises(InputError, match=r"found ensemble\.\*, which is none of them"):
        publish(TASK, "quick")


def test_more_than_the_limit_of_a_task_is_refused(project: Path) -> None:
    run = finished_run("quick")
    (run / "teacher.csv").write_bytes(b"0" * published_files.TASK_LIMIT)
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["provenance"]["products"] = product_hashes(run)
    (run / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(InputError, match=r"at most 4\.2 MB .* \(teacher\.csv 4\.20 MB, task_"):
        publish(TASK, "quick")
    for names in ([f"{TASK}.safetensors", f"{TASK}.onnx"], [f"{TASK}.onnx", "*.s*", "teach*"]):
        # A pattern gives what fits.
        (run / "metrics.json").write_text(json.dumps({**metrics, "published": names}))
        publish(TASK, "quick")
        found = {path.suffix for path in (project / "weights" / TASK).iterdir()}
        assert found == {".safetensors", ".onnx", ".pdf", ".json"}


def test_a_tree_above_its_limit_is_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What git ignores does not count, as build/ here."""
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    (project / ".gitignore").write_text("/build/\n*.part\n")
    run = finished_run("quick")
    pdf = (run / f"{TASK}.pdf").stat().st_size
    before = tree(project)
    monkeypatch.setattr(published_files, "TREE_LIMIT", pdf)
    with pytest.raises(InputError, match=r"the repository: expected at most .*task_demo\.pdf"):
        publish(TASK, "quick")
    assert tree(project) == before
    monkeypatch.setattr(published_files, "TREE_LIMIT", 2 * pdf)
    publish(TASK, "quick")
