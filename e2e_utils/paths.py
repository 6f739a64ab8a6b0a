"""Where things stand in the repository. The only module that knows folder names."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

DATA_FILES = Path(os.environ.get("E2E_DATA_DIR", ROOT / "data" / "files"))
OFFICIAL = DATA_FILES / "official"
STANDIN = DATA_FILES / "standin"
CACHE = DATA_FILES / "cache"

BUILD = Path(os.environ.get("E2E_BUILD_DIR", ROOT / "build"))
# Small samples of real events, for calibration and for a row of a notebook's table; optional.
REAL_SAMPLES = Path(os.environ.get("E2E_REAL_SAMPLES", ROOT.parent / "shared" / "data"))
WEIGHTS = ROOT / "weights"


def run_directory(profile: str, task: str) -> Path:
    """Folder that one run of a task's notebook writes into."""
    return BUILD / profile / task


def script_path(task: str) -> Path:
    """The percent script of a task: the edited source of its notebook."""
    return ROOT / task / f"{task}.py"


def display_path(path: Path) -> str:
    """A path as messages show it: relative to the repository where it lies in it."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def list_tasks() -> list[str]:
    """Names of the task folders, in the order of the brief."""
    return sorted(p.parent.name for p in ROOT.glob("*task*/*.py") if p.stem == p.parent.name)
