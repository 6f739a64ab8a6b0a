"""The stand-in for the two-photon file of task 2f."""

import fnmatch

import awkward as ak
import numpy as np
import pytest
import uproot

from data.catalog import dataset
from data.simulate import two_photons
from data.simulate.two_photons import BARREL_ETA, generate
from e2e_utils.errors import InputError


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return generate(60, tmp_path_factory.mktemp("two_photons"))


@pytest.fixture(scope="module")
def columns(file):
    with uproot.open(file) as opened:
        tree = opened["Events"]
        short = {"id_.id_": "id", "energy_": "energy", "time_": "time", "fPt": "pt", "fEta": "eta"}
        short["fPhi"] = "phi"
        found = {}
        for branch in tree.keys(filter_name="*obj*"):
            for end, name in short.items():
                if branch.endswith(end) and not branch.startswith("n"):
                    found[name] = tree[branch].array()
        return found


def test_the_file_has_the_branches_and_types_of_the_catalog(file):
    (entry,) = dataset("cmssw_double_photon")["file"]
    with uproot.open(file) as opened:
        tree = opened["Events"]
        assert tree.num_entries == 60
        for pattern, schema in entry["keys"].items():
            (name,) = fnmatch.filter(tree.keys(), pattern)
            assert ak.type(tree[name].array()).content.content.primitive == schema["dtype"]


def test_photons_are_back_to_back_with_pt_50(columns):
    eta, phi = columns["eta"].to_numpy(), columns["phi"].to_numpy()
    np.testing.assert_allclose(eta[:, 0], -eta[:, 1], atol=1e-6)
    np.testing.assert_allclose(np.cos(phi[:, 0] - phi[:, 1]), -1, atol=1e-6)
    assert (np.abs(phi) <= np.pi + 1e-6).all()
    assert (np.abs(eta) <= 2.5).all()
    assert (columns["pt"].to_numpy() == 50).all()


def test_hits_are_sorted_unique_crystals_with_positive_energy(columns):
    for ids in columns["id"].to_list():
        assert ids == sorted(set(ids))
    ids = ak.flatten(columns["id"]).to_numpy()
    assert (ids >> 25 == (3 << 3 | 1)).all()  # detector 3, subdetector 1
    ieta, iphi = ids >> 9 & 0x7F, ids & 0x1FF
    assert ieta.min() >= 1
    assert ieta.max() <= 85
    assert iphi.min() >= 1
    assert iphi.max() <= 360
    assert ak.flatten(columns["energy"]).to_numpy().min() > 0


def test_the_barrel_holds_the_photons_energy_and_nothing_of_endcap_photons(columns):
    eta = np.abs(columns["eta"].to_numpy()[:, 0])
    total = ak.sum(columns["energy"], axis=1).to_numpy()
    assert (total[eta > BARREL_ETA] == 0).all()
    inside = eta < 1.3
    ratio = total[inside] / (2 * 50 * np.cosh(eta[inside]))
    assert 0.9 < np.median(ratio) < 1.02


def test_the_photons_direction_points_at_its_highest_hit(columns):
    """CMS numbering: ieta 1 begins at eta 0, iphi 1 at -10 degrees."""
    for event in range(60):
        eta, phi = columns["eta"][event, 0], columns["phi"][event, 0]
        if abs(eta) > 1.2:
            continue
        ids, energy = columns["id"][event].to_numpy(), columns["energy"][event].to_numpy()
        side = np.where(ids & 0x10000, 1, -1)
        hit_eta = side * ((ids >> 9 & 0x7F) - 0.5) * np.pi / 180
        hit_phi = np.deg2rad((ids & 0x1FF) - 10.5)
        near = np.abs(np.angle(np.exp(1j * (hit_phi - phi)))) < 0.5
        best = np.argmax(np.where(near, energy, 0))
        assert abs(np.angle(np.exp(1j * (hit_phi[best] - phi)))) < 0.1
        assert abs(hit_eta[best] - eta) < 0.2  # the vertex is spread along the beam


def all_values(path):
    """Every number of a file's branches, in order."""
    with uproot.open(path) as opened:
        return [
            ak.ravel(opened["Events"][name].array()).to_numpy()
            for name in opened["Events"].keys()  # noqa: SIM118 not a dict
        ]


def test_a_complete_file_is_left_alone_and_another_seed_is_made_anew(file, tmp_path):
    before = file.stat().st_mtime_ns
    assert generate(60, file.parent) == file
    assert file.stat().st_mtime_ns == before
    values = all_values(generate(3, tmp_path))
    other = all_values(generate(3, tmp_path, seed=1))
    again = all_values(generate(3, tmp_path))
    assert all(np.array_equal(a, b) for a, b in zip(values, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(values[-1:], other[-1:], strict=True))


def test_events_do_not_depend_on_how_many_are_made(tmp_path):
    few, more = all_values(generate(2, tmp_path)), all_values(generate(4, tmp_path))
    for a, b in zip(few, more, strict=True):
        assert len(a) < len(b)
        np.testing.assert_array_equal(a, b[: len(a)])


def test_a_broken_file_is_replaced(tmp_path):
    path = generate(2, tmp_path)
    path.write_bytes(path.read_bytes()[:500])
    assert two_photons.is_complete(generate(2, tmp_path), 2, 20250305)


def test_no_events_are_refused(tmp_path):
    with pytest.raises(InputError, match="found 0"):
        generate(0, tmp_path)
