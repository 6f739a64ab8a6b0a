"""Single electrons and photons of pT 50 GeV in the barrel (common task 1)."""

import math

import numba
import numpy as np

from data.simulate.detector import (
    CRYSTAL_PITCH,
    ETA_CRYSTALS,
    GRID,
    MAX_IMPACTS,
    Detector,
    hit_time,
    read_out,
    reduce_hits,
    render_shower,
    track,
)

PT = 50.0
ETA_LIMIT = 1.4
VERTEX_SPREAD = 5.0
CROP = 32
HALF = 16
DETECTOR = Detector()


@numba.njit(cache=True, nogil=True)
def simulate_window(rng, electron, energy, eta, phi, z, detector, grid, impacts):
    grid[:] = 0.0
    charge = 0.0
    if electron:
        charge = 1.0 if rng.random() < 0.5 else -1.0
    count, conversion = track(rng, charge, energy, eta, phi, z, detector, impacts)
    front = math.asinh(math.sinh(eta) + z / 129.0)
    i0 = math.floor(front / CRYSTAL_PITCH) - GRID // 2
    j0 = math.floor(phi / CRYSTAL_PITCH) - GRID // 2
    for k in range(count):
        render_shower(rng, grid, i0, j0, impacts[k], detector)
    read_out(rng, grid, i0, j0, detector)
    reduce_hits(grid, i0, detector)
    return i0, j0, conversion


@numba.njit(cache=True, nogil=True)
def images(rng, electron, detector, X, truth):
    """Fill X (n,32,32,2), truth (n,4)"""
    grid = np.zeros((GRID, GRID))
    impacts = np.zeros((MAX_IMPACTS, 6))
    n = 0
    while n < len(X):
        eta = ETA_LIMIT * (2.0 * rng.random() - 1.0)
        phi = 2.0 * math.pi * rng.random()
        z = VERTEX_SPREAD * rng.standard_normal()
        i0, j0, conversion = simulate_window(
            rng, electron, PT * math.cosh(eta), eta, phi, z, detector, grid, impacts
        )
        top = np.argmax(grid)
        row, col = top // GRID, top % GRID
        i = i0 + row
        if i - HALF < -ETA_CRYSTALS or i + HALF > ETA_CRYSTALS or grid[row, col] <= 0.0:
            continue
        if row < HALF or row > GRID - HALF or col < HALF or col > GRID - HALF:
            continue
        for a in range(CROP):
            for b in range(CROP):
                e = grid[row - HALF + a, col - HALF + b]
                X[n, a, b, 0] = e / 50.0
                X[n, a, b, 1] = hit_time(rng, e, detector.noise) / 50.0 if e > 0.0 else 0.0
        truth[n, 0], truth[n, 1], truth[n, 2], truth[n, 3] = eta, phi, z, conversion
        n += 1
