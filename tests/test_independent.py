"""Published models on newly simulated events: `make independent`."""

import ast
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from fake_project import REPOSITORY, make_project, write_onnx

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


def seeds_in(source: str) -> Iterator[int]:
    """Integers that a source names *SEED, or gives to a parameter ``seed`` as its default."""
    for node in ast.walk(ast.parse(source)):
        pairs = []
        if isinstance(node, ast.Assign):
            pairs = [(target, node.value) for target in node.targets]
        elif isinstance(node, ast.arguments):
            named = [*node.posonlyargs, *node.args]
            pairs = zip(named[len(named) - len(node.defaults) :], node.defaults, strict=True)
            pairs = [*pairs, *zip(node.kwonlyargs, node.kw_defaults, strict=True)]
        for target, value in pairs:
            name = getattr(target, "id", None) or getattr(target, "arg", "")
            number = isinstance(value, ast.Constant) and isinstance(value.value, int)
            if number and name.lower().endswith("seed"):
                yield value.value


def test_the_seed_is_that_of_no_other_sample() -> None:
    files = (REPOSITORY / "data").rglob("*.py")
    seeds = {seed for file in files for seed in seeds_in(file.read_text(encoding="utf-8"))}
    assert seeds >= {20140219, 20250303, 20250305}  # higgs, egamma, two_photons: as defaults
    assert seeds >= {20250308, 20250310, 20250311, 20250304}  # jets, top_gun, jets8, a loader's
    assert SEED not in seeds
