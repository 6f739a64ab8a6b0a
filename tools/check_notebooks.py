"""`make check`: published notebooks, weights, PDFs and generated texts fit together.

Prints every problem as one line and exits with 1 if there is one. Runs that are older than their
sources are named as stale; they are problems only with `make check STRICT=1`.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from e2e_utils import paths
from e2e_utils.errors import InputError, command_line
from e2e_utils.profiles import PROFILES
from tools.model_cards import safetensors_header
from tools.notebook_outputs import joined
from tools.provenance import (
    check_task,
    notebook_hash,
    pdf_hashes,
    product_hashes,
    products,
    read_json,
    source_hash,
)
from tools.published_files import too_large, tree_too_large
from tools.results_table import generated_texts, without_marks
from tools.run_notebook import MAX_BYTES
from tools.staleness import cell_differences, stale_reasons

MACHINE_PATH = re.compile(
    r"(?<![\w.~-])/(?:home|root|tmp|Users|private|var/folders)/[^\s'\"]*"
    r"|\b[A-Z]:\\(?:Users|Windows|Temp|Program)[^\s'\"]*"
)


def notebook_problems(path: Path, task: str) -> list[str]:
    """What is wrong with an executed notebook, by itself and compared with its percent script."""
    name = path.name
    if not path.is_file():
        return [
            f"{task}: no {name}; run and publish it (make publish PROFILE=standard TASK={task})"
        ]
    nb = read_json(path)
    if not nb.get("cells"):
        return [f"{name}: not a notebook"]
    problems = [f"{name}: {text}" for text in execution_problems(nb)]
    size = path.stat().st_size
    if size > MAX_BYTES:
        problems.append(f"{name}: {size / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:.0f} MB")
    run = nb.get("metadata", {}).get("e2e")
    if not run:
        problems.append(f"{name}: no provenance in its metadata (run it with make {task})")
    elif run.get("profile") not in PROFILES[1:]:
        problems.append(f"{name}: profile {run.get('profile')!r} cannot be published")
    elif run.get("source_hash") == source_hash(task):  # else it is stale
        problems += [f"{name}: {text}" for text in cell_differences(nb, task)]
    return problems


def execution_problems(nb: dict) -> Iterator[str]:
    """Cells out of order or with errors, machine paths in sources and outputs."""
    count = 0
    for number, cell in enumerate(nb["cells"], 1):
        texts = [joined(cell["source"])]
        if cell["cell_type"] == "code" and texts[0].strip():
            count += 1
            if cell.get("execution_count") != count:
                found = cell.get("execution_count")
                yield f"cell {number} has execution count {found}, not {count}"
            for output in cell.get("outputs", []):
                if output["output_type"] == "error":
                    yield f"cell {number} ends with {output['ename']}: {output['evalue'][:80]}"
                texts += output_texts(output)
        for text in texts:
            for match in machine_paths(text):
                yield f"cell {number} shows a machine's path: {match[:80]}"


def output_texts(output: dict) -> list[str]:
    """Texts of an output; images are left out."""
    data = output.get("data", {})
    texts = [joined(data[kind]) for kind in data if kind.startswith("text/")]
    texts += [joined(output["text"])] if "text" in output else []
    return texts


def machine_paths(text: str) -> list[str]:
    """Absolute paths of a machine in a text, this repository's own folder included."""
    found = [match[0] for match in MACHINE_PATH.finditer(text)]
    return found + ([str(paths.ROOT)] if str(paths.ROOT) in text and not found else [])


