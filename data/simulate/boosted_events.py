"""Collisions with boosted tops, or with hard quarks and gluons, and where their tracks begin.

Particles are tables as in `jets_events`; beside them stands a table of displacements, since tracks
from decays of B hadrons and strange ones are what the impact parameters show.
"""

from typing import NamedTuple

import awkward as ak
import numpy as np

from data.simulate.boosted_kinematics import (
    B_MASS,
    ENERGY,
    FLAVOURS,
    MASS_RANGE,
    PT_RANGE,
    TopPairs,
    draw_pairs,
)
from data.simulate.jets_events import (
    CHARGED,
    ELECTRON,
    ETA_LIMIT,
    HADRONS,
    MUON,
    NEUTRAL,
    PHOTON,
    Particles,
    Pools,
    make_pythia,
    overlay,
)
from data.simulate.packages import pythia8mc

NO_MPI = "PartonLevel:MPI = off"  # the underlying event comes from a pool, see jets_events
HADRONIC = ("24:onMode = off", "24:onIfAny = 1 2 3 4 5")
PT_HAT = 380.0  # GeV: jets of 400 GeV from partons below are rare
TOPS = (NO_MPI, *HADRONIC, "Top:gg2ttbar = on", "Top:qqbar2ttbar = on")
QCD = (NO_MPI, "HardQCD:all = on")
GUN = (
    NO_MPI,
    "PartonLevel:ISR = off",
    "Beams:frameType = 5",
    "LesHouches:setQuarkMass = 0",
    "LesHouches:matchInOut = off",
    "Check:epTolErr = 1e-2",
)


class Displacements(NamedTuple):
    """Where particles begin, relative to their collision; flat, as long as the Particles."""

    d0: np.ndarray  # (m,) float64: transverse impact parameter in cm, signed
    dz: np.ndarray  # (m,): longitudinal one
    radius: np.ndarray  # (m,): distance of the first point from the beam in cm


class Hard(NamedTuple):
    """What an event is about: two tops, or the two hard partons, of n events."""

    momenta: np.ndarray  # (n, 2, 4): px, py, pz, E in GeV
    mass: np.ndarray  # (n, 2), GeV
    products: np.ndarray  # (n, 2, 2, 4): W and b of each top; of partons twice themselves


class TopGun(pythia8mc.LHAup):
    """Hands events to Pythia: g g -> t tbar with masses and decays that are given."""

    def __init__(self) -> None:
        super().__init__()
        self._pairs: TopPairs | None = None
        self._next = 0

    def load(self, pairs: TopPairs) -> None:
        """The events to hand over, in this order; after the last one they begin again."""
        self._pairs, self._next = pairs, 0

    def setInit(self) -> bool:
        self.setBeamA(2212, ENERGY / 2)
        self.setBeamB(2212, ENERGY / 2)
        self.setStrategy(3)  # every event counts once
        self.addProcess(9999, 1.0, 0.0, 1.0)
        return True

    def setEvent(self, process: int = 0) -> bool:
        pairs = self._pairs
        if pairs is None:
            return False
        row = self._next % len(pairs.mass)
        self._next += 1
        momenta = pairs.momenta[row].tolist()  # Python floats: Pythia takes no others quickly
        energy = momenta[0][0][3] + momenta[1][0][3]
        along = momenta[0][0][2] + momenta[1][0][2]
        ahead, back = (energy + along) / 2, (energy - along) / 2
        scale = float(np.hypot(*momenta[0][0][:2]))
        self.setProcess(9999, 1.0, scale)
        add = self.addParticle
        add(21, -1, 0, 0, 101, 102, 0.0, 0.0, ahead, ahead, 0.0)
        add(21, -1, 0, 0, 103, 101, 0.0, 0.0, -back, back, 0.0)
        for top in range(2):
            # Colour flows 103 to the top and 102 to the antitop.
            sign, colours = (1, (103, 0)) if top == 0 else (-1, (0, 102))
            first = 3 + 5 * top  # line of this top, counted from 1
            new = 104 + top
            up, down = FLAVOURS[int(pairs.charm[row, top])]
            t, w, b, quark, antiquark = momenta[top]
            add(6 * sign, 2, 1, 2, *colours, *t, float(pairs.mass[row, top]))
            add(24 * sign, 2, first, first, 0, 0, *w, float(pairs.w_mass[row, top]))
            add(5 * sign, 1, first, first, *colours, *b, B_MASS)
            if sign < 0:
                up, down = -down, -up
            add(up, 1, first + 1, first + 1, new, 0, *quark, 0.0)
            add(down, 1, first + 1, first + 1, 0, new, *antiquark, 0.0)
        return True


