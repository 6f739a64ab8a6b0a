"""Which of the four pixels of a cell are hit, and contrasts of those that are."""

import numpy as np
import torch

from task2b_superres_gan.cells import FRAME

PATTERNS = 15  # non-empty subsets of four pixels: number p stands for the bits of p + 1
NONE = 15  # a channel without energy in this cell
HITS = torch.tensor(
    [[(p + 1) >> bit & 1 for bit in range(4)] for p in range(15)] + [[0] * 4]
).float()
ALLOWED = ~((HITS[None, :15] > 0) & (FRAME[:, None] == 0)).any(2)  # (4096, 15)


def contrast_matrix(hits: tuple[float, ...]) -> np.ndarray:
    """Orthonormal contrasts (3, 4) of the hit pixels: rows that sum to zero, unused ones zero."""
    chosen, matrix = np.flatnonzero(hits), np.zeros((3, 4))
    for n in range(1, len(chosen)):  # Helmert: the next pixel against the mean of those before
        matrix[n - 1, chosen[:n]] = 1 / np.sqrt(n * (n + 1))
        matrix[n - 1, chosen[n]] = -n / np.sqrt(n * (n + 1))
    return matrix


CONTRASTS = torch.tensor(np.array([contrast_matrix(row) for row in HITS.tolist()])).float()
USED = (CONTRASTS.abs().sum(2) > 0).float()  # (16, 3) contrasts that a pattern has


def pattern_of(x: torch.Tensor) -> torch.Tensor:
    """Hit pattern (n, C) of pixels (n, C, 4): 0 to 14, or NONE."""
    number = ((x != 0) * torch.tensor([1, 2, 4, 8], device=x.device)).sum(2)
    return torch.where(number == 0, NONE, number - 1)
