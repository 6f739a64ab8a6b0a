"""Random numbers that depend on a seed and an epoch alone.

A run that resumes at epoch k draws the same batches as one that never stopped, without any state
of a loader being saved.
"""

import random
from collections.abc import Iterator

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy's global generator and torch on every device."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 libraries still draw from the global generator
    torch.manual_seed(seed)


def epoch_generator(seed: int, epoch: int) -> np.random.Generator:
    """NumPy generator of one epoch."""
    return np.random.default_rng([seed, epoch])


def torch_generator(seed: int, epoch: int, device: str | torch.device = "cpu") -> torch.Generator:
    """Torch generator of one epoch (augmentation noise, for example)."""
    state = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state >> 1))  # torch takes 63 bits


def epoch_batches(
    rows: np.ndarray,
    batch_size: int,
    seed: int,
    epoch: int,
    process: int = 0,
    n_processes: int = 1,
) -> Iterator[np.ndarray]:
    """Yield shuffled batches of ``rows`` for one epoch; the last incomplete one is dropped.

    Under ``accelerate launch`` every process gives its index and their number, and gets its share:
    all processes the same number of batches.
    """
    order = epoch_generator(seed, epoch).permutation(rows)
    n_batches = len(order) // batch_size
    n_batches -= n_batches % n_processes
    for batch in range(process, n_batches, n_processes):
        yield order[batch * batch_size : (batch + 1) * batch_size]
