"""The notebook of task 2g: towers, views, shapes, losses, networks, both trainings, export."""

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

NOTHING = {"flips": False, "shift": 0, "smearing": 0.0, "dropout": 0.0}


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
    truth = np.stack([y, 100 + 60 * y + rng.normal(0, 10, 80), 500 + rng.exponential(100, 80)], 1)
    module.x, module.y, module.views = x, y, module.Views()
    module.main = module.Sample(SparseImages.from_dense(x), truth)
    module.unlabelled = SparseImages.from_dense(toy_jets(40, 5)[0])
    module.splits, module.trained = split(y), {}
    shapes = module.shapes_of(module.unlabelled, np.arange(40))
    module.shape_scale = shapes.mean(0), shapes.std(0).clip(1e-3)
    module.CONFIG = module.CONFIGS["smoke"]
    module.run = SimpleNamespace(directory=tmp_path)
    return module


def one_view(notebook, n: int = 20, seed: int = 0, **changes) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums (n, 19, 19, 8, 5) of towers before and after views with only ``changes``."""
    rows, how = np.arange(n), notebook.Views(**(NOTHING | changes))
    rng = np.random.default_rng(seed)
    before = notebook.towers_of(notebook.main.images, rows)
    after = notebook.towers_of(notebook.main.images, rows, how, rng)
    return before.unflatten(3, (8, 5)), after.unflatten(3, (8, 5))


# Towers


def test_towers_are_sums_over_their_pixels(notebook):
    found = notebook.towers_of(notebook.main.images, np.array([3])).unflatten(3, (8, 5))[0]
    for tower, channel in (((9, 9), 3), ((8, 10), 0), ((9, 8), 4)):
        expected = np.zeros(5)
        for i in range(5):
            for j in range(5):
                row, column = 15 + 5 * tower[0] + i, 15 + 5 * tower[1] + j
                v = notebook.x[3, channel, row, column] / 255
                place = (i - 2) / 2, (j - 2) / 2
                expected += [v, v > 0, v * place[0], v * place[1], v**2]
        np.testing.assert_allclose(found[(*tower, channel)], expected, rtol=1e-4, atol=1e-5)


def test_sparse_and_dense_towers_agree(notebook):
    rows = np.array([3, 0, 7])
    sparse = notebook.towers_of(notebook.main.images, rows)
    dense = notebook.dense_to_towers(notebook.main.images.dense(rows))
    torch.testing.assert_close(sparse, dense, rtol=1e-4, atol=1e-5)


def test_an_empty_image_is_no_problem(notebook):
    empty = torch.zeros(2, 19, 19, 40)
    assert torch.isfinite(notebook.jet_shapes(empty)).all()
    for build in notebook.ENCODERS.values():
        assert torch.isfinite(build().eval()(empty)).all()


# Views


def test_flips_mirror_towers_and_centres_of_gravity(notebook):
    before, after = one_view(notebook, flips=True)
    seen, kinds = set(), {1: 2, 2: 3}  # axis of the towers -> sum that changes its sign
    for a, b in zip(before, after, strict=True):
        fits = []
        for axes in ((), (1,), (2,), (1, 2)):
            mirrored = a.flip([axis - 1 for axis in axes]).clone()
            for axis in axes:
                mirrored[..., kinds[axis]] *= -1
            if torch.allclose(mirrored, b, atol=1e-5):
                fits.append(axes)
        assert len(fits) == 1
        seen.add(fits[0])
    assert len(seen) == 4


def test_shifts_move_all_channels_by_whole_towers(notebook):
    before, after = one_view(notebook, shift=1)
    moves = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    seen = set()
    for a, b in zip(before, after, strict=True):
        inner = b[2:-2, 2:-2]
        fits = [m for m in moves if torch.allclose(a.roll(m, (0, 1))[2:-2, 2:-2], inner, atol=1e-5)]
        assert len(fits) == 1
        seen.add(fits[0])
    assert len(seen) > 4


def test_dropout_removes_its_share_and_keeps_the_mean(notebook):
    before, after = one_view(notebook, n=80, dropout=0.3)
    pixels = [channel for channel in range(8) if channel != notebook.HCAL]
    hits = (after[..., 1] * 0.7).round()  # each that remains counts 1 / 0.7
    torch.testing.assert_close(hits / 0.7, after[..., 1])
    kept = hits[..., pixels].sum() / before[..., pixels, 1].sum()
    assert float(kept) == pytest.approx(0.7, abs=0.02)
    assert float(after.sum((0, 1, 2, 3))[0] / before.sum((0, 1, 2, 3))[0]) == pytest.approx(
        1, abs=0.1
    )
    hcal = hits[..., notebook.HCAL]
    assert set(hcal.unique().tolist()) == {0.0, 25.0}  # whole towers are dropped


def test_smearing_keeps_hits_and_mean_energy(notebook):
    before, after = one_view(notebook, n=80, smearing=1.0)
    torch.testing.assert_close(before[..., 1], after[..., 1])
    for channel, width in enumerate(notebook.SMEARING):
        single = before[..., channel, 1] == (25 if channel == notebook.HCAL else 1)
        ratio = after[..., channel, 0][single] / before[..., channel, 0][single]
        assert float(ratio.mean()) == pytest.approx(1, abs=0.03)
        assert float(ratio.std()) == pytest.approx(float(width), rel=0.15, abs=1e-5)


def test_two_views_differ_and_seeds_repeat(notebook):
    views = {"dropout": 0.15, "shift": 1}
    a, b, again = (one_view(notebook, seed=seed, **views)[1] for seed in (0, 1, 0))
    assert torch.equal(a, again)
    assert not torch.equal(a, b)


# Shapes


def test_shapes_equal_moments_of_the_pixels(notebook):
    found = notebook.jet_shapes(notebook.towers_of(notebook.main.images, np.array([5])))
    shapes = found.view(8, 17).numpy()
    x = notebook.x[5, 3, 15:110, 15:110].astype(float) / 255
    eta, phi = (np.indices(x.shape) - 47) * np.pi / 180
    v, total = x, x.sum()
    assert shapes[3, 0] == pytest.approx(np.log(total), rel=1e-4)
    assert shapes[3, 1] == pytest.approx(np.log1p((x > 0).sum()), rel=1e-4)
    assert shapes[3, 2] == pytest.approx(np.log((x**2).sum() / total**2 + 1e-4), rel=1e-3)
    centre = [(v * axis).sum() / total for axis in (eta, phi)]
    assert shapes[3, 3] == pytest.approx(np.hypot(*centre), abs=1e-3)
    width = sum(
        (v * axis**2).sum() / total - c**2 for axis, c in zip((eta, phi), centre, strict=True)
    )
    # The spread within a tower is left out: at most (2 pixels)^2 in each direction.
    assert np.exp(shapes[3, 4]) == pytest.approx(width, abs=8 * (np.pi / 180) ** 2)
    towers = x.reshape(19, 5, 19, 5).sum((1, 3))
    assert shapes[3, 6] == pytest.approx(towers.max() / total, rel=1e-4)
    assert shapes[3, 7:12].sum() == pytest.approx(1, rel=1e-4)
    assert np.expm1(shapes[3, 12:]).sum() == pytest.approx((x > 0).sum(), rel=1e-4)


def test_shapes_do_not_change_under_flips(notebook):
    before, after = one_view(notebook, flips=True)
    a, b = (notebook.jet_shapes(t.flatten(3)) for t in (before, after))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


# Losses


def embeddings(n: int = 12, d: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return a, a + 0.5 * torch.randn(n, d, generator=generator, dtype=torch.float64)


def test_simclr_equals_the_naive_loop(notebook):
    a, b = embeddings()
    z = normalize(torch.cat([a, b])).numpy()
    n, expected = len(a), 0.0
    for i in range(2 * n):
        others = [np.exp(z[i] @ z[k] / 0.1) for k in range(2 * n) if k != i]
        expected -= np.log(np.exp(z[i] @ z[(i + n) % (2 * n)] / 0.1) / np.sum(others)) / (2 * n)
    assert float(notebook.simclr_loss(a, b)) == pytest.approx(expected, rel=1e-6)


def test_collapsed_embeddings_have_the_loss_of_guessing(notebook):
    point = torch.ones(40, 5)
    assert float(notebook.simclr_loss(point, point)) == pytest.approx(np.log(79), rel=1e-5)


def test_multitask_loss_equals_the_naive_loop(notebook):
    generator = torch.Generator().manual_seed(0)
    output, truth = (torch.randn(9, 3, generator=generator) for _ in range(2))
    truth[:, 0] = (torch.arange(9) % 2).float()
    expected = 0.0
    for o, t in zip(output.tolist(), truth.tolist(), strict=True):
        p = 1 / (1 + np.exp(-o[0]))
        expected += -np.log(p if t[0] else 1 - p) + (o[1] - t[1]) ** 2 + (o[2] - t[2]) ** 2
    assert float(notebook.multitask_loss(output, truth)) == pytest.approx(expected / 9, rel=1e-5)


def test_effective_rank_of_known_clouds(notebook):
    white = np.random.default_rng(0).normal(size=(50, 6))
    white = np.linalg.qr(white - white.mean(0))[0]
    assert notebook.effective_rank(white) == pytest.approx(6, rel=1e-3)
    assert notebook.effective_rank(np.outer(np.arange(50.0), np.ones(6))) == pytest.approx(1)


# Networks


def test_attention_equals_the_naive_loop(notebook):
    torch.manual_seed(0)
    block = notebook.TransformerBlock(8, 2)
    x, mask = torch.randn(2, 5, 8), torch.tensor([[True] * 5, [True, True, True, False, False]])
    q, k, v = block.qkv(block.norm(x)).split(8, 2)
    heard = torch.zeros(2, 5, 8)
    for event in range(2):
        real = mask[event].nonzero().squeeze(1)
        for head in range(2):
            part = slice(4 * head, 4 * head + 4)
            for token in range(5):
                weight = (k[event, real, part] @ q[event, token, part] / 4**0.5).softmax(0)
                heard[event, token, part] = weight @ v[event, real, part]
    expected = x + block.out(heard)
    hidden = torch.nn.functional.gelu(block.up(block.norm_2(expected)))
    bias = torch.where(mask, 0.0, -1e4)[:, None, None]
    torch.testing.assert_close(block(x, bias), expected + block.down(hidden))


def test_the_transformer_does_not_hear_padding(notebook):
    torch.manual_seed(0)
    x = torch.zeros(1, 19, 19, 40)
    x.view(1, 361, 40)[0, 3:40:7] = torch.rand(6, 40)
    few, more = notebook.TowerTransformer(tokens=8).eval(), notebook.TowerTransformer(tokens=40)
    more.load_state_dict(few.state_dict())
    torch.testing.assert_close(few(x), more.eval()(x))


@pytest.mark.parametrize("arm", ["scratch_one", "vit_scratch", "shapes"])
def test_networks_reach_all_their_weights(notebook, arm):
    torch.manual_seed(0)
    model = notebook.empty_network(arm)
    torch.nn.init.normal_(model.head[-1].weight)
    output = model(notebook.towers_of(notebook.main.images, np.arange(8)))
    assert output.shape == (8, 3)
    output.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if "position" not in name and "qkv.bias" not in name:
            assert parameter.grad.abs().sum() > 0, name


def test_resnet_has_fifteen_convolutions(notebook):
    kernels = [m for m in notebook.ResNet15().modules() if isinstance(m, torch.nn.Conv2d)]
    assert sum(m.kernel_size == (3, 3) for m in kernels) == 15


@pytest.mark.parametrize("arm", ["scratch_one", "vit_scratch", "shapes"])
def test_one_batch_is_memorised(notebook, arm):
    torch.manual_seed(0)
    model, rows = notebook.empty_network(arm).train(), notebook.splits.train[:16]
    model.dropout.p = 0.0
    truth = notebook.main.truth[rows]
    truth[:, 1:] = (truth[:, 1:] - truth[:, 1:].mean(0)) / truth[:, 1:].std(0)
    towers = notebook.towers_of(notebook.main.images, rows)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = notebook.multitask_loss(model(towers), torch.tensor(truth, dtype=torch.float32))
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3  # from about 2.7


# Labels and trainings


def test_draws_are_disjoint_training_jets_of_both_classes(notebook):
    notebook.CONFIG = replace(notebook.CONFIG, labels={8: (2, 2)})
    draws = [
        notebook.labelled_rows(8, training, draw) for training in range(2) for draw in range(2)
    ]
    assert len(set(np.concatenate(draws))) == 32
    for rows in draws:
        assert set(rows) <= set(notebook.splits.train)
        assert notebook.y[rows].sum() == 4
    np.testing.assert_array_equal(notebook.labelled_rows(0, 1, 0), notebook.splits.train)


def test_more_compute_is_that_of_both_trainings_or_ten_times_as_long(notebook):
    job = notebook.Job("scratch_one", 0, 0, 0, 1e-3, 10)
    assert notebook.longer(job).updates == 10 + 2 * notebook.CONFIG.passes * 40 // 8
    assert notebook.longer(job._replace(count=8)).updates == 100


def test_search_for_a_rate_ends_between_two_others_or_at_the_end_of_the_list(notebook):
    tried = {1e-3: 0.5, 3e-3: 0.6, 1e-2: 0.7}
    assert notebook.next_rate(tried) == 3e-2
    assert notebook.next_rate(tried | {3e-2: 0.6}) is None
    assert notebook.next_rate({1e-3: 0.7, 3e-3: 0.6}) == 3e-4
    assert notebook.next_rate({1e-5: 0.7, 3e-5: 0.6}) is None  # nothing lies beyond
    assert notebook.next_rate({3e-3: 0.7}) is None  # a smaller profile takes it as it is


def test_trainings_with_labels_drop_no_hits(notebook, monkeypatch):
    seen, towers_of = set(), notebook.towers_of

    def recorded(sample, rows, views=notebook.AS_IT_IS, rng=None) -> torch.Tensor:
        seen.add(views)
        return towers_of(sample, rows, views, rng)

    monkeypatch.setattr(notebook, "towers_of", recorded)
    notebook.run_job(notebook.Job("scratch_one", 0, 0, 0, 1e-3, 5))
    assert seen == {notebook.AS_IT_IS, notebook.Views(dropout=0.0)}


def test_fine_tuning_starts_from_its_own_pretraining_at_a_tenth_of_the_rate(notebook, monkeypatch):
    rates = []
    monkeypatch.setattr(notebook, "Training", lambda *a, **_: rates.append(a[2]) or FakeFit())
    job = notebook.PreTraining("resnet", 1, 40, 1)
    encoder = notebook.ResNet15()
    notebook.pretrained = {job: (None, notebook.as_arrays(encoder))}
    notebook.plan = {"resnet": [None, job]}
    job = notebook.Job("finetuned_tenth", 8, 1, 0, 1e-2, 4)
    model = notebook.new_network(job)
    assert_same_weights(notebook.as_arrays(model.encoder), notebook.as_arrays(encoder))
    notebook.finetune(job, model)
    head, body = rates[0].param_groups
    assert body["max_lr"] == pytest.approx(head["max_lr"] / 10)


class FakeFit:
    """A training without epochs."""

    history: tuple = ()

    def epochs(self, _: int) -> list:
        return []


def test_interrupted_pretraining_continues_exactly(notebook):
    folder = notebook.run.directory

    def training(name: str) -> dict[str, np.ndarray]:
        notebook.run.directory = folder / name
        job = notebook.PreTraining("resnet", 0, 40, 2)
        history, weights = notebook.run_pretraining(job)
        assert np.isfinite(history.score).all()
        return weights

    whole = training("whole")
    assert_same_weights(in_two_parts(notebook, lambda: training("parts"), 2), whole)


def test_interrupted_finetuning_continues_exactly(notebook):
    folder, job = notebook.run.directory, notebook.Job("scratch_one", 0, 0, 0, 1e-3, 5)

    def training(name: str) -> dict[str, np.ndarray]:
        notebook.run.directory = folder / name
        return notebook.run_job(job)[1]

    whole = training("whole")
    assert_same_weights(in_two_parts(notebook, lambda: training("parts"), 5), whole)


def test_rivals_answer_all_three_questions(notebook):
    x = notebook.shapes_of(notebook.main.images, np.arange(80))
    notebook.shapes = {"main": x}
    notebook.CONFIG = replace(notebook.CONFIG, labels={16: (1, 2)})
    test = notebook.splits.test
    for models in (
        notebook.linear_models(x, notebook.splits.train),
        notebook.boosted_trees(16, 0, 0),
    ):
        found = notebook.answers(models, x[test])
        assert found.shape == (16, 3)
        assert notebook.roc_auc(notebook.y[test], found[:, 0]) > 0.7


def test_draws_with_one_pre_training_count_once(notebook):
    notebook.CONFIG = replace(notebook.CONFIG, labels={8: (2, 2)})
    test = notebook.splits.test
    notebook.samples = {"test": (notebook.main, test)}
    rng = np.random.default_rng(0)
    draws = [rng.random((16, 3)) for _ in range(6)]  # three trainings of two draws
    notebook.found = {(a, 8): {"test": draws} for a in ("scratch", "finetuned")}
    comparison = notebook.compared("roc_auc", 8, "test", ("scratch", "finetuned"), 2)
    values = [notebook.roc_auc(notebook.y[test], d[:, 0]) for d in draws]
    expected = np.reshape(values, (3, 2)).mean(1)
    np.testing.assert_allclose(comparison.values["finetuned"], expected)
    np.testing.assert_allclose(comparison.values["scratch"], values)
    first = notebook.compared("roc_auc", 8, "test", ("scratch", "finetuned"), 1)
    np.testing.assert_allclose(first.values["scratch"], values[::2])


# Export and the split


@pytest.mark.parametrize("arm", ["scratch_one", "vit_scratch"])
def test_export_takes_raw_images(notebook, tmp_path, arm):
    torch.manual_seed(0)
    network = notebook.empty_network(arm)
    torch.nn.init.normal_(network.head[-1].weight, std=0.1)
    network.middle, network.unit = torch.tensor([140.0, 500.0]), torch.tensor([50.0, 100.0])
    graph = notebook.RawInput(network).eval()
    x = notebook.main.images.dense(np.arange(5))
    with torch.no_grad():
        found = torch.stack(graph(x), 1).numpy()
    expected = notebook.predict(network, notebook.main.images, np.arange(5))
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert found[:, 1].std() > 0.1
    path = tmp_path / "graph.onnx"
    names = ["probability", "m", "pT"]
    export_onnx(graph, x[:2], path, ["x"], names, {"kind": "binary_classification"})
    assert check_parity(graph, path, [x[:1].numpy(), x.numpy()], tolerance=0.05) < 0.05


def test_all_tasks_with_these_jets_share_one_test_set():
    y = np.arange(200) % 2
    empty = SparseImages.from_dense(np.zeros((1, 8, 2, 2), np.float32))
    options = {"source": "file", "fingerprint": "", "description": "", "files": []}
    jets = [
        Jets8Dataset(empty, empty, y, np.full(200, m), np.full(200, m), **options)
        for m in (np.nan, 1.0)  # the file of task 2c has no m and pT
    ]
    for a, b in zip(jets[0].splits(), jets[1].splits(), strict=True):
        np.testing.assert_array_equal(a, b)
    ours = jets[0].splits(validation=0.05)
    assert [len(part) for part in ours] == [150, 10, 40]
    assert len(set(np.concatenate(ours))) == 200
    np.testing.assert_array_equal(ours.test, jets[0].splits().test)
    users = [script_path(task).read_text(encoding="utf-8") for task in list_tasks()]
    users = [source for source in users if "load_jets8(" in source]
    assert users
    for source in users:
        assert re.search(r"\.(unlabelled_)?splits\(", source)
