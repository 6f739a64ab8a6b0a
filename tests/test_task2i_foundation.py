"""The notebook of task 2i: patches, views, losses, heads, gate, training, transfer, export."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import f1_score
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import avg_pool2d

from e2e_utils.notebook import load_definitions
from e2e_utils.onnx_export import check_parity, export_onnx
from e2e_utils.sparse_images import SparseImages
from e2e_utils.splits import split
from tests.interrupted_training import assert_same_weights, in_two_parts

CAP = 12


def toy_jets(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 8, 125, 125), 0 to 255, towers in channel 4; class 1 is wider."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    x = np.zeros((n, 8, 125, 125), np.float32)
    for jet in range(n):
        width = 5 + 12 * y[jet]
        for channel in (0, 1, 2, 3, 5, 6, 7):
            row, column = np.clip(62 + rng.normal(0, width, (2, 12)), 0, 124).astype(int)
            x[jet, channel, row, column] = rng.uniform(1, 200, 12)
        for row, column in np.clip(12 + rng.normal(0, width / 5, (4, 2)), 0, 24).astype(int) * 5:
            x[jet, 4, row : row + 5, column : column + 5] = rng.uniform(1, 200)
        x[jet] *= 255 / x[jet].max((1, 2), keepdims=True)
    return x, y


@pytest.fixture
def notebook(tmp_path):
    """The notebook's definitions with toy jets in place of its variables."""
    module = load_definitions("task2i_foundation")
    x, y = toy_jets(120)
    free, _ = toy_jets(64, seed=1)
    module.CONFIG = module.CONFIGS["smoke"]
    stores = SparseImages.from_dense(free), SparseImages.from_dense(x)
    parts = split(y)
    numbers = np.random.default_rng(2).normal(0, 0.3, (2, 120))
    truth = np.full((184, 3), np.nan, np.float32)
    truth[64:] = np.stack([y, *(numbers + y - 0.5)], 1)
    rows = 64 + parts.train, 64 + parts.validation
    module.stores, module.truth = stores, truth
    module.samples = {"jets": module.Sample(stores, truth, np.arange(64), *rows)}
    latent = len(module.EXPERTS) * module.CONFIG.latent
    table = np.random.default_rng(3).normal(size=(184, 3 + latent)).astype(np.float32)
    module.teachers = {0: (table[:, :3], table[:, 3:])}
    module.run = SimpleNamespace(directory=tmp_path)
    return module


@pytest.fixture
def hits(notebook):
    return notebook.hits_of(notebook.stores, np.arange(60, 72))  # of both stores


def images_of(notebook, hits) -> np.ndarray:
    """Hits as dense images (B, 8, 125, 125)."""
    x = np.zeros((hits.count, 8, 125, 125), np.float32)
    x[tuple(part.numpy() for part in hits[:4])] = hits.value.numpy()
    return x


# Patches and views


def test_hits_are_the_pixels_of_both_stores_in_the_given_order(notebook):
    rows = np.array([70, 3, 64, 63])
    found = images_of(notebook, notebook.hits_of(notebook.stores, rows))
    free, labelled = (store.dense().numpy() for store in notebook.stores)
    np.testing.assert_array_equal(found, np.concatenate([free, labelled])[rows])


