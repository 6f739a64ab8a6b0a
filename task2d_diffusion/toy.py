"""A toy of known modes, on which a generator's lost modes can be counted: 25 narrow peaks."""

import numpy as np
import torch
from torch import Tensor

MODES = np.stack(np.meshgrid(*2 * [np.arange(-2.0, 3.0)]), -1).reshape(-1, 2)  # (25, 2)
WIDTH = 0.05


def drawn_points(n: int) -> Tensor:
    """Points (n, 2) of the toy, from torch's global generator."""
    return torch.as_tensor(MODES).float()[torch.randint(25, (n,))] + WIDTH * torch.randn(n, 2)


def modes_found(points: np.ndarray) -> int:
    """Modes within three widths of which at least one in 500 points (n, 2) lies."""
    d = np.linalg.norm(points[:, None] - MODES[None], axis=2)
    near = np.where(d.min(1) < 3 * WIDTH, d.argmin(1), -1)
    return int((np.bincount(near[near >= 0], minlength=25) >= len(points) / 500).sum())


def share_at_modes(points: np.ndarray) -> float:
    """Share of points (n, 2) within three widths of a mode."""
    return float((np.linalg.norm(points[:, None] - MODES, axis=2).min(1) < 3 * WIDTH).mean())
