"""`make all DATA_SOURCE=official` against hosts on this machine that serve every official file.

``python -m tests.rehearsal [TASK ...] [--profile quick] [--folder build/rehearsal] [--seed 0]``

A copy of this repository, whose catalog has the addresses of those hosts, fetches what the profile
needs, while connections drop, hosts are busy and files change. Then one file of each format is
downloaded whole, and the download killed with SIGKILL again and again. Time, bytes and memory are
written to benchmarks/results.md. Exit code 1 where a notebook does not end on official events,
where more was fetched than needed, or where a whole file differs from the one that was served. It
needs some 25 GB of disk.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from data.catalog import dataset, load_catalog
from data.partial import WHOLE_BYTES
from e2e_utils import paths
from e2e_utils.files import readable_size, sha256, write_text
from e2e_utils.paths import ROOT, list_tasks
from tests.rehearsal.files import make_all
from tests.rehearsal.host import Host, serving

CHANGING = ("HIGGS.csv.gz", "top_gun_opendata_0.parquet", "Dataset_Specific_Unlabelled.h5")
WHOLE = (  # one of each format of large files, which no profile but `full` takes whole
    "HIGGS.csv.gz",
    "QCDToGGQQ_IMGjet_RH1all_jet0_run0_n36272.test.snappy.parquet",
    "Dataset_Specific_labelled.h5",
)
KILLS = 3  # of each download
RESULTS = ROOT / "benchmarks" / "results.md"
TITLE = "## Rehearsal with official files"
ABOUT = (
    "Written by `python -m tests.rehearsal`: hosts on this machine serve every official file with",
    "its name, schema and size. Connections drop, hosts are busy, some files change on the way.",
    "",
)
# Beside its events a profile fetches whole blocks, footers, and a guess of how long lines are.
ALLOWANCE = 1.3


@dataclass
class Watch:
    """Wall and CPU seconds and the largest memory of a command with all its processes."""

    wall: float = 0.0
    cpu: float = 0.0
    peak: int = 0
    _seen: dict[int, float] = field(default_factory=dict)

    def look(self, process: psutil.Process) -> None:
        """Add up what the processes of a tree hold, and have used, at this moment."""
        memory = 0
        for one in [process, *process.children(recursive=True)]:
            try:
                with one.oneshot():
                    memory += one.memory_info().rss
                    self._seen[one.pid] = sum(one.cpu_times()[:2])
            except psutil.NoSuchProcess:
                continue
        self.peak, self.cpu = max(self.peak, memory), sum(self._seen.values())


def run(command: list[str], folder: Path, log: Path) -> tuple[int, Watch]:
    """Run a command to its end; exit code, and what it took. Its output goes to ``log``."""
    watch, began = Watch(), time.monotonic()
    with log.open("ab") as output:
        process = psutil.Popen(
            command, cwd=folder / "clone", env=environment(folder), stdout=output, stderr=output
        )
        while process.poll() is None:
            try:
                watch.look(process)
            except psutil.NoSuchProcess:
                break
            time.sleep(0.5)
    watch.wall = time.monotonic() - began
    return process.wait(), watch


def environment(folder: Path) -> dict[str, str]:
    """That of the copy: its own data and build folders, its own modules."""
    clone = folder / "clone"
    own = {"E2E_DATA_DIR": folder / "data", "E2E_BUILD_DIR": folder / "build", "PYTHONPATH": clone}
    return os.environ | {name: str(path) for name, path in own.items()}


def copy_repository(folder: Path, host: Host) -> None:
    """The files that git knows, as they are now, with the host's addresses in the catalog."""
    clone = folder / "clone"
    shutil.rmtree(clone, ignore_errors=True)
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in names.splitlines():
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, clone / name)
    catalog = clone / "data" / "catalog.toml"
    catalog.write_text(with_addresses(catalog.read_text(encoding="utf-8"), host), encoding="utf-8")


def with_addresses(catalog: str, host: Host) -> str:
    """The text of a catalog with the addresses of those files that ``host`` serves."""
    for name in host.files:
        named = re.compile(rf'(name = "{re.escape(name)}"\nurl = )"[^"]+"')
        catalog, found = named.subn(rf'\g<1>"{host.url(name)}"', catalog)
        assert found == 1, name
    return catalog


def sources(folder: Path, profile: str, tasks: list[str]) -> dict[str, str]:
    """Where the events of each task's notebook came from, as its metrics say."""
    found = {}
    for task in tasks:
        path = folder / "build" / profile / task / "metrics.json"
        data = json.loads(path.read_text())["data"] if path.is_file() else {}
        found[task] = data.get("source", "no metrics.json")
    return found


