"""The quark/gluon stand-in: reproducible, in the official schemas, physical, as published."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.calibration import jets as calibration
from data.catalog import dataset
from data.readers.nested_parquet import check_parquet, iter_columns, nested
from data.simulate import jets, jets_detector, jets_events, jets_reconstruction
from data.simulate.jets_detector import CELLS, PITCH, Detector, impact, share_endcaps
from data.simulate.jets_events import PHOTON, Particles
from e2e_utils.errors import InputError
from e2e_utils.jet_resolution import low_resolution
from e2e_utils.metrics import roc_auc
from tools.score import score

PER_CLASS = 250
KEYS = dataset("quark_gluon")["file"][0]["keys"]
LOW_KEYS = dataset("quark_gluon_superresolution")["file"][0]["keys"]


@pytest.fixture(scope="module")
def shards(simulated) -> list:
    """One shard of each class."""
    return [simulated(jets, PER_CLASS, quark, seed=int(quark)) for quark in (False, True)]


@pytest.fixture(scope="module")
def sample(shards) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images (500, 3, 125, 125), labels, pT and mass; gluons first."""
    images = np.concatenate([jets._dense(shard) for shard in shards])
    pt, m0 = (np.concatenate([shard[name] for shard in shards]) for name in ("pt", "m0"))
    return images, np.repeat((0, 1), PER_CLASS), pt, m0


@pytest.fixture
def fake_shards(monkeypatch):
    """Shards of random pixels instead of physics: the list of the calls."""
    calls = []

    def simulate(n_events, quark, seed):
        calls.append((n_events, quark))
        rng = np.random.default_rng(seed)
        return {
            "counts": np.full(n_events, 10),
            "index": np.concatenate([rng.choice(46875, 10, False) for _ in range(n_events)]),
            "value": rng.random(10 * n_events).astype(np.float32) + quark,
            "pt": rng.uniform(70, 200, n_events),
            "m0": rng.uniform(8, 40, n_events),
        }

    monkeypatch.setattr(jets, "simulate_shard", simulate)
    monkeypatch.setattr(jets, "SHARD_EVENTS", 20)
    return calls


# Files


def test_files_have_the_official_schemas(tmp_path, fake_shards) -> None:
    path = jets.generate_low_resolution(130, tmp_path, scheduler="synchronous")
    assert path.name == "QCDToGGQQ_IMGjet_STANDIN_n130_LR.parquet"
    assert check_parquet(path, LOW_KEYS) == 130
    assert pq.read_schema(path).names == list(LOW_KEYS)
    low = {key: [] for key in LOW_KEYS}
    for chunk in iter_columns(path, LOW_KEYS):
        for key in LOW_KEYS:
            low[key].append(chunk[key])
    low = {key: np.concatenate(parts) for key, parts in low.items()}
    source = tmp_path / "QCDToGGQQ_IMGjet_STANDIN_n130.snappy.parquet"
    assert pq.read_schema(source).names == list(KEYS)
    assert pq.read_schema(source).field("X_jets").type == pa.list_(pa.list_(pa.list_(pa.float64())))
    assert low["y"].sum() == 65
    assert 0 < np.abs(np.diff(low["y"])).sum() < 129  # mixed
    largest = low["X_jets"].max(axis=(1, 2, 3))
    assert ((largest > 1) == (low["y"] == 1)).all()
    expected = low_resolution(low["X_jets"].astype(np.float64))
    np.testing.assert_allclose(low["X_jets_LR"], expected, rtol=1e-6)
    assert low["X_jets"].sum() == pytest.approx(4 * low["X_jets_LR"].sum(), rel=1e-5)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([path.name, source.name])


def test_complete_files_are_kept_and_outdated_ones_made_again(
    tmp_path, fake_shards, monkeypatch
) -> None:
    path = jets.generate(60, tmp_path, scheduler="synchronous")
    content, calls = path.read_bytes(), len(fake_shards)
    assert jets.generate(60, tmp_path, scheduler="synchronous") == path
    assert len(fake_shards) == calls
    path.write_bytes(content[:100])  # truncated
    jets.generate(60, tmp_path, scheduler="synchronous")
    assert path.read_bytes() == content
    monkeypatch.setattr(jets, "simulation_version", lambda: "0123456789abcdef")
    assert not jets.is_complete(path, 60, jets.SEED)
    jets.generate(60, tmp_path, seed=3, scheduler="synchronous")
    assert path.read_bytes() != content


