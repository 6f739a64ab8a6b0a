"""`make score TASK=common_task1 DATA=a.hdf5,b.hdf5`: a published network on another sample.

The ONNX file takes the raw official input, so no training code is involved: the sample is read and
checked like any other, scored in batches by ONNX Runtime on the CPU, and reported with intervals.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime

from e2e_utils import paths
from e2e_utils.errors import InputError, command_line
from e2e_utils.files import atomic_path
from tools.provenance import PROFILES, check_task, display_path
from tools.wording import entry_text, label

BATCH = 512
SUFFIXES = (".csv", ".parquet")
TRAINED_ON = {"official": "official", "standin": "simulated stand-in", "file": "given"}


def find_model(task: str, model: str | None = None) -> Path:
    """The published ONNX file of a task, else that of the largest profile that was run.

    ``model`` is a name like "energy_only" or the path of an ONNX file. Raises InputError if there
    is none.
    """
    if model and model.endswith(".onnx"):
        if not Path(model).is_file():
            raise InputError(f"{model}: expected an ONNX file, found none; check MODEL=...")
        return Path(model)
    name = f"{model or task}.onnx"
    folders = [paths.WEIGHTS / task]
    folders += [paths.run_directory(profile, task) for profile in reversed(PROFILES)]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    known = sorted({path.stem for folder in folders for path in folder.glob("*.onnx")})
    raise InputError(
        f"weights/{task}/{name}: expected an exported model, found "
        + (f"only {', '.join(known)}; choose one with MODEL=..." if known else "none; ")
        + ("" if known else f"run make {task} first")
    )


def open_model(path: Path, threads: int = 0) -> onnxruntime.InferenceSession:
    """ONNX Runtime session on the CPU; raises InputError for a file that is no model."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base class
        raise InputError(
            f"{path}: expected an ONNX model, found {' '.join(str(error).split())[:120]}; "
            "export it again"
        ) from error


def official_layout(batch: np.ndarray, expected: tuple[int, ...], name: str) -> np.ndarray:
    """(B, C, H, W) images in the layout of a model's input without its batch axis.

    Official files keep the channels last, (B, H, W, C), or first. Raises InputError for images
    of another shape.
    """
    channel_last = np.moveaxis(batch, 1, -1)  # (B, H, W, C)
    if channel_last.shape[1:] == expected:
        return np.ascontiguousarray(channel_last)
    if batch.shape[1:] == expected:
        return batch
    raise InputError(
        f"{name}: expected images {expected} as the model does, found {channel_last.shape[1:]}; "
        "choose the task that these events belong to"
    )


def raw_batches(sample, expected: tuple[int, ...], name: str) -> Iterator[np.ndarray]:
    """Events of a sample, of images or of a table's low-level columns, as a model takes them.

    ``expected`` is the shape of one event. Raises InputError for events of another shape.
    """
    if hasattr(sample, "images"):
        for _, dense in sample.images.iter_dense(BATCH):
            yield official_layout(dense.numpy(), expected, name)
        return
    columns = sample.low_level.shape[1:]
    if columns != expected:
        raise InputError(
            f"{name}: expected events {expected} as the model does, found {columns}; "
            "choose the task that these events belong to"
        )
    for first in range(0, len(sample.y), BATCH):
        yield np.ascontiguousarray(sample.low_level[first : first + BATCH])


def predict(session: onnxruntime.InferenceSession, sample, name: str) -> Iterator[np.ndarray]:
    """P(class 1) of every event, (B,) a batch, in the order of the sample."""
    entry = session.get_inputs()[0]
    for batch in raw_batches(sample, tuple(entry.shape[1:]), name):
        (probability,) = session.run(None, {entry.name: batch})
        yield np.asarray(probability, dtype=np.float32).reshape(-1)


def write_predictions(path: Path, y: np.ndarray, probability: np.ndarray) -> None:
    """Columns event, label, probability as CSV or parquet, by the suffix; atomic."""
    import pandas as pd

    table = pd.DataFrame({"event": np.arange(len(y)), "label": y, "probability": probability})
    with atomic_path(path) as temporary:
        if path.suffix == ".parquet":
            table.to_parquet(temporary, index=False)
        else:
            table.to_csv(temporary, index=False, float_format="%.7g")


def report(y: np.ndarray, probability: np.ndarray) -> str:
    """All metrics with intervals, one a line; of one class only its mean probability."""
    from e2e_utils.evaluation import evaluate_classifier

    counts = np.bincount(y, minlength=2)
    if counts.min() == 0:
        return (
            f"  no metrics: all events have label {y[0]}; "
            f"mean P(class 1) = {probability.mean():.4f}"
        )
    entries = evaluate_classifier(y, probability)
    width = max(len(label(name)) for name in entries)
    return "\n".join(f"  {label(name):{width}s}  {entry_text(e)}" for name, e in entries.items())


def score(
    task: str,
    data: str,
    model: str | None = None,
    out: Path | None = None,
    predictions_only: bool = False,
) -> Path:
    """Score the events of ``data``, print the metrics, write the predictions; where they are.

    A sample of one class has no metrics: InputError unless ``predictions_only``.
    """
    check_task(task)
    path = find_model(task, model)
    out = out or paths.BUILD / "score" / f"{task}_{path.stem}.csv"
    if out.suffix not in SUFFIXES:
        raise InputError(f"{out}: expected a name that ends in .csv or .parquet; change OUT=...")
    session = open_model(path)
    card = session.get_modelmeta().custom_metadata_map
    kind = card.get("kind", "binary_classification")
    if kind != "binary_classification":
        raise InputError(
            f"{path}: expected a model for binary_classification, found {kind}; "
            "choose another with MODEL=..."
        )
    from e2e_utils.datasets import LOADERS  # brings torch: only after the cheap checks

    if task not in LOADERS:
        raise InputError(f"{task}: expected a task with a loader, found none; see e2e_utils")
    print(
        f"Model: {display_path(path)} ({card.get('profile', 'unknown')} profile, trained on "
        f"{TRAINED_ON.get(card.get('data_source'), 'unknown')} events)"
    )
    sample = LOADERS[task](path=data, require_both_classes=not predictions_only)
    probability = np.concatenate(list(predict(session, sample, data)))
    print(f"{len(sample.y):,} events scored; brackets: 95 % bootstrap interval")
    print(report(sample.y, probability))
    write_predictions(out, sample.y, probability)
    print(f"Predictions: {display_path(out)}")
    return out


@command_line
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.score", description=__doc__)
    parser.add_argument("task", nargs="?", default="", help="task folder")
    parser.add_argument("--data", default="", help="file(s) with the official schema, by commas")
    parser.add_argument("--model", help="name of another model of the task, or an ONNX file")
    parser.add_argument("--out", type=Path, help="predictions (.csv or .parquet)")
    parser.add_argument(
        "--predictions-only", action="store_true", help="accept a sample of one class"
    )
    options = parser.parse_args(arguments)
    usage = "make score TASK=common_task1 DATA=a.hdf5,b.hdf5"
    if not options.task or not options.data:
        missing = "TASK" if not options.task else "DATA"
        raise InputError(f"{missing}: expected a value, found none; {usage}")
    score(options.task, options.data, options.model, options.out, options.predictions_only)


if __name__ == "__main__":
    main()
