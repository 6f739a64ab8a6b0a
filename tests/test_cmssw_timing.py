"""resources.json of FastTimerService: the real layout, our own measurements, broken files."""

import copy
import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
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
    frame = parse_timing.read_timing(resources())
    assert list(frame.columns) == list(parse_timing.COLUMNS)
    assert frame["module"].tolist() == [
        "electronPhotonProducer", "source", "out", "other", "eventsetup", "TriggerResults", "total",
    ]  # fmt: skip
    frame = frame.set_index("module")
    assert frame.loc["electronPhotonProducer", "real_ms"] == pytest.approx(7)
    assert frame.loc["electronPhotonProducer", "cpu_ms"] == pytest.approx(6)
    assert frame.loc["electronPhotonProducer", "share"] == pytest.approx(0.7)
    assert frame.loc["out", "real_ms"] == pytest.approx(0.5)
    assert frame.loc["out", "real_ms_when_run"] == pytest.approx(1)
    assert frame.loc["TriggerResults", "real_ms_when_run"] == 0
    assert frame.loc["total", "real_ms"] == pytest.approx(10)
    assert frame.drop("total")["share"].sum() == pytest.approx(1)


def test_layout_of_older_releases(resources) -> None:
    def older(content: dict) -> None:
        del content["resources"]
        del content["modules"][-1]
        for module in content["modules"]:
            del module["mem_alloc"], module["mem_free"]

    assert len(parse_timing.load_rows(resources(older))) == 6


def test_table_from_rows_and_from_frame(resources) -> None:
    path = resources()
    table = parse_timing.timing_table(parse_timing.load_rows(path))
    assert table == parse_timing.timing_table(parse_timing.read_timing(path))
    assert "| out | PoolOutputModule | 50 | 0.500 | 0.400 | 1.000 | 5.0% |\n" in table


def test_plot_has_two_bars_a_module_and_no_total(resources) -> None:
    figure, axis = plt.subplots()
    parse_timing.plot_timing(axis, parse_timing.read_timing(resources()))
    assert len(axis.patches) == 12
    assert [label.get_text() for label in axis.get_yticklabels()][-1] == "electronPhotonProducer"
    plt.close(figure)


def test_own_measurements_in_the_same_layout(tmp_path) -> None:
    path = tmp_path / "ours.json"
    times = {"type": "ElectronPhotonProducer", "time_real": [2.0, 4.0], "time_thread": [1.0, 2.0]}
    other = {"type": "Frames", "time_real": [1.0, 1.0], "time_thread": [1.0, 1.0]}
    parse_timing.write_timing(path, "standalone", {"producer": times, "frames": other})
    frame = parse_timing.read_timing(path).set_index("module")
    assert frame.loc["producer", ["real_ms", "cpu_ms", "share"]].tolist() == [3, 1.5, 0.75]
    assert frame.loc["total", "real_ms"] == 4
    assert set(json.loads(path.read_text())) == set(RESOURCES)
    with pytest.raises(InputError, match="found 2 and 1 for producer"):
        parse_timing.write_timing(path, "p", {"producer": {**times, "time_thread": [1.0]}})


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
        parse_timing.read_timing(path)
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


def test_plot_on_the_command_line(resources, tmp_path) -> None:
    plot = tmp_path / "t.png"
    done = run_script(parse_timing.__file__, resources(), "--plot", plot, alone=False)
    assert done.returncode == 0, done.stderr
    assert plot.read_bytes().startswith(b"\x89PNG")
    refused = run_script(parse_timing.__file__, resources(), "--plot", plot, alone=True)
    assert refused.returncode == 2
    assert "expected matplotlib and pandas to draw it, found no " in refused.stderr
