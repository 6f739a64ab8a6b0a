"""The ONNX Runtime engines of CMSSW releases, as their wheels on PyPI, each in its own environment.

CMSSW brings its own build of ONNX Runtime; the wheel of the same version is the nearest thing to it
outside. Old wheels need old interpreters: ``prepare.py`` installs them where the machine has some.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from e2e_utils import paths
from e2e_utils.files import atomic_path

WORKER = Path(__file__).with_name("engine_worker.py")


@dataclass(frozen=True)
class Engine:
    """One version of ONNX Runtime, the interpreter its wheel needs, the releases that carry it."""

    version: str
    python: str
    releases: str
    sha256: str  # of the wheel for Linux on x86_64

    @property
    def environment(self) -> Path:
        """Folder of the engine's own environment; it holds a file ``ready`` when complete."""
        return paths.BUILD / "engines" / f"onnxruntime-{self.version}"


OLD_ENGINES = (
    Engine(
        "1.0.0", "3.7", "11_0_1",
        "610083918cb4513fee84d610d8d858b72e2689a93062001a075f095b58d456c6",
    ),
    Engine(
        "1.3.0", "3.8", "10_6_14+, 11_2_X",
        "0b2b2c3c19eb1a7669d7295ea0956f9f276cff2cfe33772084160964820a0acb",
    ),
    Engine(
        "1.7.0", "3.8", "11_3_X, 12_0_2 (1.7.2)",
        "c4e5c5193718163befd0c8f690aa11a9dcb39dc6366f70b926eef44a89cdedf6",
    ),
)  # fmt: skip


class EngineMissing(Exception):
    """This machine cannot provide an engine; the text says why."""


def interpreter(engine: Engine) -> str:
    """Python of the environment that has the engine. Raises EngineMissing if none was prepared."""
    if not (engine.environment / "ready").is_file():
        raise EngineMissing(
            f"not installed; `make data` does that on Linux with CPython {engine.python}"
        )
    return str(engine.environment / "bin" / "python")


def run_worker(
    python: str,
    model: Path,
    frames: Mapping[str, np.ndarray],
    folder: Path,
    events: int = 0,
    sessions: int = 0,
) -> tuple[dict[str, np.ndarray], dict]:
    """Scores of every array of frames (n, 1, 32, 32), and a report with the timing.

    With ``events``, that many events of two of the frames ``pairs`` are timed with one session, up
    to ``sessions`` of them with a session each. Raises RuntimeError with the worker's message if it
    fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source, target = folder / "frames.npz", folder / "scores.npz"
    with atomic_path(source) as temporary, temporary.open("wb") as stream:
        np.savez(stream, events=events, sessions=sessions, **frames)
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
