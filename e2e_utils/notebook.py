"""What a notebook needs around its physics: its definitions for tests, its run, its results."""

import ast
import platform
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import pandas as pd
import torch
from IPython import get_ipython
from IPython.display import Markdown, display
from torch import nn

from e2e_utils.errors import InputError
from e2e_utils.evaluation import write_metrics
from e2e_utils.machine import available_cores, device_name
from e2e_utils.metric_text import METRIC_NAMES, format_entry
from e2e_utils.paths import list_tasks, run_directory, script_path
from e2e_utils.profiles import PROFILES, SOURCES, check_choice
from e2e_utils.versions import library_versions

CONSTANT = re.compile(r"[A-Z][A-Z0-9_]*")
DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
MOST_ROWS, MOST_COLUMNS = 8, 4  # of the table at the beginning of a notebook
FIRST_EDITION_COLUMNS = 7  # in the notebooks that are not rewritten yet
DISPLAY_ID = "results"


def load_definitions(task: str) -> ModuleType:
    """The imports, UPPER_CASE constants, functions and classes of a task's percent script.

    Nothing else is executed: no data is read, nothing is trained. The module is put into
    ``sys.modules`` under the task's name, so that its classes can be pickled.
    """
    path = script_path(task)
    if not path.is_file():
        raise InputError(
            f"{task}: expected a task, found none; known: {', '.join(list_tasks()) or 'none'}"
        )
    source = path.read_text(encoding="utf-8")
    loaded = sys.modules.get(task)
    if getattr(loaded, "__source__", None) == source:
        return loaded
    tree = ast.parse(source, filename=str(path))
    tree.body = [node for node in tree.body if _is_definition(node)]
    module = ModuleType(task, ast.get_docstring(tree))
    module.__file__, module.__source__ = str(path), source
    module.__path__ = [str(path.parent)]  # a script may import from its own folder
    sys.modules[task] = module
    try:
        exec(compile(tree, str(path), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[task]
        raise
    return module


def _is_definition(node: ast.stmt) -> bool:
    if isinstance(node, ast.Assign):
        names = [n for target in node.targets for n in getattr(target, "elts", [target])]
    elif isinstance(node, ast.AnnAssign) and node.value is not None:
        names = [node.target]
    else:
        return isinstance(node, DEFINITIONS)
    return all(isinstance(n, ast.Name) and CONSTANT.fullmatch(n.id) for n in names)


@dataclass
class Run:
    """One execution of a notebook and the folder of its products."""

    task: str
    profile: str
    data_source: str
    directory: Path
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds since the run started."""
        return time.monotonic() - self.started

    def summary(self) -> str:
        """One line for the top of a notebook: what runs where."""
        return f"{self.task}, {environment_summary(self.profile)}"

    def save_onnx(
        self,
        name: str,
        graph: nn.Module,
        batches: Sequence[torch.Tensor],
        card: Mapping[str, object],
        outputs: Sequence[str] = ("probability",),
        tolerance: float = 1e-5,
    ) -> None:
        """Write ``graph`` as <name>.onnx and say how far ONNX Runtime is from PyTorch.

        ``batches`` are inputs "x" of different sizes; one of two events serves as example. ``card``
        goes into the file. Raises ValueError above ``tolerance``.
        """
        from e2e_utils.onnx_export import check_parity, export_onnx  # slow to import

        path = self.directory / f"{name}.onnx"
        graph = graph.eval()
        export_onnx(graph, batches[0][:2], path, ["x"], outputs, {"task": self.task, **card})
        worst = check_parity(graph, path, batches, tolerance)
        print(f"{path.name}: differs from PyTorch by at most {worst:.1e}")

    def save_metrics(self, **fields: object) -> dict:
        """Write metrics.json from its ``fields`` and return it.

        Task, profile, device, seconds and provenance are added; the schema is that of
        ``e2e_utils.evaluation``. ``provenance`` given as a field extends what is added.
        """
        data = fields.get("data", {})
        device, seconds = device_name(), round(self.seconds, 1)
        provenance = {
            "profile": self.profile,
            "data_source": data.get("source", self.data_source),
            "fingerprint": data.get("fingerprint", ""),
            "device": device,
            "cores": available_cores(),
            "seconds": seconds,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": library_versions(),
        }
        metrics = {
            "task": self.task,
            "profile": self.profile,
            **fields,
            "device": device,
            "seconds": seconds,
            "provenance": provenance | fields.get("provenance", {}),
        }
        write_metrics(self.directory / "metrics.json", metrics)
        return metrics


def start_run(task: str, profile: str, data_source: str = "auto") -> Run:
    """Check the parameters, make the run's folder and start its clock."""
    check_choice("PROFILE", profile, PROFILES)
    check_choice("DATA_SOURCE", data_source, SOURCES)
    directory = run_directory(profile, task)
    directory.mkdir(parents=True, exist_ok=True)
    return Run(task, profile, data_source, directory)


def environment_summary(profile: str) -> str:
    """One line: profile, device, cores, versions."""
    return (
        f"profile {profile} | {device_name()}, {available_cores()} cores, "
        f"{torch.get_num_threads()} threads | Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )


def results_frame(
    models: Mapping[str, Mapping[str, Mapping]], columns: Sequence[str] | None = None
) -> pd.DataFrame:
    """Models as rows, metrics as columns (those of the first model unless given), as text."""
    columns = (
        [n for n in next(iter(models.values())) if n != "info"] if columns is None else columns
    )
    rows = {
        model: {n: format_entry(entries[n]) if n in entries else "" for n in columns}
        for model, entries in models.items()
    }
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=list(columns))
    return frame.rename(columns=METRIC_NAMES).rename_axis("model")


def result_table(metrics: dict) -> pd.DataFrame:
    """This task's model, arms, baselines and floors as rows; metrics as columns, headline first.

    More than FIRST_EDITION_COLUMNS cannot be read on a page; the others stand in metrics.json.
    """
    models = {"this network": metrics["metrics"]}
    for group in ("arms", "baselines", "floors"):
        for name, entries in metrics[group].items():
            label = entries.get("info", {}).get("description", name.replace("_", " "))
            models[label] = entries
    headline = metrics["headline"]
    columns = [headline, *(n for n in metrics["metrics"] if n != headline)]
    return results_frame(models, columns[:FIRST_EDITION_COLUMNS])


def show_results(task: str) -> None:
    """Reserve the place of the result table; ``update_results`` fills it when the run ends."""
    _display(f"*The results of {task} appear here when the run ends.*", update=False)


def update_results(table: pd.DataFrame | dict) -> None:
    """Put the result table in the place that ``show_results`` reserved, the best row first.

    It must fit into half a page: ValueError for more than MOST_ROWS x MOST_COLUMNS. (Notebooks of
    the first edition pass their metrics.)
    """
    if isinstance(table, dict):
        table = result_table(table)
    elif len(table) > MOST_ROWS or len(table.columns) > MOST_COLUMNS:
        raise ValueError(
            f"a result table of at most {MOST_ROWS} x {MOST_COLUMNS} expected, found "
            f"{len(table)} x {len(table.columns)}"
        )
    _display(table, update=True)


def show_claims(claims: Mapping[str, bool]) -> None:
    """What the prose asserts, and whether this run shows it; `make publish` refuses a false one."""
    marks = {sentence: "yes" if true else "no" for sentence, true in claims.items()}
    frame = pd.DataFrame.from_dict(marks, orient="index", columns=["shown by this run"])
    display(frame.rename_axis("claim"))


def _display(content: pd.DataFrame | str, update: bool) -> None:
    """Display in a notebook under a fixed id; print in plain Python."""
    if get_ipython() is None:
        print(content)
        return
    content = Markdown(content) if isinstance(content, str) else content
    display(content, display_id=DISPLAY_ID, update=update)
