"""The notebook of task 2i: experts, heads, mixture, students, other jets, pictures, export."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import f1_score
from torch.distributions import Normal
from torch.distributions import kl_divergence as exact_divergence

from e2e_utils.notebook import load_definitions
from e2e_utils.onnx_export import check_parity, export_onnx
from e2e_utils.sparse_images import SparseImages
from e2e_utils.splits import split
from tests.interrupted_training import assert_same_weights, in_two_parts
from tests.test_task2g_ssl_vit import toy_jets

N, FREE = 100, 40


@pytest.fixture
def notebook(tmp_path):
    """The notebook's definitions with toy jets in place of its variables."""
    module = load_definitions("task2i_foundation")
    x, y = toy_jets(N)
    rng = np.random.default_rng(1)
    columns = y, 100 + 60 * y + rng.normal(0, 10, N), 500 + rng.exponential(100, N)
    module.main = module.with_shapes(SparseImages.from_dense(x), columns, split(y))
    module.unlabelled = SparseImages.from_dense(toy_jets(FREE, 5)[0])
    module.x, module.sets = x, {"jets": module.main}
    module.CONFIG = module.CONFIGS["smoke"]
    encoders = [module.TASK2G.TowerTransformer() for _ in range(2)]
    taught = ("contrastive_expert", "variational_expert", *module.STUDENTS)
    module.starts = dict.fromkeys(taught, encoders)
    module.starts |= {arm: [module.TwoTrunks() for _ in range(2)] for arm in module.WIDE}
    answers = np.column_stack([rng.random(FREE), rng.normal(size=(FREE, 2))]).astype(np.float32)
    module.teachers, module.trained = {"student": [answers, answers]}, {}
    module.run = SimpleNamespace(directory=tmp_path)
    return module


def towers_of(notebook, n: int = 12) -> torch.Tensor:
    return notebook.TASK2G.towers_of(notebook.main.images, np.arange(n))


# Experts


def test_levels_are_logarithms_of_sums(notebook):
    levels = notebook.tower_levels(towers_of(notebook, 3))
    sums = notebook.x[:3, :, 15:110, 15:110].reshape(3, 8, 19, 5, 19, 5).sum((3, 5))
    expected = np.log1p(sums).transpose(0, 2, 3, 1) / np.log(256)
    np.testing.assert_allclose(levels.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_hidden_towers_are_empty_and_others_unchanged(notebook):
    towers = towers_of(notebook, 80)
    visible, hidden = notebook.hide(towers, np.random.default_rng(0))
    assert float(hidden.float().mean()) == pytest.approx(notebook.HIDDEN, abs=0.02)
    assert not visible[hidden].any()
    assert torch.equal(visible[~hidden], towers[~hidden])


def test_variational_loss_equals_its_formula(notebook):
    torch.manual_seed(0)
    truth, found = torch.rand(3, 19, 19, 8), torch.randn(3, 19, 19, 8)
    mean, log_variance = torch.randn(3, 32), torch.randn(3, 32)
    exact = exact_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).mean()
    assert float(notebook.kl_divergence(mean, log_variance)) == pytest.approx(
        float(exact), rel=1e-5
    )
    top = bottom = 0.0
    for f, t in zip(found.flatten().tolist(), truth.flatten().tolist(), strict=True):
        top, bottom = top + (0.05 + t) * (f - t) ** 2, bottom + 0.05 + t
    expected = top / bottom + 1e-3 * float(exact)
    loss = notebook.variational_loss(found, mean, log_variance, truth)
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_the_variational_expert_memorises_a_batch(notebook):
    model, towers = notebook.new_network(notebook.Job("variational", 0, 1)), towers_of(notebook)
    optimizer, losses = torch.optim.AdamW(model.parameters(), 3e-3), []
    for _ in range(60):
        optimizer.zero_grad()
        loss = notebook.variational_loss(*model(towers), notebook.tower_levels(towers))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert losses[-1] < 0.4 * losses[0]
    levels, mean, _ = model.eval()(towers[:5])
    assert (levels.shape, mean.shape) == ((5, 19, 19, 8), (5, 32))


