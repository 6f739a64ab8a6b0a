"""Two processes train every network of every notebook together, as one process would."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from e2e_utils.paths import ROOT
from tests import train_together
from tests.trainings import TRAININGS

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
NETWORK_FAULTS = ("Gloo", "DistNetworkError", "DistStoreError")


def launch(folder: Path) -> subprocess.CompletedProcess[str]:
    """Both processes until they end; a failure's text ends with whose and which came first."""
    environment = {
        "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "",
        "GLOO_SOCKET_IFNAME": LOOPBACK,  # whatever the machine's own name resolves to
    }  # fmt: skip
    return subprocess.run(
        [*TORCHRUN, str(Path(train_together.__file__)), str(folder)],
        env=os.environ | environment, capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both processes wrote. No notebook needs a flag to train in them, nor to end."""
    folder = tmp_path_factory.mktemp("two")
    result = launch(folder)
    cause = result.stderr.rpartition("Root Cause")[2]
    if result.returncode and any(fault in cause for fault in NETWORK_FAULTS):  # busy ports
        folder = tmp_path_factory.mktemp("two")
        result = launch(folder)
    assert result.returncode == 0, result.stderr[-8000:]
    return folder


@pytest.mark.parametrize("name", TRAININGS)
def test_processes_see_other_batches_and_have_the_same_network(folder: Path, name: str) -> None:
    first, second = (
        json.loads((folder / f"results-{rank}.json").read_text())[name] for rank in (0, 1)
    )
    assert first["batches"] != second["batches"]
    # To the last bit, buffers included: every step used the mean gradient of both processes.
    assert first["weights"] == second["weights"]


def test_the_mean_gradient_of_two_half_batches_is_that_of_the_batch(
    folder: Path, tmp_path: Path
) -> None:
    train_together.main(tmp_path, [train_together.EXACT])
    alone, together = (torch.load(path / "exact-0.pt") for path in (tmp_path, folder))
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    moved = max(w.abs().max() for k, w in alone.items() if k.startswith("blocks.0.2.weight"))
    assert moved > 1e-3  # begins at zero
