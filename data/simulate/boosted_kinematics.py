"""Two top quarks of any mass and their hadronic decay, as four-momenta; NumPy only.

Masses, angles and transverse momenta are drawn here, not by Pythia: Pythia's own tops cannot be
lighter than a W and a b quark on their mass shells allow, and re-initialising it for every mass
would cost more than the events.
"""

from typing import NamedTuple

import numpy as np

ENERGY = 8000.0  # GeV, of the collision
MASS_RANGE = (85.3, 500.0)  # GeV, of the tops: the range of the official files
PT_RANGE = (400.0, 1000.0)  # GeV, of the tops where they decay: the range of the official files
PT_MARGIN = (60.0, 150.0)  # GeV beyond the range: radiation moves tops across both edges
MAX_ETA = 1.4  # of the tops: 16 towers, so that the image fits into the calorimeter
W_MASS, W_WIDTH, W_LIGHTEST, W_HEAVIEST = 80.4, 2.1, 50.0, 110.0  # GeV
B_MASS = 4.8  # GeV
MAX_X = 0.9  # of the protons' momentum that a gluon may carry
FLAVOURS = ((2, -1), (4, -3))  # decays of a W+; light quarks count as massless
DECAY = ("top", "w", "b", "quark", "antiquark")


class TopPairs(NamedTuple):
    """n events of two tops; the second one is the antitop."""

    mass: np.ndarray  # (n, 2), GeV
    w_mass: np.ndarray  # (n, 2), GeV
    momenta: np.ndarray  # (n, 2, 5, 4): px, py, pz, E in GeV of DECAY
    charm: np.ndarray  # (n, 2) bool: the W decays to c and s, else to u and d


def in_frame_of(inner: np.ndarray, parent: np.ndarray) -> np.ndarray:
    """Momenta (..., 4) given in the rest frame of ``parent`` (..., 4), seen from where that moves.

    Both are px, py, pz, E.
    """
    mass = np.sqrt(parent[..., 3] ** 2 - (parent[..., :3] ** 2).sum(-1))
    along = (inner[..., :3] * parent[..., :3]).sum(-1)
    energy = (inner[..., 3] * parent[..., 3] + along) / mass
    factor = (inner[..., 3] + energy) / (mass + parent[..., 3])
    return np.concatenate(
        [inner[..., :3] + factor[..., None] * parent[..., :3], energy[..., None]], axis=-1
    )


def two_bodies(
    parent: np.ndarray,
    mass: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Isotropic decay of ``parent`` (..., 4) of ``mass`` (...) to two particles of given masses."""
    below = (mass**2 - (first + second) ** 2) * (mass**2 - (first - second) ** 2)
    size = np.sqrt(np.maximum(below, 0.0)) / (2.0 * mass)
    cosine = rng.uniform(-1.0, 1.0, mass.shape)
    sine, angle = np.sqrt(1.0 - cosine**2), rng.uniform(-np.pi, np.pi, mass.shape)
    axis = np.stack([sine * np.cos(angle), sine * np.sin(angle), cosine], axis=-1)
    half = size[..., None] * axis
    momenta = [
        np.concatenate([sign * half, np.sqrt(size**2 + own**2)[..., None]], axis=-1)
        for sign, own in ((1.0, first), (-1.0, second))
    ]
    return in_frame_of(momenta[0], parent), in_frame_of(momenta[1], parent)


def w_masses(mass: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A W mass for each top ``mass``: Breit-Wigner, cut where the b quark leaves no more."""
    highest = np.minimum(W_HEAVIEST, mass - B_MASS - 0.02)
    low = np.arctan(2.0 * (W_LIGHTEST - W_MASS) / W_WIDTH)
    high = np.arctan(2.0 * (highest - W_MASS) / W_WIDTH)
    return W_MASS + 0.5 * W_WIDTH * np.tan(rng.uniform(low, high))


def draw_pairs(mass: np.ndarray, rng: np.random.Generator) -> TopPairs:
    """Events with the tops' masses (n, 2): pT flat whatever the mass, polar angle flat.

    A flat polar angle gives the published spread of ieta. Heavy tops of low pT need not merge into
    one jet, as in the official files.
    """
    n = len(mass)
    pt = rng.uniform(PT_RANGE[0] - PT_MARGIN[0], PT_RANGE[1] + PT_MARGIN[1], n)
    phi = rng.uniform(-np.pi, np.pi, n)
    latitude = np.arctan(np.sinh(MAX_ETA))
    tops, todo = np.empty((n, 2, 4)), np.arange(n)
    while len(todo):
        eta = np.arcsinh(np.tan(rng.uniform(-latitude, latitude, (len(todo), 2))))
        away = np.array([1.0, -1.0]) * pt[todo, None]  # of the second one: the other direction
        px, py = away * np.cos(phi[todo, None]), away * np.sin(phi[todo, None])
        pz = np.abs(away) * np.sinh(eta)
        energy = np.sqrt(px**2 + py**2 + pz**2 + mass[todo] ** 2)
        tops[todo] = np.stack([px, py, pz, energy], axis=-1)
        total = tops[todo].sum(axis=1)
        todo = todo[(total[:, 3] + np.abs(total[:, 2])) / ENERGY >= MAX_X]
    w_mass = w_masses(mass, rng)
    w, b = two_bodies(tops, mass, w_mass, np.full((n, 2), B_MASS), rng)
    none = np.zeros((n, 2))
    quarks = two_bodies(w, w_mass, none, none, rng)
    momenta = np.stack([tops, w, b, *quarks], axis=2)  # (n, 2, 5, 4)
    return TopPairs(mass, w_mass, momenta, rng.random((n, 2)) < 0.5)
