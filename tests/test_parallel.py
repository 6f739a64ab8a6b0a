import os
import signal
import sys

import numpy as np
import pytest
import torch

from e2e_utils import machine, parallel
from e2e_utils.parallel import side_by_side, worker_count

needs_fork = pytest.mark.skipif(
    not hasattr(os, "fork") or torch.cuda.is_available(), reason="jobs run one after another here"
)


@pytest.fixture
def two_workers(monkeypatch):
    monkeypatch.setattr(parallel, "worker_count", lambda n_jobs: min(n_jobs, 2))


def trained(seed: int) -> np.ndarray:
    """Weights of a small network after some steps; dropout draws from torch's generator."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Linear(8, 32), torch.nn.Dropout(0.5), torch.nn.Linear(32, 1)
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x = torch.randn(64, 8)
    for _ in range(20):
        optimizer.zero_grad()
        (model(x) - x[:, :1]).square().mean().backward()
        optimizer.step()
    return model[0].weight.detach().numpy()


@needs_fork
def test_same_results_in_the_same_order_as_one_after_another(two_workers):
    expected = [trained(seed) for seed in range(5)]  # the parent has used autograd before forking
    found = side_by_side(trained, [(seed,) for seed in range(5)])
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@needs_fork
def test_jobs_run_in_other_processes_and_may_be_closures(two_workers):
    data = object()  # cannot be pickled
    found = side_by_side(lambda: (os.getpid(), id(data), torch.get_num_threads()), [(), ()])
    assert all(pid != os.getpid() for pid, _, _ in found)
    assert all(where == id(data) for _, where, _ in found)
    assert all(threads == 1 for _, _, threads in found)


@needs_fork
def test_an_exception_of_a_job_is_raised(two_workers):
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda x: 1 / x, [(1,), (0,)])


@needs_fork
def test_a_killed_process_is_an_error_and_no_endless_wait(two_workers):
    with pytest.raises(RuntimeError, match=r"killed \(out of memory\?\).*OMP_NUM_THREADS=1"):
        side_by_side(lambda n: os.kill(os.getpid(), signal.SIGKILL) if n else 0, [(0,), (1,)])


def test_one_after_another_where_processes_would_be_in_the_way(monkeypatch):
    def alone() -> bool:
        return side_by_side(lambda _: os.getpid(), [(1,), (1,)]) == [os.getpid()] * 2

    for name in machine.WORLD_SIZES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(parallel, "available_cores", lambda: 4)
    monkeypatch.setattr(parallel, "pick_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert alone()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    if hasattr(os, "fork") and sys.platform != "darwin":
        assert worker_count(5) == 4
        assert worker_count(3) == 3
    for device in ("cuda", "mps"):
        with monkeypatch.context() as patch:
            patch.setattr(parallel, "pick_device", lambda device=device: torch.device(device))
            assert alone()
    with monkeypatch.context() as patch:  # a launcher has started a process for every core
        patch.setenv("WORLD_SIZE", "2")
        assert alone()
    with monkeypatch.context() as patch:  # forks of macOS's frameworks hang
        patch.setattr(sys, "platform", "darwin")
        assert alone()


def test_without_an_affinity_of_processes(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # macOS, Windows
    assert worker_count(5) >= 1
