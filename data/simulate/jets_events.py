"""Collisions behind the quark/gluon stand-in: Pythia 8 dijets, and events that are laid over them.

A collision is a table of visible particles. The underlying event and the pile-up come from pools
that are simulated once and reused, turned by a random angle and mirrored at random: multiple
parton interactions in every dijet event would cost a factor 4 in time.
"""

from typing import NamedTuple

import awkward as ak
import numpy as np

from data.simulate import sources_hash
from data.simulate.packages import pythia8mc
from data.simulate.shards import load, store
from e2e_utils import paths

ENERGY = 8000.0  # GeV
PT_HAT = (96.0, 170.0)  # GeV: gives the published mean of the jets' pT
ETA_LIMIT = 2.8  # of particles that are kept: the images end at 2.44
PARTON_ETA = 1.7  # beyond, the image of a jet would not fit into the calorimeter
POOL_BATCH = 250  # events a call of Pythia: 40 MB
POOL_EVENTS = 1000
POOL_SEED = 20190228
PHOTON, ELECTRON, CHARGED, NEUTRAL, MUON = range(5)
HADRONS = (211, 321, 2212)  # charged and long-lived

COMMON = (
    "Print:quiet = on",
    "Random:setSeed = on",
    f"Beams:eCM = {ENERGY}",
)
HARD = (
    f"PhaseSpace:pTHatMin = {PT_HAT[0]}",
    f"PhaseSpace:pTHatMax = {PT_HAT[1]}",
)
# Both outgoing partons are gluons, or both are quarks: the process is the label.
GLUONS = (*HARD, "PartonLevel:MPI = off", "HardQCD:gg2gg = on", "HardQCD:qqbar2gg = on")
QUARKS = (
    *HARD,
    "PartonLevel:MPI = off",
    "HardQCD:gg2qqbar = on",
    "HardQCD:qq2qq = on",
    "HardQCD:qqbar2qqbarNew = on",
)
# The interactions that accompany a collision as hard as ours; the two photons are taken out, and
# radiation off the incoming partons is left to the dijet event.
UNDERLYING = (
    *HARD,
    "PartonLevel:ISR = off",
    "TimeShower:QEDshowerByGamma = off",  # a photon that splits could not be taken out
    "PromptPhoton:ffbar2gammagamma = on",
    "PromptPhoton:gg2gammagamma = on",
)
PILE_UP = ("SoftQCD:nonDiffractive = on",)


class Particles(NamedTuple):
    """Visible particles of n events, flat; event i has ``offsets[i]:offsets[i + 1]``."""

    offsets: np.ndarray  # (n + 1,) int64
    pt: np.ndarray  # (m,) float64, GeV
    eta: np.ndarray  # (m,)
    phi: np.ndarray  # (m,), rad
    energy: np.ndarray  # (m,), GeV
    kind: np.ndarray  # (m,) int8: PHOTON, ELECTRON, CHARGED (hadron), NEUTRAL (hadron), MUON
    charge: np.ndarray  # (m,) int8
    vertex: np.ndarray  # (m,) float64: z of the collision in cm


class CentralPartons(pythia8mc.UserHooks):
    """Drops hard processes with a parton outside |eta| < PARTON_ETA, before anything expensive."""

    def canVetoProcessLevel(self) -> bool:
        return True

    def doVetoProcessLevel(self, process: pythia8mc.Event) -> bool:
        return any(
            process[number].status() == 23 and abs(process[number].eta()) > PARTON_ETA
            for number in range(process.size())
        )


def make_pythia(
    settings: tuple[str, ...], seed: int, central: bool = False
) -> tuple[pythia8mc.Pythia, CentralPartons | None]:
    """A generator, and its hooks, which must live as long; ``seed`` 1 to 900,000,000.

    Raises RuntimeError if Pythia refuses the settings.
    """
    pythia = pythia8mc.Pythia("", False)
    hooks = CentralPartons() if central else None
    if hooks:
        pythia.setUserHooksPtr(hooks)
    settings = (*COMMON, *settings, f"Random:seed = {seed}")
    if not (all(map(pythia.readString, settings)) and pythia.init()):
        raise RuntimeError("Pythia did not accept its settings")
    return pythia, hooks


def visible(record: ak.Array) -> Particles:
    """Visible final particles within ETA_LIMIT of ``Pythia.nextBatch``'s events; vertex 0."""
    final = record[record.status > 0]
    number = abs(final.id)
    px, py, pz = final.p.px, final.p.py, final.p.pz
    pt = np.hypot(px, py)
    eta = np.arcsinh(pz / np.maximum(pt, 1e-9))
    keep = (number != 12) & (number != 14) & (number != 16) & (abs(eta) < ETA_LIMIT)
    counts = ak.to_numpy(ak.sum(keep, axis=1))
    signed, pt, eta, phi, energy = (
        ak.to_numpy(ak.flatten(values[keep]))
        for values in (final.id, pt, eta, np.arctan2(py, px), final.p.e)
    )
    number = np.abs(signed)
    kind = np.full(len(number), NEUTRAL, np.int8)
    kind[number == 22] = PHOTON
    kind[number == 11] = ELECTRON
    kind[number == 13] = MUON
    kind[np.isin(number, HADRONS)] = CHARGED
    charge = np.where(kind == CHARGED, np.sign(signed), 0)
    charge = np.where((kind == ELECTRON) | (kind == MUON), -np.sign(signed), charge)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Particles(offsets, pt, eta, phi, energy, kind, charge.astype(np.int8), np.zeros(len(pt)))