def test_interrupted_generation_resumes(tmp_path, fake_shards, interrupted) -> None:
    whole = jets.generate(100, tmp_path / "whole", scheduler="synchronous").read_bytes()
    with interrupted(jets), pytest.raises(KeyboardInterrupt):
        jets.generate(100, tmp_path / "halves", scheduler="synchronous")
    assert not list((tmp_path / "halves").glob("*.parquet"))
    fake_shards.clear()
    path = jets.generate(100, tmp_path / "halves", scheduler="synchronous")
    # One call more before the workers start: it prepares what they share.
    assert [size for size, _ in fake_shards].count(1) == 1
    assert len(fake_shards) == 1 + 6 - 3
    assert path.read_bytes() == whole


@pytest.mark.parametrize("n_events", [-2, 0, 1, 7])
def test_event_numbers_are_checked(tmp_path: Path, n_events) -> None:
    with pytest.raises(InputError, match="positive even number"):
        jets.generate(n_events, tmp_path)


# Events


def test_shards_depend_on_their_seed_alone(shards, small_pools) -> None:
    again = jets.simulate_shard(10, True, np.random.SeedSequence(1))
    for name, values in jets._first(shards[1], 10).items():
        np.testing.assert_array_equal(again[name], values)
    assert not np.isin(again["pt"], shards[0]["pt"]).any()


def test_pools_come_from_the_cache(small_pools, monkeypatch) -> None:
    monkeypatch.setattr(jets_events, "_pools", {})
    monkeypatch.setattr(jets_events, "_simulate_pool", None)  # simulating again would fail
    for name in ("underlying", "pile_up"):
        for ours, cached in zip(
            getattr(small_pools, name), jets_events._pool(name, 120), strict=True
        ):
            np.testing.assert_array_equal(ours, cached)
    assert small_pools.underlying.pt.max() < jets_events.PT_HAT[0]  # the photons are gone


def test_settings_are_accepted_and_impossible_ones_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="did not accept"):
        jets_events.make_pythia(("HardQCD:all = maybe",), 1)


def particles(**columns) -> Particles:
    """One event of the given particles; what is not given is 0."""
    n = len(columns["pt"])
    rest = {name: np.zeros(n) for name in Particles._fields[1:]} | {
        name: np.asarray(values, float) for name, values in columns.items()
    }
    rest["energy"] = rest["pt"] * np.cosh(rest["eta"])
    rest["kind"], rest["charge"] = rest["kind"].astype(np.int8), rest["charge"].astype(np.int8)
    return Particles(offsets=np.array([0, n]), **rest)


def test_jets_of_an_event_with_two_known_jets() -> None:
    event = particles(
        pt=[60.0, 40.0, 90.0], eta=[0.5, 0.6, -1.0], phi=[3.1, -3.1, 0.05], kind=[PHOTON] * 3
    )
    partons = np.array([[[0.5, 3.1], [-1.0, 0.0]]])
    rows, found = jets_reconstruction.select(event, partons, np.random.default_rng(0))
    assert rows.tolist() == [0]
    pt, mass, eta, phi = found[0]
    assert pt == pytest.approx(100, abs=3)
    # m^2 = 2 pt1 pt2 (cosh d_eta - cos d_phi)
    d_phi = 2 * np.pi - 6.2
    assert mass == pytest.approx(np.sqrt(2 * 60 * 40 * (np.cosh(0.1) - np.cos(d_phi))), rel=0.05)
    assert eta == pytest.approx(0.54, abs=0.01)
    assert abs(phi) == pytest.approx(3.13, abs=0.02)
    for wrong in (partons + 0.6, partons[:, [0, 0]]):
        rows, _ = jets_reconstruction.select(event, wrong, np.random.default_rng(0))
        assert len(rows) == 0


