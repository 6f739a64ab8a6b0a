"""What of a run is published, and how large a clone may become.

A script names the headline's files in ``save_metrics(published=[...])``; further arms are made
again by running it. The PDFs and metrics.json do not count in a task's limit, only in the tree's.
"""

import subprocess
from fnmatch import fnmatch
from pathlib import Path

from e2e_utils import paths
from e2e_utils.errors import InputError
from e2e_utils.paths import display_path
from tools.provenance import products

TASK_LIMIT = 4_200_000  # bytes of weights, ONNX models and tables in weights/<task>/
TREE_LIMIT = 60_000_000  # bytes of all files of a clone, without its history


def published_products(run: Path, metrics: dict) -> list[Path]:
    """The files of a run that are published: those that its metrics.json names, else all.

    A file that is named in full is published; a pattern with wildcards gives as many files as fit
    into ``TASK_LIMIT``, in their order. Raises InputError for a name that no file has, and for more
    bytes than the limit in files that are named in full, or where nothing is named.
    """
    patterns, files = metrics.get("published", ["*"]), products(run)
    for pattern in patterns:
        if not any(fnmatch(file.name, pattern) for file in files):
            raise InputError(
                f"{display_path(run)}/metrics.json: expected files of the run in `published`, "
                f"found {pattern}, which is none of them; correct save_metrics of the script"
            )
    chosen = [file for file in files if file.name in patterns or patterns == ["*"]]
    for file in (file for pattern in patterns for file in files if fnmatch(file.name, pattern)):
        if file not in chosen and too_large([*chosen, file]) is None:
            chosen.append(file)
    problem = too_large(chosen)
    if problem:
        raise InputError(
            f"{display_path(run)}: {problem}; name the headline's files in "
            "save_metrics(published=[...]) of the script, with the models that make score needs"
        )
    return chosen


def too_large(files: list[Path]) -> str | None:
    """What is wrong with the size of a task's published files; None if nothing is."""
    return excess(files, TASK_LIMIT, "weights and models")


def tree_too_large() -> str | None:
    """What is wrong with the size of the whole tree; None if nothing is."""
    return excess(tree_files(), TREE_LIMIT, "files in the tree, without its history")


def excess(files: list[Path], limit: int, what: str) -> str | None:
    """The sizes of ``files`` in words, the largest first, where they exceed ``limit``."""
    sizes = sorted(((file.stat().st_size, file.name) for file in files), reverse=True)
    total = sum(size for size, _ in sizes)
    if total <= limit:
        return None
    named = ", ".join(f"{name} {size / 1e6:.2f} MB" for size, name in sizes[:12])
    return f"expected at most {limit / 1e6:g} MB of {what}, found {total / 1e6:.2f} MB ({named}" + (
        ", ...)" if len(sizes) > 12 else ")"
    )


def tree_files() -> list[Path]:
    """The files that the next commit would hold; none where this is no clone."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        result = subprocess.run(command, cwd=paths.ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    names = {name for name in result.stdout.decode().split("\0") if name}
    return [path for path in (paths.ROOT / name for name in sorted(names)) if path.is_file()]
