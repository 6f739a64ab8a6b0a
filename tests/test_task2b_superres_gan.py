"""The notebook of task 2b: coordinates, generator, losses, discriminator, loop, measurements."""

from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.loaders.jets import pooled
from e2e_utils.notebook import load_definitions
from e2e_utils.onnx_export import check_parity, export_onnx
from e2e_utils.sparse_images import SparseImages
from e2e_utils.splits import split
from tests.interrupted_training import assert_same_weights, in_two_parts


def toy_jets(n: int, seed: int = 0) -> np.ndarray:
    """Images (n, 3, 125, 125): tracks in the upper left pixel of their cell, a shower, towers."""
    rng = np.random.default_rng(seed)
    x = np.zeros((n, 3, 125, 125), np.float32)
    for jet in range(n):
        for row, column in rng.integers(10, 50, (8, 2)):
            x[jet, 0, 2 * row - 1, 2 * column - 1] = rng.exponential(3) + 0.3
        shower = rng.exponential(1, (7, 7)) - 0.2
        a, b = rng.integers(40, 80, 2)
        x[jet, 1, a : a + 7, b : b + 7] = shower
        for row, column in rng.integers(8, 17, (4, 2)):
            x[jet, 2, 5 * row : 5 * row + 5, 5 * column : 5 * column + 5] = rng.exponential(0.2)
    x[0, 1, 0, 0], x[0, 1, 124, 124] = 0.7, 0.4  # corners of the frame
    return x


class ToyDataset:
    """What the notebook needs of its data set."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = SparseImages.from_dense(images)

    def pair(self, rows: np.ndarray, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
        high = self.images.dense(rows, device)
        return pooled(high), high


@pytest.fixture(scope="module")
def jets() -> np.ndarray:
    return toy_jets(60)


@pytest.fixture
def notebook(tmp_path, jets):
    """The notebook's definitions with toy jets in place of its variables."""
    module = load_definitions("task2b_superres_gan")
    module.dataset, module.y = ToyDataset(jets), np.arange(60) % 2
    module.splits = split(module.y, seed=0)
    module.run = SimpleNamespace(directory=tmp_path)
    return module


@pytest.fixture
def small(notebook):
    return replace(notebook.CONFIGS["smoke"], batch_size=8, patches=16)


def cells_of(notebook, rows):
    """Low resolution, jets and cells, true pixels."""
    low, high = notebook.dataset.pair(rows)
    jet, cell = notebook.active_cells(low)
    return low, jet, cell, notebook.to_blocks(high)[jet, cell]


