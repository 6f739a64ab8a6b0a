"""The notebook of common task 1: networks, loss, augmentation, loop, features."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from e2e_utils.notebook import load_definitions
from e2e_utils.onnx_export import check_parity, export_onnx
from e2e_utils.sparse_images import SparseImages
from e2e_utils.splits import split
from tests.interrupted_training import assert_same_weights, in_two_parts

ARMS = (
    "resnet",
    "energy_only",
    "time_only",
    "plain_resnet15",
    "linear_energy",
    "full_frame",
    "no_position_map",
)


def toy_events(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 2, 32, 32) with a seed at [16][16]; class 1 has a second hit along phi."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    x = np.zeros((n, 2, 32, 32), np.float32)
    x[:, 0, 14:19, 14:19] = rng.exponential(0.02, (n, 5, 5))
    x[:, 0, 16, 16] = rng.uniform(0.6, 1.2, n)
    side = rng.choice([-5, 5], n)
    x[np.arange(n), 0, 16, 16 + side] += 0.2 * y
    x[:, 1] = (x[:, 0] > 0) * rng.normal(0, 0.1, (n, 32, 32))
    return x, y


@pytest.fixture
def notebook(tmp_path):
    """The notebook's definitions with a toy data set in place of its variables."""
    module = load_definitions("common_task1")
    x, y = toy_events(400)
    module.images, module.y, module.splits = SparseImages.from_dense(x), y, split(y, seed=0)
    module.run = SimpleNamespace(directory=tmp_path)
    return module


@pytest.fixture
def small(notebook):
    return replace(notebook.CONFIGS["smoke"], epochs=3, batch_size=32)


@pytest.mark.parametrize("arm", ARMS)
def test_every_network_gives_one_logit_and_reaches_every_weight(notebook, arm):
    torch.manual_seed(0)
    model = notebook.build_model(arm)
    x = torch.from_numpy(toy_events(8)[0])
    for parameter in model.parameters():  # zero-initialised scales hide the weights behind them
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    logits = model(x)
    assert logits.shape == (8,)
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("arm", ["resnet", "plain_resnet15"])
def test_networks_have_fifteen_convolutions(notebook, arm):
    layers = notebook.build_model(arm).modules()
    assert sum(isinstance(m, torch.nn.Conv2d) and m.kernel_size != (1, 1) for m in layers) == 15


def test_network_learns_one_batch_by_heart(notebook):
    assert notebook.overfit_one_batch("resnet", steps=60) < 0.05


def test_channel_masks_really_hide_the_other_channel(notebook):
    x = torch.from_numpy(toy_events(4)[0])
    other = torch.from_numpy(toy_events(4, seed=1)[0])
    for arm, channel in (("energy_only", 0), ("time_only", 1)):
        mixed = other.clone()
        mixed[:, channel] = x[:, channel]
        model = notebook.build_model(arm).eval()
        assert torch.equal(model(x), model(mixed))
        assert not torch.equal(model(x), model(other))


def test_loss_is_the_formula(notebook):
    logits, target = torch.tensor([-1.3, 0.2, 4.0]), torch.tensor([0.0, 1.0, 1.0])
    expected = 0.0
    for z, t in zip(logits.tolist(), target.tolist(), strict=True):
        smooth = t * (1 - 0.1) + 0.05
        p = 1 / (1 + np.exp(-z))
        expected += -(smooth * np.log(p) + (1 - smooth) * np.log(1 - p)) / 3
    assert notebook.smoothed_bce_loss(logits, target, 0.1).item() == pytest.approx(expected, 1e-6)


def test_mirror_keeps_the_seed_and_is_its_own_inverse(notebook):
    x = torch.randn(3, 2, 32, 32)
    for axis in (2, 3):
        mirrored = notebook.mirror(x, axis)
        assert torch.equal(mirrored.select(axis, 16), x.select(axis, 16))
        assert torch.equal(mirrored.select(axis, 19), x.select(axis, 13))
        assert torch.equal(notebook.mirror(mirrored, axis), x)


