"""A fast CMS-like detector for whole jets: tracks, ECAL and HCAL as 125 x 125 images.

Everything compiled by numba works on one jet at a time. Rows are eta, columns phi; a pixel has the
size of an ECAL crystal, five by five pixels are an HCAL tower.

The layout follows what the project's public analyzer and converter do (MLAnalyzer,
convert_root2pq_jet.py): 280 x 360 pixels in |eta| < 2.44, 56 x 72 towers; a tower's energy is
shared evenly by its 25 pixels; in the endcaps 2 x 2 pixels share their energy; tracks are placed by
their direction at the vertex; the image is centred on the tower with the most energy within 7 x 7
around the jet, which must be at most 16 towers from eta = 0 so that the image fits.

Sources of the physics: detector.py; CMS, JINST 3 (2008) S08004 (geometry, noise, resolutions); CMS,
JINST 9 (2014) P10009 (tracking efficiency); Particle Data Group (showers, conversions).
"""

import math
from typing import NamedTuple

import numba
import numpy as np

from data.simulate.jets_events import CHARGED, ELECTRON, MUON, PHOTON
from data.simulate.tracker import LAYERS, radiation_lengths

SIZE = 125  # pixels a side
PITCH = math.pi / 180  # of a pixel in eta and phi
TOWER = 5  # pixels a side
HALF = SIZE // (2 * TOWER)  # towers on each side of the seed
MAX_TOWER = 16  # farthest seed from eta = 0
SEED_REACH = 3  # towers from the jet's axis in which the seed is looked for
GRID = 2 * (HALF + SEED_REACH) + 1  # towers a side of the window that is filled
CELLS = GRID * TOWER
BARREL = 85  # pixels from eta = 0 to the end of the barrel
FRONT = 129.0  # cm, radius of the ECAL
ENDCAP = 317.0  # cm, |z| of the ECAL's endcaps
ISOLATION = round(0.6 / PITCH)  # pixels around an electron or photon candidate (CMSSW)
SPIKE_MIN = 3.0  # GeV, least anomalous signal
BEND = 0.299792458 * 3.8 / 100  # GeV / cm: transverse momentum over radius of curvature


class Detector(NamedTuple):
    """What can be turned. Values without a source: fitted to published numbers (data/README.md)."""

    # Further collisions a crossing: 20 inelastic ones in 2012, of which these are not diffractive
    pile_up: float = 14.0
    vertex_spread: float = 5.0  # cm along the beam
    track_min_pt: float = 0.1  # GeV: the least that CMS finds (P10009)
    track_efficiency: float = 0.93  # of hadrons above 1 GeV
    track_resolution: float = 0.012  # relative
    lifetime: float = 25.0  # cm, radius of origin at which 1/e of the tracks are still found
    bad_track: float = 0.004  # chance of a wildly wrong pT (published: up to 75,660)
    core: float = 0.22  # pixels, radius that holds half of an electromagnetic shower's core
    tail: float = 1.0  # pixels, of its tail
    tail_share: float = 0.16
    hadron_core: float = 0.5  # pixels, of a hadron's shower in the ECAL
    hadron_ecal: float = 0.78  # chance that a hadron's shower starts in the ECAL
    hadron_response: float = 0.28  # of the ECAL and HCAL to a hadron of 1 GeV
    hcal_spread: float = 0.5  # pixels
    hcal_stochastic: float = 1.0  # GeV^1/2
    ecal_noise: float = 0.04  # GeV a crystal, barrel
    endcap_noise: float = 0.12  # GeV a crystal
    ecal_seed: float = 0.6  # GeV of ET: the 5 x 5 pixels around are kept whatever they hold
    candidate: float = 1.0  # GeV of ET: within ISOLATION of such a pixel hits above these are kept
    ecal_threshold: float = 0.095  # GeV, barrel (CMSSW)
    endcap_threshold: float = 0.2  # GeV
    hcal_noise: float = 0.28  # GeV a tower
    hcal_threshold: float = 0.72  # GeV a tower (CMSSW: 0.7)
    spike: float = 0.004  # chance of an anomalous signal in the window, of each calorimeter
    ecal_spike: float = 933.0  # GeV, highest one: the published maximum
    hcal_spike: float = 1082.0  # GeV a tower: the published maximum of a pixel, 43.3, times 25


