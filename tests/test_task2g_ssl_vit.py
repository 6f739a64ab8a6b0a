"""The notebook of task 2g: inputs, augmentations, losses, networks, both trainings, export."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from data.loaders.jets8 import Jets8Dataset
from e2e_utils.notebook import load_definitions
from e2e_utils.onnx_export import check_parity, export_onnx
from e2e_utils.paths import list_tasks, script_path
from e2e_utils.sparse_images import SparseImages
from e2e_utils.splits import split
from tests.interrupted_training import assert_same_weights, in_two_parts


def toy_jets(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 8, 125, 125), 0 to 255; class 1 is wider; HCAL pixels fill towers."""
    rng = np.random.default_rng(seed)
    y, x = np.arange(n) % 2, np.zeros((n, 8, 125, 125), np.float32)
    for jet in range(n):
        width = 5 + 10 * y[jet]
        for channel in range(8):
            row, column = np.clip(62 + rng.normal(0, width, (2, 30)), 0, 124).astype(int)
            if channel == 4:
                for r, c in zip(row[:9] // 5 * 5, column[:9] // 5 * 5, strict=True):
                    x[jet, channel, r : r + 5, c : c + 5] = rng.exponential(20) + 0.1
            else:
                x[jet, channel, row, column] = rng.exponential(20, 30) + 0.1
    x *= 255 / x.max((2, 3), keepdims=True)
    return x, y


@pytest.fixture
def notebook(tmp_path):
    """The notebook's definitions with toy jets in place of its variables."""
    module = load_definitions("task2g_ssl_vit")
    x, y = toy_jets(80)
    rng = np.random.default_rng(1)
    m = 100 + 60 * y + rng.normal(0, 10, 80)
    module.x, module.images, module.y = x, SparseImages.from_dense(x), y
    module.unlabelled = SparseImages.from_dense(toy_jets(40, 5)[0])
    module.truth = {"m": m, "pt": 500 + rng.exponential(100, 80)}
    module.splits = split(y)
    module.scale = module.channel_scale(module.unlabelled)
    module.CONFIG = module.CONFIGS["smoke"]
    module.run = SimpleNamespace(directory=tmp_path)
    return module


def one_view(notebook, seed: int = 0, n: int = 20, **changes) -> tuple:
    """Dense images (n, 8, 125, 125) before and after an augmentation with only ``changes``."""
    rows = np.arange(n)
    how = replace(notebook.FLIPS_ONLY, **({"flips": False} | changes))
    hits = notebook.hits_of(notebook.images, rows)
    view = notebook.augment(hits, how, torch.Generator().manual_seed(seed))
    dense = torch.zeros(len(rows), 8, 125, 125)
    row, column = view.row, view.column
    inside = (row >= 0) & (row < 125) & (column >= 0) & (column < 125)
    dense[tuple(t[inside] for t in (view.jet, view.channel, row, column))] = view.value[inside]
    return notebook.images.dense(rows), dense


# Inputs


def test_sparse_and_dense_inputs_agree(notebook):
    rows = np.array([3, 0, 7])
    sparse = notebook.to_towers(notebook.hits_of(notebook.images, rows), notebook.scale)
    dense = notebook.dense_to_towers(notebook.images.dense(rows), notebook.scale)
    torch.testing.assert_close(sparse, dense)
    x, (row, column, channel) = notebook.x[3], (62, 64, 3)
    tower = (row - 15) // 5 * 19 + (column - 15) // 5
    pixel = channel * 25 + (row - 15) % 5 * 5 + (column - 15) % 5
    expected = np.sqrt(x[channel, row, column] / 255) / float(notebook.scale[channel])
    assert float(sparse[0, tower, pixel]) == pytest.approx(expected, rel=1e-5)


def test_channels_have_unit_mean_square(notebook):
    x = torch.from_numpy(toy_jets(40, 5)[0])
    scaled = (x / 255).sqrt() / notebook.scale.view(1, -1, 1, 1)
    torch.testing.assert_close(scaled.square().mean((0, 2, 3)), torch.ones(8))


def test_towers_are_those_of_the_calorimeter(notebook):
    hits = notebook.hits_of(notebook.images, np.arange(10))
    towers = notebook.to_towers(hits, notebook.scale).unflatten(2, (8, 25))[:, :, 4]
    torch.testing.assert_close(towers.amax(2), towers.amin(2))


def test_an_empty_image_is_no_problem(notebook):
    empty = torch.zeros(2, 361, 200)
    for build in notebook.ENCODERS.values():
        assert torch.isfinite(build().eval()(empty)).all()


# Augmentations


def test_no_augmentation_changes_nothing(notebook):
    before, after = one_view(notebook)
    torch.testing.assert_close(before, after, rtol=0, atol=0)


def test_flips_mirror_whole_images_and_keep_energy(notebook):
    before, after = one_view(notebook, flips=True)
    seen = set()
    for a, b in zip(before, after, strict=True):
        axes = [axes for axes in ((), (1,), (2,), (1, 2)) if torch.equal(a.flip(axes), b)]
        assert len(axes) == 1
        seen.add(axes[0])
    assert len(seen) == 4
    torch.testing.assert_close(before.sum((2, 3)), after.sum((2, 3)))


def test_shifts_move_all_channels_by_whole_towers(notebook):
    before, after = one_view(notebook, shift=1)
    moves = [(i, j) for i in (-5, 0, 5) for j in (-5, 0, 5)]
    for a, b in zip(before, after, strict=True):
        inner = b[:, 10:-10, 10:-10]
        fits = [torch.equal(a.roll(move, (1, 2))[:, 10:-10, 10:-10], inner) for move in moves]
        assert sum(fits) == 1


def test_quarter_turns_swap_the_axes(notebook):
    before, after = one_view(notebook, quarter_turns=True)
    turned = [torch.equal(a.transpose(1, 2), b) for a, b in zip(before, after, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert sum(turned) + sum(same) == 20
    assert 0 < sum(turned) < 20


def test_dropout_removes_its_share_and_nothing_else(notebook):
    before, after = one_view(notebook, n=80, dropout=0.15)
    kept = after > 0
    torch.testing.assert_close(after[kept], before[kept], rtol=0, atol=0)
    pixels = [c for c in range(8) if c != notebook.HCAL]
    share = kept[:, pixels].sum() / (before[:, pixels] > 0).sum()
    assert float(share) == pytest.approx(0.85, abs=0.01)
    towers = [
        (x[:, 4].reshape(-1, 25, 5, 25, 5) > 0).permute(0, 1, 3, 2, 4).flatten(3)
        for x in (before, after)
    ]
    assert (towers[1].all(3) == towers[1].any(3)).all()  # whole towers are dropped
    assert float(towers[1].any(3).sum() / towers[0].any(3).sum()) == pytest.approx(0.85, abs=0.05)


def test_smearing_keeps_occupancy_and_mean_energy(notebook):
    before, after = one_view(notebook, n=80, smearing=1.0)
    assert torch.equal(before > 0, after > 0)
    for channel, width in enumerate(notebook.SMEARING):
        active = before[:, channel] > 0
        ratio = after[:, channel][active] / before[:, channel][active]
        assert float(ratio.mean()) == pytest.approx(1, abs=0.02)
        assert float(ratio.std()) == pytest.approx(width, rel=0.1, abs=1e-6)
    hcal = after[:, 4].reshape(-1, 25, 5, 25, 5)
    assert torch.equal(hcal.amax((2, 4)), hcal.amin((2, 4)))  # a tower is still one measurement


def test_scaling_is_one_factor_for_each_channel(notebook):
    before, after = one_view(notebook, scaling=0.3)
    ratio = torch.where(before > 0, after / before, torch.nan).flatten(2)
    spread = [(r[~r.isnan()].max() - r[~r.isnan()].min()) for jet in ratio for r in jet]
    assert max(spread) < 1e-4


def test_two_views_differ_and_seeds_repeat(notebook):
    a, b, again = (one_view(notebook, seed, dropout=0.15, shift=1)[1] for seed in (0, 1, 0))
    assert torch.equal(a, again)
    assert not torch.equal(a, b)


# Losses


def embeddings(n: int = 12, d: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return a, a + 0.5 * torch.randn(n, d, generator=generator, dtype=torch.float64)


def test_barlow_twins_equals_the_naive_loop(notebook):
    a, b = embeddings()
    expected = 0.0
    for i in range(5):
        for j in range(5):
            u, v = a[:, i].numpy(), b[:, j].numpy()
            c = np.corrcoef(u, v)[0, 1]
            expected += (1 - c) ** 2 if i == j else 0.0051 * c**2
    assert float(notebook.barlow_twins_loss(a, b)) == pytest.approx(expected, rel=1e-3)


def test_vicreg_equals_the_naive_loop(notebook):
    a, b = (0.4 * z for z in embeddings())
    n, d = a.shape
    invariance = sum((a[i, j] - b[i, j]) ** 2 for i in range(n) for j in range(d)) / (n * d)
    spread = covariance = 0.0
    for z in (a.numpy(), b.numpy()):
        c = np.cov(z.T)
        spread += sum(max(0, 1 - np.sqrt(c[j, j] + 1e-4)) for j in range(d)) / d / 2
        covariance += sum(c[i, j] ** 2 for i in range(d) for j in range(d) if i != j) / d
    expected = 25 * float(invariance) + 25 * spread + covariance
    assert float(notebook.vicreg_loss(a, b)) == pytest.approx(expected, rel=1e-6)


def test_simclr_equals_the_naive_loop(notebook):
    a, b = embeddings()
    z = normalize(torch.cat([a, b])).numpy()
    n, expected = len(a), 0.0
    for i in range(2 * n):
        others = [np.exp(z[i] @ z[k] / 0.1) for k in range(2 * n) if k != i]
        expected -= np.log(np.exp(z[i] @ z[(i + n) % (2 * n)] / 0.1) / np.sum(others)) / (2 * n)
    assert float(notebook.simclr_loss(a, b)) == pytest.approx(expected, rel=1e-6)


def test_published_identities(notebook):
    """Perfect embeddings have no loss, collapsed ones the value that the papers give."""
    white = torch.linalg.qr(embeddings(40, 5)[0] - embeddings(40, 5)[0].mean(0))[0] * 40**0.5
    assert float(notebook.barlow_twins_loss(white, white)) == pytest.approx(0, abs=1e-6)
    scaled = 3 * white + 7  # Barlow Twins does not see scale and place of a dimension
    assert float(notebook.barlow_twins_loss(scaled, white)) == pytest.approx(0, abs=1e-6)
    assert float(notebook.vicreg_loss(white, white)) == pytest.approx(0, abs=1e-6)
    point = torch.ones(40, 5)
    collapsed = 25 * (1 - 1e-4**0.5)
    assert float(notebook.vicreg_loss(point, point)) == pytest.approx(collapsed, rel=1e-4)
    assert float(notebook.barlow_twins_loss(point, point)) == pytest.approx(5)  # one a dimension
    assert float(notebook.simclr_loss(point, point)) == pytest.approx(np.log(79), rel=1e-5)
    line = white[:, :1].expand(-1, 5)  # all dimensions alike
    assert float(notebook.barlow_twins_loss(line, line)) == pytest.approx(0.0051 * 20, rel=1e-3)
    assert float(notebook.LOSSES["invariance only"](point, point)) == 0


@pytest.mark.parametrize("name", ["barlow", "vicreg", "simclr"])
def test_losses_are_symmetric_and_fall_with_agreement(notebook, name):
    loss, (a, b) = notebook.LOSSES[name], embeddings(30)
    torch.testing.assert_close(loss(a, b), loss(b, a))
    assert loss(a, a) < loss(a, b) < loss(a, b.roll(1, 0))


def test_effective_rank_of_known_clouds(notebook):
    white = np.linalg.qr(np.random.default_rng(0).normal(size=(50, 6)) - 0)[0]
    white -= white.mean(0)
    rank = notebook.effective_rank(np.linalg.qr(white)[0][:, :6])
    assert rank == pytest.approx(6, rel=0.05)
    line = np.outer(np.arange(50.0), np.ones(6))
    assert notebook.effective_rank(line) == pytest.approx(1, rel=1e-3)


# Networks


def test_efficient_attention_equals_the_naive_loop(notebook):
    torch.manual_seed(0)
    layer = notebook.EfficientAttention(8, 2)
    x, mask = torch.randn(2, 5, 8), torch.tensor([[True] * 5, [True, True, True, False, False]])
    found = layer(x, mask)
    q, k, v = layer.qkv(x).split(8, 2)
    expected = torch.zeros(2, 5, 8)
    for event in range(2):
        real = mask[event].nonzero().squeeze(1)
        for head in range(2):
            part = slice(4 * head, 4 * head + 4)
            keys = k[event, real, part].softmax(0)
            for token in range(5):
                query = q[event, token, part].softmax(0)
                weight = keys @ query  # positive, adds up to one
                assert float(weight.sum().detach()) == pytest.approx(1, abs=1e-5)
                expected[event, token, part] = weight @ v[event, real, part]
    torch.testing.assert_close(found, layer.out(expected), rtol=1e-4, atol=1e-5)


def test_the_transformer_sees_active_towers_only(notebook):
    torch.manual_seed(0)
    model = notebook.TowerTransformer(tokens=20).eval()
    x = torch.zeros(1, 361, 200)
    place = torch.arange(0, 30 * 7, 7)
    x[0, place] = torch.rand(30, 200) + 1 - torch.arange(30).view(-1, 1) / 50
    reference, least = model(x), x.clone()
    least[0, place[25]] *= 0.5  # not among the 20 most active: without effect
    torch.testing.assert_close(model(least), reference)
    few = torch.zeros(1, 361, 200)
    few[0, place[:5]] = x[0, place[:5]]
    more = notebook.TowerTransformer(tokens=40).eval()
    more.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(few), more(few))  # padding is not heard


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_networks_reach_all_their_weights(notebook, kind):
    torch.manual_seed(0)
    model = notebook.JetNetwork(notebook.ENCODERS[kind]())
    torch.nn.init.normal_(model.head[-1].weight)
    towers = notebook.to_towers(notebook.hits_of(notebook.images, np.arange(8)), notebook.scale)
    output = model(towers)
    assert output.shape == (8, 3)
    output.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if "position" not in name and "qkv.bias" not in name:
            assert parameter.grad.abs().sum() > 0, name


def test_resnet_has_fifteen_convolutions(notebook):
    model = notebook.ResNet15()
    kernels = [m for m in model.stages.modules() if isinstance(m, torch.nn.Conv2d)]
    assert 1 + sum(m.kernel_size == (3, 3) for m in kernels) == 15


def test_frozen_encoders_do_not_move(notebook):
    torch.manual_seed(0)
    model = notebook.JetNetwork(notebook.ResNet15(), frozen=True).train()
    before = {k: v.clone() for k, v in model.encoder.state_dict().items()}
    towers = torch.rand(8, 361, 200)
    model(towers).square().sum().backward()
    assert all(p.grad is None for p in model.encoder.parameters())
    assert model.head[-1].weight.grad is not None
    for name, value in model.encoder.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


# Trainings


def test_multitask_loss_equals_the_naive_loop(notebook):
    generator = torch.Generator().manual_seed(0)
    output, target = (torch.randn(9, 3, generator=generator) * 2 for _ in range(2))
    y = (torch.arange(9) % 2).float()
    expected = 0.0
    for o, t, label in zip(output.tolist(), target[:, :2].tolist(), y.tolist(), strict=True):
        p = 1 / (1 + np.exp(-o[0]))
        expected -= np.log(p if label else 1 - p)
        for d in np.abs(np.subtract(o[1:], t)):
            expected += 0.5 * d**2 if d < 1 else d - 0.5
    found = notebook.multitask_loss(output, y, target[:, :2])
    assert float(found) == pytest.approx(expected / 9, rel=1e-5)


def test_labels_of_a_share_are_training_jets_of_both_classes(notebook):
    train = set(notebook.splits.train)
    for share in (0.01, 0.1, 0.5, 1.0):
        for seed in (0, 1):
            rows = notebook.labelled_rows(share, seed)
            assert set(rows) <= train
            assert len(set(rows)) == len(rows)
            assert set(notebook.y[rows]) == {0, 1}
    few = [set(notebook.labelled_rows(0.1, seed)) for seed in (0, 1)]
    assert not few[0] & few[1]
    assert set(notebook.labelled_rows(1.0, 0)) == train


def test_interrupted_pretraining_continues_exactly(notebook):
    def training(name: str) -> tuple:
        how, rows = notebook.Augmentation(), np.arange(40)
        return notebook.pretrain_job(name, "resnet", "vicreg", rows, how, 2, 0)

    history, weights = in_two_parts(notebook, lambda: training("parts"), 2)
    assert_same_weights(weights, training("whole")[1])
    assert len(history) == 2
    assert np.isfinite(history.loss).all()


def test_interrupted_finetuning_continues_exactly(notebook):
    config = replace(notebook.CONFIG, rounds=2, updates={1.0: 6})
    job, folder = notebook.Job("scratch", 1.0, 0, 1e-3), notebook.run.directory

    def training(name: str) -> dict[str, np.ndarray]:
        notebook.run.directory = folder / name
        model = notebook.new_model(job)
        assert len(notebook.finetune(job, model, config)) == 2
        return notebook.as_arrays(model)

    whole = training("whole")
    assert_same_weights(in_two_parts(notebook, lambda: training("parts"), 2), whole)


def test_one_batch_is_learned_by_heart(notebook):
    torch.manual_seed(0)
    right, r2 = notebook.overfit_one_batch(notebook.JetNetwork(notebook.ResNet15()), 40)
    assert right == 1
    assert r2 > 0.8


def test_boosting_and_probe_give_all_three_numbers(notebook):
    shapes = notebook.image_shapes(notebook.images, np.arange(80))
    assert shapes.shape == (80, 72)
    x = notebook.x[3, 0]
    np.testing.assert_allclose(shapes[3, :2], [(x > 0).sum(), x.sum()], rtol=1e-5)
    row, column = np.nonzero(x)
    radius = np.average(np.hypot(row - 62, column - 62), weights=x[row, column])
    assert shapes[3, 2] == pytest.approx(radius, rel=1e-5)
    for fit in (notebook.fit_boosting, notebook.fit_probe):
        found = notebook.predict_sklearn(fit(shapes, 1.0, 0), shapes[notebook.splits.test])
        assert found.shape == (16, 3)
        assert notebook.roc_auc(notebook.y[notebook.splits.test], found[:, 0]) > 0.9


# Export and the split


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_export_takes_raw_images(notebook, tmp_path, kind):
    torch.manual_seed(0)
    network = notebook.JetNetwork(notebook.ENCODERS[kind]())
    torch.nn.init.normal_(network.head[-1].weight)
    network.middle, network.unit = torch.tensor([140.0, 500.0]), torch.tensor([50.0, 100.0])
    graph = notebook.RawInput(network, notebook.scale).eval()
    x = notebook.images.dense(np.arange(5))
    with torch.no_grad():
        found = torch.stack(graph(x), 1).numpy()
    np.testing.assert_allclose(found, notebook.predict(network, np.arange(5)), rtol=1e-3)
    assert found[:, 1].std() > 0.1
    path = tmp_path / "graph.onnx"
    names = ["probability", "m", "pT"]
    export_onnx(graph, x[:2], path, ["x"], names, {"kind": "binary_classification"})
    assert check_parity(graph, path, [x[:1].numpy(), x.numpy()], tolerance=0.05) < 0.05


def test_all_tasks_with_these_jets_share_one_split():
    y = np.arange(200) % 2
    empty = SparseImages.from_dense(np.zeros((1, 8, 2, 2), np.float32))
    options = {"source": "file", "fingerprint": "", "description": "", "files": []}
    parts = [
        Jets8Dataset(empty, empty, y, np.full(200, m), np.full(200, m), **options).splits()
        for m in (np.nan, 1.0)  # the file of task 2c has no m and pT
    ]
    for a, b in zip(*parts, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(set(np.concatenate(parts[0]))) == 200
    users = [script_path(task).read_text(encoding="utf-8") for task in list_tasks()]
    users = [source for source in users if "load_jets8(" in source]
    assert users
    for source in users:
        assert re.search(r"\.(unlabelled_)?splits\(\)", source)
