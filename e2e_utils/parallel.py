"""Several trainings side by side on the cores of one machine."""

import multiprocessing
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import torch

from e2e_utils.machine import available_cores, launched_processes, pick_device

Result = TypeVar("Result")


def worker_count(n_jobs: int) -> int:
    """Processes that `side_by_side` uses: one per core on a CPU, a single one where there is a GPU.

    A single one also where a launcher has started several, and where processes cannot be forked
    safely: macOS's frameworks may hang in a fork, Windows has none.
    """
    can_fork = "fork" in multiprocessing.get_all_start_methods() and sys.platform != "darwin"
    if not can_fork or pick_device().type != "cpu" or launched_processes() > 1:
        return 1
    return max(1, min(n_jobs, torch.get_num_threads(), available_cores()))


def side_by_side(function: Callable[..., Result], jobs: Iterable[tuple]) -> list[Result]:
    """``function(*job)`` of every job, in the order of the jobs.

    A small network leaves most of a second core idle, so on a CPU the jobs run in as many
    processes as there are cores (`torch.get_num_threads`), each with one thread. They are forked:
    functions and data of a notebook need no pickling, edited cells count. What a job returns is
    pickled: return arrays, not tensors. An exception in a job is raised here, and RuntimeError
    where the system has killed one of the processes.
    """
    jobs = list(jobs)
    workers = worker_count(len(jobs))
    if workers == 1:
        return [function(*job) for job in jobs]
    global _inherited
    _inherited = function, jobs  # forked processes find it here: it cannot be pickled
    context = multiprocessing.get_context("fork")
    try:
        with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
            return list(pool.map(_run, range(len(jobs))))
    except BrokenProcessPool as error:
        raise RuntimeError(
            f"expected results of {workers} processes, found one killed (out of memory?); "
            "OMP_NUM_THREADS=1 runs one job after another, in less memory"
        ) from error
    finally:
        _inherited = None


_inherited: tuple[Callable, list[tuple]] | None = None


def _run(number: int) -> object:
    """Job ``number`` of the list that this process inherited."""
    function, jobs = _inherited
    return function(*jobs[number])
