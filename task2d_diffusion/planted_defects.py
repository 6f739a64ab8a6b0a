"""Defects planted in real jets (n, 8, 25, 25), of graded size: what a judge has to find.

Each function changes ``x`` in place and returns it; ``grade`` is the share of jets, or a size.
Those that move or exchange take images (n, 8, 125, 125), too.
"""

from collections.abc import Callable

import numpy as np

from task2d_diffusion.towers import DZ, ECAL, GRID, HCAL, TRACK

Defect = Callable[[np.ndarray, np.random.Generator, float], np.ndarray]


def dz_without_track(x: np.ndarray, rng: np.random.Generator, grade: float) -> np.ndarray:
    """One dz moves to a place without a track, in a share of the jets."""
    for jet in np.flatnonzero(rng.random(len(x)) < grade):
        dz, free = x[jet, DZ].ravel(), np.flatnonzero(x[jet, TRACK].ravel() == 0)
        if dz.any():
            source, target = rng.choice(np.flatnonzero(dz)), rng.choice(free)
            dz[target], dz[source] = dz[source], 0
            x[jet, DZ] = dz.reshape(x.shape[2:])  # (625,) -> (25, 25)
    return x


def shifted_energy(x: np.ndarray, rng: np.random.Generator, grade: float) -> np.ndarray:
    """ECAL towers below the highest have 10 % more, times the grade."""
    below = x[:, ECAL] < x[:, ECAL].max((1, 2), keepdims=True)
    x[:, ECAL] *= 1 + 0.1 * grade * below
    return x


def swapped_layers(x: np.ndarray, rng: np.random.Generator, grade: float) -> np.ndarray:
    """First and second pixel layer exchanged in a share of the jets."""
    chosen = rng.random(len(x)) < grade
    x[chosen, 5:7] = x[chosen, 5:7][:, ::-1]
    return x


def missing_tower(x: np.ndarray, rng: np.random.Generator, grade: float) -> np.ndarray:
    """The second-highest ECAL tower is empty in a share of the jets."""
    flat = x[:, ECAL].reshape(len(x), -1)  # (n, 625)
    chosen = np.flatnonzero(rng.random(len(x)) < grade)
    flat[chosen, flat.argsort(1)[chosen, -2]] = 0
    x[:, ECAL] = flat.reshape(-1, GRID, GRID)  # (n, 25, 25)
    return x


def foreign_channel(x: np.ndarray, rng: np.random.Generator, grade: float) -> np.ndarray:
    """The HCAL of another jet in a share of the jets."""
    chosen = np.flatnonzero(rng.random(len(x)) < grade)
    x[chosen, HCAL] = x[rng.permutation(len(x))[: len(chosen)], HCAL]
    return x


DEFECTS: dict[str, Defect] = {
    "dz without a track": dz_without_track,
    "ECAL below the highest, +10 %": shifted_energy,
    "swapped pixel layers": swapped_layers,
    "a missing ECAL tower": missing_tower,
    "HCAL of another jet": foreign_channel,
}
