"""`make results`: README's results table and weights/README.md, from weights/*/metrics.json.

No number in these texts is typed by hand.
"""

import argparse
import json
from pathlib import Path

from e2e_utils import paths
from e2e_utils.errors import InputError, command_line
from e2e_utils.files import write_text
from tools.provenance import PRODUCT_PATTERNS

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
LABELS = {
    "roc_auc": "ROC-AUC",
    "accuracy": "accuracy",
    "mae": "MAE",
    "rmse": "RMSE",
    "r2": "R²",
    "fpd": "FPD",
    "kpd": "KPD",
    "expected_calibration_error": "calibration error",
    "background_rejection_50": "background rejection at 50 % signal efficiency",
    "background_rejection_80": "background rejection at 80 % signal efficiency",
}
LOWER_IS_BETTER = {
    "mae",
    "rmse",
    "fpd",
    "kpd",
    "c2st_auc_high",
    "c2st_auc_low",
    "expected_calibration_error",
}
SOURCES = {
    "official": "official",
    "standin": "**simulated stand-in**",
    "file": "other file",
}
STANDIN_NOTE = (
    "Results marked *simulated stand-in* were trained and tested on events that this repository "
    "simulates, because the official files could not be fetched where it was run. They show that "
    "the method works and how models compare with each other; **they must not be compared with "
    "numbers on the official data.** `make all DATA_SOURCE=official` produces those."
)
INTERVAL_NOTE = (
    "Brackets: 95 % bootstrap interval over test events; ±: standard deviation between trainings "
    "with different seeds."
)


def published_metrics() -> dict[str, dict]:
    """Task -> validated metrics of every published run, in the order of the tasks."""
    from e2e_utils.evaluation import load_metrics

    files = sorted(paths.WEIGHTS.glob("*/metrics.json"))
    return {file.parent.name: load_metrics(file) for file in files}


def label(metric: str) -> str:
    return LABELS.get(metric, metric.replace("_", " "))


def digits(value: float) -> str:
    """Format: four digits after the point for numbers around one, four significant for others."""
    return ".4f" if 0.01 <= abs(value) < 10 else ".4g"


def entry_text(entry: dict[str, float], bold: bool = False) -> str:
    """``0.8049 [0.8012, 0.8085] ± 0.0007``, all with the digits of the value."""
    form, mark = digits(entry["value"]), "**" if bold else ""
    value, low, high = (format(entry[name], form) for name in ("value", "low", "high"))
    text = f"{mark}{value}{mark} [{low}, {high}]"
    return text + (f" ± {entry['seed_std']:{form}}" if "seed_std" in entry else "")


def best_baseline(metrics: dict) -> tuple[str, dict] | None:
    """Name and headline entry of the baseline that the model has to beat."""
    headline = metrics["headline"]
    found = [
        (name, model[headline]) for name, model in metrics["baselines"].items() if headline in model
    ]
    if not found:
        return None
    sign = -1 if headline in LOWER_IS_BETTER else 1
    return max(found, key=lambda item: sign * item[1]["value"])


def title(metrics: dict) -> str:
    return metrics.get("title") or metrics["task"].replace("_", " ")


