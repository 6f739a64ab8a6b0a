"""Whether generated jets are copies of training jets."""

import numpy as np
import torch
from torch import Tensor

from e2e_utils.sparse_images import SparseImages
from task2d_diffusion.towers import in_parts, to_towers
from task2d_diffusion.two_samples import nearest_distance

PROJECTIONS = 256


class CopyTest:
    """ln(d_train / d_new) of towers (n, 8, 25, 25): far below zero for a copy; (n,).

    d_train is the distance to the nearest of all ``trained`` jets in four mirrors, d_new that to
    the nearest jet which no training has seen (rows of ``images`` both). Distances are angles
    between patterns ln(1 + x) less their mean, in random projections.
    """

    def __init__(self, images: SparseImages, trained: np.ndarray, new: np.ndarray) -> None:
        first = torch.as_tensor(to_towers(images, trained[:500]).x).log1p()
        self.mean = first.mean(0)
        generator = torch.Generator().manual_seed(5)
        self.projection = torch.randn(self.mean.numel(), PROJECTIONS, generator=generator)
        self.pools = [self._patterns_of(images, rows) for rows in (trained, new)]

    def __call__(self, x: Tensor) -> np.ndarray:
        views = [self._patterns(x.flip(axes)) for axes in ((), (2,), (3,), (2, 3))]
        near = [
            np.min([nearest_distance(view, pool) for view in views], axis=0) for pool in self.pools
        ]
        return np.log((near[0] + 1e-6) / (near[1] + 1e-6))

    def _patterns(self, x: Tensor) -> np.ndarray:
        flat = (x.log1p() - self.mean).flatten(1) @ self.projection  # (n, 256)
        return (flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-9)).numpy()

    def _patterns_of(self, images: SparseImages, rows: np.ndarray) -> np.ndarray:
        parts = [torch.as_tensor(to_towers(images, part).x) for part in in_parts(rows)]
        return np.concatenate([self._patterns(part) for part in parts])


def memorised(images: SparseImages, rows: np.ndarray, seed: int = 6) -> Tensor:
    """What a generator that memorises would give: jets mirrored, a tenth of their towers erased."""
    x = torch.as_tensor(to_towers(images, rows).x).flip(3)
    return x * (torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) > 0.1)
