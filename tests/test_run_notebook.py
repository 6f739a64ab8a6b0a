"""Executing a percent script: parameters, provenance, skipping, failures, clean outputs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from fake_project import make_project

from e2e_utils import paths
from e2e_utils.errors import InputError
from e2e_utils.locks import locked
from tests.flaky_server import Served, flaky_server
from tools import run_notebook
from tools.notebook_outputs import clean_outputs, clean_text, merge_carriage_returns
from tools.provenance import code_state, data_files, data_state, read_json, run_key, stale_reason
from tools.run_notebook import NotebookFailure, cell_failure, check_size, keep_state_of, run

REPOSITORY = Path(__file__).resolve().parent.parent
TASK = "task_run"
SCRIPT = """\
# %% [markdown]
# # A run

# %%
import os
import sys
import time
from pathlib import Path

from IPython.display import Markdown, display
from tqdm import tqdm

results = display(Markdown("not yet"), display_id="results")

# %% tags=["parameters"]
PROFILE, DATA_SOURCE = os.environ["PROFILE"], os.environ["DATA_SOURCE"]
print(PROFILE, DATA_SOURCE, os.getcwd())

# %%
for _ in tqdm(range(3), desc="epoch"):
    pass
print("a warning", file=sys.stderr)

# %%
import json