def test_task_loss_equals_that_of_task_2g_and_leaves_out_what_is_not_known(notebook):
    torch.manual_seed(0)
    output, truth = torch.randn(9, 3), torch.randn(9, 3)
    truth[:, 0] = (torch.arange(9) % 2).float()
    complete = notebook.task_loss(output, truth)
    torch.testing.assert_close(complete, notebook.TASK2G.multitask_loss(output, truth))
    truth[:, 0], truth[2, 1] = torch.nan, torch.nan
    square = (output - truth).square().numpy()
    expected = np.nanmean(square[:, 1]) + np.nanmean(square[:, 2])
    output.requires_grad_()
    loss = notebook.task_loss(output, truth)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert output.grad.isfinite().all()


def test_one_batch_is_memorised(notebook):
    model, rows = notebook.new_network(notebook.Job("supervised", 0, 1)), notebook.main.train[:16]
    model.dropout.p = 0.0
    truth = torch.from_numpy(notebook.scaled(notebook.main, notebook.main.truth)[rows])
    towers = notebook.TASK2G.towers_of(notebook.main.images, rows)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = notebook.task_loss(model(towers), truth)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3  # from about 2.7


# Heads


@pytest.mark.parametrize("kind", ["linear", "one hidden layer"])
@pytest.mark.parametrize("arm", ["encoder", "shapes"])
def test_a_fitted_head_answers_the_same_inside_the_network(notebook, kind, arm):
    torch.manual_seed(0)
    jets = notebook.main
    model = notebook.with_head(
        notebook.trunk_of("student") if arm == "encoder" else None, kind, jets
    )
    x = torch.from_numpy(notebook.latent_vectors(model, jets, jets.test))
    assert x.shape[1] == (232 if arm == "encoder" else 136)
    with torch.no_grad():
        inside = model(notebook.TASK2G.towers_of(jets.images, jets.test))
        found = model.linear(x)
        if kind == "linear":  # whatever the hidden layer was before, it adds nothing
            assert not model.head(x).any()
        else:
            found += model.head(x)
        torch.testing.assert_close(inside, found, rtol=1e-3, atol=1e-3)
    assert notebook.roc_auc(jets.truth[jets.test, 0].astype(int), inside[:, 0].numpy()) > 0.8


def test_the_scale_of_shapes_is_that_of_unlabelled_jets_and_features_stay_within_five(notebook):
    jets, free = notebook.main, np.random.default_rng(0).normal(size=(30, 136))
    given = notebook.with_shapes(jets.images, jets.truth.T, jets[3:6], free)
    few = given._replace(train=given.train[:20])
    for some in (given, few):  # whatever has a label
        model = notebook.answering(None, some)
        np.testing.assert_allclose(model.shape_middle, free.mean(0), rtol=1e-5)
        np.testing.assert_allclose(model.shape_unit, free.std(0), rtol=1e-5)
    encoder = notebook.TASK2G.ResNet15()
    norm = notebook.answering(encoder, jets).eval().norm
    features = torch.linspace(-20, 20, encoder.width).expand(2, -1)
    torch.testing.assert_close(norm(features), features.clamp(-5, 5), rtol=1e-4, atol=0)
    latent = notebook.latent_vectors(notebook.with_head(encoder, "linear", few), few, few.test)
    assert np.abs(latent).max() <= 5


def test_linear_models_of_shapes_are_those_of_task_2g(notebook):
    jets, other = notebook.main, notebook.TASK2G
    other.main, other.y = other.Sample(jets.images, jets.truth), jets.truth[:, 0].astype(int)
    other.splits, (middle, unit) = jets, jets.scale
    x = ((jets.shapes - middle) / unit).clip(-5, 5)
    theirs = other.answers(other.linear_models(x, jets.train), x[jets.test])
    model = notebook.with_head(None, "linear", jets)
    ours = other.predict(model, jets.images, jets.test)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)


