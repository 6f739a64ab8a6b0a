"""What of the CMSSW code can be tested without CMSSW: plugins, configurations, docker script."""

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

from data.simulate.two_photons import barrel_id
from e2e_utils.onnx_export import open_session
from task2f_cmssw_inference.cmssw.standalone import build as standalone
from tests.test_cmssw_core import write_model
from tests.test_cmssw_timing import RESOURCES

CMSSW = standalone.CMSSW
PRODUCER = standalone.PACKAGE / "plugins/ElectronPhotonProducer.cc"
MODEL = standalone.PACKAGE / "src/Model.cc"
TAGGER = CMSSW / "RecoE2E/EGTagger/plugins/EGTagger.cc"
OURS = standalone.PACKAGE / "python/EGInference_cfg.py"
REPLACEMENT = CMSSW / "RecoE2E/EGTagger/python/EGInference_cfg.py"
SCRIPT = CMSSW / "run_in_docker.sh"
MOCKS = Path(__file__).parent / "cmssw_mocks"
OF_CMSSW = re.compile(r'#include "((?!E2EInference)[\w/]+\.h)"')
# As the task prints it (backslashes and asterisks of its markdown removed).
COMMAND = (
    "cmsRun RecoE2E/EGTagger/python/EGInference_cfg.py "
    "inputFiles=file:SIM_DoubleGammaPt50_Pythia8_1000Ev.root maxEvents=-1 EGModelName=sample.onnx"
)

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on the PATH")


# --- the plugins, on stand-ins of the CMSSW classes


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Path], Path]:
    """Compiler of a plugin and its driver (a file of the mocks) with the stand-ins."""
    folder = tmp_path_factory.mktemp("plugins")
    headers = standalone.PACKAGE / "interface/Model.h"
    for source in (PRODUCER, TAGGER, MODEL, headers):
        for header in OF_CMSSW.findall(source.read_text()):
            path = folder / "include" / header
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('#include "cmssw.h"\n')

    def compile_with(driver: str, plugin: Path) -> Path:
        result = folder / driver
        if result.exists():
            return result
        places = [folder / "include", MOCKS, CMSSW, CMSSW / "standalone", plugin.parent]
        sources = [MOCKS / f"{driver}.cc", MODEL, standalone.PACKAGE / "src/PhotonFrames.cc"]
        command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror"]
        command += [f"-I{place}" for place in places]
        subprocess.run([*command, *sources, "-o", result, "-ldl"], check=True)
        return result

    return compile_with


@pytest.fixture(scope="module")
def producer(program) -> Path:
    return program("run_producer", PRODUCER)


@pytest.fixture(scope="module")
def tagger(program) -> Path:
    return program("run_tagger", TAGGER)


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return standalone.build(tmp_path_factory.mktemp("build"))


def run_plugin(program: Path, model: Path, lines: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        [program, model],
        input="\n".join(lines),
        env={**os.environ, "E2E_ONNXRUNTIME_LIBRARY": str(standalone.find_library())},
        capture_output=True,
        text=True,
    )


@needs_compiler
def test_producer_gives_the_scores_of_the_standalone_path(producer, binary, tmp_path) -> None:
    model = write_model(tmp_path / "model.onnx")
    hits = {(40, iphi): iphi - 89 for iphi in range(90, 121)}
    ids = {crystal: int(barrel_id(*crystal)) for crystal in hits}
    strongest, weak = (40, 120), (40, 90)
    endcap = (3 << 28) | (2 << 25) | 5
    none = (0, 0)
    # (pt, eta, crystals of the supercluster), and the seed that follows from them
    photons = [
        ((50, 0.7, [ids[weak], ids[strongest], endcap]), strongest),
        ((50, 0.7, [ids[weak]]), weak),
        ((9, 0.7, [ids[weak]]), none),
        ((50, -1.5, [ids[weak]]), none),
        ((50, 0.7, [endcap]), none),
    ]
    chosen = [[0, 1], [], [2, 3, 4, 0], [1], [2, 3]]
    head = f"{len(hits)} " + " ".join(f"{ids[c]} {energy}" for c, energy in hits.items())
    lines, events = [], []
    for numbers in chosen:
        texts = [(pt, eta, len(cs), *cs) for (pt, eta, cs), _ in (photons[i] for i in numbers)]
        lines.append(f"{head} {len(numbers)} " + " ".join(" ".join(map(str, t)) for t in texts))
        events.append((list(hits), list(hits.values()), [photons[i][1] for i in numbers]))

    done = run_plugin(producer, model, lines)
    assert done.returncode == 0, done.stderr
    *found, counts = done.stdout.split("\n")[:-1]
    assert counts == "1 3"  # sessions of the job; runs: two of the five events have no frame
    file = standalone.write_events(tmp_path / "events.bin", events)
    expected, _ = standalone.score_events(binary, standalone.find_library(), model, file)
    assert [len(line.split()) for line in found] == [2, 0, 4, 1, 2]
    scores = np.array(" ".join(found).split(), np.float32)
    np.testing.assert_array_equal(scores, expected["score"].to_numpy(np.float32))
    assert scores[[2, 3, 4, 7, 8]].tolist() == [-1] * 5  # cut photons
    assert (scores[[0, 1, 5, 6]] > 0).all()


