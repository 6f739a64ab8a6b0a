"""What several tests need: small files in the official schema, and a data folder of their own."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType

os.environ.setdefault("MPLBACKEND", "agg")

import h5py
import numpy as np
import pytest
import requests
import torch
from filelock import FileLock

from data.loaders.mnist import STORE_NAME, load_rotated_mnist
from data.readers import remote_file
from data.simulate import jets_events, shards
from e2e_utils import paths
from e2e_utils.errors import InputError

# Tests that run a notebook: seconds of CPU, tens of times those of any other. They begin first.
LONGEST = "test_tasks.py"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Workers of `make test`: one for each of two cores; more would need memory that few have."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, 2)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """With several workers: a file's tests stay together, but every notebook is on its own.

    Fixtures of a module are then made once. (`--dist loadgroup` of pytest-xdist 3.8 does nothing
    with pytest 9.2, where a test's name can no longer be given a suffix.)
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return nodeid if Path(file).name == LONGEST else file

    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name != LONGEST)


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all workers of this test session."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers of this machine only: what a test does not serve itself is out of reach, at once."""
    get_adapter = remote_file.Session.get_adapter

    def local(session: remote_file.Session, url: str) -> object:
        if url.startswith("https://"):
            raise requests.ConnectionError("no way to it")
        return get_adapter(session, url)

    monkeypatch.setattr(remote_file.Session, "get_adapter", local)
    monkeypatch.setattr(remote_file, "SILENT", set())
    monkeypatch.setattr(remote_file, "PATIENCE", remote_file.Patience(10, 10, 3, 0.001, 0.01))


@pytest.fixture(autouse=True)
def _one_precision_a_test() -> Iterator[None]:
    """Accelerate keeps the precision of a process's first Accelerator, and refuses another."""
    yield
    if "accelerate" in sys.modules:
        AcceleratorState = sys.modules["accelerate"].state.AcceleratorState
        AcceleratorState._reset_state()


@pytest.fixture(scope="session")
def sparse_array() -> Callable[..., np.ndarray]:
    """Maker of random images (n_events, *shape) float32 with a share of active pixels."""

    def make(
        n_events: int, shape: tuple[int, ...] = (2, 32, 32), occupancy: float = 0.03, seed: int = 0
    ) -> np.ndarray:
        rng = np.random.default_rng(seed)
        active = rng.random((n_events, *shape)) < occupancy
        return np.where(active, rng.normal(size=active.shape), 0).astype(np.float32)

    return make


@pytest.fixture
def write_events(tmp_path: Path, sparse_array: Callable[..., np.ndarray]) -> Callable[..., Path]:
    """Writer of small HDF5 files with the keys X (n, 32, 32, 2) and y (n,)."""

    def write(name: str, y: list | np.ndarray, x: np.ndarray | None = None, seed: int = 0) -> Path:
        y = np.asarray(y)
        if x is None:
            x = sparse_array(len(y), (32, 32, 2), seed=seed)
        path = tmp_path / name
        with h5py.File(path, "w") as file:
            file["X"] = x
            file["y"] = y if y.dtype.kind in "iu" else y.astype(np.float32)
        return path

    return write


@pytest.fixture
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder in place of data/files."""
    folder = tmp_path / "files"
    for name in ("OFFICIAL", "STANDIN", "CACHE"):
        monkeypatch.setattr(paths, name, folder / name.lower())
        (folder / name.lower()).mkdir(parents=True)
    return folder


@pytest.fixture(scope="session")
def mnist_store(session_folder: Path) -> Path | None:
    """The user's file of rotated digits, made now if need be; None where MNIST cannot be had."""
    with FileLock(session_folder / "mnist.lock"):
        try:
            load_rotated_mnist("auto", "smoke")
        except InputError:
            return None
    return paths.CACHE / STORE_NAME


@pytest.fixture(scope="session")
def with_small_pools(session_folder: Path) -> Callable[[], AbstractContextManager]:
    """Maker of a context with pools of 120 events, in memory and in a cache of the session."""
    cache = session_folder / "pools"

    @contextmanager
    def patched() -> Iterator[jets_events.Pools]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(paths, "CACHE", cache)
            cache.mkdir(exist_ok=True)
            with FileLock(cache / "lock"):
                pool = jets_events.pools(120)
            patch.setattr(jets_events, "pools", lambda: pool)
            yield pool

    return patched


@pytest.fixture(scope="module")
def small_pools(with_small_pools: Callable[[], AbstractContextManager]) -> Iterator:
    """Pools of 120 underlying and pile-up events in place of thousands."""
    with with_small_pools() as pool:
        yield pool


@pytest.fixture(scope="session")
def simulated(
    session_folder: Path, with_small_pools: Callable[[], AbstractContextManager]
) -> Callable[..., shards.Arrays]:
    """Maker of a simulation's shard: ``simulate_shard(*arguments, seed)``, once in a session."""

    def shard(simulation: ModuleType, *arguments: object, seed: int) -> shards.Arrays:
        name = "-".join(map(str, (simulation.__name__, *arguments, seed)))
        path = session_folder / "shards" / f"{name}.npz"
        path.parent.mkdir(exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.is_file():
                with with_small_pools():
                    made = simulation.simulate_shard(*arguments, np.random.SeedSequence(seed))
                shards.store(path, made)
        return shards.load(path)

    return shard


@pytest.fixture(scope="session")
def interrupted() -> Callable[[ModuleType], AbstractContextManager]:
    """Maker of a context in which a simulation is interrupted at its fifth shard."""

    @contextmanager
    def interrupt(simulation: ModuleType) -> Iterator[None]:
        simulate, done = simulation.simulate_shard, []

        def shard(*job: object) -> dict:
            if len(done) == 4:
                raise KeyboardInterrupt
            done.append(job)
            return simulate(*job)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(simulation, "simulate_shard", shard)
            yield

    return interrupt
