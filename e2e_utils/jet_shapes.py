"""Shapes that tell jets apart, from the active pixels of images (3, 125, 125) in GeV.

The physicist's variables of quark/gluon tagging: multiplicity, p_T D, angularities, axes, rings,
and energy correlations of pairs (Larkoski, Salam, Thaler, arXiv:1305.0007).
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import pandas as pd
import torch

from e2e_utils.jet_observables import NAMES, PIXEL
from e2e_utils.sparse_images import SparseImages

SIZE, TOWER = 125, 5  # pixels along a side of an image, of an HCAL tower, which is one measurement
BETAS = (0.2, 0.5, 1.0, 2.0)
RINGS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)


def channel_shapes(
    jet: np.ndarray, energy: np.ndarray, d: np.ndarray, n_jets: int, share: float = 1.0
) -> dict[str, np.ndarray]:
    """Shapes of one channel from its hits: number of the jet (n,), GeV (n,), offsets ``d`` (2, n).

    ``share`` is what a hit counts for the multiplicity: 1/25 for a tower's pixel. (n_jets,) each.
    """
    total = partial(np.bincount, jet, minlength=n_jets)  # sum of weights over the hits of each jet
    radius, energy_sum = np.hypot(*d), total(energy) + 1e-6
    core = energy * (radius < RINGS[-1])
    core_sum = total(core) + 1e-6
    xx, yy, xy = (total(core * d[a] * d[b]) / core_sum for a, b in ((0, 0), (1, 1), (0, 1)))
    root = np.sqrt((xx - yy) ** 2 / 4 + xy**2)
    leading = np.zeros(n_jets)
    np.maximum.at(leading, jet, energy)
    shapes = {
        "sum": energy_sum, "multiplicity": total() * share, "n_hard": total(energy > share) * share,
        "ptd": np.sqrt(total(energy**2)) / energy_sum, "leading": leading / energy_sum,
        "width": total(core * radius) / core_sum, "lha": total(core * np.sqrt(radius)) / core_sum,
        "major": (xx + yy) / 2 + root, "minor": (xx + yy) / 2 - root,
    }  # fmt: skip
    for cut in (0.2, 0.4):
        shapes[f"n_{cut}"] = total(radius < cut) * share
    for low, high in pairwise(RINGS):
        inside = (radius >= low) & (radius < high)
        shapes[f"ring_{high}"] = total(energy * inside) / energy_sum
    return shapes


def jet_shapes(images: SparseImages, rows: np.ndarray) -> pd.DataFrame:
    """Shapes of the chosen jets, a row each: those of every channel and of all together.

    Sum [GeV], multiplicity (also within 0.2 and 0.4, and above 1 GeV), p_T D, leading share, width
    and Les Houches angularity within 0.5, axes of the second moment, shares of energy in rings.
    Distances are from the energy-weighted centroid, in eta and phi.
    """
    offsets, index, value = images.events(rows)
    kept, n_jets = value > 0, len(offsets) - 1  # noise below zero is left out
    jet = np.repeat(np.arange(n_jets), np.diff(offsets))[kept]
    channel, pixel = np.divmod(index[kept].astype(np.int64), SIZE**2)
    energy = value[kept].astype(np.float64)
    position = np.stack(np.divmod(pixel, SIZE)) * PIXEL  # (2, hits)
    total = np.bincount(jet, energy, n_jets).clip(1e-6)
    centroid = np.stack([np.bincount(jet, energy * axis, n_jets) for axis in position]) / total
    d, table = position - centroid[:, jet], {}
    for number, name in enumerate((*NAMES, "all")):
        chosen = channel == number if number < 3 else slice(None)
        share = 1 / TOWER**2 if name == "hcal" else 1.0
        shapes = channel_shapes(jet[chosen], energy[chosen], d[:, chosen], n_jets, share)
        table |= {f"{name}_{shape}": values for shape, values in shapes.items()}
        if number < 3:
            table[f"{name}_fraction"] = shapes["sum"] / total
    return pd.DataFrame(table).astype(np.float32)


def energy_correlations(
    place: torch.Tensor, energy: torch.Tensor, betas: Sequence[float] = BETAS
) -> torch.Tensor:
    """Sum over pairs of z_i z_j Delta-R^beta: (B, len(betas)).

    ``place`` (B, N, 2) in eta and phi, ``energy`` (B, N) in GeV; z is a node's share in the energy
    of all.
    """
    distance = (place.unsqueeze(2) - place.unsqueeze(1)).square().sum(-1).sqrt()  # (B, N, N)
    z = (energy / energy.sum(1, keepdim=True).clamp(min=1e-6)).unsqueeze(1)  # (B, 1, N)
    values = [z @ distance.pow(beta) @ z.mT for beta in betas]  # (B, 1, 1) each
    return torch.cat(values, 2).squeeze(1) / 2
