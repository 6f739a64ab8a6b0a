"""`make independent`: the published models on stand-in events that nobody has seen.

What a reviewer does: another sample (another seed and, where the simulation knows how, a detector
with other noise and more pile-up) is written in the official schema and scored like any file.
Results: weights/independent.json and, from it, the model cards.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from e2e_utils import paths
from e2e_utils.errors import InputError, command_line
from e2e_utils.files import sha256, write_json
from e2e_utils.profiles import PROFILES
from tools.model_cards import independent_file
from tools.provenance import read_json
from tools.results_table import update
from tools.score import find_model, score

SEED = 20261128  # of no other sample of this project
EVENTS = dict(zip(PROFILES, (200, 2_000, 20_000, 100_000), strict=True))  # of one sample
OTHER_SEED, HARSHER = "another seed", "more noise and pile-up"


def _egamma(n_events: int, folder: Path) -> Sequence[Path]:
    from data.simulate.egamma import generate

    return generate(n_events, folder, SEED)


def _higgs(n_events: int, folder: Path) -> Sequence[Path]:
    from data.simulate.higgs import generate

    return [generate(n_events, folder, SEED)]


def _jets(n_events: int, folder: Path) -> Sequence[Path]:
    from data.simulate.jets import generate

    return [generate(n_events, folder, SEED)]


def _tops(n_events: int, folder: Path, conditions: str = "nominal") -> Sequence[Path]:
    from data.simulate.top_gun import generate

    return [generate(n_events, folder, SEED, conditions=conditions)]


def _jets8(n_events: int, folder: Path) -> Sequence[Path]:
    from data.loaders.jets8 import simulate_labelled

    return [simulate_labelled(n_events, folder, SEED)]


# Task -> its samples: name -> maker of files, from the number of events and their folder.
SAMPLES: dict[str, dict[str, Callable[[int, Path], Sequence[Path]]]] = {
    "common_task1": {OTHER_SEED: _egamma},
    "task2a_higgs_transformer": {OTHER_SEED: _higgs},
    "task2b_superres_gan": {OTHER_SEED: _jets},
    "task2c_sparse_vae": {OTHER_SEED: _jets8},
    "task2e_mass_regression": {
        OTHER_SEED: _tops,
        HARSHER: lambda n_events, folder: _tops(n_events, folder, "harsh"),
    },
    "task2g_ssl_vit": {OTHER_SEED: _jets8},
    "task2h_graph_jets": {OTHER_SEED: _jets},
    "task2i_foundation": {OTHER_SEED: _jets8},
}


def score_samples(task: str, profile: str) -> list[dict]:
    """Simulate a task's samples and score its published model on them: entries for the file."""
    model = find_model(task)
    if model.parent != paths.WEIGHTS / task:
        raise InputError(
            f"weights/{task}/{task}.onnx: expected a published model, found none; "
            f"run make publish PROFILE=standard TASK={task} first"
        )
    results = []
    for sample, make in SAMPLES[task].items():
        print(f"{task}: {sample}")
        files = make(EVENTS[profile], paths.STANDIN / "independent")
        out = paths.BUILD / "score" / f"{task}_{sample.replace(' ', '_')}.parquet"
        metrics = score(task, ",".join(map(str, files)), out=out).metrics
        results.append(
            {
                "sample": sample,
                "events": EVENTS[profile],
                "model": sha256(model),
                "metrics": metrics,
            }
        )
    return results


@command_line
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.independent", description=__doc__)
    parser.add_argument("tasks", nargs="*", help="task folders; all that have samples if none")
    parser.add_argument("--profile", choices=PROFILES, default="standard")
    options = parser.parse_args(arguments)
    for task in options.tasks:
        if task not in SAMPLES:
            raise InputError(
                f"{task}: expected a task with independent samples, found none; "
                f"known: {', '.join(SAMPLES)}"
            )
    for task in options.tasks or SAMPLES:
        results = score_samples(task, options.profile)  # kept at once: minutes lie between tasks
        known = read_json(independent_file()) | {task: results}
        write_json(independent_file(), dict(sorted(known.items())))
    update()


if __name__ == "__main__":
    main()
