"""`make all`: what is planned, how cores are shared, what a failure does."""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_project import (
    TASK,
    finished_run,
    make_all,
    make_project,
    metrics_of,
    script_of,
    write_repository,
)

from e2e_utils import paths
from e2e_utils.errors import InputError
from tools import regenerate
from tools.regenerate import (
    PREPARE,
    Job,
    available_memory,
    concurrent_notebooks,
    headline,
    plan,
    progress,
    run_stage,
    schedule,
    settle,
    stage_log,
    summary,
    visible_gpus,
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_project(tmp_path, monkeypatch)


def options(**changes: object) -> argparse.Namespace:
    defaults = {
        "profile": "quick",
        "data_source": "auto",
        "data": None,
        "force": False,
        "stage": None,
        "jobs": None,
    }
    return argparse.Namespace(**{**defaults, **changes})


def stages(**changes: object) -> list[str]:
    (job,) = plan([TASK], options(**changes))
    return job.stages


def test_only_what_has_changed_is_planned(project: Path) -> None:
    assert stages() == ["data", "notebook", "pdf"]
    assert stages(data=str(project / "README.md")) == ["notebook", "pdf"]
    run = finished_run("quick")
    assert stages() == []
    assert stages(force=True) == ["data", "notebook", "pdf"]
    assert stages(stage="data") == ["data"]
    assert stages(stage="pdf") == ["pdf"]
    (run / f"{TASK}.pdf").write_bytes(b"%PDF of something else")
    assert stages() == ["pdf"]
    with paths.script_path(TASK).open("a") as stream:
        stream.write("# changed\n")
    assert stages() == ["data", "notebook", "pdf"]
    with pytest.raises(InputError, match="expected an executed notebook"):
        stages(stage="pdf", profile="full")


def test_nothing_to_do_starts_no_cluster(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finished_run("quick")
    monkeypatch.setattr(regenerate, "run_jobs", None)  # calling it would raise
    with pytest.raises(SystemExit) as end:
        regenerate.main([])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("nothing to do: 1 task(s) up to date in build/quick")


def test_cores_memory_and_gpus_limit_the_notebooks_side_by_side() -> None:
    gigabytes = 2**30
    assert concurrent_notebooks(11, 2, 64 * gigabytes, 0) == 2
    assert concurrent_notebooks(1, 16, 64 * gigabytes, 0) == 1
    assert concurrent_notebooks(11, 16, 16 * gigabytes, 0) == 4
    assert concurrent_notebooks(11, 16, 64 * gigabytes, 1) == 1
    assert concurrent_notebooks(11, 1, 2 * gigabytes, 0) == 1


def test_the_memory_of_a_container_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", 6_000_000_000)
    assert available_memory() == 6_000_000_000


def test_only_gpus_that_are_visible_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho 'GPU 0: a GPU (UUID: GPU-1)'\necho 'GPU 1: b'\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == ["0", "1"]
    for given, names in (("1", ["1"]), ("2, GPU-7", ["2", "GPU-7"]), ("", []), ("-1", [])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        assert visible_gpus() == names


class FakeFuture:
    """Done when asked for the second time."""

    def __init__(self, result: tuple[int, str] | Exception) -> None:
        self.value, self.asked = result, 0

    def done(self) -> bool:
        self.asked += 1
        return self.asked > 1

    def exception(self) -> Exception | None:
        return self.value if isinstance(self.value, Exception) else None

    def result(self) -> tuple[int, str]:
        return self.value


class FakeClient:
    """Notes what is submitted; tasks whose name is in ``failing`` fail in their notebook."""

    def __init__(self, failing: dict[str, tuple[int, str] | Exception]) -> None:
        self.failing, self.calls, self.gpus = failing, [], []

    def submit(self, function, command, folder, environment, log, key, pure) -> FakeFuture:
        self.calls.append((key, int(environment["OMP_NUM_THREADS"])))
        self.gpus.append(environment.get("CUDA_VISIBLE_DEVICES"))
        stage, task = key.split("-")
        if stage == "notebook" and task in self.failing:
            return FakeFuture(self.failing[task])
        return FakeFuture((0, "fine"))


def test_stages_follow_each_other_and_the_last_task_gets_all_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(regenerate.time, "sleep", lambda _: None)
    failing = {"b": (2, "error: a.h5: bad"), "c": RuntimeError("worker lost")}
    jobs = [Job(name, tmp_path / name, ["data", "notebook", "pdf"]) for name in "abc"]
    client = FakeClient(failing)
    schedule(client, jobs, slots=2, cores=8, options=options())
    order = [key for key, _ in client.calls]
    assert [key for key in order if key.endswith("a")] == ["data-a", "notebook-a", "pdf-a"]
    assert "pdf-b" not in order
    assert client.calls[0] == ("data-a", 4)
    assert client.calls[-1][1] == 8
    assert [job.status for job in jobs] == ["ran", "failed", "failed"]
    assert jobs[1].message == "notebook: a.h5: bad"
    assert jobs[2].message == "notebook: RuntimeError: worker lost"


def test_every_notebook_has_a_gpu_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(regenerate.time, "sleep", lambda _: None)
    for slots, expected in ((2, ["2", "5", "2"]), (3, ["2", "5", "2"]), (1, ["2", "2", "2"])):
        jobs = [Job(name, tmp_path / name, ["notebook"]) for name in "abc"]
        client = FakeClient({})
        schedule(client, jobs, slots, cores=8, options=options(), gpus=["2", "5"])
        assert client.gpus == expected
    client = FakeClient({})
    schedule(client, [Job("a", tmp_path, ["data", "pdf"])], 1, 8, options(), gpus=["2"])
    assert client.gpus == [None, None]


def test_a_failed_stage_keeps_its_output_and_names_it(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distributed.secede", lambda: None)
    job = Job(TASK, paths.run_directory("quick", TASK), ["data"], stage="data")
    code = "import sys; print('a.h5: refused'); sys.exit('error: missing (see above)')"
    log = stage_log(job, "data")
    future = FakeFuture(run_stage([sys.executable, "-c", code], str(project), {}, log))
    settle(job, future)
    assert job.message == "data: missing (see above) (see build/quick/task_demo/data.log)"
    assert log.read_text().splitlines() == ["a.h5: refused", "error: missing (see above)"]


def test_preparing_data_ends_with_its_parent(tmp_path: Path) -> None:
    write_repository(tmp_path, {})
    slow = "import time\n\ndef prepare(*_):\n    time.sleep(600)\n"
    (tmp_path / "data" / "loaders.py").write_text(slow)
    command = [sys.executable, "-c", PREPARE, TASK, "smoke", "standin"]
    orphan = os.environ | {"E2E_PARENT": "1", "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(command, cwd=tmp_path, env=orphan, check=False, timeout=300)
    assert result.returncode == -signal.SIGTERM


def test_the_summary_names_results_and_failures(project: Path) -> None:
    finished_run("quick")
    folder = paths.run_directory("quick", TASK)
    lost = Job("task_lost", project / "nowhere", ["pdf"], status="failed", message="notebook: bad")
    text = summary([Job(TASK, folder, [], status="unchanged"), lost])
    assert "roc_auc 0.8000 [0.7900, 0.8100]" in text
    assert "standin" in text
    assert "ipynb onnx pdf safetensors" in text
    assert text.splitlines()[-1] == "task_lost failed in notebook: bad"
    assert headline(metrics_of("quick", 0.5)) == "roc_auc 0.5000 [0.4900, 0.5100]"
    assert headline({}) == ""


def test_progress_is_read_from_the_log(tmp_path: Path) -> None:
    job = Job("a", tmp_path, ["notebook"], stage="notebook", began=time.monotonic())
    assert progress(job) == "notebook: kernel starts"
    (tmp_path / "run.log").write_text(
        "[     1.0 s] cell 3/9: train()\n    | epoch 1:  50%|███  | 1/2 [00:01<00:01]\n"
    )
    assert progress(job) == "notebook: cell 3/9"
    assert progress(job, bars=True).endswith("| 1/2 [00:01<00:01]")
    with (tmp_path / "run.log").open("a") as log:  # of a cell that trains for an hour
        log.write("    | epoch 2:  50%|███  | 1/2 [00:01<00:01]\n" * 2_000)
    assert progress(job) == "notebook: cell 3/9"
    job.stage_began = time.time() + 60  # the log is that of an earlier run
    assert progress(job) == "notebook: kernel starts"
    job.stage = "data"
    assert progress(job, bars=True) == "data"
    job.stage_began = 0.0
    (tmp_path / "data.log").write_bytes(b"a.h5:  10%\ra.h5:  20%\r\n")
    assert progress(job, bars=True) == "data: a.h5:  20%"
    assert progress(job) == "data"


def test_pdfs_are_written_of_the_notebooks_that_are_there(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finished_run("quick")
    paths.script_path("task_other").parent.mkdir()
    paths.script_path("task_other").write_text("# %%\n")
    ran = []
    monkeypatch.setattr(regenerate, "run_jobs", lambda jobs, *_: ran.extend(j.task for j in jobs))
    with pytest.raises(SystemExit):
        regenerate.main(["--stage", "pdf"])
    assert ran == [TASK]
    assert "without task_other (no finished report)" in capsys.readouterr().out
    for arguments in (["task_other"], ["--profile", "full"]):
        with pytest.raises(SystemExit) as end:
            regenerate.main(["--stage", "pdf", *arguments])
        assert end.value.code == 2
        assert "expected an executed notebook" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stage", "data", "--data", "a.h5"], "DATA: expected none with make data"),
        (["--jobs", "-2"], "--jobs: expected 1 or more, found -2"),
        (["--jobs", "0"], "--jobs: expected 1 or more, found 0"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    project: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as end:
        regenerate.main(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_unknown_tasks_and_schedulers_are_input_errors(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        regenerate.main(["task_unknown"])
    assert end.value.code == 2
    assert "choose from task_demo" in capsys.readouterr().err
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "nonsense://x")
    with pytest.raises(SystemExit) as end:
        regenerate.main([])
    assert end.value.code == 2
    assert "expected a Dask scheduler at nonsense://x" in capsys.readouterr().err


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[str]:
    """Address of a Dask scheduler in a process of its own, with two workers in theirs."""
    file = tmp_path / "scheduler.json"
    common = ["--scheduler-file", str(file), "--no-dashboard"]
    commands = [["dask_scheduler", "--host", "127.0.0.1", "--port", "0"]]
    commands += [["dask_worker", "--nthreads", "1", "--name", name] for name in ("one", "two")]
    with contextlib.ExitStack() as stack:
        for module, *arguments in commands:
            process = subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.{module}", *arguments, *common],
                cwd=tmp_path,
                env=os.environ | {"E2E_WORKER_NAME": arguments[-1]},
                stderr=subprocess.DEVNULL,
            )
            stack.enter_context(process)
            stack.callback(process.terminate)
            wait_for(file.is_file)
        yield json.loads(file.read_text())["address"]


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def test_notebooks_run_on_the_workers_of_a_scheduler_elsewhere(
    tmp_path: Path, scheduler: str
) -> None:
    from distributed import Client

    root = tmp_path / "repository"
    # Each notebook waits for the other one: they pass only if both run at the same time.
    code = (
        "(folder / 'worker.csv').write_text(os.environ['E2E_WORKER_NAME'])\n"
        "other = run_directory('smoke', 'task_{}') / 'worker.csv'\n"
        "while not other.is_file():\n    time.sleep(0.1)\n"
    )
    names = {"task_a": "b", "task_b": "a"}
    write_repository(root, {t: script_of(t, code.format(other)) for t, other in names.items()})
    with Client(scheduler) as client:
        client.wait_for_workers(2, timeout=120)
    result = subprocess.run(
        **make_all(root, DASK_SCHEDULER_ADDRESS=scheduler),
        capture_output=True, check=False, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"2 task(s), 2 at a time, 2 core(s), scheduler: {scheduler}" in result.stdout
    build = root / "build" / "smoke"
    assert {(build / task / "worker.csv").read_text() for task in names} == {"one", "two"}
    assert (build / "book.pdf").read_bytes().startswith(b"%PDF")


STEPS = """
state = folder / "state"
state.mkdir(exist_ok=True)
for step in range(len(list(state.iterdir())), 4):
    with Path("calls").open("a") as calls:
        print(step, file=calls)
    if step == 2 and Path("calls").read_text().count("2") == 1 and os.environ.get("E2E_HANG"):
        time.sleep(600)
    (state / str(step)).write_text(str(step * step))
total = sum(int(file.read_text()) for file in state.iterdir())
(folder / "total.csv").write_text(str(total))
"""


def test_killed_at_any_moment_it_goes_on_and_ends_with_the_same_results(tmp_path: Path) -> None:
    """The real thing, with a task that fails: cluster, kernels, PDF, book; then nothing to do."""
    scripts = {
        "task_a": script_of("task_a"),
        "task_bad": "# %%\n1 / 0\n",
        "task_steps": script_of("task_steps", STEPS),
    }
    root, build = tmp_path / "repository", tmp_path / "repository" / "build" / "smoke"
    write_repository(root, scripts)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(**make_all(root, E2E_HANG="1"), **quiet)
    finished, calls = build / "task_a" / "task_a.pdf", root / "calls"
    wait_for(lambda: finished.is_file() and calls.is_file() and "2" in calls.read_text())
    process.kill()
    process.wait()
    kept = finished.stat().st_mtime_ns

    again = subprocess.run(**make_all(root), capture_output=True, check=False)
    assert again.returncode == 1, again.stderr
    assert "task_bad failed in notebook: cell 1 (1 / 0): ZeroDivisionError" in again.stdout
    assert "2 report(s); without task_bad (no finished report)" in again.stdout
    assert finished.stat().st_mtime_ns == kept  # a finished task is not run again
    assert calls.read_text().split() == ["0", "1", "2", "2", "3"]  # only the lost step is repeated
    run = build / "task_steps"
    assert (run / "total.csv").read_text() == "14"  # as without an interruption
    assert (run / "task_steps.pdf").read_bytes().startswith(b"%PDF")
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["provenance"]["profile"] == "smoke"
    assert list(metrics["provenance"]["products"]) == ["total.csv"]
    cells = json.loads((run / "task_steps.ipynb").read_text())["cells"]
    assert [cell.get("execution_count") for cell in cells] == [None, 1]
    assert [output["text"] for output in cells[1]["outputs"]] == [["the end\n"]]
    assert not list((root / "build").rglob("*.part"))

    good = make_all(root, "task_a", "task_steps")
    third = subprocess.run(**good, capture_output=True, check=True)
    assert third.stdout.startswith("nothing to do")


def test_time_left_follows_the_tasks_and_cells_that_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regenerate.time, "monotonic", lambda: 1000.0)
    done = Job("task_done", tmp_path, [], "done", "ran")
    running = Job("task_half", tmp_path / "half", ["notebook"], "notebook")
    running.folder.mkdir()
    (running.folder / "run.log").write_text("[     1.0 s] cell 6/10: x = 1\n")
    began = 1000.0 - 600.0  # one and a half of two tasks took ten minutes
    text = regenerate.time_left([done, running], began)
    assert text == "1 of 2 task(s) done, about 3 min left"
    waiting = [Job("task_wait", tmp_path / "none", ["data"])] * 2
    assert regenerate.time_left(waiting, began) == "0 of 2 task(s) done"
    assert regenerate.time_left([done], began) == "1 of 1 task(s) done"
