"""Fat jets of overlaid events: which jets the sample has, and their pT and mass."""

from functools import lru_cache

import numpy as np

from data.simulate.boosted_events import Hard, directions
from data.simulate.jets_events import Particles
from data.simulate.jets_reconstruction import clustered
from data.simulate.jets_reconstruction import jet_definition as silent_definition
from data.simulate.packages import fastjet

RADIUS = 0.8  # of anti-kT jets: what CMS uses for boosted tops
MIN_PT = 400.0  # GeV: the least of the official files
MAX_ETA = 1.4  # so that the image fits into the calorimeter
MATCHING = 0.8  # farthest top, W and b from their jet, as in the project's public analyzer


@lru_cache(maxsize=1)
def jet_definition() -> fastjet.JetDefinition:
    silent_definition()  # keeps FastJet from printing its banner
    return fastjet.JetDefinition(fastjet.antikt_algorithm, RADIUS)


def fat_jets(
    events: Particles, hard: Hard, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Jets of n events: their event's row (k,), and pT, mass, eta, phi (k, 4).

    Of each top, or hard parton, the hardest jet above MIN_PT that has it, its W and its b within
    MATCHING; at most two an event. pT and mass in GeV, without charged particles of other
    collisions.
    """
    counts, momenta = clustered(events, rng, jet_definition(), MIN_PT, own_vertex_only=True)
    n = len(events.offsets) - 1
    jet_pt = np.hypot(momenta[:, 0], momenta[:, 1])
    axes = directions(momenta)  # (j, 2)
    mass = np.sqrt(np.maximum(momenta[:, 3] ** 2 - (momenta[:, :3] ** 2).sum(-1), 0.0))
    event = np.repeat(np.arange(n), counts)
    parts = np.concatenate([hard.momenta[:, :, None], hard.products], axis=2)  # (n, 2, 3, 4)
    away = directions(parts)[event] - axes[:, None, None]  # (j, 2, 3, 2)
    away[..., 1] = (away[..., 1] + np.pi) % (2.0 * np.pi) - np.pi
    near = (np.hypot(away[..., 0], away[..., 1]) < MATCHING).all(axis=2)  # (j, 2)
    near &= (np.abs(axes[:, 0]) < MAX_ETA)[:, None]
    chosen = set()
    for number in range(2):
        candidates = np.flatnonzero(near[:, number])
        order = candidates[np.lexsort((-jet_pt[candidates], event[candidates]))]
        first = np.unique(event[order], return_index=True)[1]
        chosen |= set(order[first].tolist())
    jets = np.array(sorted(chosen), np.int64)
    return event[jets], np.column_stack([jet_pt, mass, axes])[jets]
