"""`make score TASK=common_task1 DATA=a.hdf5,b.hdf5`: a published network on another sample.

The ONNX file takes the raw official input, so no training code is involved: the sample is read and
checked like any other, scored in batches by ONNX Runtime on the CPU, and reported with intervals.
What is reported depends on the kind of the model: tools/scoring.
"""

import argparse
import importlib
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import onnxruntime

from e2e_utils import paths
from e2e_utils.errors import InputError, command_line
from e2e_utils.onnx_export import open_session
from e2e_utils.paths import display_path
from e2e_utils.profiles import PROFILES
from tools.provenance import check_task
from tools.wording import Entries

CLASSIFICATION = "binary_classification"
KINDS = {  # of models -> the module that scores them
    CLASSIFICATION: "tools.scoring.classification",
    "regression": "tools.scoring.regression",
    "super_resolution": "tools.scoring.super_resolution",
    "generated_or_real": "tools.scoring.generated",
}
NEEDS = {CLASSIFICATION: "require_both_classes", "regression": "require_masses"}
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


class Scored(NamedTuple):
    """What scoring a sample gives."""

    predictions: Path
    metrics: Entries  # with intervals; empty where the sample allows none


def opened(path: Path) -> tuple[onnxruntime.InferenceSession, dict[str, str], ModuleType]:
    """An exported model, its card, and the module of KINDS that scores it."""
    session = open_session(path)
    card = session.get_modelmeta().custom_metadata_map
    kind = card.get("kind", CLASSIFICATION)
    if kind not in KINDS:
        raise InputError(
            f"{path}: expected a model for {' or '.join(KINDS)}, found {kind}; "
            "choose another with MODEL=..."
        )
    return session, card, importlib.import_module(KINDS[kind])


def score(
    task: str,
    data: str,
    model: str | None = None,
    out: Path | None = None,
    predictions_only: bool = False,
) -> Scored:
    """Score the events of ``data``, print the metrics, write the predictions.

    A sample of one class, or without masses, has no metrics: InputError unless
    ``predictions_only``.
    """
    check_task(task)
    path = find_model(task, model)
    out = out or paths.BUILD / "score" / f"{task}_{path.stem}.csv"
    if out.suffix not in SUFFIXES:
        raise InputError(f"{out}: expected a name that ends in .csv or .parquet; change OUT=...")
    session, card, scorer = opened(path)
    kind = card.get("kind", CLASSIFICATION)
    from data.loaders import LOADERS  # brings torch: only after the cheap checks

    if task not in LOADERS:
        raise InputError(
            f"{task}: expected a task that make score supports, found another; "
            f"known: {', '.join(LOADERS)}"
        )
    print(
        f"Model: {display_path(path)} ({card.get('profile', 'unknown')} profile, trained on "
        f"{TRAINED_ON.get(card.get('data_source'), 'unknown')} events)"
    )
    needs = NEEDS.get(kind)  # of the metrics
    options = {needs: not predictions_only} if needs else {}
    return Scored(out, scorer.score(session, LOADERS[task](path=data, **options), data, out))


@command_line
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.score", description=__doc__)
    parser.add_argument("task", nargs="?", default="", help="task folder")
    parser.add_argument("--data", default="", help="file(s) with the official schema, by commas")
    parser.add_argument("--model", help="name of another model of the task, or an ONNX file")
    parser.add_argument("--out", type=Path, help="predictions (.csv or .parquet)")
    parser.add_argument(
        "--predictions-only",
        action="store_true",
        help="accept a sample of one class, or without masses",
    )
    options = parser.parse_args(arguments)
    usage = "make score TASK=common_task1 DATA=a.hdf5,b.hdf5"
    if not options.task or not options.data:
        missing = "TASK" if not options.task else "DATA"
        raise InputError(f"{missing}: expected a value, found none; {usage}")
    score(options.task, options.data, options.model, options.out, options.predictions_only)


if __name__ == "__main__":
    main()
