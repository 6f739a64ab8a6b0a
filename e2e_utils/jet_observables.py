"""Observables of jet images (n, 3, 125, 125): energies, multiplicities, shapes, a mass."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from e2e_utils.evaluation import metric_entry
from e2e_utils.jet_resolution import HIGH
from e2e_utils.sparse_images import to_sparse

PIXEL = math.pi / 180  # in eta and phi
NAMES = ("track", "ecal", "hcal")
RADII = (5, 12, 25)  # pixels
MIDDLE = (HIGH - 1) / 2


def jet_observables(images: np.ndarray) -> pd.DataFrame:
    """One row a jet, of images (n, 3, 125, 125) in GeV.

    Of every channel: the sum of all pixels ("energy"), the number of pixels that are not zero
    ("hits"), and, of the positive pixels, the centre in eta and phi, widths sqrt(<x^2> - <x>^2) in
    pixels, p_T D = sqrt(sum x^2) / sum x, the share of the leading pixel, the shares within 5, 12
    and 25 pixels of the middle. "mass": of ECAL and HCAL pixels as massless particles with E_T = x,
    in GeV. Shapes of an empty channel are 0.
    """
    n, area = len(images), HIGH * HIGH
    counts, index, value = to_sparse(images)
    jet = np.repeat(np.arange(n), counts)
    channel, pixel = np.divmod(index.astype(np.int64), area)
    row, column = np.divmod(pixel, HIGH)
    key, value = jet * 3 + channel, value.astype(np.float64)
    eta, phi = row - MIDDLE, column - MIDDLE
    good = np.where(value > 0, value, 0.0)

    def total(weights: np.ndarray) -> np.ndarray:
        return np.bincount(key, weights, minlength=3 * n).reshape(n, 3)

    sum_good = total(good)
    safe = np.where(sum_good > 0, sum_good, 1.0)
    moments = {name: total(good * x) / safe for name, x in (("eta", eta), ("phi", phi))}
    squares = {name: total(good * x * x) / safe for name, x in (("eta", eta), ("phi", phi))}
    leading = np.zeros(3 * n)
    np.maximum.at(leading, key, good)
    radius = np.hypot(eta, phi)
    columns = {"energy": total(value), "hits": total(np.ones(len(value)))}
    for name in ("eta", "phi"):
        columns[name] = moments[name]
        columns[f"width_{name}"] = np.sqrt(np.clip(squares[name] - moments[name] ** 2, 0, None))
    columns["ptd"] = np.sqrt(total(good**2)) / safe
    columns["leading"] = leading.reshape(n, 3) / safe
    for limit in RADII:
        columns[f"within_{limit}"] = total(good * (radius < limit)) / safe
    table = {f"{NAMES[c]}_{k}": v[:, c] for c in range(3) for k, v in columns.items()}
    table["mass"] = _mass(n, jet, np.where(channel > 0, good, 0.0), eta * PIXEL, phi * PIXEL)
    return pd.DataFrame(table)


def _mass(n: int, jet: np.ndarray, pt: np.ndarray, eta: np.ndarray, phi: np.ndarray) -> np.ndarray:
    """Invariant mass (n,) of massless particles."""
    parts = (pt * np.cosh(eta), pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta))
    e, x, y, z = (np.bincount(jet, p, minlength=n) for p in parts)
    return np.sqrt(np.clip(e**2 - x**2 - y**2 - z**2, 0, None))


def ratio_of_sums(
    numerators: Sequence[np.ndarray], denominator: np.ndarray, n_resamples: int = 400, seed: int = 0
) -> dict[str, float]:
    """Entry of metrics.json: mean over the numerators (seeds), each (n,), of sum / sum.

    The 95 % interval is that of this mean when jets are resampled, the same jets for all.
    """
    rng = np.random.default_rng(seed)
    n = len(denominator)
    stacked = np.stack([*numerators, denominator])  # (seeds + 1, n)
    draws = np.stack(
        [np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(n_resamples)]
    )
    sums = draws @ stacked.T  # (n_resamples, seeds + 1)
    values = stacked[:-1].sum(1) / stacked[-1].sum()
    low, high = np.quantile((sums[:, :-1] / sums[:, -1:]).mean(1), [0.025, 0.975])
    value = values.mean()
    spread = values.std(ddof=1) if len(values) > 1 else None
    return metric_entry(value, min(low, value), max(high, value), spread)