@numba.njit(cache=True, nogil=True)
def impact(pt, eta, phi, charge, vertex):
    """Where a particle arrives at the ECAL: (eta, phi), or eta = inf for one that turns back.

    ``vertex`` is z of its origin in cm, ``pt`` in GeV. Photons and neutral hadrons: ``charge`` 0.
    """
    slope = math.sinh(eta)
    radius = pt / BEND  # of curvature, cm
    along = FRONT  # transverse path to the barrel
    if charge != 0:
        if 2.0 * radius <= FRONT:
            along = math.inf
        else:
            along = 2.0 * radius * math.asin(FRONT / (2.0 * radius))
    z = vertex + slope * along if slope != 0.0 else vertex
    distance = FRONT
    if not abs(z) < ENDCAP:  # reaches the endcap first
        along = (math.copysign(ENDCAP, slope) - vertex) / slope
        distance = along
        z = math.copysign(ENDCAP, slope)
        if charge != 0:
            turn = along / (2.0 * radius)
            if turn > 0.5 * math.pi:
                return math.inf, phi
            distance = 2.0 * radius * math.sin(turn)
    if charge != 0:
        phi -= charge * along / (2.0 * radius)
    return math.asinh(z / max(distance, 1.0)), phi


@numba.njit(cache=True, nogil=True)
def spread(rng, grid, row, col, energy, spots, core, tail, tail_share):
    """Share ``energy`` among ``spots`` around (row, col); radial profile r^2 / (r^2 + R^2)."""
    for _ in range(spots):
        u = rng.random()
        scale = tail if rng.random() < tail_share else core
        r = min(scale * math.sqrt(u / (1.0 - u)), 10.0)
        angle = 2.0 * math.pi * rng.random()
        a = math.floor(row + r * math.cos(angle))
        b = math.floor(col + r * math.sin(angle))
        if 0 <= a < CELLS and 0 <= b < CELLS:
            grid[a, b] += energy / spots


@numba.njit(cache=True, nogil=True)
def shower(rng, ecal, row, col, energy, d):
    """Energy of an electron or photon in the ECAL."""
    energy *= 1.0 + math.hypot(0.03 / math.sqrt(energy), 0.005) * rng.standard_normal()
    if energy > 0.0:
        spots = min(8 + int(30.0 * energy), 400)
        spread(rng, ecal, row, col, energy, spots, d.core, d.tail, d.tail_share)


@numba.njit(cache=True, nogil=True)
def conversion(rng, eta):
    """Radius in cm at which the tracker's material converts a photon; inf where it does not."""
    if rng.random() > 1.0 - math.exp(-7.0 / 9.0 * 0.9 * radiation_lengths(eta)):
        return math.inf
    left, layer = rng.random() * LAYERS[:, 1].sum(), 0
    while layer < len(LAYERS) - 1 and left > LAYERS[layer, 1]:
        left -= LAYERS[layer, 1]
        layer += 1
    return LAYERS[layer, 0]


@numba.njit(cache=True, nogil=True)
def perigee(pt, charge, radius):
    """Angle and impact parameter (cm) of a leg of a conversion at ``radius``, seen from the beam.

    The leg leaves the beam's direction by the angle; the photon came straight from the beam.
    """
    curvature = pt / BEND  # radius of, in cm
    return charge * math.atan2(radius, curvature), charge * (
        math.hypot(curvature, radius) - curvature
    )


@numba.njit(cache=True, nogil=True)
def photon_shower(rng, ecal, row, col, pt, energy, radius, share, d):
    """A photon; converted at ``radius``, its legs with ``share`` and the rest are bent apart."""
    if radius == math.inf:
        shower(rng, ecal, row, col, energy, d)
        return
    way, side = FRONT - radius, 1.0
    for part in (share, 1.0 - share):
        if part * pt > 0.1:
            away = side * 0.5 * way * way * BEND / (part * pt) / FRONT
            if abs(away) < 0.5:
                shower(rng, ecal, row, col + away / PITCH, part * energy, d)
        side = -side


@numba.njit(cache=True, nogil=True)
def hadron_shower(rng, ecal, hcal, row, col, energy, d):
    """A hadron: a shower in the ECAL with what is left in the HCAL, or a minimum-ionising track."""
    # Groom, NIM A572 (2007) 633: the electromagnetic share of a shower grows with its energy
    seen = energy * (1.0 - (1.0 - d.hadron_response) * max(energy, 1.0) ** -0.17)
    first = min(0.25, seen)
    if rng.random() < d.hadron_ecal:
        first = seen * rng.random()
        if energy < 2.0:
            first = max(first, seen * rng.random())
    spots = 3 + min(int(8.0 * first), 100)
    if first > 0.4:
        spread(rng, ecal, row, col, first, spots, d.hadron_core, 3.0 * d.hadron_core, 0.4)
    else:
        spread(rng, ecal, row, col, first, 1, 0.01, 0.01, 0.0)
    rest = seen - first
    if rest <= 0.0:
        return
    rest += d.hcal_stochastic * math.sqrt(rest) * rng.standard_normal()
    if rest <= 0.0:
        return
    for _ in range(6):
        a = math.floor((row + d.hcal_spread * rng.standard_normal()) / TOWER)
        b = math.floor((col + d.hcal_spread * rng.standard_normal()) / TOWER)
        if 0 <= a < GRID and 0 <= b < GRID:
            hcal[a, b] += rest / 6.0


