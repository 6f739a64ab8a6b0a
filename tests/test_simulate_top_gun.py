"""The stand-in of boosted tops: kinematics, detector, flat spectrum, schema, as published."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.calibration import boosted as calibration
from data.catalog import dataset
from data.readers.nested_parquet import check_parquet, iter_columns
from data.simulate import boosted, boosted_detector, boosted_events, top_gun
from data.simulate.boosted_detector import CHANNELS, Tracker
from data.simulate.boosted_kinematics import (
    MASS_RANGE,
    MAX_ETA,
    PT_RANGE,
    draw_pairs,
    in_frame_of,
    w_masses,
)
from data.simulate.jets_detector import Detector
from data.simulate.jets_events import CHARGED, MUON, NEUTRAL, PHOTON
from e2e_utils.errors import InputError

JETS = 500
KEYS = dataset("top_mass")["file"][0]["keys"]


@pytest.fixture(scope="module")
def shard(simulated) -> dict[str, np.ndarray]:
    return simulated(top_gun, JETS, "nominal", seed=1)


@pytest.fixture
def fake_shards(monkeypatch):
    """Shards of random pixels instead of physics: the list of the calls."""
    calls = []

    def simulate(n_events, conditions, seed):
        calls.append(n_events)
        rng = np.random.default_rng(seed)
        pixels = [rng.choice(3 * 15625, 10, False) for _ in range(n_events)]  # of the tracks
        return {
            "counts": np.full(n_events, 10),
            "index": np.concatenate(pixels).astype(np.uint32),
            "value": rng.normal(size=10 * n_events).astype(np.float32),
            "m": rng.uniform(*MASS_RANGE, n_events),
            "pt": rng.uniform(400, 1000, n_events),
            "ieta": rng.integers(12, 44, n_events),
            "iphi": rng.integers(0, 72, n_events),
        }

    monkeypatch.setattr(top_gun, "simulate_shard", simulate)
    monkeypatch.setattr(top_gun, "SHARD_EVENTS", 20)
    return calls


# Files


def test_file_has_the_official_schema(tmp_path, fake_shards) -> None:
    path = top_gun.generate(45, tmp_path, scheduler="synchronous")
    assert path.name == "top_gun_STANDIN_n45.parquet"
    assert pq.read_schema(path).names == list(KEYS)
    assert pq.read_schema(path).field("X_jet").type == pa.list_(pa.list_(pa.list_(pa.float64())))
    assert check_parquet(path, KEYS) == 45
    chunks = list(iter_columns(path, KEYS))
    images = np.concatenate([chunk["X_jet"] for chunk in chunks])
    assert images.shape == (45, 8, 125, 125)
    assert images[:, :3].min() < 0  # impact parameters have signs
    assert not images[:, 3:].any()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_complete_files_are_kept_and_outdated_ones_made_again(
    tmp_path, fake_shards, monkeypatch
) -> None:
    path = top_gun.generate(30, tmp_path, scheduler="synchronous")
    content, calls = path.read_bytes(), len(fake_shards)
    assert top_gun.generate(30, tmp_path, scheduler="synchronous") == path
    assert len(fake_shards) == calls
    path.write_bytes(content[:100])  # truncated
    top_gun.generate(30, tmp_path, scheduler="synchronous")
    assert path.read_bytes() == content
    harsh = top_gun.generate(30, tmp_path, scheduler="synchronous", conditions="harsh")
    assert harsh != path
    assert harsh.read_bytes() != content
    monkeypatch.setattr(top_gun, "simulation_version", lambda: "0123456789abcdef")
    assert not top_gun.is_complete(path, 30, top_gun.SEED)


def test_interrupted_generation_resumes(tmp_path, fake_shards, interrupted) -> None:
    whole = top_gun.generate(100, tmp_path / "whole", scheduler="synchronous").read_bytes()
    with interrupted(top_gun), pytest.raises(KeyboardInterrupt):
        top_gun.generate(100, tmp_path / "halves", scheduler="synchronous")
    assert not list((tmp_path / "halves").glob("*.parquet"))
    fake_shards.clear()
    path = top_gun.generate(100, tmp_path / "halves", scheduler="synchronous")
    assert fake_shards == [1, 20, 20]  # the first call prepares what the workers share
    assert path.read_bytes() == whole


def test_arguments_are_checked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="positive number"):
        top_gun.generate(0, tmp_path)
    with pytest.raises(InputError, match="nominal"):
        top_gun.generate(10, tmp_path, conditions="perfect")


def test_unpacking_fills_towers_and_rows_can_be_chosen() -> None:
    rng = np.random.default_rng(0)
    images = np.where(rng.random((4, 8, 125, 125)) < 0.01, rng.normal(size=(4, 8, 125, 125)), 0)
    images[:, boosted.HCAL] = 0
    images[:, boosted.HCAL, ::5, ::5] = rng.random((4, 25, 25))
    images = images.astype(np.float32)
    jet, index = np.nonzero(images.reshape(4, -1))
    shard = {
        "counts": np.bincount(jet, minlength=4),
        "index": index.astype(np.uint32),
        "value": images.reshape(4, -1)[jet, index],
        "m": np.arange(4.0),
    }
    towers = images[:, boosted.HCAL, ::5, ::5]
    images[:, boosted.HCAL] = towers.repeat(5, axis=1).repeat(5, axis=2)
    np.testing.assert_array_equal(boosted.unpacked(shard), images)
    used = np.ones((4, 125, 125, 8))  # of other strides, with another image in it
    boosted.unpacked(shard, used.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(used, images.transpose(0, 2, 3, 1))
    chosen = boosted.rows_of(shard, np.array([2, 0]))
    np.testing.assert_array_equal(boosted.unpacked(chosen), images[[2, 0]])
    assert chosen["m"].tolist() == [2, 0]


# Kinematics


def transverse(momenta: np.ndarray) -> np.ndarray:
    return np.hypot(momenta[..., 0], momenta[..., 1])


def test_decays_conserve_momentum() -> None:
    rng = np.random.default_rng(0)
    mass = rng.uniform(*MASS_RANGE, (300, 2))
    pairs = draw_pairs(mass, rng)
    top, w, b, quark, antiquark = np.moveaxis(pairs.momenta, 2, 0)
    np.testing.assert_allclose(w + b, top, atol=1e-6)
    np.testing.assert_allclose(quark + antiquark, w, atol=1e-6)
    for momenta, expected in ((top, mass), (w, pairs.w_mass)):
        square = momenta[..., 3] ** 2 - (momenta[..., :3] ** 2).sum(-1)
        np.testing.assert_allclose(np.sqrt(square), expected, rtol=1e-6)
    assert np.abs(np.arcsinh(top[..., 2] / transverse(top))).max() < MAX_ETA
    np.testing.assert_allclose(top[:, 0, :2], -top[:, 1, :2])
    np.testing.assert_array_equal(pairs.mass, mass)  # whatever was drawn again


def test_transverse_momentum_is_flat_and_independent_of_the_mass() -> None:
    rng = np.random.default_rng(1)
    pairs = draw_pairs(rng.uniform(*MASS_RANGE, (10000, 2)), rng)
    pt, mass = transverse(pairs.momenta[:, 0, 0]), pairs.mass[:, 0]
    inside = (pt > PT_RANGE[0]) & (pt < PT_RANGE[1])
    quartiles = np.quantile(pt[inside], (0.25, 0.5, 0.75))
    np.testing.assert_allclose(quartiles, np.linspace(*PT_RANGE, 5)[1:4], rtol=0.02)
    assert abs(np.corrcoef(mass[inside], pt[inside])[0, 1]) < 0.03
    # Tops that need not merge into one jet
    assert (pt[inside] < 1.35 * mass[inside]).mean() == pytest.approx(0.11, abs=0.015)


def test_boost_of_a_particle_at_rest_is_its_parent() -> None:
    parent = np.array([30.0, -40.0, 120.0, 170.0])
    mass = np.sqrt(170.0**2 - 130.0**2)
    np.testing.assert_allclose(in_frame_of(np.array([0.0, 0.0, 0.0, mass]), parent), parent)


def test_w_masses_leave_room_for_the_b_quark() -> None:
    mass = np.repeat(np.array([85.3, 172.5]), 20000)
    w = w_masses(mass, np.random.default_rng(0))
    assert (w + boosted_events.B_MASS < mass).all()
    assert np.median(w[20000:]) == pytest.approx(80.4, abs=0.1)


def test_jets_of_a_pythia_event_shower(shard) -> None:
    """A gun without a shower gives three pencils; here a top has dozens of tracks."""
    images = boosted.unpacked(shard)
    assert (images[:, 0] > 0).sum(axis=(1, 2)).mean() > 15


# Detector


def images_of(n: int = 30, axis: tuple = (0.02, 0.02), detector=None, tracker=None, **columns):
    """Images and seeds of n jets of the same particles, given by columns; the rest is 0."""
    size = len(columns["pt"])
    table = {name: np.zeros(size) for name in ("eta", "phi", "vertex", "d0", "dz", "radius")}
    table |= {name: np.asarray(values, float) for name, values in columns.items()}
    kind = np.asarray(columns["kind"], np.int8)
    charge = np.asarray(columns.get("charge", np.zeros(size)), np.int8)
    counts, seeds = np.zeros(n, np.int64), np.zeros((n, 2), np.int64)
    index, value, fits = boosted_detector.render(
        np.random.Generator(np.random.PCG64(0)),
        np.zeros(n, np.int64),
        np.full(n, size),
        *(table[name] for name in ("pt", "eta", "phi")),
        table["pt"] * np.cosh(table["eta"]),
        kind,
        charge,
        *(table[name] for name in ("vertex", "d0", "dz", "radius")),
        np.tile(np.array(axis), (n, 1)),
        np.zeros(n),
        detector or Detector(),
        tracker or Tracker(efficiency=1.0, stray_hits=0.0, second_hit=0.0, wrong_hit=0.0),
        counts,
        seeds,
    )
    return boosted.unpacked({"counts": counts, "index": index, "value": value}), seeds, fits


def test_energies_lie_in_their_channels() -> None:
    assert CHANNELS == ("track pT", "dz", "d0", "ECAL", "HCAL", "BPIX1", "BPIX2", "BPIX3")
    photon, _, fits = images_of(pt=[20.0], eta=[0.02], phi=[0.02], kind=[PHOTON])
    assert fits.all()
    assert photon[:, 3].sum((1, 2)).mean() == pytest.approx(20, rel=0.1)
    converted = photon[:, [0, 5, 6, 7]].any(axis=(1, 2, 3))  # legs are seen
    assert 0 < converted.mean() < 0.5
    assert not photon[~converted][:, 1:3].any()
    hadron, _, _ = images_of(pt=[30.0], eta=[0.02], phi=[0.02], kind=[CHARGED], charge=[1])
    assert hadron[:, 0].sum((1, 2)) == pytest.approx(30, rel=0.1)
    assert 15 < hadron[:, 3:5].sum((1, 2, 3)).mean() < 33
    assert (hadron[:, 5:].sum((2, 3)) <= 1).all()
    assert hadron[:, 5:].mean(0).sum() == pytest.approx(3 * Tracker().hit_efficiency, abs=0.15)
    towers = hadron[:, 4].reshape(-1, 25, 5, 25, 5)
    assert (towers == towers[:, :, :1, :, :1]).all()
    neutral, _, _ = images_of(pt=[30.0], eta=[0.02], phi=[0.02], kind=[NEUTRAL])
    assert not neutral[:, [0, 5, 6, 7]].any()


def test_impact_parameters_are_in_units_of_their_errors() -> None:
    muon = {"pt": [20.0], "eta": [0.02], "phi": [0.02], "kind": [MUON], "charge": [1]}
    prompt, _, _ = images_of(300, **muon)
    for channel in (1, 2):
        values = prompt[:, channel][prompt[:, channel] != 0]
        assert abs(values.mean()) < 0.25
        assert values.std() == pytest.approx(1, rel=0.15)
    late, _, _ = images_of(**muon, d0=[0.05], dz=[-0.1])
    values = late[:, 2][late[:, 2] != 0]
    assert values.mean() == pytest.approx(0.05 / 0.00175, rel=0.1)
    assert late[:, 1].min() < -15
    assert late[:, 1].max() <= 0
    other, _, _ = images_of(**muon, vertex=[5.0])  # of another collision
    assert other[:, 1].max() > 500


def test_particles_born_outside_a_layer_leave_no_hit_in_it() -> None:
    muon = {"pt": [20.0], "eta": [0.02], "phi": [0.02], "kind": [MUON], "charge": [1]}
    images, _, _ = images_of(**muon, radius=[8.0])
    assert not images[:, 5:7].any()
    assert images[:, 7].any()


def test_seeds_are_the_central_tower() -> None:
    tower = 5 * np.pi / 180
    for row, col in ((3, 4), (-2, -1)):
        eta, phi = (row + 0.5) * tower, (col + 0.5) * tower
        _, seeds, _ = images_of(pt=[100.0], eta=[eta], phi=[phi], kind=[NEUTRAL], axis=(eta, phi))
        values, counts = np.unique(seeds, axis=0, return_counts=True)
        assert values[counts.argmax()].tolist() == [28 + row, col % 72]
    outside = 16.5 * tower
    _, _, fits = images_of(pt=[100.0], eta=[outside], kind=[NEUTRAL], axis=(outside, 0.0))
    assert not fits.any()


# Sample


def test_shards_depend_on_their_seed_alone(shard, small_pools) -> None:
    again = top_gun.simulate_shard(JETS, "nominal", np.random.SeedSequence(1))
    for name, values in shard.items():
        np.testing.assert_array_equal(again[name], values)
    other = top_gun.simulate_shard(5, "nominal", np.random.SeedSequence(2))
    assert not np.isin(other["m"], shard["m"]).any()


def test_masses_are_flat_whatever_was_lost(shard) -> None:
    """Exactly the masses that were drawn: the same generator, the same numbers."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(1)))
    drawn = boosted_events.flat_masses(JETS, rng)
    np.testing.assert_allclose(np.sort(shard["m"]), np.sort(drawn), atol=1e-6)
    assert MASS_RANGE[0] <= drawn.min()
    assert drawn.max() <= MASS_RANGE[1]


