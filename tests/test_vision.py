"""torchvision is usable beside whatever torch is installed."""

import subprocess
import sys

import pytest
import torch

from e2e_utils.paths import ROOT
from e2e_utils.vision import import_torchvision


def test_models_and_transforms_work() -> None:
    torchvision = import_torchvision()
    assert torchvision is import_torchvision() is sys.modules["torchvision"]
    block = torchvision.models.resnet.BasicBlock(4, 4).eval()
    assert block(torch.zeros(1, 4, 8, 8)).shape == (1, 4, 8, 8)
    from torchvision.transforms import v2

    image = torch.arange(6.0).view(1, 2, 3)
    assert torch.equal(v2.functional.horizontal_flip(image), image.flip(-1))


def test_operators_are_declared_only_where_the_plain_import_fails() -> None:
    program = """
try:
    import torchvision
    plain = True
except RuntimeError:
    plain = False
from e2e_utils.vision import import_torchvision
print(plain, hasattr(import_torchvision(), "declared_operators"))
"""
    command = [sys.executable, "-c", program]
    output = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert output.split() in (["True", "False"], ["False", "True"])


def test_other_errors_are_not_hidden(monkeypatch) -> None:
    def broken(name: str) -> None:
        raise RuntimeError("something else")

    import_torchvision.cache_clear()
    monkeypatch.setattr("e2e_utils.vision.importlib.import_module", broken)
    with pytest.raises(RuntimeError, match="something else"):
        import_torchvision()