def test_sparse_and_dense_patches_are_the_same(notebook, hits):
    sparse = notebook.to_patches(hits, CAP)
    dense = notebook.patches_of_images(torch.from_numpy(images_of(notebook, hits)), CAP)
    for a, b in zip(sparse, dense, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_patches_against_a_loop(notebook, hits):
    x = np.pad(images_of(notebook, hits), ((0, 0), (0, 0), (0, 5), (0, 5)))
    patches = notebook.to_patches(hits, CAP)
    worth = np.array(notebook.IMPORTANCE)[:, None, None]
    for jet in range(3):
        blocks = {
            13 * i + j: x[jet, :, 10 * i : 10 * i + 10, 10 * j : 10 * j + 10]
            for i in range(13) for j in range(13)
        }  # fmt: skip
        filled = [place for place in blocks if blocks[place].any()]
        order = sorted(filled, key=lambda place: -(blocks[place] * worth).sum())
        assert patches.place[jet, patches.valid[jet]].tolist() == order[:CAP]
        for k, place in enumerate(order[:CAP]):
            block = blocks[place]
            sums, counts = block.sum((1, 2)), (block > 0).sum((1, 2))
            expected = [np.log1p(block).ravel() / np.log(256), np.log1p(sums) / np.log(256)]
            expected = np.concatenate([*expected, np.log1p(counts) / np.log(101)])
            np.testing.assert_allclose(patches.features[jet, k], expected, rtol=1e-4, atol=1e-5)
        rest = sum((blocks[place].sum((1, 2)) for place in order[CAP:]), np.zeros(8))
        np.testing.assert_allclose(patches.rest[jet, :8], np.log1p(rest) / np.log(256), rtol=1e-4)


def test_empty_jets_and_padding_change_nothing(notebook):
    x = torch.zeros(2, 8, 125, 125)
    x[0, 3, 60, 60] = 255.0
    torch.manual_seed(0)
    encoder = notebook.Encoder(16, 2, 8).eval()
    few, many = (encoder(notebook.patches_of_images(x, cap)) for cap in (3, 40))
    torch.testing.assert_close(few, many, rtol=1e-4, atol=1e-5)
    assert torch.isfinite(few).all()


def test_mirror_images_keep_energy_and_occupancy(notebook, hits):
    before, seen = images_of(notebook, hits), set()
    for seed in range(4):
        view = notebook.augmented(hits, torch.Generator().manual_seed(seed), strong=False)
        after = images_of(notebook, view)
        for jet, (a, b) in enumerate(zip(before, after, strict=True)):
            copies = a, a[:, ::-1], a[:, :, ::-1], a[:, ::-1, ::-1]
            which = [np.array_equal(b, copy) for copy in copies]
            assert any(which), jet
            seen.add(which.index(True))
    assert seen == {0, 1, 2, 3}


def test_views_keep_the_mean_energy_and_lose_the_stated_share_of_readouts(notebook):
    x = np.zeros((200, 8, 125, 125), np.float32)
    x[:, :, 30:95, 30:95] = 10.0  # far from the edges: shifts lose nothing
    hits = notebook.hits_of([SparseImages.from_dense(x)], np.arange(200))
    view = notebook.augmented(hits, torch.Generator().manual_seed(0), strong=True)
    assert len(view.value) / len(hits.value) == pytest.approx(1 - notebook.DROPPED, abs=0.005)
    assert view.value.mean().item() == pytest.approx(10.0, rel=2e-3)
    assert view.value.min() >= 10 * (1 - notebook.GAIN) - 1e-4
    assert view.value.max() <= 10 * (1 + notebook.GAIN) + 1e-4
    after = images_of(notebook, view)
    towers = after.reshape(200, 8, 25, 5, 25, 5).swapaxes(3, 4).reshape(-1, 25)
    np.testing.assert_allclose(towers.max(1), towers.min(1))  # a readout is one measurement
    first = np.flatnonzero(after[0, 0].sum(1))[0]
    assert first in (25, 30, 35)


def test_visible_and_hidden_patches_are_all_patches(notebook, hits):
    patches = notebook.to_patches(hits, CAP)
    noise = torch.rand(hits.count, CAP, generator=torch.Generator().manual_seed(0))
    visible, hidden = notebook.divided(patches, noise)
    assert visible.place.shape[1] == round(0.4 * CAP)
    places = torch.cat([visible.place, hidden.place], 1)
    torch.testing.assert_close(places.sort(1).values, patches.place.sort(1).values)
    assert (visible.valid.sum(1) >= patches.valid.sum(1).clamp(max=visible.valid.shape[1])).all()


def test_tower_levels(notebook, hits):
    x = torch.from_numpy(images_of(notebook, hits))
    expected = (avg_pool2d(x, 5) * 25).log1p().flatten(1) / np.log(256)
    torch.testing.assert_close(notebook.tower_levels(hits), expected, rtol=1e-4, atol=1e-5)


# Losses


def test_contrastive_loss_against_a_loop_and_for_a_collapsed_encoder(notebook):
    a, b = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    u = torch.cat([a, b]).numpy()
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    terms = []
    for i in range(10):
        weights = [np.exp(u[i] @ u[k] / 0.1) for k in range(10) if k != i]
        terms.append(-np.log(np.exp(u[i] @ u[(i + 5) % 10] / 0.1) / sum(weights)))
    assert notebook.contrastive_loss(a, b).item() == pytest.approx(np.mean(terms), rel=1e-5)
    same = torch.ones(7, 4)
    assert notebook.contrastive_loss(same, same).item() == pytest.approx(np.log(2 * 7 - 1))
    assert notebook.contrastive_loss(a, a) < notebook.contrastive_loss(a, b)


def test_divergence_is_that_of_torch_and_zero_for_the_prior(notebook):
    mean, log_variance = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(notebook.kl_divergence(mean, log_variance), expected)
    zero = torch.zeros(4, 3)
    assert notebook.kl_divergence(zero, zero) == 0


def test_masked_loss_against_a_loop_ignores_padding(notebook):
    generator = torch.Generator().manual_seed(0)
    found, truth = torch.rand(2, 2, 3, notebook.FEATURES, generator=generator)
    valid = torch.tensor([[True, True, False], [True, False, False]])
    pixels = weights = summary = 0.0
    for jet, patch in ((0, 0), (0, 1), (1, 0)):
        w = 0.05 + truth[jet, patch, :800]
        error = (found - truth)[jet, patch].square()
        pixels, weights = pixels + (w * error[:800]).sum(), weights + w.sum()
        summary += error[800:].sum() / 16
    expected = pixels / weights + summary / 3
    torch.testing.assert_close(notebook.masked_loss(found, truth, valid), expected)
    changed = torch.where(valid[..., None], found, 99.0)
    torch.testing.assert_close(notebook.masked_loss(changed, truth, valid), expected)
    assert notebook.masked_loss(truth, truth, valid) == 0


def test_task_loss_against_a_loop_with_unknown_targets(notebook):
    found = torch.tensor([[0.3, 0.1, 2.0], [-1.0, 0.0, 0.5], [2.0, 1.0, 1.0]])
    truth = torch.tensor([[1.0, 0.5, np.nan], [0.0, np.nan, 0.0], [np.nan, np.nan, np.nan]])
    y_loss = np.mean([np.log1p(np.exp(-0.3)), np.log1p(np.exp(-1.0))])
    expected = y_loss + 0.4**2 + 0.5**2  # Huber losses of small errors are squares
    assert notebook.task_loss(found, truth).item() == pytest.approx(expected, rel=1e-5)
    nothing = torch.full_like(truth, np.nan)
    assert notebook.task_loss(found, nothing) == 0
    found.requires_grad_(True)
    notebook.task_loss(found, truth).backward()
    assert (found.grad[2] == 0).all()
    assert torch.isfinite(found.grad).all()


def test_imitation_is_least_for_the_teacher_and_squared_error_of_logits_when_soft(notebook):
    opinion = torch.tensor([[0.7, 0.2, -0.1], [-1.5, 1.0, 0.4]])
    found = opinion.clone().requires_grad_(True)
    notebook.imitation_loss(found, opinion).backward()
    torch.testing.assert_close(found.grad, torch.zeros(2, 3))
    found = (opinion + 0.5).requires_grad_(
        True
    )  # Hinton et al., eq. 4: (z - t) / (4 N) for large T
    notebook.imitation_loss(found, opinion, softness=200.0).backward()
    torch.testing.assert_close(found.grad[:, 0], torch.full((2,), 0.5 / 4 / 2), rtol=1e-2, atol=0)


def test_feature_loss(notebook):
    latents = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    assert notebook.feature_loss(latents, latents, 2).item() == pytest.approx(0, abs=1e-6)
    turned = notebook.feature_loss(-latents, latents, 2).item()
    huber = torch.where(latents.abs() < 0.5, 2 * latents.square(), 2 * latents.abs() - 0.5)
    assert turned == pytest.approx(2 + huber.mean().item(), rel=1e-5)


def test_shares_of_a_tower(notebook):
    pixels = torch.arange(100.0).view(1, 10, 10)
    towers = notebook.by_tower(pixels.flatten(1))
    for number, (i, j) in enumerate(((0, 0), (0, 5), (5, 0), (5, 5))):
        expected = pixels[0, i : i + 5, j : j + 5].flatten()
        torch.testing.assert_close(towers[0, number], expected)
    energy = torch.rand(3, 2, 4, 25)
    even = notebook.share_loss(torch.zeros(3, 2, 4, 25), energy)
    torch.testing.assert_close(even, torch.full((2,), float(np.log(25))))


def test_coarse_images_keep_the_energy_of_every_tower(notebook, hits):
    x, blurred = (images_of(notebook, h) for h in (hits, notebook.coarse(hits)))
    towers = [avg_pool2d(torch.from_numpy(v), 5) for v in (x, blurred)]
    torch.testing.assert_close(*towers, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(blurred[:, :, ::5, ::5], towers[0], rtol=1e-4, atol=1e-4)


# Heads, gate, metrics


@pytest.mark.parametrize("kind", ["linear", "one hidden layer"])
def test_heads_find_what_is_written_plainly(notebook, kind):
    rng = np.random.default_rng(0)
    z = rng.normal(3, 2, (600, 5)).astype(np.float32)
    truth = np.stack([z[:, 0] > 3, (z[:, 1] - 3) / 2, (z[:, 2] - z[:, 3]) / 3], 1).astype(
        np.float32
    )
    heads = notebook.HEADS[kind](notebook.Known(z[:400], truth[:400], z[400:], truth[400:]))
    found = notebook.answers(heads, z[400:])
    assert notebook.skill(found, truth[400:]) > 0.8
    assert np.mean((found[:, 0] > 0) == (truth[400:, 0] > 0)) > 0.93


def test_unknown_targets_stay_zero(notebook):
    rng = np.random.default_rng(0)
    z, truth = rng.normal(size=(80, 4)).astype(np.float32), np.full((80, 3), np.nan, np.float32)
    truth[:, 1] = z[:, 0]
    known = notebook.Known(z, truth, z, truth)
    for model in (
        lambda x: notebook.answers(notebook.linear_heads(known), x),
        notebook.Boosted(known),
    ):
        found = model(z)
        assert (found[:, [0, 2]] == 0).all()
        assert np.corrcoef(found[:, 1], z[:, 0])[0, 1] > 0.9


def test_skill_of_knowing_nothing_is_zero(notebook):
    truth = np.stack([np.arange(4000) % 2, *norm.rvs(size=(2, 4000), random_state=0)], 1)
    truth[:, 1:] = (truth[:, 1:] - truth[:, 1:].mean(0)) / truth[:, 1:].std(0)
    assert notebook.skill(np.zeros((4000, 3)), truth) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("adaptive", [True, False])
def test_gate_is_normalised_and_begins_as_the_mean(notebook, adaptive):
    opinions = torch.randn(9, 4, 3, generator=torch.Generator().manual_seed(0))
    gate = notebook.Gate(4, adaptive)
    torch.testing.assert_close(gate(opinions), torch.full((9, 4, 3), 0.25))
    torch.testing.assert_close(gate.answer(opinions), opinions.mean(1))
    torch.nn.init.normal_(gate.linear.weight)
    torch.nn.init.normal_(gate.linear.bias)
    weights = gate(opinions)
    torch.testing.assert_close(weights.sum(1), torch.ones(9, 3))
    assert (weights >= 0).all()
    assert torch.allclose(weights[0], weights[1]) != adaptive
    same = opinions[:, :1].expand(-1, 4, -1)
    torch.testing.assert_close(gate.answer(same), same[:, 0])  # all of one opinion


def test_gate_prefers_the_expert_that_is_right(notebook):
    rng = np.random.default_rng(0)
    truth = np.stack([rng.integers(0, 2, 300), *rng.normal(size=(2, 300))], 1).astype(np.float32)
    right = truth.copy()
    right[:, 0] = 6 * truth[:, 0] - 3
    wrong = rng.normal(size=(300, 3)).astype(np.float32)
    opinions = np.stack([wrong, right], 1)
    known = notebook.Known(opinions[:200], truth[:200], opinions[200:], truth[200:])
    gate = notebook.fit_gate(known, adaptive=True, steps=200)
    assert gate(torch.from_numpy(opinions))[:, 1].mean() > 0.8


def test_f1_above_a_threshold_is_that_of_scikit_learn(notebook):
    rng = np.random.default_rng(0)
    y = rng.normal(150, 40, 500)
    score, weight = y + rng.normal(0, 30, 500), rng.integers(0, 4, 500)
    ours = notebook.f1_above(y, score, weight, threshold=140.0)
    assert ours == pytest.approx(f1_score(y > 140, score > 140, sample_weight=weight))
    share = (y > 140).mean()
    positive = notebook.f1_above(y, np.full(500, 1e3), threshold=140.0)
    assert positive == pytest.approx(2 * share / (1 + share))
    assert notebook.f1_above(y, y * 0, threshold=1e6) == 0


# Training, transfer, export


@pytest.mark.parametrize("arm", ["masked", "contrastive", "variational", "supervised", "distilled"])
def test_every_arm_learns_one_batch_and_reaches_every_weight(notebook, arm):
    before, after = notebook.overfit_one_batch(arm, steps=25)
    assert after < before
    torch.manual_seed(0)
    model, job = notebook.ARMS[arm](notebook.CONFIG), notebook.Job(arm, 0, 1)
    rows = job.rows()[-24:]
    model(*notebook.inputs_of(job, rows, notebook.torch_generator(0, 0), "cpu")).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_rows_and_names_of_jobs(notebook):
    sample = notebook.samples["jets"]
    assert set(notebook.Job("masked", 0, 1).rows()) == set(sample.free)
    assert set(notebook.Job("supervised", 0, 1).rows()) == set(sample.train)
    assert len(notebook.Job("supervised", 0, 1, labels=7).rows()) == 7
    taught = notebook.Job("distilled", 0, 1).rows()
    assert not set(taught) & set(sample.check)
    jobs = [("masked", 0, 1), ("masked", 1, 1), ("supervised", 0, 1), ("supervised", 0, 2)]
    jobs += [("supervised", 0, 1, "jets", 5), ("supervised", 0, 1, "jets", 0, "masked 0")]
    assert len({notebook.Job(*job).name for job in jobs}) == len(jobs)


def test_training_from_an_encoder_begins_with_it(notebook):
    _, weights = notebook.run_job(notebook.Job("masked", 0, 1))
    prefix = "encoder."
    start = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    notebook.starts = {"masked 0": start}
    history, _ = notebook.run_job(notebook.Job("supervised", 0, 2, start="masked 0"))
    assert len(history) == 2
    assert np.isfinite(history.validation_loss).all()


def test_interrupted_training_continues_where_it_stopped(notebook):
    job = notebook.Job("contrastive", 0, 3)
    _, straight = notebook.run_job(job)
    notebook.run.directory = notebook.run.directory / "again"
    _, resumed = in_two_parts(notebook, lambda: notebook.run_job(job), 3)
    assert_same_weights(resumed, straight)


def test_other_jets_get_eight_scaled_channels(notebook):
    x = np.zeros((3, 3, 125, 125), np.float32)
    x[0, 0, 5, 6], x[0, 0, 7, 8], x[0, 2, 50:55, 50:55], x[1, 1, 0, 124] = 20.0, 5.0, 3.0, -1.0
    made = notebook.eight_channels(SparseImages.from_dense(x), (0, 3, 4), np.array([2, 0, 1]))
    dense = made.dense().numpy()
    assert dense.shape == (3, 8, 125, 125)
    assert dense[1, 0, 5, 6] == 255
    assert dense[1, 0, 7, 8] == pytest.approx(255 / 4)
    assert (dense[1, 4, 50:55, 50:55] == 255).all()
    assert np.count_nonzero(dense) == 27  # what is below zero is left out
    assert not dense[[0, 2]].any()


def test_shapes_do_not_depend_on_the_others_of_a_batch(notebook):
    rows = np.arange(64, 100)
    together = notebook.simple_shapes(notebook.stores, rows)
    alone = np.concatenate(
        [notebook.simple_shapes(notebook.stores, rows[k : k + 1]) for k in range(4)]
    )
    assert together.shape == (36, 48)
    np.testing.assert_allclose(together[:4], alone, rtol=1e-3, atol=1e-3)


def test_exported_graphs_take_official_images(notebook, tmp_path):
    torch.manual_seed(0)
    raw = [torch.from_numpy(toy_jets(n, seed=n)[0]) for n in (2, 1, 5)]
    raw += [torch.zeros(2, 8, 125, 125)]
    encoders = [notebook.Encoder(16, 1, 8) for _ in range(4)]
    z = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    heads = [notebook.Heads(z, hidden) for hidden in (0, 6, 0, 6)]
    scales, gate = {"m": (140.0, 50.0), "pT": (500.0, 100.0)}, notebook.Gate(4)
    torch.nn.init.normal_(gate.linear.weight)
    for number, (count, with_gate) in enumerate(((1, None), (4, gate))):
        graph = notebook.RawInput(encoders[:count], heads[:count], scales, CAP, with_gate).eval()
        path = tmp_path / f"{number}.onnx"
        export_onnx(graph, raw[0], path, ["x"], ["probability", "m", "pT"], {"task": "toy"})
        assert check_parity(graph, path, raw, tolerance=2e-2) <= 2e-2
