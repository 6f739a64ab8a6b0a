"""What the scripts for all batch systems share: options, the package they need, the run."""

import argparse
import os
import subprocess
import sys
from types import ModuleType
from typing import TYPE_CHECKING

from e2e_utils import paths
from e2e_utils.errors import InputError

if TYPE_CHECKING:
    from dask_jobqueue import JobQueueCluster


def dask_jobqueue() -> ModuleType:
    """The package for batch systems; optional. Raises InputError where it is not installed."""
    try:
        import dask_jobqueue
    except ImportError as error:
        raise InputError(
            "dask-jobqueue: expected the package for batch systems, found it not installed; "
            "run pip install dask-jobqueue==0.9.0"
        ) from error
    return dask_jobqueue


def parser(module: str, text: str | None) -> argparse.ArgumentParser:
    """The options that every batch system has; all others go to tools.regenerate."""
    options = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    options.add_argument("--workers", type=int, default=4, help="jobs; one notebook at a time each")
    options.add_argument("--cores", type=int, default=4, help="per job")
    options.add_argument("--memory", default="8GB", help="per job")
    options.add_argument("--gpu", action="store_true", help="one GPU per job")
    options.add_argument("--interface", help="network of scheduler and workers, such as ib0")
    options.add_argument("--show", action="store_true", help="print the job script, submit nothing")
    return options


def worker_options(options: argparse.Namespace) -> dict[str, object]:
    """Keywords of every dask_jobqueue cluster: one worker per job, which works in this folder.

    The batch system limits the memory, for the notebooks run in processes that Dask cannot see.
    """
    return {
        "cores": options.cores,
        "memory": options.memory,
        "processes": 1,
        "interface": options.interface,
        "python": sys.executable,
        "job_script_prologue": [f"cd '{paths.ROOT}'", f"export PYTHONPATH='{paths.ROOT}'"],
        "worker_extra_args": ["--memory-limit", "0"],
        "log_directory": str(paths.BUILD / "cluster"),
        "scheduler_options": {"dashboard_address": ":0"},
    }


def run(cluster: "JobQueueCluster", options: argparse.Namespace, arguments: list[str]) -> int:
    """Submit the workers and run `make all` on them; exit code of tools.regenerate.

    It begins when all workers have started: the notebooks share out the cores that are there then.
    """
    if options.show:
        print(cluster.job_script())
        return 0
    cluster.scale(jobs=options.workers)
    print(f"waiting for {options.workers} worker(s) ...", flush=True)
    cluster.wait_for_workers(options.workers)
    environment = os.environ | {"DASK_SCHEDULER_ADDRESS": cluster.scheduler_address}
    command = [sys.executable, "-m", "tools.regenerate", "--jobs", str(options.workers), *arguments]
    return subprocess.run(command, cwd=paths.ROOT, env=environment, check=False).returncode
