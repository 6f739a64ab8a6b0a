"""Exported graphs: any batch size, metadata, old opsets, parity with torch."""

import errno

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from e2e_utils.errors import InputError
from e2e_utils.onnx_export import check_parity, export_onnx, open_session


class RawInput(nn.Module):
    """Preprocessing and a small network on the official layout (B, 32, 32, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(2, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.log1p(x.permute(0, 3, 1, 2).abs())  # (B, 2, 32, 32)
        return self.layers(x).squeeze(1).sigmoid()


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    model = RawInput()
    model(torch.rand(16, 32, 32, 2))  # running statistics that are not the initial ones
    return model


METADATA = {"task": "common_task1", "kind": "binary_classification", "profile": "smoke", "n": 3}


def export(model: nn.Module, path, **options: int) -> None:
    export_onnx(model, torch.rand(2, 32, 32, 2), path, ["x"], ["probability"], METADATA, **options)


def test_any_batch_size_and_metadata(model, tmp_path) -> None:
    path = tmp_path / "model.onnx"
    export(model, path)
    batches = [torch.rand(n, 32, 32, 2) for n in (1, 2, 33)]
    assert check_parity(model, path, batches, tolerance=1e-5) < 1e-5
    assert check_parity(model, path, [batch.numpy() for batch in batches]) < 1e-5
    session = open_session(path)
    assert session.get_inputs()[0].shape == ["batch", 32, 32, 2]
    assert session.get_outputs()[0].shape == ["batch"]
    assert session.get_modelmeta().custom_metadata_map == {k: str(v) for k, v in METADATA.items()}
    assert model.training  # as it was
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_old_opset_for_old_runtimes(model, tmp_path) -> None:
    path = tmp_path / "old.onnx"
    export(model, path, opset=10, ir_version=5)
    graph = onnx.load(path)
    assert graph.opset_import[0].version == 10
    assert graph.ir_version == 5
    assert check_parity(model, path, [torch.rand(3, 32, 32, 2)]) < 1e-5


def test_several_inputs_and_outputs(tmp_path) -> None:
    class Two(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return a + b, a * b

    path, arguments = tmp_path / "two.onnx", (torch.rand(2, 3), torch.rand(2, 3))
    export_onnx(Two(), arguments, path, ["a", "b"], ["sum", "product"], {})
    assert check_parity(Two(), path, [arguments, (torch.rand(5, 3), torch.rand(5, 3))]) == 0


def test_different_weights_are_noticed(model, tmp_path) -> None:
    path = tmp_path / "model.onnx"
    export(model, path)
    with torch.no_grad():
        model.layers[-1].bias += 0.1
    with pytest.raises(ValueError, match="differs from torch"):
        check_parity(model, path, [torch.rand(4, 32, 32, 2)])


def test_nan_is_no_agreement(model, tmp_path) -> None:
    path = tmp_path / "model.onnx"
    export(model, path)
    with pytest.raises(ValueError, match="differs from torch"):
        check_parity(model, path, [torch.full((1, 32, 32, 2), np.nan)])


def test_full_disk_keeps_the_previous_graph(model, tmp_path, monkeypatch) -> None:
    path = tmp_path / "model.onnx"
    export(model, path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(InputError, match="full disk"):
        export(model, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