def test_overlay_keeps_the_event_and_adds_others(small_pools) -> None:
    events = jets_events.take(small_pools.pile_up, np.array([3, 5]))
    rng = np.random.default_rng(0)
    laid = jets_events.overlay(events, 0.0, 0.0, rng, small_pools)
    for k in range(2):
        own, all_ = (slice(*part.offsets[k : k + 2]) for part in (events, laid))
        assert set(events.pt[own]) <= set(laid.pt[all_])
        assert all_.stop - all_.start > own.stop - own.start
    more = jets_events.overlay(events, 20.0, 5.0, rng, small_pools)
    assert len(more.pt) > 5 * len(laid.pt)
    assert np.abs(more.phi).max() <= np.pi


# Detector


def test_helix_against_closed_form() -> None:
    eta, phi = impact(5.0, 0.3, 0.1, 0, 0.0)
    assert (eta, phi) == (pytest.approx(0.3), pytest.approx(0.1))
    radius = 5.0 / (0.299792458 * 3.8) * 100  # cm
    for charge in (-1, 1):
        eta, phi = impact(5.0, 0.0, 0.1, charge, 0.0)
        assert phi == pytest.approx(0.1 - charge * np.arcsin(129 / (2 * radius)))
        assert eta == 0
    assert not np.isfinite(impact(0.6, 0.1, 0.0, 1, 0.0)[0])  # turns back
    eta, _ = impact(5.0, 0.0, 0.0, 0, 12.9)
    assert eta == pytest.approx(np.arcsinh(0.1))
    eta, _ = impact(5.0, 2.0, 0.0, 0, 0.0)  # endcap: no vertex shift, no change
    assert eta == pytest.approx(2.0)


def test_endcap_pixels_share_their_energy_in_pairs() -> None:
    rng = np.random.default_rng(0)
    for top in (60, -60 - CELLS):  # both endcaps begin within the image
        ecal = rng.random((CELLS, CELLS))
        before = ecal.copy()
        share_endcaps(ecal, top, 0, 15, 15)
        changed = np.flatnonzero((ecal != before).any(axis=1)) + top
        assert changed.min() >= 85 or changed.max() < -85
        assert 85 in changed or -86 in changed
        shared = ecal != before  # by two by two pixels, a quarter of the energy each time
        assert ecal[shared].sum() == pytest.approx(before[shared].sum() / 4)


def images_of(
    kind: int, pt: float, eta: float, charge: int = 0, **options: float
) -> tuple[np.ndarray, np.ndarray]:
    """Images of 30 single particles from the origin, and which of them fit."""
    detector = Detector(**options)
    rng = np.random.Generator(np.random.PCG64(0))
    n = 30
    columns = [np.full(n, value) for value in (pt, eta, 0.0, pt * np.cosh(eta))]
    columns += [np.full(n, kind, np.int8), np.full(n, charge, np.int8), np.zeros(n)]
    images = np.zeros((n, 3, 125, 125), np.float32)
    axes = np.tile([eta, 0.0], (n, 1))
    fits = jets_detector.render(rng, np.arange(n + 1), *columns, axes, detector, images)
    return images, fits


def test_photons_and_hadrons_deposit_their_energy_where_they_belong() -> None:
    photon, fits = images_of(PHOTON, 20.0, 0.02, spike=0.0)
    assert fits.all()
    assert photon[:, 1].sum((1, 2)).mean() == pytest.approx(20, rel=0.1)
    legs = photon[:, 0].sum((1, 2))  # of the few that the material converts
    assert 0 < (legs > 0).mean() < 0.5
    assert legs.max() < 22
    options = {"track_efficiency": 1.0, "bad_track": 0.0, "spike": 0.0}
    hadron, _ = images_of(jets_events.CHARGED, 30.0, 0.02, 1, **options)
    assert hadron[:, 0].sum((1, 2)) == pytest.approx(30, rel=0.1)
    # Calorimeters that answer less to hadrons than to photons: 18 GeV of 30 (Groom)
    assert hadron[:, 1:].sum((1, 2, 3)).mean() == pytest.approx(18, rel=0.15)
    towers = hadron[:, 2].reshape(30, 25, 5, 25, 5)  # (n, tower row, row, tower column, column)
    assert (towers == towers[:, :, :1, :, :1]).all()