@numba.njit(cache=True, nogil=True)
def add_track(rng, tracks, row, col, pt, kind, born, d):
    """A reconstructed track's pT at its direction at the vertex; it begins at the radius ``born``.

    A wildly wrong curvature is anything down to zero: the spectrum falls with the square of pT.
    """
    if pt < d.track_min_pt:
        return
    efficiency = d.track_efficiency * (1.0 - 0.5 * math.exp(-(pt - 0.2) / 0.25))
    if rng.random() > (0.99 if kind == MUON else efficiency) * math.exp(-born / d.lifetime):
        return
    measured = pt * (1.0 + d.track_resolution * rng.standard_normal())
    if rng.random() < d.bad_track:
        measured /= 1.0 - rng.random()
    a, b = math.floor(row), math.floor(col)
    if 0 <= a < CELLS and 0 <= b < CELLS:
        tracks[a, b] += measured


@numba.njit(cache=True, nogil=True)
def add_spike(rng, cells, d, highest):
    """An anomalous signal anywhere in ``cells``: particles in photodiodes, discharges (CMS).

    As many in each octave of energy; seldom, yet much of the spread of all pixels.
    """
    if rng.random() < d.spike:
        a, b = math.floor(len(cells) * rng.random()), math.floor(len(cells) * rng.random())
        cells[a, b] += SPIKE_MIN * (highest / SPIKE_MIN) ** rng.random()


@numba.njit(cache=True, nogil=True)
def find_seed(rng, hcal, top, d):
    """Measured towers (in place; 0 below threshold) and the seed's (row, column)."""
    row, col, highest = GRID // 2, GRID // 2, 0.0
    for a in range(GRID):
        tower = top + a
        for b in range(GRID):
            value = hcal[a, b] + d.hcal_noise * rng.standard_normal()
            exists = -28 <= tower < 28
            hcal[a, b] = value if exists and value > d.hcal_threshold else 0.0
    middle = GRID // 2
    for a in range(middle - SEED_REACH, middle + SEED_REACH + 1):
        for b in range(middle - SEED_REACH, middle + SEED_REACH + 1):
            if hcal[a, b] > highest:
                row, col, highest = a, b, hcal[a, b]
    return row, col


@numba.njit(cache=True, nogil=True)
def mark_disc(near, row, col):
    """Set ``near`` (CELLS, CELLS) within ISOLATION pixels of (row, col)."""
    for a in range(max(row - ISOLATION, 0), min(row + ISOLATION + 1, CELLS)):
        width = int(math.sqrt(ISOLATION**2 - (a - row) ** 2))
        near[a, max(col - width, 0) : min(col + width + 1, CELLS)] = True


@numba.njit(cache=True, nogil=True)
def read_out(rng, ecal, top, left, first_row, first_col, keep, near, d):
    """Noise and selection of the hits of the image's part of ``ecal``, in place.

    As in CMS's files of reconstructed events: around crystals above ``ecal_seed`` 5 x 5 are kept
    whatever they hold, also below zero, and within ISOLATION of candidates hits above a threshold.
    """
    keep[:], near[:] = False, False
    last_row, last_col = first_row + SIZE, first_col + SIZE
    for a in range(first_row, last_row):
        eta = (top + a + 0.5) * PITCH
        limit = d.ecal_seed * math.cosh(eta)
        for b in range(first_col, last_col):
            if ecal[a, b] > limit:
                for i in range(max(a - 2, first_row), min(a + 3, last_row)):
                    for j in range(max(b - 2, first_col), min(b + 3, last_col)):
                        keep[i, j] = True
            if ecal[a, b] > d.candidate * math.cosh(eta) and not near[a, b]:
                mark_disc(near, a, b)
    for a in range(first_row, last_row):
        pixel = top + a
        barrel = -BARREL <= pixel < BARREL
        noise = d.ecal_noise if barrel else d.endcap_noise
        threshold = d.ecal_threshold if barrel else d.endcap_threshold
        for b in range(first_col, last_col):
            if ecal[a, b] > 0.0 or keep[a, b]:
                value = ecal[a, b] + noise * rng.standard_normal()
                kept = keep[a, b] or (near[a, b] and value > threshold)
                ecal[a, b] = value if kept else 0.0
    share_endcaps(ecal, top, left, first_row, first_col)


