"""`make reword [TASK=...]`: today's words around the outputs of a published run of the same code.

An hour of training need not be repeated for a better sentence. Texts, comments, docstrings and the
settings of other profiles go into the published notebook; its PDF, README's table and the model
cards are written again. A script that computes anything else is refused: it has to run.
"""

import argparse
import shutil

from e2e_utils import paths
from e2e_utils.errors import InputError, command_line
from e2e_utils.files import remove
from e2e_utils.paths import display_path
from tools.imported_code import settled
from tools.notebook_outputs import joined
from tools.notebook_pdf.__main__ import export
from tools.provenance import (
    check_task,
    code_state,
    combined,
    read_json,
    script_hash,
    source_hash,
)
from tools.publish import promote
from tools.run_notebook import code_cells, load_script, rewrite
from tools.staleness import is_stale


def reword(task: str) -> None:
    """Raises InputError where nothing is published, or where the script's code is another."""
    check_task(task)
    published, notebook = paths.WEIGHTS / task, paths.ROOT / task / f"{task}.ipynb"
    executed = read_json(notebook)
    if not executed.get("cells") or not (published / "metrics.json").is_file():
        raise InputError(
            f"{display_path(notebook)}: expected a published run, found none; "
            f"run make {task} and publish it"
        )
    refuse_other_code(executed, task)
    draft = paths.BUILD / "reworded" / task
    remove(draft)
    try:
        shutil.copytree(published, draft)
        shutil.copy2(notebook, draft)
        stamp = {"source_hash": source_hash(task), "code_key": code_key(executed, task)}
        rewrite(draft, task, stamp)
        export(draft / notebook.name, draft / f"{task}.pdf")
        names = sorted(path.name for path in published.iterdir() if path.name != "metrics.json")
        promote(task, draft, names, read_json(draft / "metrics.json"))
    finally:
        remove(draft)


def refuse_other_code(executed: dict, task: str) -> None:
    """Raise InputError where a code cell of the script is not that of the executed notebook."""
    profile = executed["metadata"]["e2e"]["profile"]
    before, today = (
        [settled(joined(cell["source"]), profile) for cell in code_cells(nb)]
        for nb in (executed, load_script(task))
    )
    script = display_path(paths.script_path(task))
    if len(before) != len(today):
        found = f"{len(today)} cells of code where the published notebook has {len(before)}"
    else:
        pairs = enumerate(zip(before, today, strict=True), 1)
        changed = [number for number, (old, new) in pairs if old != new]
        found = f"other code in its cell {changed[0]} of code" if changed else ""
    if not found and not others_are_those_of(executed, task):
        found = "other sources beside it, other modules, or other networks that it builds on"
    if found:
        raise InputError(
            f"{script}: expected the code of the published notebook, found {found}; "
            f"run make {task} PROFILE={profile} and publish it"
        )


def code_key(executed: dict, task: str, source: str | None = None) -> str:
    """The key of a run's code, were it run today on its own events; ``source``: of its script.

    How many events another profile has is none of its business.
    """
    run = executed["metadata"]["e2e"]
    code = code_state(task, run["profile"], run.get("requested_source", "auto"))
    sources = script_hash(task, source=source)
    return combined(run["profile"], run.get("data_state", ""), sources, code, task)


def others_are_those_of(executed: dict, task: str) -> bool:
    """Whether everything but the script is what a published run used: its key, computed again."""
    cells = "\n".join(joined(cell["source"]) for cell in code_cells(executed))
    return executed["metadata"]["e2e"].get("code_key") == code_key(executed, task, cells)


@command_line
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.reword", description=__doc__)
    parser.add_argument("tasks", nargs="*", help="default: every task whose script has changed")
    options = parser.parse_args(arguments)
    for task in options.tasks or filter(is_stale, paths.list_tasks()):
        reword(task)
        print(f"{task}: reworded in {task}/ and weights/{task}/")


if __name__ == "__main__":
    main()
