"""What is stale: published runs whose scripts or modules were changed afterwards."""

from collections.abc import Iterator

from e2e_utils import paths
from tools.notebook_outputs import joined
from tools.provenance import code_state, read_json, source_hash


def is_stale(task: str) -> bool:
    """Whether the script was changed after the run of the published notebook."""
    nb = read_json(paths.ROOT / task / f"{task}.ipynb")
    recorded = nb.get("metadata", {}).get("e2e", {}).get("source_hash")
    return bool(nb.get("cells")) and recorded != source_hash(task)


def stale_reasons(task: str) -> list[str]:
    """In which ways the published run of a task is older than its sources."""
    name = f"{task}.ipynb"
    nb = read_json(paths.ROOT / task / name)
    if not nb.get("cells"):
        return []
    reasons = []
    if is_stale(task):
        differences = list(cell_differences(nb, task))
        differences = differences or [f"executed with other sources beside {task}.py"]
        reasons = [f"{name}: {text}" for text in differences]
    provenance = read_json(paths.WEIGHTS / task / "metrics.json").get("provenance", {})
    return reasons + [f"{task}: {text}" for text in code_differences(provenance, task)]


def cell_differences(nb: dict, task: str) -> Iterator[str]:
    """Differences between a notebook's cells and those of the percent script (the first one)."""
    import jupytext

    expected = jupytext.read(paths.script_path(task), fmt="py:percent").cells
    if len(expected) != len(nb["cells"]):
        yield f"{len(nb['cells'])} cells, {task}.py has {len(expected)}"
    for number, (want, have) in enumerate(zip(expected, nb["cells"], strict=False), 1):
        if want["cell_type"] != have["cell_type"]:
            yield f"cell {number} is {have['cell_type']}, in {task}.py {want['cell_type']}"
            return
        if want["source"] != joined(have["source"]):
            yield f"cell {number} differs from {task}.py"
            return


def code_differences(provenance: dict, task: str) -> Iterator[str]:
    """Modules that were changed since a run, from the hashes that it recorded."""
    if not provenance:
        return
    recorded = provenance.get("code")
    if recorded is None:
        yield "made with earlier code, of which no hashes were recorded"
        return
    source = provenance.get("requested_source", "auto")
    today = code_state(task, provenance["profile"], source)
    changed = [name for name in recorded | today if recorded.get(name) != today.get(name)]
    if changed:
        yield f"made with earlier code of {', '.join(sorted(changed))}"
