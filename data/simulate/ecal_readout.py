"""From energies in crystals to stored hits: noise, selective readout, what reconstruction keeps.

`read_out` adds noise and the selective readout; `reduce_hits` keeps what CMS reconstruction stores
around clusters. Compiled by numba; random numbers come from the generator that is passed in.

Sources: CMS, JINST 3 (2008) S08004 (CMS below); CMSSW, public configuration of hybrid and
particle-flow clustering and of the reduced collection of ECAL hits
(RecoEcal/EgammaClusterProducers, RecoEgamma/EgammaIsolationAlgos).
"""

import math

import numba
import numpy as np

from data.simulate.barrel import CRYSTAL_PITCH, ETA_CRYSTALS, GRID, TOWER

# Clustering of hits (CMSSW defaults)
DOMINO_STEPS = 17  # crystals in phi on each side of a seed
DOMINO_SEED = 0.35  # GeV, lowest peak of a sub-cluster
DOMINO_EDGE = 0.1  # GeV, lowest domino of a sub-cluster
SEED_ET = 1.0  # GeV, lowest seed crystal
WINDOW = 2  # crystals kept on each side of a cluster's highest one
FLOW_CELL = 0.08  # GeV, lowest crystal of a particle-flow cluster
FLOW_SEED = 0.23  # GeV, lowest local maximum that makes a particle-flow cluster


@numba.njit(cache=True, nogil=True)
def mark(mask, row, col, reach):
    """Set a square of ``mask`` around (row, col). (Loops compile faster than slices.)"""
    for a in range(max(row - reach, 0), min(row + reach + 1, mask.shape[0])):
        for b in range(max(col - reach, 0), min(col + reach + 1, mask.shape[1])):
            mask[a, b] = True


@numba.njit(cache=True, nogil=True)
def read_out(rng, grid, noise, i0, j0, detector):
    """Turn deposited energy (GRID, GRID) into measured hits, in place; 0 where not read out.

    ``noise`` (GRID, GRID) receives the part of each measured energy that is electronic noise.

    Fluctuations: photo-statistics, intercalibration, noise. Selective readout: towers of 5 x 5
    crystals with ET above ``tower_high`` are read out with their neighbours, above ``tower_low``
    alone; elsewhere hits pass zero suppression. A measured energy may be negative.
    """
    size = GRID // TOWER + 2
    towers = np.zeros((size, size))
    first_i, first_j = math.floor(i0 / TOWER), math.floor(j0 / TOWER)
    for row in range(GRID):
        i = i0 + row
        transverse = 1.0 / math.cosh((i + 0.5) * CRYSTAL_PITCH)
        exists = -ETA_CRYSTALS <= i < ETA_CRYSTALS
        for col in range(GRID):
            true = grid[row, col]
            value = 0.0
            if exists:
                if true > 0.0:
                    value = true * (1.0 + detector.intercalibration * rng.standard_normal())
                    value += detector.stochastic * math.sqrt(true) * rng.standard_normal()
                noise[row, col] = detector.noise * rng.standard_normal()
                value += noise[row, col]
                a, b = math.floor(i / TOWER) - first_i, math.floor((j0 + col) / TOWER) - first_j
                towers[a, b] += value * transverse
            grid[row, col] = value
    full = np.zeros((size, size), dtype=np.bool_)
    for a in range(size):
        for b in range(size):
            if towers[a, b] > detector.tower_high:
                mark(full, a, b, 1)
            elif towers[a, b] > detector.tower_low:
                full[a, b] = True
    for row in range(GRID):
        a = math.floor((i0 + row) / TOWER) - first_i
        for col in range(GRID):
            b = math.floor((j0 + col) / TOWER) - first_j
            if not full[a, b] and grid[row, col] < detector.zero_suppression:
                grid[row, col] = 0.0


@numba.njit(cache=True, nogil=True)
def is_local_maximum(grid, row, col):
    """Whether none of the eight neighbours of a crystal inside the window has more energy."""
    for a in range(row - 1, row + 2):
        for b in range(col - 1, col + 2):
            if grid[a, b] > grid[row, col]:
                return False
    return True


