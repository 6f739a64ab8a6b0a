"""Jets as 125 x 125 images of eight channels: tracks, calorimeters and pixel hits.

Geometry, showers and read-out are those of `jets_detector`; new are impact parameters, hits in the
three barrel pixel layers, and tracks at their impact on the ECAL. The channels follow the project's
public analyzer (MLAnalyzer, fillTracksAtECALstitched and fillTRKlayersAtECALstitched): a pixel of
the first channel is the sum of the pT of its tracks, of the next two the mean of their impact
parameters over their errors; a pixel hit is placed by its direction from the primary vertex.

Sources: CMS, JINST 9 (2014) P10009 (impact parameter resolution, efficiency); CMS, JINST 3 (2008)
S08004 (radii and lengths of the pixel layers).
"""

import math
from typing import NamedTuple

import numba
import numpy as np

from data.simulate.jets_detector import (
    BEND,
    CELLS,
    GRID,
    HALF,
    MAX_TOWER,
    PITCH,
    SIZE,
    TOWER,
    add_spike,
    conversion,
    find_seed,
    hadron_shower,
    impact,
    perigee,
    photon_shower,
    read_out,
    shower,
    spread,
)
from data.simulate.jets_events import ELECTRON, MUON, PHOTON

CHANNELS = ("track pT", "dz", "d0", "ECAL", "HCAL", "BPIX1", "BPIX2", "BPIX3")
LAYERS = (4.4, 7.3, 10.2)  # cm, radii
LAYER_END = 26.5  # cm, |z|
TOWERS, COLUMNS = 56, 72  # of the whole calorimeter: rows of eta, columns of phi


class Tracker(NamedTuple):
    """What can be turned, beside `jets_detector.Detector`. Calibrated (data/README.md)."""

    min_pt: float = 0.2  # GeV, of a track
    efficiency: float = 0.93  # of hadrons above 1 GeV
    core_loss: float = 0.35  # chance to lose a track in a pixel that has one: hits merge
    lifetime: float = 11.0  # cm, radius of origin at which 1/e of the tracks are still found
    lever: float = 40.0  # cm, radius of origin at which impact parameters are half as precise
    resolution: float = 0.012  # relative, of pT
    bad_track: float = 0.002  # chance of a wildly wrong pT (published: up to 74,054 GeV)
    d0_floor: float = 0.0012  # cm
    d0_scattering: float = 0.0085  # cm GeV
    dz_floor: float = 0.0030  # cm
    dz_scattering: float = 0.0100  # cm GeV
    wrong_hit: float = 0.03  # chance of a five times larger error than thought
    vertex_xy: float = 0.0012  # cm, error of the primary vertex
    vertex_z: float = 0.0018  # cm
    hit_efficiency: float = 0.98  # of a pixel layer
    merged_hits: float = 0.7  # chance that hits of one pixel merge, in the first layer
    second_hit: float = 0.06  # chance of another hit beside: overlaps, delta rays
    stray_hits: float = 0.0  # of secondaries, in an image and layer, for each layer inside it


@numba.njit(cache=True, nogil=True)
def pixel_hits(rng, hits, eta, phi, pt, charge, vertex, primary, born, axis_phi, top, left, t):
    """Hits of a charged particle in ``hits`` (3, CELLS, CELLS), as seen from the primary vertex."""
    diameter = 2.0 * pt / BEND  # of the helix, cm
    slope = math.sinh(eta)
    for layer in range(3):
        radius = LAYERS[layer]
        if born > radius or radius >= diameter or rng.random() > t.hit_efficiency:
            continue
        turn = math.asin(radius / diameter)
        z = vertex + slope * diameter * turn
        if abs(z) > LAYER_END:
            continue
        away = (phi - charge * turn - axis_phi + math.pi) % (2.0 * math.pi) - math.pi
        row = math.asinh((z - primary) / radius) / PITCH - top
        col = (axis_phi + away) / PITCH - left
        a, b = math.floor(row), math.floor(col)
        if 0 <= a < CELLS and 0 <= b < CELLS:
            # Clusters of tracks that are close merge, most where they fill a larger solid angle
            if hits[layer, a, b] > 0.0 and rng.random() < t.merged_hits * (LAYERS[0] / radius) ** 2:
                continue
            hits[layer, a, b] += 1.0
            if rng.random() < t.second_hit:
                hits[layer, a, b] += 1.0


