"""What networks that others trained on official electrons and photons make of stand-in images.

Three such networks lie beside the real samples as ``probe_egamma_{energy,time,both}.npz``
(`REAL_SAMPLES`); nothing here needs them, and none is part of this repository. Their batch norms
carry official statistics: the mean and variance of every channel over official events.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from e2e_utils.errors import InputError
from e2e_utils.paths import REAL_SAMPLES

INPUTS = {"energy": (0,), "time": (1,), "both": (0, 1)}  # channels of the images
PUBLISHED_AUC = {"energy": 0.8158, "time": 0.6665, "both": 0.8136}  # on official test events
PIXEL_UNIT = 255.0  # what the networks' inputs were divided by
LAST = "layer3.1"  # the block behind the head


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


class Block(nn.Module):
    """Two 3 x 3 convolutions and the input: (n, inputs, h, w) to (n, outputs, h', w')."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _convolution(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = _convolution(outputs, outputs, 3), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                _convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class Probe(nn.Module):
    """The networks' architecture: (n, channels, 32, 32) to one logit, positive for electrons."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _convolution(channels, 16, 3), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16, 1), Block(16, 16, 1))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1))
        self.linear = nn.Linear(64, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer1(torch.relu(self.bn1(self.conv1(x))))
        return self.linear(self.layer3(self.layer2(x)).mean((2, 3)))[:, 0]


@dataclass(frozen=True)
class Reading:
    """What one network makes of images."""

    scores: np.ndarray  # (n,) logits, positive for electrons
    widths: dict[str, np.ndarray]  # batch norm -> std of each channel / its official std
    shifts: dict[str, np.ndarray]  # batch norm -> (mean - official mean) / official std

    def width(self, layer: str = LAST) -> float:
        """Median over the channels of a block's last batch norm: 1 for official events."""
        return float(np.median(self.widths[f"{layer}.bn2"]))


def load_probe(name: str) -> Probe | None:
    """The network that sees the channels INPUTS[``name``], or None where it is not at hand.

    Raises InputError for a file that does not hold this architecture.
    """
    path = REAL_SAMPLES / f"probe_egamma_{name}.npz"
    if not path.exists():
        return None
    with np.load(path) as stored:
        weights = {key: torch.from_numpy(stored[key]) for key in stored.files}
    model = Probe(len(INPUTS[name]))
    try:
        lacking = model.load_state_dict(weights, strict=False).missing_keys
    except RuntimeError as error:
        raise InputError(f"{path}: expected the weights of a probe, found: {error}") from error
    lacking = [key for key in lacking if not key.endswith("num_batches_tracked")]
    if lacking:
        raise InputError(f"{path}: expected the weights of a probe, found none for {lacking}")
    return model.eval()


def read(name: str, images: np.ndarray, batch: int = 500) -> Reading | None:
    """Show ``images`` (n, 32, 32, 2) in official units to a network; None where it is absent."""
    model = load_probe(name)
    if model is None:
        return None
    norms = {key: m for key, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    sums = {
        key: torch.zeros(2, len(m.running_mean), dtype=torch.float64) for key, m in norms.items()
    }
    pixels = dict.fromkeys(norms, 0)

    def watch(key: str) -> None:
        def hook(_module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
            x = inputs[0].double()  # (n, channels, h, w)
            sums[key] += torch.stack([x.sum((0, 2, 3)), (x * x).sum((0, 2, 3))])
            pixels[key] += x.numel() // x.shape[1]

        norms[key].register_forward_pre_hook(hook)

    for key in norms:
        watch(key)
    scores = []
    with torch.inference_mode():
        for first in range(0, len(images), batch):
            part = images[first : first + batch, ..., list(INPUTS[name])].astype(np.float32)
            x = torch.from_numpy(part).permute(0, 3, 1, 2).contiguous()  # -> (n, channels, 32, 32)
            scores.append(model(x / PIXEL_UNIT).numpy())
    widths, shifts = {}, {}
    for key, norm in norms.items():
        mean, square = (sums[key] / pixels[key]).numpy()
        official = norm.running_var.numpy().astype(np.float64) ** 0.5
        widths[key] = np.sqrt(np.maximum(square - mean**2, 0.0)) / official
        shifts[key] = (mean - norm.running_mean.numpy()) / official
    return Reading(np.concatenate(scores), widths, shifts)


def right_shares(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Shares of photons (label 0) and electrons (1) on their side of a logit of zero."""
    return float((scores[labels == 0] < 0).mean()), float((scores[labels == 1] > 0).mean())
