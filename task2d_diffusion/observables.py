"""Observables of jets in towers: what a physicist would histogram, and relations of channels.

Towers (n, 8, 25, 25) hold sums of 5 x 5 pixels of the channels of `data.loaders.jets8`.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd

CHANNELS = ("track", "dz", "d0", "ecal", "hcal", "bpix1", "bpix2", "bpix3")
GRID = 25
AXIS = np.arange(GRID) - GRID // 2
RADIUS = np.hypot(*np.meshgrid(AXIS, AXIS, indexing="ij"))
PAIRS = tuple(combinations(range(len(CHANNELS)), 2))
MEANING = {  # of parts of names that do not explain themselves
    "cosine": "overlap of patterns (cosine)", "both": "share of common towers",
    "core": "share in the core", "ring": "share in a ring", "ptd": "$p_T D$",
    "width eta": "width in eta", "width phi": "width in phi", "beside": "towers with a neighbour",
}  # fmt: skip


def tower_observables(x: np.ndarray, threshold: float = 1e-3) -> pd.DataFrame:
    """Observables of towers (n, 8, 25, 25), a row per jet; positions in towers from the centre.

    Of each channel: ln(1 + sum), active towers, centre and widths, leading share, p_T D, shares in
    a core and a ring, share of active towers next to another one, ln(1 + highest). A mass proxy
    from the calorimeters. Of each pair of channels: the cosine of both patterns, and the share of
    the sparser channel's active towers in which the other is active, too.
    """
    x = x.astype(np.float64)
    total, active = x.sum((2, 3)), x > threshold
    share = x / np.maximum(total, 1e-9)[..., None, None]
    columns = {"sum": np.log1p(total), "active": active.sum((2, 3))}
    for name, profile in (("eta", share.sum(3)), ("phi", share.sum(2))):  # (n, 8, 25)
        columns[name] = profile @ AXIS
        variance = profile @ AXIS**2 - columns[name] ** 2
        columns[f"width_{name}"] = np.sqrt(np.maximum(variance, 0))
    columns["leading"], columns["ptd"] = share.max((2, 3)), np.sqrt((share**2).sum((2, 3)))
    for name, low, high in (("core", -1, 1.5), ("ring", 1.5, 4.5)):
        columns[name] = share[..., (low < RADIUS) & (high >= RADIUS)].sum(2)
    columns["beside"] = (active & next_to(active)).sum((2, 3)) / np.maximum(columns["active"], 1)
    columns["highest"] = np.log1p(x.max((2, 3)))
    table = {f"{s}_{k}": v[:, c] for k, v in columns.items() for c, s in enumerate(CHANNELS)}
    spread = [(total * columns[f"width_{a}"])[:, 3:5].sum(1) for a in ("eta", "phi")]
    table["mass_proxy"] = np.log1p(np.hypot(*spread))
    flat, on = x.reshape(len(x), len(CHANNELS), -1), active.reshape(len(x), len(CHANNELS), -1)
    unit = flat / (np.sqrt((flat**2).sum(2, keepdims=True)) + 1e-9)
    cosine = unit @ unit.transpose(0, 2, 1)  # (n, 8, 8)
    both = on.astype(np.float32) @ on.astype(np.float32).transpose(0, 2, 1)
    for a, b in PAIRS:
        fewer = np.minimum(columns["active"][:, a], columns["active"][:, b])
        table[f"{CHANNELS[a]}_{CHANNELS[b]}_cosine"] = cosine[:, a, b]
        table[f"{CHANNELS[a]}_{CHANNELS[b]}_both"] = both[:, a, b] / np.maximum(fewer, 1)
    return pd.DataFrame(table)


def next_to(active: np.ndarray) -> np.ndarray:
    """Whether one of the four neighbours of a tower is active; (..., 25, 25) booleans."""
    found = np.zeros_like(active)
    found[..., 1:, :] |= active[..., :-1, :]
    found[..., :-1, :] |= active[..., 1:, :]
    found[..., :, 1:] |= active[..., :, :-1]
    found[..., :, :-1] |= active[..., :, 1:]
    return found


def in_words(column: str, names: Sequence[str]) -> str:
    """An observable for people, its channels by ``names`` in a line of their own."""
    words, channels = column.split("_"), dict(zip(CHANNELS, names, strict=True))
    what = " ".join(word for word in words if word not in channels)
    named = " and ".join(channels[word] for word in words if word in channels)
    return f"{MEANING.get(what, what)}\n{named}"
