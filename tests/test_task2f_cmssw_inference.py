"""The notebook of task 2f: adapter, export, refusals, ROOT reader, seeds and frames, engines."""

import dataclasses
import shutil

import awkward as ak
import numpy as np
import onnx
import pytest
import torch
import uproot
from torch import nn

from data.catalog import dataset
from data.simulate.two_photons import barrel_id
from e2e_utils import paths
from e2e_utils.errors import InputError
from e2e_utils.notebook import load_definitions
from e2e_utils.onnx_export import check_parity, export_onnx
from e2e_utils.paths import script_path
from task2f_cmssw_inference.engines import (
    OLD_ENGINES,
    EngineMissing,
    current_python,
    interpreter,
    run_worker,
)
from task2f_cmssw_inference.prepare import find_interpreter, install
from task2f_cmssw_inference.root_events import BRANCHES, BarrelEvents, decode, read_events

task = load_definitions("task2f_cmssw_inference")
BATCHES = task.BATCHES


def random_frames(n: int, seed: int = 0) -> np.ndarray:
    """Frames (n, 1, 32, 32) with about 5 % hits of exponential energies in GeV."""
    rng = np.random.default_rng(seed)
    energy = rng.exponential(2.0, (n, 1, 32, 32)) * (rng.random((n, 1, 32, 32)) < 0.05)
    if n:
        energy[:, 0, 15, 15] = rng.uniform(20, 60, n)
    return energy.astype(np.float32)


@pytest.fixture(scope="module")
def graph() -> nn.Module:
    """The graph around an untrained network whose output depends on its input."""
    torch.manual_seed(0)
    network = task.TASK1.build_model("energy_only")
    for module in network.modules():  # the residual branches begin at zero
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    with torch.no_grad():  # scores spread over (0, 1)
        network.head[1].weight *= 100
    return task.CmsswGraph(task.TASK1.MeanLogit(network)).eval()


def exported(graph: nn.Module, path, **changes):
    options = {"inputs": ["modelInput"], "outputs": ["modelOutput"], "opset": 10, "ir": 5} | changes
    channels = options.get("channels", 1)
    export_onnx(
        graph, torch.zeros(2, channels, 32, 32), path, options["inputs"], options["outputs"], {},
        options["opset"], options["ir"],
    )  # fmt: skip
    return path


# Adapter ------------------------------------------------------------------------------------------


def test_frames_hold_the_seed_at_15_and_gev():
    x = torch.zeros(1, 2, 32, 32)
    x[0, 0, 16, 16] = 0.8
    frame = task.to_frames(x)
    assert frame.shape == (1, 1, 32, 32)
    assert frame[0, 0, 15, 15] == pytest.approx(40.0)
    assert frame.sum() == pytest.approx(40.0)


def test_the_adapter_undoes_the_frame_except_for_the_crystals_16_before_the_seed():
    x = torch.rand(3, 2, 32, 32)
    back = task.to_training_form(task.to_frames(x))
    expected = x[:, :1].clone()
    expected[:, :, 0, :] = 0
    expected[:, :, :, 0] = 0
    torch.testing.assert_close(back, expected)


def test_the_adapter_cuts_off_the_crystals_16_after_the_seed():
    frames = torch.rand(2, 1, 32, 32)
    changed = frames.clone()
    changed[:, :, 31, :] = 99.0
    changed[:, :, :, 31] = 99.0
    torch.testing.assert_close(task.to_training_form(frames), task.to_training_form(changed))


# Export -------------------------------------------------------------------------------------------


def test_export_has_opset_10_and_ir_5_and_agrees_with_torch(graph, tmp_path):
    path = exported(graph, tmp_path / "model.onnx")
    model = task.check_model(path)
    assert model.ir_version == 5
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 10)]
    inputs = [random_frames(n) for n in BATCHES] + [np.zeros((1, 1, 32, 32), np.float32)]
    assert check_parity(graph, path, inputs, tolerance=1e-5) <= 1e-5
    scores = graph(torch.from_numpy(random_frames(64))).detach()
    assert scores.shape == (64, 1)
    assert scores.std() > 1e-3  # parity of a constant would mean nothing