@needs_compiler
def test_tagger_puts_the_scores_of_its_frames_into_the_event(tagger, tmp_path) -> None:
    model = write_model(tmp_path / "model.onnx")
    lines = ["3 15 15 40 0 0 0 16 3 20", "0", "1 0 0 0", "2 15 15 40 15 15 10"]
    done = run_plugin(tagger, model, lines)
    assert done.returncode == 0, done.stderr
    *found, counts = done.stdout.split("\n")[:-1]
    assert counts == "1 2"  # sessions of the job; runs: two of the four events have no frame
    x = np.zeros((5, 1, 32, 32), np.float32)
    x[0, 0, 15, 15] = x[3, 0, 15, 15] = 40
    x[2, 0, 16, 3], x[4, 0, 15, 15] = 20, 10
    wanted = open_session(model).run(None, {"modelInput": x})[0][:, 0]
    wanted = np.insert(wanted, 3, -1)  # the photon of the third event
    wanted[1] = -1
    scores = np.array(" ".join(found).split(), np.float32)
    np.testing.assert_allclose(scores, wanted, atol=1e-6)

    done = run_plugin(tagger, model, ["two 15 15 40"])
    assert done.returncode == 65
    assert "expected one channel of 32 x 32 crystals, found 2 channel(s)" in done.stderr


@needs_compiler
@pytest.mark.parametrize("plugin", ["producer", "tagger"])
def test_other_models_are_refused_before_the_first_event(plugin, tmp_path, request) -> None:
    program = request.getfixturevalue(plugin)
    for change, message in [
        ({"input_name": "x"}, "expected an input 'modelInput' of shape [batch, 1, 32, 32], found"),
        ({"shape": ("batch", 2, 32, 32)}, "wrong size of 4096, expected 8192"),
        ({"output_name": "y"}, "expected one output 'modelOutput', found 'y'"),
        ({"opset": 99}, "expected a model that this release's ONNX Runtime can load"),
        ({"shape": (1, 1, 32, 32)}, "expected an input 'modelInput' of shape [batch, 1, 32, 32]"),
        ({"sigmoid": False}, "expected probabilities, found"),
    ]:
        done = run_plugin(program, write_model(tmp_path / "bad.onnx", **change), [])
        assert done.returncode == 65
        assert done.stderr.startswith("Configuration: ")
        assert "bad.onnx" in done.stderr
        assert message in done.stderr
    done = run_plugin(program, tmp_path / "no.onnx", [])
    assert "Unable to find file" in done.stderr


@pytest.mark.parametrize(
    ("build_file", "sources"),
    [
        ("E2EInference/ElectronPhoton/plugins", ["plugins/ElectronPhotonProducer.cc"]),
        ("E2EInference/ElectronPhoton", ["src/Model.cc", "interface/Model.h"]),
        ("E2EInference/ElectronPhoton/test", ["test/testPhotonFrames.cc"]),
        ("RecoE2E/EGTagger/plugins", ["plugins/EGTagger.cc"]),
    ],
)
def test_build_files_name_the_packages_of_the_headers(build_file, sources) -> None:
    build = (CMSSW / build_file / "BuildFile.xml").read_text()
    root = ElementTree.fromstring(f"<file>{build}</file>")  # scram's own have no root
    own = "/".join(build_file.split("/")[:2])
    text = "".join((CMSSW / own / source).read_text() for source in sources)
    included = set(re.findall(r'#include "(\w+/\w+)/interface/', text))
    used = {use.get("name") for use in root.iter("use")}
    assert included - used <= {own}
    assert used <= included
    if "plugins" in build_file:
        assert [flag.attrib for flag in root.iter("flags")] == [{"EDM_PLUGIN": "1"}]


