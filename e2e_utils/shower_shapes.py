"""Shower shapes: what physicists measure of an electron or photon in the calorimeter.

They are the input of the trees that a network has to beat, and what stand-in and real images are
compared by. Names follow CMS where it has one (sigma_ieta_ieta is ``eta_logwidth5``).
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from e2e_utils.errors import InputError

SIZE = 32  # crystals a side
CENTRE = 16  # row and column on which images are centred
REACH = 5  # crystals around the highest one that windows may need
CHUNK = 2000  # images at a time
SOFT = 0.0018  # of the energy unit (90 MeV): hits below are mostly noise
LARGEST = 6  # crystals whose shares are features


def energy_shapes(images: np.ndarray) -> dict[str, np.ndarray]:
    """Shapes of images (n, 32, 32) of energy / 50 GeV; each entry (n,) float64.

    Windows lie around the highest crystal. Widths are energy-weighted, in crystals: ``*_width``
    over the whole image, ``*_width5`` in 5 x 5 crystals, ``*_logwidth5`` there with the weights
    max(0, 4.7 + log(E / E5x5)) of CMS's sigma_ieta_ieta. ``phi_asymmetry`` is the share of the
    energy at larger minus at smaller phi than the highest crystal. Energies are in units of the
    sum; an image without energy has zeros. Raises InputError for another shape.
    """
    if images.ndim != 3 or images.shape[1:] != (SIZE, SIZE):
        raise InputError(
            f"images: expected shape (n, {SIZE}, {SIZE}), found {images.shape}; pass the energy "
            "channel"
        )
    parts = [
        _energy_shapes(images[first : first + CHUNK]) for first in range(0, len(images), CHUNK)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def shower_shapes(chunks: Iterable[np.ndarray]) -> pd.DataFrame:
    """`energy_shapes` and `time_shapes` of official images (n, 2, 32, 32), chunk by chunk."""
    frames = [pd.DataFrame(energy_shapes(x[:, 0]) | time_shapes(x)) for x in chunks]
    return pd.concat(frames, ignore_index=True).astype(np.float32)


def time_shapes(images: np.ndarray) -> dict[str, np.ndarray]:
    """Energy-weighted mean and spread of the times of images (n, 2, 32, 32), and the seed's."""
    energy, time = images[:, 0].astype(np.float64), images[:, 1].astype(np.float64)
    total = np.maximum(energy.sum(axis=(1, 2)), 1e-9)
    mean = (energy * time).sum(axis=(1, 2)) / total
    square = (energy * (time - mean[:, None, None]) ** 2).sum(axis=(1, 2)) / total
    top = energy.reshape(len(energy), -1).argmax(axis=1)  # (n, 32, 32) -> (n, 1024)
    seed = time.reshape(len(time), -1)[np.arange(len(time)), top]
    return {"time_mean": mean, "time_spread": np.sqrt(square), "time_seed": seed}


def moments(energy: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean, width, skewness and excess kurtosis (n,) along ``axis`` of (n, rows, columns)."""
    position = np.arange(energy.shape[axis], dtype=np.float64)
    profile = energy.sum(axis=3 - axis)  # (n, rows, columns) -> (n, positions)
    total = np.maximum(profile.sum(axis=1), 1e-12)
    mean = profile @ position / total
    centred = position[None] - mean[:, None]  # (n, positions)
    second, third, fourth = ((profile * centred**k).sum(axis=1) / total for k in (2, 3, 4))
    width = np.sqrt(second)
    scale = np.maximum(second, 0.05)  # of a single crystal nothing can be said
    return mean, width, third / scale**1.5, fourth / scale**2 - 3.0


def _energy_shapes(images: np.ndarray) -> dict[str, np.ndarray]:
    energy = images.astype(np.float64)
    n = len(energy)
    flat = energy.reshape(n, -1)  # (n, 32, 32) -> (n, 1024)
    total = np.maximum(flat.sum(axis=1), 1e-12)
    top = flat.argmax(axis=1)
    row, col = top // SIZE, top % SIZE
    padded = np.pad(energy, ((0, 0), (REACH, REACH), (REACH, REACH)))
    offset = np.arange(2 * REACH + 1)
    window = padded[
        np.arange(n)[:, None, None],
        (row[:, None] + offset)[:, :, None],
        (col[:, None] + offset)[:, None, :],
    ]  # (n, 11, 11), highest crystal at [5, 5]

    def block(half_rows: int, half_cols: int) -> np.ndarray:
        rows = slice(REACH - half_rows, REACH + half_rows + 1)
        cols = slice(REACH - half_cols, REACH + half_cols + 1)
        return window[:, rows, cols]

    def share(part: np.ndarray) -> np.ndarray:
        return part.sum(axis=(1, 2)) / total

    five = block(2, 2)
    inner = np.maximum(five.sum((1, 2), keepdims=True), 1e-12)
    weights = np.where(five > 0, np.maximum(0.0, 4.7 + np.log(np.maximum(five, 1e-12) / inner)), 0)
    shapes = {"energy_sum": flat.sum(axis=1), "seed_row": row, "seed_col": col}
    largest = -np.sort(-np.partition(flat, -LARGEST, axis=1)[:, -LARGEST:], axis=1)  # (n, 6)
    shapes |= {f"e{k + 1}": largest[:, k] / total for k in range(LARGEST)}
    shapes |= {"e3x3": share(block(1, 1)), "e5x5": share(five), "e7x7": share(block(3, 3))}
    for name, axis, cells in (("eta", 1, energy), ("phi", 2, energy)):
        mean, width, skewness, kurtosis = moments(cells, axis)
        shapes |= {f"{name}_width": width, f"{name}_skewness": skewness}
        shapes |= {f"{name}_kurtosis": kurtosis, f"{name}_offset": mean - (row, col)[axis - 1]}
        shapes[f"{name}_width5"] = moments(five, axis)[1]
        shapes[f"{name}_logwidth5"] = moments(weights, axis)[1]
    left, right = window[:, :, :REACH], window[:, :, REACH + 1 :]
    hit = energy > 0
    return shapes | {
        "strip_eta": share(block(2, 0)),
        "strip_phi": share(block(0, 2)),
        "three_rows": share(block(1, REACH)),
        "outer_rows": (five[:, 0].sum(1) + five[:, 4].sum(1)) / total,
        "phi_asymmetry": share(right) - share(left),
        "phi_asymmetry_abs": np.abs(share(right) - share(left)),
        "next_phi": (window[:, REACH, REACH + 1] - window[:, REACH, REACH - 1]) / total,
        "next_eta": (window[:, REACH + 1, REACH] - window[:, REACH - 1, REACH]) / total,
        "left": share(window[:, :, : REACH - 2]),
        "right": share(window[:, :, REACH + 3 :]),
        "outside": shapes["energy_sum"] - five.sum(axis=(1, 2)),
        "far": 1.0 - share(window),
        "hits": hit.sum(axis=(1, 2)).astype(np.float64),
        "small_hits": (hit & (energy < SOFT)).sum(axis=(1, 2)).astype(np.float64),
    }
