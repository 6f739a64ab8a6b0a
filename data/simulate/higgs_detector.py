"""What a detector like that of the HIGGS rows measures of the collisions, and what it selects.

Every number of ``Detector`` and ``SCALES`` was derived from 7,500 real rows: data/README.md.
"""

from dataclasses import dataclass

import numpy as np

from data.simulate.higgs_events import Truth

W_MASS, TOP_MASS = 80.4, 175.0  # GeV
LISTED = 4  # jets of a row

FEATURE_NAMES = (
    "lepton_pt",
    "lepton_eta",
    "lepton_phi",
    "missing_energy_magnitude",
    "missing_energy_phi",
    *(f"jet{jet}_{name}" for jet in range(1, 5) for name in ("pt", "eta", "phi", "btag")),
    "m_jj",
    "m_jjj",
    "m_lv",
    "m_jlv",
    "m_bb",
    "m_wbb",
    "m_wwbb",
)
# What one unit of a column stands for: GeV (momenta, masses), radian, 1 (pseudorapidity, b-tags).
# Found from the real rows, in which m_bb is the mass of the two tagged jets to 0.1 %, m_lv is the
# transverse mass wherever that exceeds 80.4 GeV (the absolute scale), and m_jlv follows from both.
JET_PT_SCALE = (109.2, 79.46, 56.97, 41.10)
JET_ETA_SCALE = (1.0098, 1.0294, 1.0985, 1.2008)
TAG_SCALE = (1 / 1.0865, 1 / 1.1074, 1 / 1.2741, 1 / 1.551)
PHI_SCALE = 1.8028
MASS_SCALE = (87.71, 179.72, 81.42, 195.24, 126.6, 336.3, 511.5)
SCALES = np.array(
    [54.63, 1.0271, PHI_SCALE, 58.22, PHI_SCALE]
    + [
        scale
        for pt, eta, tag in zip(JET_PT_SCALE, JET_ETA_SCALE, TAG_SCALE, strict=True)
        for scale in (pt, eta, PHI_SCALE, tag)
    ]
    + list(MASS_SCALE)
)


@dataclass(frozen=True)
class Detector:
    """Resolution, efficiency and selection; energies in GeV."""

    lepton_min_pt: float = 15.0
    lepton_max_eta: float = 2.5
    lepton_resolution: float = 0.02
    isolation: float = 0.4  # smallest distance of a selected jet from the lepton
    jet_min_pt: float = 15.0
    jet_max_eta: float = 3.0
    jet_scale: float = 0.94
    b_scale: float = 1.04  # on top of jet_scale
    jet_noise: float = 3.0
    jet_stochastic: float = 0.9  # sqrt(GeV)
    jet_constant: float = 0.07
    jet_angle: float = 0.03  # rapidity and radian
    order_noise: float = 0.315  # the rows' jets are only roughly ordered by pT: in log(pT)
    b_order: float = 0.94  # b jets come later in this order
    missing_noise: float = 3.7
    missing_stochastic: float = 0.41  # sqrt(GeV), of the sum of transverse energies
    tag_eta: tuple[float, ...] = (0.5, 1.3, 1.45, 1.6, 1.75)  # reach of the tracker...
    tag_eta_share: tuple[float, ...] = (1.0, 0.85, 0.6, 0.45, 0.0)  # ...and its efficiency
    b_efficiency: float = 0.6
    c_efficiency: float = 0.12
    tag_turn_on: float = 22.0  # pT of half the b and c efficiency
    mistag: float = 0.01
    tight: float = 0.81  # share of the tagged jets with the higher of the two levels
    smaller_pz: float = 0.60  # chance that the neutrino gets the smaller solution
    w_mass_spread: float = 0.80  # of m_lv where the transverse mass is small


def four_momenta(pt: np.ndarray, eta: np.ndarray, phi: np.ndarray) -> np.ndarray:
    """(..., 4): energy, px, py, pz of massless particles."""
    parts = [pt * np.cosh(eta), pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)]
    return np.stack(parts, axis=-1)


def invariant_mass(momenta: np.ndarray) -> np.ndarray:
    """Mass of four-momenta (..., 4)."""
    square = momenta[..., 0] ** 2 - (momenta[..., 1:] ** 2).sum(axis=-1)
    return np.sqrt(np.maximum(square, 0.0))


def wrapped(phi: np.ndarray) -> np.ndarray:
    return (phi + np.pi) % (2.0 * np.pi) - np.pi