@numba.njit(cache=True, nogil=True)
def add_track(rng, tracks, eta, phi, pt, kind, d0, dz, born, top, left, t):
    """A reconstructed track at its impact (eta, phi), in ``tracks`` (4, CELLS, CELLS).

    The planes are the sums of pT, of dz / error, of d0 / error, and the number of tracks. ``d0``
    and ``dz`` in cm are relative to the reconstructed vertex.
    """
    efficiency = t.efficiency * (1.0 - 0.5 * math.exp(-(pt - 0.2) / 0.25))
    if kind == MUON:
        efficiency = 0.99
    if rng.random() > efficiency * math.exp(-born / t.lifetime):
        return
    measured = pt * (1.0 + t.resolution * rng.standard_normal())
    if rng.random() < t.bad_track:
        measured /= 1.0 - rng.random()
    if measured <= t.min_pt:
        return
    a, b = math.floor(eta / PITCH - top), math.floor(phi / PITCH - left)
    if not (0 <= a < CELLS and 0 <= b < CELLS):
        return
    if tracks[0, a, b] > 0.0 and rng.random() < t.core_loss:
        return
    scale = 5.0 if rng.random() < t.wrong_hit else 1.0
    # Without hits near the beam a track is carried farther back
    reach = 1.0 + born / t.lever
    error = reach * math.hypot(t.d0_floor, t.d0_scattering / pt)
    d0 += scale * error * rng.standard_normal()
    tracks[2, a, b] += d0 / math.hypot(error, t.vertex_xy)
    error = reach * math.hypot(t.dz_floor, t.dz_scattering * math.cosh(eta) / pt)
    dz += scale * error * rng.standard_normal()
    tracks[1, a, b] += dz / math.hypot(error, t.vertex_z)
    tracks[0, a, b] += measured
    tracks[3, a, b] += 1.0


@numba.njit(cache=True, nogil=True)
def longer(values, used, size):
    """The first ``used`` of ``values`` in an array of ``size``."""
    result = np.empty(size, values.dtype)
    result[:used] = values[:used]
    return result


@numba.njit(cache=True, nogil=True)
def pack_tracks(tracks, first_row, first_col, index, value, used):
    """Append the three channels of ``tracks`` (4, CELLS, CELLS); returns how many hits there are.

    The pT of a pixel's tracks is summed, their impact parameters are averaged.
    """
    for channel in range(3):
        for a in range(SIZE):
            for b in range(SIZE):
                count = tracks[3, first_row + a, first_col + b]
                if count == 0.0:
                    continue
                pixel = tracks[channel, first_row + a, first_col + b]
                number = np.float32(pixel if channel == 0 else pixel / count)
                if number != 0.0:
                    index[used], value[used] = (channel * SIZE + a) * SIZE + b, number
                    used += 1
    return used


@numba.njit(cache=True, nogil=True)
def pack(cells, first_row, first_col, channel, index, value, used):
    """Append the image's part of ``cells`` (CELLS, CELLS); returns how many hits there are."""
    for a in range(SIZE):
        for b in range(SIZE):
            number = np.float32(cells[first_row + a, first_col + b])
            if number != 0.0:
                index[used], value[used] = (channel * SIZE + a) * SIZE + b, number
                used += 1
    return used