def test_the_oldest_engine_of_cmssw_agrees_with_torch(graph, tmp_path):
    oldest = OLD_ENGINES[0]
    try:
        install(oldest)
    except EngineMissing as reason:
        pytest.skip(f"ONNX Runtime {oldest.version}: {reason}")
    frames = {f"batch{n}": random_frames(n) for n in BATCHES}
    frames["zero"] = np.zeros((1, 1, 32, 32), np.float32)
    path = exported(graph, tmp_path / "model.onnx")
    scores, report = run_worker(interpreter(oldest), path, frames, tmp_path / "state")
    assert report["engine"] == "1.0.0"
    for name, x in frames.items():
        wanted = graph(torch.from_numpy(x)).detach().numpy()
        assert scores[name].shape == wanted.shape
        np.testing.assert_allclose(scores[name], wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "expected", "found"),
    [
        ({"inputs": ["x"]}, "one input modelInput", "x ["),
        ({"outputs": ["y"]}, "one output modelOutput", "y ["),
        ({"opset": 13}, "opset 10 and IR 5", "13"),
        ({"ir": 8}, "opset 10 and IR 5", "IR 8"),
    ],
)
def test_other_models_are_refused(graph, tmp_path, changes, expected, found):
    path = exported(graph, tmp_path / "model.onnx", **changes)
    with pytest.raises(InputError, match=r"model\.onnx: expected") as error:
        task.check_model(path)
    assert expected in str(error.value)
    assert found in str(error.value).split("found")[1]


def test_two_channels_are_refused(tmp_path):
    network = nn.Sequential(nn.Flatten(), nn.Linear(2 * 32 * 32, 1)).eval()
    path = exported(network, tmp_path / "model.onnx", channels=2)
    with pytest.raises(InputError, match=r"modelInput \[batch, 1, 32, 32\] FLOAT, found .* 2, 32"):
        task.check_model(path)


def test_a_fixed_batch_is_refused(graph, tmp_path):
    path = exported(graph, tmp_path / "model.onnx")
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="found modelInput"):
        task.check_model(path)


