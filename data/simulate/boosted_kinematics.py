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
PT_PER_MASS = 1.35  # least pT of a pair over the heavier mass
PT_MARGIN = 25.0  # GeV beyond the range: radiation moves tops across both edges
MAX_ETA = 1.4  # of the tops: 16 towers, so that the image fits into the calorimeter
REACH = 0.8  # of the three quarks around the top in eta and phi: the image ends at 0.83 at least
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


def distance(momenta: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """Distance in eta and phi of momenta (..., 4) from those of ``axis`` (..., 4)."""
    eta, phi = (
        [np.arcsinh(p[..., 2] / np.hypot(p[..., 0], p[..., 1])) for p in (momenta, axis)],
        [np.arctan2(p[..., 1], p[..., 0]) for p in (momenta, axis)],
    )
    return np.hypot(eta[0] - eta[1], (phi[0] - phi[1] + np.pi) % (2.0 * np.pi) - np.pi)


def draw_pairs(mass: np.ndarray, rng: np.random.Generator) -> TopPairs:
    """Events with the tops' masses (n, 2): pT flat, eta flat, all quarks within REACH of their top.

    pT begins at PT_PER_MASS times the heavier mass where that is above the range: tops heavier
    than that hardly ever decay within REACH. Of an attempt that fails, eta and the decay are drawn
    again, so that the spectra of mass and pT stay what they are.
    """
    n = len(mass)
    lowest = np.maximum(PT_RANGE[0] - PT_MARGIN, PT_PER_MASS * mass.max(axis=1))
    pt, phi = rng.uniform(lowest, PT_RANGE[1] + PT_MARGIN), rng.uniform(-np.pi, np.pi, n)
    w_mass, charm = np.empty(2 * n), rng.random((n, 2)) < 0.5
    momenta = np.empty((2 * n, len(DECAY), 4))
    left = np.arange(2 * n)  # tops: those of event i are 2i and 2i + 1
    while len(left):
        event, sign = left // 2, 1.0 - 2.0 * (left % 2)
        m = mass.reshape(-1)[left]
        eta = rng.uniform(-MAX_ETA, MAX_ETA, len(left))
        px, py = sign * pt[event] * np.cos(phi[event]), sign * pt[event] * np.sin(phi[event])
        pz = pt[event] * np.sinh(eta)
        top = np.stack([px, py, pz, np.sqrt(px**2 + py**2 + pz**2 + m**2)], axis=-1)
        own = w_masses(m, rng)
        w, b = two_bodies(top, m, own, np.full(len(m), B_MASS), rng)
        none = np.zeros(len(m))
        quarks = two_bodies(w, own, none, none, rng)
        far = np.max([distance(p, top) for p in (b, *quarks)], axis=0)  # (k,)
        good = far < REACH
        rows = left[good]
        w_mass[rows] = own[good]
        momenta[rows] = np.stack([top, w, b, *quarks], axis=1)[good]
        left = left[~good]
        if not len(left):  # both etas are known only now
            total = momenta[:, 0].reshape(n, 2, 4).sum(axis=1)
            x = (total[:, 3] + np.abs(total[:, 2])) / ENERGY
            left = np.flatnonzero(np.repeat(x >= MAX_X, 2))
    return TopPairs(mass, w_mass.reshape(n, 2), momenta.reshape(n, 2, len(DECAY), 4), charm)