class Record(NamedTuple):
    """Pythia's record of n events as flat columns; event i has ``offsets[i]:offsets[i + 1]``.

    Awkward arrays copy every column at every selection; these are views of what they hold.
    """

    offsets: np.ndarray  # (n + 1,) int64
    id: np.ndarray  # (m,) int32
    status: np.ndarray  # (m,) int32
    daughters: tuple[np.ndarray, np.ndarray]  # (m,) int32: lines of the event, the first one is 0
    momentum: tuple[np.ndarray, ...]  # px, py, pz, E (m,) in GeV
    mass: np.ndarray  # (m,), GeV
    vertex_row: np.ndarray  # (m,) int32: row of ``vertex``, -1: the collision itself
    vertex: tuple[np.ndarray, ...]  # x, y, z (v,) in mm


def columns_of(record: ak.Array) -> Record:
    """What `Pythia.nextBatch` gives, of all its events."""
    events = record.layout.to_ListOffsetArray64(True)
    entries = events.content

    def momenta(content: ak.contents.RecordArray, *names: str) -> tuple[np.ndarray, ...]:
        return tuple(content[name].data for name in names)

    return Record(
        np.asarray(events.offsets.data),
        entries["id"].data,
        entries["status"].data,
        momenta(entries, "daughter1", "daughter2"),
        momenta(entries["p"], "px", "py", "pz", "e"),
        entries["m"].data,
        np.asarray(entries["vProd"].index.data),
        momenta(entries["vProd"].content, "px", "py", "pz"),
    )


def seen(record: Record) -> tuple[Particles, Displacements]:
    """Visible final particles within ETA_LIMIT, as `jets_events.visible`; vertex 0.

    Their displacements are those of straight lines.
    """
    number = np.abs(record.id)
    hidden = (number == 12) | (number == 14) | (number == 16)
    entry = np.flatnonzero((record.status > 0) & ~hidden)
    px, py, pz = (column[entry] for column in record.momentum[:3])
    pt = np.hypot(px, py)
    eta = np.arcsinh(pz / np.maximum(pt, 1e-9))
    central = np.abs(eta) < ETA_LIMIT
    entry, px, py, pz, pt, eta = (x[central] for x in (entry, px, py, pz, pt, eta))
    signed, number = record.id[entry], number[entry]
    kind = np.full(len(entry), NEUTRAL, np.int8)
    for code, numbers in ((PHOTON, (22,)), (ELECTRON, (11,)), (MUON, (13,)), (CHARGED, HADRONS)):
        for one in numbers:
            kind[number == one] = code
    charge = np.where(kind == CHARGED, np.sign(signed), 0)
    charge = np.where((kind == ELECTRON) | (kind == MUON), -np.sign(signed), charge)
    offsets = np.searchsorted(entry, record.offsets).astype(np.int64)
    particles = Particles(
        offsets,
        pt,
        eta,
        np.arctan2(py, px),
        record.momentum[3][entry],
        kind,
        charge.astype(np.int8),
        np.zeros(len(entry)),
    )
    row = record.vertex_row[entry]
    moved = np.flatnonzero(row >= 0)
    d0, dz, radius = np.zeros((3, len(entry)))
    x, y, z = (0.1 * column[row[moved]] for column in record.vertex)  # mm to cm
    px, py, pz, pt = px[moved], py[moved], pz[moved], np.maximum(pt[moved], 1e-9)
    d0[moved] = (x * py - y * px) / pt
    dz[moved] = z - (x * px + y * py) / pt * pz / pt
    radius[moved] = np.hypot(x, y)
    return particles, Displacements(d0, dz, radius)


def laid_over(
    events: Particles,
    origin: Displacements,
    mean_pile_up: float,
    spread: float,
    rng: np.random.Generator,
    pool: Pools,
    underlying: bool = True,
) -> tuple[Particles, Displacements, np.ndarray]:
    """`jets_events.overlay` with displacements; those of the others are 0. Also the vertices (n,).

    The vertex of an event is z of its own collision in cm.
    """
    together = overlay(events, mean_pile_up, spread, rng, pool, underlying)
    counts = np.diff(events.offsets)
    # An event's own particles come first.
    own = np.repeat(together.offsets[:-1] - events.offsets[:-1], counts) + np.arange(
        events.offsets[-1]
    )
    columns = []
    for values in origin:
        column = np.zeros(len(together.pt))
        column[own] = values
        columns.append(column)
    return together, Displacements(*columns), together.vertex[together.offsets[:-1]]


