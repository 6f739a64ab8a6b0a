"""A fast stand-in for the CMS barrel: tracker material, magnetic field, ECAL showers, readout.

Everything here is compiled by numba and works on one event at a time; random numbers come from
the ``numpy.random.Generator`` that is passed in, so an event is fixed by the generator's state.

Chain: `track` carries a particle and all it radiates through the tracker to impacts on the ECAL
front face; `render_shower` turns an impact into energy in crystals; `read_out` adds noise and the
selective readout; `reduce_hits` keeps what CMS reconstruction stores around clusters.

Crystals are counted by i = floor(eta / CRYSTAL_PITCH), -85..84, and j = floor(phi / CRYSTAL_PITCH).
(CMS counts from 1 and without a zero: `cms_crystal`.) An event lives in a window of GRID x GRID
crystals whose corner is (i0, j0); phi is not wrapped there.

Sources
- Particle Data Group, "Passage of particles through matter" and "Atomic and nuclear properties".
- G. Grindhammer, S. Peters, "The parameterized simulation of electromagnetic showers in homogeneous
  and sampling calorimeters", hep-ex/0001020 (GP below).
- CMS, "The CMS experiment at the CERN LHC", JINST 3 (2008) S08004 (CMS below).
- CMS, "Time reconstruction and performance of the CMS electromagnetic calorimeter",
  JINST 5 (2010) T03011.
- CMSSW, public configuration of hybrid and particle-flow clustering and of the reduced collection
  of ECAL hits (RecoEcal/EgammaClusterProducers, RecoEgamma/EgammaIsolationAlgos).
"""

import math
from typing import NamedTuple

import numba
import numpy as np

GRID = 64  # crystals a side of an event's window
CRYSTAL_PITCH = math.pi / 180  # crystal width in eta and phi (CMS: 0.0174)
ETA_CRYSTALS = 85  # crystals from eta = 0 to the end of the barrel
TOWER = 5  # crystals a side of a trigger tower

FRONT_RADIUS = 129.0  # cm, ECAL front face (CMS)
CRYSTAL_DEPTH = 25.8  # radiation lengths (CMS: 230 mm)
X0 = 0.89  # cm, PbWO4 (PDG)
MOLIERE_RADIUS = 2.19  # cm, PbWO4 (CMS)
CRITICAL_ENERGY = 0.00964  # GeV, electrons in PbWO4 (PDG)
EFFECTIVE_Z = 68.4  # weight-averaged atomic number of PbWO4, as GP define it
ELECTRON_MASS = 0.000511  # GeV

# Tracker: (radius in cm, share of the radiation lengths) for beam pipe, 3 pixel layers, their
# services, 4 inner-barrel layers, 5 outer-barrel layers and the support tube (CMS, Run 1 layout).
LAYERS = np.array(
    [
        (3.0, 0.010),
        (4.4, 0.045),
        (7.3, 0.045),
        (10.2, 0.045),
        (18.0, 0.065),
        (25.5, 0.095),
        (33.9, 0.090),
        (41.9, 0.075),
        (49.8, 0.100),
        (60.8, 0.105),
        (69.2, 0.065),
        (78.0, 0.060),
        (86.8, 0.060),
        (96.5, 0.060),
        (112.0, 0.080),
    ]
)
# Radiation lengths in front of the ECAL against |eta| (rough shape of CMS, Run 1).
MATERIAL_ETA = np.array([0.0, 0.3, 0.6, 0.8, 1.0, 1.2, 1.4, 1.5])
MATERIAL_X0 = np.array([0.40, 0.43, 0.53, 0.68, 0.98, 1.35, 1.70, 1.80])

# Clustering of hits (CMSSW defaults)
DOMINO_STEPS = 17  # crystals in phi on each side of a seed
DOMINO_SEED = 0.35  # GeV, lowest peak of a sub-cluster
DOMINO_EDGE = 0.1  # GeV, lowest domino of a sub-cluster
SEED_ET = 1.0  # GeV, lowest seed crystal
WINDOW = 2  # crystals kept on each side of a cluster's highest one
FLOW_CELL = 0.08  # GeV, lowest crystal of a particle-flow cluster
FLOW_SEED = 0.23  # GeV, lowest local maximum that makes a particle-flow cluster

# Time of a hit
TIME_NOISE = 33.0  # ns, resolution of a hit as large as the noise (CMS test beam: 33 to 35)
TIME_FLOOR = 0.1  # ns, resolution of a large hit
TIME_WORST = 25.0  # ns, the pulse fit keeps small hits within the sampled pulse
TIME_FIRST, TIME_LAST = -125.0, 114.0  # ns, where failed fits end up
FAILED_FIT_SIZE = 5.0  # noise widths, largest hit whose fit fails
FAILED_FIT_CHANCE = 0.01

