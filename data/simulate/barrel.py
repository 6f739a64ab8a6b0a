"""The barrel: its geometry, its material, and what of the detector can be turned.

Crystals are counted by i = floor(eta / CRYSTAL_PITCH), -85..84, and j = floor(phi / CRYSTAL_PITCH).
(CMS counts from 1 and without a zero: `cms_crystal`.) An event lives in a window of GRID x GRID
crystals whose corner is (i0, j0); phi is not wrapped there.

Sources: CMS, "The CMS experiment at the CERN LHC", JINST 3 (2008) S08004 (CMS below); Particle Data
Group, "Atomic and nuclear properties" (PDG).
"""

import math
from typing import NamedTuple

import numpy as np

GRID = 64  # crystals a side of an event's window
CRYSTAL_PITCH = math.pi / 180  # crystal width in eta and phi (CMS: 0.0174)
ETA_CRYSTALS = 85  # crystals from eta = 0 to the end of the barrel
TOWER = 5  # crystals a side of a trigger tower
FRONT_RADIUS = 129.0  # cm, ECAL front face (CMS)
# Columns of an impact on the ECAL front face
IMPACT_I, IMPACT_J, IMPACT_SLOPE_I, IMPACT_SLOPE_J, IMPACT_ENERGY, IMPACT_PHOTON = range(6)
MAX_IMPACTS = 512


class Detector(NamedTuple):
    """What can be turned. The defaults are calibrated to real images (data/README.md)."""

    field: float = 3.8  # T
    material_scale: float = 0.96  # of MATERIAL_X0
    brem_cut: float = 0.003  # GeV, softest bremsstrahlung photon followed
    core_scale: float = 1.3  # of the GP core radius
    tail_scale: float = 1.6  # of the GP tail radius
    tail_power: float = 1.5  # share of the tail beyond r: (1 + r^2 / R^2)^-power (GP: 1)
    tail_gain: float = 1.2  # of the GP share of the tail
    core_stretch: float = 1.16  # widening in phi, where the field bends the shower's electrons
    tail_stretch: float = 1.1
    core_spot: float = 2.0  # energy of a spot over that of a GP spot
    tail_spot: float = 4.0  # larger: few photons that wandered off make the tail
    tail_width_spread: float = 0.15  # shower to shower, relative, of the tail in eta and in phi
    tail_spread: float = 0.15  # shower to shower, relative, of the tail's share
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
