"""What of the CMSSW package can be tested without CMSSW: producer, configuration, docker script."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import types
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from task2f_cmssw_inference.cmssw.standalone import build as standalone
from tests.test_cmssw_core import raw_id, write_model
from tests.test_cmssw_timing import RESOURCES

CMSSW = standalone.CMSSW
PRODUCER = standalone.PACKAGE / "plugins/ElectronPhotonProducer.cc"
CONFIGURATION = standalone.PACKAGE / "test/EGInference_cfg.py"
SCRIPT = CMSSW / "run_in_docker.sh"
MOCKS = Path(__file__).parent / "cmssw_mocks"
OF_CMSSW = re.compile(r'#include "((?!E2EInference)[\w/]+\.h)"')

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on the PATH")


# --- the producer, on stand-ins of the CMSSW classes


@pytest.fixture(scope="module")
def producer(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Compiler of the producer with the stand-ins, for either signature of ONNXRuntime::run."""
    folder = tmp_path_factory.mktemp("producer")
    for header in OF_CMSSW.findall(PRODUCER.read_text()):
        path = folder / "include" / header
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('#include "cmssw.h"\n')

    def compile_with(*definitions: str) -> Path:
        program = folder / "-".join(["producer", *definitions])
        if program.exists():
            return program
        places = [folder / "include", MOCKS, CMSSW, CMSSW / "standalone", PRODUCER.parent]
        sources = [MOCKS / "run_producer.cc", standalone.PACKAGE / "src/PhotonFrames.cc"]
        command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror"]
        command += [f"-D{name}" for name in definitions] + [f"-I{place}" for place in places]
        subprocess.run([*command, *sources, "-o", program, "-ldl"], check=True)
        return program

    return compile_with


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return standalone.build(tmp_path_factory.mktemp("build"))


def run_producer(program: Path, model: Path, lines: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        [program, model],
        input="\n".join(lines),
        env={**os.environ, "E2E_ONNXRUNTIME_LIBRARY": str(standalone.find_library())},
        capture_output=True,
        text=True,
    )


@needs_compiler
@pytest.mark.parametrize("signature", [(), ("OLD_RUN",)])
def test_producer_gives_the_scores_of_the_standalone_path(
    producer, binary, tmp_path, signature
) -> None:
    model = write_model(tmp_path / "model.onnx")
    hits = {int(raw_id(40, iphi)): iphi - 89 for iphi in range(90, 121)}
    strongest, weak = int(raw_id(40, 120)), int(raw_id(40, 90))
    endcap = (3 << 28) | (2 << 25) | 5
    # (pt, eta, crystals of the supercluster), and the seed that follows from them
    photons = [
        ((50, 0.7, [weak, strongest, endcap]), strongest),
        ((50, 0.7, [weak]), weak),
        ((9, 0.7, [weak]), 0),
        ((50, -1.5, [weak]), 0),
        ((50, 0.7, [endcap]), 0),
    ]
    chosen = [[0, 1], [], [2, 3, 4, 0], [1]]
    head = f"{len(hits)} " + " ".join(f"{key} {value}" for key, value in hits.items())
    lines, events = [], []
    for numbers in chosen:
        texts = [(pt, eta, len(ids), *ids) for (pt, eta, ids), _ in (photons[i] for i in numbers)]
        lines.append(f"{head} {len(numbers)} " + " ".join(" ".join(map(str, t)) for t in texts))
        events.append((list(hits), list(hits.values()), [photons[i][1] for i in numbers]))

    done = run_producer(producer(*signature), model, lines)
    assert done.returncode == 0, done.stderr
    *found, counts = done.stdout.split("\n")[:-1]
    assert counts == "1 3"  # sessions of the job; runs of four events, of which one has no photon
    file = standalone.write_events(tmp_path / "events.bin", events)
    expected, _ = standalone.score_events(binary, standalone.find_library(), model, file)
    assert [len(line.split()) for line in found] == [2, 0, 4, 1]
    np.testing.assert_array_equal(
        np.array(" ".join(found).split(), np.float32), expected["score"].to_numpy(np.float32)
    )


@needs_compiler
def test_producer_refuses_models_before_the_first_event(producer, tmp_path) -> None:
    program = producer()
    for change, message in [
        ({"input_name": "x"}, "expected an input 'modelInput' of shape [batch, 1, 32, 32], found"),
        ({"shape": ("batch", 2, 32, 32)}, "wrong size of 1024, expected 2048"),
        ({"output_name": "y"}, "expected one output 'modelOutput', found 'y'"),
        ({"opset": 99}, "expected a model that this release's ONNX Runtime can load"),
    ]:
        done = run_producer(program, write_model(tmp_path / "bad.onnx", **change), [])
        assert done.returncode == 65
        assert done.stderr.startswith("Configuration: ")
        assert "bad.onnx" in done.stderr
        assert message in done.stderr
    done = run_producer(program, tmp_path / "no.onnx", [])
    assert "Unable to find file" in done.stderr


