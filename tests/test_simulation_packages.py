"""Without the packages of the simulation official data work, and stand-ins say what is missing."""

import importlib
import subprocess
import sys

import numpy as np
import pytest

from data.simulate import shards
from e2e_utils.errors import InputError

WITHOUT = """
import sys
for name in ("pythia8mc", "fastjet", "distributed"):
    sys.modules[name] = None
import data.download, data.loaders, data.simulate.egamma, data.simulate.jets, data.simulate.higgs
"""


@pytest.mark.parametrize("name", ["pythia8mc", "fastjet"])
def test_a_missing_package_is_named_with_what_to_do(monkeypatch, name) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "data.simulate.packages", raising=False)
    with pytest.raises(InputError, match=f"{name}: expected .* requirements-simulation.txt"):
        importlib.import_module("data.simulate.packages")


def test_loaders_and_photons_need_none_of_them() -> None:
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_without_a_scheduler_one_process_simulates(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.setattr(shards, "find_spec", lambda name: None)
    paths = shards.produce(lambda n: {"n": np.array(n)}, [(1,), (2,), (3,)], tmp_path)
    assert [int(shards.load(path)["n"]) for path in paths] == [1, 2, 3]
