"""Several trainings side by side on the cores of one machine."""

import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")


def worker_count(n_jobs: int) -> int:
    """Processes that `side_by_side` uses: one a core on a CPU, one in all where there is a GPU."""
    if torch.cuda.is_available() or "fork" not in multiprocessing.get_all_start_methods():
        return 1
    return max(1, min(n_jobs, torch.get_num_threads(), len(os.sched_getaffinity(0))))


def side_by_side(function: Callable[..., Result], jobs: Iterable[tuple]) -> list[Result]:
    """``function(*job)`` of every job, in the order of the jobs.

    A small network leaves most of a second core idle, so on a CPU the jobs run in as many
    processes as there are cores (`torch.get_num_threads`), each with one thread. They are forked:
    functions and data of a notebook need no pickling, edited cells count. What a job returns is
    pickled: return arrays, not tensors. An exception in a job is raised here.
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
    finally:
        _inherited = None


_inherited: tuple[Callable, list[tuple]] | None = None


def _run(number: int) -> object:
    """Job ``number`` of the list that this process inherited."""
    function, jobs = _inherited
    return function(*jobs[number])