def test_build_files_name_the_packages_of_the_headers() -> None:
    plugins = ElementTree.parse(standalone.PACKAGE / "plugins/BuildFile.xml").getroot()
    used = {use.get("name") for use in plugins.iter("use")}
    included = set(re.findall(r'#include "(\w+/\w+)/interface/', PRODUCER.read_text()))
    assert included == used
    assert [flag.attrib for flag in plugins.iter("flags")] == [{"EDM_PLUGIN": "1"}]
    assert ElementTree.parse(standalone.PACKAGE / "BuildFile.xml").getroot().tag == "export"


# --- the configuration, on a stand-in of FWCore


class Recorded:
    """A module, service or set of parameters that remembers how it was made."""

    def __init__(self, *arguments: object, **values: object) -> None:
        self.type = arguments[0] if arguments else None
        self.__dict__.update(values)

    def clone(self, **values: object) -> "Recorded":
        known = {key: value for key, value in self.__dict__.items() if key != "type"}
        assert set(values) <= set(known), "clone() of CMSSW refuses unknown parameters"
        return Recorded(self.type, **{**known, **values})


class Process(Recorded):
    def load(self, name: str) -> None:
        self.__dict__.setdefault("loaded", []).append(name)
        if name.endswith("MessageLogger_cfi"):
            self.MessageLogger = Recorded(cerr=Recorded(FwkReport=Recorded()))
        if name.endswith("GlobalTag_cff"):
            self.GlobalTag = Recorded()


def mock_varparsing() -> type:
    """VarParsing("analysis") as far as its command line goes: names, types, lists."""

    class VarParsing:
        multiplicity = types.SimpleNamespace(singleton="singleton", list="list")
        varType = types.SimpleNamespace(string=str, int=int)

        def __init__(self, kind: str) -> None:
            assert kind == "analysis"
            self._types: dict[str, type] = {}
            self.register("maxEvents", -1, "singleton", int, "")
            self.register("outputFile", "output.root", "singleton", str, "")
            self.inputFiles: list[str] = []

        def register(self, name: str, default: object, mult: str, kind: type, info: str) -> None:
            assert "_" not in name, "VarParsing takes what follows an underscore as a command"
            assert (mult, name in self._types) == ("singleton", False)
            self._types[name] = kind
            setattr(self, name, default)

        def parseArguments(self) -> None:
            for argument in sys.argv[1:]:
                name, value = argument.split("=", 1)
                if name == "inputFiles":
                    self.inputFiles += value.split(",")
                else:
                    setattr(self, name, self._types[name](value))

    return VarParsing


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Process]:
    """Run EGInference_cfg.py with a command line; the process it makes."""
    config = types.ModuleType("FWCore.ParameterSet.Config")
    for name in ("Source", "Service", "Path", "EndPath", "OutputModule"):
        setattr(config, name, Recorded)
    config.Process = Process
    plain = {name: lambda value: value for name in ("bool", "string", "int32", "uint32")}
    untracked = types.SimpleNamespace(**plain, PSet=Recorded, vstring=lambda *values: list(values))
    config.untracked = untracked
    varparsing = types.ModuleType("FWCore.ParameterSet.VarParsing")
    varparsing.VarParsing = mock_varparsing()
    cfi = types.ModuleType("E2EInference.ElectronPhoton.electronPhotonProducer_cfi")
    # As scram writes it from fillDescriptions: every name that the C++ declares.
    names = re.findall(r'description\.add<[\w:]+>\("(\w+)"', PRODUCER.read_text())
    cfi.electronPhotonProducer = Recorded("ElectronPhotonProducer", **dict.fromkeys(names))
    for module in (config, varparsing, cfi):
        parts = module.__name__.split(".")
        for i in range(1, len(parts)):
            parent = ".".join(parts[:i])
            if parent not in sys.modules:
                monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(sys.modules[".".join(parts[:-1])], parts[-1], module, raising=False)

    def run(*arguments: str) -> Process:
        monkeypatch.setattr(sys, "argv", [str(CONFIGURATION), *arguments])
        return runpy.run_path(str(CONFIGURATION))["process"]

    return run


