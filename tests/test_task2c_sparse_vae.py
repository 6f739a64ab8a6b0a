"""The notebook of task 2c: towers, likelihood, codes, sites, FLOPs, pruning, training, export."""

from dataclasses import replace
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Normal, kl_divergence

from e2e_utils.notebook import load_definitions
from e2e_utils.onnx_export import check_parity, export_onnx
from e2e_utils.sparse_images import SparseImages
from e2e_utils.splits import split
from tests.interrupted_training import assert_same_weights, in_two_parts

ARMS = pytest.mark.parametrize("arm", ["dense", "sparse"])


def toy_jets(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 8, 125, 125): hits near the centre, wider in class 1; pixel hits everywhere."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    x = np.zeros((n, 8, 125, 125), np.float32)
    for jet in range(n):
        for channel in range(8):
            width = 5 + 15 * y[jet] if channel < 5 else 40
            row, column = np.clip(62 + rng.normal(0, width, (2, 25)), 0, 124).astype(int)
            x[jet, channel, row, column] = rng.uniform(1, 255, 25)
    return x, y


@pytest.fixture(scope="module")
def jets():
    return toy_jets(150)


@pytest.fixture
def notebook(tmp_path, jets):
    """The notebook's definitions with toy jets in place of its variables: 100 labelled, 50 not."""
    module = load_definitions("task2c_sparse_vae")
    x, y = jets
    module.towers = SparseImages.from_dense(module.towers_of(torch.from_numpy(x)).numpy())
    module.splits = split(y[:100], seed=0)
    module.y = np.where(np.arange(150) < 100, y, np.nan)
    module.unlabelled, module.watching = np.arange(100, 140), np.arange(140, 150)
    module.average = module.average_jet(module.towers.dense(module.unlabelled))
    module.CONFIG = module.CONFIGS["smoke"]
    module.run = SimpleNamespace(directory=tmp_path)
    module.soft_targets, module.tuned, module.warm = {}, {}, {}
    return module


