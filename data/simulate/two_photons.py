"""Stand-in for task 2f: events of two photons of pT 50 GeV, as hits of the ECAL barrel.

    python -m data.simulate.two_photons --events 1000

writes a ROOT file with the branches that the official AODSIM file is read by: DetId, energy and
time of the barrel hits, pT, eta and phi of the photons. The official file holds complete EDM
objects that only CMSSW can write; cmsRun cannot read this one. The two photons are back to back
(an assumption), with |eta| < 2.5; one outside the barrel leaves no hits, as there.
"""

import argparse
import json
from pathlib import Path

import awkward as ak
import numpy as np
import uproot

from data.simulate import DETECTOR, sources_hash
from data.simulate.egamma import PT, VERTEX_SPREAD, photon_hits
from e2e_utils.errors import InputError, command_line
from e2e_utils.files import atomic_path
from e2e_utils.paths import STANDIN

ETA_LIMIT = 2.5
BARREL_ETA = 1.479  # end of the ECAL barrel (CMS)
LAST_IETA = 85

SHIFT = 10  # crystals: CMS counts iphi from phi = -10 degrees, the simulation from 0

HITS = "EcalRecHitsSorted_reducedEcalRecHitsEB__STANDIN.obj.obj."
PHOTONS = "recoPhotons_gedPhotons__STANDIN.obj.m_state.p4Polar_.fCoordinates."


def barrel_id(ieta: np.ndarray, iphi: np.ndarray) -> np.ndarray:
    """EBDetId of crystals: detector 3 (bits 28 up), barrel 1 (25), side (16), |ieta| (9), iphi."""
    ieta, iphi = np.asarray(ieta), np.asarray(iphi)
    side = np.where(ieta > 0, 0x10000, 0)
    return (3 << 28 | 1 << 25 | side | np.abs(ieta) << 9 | iphi).astype(np.uint32)


def simulate_event(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Hits (``id``, ``energy`` in GeV, ``time`` in ns) and photons (``pt``, ``eta``, ``phi``)."""
    eta = rng.uniform(-ETA_LIMIT, ETA_LIMIT)
    phi = rng.uniform(-np.pi, np.pi)
    photons = [(eta, phi), (-eta, phi - np.copysign(np.pi, phi))]
    z = rng.normal(0.0, VERTEX_SPREAD)
    hits = [photon_hits(rng, *photon, z) for photon in photons if abs(photon[0]) < BARREL_ETA]
    ids, energies, times = [], [], []
    for hit in hits:
        inside = np.abs(hit["ieta"]) <= LAST_IETA
        iphi = (hit["iphi"][inside] - 1 + SHIFT) % 360 + 1
        ids.append(barrel_id(hit["ieta"][inside], iphi))
        energies.append(hit["energy"][inside])
        times.append(hit["time"][inside])
    empty = [np.empty(0)]
    ids = np.concatenate(ids or empty).astype(np.uint32)
    order = np.argsort(ids)  # an EDM collection of hits is sorted by DetId
    return {
        "id": ids[order],
        "energy": np.concatenate(energies or empty)[order],
        "time": np.concatenate(times or empty)[order],
        "pt": np.full(2, PT),
        "eta": np.array([p[0] for p in photons]),
        "phi": np.array([p[1] for p in photons]),
    }


def simulation_version() -> str:
    """Changes with the physics, so that files of an older simulation are made again."""
    return sources_hash(*DETECTOR, "egamma.py", "two_photons.py")


def description(n_events: int, seed: int) -> str:
    """What the file says of itself, as JSON in its object ``standin``."""
    return json.dumps({"events": n_events, "seed": seed, "simulation": simulation_version()})


def is_complete(path: Path, n_events: int, seed: int) -> bool:
    """Whether ``path`` is a finished file of this size, seed and simulation."""
    try:
        with uproot.open(path) as file:
            return str(file["standin"]) == description(n_events, seed)
    except (OSError, KeyError, ValueError):
        return False


def generate(n_events: int, directory: str | Path | None = None, seed: int = 20250305) -> Path:
    """Make ``n_events`` of two photons and return the ROOT file; at once if it is there already.

    Raises InputError for a number of events that is not positive.
    """
    if n_events < 1:
        raise InputError(f"--events: expected a positive number, found {n_events}; correct it")
    path = Path(directory or STANDIN) / f"DoubleGammaPt50_STANDIN_n{n_events}.root"
    if is_complete(path, n_events, seed):
        return path
    seeds = np.random.SeedSequence(seed).spawn(n_events)
    events = [simulate_event(np.random.default_rng(spawned)) for spawned in seeds]
    branches = {
        f"{HITS}id_.id_": ("id", np.uint32),
        f"{HITS}energy_": ("energy", np.float32),
        f"{HITS}time_": ("time", np.float32),
        f"{PHOTONS}fPt": ("pt", np.float32),
        f"{PHOTONS}fEta": ("eta", np.float32),
        f"{PHOTONS}fPhi": ("phi", np.float32),
    }
    arrays = {}
    for branch, (name, dtype) in branches.items():
        counts = [len(event[name]) for event in events]
        flat = np.concatenate([event[name] for event in events]).astype(dtype)
        arrays[branch] = ak.unflatten(flat, counts)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, uproot.recreate(temporary) as file:
        file.mktree("Events", {branch: array.type for branch, array in arrays.items()})
        file["Events"].extend(arrays)
        file["standin"] = description(n_events, seed)
    return path


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--events", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=20250305)
    parser.add_argument("--directory", type=Path, default=STANDIN)
    arguments = parser.parse_args()
    print(generate(arguments.events, arguments.directory, arguments.seed))


if __name__ == "__main__":
    from data.simulate.two_photons import main as run  # numba's cache knows functions by module

    run()
