"""The exported ONNX graph in ONNX Runtime against the same graph in PyTorch."""

import tempfile
from pathlib import Path

import torch

from benchmarks.timing import row, side_by_side
from e2e_utils.notebook import load_definitions
from e2e_utils.onnx_export import export_onnx, open_session


@torch.no_grad()
def measure() -> list[dict]:
    """Rates of both, image by image and in batches."""
    notebook = load_definitions("common_task1")
    graph = notebook.RawInput(notebook.build_model("energy_only")).eval()
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        export_onnx(graph, torch.rand(2, 32, 32, 2), path, ["x"], ["probability"], {})
        session = open_session(path, threads)
        rows = []
        for batch, repeats in ((1, 100), (32, 20), (1024, 3)):
            x = torch.rand(batch, 32, 32, 2)
            raw = x.numpy()
            seconds = side_by_side(
                {
                    "ours": lambda raw=raw: session.run(None, {"x": raw}),
                    "torch": lambda x=x: graph(x),
                },
                repeats,
            )
            rates = {name: batch / t for name, t in seconds.items()}
            what = f"inference, ONNX Runtime, batch {batch}"
            rows.append(row(what, rates["ours"], rates["torch"], "PyTorch", "images/s"))
    return rows
