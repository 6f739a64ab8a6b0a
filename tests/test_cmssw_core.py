"""C++ path of task 2f: frames against a naive numpy cropping, scores against Python, refusals."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from e2e_utils.errors import InputError
from task2f_cmssw_inference.cmssw.standalone import build as standalone

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on the PATH")
pytestmark = needs_compiler


@pytest.fixture(scope="session")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return standalone.build(tmp_path_factory.mktemp("build"))


@pytest.fixture(scope="session")
def library() -> Path:
    return standalone.find_library()


def write_model(
    path: Path,
    input_name: str = "modelInput",
    output_name: str = "modelOutput",
    shape: tuple = ("batch", 1, 32, 32),
    element: int = TensorProto.FLOAT,
    opset: int = 10,
    sigmoid: bool = True,
) -> Path:
    """A linear model, different weight for every pixel: any shift changes it."""
    pixels = int(np.prod(shape[1:]))
    weight = np.random.default_rng(5).normal(scale=0.1, size=(pixels, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", [input_name], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["float"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "weight"], ["logit"]),
        helper.make_node("Sigmoid" if sigmoid else "Identity", ["logit"], [output_name]),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info(input_name, element, shape)],
        [helper.make_tensor_value_info(output_name, TensorProto.FLOAT, (shape[0], 1))],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=5)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "linear.onnx")


def crystals(ieta: np.ndarray | int, iphi: np.ndarray | int) -> np.ndarray:
    """(ieta, iphi) of crystals, (n, 2)."""
    return np.stack(np.broadcast_arrays(ieta, iphi), axis=-1).reshape(-1, 2)


def frame_of(ieta: np.ndarray, iphi: np.ndarray, energy: np.ndarray, seed: tuple) -> np.ndarray:
    """(32, 32) around the seed (ieta, iphi): the whole map, padded and rolled."""

    def row(ieta: int) -> int:
        return (ieta - 1 if ieta > 0 else ieta) + 85

    full = np.zeros((170, 360), np.float32)
    for eta, phi, value in zip(ieta, iphi, energy, strict=True):
        if value > 0:
            full[row(eta), phi - 1] = value
    padded = np.pad(full, ((32, 32), (0, 0)))
    rolled = np.roll(padded, 15 - (seed[1] - 1), axis=1)
    top = 32 + row(seed[0]) - 15
    return rolled[top : top + 32, :32]


def random_crystals(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Different crystals: ieta, iphi (n,) int; energy (n,) float32 of both signs."""
    index = rng.choice(170 * 360, n, replace=False)
    row, column = index // 360, index % 360
    ieta = np.where(row < 85, row - 85, row - 84)
    return ieta, column + 1, rng.normal(1, 2, n).astype(np.float32)


@pytest.fixture
def run(binary: Path, library: Path, model: Path, tmp_path: Path) -> Callable[..., tuple]:
    """Score events; frames (photons, 32, 32), scores (photons,), what was measured."""

    def call(events: list, model: Path = model, **options: object) -> tuple:
        file = standalone.write_events(tmp_path / "events.bin", events)
        dump = tmp_path / "frames.f32"
        scores, timing = standalone.score_events(
            binary, library, model, file, frames=dump, **options
        )
        return np.fromfile(dump, "<f4").reshape(-1, 32, 32), scores, timing

    return call


def test_seed_lands_on_15_15_and_neighbours_beside_it(run) -> None:
    ieta, iphi, energy = np.array([20, 21, 20, 19]), np.array([100, 100, 101, 99]), [50, 2, 3, 4]
    frames, *_ = run([(crystals(ieta, iphi), energy, [(20, 100)])])
    assert frames[0, 15, 15] == 50
    assert frames[0, 16, 15] == 2  # rows along eta
    assert frames[0, 15, 16] == 3  # columns along phi
    assert frames[0, 14, 14] == 4
    assert np.count_nonzero(frames) == 4


def test_no_gap_between_the_halves_of_the_barrel(run) -> None:
    frames, *_ = run([(crystals(np.array([1, -1]), 10), [5, 6], [(1, 10)])])
    assert frames[0, 15, 15] == 5
    assert frames[0, 14, 15] == 6


@pytest.mark.parametrize("ieta", [85, -85])
def test_zero_padding_beyond_the_eta_edge(run, ieta) -> None:
    every = np.array([e for e in range(-85, 86) if e])
    frames, *_ = run([(crystals(every, 50), np.ones(170), [(ieta, 50)])])
    expected = np.zeros(32)
    expected[slice(None, 16) if ieta > 0 else slice(15, None)] = 1
    np.testing.assert_array_equal(frames[0, :, 15], expected)