@numba.njit(cache=True, nogil=True)
def share_endcaps(ecal, top, left, first_row, first_col):
    """In the endcaps, 2 x 2 pixels (counted from the barrel's end and phi = 0) share their energy.

    The project's public converters divide it by four twice, and so does this function. Blocks that
    the image's edge cuts keep what they have.
    """
    for a in range(first_row, first_row + SIZE - 1):
        pixel = top + a
        outside = pixel - BARREL if pixel >= BARREL else -BARREL - 1 - pixel
        # The block's rows: outside = 2k and 2k + 1, in either order
        if outside < 0 or outside % 2 != (0 if pixel >= 0 else 1):
            continue
        for b in range(first_col, first_col + SIZE - 1):
            if (left + b) % 2:
                continue
            total = ecal[a, b] + ecal[a, b + 1] + ecal[a + 1, b] + ecal[a + 1, b + 1]
            ecal[a, b] = ecal[a, b + 1] = ecal[a + 1, b] = ecal[a + 1, b + 1] = total / 16.0


@numba.njit(cache=True, nogil=True)
def render(rng, offsets, pt, eta, phi, energy, kind, charge, vertex, axes, d, images):
    """Fill ``images`` (n, 3, 125, 125): track pT, ECAL and HCAL energy in GeV of n jets.

    Particles as in `jets_events.Particles`; ``axes`` (n, 2) are the jets' eta and phi. Returns a
    mask (n,): jets whose seed is too far from eta = 0 stay empty.
    """
    tracks, ecal = np.zeros((CELLS, CELLS)), np.zeros((CELLS, CELLS))
    hcal = np.zeros((GRID, GRID))
    keep, near = np.zeros((2, CELLS, CELLS), dtype=np.bool_)
    done = np.zeros(len(axes), dtype=np.bool_)
    for jet in range(len(axes)):
        tower_row = math.floor(axes[jet, 0] / (TOWER * PITCH))
        tower_col = math.floor(axes[jet, 1] / (TOWER * PITCH))
        top, left = TOWER * (tower_row - GRID // 2), TOWER * (tower_col - GRID // 2)
        tracks[:], ecal[:], hcal[:] = 0.0, 0.0, 0.0
        for k in range(offsets[jet], offsets[jet + 1]):
            if abs(eta[k] - axes[jet, 0]) > 1.6:
                continue
            away = (phi[k] - axes[jet, 1] + math.pi) % (2.0 * math.pi) - math.pi
            at_vertex = axes[jet, 1] + away
            if kind[k] == CHARGED or kind[k] == ELECTRON or kind[k] == MUON:
                row, col = eta[k] / PITCH - top, at_vertex / PITCH - left
                add_track(rng, tracks, row, col, pt[k], kind[k], 0.0, d)
            eta_there, phi_there = impact(pt[k], eta[k], at_vertex, charge[k], vertex[k])
            if not abs(eta_there) < 3.0:
                continue
            phi_there = axes[jet, 1] + (
                (phi_there - axes[jet, 1] + math.pi) % (2.0 * math.pi) - math.pi
            )
            row, col = eta_there / PITCH - top, phi_there / PITCH - left
            if not (-10.0 < row < CELLS + 10.0 and -10.0 < col < CELLS + 10.0):
                continue
            if kind[k] == PHOTON:
                converted, share = conversion(rng, eta[k]), rng.random()
                photon_shower(rng, ecal, row, col, pt[k], energy[k], converted, share, d)
                if converted < math.inf:
                    for part, sign in ((share, 1.0), (1.0 - share, -1.0)):
                        turn, _ = perigee(part * pt[k], sign, converted)
                        row, col = eta[k] / PITCH - top, (at_vertex + turn) / PITCH - left
                        add_track(rng, tracks, row, col, part * pt[k], ELECTRON, converted, d)
            elif kind[k] == ELECTRON:
                shower(rng, ecal, row, col, energy[k], d)
            elif kind[k] == MUON:
                spread(rng, ecal, row, col, 0.25, 1, 0.01, 0.01, 0.0)
            else:
                hadron_shower(rng, ecal, hcal, row, col, energy[k], d)
        add_spike(rng, ecal, d, d.ecal_spike)
        add_spike(rng, hcal, d, d.hcal_spike)
        seed_row, seed_col = find_seed(rng, hcal, top // TOWER, d)
        tower = tower_row - GRID // 2 + seed_row
        if (tower if tower >= 0 else -tower - 1) >= MAX_TOWER:
            continue
        done[jet] = True
        first_row, first_col = TOWER * (seed_row - HALF), TOWER * (seed_col - HALF)
        read_out(rng, ecal, top, left, first_row, first_col, keep, near, d)
        for a in range(SIZE):
            for b in range(SIZE):
                i, j = first_row + a, first_col + b
                images[jet, 0, a, b] = tracks[i, j]
                images[jet, 1, a, b] = ecal[i, j]
                images[jet, 2, a, b] = hcal[i // TOWER, j // TOWER] / (TOWER * TOWER)
    return done
