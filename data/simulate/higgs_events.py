"""Collisions behind the HIGGS stand-in: Pythia 8 events, their jets, lepton and missing momentum.

Signal: g g -> H0 -> W H+-, H+- -> W h, h -> b b; background: t t. In both, one W decays to an
electron or a muon and the other to quarks (P. Baldi et al., arXiv:1402.4735). Everything here is
what a perfect detector would see; ``higgs_detector`` measures it.
"""

from functools import lru_cache
from typing import NamedTuple

import awkward as ak
import numpy as np

from data.simulate.packages import fastjet, pythia8mc

ENERGY = 8000.0  # GeV
H0_MASS, CHARGED_MASS, H_MASS, A0_MASS = 425.0, 325.0, 125.0, 900.0  # GeV; A0: out of reach
JET_RADIUS = 0.6
JET_MIN_PT = 8.0  # GeV, before the detector: well below what is selected after it
MAX_JETS = 10
ETA_LIMIT = 4.9  # of the calorimeter
DRESSING = 0.1  # photons closer than this belong to the lepton
BATCH = 250  # events a call of Pythia: 30 MB

COMMON = (
    "Print:quiet = on",
    "Random:setSeed = on",
    f"Beams:eCM = {ENERGY}",
    "PDF:pSet = 8",  # CTEQ6L1
    "PartonLevel:MPI = off",  # would cost a factor 3; the rows agree without
    "SpaceShower:pTmaxMatch = 1",  # no radiation harder than the process: as from MadGraph
)
SIGNAL = (
    "HiggsBSM:gg2H2 = on",
    "Higgs:useBSM = on",
    f"25:m0 = {H_MASS}",
    f"35:m0 = {H0_MASS}",
    f"36:m0 = {A0_MASS}",
    f"37:m0 = {CHARGED_MASS}",
    "35:mWidth = 1.0",
    "37:mWidth = 1.0",
    "35:doForceWidth = on",
    "37:doForceWidth = on",
    "HiggsH2:coup2HchgW = 1.0",
    "HiggsHchg:coup2H1W = 1.0",
    "25:onMode = off",
    "25:onIfMatch = 5 -5",
    "35:onMode = off",
    "35:onIfMatch = 24 -37",
    "37:onMode = off",
    "37:onIfMatch = 24 25",
)
BACKGROUND = (
    "Top:gg2ttbar = on",
    "Top:qqbar2ttbar = on",
    "SpaceShower:alphaSvalue = 0.127",  # calibrated: transverse momentum of the whole row
)
LEPTONIC, HADRONIC = "11 13", "1 2 3 4 5"


class Truth(NamedTuple):
    """Events before the detector; momenta in GeV, jets by falling pT and padded with zeros."""

    lepton: np.ndarray  # (n, 3) float64: pT, eta, phi
    missing: np.ndarray  # (n, 2): x, y
    sum_et: np.ndarray  # (n,): of all visible particles
    jets: np.ndarray  # (n, MAX_JETS, 3): pT, eta, phi
    flavour: np.ndarray  # (n, MAX_JETS) int8: 5, 4, or 0 for light quarks and gluons


@lru_cache(maxsize=1)
def jet_definition() -> fastjet.JetDefinition:
    """Anti-kT; also keeps FastJet from printing its banner into every notebook."""
    fastjet._swig.ClusterSequence.set_fastjet_banner_stream(None)
    return fastjet.JetDefinition(fastjet.antikt_algorithm, JET_RADIUS)


class LongitudinalW(pythia8mc.UserHooks):
    """Keeps signal events so that both W have the polarisation of a scalar's decay to W and scalar.

    Pythia decays them evenly. The W of such a decay is longitudinal: its fermions follow
    sin^2(theta), theta being their angle to the mother's momentum in the rest frame of the W.
    Works on the hard process, before anything expensive.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._rng = np.random.default_rng(seed)

    def canVetoProcessLevel(self) -> bool:
        return True

    def doVetoProcessLevel(self, process: pythia8mc.Event) -> bool:
        chance = 1.0
        for number in range(process.size()):
            boson = process[number]
            if boson.idAbs() != 24:
                continue
            mother, fermion = process[boson.mother1()].p(), process[boson.daughter1()].p()
            mother.bstback(boson.p())
            fermion.bstback(boson.p())
            chance *= 1.0 - pythia8mc.costheta(mother, fermion) ** 2
        return self._rng.random() > chance


def make_pythia(
    signal: bool, positive: bool, seed: int
) -> tuple[pythia8mc.Pythia, LongitudinalW | None]:
    """A generator whose leptons have the charge of ``positive``; ``seed`` 1 to 900,000,000.

    Which W decays to the lepton is fixed for a generator, because Pythia knows decay modes of W+
    and of W- only apart; with both the same, ``init`` fails. The hooks must live as long as the
    generator. Raises RuntimeError if Pythia refuses.
    """
    pythia = pythia8mc.Pythia("", False)
    hooks = LongitudinalW(seed) if signal else None
    if hooks:
        pythia.setUserHooksPtr(hooks)
    plus, minus = (LEPTONIC, HADRONIC) if positive else (HADRONIC, LEPTONIC)
    settings = (
        *COMMON,
        *(SIGNAL if signal else BACKGROUND),
        f"Random:seed = {seed}",
        "24:onMode = off",
        f"24:onPosIfAny = {plus}",
        f"24:onNegIfAny = {minus}",
    )
    if not (all(map(pythia.readString, settings)) and pythia.init()):
        raise RuntimeError("Pythia did not accept its settings")
    return pythia, hooks


def _delta_r(first: ak.Array, second: ak.Array) -> ak.Array:
    return np.hypot(first.eta - second.eta, _wrapped(first.phi - second.phi))


def _wrapped(phi: ak.Array) -> ak.Array:
    return (phi + np.pi) % (2 * np.pi) - np.pi


def _kinematics(particles: ak.Array) -> ak.Array:
    """pdg number, status, px, py, pz, energy, pT, eta and phi of Pythia's particles."""
    px, py, pz = particles.p.px, particles.p.py, particles.p.pz
    pt = np.hypot(px, py)
    return ak.zip(
        {
            "id": abs(particles.id),
            "px": px,
            "py": py,
            "pz": pz,
            "E": particles.p.e,
            "pt": pt,
            "eta": np.arcsinh(pz / np.maximum(pt, 1e-9)),
            "phi": np.arctan2(py, px),
        }
    )


