"""The C++ path outside CMSSW: compile it, write its input, run it.

The frame code (E2EInference/ElectronPhoton) is the one that cmsRun runs; only the call of ONNX
Runtime differs, see onnxruntime_api.h.
"""

import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from e2e_utils.errors import InputError
from e2e_utils.files import atomic_path

HERE = Path(__file__).resolve().parent
CMSSW = HERE.parent
PACKAGE = CMSSW / "E2EInference/ElectronPhoton"
SOURCES = (HERE / "score_events.cc", PACKAGE / "src/PhotonFrames.cc")
HEADERS = (HERE / "onnxruntime_api.h", PACKAGE / "interface/PhotonFrames.h")
FLAGS = ("-O2", "-std=c++17", "-Wall", "-Wextra", "-Werror")

Crystals = Sequence[Sequence[int]]
Event = tuple[Crystals, Sequence[float], Crystals]


def build(directory: str | Path, cxx: str = "g++") -> Path:
    """Compile ``score_events`` into ``directory`` unless these very sources are there; its path.

    Raises InputError if there is no compiler, RuntimeError with its words if it fails.
    """
    compiler = shutil.which(cxx)
    if compiler is None:
        raise InputError(
            f"{cxx}: expected a C++17 compiler on the PATH, found none; install g++ "
            "(Debian, Ubuntu: apt-get install g++)"
        )
    content = b"".join(path.read_bytes() for path in (*SOURCES, *HEADERS))
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    key = hashlib.sha256(content + version + " ".join(FLAGS).encode()).hexdigest()[:16]
    binary = Path(directory) / f"score_events-{key}"
    if not binary.exists():
        with atomic_path(binary) as temporary:
            command = [compiler, *FLAGS, f"-I{CMSSW}", f"-I{HERE}", *map(str, SOURCES)]
            run = subprocess.run(
                [*command, "-o", str(temporary), "-ldl"], capture_output=True, text=True
            )
            if run.returncode:
                raise RuntimeError(f"{cxx} could not compile score_events:\n{run.stderr}")
    return binary


def find_library() -> Path:
    """The shared library of the installed onnxruntime package."""
    import onnxruntime

    folder = Path(onnxruntime.__file__).parent / "capi"
    found = sorted(folder.glob("libonnxruntime.so.*"))
    if not found:
        raise InputError(
            f"{folder.name}: expected libonnxruntime.so.<version> in the onnxruntime package, "
            "found none (a wheel for another system); name the library of another package"
        )
    return found[-1]


def write_events(path: str | Path, events: Iterable[Event]) -> Path:
    """Write the event file of score_events.cc.

    ``events``: for each event (crystals, energy, seeds): the hits' crystals (n, 2) as (ieta, iphi)
    and energies (n,) in GeV, and the seed crystal of every photon (p, 2), (0, 0) for one without a
    frame. Raises InputError if an event has unequal numbers of crystals and energies.
    """
    columns: list[list[np.ndarray]] = [[], [], []]
    for number, (crystals, energy, seeds) in enumerate(events):
        hits, photons = (np.asarray(part, "<i4").reshape(-1, 2) for part in (crystals, seeds))
        energies = np.asarray(energy, "<f4")
        if len(hits) != len(energies):
            raise InputError(
                f"{Path(path).name}: expected one energy per hit, found {len(hits)} crystals and "
                f"{len(energies)} energies in event {number}; correct the arrays"
            )
        for column, array in zip(columns, (hits, energies, photons), strict=True):
            column.append(array)
    hits, energies, photons = columns
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        hit_offsets, photon_offsets = offsets(hits), offsets(photons)
        np.array([len(photons), hit_offsets[-1], photon_offsets[-1]], "<i8").tofile(file)
        for part in ([hit_offsets], hits, energies, [photon_offsets], photons):
            for array in part:
                array.tofile(file)
    return Path(path)


def offsets(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Where each array starts in their concatenation, and its end: (len(arrays) + 1,) int64."""
    return np.cumsum([0, *map(len, arrays)]).astype("<i8")


def score_events(
    binary: str | Path,
    library: str | Path,
    model: str | Path,
    events_file: str | Path,
    *,
    session_per_event: bool = False,
    warmup: int = 0,
    frames: str | Path | None = None,
) -> tuple[pd.DataFrame, dict]:
    """Run ``score_events``: scores (columns event, photon, score) and what it measured.

    A photon without a frame has the score -1. The dictionary holds engine (its version), mode,
    events, photons, session_ms (creation of the session; mean over the events with one session per
    event), and event_us (events,), the real time of frames, session if it is per event, and
    inference. ``frames``: file for the frames (n, 1, 32, 32) float32 of the photons that have one.
    Raises InputError with the words of the program if it refuses its input.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "scores.csv"
        command = [str(binary), "--library", str(library), "--model", str(model)]
        command += ["--events", str(events_file), "--out", str(out), "--warmup", str(warmup)]
        command += ["--session-per-event"] if session_per_event else []
        command += ["--frames", str(frames)] if frames is not None else []
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode == InputError.exit_code:
            raise InputError(run.stderr.strip().splitlines()[-1].removeprefix("error: "))
        if run.returncode:
            raise RuntimeError(f"score_events ended with code {run.returncode}:\n{run.stderr}")
        scores = pd.read_csv(out, dtype={"score": np.float32})
    timing = json.loads(run.stdout)
    timing["event_us"] = np.array(timing["event_us"])
    return scores, timing