def test_phi_wraps(run) -> None:
    iphi = np.arange(1, 361)
    events = [(crystals(5, iphi), iphi, [(5, seed)]) for seed in (1, 360, 16, 344)]
    frames, *_ = run(events)
    for frame, seed in zip(frames, (1, 360, 16, 344), strict=True):
        expected = (np.arange(seed - 15, seed + 17) - 1) % 360 + 1
        np.testing.assert_array_equal(frame[15], expected)


def test_frames_equal_naive_cropping_on_random_events(run) -> None:
    rng = np.random.default_rng(1)
    events, expected = [], []
    for _ in range(40):
        ieta, iphi, energy = random_crystals(int(rng.integers(1, 4000)), rng)
        chosen = rng.integers(0, len(ieta), int(rng.integers(0, 5)))
        events.append((crystals(ieta, iphi), energy, crystals(ieta[chosen], iphi[chosen])))
        expected += [frame_of(ieta, iphi, energy, (ieta[i], iphi[i])) for i in chosen]
    frames, *_ = run(events)
    np.testing.assert_array_equal(frames, np.array(expected))


def test_scores_equal_python_on_the_same_events(run, model) -> None:
    rng = np.random.default_rng(2)
    events, expected = [], []
    for n_photons in [0, 1, 2, 2, 7, 64, 0]:
        ieta, iphi, energy = random_crystals(3000, rng)
        chosen = rng.integers(0, len(ieta), n_photons)
        events.append((crystals(ieta, iphi), energy, crystals(ieta[chosen], iphi[chosen])))
        expected += [frame_of(ieta, iphi, energy, (ieta[i], iphi[i])) for i in chosen]
    _, scores, timing = run(events)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    python = session.run(None, {"modelInput": np.array(expected)[:, None]})[0].ravel()
    np.testing.assert_allclose(scores["score"], python, atol=1e-6)
    assert scores["event"].value_counts().to_dict() == {1: 1, 2: 2, 3: 2, 4: 7, 5: 64}
    assert scores["photon"].tolist()[:5] == [0, 0, 1, 0, 1]
    assert timing["photons"] == 76
    assert timing["events"] == 7
    assert timing["engine"] == onnxruntime.__version__


def test_photon_without_seed_has_no_frame_and_scores_minus_one(run) -> None:
    frames, scores, _ = run([([(3, 4)], [9.0], [(0, 0), (3, 4)])])
    assert frames.shape == (1, 32, 32)
    assert frames[0, 15, 15] == 9
    assert scores["score"][0] == -1
    assert 0 < scores["score"][1] < 1


def test_hits_outside_the_barrel_and_without_energy_are_ignored(run) -> None:
    hits = [(0, 0), (20, 100), (20, 101), (20, 102), (86, 100), (20, 361)]
    frames, *_ = run([(hits, [7.0, 8.0, -1.0, 0.0, 5.0, 5.0], [(20, 100)])])
    assert frames.sum() == 8


def test_event_without_hits_or_photons(run) -> None:
    frames, scores, timing = run([([], [], [(0, 0)]), ([], [], []), ([(3, 4)], [1], [])])
    assert len(frames) == 0
    assert scores["score"].tolist() == [-1]
    assert timing["event_us"].shape == (3,)


def test_session_per_event_gives_the_same_scores_slower(run) -> None:
    rng = np.random.default_rng(3)
    ieta, iphi, energy = random_crystals(500, rng)
    event = (crystals(ieta, iphi), energy, crystals(ieta[:2], iphi[:2]))
    _, one, fast = run([event] * 20, warmup=5)
    _, per_event, slow = run([event] * 20, session_per_event=True, warmup=2)
    assert one["score"].tolist() == per_event["score"].tolist()
    assert fast["mode"] == "one session"
    assert slow["mode"] == "session per event"
    assert fast["event_us"].shape == slow["event_us"].shape == (20,)
    assert (fast["event_us"] > 0).all()
    assert np.median(slow["event_us"]) > np.median(fast["event_us"])
    assert slow["session_ms"] > 0
    assert fast["session_ms"] > 0


