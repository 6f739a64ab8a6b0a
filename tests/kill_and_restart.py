"""Kill `make all` at random moments, let it end at last, and compare its metrics.

``python tests/kill_and_restart.py [TASK ...] [--kills 20] [--seed 0]``; pytest does not collect it.
One run is left alone; the other is killed with SIGKILL, started again, and so on. The moments come
from the seed. Each kill hits, by chance, the whole process group, as the end of a batch job does,
or only the program that schedules the tasks, whose workers have to notice. A run that ends before
its moment counts as an end: it is compared and begun anew. Exit code 1 where anything but times
differs, where a run fails, or where processes outlive a killed program for long.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).resolve().parent.parent
# What is measured with a clock, or describes the run and not its result.
TIMES = re.compile(
    r"seconds|milliseconds(_.*)?|events_per_second|provenance|device|speedup|versions"
)
GRACE = 60.0  # seconds within which the processes of a killed program have to end


def differences(found: object, expected: object, place: str = "") -> Iterator[str]:
    """Where two metrics differ, times aside."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for name in sorted(found.keys() | expected.keys()):
            if TIMES.fullmatch(name):
                continue
            inner = f"{place}.{name}".lstrip(".")
            if name not in found or name not in expected:
                yield f"{inner}: only in the {'killed' if name in found else 'whole'} run"
            else:
                yield from differences(found[name], expected[name], inner)
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        for index, pair in enumerate(zip(found, expected, strict=True)):
            yield from differences(*pair, f"{place}[{index}]")
    elif found != expected and not (found != found and expected != expected):  # NaN is NaN
        yield f"{place}: {found} in the killed run, {expected} in the whole one"


def compare(killed: Path, whole: Path) -> list[str]:
    """Differences between the metrics of two build folders of one profile; names of tasks first."""
    problems = []
    tasks = sorted(path.parent.name for path in whole.glob("*/metrics.json"))
    for task in tasks:
        if not (killed / task / "metrics.json").is_file():
            problems.append(f"{task}: no metrics.json after the last start")
            continue
        found, expected = (
            json.loads((f / task / "metrics.json").read_text()) for f in (killed, whole)
        )
        problems += [f"{task}: {text}" for text in differences(found, expected)]
    return problems if tasks else ["the whole run wrote no metrics.json"]


class Runs:
    """Starts of `make` for one profile, with folders of their own for data and products."""

    def __init__(self, tasks: list[str], profile: str, root: Path = REPOSITORY) -> None:
        self.command = ["make", *(tasks or ["all"]), f"PROFILE={profile}"]
        self.command += ["VENV=0", f"PYTHON={sys.executable}"]
        self.root = root

    def start(self, folder: Path) -> subprocess.Popen:
        """Start make in a session of its own, with its products below ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        own = {"E2E_BUILD_DIR": str(folder / "build"), "E2E_DATA_DIR": str(folder / "data")}
        with (folder / "output.log").open("ab") as log:
            return subprocess.Popen(
                self.command, cwd=self.root, env=os.environ | own,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def whole(self, folder: Path) -> float:
        """Let a run come to its end; its seconds. Raises RuntimeError where it fails."""
        began = time.monotonic()
        code = self.start(folder).wait()
        if code:
            raise RuntimeError(f"make ended with {code}; see {folder.name}/output.log")
        return time.monotonic() - began


def kill(process: subprocess.Popen, everything: bool) -> int:
    """Send SIGKILL to a run, or only to make and its scheduling program; how many outlived it.

    Returns after all of its processes have ended, or after GRACE seconds.
    """
    family = [psutil.Process(process.pid)]
    try:
        children = family[0].children()
        family += family[0].children(recursive=True)
    except psutil.NoSuchProcess:
        children = []
    victims = family if everything else [family[0], *children]
    for victim in victims:
        with_signal(victim)
    process.wait()
    _, alive = psutil.wait_procs(family[1:], timeout=GRACE)
    for survivor in alive:
        with_signal(survivor)
    return len(alive)


def with_signal(process: psutil.Process) -> None:
    """SIGKILL for a process that may be gone already."""
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return


def torture(runs: Runs, folder: Path, kills: int, longest: float, seed: int) -> Iterator[str]:
    """Kill and start until it was killed ``kills`` times and has come to its end; what is wrong."""
    rng, done = random.Random(seed), 0
    while done < kills:
        moment, everything = rng.uniform(0.5, longest), rng.random() < 0.5
        process = runs.start(folder / "killed")
        try:
            code = process.wait(timeout=moment)
        except subprocess.TimeoutExpired:
            done += 1
            alive = kill(process, everything)
            what = "all processes" if everything else "the program that schedules"
            print(f"kill {done} of {kills}: after {moment:.1f} s, {what}", flush=True)
            if alive:
                yield f"kill {done}: {alive} process(es) outlived it by {GRACE:.0f} s"
            continue
        if code:
            yield f"a start after kill {done} ended with {code}; see killed/output.log"
            return
        yield from results(folder)
        print(f"a run came to its end after kill {done}; the next one begins anew", flush=True)
        shutil.rmtree(folder / "killed" / "build")
    runs.whole(folder / "killed")
    yield from results(folder)


def results(folder: Path) -> list[str]:
    """Differences between the killed and the whole run below ``folder``, all profiles."""
    metrics = (folder / "whole" / "build").glob("*/*/metrics.json")
    (whole,) = {path.parent.parent for path in metrics}  # engines of 2f lie beside the profile
    return compare(folder / "killed" / "build" / whole.name, whole)


def main() -> int:
    """Exit code: 0 where the killed run ended with the metrics of the whole one."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("tasks", nargs="*", help="default: all")
    parser.add_argument("--profile", default="smoke")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, help="seconds; default: a third of a whole run")
    options = parser.parse_args()
    runs = Runs(options.tasks, options.profile)
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix="kill-") as temporary:
        folder = Path(temporary)
        try:
            seconds = runs.whole(folder / "whole")
            longest = options.longest or max(5.0, seconds / 3)
            print(f"whole run: {seconds:.0f} s; seed {options.seed}, kills within {longest:.0f} s")
            # One by one: those before a failure are kept.
            problems.extend(torture(runs, folder, options.kills, longest, options.seed))
        except RuntimeError as failure:
            problems.append(str(failure))
        finally:
            if problems:
                kept = Path.cwd() / "build" / "kill_and_restart"
                shutil.rmtree(kept, ignore_errors=True)
                shutil.copytree(folder, kept)
                print(*problems, f"data, products and logs: {kept}", sep="\n")
    print(f"{options.kills} kills: {len(problems) or 'no'} problem(s)")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
