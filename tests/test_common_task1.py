"""The notebook of common task 1: networks, mirror images, loop, kinds of events, export."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from e2e_utils.metrics import roc_auc
from e2e_utils.notebook import load_definitions
from e2e_utils.onnx_export import check_parity, export_onnx
from e2e_utils.sparse_images import SparseImages
from e2e_utils.splits import split
from tests.interrupted_training import assert_same_weights, in_two_parts


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


MEMBERS = {"energy_only": 8, "energy_and_time": 8, "shapes_only": 8, "plain_resnet15": 1}


@pytest.mark.parametrize("arm", MEMBERS)
def test_every_member_gives_a_logit_and_reaches_every_weight(notebook, arm):
    torch.manual_seed(0)
    model = notebook.build_model(arm)
    x = torch.from_numpy(toy_events(8)[0])
    for parameter in model.parameters():  # zero-initialised scales hide the weights behind them
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    logits = model(x)
    assert logits.shape == (8, MEMBERS[arm])
    assert notebook.MeanLogit(model.eval())(x).shape == (8,)
    model.train()
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("arm", ["energy_and_time", "plain_resnet15"])
def test_networks_have_fifteen_convolutions(notebook, arm):
    layers = notebook.build_model(arm).modules()
    assert sum(isinstance(m, torch.nn.Conv2d) and m.kernel_size != (1, 1) for m in layers) == 15


def test_members_share_their_matrices_and_differ_in_scales_and_heads(notebook):
    torch.manual_seed(0)
    measured = notebook.Measured().eval()
    x = torch.from_numpy(toy_events(6)[0])
    logits = measured(x)
    with torch.no_grad():  # every member, written out
        features = measured.norm(measured.measure(x[:, 0].clamp(min=0))).clamp(-8, 8)
        for member, scale in enumerate(measured.scale):
            assert set(scale.tolist()) == {-1.0, 1.0}
            alone = measured.layers(features * scale) @ measured.head[member]
            torch.testing.assert_close(logits[:, member], alone + measured.bias[member])
    assert len(logits.unique(dim=1).T) == 8


def test_the_loss_is_the_mean_of_the_members(notebook):
    logits, target = torch.randn(5, 3), torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0])
    naive = [
        -(t * torch.sigmoid(z).log() + (1 - t) * torch.sigmoid(-z).log())
        for row, t in zip(logits, target, strict=True)
        for z in row
    ]
    found = notebook.members_loss(logits, target)
    torch.testing.assert_close(found, torch.stack(naive).mean())


def test_network_memorises_one_batch(notebook):
    assert notebook.overfit_one_batch("energy_and_time", steps=60) < 0.05


def test_the_energy_arm_does_not_see_the_times(notebook):
    x, other = (torch.from_numpy(toy_events(4, seed)[0]) for seed in (0, 1))
    mixed = torch.stack([x[:, 0], other[:, 1]], dim=1)
    for arm, same in (("energy_only", True), ("energy_and_time", False)):
        torch.manual_seed(0)
        model = notebook.build_model(arm).eval()
        assert torch.equal(model(x), model(mixed)) == same


def test_times_count_by_their_significance(notebook):
    views = notebook.InputViews(time=True)
    x = torch.zeros(1, 2, 32, 32)
    x[0, :, 16, 16] = torch.tensor([1.0, 0.01])
    x[0, :, 16, 17] = torch.tensor([0.001, 0.01])  # a soft hit: the same time says little
    x[0, :, 16, 18] = torch.tensor([1.0, -3.0])  # an outlier: bounded
    time = views(x)[0, 3, 16 - 8]
    assert time[16].item() == pytest.approx(0.1, rel=1e-5)
    assert time[17].item() == pytest.approx(1e-4, rel=1e-5)
    assert time[18].item() == -1.0


def test_mirror_keeps_the_seed_and_is_its_own_inverse(notebook):
    x = torch.randn(3, 2, 32, 32)
    mirrored = notebook.mirror(x)
    assert torch.equal(mirrored[:, :, 16], x[:, :, 16])
    assert torch.equal(mirrored[:, :, 19], x[:, :, 13])
    assert torch.equal(notebook.mirror(mirrored), x)


def test_trees_get_what_the_perceptron_measures_and_the_times(notebook):
    rows = notebook.splits.validation[:5]
    x = notebook.images.dense(rows)
    found = notebook.quantities(rows)
    measured = notebook.Measured.measure(x[:, 0].clamp(min=0)).numpy()
    np.testing.assert_allclose(found[:, :-3], measured, rtol=1e-5)
    np.testing.assert_allclose(found[:, -1], x[:, 1, 16, 16].numpy(), rtol=1e-5)  # the seed's time


def test_flip_average_does_not_depend_on_the_orientation(notebook):
    model = notebook.FlipAverage(notebook.MeanLogit(notebook.build_model("energy_only"))).eval()
    x = torch.from_numpy(toy_events(5)[0])
    torch.testing.assert_close(model(notebook.mirror(x)), model(x), rtol=1e-4, atol=1e-5)
    phi = x.flip(3).roll(1, 3)  # the charge turns with it
    assert not torch.allclose(model(phi), model(x), atol=1e-4)


def test_training_learns_and_keeps_the_best_epoch(notebook, small):
    torch.manual_seed(0)
    model = notebook.build_model("energy_only")
    history = notebook.train("toy", model, notebook.splits.train, replace(small, epochs=6), seed=0)
    assert len(history) == 6
    assert history.score.max() > 0.9
    validation = notebook.splits.validation
    again = roc_auc(notebook.y[validation], notebook.predict(model, validation))
    assert again == pytest.approx(history.score.max(), abs=1e-6)


def test_trained_arms_come_back_as_they_were(notebook, small):
    history, weights = notebook.train_arm("energy_and_time", 0, notebook.splits.train, small)
    model = notebook.restored("energy_and_time", weights)
    validation = notebook.splits.validation
    again = roc_auc(notebook.y[validation], notebook.predict(model, validation))
    assert again == pytest.approx(history.score.max(), abs=1e-6)
    assert all(isinstance(array, np.ndarray) for array in weights.values())  # cross processes


def test_interrupted_training_continues_bit_for_bit(notebook, small):
    def trained(name: str) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = notebook.build_model("energy_and_time")
        notebook.train(name, model, notebook.splits.train, small, seed=0)
        return model.state_dict()

    straight = trained("straight")
    resumed = in_two_parts(notebook, lambda: trained("interrupted"), 3)
    assert_same_weights(resumed, straight)


def test_kinds_of_events_share_out_each_class(notebook):
    notebook.y_test = np.array([0, 0, 0, 1, 1, 1])
    truth = pd.DataFrame(
        {"conversion_radius": [0, 10.2, 69, 0, 0, 0], "radiated_photons": [0, 0, 0, 0, 2, 7]}
    )
    photons, electrons = notebook.kinds_of(truth)
    assert [mask.tolist().index(True) for mask in photons.values()] == [0, 2, 1]
    assert {name: mask.sum() for name, mask in electrons.items()} == {
        "0": 1, "1": 0, "2": 1, "3 or more": 1
    }  # fmt: skip
    for kinds, label in ((photons, 0), (electrons, 1)):
        np.testing.assert_array_equal(sum(kinds.values()), notebook.y_test == label)


def test_rejection_is_that_of_the_curve(notebook):
    notebook.y_test = np.array([0, 0, 0, 0, 1, 1])
    score = np.array([0.1, 0.2, 0.3, 0.8, 0.5, 0.9])
    assert notebook.rejection(score, np.array([0.75]))[0] == pytest.approx(4.0)


def test_exported_graph_takes_the_official_layout(notebook, tmp_path):
    graph = notebook.RawInput(notebook.build_model("energy_and_time")).eval()
    raw = [torch.from_numpy(toy_events(n)[0]).permute(0, 2, 3, 1).contiguous() for n in (1, 2, 7)]
    raw.append(torch.zeros(3, 32, 32, 2))
    export_onnx(graph, raw[1], tmp_path / "graph.onnx", ["x"], ["probability"], {"task": "toy"})
    assert check_parity(graph, tmp_path / "graph.onnx", raw, tolerance=1e-5) <= 1e-5
