"""Particles on their way to the ECAL: magnetic field, bremsstrahlung and conversions in material.

`track` carries a particle and all it radiates through the tracker to impacts on the ECAL front
face. Compiled by numba; random numbers come from the generator that is passed in.

Sources: Particle Data Group, "Passage of particles through matter"; CMS, "The CMS experiment at the
CERN LHC", JINST 3 (2008) S08004 (CMS below).
"""

import math

import numba
import numpy as np

from data.simulate.barrel import (
    CRYSTAL_PITCH,
    FRONT_RADIUS,
    IMPACT_ENERGY,
    IMPACT_I,
    IMPACT_J,
    IMPACT_PHOTON,
    IMPACT_SLOPE_I,
    IMPACT_SLOPE_J,
)

ELECTRON_MASS = 0.000511  # GeV
# Tracker: (radius in cm, share of the radiation lengths) for beam pipe, 3 pixel layers, their
# services, 4 inner-barrel layers, 5 outer-barrel layers and the support tube (CMS, Run 1 layout).
# How much is inside is fitted to what networks trained on official events see: early radiation
# ends up apart in phi, late radiation does not.
LAYERS = np.array(
    [
        (3.0, 0.0125),
        (4.4, 0.0562),
        (7.3, 0.0562),
        (10.2, 0.0562),
        (18.0, 0.0813),
        (25.5, 0.0950),
        (33.9, 0.0900),
        (41.9, 0.0750),
        (49.8, 0.1000),
        (60.8, 0.1050),
        (69.2, 0.0650),
        (78.0, 0.0600),
        (86.8, 0.0480),
        (96.5, 0.0480),
        (112.0, 0.0640),
    ]
)
# Radiation lengths in front of the ECAL against |eta| (rough shape of CMS, Run 1).
MATERIAL_ETA = np.array([0.0, 0.3, 0.6, 0.8, 1.0, 1.2, 1.4, 1.5])
MATERIAL_X0 = np.array([0.40, 0.43, 0.53, 0.68, 0.98, 1.35, 1.70, 1.80])
MAX_INCIDENCE = 1.2  # rad
RADIATED_LEAST = 1.0  # GeV, photons that count as radiated in the history of an event


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
    (number of impacts, history): history is (radius in cm of the primary photon's conversion or 0,
    photons above RADIATED_LEAST that the primary electron radiated, their energy in GeV).
    """
    # Columns: x, y, z (cm), phi and cot theta of the direction, energy, charge, next layer
    stack = np.zeros((256, 8))
    state = np.zeros(8)
    stack[0, 2], stack[0, 3], stack[0, 4] = z, phi, math.sinh(eta)
    stack[0, 5], stack[0, 6] = energy, charge
    waiting = 1
    count = 0
    conversion, radiated, radiated_energy = 0.0, 0, 0.0
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
                        if primary and photon > RADIATED_LEAST:
                            radiated += 1
                            radiated_energy += photon
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
    return count, (conversion, radiated, radiated_energy)