def test_linear_heads_are_regressions_and_unknown_targets_stay_zero(notebook):
    jets, rng = notebook.main, np.random.default_rng(0)
    truth = jets.truth.copy()
    truth[:, [0, 2]] = np.nan
    jets = jets._replace(truth=truth)
    model = notebook.answering(None, jets)
    x = rng.normal(size=(len(jets.train) + len(jets.validation), 136)).astype(np.float32)
    x, check = x[: len(jets.train)], x[len(jets.train) :]
    notebook.fit_linear(model, x, check, jets)
    target = notebook.scaled(jets, jets.truth)[jets.train, 1]
    fits = [Ridge(a).fit(x, target).coef_ for a in (1, 10, 100, 1000)]
    weight = model.linear.weight.detach().numpy()
    assert min(np.abs(weight[1] - fit).max() for fit in fits) < 1e-5
    assert not weight[[0, 2]].any()


def test_blind_heads_read_no_shapes(notebook):
    torch.manual_seed(0)
    model = notebook.with_head(notebook.TASK2G.ResNet15(), "linear", notebook.main, blind=True)
    assert not model.linear.weight[:, -136:].any()
    assert model.linear.weight[:, :-136].any()


# Mixture


def test_mixtures_begin_as_the_mean_and_weights_add_up(notebook):
    torch.manual_seed(0)
    opinions = torch.randn(20, 3, 3)
    for kind in (
        notebook.MIXTURES if hasattr(notebook, "MIXTURES") else ("mean", "constant", "gate")
    ):
        gate = notebook.Gate(3, kind)
        torch.testing.assert_close(gate(opinions), opinions.mean(1))
        torch.nn.init.normal_(gate.linear.weight), torch.nn.init.normal_(gate.linear.bias)
        weights = gate.weights(opinions)
        torch.testing.assert_close(weights.sum(1), torch.ones(20, 3))
        assert (weights.std(0).max() > 1e-3) == (kind == "gate")


def test_constant_weights_prefer_the_better_expert(notebook):
    rng = torch.Generator().manual_seed(0)
    truth = torch.randn(200, 3, generator=rng)
    truth[:, 0] = (truth[:, 0] > 0).float()
    good = torch.cat([4 * (2 * truth[:, :1] - 1), truth[:, 1:]], 1)
    opinions = torch.stack([good, torch.randn(200, 3, generator=rng)], 1)
    gate = notebook.fit_gate("constant", opinions, truth)
    assert (gate.weights(opinions)[0, 0] > 0.7).all()
    losses = [notebook.cross_validated(kind, opinions, truth) for kind in ("mean", "constant")]
    assert losses[1] < losses[0]


# Students


