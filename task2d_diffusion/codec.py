"""Jets in towers as numbers that generators can make, and the way back.

27 numbers per jet (`summaries`) as normal scores, and one number v per tower and channel: empty
towers lie about EMPTY, active ones about HIT, the highest of each channel about HIGHEST: three
clouds that do not touch.
"""

import numpy as np
import torch

from task2d_diffusion.normal_scores import Quantiles
from task2d_diffusion.towers import (
    COUNTED,
    D0,
    DZ,
    GRID,
    HCAL,
    N_CHANNELS,
    THRESHOLD,
    TOP,
    TRACK,
    Towers,
    ranks,
    units_of,
)

EMPTY, HIT, HIGHEST = -1.0, 1.0, 3.0  # centres of the three clouds
HIT_WIDTH, OTHER_WIDTH = 0.3, 0.25  # of active towers; of empty and of highest ones
BORDER = (HIT + HIGHEST) / 2
FARTHEST = 3.5  # widths that a highest tower lies from its centre at most: none crosses the border
COUNTS = slice(N_CHANNELS, 2 * N_CHANNELS)  # of the summaries: numbers of active towers
N_SUMMARY = 3 * N_CHANNELS + len(COUNTED)


def summaries(part: Towers) -> np.ndarray:
    """Numbers (n, 27): of each channel sum, active towers, highest tower; hits that 255 is worth.

    Sums and highest towers are in units of a hit.
    """
    w = part.x / units_of(part.largest)
    active = (part.x > THRESHOLD).sum((2, 3))
    return np.concatenate([w.sum((2, 3)), active, w.max((2, 3)), part.largest], 1)


def is_highest(w: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Where each channel has its highest tower, one of them where several are; (n, 8, 25, 25)."""
    highest = w.max((2, 3), keepdims=True)
    lot = rng.random(w.shape) * ((w == highest) & (highest > 0))
    return (lot > 0) & (lot == lot.max((2, 3), keepdims=True))


def rescaled(w: np.ndarray, active: np.ndarray, fixed: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Values (n, 625), the active ones but the fixed scaled to the sum (n,), at most tenfold."""
    kept, free = (w * (active & fixed)).sum(1), (w * (active & ~fixed)).sum(1)
    factor = np.clip((total - kept) / np.maximum(free, 1e-9), 0.1, 10.0)
    return np.where(fixed, w, w * factor[:, None])


def filled(
    c: int,
    quantiles: Quantiles,
    v: np.ndarray,
    chosen: np.ndarray,
    total: np.ndarray,
    top: np.ndarray,
) -> np.ndarray:
    """Values (n, 625) of a channel's chosen towers from v, in units of a hit.

    Their sum and their highest value (n,) are given.
    """
    first = ranks(np.where(chosen, v, -np.inf)) == 0
    w = quantiles.inverse((v - HIT) / HIT_WIDTH)
    fixed = w <= 1 if c in COUNTED else np.isin(w, quantiles.atoms())
    w = rescaled(np.minimum(w, top[:, None]), chosen & ~first, fixed, total - top)
    w = np.rint(w).clip(min=1) if c in COUNTED else np.maximum(w, 2 * THRESHOLD)
    return np.where(chosen, np.where(first, top[:, None], np.minimum(w, top[:, None])), 0)


class Codec:
    """Between towers and the numbers that the generators see; fitted on training jets."""

    def __init__(self, part: Towers) -> None:
        w, rng = self.own_units(part), np.random.default_rng(0)
        active = (part.x > THRESHOLD) & ~is_highest(w, rng)
        self.value = [Quantiles(w[:, c][active[:, c]]) for c in range(N_CHANNELS)]
        self.summary = [Quantiles(column) for column in summaries(part).T]

    def tables(self) -> dict[str, torch.Tensor]:
        """The quantiles of values (8, k) and summaries (27, k)."""
        found = {"value": self.value, "summary": self.summary}
        return {k: torch.as_tensor(np.stack([q.table for q in ones])) for k, ones in found.items()}

    def own_units(self, part: Towers) -> np.ndarray:
        """Values in units of a hit, whole numbers in the counted channels."""
        w = part.x / units_of(part.largest)
        w[:, COUNTED] = np.rint(w[:, COUNTED])
        return w

    def conditions(self, part: Towers, rng: np.random.Generator) -> np.ndarray:
        """Normal scores (n, 27) of the summaries."""
        columns = zip(self.summary, summaries(part).T, strict=True)
        return np.stack([q.forward(column, rng) for q, column in columns], 1).astype(np.float32)

    def encode(self, part: Towers, rng: np.random.Generator) -> np.ndarray:
        """v - EMPTY of active towers, 0 of empty ones, sparse still: (n, 8, 25, 25)."""
        w = self.own_units(part)
        highest = is_highest(w, rng)
        active = (part.x > THRESHOLD) & ~highest
        v = np.zeros(w.shape, np.float32)
        for c, quantiles in enumerate(self.value):
            z = quantiles.forward(w[:, c][active[:, c]], rng)
            v[:, c][active[:, c]] = HIT - EMPTY + HIT_WIDTH * z
        noise = rng.standard_normal(highest.sum()).clip(-FARTHEST, FARTHEST)
        v[highest] = HIGHEST - EMPTY + OTHER_WIDTH * noise
        return v

    def decode(self, v: np.ndarray, condition: np.ndarray, order: np.ndarray) -> Towers:
        """Towers from v and what ranks activity (n, 8, 25, 25), and conditions (n, 27).

        The towers that rank highest are active, as many as the conditions say; dz and d0 rank
        within the towers that have a track, so whatever comes in, nothing impossible comes out.
        """
        numbers = [q.inverse(z) for q, z in zip(self.summary, condition.T, strict=True)]
        total, count, top, largest = np.split(np.stack(numbers, 1), N_CHANNELS * np.arange(1, 4), 1)
        largest = np.rint(largest).clip(min=1)
        # A highest tower is a pixel of 255 at least; quantiles between that and none are not.
        top[:, : HCAL + 1] = np.maximum(top[:, : HCAL + 1], TOP)
        top[:, COUNTED] = np.maximum(np.rint(top[:, COUNTED]), largest)
        v = v.reshape(len(v), N_CHANNELS, -1)  # (n, 8, 25, 25) -> (n, 8, 625)
        order = order.reshape(v.shape)
        w = np.zeros(v.shape)
        for c in range(N_CHANNELS):
            there = w[:, TRACK] > 0 if c in (DZ, D0) else True
            score = np.where(there, order[:, c], -np.inf)
            chosen = (ranks(score) < np.rint(count[:, c, None])) & np.isfinite(score)
            w[:, c] = filled(c, self.value[c], v[:, c], chosen, total[:, c], top[:, c])
        x = w.reshape(-1, N_CHANNELS, GRID, GRID) * units_of(largest)
        return Towers(x.astype(np.float32), largest)
