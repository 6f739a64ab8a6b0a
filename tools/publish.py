"""`make publish PROFILE=standard [TASK=...]`: one complete run becomes the published one.

The notebook goes into the task folder, weights, metrics and PDF into weights/<task>/: all of them
or, after any failure, none. Then README's table and the model cards are written again.
"""

import argparse
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from e2e_utils import paths
from e2e_utils.errors import InputError, command_line
from e2e_utils.files import remove, reporting_full_disk, write_json
from e2e_utils.paths import display_path
from e2e_utils.profiles import PROFILES
from tools.check_notebooks import notebook_problems, run_problems
from tools.model_cards import OFFICIAL
from tools.provenance import (
    check_task,
    read_json,
    source_hash,
    stale_reason,
)
from tools.published_files import published_products, tree_too_large
from tools.results_table import generated_texts, update


def publish(task: str, profile: str, allow_smaller: bool = False) -> None:
    """Promote build/<profile>/<task>/. Raises InputError for a run that must not be published."""
    check_task(task)
    refuse_unfit(task, profile, allow_smaller)
    generated_texts()  # a README without markers is found before anything is moved
    run = paths.run_directory(profile, task)
    metrics = read_json(run / "metrics.json")
    chosen = published_products(run, metrics)
    names = [f"{task}.pdf", *(path.name for path in chosen)]
    promote(task, run, names, of_published(metrics, names))


def promote(task: str, run: Path, names: list[str], metrics: dict) -> None:
    """The notebook of ``run``, its files ``names`` and ``metrics`` become the published ones."""
    weights = paths.WEIGHTS / task
    notebook = paths.ROOT / task / f"{task}.ipynb"
    generated = [paths.ROOT / "README.md", paths.WEIGHTS / "README.md"]
    staging = weights.with_name(f".{task}.part")
    remove(staging)
    staged_notebook = notebook.with_name(f".{notebook.name}.part")
    try:
        with reporting_full_disk(weights):
            staging.mkdir(parents=True)
            for name in names:
                shutil.copy2(run / name, staging / name)
            write_json(staging / "metrics.json", metrics)
            shutil.copy2(run / notebook.name, staged_notebook)
            with rolled_back_on_error([weights, notebook, *generated]):
                os.replace(staging, weights)
                os.replace(staged_notebook, notebook)
                update()
                refuse_large_tree()
    finally:
        remove(staging)
        remove(staged_notebook)


def of_published(metrics: dict, names: list[str]) -> dict:
    """A run's metrics.json with its products divided into published ones and those left out."""
    provenance = metrics["provenance"]
    kept = {name: h for name, h in provenance["products"].items() if name in names}
    left_out = {name: h for name, h in provenance["products"].items() if name not in names}
    return {**metrics, "provenance": {**provenance, "products": kept, "left_out": left_out}}


def refuse_large_tree() -> None:
    """Raise InputError where a clone would become larger than ``TREE_LIMIT``."""
    size = tree_too_large()
    if size:
        raise InputError(f"the repository: {size}; publish fewer files or smaller figures")


@contextmanager
def rolled_back_on_error(targets: list[Path]) -> Iterator[None]:
    """Move ``targets`` that exist aside (files are copied), and back if the block raises.

    One that an earlier, killed call left aside is the last good copy: it is moved back first.
    """
    backups = {target: target.with_name(f".{target.name}.previous.part") for target in targets}
    for target, backup in backups.items():
        if backup.exists() and not target.exists():
            os.replace(backup, target)
        remove(backup)
    existed = {target for target in targets if target.exists()}
    try:
        for target in existed:
            if target.is_dir():
                os.replace(target, backups[target])
            else:
                shutil.copy2(target, backups[target])
        yield
    except BaseException:
        for target, backup in backups.items():
            if backup.exists():
                remove(target)
                os.replace(backup, target)
            elif target not in existed:
                remove(target)
        raise
    finally:
        for backup in backups.values():
            remove(backup)


def refuse_unfit(task: str, profile: str, allow_smaller: bool) -> None:
    """Raise InputError for a smoke run, an incomplete or outdated one, or a step backwards."""
    run = paths.run_directory(profile, task)
    where = display_path(run)
    again = f"run make all PROFILE={profile}"
    if profile == "smoke":
        raise InputError(f"{where}: expected a publishable profile, found smoke; use another")
    reason = stale_reason(run, task)
    if reason:
        raise InputError(f"{where}: expected a complete run, found {reason}; {again}")
    metrics = read_json(run / "metrics.json")
    if metrics["provenance"].get("source_hash") != source_hash(task):
        raise InputError(
            f"{where}: expected a run of today's {task}.py, found an older one; {again}"
        )
    if metrics.get("data", {}).get("source") == "file":
        raise InputError(
            f"{where}: expected a run on data of the catalog, found one on files given as DATA; "
            f"{again} without it"
        )
    false = [claim for claim, holds in metrics.get("claims", {}).items() if not holds]
    if false:
        raise InputError(
            f"{where}: expected all claims to hold, these do not: {'; '.join(false)}; "
            "correct the prose and its claims, or the network"
        )
    notebook = run / f"{task}.ipynb"
    problems = notebook_problems(notebook, task)
    problems += run_problems(run, notebook, task)
    if problems:
        raise InputError(f"{where}: expected a run without problems, found {problems[0]}; {again}")
    if not allow_smaller:
        refuse_smaller(where, metrics, read_json(paths.WEIGHTS / task / "metrics.json"))


def refuse_smaller(where: str, metrics: dict, published: dict) -> None:
    """Raise InputError where a published run has a larger profile, or official rows besides.

    A run leaves these rows out without a word where the sample of official events is not at hand.
    """
    profile, larger = metrics["profile"], published.get("profile")
    if larger in PROFILES and PROFILES.index(larger) > PROFILES.index(profile):
        raise InputError(
            f"{where}: expected profile {larger} or larger, as published already, "
            f"found {profile}; add --allow-smaller to replace it"
        )
    arms, before = (run.get("variants", {}).get(OFFICIAL, {}) for run in (metrics, published))
    lost = sorted(set(before) - set(arms))
    if lost and metrics["data"]["source"] != "official":
        raise InputError(
            f"{where}: expected results on official events, as published already, found none of "
            f"{', '.join(lost)}; run it again with the samples in E2E_REAL_SAMPLES, or add "
            "--allow-smaller"
        )


@command_line
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.publish", description=__doc__)
    parser.add_argument("tasks", nargs="*", help="default: every task that has a run")
    parser.add_argument("--profile", choices=PROFILES, default="standard")
    parser.add_argument(
        "--allow-smaller",
        action="store_true",
        help="replace a larger profile, or one with official rows",
    )
    options = parser.parse_args(arguments)
    tasks = options.tasks or [
        task
        for task in paths.list_tasks()
        if (paths.run_directory(options.profile, task) / "metrics.json").exists()
    ]
    if not tasks:
        raise InputError(
            f"build/{options.profile}: expected finished runs, found none; "
            f"run make all PROFILE={options.profile}"
        )
    for task in tasks:
        publish(task, options.profile, options.allow_smaller)
        print(f"{task}: published the {options.profile} run in {task}/ and weights/{task}/")


if __name__ == "__main__":
    main()
