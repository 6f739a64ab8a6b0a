"""The ONNX Runtime engines of CMSSW releases, as their wheels on PyPI, each in its own environment.

CMSSW brings its own build of ONNX Runtime; the wheel of the same version is the nearest thing to it
outside. Old wheels need old interpreters, which are used where the machine has them.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from e2e_utils.files import atomic_path, remove

WORKER = Path(__file__).with_name("engine_worker.py")
PATIENCE = 150  # seconds for the installation of one engine


@dataclass(frozen=True)
class Engine:
    """One version of ONNX Runtime, the interpreter its wheel needs, the releases that carry it."""

    version: str
    python: str
    releases: str


OLD_ENGINES = (
    Engine("1.0.0", "3.7", "11_0_1"),
    Engine("1.3.0", "3.8", "10_6_14+, 11_2_X"),
    Engine("1.7.0", "3.8", "11_3_X, 12_0_2 (1.7.2)"),
)


class EngineMissing(Exception):
    """This machine cannot provide an engine; the text says why."""


def find_interpreter(version: str) -> str:
    """A CPython of this minor version: on the PATH, or one of pyenv. Raises EngineMissing."""
    named = shutil.which(f"python{version}")
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [named] if named else []
    candidates += [str(path) for path in sorted(pyenv.glob(f"{version}.*/bin/python"))]
    for candidate in candidates:
        command = [candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        if found.returncode == 0 and found.stdout.strip() == version:
            return candidate
    raise EngineMissing(f"no CPython {version} on this machine")


def install(engine: Engine, folder: Path) -> str:
    """Python of an environment below ``folder`` that has the engine, made where it is missing.

    Raises EngineMissing without the interpreter or when the wheel cannot be installed.
    """
    environment = folder / f"onnxruntime-{engine.version}"
    python = environment / "bin" / "python"
    if (environment / "ready").is_file():
        return str(python)
    interpreter = find_interpreter(engine.python)
    remove(environment)
    packages = [f"onnxruntime=={engine.version}", "numpy<1.25", "protobuf<3.21"]
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in ([interpreter, "-m", "venv", str(environment)], [*pip, *packages]):
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=PATIENCE
            )
        except subprocess.TimeoutExpired as error:
            raise EngineMissing(f"installation took longer than {PATIENCE} s") from error
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
            raise EngineMissing(f"installation failed: {lines[-1]}")
    (environment / "ready").touch()
    return str(python)


def run_worker(
    python: str,
    model: Path,
    frames: Mapping[str, np.ndarray],
    folder: Path,
    events: int = 0,
    sessions: int = 0,
) -> tuple[dict[str, np.ndarray], dict]:
    """Scores of every array of frames (n, 1, 32, 32), and a report with the timing.

    ``events`` events of one and of two frames are timed with one session, up to ``sessions`` of
    them with a session each. Raises RuntimeError with the worker's message if it fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source, target = folder / "frames.npz", folder / "scores.npz"
    with atomic_path(source) as temporary, temporary.open("wb") as stream:
        np.savez(stream, frames_per_event=[1, 2], events=events, sessions=sessions, **frames)
    command = [python, str(WORKER), str(model), str(source), str(target)]
    # One thread, and none of this environment's packages in an older interpreter.
    variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    variables |= {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    if done.returncode:
        raise RuntimeError(f"{WORKER.name}: {done.stderr.strip()[-500:]}")
    with np.load(target) as stored:
        scores = {name: stored[name] for name in frames}
        report = json.loads(str(stored["report"]))
    for path in (source, target):
        path.unlink()
    return scores, report


def current_python() -> str:
    """The interpreter of this process: it has the engine that the project pins."""
    return sys.executable
