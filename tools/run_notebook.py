"""Run one task's notebook: percent script -> executed notebook with provenance.

``python -m tools.run_notebook common_task1 --profile quick``. Nothing runs where the sources, the
data and the parameters are those of the finished run in build/<profile>/<task>/.
"""

import argparse
import base64
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from filelock import Timeout

from e2e_utils import paths
from e2e_utils.errors import InputError, command_line
from e2e_utils.figures import palette_png
from e2e_utils.files import remove, reporting_full_disk, write_json, write_text
from e2e_utils.locks import locked
from e2e_utils.paths import display_path
from e2e_utils.profiles import PROFILES, SOURCES
from e2e_utils.versions import library_versions
from tools.imported_code import code_hash
from tools.kernel_variables import kernel_variables
from tools.notebook_outputs import PROGRESS_BAR, clean_outputs, joined, strip_ansi
from tools.provenance import (
    check_task,
    code_state,
    data_files,
    data_state,
    product_hashes,
    read_json,
    run_key,
    source_hash,
    stale_reason,
)

MAX_BYTES = 2_000_000  # GitHub shows larger notebooks slowly or not at all
BAR_INTERVAL = 2.0  # seconds between two states of a progress bar in run.log


class NotebookFailure(Exception):
    """A cell that raised, or a kernel that died; the message is one line."""


def run(
    task: str,
    profile: str = "quick",
    data_source: str = "auto",
    data: str | None = None,
    force: bool = False,
) -> str:
    """Execute the notebook of ``task`` unless it is up to date; "ran", "unchanged" or "rewritten".

    Where nothing but text and comments have changed since the run, they are rewritten around the
    outputs that are there.

    Raises InputError for unusable parameters or data, NotebookFailure for a cell that failed.
    """
    check_task(task)
    key = run_key(task, profile, data_source, data)
    folder = paths.run_directory(profile, task)
    code_key = run_key(task, profile, data_source, data, part="code")
    if not force and stale_reason(folder, task, key) is None:
        return "unchanged"
    if not force and has_code(folder, task, code_key):
        rewrite(folder, task, {"key": key, "source_hash": source_hash(task)})
        return "rewritten"
    folder.mkdir(parents=True, exist_ok=True)
    parameters = {
        "PROFILE": profile,
        "DATA_SOURCE": data_source,
        "DATA": ",".join(map(str, data_files(data))),
    }
    # Of what runs, not of what is there when it ends.
    stamp = {
        "key": key,
        "code_key": code_key,
        "profile": profile,
        "requested_source": data_source,
        "data_state": data_state(task, data_source, data),
        "source_hash": source_hash(task),
        "versions": library_versions(),
    }
    code = code_state(task, profile, data_source, data)
    started = time.time()
    with reporting_full_disk(folder / "run.log"), only_run(folder) as stream:
        training = run_key(task, profile, data_source, data, part="training")
        earlier = keep_state_of(folder, training, force)
        stream.truncate(0)
        log = RunLog(stream, earlier)
        log.write(f"{task}: profile {profile}, data source {data_source}")
        nb = load_script(task)
        try:
            execute(nb, parameters, log)
            stamp["seconds"] = round(log.elapsed(), 1)
            conclude(folder, task, nb, stamp, code, started)
        except (NotebookFailure, InputError) as failure:
            write_notebook(folder / f"{task}.failed.ipynb", finish(nb, {}))
            log.write(f"failed: {failure}")
            raise
        except KeyboardInterrupt:
            log.write("interrupted")
            raise
        log.write("finished")
    return "ran"


def has_code(folder: Path, task: str, code_key: str) -> bool:
    """Whether the run in ``folder`` is complete and of this code; its text may be another."""
    if stale_reason(folder, task) is not None:
        return False
    executed = read_json(folder / f"{task}.ipynb")
    if executed["metadata"]["e2e"].get("code_key") != code_key:
        return False
    before, today = (
        [code_hash(joined(cell["source"])) for cell in code_cells(nb)]
        for nb in (executed, load_script(task))
    )
    return before == today


def code_cells(nb: dict) -> list[dict]:
    """The cells of a notebook that can be executed."""
    return [cell for cell in nb["cells"] if cell["cell_type"] == "code"]