def test_augmentation_draws_the_four_mirror_images_evenly(notebook):
    x = torch.zeros(4000, 2, 32, 32)
    x[:, 0, 15, 14] = 1.0
    x = notebook.augment(x, torch.Generator().manual_seed(0))
    counts = [int(x[:, 0, row, column].sum()) for row in (15, 17) for column in (14, 18)]
    assert sum(counts) == 4000
    assert min(counts) > 900  # 1000 expected, standard deviation 27


def test_flip_average_does_not_depend_on_the_orientation(notebook):
    model = notebook.FlipAverage(notebook.build_model("resnet")).eval()
    x = torch.from_numpy(toy_events(5)[0])
    for mirrored in (notebook.mirror(x, 2), notebook.mirror(x, 3)):
        torch.testing.assert_close(model(mirrored), model(x), rtol=1e-4, atol=1e-5)


def test_training_learns_and_keeps_the_best_epoch(notebook, small):
    torch.manual_seed(0)
    model = notebook.build_model("resnet")
    history = notebook.train("toy", model, notebook.splits.train, replace(small, epochs=6), seed=0)
    assert len(history) == 6
    assert history.validation_roc_auc.max() > 0.9
    again = notebook.score(model, notebook.splits.validation, "cpu")
    assert again["roc_auc"] == pytest.approx(history.validation_roc_auc.max(), abs=1e-6)


def test_trained_arms_come_back_as_they_were(notebook, small):
    job = ("arm", "energy_only", notebook.splits.train, small, 0)
    history, weights = notebook.train_arm(*job)
    model = notebook.restored("energy_only", weights)
    again = notebook.score(model, notebook.splits.validation, "cpu")
    assert again["roc_auc"] == pytest.approx(history.validation_roc_auc.max(), abs=1e-6)
    assert all(isinstance(array, np.ndarray) for array in weights.values())  # cross processes


def test_interrupted_training_continues_bit_for_bit(notebook, small):
    def trained(name: str) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = notebook.build_model("resnet")
        notebook.train(name, model, notebook.splits.train, small, seed=0)
        return model.state_dict()

    straight = trained("straight")
    resumed = in_two_parts(notebook, lambda: trained("interrupted"), 3)
    assert_same_weights(resumed, straight)


def test_shower_shapes_against_a_loop_over_crystals(notebook):
    x = toy_events(3)[0]
    shapes = notebook.shower_shapes(x)
    for event in range(3):
        energy = x[event, 0].astype(float) * 50
        total = energy.sum()
        mean = sum(energy[i, j] * (j - 16) for i in range(32) for j in range(32)) / total
        variance = sum(
            energy[i, j] * (j - 16 - mean) ** 2 for i in range(32) for j in range(32)
        ) / total  # fmt: skip
        inner = sum(energy[i, j] for i in (15, 16, 17) for j in (15, 16, 17)) / total
        assert shapes.total[event] == pytest.approx(total, rel=1e-5)
        assert shapes.e3[event] == pytest.approx(inner, rel=1e-5)
        assert shapes.phi_mean[event] == pytest.approx(mean, rel=1e-4, abs=1e-5)
        assert shapes.phi_width[event] == pytest.approx(np.sqrt(variance), rel=1e-4)
        assert shapes.hits[event] == (energy > 0).sum()


def test_exported_graph_takes_the_official_layout(notebook, tmp_path):
    networks = [notebook.build_model("resnet"), notebook.build_model("energy_only")]
    graph = notebook.RawInput(networks).eval()
    raw = [torch.from_numpy(toy_events(n)[0]).permute(0, 2, 3, 1).contiguous() for n in (1, 2, 7)]
    raw.append(torch.zeros(3, 32, 32, 2))
    export_onnx(graph, raw[1], tmp_path / "graph.onnx", ["x"], ["probability"], {"task": "toy"})
    assert check_parity(graph, tmp_path / "graph.onnx", raw, tolerance=1e-5) <= 1e-5
