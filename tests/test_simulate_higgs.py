"""The HIGGS stand-in: reproducible, in UCI's schema, physical, close to real rows."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from data.calibration import higgs as calibration_higgs
from data.catalog import dataset
from data.simulate import higgs, higgs_detector
from data.simulate.higgs_detector import FEATURE_NAMES, SCALES
from data.simulate.higgs_events import BACKGROUND, COMMON, SIGNAL, LongitudinalW, make_pythia
from e2e_utils.errors import InputError

PER_CLASS = 400
# Kolmogorov distances measured with 22,000 stand-in events: all below 0.09 (data/README.md).
SYSTEMATIC = 0.09


@pytest.fixture(scope="module")
def sample(simulated) -> tuple[np.ndarray, np.ndarray]:
    """Features (800, 28) and labels, background first."""
    parts = [simulated(higgs, PER_CLASS, label == 1, seed=label)["features"] for label in range(2)]
    return np.concatenate(parts), np.repeat((0, 1), PER_CLASS)


@pytest.fixture
def fake_shards(monkeypatch):
    """Shards of random numbers instead of physics: their function, and the list of its calls."""
    calls = []

    def simulate(n_events, signal, seed):
        calls.append((n_events, signal))
        rng = np.random.default_rng(seed)
        return {"features": rng.random((n_events, 28), np.float32) + signal}

    monkeypatch.setattr(higgs, "simulate_shard", simulate)
    monkeypatch.setattr(higgs, "SHARD_EVENTS", 20)
    return calls


# Files


def test_file_has_the_official_schema(tmp_path, fake_shards) -> None:
    path = higgs.generate(200, tmp_path, scheduler="synchronous")
    assert path.name == "HIGGS_STANDIN_n200.csv.gz"
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    cells = [line.split(",") for line in lines]
    assert len(lines) == 200
    assert {len(row) for row in cells} == {29}
    assert lines[0].startswith(("0.000000000000000000e+00,", "1.000000000000000000e+00,"))
    labels = np.array([float(row[0]) for row in cells])
    assert labels.sum() == 106  # 53 %
    assert 0 < np.abs(np.diff(labels)).sum() < 199  # mixed
    features = np.array([[float(cell) for cell in row[1:]] for row in cells])
    assert (features[labels == 1] >= 1).all()
    assert (features[labels == 0] < 1).all()
    assert list(tmp_path.glob("*.part")) == []


def test_feature_names_are_those_of_the_catalog() -> None:
    assert ("label", *FEATURE_NAMES) == tuple(dataset("higgs")["file"][0]["keys"])
    assert len(SCALES) == len(FEATURE_NAMES) == higgs.FEATURES


def test_complete_files_are_kept_and_outdated_ones_made_again(
    tmp_path, fake_shards, monkeypatch
) -> None:
    path = higgs.generate(100, tmp_path, scheduler="synchronous")
    content, calls = path.read_bytes(), len(fake_shards)
    assert higgs.generate(100, tmp_path, scheduler="synchronous") == path
    assert len(fake_shards) == calls
    path.write_bytes(content[:100])  # truncated
    higgs.generate(100, tmp_path, scheduler="synchronous")
    assert path.read_bytes() == content
    monkeypatch.setattr(higgs, "simulation_version", lambda: "0123456789abcdef")
    assert not higgs.is_complete(path, 100, 20140219)
    higgs.generate(100, tmp_path, seed=3, scheduler="synchronous")
    assert path.read_bytes() != content


def test_interrupted_generation_resumes(tmp_path, fake_shards, interrupted) -> None:
    whole = higgs.generate(200, tmp_path / "whole", scheduler="synchronous").read_bytes()
    with interrupted(higgs), pytest.raises(KeyboardInterrupt):
        higgs.generate(200, tmp_path / "halves", scheduler="synchronous")
    assert not list((tmp_path / "halves").glob("*.gz"))
    fake_shards.clear()
    path = higgs.generate(200, tmp_path / "halves", scheduler="synchronous")
    assert len(fake_shards) == 11 - 4
    assert path.read_bytes() == whole


@pytest.mark.parametrize("n_events", [-1, 0, 1])
def test_event_numbers_are_checked(tmp_path: Path, n_events) -> None:
    with pytest.raises(InputError, match="expected 2 or more"):
        higgs.generate(n_events, tmp_path)


# Events


def test_shards_depend_on_their_seed_alone(sample) -> None:
    again = higgs.simulate_shard(20, True, np.random.SeedSequence(1))["features"]
    np.testing.assert_array_equal(again, sample[0][PER_CLASS:][:20])
    other = sample[0][:PER_CLASS]  # the other class, from another seed
    assert (other[:20, 2] != again[:, 2]).all()


def test_settings_are_accepted_and_impossible_ones_are_an_error(monkeypatch) -> None:
    for signal in (False, True):
        pythia, hooks = make_pythia(signal, True, 1)
        assert isinstance(hooks, LongitudinalW) == signal
        assert len(pythia.nextBatch(2)) == 2
    assert not set(SIGNAL) & set(COMMON + BACKGROUND)
    monkeypatch.setattr("data.simulate.higgs_events.HADRONIC", "11 13")
    with pytest.raises(RuntimeError, match="did not accept"):
        make_pythia(True, True, 1)


def test_selection_and_levels(sample) -> None:
    x = sample[0] * SCALES
    column = {name: x[:, k] for k, name in enumerate(FEATURE_NAMES)}
    assert np.isfinite(x).all()
    assert column["lepton_pt"].min() > 14.99
    assert np.abs(column["lepton_eta"]).max() < 2.501
    levels = np.stack([column[f"jet{k}_btag"] for k in range(1, 5)], axis=1)
    np.testing.assert_allclose(levels, levels.round(), atol=1e-3)
    assert set(levels.round().ravel()) == {0, 1, 2}
    assert ((levels > 0.5).sum(axis=1) <= 2).all()
    for k in range(1, 5):
        assert column[f"jet{k}_pt"].min() > 14.99
        assert np.abs(column[f"jet{k}_eta"]).max() < 3.001
        assert np.abs(column[f"jet{k}_phi"]).max() < np.pi + 1e-3
        away = higgs_detector.wrapped(column[f"jet{k}_phi"] - column["lepton_phi"])
        assert np.hypot(away, column[f"jet{k}_eta"] - column["lepton_eta"]).min() > 0.399


def test_m_bb_is_the_mass_of_the_two_tagged_jets(sample) -> None:
    x = sample[0] * SCALES
    jets = x[:, 5:21].reshape(-1, 4, 4)  # (n, jet, (pT, eta, phi, level))
    two = (jets[..., 3] > 0.5).sum(axis=1) == 2
    tagged = jets[two][jets[two][..., 3] > 0.5].reshape(-1, 2, 4)
    momenta = higgs_detector.four_momenta(*np.moveaxis(tagged[..., :3], 2, 0))
    mass = higgs_detector.invariant_mass(momenta.sum(axis=1))
    np.testing.assert_allclose(mass, x[two, FEATURE_NAMES.index("m_bb")], rtol=1e-3, atol=0.01)


def test_higgs_and_w_peaks(sample) -> None:
    x, y = sample[0] * SCALES, sample[1]
    m_bb = x[:, FEATURE_NAMES.index("m_bb")]
    near = np.abs(m_bb - 110.0) < 25.0  # below 125 GeV: neutrinos, muons and the jet scale
    assert near[y == 1].mean() > 1.5 * near[y == 0].mean()
    m_jj = x[:, FEATURE_NAMES.index("m_jj")]
    assert np.median(m_jj) == pytest.approx(80.4, abs=5.0)


def test_neutrino_gives_the_w_mass_or_the_transverse_mass() -> None:
    lepton = higgs_detector.four_momenta(*np.array([[40.0, 0.5, 0.3], [90.0, -1.0, 2.0]]).T)
    missing = np.array([[20.0, 30.0], [80.0, -60.0]])
    solutions = higgs_detector.neutrino_solutions(lepton, missing)
    masses = higgs_detector.invariant_mass(lepton[:, None] + solutions)
    np.testing.assert_allclose(masses[0], 80.4, rtol=1e-6)
    met = np.hypot(*missing.T)
    pt = np.hypot(*lepton[:, 1:3].T)
    transverse = np.sqrt(2 * (pt * met - (lepton[:, 1:3] * missing).sum(axis=1)))
    assert transverse[1] > 80.4
    np.testing.assert_allclose(masses[1], transverse[1], rtol=1e-6)


def test_two_tags_are_drawn_with_the_right_chances() -> None:
    rng = np.random.default_rng(0)
    p = np.tile([0.5, 0.4, 0.1, 0.0], (200_000, 1))
    accepted, tagged = higgs_detector.draw_tags(p, rng, bound=0.4)
    pairs = {(0, 1): 0.5 * 0.4 * 0.9, (0, 2): 0.5 * 0.6 * 0.1, (1, 2): 0.5 * 0.4 * 0.1}
    total = sum(pairs.values())
    assert accepted.mean() == pytest.approx(total / 0.4, abs=0.005)
    for pair, chance in pairs.items():
        assert (tagged == pair).all(axis=1).mean() == pytest.approx(chance / total, abs=0.005)


# Calibration


def test_distributions_agree_with_real_rows(sample) -> None:
    real = calibration_higgs.real_sample()
    if real is None:
        pytest.skip("the real sample is not at hand")
    distances = calibration_higgs.distances(sample, real)
    for name, row in zip(FEATURE_NAMES, distances, strict=True):
        for label in range(2):
            n_real = (real[1] == label).sum()
            # 99.9 % of the distances of two samples of one distribution stay below this
            statistical = 1.95 * np.sqrt(1 / PER_CLASS + 1 / n_real)
            assert row[label] < SYSTEMATIC + statistical, (name, label)


def test_masses_separate_better_than_momenta(sample) -> None:
    labels = sample[1]
    auc = {
        name: roc_auc_score(labels, calibration_higgs.cross_validated(sample, columns))
        for name, columns in list(calibration_higgs.GROUPS.items())[:2]
    }
    assert auc["7 high-level"] > 0.63
    assert auc["7 high-level"] > auc["21 low-level"]
    real = calibration_higgs.real_sample()
    if real is not None:
        transferred = calibration_higgs.scores(sample, real[0], slice(None))
        # 800 training events; the error of 7,500 real rows is 0.006
        assert roc_auc_score(real[1], transferred) > 0.64