def rewrite(folder: Path, task: str, stamp: dict[str, str]) -> None:
    """Put today's text and comments around the outputs of a run of the same code."""
    executed = read_json(folder / f"{task}.ipynb")
    metrics = read_json(folder / "metrics.json")
    nb = finish(load_script(task), executed["metadata"]["e2e"] | stamp)
    for cell, before in zip(code_cells(nb), code_cells(executed), strict=True):
        cell |= {name: before[name] for name in ("outputs", "execution_count")}
    nb["metadata"]["language_info"] = executed["metadata"]["language_info"]
    metrics["provenance"] |= stamp
    with only_run(folder) as stream:
        write_notebook(folder / f"{task}.ipynb", nb)
        write_json(folder / "metrics.json", metrics)
        stream.write("text rewritten around the outputs of this run\n")


@contextmanager
def only_run(folder: Path) -> Iterator[TextIO]:
    """run.log; a second run of the same notebook raises InputError."""
    try:
        with (
            locked(folder / ".lock", wait=False),
            (folder / "run.log").open("a", encoding="utf-8", buffering=1) as stream,
        ):
            yield stream
    except Timeout as error:
        raise InputError(
            f"{display_path(folder)}: expected no other run of this notebook, found one; "
            "wait for its end"
        ) from error


def conclude(
    folder: Path, task: str, nb: dict, stamp: dict, code: dict[str, str], started: float
) -> None:
    """Check what the run wrote, put the provenance into it, and write the notebook."""
    from e2e_utils.evaluation import load_metrics

    metrics_file = folder / "metrics.json"
    if not metrics_file.is_file() or metrics_file.stat().st_mtime < started - 1:
        raise NotebookFailure(f"{task}: the notebook ended without writing metrics.json")
    metrics = load_metrics(metrics_file)
    stamp = {
        **stamp,
        "data_source": metrics["data"]["source"],
        "data_fingerprint": metrics["data"]["fingerprint"],
        "device": metrics.get("device", "cpu"),
    }
    nb = finish(nb, stamp)
    check_size(nb, task)
    metrics["seconds"] = stamp["seconds"]  # of all starts, the notebook knows only the last one
    metrics["provenance"] = {
        **metrics.get("provenance", {}),
        **stamp,
        "code": code,
        "products": product_hashes(folder),
    }
    write_notebook(folder / f"{task}.ipynb", nb)
    write_json(metrics_file, metrics)
    remove(folder / f"{task}.failed.ipynb")


def keep_state_of(folder: Path, key: str, force: bool) -> float:
    """Training state may only be resumed by a run with the same code, data and parameters.

    Its text and evaluation may differ: who redraws a figure need not train again. The state of one
    other run is set aside: who goes back to the code of that run finds it again.

    Returns the seconds that earlier starts of this run have taken, by their run.log.
    """
    state, owner, log = folder / "state", folder / "state_key", folder / "run.log"
    found = owner.read_text() if owner.exists() else ""
    waiting = folder / f"state_of_{key}"
    if force or found != key:
        set_aside = bool(found) and state.exists() and not force
        for other in folder.glob("state_of_*"):
            if force or (set_aside and other != waiting):
                remove(other)
        if set_aside:
            if log.exists():
                shutil.copy2(log, state / log.name)  # its times
            state.rename(folder / f"state_of_{found}")
        remove(state)
        if waiting.exists():
            waiting.rename(state)
            log = state / log.name
    write_text(owner, key)
    if not state.exists() or not log.exists():
        return 0.0
    times = re.findall(r"^\[ *([\d.]+) s\]", log.read_text("utf-8"), re.MULTILINE)
    return float(times[-1]) if times else 0.0


def load_script(task: str) -> dict:
    """The percent script as a notebook without outputs; the same cell ids every time."""
    import jupytext

    nb = jupytext.read(paths.script_path(task), fmt="py:percent")
    for number, cell in enumerate(nb.cells, 1):
        cell["id"] = f"cell-{number:03d}"
    return nb


