"""`make colab-check`: every notebook, alone, in an environment with exactly Colab's packages.

    python -m tools.colab_check --python python3.13 [TASK ...]

Builds the environment of tests/colab_versions.txt (3 GB to download, once), asks pip whether
the requirements would replace any of it, and runs each notebook as Colab would: alone in an empty
folder, with nothing of the caller's shell, from a copy of the working tree that its first cell
clones; then again in the same kernel, and again after a restart. What is imitated is the software:
not Colab's GPU, memory or network.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
from pathlib import Path

from e2e_utils import paths
from e2e_utils.errors import InputError, command_line
from e2e_utils.files import remove, write_json
from e2e_utils.paths import ROOT
from tools.provenance import check_task, read_json

VERSIONS = ROOT / "tests" / "colab_versions.txt"
REQUIREMENTS = ("requirements-colab.txt", "requirements-simulation.txt")
SESSION = Path(__file__).with_name("colab_session.py")
# How to reach a package index and the data: a shell sets it for its machine, not for a project.
NETWORK = re.compile(r"PIP_.*|(https?|no|all)_proxy|.*_CA_BUNDLE|SSL_CERT_\w+", re.IGNORECASE)


def environment(folder: Path, python: str) -> Path:
    """Interpreter of the environment with Colab's packages and nothing else; built if missing."""
    interpreter, ready = folder / "bin" / "python", folder / "ready.json"
    wanted = {
        "versions": hashlib.sha256(VERSIONS.read_bytes()).hexdigest(),
        "python": _check([python, "-c", "import sys; print(*sys.version_info[:2])"]).strip(),
    }
    known = read_json(ready)
    if {name: known.get(name) for name in wanted} != wanted:
        print(f"{folder}: installing Colab's packages (some minutes, once) ...", flush=True)
        remove(folder)
        _check([python, "-m", "venv", str(folder)])
        _check([str(interpreter), "-m", "pip", "install", "--quiet", "-r", str(VERSIONS)])
        known = wanted | {"packages": packages(interpreter)}
        write_json(ready, known)
    added = sorted(set(packages(interpreter)) - set(known["packages"]))
    if added:  # by the notebooks of an earlier check
        _check([str(interpreter), "-m", "pip", "uninstall", "--quiet", "--yes", *added])
    if packages(interpreter) != known["packages"]:
        raise InputError(f"{folder}: expected Colab's versions, found others; delete the folder")
    return interpreter


def packages(interpreter: Path) -> dict[str, str]:
    """Versions of an environment's packages."""
    listed = _check([str(interpreter), "-m", "pip", "list", "--format", "json"])
    return {entry["name"]: entry["version"] for entry in json.loads(listed)}


def replaced(interpreter: Path) -> list[str]:
    """Packages of Colab that pip would replace for the requirements of the notebooks."""
    command = [str(interpreter), "-m", "pip", "install", "--dry-run", "--quiet", "--report", "-"]
    command += [part for file in REQUIREMENTS for part in ("-r", str(ROOT / file))]
    there = {normalised(name) for name in packages(interpreter)}
    coming = [item["metadata"] for item in json.loads(_check(command))["install"]]
    return [f"{p['name']} {p['version']}" for p in coming if normalised(p["name"]) in there]


def normalised(name: str) -> str:
    """The one spelling of a package's name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def copy_of_the_working_tree(folder: Path) -> str:
    """Address of a repository with one commit: the files as they are now, untracked ones too."""
    remove(folder)
    _check(["git", "init", "--quiet", "--bare", str(folder)])
    git = ["git", f"--git-dir={folder.resolve()}", f"--work-tree={ROOT}"]
    author = ["-c", "user.name=colab-check", "-c", "user.email=colab-check@localhost"]
    _check([*git, "-c", "core.bare=false", "add", "--all", "."])
    _check([*git, "-c", "core.bare=false", *author, "commit", "--quiet", "-m", "working tree"])
    return folder.resolve().as_uri()


def lone_notebook(task: str, repository: str, path: Path) -> None:
    """Write a task's notebook with its form filled in: this repository, profile smoke."""
    import jupytext
    import nbformat

    nb = jupytext.read(paths.script_path(task))
    fills = {"REPOSITORY": repository, "PROFILE": "smoke", "DATA_SOURCE": "auto"}
    for cell in nb["cells"]:
        for name, value in fills.items():
            if cell["cell_type"] == "code":
                cell["source"] = re.sub(
                    rf"^{name} = .*", f"{name} = {value!r}", cell["source"], flags=re.MULTILINE
                )
    path.parent.mkdir(parents=True)
    nbformat.write(nb, path)


