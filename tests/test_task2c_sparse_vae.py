"""The notebook of task 2c: likelihood, codes, sparse convolution, FLOPs, pruning, export."""

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

TRUNKS = pytest.mark.parametrize("sparse", [False, True])


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
    """The notebook's definitions with toy jets in place of its variables."""
    module = load_definitions("task2c_sparse_vae")
    x, module.y = jets
    towers = module.to_towers(SparseImages.from_dense(x), chunk=64)
    module.towers = {"labelled": towers, "unlabelled": towers}
    module.splits = split(module.y, seed=0)
    module.unlabelled_train, module.unlabelled_validation = np.arange(100), np.arange(100, 150)
    module.average = module.average_jet(towers, module.unlabelled_train)
    module.chosen_k, module.chosen_beta = 8, 1.0
    module.run = SimpleNamespace(directory=tmp_path)
    return module


def classifier(notebook, sparse: bool, k: int = 0) -> nn.Module:
    """A classifier with random weights that are all different, also those of the normalisation."""
    torch.manual_seed(0)
    model = notebook.Classifier(notebook.Encoder(sparse, k))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def random_sites(shape: tuple[int, ...], share: float, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


def test_towers_of_hits_are_those_of_the_images(notebook, jets):
    x = torch.from_numpy(jets[0][:70])
    x[0, 3, 50, 50] = -4.0  # below zero counts as empty
    found = notebook.to_towers(SparseImages.from_dense(x.numpy()), chunk=30).dense()
    torch.testing.assert_close(found, notebook.towers_of(x), rtol=1e-4, atol=1e-5)
    sums = x[1, 2].clamp(min=0).view(25, 5, 25, 5).sum((1, 3))
    torch.testing.assert_close(found[1, 2], sums.log1p() / notebook.SCALE, rtol=1e-4, atol=1e-5)


def test_shapes_of_two_hits_in_closed_form(notebook):
    x = np.zeros((1, 8, 125, 125), np.float32)
    x[0, 1, 60, 60], x[0, 1, 60, 70] = 3.0, 1.0
    number, total, ptd, width, near, wide = notebook.jet_shapes(
        SparseImages.from_dense(x), np.arange(1)
    ).reshape(8, 6)[1]
    apart = 10 * notebook.PIXEL
    assert number == 2
    assert total == pytest.approx(np.log(4), abs=1e-5)
    assert ptd == pytest.approx(np.sqrt(10) / 4, rel=1e-5)
    assert width == pytest.approx((3 * 0.25 + 0.75) * apart / 4, rel=1e-4)
    assert (near, wide) == pytest.approx((0.75, 1.0), rel=1e-5)  # 0.04 and 0.13 from the centroid


def test_hurdle_likelihood_is_bernoulli_and_normal(notebook):
    torch.manual_seed(0)
    x = torch.rand(3, 8, 4, 4) * (torch.rand(3, 8, 4, 4) < 0.4)
    logit, mean, log_sigma = torch.randn(3, 8, 4, 4), torch.rand(3, 8, 4, 4), torch.randn(8)
    hit = (x > 0).float()
    normal = Normal(mean, log_sigma.exp().view(1, 8, 1, 1)).log_prob(x)
    expected = -(Bernoulli(logits=logit).log_prob(hit) + hit * normal).sum((1, 2, 3))
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


def test_decoder_begins_as_the_average_jet(notebook):
    x = notebook.towers["unlabelled"].dense(np.arange(20))
    average = notebook.average
    expected = notebook.hurdle_nll(x, average.logit.expand_as(x), average.mean, average.log_sigma)
    for k in (0, 8):
        model = notebook.Autoencoder(False, k, average).eval()
        model.decoder.layers[-1].bias.data.zero_()
        torch.testing.assert_close(model(x)[0], expected)


def test_average_jet_in_closed_form(notebook):
    x = np.zeros((4, 8, 25, 25), np.float32)
    x[:2, 0, 3, 4] = 1.0, 2.0
    average = notebook.average_jet(SparseImages.from_dense(x), np.arange(4))
    assert average.logit[0, 3, 4].sigmoid().item() == pytest.approx(2.5 / 5)
    assert average.logit[0, 0, 0].sigmoid().item() == pytest.approx(0.5 / 5)
    assert average.mean[0, 3, 4].item() == pytest.approx((1 + 2 + 1.5) / 3)
    assert average.log_sigma[0].exp().item() == pytest.approx(0.5)


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
    expected = dense.permute(0, 2, 3, 1)[outputs]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    if stride == 1:
        assert outputs.equal(sites)
    else:  # nothing is lost on the way down: elsewhere the dense result is zero
        assert not (dense * ~outputs.unsqueeze(1)).any()
    both = [torch.autograd.grad(r.square().sum(), weight)[0] for r in (found, expected)]
    torch.testing.assert_close(*both, rtol=1e-3, atol=1e-3)


def test_rulebook_against_a_loop(notebook):
    sites = random_sites((2, 6, 7), 0.4)
    number = {place: i for i, place in enumerate(map(tuple, sites.nonzero().tolist()))}
    book, _ = notebook.rulebook(sites, 3, 1)
    for offset, (source, target) in enumerate(book.pairs):
        down, right = offset // 3 - 1, offset % 3 - 1
        expected = {
            (number[b, r + down, c + right], i)
            for (b, r, c), i in number.items()
            if (b, r + down, c + right) in number
        }
        assert set(zip(source.tolist(), target.tolist(), strict=True)) == expected


@pytest.mark.parametrize("k", [0, 8])
def test_network_on_sites_equals_its_masked_form(notebook, k):
    model, x = classifier(notebook, True, k), notebook.towers["labelled"].dense(np.arange(20))
    x[3] = 0  # a jet without any site
    found = model(x)
    model.encoder.trunk.masked = True
    torch.testing.assert_close(model(x), found, rtol=1e-4, atol=1e-5)
    changed = x.clone()
    changed[:, 5:] += 0.3 * ~notebook.active_sites(x).unsqueeze(1)  # pixel hits off the sites
    torch.testing.assert_close(model(changed), found, rtol=1e-4, atol=1e-5)


def test_counted_flops_against_the_hand(notebook):
    model, x = classifier(notebook, False), notebook.towers["labelled"].dense(np.arange(3))
    a, b, c = 25**2, 13**2, 7**2
    products = 9 * a * (8 * 16 + 2 * 16 * 16) + 4 * b * 16 * 32 + 2 * 9 * b * 32 * 32
    products += 4 * c * 32 * 32 + 2 * 9 * c * 32 * 32 + c * 32 * 32 + 32 * 32 + 32
    assert notebook.counted_flops(model, x) == 2 * products
    assert notebook.counted_flops(model, x[:1]) == 2 * products


def test_flops_of_sites_against_the_hand(notebook):
    model = classifier(notebook, True)
    x = torch.zeros(2, 8, 25, 25)
    x[0, 3, 10, 10:12] = 1.0  # two neighbours in one jet, which make one site at 13 x 13 and 7 x 7
    x[1, 0, 5, 6] = 1.0  # one alone in the other
    x[1, 6, 20, 20] = 1.0  # a pixel hit makes no site
    flops = notebook.three_flops(model, x)
    # (10, 10) and (10, 11) lie in columns 5 and 6 of 13, which lie in column 3 of 7
    fine, middle = 4 + 1, 4 + 1
    down, coarse, head = 2 + 1, 2 + 1, 1 + 1
    products = fine * (8 * 16 + 2 * 16 * 16) + down * 16 * 32 + middle * 2 * 32 * 32
    products += coarse * 32 * 32 + head * 2 * 32 * 32
    linear = 49 * 32 * 32 + 32 * 32 + 32
    assert flops["active pairs"] == products + 2 * linear  # 2 a multiply-add, 2 jets
    products = 9 * 3 * (8 * 16 + 2 * 16 * 16) + 4 * 3 * 16 * 32 + 9 * 3 * 2 * 32 * 32
    products += 4 * 2 * 32 * 32 + 9 * 2 * 2 * 32 * 32
    assert flops["active sites"] == products + 2 * linear
    dense = notebook.counted_flops(classifier(notebook, False), x)
    assert flops["dense"] == dense


@TRUNKS
@pytest.mark.parametrize("ratio", [0.3, 0.8, 0.95])
def test_pruned_network_is_the_one_with_zeroed_channels(notebook, sparse, ratio):
    x = notebook.towers["labelled"].dense(np.arange(10))
    original, pruned, stepwise = (classifier(notebook, sparse, 8) for _ in range(3))
    notebook.channel_pruner(pruned, ratio).step()
    widths = tuple(max(1, int(w * (1 - ratio) + 1e-9)) for w in notebook.WIDTHS)
    assert pruned.encoder.trunk.widths == widths
    kept = notebook.channels_kept(original, pruned)
    zeroed = notebook.with_channels_zeroed(original, kept).eval()
    torch.testing.assert_close(zeroed(x), pruned.eval()(x), rtol=1e-4, atol=1e-5)
    pruner = notebook.channel_pruner(stepwise, ratio, 3)
    counts = []
    for _ in range(3):
        pruner.step()
        counts.append(stepwise.encoder.trunk.widths[2])
    assert stepwise.encoder.trunk.widths == widths
    assert counts == sorted(counts, reverse=True)
    rebuilt = notebook.Classifier(notebook.Encoder(sparse, 8, widths))
    rebuilt.load_state_dict(pruned.state_dict())
    torch.testing.assert_close(rebuilt.eval()(x), pruned(x))


def test_masks_remove_the_smallest_weights_and_training_keeps_them_zero(notebook):
    model = classifier(notebook, False)
    masks = notebook.magnitude_masks(model, 0.8)
    assert set(masks) == {n for n, _ in model.named_parameters() if n.endswith("conv.weight")}
    for name, mask in masks.items():
        weight = model.get_parameter(name).detach().abs()
        assert (mask == 0).float().mean().item() == pytest.approx(0.8, abs=0.01)
        assert weight[mask == 0].max() <= weight[mask == 1].min()
    x = notebook.towers["labelled"].dense(np.arange(3))
    before = notebook.counted_flops(model, x)
    notebook.apply_masks(model, masks)
    schedule = notebook.Schedule(1, 32)
    tuned = notebook.classify("masked", model, schedule, 0, masks)
    for name, mask in masks.items():
        assert not tuned.weights[name][mask.numpy() == 0].any()
        assert tuned.weights[name].any()
    assert notebook.counted_flops(model, x) == before  # zeros are multiplied like anything else


@pytest.mark.parametrize(("sparse", "k"), [(False, 0), (True, 8)])
def test_every_weight_is_reached_and_empty_images_are_finite(notebook, sparse, k):
    torch.manual_seed(0)
    x = notebook.towers["labelled"].dense(np.arange(32))
    model = notebook.Autoencoder(sparse, k, notebook.average)
    nn.init.normal_(model.decoder.layers[-1].weight, std=0.05)  # begins at zero
    sum(model(x)).sum().backward()
    missed = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not missed
    assert torch.isfinite(sum(model.eval()(torch.zeros(2, 8, 25, 25)))).all()
    network = notebook.Classifier(model.encoder).eval()
    assert torch.isfinite(network(torch.zeros(2, 8, 25, 25))).all()


@pytest.mark.parametrize(("sparse", "k"), [(False, 0), (True, 8)])
def test_autoencoder_becomes_better_than_the_average_jet(notebook, sparse, k):
    torch.manual_seed(0)
    x = notebook.towers["unlabelled"].dense(np.arange(16))
    model = notebook.Autoencoder(
        sparse, k, notebook.average_jet(notebook.towers["unlabelled"], np.arange(16))
    )
    optimizer, losses = torch.optim.AdamW(model.parameters(), 3e-3), []
    for _ in range(40):
        optimizer.zero_grad()
        nll, _ = model(x)
        (nll.mean() / 100).backward()
        optimizer.step()
        losses.append(nll.mean().item())
    assert losses[-1] < 0.95 * losses[0]


@TRUNKS
def test_network_learns_one_batch_by_heart(notebook, sparse):
    assert notebook.overfit_one_batch(sparse, 8 if sparse else 0, steps=40) < 0.2


@pytest.mark.parametrize("arm", ["dense", "sparse"])
def test_pretraining_tuning_and_pruning_fit_together(notebook, arm):
    short = notebook.Schedule(3, 32, 3e-3)
    config = notebook.Config(pretraining=short, tuning=short, extra=short, seeds=1)
    notebook.CONFIG, before = config, notebook.CONFIG
    try:
        pretrained = notebook.pretrain(arm, 0, short, 1.0, 8)
        assert np.isfinite(pretrained.nll)
        tuned = notebook.tune(arm, 0, pretrained.weights)
        pruned = notebook.prune_and_tune(arm, 0, "iterative", 0.5, tuned)
    finally:
        notebook.CONFIG = before
    assert tuned.widths == notebook.WIDTHS
    assert pruned.widths == (8, 8, 16, 16, 16, 16)
    rows = notebook.splits.validation
    logits = notebook.outputs_of(notebook.restored(arm, pruned), "labelled", rows)
    assert notebook.roc_auc(notebook.y[rows], logits) == pytest.approx(pruned.validation_auc)
    assert all(isinstance(array, np.ndarray) for array in pruned.weights.values())


def test_interrupted_training_continues_where_it_stopped(notebook):
    schedule = notebook.Schedule(3, 32)

    def fresh() -> nn.Module:
        torch.manual_seed(0)
        model = notebook.Classifier(notebook.Encoder(True, 8))
        model.head[2].p = 0.0
        return model

    straight = notebook.classify("straight", fresh(), schedule, 0)
    resumed = in_two_parts(notebook, lambda: notebook.classify("stopped", fresh(), schedule, 0), 3)
    assert_same_weights(resumed.weights, straight.weights)


@TRUNKS
def test_exported_graph_takes_official_images(notebook, sparse, tmp_path):
    model = classifier(notebook, sparse, 8)
    notebook.channel_pruner(model, 0.8).step()
    raw = [torch.from_numpy(toy_jets(n, seed=n)[0]) for n in (2, 1, 5)]
    raw.append(torch.zeros(2, 8, 125, 125))
    with torch.no_grad():
        expected = model.eval()(notebook.towers_of(raw[2])).sigmoid()  # on sites
    graph, path = notebook.RawInput(model).eval(), tmp_path / "toy.onnx"
    torch.testing.assert_close(graph(raw[2]).detach(), expected, rtol=1e-4, atol=1e-5)
    export_onnx(graph, raw[0], path, ["x"], ["probability"], {"task": "toy"})
    assert check_parity(graph, path, raw) <= 1e-4
