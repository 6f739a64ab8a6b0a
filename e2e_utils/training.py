"""What surrounds a training loop: resuming, moving average, best weights, history, progress.

A notebook keeps the forward pass, the loss, the backward pass and the step in sight:

    fit = Training(folder, model, optimizer, schedule, accelerator, ema_decay=0.997)
    for epoch in fit.epochs(15):
        for batch in fit.batches(splits.train, 128, seed):
            with accelerator.autocast():
                loss = bce(fit.network(images.dense(batch, fit.device)), target[batch])
            fit.backward(loss)
            fit.step()
        fit.record(roc_auc(y[splits.validation], predict(fit.averaged, splits.validation)))

After the loop ``model`` holds the weights of the best epoch. Interrupted at any moment, the same
code continues bit for bit from the last complete epoch.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from e2e_utils.checkpoints import load_training_state, save_training_state
from e2e_utils.distributed import share_buffers
from e2e_utils.seeds import epoch_batches


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average of weights and buffers.

    The decay warms up as min(decay, (1 + n) / (10 + n)) after n updates; 0 follows the model.
    """

    @torch.no_grad()
    def update(
        averaged: list[torch.Tensor], current: list[torch.Tensor], count: torch.Tensor | int
    ) -> None:
        if not averaged[0].is_floating_point():  # counters of batches
            torch._foreach_copy_(averaged, current)
            return
        keep = min(decay, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(averaged, current, 1 - keep)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)


class BestWeights:
    """The weights with the best score so far, on the CPU."""

    def __init__(self, higher_is_better: bool) -> None:
        self.sign = 1 if higher_is_better else -1
        self.score: float | None = None
        self.epoch = -1
        self.weights: dict[str, torch.Tensor] = {}

    def update(self, score: float, epoch: int, model: nn.Module) -> None:
        """Keep the weights of ``model`` if ``score`` is the best; a NaN never is."""
        if np.isnan(score) or (self.score is not None and self.sign * (score - self.score) <= 0):
            return
        self.score, self.epoch = float(score), epoch
        self.weights = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}

    def state_dict(self) -> dict:
        """For checkpoints."""
        return {"score": self.score, "epoch": self.epoch, "weights": self.weights}

    def load_state_dict(self, state: dict) -> None:
        """From a checkpoint."""
        self.score, self.epoch, self.weights = state["score"], state["epoch"], state["weights"]


class Training:
    """One training of ``model`` in place; see the module's docstring.

    ``folder`` keeps its state. ``schedule`` advances once per step. ``ema_decay`` 0 evaluates the
    weights as they are. ``clip`` bounds the norm of the gradient. ``record`` is given a score of
    which higher is better, or lower.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optimizer: Optimizer,
        schedule: LRScheduler,
        accelerator: Accelerator,
        *,
        ema_decay: float = 0.0,
        clip: float | None = 1.0,
        higher_is_better: bool = True,
    ) -> None:
        self.folder, self.model, self.schedule = folder, model, schedule
        self.accelerator, self.clip = accelerator, clip
        self.device = accelerator.device
        self.average = moving_average(model.to(self.device), ema_decay) if ema_decay else None
        self.best = BestWeights(higher_is_better)
        self.network, self.optimizer = accelerator.prepare(model, optimizer)
        kept = [schedule, self.best] + ([self.average] if self.average else [])
        accelerator.register_for_checkpointing(*kept)
        self.history: list[dict[str, float]] = []
        self._epoch, self._epochs, self._began = 0, 0, time.monotonic()

    @property
    def averaged(self) -> nn.Module:
        """The network to evaluate: the moving average where there is one.

        Every process of a distributed training asks for it: all get the buffers of the first.
        """
        network = self.average.module if self.average else self.model
        share_buffers(network)
        return network

    def epochs(self, number: int) -> Iterator[int]:
        """The epochs that are left of ``number``; each must end with `record`."""
        saved = load_training_state(self.accelerator, self.folder)
        self.history, self._epochs = (saved or {"history": []})["history"], number
        for epoch in range(len(self.history), number):
            self._epoch, self._began = epoch, time.monotonic()
            self.network.train()
            yield epoch
            if len(self.history) != epoch + 1:
                raise RuntimeError("record(score) expected at the end of every epoch")
        self.model.load_state_dict(self.best.weights)
        seconds = sum(line["seconds"] for line in self.history)
        print(
            f"{self.folder.name}: {number} epochs in {seconds:.0f} s, best score "
            f"{self.best.score:.4g} after epoch {self.best.epoch + 1}",
            flush=True,
        )

    def batches(self, rows: np.ndarray, size: int, seed: int) -> Iterator[np.ndarray]:
        """Shuffled batches of ``rows`` of this epoch, with a progress bar; this process's share."""
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        yield from tqdm(
            epoch_batches(rows, size, seed, self._epoch, process, processes),
            f"{self.folder.name} {self._epoch + 1}/{self._epochs}",
            len(rows) // (size * processes),
            leave=False,
            mininterval=5,
            disable=not self.accelerator.is_local_main_process,
        )

    def backward(self, loss: torch.Tensor) -> None:
        """Gradients of ``loss`` alone, averaged over processes."""
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)

    def step(self) -> None:
        """Clip, step, advance schedule and average; none of it where float16 overflowed."""
        if self.clip is not None:
            self.accelerator.clip_grad_norm_(self.network.parameters(), self.clip)
        self.optimizer.step()
        if self.accelerator.optimizer_step_was_skipped:
            return
        self.schedule.step()
        if self.average:
            self.average.update_parameters(self.model)

    def record(self, score: float, **values: float) -> None:
        """End the epoch: ``score`` chooses the best weights, ``values`` go into the history too."""
        seconds = time.monotonic() - self._began
        line = {"epoch": self._epoch + 1, "score": float(score), "seconds": seconds}
        self.history.append(line | {name: float(value) for name, value in values.items()})
        self.best.update(score, self._epoch, self.averaged)
        save_training_state(self.accelerator, self.folder, {"history": self.history})
