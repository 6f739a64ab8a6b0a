"""What several tests need: small files in the official schema, and a data folder of their own."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType

os.environ.setdefault("MPLBACKEND", "agg")

import h5py
import numpy as np
import pytest
import torch

from data.simulate import jets_events
from e2e_utils import paths


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


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


@pytest.fixture(scope="module")
def small_pools(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """Pools of 120 underlying and pile-up events, in memory and in a cache of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "CACHE", tmp_path_factory.mktemp("cache"))
        pool = jets_events.pools(120)
        patch.setattr(jets_events, "pools", lambda: pool)
        yield pool


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
