"""Every training loop in the processes of a launcher: ``torchrun ... train_together.py FOLDER``.

Each process writes the hash of its weights and of its batches; a training of one process alone
writes them for comparison.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from accelerate.state import AcceleratorState
from torch.distributed.elastic.multiprocessing.errors import record

from e2e_utils import training as training_context
from e2e_utils.machine import make_accelerator
from tests.trainings import TRAININGS, Weights

EXACT = "2d stage one"  # neither noise, dropout nor batch normalisation


def digest(arrays: Iterable[np.ndarray]) -> str:
    total = hashlib.sha256()
    for array in arrays:
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def hash_of(weights: Weights) -> str:
    return digest(np.asarray(torch.as_tensor(weights[name]).cpu()) for name in sorted(weights))


def recording(draw: Callable, seen: list) -> Callable:
    """``draw`` that keeps what it gives: rows of one batch, or an iterator of batches."""

    def drawn(*arguments: object) -> object:
        found = draw(*arguments)
        if isinstance(found, torch.Tensor):
            seen.append(found.numpy())
            return found
        batches = list(found)
        seen.extend(batches)
        return iter(batches)

    return drawn


@record  # the launcher's summary then ends with the exception of the process that failed first
def main(folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    accelerator = make_accelerator()
    process = accelerator.process_index
    results = {}
    for number, name in enumerate(names):
        began, seen = time.process_time(), []
        with accelerator.main_process_first():  # both keep what they prepare in the same folder
            notebook, train = TRAININGS[name](folder / str(number))
        source = "draw" if name.startswith("2j") else "epoch_batches"
        # Notebooks with their own loop draw by themselves, the others through `Training`.
        places = [place for place in (notebook, training_context) if hasattr(place, source)]
        original = getattr(places[0], source)
        for place in places:
            setattr(place, source, recording(original, seen))
        AcceleratorState._reset_state()  # each notebook has its own precision
        weights = train()
        for place in places:
            setattr(place, source, original)
        seconds = time.process_time() - began
        results[name] = {"weights": hash_of(weights), "batches": digest(seen), "seconds": seconds}
        if name == EXACT:
            tensors = {name: torch.as_tensor(weights[name]) for name in weights}
            torch.save(tensors, folder / f"exact-{process}.pt")
    (folder / f"results-{process}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or list(TRAININGS))
    torch.distributed.destroy_process_group()