@numba.njit(cache=True, nogil=True)
def pack_towers(hcal, first_row, first_col, index, value, used):
    """Append the first pixel of each tower of ``hcal`` (GRID, GRID); returns how many hits."""
    for a in range(SIZE // TOWER):
        for b in range(SIZE // TOWER):
            energy = hcal[first_row // TOWER + a, first_col // TOWER + b]
            number = np.float32(energy / (TOWER * TOWER))
            if number != 0.0:
                index[used], value[used] = ((4 * SIZE + a * TOWER) * SIZE) + b * TOWER, number
                used += 1
    return used


@numba.njit(cache=True, nogil=True)
def render(
    rng, starts, stops, pt, eta, phi, energy, kind, charge, vertex, d0, dz, radius,
    axes, primary, d, t, counts, seeds,
):  # fmt: skip
    """Active pixels of n images (8, 125, 125), see CHANNELS: their ``index`` and ``value`` (hits,).

    Those of an image follow each other, ``index`` counts within the flattened image and rises; of
    an HCAL tower, whose energy all its pixels share, only the first pixel is there. Fills
    ``counts`` (n,), the hits of an image, and ``seeds`` (n, 2), its central tower.

    Particles as in `jets_events.Particles` and `boosted_events.Displacements`; jet i sees those of
    ``starts[i]:stops[i]``. ``axes`` (n, 2): eta and phi of the jets; ``primary`` (n,): z of their
    vertices in cm; ``d`` a `jets_detector.Detector`, ``t`` a `Tracker`. pT and energies in GeV;
    impact parameters in units of their errors. Also returns a mask (n,): jets whose seed is too far
    from eta = 0 stay empty.
    """
    # Dense images exist one at a time, where they stay in the processor's cache.
    tracks, hits = np.zeros((4, CELLS, CELLS)), np.zeros((3, CELLS, CELLS), dtype=np.float32)
    ecal, hcal = np.zeros((CELLS, CELLS)), np.zeros((GRID, GRID))
    keep, near = np.zeros((2, CELLS, CELLS), dtype=np.bool_)
    done = np.zeros(len(axes), dtype=np.bool_)
    index, value = np.empty(1024 * len(axes), np.uint32), np.empty(1024 * len(axes), np.float32)
    used = 0
    for jet in range(len(axes)):
        axis_eta, axis_phi = axes[jet, 0], axes[jet, 1]
        tower_row = math.floor(axis_eta / (TOWER * PITCH))
        tower_col = math.floor(axis_phi / (TOWER * PITCH))
        top, left = TOWER * (tower_row - GRID // 2), TOWER * (tower_col - GRID // 2)
        tracks[:], hits[:], ecal[:], hcal[:] = 0.0, 0.0, 0.0, 0.0
        vertex_d0 = t.vertex_xy * rng.standard_normal()
        found = primary[jet] + t.vertex_z * rng.standard_normal()
        for layer in range(3):
            strays = rng.poisson(layer * t.stray_hits * (CELLS / SIZE) ** 2)
            for _ in range(strays):
                a, b = math.floor(CELLS * rng.random()), math.floor(CELLS * rng.random())
                hits[layer, a, b] += 1.0
        for k in range(starts[jet], stops[jet]):
            away = (phi[k] - axis_phi + math.pi) % (2.0 * math.pi) - math.pi
            if abs(away) > 1.9:
                continue  # too far to be bent into the window
            at_vertex = axis_phi + away
            if charge[k] != 0:
                pixel_hits(
                    rng, hits, eta[k], at_vertex, pt[k], charge[k], vertex[k], found, radius[k],
                    axis_phi, top, left, t,
                )  # fmt: skip
            if abs(eta[k] - axis_eta) > 1.6:
                continue
            eta_there, phi_there = impact(pt[k], eta[k], at_vertex, charge[k], vertex[k])
            if not abs(eta_there) < 3.0:
                continue
            phi_there = axis_phi + ((phi_there - axis_phi + math.pi) % (2.0 * math.pi) - math.pi)
            row, col = eta_there / PITCH - top, phi_there / PITCH - left
            if not (-10.0 < row < CELLS + 10.0 and -10.0 < col < CELLS + 10.0):
                continue
            if charge[k] != 0:
                add_track(
                    rng, tracks, eta_there, phi_there, pt[k], kind[k], d0[k] + vertex_d0,
                    dz[k] + vertex[k] - found, radius[k], top, left, t,
                )  # fmt: skip
            if kind[k] == PHOTON:
                converted, share = conversion(rng, eta[k]), rng.random()
                photon_shower(rng, ecal, row, col, pt[k], energy[k], converted, share, d)
                if converted < math.inf:
                    for part, sign in ((share, 1.0), (1.0 - share, -1.0)):
                        leg = max(part * pt[k], 1e-3)
                        turn, shift = perigee(leg, sign, converted)
                        pixel_hits(
                            rng, hits, eta[k], at_vertex + turn, leg, sign, vertex[k], found,
                            converted, axis_phi, top, left, t,
                        )  # fmt: skip
                        eta_there, phi_there = impact(
                            leg, eta[k], at_vertex + turn, sign, vertex[k]
                        )
                        if abs(eta_there) < 3.0:
                            add_track(
                                rng, tracks, eta_there, phi_there, leg, ELECTRON,
                                shift + vertex_d0, vertex[k] - found, converted, top, left, t,
                            )  # fmt: skip
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
        seeds[jet, 0] = tower + TOWERS // 2
        seeds[jet, 1] = (tower_col - GRID // 2 + seed_col) % COLUMNS
        first_row, first_col = TOWER * (seed_row - HALF), TOWER * (seed_col - HALF)
        read_out(rng, ecal, top, left, first_row, first_col, keep, near, d)
        if used + 8 * SIZE * SIZE > len(index):  # whatever this jet holds
            size = 2 * len(index) + 8 * SIZE * SIZE
            index, value = longer(index, used, size), longer(value, used, size)
        before = used
        used = pack_tracks(tracks, first_row, first_col, index, value, used)
        used = pack(ecal, first_row, first_col, 3, index, value, used)
        used = pack_towers(hcal, first_row, first_col, index, value, used)
        for layer in range(3):
            used = pack(hits[layer], first_row, first_col, 5 + layer, index, value, used)
        counts[jet] = used - before
    return index[:used], value[:used], done
