"""Normal scores of variables with tails and atoms, and the way back.

A value w with distribution function F becomes z = Phi^-1(u) with u uniform in [F(w-), F(w)]: a
standard normal number exactly, whatever F. An atom becomes an interval.
"""

import numpy as np
from scipy.special import ndtr, ndtri

KNOTS = 512  # of a distribution function
MOST = -float(ndtri(0.25 / KNOTS))  # the largest score that a sample can have


class Quantiles:
    """Randomised probability integral transform of one variable, from a sample (n,)."""

    def __init__(self, sample: np.ndarray) -> None:
        self.p = np.linspace(0, 1, KNOTS + 1)
        self.table = np.quantile(sample if len(sample) else [1.0], self.p)

    def forward(self, w: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Normal scores (n,) of values (n,); an atom's are drawn within its interval."""
        left = np.searchsorted(self.table, w, "left")
        right = np.searchsorted(self.table, w, "right") - 1
        low, high = self.p[np.minimum(left, KNOTS)], self.p[np.clip(right, 0, KNOTS)]
        within = low + (high - low) * rng.random(len(w))
        u = np.where(right > left, within, np.interp(w, self.table, self.p))
        return np.clip(ndtri(u), -MOST, MOST)

    def inverse(self, z: np.ndarray) -> np.ndarray:
        """Values of normal scores, any shape."""
        return np.interp(ndtr(z), self.p, self.table)

    def atoms(self, least: int = 4) -> np.ndarray:
        """Values that ``least`` knots or more share."""
        value, count = np.unique(self.table, return_counts=True)
        return value[count >= least]