def test_images_that_would_not_fit_are_left_out() -> None:
    images, fits = images_of(jets_events.NEUTRAL, 30.0, 20.5 * 5 * PITCH)
    assert not fits.any()
    assert not images.any()


# Calibration


def test_images_are_what_they_should_be(sample) -> None:
    images, _, pt, m0 = sample
    assert np.isfinite(images).all()
    assert (images[:, 0] >= 0).all()
    assert images[:, 1].min() < 0  # noise around seeds
    assert images[:, 1].min() > -2
    towers = images[:, 2].reshape(-1, 25, 5, 25, 5)
    assert (towers == towers[:, :, :1, :, :1]).all()
    middle = images[:, 2, 45:80, 45:80].max(axis=(1, 2))
    np.testing.assert_array_equal(images[:, 2, 62, 62] > 0, middle > 0)
    assert pt.min() > 70
    assert (m0 > 0).all()


def test_published_numbers(sample) -> None:
    """Statistics of the official images; tolerances: what 500 jets and small pools leave."""
    images, y, pt, m0 = sample
    assert pt.mean() == pytest.approx(calibration.PT_MEAN, rel=0.04)
    assert m0.mean() == pytest.approx(calibration.MASS_MEAN, rel=0.15)
    ours = calibration.image_statistics(images, y)
    np.testing.assert_allclose(ours["active"], calibration.ACTIVE, rtol=0.1)
    assert ours["union"] == pytest.approx(calibration.UNION, rel=0.06)
    np.testing.assert_allclose(ours["sums"][1:], calibration.SUMS[1:], rtol=0.12)
    # A few wild tracks in a hundred jets carry much of the tracks' sum
    assert np.minimum(images[:, 0].sum(axis=(1, 2)), 1000).mean() == pytest.approx(105, rel=0.2)
    assert ours["radius"] / calibration.FIRST_RADIUS == pytest.approx(calibration.SPREAD, rel=0.07)
    np.testing.assert_allclose(ours["neighbours"][1:], calibration.NEIGHBOURS[1:], atol=0.05)
    assert ours["bicubic"][0] == pytest.approx(calibration.BICUBIC[0], abs=0.8)
    assert ours["bicubic"][1] == pytest.approx(calibration.BICUBIC[1], abs=0.01)
    size = calibration.bytes_as_official(images[::5])
    assert size == pytest.approx(calibration.official_bytes(), rel=0.15)


def test_label_0_is_the_gluon(sample) -> None:
    """As in the official files: jets of gluons have more tracks and are wider."""
    images, y, _, m0 = sample
    tracks = (images[:, 0] > 0).sum(axis=(1, 2))
    assert tracks[y == 0].mean() > 1.05 * tracks[y == 1].mean()
    aucs = calibration.single_aucs(calibration.jet_shapes(images), y)
    for name in ("width track pT", "hits track pT", "width ECAL"):
        assert aucs[name] < 0.42, name  # error 0.03
    assert aucs["ptd track pT"] > 0.58
    assert m0[y == 0].mean() > m0[y == 1].mean()


def test_published_network_finds_the_quarks(sample, tmp_path) -> None:
    """`make score` takes label 1 for the class that the published network answers for."""
    images, y, pt, m0 = sample
    some = np.r_[:50, -50:0]
    columns = {"X_jets": nested(images[some])}
    columns |= {"pt": pt[some], "m0": m0[some], "y": y[some].astype(float)}
    pq.write_table(pa.table(columns), tmp_path / "jets.parquet")
    sample, out = str(tmp_path / "jets.parquet"), tmp_path / "scores.csv"
    score("task2h_graph_jets", sample, out=out)
    table = pd.read_csv(out)
    assert roc_auc(table["label"], table["probability"]) > 0.6  # 0.8 with an error of 0.045


def test_boosting_separates_as_published(sample) -> None:
    images, y, pt, m0 = sample
    shapes = {"pt": pt, "m0": m0} | calibration.jet_shapes(images)
    value, _, _ = calibration.separation(shapes, y)
    # 0.77 to 0.80 with thousands of jets; 500 train worse, their error is 0.02
    assert 0.66 < value < 0.87
