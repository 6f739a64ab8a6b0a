"""Published models on newly simulated events: `make independent`."""

import ast
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from fake_project import REPOSITORY, make_project, write_onnx

from data.simulate import jets, jets8, top_gun
from e2e_utils import paths
from e2e_utils.errors import InputError
from tools import independent
from tools.independent import OTHER_SEED, SAMPLES, SEED
from tools.model_cards import independent_file, independent_table

TASK = "common_task1"
METRICS = {"headline": "roc_auc", "metrics": {"roc_auc": {}, "accuracy": {}}}


@pytest.fixture
def project(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    data_folder: Path,
    write_events: Callable[..., Path],
    sparse_array: Callable[..., np.ndarray],
) -> Path:
    """A published model and a sample of 60 events for it, in place of a simulation."""
    root = make_project(tmp_path / "project", monkeypatch)
    (root / TASK).mkdir()
    (root / TASK / f"{TASK}.py").write_text("# %%\n")
    (paths.WEIGHTS / TASK).mkdir(parents=True)
    write_onnx(paths.WEIGHTS / TASK / f"{TASK}.onnx", (32, 32, 2))

    def sample(n_events: int, folder: Path) -> Sequence[Path]:
        assert n_events == independent.EVENTS["smoke"]
        return [write_events("sample.hdf5", np.arange(60) % 2, sparse_array(60, (32, 32, 2)))]

    monkeypatch.setitem(SAMPLES, TASK, {OTHER_SEED: sample})
    monkeypatch.setattr(independent, "update", list)
    return root


def run(task: str) -> int:
    """The command's exit status."""
    with pytest.raises(SystemExit) as stopped:
        independent.main([task, "--profile", "smoke"])
    return stopped.value.code


def test_results_are_kept_and_shown_on_the_card(project: Path) -> None:
    run(TASK)
    (entry,) = json.loads(independent_file().read_text())[TASK]
    assert entry["sample"] == OTHER_SEED
    assert entry["metrics"]["roc_auc"]["low"] < entry["metrics"]["roc_auc"]["high"]
    header, _, row = independent_table(TASK, METRICS)[1:]
    assert "ROC-AUC | accuracy" in header
    assert row.startswith(f"| {OTHER_SEED} | 200 | {entry['metrics']['roc_auc']['value']:.1f}")


def test_results_of_another_model_are_not_shown(project: Path) -> None:
    run(TASK)
    write_onnx(paths.WEIGHTS / TASK / f"{TASK}.onnx", (32, 32, 1))
    assert independent_table(TASK, METRICS) == []


def test_one_task_does_not_lose_the_results_of_another(project: Path) -> None:
    independent_file().write_text(json.dumps({"task2x": [{"sample": "kept"}]}))
    run(TASK)
    kept = json.loads(independent_file().read_text())
    assert kept["task2x"] == [{"sample": "kept"}]
    assert set(kept) == {TASK, "task2x"}


def test_what_has_no_sample_or_no_published_model_is_refused(project: Path) -> None:
    assert run("task2j_symmetry") == 2
    (project / "task2h_graph_jets").mkdir()
    with pytest.raises(InputError, match="task2h_graph_jets"):
        independent.score_samples("task2h_graph_jets", "smoke")


def written_seeds(source: str) -> set[int]:
    """Integers of a module's constants `*SEED` and of defaults of parameters `seed`."""
    found: list[tuple[str, ast.expr | None]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign):
            found += [(ast.unparse(target), node.value) for target in node.targets]
        elif isinstance(node, ast.AnnAssign):
            found.append((ast.unparse(node.target), node.value))
        elif isinstance(node, ast.FunctionDef):
            plain, named = node.args.posonlyargs + node.args.args, node.args.kwonlyargs
            given = [None] * (len(plain) - len(node.args.defaults)) + node.args.defaults
            given += node.args.kw_defaults
            found += [(a.arg, v) for a, v in zip(plain + named, given, strict=True)]
    return {
        value.value
        for name, value in found
        if name.upper().endswith("SEED") and isinstance(value, ast.Constant)
    }


def test_the_seed_is_that_of_no_other_sample() -> None:
    files = sorted((REPOSITORY / "data").rglob("*.py"))
    seeds = set().union(*(written_seeds(file.read_text()) for file in files))
    # constants of a simulation, and defaults of photons and electrons, of HIGGS, of two photons
    assert {jets.SEED, jets8.SEED, top_gun.SEED, 20250303, 20140219, 20250305} <= seeds
    assert SEED not in seeds