@numba.njit(cache=True, nogil=True)
def keep_flow_clusters(grid, keep):
    """Mark in ``keep`` what particle-flow clustering stores.

    Crystals above FLOW_CELL that touch (8 neighbours) form a group; a group with a local maximum
    above FLOW_SEED is stored, with 5 x 5 crystals around each such maximum.
    """
    seen = np.zeros((GRID, GRID), dtype=np.bool_)
    queue = np.empty((GRID * GRID, 2), dtype=np.int64)
    for row in range(1, GRID - 1):
        for col in range(1, GRID - 1):
            if grid[row, col] <= FLOW_SEED or not is_local_maximum(grid, row, col):
                continue
            mark(keep, row, col, WINDOW)
            if seen[row, col]:
                continue
            seen[row, col] = True
            queue[0, 0], queue[0, 1] = row, col
            head, tail = 0, 1
            while head < tail:
                a, b = queue[head, 0], queue[head, 1]
                head += 1
                keep[a, b] = True
                for c in range(max(a - 1, 0), min(a + 2, GRID)):
                    for d in range(max(b - 1, 0), min(b + 2, GRID)):
                        if not seen[c, d] and grid[c, d] > FLOW_CELL:
                            seen[c, d] = True
                            queue[tail, 0], queue[tail, 1] = c, d
                            tail += 1


@numba.njit(cache=True, nogil=True)
def reduce_hits(grid, i0, detector):
    """Keep the hits that CMS reconstruction stores with electrons and photons; in place.

    CMSSW's hybrid clustering: from every seed crystal, dominoes of five crystals in eta are
    followed along phi; runs of dominoes that fall from a peak (DOMINO_SEED) to DOMINO_EDGE are
    sub-clusters. Stored are their crystals, 5 x 5 around each one's highest crystal, the same for
    particle-flow clusters, and every hit above ``isolation_hit``. Only positive energies are hits.
    """
    keep = np.zeros((GRID, GRID), dtype=np.bool_)
    used = np.zeros((GRID, GRID), dtype=np.bool_)
    while True:
        seed_row, seed_col, highest = -1, -1, 0.0
        for row in range(WINDOW, GRID - WINDOW):
            least = SEED_ET * math.cosh((i0 + row + 0.5) * CRYSTAL_PITCH)
            for col in range(1, GRID - 1):
                value = grid[row, col]
                if value > least and value > highest and not used[row, col]:
                    seed_row, seed_col, highest = row, col, value
        if seed_row < 0:
            break
        first = max(seed_col - DOMINO_STEPS, 0)
        last = min(seed_col + DOMINO_STEPS, GRID - 1)
        domino = np.zeros(GRID)
        free = np.zeros(GRID, dtype=np.bool_)
        for col in range(first, last + 1):
            for row in range(seed_row - WINDOW, seed_row + WINDOW + 1):
                if not used[row, col]:
                    domino[col] += max(grid[row, col], 0.0)
            free[col] = True
        used[seed_row, seed_col] = True
        while True:
            peak = -1
            for col in range(first + 1, last):
                if (
                    free[col]
                    and domino[col] > DOMINO_SEED
                    and domino[col] > domino[col - 1]
                    and domino[col] > domino[col + 1]
                    and (peak < 0 or domino[col] > domino[peak])
                ):
                    peak = col
            if peak < 0:
                break
            left = right = peak
            free[peak] = False
            while (
                right < last and free[right + 1] and DOMINO_EDGE < domino[right + 1] < domino[right]
            ):
                right += 1
                free[right] = False
            while left > first and free[left - 1] and DOMINO_EDGE < domino[left - 1] < domino[left]:
                left -= 1
                free[left] = False
            top_row, top_col, top = seed_row, peak, -1.0
            for row in range(seed_row - WINDOW, seed_row + WINDOW + 1):
                for col in range(left, right + 1):
                    used[row, col] = True
                    keep[row, col] = True
                    if grid[row, col] > top:
                        top_row, top_col, top = row, col, grid[row, col]
            mark(keep, top_row, top_col, WINDOW)
    keep_flow_clusters(grid, keep)
    for row in range(GRID):
        for col in range(GRID):
            value = grid[row, col]
            if value <= 0.0 or not (keep[row, col] or value > detector.isolation_hit):
                grid[row, col] = 0.0
