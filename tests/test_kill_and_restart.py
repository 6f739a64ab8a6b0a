"""The script that kills `make all`: it sees differences, survivors and failures; and it kills."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import kill_and_restart
import psutil
import pytest
from kill_and_restart import Runs, compare, differences, kill, torture

# A `make` of the test: counts to 6 in steps that are kept, and writes the sum as its metrics.
COUNTING = """
import json, os, sys, time
from pathlib import Path
run = Path(os.environ["E2E_BUILD_DIR"]) / "smoke" / "task_a"
run.mkdir(parents=True, exist_ok=True)
(run.parent.parent / "engines").mkdir(exist_ok=True)  # as of task 2f: no profile
steps = run / "steps"
for step in range(len(steps.read_text()) if steps.exists() else 0, 6):
    time.sleep(0.1)
    with steps.open("a") as stream:
        stream.write("x")
metrics = {"total": len(steps.read_text()), "seconds": time.time()}
(run / "metrics.json").write_text(json.dumps(metrics))
"""


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"auc": 0.8, "seconds": 1.0}, {"auc": 0.8, "seconds": 2.0}),
        ({"metrics": {"milliseconds_per_event": {"value": 3}}}, {"metrics": {}}),
        ({"a": {"milliseconds_batch_10": [1, 2]}}, {"a": {"milliseconds_batch_10": [3]}}),
        ({"a": [float("nan"), 1]}, {"a": [float("nan"), 1]}),
    ],
)
def test_times_are_no_difference(found: dict, expected: dict) -> None:
    assert list(differences(found, expected)) == []


def test_everything_else_is(tmp_path: Path) -> None:
    found = {"arms": {"a": {"auc": 0.8}}, "seeds": [0, 1], "own": 1, "energy_and_time": 1}
    expected = {"arms": {"a": {"auc": 0.7}}, "seeds": [0], "energy_and_time": 2}
    assert list(differences(found, expected)) == [
        "arms.a.auc: 0.8 in the killed run, 0.7 in the whole one",
        "energy_and_time: 1 in the killed run, 2 in the whole one",
        "own: only in the killed run",
        "seeds: [0, 1] in the killed run, [0] in the whole one",
    ]
    assert compare(tmp_path, tmp_path) == ["the whole run wrote no metrics.json"]
    (tmp_path / "whole" / "task_a").mkdir(parents=True)
    (tmp_path / "whole" / "task_a" / "metrics.json").write_text(json.dumps(expected))
    problems = compare(tmp_path / "killed", tmp_path / "whole")
    assert problems == ["task_a: no metrics.json after the last start"]


def counting(tmp_path: Path) -> Runs:
    runs = Runs([], "smoke", tmp_path)
    runs.command = [sys.executable, "-c", COUNTING]
    return runs


def test_a_run_that_keeps_its_steps_passes(tmp_path: Path) -> None:
    runs = counting(tmp_path)
    runs.whole(tmp_path / "whole")
    assert list(torture(runs, tmp_path, kills=3, longest=0.6, seed=1)) == []


def test_a_run_that_ends_with_other_metrics_does_not(tmp_path: Path) -> None:
    runs = counting(tmp_path)
    runs.whole(tmp_path / "whole")
    metrics = tmp_path / "whole" / "build" / "smoke" / "task_a" / "metrics.json"
    metrics.write_text(json.dumps({"total": -1}))
    (problem,) = torture(runs, tmp_path, kills=1, longest=0.6, seed=1)
    assert problem.startswith("task_a: total: ")


@pytest.mark.parametrize("everything", [True, False])
def test_a_killed_program_and_its_children_are_gone(tmp_path: Path, everything: bool) -> None:
    """Like a worker of `make all`, the grandchild ends by itself when its parent is gone."""
    ready = tmp_path / "ready"
    grandchild = (
        "import os, pathlib, time\nparent = os.getppid()\n"
        f"pathlib.Path({str(ready)!r}).touch()\nwhile os.getppid() == parent: time.sleep(0.1)"
    )
    child = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {grandchild!r}])"
    parent = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], start_new_session=True)
    end = time.monotonic() + 60
    while not ready.exists() and time.monotonic() < end:
        time.sleep(0.05)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) == 2
    assert kill(process, everything) == 0
    assert not any(member.is_running() for member in family)


def test_a_failing_run_ends_the_script(tmp_path: Path) -> None:
    runs = Runs([], "smoke", tmp_path)
    runs.command = [sys.executable, "-c", "raise SystemExit(3)"]
    with pytest.raises(RuntimeError, match=r"ended with 3; see whole/output\.log"):
        runs.whole(tmp_path / "whole")
    (tmp_path / "whole" / "build" / "smoke").mkdir(parents=True)
    (problem,) = torture(runs, tmp_path, kills=1, longest=60, seed=0)
    assert "a start after kill 0 ended with 3" in problem


def test_a_failure_keeps_the_logs_and_what_was_found_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def whole(_: Runs, folder: Path) -> float:
        folder.mkdir()
        (folder / "output.log").write_text("why")
        return 1.0

    def torture(*_: object) -> Iterator[str]:
        yield "kill 1: 2 process(es) outlived it"
        raise RuntimeError("make ended with 3")

    monkeypatch.setattr(Runs, "whole", whole)
    monkeypatch.setattr(kill_and_restart, "torture", torture)
    monkeypatch.setattr(sys, "argv", ["kill_and_restart.py"])
    monkeypatch.chdir(tmp_path)
    assert kill_and_restart.main() == 1
    kept = tmp_path / "build" / "kill_and_restart"
    assert (kept / "whole" / "output.log").read_text() == "why"
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == ["kill 1: 2 process(es) outlived it", "make ended with 3"]
    assert lines[3].endswith(str(kept))