def neutrino_solutions(lepton: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Neutrino four-momenta (n, 2, 4) that give the mass of the W together with the lepton (n, 4).

    Where no real solution exists, both are the one with the lepton's pseudorapidity: its mass with
    the lepton is the transverse mass, as in the real rows.
    """
    pt2 = lepton[:, 1] ** 2 + lepton[:, 2] ** 2
    missing2 = (missing**2).sum(axis=1)
    a = W_MASS**2 / 2.0 + lepton[:, 1] * missing[:, 0] + lepton[:, 2] * missing[:, 1]
    root = a**2 - missing2 * pt2
    middle = np.where(root >= 0, a / pt2, np.sqrt(missing2 / pt2)) * lepton[:, 3]
    spread = lepton[:, 0] * np.sqrt(np.maximum(root, 0.0)) / pt2
    pz = middle[:, None] + spread[:, None] * np.array([-1.0, 1.0])
    px, py = (np.broadcast_to(missing[:, k, None], pz.shape) for k in (0, 1))
    return np.stack([np.sqrt(missing2[:, None] + pz**2), px, py, pz], axis=-1)


def tag_probabilities(
    pt: np.ndarray, eta: np.ndarray, flavour: np.ndarray, d: Detector
) -> np.ndarray:
    """Chance of a b-tag for every jet; arrays (n, jets)."""
    inside = np.interp(np.abs(eta), d.tag_eta, d.tag_eta_share)
    turn_on = pt / (pt + d.tag_turn_on)
    by_flavour = np.select(
        [flavour == 5, flavour == 4],
        [d.b_efficiency * turn_on, d.c_efficiency * turn_on],
        d.mistag,
    )
    return by_flavour * inside


def smear(truth: Truth, rng: np.random.Generator, d: Detector) -> Truth:
    """The measured counterpart of ``truth``; the jets keep their order."""
    n = len(truth.lepton)
    lepton = truth.lepton.copy()
    lepton[:, 0] *= np.maximum(1.0 + d.lepton_resolution * rng.standard_normal(n), 0.1)
    jets = truth.jets.copy()
    pt = truth.jets[..., 0]
    safe = np.maximum(pt, 1.0)
    resolution = np.sqrt((d.jet_noise / safe) ** 2 + d.jet_stochastic**2 / safe + d.jet_constant**2)
    factor = d.jet_scale * np.where(truth.flavour == 5, d.b_scale, 1.0)
    factor = factor * np.maximum(1.0 + resolution * rng.standard_normal(pt.shape), 0.0)
    jets[..., 0] *= factor
    jets[..., 1] += d.jet_angle * rng.standard_normal(pt.shape)
    jets[..., 2] = wrapped(jets[..., 2] + d.jet_angle * rng.standard_normal(pt.shape))
    excess = jets[..., 0] - pt * d.jet_scale
    shift = np.stack([(excess * f(jets[..., 2])).sum(axis=1) for f in (np.cos, np.sin)], axis=1)
    noise = np.sqrt(d.missing_noise**2 + d.missing_stochastic**2 * truth.sum_et)
    missing = truth.missing - shift + noise[:, None] * rng.standard_normal((n, 2))
    return truth._replace(lepton=lepton, missing=missing, jets=jets)


def draw_tags(
    p: np.ndarray, rng: np.random.Generator, bound: float = 0.28
) -> tuple[np.ndarray, np.ndarray]:
    """Which events are accepted (n,), and the two tagged jets of every event (n, 2).

    The chance that exactly jets i and j are tagged is p_i p_j times (1 - p) of all others; their
    sum over the pairs is the event's chance of two tags. Events are accepted with this chance over
    ``bound`` (the largest that occurs) rather than with the chance itself: only relative
    efficiencies matter, and fewer simulated events are thrown away.
    """
    first, second = np.triu_indices(p.shape[1], 1)
    odds = p / (1.0 - p)
    weights = odds[:, first] * odds[:, second] * np.prod(1.0 - p, axis=1, keepdims=True)
    cumulative = np.cumsum(weights, axis=1)
    total = cumulative[:, -1]
    accepted = rng.random(len(p)) * bound < total
    pair = (rng.random(len(p)) * total)[:, None] < cumulative
    pair = np.where(total > 0, pair.argmax(axis=1), 0)
    return accepted, np.stack([first[pair], second[pair]], axis=1)


def measure(truth: Truth, rng: np.random.Generator, d: Detector | None = None) -> np.ndarray:
    """The 28 features (m, 28) float64 of the selected ones among n events, in UCI's units."""
    d = d or Detector()
    seen = smear(truth, rng, d)
    pt, eta, phi = np.moveaxis(seen.jets, 2, 0)  # each (n, MAX_JETS)
    lepton_pt, lepton_eta, lepton_phi = seen.lepton.T
    distance = np.hypot(eta - lepton_eta[:, None], wrapped(phi - lepton_phi[:, None]))
    good = (pt > d.jet_min_pt) & (np.abs(eta) < d.jet_max_eta)
    overlap = (good & (distance < d.isolation)).any(axis=1)
    p = np.where(good, tag_probabilities(pt, eta, seen.flavour, d), 0.0)
    accepted, tagged = draw_tags(p, rng)
    accepted &= (lepton_pt > d.lepton_min_pt) & (np.abs(lepton_eta) < d.lepton_max_eta)
    accepted &= (good.sum(axis=1) >= LISTED) & ~overlap

    blur = np.exp(d.order_noise * rng.standard_normal(pt.shape))
    key = truth.jets[..., 0] * blur * np.where(seen.flavour == 5, d.b_order, 1.0)
    key = np.where(good, key, 0.0)
    order = np.argsort(-key, axis=1)
    rank = np.argsort(order, axis=1)  # of every jet
    jets = np.take_along_axis(seen.jets, order[:, :, None], axis=1)[accepted]
    good = np.take_along_axis(good, order, axis=1)[accepted]
    tagged = np.take_along_axis(rank, tagged, axis=1)[accepted]
    columns = features(seen.lepton[accepted], seen.missing[accepted], jets, good, tagged, rng, d)
    return columns / SCALES


def best_pair(momenta: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Four-momentum (n, 4) of the two ``usable`` jets whose mass is closest to that of the W."""
    first, second = np.triu_indices(momenta.shape[1], 1)
    pairs = momenta[:, first] + momenta[:, second]
    distance = np.abs(invariant_mass(pairs) - W_MASS)
    distance[~(usable[:, first] & usable[:, second])] = np.inf
    return pairs[np.arange(len(pairs)), distance.argmin(axis=1)]


def features(
    lepton: np.ndarray,
    missing: np.ndarray,
    jets: np.ndarray,
    good: np.ndarray,
    tagged: np.ndarray,
    rng: np.random.Generator,
    d: Detector,
) -> np.ndarray:
    """(n, 28) in GeV and radian, from lepton (n, 3), missing (n, 2) and ordered jets (n, jets, 3).

    ``good`` (n, jets) are the selected jets, ``tagged`` (n, 2) the places of the two with a b-tag.
    The masses follow the real rows, in which they can be recomputed: jets count as massless; m_jj
    is the untagged pair closest to 80.4 GeV; m_jjj adds the b jet that comes closest to 175 GeV,
    m_jlv has the other; m_wbb is the larger of jj + bb and lv + bb.
    """
    n, rows = len(lepton), np.arange(len(lepton))
    pt, eta, phi = np.moveaxis(jets, 2, 0)
    momenta = four_momenta(pt, eta, phi)
    level = np.zeros(pt.shape)
    level[rows[:, None], tagged] = 1.0 + (rng.random((n, 2)) < d.tight)
    jj = best_pair(momenta, good & (level == 0))
    b = momenta[rows[:, None], tagged]  # (n, 2, 4)
    bb = b.sum(axis=1)
    m_jjj = invariant_mass(jj[:, None] + b)  # (n, 2)
    hadronic = np.abs(m_jjj - TOP_MASS).argmin(axis=1)

    lepton4 = four_momenta(*lepton.T)
    neutrinos = neutrino_solutions(lepton4, missing)
    smaller = np.abs(neutrinos[..., 3]).argmin(axis=1)
    chosen = np.where(rng.random(n) < d.smaller_pz, smaller, 1 - smaller)
    lv = lepton4 + neutrinos[rows, chosen]
    met = np.hypot(*missing.T)
    transverse2 = 2.0 * (lepton[:, 0] * met - (lepton4[:, 1:3] * missing).sum(axis=1))
    loose = np.maximum(1.0 - transverse2 / W_MASS**2, 0.0)  # 0: the mass is the transverse mass
    m_lv = invariant_mass(lv) + d.w_mass_spread * loose**0.75 * rng.standard_normal(n)

    columns = [*lepton.T, met, np.arctan2(missing[:, 1], missing[:, 0])]
    for jet in range(LISTED):
        columns += [pt[:, jet], eta[:, jet], phi[:, jet], level[:, jet]]
    columns += [
        invariant_mass(jj),
        m_jjj[rows, hadronic],
        m_lv,
        invariant_mass(lv + b[rows, 1 - hadronic]),
        invariant_mass(bb),
        np.maximum(invariant_mass(jj + bb), invariant_mass(lv + bb)),
        invariant_mass(jj + lv + bb),
    ]
    return np.stack(columns, axis=1)
