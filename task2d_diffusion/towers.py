"""Jets of eight channels in towers of 5 x 5 pixels, and what no real jet can have.

Channels as in `data.loaders.jets8`: track pT, dz, d0, ECAL, HCAL, three pixel layers, which count
hits. Every channel of an image is scaled so that its largest pixel is 255.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from e2e_utils.sparse_images import SparseImages

TRACK, DZ, D0, ECAL, HCAL = range(5)
COUNTED = np.array([5, 6, 7])  # channels of hit counts
N_CHANNELS, PIXELS, TOWER, GRID = 8, 125, 5, 25  # pixels along an image and a tower; towers
TOP, THRESHOLD = 255.0, 1e-3  # largest pixel; towers below the threshold count as empty


class Towers(NamedTuple):
    """Jets in towers (n, 8, 25, 25), and the number of hits that 255 stands for (n, 3)."""

    x: np.ndarray
    largest: np.ndarray


def in_parts(rows: np.ndarray, size: int = 500) -> list[np.ndarray]:
    """Consecutive parts of at most ``size`` rows."""
    return [rows[k : k + size] for k in range(0, len(rows), size)]


def to_towers(images: SparseImages, rows: np.ndarray) -> Towers:
    """Sum the chosen images in towers, from their active pixels."""
    offsets, index, value = images.events(rows)
    n = len(rows)
    jet = np.repeat(np.arange(n), np.diff(offsets))
    channel, pixel = np.divmod(index.astype(np.int64), PIXELS**2)
    row, column = np.divmod(pixel, PIXELS)
    place = ((jet * N_CHANNELS + channel) * GRID + row // TOWER) * GRID + column // TOWER
    x = np.bincount(place, value, n * N_CHANNELS * GRID**2).round(3)
    smallest = np.full(n * N_CHANNELS, TOP, np.float32)  # the smallest pixel is one hit
    np.minimum.at(smallest, jet * N_CHANNELS + channel, value)
    largest = np.rint(TOP / smallest.reshape(n, N_CHANNELS)[:, COUNTED]).clip(min=1)
    x = x.reshape(n, N_CHANNELS, GRID, GRID)  # (n * 8 * 25 * 25,) -> (n, 8, 25, 25)
    return Towers(x.astype(np.float32), largest.astype(np.float32))


def units_of(largest: np.ndarray) -> np.ndarray:
    """What one hit is worth in each channel (n, 8, 1, 1); 1 in those that are not counted."""
    unit = np.ones((len(largest), N_CHANNELS), np.float32)
    unit[:, COUNTED] = TOP / largest
    return unit[:, :, None, None]


def ranks(score: np.ndarray) -> np.ndarray:
    """Rank of every tower (n, 625), 0 for the highest score."""
    order = np.argsort(-score, axis=1)
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(score.shape[1])[None], 1)
    return rank


class SingleTowers(NamedTuple):
    """What single towers say, (8, 25, 25) each, of jets and their mirror images.

    Log-odds of a hit, unless it is the channel's highest; mean and width of its v; logarithm of
    the chance to be the highest.
    """

    logit: Tensor
    mean: Tensor
    width: Tensor
    first: Tensor


def single_towers(v: Tensor, hit: Tensor, highest: Tensor, width: float) -> SingleTowers:
    """Count jets v with booleans ``hit`` (highest ones included) and ``highest``; (n, 8, 25, 25).

    Ten hits with the channel's mean and the given width are added to each tower.
    """

    def mirrored(x: Tensor) -> Tensor:
        return sum(x.flip(axes) for axes in ((), (1,), (2,), (1, 2)))

    v, rest = v.double(), hit & ~highest
    sums = (x.double().sum(0) for x in (rest, v * rest, v.square() * rest, highest))
    hits, first, second, tops = map(mirrored, sums)
    centre = first.sum((1, 2), keepdim=True) / hits.sum((1, 2), keepdim=True).clamp(min=1)
    mean = (first + 10 * centre) / (hits + 10)
    variance = second - 2 * mean * first + hits * mean.square() + 10 * width**2
    logit = torch.logit((hits + 0.5) / (4 * len(v) - tops + 1))
    chance = (tops + 0.1) / (tops + 0.1).sum((1, 2), keepdim=True)
    spread = (variance / (hits + 10)).clamp(min=1e-4).sqrt()
    return SingleTowers(logit, mean, spread, chance.log())


def impossible_towers(part: Towers) -> pd.DataFrame:
    """What no real jet can have, in towers: a row of booleans per jet."""
    hits = (part.x / units_of(part.largest))[:, COUNTED]
    alone = (part.x[:, (DZ, D0)] > THRESHOLD) & (part.x[:, TRACK : TRACK + 1] <= THRESHOLD)
    highest = part.x.max((2, 3))
    return pd.DataFrame(
        {
            "dz without track": alone[:, 0].any((1, 2)),
            "d0 without track": alone[:, 1].any((1, 2)),
            "a broken hit": (np.abs(hits - np.rint(hits)) > 0.02).any((1, 2, 3)),
            "no pixel of 255": ((highest > 0) & (highest < TOP - 0.01)).any(1),
        }
    )


def impossible_pixels(x: np.ndarray) -> pd.DataFrame:
    """What no real jet can have, in pixels (n, 8, 125, 125): a row of booleans per jet."""
    top, towers = x.max((2, 3)), x[:, HCAL].reshape(-1, GRID, TOWER, GRID, TOWER)
    unit = np.where(x > 0, x, np.inf).min((2, 3), keepdims=True)
    hits = np.where(x > 0, x / unit, 0)[:, COUNTED]
    return pd.DataFrame(
        {
            "dz or d0 without track": ((x[:, DZ : D0 + 1] > 0) & (x[:, :1] <= 0)).any((1, 2, 3)),
            "uneven HCAL tower": (np.ptp(towers, axis=(2, 4)) > 1e-3).any((1, 2)),
            "a broken hit": (np.abs(hits - np.rint(hits)) > 0.02).any((1, 2, 3)),
            "largest pixel not 255": ((top > 0) & (np.abs(top - TOP) > 0.01)).any(1),
        }
    )