def test_the_package_has_a_python_folder_for_the_configuration_that_scram_writes() -> None:
    """Older scram makes the package's __init__.py only where there is one (cmssw#47111)."""
    assert list((standalone.PACKAGE / "python").glob("*.py"))


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


class Module(str):
    """A module of RecoE2E on a path."""

    def __add__(self, other: object) -> "Sequence":
        return Sequence([self]) + other


class Sequence(list):
    def __add__(self, other: object) -> "Sequence":
        return Sequence([*self, other if isinstance(other, str) else other.type])


class Process(Recorded):
    def load(self, name: str) -> None:
        self.__dict__.setdefault("loaded", []).append(name)
        for module in ("DetFrames", "EGFrames"):
            if name == f"RecoE2E.FrameProducers.{module[:-1]}Producer_cfi":
                setattr(self, module, Module(module))
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
    """Run a configuration with a command line; the process it makes."""
    config = types.ModuleType("FWCore.ParameterSet.Config")
    for name in ("Source", "Service", "Path", "EndPath", "OutputModule", "EDProducer"):
        setattr(config, name, Recorded)
    config.Process = Process
    config.FileInPath = lambda path: f"in path: {path}"
    config.InputTag = lambda *names: names
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

    def run(path: Path, *arguments: str) -> Process:
        monkeypatch.setattr(sys, "argv", [str(path), *arguments])
        return runpy.run_path(str(path))["process"]

    return run


def test_command_line_of_the_task_reaches_the_replacement(configure) -> None:
    process = configure(REPLACEMENT, *COMMAND.split()[2:])
    assert process.source.fileNames == ["file:SIM_DoubleGammaPt50_Pythia8_1000Ev.root"]
    assert process.maxEvents.input == -1
    assert process.EGTagger.type == "EGTagger"
    assert process.EGTagger.EGModelName == "in path: RecoE2E/tfModels/sample.onnx"
    assert process.EGTagger.EGFrames == ("EGFrames", "EGFrames")
    assert process.p.type == ["DetFrames", "EGFrames", "EGTagger"]
    assert process.FastTimerService.jsonFileName == "resources.json"
    process = configure(
        REPLACEMENT, "inputFiles=a.root,b.root", "maxEvents=7", "EGModelName=m.onnx"
    )
    assert process.source.fileNames == ["a.root", "b.root"]
    assert process.maxEvents.input == 7
    assert process.EGTagger.EGModelName == "in path: RecoE2E/tfModels/m.onnx"
    declared = set(re.findall(r'description\.add<[\w:]+>\("(\w+)"', TAGGER.read_text()))
    assert declared == set(vars(process.EGTagger)) - {"type"}


def test_command_line_reaches_our_own_configuration(configure) -> None:
    process = configure(
        OURS, "inputFiles=file:a.root,b.root", "maxEvents=7", "EGModelName=m.onnx",
        "timingFile=t.json", "outputFile=o.root",
    )  # fmt: skip
    assert process.source.type == "PoolSource"
    assert process.source.fileNames == ["file:a.root", "b.root"]
    assert process.maxEvents.input == 7
    assert process.electronPhotonProducer.type == "ElectronPhotonProducer"
    model = "in path: E2EInference/ElectronPhoton/data/m.onnx"
    assert process.electronPhotonProducer.model == model
    assert process.FastTimerService.type == "FastTimerService"
    assert process.FastTimerService.writeJSONSummary is True
    assert process.FastTimerService.jsonFileName == "t.json"
    assert process.out.fileName == "o.root"
    assert process.p.type is process.electronPhotonProducer
    assert "keep *_electronPhotonProducer_*_*" in process.out.outputCommands
    assert all("GlobalTag" not in name for name in process.loaded)  # it needs no database


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
    done = run_script("--dry-run", "m.onnx", "i.root", "12_0_2", path=programs(None))
    assert (done.returncode, done.stderr) == (0, "")
    steps = [
        "docker run --platform linux/amd64 --name ",
        "--cap-add SYS_ADMIN --device /dev/fuse --security-opt apparmor=unconfined",
        "ARCH=slc7_amd64_gcc900",
        "clelange/cc7-cmssw-cvmfs /bin/bash -c",
        'scramv1 project CMSSW "CMSSW_$RELEASE"',
        "git clone https://github.com/rchudasa/RecoE2E.git",
        "cp -r /e2e/RecoE2E /e2e/E2EInference .",
        "scram b -j8",
        "scram b runtests",
        f"\n{COMMAND}\n",
        "\ncmsRun E2EInference/ElectronPhoton/python/EGInference_cfg.py ",
        "docker cp ",
        "parse_timing.py cmssw_12_0_2/RecoE2E/resources.json",
        "parse_timing.py cmssw_12_0_2/E2EInference/resources.json",
    ]
    places = [done.stdout.index(step) for step in steps]
    assert places == sorted(places)
    assert subprocess.run(["bash", "-n"], input=inside(done.stdout), text=True).returncode == 0