class Recording:
    """A training that keeps what the network was given."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model, self.device, self.seen = model, torch.device("cpu"), []
        self.accelerator = SimpleNamespace(autocast=lambda: torch.no_grad())

    def network(self, towers: torch.Tensor) -> torch.Tensor:
        self.seen.append(towers)
        return self.model(towers)


def test_a_student_learns_from_labels_and_from_its_teacher(notebook):
    job, rows = notebook.Job("student", 1, 4), notebook.main.train[:6]
    fit = Recording(notebook.new_network(job).eval())
    loss = notebook.labelled_step(fit, job, rows, np.random.default_rng(0))
    assert len(fit.seen[0]) == 12
    rng = np.random.default_rng(0)  # the same views, and the unlabelled jets drawn after them
    notebook.TASK2G.towers_of(notebook.main.images, rows, notebook.WITH_LABELS, rng)
    free = rng.integers(FREE, size=6)
    truth = notebook.scaled(notebook.main, notebook.main.truth)[rows]
    with torch.no_grad():
        output = fit.model(fit.seen[0])
    expected = notebook.task_loss(output[:6], torch.from_numpy(truth))
    answers = torch.from_numpy(notebook.teachers["student"][1][free])
    torch.testing.assert_close(loss, expected + notebook.task_loss(output[6:], answers))


def test_all_arms_see_equally_many_jets_per_update(notebook):
    notebook.CONFIG = replace(notebook.CONFIG, batch_size=8)
    notebook.teachers |= {arm: [] for arm in ("own_teacher", "supervised_teacher", "wide")}
    notebook.sets["few"] = notebook.main
    arms = (*notebook.STUDENTS, *notebook.WIDE, *notebook.EXPERTS, *notebook.CONTROLS)
    jobs = [notebook.Job(arm, 0, 4) for arm in arms]
    jobs += [notebook.Job(arm, 0, 4, data="few") for arm in ("tuned", "fresh")]
    labelled = {
        job.arm: notebook.plan_of(job)[1] for job in jobs
    }  # beside as many without, if taught
    assert labelled == {arm: 4 if arm in notebook.teachers else 8 for arm in labelled}


def test_arms_begin_at_the_encoder_that_is_meant_for_them(notebook):
    arrays = notebook.TASK2G.as_arrays
    begun = {
        arm: arrays(notebook.new_network(notebook.Job(arm, 1, 4)).encoder)
        for arm in (*notebook.starts, "supervised", *notebook.CONTROLS, "fresh")
    }
    for arm in notebook.starts:
        assert_same_weights(begun[arm], arrays(notebook.starts[arm][1]))
    assert_same_weights(begun["fresh"], begun["scratch"])
    assert_same_weights(begun["longer"], begun["supervised"])  # both the convolution
    assert set(begun["scratch"]) == set(begun["student"]) != set(begun["supervised"])
    assert any(
        not np.array_equal(begun["scratch"][k], begun["student"][k]) for k in begun["student"]
    )


def test_two_trunks_are_both_read_and_both_learn(notebook):
    torch.manual_seed(0)
    model, towers = notebook.answering(notebook.TwoTrunks(), notebook.main), towers_of(notebook)
    transformer, convolution = model.encoder.trunks
    torch.nn.init.normal_(model.linear.weight)
    model(towers).sum().backward()
    learning = [
        any(p.grad.abs().sum() > 0 for p in trunk.parameters()) for trunk in model.encoder.trunks
    ]
    assert learning == [True, True]
    with torch.no_grad():
        features = model.eval().encoder(towers)
        torch.testing.assert_close(features[:, :96], transformer(towers))
        torch.testing.assert_close(features[:, 96:], convolution(towers))
    assert features.shape == (len(towers), model.encoder.width) == (12, 224)


@pytest.mark.parametrize(("arm", "rates"), [("continued", [1e-2, 1e-3]), ("scratch", [1e-2])])
def test_a_trained_encoder_learns_at_a_tenth_of_the_rate(notebook, monkeypatch, arm, rates):
    job, seen = notebook.Job(arm, 1, 4, 1e-2), []
    model = notebook.new_network(job)
    monkeypatch.setattr(notebook, "Training", lambda *a, **_: seen.append(a[2]) or FakeFit())
    notebook.train(job, model)
    groups = seen[0].param_groups
    assert [group["max_lr"] for group in groups] == pytest.approx(rates)
    learnt = [id(p) for group in groups for p in group["params"]]
    assert sorted(learnt) == sorted(map(id, model.parameters()))
    if len(groups) == 2:
        assert [id(p) for p in groups[1]["params"]] == [id(p) for p in model.encoder.parameters()]


class FakeFit:
    """A training without epochs."""

    history: tuple = ()

    def epochs(self, _: int) -> list:
        return []


@pytest.mark.parametrize("arm", ["variational", "student"])
def test_interrupted_trainings_continue_exactly(notebook, arm):
    notebook.CONFIG = replace(notebook.CONFIG, passes=2)
    folder, job = notebook.run.directory, notebook.Job(arm, 0, 4)

    def training(name: str) -> dict[str, np.ndarray]:
        notebook.run.directory = folder / name
        history, weights = notebook.run_job(job)
        assert np.isfinite(history.score).all()
        return weights

    whole = training("whole")
    rounds = notebook.plan_of(job)[2]
    assert_same_weights(in_two_parts(notebook, lambda: training("parts"), rounds), whole)


def test_every_job_gets_the_rate_with_the_best_quality(notebook, monkeypatch):
    best = {"supervised": 1e-3, "tuned": 1e-2}

    def run_jobs(jobs):
        for job in jobs:
            score = -abs(job.rate - best[job.arm])
            notebook.trained[job] = SimpleNamespace(score=np.array([score - 1, score])), {}

    monkeypatch.setattr(notebook, "run_jobs", run_jobs)
    jobs = [notebook.Job("tuned", 0, 4), notebook.Job("supervised", 0, 4)]
    jobs = notebook.with_rates(jobs, (3e-3, 1e-3, 1e-2))
    assert [(job.arm, job.rate) for job in jobs] == [("tuned", 1e-2), ("supervised", 1e-3)]
    notebook.trained = {}
    assert notebook.with_rates([notebook.Job("tuned", 0, 4)], (5e-3,))[0].rate == 5e-3
    assert not notebook.trained


def test_a_settled_encoder_has_the_scale_of_whole_jets_whatever_it_saw_before(notebook):
    torch.manual_seed(0)
    first, again = notebook.TASK2G.ResNet15(), notebook.TASK2G.ResNet15()
    again.load_state_dict(first.state_dict())
    with torch.no_grad():
        again.train()(3 * towers_of(notebook))  # other normalisations
    notebook.settle(first), notebook.settle(again)
    assert_same_weights(*(notebook.TASK2G.as_arrays(model) for model in (first, again)))
    assert not first.training
    towers = notebook.TASK2G.towers_of(notebook.unlabelled, np.arange(FREE))
    with torch.no_grad():
        inputs = first.inputs(towers).flatten(0, 2)
    spread = inputs.std(0)
    assert float(inputs.mean(0).abs().max()) < 1e-3
    assert (spread > 0.5).sum() > 30  # the others hardly vary in these jets
    torch.testing.assert_close(
        spread[spread > 0.5], torch.ones(int((spread > 0.5).sum())), rtol=0.02, atol=0
    )


# Trees, metrics, parts


def test_trees_are_those_of_task_2g(notebook):
    jets, other = notebook.main, notebook.TASK2G
    other.main, other.y = other.Sample(jets.images, jets.truth), jets.truth[:, 0].astype(int)
    other.splits, other.shapes = jets, {"main": jets.shapes}
    theirs = other.answers(other.boosted_trees(0, 0, 0), jets.shapes)
    ours = notebook.tree_answers(notebook.boosted_trees(jets), jets.shapes)
    assert len(jets.train) <= other.FEW  # so few that ours are those for few labels
    small = []
    for kind, target in zip(other.TREES, (other.y, *jets.truth[:, 1:].T), strict=True):
        rows = jets.train, jets.validation
        small.append(other.tuned_few(kind, *(x[r] for r in rows for x in (jets.shapes, target))))
    few = other.answers(small, jets.shapes)
    np.testing.assert_array_equal(ours, few)
    other.FEW, before = 10, other.FEW
    try:
        many = notebook.tree_answers(notebook.boosted_trees(jets), jets.shapes)
    finally:
        other.FEW = before
    np.testing.assert_array_equal(many, theirs)


def test_f1_equals_that_of_scikit_learn(notebook):
    rng = np.random.default_rng(0)
    y, score, weight = rng.normal(size=200), rng.normal(size=200), rng.integers(0, 3, 200)
    expected = f1_score(y > 0.3, score > 0.3, sample_weight=weight)
    assert notebook.f1_above(y, score, weight, threshold=0.3) == pytest.approx(expected)
    above = np.arange(9) - 4.0  # four of nine above the median
    assert notebook.f1_above(above, np.full(9, 9.0), threshold=0.0) == pytest.approx(8 / 13)
    assert notebook.f1_above(above, above - 99, threshold=5.0) == 0.0


def test_scaled_values_come_back(notebook):
    jets = notebook.main
    values = notebook.scaled(jets, jets.truth)
    middle, unit = notebook.scales_of(jets)
    np.testing.assert_allclose(values[:, 1:] * unit + middle, jets.truth[:, 1:], rtol=1e-5)
    np.testing.assert_allclose(values[jets.train, 1:].mean(0), 0, atol=1e-5)
    unknown = jets._replace(truth=np.where([True, True, False], jets.truth, np.nan))
    assert [scale[1] for scale in notebook.scales_of(unknown)] == [0.0, 1.0]


def test_parts_are_disjoint_and_those_of_task_2g(notebook):
    source = (notebook.__source__, notebook.TASK2G.__source__)
    assert all("dataset.splits(validation=0.05)" in text for text in source)
    parts = split(np.arange(200) % 2, 0, (0.75, 0.05, 0.2))
    assert len(set(np.concatenate(parts))) == 200


# Other jets and pictures


def test_jets_of_other_channels_are_put_in_their_place(notebook):
    rng = np.random.default_rng(0)
    x = np.where(rng.random((5, 3, 125, 125)) < 0.01, rng.normal(5, 3, (5, 3, 125, 125)), 0)
    images = notebook.eight_channels(SparseImages.from_dense(x.astype(np.float32)), (0, 3, 4))
    found, expected = images.dense(np.arange(5)).numpy(), np.zeros((5, 8, 125, 125))
    expected[:, (0, 3, 4)] = x.clip(0)
    expected *= 255 / expected.max((2, 3), keepdims=True).clip(1e-9)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_coarse_towers_are_those_of_evenly_spread_pixels(notebook):
    x = torch.from_numpy(notebook.x[:4])
    blocks = x[:, :, 15:110, 15:110].reshape(4, 8, 19, 5, 19, 5).mean((3, 5), keepdim=True)
    even = torch.zeros_like(x)
    even[:, :, 15:110, 15:110] = blocks.expand(-1, -1, -1, 5, -1, 5).reshape(4, 8, 95, 95)
    found = notebook.coarse(notebook.TASK2G.dense_to_towers(x))
    torch.testing.assert_close(found, notebook.TASK2G.dense_to_towers(even), rtol=1e-4, atol=1e-5)


def test_share_loss_equals_the_naive_loop(notebook):
    rng = np.random.default_rng(0)
    logits, energy = rng.normal(size=(6, 2, 25)), rng.exponential(size=(6, 2, 25))
    for c in range(2):
        total = 0.0
        for n in range(6):
            p = np.exp(logits[n, c]) / np.exp(logits[n, c]).sum()
            total -= (energy[n, c] * np.log(p)).sum()
        found = notebook.share_loss(torch.tensor(logits), torch.tensor(energy))[c]
        assert float(found) == pytest.approx(total / energy[:, c].sum())
    even = notebook.share_loss(torch.zeros(6, 2, 25), torch.tensor(energy).float())
    assert even.tolist() == pytest.approx([np.log(25)] * 2, rel=1e-5)


def test_maps_hold_the_tokens_of_the_most_active_towers_at_their_places(notebook):
    torch.manual_seed(0)
    encoder, towers = notebook.trunk_of("student").eval(), towers_of(notebook, 4)
    with torch.no_grad():
        maps, features = notebook.maps_of(encoder, towers), encoder(towers)
    hits = towers[..., 1 :: notebook.SUMS].sum(3)
    active, filled = hits > 0, maps.abs().sum(1) > 0
    assert maps.shape == (4, 48, 19, 19)
    for k in range(4):
        kept = filled[k] & active[k]
        assert kept.sum() == min(encoder.tokens, int(active[k].sum()))
        left_out = hits[k][active[k] & ~kept]
        assert not len(left_out) or left_out.max() <= hits[k][kept].min()
        torch.testing.assert_close(maps[k][:, kept].mean(1), features[k, :48], rtol=1e-4, atol=1e-5)


# Export


def test_export_takes_raw_images(notebook, tmp_path):
    torch.manual_seed(0)
    jets = notebook.main
    model = notebook.with_head(notebook.trunk_of("student"), "linear", jets)
    graph, x = notebook.TASK2G.RawInput(model).eval(), jets.images.dense(np.arange(5))
    with torch.no_grad():
        found = torch.stack(graph(x), 1).numpy()
    expected = notebook.TASK2G.predict(model, jets.images, np.arange(5))
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    path, names = tmp_path / "graph.onnx", ["probability", "m", "pT"]
    export_onnx(graph, x[:2], path, ["x"], names, {"kind": "binary_classification"})
    assert check_parity(graph, path, [x[:1].numpy(), x.numpy()], tolerance=0.05) < 0.05
