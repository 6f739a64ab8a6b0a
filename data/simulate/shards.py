"""Seeded shards of a simulation as Dask tasks, stored one by one so that a run can be resumed.

Nothing in a shard depends on who computes it: a shard's function gets its own arguments, among them
its own spawned ``np.random.SeedSequence``. Workers send the arrays back and the caller writes them,
so that workers on other machines need no common disk.
"""

import errno
import logging
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from e2e_utils.errors import InputError
from e2e_utils.files import atomic_path, remove
from e2e_utils.locks import locked
from e2e_utils.machine import available_cores

if TYPE_CHECKING:
    from dask.distributed import Client

Arrays = dict[str, np.ndarray]
WORTH_A_CLUSTER = 2  # jobs: up to these are done before its processes have started


def load(path: Path) -> Arrays:
    """The arrays of one stored shard."""
    with np.load(path) as stored:
        return dict(stored)


def store(path: Path, arrays: Arrays) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **arrays)


def is_disk_full(error: OSError) -> bool:
    """HDF5 names the system's error number only in its text."""
    numbers = (errno.ENOSPC, errno.EDQUOT)
    return error.errno in numbers or any(f"errno = {number}," in str(error) for number in numbers)


@contextmanager
def workplace(folder: Path, need_bytes: int) -> Iterator[None]:
    """Hold ``folder`` for the shards of one production; delete it when all went well.

    A second process that wants the same folder waits. Raises InputError when the disk has less
    than ``need_bytes`` to spare or runs full; finished shards stay then, for the next attempt.
    """
    directory = folder.parent
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory / f"{folder.name}.lock"):
        try:
            free = shutil.disk_usage(directory).free
            if free < need_bytes:
                raise full_disk(directory, need_bytes)
            folder.mkdir(exist_ok=True)
            yield
            remove(folder)
        except OSError as error:
            if is_disk_full(error):
                raise full_disk(directory, need_bytes) from error
            raise


def full_disk(directory: Path, need_bytes: int) -> InputError:
    free = shutil.disk_usage(directory).free
    return InputError(
        f"{directory}: expected {need_bytes / 1e6:.0f} MB of free disk, found {free / 1e6:.0f} MB; "
        "free some, or set E2E_DATA_DIR to another disk"
    )


@contextmanager
def no_main_module() -> Iterator[None]:
    """Keep worker processes from running the caller's script again.

    Python's "spawn" imports the main module in each child; a notebook's percent script or any
    script without a guard would simulate once more there, and for ever.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def dask_client(scheduler: str | None, tasks: int) -> Iterator["Client"]:
    """A client of the scheduler at an address, or of a local cluster with one process a core."""
    from dask.distributed import Client, LocalCluster

    if scheduler:
        with Client(scheduler) as client:
            yield client
        return
    with (
        no_main_module(),  # all the time: a worker that was killed is started again
        LocalCluster(
            n_workers=min(available_cores(), tasks),
            threads_per_worker=1,
            processes=True,
            dashboard_address=":0",
            silence_logs=logging.ERROR,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def results(
    work: Callable[..., Arrays], jobs: Sequence[tuple], scheduler: str | None
) -> Iterator[tuple[int, Arrays]]:
    """(number of the job, its arrays) in the order of completion; few at a time in memory."""
    is_worker = multiprocessing.current_process().daemon  # may not start processes itself
    alone = is_worker or not find_spec("distributed")
    few = not scheduler and len(jobs) <= WORTH_A_CLUSTER
    if scheduler == "synchronous" or few or (alone and not scheduler):
        for number, job in enumerate(jobs):
            yield number, work(*job)
        return
    from dask.distributed import as_completed

    with dask_client(scheduler, len(jobs)) as client:
        waiting = iter(enumerate(jobs))
        number_of = {}

        def submit_next() -> list:
            for number, job in waiting:
                future = client.submit(work, *job, pure=False)
                number_of[future.key] = number
                return [future]
            return []

        in_flight = 3 * max(sum(client.ncores().values()), 1)
        running = as_completed([f for _ in range(in_flight) for f in submit_next()])
        for future in running:
            yield number_of.pop(future.key), future.result()
            for successor in submit_next():
                running.add(successor)


def produce(
    work: Callable[..., Arrays],
    jobs: Sequence[tuple],
    folder: Path,
    scheduler: str | None = None,
    weights: Sequence[int] | None = None,
    label: str = "events",
    prepare: Callable[[], object] | None = None,
) -> list[Path]:
    """Call ``work(*job)`` for every job and store the arrays; return the shards' paths in order.

    Shards that ``folder`` holds already are not computed again. ``scheduler``: ``tcp://...`` of a
    Dask scheduler, "synchronous" for this process, None for the scheduler that the environment
    variable DASK_SCHEDULER_ADDRESS names, else a local cluster with one process a core (for a few
    jobs it is not worth its start).
    ``weights`` (events a job) are what the progress bar counts. ``prepare`` is called once in this
    process before local workers start: numba then compiles once, and they read its cache.
    """
    scheduler = scheduler or os.environ.get("DASK_SCHEDULER_ADDRESS")
    weights = list(weights or [1] * len(jobs))
    paths = [folder / f"{number:05d}.npz" for number in range(len(jobs))]
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    done = sum(weights) - sum(weights[number] for number in missing)
    if missing and prepare and scheduler in (None, "synchronous"):
        prepare()
    with tqdm(total=sum(weights), initial=done, desc=label, unit=" events") as bar:
        for position, arrays in results(work, [jobs[n] for n in missing], scheduler):
            store(paths[missing[position]], arrays)
            bar.update(weights[missing[position]])
    return paths