def pattern_weights(notebook, model):
    """Random weights, also where they begin at zero."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def test_contrasts_are_orthonormal_and_blind_to_the_sum(notebook):
    for pattern in range(15):
        matrix, used = notebook.CONTRASTS[pattern], notebook.USED[pattern].bool()
        assert used.sum() == notebook.HITS[pattern].sum() - 1
        gram = matrix @ matrix.T
        torch.testing.assert_close(gram[used][:, used], torch.eye(int(used.sum())))
        torch.testing.assert_close(matrix.sum(1), torch.zeros(3), atol=1e-6, rtol=0)
        assert (matrix[:, notebook.HITS[pattern] == 0] == 0).all()


def test_pixels_and_contrasts_are_inverse(notebook):
    _, _, _, truth = cells_of(notebook, np.arange(20))
    pattern = notebook.pattern_of(truth)
    u = notebook.contrasts_from_pixels(truth, pattern)
    y = (u[..., None] * notebook.CONTRASTS[pattern]).sum(2)
    back = notebook.pixels_from_contrasts(truth.sum(2), notebook.HITS[pattern], y)
    torch.testing.assert_close(back, truth, rtol=1e-4, atol=1e-4)


def test_shares_against_the_formulas(notebook):
    y = torch.tensor([[0.3, -1.0, 2.0, 0.1]]).repeat(1, 3, 1)
    hits = torch.tensor([1.0, 1.0, 0.0, 1.0]).expand(1, 3, 4)
    for energy in (-0.7, 0.0, 3.0):
        x = notebook.pixels_from_contrasts(torch.full((1, 3), energy), hits, y)[0]
        share = np.exp([0.3, -1.0, 0.1]) / np.exp([0.3, -1.0, 0.1]).sum()
        np.testing.assert_allclose(x[0][[0, 1, 3]], energy * share, rtol=1e-5, atol=1e-7)
        # ECAL: s sinh(y + t) with t found by bisection
        low, high = -50.0, 50.0
        for _ in range(200):
            t = (low + high) / 2
            found = sum(0.05 * np.sinh(v + t) for v in (0.3, -1.0, 0.1))
            low, high = (t, high) if found < energy else (low, t)
        expected = [0.05 * np.sinh(v + t) for v in (0.3, -1.0, 0.1)]
        np.testing.assert_allclose(x[1][[0, 1, 3]], expected, rtol=1e-4, atol=1e-5)
        assert x[1, 2] == 0


def test_energy_is_conserved_for_any_input(notebook):
    torch.manual_seed(0)
    model = pattern_weights(notebook, notebook.Generator()).eval()
    scale = torch.tensor([0.01, 1.0, 100.0, 5000.0])[:, None, None, None]
    low = scale * torch.randn(4, 3, 64, 64) * (torch.rand(4, 3, 64, 64) < 0.3)
    low[:, :, -1] = low[:, :, :, -1] = 0  # these cells have no pixels
    with torch.no_grad():
        high = model(low, torch.randn(4, notebook.NOISE, 64, 64))
    assert high.shape == (4, 3, 125, 125)
    torch.testing.assert_close(pooled(high), low, rtol=1e-5, atol=1e-5)


def test_uniform_split_conserves_energy_also_at_the_frame(notebook):
    low, _ = notebook.dataset.pair(np.arange(6))
    torch.testing.assert_close(pooled(notebook.uniform_split(low)), low, rtol=1e-5, atol=1e-6)
    inner = (slice(None), slice(None), slice(3, -3), slice(3, -3))
    made = notebook.uniform_split(low)
    torch.testing.assert_close(made[inner], notebook.nearest(low)[inner])


def test_blocks_and_images_are_inverse(notebook):
    low, high = notebook.dataset.pair(np.arange(5))
    jet, cell = notebook.active_cells(low)
    blocks = notebook.to_blocks(high)[jet, cell]
    assert torch.equal(notebook.to_image(blocks, jet, cell, low), high)
    row, column = 21, 33  # of a cell: pixels (2 row - 1, 2 column - 1) and the next ones
    window = high[:, :, 2 * row - 1 : 2 * row + 1, 2 * column - 1 : 2 * column + 1].flatten(2)
    assert torch.equal(notebook.to_blocks(high)[:, row * 64 + column], window)


def test_neighbours_against_slices(notebook):
    x = torch.randn(2, 3, 64, 64)
    jet, cell = torch.tensor([0, 1, 1]), torch.tensor([0, 5 * 64 + 9, 63 * 64 + 63])
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2))
    found = notebook.neighbours(x, jet, cell, 2)
    for n, (j, c) in enumerate(zip(jet, cell, strict=True)):
        row, column = divmod(int(c), 64)
        expected = padded[j, :, row : row + 5, column : column + 5].flatten(1)
        assert torch.equal(found[n], expected)


def test_drawing_follows_the_probabilities(notebook):
    p = torch.tensor([[0.1, 0.0, 0.6, 0.3]]).repeat(40_000, 1)
    uniform = torch.rand(40_000, generator=torch.Generator().manual_seed(0))
    share = torch.bincount(notebook.draw(p, uniform), minlength=4) / 40_000
    torch.testing.assert_close(share, p[0], atol=0.01, rtol=0)
    assert notebook.draw(p[:2], torch.tensor([0.0, 1.0])).max() <= 3


def test_frame_pixels_are_never_hit(notebook):
    allowed = notebook.ALLOWED.view(64, 64, 15)
    assert allowed[5, 5].all()
    assert allowed[0, 0].sum() == 1  # only the lower right pixel exists
    assert allowed[0, 5].sum() == 3
    assert not allowed[63].any()
    assert not allowed[:, 63].any()


def test_gradients_reach_every_weight(notebook):
    torch.manual_seed(0)
    model = pattern_weights(notebook, notebook.Generator())
    low, jet, cell, truth = cells_of(notebook, np.arange(6))
    noise = torch.randn(6, notebook.NOISE, 64, 64)
    sum(notebook.likelihood_loss(model, low, truth, jet, cell, noise)).backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())
    model.zero_grad()
    pixels, _ = model.sample(low, noise, jet, cell)
    (pixels * torch.randn_like(pixels)).sum().backward()
    # The adversarial term reaches the patterns straight through, and the shares
    for parameter in (model.patterns.weight, model.latent.weight, model.shares[1].weight):
        assert parameter.grad.abs().sum() > 0


def test_likelihood_against_a_loop_over_cells(notebook, monkeypatch):
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)  # no dequantisation noise
    torch.manual_seed(0)
    model = pattern_weights(notebook, notebook.Generator()).eval()
    low, jet, cell, truth = (
        t[:40] if i else t for i, t in enumerate(cells_of(notebook, np.arange(1)))
    )
    with torch.no_grad():
        found = notebook.likelihood_loss(model, low, truth, jet, cell, None)
        h = model.features(low, None, jet, cell)
        pattern = notebook.pattern_of(truth)
        eye = notebook.EYE
        expected = np.zeros(2)
        for n, c in product(range(len(cell)), range(3)):
            p = int(pattern[n, c])
            if p == notebook.NONE:
                continue
            before = [eye[pattern[n : n + 1, k]] for k in range(c)]
            logits = model.pattern_logits(h[n : n + 1], before, cell[n : n + 1])[0]
            expected[0] -= logits.log_softmax(0)[p].item() / len(cell)
            count = int(notebook.HITS[p].sum()) - 1
            if not count:
                continue
            weight, mean, width = model.mixture(h[n : n + 1], eye[pattern[n]].flatten()[None])
            u = notebook.contrasts_from_pixels(truth[n : n + 1], pattern[n : n + 1])[0, c, :count]
            density = 0.0
            for k in range(model.components):
                sigma = (width[0, c, k, :count].exp() ** 2 + 0.01**2).sqrt()
                normal = torch.distributions.Normal(mean[0, c, k, :count], sigma)
                density += weight[0, c, k].exp() * normal.log_prob(u).exp().prod()
            expected[1] -= density.log().item() / len(cell)
    np.testing.assert_allclose([f.item() for f in found], expected, rtol=1e-4)


def test_one_batch_is_learnt_by_heart(notebook):
    before, after = notebook.overfit_one_batch(steps=60)
    assert after < 0.3 * before


def test_relativistic_loss_is_the_formula(notebook):
    a, b = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
    expected = np.mean([np.log1p(np.exp(0.5 - 1.0)), np.log1p(np.exp(3.0 + 2.0))])
    assert notebook.relativistic_loss(a, b).item() == pytest.approx(expected)


def test_discriminator_is_bounded_by_its_spectral_norms(notebook):
    torch.manual_seed(0)
    judge = notebook.Discriminator()
    for _ in range(30):  # power iterations
        judge(torch.randn(4, 3, 36), torch.ones(4, 3, 36), torch.randn(4, notebook.FEATURES))
    for layer in judge.layers:
        if isinstance(layer, torch.nn.Linear):
            assert torch.linalg.matrix_norm(layer.weight, 2).item() == pytest.approx(1, abs=0.05)


def test_patches_are_the_pixels_around_a_cell(notebook):
    _, jet, cell, truth = cells_of(notebook, np.arange(3))
    centres = torch.tensor([5, 40, len(jet) - 3])
    index = notebook.patch_index(jet, cell, 3, centres)
    patches = notebook.gather_patches(truth, index).view(3, 3, 9, 4)
    high = notebook.dataset.pair(np.arange(3))[1]
    planes = notebook.to_blocks(high).view(3, 64, 64, 3, 4)
    for n, centre in enumerate(centres):
        row, column = divmod(int(cell[centre]), 64)
        for k, (a, b) in enumerate(product((-1, 0, 1), repeat=2)):
            expected = planes[jet[centre], row + a, column + b] if 0 <= row + a < 64 else None
            if expected is not None:
                assert torch.equal(patches[n, :, k], expected)


def test_training_lowers_the_loss_with_and_without_a_discriminator(notebook, small):
    for weight in (0.0, 0.1):
        torch.manual_seed(0)
        model = notebook.Generator(width=32)
        rows = notebook.splits.train
        history = notebook.train(f"toy-{weight}", model, rows, small, 0, 3, 3e-3, weight)
        assert len(history) == 3
        loss = history.validation_pattern_nll
        assert loss.iloc[-1] < loss.iloc[0]
        assert np.isfinite(history.to_numpy()).all()
        assert (history.discriminator_loss.iloc[-1] > 0) == (weight > 0)


def test_interrupted_training_continues_bit_for_bit(notebook, small):
    def trained(name):
        torch.manual_seed(0)
        model = notebook.Generator(width=16)
        notebook.train(name, model, notebook.splits.train[:16], small, 0, 2, 3e-3, 0.1)
        return model.state_dict()

    straight = trained("straight")
    resumed = in_two_parts(notebook, lambda: trained("interrupted"), 2)
    assert_same_weights(resumed, straight)


def test_measurements_of_the_truth_are_perfect(notebook):
    rows = np.arange(20)
    high = notebook.dataset.pair(rows)[1]
    found = notebook.measure(lambda low, number: high[10 * number : 10 * number + 10], rows, 10)
    assert (found.track_error == 0).all()
    assert (found.psnr > 100).all()
    np.testing.assert_allclose(found.ssim, 1)
    assert len(found.observables) == 20
    assert found.spectrum.sum() <= (high > 0).sum()


def test_track_error_of_the_uniform_split_is_half_a_diagonal(notebook):
    low, high = notebook.dataset.pair(np.arange(4))
    cells = (low[:, 0] != 0).sum((1, 2))
    error = notebook.track_errors(notebook.uniform_split(low), high) / cells
    torch.testing.assert_close(error, torch.full((4,), 0.5**0.5), rtol=1e-4, atol=0)


def test_psnr_and_ssim_of_a_known_difference(notebook):
    a = np.zeros((1, 3, 20, 20), np.float32)
    b = a.copy()
    b[0, 0, 3, 4] = np.e - 1  # one on the logarithmic scale
    assert notebook.psnr(a, b)[0] == pytest.approx(10 * np.log10(np.log(101) ** 2 * 1200))
    assert notebook.ssim(a, a)[0] == pytest.approx(1)
    assert notebook.ssim(a, b)[0] < 1


def test_two_sample_scores_find_a_shift_and_nothing_in_noise(notebook):
    rng = np.random.default_rng(0)
    jets = np.arange(400)
    a, b = rng.normal(size=(2, 400, 3))
    label, scores, jet = notebook.two_sample_scores(a, b + 2, jets, jets + 400)
    assert notebook.roc_auc(label, scores) > 0.9
    np.testing.assert_array_equal(jet >= 400, label == 1)
    label, scores, _ = notebook.two_sample_scores(a, b, jets, jets + 400)
    assert abs(notebook.roc_auc(label, scores) - 0.5) < 0.12


def test_exported_graph_takes_the_official_layout_and_its_noise(notebook, tmp_path):
    torch.manual_seed(0)
    model = notebook.Generator(width=32).eval()
    batches = []
    for n in (2, 1, 5):
        low = notebook.dataset.pair(np.arange(n))[0]
        batches.append((low, torch.randn(n, notebook.NOISE, 64, 64)))
    path = tmp_path / "graph.onnx"
    export_onnx(model, batches[0], path, ["X_jets_LR", "noise"], ["X_jets"], {"task": "toy"})
    assert check_parity(model, path, batches, tolerance=1e-2) <= 1e-2
    assert (
        check_parity(model, path, [(batches[1][0], torch.zeros(1, notebook.NOISE, 64, 64))]) < 1e-3
    )