def test_published_numbers(shard) -> None:
    """Statistics of the official images; tolerances: what 500 jets and small pools leave."""
    images = boosted.unpacked(shard)
    assert np.isfinite(images).all()
    ours = calibration.moments(np.array_split(images, 25))
    zeros, means = calibration.TOP_ZEROS, calibration.TOP_ACTIVE_MEANS
    np.testing.assert_allclose(ours["zeros"], zeros, atol=0.3)
    np.testing.assert_allclose(ours["zeros"][:3], zeros[:3], atol=0.06)
    np.testing.assert_allclose(ours["active"][5:], 31, rtol=0.2)
    np.testing.assert_allclose(ours["active_mean"][[0, 3, 4]], np.take(means, (0, 3, 4)), rtol=0.15)
    np.testing.assert_allclose(ours["active_mean"][5:], means[5:], atol=0.03)
    log, square = ours["log_mean"].mean(), (ours["log_std"] ** 2 + ours["log_mean"] ** 2).mean()
    assert (log, np.sqrt(square - log**2)) == pytest.approx(calibration.TOP_LOG, rel=0.08)
    for channel, ratio in calibration.TOP_POSITIVE.items():  # amplitudes; tails are long
        expected = ratio * calibration.FIRST_TOP_POSITIVE[channel]
        assert ours["positive"][channel] == pytest.approx(expected, rel=0.6)
        pixels = images[:, channel][images[:, channel] != 0]
        assert (pixels > 0).mean() == pytest.approx(0.5, abs=0.03)
    assert (shard["pt"] >= 400).all()
    assert (shard["pt"] <= 1000).all()
    # Errors of 500 jets: 8 GeV, 0.045
    assert shard["pt"].mean() == pytest.approx(calibration.TOP_PTS[0], abs=20)
    assert abs(np.corrcoef(shard["m"], shard["pt"])[0, 1]) < 0.12
    assert shard["ieta"].std() == pytest.approx(calibration.TOP_IETA_STD, rel=0.12)
    assert shard["ieta"].min() >= 12
    assert shard["ieta"].max() <= 43
    assert shard["iphi"].min() >= 0
    assert shard["iphi"].max() <= 71
    assert images[:, 0].min() == 0
    assert np.abs(images[:, 1]).max() > 100  # tracks of other collisions
    hits = images[:, 5:]
    assert (hits == np.round(hits)).all()


def test_images_know_the_mass(shard) -> None:
    """The mass of the ECAL pixels alone goes with the top's."""
    images = boosted.unpacked(shard)
    energy = np.maximum(images[:, 3:5].sum(axis=1), 0).reshape(JETS, -1).astype(float)
    angle = (np.arange(125) - 62) * np.pi / 180
    eta, phi = np.repeat(angle, 125), np.tile(angle, 125)
    axes = np.stack([np.cos(phi), np.sin(phi), np.sinh(eta)]) / np.cosh(eta)
    momentum = energy @ axes.T
    proxy = np.sqrt(np.maximum(energy.sum(1) ** 2 - (momentum**2).sum(1), 0))
    assert np.corrcoef(proxy, shard["m"])[0, 1] > 0.35
