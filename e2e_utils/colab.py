"""Colab: install what its image lacks. Imports nothing that would have to be installed first."""

import importlib
import json
import subprocess
import sys

from e2e_utils.errors import InputError
from e2e_utils.paths import ROOT

NOTEBOOK, SIMULATION = "requirements-colab.txt", "requirements-simulation.txt"


def install_missing() -> None:
    """On Colab, install the packages that are missing and say which; elsewhere do nothing.

    Without those of the simulation, where Python is too new for them, official data can be used.
    Raises InputError with pip's error if a notebook cannot run.
    """
    if "google.colab" not in sys.modules:
        return
    names, error = _install(NOTEBOOK, SIMULATION)
    without = ""
    if error:
        names, error = _install(NOTEBOOK)
        without = '; events cannot be simulated here, set DATA_SOURCE = "official" below'
    if error:
        raise InputError(
            f"{NOTEBOOK}: expected packages that pip can install, found: {error}; "
            "run this cell again, or Runtime > Disconnect and delete runtime first"
        )
    importlib.invalidate_caches()
    print(f"Colab: {'installed ' + ', '.join(names) if names else 'nothing to install'}{without}")


def _install(*files: str) -> tuple[list[str], str]:
    """Names that pip installed for requirements files, and its last error where it failed."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--report", "-"]
    command += ["--disable-pip-version-check", "--only-binary", ":all:"]
    command += [part for file in files for part in ("-r", str(ROOT / file))]
    pip = subprocess.run(command, capture_output=True, text=True, check=False)
    if pip.returncode:
        errors = [line for line in pip.stderr.splitlines() if line.startswith("ERROR")]
        return [], errors[-1] if errors else f"exit code {pip.returncode}"
    report = json.loads(pip.stdout)
    return [item["metadata"]["name"] for item in report["install"] if item["requested"]], ""