def results_block(published: dict[str, dict]) -> str:
    """README's block, markers included."""
    if not published:
        return f"{BEGIN}\nNo run has been published yet (`make publish PROFILE=standard`).\n{END}"
    lines = [
        "| Task | Result on the test set | Best baseline | Data | Profile | Files |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for task, metrics in published.items():
        baseline = best_baseline(metrics)
        entry = metrics["metrics"][metrics["headline"]]
        cells = [
            f"[{title(metrics)}]({task})",
            f"{label(metrics['headline'])} {entry_text(entry, bold=True)}",
            f"{baseline[0].replace('_', ' ')}: {entry_text(baseline[1])}" if baseline else "–",
            SOURCES[metrics["data"]["source"]],
            metrics["profile"],
            f"[notebook]({task}/{task}.ipynb) · [PDF](weights/{task}/{task}.pdf) · "
            f"[weights](weights/{task})",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", INTERVAL_NOTE]
    if any(metrics["data"]["source"] == "standin" for metrics in published.values()):
        lines += ["", STANDIN_NOTE]
    return "\n".join([BEGIN, *lines, END])


def with_block(readme: str, block: str, name: str = "README.md") -> str:
    """``readme`` with its results block replaced. Raises InputError without the two markers."""
    begin, end = readme.find(BEGIN), readme.find(END)
    if begin < 0 or end < begin:
        raise InputError(
            f"{name}: expected the markers {BEGIN} and {END}, found them not; put both into it"
        )
    return readme[:begin] + block + readme[end + len(END) :]


def model_cards(published: dict[str, dict]) -> str:
    """weights/README.md: one card a task."""
    lines = [
        "# Weights",
        "",
        "Generated by `make results` from the `metrics.json` files; edit nothing here.",
        "",
        "Every folder holds one published run: weights (safetensors), exported models (ONNX, raw "
        "official input, preprocessing inside), `metrics.json` and the notebook as PDF.",
    ]
    if any(metrics["data"]["source"] == "standin" for metrics in published.values()):
        lines += ["", STANDIN_NOTE]
    for task, metrics in published.items():
        lines += ["", *model_card(task, metrics)]
    return "\n".join(lines) + "\n"


def model_card(task: str, metrics: dict) -> list[str]:
    """Lines of one card."""
    folder = paths.WEIGHTS / task
    data = metrics["data"]
    source = {
        "official": "official files",
        "standin": "**simulated stand-in events** (`data/simulate`), not official data",
        "file": "events of other files",
    }[data["source"]]
    provenance = metrics.get("provenance", {})
    versions = provenance.get("versions", {})
    lines = [
        f"## {title(metrics)}",
        "",
        f"Notebook: [{task}.ipynb](../{task}/{task}.ipynb) · [PDF]({task}/{task}.pdf) · "
        f"[metrics.json]({task}/metrics.json)",
        "",
        "| | |",
        "| --- | --- |",
        f"| Parameters | {metrics['parameters']:,.0f} |",
        f"| FLOPs for one event | {metrics['flops']:,.0f} |",
        f"| Trained on | {source} |",
        f"| Events | {data['train']:,.0f} train, {data['validation']:,.0f} validation, "
        f"{data['test']:,.0f} test (fingerprint `{data['fingerprint']}`) |",
        f"| Profile | {metrics['profile']}, seeds {', '.join(map(str, metrics['seeds']))} |",
        f"| Run | {metrics['device']}, {metrics['seconds']:,.0f} s"
        + (f", PyTorch {versions['torch']}" if "torch" in versions else "")
        + " |",
        "",
        *metrics_table(metrics),
    ]
    files = sorted(path for pattern in PRODUCT_PATTERNS for path in folder.glob(pattern))
    if files:
        lines += ["", "| File | Bytes | SHA-256 |", "| --- | --- | --- |"]
        hashes = provenance.get("products", {})
        lines += [
            f"| [{path.name}]({task}/{path.name}) | {path.stat().st_size:,} "
            f"| `{hashes.get(path.name, '')}` |"
            for path in files
        ]
    models = [path for path in files if path.suffix == ".onnx"]
    for path in models:
        lines += ["", f"`{path.name}`: {onnx_signature(path)}"]
    lines += ["", "```python", *loading_example(task, files), "```"]
    return lines


def metrics_table(metrics: dict) -> list[str]:
    """All models of a run (the published one, arms, baselines, floors) by all metrics."""
    rows = {"**this model**": metrics["metrics"]}
    for kind, mark in (("arms", ""), ("baselines", " (baseline)"), ("floors", " (floor)")):
        for name, model in metrics[kind].items():
            rows[name.replace("_", " ") + mark] = model
    names = list(metrics["metrics"])
    lines = [
        "| Model | " + " | ".join(label(name) for name in names) + " |",
        "| --- |" + " --- |" * len(names),
    ]
    for model, entries in rows.items():
        cells = [entry_text(entries[name]) if name in entries else "–" for name in names]
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return lines


def onnx_signature(path: Path) -> str:
    """Inputs and outputs of an ONNX file in words."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    sides = []
    for values in (graph.input, graph.output):
        texts = []
        for value in values:
            tensor = value.type.tensor_type
            dimensions = [str(d.dim_param or d.dim_value) for d in tensor.shape.dim]
            kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
            texts.append(f"`{value.name}` ({', '.join(dimensions)}) {kind}")
        sides.append(", ".join(texts))
    return f"{sides[0]} → {sides[1]}"


def loading_example(task: str, files: list[Path]) -> list[str]:
    """Python lines that load the first ONNX and the first safetensors file."""
    lines = []
    names = [path.name for path in files]
    model = next((n for n in names if n == f"{task}.onnx"), None) or next(
        (n for n in names if n.endswith(".onnx")), None
    )
    if model:
        lines += [
            "import onnxruntime",
            f'session = onnxruntime.InferenceSession("weights/{task}/{model}")',
        ]
    weights = next((n for n in names if n.endswith(".safetensors")), None)
    if weights:
        lines += [
            "from safetensors.torch import load_file",
            f'state = load_file("weights/{task}/{weights}")',
            "from e2e_utils.notebook import load_definitions",
            f'definitions = load_definitions("{task}")  # the classes of the notebook',
        ]
    return lines


def safetensors_header(path: Path) -> dict:
    """Names, shapes and metadata in a safetensors file, without torch. Raises InputError."""
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
        end = max(
            (v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"), default=0
        )
    except (OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise InputError(
            f"{path}: expected a safetensors file, found {type(error).__name__}; run the task again"
        ) from error
    expected = 8 + length + end
    if path.stat().st_size != expected:
        raise InputError(
            f"{path}: expected {expected} bytes, found {path.stat().st_size}; run the task again"
        )
    return header


def generated_texts() -> dict[Path, str]:
    """Path -> content that the generated files should have."""
    published = published_metrics()
    readme = paths.ROOT / "README.md"
    if not readme.is_file():
        raise InputError(f"{readme}: expected the project's README, found none; restore it")
    text = with_block(readme.read_text(encoding="utf-8"), results_block(published))
    return {readme: text, paths.WEIGHTS / "README.md": model_cards(published)}


def update() -> list[Path]:
    """Write the generated files that are not up to date; which ones."""
    changed = []
    for path, text in generated_texts().items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
            changed.append(path)
    return changed


@command_line
def main(arguments: list[str] | None = None) -> None:
    argparse.ArgumentParser(prog="python -m tools.results_table", description=__doc__).parse_args(
        arguments
    )
    changed = update()
    for path in changed:
        print(f"written: {path.relative_to(paths.ROOT)}")
    if not changed:
        print("README.md and weights/README.md are up to date")


if __name__ == "__main__":
    main()
