"""Barrel hits and photons of a ROOT file, read with uproot: no CMSSW is needed for that."""

from dataclasses import dataclass
from pathlib import Path

import awkward as ak
import numpy as np
import uproot

from e2e_utils.errors import InputError

HITS = "EcalRecHitsSorted_reducedEcalRecHitsEB__*.obj.obj."
PHOTONS = "recoPhotons_gedPhotons__*.obj.m_state.p4Polar_.fCoordinates."
BRANCHES = {
    "raw_id": f"{HITS}id_.id_", "energy": f"{HITS}energy_",
    "pt": f"{PHOTONS}fPt", "eta": f"{PHOTONS}fEta", "phi": f"{PHOTONS}fPhi",
}  # fmt: skip
ADVICE = "take an AOD file with reducedEcalRecHitsEB and gedPhotons"


@dataclass(frozen=True)
class BarrelEvents:
    """Hits and photons of all events in a row; ``*_offsets`` (N + 1,) say where each begins."""

    hit_offsets: np.ndarray
    crystal: np.ndarray  # (H, 2) ieta (-85..-1, 1..85) and iphi (1..360)
    energy: np.ndarray  # (H,) float32 GeV
    photon_offsets: np.ndarray
    pt: np.ndarray  # (P,) GeV
    eta: np.ndarray  # (P,)
    phi: np.ndarray  # (P,) rad

    def __len__(self) -> int:
        return len(self.hit_offsets) - 1


def decode(raw_id: np.ndarray) -> np.ndarray:
    """Crystals (n, 2) as (ieta, iphi) of EBDetIds, as CMSSW's class of that name decodes them."""
    raw_id = raw_id.astype(np.int64)
    absolute, side, iphi = raw_id >> 9 & 0x7F, raw_id & 0x10000, raw_id & 0x1FF
    return np.stack([np.where(side > 0, absolute, -absolute), iphi], axis=1)


def read_events(path: str | Path) -> BarrelEvents:
    """The barrel hits and photons of a ROOT file's tree ``Events``.

    Raises InputError for a file that is not ROOT, has no such tree, or lacks branches (named).
    """
    columns = read_branches(path)
    offsets = {
        field: np.concatenate([[0], np.cumsum(ak.num(columns[field]).to_numpy())])
        for field in ("raw_id", "pt")
    }
    flat = {field: ak.flatten(column).to_numpy() for field, column in columns.items()}
    for field, counted in (("energy", "raw_id"), ("eta", "pt"), ("phi", "pt")):
        if len(flat[field]) != len(flat[counted]):
            raise InputError(
                f"{path}: expected as many values in {BRANCHES[field]} as in {BRANCHES[counted]}, "
                f"found {len(flat[field])} and {len(flat[counted])}; the file is damaged, fetch it "
                "again"
            )
    return BarrelEvents(
        offsets["raw_id"], decode(flat["raw_id"]), flat["energy"].astype(np.float32),
        offsets["pt"], flat["pt"], flat["eta"], flat["phi"],
    )  # fmt: skip


def read_branches(path: str | Path) -> dict[str, ak.Array]:
    """The columns of ``BRANCHES``, one list an event."""
    try:
        file = uproot.open(path)
    except (OSError, ValueError) as error:
        found = " ".join(str(error).split())[:80] or type(error).__name__
        raise InputError(f"{path}: expected a ROOT file, found {found}; {ADVICE}") from error
    with file:
        if "Events" not in file.keys(cycle=False):
            found = ", ".join(file.keys(cycle=False)[:5]) or "nothing"
            raise InputError(f"{path}: expected a tree Events, found {found}; {ADVICE}")
        tree = file["Events"]
        names = {
            field: tree.keys(filter_name=pattern, full_paths=False)
            for field, pattern in BRANCHES.items()
        }
        absent = [BRANCHES[field] for field, found in names.items() if not found]
        if absent:
            raise InputError(
                f"{path}: expected the branches {', '.join(BRANCHES.values())}, "
                f"found none for {', '.join(absent)}; {ADVICE}"
            )
        try:
            return {field: tree[found[0]].array() for field, found in names.items()}
        except (OSError, ValueError) as error:
            found = " ".join(str(error).split())[:80]
            raise InputError(
                f"{path}: expected whole branches, found {found}; the file is damaged or was cut "
                "off, fetch it again"
            ) from error
