"""`make all`: what is planned, how cores are shared, what a failure does."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_project import TASK, finished_run, make_project, metrics_of

from e2e_utils import paths
from e2e_utils.errors import InputError
from tools import regenerate
from tools.regenerate import Job, concurrent_notebooks, headline, plan, progress, schedule, summary

REPOSITORY = Path(__file__).resolve().parent.parent


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
        self.failing, self.calls = failing, []

    def submit(self, function, command, folder, environment, key, pure) -> FakeFuture:
        self.calls.append((key, int(environment["OMP_NUM_THREADS"])))
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
    job.stage_began = time.time() + 60  # the log is that of an earlier run
    assert progress(job) == "notebook: kernel starts"
    job.stage = "pdf"
    assert progress(job) == "pdf"


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


def test_two_tasks_on_a_cluster_of_which_one_fails(tmp_path: Path) -> None:
    """The real thing: local cluster, kernels, PDF; then the second call does nothing."""
    for name in ("__init__", "paths", "errors", "files"):
        target = tmp_path / "e2e_utils" / f"{name}.py"
        target.parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / "e2e_utils" / f"{name}.py", target)
    shutil.copytree(REPOSITORY / "tools", tmp_path / "tools")
    (tmp_path / "e2e_utils" / "datasets.py").write_text(
        "def prepare(task, profile, source):\n    return f'{task}: {source} ready'\n"
    )
    (tmp_path / "e2e_utils" / "evaluation.py").write_text(
        "import json\n\ndef load_metrics(path):\n    return json.loads(path.read_text())\n"
    )
    script = (
        "# %% [markdown]\n# # Good\n\n# %%\nfrom e2e_utils.paths import run_directory\n\n"
        "import os\n\n"
        f"text = {json.dumps(metrics_of('smoke'))!r}\n"
        "(run_directory('smoke', 'task_good') / 'metrics.json').write_text(text)\n"
        "print(os.environ['OMP_NUM_THREADS'], os.environ['MKL_NUM_THREADS'])\n"
    )
    for task, text in (("task_good", script), ("task_bad", "# %%\n1 / 0\n")):
        (tmp_path / task).mkdir()
        (tmp_path / task / f"{task}.py").write_text(text)

    def make_all(*arguments: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        environment.pop("DASK_SCHEDULER_ADDRESS", None)
        return subprocess.run(
            [sys.executable, "-m", "tools.regenerate", "--profile", "smoke", *arguments],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    result = make_all()
    assert result.returncode == 1, result.stderr
    assert "task_bad failed in notebook: cell 1 (1 / 0): ZeroDivisionError" in result.stdout
    run = tmp_path / "build" / "smoke" / "task_good"
    assert (run / "task_good.pdf").read_bytes().startswith(b"%PDF")
    assert json.loads((run / "metrics.json").read_text())["provenance"]["profile"] == "smoke"
    result = make_all("task_good")
    assert result.returncode == 0
    assert result.stdout.startswith("nothing to do")
