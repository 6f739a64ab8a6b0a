"""Training steps of the task's network against torchvision's ResNet-18 on the same input."""

from collections.abc import Callable

import torch
from torch import nn

from benchmarks.timing import row, side_by_side
from e2e_utils.notebook import load_definitions
from e2e_utils.vision import import_torchvision

BATCH = 256


def training_step(model: nn.Module, x: torch.Tensor, target: torch.Tensor) -> Callable[[], None]:
    """One update of AdamW on a fixed batch."""
    optimizer = torch.optim.AdamW(model.train().parameters())
    loss_function = nn.BCEWithLogitsLoss()

    def step() -> None:
        optimizer.zero_grad()
        loss_function(model(x).mean(1), target).backward()
        optimizer.step()

    return step


def measure() -> list[dict]:
    """Rates of training steps, with one line for every network."""
    torchvision = import_torchvision()
    resnet18 = torchvision.models.resnet18(num_classes=1)
    resnet18.conv1 = nn.Conv2d(2, 64, 7, 2, 3, bias=False)  # two channels instead of three
    ours = load_definitions("common_task1").build_model("energy_only")
    x, target = torch.rand(BATCH, 2, 32, 32), torch.randint(2, (BATCH,)).float()
    seconds = side_by_side(
        {
            "ours": training_step(ours.to(memory_format=torch.channels_last), x, target),
            "resnet18": training_step(resnet18, x, target),
        }
    )
    rates = {name: BATCH / t for name, t in seconds.items()}
    what = f"training, {torch.get_num_threads()} CPU threads"
    return [row(what, rates["ours"], rates["resnet18"], "torchvision ResNet-18", "images/s")]
