"""Scripts for batch systems: what they submit, and what they say without their package."""

import importlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from e2e_utils import paths
from tools.cluster import jobs

OPTIONS = {
    "slurm": ["--queue", "gpu-long", "--account", "physics", "--gpu", "--cores", "3", "--show"],
    "htcondor": ["--flavour", "workday", "--disk", "7GB", "--gpu", "--cores", "3", "--show"],
}
EXPECTED = {
    "slurm": [
        "#SBATCH -p gpu-long",
        "#SBATCH -A physics",
        "#SBATCH --gres=gpu:1",
        "#SBATCH --cpus-per-task=3",
        "#SBATCH -t 04:00:00",
    ],
    "htcondor": ["RequestGPUs = 1", '+JobFlavour = "workday"', "MY.DaskWorkerCores = 3"],
}


def main_of(name: str, arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"tools.cluster.{name}").main(arguments)
    return end.value.code


@pytest.mark.parametrize("name", OPTIONS)
def test_job_scripts(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is optional")
    monkeypatch.setattr(paths, "BUILD", tmp_path)
    assert main_of(name, OPTIONS[name]) == 0
    script = capsys.readouterr().out
    for line in EXPECTED[name]:
        assert line in script
    worker = f"{sys.executable} -m distributed.cli.dask_worker tcp://"
    assert worker in script
    assert "--nthreads 3" in script
    assert script.index(f"{paths.ROOT}") < script.index(worker)  # first into the folder


@pytest.mark.parametrize("name", OPTIONS)
def test_without_the_package(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    assert main_of(name, ["--show"]) == 2
    assert "run pip install dask-jobqueue==" in capsys.readouterr().err


def test_the_run_uses_the_scheduler_of_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    cluster = SimpleNamespace(
        scheduler_address="tcp://node:1",
        scale=lambda jobs: calls.append(("scale", jobs)),
        wait_for_workers=lambda n: calls.append(("wait", n)),
    )

    def fake_run(command: list[str], env: dict[str, str], **_: object) -> SimpleNamespace:
        calls.append((command[2:], env["DASK_SCHEDULER_ADDRESS"]))
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(subprocess, "run", fake_run)
    options, rest = jobs.parser("x", None).parse_known_args(["--workers", "2", "--profile", "full"])
    assert jobs.run(cluster, options, rest) == 1
    command = ["tools.regenerate", "--jobs", "2", "--profile", "full"]
    assert calls == [("scale", 2), ("wait", 2), (command, "tcp://node:1")]