def execute(nb: dict, parameters: dict[str, str], log: "RunLog") -> None:
    """Execute all cells in place, in a kernel of this interpreter, with the root as folder."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    class LoggingClient(NotebookClient):
        """Passes what cells print on to the log while they run."""

        def process_message(self, msg: dict, cell: dict, cell_index: int) -> object:
            if msg["msg_type"] == "stream":
                log.stream(msg["content"]["text"])
            return super().process_message(msg, cell, cell_index)

    with kernel_folder() as kernels:
        manager = AsyncKernelManager(
            kernel_name="e2e",
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[str(kernels)]),
        )
        client = LoggingClient(
            nb,
            km=manager,
            timeout=None,
            record_timing=False,
            resources={"metadata": {"path": str(paths.ROOT)}},
            on_cell_start=log.cell_hook("start", nb),
            on_cell_executed=log.cell_hook("end", nb),
        )
        client.owns_km = True  # stop the kernel whatever happens
        try:
            client.execute(env=kernel_environment(parameters), stdout=log.handle, stderr=log.handle)
        except Exception as error:
            # nbclient answers Ctrl-C by stopping the kernel, then stumbles over the dead kernel.
            if hasattr(client, "_async_cleanup_kernel_future"):
                raise KeyboardInterrupt from None
            if isinstance(error, CellExecutionError):
                raise cell_failure(nb, error.ename, error.evalue) from error
            if isinstance(error, DeadKernelError):
                raise NotebookFailure(
                    f"cell {log.number}: the kernel died (out of memory?)"
                ) from error
            raise


def cell_failure(nb: dict, name: str, message: str) -> Exception:
    """The exception of a cell as one line: InputError stays one, others say where they rose."""
    message = strip_ansi(message).strip().split("\n")[0]
    if name == "InputError":
        return InputError(message)
    number, cell = failing_cell(nb)
    source = next(line for line in cell["source"].split("\n") if line.strip())
    return NotebookFailure(f"cell {number} ({source.strip()[:80]}): {name}: {message}")


@contextmanager
def kernel_folder() -> Iterator[Path]:
    """A folder with the specification of a kernel in the running interpreter.

    A virtual environment needs no ``ipykernel install`` and no kernel of the user is picked up.
    """
    with tempfile.TemporaryDirectory(prefix="kernel-") as folder:
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        write_json(
            Path(folder) / "e2e" / "kernel.json",
            {"argv": command, "display_name": "Python 3", "language": "python"},
        )
        yield Path(folder)


def kernel_environment(parameters: dict[str, str]) -> dict[str, str]:
    """Environment of the kernel: what it needs of the caller's, and the notebook's parameters."""
    environment = {
        "PYTORCH_ENABLE_MPS_FALLBACK": "1",  # what Apple's GPU cannot do, the CPU does
        **kernel_variables(os.environ),
        **parameters,
        "PYTHONHASHSEED": "0",
    }
    # The modules of this checkout, whatever else is installed.
    path = [str(paths.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(path)
    return environment


def failing_cell(nb: dict) -> tuple[int, dict]:
    """Number (from 1, of all cells) and cell with the error output."""
    for number, cell in enumerate(nb["cells"], 1):
        if any(output["output_type"] == "error" for output in cell.get("outputs", [])):
            return number, cell
    return len(nb["cells"]), nb["cells"][-1]


class RunLog:
    """run.log: starts and ends of cells with seconds, and what they print, as it comes."""

    def __init__(self, handle: TextIO, earlier: float = 0.0) -> None:
        self.handle = handle
        self.began = time.monotonic() - earlier
        self.cell_began = time.monotonic()
        self.number = 0
        self.last_bar = 0.0
        self.unfinished = ""

    def elapsed(self) -> float:
        """Seconds of this run, those of earlier starts that it resumed included."""
        return time.monotonic() - self.began

    def write(self, text: str) -> None:
        """A line with the time of this run."""
        self.handle.write(f"[{self.elapsed():8.1f} s] {text}\n")

    def stream(self, text: str) -> None:
        """Printed text: complete lines at once, states of a progress bar now and then."""
        pieces = re.split(r"(?<=[\r\n])", self.unfinished + strip_ansi(text))
        self.unfinished = pieces.pop()
        if PROGRESS_BAR.search(self.unfinished):  # tqdm ends no state with a line end
            pieces.append(self.unfinished)
            self.unfinished = ""
        for piece in pieces:
            line = piece.rstrip()
            now = time.monotonic()
            if not line:
                continue
            if PROGRESS_BAR.search(line):
                if now - self.last_bar < BAR_INTERVAL:
                    continue
                self.last_bar = now
            self.handle.write(f"    | {line.lstrip(chr(13))}\n")

    def cell_hook(self, event: str, nb: dict) -> Callable[..., None]:
        """Hook for nbclient that logs the start or the end of a code cell."""
        total = len(nb["cells"])

        def hook(cell: dict, cell_index: int, **_: object) -> None:
            if cell["cell_type"] != "code" or not cell["source"].strip():
                return
            self.number = cell_index + 1
            if event == "start":
                self.cell_began = time.monotonic()
                first = cell["source"].strip().split("\n")[0]
                self.write(f"cell {self.number}/{total}: {first[:70]}")
            else:
                if self.unfinished.strip():
                    self.handle.write(f"    | {self.unfinished.strip()}\n")
                self.unfinished = ""
                seconds = time.monotonic() - self.cell_began
                self.write(f"cell {self.number}/{total} done in {seconds:.1f} s")

        return hook


def finish(nb: dict, stamp: dict) -> dict:
    """The executed notebook as it is kept: clean outputs, small metadata, provenance."""
    replacements = {
        str(paths.ROOT): "",
        str(Path.home()): "~",
        tempfile.gettempdir(): "<temporary>",
        sys.prefix: "<environment>",
    }
    for cell in nb["cells"]:
        cell["metadata"] = {k: v for k, v in cell["metadata"].items() if k == "tags"}
        if cell["cell_type"] == "code":
            cell["outputs"] = clean_outputs(cell["outputs"], replacements)
            for output in cell["outputs"]:
                shrink_figure(output.get("data", {}))
    language = nb["metadata"].get("language_info", {})
    nb["metadata"] = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {k: v for k, v in language.items() if k in ("name", "version")},
        # Colab starts with a GPU where one is free.
        "accelerator": "GPU",
        "colab": {"gpuType": "T4"},
        **({"e2e": stamp} if stamp else {}),
    }
    return nb


def shrink_figure(data: dict) -> None:
    """A PNG among an output's types as a palette image, where that loses nothing visible."""
    if "image/png" in data:
        png = palette_png(base64.b64decode(joined(data["image/png"])))
        data["image/png"] = base64.b64encode(png).decode()