def test_the_unit_test_of_the_package_holds(tmp_path) -> None:
    """What `scram b runtests` runs, with the compiler of this machine."""
    program = tmp_path / "testPhotonFrames"
    sources = [
        standalone.PACKAGE / name for name in ("test/testPhotonFrames.cc", "src/PhotonFrames.cc")
    ]
    command = ["g++", *standalone.FLAGS, f"-I{standalone.CMSSW}", *sources, "-o", program]
    subprocess.run(command, check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_build_is_cached_and_says_what_is_missing(binary) -> None:
    before = binary.stat().st_mtime_ns
    assert standalone.build(binary.parent) == binary
    assert binary.stat().st_mtime_ns == before
    assert list(binary.parent.iterdir()) == [binary]
    with pytest.raises(InputError, match=r"no-such-compiler: expected a C\+\+17 compiler"):
        standalone.build(binary.parent, cxx="no-such-compiler")


EVENT = ([(3, 4)], [9.0], [(3, 4)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_name": "x"}, "expected one input 'modelInput', found 'x'; export it"),
        ({"output_name": "y"}, "expected one output 'modelOutput', found 'y'; export it"),
        ({"shape": ("batch", 2, 32, 32)}, r"shape \(free, 1, 32, 32\), found \(free, 2, 32, 32\)"),
        ({"shape": (1, 1, 32, 32)}, r"shape \(free, 1, 32, 32\), found \(1, 1, 32, 32\)"),
        ({"element": TensorProto.DOUBLE}, "the first input is no float32 tensor"),
        ({"opset": 99}, "expected a model that ONNX Runtime .* can load, found: "),
    ],
)
def test_unsuitable_models_are_refused(run, tmp_path, change, message) -> None:
    with pytest.raises(InputError, match=message) as error:
        run([EVENT], model=write_model(tmp_path / "bad.onnx", **change))
    assert "bad.onnx" in str(error.value) or "float32" in message
    assert "\n" not in str(error.value)


def test_missing_and_foreign_files_are_refused(run, binary, model, tmp_path) -> None:
    with pytest.raises(InputError, match=r"no\.onnx: expected an ONNX model, found no file"):
        run([EVENT], model=tmp_path / "no.onnx")
    text = tmp_path / "text.onnx"
    text.write_text("not a model")
    with pytest.raises(InputError, match=r"text\.onnx: expected a model that ONNX Runtime"):
        run([EVENT], model=text)
    events = standalone.write_events(tmp_path / "good.bin", [EVENT])
    with pytest.raises(InputError, match=r"no\.so: expected a shared library of ONNX Runtime"):
        standalone.score_events(binary, tmp_path / "no.so", model, events)
    with pytest.raises(InputError, match="found no OrtGetApiBase"):
        standalone.score_events(binary, "libm.so.6", model, events)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-1], "expected 1 more values, found 7 bytes"),
        (lambda content: content + b"\0", "expected the end of the file, found 1 more bytes"),
        (lambda content: content[:10], "expected 3 more values, found 10 bytes"),
        (lambda content: b"\xff" * 8 + content[8:], "expected counts of zero or more"),
        (lambda content: content[:24] + b"\1" + content[25:], "expected offsets that rise"),
        (lambda _: None, "expected an event file, found no file"),
    ],
)
def test_broken_event_files_are_refused(binary, library, model, tmp_path, damage, message) -> None:
    path = standalone.write_events(tmp_path / "events.bin", [EVENT])
    content = damage(path.read_bytes())
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(InputError, match=rf"events\.bin: {message}"):
        standalone.score_events(binary, library, model, path)


def test_command_line_is_checked_with_exit_code_2(binary) -> None:
    for arguments, message in [
        ([], "expected --model, found none"),
        (["--no-such"], "found '--no-such'"),
        (["--model"], "found '--model'"),
        (["--model", "m", "--warmup", "x"], "expected an integer of at least 0 for --warmup"),
    ]:
        run = subprocess.run([binary, *arguments], capture_output=True, text=True)
        assert run.returncode == 2
        assert run.stderr.startswith("error: command line: ")
        assert message in run.stderr


def test_unequal_columns_are_refused_before_writing(tmp_path) -> None:
    with pytest.raises(InputError, match="found 2 crystals and 1 energies in event 1"):
        standalone.write_events(tmp_path / "events.bin", [EVENT, ([(1, 2), (1, 3)], [1.0], [])])
    assert not list(tmp_path.iterdir())


def test_other_engine_gives_the_same_scores(binary, library, model, tmp_path) -> None:
    """A second, older library (npm package onnxruntime-node), where one is named."""
    other = os.environ.get("E2E_ONNXRUNTIME_LIBRARY")
    if not other:
        pytest.skip("E2E_ONNXRUNTIME_LIBRARY names no second libonnxruntime.so")
    events = standalone.write_events(tmp_path / "events.bin", [EVENT] * 3)
    new, _ = standalone.score_events(binary, library, model, events)
    old, timing = standalone.score_events(binary, other, model, events)
    np.testing.assert_allclose(old["score"], new["score"], atol=1e-6)
    assert timing["engine"] in other
