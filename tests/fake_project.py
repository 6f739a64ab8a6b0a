"""A small project in a temporary folder, for the tests of the tools."""

import json
import os
import shutil
import sys
from pathlib import Path

import nbformat
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from e2e_utils import paths
from tools.notebook_pdf.exporter import notebook_to_pdf
from tools.provenance import (
    code_state,
    data_state,
    notebook_hash,
    product_hashes,
    run_key,
    source_hash,
)

TASK = "task_demo"
PDFS: dict[str, bytes] = {}  # of executed notebooks, by hash: each takes half a second
REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPT = """\
# %% [markdown]
# # Demo: $x^2$

# %% tags=["parameters"]
import os

PROFILE = os.environ.get("PROFILE", "quick")
print(PROFILE)

# %%
1 + 1
"""


def make_project(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point ``e2e_utils.paths`` at a new project with one task and a README."""
    monkeypatch.setattr(paths, "ROOT", root)
    monkeypatch.setattr(paths, "BUILD", root / "build")
    monkeypatch.setattr(paths, "WEIGHTS", root / "weights")
    monkeypatch.setattr(paths, "OFFICIAL", root / "data" / "files" / "official")
    (root / TASK).mkdir(parents=True)
    paths.script_path(TASK).write_text(SCRIPT)
    (root / "README.md").write_text(
        "# Title\n\n<!-- results:begin -->\nold\n<!-- results:end -->\n\nEnd.\n"
    )
    return root


def write_repository(root: Path, scripts: dict[str, str]) -> None:
    """A repository that can run by itself: the real tools, percent scripts, hardly any data."""
    (root / "e2e_utils").mkdir(parents=True)
    names = "__init__ errors figures files locks machine paths profiles versions"
    for name in names.split():
        shutil.copy(REPOSITORY / "e2e_utils" / f"{name}.py", root / "e2e_utils")
    shutil.copytree(REPOSITORY / "tools", root / "tools")
    (root / "data").mkdir()
    (root / "data" / "__init__.py").touch()  # else an installed package of this name is found
    (root / "data" / "loaders.py").write_text(
        "def prepare(task, profile, source):\n    return f'{task}: {source} ready'\n"
    )
    (root / "e2e_utils" / "evaluation.py").write_text(
        "import json\n\ndef load_metrics(path):\n    return json.loads(path.read_text())\n"
    )
    for task, text in scripts.items():
        (root / task).mkdir()
        (root / task / f"{task}.py").write_text(text)


def script_of(task: str, code: str = "") -> str:
    """A percent script that executes ``code`` in its run's ``folder`` and writes metrics.json."""
    return (
        "# %% [markdown]\n# # Good\n\n# %%\nimport os\nimport time\nfrom pathlib import Path\n\n"
        "from e2e_utils.paths import run_directory\n\n"
        f"folder = run_directory('smoke', {task!r})\n{code}\n"
        f"text = {json.dumps(metrics_of('smoke'))!r}\n"
        "(folder / 'metrics.json').write_text(text)\nprint('the end')\n"
    )


def make_all(root: Path, *arguments: str, **variables: str) -> dict:
    """Keywords for subprocess that start `make all PROFILE=smoke` in a written repository."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("DASK_", "E2E_"))}
    return {
        "args": [sys.executable, "-m", "tools.regenerate", "--profile", "smoke", *arguments],
        "cwd": root,
        "env": own | {"PYTHONPATH": f"{root}{os.pathsep}{own.get('PYTHONPATH', '')}"} | variables,
        "text": True,
    }


def metrics_of(profile: str, auc: float = 0.8, source: str = "standin") -> dict:
    """A valid metrics.json."""
    entry = {"value": auc, "low": auc - 0.01, "high": auc + 0.01}
    return {
        "task": TASK,
        "title": "Demo",
        "profile": profile,
        "data": {
            "source": source,
            "train": 700,
            "validation": 100,
            "test": 200,
            "fingerprint": "f",
        },
        "seeds": [0, 1],
        "headline": "roc_auc",
        "metrics": {"roc_auc": {**entry, "seed_std": 0.002}},
        "baselines": {
            "gradient_boosting": {"roc_auc": {**entry, "value": auc - 0.02}},
            "logistic": {"roc_auc": {**entry, "value": auc - 0.05}, "info": {"parameters": 5}},
        },
        "floors": {},
        "arms": {},
        "parameters": 1234,
        "flops": 56789,
        "device": "cpu",
        "seconds": 12.0,
        "provenance": {},
    }


def write_onnx(path: Path, shape: tuple[int, ...] = (4, 4, 2)) -> None:
    """A classifier: probability = sigmoid(sum of channel 0), channels last."""
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["x", "zero"], ["energy"], axis=3),
            helper.make_node("ReduceSum", ["energy", "axes"], ["sum"], keepdims=0),
            helper.make_node("Sigmoid", ["sum"], ["probability"]),
        ],
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["batch"])],
        [
            helper.make_tensor("zero", TensorProto.INT64, [], [0]),
            helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(
        model, {"kind": "binary_classification", "profile": "quick", "data_source": "standin"}
    )
    onnx.save(model, path)


def executed_notebook(stamp: dict, cell: str) -> nbformat.NotebookNode:
    """The notebook of SCRIPT with the outputs that running it gives; ``cell``: its last one."""
    cells = [
        nbformat.v4.new_markdown_cell("# Demo: $x^2$", id="cell-001"),
        nbformat.v4.new_code_cell(
            'import os\n\nPROFILE = os.environ.get("PROFILE", "quick")\nprint(PROFILE)',
            id="cell-002",
            execution_count=1,
            metadata={"tags": ["parameters"]},
            outputs=[nbformat.v4.new_output("stream", name="stdout", text="quick\n")],
        ),
        nbformat.v4.new_code_cell(
            cell,
            id="cell-003",
            execution_count=2,
            outputs=[
                nbformat.v4.new_output(
                    "execute_result", data={"text/plain": "2"}, execution_count=2
                )
            ],
        ),
    ]
    language = {"name": "python", "version": "3.11.7"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"language_info": language, "e2e": stamp})


def finished_run(
    profile: str = "quick",
    auc: float = 0.8,
    source: str = "standin",
    published: list[str] | None = None,
    cell: str = "1 + 1",
) -> Path:
    """Write build/<profile>/task_demo/ as a complete run would leave it."""
    folder = paths.run_directory(profile, TASK)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"w": np.full(3, auc, dtype=np.float32)}, folder / f"{TASK}.safetensors")
    write_onnx(folder / f"{TASK}.onnx")
    stamp = {
        "key": run_key(TASK, profile, "auto"),
        "code_key": run_key(TASK, profile, "auto", part="code"),
        "data_state": data_state(TASK, "auto"),
        "profile": profile,
        "data_source": source,
        "source_hash": source_hash(TASK),
        "seconds": 12.0,
        "device": "cpu",
    }
    nb = executed_notebook(stamp, cell)
    nbformat.write(nb, folder / f"{TASK}.ipynb")
    content = notebook_hash(nb)
    if content not in PDFS:
        PDFS[content] = notebook_to_pdf(nb, folder, TASK)
    (folder / f"{TASK}.pdf").write_bytes(PDFS[content])
    metrics = metrics_of(profile, auc, source)
    if published:
        metrics["published"] = published
    code = code_state(TASK, profile, "auto")
    metrics["provenance"] = {**stamp, "code": code, "products": product_hashes(folder)}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder
