"""`make all`: data, notebook and PDF of every task, as Dask tasks, where anything has changed.

``python -m tools.regenerate --profile quick [TASK ...]``. A local cluster by default;
``DASK_SCHEDULER_ADDRESS=tcp://...`` sends the same work to another one whose workers see this
folder. One failure does not stop the other tasks. At the end all reports become one book.
"""

import argparse
import contextlib
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from e2e_utils import paths
from e2e_utils.errors import InputError, command_line
from e2e_utils.machine import available_cores
from e2e_utils.paths import display_path
from e2e_utils.profiles import PROFILES, SOURCES
from tools.kernel_variables import kernel_variables
from tools.pdf_book import update_book
from tools.provenance import (
    check_task,
    notebook_hash,
    pdf_hashes,
    read_json,
    up_to_date,
)
from tools.provenance import layout_hash as current_layout

if TYPE_CHECKING:
    from dask.distributed import Client, Future

GIGABYTE = 2**30
MEMORY_PER_NOTEBOOK = 4 * GIGABYTE
STAGES = ("data", "notebook", "pdf")
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)
PASSED_ON = ("DASK_SCHEDULER_ADDRESS", "PYTHONPATH")  # to the processes of a worker elsewhere
# The events of a task, and what its folder's own prepare.py makes ready besides.
PREPARE = """
import importlib.util, runpy, sys
from data.loaders import prepare
from e2e_utils.errors import command_line
from tools.run_notebook import stop_with_parent

def main():
    stop_with_parent()
    report = prepare(*sys.argv[1:])
    own = f"{sys.argv[1]}.prepare"
    if importlib.util.find_spec(own):
        runpy.run_module(own, run_name="__main__")
    print(report)

command_line(main)()
"""


@dataclass
class Job:
    """One task on its way through the stages that it needs."""

    task: str
    folder: Path
    stages: list[str]
    stage: str = "waiting"
    status: str = "unchanged"  # or "ran", "failed"
    exit_code: int = 0
    message: str = ""
    gpu: str = ""  # of CUDA_VISIBLE_DEVICES, while its notebook runs
    began: float = 0.0  # time.monotonic() of the first stage
    stage_began: float = 0.0  # time.time() of the present stage
    seconds: float = 0.0
    done: list[str] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do, because all is done or a stage failed."""
        return not self.stages or self.status == "failed"


def plan(tasks: Iterable[str], options: argparse.Namespace) -> list[Job]:
    """The stages that every task needs; none where its products are those of today's sources.

    With ``options.stage`` only that one, for every task. Raises InputError for a PDF without an
    executed notebook.
    """
    jobs = []
    for task in tasks:
        folder = paths.run_directory(options.profile, task)
        notebook, pdf = folder / f"{task}.ipynb", folder / f"{task}.pdf"
        if options.stage:
            stages = [options.stage]
            if options.stage == "pdf" and not notebook.is_file():
                raise InputError(
                    f"{display_path(notebook)}: expected an executed notebook, found none; "
                    f"run make all PROFILE={options.profile}"
                )
        elif options.force or not up_to_date(
            task, options.profile, options.data_source, options.data
        ):
            stages = ["notebook", "pdf"] if options.data else list(STAGES)
        elif not pdf_up_to_date(notebook, pdf):
            stages = ["pdf"]
        else:
            stages = []
        jobs.append(Job(task, folder, stages))
    return jobs


def pdf_up_to_date(notebook: Path, pdf: Path) -> bool:
    """Whether a PDF was made of this notebook with today's layout."""
    expected = {"notebook": notebook_hash(read_json(notebook)), "layout": current_layout()}
    return pdf_hashes(pdf) == expected


def stage_command(stage: str, job: Job, options: argparse.Namespace) -> list[str]:
    """Command line of one stage; a process of its own, so that a crash fails only this task."""
    if stage == "data":
        return [sys.executable, "-c", PREPARE, job.task, options.profile, options.data_source]
    if stage == "pdf":
        notebook = str(job.folder / f"{job.task}.ipynb")
        return [sys.executable, "-m", "tools.notebook_pdf", notebook]
    command = [sys.executable, "-m", "tools.run_notebook", job.task, "--with-parent"]
    command += ["--profile", options.profile, "--data-source", options.data_source]
    command += ["--data", options.data] if options.data else []
    return command + (["--force"] if options.force else [])


def stage_log(job: Job, stage: str) -> Path:
    """Where the output of a stage's process goes; a notebook's cells write run.log beside it."""
    return job.folder / f"{stage}.log"


def stage_environment(stage: str, threads: int, gpu: str = "") -> dict[str, str]:
    """Variables of a stage's process: this project's own, and the threads and GPU it may use.

    Only data are fetched through pip (MNIST, old ONNX engines): its settings go to that stage.

    Dask's workers start with one thread for every numerical library: all are set again. OpenMP's
    threads give their core back while they wait: spinning ones stall a machine that is shared.
    """
    prefixes = ("E2E_", "PIP_") if stage == "data" else ("E2E_",)
    own = {k: v for k, v in os.environ.items() if k.startswith(prefixes) or k in PASSED_ON}
    own |= {"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}
    return own | dict.fromkeys(THREAD_VARIABLES, str(threads)) | {"OMP_WAIT_POLICY": "PASSIVE"}


def run_stage(
    command: list[str], folder: str, environment: dict[str, str], log: Path
) -> tuple[int, str]:
    """Dask task: run one stage to its end; exit code and last line of its output.

    All of the output goes to ``log`` as it comes: errors stand below what led to them.
    It leaves Dask's thread pool while it waits: simulating events sends tasks to the same cluster.
    """
    from distributed import secede

    secede()
    environment = kernel_variables(os.environ) | environment
    environment |= {"E2E_PARENT": str(os.getpid()), "PYTHONUNBUFFERED": "1"}
    log = Path(folder, log)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as stream:
        process = subprocess.run(
            command, cwd=folder, env=environment, stdout=stream, stderr=stream, check=False
        )
    return process.returncode, last_line(log)


def concurrent_notebooks(n_jobs: int, cores: int, memory: int, gpus: int) -> int:
    """How many notebooks run side by side: no core, memory or GPU is asked for twice."""
    limits = [n_jobs, cores, memory // MEMORY_PER_NOTEBOOK]
    return max(1, min(limits + ([gpus] if gpus else [])))


def available_memory() -> int:
    """Bytes of memory that this process may use: of the machine, or of its container."""
    from distributed import system

    return system.MEMORY_LIMIT


def visible_gpus() -> list[str]:
    """NVIDIA GPUs as CUDA_VISIBLE_DEVICES names them, without importing torch.

    Those that the variable already names, for example by a batch system; else all of the machine.
    """
    if not shutil.which("nvidia-smi"):
        return []
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip() not in ("", "-1")]
    result = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return re.findall(r"^GPU (\d+):", result.stdout, re.MULTILINE)


def run_jobs(jobs: list[Job], slots: int | None, options: argparse.Namespace) -> None:
    """Run all stages of all jobs on a Dask cluster; results are written into the jobs."""
    from distributed import Client, LocalCluster

    address = os.environ.get("DASK_SCHEDULER_ADDRESS")
    gpus = [] if address else visible_gpus()  # a worker elsewhere knows its own
    with contextlib.ExitStack() as stack:
        if address:
            try:
                client = stack.enter_context(Client(address, timeout=30))
            except (OSError, ValueError) as error:
                raise InputError(
                    f"DASK_SCHEDULER_ADDRESS: expected a Dask scheduler at {address}, found "
                    f"{type(error).__name__}; start it or unset the variable"
                ) from error
            workers = client.scheduler_info(n_workers=-1)["workers"]
            slots = slots or max(1, len(workers))
            cores = sum(worker["nthreads"] for worker in workers.values()) or slots
        else:
            cores = available_cores()
            slots = slots or concurrent_notebooks(len(jobs), cores, available_memory(), len(gpus))
            cluster = LocalCluster(
                n_workers=slots,
                threads_per_worker=1,
                dashboard_address=":0",
                silence_logs=logging.ERROR,
                memory_limit=0,
            )
            client = stack.enter_context(Client(stack.enter_context(cluster)))
        print(
            f"{len(jobs)} task(s), {slots} at a time, {cores} core(s), scheduler: "
            f"{address or 'local cluster'}",
            flush=True,
        )
        schedule(client, jobs, slots, cores, options, gpus)


def schedule(
    client: "Client",
    jobs: list[Job],
    slots: int,
    cores: int,
    options: argparse.Namespace,
    gpus: Sequence[str] = (),
) -> None:
    """Feed the cluster: ``slots`` stages at a time, the last ones with more threads each.

    A notebook gets a GPU of its own, or with ``--jobs`` above their number the one least used.
    """
    running: dict = {}  # future -> job
    display = Display(jobs)
    while any(not job.finished for job in jobs):
        waiting = [job for job in jobs if not job.finished and job not in running.values()]
        for job in waiting[: slots - len(running)]:
            left = sum(not other.finished for other in jobs)
            threads = max(1, cores // min(slots, left))
            job.stage = job.stages[0]
            used = [other.gpu for other in running.values()]
            job.gpu = min(gpus, key=used.count, default="") if job.stage == "notebook" else ""
            job.began = job.began or time.monotonic()
            job.stage_began = time.time()
            future = client.submit(
                run_stage,
                stage_command(job.stage, job, options),
                str(paths.ROOT),
                stage_environment(job.stage, threads, job.gpu),
                stage_log(job, job.stage),
                key=f"{job.stage}-{job.task}",
                pure=False,
            )
            running[future] = job
        for future in [future for future in running if future.done()]:
            settle(running.pop(future), future)
        display.show()
        time.sleep(0.5)
    display.close()


def settle(job: Job, future: "Future") -> None:
    """Enter the end of a stage into its job."""
    error = future.exception()
    code, line = (1, f"{type(error).__name__}: {error}") if error else future.result()
    job.seconds = time.monotonic() - job.began
    job.done.append(job.stage)
    if code == 0:
        job.status = "ran"
        job.stages.pop(0)
        job.stage = "done" if job.finished else "waiting"
        job.message = line
    else:
        job.status, job.stage, job.exit_code = "failed", "failed", code
        job.message = f"{job.done[-1]}: {line.removeprefix('error: ')}"
        if job.done[-1] != "notebook":  # its own messages name run.log
            job.message += f" (see {display_path(stage_log(job, job.done[-1]))})"


class Display:
    """One line per task with stage, cell and time; redrawn in a terminal, else on every change."""

    def __init__(self, jobs: list[Job]) -> None:
        self.jobs = jobs
        self.terminal = sys.stdout.isatty()
        self.drawn = 0
        self.began = time.monotonic()
        self.last = 0.0
        self.shown: dict[str, str] = {}

    def show(self) -> None:
        """Redraw, or print the lines that changed; now and then at the most."""
        now = time.monotonic()
        if now - self.last < (0.5 if self.terminal else 1.0):
            return
        self.last = now
        if self.terminal:
            self.redraw()
            return
        for job in self.jobs:
            state = progress(job)
            if state != self.shown.get(job.task):
                self.shown[job.task] = state
                left = f"  {time_left(self.jobs, self.began)}" if job.finished else ""
                print(f"{job.task}: {state}{elapsed(job)}{left}", flush=True)

    def redraw(self) -> None:
        """Write all lines over the ones of the last time."""
        width = shutil.get_terminal_size().columns - 1
        lines = [f"{job.task:28s} {progress(job, bars=True)}{elapsed(job)}" for job in self.jobs]
        lines.append(time_left(self.jobs, self.began))
        up = f"\x1b[{self.drawn}A" if self.drawn else ""
        print(up + "".join(f"\x1b[2K{line[:width]}\n" for line in lines), end="", flush=True)
        self.drawn = len(lines)

    def close(self) -> None:
        """Show the last state."""
        self.last = 0.0
        self.show()


def progress(job: Job, bars: bool = False) -> str:
    """Where a job stands, from its stage and the end of that stage's log."""
    if bars and job.stage in ("data", "pdf"):
        line = last_line(stage_log(job, job.stage), job.stage_began)
        return f"{job.stage}: {line}" if line else job.stage
    if job.stage != "notebook":
        return job.stage
    lines = tail(job.folder / "run.log", job.stage_began)
    cells = [re.search(r"\] cell (\d+/\d+): (.*)", line) for line in lines]
    cells = [match for match in cells if match]
    if not cells:
        return "notebook: kernel starts"
    text = f"notebook: cell {cells[-1][1]}"
    if bars:
        last = lines[-1].strip()
        text += f"  {last.removeprefix('| ') if last.startswith('|') else cells[-1][2]}"
    return text


def share_done(job: Job) -> float:
    """How much of a job is done, 0 to 1: the number of its cells stands for their time."""
    if job.finished:
        return 1.0
    cell = re.search(r"cell (\d+)/(\d+)", progress(job))
    return (int(cell[1]) - 1) / int(cell[2]) if cell else 0.0


def time_left(jobs: list[Job], began: float) -> str:
    """How many tasks are done, and when the rest will be if it continues as since ``began``."""
    done = sum(job.finished for job in jobs)
    text = f"{done} of {len(jobs)} task(s) done"
    share = sum(map(share_done, jobs)) / len(jobs)
    if done == len(jobs) or not share:
        return text
    seconds = (time.monotonic() - began) * (1 - share) / share
    return f"{text}, about {max(1, round(seconds / 60))} min left"


def tail(path: Path, since: float, size: int = 1_000_000) -> list[str]:
    """The last lines of a file: a cell that trains for hours writes many after its first one.

    None of a file that was last written before ``since``.
    """
    try:
        stat = path.stat()
        if stat.st_mtime < since:
            return []
        with path.open("rb") as stream:
            stream.seek(max(0, stat.st_size - size))
            return stream.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []


def last_line(path: Path, since: float = 0.0) -> str:
    """The last line of a file that is not blank, "" without one; ``since`` as for `tail`."""
    lines = (line.strip() for line in reversed(tail(path, since)))
    return next(filter(None, lines), "")


def elapsed(job: Job) -> str:
    """The time of a job as the display shows it, empty before it began."""
    if not job.began:
        return ""
    seconds = job.seconds if job.finished else time.monotonic() - job.began
    return f"  [{seconds:.0f} s]"


def summary(jobs: list[Job]) -> str:
    """Table of all tasks at the end, one line each, and the messages of those that failed."""
    rows = [("task", "status", "seconds", "headline", "data", "products")]
    for job in jobs:
        metrics = read_json(job.folder / "metrics.json") if job.status != "failed" else {}
        products = [path.suffix[1:] for path in sorted(job.folder.glob(f"{job.task}.*"))]
        products += ["safetensors"] if any(job.folder.glob("*.safetensors")) else []
        rows.append(
            (
                job.task,
                job.status,
                f"{job.seconds:.0f}",
                headline(metrics),
                metrics.get("data", {}).get("source", ""),
                " ".join(dict.fromkeys(products)) if job.status != "failed" else "",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    lines += [f"{job.task} failed in {job.message}" for job in jobs if job.status == "failed"]
    return "\n".join(lines)


def headline(metrics: dict) -> str:
    """Name and value of the headline metric with its interval, "" for an empty dictionary."""
    if not metrics:
        return ""
    name = metrics["headline"]
    entry = metrics["metrics"][name]
    return f"{name} {entry['value']:.4f} [{entry['low']:.4f}, {entry['high']:.4f}]"


@command_line
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.regenerate", description=__doc__)
    parser.add_argument("tasks", nargs="*", help="default: every task folder")
    parser.add_argument("--profile", choices=PROFILES, default="quick")
    parser.add_argument("--data-source", choices=SOURCES, default="auto")
    parser.add_argument("--data", help="file(s) instead of a dataset, comma separated")
    parser.add_argument("--stage", choices=("data", "pdf"), help="only this stage, in any case")
    parser.add_argument("--jobs", type=int, help="notebooks at a time (default: what fits)")
    parser.add_argument("--force", action="store_true", help="run even if nothing has changed")
    options = parser.parse_args(arguments)
    tasks = [check_task(task) for task in options.tasks or paths.list_tasks()]
    if not tasks:
        raise InputError("tasks: expected at least one task folder, found none; see README.md")
    if options.stage and options.data:
        raise InputError(
            f"DATA: expected none with make {options.stage}, found {options.data}; leave it out, "
            "or run make <task> DATA=..."
        )
    if options.jobs is not None and options.jobs < 1:
        raise InputError(f"--jobs: expected 1 or more, found {options.jobs}; correct it")
    # The book is of all tasks; single tasks and foreign data leave it as it is.
    book = not (options.tasks or options.data or options.stage == "data")
    planned = tasks
    if options.stage == "pdf" and not options.tasks:  # of those that were executed
        folders = {task: paths.run_directory(options.profile, task) for task in tasks}
        planned = [t for t, folder in folders.items() if (folder / f"{t}.ipynb").is_file()] or tasks
    jobs = plan(planned, options)
    todo = [job for job in jobs if job.stages]
    if not todo:
        place = display_path(paths.BUILD / options.profile)
        print(
            f"nothing to do: {len(jobs)} task(s) up to date in {place} "
            f"(profile {options.profile}); python -m tools.regenerate --profile {options.profile} "
            "--force runs them again"
        )
        if book:
            print(update_book(options.profile, tasks))
        return 0
    try:
        run_jobs(todo, options.jobs, options)
    except KeyboardInterrupt:
        print("\ninterrupted: finished tasks are kept", file=sys.stderr)
        return 130
    if options.stage:
        print("\n" + "\n".join(f"{job.task}: {job.message}" for job in jobs))
    else:
        print("\n" + summary(jobs))
    if book:
        failed = [job.task for job in jobs if job.status == "failed"]
        print(update_book(options.profile, tasks, failed))
    codes = {job.exit_code for job in jobs if job.status == "failed"}
    return 0 if not codes else 2 if codes == {InputError.exit_code} else 1


if __name__ == "__main__":
    main()