def test_a_file_that_is_no_model_is_refused(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_text("not a model")
    with pytest.raises(InputError, match="expected an ONNX model"):
        task.check_model(path)


# ROOT file ----------------------------------------------------------------------------------------

HITS = "EcalRecHitsSorted_reducedEcalRecHitsEB__RECO.obj.obj."
PHOTONS = "recoPhotons_gedPhotons__RECO.obj.m_state.p4Polar_.fCoordinates."
GOOD = {
    f"{HITS}id_.id_": ak.Array([[838861313, 838861314], [], [838926849]]),
    f"{HITS}energy_": ak.Array([[1.5, 2.5], [], [3.5]]),
    f"{PHOTONS}fPt": ak.Array([[50.0, 40.0], [], [30.0]]),
    f"{PHOTONS}fEta": ak.Array([[0.1, -0.1], [], [1.0]]),
    f"{PHOTONS}fPhi": ak.Array([[0.0, 3.0], [], [-3.0]]),
}


def write_root(path, branches, tree="Events"):
    with uproot.recreate(path) as file:
        file.mktree(tree, {name: array.type for name, array in branches.items()})
        file[tree].extend(branches)
    return path


def test_events_come_back_as_written(tmp_path):
    events = read_events(write_root(tmp_path / "a.root", GOOD))
    assert len(events) == 3
    assert events.hit_offsets.tolist() == [0, 2, 2, 3]
    assert events.photon_offsets.tolist() == [0, 2, 2, 3]
    assert events.crystal.tolist() == [[-1, 1], [-1, 2], [1, 1]]
    np.testing.assert_allclose(events.energy, [1.5, 2.5, 3.5])
    np.testing.assert_allclose(events.eta, [0.1, -0.1, 1.0])


def test_missing_branches_are_named(tmp_path):
    branches = {k: v for k, v in GOOD.items() if not k.endswith(("energy_", "fPhi"))}
    with pytest.raises(InputError) as error:
        read_events(write_root(tmp_path / "a.root", branches))
    text = str(error.value).split("found none for")[1]
    assert "energy_" in text
    assert "fPhi" in text
    assert "fEta" not in text


def test_another_tree_and_another_file_are_refused(tmp_path):
    with pytest.raises(InputError, match="expected a tree Events, found Runs"):
        read_events(write_root(tmp_path / "a.root", GOOD, tree="Runs"))
    broken = tmp_path / "b.root"
    broken.write_bytes(b"no ROOT file at all" * 100)
    with pytest.raises(InputError, match="expected a ROOT file"):
        read_events(broken)
    whole = write_root(tmp_path / "c.root", GOOD).read_bytes()
    broken.write_bytes(whole[: len(whole) // 3])
    with pytest.raises(InputError, match=r"b\.root: expected"):
        read_events(broken)


def test_unequal_branches_are_refused(tmp_path):
    branches = GOOD | {f"{HITS}energy_": ak.Array([[1.5], [], [3.5]])}
    with pytest.raises(InputError, match="found 2 and 3"):
        read_events(write_root(tmp_path / "a.root", branches))


def test_the_catalog_names_the_branches_that_are_read():
    (entry,) = dataset("cmssw_double_photon")["file"]
    assert set(BRANCHES.values()) <= set(entry["keys"])


# Cropping -----------------------------------------------------------------------------------------


def event_of(hits, photons):
    """One event: hits (ieta, iphi, energy), photons (pt, eta, phi)."""
    ieta, iphi, energy = np.array(hits, float).reshape(-1, 3).T
    pt, eta, phi = np.array(photons, float).reshape(-1, 3).T
    crystal = np.stack([ieta, iphi], axis=1).astype(int)
    offsets = np.array([0, len(ieta)]), np.array([0, len(pt)])
    return BarrelEvents(offsets[0], crystal, energy.astype(np.float32), offsets[1], pt, eta, phi)


def direction(ieta, iphi):
    """(eta, phi) of a crystal's middle."""
    eta = (abs(ieta) - 0.5) * np.pi / 180 * np.sign(ieta)
    return eta, np.deg2rad((iphi - 10.5 + 180) % 360 - 180)


def naive_frame(events, seed):
    """The definition of the frame, crystal by crystal."""

    def place(ieta, iphi):
        return (ieta - 1 if ieta > 0 else ieta) + 85, iphi - 1

    hits = zip(events.crystal.tolist(), events.energy, strict=True)
    energies = {place(*crystal): energy for crystal, energy in hits}
    row, column = place(*seed)
    frame = np.zeros((32, 32), np.float32)
    for i in range(32):
        for j in range(32):
            frame[i, j] = max(energies.get((row - 15 + i, (column - 15 + j) % 360), 0.0), 0.0)
    return frame


def test_known_crystal_numbers():
    assert barrel_id(np.array([-1, 1]), np.array([1, 1])).tolist() == [838861313, 838926849]


def test_decoding_inverts_the_crystal_number_and_every_crystal_has_a_place():
    ieta = np.concatenate([np.arange(-85, 0), np.arange(1, 86)]).repeat(360)
    iphi = np.tile(np.arange(1, 361), 170)
    crystal = decode(barrel_id(ieta, iphi))
    np.testing.assert_array_equal(crystal, np.stack([ieta, iphi], axis=1))
    row, column = task.place(crystal)
    np.testing.assert_array_equal(row * 360 + column, np.arange(170 * 360))


@pytest.mark.parametrize(
    ("ieta", "iphi"), [(10, 180), (1, 100), (-1, 100), (82, 50), (-82, 50), (30, 1), (30, 360)]
)
def test_frames_are_the_naive_ones_also_at_the_edges(ieta, iphi):
    rng = np.random.default_rng(abs(ieta) + iphi)
    around = [
        ((ieta + d) - (ieta + d <= 0 < ieta) + (ieta + d >= 0 > ieta), (iphi + e - 1) % 360 + 1)
        for d, e in rng.integers(-20, 21, (150, 2))
        if (d, e) != (0, 0)
    ]
    around = {(a, b): rng.uniform(-0.2, 3.0) for a, b in around if 1 <= abs(a) <= 85}
    around[ieta, iphi] = 40.0
    hits = [(a, b, energy) for (a, b), energy in around.items()]
    events = event_of(hits, [(50, *direction(ieta, iphi))])
    seeds = task.find_seeds(events)
    assert seeds.tolist() == [[ieta, iphi]]
    frames = task.crop_frames(events, seeds)
    assert frames.shape == (1, 1, 32, 32)
    assert frames[0, 0, 15, 15] == 40.0
    np.testing.assert_array_equal(frames[0, 0], naive_frame(events, seeds[0].tolist()))


def test_no_photons_no_hits_and_photons_outside_give_no_frames():
    none = event_of([(5, 5, 1)], [])
    assert task.crop_frames(none, task.find_seeds(none)).shape == (0, 1, 32, 32)
    hits = [(5, 30, 60.0)]
    eta, phi = direction(5, 30)
    for photons in ([(50, eta, phi + 1.5)], [(9.9, eta, phi)], [(50, 1.45, phi)]):
        events = event_of(hits, photons)
        seeds = task.find_seeds(events)
        assert seeds.tolist() == [[0, 0]]
        assert task.crop_frames(events, seeds).shape == (0, 1, 32, 32)
    nothing = event_of([], [(50, eta, phi)])
    assert task.find_seeds(nothing).tolist() == [[0, 0]]
    negative = event_of([(5, 30, -1.0)], [(50, eta, phi)])
    assert task.find_seeds(negative).tolist() == [[0, 0]]


def test_two_photons_keep_to_their_own_hits_and_event():
    a, b = (20, 90), (-20, 270)
    hits = [(*a, 30.0), (21, 90, 5.0), (*b, 45.0), (-20, 271, 4.0)]
    events = event_of(hits, [(50, *direction(*b)), (50, *direction(*a))])
    seeds = task.find_seeds(events)
    assert seeds.tolist() == [list(b), list(a)]
    frames = task.crop_frames(events, seeds)
    assert frames.sum((1, 2, 3)).tolist() == [49.0, 35.0]
    shifted = dataclasses.replace(
        events, hit_offsets=np.array([0, 2, 4]), photon_offsets=np.array([0, 1, 2])
    )  # the photons now belong to events that hold the other's hits
    assert task.find_seeds(shifted).tolist() == [[0, 0], [0, 0]]


def test_cpp_and_python_crop_the_same_frames_and_give_the_same_scores(graph, tmp_path):
    from data.simulate.two_photons import generate
    from task2f_cmssw_inference.cmssw.standalone import build

    if not shutil.which("g++"):
        pytest.skip("there is no g++ on this machine")
    events = read_events(generate(30, tmp_path))
    seeds = task.find_seeds(events)
    has_frame = seeds[:, 0] != 0
    assert 10 < has_frame.sum() < len(seeds)
    frames = task.crop_frames(events, seeds)
    path = exported(graph, tmp_path / "model.onnx")

    def event(i):
        hits = slice(*events.hit_offsets[i : i + 2])
        photons = slice(*events.photon_offsets[i : i + 2])
        return events.crystal[hits], events.energy[hits], seeds[photons]

    source = build.write_events(tmp_path / "events.bin", map(event, range(len(events))))
    found, timing = build.score_events(
        build.build(tmp_path), build.find_library(), path, source, frames=tmp_path / "frames.f32"
    )
    cropped = np.fromfile(tmp_path / "frames.f32", np.float32).reshape(frames.shape)
    np.testing.assert_array_equal(cropped, frames)
    wanted = graph(torch.from_numpy(frames)).detach().numpy()[:, 0]
    score = found["score"].to_numpy()
    np.testing.assert_allclose(score[has_frame], wanted, atol=1e-5)
    assert (score[~has_frame] == task.NO_SCORE).all()
    assert timing["event_us"].shape == (30,)


# Engines ------------------------------------------------------------------------------------------


def test_the_worker_times_both_ways_and_scores(graph, tmp_path):
    path = exported(graph, tmp_path / "model.onnx")
    frames = {"pairs": random_frames(6), "one": random_frames(1)}
    scores, report = run_worker(current_python(), path, frames, tmp_path / "w", 5, 2)
    for name, x in frames.items():
        wanted = graph(torch.from_numpy(x)).detach().numpy()
        np.testing.assert_allclose(scores[name], wanted, atol=1e-5)
    assert {name: len(times) for name, times in report["timing"].items()} == {
        task.KEPT: 5, task.PER_EVENT: 2,
    }  # fmt: skip
    assert not list((tmp_path / "w").iterdir())
    _, report = run_worker(current_python(), path, frames, tmp_path / "w")
    assert report["timing"] == {}


def test_a_worker_that_fails_says_why(tmp_path):
    with pytest.raises(RuntimeError, match=r"missing\.onnx"):
        run_worker(current_python(), tmp_path / "missing.onnx", {"a": random_frames(1)}, tmp_path)


def test_an_interpreter_that_is_not_there_is_named():
    with pytest.raises(EngineMissing, match=r"no CPython 9\.9"):
        find_interpreter("9.9")


def test_a_wheel_of_another_hash_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "BUILD", tmp_path)
    engine = dataclasses.replace(OLD_ENGINES[1], sha256="0" * 64)
    try:
        find_interpreter(engine.python)
    except EngineMissing as reason:
        pytest.skip(str(reason))
    with pytest.raises(EngineMissing, match="installation failed"):
        install(engine)
    with pytest.raises(EngineMissing, match="not installed"):
        interpreter(engine)


def test_the_notebook_installs_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "BUILD", tmp_path)
    source = script_path("task2f_cmssw_inference").read_text()
    assert "task2f_cmssw_inference.prepare" not in source
    for engine in OLD_ENGINES:
        with pytest.raises(EngineMissing, match="make data"):
            interpreter(engine)
    assert list(tmp_path.iterdir()) == []