# Columns of an impact on the ECAL front face
IMPACT_I, IMPACT_J, IMPACT_SLOPE_I, IMPACT_SLOPE_J, IMPACT_ENERGY, IMPACT_PHOTON = range(6)
MAX_IMPACTS = 512
MAX_INCIDENCE = 1.2  # rad


class Detector(NamedTuple):
    """What can be turned. The defaults are calibrated to real images (data/README.md)."""

    field: float = 3.8  # T
    material_scale: float = 1.0  # of MATERIAL_X0
    brem_cut: float = 0.010  # GeV, softest bremsstrahlung photon followed
    core_scale: float = 1.4  # of the GP core radius
    tail_scale: float = 1.3  # of the GP tail radius
    tail_gain: float = 1.1  # of the GP share of the tail
    core_stretch: float = 1.2  # widening in phi, where the field bends the shower's electrons
    tail_stretch: float = 1.15
    width_spread: float = 0.03  # shower to shower, relative, of the radii in eta and in phi
    tail_spread: float = 0.1  # shower to shower, relative, of the tail's share
    tilt: float = 0.0524  # rad, 3 degrees between crystal axis and vertex direction (CMS)
    stochastic: float = 0.028  # GeV^1/2, photo-statistics (CMS)
    intercalibration: float = 0.005  # relative, crystal to crystal (CMS)
    noise: float = 0.0465  # GeV a crystal (CMS: about 0.040)
    tower_high: float = 2.0  # GeV of ET: read out the 3 x 3 towers around in full
    tower_low: float = 1.0  # GeV of ET: read out the tower in full
    zero_suppression: float = 0.2  # GeV, least hit elsewhere
    isolation_hit: float = 0.095  # GeV, hits stored wherever they are (CMSSW)


