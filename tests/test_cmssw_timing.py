"""resources.json of FastTimerService: the real layout, broken files, the command line."""

import copy
import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from e2e_utils.errors import InputError
from task2f_cmssw_inference.cmssw import parse_timing


def entry(kind: str, label: str, events: int, real: float, thread: float) -> dict:
    """As FastTimerService::encodeToJSON writes it."""
    return {
        "events": events, "label": label, "mem_alloc": 0.0, "mem_free": 0.0,
        "time_real": real, "time_thread": thread, "type": kind,
    }  # fmt: skip


# The layout of FastTimerService::writeSummaryJSON in CMSSW 12_0; times of 100 events in ms.
RESOURCES = {
    "modules": [
        entry("PoolSource", "source", 100, 200.0, 150.0),
        entry("ElectronPhotonProducer", "electronPhotonProducer", 100, 700.0, 600.0),
        entry("PoolOutputModule", "out", 50, 50.0, 40.0),
        entry("TriggerResultInserter", "TriggerResults", 0, 0.0, 0.0),
        entry("other", "other", 100, 30.0, 20.0),
        entry("eventsetup", "eventsetup", 100, 20, 10),
    ],
    "resources": [
        {"time_real": "real time"},
        {"time_thread": "cpu time"},
        {"mem_alloc": "allocated memory"},
        {"mem_free": "deallocated memory"},
    ],
    "total": entry("Job", "EGInference", 100, 1000.0, 820.0),
}


@pytest.fixture
def resources(tmp_path: Path) -> Callable[..., Path]:
    """Writer of a resources.json, changed by a function."""

    def write(change: Callable[[dict], object] = lambda content: None) -> Path:
        content = copy.deepcopy(RESOURCES)
        change(content)
        path = tmp_path / "resources.json"
        path.write_text(json.dumps(content, indent=2))
        return path

    return write


def test_times_per_event_and_shares(resources) -> None:
    rows = parse_timing.load_rows(resources())
    assert all(tuple(row) == parse_timing.COLUMNS for row in rows)
    assert [row["module"] for row in rows] == [
        "electronPhotonProducer", "source", "out", "other", "eventsetup", "TriggerResults", "total",
    ]  # fmt: skip
    by_name = {row["module"]: row for row in rows}
    producer, out, total = (by_name[name] for name in ("electronPhotonProducer", "out", "total"))
    assert producer["real_ms"] == pytest.approx(7)
    assert producer["cpu_ms"] == pytest.approx(6)
    assert producer["share"] == pytest.approx(0.7)
    assert out["real_ms"] == pytest.approx(0.5)
    assert out["real_ms_when_run"] == pytest.approx(1)
    assert by_name["TriggerResults"]["real_ms_when_run"] == 0
    assert total["real_ms"] == pytest.approx(10)
    assert sum(row["share"] for row in rows if row is not total) == pytest.approx(1)


def test_layout_of_older_releases(resources) -> None:
    def older(content: dict) -> None:
        del content["resources"]
        del content["modules"][-1]
        for module in content["modules"]:
            del module["mem_alloc"], module["mem_free"]

    assert len(parse_timing.load_rows(resources(older))) == 6


def test_table(resources) -> None:
    table = parse_timing.timing_table(parse_timing.load_rows(resources()))
    assert "| out | PoolOutputModule | 50 | 0.500 | 0.400 | 1.000 | 5.0% |\n" in table


def changed(*keys: str | int, to: object) -> Callable[[dict], None]:
    def change(content: dict) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("total"), "expected an entry in 'total', found nothing"),
        (lambda content: content.pop("modules"), "a list of entries in 'modules', found nothing"),
        (changed("modules", to=[]), "a list of entries in 'modules', found an empty list"),
        (changed("modules", to={}), "a list of entries in 'modules', found dict"),
        (changed("modules", 2, to=7), r"expected an entry in 'modules\[2\]', found int"),
        (changed("modules", 1, "time_real", to=None), r"'time_real' of 'modules\[1\]', found None"),
        (changed("modules", 1, "time_real", to=-1), r"'time_real' of 'modules\[1\]', found -1"),
        (changed("modules", 1, "time_real", to=float("nan")), "found nan"),
        (changed("modules", 1, "events", to="9"), r"'events' of 'modules\[1\]', found '9'"),
        (changed("modules", 1, "events", to=True), r"'events' of 'modules\[1\]', found True"),
        (changed("modules", 0, "label", to=3), r"a text as 'label' of 'modules\[0\]', found 3"),
        (changed("total", "events", to=0), "expected events in 'total', found 0"),
    ],
)
def test_broken_files_are_refused(resources, change, message) -> None:
    path = resources(change)
    with pytest.raises(InputError, match=message) as error:
        parse_timing.load_rows(path)
    assert str(error.value).startswith(f"{path}: expected ")
    assert "; run cmsRun to its end" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "expected the resources.json of FastTimerService, found No such file"),
        (b"", "expected JSON, found Expecting value"),
        (b'{"modules": [', "expected JSON, found "),
        (b"\xff\xfe\x00", "expected JSON, found "),
        (b"[]", "expected an object with 'total' and 'modules', found an empty list"),
    ],
)
def test_files_that_are_no_summary_are_refused(tmp_path, content, message) -> None:
    path = tmp_path / "resources.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        parse_timing.load_rows(path)


def run_script(*arguments: str | Path, alone: bool) -> subprocess.CompletedProcess:
    """The command line; ``alone``: without packages and without the repository."""
    flags = ["-I", "-S"] if alone else []
    return subprocess.run(
        [sys.executable, *flags, *map(str, arguments)], capture_output=True, text=True
    )


@pytest.mark.parametrize("alone", [True, False])
def test_command_line_with_and_without_the_repository(resources, tmp_path, alone) -> None:
    script = tmp_path / "away.py"
    shutil.copy(parse_timing.__file__, script)
    table, markdown = tmp_path / "t.csv", tmp_path / "t.md"
    done = run_script(script, resources(), "--csv", table, "--markdown", markdown, alone=alone)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == markdown.read_text()
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == parse_timing.COLUMNS
    assert float(rows[0]["share"]) == pytest.approx(0.7)

    refused = run_script(script, tmp_path / "no.json", alone=alone)
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"error: {tmp_path / 'no.json'}: expected ")
    assert refused.stderr.count("\n") == 1