def run_problems(folder: Path, notebook: Path, task: str) -> list[str]:
    """What is wrong with the weights, the metrics and the PDF that belong to a notebook."""
    from e2e_utils.evaluation import load_metrics

    try:
        metrics = load_metrics(folder / "metrics.json")
    except InputError as error:
        return [str(error)]
    problems = []
    nb = read_json(notebook)
    run = nb.get("metadata", {}).get("e2e", {})
    provenance = metrics.get("provenance", {})
    if provenance.get("key") != run.get("key"):
        problems.append(f"{task}: metrics.json and the notebook are of different runs")
    if metrics["profile"] != run.get("profile"):
        problems.append(f"{task}: metrics.json has profile {metrics['profile']!r}")
    if metrics["task"] != task:
        problems.append(f"{task}: metrics.json is of task {metrics['task']!r}")
    listed, found = provenance.get("products", {}), product_hashes(folder)
    problems += [f"{task}: {name} is missing" for name in listed if name not in found]
    problems += [
        f"{task}: {name} is not the file of the published run"
        for name, digest in found.items()
        if listed.get(name) != digest
    ]
    if not found:
        problems.append(f"{task}: no weights (safetensors or ONNX)")
    problems += [text for name in found for text in weights_problems(folder / name)]
    pdf = folder / f"{task}.pdf"
    if not pdf.is_file():
        problems.append(f"{task}: no {pdf.name}")
    elif pdf_hashes(pdf).get("notebook") != (notebook_hash(nb) if nb else None):
        problems.append(f"{pdf.name}: not made from the present notebook")
    return problems


def weights_problems(path: Path) -> list[str]:
    """Whether a weights file can be loaded (safetensors header, ONNX checker); others pass."""
    try:
        if path.suffix == ".safetensors":
            safetensors_header(path)
        elif path.suffix == ".onnx":
            import onnx

            onnx.checker.check_model(str(path))
    except InputError as error:
        return [str(error)]
    except Exception as error:  # noqa: BLE001 onnx raises its own, protobuf's and plain errors
        return [f"{path.name}: not a valid ONNX model: {' '.join(str(error).split())[:120]}"]
    return []


def generated_problems() -> list[str]:
    """Generated texts that are not up to date; which rows are marked as stale does not matter."""
    try:
        texts = generated_texts()
    except InputError as error:
        return [str(error)]
    return [
        f"{path.relative_to(paths.ROOT)}: not up to date (make results)"
        for path, text in texts.items()
        if not path.is_file()
        or without_marks(path.read_text(encoding="utf-8")) != without_marks(text)
    ]


def ruff_problems() -> list[str]:
    """Findings of ruff (rules and format), one per line."""
    return [
        *ruff_findings("check", "--output-format", "json"),
        *ruff_findings("format", "--check", "--output-format", "json"),
    ]


def ruff_findings(*arguments: str) -> list[str]:
    """What one call of ruff finds in the tree; its last line where it fails itself."""
    result = subprocess.run(
        [sys.executable, "-m", "ruff", *arguments, "."],
        cwd=paths.ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if result.returncode not in (0, 1):
        return [f"ruff: {result.stderr.strip().splitlines()[-1]}"]
    return [
        f"{Path(found['filename']).relative_to(paths.ROOT)}:{found['location']['row']}: "
        f"{found['code']} {found['message']}"
        for found in json.loads(result.stdout or "[]")
    ]


def task_problems(task: str) -> list[str]:
    """All problems of one published task."""
    notebook = paths.ROOT / task / f"{task}.ipynb"
    problems = notebook_problems(notebook, task)
    if notebook.is_file():
        problems += run_problems(paths.WEIGHTS / task, notebook, task)
    size = too_large(products(paths.WEIGHTS / task))
    return problems + ([f"{task}: {size}"] if size else [])


@command_line
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.check_notebooks", description=__doc__)
    parser.add_argument("tasks", nargs="*", help="default: every task folder")
    parser.add_argument("--strict", action="store_true", help="a stale run is a problem")
    options = parser.parse_args(arguments)
    tasks = [check_task(task) for task in options.tasks or paths.list_tasks()]
    problems = [problem for task in tasks for problem in task_problems(task)]
    problems += generated_problems() + ruff_problems()
    problems += [f"tree: {size}"] if (size := tree_too_large()) else []
    stale = {task: reasons for task in tasks if (reasons := stale_reasons(task))}
    for reasons in stale.values():
        print(*(f"stale: {reason}" for reason in reasons), sep="\n")
    for problem in problems:
        print(problem)
    print(f"{len(tasks)} task(s): {len(problems) or 'no'} problem(s), {len(stale) or 'none'} stale")
    return 1 if problems or (stale and options.strict) else 0


if __name__ == "__main__":
    main()
