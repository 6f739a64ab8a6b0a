"""Electromagnetic showers in the crystals: `render_shower` turns an impact into energies.

Compiled by numba; random numbers come from the generator that is passed in.

Sources: G. Grindhammer, S. Peters, "The parameterized simulation of electromagnetic showers in
homogeneous and sampling calorimeters", hep-ex/0001020 (GP below); Particle Data Group, "Atomic and
nuclear properties" (PDG); CMS, JINST 3 (2008) S08004 (CMS).
"""

import math

import numba

from data.simulate.barrel import (
    CRYSTAL_PITCH,
    FRONT_RADIUS,
    GRID,
    IMPACT_ENERGY,
    IMPACT_I,
    IMPACT_J,
    IMPACT_PHOTON,
    IMPACT_SLOPE_I,
    IMPACT_SLOPE_J,
)
from data.simulate.tracker import pair_fraction, pair_suppression

CRYSTAL_DEPTH = 25.8  # radiation lengths (CMS: 230 mm)
X0 = 0.89  # cm, PbWO4 (PDG)
MOLIERE_RADIUS = 2.19  # cm, PbWO4 (CMS)
CRITICAL_ENERGY = 0.00964  # GeV, electrons in PbWO4 (PDG)
EFFECTIVE_Z = 68.4  # weight-averaged atomic number of PbWO4, as GP define it


@numba.njit(cache=True, nogil=True)
def deposit(rng, grid, i0, j0, impact, energy, start, detector):
    """One GP electron shower of ``energy`` GeV starting ``start`` radiation lengths deep."""
    log_y = max(math.log(energy / CRITICAL_ENERGY), 1.2)
    log_e = math.log(max(energy, 0.05))
    z = EFFECTIVE_Z
    # Longitudinal gamma profile with correlated fluctuations of maximum and shape (GP 3.1)
    mean_t = math.log(max(log_y - 0.812, 0.4))
    mean_alpha = math.log(0.81 + (0.458 + 2.26 / z) * log_y)
    sigma_t = 1.0 / max(-1.4 + 1.26 * log_y, 2.0)
    sigma_alpha = 1.0 / max(-0.58 + 0.86 * log_y, 2.0)
    rho = 0.705 - 0.023 * log_y
    first, second = rng.standard_normal(), rng.standard_normal()
    up, down = math.sqrt((1.0 + rho) / 2.0), math.sqrt((1.0 - rho) / 2.0)
    t_max = math.exp(mean_t + sigma_t * (up * first + down * second))
    alpha = max(math.exp(mean_alpha + sigma_alpha * (up * first - down * second)), 1.1)
    beta = (alpha - 1.0) / t_max
    mean_depth = alpha / beta
    # Lateral core and tail (GP 3.2)
    z1 = 0.0251 + 0.00319 * log_e
    z2 = 0.1162 - 0.000381 * z
    k1 = 0.659 - 0.00309 * z
    k2, k3 = 0.645, -2.59
    k4 = 0.3585 + 0.0421 * log_e
    p1 = 2.632 - 0.00094 * z
    p2 = 0.401 + 0.00187 * z
    p3 = 1.313 - 0.0686 * log_e

    # Lateral fluctuations from shower to shower, which GP leave to the spots
    row_spread = math.exp(detector.tail_width_spread * rng.standard_normal())
    col_spread = math.exp(detector.tail_width_spread * rng.standard_normal())
    tail_gain = detector.tail_gain * math.exp(detector.tail_spread * rng.standard_normal())

    slices = 40
    total = 0.0
    for s in range(slices):
        t = s + 0.5
        total += math.exp((alpha - 1.0) * math.log(t / t_max) - beta * (t - t_max))
    spots = 93.0 * math.log(z) * energy**0.876
    spots = max(spots, 5.0)
    for s in range(slices):
        t = s + 0.5
        depth_x0 = start + t
        if depth_x0 > CRYSTAL_DEPTH:
            break
        part = math.exp((alpha - 1.0) * math.log(t / t_max) - beta * (t - t_max)) / total
        tau = t / mean_depth
        core = (z1 + z2 * tau) * MOLIERE_RADIUS * detector.core_scale
        tail = k1 * (math.exp(k3 * (tau - k2)) + math.exp(k4 * (tau - k2)))
        tail *= MOLIERE_RADIUS * detector.tail_scale
        inner = (p2 - tau) / p3
        tail_share = (1.0 - p1 * math.exp(inner - math.exp(inner))) * tail_gain
        inner_share = min(max(1.0 - tail_share, 0.0), 1.0)
        depth = depth_x0 * X0
        pitch = FRONT_RADIUS * CRYSTAL_PITCH * (1.0 + depth / FRONT_RADIUS)
        # middle of the slice in crystals from the window's corner, and how far it moves across it
        row_mid = impact[IMPACT_I] - i0 + impact[IMPACT_SLOPE_I] * depth / pitch
        col_mid = impact[IMPACT_J] - j0 + impact[IMPACT_SLOPE_J] * depth / pitch
        row_drift = impact[IMPACT_SLOPE_I] * X0 / pitch
        col_drift = impact[IMPACT_SLOPE_J] * X0 / pitch
        for kind in range(2):
            whole = energy * part * (inner_share if kind == 0 else 1.0 - inner_share)
            mean_spot = energy / spots * (detector.core_spot if kind == 0 else detector.tail_spot)
            if kind == 0:
                row_scale = core / pitch
                col_scale = core / pitch * detector.core_stretch
            else:
                row_scale = row_spread * tail / pitch
                col_scale = col_spread * tail / pitch * detector.tail_stretch
            left = whole
            while left > 0.0:
                spot = min(mean_spot * -math.log(1.0 - rng.random()), left)
                along = left / whole - 0.5
                left -= spot
                u = rng.random()
                if kind == 0:
                    r = math.sqrt(u / (1.0 - u))
                else:
                    # GP's tail falls as 1 / r^3 for ever; real showers end earlier
                    r = math.sqrt((1.0 - u) ** (-1.0 / detector.tail_power) - 1.0)
                angle = 2.0 * math.pi * rng.random()
                row = math.floor(row_mid + along * row_drift + row_scale * r * math.cos(angle))
                col = math.floor(col_mid + along * col_drift + col_scale * r * math.sin(angle))
                if 0 <= row < GRID and 0 <= col < GRID:
                    grid[int(row), int(col)] += spot


@numba.njit(cache=True, nogil=True)
def render_shower(rng, grid, i0, j0, impact, detector):
    """Add the shower of one impact (row of `track`'s output) to ``grid`` (GRID, GRID) in GeV.

    A photon first converts in the crystal, 9/7 radiation lengths deep on average, to two legs.
    """
    energy = impact[IMPACT_ENERGY]
    if impact[IMPACT_PHOTON] == 0.0:
        deposit(rng, grid, i0, j0, impact, energy, 0.0, detector)
        return
    start = 9.0 / 7.0 / max(pair_suppression(energy), 0.3) * -math.log(1.0 - rng.random())
    share = pair_fraction(rng)
    for part in (share, 1.0 - share):
        if part * energy > 0.002:
            deposit(rng, grid, i0, j0, impact, part * energy, start, detector)
