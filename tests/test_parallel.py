import os

import numpy as np
import pytest
import torch

from e2e_utils import parallel
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


def test_one_thread_or_a_gpu_means_one_after_another(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert worker_count(5) == 1
    assert side_by_side(lambda x: os.getpid() * x, [(1,), (1,)]) == [os.getpid()] * 2
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert worker_count(5) == 1