def _heavy_flavours(particles: ak.Array) -> tuple[ak.Array, ak.Array]:
    """Hadrons with a b quark, and those with a c quark; of every generation of the decay chain."""
    number = abs(particles.id)
    meson, baryon = (number // 100) % 10, (number // 1000) % 10
    hadron = (number > 100) & (number < 10000)
    leading = np.where(baryon > 0, baryon, meson)
    return particles[hadron & (leading == 5)], particles[hadron & (leading == 4)]


def _near(jets: ak.Array, hadrons: ak.Array) -> ak.Array:
    """Which jets have a hadron of more than 5 GeV within their radius."""
    hadrons = _kinematics(hadrons)
    hadrons = hadrons[hadrons.pt > 5.0]
    one, two = ak.unzip(ak.cartesian([jets, hadrons], nested=True))
    return ak.any(_delta_r(one, two) < JET_RADIUS, axis=-1)


def _padded(values: ak.Array) -> np.ndarray:
    """(n, MAX_JETS) with zeros where an event has fewer jets."""
    return _plain(ak.fill_none(ak.pad_none(values, MAX_JETS, clip=True), 0))


def _plain(values: ak.Array) -> np.ndarray:
    """Without the mask of arrays that could, but do not, lack values."""
    return ak.to_numpy(values, allow_missing=False)


def reduce_batch(record: ak.Array) -> Truth:
    """Jets, lepton and missing momentum of the events of one ``Pythia.nextBatch``."""
    record = record[["id", "status", "p"]]  # slicing the other fields takes most of the time
    status, number = record.status, abs(record.id)
    is_lepton = (number == 11) | (number == 13)
    hard = ak.firsts(_kinematics(record[is_lepton & (abs(status) == 23)]))
    final = _kinematics(record[status > 0])

    candidates = final[final.id == hard.id]
    nearest = ak.argmin(_delta_r(candidates, hard), axis=1, keepdims=True)
    lepton = ak.firsts(candidates[nearest])
    distance = _delta_r(final, lepton)
    photons = (final.id == 22) & (distance < DRESSING)
    used = photons | ((final.id == lepton.id) & (distance == 0.0))
    px, py, pz = (ak.sum(final[used][name], axis=1) for name in ("px", "py", "pz"))
    pt = np.hypot(px, py)

    neutrino = (final.id == 12) | (final.id == 14) | (final.id == 16)
    visible = ~neutrino & (abs(final.eta) < ETA_LIMIT)
    seen = final[visible]
    deposits = final[visible & ~used & (final.id != 13)]
    jets = fastjet.ClusterSequence(
        ak.zip({name: deposits[name] for name in ("px", "py", "pz", "E")}), jet_definition()
    ).inclusive_jets(min_pt=JET_MIN_PT)
    jet_pt = np.hypot(jets.px, jets.py)
    jets = ak.zip(
        {
            "pt": jet_pt,
            "eta": np.arcsinh(jets.pz / jet_pt),
            "phi": np.arctan2(jets.py, jets.px),
        }
    )
    jets = jets[ak.argsort(jets.pt, axis=1, ascending=False)][:, :MAX_JETS]
    b_hadrons, c_hadrons = _heavy_flavours(record)
    flavour = ak.where(_near(jets, b_hadrons), 5, ak.where(_near(jets, c_hadrons), 4, 0))
    return Truth(
        lepton=np.stack([_plain(x) for x in (pt, np.arcsinh(pz / pt), np.arctan2(py, px))], axis=1),
        missing=np.stack([-_plain(ak.sum(seen[name], axis=1)) for name in ("px", "py")], 1),
        sum_et=_plain(ak.sum(seen.pt, axis=1)),
        jets=np.stack([_padded(jets[name]) for name in ("pt", "eta", "phi")], axis=2),
        flavour=_padded(flavour).astype(np.int8),
    )


class Collisions:
    """Endless batches of one class; the two charges of the lepton take turns."""

    def __init__(self, signal: bool, seed: np.random.SeedSequence) -> None:
        first, second = (1 + int(word) % 900_000_000 for word in seed.generate_state(2))
        self._generators = [
            make_pythia(signal, True, first),
            make_pythia(signal, False, second),
        ]

    def batch(self, n_events: int = BATCH) -> Truth:
        """About ``n_events`` events (Pythia drops the few that it cannot finish)."""
        parts = [
            reduce_batch(pythia.nextBatch(n).prt)
            for (pythia, _), n in zip(
                self._generators, (n_events - n_events // 2, n_events // 2), strict=True
            )
            if n
        ]
        return Truth(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
