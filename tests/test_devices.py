"""Every training keeps model, inputs and targets on one device, and needs no float64 there."""

import importlib
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from e2e_utils import machine
from e2e_utils import training as training_context
from e2e_utils.paths import list_tasks
from tests.fake_device import DEVICE, Constants, FakeAccelerator, FakeDevice, Generator
from tests.trainings import TRAININGS


@pytest.fixture
def fake_device(monkeypatch: pytest.MonkeyPatch):
    """The notebooks, loaded on a machine that has the fake device."""
    before = {task: sys.modules.pop(task, None) for task in list_tasks()}
    monkeypatch.setattr(machine, "pick_device", lambda: DEVICE)
    monkeypatch.setattr(machine, "make_accelerator", lambda *_, **__: FakeAccelerator())
    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)  # which forbids to swap parameters
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    optimizer = importlib.import_module("torch.optim.optimizer")  # for AdamW(fused=True)
    monkeypatch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: [DEVICE.type])
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    with FakeDevice(), Constants():
        yield
    torch.__future__.set_swap_module_params_on_conversion(swaps)
    for task, module in before.items():
        sys.modules.pop(task, None)
        if getattr(module, "__file__", None):  # definitions, and no package without a file
            sys.modules[task] = module


def test_the_fake_device_refuses_what_devices_refuse(fake_device):
    x = torch.rand(3, device=DEVICE)
    with pytest.raises(RuntimeError, match="of the device and of the CPU"):
        x + torch.rand(3)
    with pytest.raises(TypeError, match="no float64"):
        x.double()
    with pytest.raises(TypeError, match="no float64"):
        torch.zeros(3).double().to(DEVICE)
    assert (x.cpu().double() + 1).device.type == "cpu"


# Left out: trainings by the same loop with inputs from the same function.
SAME = {"2c classifier", "2d stage one", "2d VAE", "2h pair attention", "2h CNN"}


@pytest.mark.parametrize("name", [name for name in TRAININGS if name not in SAME])
def test_a_training_stays_on_its_device(fake_device, tmp_path: Path, monkeypatch, name: str):
    notebook, train = TRAININGS[name](tmp_path)
    # Notebooks with their own loop save by themselves, the others through `Training`.
    saver = notebook if hasattr(notebook, "save_training_state") else training_context
    monkeypatch.setattr(saver, "save_training_state", lambda *_: None)
    for score in (
        "roc_auc",
        "mean_absolute_error",
        "reconstruction_quality",
        "validation_loss",
    ):  # how well it learns is tested elsewhere
        monkeypatch.setattr(notebook, score, lambda *_: 0.5, raising=False)
    assert train()
