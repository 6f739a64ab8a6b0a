"""A notebook in an imitated session of Colab; runs in the environment with Colab's packages.

    python colab_session.py NOTEBOOK

The kernel starts in the folder of the notebook. All cells run, and run again in the same kernel;
then once more in a fresh kernel in that folder, as after a restart of the runtime. One line of JSON
for each of the three: its name, seconds, what the first cell printed, the error.
"""

import json
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

CELL_SECONDS = 3600


def first_output(nb: dict) -> str:
    """What the first code cell printed."""
    cell = next(cell for cell in nb["cells"] if cell["cell_type"] == "code")
    texts = [output["text"] for output in cell["outputs"] if output["output_type"] == "stream"]
    return "".join(texts).strip()


def run_all(client: NotebookClient, name: str) -> bool:
    """Execute every cell; report, and whether all went well."""
    began, error = time.monotonic(), ""
    client.reset_execution_trackers()
    try:
        for index, cell in enumerate(client.nb["cells"]):
            client.execute_cell(cell, index)
    except (CellExecutionError, DeadKernelError) as failure:
        error = str(failure)
    seconds = time.monotonic() - began
    report = {"run": name, "seconds": seconds, "printed": first_output(client.nb), "error": error}
    print(json.dumps(report), flush=True)
    return not error


def main(path: Path) -> int:
    """The three runs of a notebook; 1 where one failed, which ends them."""
    for names in (("first", "again"), ("restart",)):
        nb = nbformat.read(path, as_version=4)
        folder = {"metadata": {"path": str(path.parent)}}
        client = NotebookClient(nb, resources=folder, timeout=CELL_SECONDS)
        with client.setup_kernel():
            if not all(run_all(client, name) for name in names):
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
