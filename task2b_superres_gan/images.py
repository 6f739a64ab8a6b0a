"""What is seen of images (B, 3, 125, 125), what is wrong with them, the simplest enlargements."""

import numpy as np
import torch
from torch.nn import functional as F

from e2e_utils.jet_resolution import HIGH, LOW
from task2b_superres_gan.cells import FRAME, from_blocks, to_blocks, windows
from task2b_superres_gan.scale import signed_log

CORNERS = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])  # of the pixels of a cell


def patches(images: torch.Tensor, jet: torch.Tensor, cell: torch.Tensor) -> torch.Tensor:
    """Pixels around cells (n, 6, 6, 6): three channels on the signed log scale, and their hits."""
    planes = to_blocks(images).flatten(2).permute(0, 2, 1).unflatten(2, (LOW, LOW))
    values = signed_log(windows(planes, jet, cell, 1)).view(-1, 3, 2, 2, 3, 3)  # of (B, 12, 64, 64)
    values = values.permute(0, 1, 4, 2, 5, 3).reshape(-1, 3, 6, 6)  # (n, C, 3, 2, 3, 2) before
    return torch.cat([values, (values != 0).to(values)], 1)


def uniform_split(low: torch.Tensor) -> torch.Tensor:
    """Every cell's energy shared evenly among its pixels: (B, 3, 125, 125)."""
    frame = FRAME.to(low)
    share = (frame / frame.sum(1, keepdim=True).clamp(min=1)).unsqueeze(1)  # (4096, 1, 4)
    return from_blocks(4 * low.flatten(2).permute(0, 2, 1).unsqueeze(3) * share)


def enlarged(low: torch.Tensor, mode: str) -> torch.Tensor:
    """Interpolation of the cells' values at the pixels: "nearest" or "bicubic"."""
    return F.interpolate(low, scale_factor=2, mode=mode)[:, :, 1 : HIGH + 1, 1 : HIGH + 1]


def impossible(images: torch.Tensor, low: torch.Tensor, cut: float) -> np.ndarray:
    """How many each jet has (B, 3): cells that do not add up, tracks below ``cut`` (GeV), unequal
    towers. A track in a cell with less energy than ``cut`` is not counted.
    """
    energy = 4 * low.flatten(2).permute(0, 2, 1)  # (B, 4096, 3)
    blocks = to_blocks(images)
    off = (blocks.sum(3) - energy).abs() > 1e-4 * energy.abs() + 1e-4
    track, enough = blocks[:, :, 0], energy[:, :, 0, None] >= cut
    below = (track != 0) & (track < 0.999 * cut) & enough
    towers = images[:, 2].unflatten(2, (25, 5)).unflatten(1, (25, 5))  # (B, 25, 5, 25, 5)
    unequal = towers.amax((2, 4)) - towers.amin((2, 4)) > 1e-3 * towers.abs().amax((2, 4))
    return torch.stack([x.flatten(1).sum(1) for x in (off, below, unequal)], 1).numpy()


def track_errors(made: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Distance of made tracks from the true ones, in pixels, and of a blind draw of one pixel: sums
    over the cells of each jet that have one true track and one made, (B, 2).
    """
    made, true = (to_blocks(x[:, :1]).clamp(min=0)[:, :, 0] for x in (made, true))  # (B, 4096, 4)
    centre, expected = (x @ CORNERS / x.sum(2, keepdim=True).clamp(min=1e-9) for x in (made, true))
    blind = (torch.cdist(expected, CORNERS.expand(len(true), -1, -1)) * FRAME).sum(2)
    blind = blind / FRAME.sum(1).clamp(min=1)
    both = torch.stack([(centre - expected).norm(dim=2), blind], 2)  # (B, 4096, 2)
    single = ((true > 0).sum(2) == 1) & ((made > 0).sum(2) == 1)  # else a centre is no track
    return (both * single.unsqueeze(2)).sum(1)