def test_command_line_of_the_task_reaches_the_process(configure) -> None:
    process = configure(
        "inputFiles=file:SIM_DoubleGammaPt50_Pythia8_1000Ev.root", "maxEvents=7",
        "EGModelName=sample.onnx", "threads=3", "timingFile=t.json", "outputFile=o.root",
    )  # fmt: skip
    assert process.source.type == "PoolSource"
    assert process.source.fileNames == ["file:SIM_DoubleGammaPt50_Pythia8_1000Ev.root"]
    assert process.maxEvents.input == 7
    assert process.electronPhotonProducer.type == "ElectronPhotonProducer"
    assert process.electronPhotonProducer.model == "sample.onnx"
    assert process.options.numberOfThreads == process.options.numberOfStreams == 3
    assert process.FastTimerService.jsonFileName == "t.json"
    assert process.out.fileName == "o.root"


def test_defaults_time_every_event_on_one_thread(configure) -> None:
    process = configure("inputFiles=a.root,b.root")
    assert process.source.fileNames == ["a.root", "b.root"]
    assert process.maxEvents.input == -1
    assert process.options.numberOfThreads == 1
    assert process.FastTimerService.type == "FastTimerService"
    assert process.FastTimerService.writeJSONSummary is True
    assert process.FastTimerService.jsonFileName == "resources.json"
    assert process.GlobalTag.globaltag == "120X_upgrade2018_realistic_v1"
    assert process.p.type is process.electronPhotonProducer
    assert "keep *_electronPhotonProducer_*_*" in process.out.outputCommands
    assert process.e.type is process.out


def test_conditions_can_be_left_out(configure) -> None:
    process = configure("globalTag=none")
    assert not hasattr(process, "GlobalTag")
    assert all("GlobalTag" not in name for name in process.loaded)


# --- the docker script


def run_script(*arguments: str | Path, path: str | None = None) -> subprocess.CompletedProcess:
    environment = {**os.environ, **({} if path is None else {"PATH": path})}
    return subprocess.run(
        [shutil.which("bash"), SCRIPT, *arguments], capture_output=True, text=True, env=environment
    )


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "model.onnx", tmp_path / "input.root"
    for path in paths:
        path.touch()
    return paths


@pytest.fixture
def programs(tmp_path: Path) -> Callable[..., str]:
    """Maker of a PATH with the programs of the system that the script needs, and a docker."""

    def make(docker: str | None) -> str:
        folder = tmp_path / "bin"
        folder.mkdir()
        for name in ("dirname", "basename", "cat", "mkdir", "bash", "cp"):
            (folder / name).symlink_to(shutil.which(name))
        (folder / "python3").symlink_to(sys.executable)
        if docker is not None:
            (folder / "docker").write_text(f"#!/bin/bash\n{docker}\n")
            (folder / "docker").chmod(0o755)
        return str(folder)

    return make


def test_script_is_valid_bash_and_executable() -> None:
    assert subprocess.run(["bash", "-n", SCRIPT]).returncode == 0
    assert os.access(SCRIPT, os.X_OK)
    assert run_script("--help").stdout.startswith("usage: run_in_docker.sh")


def test_dry_run_prints_every_step_and_needs_no_docker(programs) -> None:
    done = run_script("--dry-run", "m.onnx", "i.root", "12_0_2", "50", path=programs(None))
    assert (done.returncode, done.stderr) == (0, "")
    steps = [
        "reads a file written by CMSSW_12_0_2  yes",
        "docker run --name ",
        "--cap-add SYS_ADMIN --device /dev/fuse",
        "ARCH=slc7_amd64_gcc900",
        "EVENTS=50",
        "clelange/cc7-cmssw-cvmfs /bin/bash -c",
        'scramv1 project CMSSW "CMSSW_$RELEASE"',
        "scram b -j",
        'cmsRun "$CMSSW_BASE/src/E2EInference/ElectronPhoton/test/EGInference_cfg.py"',
        "docker cp ",
        "parse_timing.py cmssw_12_0_2/resources.json",
    ]
    places = [done.stdout.index(step) for step in steps]
    assert places == sorted(places)
    inside = done.stdout.split("-c '\n")[1].split("\n'\n")[0]
    assert subprocess.run(["bash", "-n"], input=inside, text=True).returncode == 0


@pytest.mark.parametrize(
    ("options", "present", "absent"),
    [
        (["--image", "clelange/cmssw:12_0_2"], "clelange/cmssw:12_0_2 /bin/bash", "SYS_ADMIN"),
        (["--host-cvmfs"], "-v /cvmfs:/cvmfs --entrypoint", "SYS_ADMIN"),
        (["--arch", "el8_amd64_gcc11"], "ARCH=el8_amd64_gcc11", "slc7"),
        (["--threads", "4", "--global-tag", "120X"], "THREADS=4 -e GLOBAL_TAG=120X", "=none"),
        (["--output", "there"], "there/resources.json", "cmssw_12_0_2/resources.json"),
    ],
)
def test_options_of_the_script(options, present, absent) -> None:
    done = run_script("--dry-run", *options)
    assert done.returncode == 0
    assert present in done.stdout
    assert absent not in done.stdout


