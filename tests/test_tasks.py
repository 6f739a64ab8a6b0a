"""Every task from data to PDF in the smoke profile, as `make all PROFILE=smoke` does it.

All tasks of a test session share one data folder, as they do for a user: events are simulated once.
"""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import numba
import onnx
import pytest
from safetensors import safe_open

from e2e_utils.evaluation import load_metrics
from e2e_utils.paths import ROOT, list_tasks

PUBLIC_DATA = ("task2j_symmetry",)  # MNIST: no stand-in exists
AGAIN = "task2f_cmssw_inference"  # is asked for twice: what is complete is left alone
WORDS = {"official": "official", "standin": "stand-in"}


def regenerate(task: str, data: Path, build: Path) -> subprocess.CompletedProcess:
    """Run all stages of a task with its events below ``data`` and its products below ``build``."""
    environment = os.environ | {
        "E2E_DATA_DIR": str(data),
        "E2E_BUILD_DIR": str(build),
        "NUMBA_CACHE_DIR": numba.config.CACHE_DIR,  # what was compiled once stays compiled
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "tools.regenerate", "--profile", "smoke"]
    command += ["--data-source", "standin", task]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("task", list_tasks())
def test_task_runs_from_data_to_pdf(task, session_folder, tmp_path, request):
    data = session_folder / "files"
    if task in PUBLIC_DATA and (store := request.getfixturevalue("mnist_store")):
        (data / "cache").mkdir(parents=True, exist_ok=True)
        (data / "cache" / store.name).symlink_to(store)
    first = regenerate(task, data, tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    products = tmp_path / "smoke" / task

    metrics = load_metrics(products / "metrics.json")
    assert metrics["task"] == task
    assert metrics["profile"] == "smoke"
    source = "official" if task in PUBLIC_DATA else "standin"
    assert metrics["data"]["source"] == source

    notebook = nbformat.read(products / f"{task}.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    text = nbformat.writes(notebook)
    assert str(ROOT) not in text
    assert WORDS[source] in text

    assert (products / f"{task}.pdf").read_bytes().startswith(b"%PDF")
    onnx.checker.check_model(onnx.load(products / f"{task}.onnx"))
    weights = list(products.glob("*.safetensors"))
    assert weights or not metrics["data"]["train"]  # a task that trains nothing has no own weights
    for path in weights:
        with safe_open(path, framework="pt") as file:
            assert file.metadata()["task"] == task

    if task != AGAIN:
        return
    again = regenerate(task, data, tmp_path)
    assert again.returncode == 0
    assert "nothing to do" in again.stdout
