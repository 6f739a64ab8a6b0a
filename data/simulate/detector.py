"""A fast stand-in for the CMS barrel: one electron or photon, from the vertex to the stored hits.

The chain: `tracker`, `ecal_showers`, `ecal_readout`. Everything is compiled by numba and works on
one event at a time; an event is fixed by the state of the ``numpy.random.Generator`` passed in.
"""

import math

import numba

from data.simulate.barrel import CRYSTAL_PITCH, FRONT_RADIUS, GRID
from data.simulate.ecal_readout import read_out, reduce_hits
from data.simulate.ecal_showers import render_shower
from data.simulate.tracker import track


@numba.njit(cache=True, nogil=True)
def simulate_hits(rng, charge, energy, eta, phi, z, detector, grid, noise, impacts):
    """Stored hits of one electron (``charge`` +-1) or photon (0), in GeV, into ``grid``.

    Arguments as in `track`; ``grid`` and ``noise`` (GRID, GRID) and ``impacts`` are work space;
    ``noise`` receives the electronic noise in each energy. Returns (i0, j0, history of `track`):
    the window is centred on where a straight line would arrive.
    """
    grid[:] = 0.0
    count, history = track(rng, charge, energy, eta, phi, z, detector, impacts)
    front = math.asinh(math.sinh(eta) + z / FRONT_RADIUS)
    i0 = math.floor(front / CRYSTAL_PITCH) - GRID // 2
    j0 = math.floor(phi / CRYSTAL_PITCH) - GRID // 2
    for k in range(count):
        render_shower(rng, grid, i0, j0, impacts[k], detector)
    read_out(rng, grid, noise, i0, j0, detector)
    reduce_hits(grid, i0, detector)
    return i0, j0, history