@pytest.mark.parametrize(
    ("release", "engine", "message"),
    [
        ("10_6_8_patch1", "none", "found none in it (first in 10_6_14); run 12_0_2 or newer"),
        ("11_0_1", "1.0.0", "expected PhysicsTools/ONNXRuntime, found ONNX Runtime 1.0.0 without"),
        ("11_1_0", "1.2.0", "found one written by CMSSW_12_0_2"),
        ("CMSSW_11_2_5", "1.3.0", "found one written by CMSSW_12_0_2"),
        ("11_3_0", "1.7.2", "found one written by CMSSW_12_0_2"),
        ("10_6_20", "1.3.0", "found one written by CMSSW_12_0_2"),
    ],
)
def test_releases_that_cannot_run_it_are_refused(release, engine, message) -> None:
    done = run_script("--dry-run", "m.onnx", "i.root", release)
    assert done.returncode == 2
    assert re.search(rf"ONNX Runtime +{re.escape(engine)}\n", done.stdout)
    assert re.search(r"reads a file written by CMSSW_12_0_2 +no\n", done.stdout)
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


@pytest.mark.parametrize("release", ["11_3_0", "12_0_2", "12_4_1_patch2", "13_0_0"])
def test_releases_that_can_run_it_are_accepted(release) -> None:
    done = run_script("--dry-run", "m.onnx", "i.root", release, "--written-by", "11_3_0")
    assert done.returncode == 0, done.stderr
    assert f"RELEASE={release} " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["m", "i", "twelve"], "RELEASE: expected a release like 12_0_2, found 'twelve'"),
        (["m", "i", "12_0_2; rm"], "RELEASE: expected a release like 12_0_2"),
        (["--written-by", "x"], "--written-by: expected a release like 12_0_2, found 'x'"),
        (["m", "i", "12_0_2", "many"], "EVENTS: expected -1 (all) or a positive number"),
        (["--threads", "0"], "--threads: expected a positive number, found '0'"),
        (["--image"], "--image: expected a value, found none"),
        (["--nothing"], "--nothing: expected one of the options of --help"),
        (["1", "2", "12_0_2", "4", "5"], "expected at most MODEL INPUT RELEASE EVENTS, found 5"),
    ],
)
def test_bad_command_lines_are_refused(arguments, message) -> None:
    done = run_script("--dry-run", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}") or message in done.stderr


def test_missing_files_are_refused(files, tmp_path) -> None:
    model, data = files
    done = run_script(tmp_path / "no.onnx", data)
    assert done.returncode == 2
    assert "no.onnx: expected an ONNX model, found no file" in done.stderr
    done = run_script(model, tmp_path / "no.root")
    assert done.returncode == 2
    assert "no.root: expected an EDM file, found no file" in done.stderr


@pytest.mark.parametrize(
    ("docker", "message"),
    [
        (None, "docker: expected it on the PATH, found none"),
        ("exit 1", "docker: expected a running daemon, found none"),
    ],
)
def test_missing_docker_is_refused(files, programs, docker, message) -> None:
    done = run_script(*files, path=programs(docker))
    assert done.returncode == 2
    assert message in done.stderr


DOCKER = """
echo "$1" >>"$(dirname "$0")/calls"
case "$1" in
  run) exit CODE ;;
  cp) case "$2" in *resources.json) cp "$(dirname "$0")/resources.json" "$3" ;; esac ;;
esac
"""


def test_script_goes_from_docker_to_the_timing_table(files, programs, tmp_path) -> None:
    path = programs(DOCKER.replace("CODE", "0"))
    (Path(path) / "resources.json").write_text(json.dumps(RESOURCES))
    output = tmp_path / "out"
    done = run_script(*files, "--output", output, path=path)
    assert done.returncode == 0, done.stderr
    assert (Path(path) / "calls").read_text().split() == ["info", "run", "cp", "cp", "rm"]
    assert "| electronPhotonProducer | ElectronPhotonProducer | 100 | 7.000 |" in done.stdout
    assert {file.name for file in output.iterdir()} == {
        "resources.json", "timing.csv", "timing.md",
    }  # fmt: skip


def test_script_removes_the_container_when_cmsrun_fails(files, programs, tmp_path) -> None:
    path = programs(DOCKER.replace("CODE", "65"))
    done = run_script(*files, "--output", tmp_path / "out", path=path)
    assert done.returncode == 65
    assert (Path(path) / "calls").read_text().split() == ["info", "run", "rm"]