def inside(dry_run: str) -> str:
    """What a dry run would run in the container."""
    return dry_run.split("-c '\n")[1].split("\n'\n")[0]


@pytest.mark.parametrize(
    ("options", "present", "absent"),
    [
        (["--image", "clelange/cmssw:12_0_2"], "clelange/cmssw:12_0_2 /bin/bash", "SYS_ADMIN"),
        (["--host-cvmfs"], "-v /cvmfs:/cvmfs --entrypoint", "SYS_ADMIN"),
        (["--arch", "el8_amd64_gcc11"], "ARCH=el8_amd64_gcc11", "slc7"),
        (["--output", "there"], "there/RecoE2E/resources.json", "cmssw_12_0_2/RecoE2E"),
        (["--recoe2e", "main"], "COMMIT=main", "COMMIT=114dc93"),
    ],
)
def test_options_of_the_script(options, present, absent) -> None:
    done = run_script("--dry-run", *options)
    assert done.returncode == 0
    assert present in done.stdout
    assert absent not in done.stdout


@pytest.mark.parametrize("release", ["10_6_8_patch1", "CMSSW_11_0_1", "11_3_0", "12_0_1"])
def test_releases_that_cannot_read_the_file_are_refused(release) -> None:
    done = run_script("--dry-run", "m.onnx", "i.root", release)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: CMSSW_{release.removeprefix('CMSSW_')}: expected 12_0_2")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("release", ["12_0_2", "CMSSW_12_0_2", "12_4_1_patch2", "13_0_0"])
def test_newer_releases_are_accepted(release) -> None:
    done = run_script("--dry-run", "m.onnx", "i.root", release)
    assert done.returncode == 0, done.stderr
    assert f"RELEASE={release.removeprefix('CMSSW_')} " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["m", "i", "twelve"], "RELEASE: expected a release like 12_0_2, found 'twelve'"),
        (["m", "i", "12_0_2; rm"], "RELEASE: expected a release like 12_0_2"),
        (["--image"], "--image: expected a value, found none"),
        (["--nothing"], "--nothing: expected one of the options of --help"),
        (["1", "2", "12_0_2", "4"], "expected at most MODEL INPUT RELEASE, found 4"),
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
  cp) cp -r "$(dirname "$0")/result/." "$3" ;;
esac
"""


def test_script_goes_from_docker_to_the_timing_tables(files, programs, tmp_path) -> None:
    path = programs(DOCKER.replace("CODE", "0"))
    for job in ("RecoE2E", "E2EInference"):
        folder = Path(path) / "result" / job
        folder.mkdir(parents=True)
        (folder / "resources.json").write_text(json.dumps(RESOURCES))
    output = tmp_path / "out"
    done = run_script(*files, "--output", output, path=path)
    assert done.returncode == 0, done.stderr
    assert (Path(path) / "calls").read_text().split() == ["info", "run", "cp", "rm"]
    assert done.stdout.count("| electronPhotonProducer | ElectronPhotonProducer | 100 |") == 2
    names = {file.relative_to(output).as_posix() for file in output.rglob("*.*")}
    assert names == {
        f"{job}/{name}"
        for job in ("RecoE2E", "E2EInference")
        for name in ("resources.json", "timing.csv", "timing.md")
    }


SCRAM = """
case "$1" in
  project) mkdir -p "$3/src" ;;
  runtime) RUNTIME ;;
esac
"""
GIT = """
folder=RecoE2E/EGTagger
case "$1" in
  clone)
    mkdir -p $folder/plugins $folder/python
    touch $folder/plugins/EGTagger.cc $folder/plugins/BuildFile.xml
    touch $folder/python/EGInference_cfg.py
    ;;
  *) [[ $* != *checkout* ]] || CHECKOUT ;;