class GunEvents:
    """Events of two tops with given masses."""

    def __init__(self, seed: np.random.SeedSequence) -> None:
        number = 1 + int(seed.generate_state(1)[0]) % 900_000_000
        self._gun = TopGun()
        self._pythia = pythia8mc.Pythia("", False)
        self._pythia.setLHAupPtr(self._gun)
        settings = ("Print:quiet = on", "Random:setSeed = on", f"Random:seed = {number}", *GUN)
        if not (all(map(self._pythia.readString, settings)) and self._pythia.init()):
            raise RuntimeError("Pythia did not accept its settings")

    def batch(
        self, mass: np.ndarray, rng: np.random.Generator
    ) -> tuple[Particles, Displacements, Hard]:
        """About n events whose tops have the masses (n, 2); ``Hard.mass`` tells which they are."""
        self._gun.load(draw_pairs(mass, rng))
        record = columns_of(self._pythia.nextBatch(len(mass)).prt)
        return *seen(record), decayed_tops(record)


class PairEvents:
    """Endless batches of events with two tops of the usual mass, or of dijets."""

    def __init__(self, top: bool, seed: np.random.SeedSequence, pt_hat: float = PT_HAT) -> None:
        number = 1 + int(seed.generate_state(1)[0]) % 900_000_000
        settings = (*(TOPS if top else QCD), f"PhaseSpace:pTHatMin = {pt_hat}")
        self._pythia, self._hooks = make_pythia(settings, number, central=True)
        self._find = decayed_tops if top else hard_partons

    def batch(self, n_events: int) -> tuple[Particles, Displacements, Hard]:
        record = columns_of(self._pythia.nextBatch(n_events).prt)
        return *seen(record), self._find(record)


def _two_an_event(record: Record, chosen: np.ndarray) -> np.ndarray:
    """The entries (n, 2) of a mask (m,) that holds for two entries of each of n events."""
    entries = np.flatnonzero(chosen)
    n = len(record.offsets) - 1
    if (
        len(entries) != 2 * n
        or (
            np.searchsorted(record.offsets, entries, "right") - 1 != np.repeat(np.arange(n), 2)
        ).any()
    ):
        raise RuntimeError("expected two tops or partons an event; Pythia's record has changed")
    return entries.reshape(n, 2)


def _momenta(record: Record, entries: np.ndarray) -> np.ndarray:
    """px, py, pz, E (..., 4) of entries (...)."""
    return np.stack([column[entries] for column in record.momentum], axis=-1)


def decayed_tops(record: Record) -> Hard:
    """Both tops where they decay, after all radiation, with their W and b."""
    tops = _two_an_event(record, (np.abs(record.id) == 6) & (record.status == -62))
    first, second = (record.offsets[:-1, None] + column[tops] for column in record.daughters)
    w_first = np.abs(record.id[first]) == 24
    products = np.stack([np.where(w_first, first, second), np.where(w_first, second, first)], 2)
    return Hard(_momenta(record, tops), record.mass[tops], _momenta(record, products))


def hard_partons(record: Record) -> Hard:
    """Both partons of the hard process."""
    momenta = _momenta(record, _two_an_event(record, record.status == -23))
    square = momenta[..., 3] ** 2 - (momenta[..., :3] ** 2).sum(-1)
    products = np.repeat(momenta[:, :, None], 2, axis=2)
    return Hard(momenta, np.sqrt(np.maximum(square, 0.0)), products)


def flat_masses(n: int, rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(*MASS_RANGE, n)


def directions(momenta: np.ndarray) -> np.ndarray:
    """Eta and phi (..., 2) of momenta (..., 4)."""
    px, py, pz = (momenta[..., k] for k in range(3))
    return np.stack([np.arcsinh(pz / np.hypot(px, py)), np.arctan2(py, px)], axis=-1)


def in_range(hard: Hard) -> np.ndarray:
    """Tops (n, 2) whose transverse momentum is within PT_RANGE."""
    pt = np.hypot(hard.momenta[..., 0], hard.momenta[..., 1])
    return (pt >= PT_RANGE[0]) & (pt <= PT_RANGE[1])