def check_size(nb: dict, task: str) -> None:
    """Raise NotebookFailure for a notebook above MAX_BYTES, naming its largest outputs."""
    import nbformat

    size = len(nbformat.writes(nbformat.from_dict(nb)).encode())
    if size <= MAX_BYTES:
        return
    sizes = sorted(
        ((len(str(cell.get("outputs", ""))), number) for number, cell in enumerate(nb["cells"], 1)),
        reverse=True,
    )
    largest = ", ".join(f"cell {number}: {length / 1e6:.2f} MB" for length, number in sizes[:3])
    raise NotebookFailure(
        f"{task}: the executed notebook has {size / 1e6:.1f} MB, at most "
        f"{MAX_BYTES / 1e6:.0f} MB are allowed; largest outputs: {largest}"
    )


def write_notebook(path: Path, nb: dict) -> None:
    """Write a notebook in one move."""
    import nbformat

    write_text(path, nbformat.writes(nbformat.from_dict(nb)) + "\n")


def stop_with_parent() -> None:
    """End this run and its kernel when the calling process is gone.

    The caller names itself: it may be gone before this process can ask who started it.
    """
    parent = int(os.environ.get("E2E_PARENT") or os.getppid())

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        while True:  # the first signal may come before anything listens
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)

    threading.Thread(target=watch, daemon=True).start()


@command_line
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.run_notebook", description=__doc__)
    parser.add_argument("task")
    parser.add_argument("--profile", choices=PROFILES, default="quick")
    parser.add_argument("--data-source", choices=SOURCES, default="auto")
    parser.add_argument("--data", help="file(s) instead of a dataset, comma separated")
    parser.add_argument("--force", action="store_true", help="run even if nothing has changed")
    parser.add_argument("--with-parent", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.with_parent:
        stop_with_parent()
    folder = paths.run_directory(options.profile, options.task)
    shown = display_path(folder)
    try:
        outcome = run(
            options.task, options.profile, options.data_source, options.data, options.force
        )
    except NotebookFailure as failure:
        print(f"error: {failure} (see {shown}/run.log)", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: the results of the last finished run are unchanged", file=sys.stderr)
        return 130
    if outcome == "unchanged":
        print(f"{options.task}: nothing to do, {shown} is up to date")
    elif outcome == "rewritten":
        print(f"{options.task}: only text has changed; rewritten in {shown}")
    else:
        seconds = read_json(folder / "metrics.json")["provenance"]["seconds"]
        print(f"{options.task}: executed in {seconds:.0f} s, results in {shown}")
    return 0


if __name__ == "__main__":
    main()