folder = Path(os.environ["E2E_RUN_FOLDER"])
(folder / "model.onnx").write_bytes(b"weights")
(folder / "metrics.json").write_text(os.environ["E2E_METRICS"])
display(Markdown("| AUC |\\n|---|\\n| 0.8 |"), display_id="results", update=True);
"""
METRICS = {
    "task": TASK,
    "profile": "smoke",
    "data": {"source": "standin", "train": 1, "validation": 1, "test": 1, "fingerprint": "ab"},
    "seeds": [0],
    "headline": "roc_auc",
    "metrics": {"roc_auc": {"value": 0.8, "low": 0.7, "high": 0.9}},
    "baselines": {},
    "floors": {},
    "arms": {},
    "parameters": 1,
    "flops": 1,
    "device": "cpu",
    "seconds": 999,
    "provenance": {"note": "kept"},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """build/smoke/task_run/ of a project that holds only this task."""
    make_project(tmp_path, monkeypatch)
    write_script(SCRIPT)
    folder = paths.run_directory("smoke", TASK)
    monkeypatch.setenv("E2E_RUN_FOLDER", str(folder))
    monkeypatch.setenv("E2E_METRICS", json.dumps(METRICS))
    return folder


def write_script(text: str) -> None:
    paths.script_path(TASK).parent.mkdir(exist_ok=True)
    paths.script_path(TASK).write_text(text)


def test_a_run_and_its_repetition(folder: Path) -> None:
    assert run(TASK, "smoke") == "ran"
    nb = nbformat.read(folder / f"{TASK}.ipynb", as_version=4)
    code = [cell for cell in nb.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [1, 2, 3, 4]
    assert code[1].metadata == {"tags": ["parameters"]}
    # The table at the top is the one of the end; the update leaves nothing at the end.
    assert code[0].outputs[0].data == {"text/markdown": "| AUC |\n|---|\n| 0.8 |"}
    assert code[3].outputs == []
    assert code[1].outputs[0].text == "smoke auto .\n"
    assert [output.text for output in code[2].outputs] == ["a warning\n"]

    stamp, metrics = nb.metadata.e2e, read_json(folder / "metrics.json")
    assert stamp["data_source"] == "standin"
    assert stamp["data_fingerprint"] == "ab"
    assert metrics["provenance"] == {
        "note": "kept",
        **stamp,
        "code": code_state(TASK, "smoke", "auto"),
        "products": metrics["provenance"]["products"],
    }
    assert list(metrics["provenance"]["products"]) == ["model.onnx"]
    assert metrics["seconds"] == stamp["seconds"] < 999  # what the script wrote
    log = (folder / "run.log").read_text()
    assert "cell 4/5: for _ in tqdm" in log
    assert "cell 5/5 done in" in log
    assert "| a warning" in log

    assert run(TASK, "smoke") == "unchanged"
    assert stale_reason(folder, TASK, stamp["key"]) is None
    (folder / "model.onnx").write_bytes(b"others")
    assert stale_reason(folder, TASK, stamp["key"]) == "products are not those of the finished run"


def test_a_failing_cell_keeps_the_last_good_run(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / f"{TASK}.ipynb").write_text("the good one")
    (folder / "state").mkdir()
    write_script("# %%\nx = 1\n\n# %%\n# A comment.\nprint('before')\nx / 0\n")
    message = r"cell 2 \(# A comment\.\): ZeroDivisionError: division by zero"
    with pytest.raises(NotebookFailure, match=message):
        run(TASK, "smoke")
    assert (folder / f"{TASK}.ipynb").read_text() == "the good one"
    failed = nbformat.read(folder / f"{TASK}.failed.ipynb", as_version=4)
    assert failed.cells[1].outputs[0].text == "before\n"
    assert failed.cells[1].outputs[1].ename == "ZeroDivisionError"
    assert "failed: cell 2" in (folder / "run.log").read_text()
    assert not (folder / "state").exists()  # it was that of an unknown run


def test_input_errors_of_a_cell_stay_input_errors(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(nb: dict, *_: object) -> None:
        raise cell_failure(nb, "InputError", "\x1b[31ma.h5: bad\nsecond line")

    monkeypatch.setattr(run_notebook, "execute", failing)
    with pytest.raises(SystemExit) as end:
        run_notebook.main([TASK, "--profile", "smoke"])
    assert end.value.code == 2
    assert capsys.readouterr().err.strip() == "error: a.h5: bad"


def test_a_kernel_that_dies_is_reported(folder: Path) -> None:
    write_script("# %%\nimport os\nos._exit(1)\n")
    with pytest.raises(NotebookFailure, match="cell 1: the kernel died"):
        run(TASK, "smoke")


def test_a_notebook_without_metrics_is_no_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_notebook, "execute", lambda *_: None)
    with pytest.raises(NotebookFailure, match=r"without writing metrics\.json"):
        run(TASK, "smoke")
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    os.utime(folder / "metrics.json", (1, 1))  # that of an earlier run
    with pytest.raises(NotebookFailure, match=r"without writing metrics\.json"):
        run(TASK, "smoke")
    assert not (folder / f"{TASK}.ipynb").exists()
    # What was executed is not lost.
    assert (folder / f"{TASK}.failed.ipynb").is_file()
    assert "failed: task_run: the notebook ended without" in (folder / "run.log").read_text()


def test_ctrl_c_leaves_nothing_half_written(tmp_path: Path) -> None:
    (tmp_path / TASK).mkdir()
    (tmp_path / TASK / f"{TASK}.py").write_text("# %%\nimport time\ntime.sleep(60)\n")
    code = (
        "from pathlib import Path; from e2e_utils import paths; "
        f"paths.ROOT = Path({str(tmp_path)!r}); paths.BUILD = paths.ROOT / 'build'; "
        f"from tools import run_notebook; run_notebook.main(['{TASK}', '--profile', 'smoke'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True
    )
    log = tmp_path / "build" / "smoke" / TASK / "run.log"
    for _ in range(600):
        if log.exists() and "cell 1/1" in log.read_text():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in error.splitlines()[-1]
    assert {path.name for path in log.parent.iterdir()} == {"run.log", "state_key"}


def test_a_resumed_run_counts_the_seconds_of_earlier_starts(folder: Path) -> None:
    folder.mkdir(parents=True)
    assert keep_state_of(folder, "key", force=False) == 0.0
    (folder / "state").mkdir()
    (folder / "run.log").write_text("[     0.0 s] begins\n    | [ 9 s] printed\n[  1200.5 s] end\n")
    assert keep_state_of(folder, "key", force=False) == 1200.5
    assert keep_state_of(folder, "another key", force=False) == 0.0
    assert not (folder / "state").exists()


def test_who_goes_back_to_the_code_of_a_run_finds_its_state_again(folder: Path) -> None:
    state = folder / "state"
    state.mkdir(parents=True)
    (folder / "state_key").write_text("first")
    (folder / "run.log").write_text("[   600.0 s] end\n")
    (state / "weights").write_text("first")
    assert keep_state_of(folder, "second", force=False) == 0.0  # a change of the code
    assert not state.exists()
    state.mkdir()
    (folder / "run.log").write_text("[     3.0 s] begins\n")
    assert keep_state_of(folder, "first", force=False) == 600.0  # taken back
    assert (state / "weights").read_text() == "first"
    keep_state_of(folder, "third", force=False)
    keep_state_of(folder, "fourth", force=False)
    assert {path.name for path in folder.glob("state_of_*")} == {"state_of_first"}
    state.mkdir()
    keep_state_of(folder, "fifth", force=False)  # one other state is kept
    assert {path.name for path in folder.glob("state_of_*")} == {"state_of_fourth"}
    keep_state_of(folder, "fifth", force=True)
    assert not list(folder.glob("state_of_*"))


def test_two_runs_of_one_notebook_exclude_each_other(folder: Path) -> None:
    with locked(folder / ".lock"), pytest.raises(InputError, match="no other run"):
        run(TASK, "smoke")


def test_new_text_is_put_around_the_outputs_that_are_there(folder: Path) -> None:
    assert run(TASK, "smoke") == "ran"
    before = nbformat.read(folder / f"{TASK}.ipynb", as_version=4)
    text = SCRIPT.replace("# # A run", "# # A better title")
    text = text.replace("    pass\n", "    pass  # nothing to do\n")
    write_script(text + "\n# %% [markdown]\n# A conclusion.\n")
    assert run(TASK, "smoke") == "rewritten"
    after = nbformat.read(folder / f"{TASK}.ipynb", as_version=4)
    assert after.cells[0].source == "# A better title"
    assert after.cells[-1].source == "A conclusion."
    assert "# nothing to do" in after.cells[3].source
    assert [c.get("outputs") for c in after.cells[:-1]] == [c.get("outputs") for c in before.cells]
    assert after.cells[1].execution_count == 1
    assert after.metadata.e2e.seconds == before.metadata.e2e.seconds
    assert stale_reason(folder, TASK, run_key(TASK, "smoke", "auto")) is None
    assert run(TASK, "smoke") == "unchanged"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("range(3)", "range(4)"),  # other code
        ('print("a warning"', '# %%\nprint("a warning"'),  # the same in other cells
    ],
)
def test_other_code_is_run(folder: Path, old: str, new: str) -> None:
    assert run(TASK, "smoke") == "ran"
    write_script(SCRIPT.replace(old, new))
    assert run(TASK, "smoke") == "ran"


def test_training_state_outlives_another_evaluation(folder: Path) -> None:
    loop = "# %%\nfit = Training(folder, model)\n"
    evaluation = "# %% [markdown]\n# ## 5. Evaluation\n# %%\nprint(score)\n"

    def key(source: str) -> str:
        write_script(source)
        return run_key(TASK, "smoke", "auto", part="training")

    training = key(SCRIPT + loop + evaluation)
    assert key(SCRIPT + loop + evaluation + "print(error)\n") == training
    assert key(SCRIPT + loop.replace("model", "other") + evaluation) != training
    # A cell that trains belongs to the training wherever it stands, and so does unknown code.
    late = key(SCRIPT + loop + evaluation + loop)
    assert late != training
    assert key(SCRIPT + loop + evaluation + loop + "print(error)\n") != late
    plain = key(SCRIPT + evaluation)
    assert key(SCRIPT + evaluation + "print(error)\n") != plain


def test_the_key_covers_everything_that_results_depend_on(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "e2e_utils").mkdir()
    (tmp_path / "data" / "simulate").mkdir(parents=True)
    (tmp_path / "data" / "catalog.toml").write_text(
        f'[jets]\ntask = ["{TASK}"]\n[[jets.file]]\nname = "jets.hdf5"\n'
    )
    script = SCRIPT + "# %%\nfrom data.simulate.jets import simulate\n"
    write_script(script)
    training = run_key(TASK, "smoke", "auto", part="training")
    keys = [run_key(TASK, "smoke", "auto"), run_key(TASK, "quick", "auto")]
    keys.append(run_key(TASK, "smoke", "standin"))
    write_script(script + "# %% [markdown]\n# Another conclusion.\n")
    keys.append(run_key(TASK, "smoke", "auto"))
    assert run_key(TASK, "smoke", "auto", part="training") == training
    write_script(script + "CHANGED = True\n")
    assert run_key(TASK, "smoke", "auto", part="training") != training
    (tmp_path / "data" / "simulate" / "jets.py").write_text("from e2e_utils.metrics import auc")
    keys.append(run_key(TASK, "smoke", "auto"))
    (tmp_path / "e2e_utils" / "metrics.py").write_text("def auc(): ...")
    keys.append(run_key(TASK, "smoke", "auto"))
    (tmp_path / TASK / "cmssw").mkdir()
    (tmp_path / TASK / "cmssw" / "core.cc").write_text("int x;")
    keys.append(run_key(TASK, "smoke", "auto"))
    script += 'OTHER = load_definitions("task_other")\nSHARE = OTHER.splits.SHARE\n'
    write_script(script)
    other = paths.script_path("task_other")
    other.parent.mkdir()
    for text in ("", "from e2e_utils import splits\n"):
        other.write_text(text)
        keys.append(run_key(TASK, "smoke", "auto"))
    (tmp_path / "e2e_utils" / "splits.py").write_text("SHARE = 0.2")
    keys.append(run_key(TASK, "smoke", "auto"))
    (paths.WEIGHTS / "task_other").mkdir(parents=True)
    (paths.WEIGHTS / "task_other" / "network.safetensors").write_text("weights")
    assert run_key(TASK, "smoke", "auto") == keys[-1]  # the script does not read it
    write_script(script + 'FILE = "network.safetensors"\n')
    keys.append(run_key(TASK, "smoke", "auto"))
    (paths.WEIGHTS / "task_other" / "network.safetensors").write_text("other weights")
    keys.append(run_key(TASK, "smoke", "auto"))
    sample = tmp_path / "sample.hdf5"
    sample.write_text("events")
    keys.append(run_key(TASK, "smoke", "auto", str(sample)))
    standin = data_state(TASK, "standin")
    paths.OFFICIAL.mkdir(parents=True)
    (paths.OFFICIAL / "jets.hdf5").write_text("events")
    keys.append(run_key(TASK, "smoke", "auto"))
    assert len(set(keys)) == len(keys)
    assert data_state(TASK, "standin") == standin  # official files do not matter to stand-ins
    with pytest.raises(InputError, match="expected a data file, found none"):
        run_key(TASK, "smoke", "auto", "missing.hdf5")


def test_a_change_of_code_makes_only_the_tasks_run_again_that_import_it(
    folder: Path, tmp_path: Path
) -> None:
    """Words count nowhere; the simulation not where only official events are read."""
    scripts = {
        TASK: "from data.simulate import jets\n",
        "task_plot": "import e2e_utils.plotting\n",
        "task_upon": f'TASK = load_definitions("{TASK}")\nTWICE = 2 * TASK.WIDTH\n',
    }
    for task, text in scripts.items():
        paths.script_path(task).parent.mkdir(exist_ok=True)
        paths.script_path(task).write_text(f"# %%\n{text}")
    for name in ("e2e_utils/files.py", "e2e_utils/plotting.py", "data/simulate/jets.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("from e2e_utils import files\n" * ("files" not in name))

    def rerun(name: str, added: str, source: str = "auto") -> set[str]:
        """The tasks that a change of a file makes run again."""
        before = {task: run_key(task, "smoke", source) for task in scripts}
        with (tmp_path / name).open("a") as stream:
            stream.write(added)
        return {task for task, key in before.items() if run_key(task, "smoke", source) != key}

    for name in ("e2e_utils/files.py", "e2e_utils/plotting.py", "data/simulate/jets.py"):
        assert rerun(name, '"""Better words."""  # and a comment\n') == set()
    assert rerun("e2e_utils/plotting.py", "DPI = 90\n") == {"task_plot"}
    assert rerun("data/simulate/jets.py", "PILE_UP = 30\n") == {TASK}
    assert rerun("data/simulate/jets.py", "PILE_UP = 31\n", "official") == set()
    assert rerun("e2e_utils/files.py", "FULL = 28\n") == set(scripts) - {"task_upon"}
    assert rerun(f"{TASK}/{TASK}.py", "# # A better title\n") == {TASK}
    assert rerun(f"{TASK}/{TASK}.py", "WIDTH = 32\n") == {TASK, "task_upon"}
    assert rerun(f"{TASK}/{TASK}.py", "DEPTH = 3\n") == {TASK}  # nobody else needs it


def test_urls_are_data_too_and_count_by_what_their_server_says() -> None:
    with flaky_server() as server:
        server.files["/a.hdf5"] = Served([b"events"])
        url = f"{server.address}/a.hdf5"
        assert data_files(f"{url}, {__file__}") == [url, Path(__file__)]
        first = data_state(TASK, "auto", url)
        assert first == data_state(TASK, "auto", f" {url},") != data_state(TASK, "auto", __file__)
        assert sum(request.sent for request in server.requests) <= 2  # bytes
        server.files["/a.hdf5"] = Served([b"others"])
        assert data_state(TASK, "auto", url) != first
        with pytest.raises(InputError, match="HTTP 404"):
            data_state(TASK, "auto", f"{server.address}/b.hdf5")
    with pytest.raises(InputError, match="expected an https address"):
        data_state(TASK, "auto", "http://example.org/a.hdf5")


def test_part_of_an_official_file_is_another_source_than_a_stand_in(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "data" / "simulate").mkdir(parents=True)
    (tmp_path / "data" / "catalog.toml").write_text(
        f'[jets]\ntask = ["{TASK}"]\n[[jets.file]]\nname = "jets.hdf5"\n'
    )
    before = [data_state(TASK, source) for source in ("standin", "official", "auto")]
    parts = paths.OFFICIAL / "parts"
    parts.mkdir(parents=True)
    (parts / "jets.first-10.hdf5").write_text("events")
    after = [data_state(TASK, source) for source in ("standin", "official", "auto")]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, True, False]
    (parts / "jets.first-10.hdf5").rename(parts / "jets.first-20.hdf5")  # begins with the same
    assert data_state(TASK, "auto") == after[2]


def test_asking_whether_a_run_is_needed_imports_nothing_heavy() -> None:
    code = (
        "import sys, tools.run_notebook, tools.regenerate; "
        "print({'torch', 'numpy', 'dask', 'distributed', 'matplotlib', 'nbformat', 'jupytext', "
        "'nbconvert'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"


def test_large_notebooks_are_refused() -> None:
    cells = [
        nbformat.v4.new_code_cell("1", outputs=[nbformat.v4.new_output("stream", text="x" * size)])
        for size in (10, 2_500_000)
    ]
    with pytest.raises(NotebookFailure, match=r"2\.5 MB.*largest outputs: cell 2: 2\.50 MB"):
        check_size(nbformat.v4.new_notebook(cells=cells), TASK)


def test_progress_bars_colours_and_machine_paths_are_removed() -> None:
    assert merge_carriage_returns("a\rb\rc\r\nd\r") == "c\nd"
    bar = "epoch 1:  50%|█████     | 1/2 [00:00<00:00,  9.8it/s]"
    assert clean_text(f"\r{bar}\r{bar}\n") == ""
    assert clean_text(f"start\n{bar}\nend\n") == "start\nend\n"
    assert clean_text("\x1b[31mred\x1b[0m") == "red"
    text = f"{paths.ROOT}/data/x.npy in {paths.ROOT}, /x/ipykernel_1/23.py:4: Warning"
    assert clean_text(text, {str(paths.ROOT): ""}) == "data/x.npy in ., <cell>:4: Warning"
    assert clean_text("/opt/env/lib/site-packages/torch/a.py") == "site-packages/torch/a.py"
    assert clean_text("sub/top/x", {"/top": "~"}) == "sub/top/x"


def test_one_representation_of_every_output_is_kept() -> None:
    def data(**types: str) -> dict:
        named = {key.replace("__", "/").replace("_xml", "+xml"): v for key, v in types.items()}
        return {"output_type": "display_data", "data": named, "metadata": {"a": 1}}

    figure, table, markdown = clean_outputs(
        [
            data(image__png="AA", text__plain="<Figure size 640x480 with 1 Axes>"),
            data(text__html="<table></table>", text__plain="   a\n0  1"),
            data(text__markdown="**x**", text__plain="<IPython.core.display.Markdown object>"),
        ]
    )
    assert figure["data"] == {"image/png": "AA"}
    assert figure["metadata"] == {}
    assert set(table["data"]) == {"text/html", "text/plain"}
    assert set(markdown["data"]) == {"text/markdown"}
    (vector,) = clean_outputs([data(image__png="AA", image__svg_xml="<svg/>")])
    assert vector["data"] == {"image/svg+xml": "<svg/>"}
    widget = data(text__plain="HBox(children=())")
    widget["data"]["application/vnd.jupyter.widget-view+json"] = {}
    assert clean_outputs([widget]) == []
    pieces = [{"output_type": "stream", "name": "stdout", "text": text} for text in "ab"]
    assert clean_outputs(pieces) == [{"output_type": "stream", "name": "stdout", "text": "ab"}]


def test_a_run_ends_with_its_caller(tmp_path: Path) -> None:
    code = (
        "import time; from tools.run_notebook import stop_with_parent as s; s(); "
        "print('ready', flush=True); time.sleep(60)"
    )
    middle = (
        "import subprocess, sys; "
        f"p = subprocess.Popen([sys.executable, '-c', {code!r}], stdout=subprocess.PIPE); "
        "p.stdout.readline(); print(p.pid)"
    )
    result = subprocess.run(
        [sys.executable, "-c", middle],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    pid = int(result.stdout)
    for _ in range(100):
        if not alive(pid):
            break
        time.sleep(0.1)
    assert not alive(pid)


def test_a_run_ends_whose_caller_was_gone_before_it_could_ask() -> None:
    code = "import time; from tools.run_notebook import stop_with_parent as s; s(); time.sleep(60)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY, env=os.environ | {"E2E_PARENT": "999999999"}, check=False,
    )  # fmt: skip
    assert result.returncode == -signal.SIGTERM


def alive(pid: int) -> bool:
    """Whether a process runs; a finished one that nobody has waited for does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