def too_much(host: Host, profile: str) -> list[str]:
    """Datasets of which more was fetched than a profile needs."""
    problems = []
    for name, entry in load_catalog().items():
        served = [host.files[f["name"]] for f in entry["file"] if f["name"] in host.files]
        large = [one for one in served if one.path.stat().st_size >= WHOLE_BYTES]
        if not large:
            continue
        share = entry["events"][profile] / entry["events"]["full"]
        needed = ALLOWANCE * share * sum(one.path.stat().st_size for one in large) + WHOLE_BYTES
        limit = needed * max(one.version for one in large)  # an older version's bytes are useless
        if (sent := sum(one.sent for one in large)) > limit:
            problems.append(f"{name}: {sent:,} bytes sent, at most {limit:,.0f} are needed")
    return problems


def download_whole(
    name: str, folder: Path, host: Host, rng: random.Random
) -> tuple[list[str], list[str]]:
    """Download one file, killed KILLS times; a row of the report, and what is wrong."""
    command = [sys.executable, "-m", "data.download", name]
    served, log = host.files[name], folder / "downloads.log"
    served.drops, served.busy = 3, 1
    before, began, problems = served.sent, time.monotonic(), []
    for _ in range(KILLS):
        with log.open("ab") as output:
            process = subprocess.Popen(
                command, cwd=folder / "clone", env=environment(folder),
                stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
            goal = served.sent + rng.uniform(0.05, 0.3) * served.path.stat().st_size
            while process.poll() is None and served.sent < goal:
                time.sleep(0.02)
            if process.poll() is not None:
                problems.append(f"{name}: a download ended before it was killed; see {log}")
            process.kill()
            process.wait()
    code, watch = run(command, folder, log)
    path, size = folder / "data" / "official" / name, served.path.stat().st_size
    if code or not path.is_file() or sha256(path) != sha256(served.path):
        problems.append(f"{name}: not the file that was served (exit code {code}); see {log}")
    again = (served.sent - before) / size - 1
    path.unlink(missing_ok=True)
    seconds, peak = f"{time.monotonic() - began:.0f} s", readable_size(watch.peak)
    return [name, readable_size(size), seconds, f"{again:.1%}", peak], problems


def about_run(profile: str, watch: Watch, found: dict[str, str], host: Host) -> list[str]:
    """Lines of the report: what the run took, and what was sent for it."""
    official = sum(source == "official" for source in found.values())
    lines = [
        f"`make all DATA_SOURCE=official PROFILE={profile}`: {watch.wall:.0f} s, "
        f"{watch.cpu:.0f} CPU s, at most {readable_size(watch.peak)} in all processes together; "
        f"{official} of {len(found)} notebooks on official events.",
        "",
        "| file | bytes | sent | faults |",
        "|---|---|---|---|",
    ]
    for name, served in host.files.items():
        if served.answers or served.faults:
            faults = ", ".join(f"{count} × {kind}" for kind, count in served.faults.items())
            size = readable_size(served.path.stat().st_size)
            lines.append(f"| {name} | {size} | {readable_size(served.sent)} | {faults} |")
    return lines


def about_downloads(rows: list[list[str]]) -> list[str]:
    """Lines of the report: whole files."""
    head = ["| file | bytes | time | sent twice | memory |", "|---|---|---|---|---|"]
    table = ["| " + " | ".join(row) + " |" for row in rows]
    return ["", f"Whole files, each download killed {KILLS} times:", "", *head, *table]


def main() -> int:
    """Exit code: 0 where everything was as it should be."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("tasks", nargs="*", help="default: all")
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "rehearsal")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-downloads", action="store_true", help="leave out the whole files")
    options = parser.parse_args()
    folder, rng = options.folder.resolve(), random.Random(options.seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("data", "build"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for file in dataset("mnist")["file"]:  # its content is known: only the real one will do
        if (known := paths.OFFICIAL / file["name"]).is_file():
            copy = folder / "data" / "official" / file["name"]
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(known, copy)
    files = make_all(options.profile, folder / "served")
    with serving(files, CHANGING, options.seed) as host:
        copy_repository(folder, host)
        make = ["make", *(options.tasks or ["all"]), f"PROFILE={options.profile}"]
        make += ["DATA_SOURCE=official", "VENV=0", f"PYTHON={sys.executable}"]
        code, watch = run(make, folder, folder / "output.log")
        problems = [f"{' '.join(make)} ended with {code}; see {folder}/output.log"] if code else []
        found = sources(folder, options.profile, options.tasks or list_tasks())
        problems += [f"{t}: {s}, not official" for t, s in found.items() if s != "official"]
        problems += too_much(host, options.profile)
        lines = [TITLE, *ABOUT, *about_run(options.profile, watch, found, host)]
        rows = []
        for name in () if options.no_downloads else WHOLE:
            row, wrong = download_whole(name, folder, host, rng)
            rows.append(row)
            problems += wrong
    text = "\n".join(lines + (about_downloads(rows) if rows else [])) + "\n"
    print(text, *problems, sep="\n")
    if not options.tasks:
        known = RESULTS.read_text(encoding="utf-8").split(TITLE)[0].rstrip()
        write_text(RESULTS, f"{known}\n\n{text}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