def classifier(notebook, arm: str) -> nn.Module:
    """A classifier with random weights that are all different, also those of the normalisation."""
    torch.manual_seed(0)
    model = notebook.Classifier(notebook.ARMS[arm])
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def random_sites(shape: tuple[int, ...], share: float, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


# Towers and shapes --------------------------------------------------------------------------------


def test_towers_hold_sums_numbers_and_maxima(notebook, jets):
    x = torch.from_numpy(jets[0][:3]).clone()
    x[0, 3, 50, 50] = -4.0  # below zero counts as empty
    found = (notebook.towers_of(x) * notebook.SCALE).expm1().view(3, 3, 8, 25, 25)
    blocks = x.clamp(min=0).view(3, 8, 25, 5, 25, 5)
    torch.testing.assert_close(found[:, 0], blocks.sum((3, 5)), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found[:, 1], (blocks > 0).float().sum((3, 5)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[:, 2], blocks.amax((3, 5)), rtol=1e-4, atol=1e-3)


def test_prepared_jets_are_the_same_in_parts(notebook, jets):
    images = SparseImages.from_dense(jets[0][:12])
    towers, table = notebook.described(images, np.arange(12), True)
    torch.testing.assert_close(towers.dense(), notebook.towers.dense(np.arange(12)))
    later, rest = notebook.described(images, np.arange(5, 12), True)
    torch.testing.assert_close(later.dense(), towers.dense(np.arange(5, 12)))
    np.testing.assert_allclose(rest, table[5:], rtol=1e-4, atol=1e-5)
    assert np.isfinite(table).all()


def test_shapes_of_two_hits_in_closed_form(notebook):
    x = np.zeros((1, 8, 125, 125), np.float32)
    x[0, 1, 60, 60], x[0, 1, 60, 70] = 3.0, 1.0
    columns = notebook.pixel_shapes(SparseImages.from_dense(x), np.arange(1)).reshape(8, -1)[1]
    names = ("sum", "multiplicity", "hard", "ptd", "leading", "width")
    values = dict(zip(names, columns, strict=False))
    apart = 10 * notebook.PIXEL
    assert (values["sum"], values["multiplicity"]) == pytest.approx((4, 2), rel=1e-4)
    assert values["ptd"] == pytest.approx(np.sqrt(10) / 4, rel=1e-4)
    assert values["width"] == pytest.approx((3 * 0.25 + 0.75) * apart / 4, rel=1e-4)
    assert columns[-2:] == pytest.approx((60 * notebook.PIXEL, 62.5 * notebook.PIXEL), rel=1e-4)


def test_correlations_of_three_towers_against_a_loop(notebook):
    places, energies = [(3, 4), (3, 9), (10, 4)], [5.0, 2.0, 1.0]
    x = torch.zeros(1, 24, 25, 25)
    for (row, column), energy in zip(places, energies, strict=True):
        x[0, 3, row, column] = np.log1p(energy) / notebook.SCALE
    found = notebook.tower_correlations(x)[0].view(3, 5)[1]
    z = np.array(energies) / 8
    size = notebook.TOWER * notebook.PIXEL
    r = np.array([[np.hypot(a[0] - b[0], a[1] - b[1]) * size for b in places] for a in places])
    assert found[2].item() == pytest.approx((z[:, None] * z * r).sum() / 2, rel=1e-4)  # beta 1
    terms = [z[i] * z[j] * z[k] * r[i, j] * r[j, k] * r[k, i] for i, j, k in permutations(range(3))]
    assert found[4].item() == pytest.approx(sum(terms) / 6, rel=1e-4)


# Likelihood and codes -----------------------------------------------------------------------------


def test_hurdle_likelihood_is_bernoulli_and_normal(notebook):
    torch.manual_seed(0)
    hit = (torch.rand(3, 8, 4, 4) < 0.4).float()
    x = (torch.rand(3, 24, 4, 4) + 0.1) * hit.repeat(1, 3, 1, 1)
    logit, mean, log_sigma = torch.randn(3, 8, 4, 4), torch.rand(3, 24, 4, 4), torch.randn(24)
    expected = -Bernoulli(logits=logit).log_prob(hit).sum((1, 2, 3))
    normal = Normal(mean, log_sigma.exp().view(1, 24, 1, 1)).log_prob(x)
    for feature in range(3):
        expected -= (hit * normal[:, 8 * feature : 8 * feature + 8]).sum((1, 2, 3))
    torch.testing.assert_close(notebook.hurdle_nll(x, logit, mean, log_sigma), expected)


def test_kl_is_that_of_torch(notebook):
    mean, log_variance = torch.randn(5, 3), torch.randn(5, 3)
    q = Normal(mean, (0.5 * log_variance).exp())
    expected = kl_divergence(q, Normal(torch.zeros(3), torch.ones(3)))
    torch.testing.assert_close(notebook.kl_to_normal(mean, log_variance), expected)


def test_code_keeps_its_largest_positive_entries(notebook):
    code = torch.tensor([[3.0, -1.0, 2.0, 5.0, 0.5], [-1.0, -2.0, -3.0, 0.1, -5.0]])
    kept = notebook.keep_largest(code, 2)
    assert kept.tolist() == [[3.0, 0.0, 0.0, 5.0, 0.0], [0.0, 0.0, 0.0, pytest.approx(0.1), 0.0]]


def test_average_jet_in_closed_form(notebook):
    x = torch.zeros(4, 24, 25, 25)
    x[:2, 0, 3, 4] = torch.tensor([1.0, 2.0])
    average = notebook.average_jet(x)
    assert average.logit[0, 3, 4].sigmoid().item() == pytest.approx(2.5 / 5)
    assert average.logit[0, 0, 0].sigmoid().item() == pytest.approx(0.5 / 5)
    assert average.mean[0, 3, 4].item() == pytest.approx((1 + 2 + 1.5) / 3)
    assert average.log_sigma[0].exp().item() == pytest.approx(0.5)


@ARMS
def test_autoencoder_begins_as_the_average_jet_and_becomes_better(notebook, arm):
    torch.manual_seed(0)
    x, average = notebook.towers.dense(np.arange(16)), notebook.average
    model = notebook.Autoencoder(notebook.ARMS[arm], average)
    logit = average.logit.expand(16, -1, -1, -1)
    expected = notebook.hurdle_nll(x, logit, average.mean, average.log_sigma)
    torch.testing.assert_close(model.eval()(x)[0], expected)
    optimizer, losses = torch.optim.AdamW(model.parameters(), 3e-3), []
    for _ in range(25):
        optimizer.zero_grad()
        nll, _ = model.train()(x)
        (nll.mean() / 100).backward()
        optimizer.step()
        losses.append(nll.mean().item())
    assert losses[-1] < losses[0] - 30
    missed = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert set(missed) <= {"log_variance.weight", "log_variance.bias"}  # no KL in this loss
    assert torch.isfinite(sum(model.eval()(torch.zeros(2, 24, 25, 25)))).all()


# Sites --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (2, 2)])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 1.0])
def test_site_convolution_is_the_dense_one_on_its_sites(notebook, kernel, stride, share):
    torch.manual_seed(1)
    sites = random_sites((3, 25, 25), share)
    x = torch.randn(3, 4, 25, 25) * sites.unsqueeze(1)
    weight = torch.randn(6, 4, kernel, kernel, requires_grad=True)
    dense = nn.functional.conv2d(x, weight, stride=stride, padding=1)
    book, outputs = notebook.rulebook(sites, kernel, stride)
    found = notebook.site_convolution(x.permute(0, 2, 3, 1)[sites], weight, book)
    torch.testing.assert_close(found, dense.permute(0, 2, 3, 1)[outputs], rtol=1e-4, atol=1e-5)
    if stride == 1:
        assert outputs.equal(sites)
    else:  # nothing is lost on the way down: elsewhere the dense result is zero
        assert not (dense * ~outputs.unsqueeze(1)).any()
    dense = dense * outputs.unsqueeze(1)
    both = [torch.autograd.grad(r.square().sum(), weight)[0] for r in (found, dense)]
    torch.testing.assert_close(*both, rtol=1e-3, atol=1e-3)


def test_rulebook_against_a_loop(notebook):
    sites = random_sites((2, 6, 7), 0.4)
    number = {place: i for i, place in enumerate(map(tuple, sites.nonzero().tolist()))}
    book, _ = notebook.rulebook(sites, 3, 1)
    for offset, pair in enumerate(zip(book.sources, book.targets, strict=True)):
        down, right = offset // 3 - 1, offset % 3 - 1
        expected = {
            (number[b, r + down, c + right], i)
            for (b, r, c), i in number.items()
            if (b, r + down, c + right) in number
        }
        assert set(zip(*(side.tolist() for side in pair), strict=True)) == expected


def test_network_on_sites_equals_its_masked_form(notebook):
    model, x = classifier(notebook, "sparse"), notebook.towers.dense(np.arange(10))
    x[3] = 0  # a jet without any site
    found = model(x)
    model.encoder.trunk.masked = True
    torch.testing.assert_close(model(x), found, rtol=1e-4, atol=1e-4)
    changed = x.clone()
    changed[:, 5:8] += 0.3 * ~notebook.active_sites(x).unsqueeze(1)  # pixel hits off the sites
    torch.testing.assert_close(model(changed), found, rtol=1e-4, atol=1e-4)


def test_counted_flops_against_the_hand(notebook):
    a, b, c = 25**2, 13**2, 7**2
    products = 9 * a * (24 * 16 + 2 * 16 * 16) + 4 * b * 16 * 32 + 2 * 9 * b * 32 * 32
    products += 4 * c * 32 * 32 + 2 * 9 * c * 32 * 32 + c * 32 * 32 + 32 * 32 + 32
    model = classifier(notebook, "dense")
    assert notebook.flops_of(model, torch.zeros(3, 24, 25, 25)) == 2 * products


def test_flops_on_sites_against_the_hand(notebook):
    x = torch.zeros(2, 24, 25, 25)
    x[0, 3, 10, 10:12] = 1.0  # two neighbours in one jet
    x[1, 0, 5, 6] = 1.0  # one alone in the other
    x[1, 6, 20, 20] = 1.0  # a pixel hit makes no site
    # (10, 10) and (10, 11) lie in columns 5 and 6 of 13, which lie in column 3 of 7
    fine, middle, down, coarse, head = 4 + 1, 4 + 1, 2 + 1, 2 + 1, 1 + 1
    products = fine * (24 * 16 + 2 * 16 * 16) + down * 16 * 32 + middle * 2 * 32 * 32
    products += coarse * 32 * 32 + head * 2 * 32 * 32
    linear = 49 * 32 * 64 + 64 * 32 + 32
    model = classifier(notebook, "sparse")
    assert notebook.flops_of(model, x) == products + 2 * linear  # 2 per multiply-add, 2 jets


# Pruning ------------------------------------------------------------------------------------------


@ARMS
@pytest.mark.parametrize("ratio", [0.4, 0.9])
def test_pruned_network_is_the_one_with_zeroed_channels(notebook, arm, ratio):
    x, model = notebook.towers.dense(np.arange(10)), classifier(notebook, arm)
    small = notebook.pruned(model, arm, ratio).eval()
    assert small.encoder.trunk.widths == notebook.narrowed(ratio)
    old, new = (m.encoder.trunk for m in (model, small))
    for stage in range(3):
        pairs = [(old.entries[stage], new.entries[stage])]
        pairs += zip(old.blocks[stage], new.blocks[stage], strict=True)
        for before, after in pairs:
            kept = torch.isin(before.norm.weight, after.norm.weight)  # all scales are different
            assert kept.sum() == len(after.norm.weight)
            with torch.no_grad():
                before.norm.weight[~kept] = 0
                before.norm.bias[~kept] = 0
    torch.testing.assert_close(small(x), model(x), rtol=1e-4, atol=1e-4)
    assert notebook.flops_of(small, x) < notebook.flops_of(model, x)


def test_the_weakest_channels_go_together(notebook):
    model = classifier(notebook, "dense")
    trunk = model.encoder.trunk
    weak = torch.arange(0, 16, 2)
    with torch.no_grad():
        for layer in (trunk.entries[0], trunk.blocks[0][1]):  # both write what the shortcut adds
            layer.norm.weight.fill_(1.0)
            layer.norm.weight[weak] = 1e-3
        trunk.blocks[0][1].norm.weight[weak[0]] = 9.0  # written strongly by one of them
    small = notebook.pruned(model, "dense", 0.4).encoder.trunk
    kept = torch.isin(trunk.entries[0].norm.running_mean, small.entries[0].norm.running_mean)
    assert kept.all()  # equal means everywhere: compare weights instead
    rows = trunk.entries[0].conv.weight.flatten(1)
    kept = [int((rows == w).all(1).nonzero()) for w in small.entries[0].conv.weight.flatten(1)]
    assert set(range(1, 16, 2)) | {0} <= set(kept)
    assert len(kept) == 10


def test_narrowed_leaves_one_channel_at_least(notebook):
    assert notebook.narrowed(0.0) == notebook.WIDTHS
    assert notebook.narrowed(0.999) == (1,) * 6
    assert notebook.narrowed(0.6) == (6, 6, 13, 13, 13, 13)


@ARMS
def test_pruning_nothing_changes_nothing(notebook, arm):
    x, model = notebook.towers.dense(np.arange(5)), classifier(notebook, arm)
    torch.testing.assert_close(notebook.pruned(model, arm, 0.0).eval()(x), model(x))


# Training -----------------------------------------------------------------------------------------


@ARMS
def test_network_memorises_one_batch(notebook, arm):
    assert notebook.overfit_one_batch(arm, steps=40) < 0.2


def test_pretraining_tuning_distillation_and_pruning_fit_together(notebook):
    seed, short = 0, notebook.Schedule(2, 32)
    notebook.CONFIG = replace(notebook.CONFIG, tuning=short, between=short, recovery=short)
    start = notebook.pretrain("p", notebook.ARMS["dense"], seed, short, notebook.unlabelled)
    assert np.isfinite([start.nll, start.kl, start.probe]).all()
    notebook.tuned["dense", 0.0, seed] = notebook.tune("t", "dense", seed, short, start)
    notebook.tuned["scratch", 0.6, seed] = notebook.tune("s", "dense", seed, short, None, 0.6)
    notebook.warm = dict(notebook.tuned)
    targets = notebook.soft_targets[seed] = notebook.teach(seed)
    labelled, free = np.split(notebook.seen_by(seed), [len(notebook.splits.train)])
    assert set(free) <= set(notebook.unlabelled)
    rest = np.setdiff1d(np.arange(len(targets)), notebook.seen_by(seed))
    assert np.isnan(targets[rest]).all()  # of validation and test jets nothing is asked
    assert ((targets[free] > 0) & (targets[free] < 1)).all()
    far = np.abs(targets[labelled] - notebook.y[labelled])
    assert far.max() <= 0.5
    notebook.halfway = {(0.6, seed): notebook.cut_twice(0.6, seed)}
    for label in ("one-shot, distilled", "iterative", "from scratch"):
        found = notebook.finish(label, 0.6, seed)
        assert found.widths == notebook.narrowed(0.6)
        rows = notebook.splits.validation
        logits = notebook.outputs_of(notebook.network_of("dense", found), rows)
        assert notebook.roc_auc(notebook.y[rows], logits) == pytest.approx(found.validation)
        assert all(isinstance(array, np.ndarray) for array in found.weights.values())


def test_families_have_the_same_passes(notebook, monkeypatch):
    seen = []

    def classify(name, model, seed, schedule, rows, distilled=False):
        seen.append((len(rows) * schedule.passes, distilled))
        return notebook.Tuned(notebook.arrays_of(model), model.encoder.trunk.widths, 0.5, None)

    monkeypatch.setattr(notebook, "classify", classify)
    passes = {"between": notebook.Schedule(2), "recovery": notebook.Schedule(4)}
    notebook.CONFIG = replace(notebook.CONFIG, **passes)
    number = len(notebook.splits.train)
    notebook.unlabelled = np.arange(100, 100 + number)
    model = classifier(notebook, "dense")
    for ratio, kinds in ((0.0, ("dense", "sparse")), (0.6, ("scratch",))):
        small = notebook.pruned(model, "dense", ratio)
        state = notebook.Tuned(notebook.arrays_of(small), notebook.narrowed(ratio), 0.5, None)
        notebook.warm |= {(kind, ratio, 0): state for kind in kinds}
        notebook.tuned |= {(kind, ratio, 0): state for kind in kinds}
    notebook.halfway = {(0.6, 0): notebook.cut_twice(0.6, 0)}
    assert seen == [(2 * number, False)] * 2  # as `warm`, the start of the other families
    for label, family in notebook.FAMILIES.items():
        if family.arm == "dense":
            seen.clear()
            notebook.finish(label, 0.6, 0)
            assert seen == [(4 * number, family.distilled)]


def test_few_labels_are_drawn_anew_for_each_training_and_seen_more_often(notebook, monkeypatch):
    asked = []
    monkeypatch.setattr(notebook, "classify", lambda *arguments: asked.append(arguments[4]))
    for seed in (0, 0, 1):
        notebook.tune("a", "dense", seed, notebook.Schedule(1), labels=16)
    assert all(len(np.unique(rows)) == 16 for rows in asked)
    assert all(len(rows) == 3 * 16 for rows in asked)  # (64 / 16) ** 0.75
    assert set(np.concatenate(asked)) <= set(notebook.splits.train)
    np.testing.assert_array_equal(asked[0], asked[1])
    assert set(asked[0]) != set(asked[2])


@ARMS
def test_interrupted_training_continues_where_it_stopped(notebook, arm):
    schedule, rows = notebook.Schedule(3, 32), notebook.splits.train

    def classified(name: str) -> dict:
        torch.manual_seed(0)
        model = notebook.Classifier(notebook.ARMS[arm])
        return notebook.classify(name, model, 0, schedule, rows).weights

    straight = classified("straight")
    assert_same_weights(in_two_parts(notebook, lambda: classified("stopped"), 3), straight)


# Choices ------------------------------------------------------------------------------------------


@pytest.fixture
def front(notebook):
    """Points of three families with made-up costs and validation AUCs."""
    of = {  # point -> FLOPs, validation AUC
        ("one-shot", 0.0): (100, 0.950), ("one-shot", 0.6): (20, 0.949),
        ("one-shot", 0.9): (2, 0.93), ("one-shot, distilled", 0.6): (20, 0.948),
        ("from scratch, distilled", 0.6): (20, 0.945),
        ("one-shot, distilled", 0.9): (2, 0.92), ("sparse, distilled", 0.0): (15, 0.947),
        ("sparse, distilled", 0.9): (2, 0.93), ("sparse, distilled", 0.1): (500, 0.9),
    }  # fmt: skip
    notebook.points = dict.fromkeys(of)
    notebook.costs = {point: {"flops": flops} for point, (flops, _) in of.items()}
    notebook.validation = {point: auc for point, (_, auc) in of.items()}
    return notebook


def test_the_knee_is_the_cheapest_point_within_what_is_allowed(front):
    assert front.knee(("one-shot",), ("one-shot", 0.0)) == ("one-shot", 0.6)
    best = "sparse, distilled", 0.0
    assert front.knee(("sparse, distilled",), best) == best


def test_the_rival_of_a_sparse_network_is_the_cheapest_that_costs_no_less(front):
    assert front.rival_of(("sparse, distilled", 0.0)) == ("one-shot, distilled", 0.6)
    front.validation["one-shot, distilled", 0.6] = 0.9
    assert front.rival_of(("sparse, distilled", 0.0)) == ("from scratch, distilled", 0.6)
    assert front.dearer_by(("sparse, distilled", 0.0)) == 20 / 15
    front.costs["sparse, distilled", 0.9]["flops"] = 0.5  # less than any dense network
    assert front.rival_of(("sparse, distilled", 0.9)) == ("one-shot, distilled", 0.9)
    assert front.dearer_by(("sparse, distilled", 0.9)) == 4
    assert front.rival_of(("sparse, distilled", 0.1)) is None
    assert front.dearer_by(("sparse, distilled", 0.1)) == np.inf


# Export -------------------------------------------------------------------------------------------


@ARMS
def test_exported_graph_takes_official_images(notebook, arm, tmp_path):
    model = notebook.pruned(classifier(notebook, arm), arm, 0.6)
    raw = [torch.from_numpy(toy_jets(n, seed=n)[0]) for n in (2, 1, 5)]
    raw.append(torch.zeros(2, 8, 125, 125))
    with torch.no_grad():
        expected = model.eval()(notebook.towers_of(raw[2])).sigmoid()  # on sites
    graph, path = notebook.RawInput(model).eval(), tmp_path / "toy.onnx"
    torch.testing.assert_close(graph(raw[2]).detach(), expected, rtol=1e-4, atol=1e-4)
    export_onnx(graph, raw[0], path, ["x"], ["probability"], {"task": "toy"})
    assert check_parity(graph, path, raw) <= 1e-4
