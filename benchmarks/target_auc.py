"""How long a network of common task 1 trains until it reaches an AUC, against a usual one.

Both see the same batches from memory, with the same optimiser, moving average and threads, so that
what differs is the network: ours, and the one that comes to mind first, a ResNet-15 as for CIFAR.
"""

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.timing import row
from data.loaders import load_electron_photon
from data.simulate.egamma import generate
from e2e_utils.metrics import roc_auc
from e2e_utils.notebook import load_definitions
from e2e_utils.paths import STANDIN
from e2e_utils.vision import import_torchvision

TARGET = 0.79
EVENTS, VALIDATION = 100_000, 10_000
BATCH, CHECK_EVERY, LIMIT = 256, 50, 900.0  # LIMIT: CPU seconds
RATES = {"ours": 8e-3, "CIFAR-style": 2e-3}


class CifarResNet15(nn.Module):
    """1 + 2 (2 + 3 + 2) convolutions, stride 1 at the start: (B, 2, 32, 32) -> logit (B, 1)."""

    def __init__(self) -> None:
        super().__init__()
        block = import_torchvision().models.resnet.BasicBlock
        layers, inputs = [nn.Conv2d(2, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()], 16
        for width, depth in ((16, 2), (32, 3), (64, 2)):
            for number in range(depth):
                stride = 2 if width > 16 and not number else 1
                widen = None
                if inputs != width:
                    widen = nn.Sequential(
                        nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width)
                    )
                layers.append(block(inputs, width, stride, widen))
                inputs = width
        self.layers = nn.Sequential(
            *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def members(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Logits (B, M) of a network's members; one where it is none."""
    return model(x).reshape(len(x), -1)


def loss_of(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of every member (B, M) with labels (B,)."""
    return binary_cross_entropy_with_logits(logits, y.unsqueeze(1).expand_as(logits))


@torch.inference_mode()
def auc_of(model: nn.Module, x: torch.Tensor, y: np.ndarray) -> float:
    """AUC of a network in evaluation mode."""
    return roc_auc(y, torch.cat([members(model, part).mean(1) for part in x.split(1024)]).numpy())


def seconds_to_target(
    model: nn.Module, rate: float, batches: Iterator, check: Callable
) -> tuple[float, float, float]:
    """CPU and wall seconds until ``check`` of the moving average reaches TARGET, and its value.

    The checks are not counted. Ends at LIMIT, too.
    """
    model = model.train().to(memory_format=torch.channels_last)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99), use_buffers=True)
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.02)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.05, 1.0, 100)
    spent, value = np.zeros(2), 0.0
    while value < TARGET and spent[0] < LIMIT:
        start = np.array([time.process_time(), time.perf_counter()])
        for _, (x, y) in zip(range(CHECK_EVERY), batches, strict=False):
            optimizer.zero_grad()
            loss_of(members(model, x), y).backward()
            optimizer.step()
            warm_up.step()
            averaged.update_parameters(model)
        spent += np.array([time.process_time(), time.perf_counter()]) - start
        value = check(averaged.eval())
    return *spent, value


def measure() -> list[dict]:
    """CPU and wall seconds of both networks."""
    files = generate(EVENTS, STANDIN)
    dataset = load_electron_photon(path=",".join(map(str, files)))
    order = np.random.default_rng(0).permutation(len(dataset.y))
    check, rows = np.split(order, [VALIDATION])
    x_check, y_check = dataset.images.dense(check), dataset.y[check]
    definitions = load_definitions("common_task1")
    networks = {"ours": definitions.ElectronPhotonResNet, "CIFAR-style": CifarResNet15}
    found = {}

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        rng = np.random.default_rng(1)
        while True:
            for some in np.array_split(rng.permutation(rows), len(rows) // BATCH):
                yield dataset.images.dense(some), torch.tensor(dataset.y[some], dtype=torch.float32)

    for name, network in networks.items():
        torch.manual_seed(0)
        found[name] = seconds_to_target(
            network(), RATES[name], batches(),
            lambda model: auc_of(model, x_check, y_check),
        )  # fmt: skip
    cpu, wall, value = found["CIFAR-style"]
    against = "CIFAR-style ResNet-15"
    if value < TARGET:
        against += f", which has {value:.3f} then"
    return [
        row(f"training to an AUC of {TARGET}, {kind} time", mine, theirs, against, "s")
        for kind, mine, theirs in zip(("CPU", "wall"), found["ours"], (cpu, wall), strict=False)
    ]
