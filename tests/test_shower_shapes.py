"""Shower shapes against loops over crystals."""

import numpy as np
import pytest
import torch

from e2e_utils.errors import InputError
from e2e_utils.onnx_export import check_parity, export_onnx
from e2e_utils.shower_shapes import energy_shapes, shapes_of, time_shapes


def showers(n: int, seed: int = 0) -> np.ndarray:
    """Images (n, 2, 32, 32) whose highest crystal is at [16][16], with times."""
    rng = np.random.default_rng(seed)
    x = np.zeros((n, 2, 32, 32), np.float32)
    x[:, 0, 12:21, 11:22] = rng.exponential(0.02, (n, 9, 11)) * (rng.random((n, 9, 11)) < 0.6)
    x[:, 0, 16, 16] = rng.uniform(0.6, 1.2, n)
    x[:, 1] = (x[:, 0] > 0) * rng.normal(0, 0.1, (n, 32, 32))
    return x


def test_shapes_are_those_of_a_loop_over_crystals() -> None:
    x = showers(4)
    images = torch.from_numpy(x).double()
    shapes = energy_shapes(images[:, 0]) | time_shapes(images)
    cells = [(i, j) for i in range(32) for j in range(32)]
    for event in range(4):
        energy, time = x[event, 0].astype(float), x[event, 1].astype(float)
        total = energy.sum()
        phi = sum(energy[i, j] * j for i, j in cells) / total
        second, third = (
            sum(energy[i, j] * (j - phi) ** k for i, j in cells) / total for k in (2, 3)
        )
        right = sum(energy[i, j] for i, j in cells if 17 <= j <= 21 and 11 <= i <= 21)
        left = sum(energy[i, j] for i, j in cells if 11 <= j <= 15 and 11 <= i <= 21)
        five = energy[14:19, 14:19]
        weight = np.maximum(0, 4.7 + np.log(np.maximum(five, 1e-12) / five.sum())) * (five > 0)
        centre = (weight.sum(1) @ np.arange(5)) / weight.sum()
        eta = (weight.sum(1) @ (np.arange(5) - centre) ** 2) / weight.sum()
        mean = sum(energy[i, j] * time[i, j] for i, j in cells) / total
        expected = {
            "energy_sum": total,
            "e1": energy.max() / total,
            "e3x3": energy[15:18, 15:18].sum() / total,
            "phi_width": np.sqrt(second),
            "phi_skewness": third / max(second, 0.05) ** 1.5,
            "phi_offset": phi - 16,
            "phi_asymmetry": (right - left) / total,
            "eta_logwidth5": np.sqrt(eta),
            "strip_phi": energy[16, 14:19].sum() / total,
            "hits": (energy > 0).sum(),
            "time_mean": mean,
            "time_seed": time[16, 16],
        }
        for name, value in expected.items():
            assert shapes[name][event].item() == pytest.approx(value, rel=1e-4, abs=1e-5), name


def test_windows_follow_the_highest_crystal() -> None:
    x = showers(5)[:, 0]
    moved = np.roll(x, (2, -3), axis=(1, 2))
    here, there = shapes_of(x), shapes_of(moved)
    for name in here.keys() - {"seed_row", "seed_col"}:
        np.testing.assert_allclose(here[name], there[name], atol=1e-9, err_msg=name)
    np.testing.assert_array_equal(there["seed_row"] - here["seed_row"], 2)
    np.testing.assert_array_equal(there["seed_col"] - here["seed_col"], -3)


def test_an_image_without_energy_has_finite_shapes() -> None:
    x = torch.zeros(2, 2, 32, 32)
    shapes = energy_shapes(x[:, 0]) | time_shapes(x)
    assert torch.stack(list(shapes.values())).isfinite().all()
    assert (shapes["hits"] == 0).all()


def test_other_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="expected shape"):
        shapes_of(np.ones((3, 32, 32, 2)))


class Shapes(torch.nn.Module):
    """All shapes as one output (B, K)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack(list(energy_shapes(x[:, 0]).values()), dim=1)


@pytest.mark.parametrize("options", [{}, {"opset": 10, "ir_version": 5}])
def test_networks_may_contain_them_even_for_the_runtime_of_cmssw(tmp_path, options) -> None:
    x, path = torch.from_numpy(showers(5)), tmp_path / "shapes.onnx"
    export_onnx(Shapes(), x[:2], path, ["x"], ["shapes"], {"task": "toy"}, **options)
    assert check_parity(Shapes(), path, [x, x[:1], torch.zeros(2, 2, 32, 32)], 1e-4) <= 1e-4


def test_gradients_stay_finite() -> None:
    x = torch.from_numpy(np.concatenate([showers(3), np.zeros((1, 2, 32, 32), np.float32)]))
    x.requires_grad_()
    Shapes()(x).sum().backward()
    assert x.grad.isfinite().all()