def colab_home(folder: Path) -> dict[str, str]:
    """Variables of a session whose kernel has a module ``google.colab``, and no other files."""
    remove(folder)
    (folder / "modules" / "google" / "colab").mkdir(parents=True)
    (folder / "modules" / "google" / "colab" / "__init__.py").touch()
    startup = folder / ".ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00-colab.py").write_text("import google.colab\n")
    kept = {name: value for name, value in os.environ.items() if NETWORK.fullmatch(name)}
    return kept | {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "PYTHONPATH": str(folder / "modules"),
        "E2E_DATA_DIR": str(folder.parent / "files"),  # events are simulated once, for all tasks
    }


def run(task: str, interpreter: Path, repository: str, folder: Path) -> list[dict]:
    """The three runs of a task's notebook, those that were reached: see tools/colab_session.py."""
    content = folder / "content" / task
    remove(content)
    lone_notebook(task, repository, content / f"{task}.ipynb")
    session = [str(interpreter), str(SESSION), str(content / f"{task}.ipynb")]
    home = colab_home(folder / "home")
    done = subprocess.run(
        session, env=home, cwd=content, capture_output=True, text=True, check=False
    )
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode and not any(report["error"] for report in reports):
        reports.append({"run": "session", "seconds": 0, "printed": "", "error": done.stderr})
    if not done.returncode:
        remove(content)
    return reports


def table(reports: dict[str, list[dict]]) -> str:
    """One line per task: seconds of its runs, or what stopped it."""
    lines = [f"{'task':26s}{'first':>10s}{'again':>10s}{'restart':>10s}"]
    for task, runs in reports.items():
        cells = [f"{run['seconds']:.0f} s" if not run["error"] else "failed" for run in runs]
        lines.append(f"{task:26s}" + "".join(f"{cell:>10s}" for cell in cells))
    return "\n".join(lines)


def _check(command: list[str]) -> str:
    """Output of a command. Raises InputError with its last line where it fails, or is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise InputError(
            f"{command[0]}: expected a program, found none ({error.strerror}); name an interpreter "
            "that is installed with PYTHON=..."
        ) from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise InputError(f"{' '.join(command[:4])} ...: expected success, found: {lines[-1]}")
    return done.stdout


@command_line
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.colab_check", description=__doc__)
    parser.add_argument("tasks", nargs="*", help="default: all")
    parser.add_argument("--python", default="python3.13", help="an interpreter of Colab's version")
    parser.add_argument("--folder", type=Path, default=paths.BUILD / "colab-check")
    parser.add_argument("--environment", type=Path, default=paths.BUILD / "colab-env")
    options = parser.parse_args(arguments)
    tasks = [check_task(task) for task in options.tasks or paths.list_tasks()]
    interpreter = environment(options.environment, options.python)
    if found := replaced(interpreter):
        raise InputError(
            f"{' and '.join(REQUIREMENTS)}: expected nothing that Colab has, found "
            f"{', '.join(found)}; loosen a bound"
        )
    print("requirements: nothing that Colab has would be replaced", flush=True)
    repository = copy_of_the_working_tree(options.folder / "repository")
    reports = {}
    for task in tasks:
        reports[task] = run(task, interpreter, repository, options.folder)
        for report in reports[task]:
            outcome = report["error"] or f"{report['seconds']:.0f} s; {report['printed']}"
            print(f"{task}, {report['run']}: {outcome}", flush=True)
    print(table(reports))
    return int(any(report["error"] for runs in reports.values() for report in runs))


if __name__ == "__main__":
    main()