esac
"""
CMSRUN = """
echo "cmsRun $*" >>"$HOME/calls"
touch resources.json output.root
"""


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple]:
    """Runs the container's part of the script with stand-ins of CMSSW, git and scram."""

    def run(
        runtime: str = "echo true", setup: bool = True, cmsrun: bool = True, checkout: str = "true"
    ) -> tuple:
        home, tools, mounts = (tmp_path / name for name in ("home", "tools", "e2e"))
        for folder in (home, tools, mounts / "model", mounts / "input"):
            folder.mkdir(parents=True)
        for package in ("RecoE2E", "E2EInference"):
            shutil.copytree(CMSSW / package, mounts / package)
        (mounts / "model/m.onnx").write_text("the model")
        (mounts / "input/i.root").write_text("the events")
        if setup:
            (tmp_path / "cmsset_default.sh").touch()
        programs = {
            "scramv1": SCRAM.replace("RUNTIME", runtime),
            "scram": 'echo "scram $*" >>"$HOME/calls"',
            "git": GIT.replace("CHECKOUT", checkout),
        }
        if cmsrun:
            programs["cmsRun"] = CMSRUN
        for name, text in programs.items():
            (tools / name).write_text(f"#!/bin/bash\n{text}\n")
            (tools / name).chmod(0o755)
        script = inside(run_script("--dry-run", "m.onnx", "i.root").stdout)
        script = script.replace("/e2e/", f"{mounts}/")
        script = script.replace("/tmp/e2e_result", f"{home}/result")
        script = script.replace("/opt/cms/cmsset_default.sh", str(tmp_path / "cmsset_default.sh"))
        environment = {
            "PATH": f"{tools}:/usr/bin:/bin", "HOME": str(home), "ARCH": "a", "RELEASE": "12_0_2",
            "MODEL_NAME": "m.onnx", "INPUT_NAME": "i.root", "COMMIT": "114dc93",
        }  # fmt: skip
        done = subprocess.run(
            ["bash", "-c", script], env=environment, capture_output=True, text=True
        )
        return done, home

    return run


def test_container_lays_our_files_over_the_clone_and_runs_the_command_of_the_task(
    container,
) -> None:
    done, home = container()
    assert done.returncode == 0, done.stderr
    calls = (home / "calls").read_text().splitlines()
    assert calls[:3] == ["scram b -j8", "scram b runtests", COMMAND]
    assert calls[3].startswith("cmsRun E2EInference/ElectronPhoton/python/EGInference_cfg.py ")
    area = home / "CMSSW_12_0_2/src"
    assert (area / "RecoE2E/EGTagger/plugins/EGTagger.cc").read_text() == TAGGER.read_text()
    for model in ("RecoE2E/tfModels", "E2EInference/ElectronPhoton/data"):
        assert (area / model / "sample.onnx").read_text() == "the model"
        assert not (area / model / "sample.onnx").is_symlink()
    assert (area / "SIM_DoubleGammaPt50_Pythia8_1000Ev.root").read_text() == "the events"
    assert len(list(home.glob("result/*/resources.json"))) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"setup": False}, "error: CMSSW: expected cmsset_default.sh in /cvmfs/cms.cern.ch or "),
        ({"cmsrun": False}, "error: CMSSW_12_0_2: expected cmsRun on the PATH, found none"),
        ({"runtime": "exit 1"}, ""),
        ({"checkout": "exit 1"}, "error: RecoE2E: expected its commit 114dc93, which git cannot"),
    ],
)
def test_container_stops_without_cmssw(container, options, message) -> None:
    done, home = container(**options)
    assert done.returncode != 0
    assert done.stderr.startswith(message)
    assert not (home / "calls").exists()


def test_finished_results_survive_a_later_failure(files, programs, tmp_path) -> None:
    path = programs(DOCKER.replace("CODE", "65"))
    folder = Path(path) / "result" / "RecoE2E"
    folder.mkdir(parents=True)
    (folder / "resources.json").write_text(json.dumps(RESOURCES))
    done = run_script(*files, "--output", tmp_path / "out", path=path)
    assert done.returncode == 65
    assert (Path(path) / "calls").read_text().split() == ["info", "run", "cp"]  # kept
    assert (tmp_path / "out" / "RecoE2E" / "resources.json").is_file()
    assert "ended with status 65; what it had finished is in" in done.stderr


def test_a_container_whose_results_cannot_be_copied_is_kept(files, programs, tmp_path) -> None:
    path = programs(DOCKER.replace("CODE", "0"))  # it wrote no results
    done = run_script(*files, "--output", tmp_path / "out", path=path)
    assert done.returncode != 0
    assert (Path(path) / "calls").read_text().split() == ["info", "run", "cp"]
