"""Definitions of percent scripts, runs and their result tables."""

import pickle
import re
import sys

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from torch import nn

from e2e_utils import notebook, paths
from e2e_utils.errors import InputError
from e2e_utils.evaluation import load_metrics, metric_entry
from e2e_utils.notebook import load_definitions, results_frame, start_run

SCRIPT = '''# %% [markdown]
# # A task
# %%
import math
from dataclasses import dataclass

print("executed")
raise_if_run = 1 / 0
# %%
CONFIG: dict = {"width": 3}
LEFT, RIGHT = 1, 2
for SHOUTED in range(3):
    raise RuntimeError
if True:
    import not_a_module

@dataclass
class Network:
    """A network."""

    width: int = CONFIG["width"]

def area(r: float) -> float:
    return math.pi * r**2

area(undefined)
'''


@pytest.fixture
def task(tmp_path, monkeypatch):
    """Writer of a task's percent script."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    name = "task9_toy"
    (tmp_path / name).mkdir()

    def write(text: str = SCRIPT) -> str:
        paths.script_path(name).write_text(text)
        return name

    yield write
    sys.modules.pop(name, None)


def test_only_definitions_are_executed(task, capsys) -> None:
    module = load_definitions(task())
    assert capsys.readouterr().out == ""
    assert module.CONFIG == {"width": 3}
    assert (module.LEFT, module.RIGHT) == (1, 2)
    assert module.area(2.0) == pytest.approx(12.566, abs=1e-3)
    assert not hasattr(module, "raise_if_run")
    assert not hasattr(module, "SHOUTED")
    assert module.Network.__doc__ == "A network."


def test_classes_can_be_pickled(task) -> None:
    network = load_definitions(task()).Network(5)
    assert pickle.loads(pickle.dumps(network)) == network


def test_module_is_kept_until_the_script_changes(task) -> None:
    first = load_definitions(task())
    assert load_definitions("task9_toy") is first
    second = load_definitions(task(SCRIPT.replace("width: int", "height: int = 1\n    width: int")))
    assert second is not first
    assert second.Network().height == 1


def test_failing_definitions_leave_no_module(task) -> None:
    with pytest.raises(ZeroDivisionError):
        load_definitions(task("BROKEN = 1 / 0"))
    assert "task9_toy" not in sys.modules


def test_unknown_task(task) -> None:
    task()
    with pytest.raises(InputError, match="known: task9_toy"):
        load_definitions("task8")


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "BUILD", tmp_path)
    return start_run("task9_toy", "smoke", "standin")


def fields() -> dict:
    entry = metric_entry(0.81, 0.8, 0.82)
    return {
        "data": {
            "source": "standin", "train": 6, "validation": 2, "test": 2, "fingerprint": "0f"
        },
        "seeds": [0],
        "headline": "roc_auc",
        "metrics": {"accuracy": entry, "roc_auc": {**entry, "seed_std": 0.002}},
        "baselines": {"gradient_boosting": {"roc_auc": entry, "info": {"description": "trees"}}},
        "floors": {},
        "arms": {"energy_only": {"roc_auc": entry}},
        "parameters": 1,
        "flops": 2,
    }  # fmt: skip


def test_run_saves_metrics_with_provenance(run, tmp_path) -> None:
    assert run.directory == tmp_path / "smoke" / "task9_toy"
    assert run.directory.is_dir()
    metrics = run.save_metrics(**fields(), provenance={"key": "abc"})
    assert load_metrics(run.directory / "metrics.json") == metrics
    assert metrics["task"] == "task9_toy"
    assert metrics["profile"] == "smoke"
    assert 0 <= metrics["seconds"] < 100
    provenance = metrics["provenance"]
    assert provenance["key"] == "abc"
    assert provenance["data_source"] == "standin"
    assert provenance["fingerprint"] == "0f"
    assert {"python", "torch", "numpy"} <= provenance["versions"].keys()
    assert str(tmp_path) not in str(metrics)


def test_summary_is_one_line(run) -> None:
    assert "\n" not in run.summary()
    for word in ("task9_toy", "smoke", "torch", "cores"):
        assert word in run.summary()


@pytest.mark.parametrize("choice", [("fast", "auto"), ("quick", "mixed")])
def test_parameters_are_checked(choice: tuple, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(paths, "BUILD", tmp_path)
    with pytest.raises(InputError, match="expected one of"):
        start_run("task9_toy", *choice)
    assert list(tmp_path.iterdir()) == []


def test_result_table(run) -> None:
    frame = notebook.result_table(run.save_metrics(**fields()))
    assert list(frame.index) == ["this network", "energy only", "trees"]
    assert list(frame.columns) == ["ROC-AUC", "accuracy"]  # the headline first
    assert frame.loc["this network", "ROC-AUC"] == "0.8100 [0.8000, 0.8200] ± 0.0020"
    assert frame.loc["trees", "ROC-AUC"] == "0.8100 [0.8000, 0.8200]"
    assert frame.loc["trees", "accuracy"] == ""


def test_the_first_table_keeps_to_what_a_page_can_hold(run) -> None:
    content = fields()
    content["metrics"] |= {f"test_{n}": metric_entry(0.5, 0.4, 0.6) for n in range(9)}
    columns = list(notebook.result_table(run.save_metrics(**content)).columns)
    assert columns == ["ROC-AUC", "accuracy", *(f"test_{n}" for n in range(5))]


def test_results_frame_of_chosen_columns() -> None:
    models = {"a": {"roc_auc": metric_entry(0.5, 0.4, 0.6), "accuracy": metric_entry(1, 1, 1)}}
    assert list(results_frame(models, ["accuracy"]).columns) == ["accuracy"]


def test_plain_python_prints(run, capsys) -> None:
    notebook.show_results("task9_toy")
    notebook.update_results(run.save_metrics(**fields()))
    shown = capsys.readouterr().out
    assert "appear here when the run ends" in shown
    assert "0.8100 [0.8000, 0.8200]" in shown


def test_a_result_table_must_fit_into_half_a_page(run, capsys) -> None:
    notebook.update_results(pd.DataFrame({"ROC-AUC": ["0.81"] * 8}))
    assert "0.81" in capsys.readouterr().out
    for rows, columns in ((9, 4), (8, 5)):
        with pytest.raises(ValueError, match=f"at most 8 x 4 expected, found {rows} x {columns}"):
            notebook.update_results(pd.DataFrame(np.zeros((rows, columns))))


def test_claims_are_shown_with_what_the_run_says(capsys) -> None:
    notebook.show_claims({"better than trees": True, "better than all": np.False_})
    shown = capsys.readouterr().out
    assert re.search(r"better than trees +yes", shown)
    assert re.search(r"better than all +no", shown)


def test_a_run_saves_graphs_that_agree_with_torch(run, capsys) -> None:
    graph, batches = nn.Linear(3, 1), [torch.rand(n, 3) for n in (4, 1, 7)]
    run.save_onnx("toy", graph, batches, {"profile": "smoke"})
    assert "toy.onnx: differs from PyTorch by at most" in capsys.readouterr().out
    model = onnx.load(run.directory / "toy.onnx")
    card = {entry.key: entry.value for entry in model.metadata_props}
    assert card == {"task": "task9_toy", "profile": "smoke"}
    with pytest.raises(ValueError, match="differs from torch"):
        run.save_onnx("toy", nn.Dropout(0.5), batches, {}, tolerance=-1.0)


def test_results_of_the_last_cell_appear_in_the_first() -> None:
    cells = [
        "from e2e_utils.notebook import show_results, update_results\nshow_results('task9_toy')",
        "entry = {'value': 0.81, 'low': 0.8, 'high': 0.82}\n"
        "update_results({'headline': 'roc_auc', 'metrics': {'roc_auc': entry},\n"
        "                'arms': {}, 'baselines': {}, 'floors': {}})",
    ]
    book = new_notebook(cells=[new_code_cell(cell) for cell in cells])
    NotebookClient(book, timeout=120, resources={"metadata": {"path": paths.ROOT}}).execute()
    (output,) = book.cells[0].outputs
    assert "0.8100 [0.8000, 0.8200]" in output.data["text/plain"]
    assert "text/html" in output.data
    assert "when the run ends" not in str(book.cells[0].outputs)