class Dijets:
    """Endless batches of dijet events of one class."""

    def __init__(self, quark: bool, seed: np.random.SeedSequence) -> None:
        number = 1 + int(seed.generate_state(1)[0]) % 900_000_000
        self._pythia, self._hooks = make_pythia(QUARKS if quark else GLUONS, number, central=True)

    def batch(self, n_events: int) -> tuple[Particles, np.ndarray]:
        """About ``n_events`` events, and eta and phi of both hard partons (n, 2, 2).

        The partons come in the order of the process, which is not one of pT.
        """
        record = self._pythia.nextBatch(n_events).prt
        record = record[["id", "status", "p"]]  # slicing the other fields takes most of the time
        hard = record[record.status == -23].p
        momenta = np.stack([ak.to_numpy(x[:, :2]) for x in (hard.px, hard.py, hard.pz)])
        pt = np.hypot(momenta[0], momenta[1])
        directions = np.arcsinh(momenta[2] / pt), np.arctan2(momenta[1], momenta[0])
        return visible(record), np.stack(directions, axis=2)


# Pools --------------------------------------------------------------------------------------------


class Pools(NamedTuple):
    """Events to lay over others."""

    underlying: Particles
    pile_up: Particles


_pools: dict[int, Pools] = {}


def pools(n_events: int = POOL_EVENTS) -> Pools:
    """Both pools: from memory, from the cache, or simulated now (10 s) and cached."""
    if n_events not in _pools:
        _pools[n_events] = Pools(*(_pool(name, n_events) for name in ("underlying", "pile_up")))
    return _pools[n_events]


def _pool(name: str, n_events: int) -> Particles:
    path = paths.CACHE / f"pool_{name}_n{n_events}_{sources_hash('jets_events.py')}.npz"
    if path.is_file():
        return Particles(**load(path))
    pool = _simulate_pool(name, n_events)
    store(path, pool._asdict())
    return pool


def _simulate_pool(name: str, n_events: int) -> Particles:
    settings = UNDERLYING if name == "underlying" else PILE_UP
    seed = POOL_SEED + len(name)
    pythia, _ = make_pythia(settings, seed)
    parts, done = [], 0
    while done < n_events:
        record = pythia.nextBatch(min(POOL_BATCH, n_events - done)).prt[["id", "status", "p"]]
        if name == "underlying":  # the two hardest photons are the hard process
            photon = (record.status > 0) & (record.id == 22)
            pt = np.hypot(record.p.px, record.p.py)
            record = record[~(photon & (pt > PT_HAT[0] / 2))]
        parts.append(visible(record))
        done += len(parts[-1].offsets) - 1
    return join(parts)


# Tables of particles ------------------------------------------------------------------------------


def join(parts: list[Particles]) -> Particles:
    """Events one after another."""
    counts = np.concatenate([np.diff(part.offsets) for part in parts])
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return Particles(
        offsets, *(np.concatenate(columns) for columns in list(zip(*parts, strict=True))[1:])
    )


def take(events: Particles, rows: np.ndarray) -> Particles:
    """The chosen events, in this order."""
    counts = np.diff(events.offsets)[rows]
    offsets = np.concatenate([[0], np.cumsum(counts)])
    index = np.repeat(events.offsets[rows] - offsets[:-1], counts) + np.arange(offsets[-1])
    return Particles(offsets, *(column[index] for column in events[1:]))


def overlay(
    events: Particles,
    mean_pile_up: float,
    spread: float,
    rng: np.random.Generator,
    pool: Pools,
    underlying: bool = True,
) -> Particles:
    """Add an underlying event (unless not wanted) and Poisson(``mean_pile_up``) others to each.

    Vertices get a normal spread of ``spread`` cm along the beam; each overlaid event is turned
    about the beam and mirrored at random.
    """
    n = len(events.offsets) - 1
    own_vertex = spread * rng.standard_normal(n)
    counts = rng.poisson(mean_pile_up, n)
    accompanied = n if underlying else 0
    others = (
        (
            take(pool.underlying, rng.integers(len(pool.underlying.offsets) - 1, size=accompanied)),
            np.arange(accompanied),
        ),
        (
            take(pool.pile_up, rng.integers(len(pool.pile_up.offsets) - 1, size=counts.sum())),
            np.repeat(np.arange(n), counts),
        ),
    )
    vertices = (own_vertex[:accompanied], spread * rng.standard_normal(counts.sum()))
    columns, owner = [events[1:]], [np.repeat(np.arange(n), np.diff(events.offsets))]
    shift = own_vertex[owner[0]]
    columns[0] = (*columns[0][:-1], shift)
    for (extra, event_of), vertex in zip(others, vertices, strict=True):
        sizes = np.diff(extra.offsets)
        turn = np.repeat(rng.uniform(-np.pi, np.pi, len(sizes)), sizes)
        mirror = np.repeat(rng.choice((-1.0, 1.0), len(sizes)), sizes)
        columns.append(
            (
                extra.pt,
                extra.eta * mirror,
                (extra.phi + turn + np.pi) % (2 * np.pi) - np.pi,
                extra.energy,
                extra.kind,
                extra.charge,
                np.repeat(vertex, sizes),
            )
        )
        owner.append(np.repeat(event_of, sizes))
    owner = np.concatenate(owner)
    order = np.argsort(owner, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=n))])
    return Particles(
        offsets, *(np.concatenate(parts)[order] for parts in zip(*columns, strict=True))
    )
