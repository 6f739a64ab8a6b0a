"""Train common task 1 on toy events with some seeds; every process writes its own results.

``python train_toy.py FOLDER``, alone or under a launcher that starts it several times.
"""

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from accelerate import Accelerator
from test_common_task1 import toy_events

from e2e_utils.notebook import load_definitions
from e2e_utils.seeds import seed_everything
from e2e_utils.sparse_images import SparseImages
from e2e_utils.splits import split

EVENTS = 400
BATCH_SIZE = 32  # of all processes together: the same number of steps, however many there are
SEEDS = (0, 1, 2)


def main(folder: Path) -> None:
    state = Accelerator().state
    notebook = load_definitions("common_task1")
    x, y = toy_events(EVENTS)
    y = np.where(np.random.default_rng(0).random(EVENTS) < 0.2, 1 - y, y)  # nobody reaches 1.0
    notebook.images, notebook.y, notebook.splits = SparseImages.from_dense(x), y, split(y, seed=0)
    notebook.run = SimpleNamespace(directory=folder)
    config = replace(
        notebook.CONFIGS["smoke"], epochs=3, batch_size=BATCH_SIZE // state.num_processes
    )
    scores, weights = [], hashlib.sha256()
    for seed in SEEDS:
        seed_everything(seed)
        model = notebook.build_model("resnet")
        history = notebook.train(f"toy-{seed}", model, notebook.splits.train, config, seed)
        scores.append(history.validation_roc_auc.max())
        for _, parameter in sorted(model.named_parameters()):
            weights.update(parameter.detach().numpy().tobytes())
    results = {"processes": state.num_processes, "roc_auc": scores, "weights": weights.hexdigest()}
    (folder / f"results-{state.process_index}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