def cms_crystal(i: np.ndarray, j: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """CMS numbers (ieta -85..-1, 1..85; iphi 1..360) of crystals counted from zero."""
    return np.where(i >= 0, i + 1, i), np.mod(j, 360) + 1


@numba.njit(cache=True, nogil=True)
def radiation_lengths(eta):
    """Radiation lengths of the tracker along a straight line at pseudorapidity ``eta``."""
    eta = min(abs(eta), MATERIAL_ETA[-1])
    k = 1
    while MATERIAL_ETA[k] < eta:
        k += 1
    part = (eta - MATERIAL_ETA[k - 1]) / (MATERIAL_ETA[k] - MATERIAL_ETA[k - 1])
    return MATERIAL_X0[k - 1] + part * (MATERIAL_X0[k] - MATERIAL_X0[k - 1])


@numba.njit(cache=True, nogil=True)
def poisson(rng, mean):
    """Poisson number for a small ``mean`` (quicker to compile than the generator's own)."""
    number, product, limit = 0, rng.random(), math.exp(-mean)
    while product > limit:
        number += 1
        product *= rng.random()
    return number


@numba.njit(cache=True, nogil=True)
def pair_suppression(energy):
    """Pair-production cross-section of a photon of ``energy`` GeV over its asymptote (PDG)."""
    return 1.0 - 1.0 / (1.0 + (energy / 0.04) ** 0.8)


@numba.njit(cache=True, nogil=True)
def brem_fraction(rng, lowest):
    """Energy fraction of a bremsstrahlung photon above ``lowest`` (complete screening, PDG)."""
    while True:
        y = lowest ** rng.random()
        if rng.random() < 1.0 - y + 0.75 * y * y:
            return y


@numba.njit(cache=True, nogil=True)
def pair_fraction(rng):
    """Energy fraction of one leg of a converted photon (complete screening, PDG)."""
    while True:
        x = rng.random()
        if rng.random() < 1.0 - 4.0 / 3.0 * x * (1.0 - x):
            return x


@numba.njit(cache=True, nogil=True)
def advance(state, radius, field):
    """Move (x, y, z, phi, cot theta, energy, charge) to the cylinder ``radius`` (cm); in place.

    Returns False for a charged particle that turns back before reaching it.
    """
    x, y, phi, cot, energy, charge = state[0], state[1], state[3], state[4], state[5], state[6]
    if charge == 0.0:
        along = x * math.cos(phi) + y * math.sin(phi)
        length = -along + math.sqrt(along * along + radius * radius - x * x - y * y)
        state[0] += length * math.cos(phi)
        state[1] += length * math.sin(phi)
        state[2] += length * cot
        return True
    pt = energy / math.sqrt(1.0 + cot * cot)
    bend = 100.0 * pt / (0.299792458 * max(field, 1e-9))  # cm, radius of curvature
    # A charge turns clockwise (field along +z): the centre lies to the right of the direction.
    side = charge * bend
    cx, cy = x + side * math.sin(phi), y - side * math.cos(phi)
    # Step in phi until the radius is reached: chord from the law of cosines about the centre.
    centre = math.hypot(cx, cy)
    if centre + bend < radius:
        return False
    old = math.atan2(y - cy, x - cx)
    to_origin = math.atan2(-cy, -cx)
    cosine = (centre * centre + bend * bend - radius * radius) / (2.0 * centre * bend)
    opening = math.acos(min(1.0, max(-1.0, cosine)))
    turn = -1.0 if charge > 0.0 else 1.0
    step = math.inf
    for sign in (-1.0, 1.0):
        delta = (turn * (to_origin + sign * opening - old)) % (2.0 * math.pi)
        step = min(step, delta)
    new = old + turn * step
    state[0] = cx + bend * math.cos(new)
    state[1] = cy + bend * math.sin(new)
    state[2] += bend * step * cot
    state[3] = phi + turn * step
    return True


@numba.njit(cache=True, nogil=True)
def scatter(rng, state, thickness):
    """Multiple scattering in ``thickness`` radiation lengths (Highland, PDG); in place."""
    width = 0.0136 / state[5] * math.sqrt(thickness) * (1.0 + 0.038 * math.log(thickness))
    sine_squared = 1.0 / (1.0 + state[4] * state[4])
    state[3] += rng.standard_normal() * width / math.sqrt(sine_squared)
    state[4] += rng.standard_normal() * width / sine_squared


@numba.njit(cache=True, nogil=True)
def copy_state(source, target):
    """Copy one particle of `track`. (A loop compiles faster than a slice.)"""
    for k in range(len(source)):
        target[k] = source[k]


@numba.njit(cache=True, nogil=True)
def track(rng, charge, energy, eta, phi, z, detector, impacts):
    """Carry an electron (``charge`` +-1) or photon (0) and its products to the ECAL.

    Start: vertex (0, 0, ``z`` cm), direction ``eta``, ``phi``, ``energy`` in GeV.
    Fills ``impacts`` (MAX_IMPACTS, 6) with the columns IMPACT_*: position in crystals (i and j,
    continuous), slopes against the crystal axis, energy, 1 for a photon. Returns
    (number of impacts, radius in cm of the primary photon's conversion or 0).
    """
    # Columns: x, y, z (cm), phi and cot theta of the direction, energy, charge, next layer
    stack = np.zeros((256, 8))
    state = np.zeros(8)
    stack[0, 2], stack[0, 3], stack[0, 4] = z, phi, math.sinh(eta)
    stack[0, 5], stack[0, 6] = energy, charge
    waiting = 1
    count = 0
    conversion = 0.0
    primary = True
    while waiting > 0:
        waiting -= 1
        copy_state(stack[waiting], state)
        alive = True
        for layer in range(int(state[7]), len(LAYERS)):
            radius = LAYERS[layer, 0]
            if not advance(state, radius, detector.field):
                alive = False
                break
            direction = math.asinh(state[4])
            thickness = LAYERS[layer, 1] * radiation_lengths(direction) * detector.material_scale
            if thickness <= 0.0:
                continue
            if state[6] == 0.0:
                chance = 7.0 / 9.0 * thickness * pair_suppression(state[5])
                if rng.random() < 1.0 - math.exp(-chance) and waiting < len(stack) - 2:
                    if primary:
                        conversion = radius
                    share = pair_fraction(rng)
                    sign = 1.0 if rng.random() < 0.5 else -1.0
                    for leg in range(2):
                        part = share if leg == 0 else 1.0 - share
                        if part * state[5] < detector.brem_cut:
                            continue
                        new = stack[waiting]
                        copy_state(state, new)
                        new[5] = part * state[5]
                        new[6] = sign if leg == 0 else -sign
                        # Opening angle of the order of m / E
                        new[3] += rng.standard_normal() * ELECTRON_MASS / new[5]
                        new[7] = layer + 1
                        waiting += 1
                    alive = False
                    break
            else:
                lowest = detector.brem_cut / state[5]
                if lowest < 1.0:
                    rate = 4.0 / 3.0 * (-math.log(lowest) - 1.0 + lowest)
                    rate += 0.5 * (1.0 - lowest * lowest)
                    for _ in range(poisson(rng, rate * thickness)):
                        lowest = detector.brem_cut / state[5]
                        if lowest >= 1.0 or waiting >= len(stack) - 2:
                            break
                        photon = brem_fraction(rng, lowest) * state[5]
                        new = stack[waiting]
                        copy_state(state, new)
                        new[5] = photon
                        new[6] = 0.0
                        new[7] = layer + 1
                        waiting += 1
                        state[5] -= photon
                if state[5] < detector.brem_cut:
                    alive = False
                    break
                scatter(rng, state, thickness)
        primary = False
        if not alive or count == len(impacts) or not advance(state, FRONT_RADIUS, detector.field):
            continue
        position = math.atan2(state[1], state[0])
        # unwrapped about the primary's direction
        position = phi + (position - phi + math.pi) % (2.0 * math.pi) - math.pi
        eta_front = math.asinh(state[2] / FRONT_RADIUS)
        # A curling electron enters at any angle: the limit keeps its shower where it enters.
        incidence = (state[3] - position + math.pi) % (2.0 * math.pi) - math.pi
        incidence = max(-MAX_INCIDENCE, min(MAX_INCIDENCE, incidence))
        polar = math.atan2(FRONT_RADIUS, state[2])
        flight = math.atan2(1.0, state[4])
        side = 1.0 if eta_front > 0.0 else -1.0
        impact = impacts[count]
        impact[IMPACT_I] = eta_front / CRYSTAL_PITCH
        impact[IMPACT_J] = position / CRYSTAL_PITCH
        # Crystal axes point past the vertex, mirrored at eta = 0, all the same way in phi.
        impact[IMPACT_SLOPE_I] = math.tan(polar - flight) + side * detector.tilt
        impact[IMPACT_SLOPE_J] = math.tan(incidence) + detector.tilt
        impact[IMPACT_ENERGY] = state[5]
        impact[IMPACT_PHOTON] = 1.0 if state[6] == 0.0 else 0.0
        count += 1
    return count, conversion


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
    row_width = math.exp(detector.width_spread * rng.standard_normal())
    col_width = math.exp(detector.width_spread * rng.standard_normal())
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
            expected = spots * part * (inner_share if kind == 0 else 1.0 - inner_share)
            if expected <= 0.0:
                continue
            number = int(expected + rng.random())
            if number == 0:
                continue
            spot = energy / spots if expected < 1.0 else energy / spots * expected / number
            row_scale = row_width * (core if kind == 0 else tail) / pitch
            col_scale = col_width * (core if kind == 0 else tail) / pitch
            col_scale *= detector.core_stretch if kind == 0 else detector.tail_stretch
            for k in range(number):
                u = rng.random()
                r = math.sqrt(u / (1.0 - u))
                angle = 2.0 * math.pi * rng.random()
                along = (k + 0.5) / number - 0.5
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


@numba.njit(cache=True, nogil=True)
def mark(mask, row, col, reach):
    """Set a square of ``mask`` around (row, col). (Loops compile faster than slices.)"""
    for a in range(max(row - reach, 0), min(row + reach + 1, mask.shape[0])):
        for b in range(max(col - reach, 0), min(col + reach + 1, mask.shape[1])):
            mask[a, b] = True


@numba.njit(cache=True, nogil=True)
def read_out(rng, grid, i0, j0, detector):
    """Turn deposited energy (GRID, GRID) into measured hits, in place; 0 where not read out.

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
                value += detector.noise * rng.standard_normal()
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


@numba.njit(cache=True, nogil=True)
def hit_time(rng, energy, noise):
    """Measured time in ns of an in-time hit of ``energy`` GeV: Gaussian, N / (E / noise) (+) c."""
    size = energy / noise
    if size < FAILED_FIT_SIZE and rng.random() < FAILED_FIT_CHANCE:
        return TIME_FIRST + (TIME_LAST - TIME_FIRST) * rng.random()
    width = 1.0 / math.sqrt((size / TIME_NOISE) ** 2 + 1.0 / TIME_WORST**2)
    return math.hypot(width, TIME_FLOOR) * rng.standard_normal()


@numba.njit(cache=True, nogil=True)
def simulate_hits(rng, charge, energy, eta, phi, z, detector, grid, impacts):
    """Stored hits of one electron (``charge`` +-1) or photon (0), in GeV, into ``grid``.

    Arguments as in `track`; ``grid`` (GRID, GRID) and ``impacts`` are work space. Returns
    (i0, j0, conversion radius): the window is centred on where a straight line would arrive.
    """
    grid[:] = 0.0
    count, conversion = track(rng, charge, energy, eta, phi, z, detector, impacts)
    front = math.asinh(math.sinh(eta) + z / FRONT_RADIUS)
    i0 = math.floor(front / CRYSTAL_PITCH) - GRID // 2
    j0 = math.floor(phi / CRYSTAL_PITCH) - GRID // 2
    for k in range(count):
        render_shower(rng, grid, i0, j0, impacts[k], detector)
    read_out(rng, grid, i0, j0, detector)
    reduce_hits(grid, i0, detector)
    return i0, j0, conversion
