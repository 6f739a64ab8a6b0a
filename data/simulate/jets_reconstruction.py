"""Particle-flow-like jets of overlaid events: which jets the sample has, and their pT and mass."""

from functools import lru_cache

import awkward as ak
import numpy as np

from data.simulate.jets_events import CHARGED, ELECTRON, MUON, NEUTRAL, PHOTON, Particles
from data.simulate.packages import fastjet

RADIUS = 0.5  # of anti-kT jets: what CMS used at 8 TeV
MIN_PT = 70.0  # GeV
MAX_ETA = 1.8
MATCHING = 0.4  # farthest hard parton from its jet
SEARCH_PT = 40.0  # GeV: jets below cannot be selected
VERTEX_SIZE = 0.2  # cm along the beam in which tracks belong to a vertex


@lru_cache(maxsize=1)
def jet_definition() -> fastjet.JetDefinition:
    """Anti-kT; also keeps FastJet from printing its banner into every notebook."""
    fastjet._swig.ClusterSequence.set_fastjet_banner_stream(None)
    return fastjet.JetDefinition(fastjet.antikt_algorithm, RADIUS)


def measured_momenta(events: Particles, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Measured (pt (m,), energy / true energy (m,)) of particle flow; pt 0: not seen.

    Charged particles from their tracks (1.2 %, not below 0.3 GeV), photons 5 %/sqrt(E), neutral
    hadrons 100 %/sqrt(E).
    """
    width = np.full(len(events.pt), 0.012)
    for kind, stochastic, constant in ((PHOTON, 0.05, 0.01), (NEUTRAL, 1.0, 0.05)):
        width = np.where(
            events.kind == kind, np.hypot(stochastic / np.sqrt(events.energy), constant), width
        )
    scale = np.maximum(1.0 + width * rng.standard_normal(len(width)), 0.0)
    charged = np.isin(events.kind, (CHARGED, ELECTRON, MUON))
    lowest = np.select([charged, events.kind == PHOTON], [0.3, 0.5], 1.5)
    seen = (np.where(charged, events.pt, events.energy) * scale > lowest) & (scale > 0)
    return np.where(seen, events.pt * scale, 0.0), scale


def clustered(
    events: Particles,
    rng: np.random.Generator,
    definition: fastjet.JetDefinition,
    min_pt: float,
    own_vertex_only: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Jets of measured particles: how many an event has (n,), and px, py, pz, E (j, 4) in GeV.

    ``own_vertex_only`` leaves out charged particles of other collisions than the first one, as
    CMS's charged-hadron subtraction does.
    """
    pt, scale = measured_momenta(events, rng)
    keep = pt > 0
    n = len(events.offsets) - 1
    owner = np.repeat(np.arange(n), np.diff(events.offsets))
    if own_vertex_only:
        elsewhere = np.abs(events.vertex - events.vertex[events.offsets[:-1]][owner]) > VERTEX_SIZE
        keep &= ~(elsewhere & np.isin(events.kind, (CHARGED, ELECTRON, MUON)))
    owner = owner[keep]
    pt, eta, phi = pt[keep], events.eta[keep], events.phi[keep]
    particles = ak.unflatten(
        ak.zip(
            {
                "px": pt * np.cos(phi),
                "py": pt * np.sin(phi),
                "pz": pt * np.sinh(eta),
                "E": events.energy[keep] * scale[keep],
            }
        ),
        np.bincount(owner, minlength=n),
    )
    found = fastjet.ClusterSequence(particles, definition).inclusive_jets(min_pt=min_pt)
    momenta = [ak.to_numpy(ak.flatten(found[name])) for name in ("px", "py", "pz", "E")]
    return ak.to_numpy(ak.num(found)), np.stack(momenta, axis=-1)


def select(
    events: Particles, partons: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Rows (k,) of the dijet events that pass, and pT, mass, eta, phi (k, 4) of the first jet.

    As in the project's public analyzer: each of the two hard partons (n, 2, 2) is within MATCHING
    of another jet above MIN_PT and within MAX_ETA; the image is of the first parton's jet.
    """
    counts, momenta = clustered(events, rng, jet_definition(), SEARCH_PT, own_vertex_only=True)
    n = len(events.offsets) - 1
    px, py, pz, energy = momenta.T
    jet_pt = np.hypot(px, py)
    columns = np.stack(
        [
            jet_pt,
            np.sqrt(np.maximum(energy**2 - jet_pt**2 - pz**2, 0.0)),
            np.arcsinh(pz / jet_pt),
            np.arctan2(py, px),
        ],
        axis=1,
    )
    event = np.repeat(np.arange(n), counts)
    nearest = np.full((n, 2), -1)
    for parton in range(2):
        d_eta = columns[:, 2] - partons[event, parton, 0]
        d_phi = (columns[:, 3] - partons[event, parton, 1] + np.pi) % (2 * np.pi) - np.pi
        good = (
            (np.hypot(d_eta, d_phi) < MATCHING)
            & (jet_pt > MIN_PT)
            & (np.abs(columns[:, 2]) < MAX_ETA)
        )
        rank = np.lexsort((jet_pt, good))  # good ones last, the hardest of them at the end
        chosen = rank[good[rank]]
        nearest[event[chosen], parton] = chosen
    passed = (nearest >= 0).all(axis=1) & (nearest[:, 0] != nearest[:, 1])
    rows = np.flatnonzero(passed)
    return rows, columns[nearest[rows, 0]]
