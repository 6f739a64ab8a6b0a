"""The notebook of task 2d: representation, noise, sampler, flow, GAN, VAE, tests of the tests."""

from functools import partial
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import norm
from torch import nn

from e2e_utils.metrics import roc_auc
from e2e_utils.notebook import load_definitions
from e2e_utils.onnx_export import check_parity, export_onnx
from e2e_utils.seeds import torch_generator
from e2e_utils.sparse_images import SparseImages
from e2e_utils.splits import split
from task2d_diffusion import codec, figures, judges, planted_defects, toy, two_samples
from task2d_diffusion import samples as jet_samples
from task2d_diffusion.codec import N_SUMMARY, Codec
from task2d_diffusion.copies import CopyTest, memorised
from task2d_diffusion.normal_scores import KNOTS, MOST, Quantiles
from task2d_diffusion.observables import in_words, tower_observables
from task2d_diffusion.pixels import (
    TowerLibrary,
    WholeTowers,
    by_tower,
    counted_in,
    in_images,
    in_towers,
    planted_in,
    shuffled,
)
from task2d_diffusion.towers import (
    DZ,
    Towers,
    impossible_pixels,
    impossible_towers,
    to_towers,
)
from tests.interrupted_training import assert_same_weights, in_two_parts


def toy_jets(n: int, seed: int = 0) -> np.ndarray:
    """Images (n, 8, 125, 125): tracks with dz and d0, ECAL, HCAL towers, counted hits."""
    rng = np.random.default_rng(seed)
    x = np.zeros((n, 8, 125, 125), np.float32)
    for jet in range(n):
        for channel in (0, 3, 4, 5, 6, 7):
            row, column = np.clip(62 + rng.normal(0, 15, (2, 40)), 0, 124).astype(int)
            value = rng.exponential(1, 40) if channel < 5 else rng.integers(1, 3 + jet % 3, 40)
            if channel >= 5:
                value[0] = 1
            x[jet, channel, row, column] = value
        for channel in (1, 2):
            x[jet, channel] = (
                (x[jet, 0] > 0) * (rng.random((125, 125)) < 0.5) * rng.random((125, 125))
            )
        towers = x[jet, 4].reshape(25, 5, 25, 5).sum((1, 3))
        x[jet, 4] = towers.repeat(5, 0).repeat(5, 1)
        x[jet] *= 255 / x[jet].max((1, 2), keepdims=True)
    return x


@pytest.fixture(scope="module")
def notebook():
    return load_definitions("task2d_diffusion")


@pytest.fixture
def trained(notebook, tmp_path):
    """The definitions with toy jets in place of the notebook's variables."""
    jets = SparseImages.from_dense(toy_jets(40))
    rows, rng = np.arange(40), np.random.default_rng(0)
    part = to_towers(jets, rows)
    notebook.codec = Codec(part)
    notebook.encoded = SparseImages.from_dense(notebook.codec.encode(part, rng))
    notebook.conditions = torch.from_numpy(notebook.codec.conditions(part, rng))
    notebook.splits = SimpleNamespace(train=rows[:24], validation=rows[24:32], test=rows[32:])
    notebook.run = SimpleNamespace(directory=tmp_path)
    notebook.counted = notebook.TowerPrior()
    notebook.counted.count(notebook.batch_of(rows[:24]), notebook.codec.tables()["summary"])
    notebook.jets, notebook.part = jets, part
    return notebook


# Towers and the representation --------------------------------------------------------------------


def test_towers_are_sums_of_pixels_and_count_hits() -> None:
    x = toy_jets(5)
    found = to_towers(SparseImages.from_dense(x), np.arange(5))
    assert found.x == pytest.approx(x.reshape(5, 8, 25, 5, 25, 5).sum((3, 5)), abs=2e-3)
    largest = [[255 / frame[frame > 0].min() for frame in jet[5:]] for jet in x]
    assert found.largest == pytest.approx(np.array(largest), rel=1e-4)


def test_parts_of_the_split_are_disjoint() -> None:
    parts = split(1000, 0, (0.76, 0.04, 0.20))
    assert [len(part) for part in parts] == [760, 40, 200]
    assert sorted(np.concatenate(parts)) == list(range(1000))


def test_impossible_jets_are_counted() -> None:
    x = toy_jets(4)
    part = to_towers(SparseImages.from_dense(x), np.arange(4))
    assert not impossible_towers(part).to_numpy().any()
    assert not impossible_pixels(x).to_numpy().any()
    x[0, 1][x[0, 0] == 0] = 1  # dz everywhere but on tracks
    x[1, 4, 0, 0] += 3  # one pixel of an HCAL tower
    x[2, 5] *= 0.5
    x[2, 5][tuple(np.argwhere(x[2, 5])[0])] *= 1.3
    broken = to_towers(SparseImages.from_dense(x), np.arange(4))._replace(largest=part.largest)
    assert impossible_towers(broken).to_numpy().any(1).tolist() == [True, False, True, False]
    assert impossible_pixels(x).to_numpy().any(1).tolist() == [True, True, True, False]


def test_randomised_transform_makes_normal_numbers_of_atoms_and_goes_back() -> None:
    rng = np.random.default_rng(0)
    sample = np.where(rng.random(20_000) < 0.4, 255.0, rng.exponential(20, 20_000))
    quantiles = Quantiles(sample)
    z = quantiles.forward(sample, rng)
    assert z.mean() == pytest.approx(0, abs=0.03)
    assert z.std() == pytest.approx(1, abs=0.03)
    back = quantiles.inverse(z)
    assert (back[sample == 255] == 255).mean() > 0.99
    free = sample < 100
    assert back[free] == pytest.approx(sample[free], rel=0.02, abs=0.1)
    assert list(quantiles.atoms()) == [255.0]
    assert norm.ppf(1 - 0.25 / 512) == pytest.approx(MOST)  # half of the outermost bin
    assert np.abs(quantiles.forward(np.array([-1e9, 1e9]), rng)) == pytest.approx(MOST)


def test_a_jet_survives_the_way_there_and_back(trained) -> None:
    rows = np.arange(20)
    v, _, _, condition = (tensor.numpy() for tensor in trained.batch_of(rows))
    back = trained.codec.decode(v, condition, v)
    x = trained.part.x[:20]
    assert np.mean(np.abs((back.x > 0).sum((2, 3)) - (x > 1e-3).sum((2, 3))) <= 1) > 0.97
    assert np.isclose(back.x, x, rtol=0.1, atol=1.0).mean() > 0.98
    assert (back.largest == trained.part.largest[:20]).mean() > 0.9
    there, again = (jets.reshape(20, 8, -1) for jets in (x, back.x))  # (20, 8, 25, 25)
    first = np.take_along_axis(there, again.argmax(2)[..., None], 2)[..., 0]
    assert (first == there.max(2)).all()  # the highest tower is the same one, or as high


def test_each_channel_has_one_highest_tower(trained) -> None:
    batch = trained.batch_of(np.arange(20))
    there = torch.as_tensor(trained.part.x[:20] > 1e-3).any(3).any(2)
    assert (batch.highest.sum((2, 3)) == there).all()
    assert ((batch.hit == 1) | (batch.highest == 0)).all()
    others = batch.v[(batch.hit == 1) & (batch.highest == 0)]
    assert others.max() < codec.BORDER < batch.v[batch.highest == 1].min()
    assert not codec.is_highest(np.zeros((2, 8, 25, 25)), np.random.default_rng(0)).any()
    drawn = [codec.is_highest(np.ones((1, 1, 1, 2)), np.random.default_rng(k)) for k in range(200)]
    assert np.mean(drawn, 0).ravel() == pytest.approx([0.5, 0.5], abs=0.1)  # ties by lot


def test_whatever_a_network_says_no_impossible_jet_comes_out(trained) -> None:
    condition = torch.randn(6, N_SUMMARY, generator=torch_generator(1, 1)).numpy()
    v, order = torch.randn(2, 6, 8, 25, 25, generator=torch_generator(2, 2)).numpy()
    made = trained.codec.decode(v, condition, order)
    assert not impossible_towers(made).to_numpy().any()
    numbers = [q.inverse(z) for q, z in zip(trained.codec.summary, condition.T, strict=True)]
    count = np.rint(np.stack(numbers, 1)[:, 8:16])
    free = [0, 3, 4, 5, 6, 7]
    assert (made.x > 0).sum((2, 3))[:, free] == pytest.approx(count[:, free])
    assert ((made.x > 0).sum((2, 3)) <= count).all()
    pixels = TowerLibrary(trained.jets, np.arange(30)).pixels(made, np.random.default_rng(0))
    assert pixels.shape == (6, 8, 125, 125)
    found = impossible_pixels(pixels).drop(columns="a broken hit")  # toy jets may lack single hits
    assert not found.to_numpy().any()


def test_nothing_lies_between_an_empty_channel_and_a_pixel_of_255(trained) -> None:
    x = trained.part.x.copy()
    x[::2, 3] = 0  # every other jet has no ECAL
    half = codec.Codec(trained.part._replace(x=x))
    condition = np.tile(np.linspace(-0.3, 0.3, 300, dtype=np.float32)[:, None], (1, N_SUMMARY))
    v = torch.randn(300, 8, 25, 25, generator=torch_generator(2, 2)).numpy()
    highest = half.decode(v, condition, v).x[:, 3].max((1, 2))
    assert (highest == 0).any()
    assert (highest >= 255).any()
    assert ((highest == 0) | (highest > 254.99)).all()


def test_values_are_scaled_to_the_sum_but_fixed_ones_stay() -> None:
    w = np.array([[1.0, 4.0, 2.0, 7.0], [1.0, 4.0, 2.0, 7.0]])
    active = np.array([[True, True, True, False]] * 2)
    made = codec.rescaled(w, active, w == 1.0, np.array([10.0, 1000.0]))
    assert made[0, :3] == pytest.approx([1, 6, 3])  # 9 / 6 for what is free
    assert made[1, :3] == pytest.approx([1, 40, 20])  # tenfold at most


# Diffusion ----------------------------------------------------------------------------------------


def test_levels_are_log_normal_and_the_first_groups_are_clean_at_times(notebook) -> None:
    sigma = notebook.drawn_levels(30_000, "flow", True, torch_generator(0, 0))
    clean = (sigma == 0).float().mean(0)
    assert clean.tolist() == pytest.approx([2 / 3, 1 / 3, 0], abs=0.02)
    assert sigma[:, 2].log().mean().item() == pytest.approx(np.log(0.7), abs=0.03)
    assert sigma[:, 2].log().std().item() == pytest.approx(1, abs=0.03)
    shared = notebook.drawn_levels(100, "edm", False, torch_generator(0, 0))
    assert (shared == shared[:, :1]).all()


def knowing(prior: nn.Module, hits: float) -> nn.Module:
    """The prior of jets that have as many hits in every channel."""
    prior.table.fill_(hits)
    return prior


def mean_of_few(
    x: np.ndarray, chance: np.ndarray, first: np.ndarray, level: float, hits: int
) -> np.ndarray:
    """E[v | x] of a few towers (k,), one of them the highest, if ``hits`` are expected in all."""
    clouds = (-1, codec.OTHER_WIDTH), (1, codec.HIT_WIDTH), (3, codec.OTHER_WIDTH)
    empty, hit, highest = (norm.pdf(x, m, np.hypot(level, w)) for m, w in clouds)
    first = first * highest / ((1 - chance) * empty + chance * hit)
    first = first / first.sum()  # towers are independent otherwise
    odds = chance * hit / ((1 - chance) * empty)

    def missing(shift: float) -> float:
        return ((1 - first) / (1 + np.exp(-shift) / odds)).sum() - (hits - 1)

    r = 1 / (1 + np.exp(-brentq(missing, -20, 20)) / odds)
    m_0, m_1, m_2 = (m + (x - m) * w**2 / (w**2 + level**2) for m, w in clouds)
    return first * m_2 + (1 - first) * (r * m_1 + (1 - r) * m_0)


@pytest.mark.parametrize("level", [0.3, 1.0, 4.0])
def test_an_untrained_denoiser_is_the_posterior_mean_given_the_number_of_hits(
    notebook, level
) -> None:
    model = notebook.Denoiser().eval()
    knowing(model.prior, 3)
    rows, columns = (5, 6, 12, 20), (5, 5, 20, 3)  # towers that can have a hit
    chance, first = np.array([0.3, 0.2, 0.5, 0.4]), np.array([0.4, 0.3, 0.2, 0.1])
    model.prior.logit.fill_(-40)
    model.prior.first.fill_(-40)
    model.prior.logit[:, rows, columns] = torch.tensor(np.log(chance / (1 - chance))).float()
    model.prior.first[:, rows, columns] = torch.tensor(np.log(first)).float()
    x = torch.full((1, 8, 25, 25), -1.0)
    x[:, :, rows, columns] = torch.tensor([1.4, 2.5, 0.2, -0.4])
    expected = mean_of_few(x[0, 0, rows, columns].numpy(), chance, first, level, 3)
    found = model(x, torch.full((1, 3), level), torch.zeros(1, N_SUMMARY))
    assert found[0, 2, rows, columns].detach().numpy() == pytest.approx(expected, abs=2e-3)


def test_chances_add_up_to_the_number_of_hits_and_so_do_their_gradients(notebook) -> None:
    logit = torch.randn(2, 8, 25, 25, generator=torch_generator(0, 0)).double() * 2 - 2
    logit.requires_grad_()
    weight = torch.rand(2, 8, 25, 25, generator=torch_generator(0, 1)).double()
    total = weight.sum((2, 3)) / 5
    chance = notebook.with_sum(logit, weight, total).sigmoid()
    assert (weight * chance).sum((2, 3)).detach().numpy() == pytest.approx(total, rel=1e-4)
    pull = torch.rand(logit.shape, generator=torch_generator(0, 2)).double()
    (chance * pull).sum().backward()
    moved = logit.detach().clone()
    moved[1, 3, 4, 5] += 1e-3
    again = notebook.with_sum(moved, weight, total, 20).sigmoid()
    change = ((again - chance) * pull).sum().item()
    assert change == pytest.approx(1e-3 * logit.grad[1, 3, 4, 5].item(), rel=0.02)


def test_a_generator_knows_the_number_of_hits_that_the_codec_decodes(trained) -> None:
    condition = torch.randn(50, N_SUMMARY, generator=torch_generator(1, 1))
    prior = trained.build("diffusion").prior
    columns = range(N_SUMMARY)[codec.COUNTS]
    expected = [trained.codec.summary[c].inverse(condition[:, c].numpy()) for c in columns]
    assert prior.counts(condition).numpy() == pytest.approx(np.rint(expected).T, abs=1e-6)


def test_the_loss_of_flow_matching_is_the_squared_error_of_the_velocity(notebook) -> None:
    v = torch.randn(8, 8, 25, 25, generator=torch_generator(0, 0))
    s = notebook.of_channels(notebook.drawn_levels(8, "flow", True, torch_generator(0, 1)))
    # at x = (1 - t) noise + t v / 0.7 the velocity of an answer d is (d / 0.7 - x) / (1 - t)
    t = 0.7 / (0.7 + s)
    wrong = ((0.2 - v) / 0.7 / (1 - t)).square()
    expected = torch.where(s > 0, wrong, torch.zeros_like(wrong)).mean().item()
    guess = torch.full_like(v, 0.2)
    found = notebook.squared_error(guess, v, s, "flow").mean().item()
    assert found == pytest.approx(expected, rel=1e-4)
    assert 0.5 * found < notebook.squared_error(guess, v, s, "edm").mean().item() < found


def test_surprise_against_a_naive_loop(notebook) -> None:
    rng = np.random.default_rng(0)
    logit, value, v = torch.tensor(rng.normal(size=(3, 2, 8, 2, 2)))
    first, width = torch.tensor(rng.uniform(0.1, 0.9, (2, 2, 8, 2, 2)))
    hit = torch.tensor(rng.random((2, 8, 2, 2)) < 0.5).double()
    highest = hit * torch.tensor(rng.random((2, 8, 2, 2)) < 0.3)
    level = torch.tensor([0.0, 1.3]).double()[:, None, None, None].expand(-1, 8, 1, 1)
    found = notebook.Posterior(first.log(), logit, value, width, (v, v))
    batch = notebook.Batch(v, hit, highest, torch.zeros(2, N_SUMMARY))
    loss = notebook.surprise(found, batch, level)
    assert not loss[0].any()  # of channels that are clean
    for place in np.ndindex(8, 2, 2):
        k = (1, *place)
        p = 1 / (1 + np.exp(-logit[k].item()))
        expected = -np.log(first[k].item()) if highest[k] else -np.log(p if hit[k] else 1 - p)
        if hit[k] and not highest[k]:
            expected += ((v[k] - value[k]) / width[k]) ** 2 / 2
        assert loss[k].item() == pytest.approx(float(expected))


class PerfectDenoiser(nn.Module):
    """E[v | v + n] of v ~ N(0, 0.7^2)."""

    def forward(
        self, x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor
    ) -> torch.Tensor:
        groups = [1, 1, 1, 0, 0, 2, 2, 2]
        return x * 0.49 / (0.49 + sigma[:, groups, None, None] ** 2)


@pytest.mark.parametrize("lag", [0, 4])
def test_sampler_with_the_perfect_denoiser_gives_the_data_distribution(notebook, lag) -> None:
    noise = torch.randn(64, 8, 5, 5, generator=torch_generator(0, 0))
    condition = torch.zeros(64, N_SUMMARY)
    made = notebook.sample_diffusion(PerfectDenoiser(), condition, noise, lag)
    factor = notebook.SIGMA_MAX * 0.7 / np.hypot(0.7, notebook.SIGMA_MAX)  # the exact solution
    assert made.numpy() == pytest.approx((noise * factor).numpy(), rel=0.05, abs=2e-3)


def test_groups_follow_each_other(notebook) -> None:
    grid = notebook.level_grid()
    assert len(grid) == notebook.STEPS + 2 * notebook.LAG + 1
    assert grid[0].tolist() == pytest.approx([notebook.SIGMA_MAX] * 3)
    assert grid[-1].tolist() == [0, 0, 0]
    assert (grid[:, 0] <= grid[:, 1]).all()
    assert (grid[:, 1] <= grid[:, 2]).all()
    assert (grid.diff(dim=0) <= 1e-6).all()


def test_statistics_of_single_towers_are_counted_and_mirrored(notebook) -> None:
    generator = torch_generator(0, 0)
    chance = torch.linspace(0.1, 0.6, 625).view(25, 25)  # not symmetric
    hit = torch.rand(2000, 8, 25, 25, generator=generator) < chance
    highest = torch.zeros_like(hit)
    highest[:1500, :, 3, 4] = highest[1500:, :, 12, 12] = True  # the middle mirrors itself
    hit |= highest
    v = 1.1 + 0.2 * torch.randn(hit.shape, generator=generator) + 2 * highest
    prior, table = notebook.TowerPrior(), torch.arange(N_SUMMARY)[:, None].expand(-1, KNOTS + 1)
    batch = notebook.Batch(v, hit.float(), highest.float(), torch.zeros(2000, N_SUMMARY))
    prior.count(batch, table.float())
    expected = (chance + chance.flip(0) + chance.flip(1) + chance.flip(0, 1)) / 4
    wrong = (prior.logit.sigmoid()[2] - expected).abs()
    for i, j in ((3, 4), (21, 4), (3, 20), (21, 20)):  # mirrors that rarely were another hit
        wrong[i, j] = 0
    assert wrong.max() < 0.03
    assert prior.mean.numpy() == pytest.approx(1.1, abs=0.04)
    assert prior.width.numpy() == pytest.approx(0.2, abs=0.03)
    first = prior.first.exp()
    assert first[5, 12, 12].item() == pytest.approx(0.25, abs=0.01)
    corners = [first[5, i, j].item() for i, j in ((3, 4), (21, 4), (3, 20), (21, 20))]
    assert corners == pytest.approx([0.75 / 4] * 4, abs=0.01)
    assert first.sum((1, 2)).numpy() == pytest.approx(1, abs=1e-5)
    assert prior.table[:, 0].tolist() == list(range(8, 16))


# Networks, VAE, GAN, flow -------------------------------------------------------------------------


def test_a_block_mixes_rows_columns_and_neighbours_as_a_naive_loop_does(notebook) -> None:
    torch.manual_seed(0)
    block = notebook.Block(16, 4, heads=2)
    nn.init.zeros_(block.film.weight)
    nn.init.zeros_(block.film.bias)
    x, e = torch.randn(1, 25, 25, 16), torch.zeros(1, 4)
    y = block.norm(x)[0]
    mixed = torch.zeros(25, 25, 16)
    for head in range(2):
        part = slice(8 * head, 8 * head + 8)
        for i in range(25):
            mixed[i, :, part] += (block.rows[head, i][:, None, None] * y[:, :, part]).sum(0)
            mixed[:, i, part] += (block.columns[head, i][None, :, None] * y[:, :, part]).sum(1)
    around = nn.functional.pad(y, (0, 0, 2, 2, 2, 2))  # (29, 29, 16): two towers on each side
    mixed = mixed + block.near.bias
    for i, j in np.ndindex(5, 5):
        mixed += around[i : i + 25, j : j + 25] * block.near.weight[:, 0, i, j]
    h = x[0] + mixed
    expected = h + block.down(nn.functional.silu(block.up(block.norm(h))))
    assert block(x, e)[0].detach().numpy() == pytest.approx(expected.detach().numpy(), abs=1e-4)


def test_shapes_gradients_and_one_memorised_batch(trained) -> None:
    torch.manual_seed(0)
    model, batch = trained.build("diffusion"), trained.batch_of(np.arange(4))
    optimizer, values = torch.optim.AdamW(model.parameters(), 5e-3), []
    for _ in range(30):
        loss = trained.denoising_loss(model, batch, torch_generator(0, 0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.7 * values[0]
    assert all(p.grad is not None for p in model.parameters())
    assert trained.Pooled(3)(batch.v, batch.condition).shape == (4, 3)


def test_hurdle_loss_against_a_naive_loop(notebook) -> None:
    rng = np.random.default_rng(0)
    log_odds, mean, log_width, first, v = torch.tensor(rng.normal(size=(5, 2, 8, 2, 2)))
    hit = torch.tensor(rng.random((2, 8, 2, 2)) < 0.5).double()
    hit[:, 0, 0, 0] = 1  # a track
    highest = torch.zeros_like(hit)
    for channel in range(8):
        highest[:, channel, 0, 0] = hit[:, channel, 0, 0]
    total = 0.0
    for place in np.ndindex(2, 8, 2, 2):
        jet, channel, row, column = place
        possible = channel not in (1, 2) or hit[jet, 0, row, column]
        p, w = 1 / (1 + np.exp(-log_odds[place].item())), np.exp(log_width[place].item())
        if highest[place]:
            where = hit[jet, 0] > 0 if channel in (1, 2) else torch.ones(2, 2) > 0
            total -= first[place].item() - torch.logsumexp(first[jet, channel][where], 0).item()
            continue
        if possible:
            total -= np.log(p if hit[place] else 1 - p)
        if hit[place]:
            density = norm.logpdf(v[place].item(), mean[place].item(), w)
            total -= density + np.log(2 * np.pi) / 2
    decoded = notebook.Likelihood(log_odds, mean, log_width, first)
    batch = notebook.Batch(v, hit, highest, torch.zeros(2, N_SUMMARY))
    assert notebook.hurdle_loss(decoded, batch).item() == pytest.approx(total / hit.numel())


def test_the_highest_tower_is_drawn_by_its_chance_where_there_are_hits(notebook) -> None:
    first = torch.log(torch.tensor([0.1, 0.2, 0.3, 0.4])).view(1, 1, 2, 2).repeat(4000, 2, 1, 1)
    first.requires_grad_()
    hits = torch.tensor([[3.0, 0.0]]).repeat(4000, 1)
    drawn = notebook.drawn_highest(first, hits, torch_generator(0, 0))
    assert drawn[:, 0].flatten(1).mean(0).tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.03)
    assert (drawn[:, 0].sum((1, 2)) - 1).abs().max() < 1e-5
    assert not drawn[:, 1].any()
    drawn[:, 0, 0, 0].sum().backward()
    assert first.grad[:, 0, 0, 0].mean() > 0


def test_kl_divergence_in_closed_form(notebook) -> None:
    mean, log_variance = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    expected = np.array([[0.5, 0.5 * (np.e - 2)]])
    assert notebook.kl_divergence(mean, log_variance).numpy() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("hits", [0, 1, 3, 16])
def test_as_many_towers_are_hit_as_stage_one_says_the_highest_among_them(notebook, hits) -> None:
    order = torch.randn(5, 2, 4, 4, generator=torch_generator(0, 0))
    highest = torch.zeros_like(order)
    highest.flatten(2)[torch.arange(5), :, order.flatten(2)[:, 0].argmin(1)] = float(hits > 0)
    number = torch.full((5, 2), float(hits))
    found = notebook.less_cut(order, highest, number)
    active = (found > 0) | (highest > 0.5)
    assert (active.sum((2, 3)) - hits).abs().max() <= (hits == 16)  # one of all cannot be cut off
    first = order.masked_fill(highest > 0.5, -10).flatten(2).argmax(2)
    assert hits < 2 or (found.flatten(2).gather(2, first.unsqueeze(2)) > 0).all()


def test_generators_put_dz_and_d0_on_tracks(notebook) -> None:
    size = notebook.N_CHANNELS, notebook.GRID, notebook.GRID
    order = torch.randn(6, *size, generator=torch_generator(0, 0))
    hits = torch.full((6, size[0]), 20.0)
    order, highest = notebook.settled(order, torch.zeros(6, *size), hits, torch_generator(0, 1))
    active = (order > 0) | (highest > 0.5)
    assert (active.sum((2, 3)) == 20).all()
    assert not (active[:, notebook.DZ : notebook.D0 + 1] & ~active[:, :1]).any()


def test_untrained_generator_draws_as_many_hits_as_it_is_told(notebook) -> None:
    model = notebook.Adversaries()
    knowing(model.prior, 100).logit.fill_(np.log(0.2 / 0.8))
    with torch.no_grad():
        value, order, highest = model.made(torch.zeros(8, N_SUMMARY), torch_generator(0, 0))
        v = model.as_v(value, order, highest, torch_generator(0, 1))
    hit = (order > 0) | (highest > 0.5)
    assert (hit.sum((2, 3)) == 100).all()
    assert (v > 0).float().mean().item() == pytest.approx(100 / 625, abs=0.001)
    assert value.std().item() == pytest.approx(codec.HIT_WIDTH, abs=0.01)
    assert highest.sum((2, 3)).numpy() == pytest.approx(1)
    assert (v[highest > 0.5] > codec.BORDER).all()


def test_each_player_gets_the_gradient_of_its_own_loss(trained) -> None:
    torch.manual_seed(0)
    model, batch = trained.Adversaries(plain=True), trained.batch_of(np.arange(4))
    knowing(model.prior, 100)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    trained.adversarial_loss(model, batch, torch_generator(0, 0)).backward()
    found = [p.grad.clone() for p in model.critic.parameters()]
    generator = torch_generator(0, 0)
    fake = model.as_v(*model.made(batch.condition, generator), generator).detach()
    real, made = (model.critic(v, batch.condition) for v in (batch.v, fake))
    loss = nn.functional.softplus(-real).mean() + nn.functional.softplus(made).mean()
    for grad, expected in zip(
        found, torch.autograd.grad(loss, list(model.critic.parameters())), strict=True
    ):
        assert grad.numpy() == pytest.approx(expected.numpy(), abs=1e-5)
    assert model.network.out.weight.grad.abs().max() > 0


def test_minibatch_spread_tells_a_collapsed_batch(notebook) -> None:
    torch.manual_seed(0)
    critic = notebook.Pooled(1, spread=True)
    x, numbers = torch.randn(6, 8, 25, 25), torch.zeros(6, N_SUMMARY)
    same = x[:1].expand_as(x)
    assert torch.allclose(critic(same, numbers)[0], critic(same[:1], numbers[:1])[0], atol=1e-5)
    assert (critic(x, numbers)[0] - critic(same, numbers)[0]).abs() > 1e-5


def test_flow_is_autoregressive_invertible_and_normalised(notebook) -> None:
    torch.manual_seed(0)
    flow = notebook.AutoregressiveFlow(4, 32, 3)
    for parameter in flow.parameters():
        nn.init.normal_(parameter, std=0.3)
    z = torch.randn(5, 4)
    x = flow.sample(z)
    assert flow.to_noise(x)[0].detach().numpy() == pytest.approx(z.numpy(), abs=1e-4)
    jacobian = torch.autograd.functional.jacobian(lambda a: flow.to_noise(a)[0], x[:1])
    expected = torch.linalg.slogdet(jacobian.view(4, 4))[1].item()
    assert flow.to_noise(x[:1])[1].item() == pytest.approx(expected, abs=1e-4)
    shift = torch.autograd.functional.jacobian(
        lambda a: flow.shift_and_scale(flow.blocks[0], a)[0], x[:1]
    )
    assert torch.equal(torch.triu(shift.view(4, 4)), torch.zeros(4, 4))


@pytest.mark.parametrize("arm", ["diffusion", "vae", "gan", "totals"])
def test_interrupted_training_continues_where_it_stopped(trained, arm, monkeypatch) -> None:
    config = trained.CONFIGS["smoke"]
    monkeypatch.setattr(
        trained, "CONFIG", trained.Config(**{**vars(config), "rounds": 3, "passes": 3, "batch": 4})
    )
    folder = trained.run.directory

    def training(name: str) -> dict[str, np.ndarray]:
        trained.run.directory = folder / name
        return trained.train(trained.Job(arm, 0, 24))[1]

    straight = training("straight")
    assert_same_weights(in_two_parts(trained, partial(training, "interrupted"), 3), straight)


def test_judges_run_in_onnx(trained, tmp_path) -> None:
    torch.manual_seed(0)
    images = trained.jets.dense(np.arange(5))
    for pixels, x in ((True, images), (False, torch.as_tensor(trained.part.x[:5]))):
        path, model = (
            tmp_path / f"{pixels}.onnx",
            nn.Sequential(trained.Judge(pixels), nn.Sigmoid()),
        )
        export_onnx(model, x[:2], path, ["x"], ["probability"], {"task": "t"})
        assert check_parity(model, path, [x, x[:1]], 1e-5) < 1e-5


# Tests of the tests -------------------------------------------------------------------------------


def test_observables_of_two_towers_in_closed_form() -> None:
    x = np.zeros((1, 8, 25, 25))
    x[0, 3, 12, 12], x[0, 3, 12, 16] = 3.0, 1.0
    x[0, 4, 12, 12], x[0, 4, 12, 13] = 2.0, 1.0
    row = tower_observables(x).iloc[0]
    assert row.ecal_sum == pytest.approx(np.log(5))
    assert row.ecal_active == 2
    assert (row.ecal_eta, row.ecal_phi) == pytest.approx((0, 1))
    assert row.ecal_width_phi == pytest.approx(np.sqrt(3))
    assert row.ecal_leading == pytest.approx(0.75)
    assert row.ecal_ptd == pytest.approx(np.sqrt(10) / 4)
    assert (row.ecal_core, row.ecal_ring) == pytest.approx((0.75, 0.25))
    assert (row.ecal_beside, row.hcal_beside) == (0, 1)
    assert row.ecal_hcal_both == 0.5
    assert row.ecal_hcal_cosine == pytest.approx(6 / np.sqrt(50), rel=1e-6)
    assert row.track_ecal_both == 0


def test_planted_defects_do_what_they_say() -> None:
    x = to_towers(SparseImages.from_dense(toy_jets(12)), np.arange(12)).x
    rng = np.random.default_rng(0)
    found = {name: defect(x.copy(), rng, 1.0) for name, defect in planted_defects.DEFECTS.items()}
    largest = np.ones((12, 3), np.float32)
    alone = impossible_towers(Towers(found["dz without a track"], largest))["dz without track"]
    assert alone.all()
    assert (found["swapped pixel layers"][:, 5] == x[:, 6]).all()
    ratio = found["ECAL below the highest, +10 %"][:, 3].sum() / x[:, 3].sum()
    assert 1 < ratio < 1.1
    assert ((found["a missing ECAL tower"][:, 3] > 0).sum() + 12) == (x[:, 3] > 0).sum()
    assert sorted(found["HCAL of another jet"][:, 4].sum((1, 2))) == pytest.approx(
        sorted(x[:, 4].sum((1, 2)))
    )
    for defect in planted_defects.DEFECTS.values():
        assert defect(x.copy(), rng, 0.0) == pytest.approx(x)


def test_precision_and_recall_in_closed_form() -> None:
    real = np.arange(20.0)[:, None]
    same = two_samples.neighbourhood(real, real + 0.1)
    assert all(same[key].mean() == 1 for key in ("precision", "recall"))
    half = two_samples.neighbourhood(real, np.concatenate([real[:10], real[:10] + 0.1]))
    assert half["precision"].mean() == 1
    assert half["recall"].mean() == 0.6  # up to 11: the fifth neighbour of 9.1 is 2.1 away
    far = two_samples.neighbourhood(real, real + 1000)
    assert not any(far[key].any() for key in ("precision", "recall"))
    assert two_samples.nearest_distance(real, real + 0.25) == pytest.approx(0.25)


def test_copies_are_nearer_to_the_jets_they_copy() -> None:
    images, rows = SparseImages.from_dense(toy_jets(90, 5)), np.arange(90)
    nearer = CopyTest(images, rows[:40], rows[40:60])
    new = torch.as_tensor(to_towers(images, rows[60:]).x)
    copied = memorised(images, rows[:30])
    kept = copied.flip(3) > 0
    x = torch.as_tensor(to_towers(images, rows[:30]).x)
    assert torch.equal(copied.flip(3)[kept], x[kept])
    assert kept.sum() / (x > 0).sum() == pytest.approx(0.9, abs=0.02)
    assert np.quantile(nearer(copied), 0.9) < np.quantile(nearer(new), 0.1)


def test_the_generator_nearest_to_nature_has_the_highest_posterior() -> None:
    rng = np.random.default_rng(0)
    made = [rng.normal(shift, 1, (300, 2)) for shift in (0.0, 1.0, 3.0)]
    found = two_samples.log_posteriors(rng.normal(0, 1, (300, 2)), made)
    assert found.shape == (300, 3)
    assert np.exp(found).sum(1) == pytest.approx(1)
    assert found.mean(0).argmax() == 0


def test_ks_statistics_are_scipys_also_with_ties() -> None:
    from scipy.stats import ks_2samp

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(60, 3)), rng.normal(0.3, 1, size=(40, 3))
    a[:, 2], b[:, 2] = rng.integers(4, size=60), rng.integers(4, size=40)
    expected = [ks_2samp(a[:, k], b[:, k]).statistic * np.sqrt(24) for k in range(3)]
    assert two_samples.ks_statistics(a, b) == pytest.approx(np.array(expected))


def test_worst_direction_keeps_its_false_positive_rate_and_finds_a_correlation() -> None:
    rng = np.random.default_rng(0)
    turn = two_samples.directions(4)
    pool = rng.normal(size=(400, 4)) @ turn
    null = two_samples.null_distribution(pool, 100, 100)
    p = []
    for _ in range(100):  # new samples of the same distribution
        a, b = rng.normal(size=(2, 100, 4))
        p.append(
            float(two_samples.p_value(two_samples.ks_statistics(a @ turn, b @ turn).max(), null))
        )
    assert np.mean(np.array(p) < 0.05) < 0.13
    b = rng.normal(size=(100, 4))
    b[:, 1] = b[:, 0]  # every marginal is as before
    found = two_samples.ks_statistics(rng.normal(size=(100, 4)) @ turn, b @ turn)
    assert two_samples.p_value(found.max(), null) < 0.05
    assert found.argmax() >= 4


def test_fewer_events_tell_what_is_further_away(monkeypatch) -> None:
    monkeypatch.setattr(two_samples, "TRIED", (10, 40, 100))
    rng = np.random.default_rng(0)
    worst = two_samples.WorstDirection(rng.normal(size=(200, 3)), 40)
    assert list(worst.nulls) == [10, 40, 100]
    far, near = (rng.normal(shift, 1, (100, 3)) for shift in (3.0, 0.9))
    assert worst.events_needed(far) == 10
    assert 10 < worst.events_needed(near) <= 100
    assert worst.events_needed(rng.normal(size=(30, 3))) == np.inf


def test_separation_and_entry_in_closed_form() -> None:
    a, b = np.array([[0.0], [1.0]]), np.array([[1.0], [1.0]])
    # shares 1/2, 1/2 against 0, 1: (1/4 / (1/2) + 1/4 / (3/2)) / 2
    assert two_samples.separations(a, b, bins=2)[0] == pytest.approx(1 / 3)
    units = two_samples.Standardised(np.array([[0.0, 1.0], [2.0, 1.0]]))
    assert units(np.array([[3.0, 1.0], [99.0, 1.0]])).tolist() == [[2.0], [20.0]]
    entry = two_samples.distance_entry([(2.0, 0.5)])
    assert (entry["value"], entry["low"]) == pytest.approx((2, 2 - 0.98), abs=0.01)


def sample(images: SparseImages, table: pd.DataFrame | None = None) -> jet_samples.Sample:
    found = jet_samples.of_pixels(images)
    return found if table is None else jet_samples.Sample(images, found.largest, table)


def test_trees_find_what_is_there_and_nothing_else() -> None:
    rng, label = np.random.default_rng(0), np.repeat([0, 1], 300)
    images = SparseImages.from_dense(np.zeros((600, 1, 2, 2), np.float32))
    for shift, low, high in ((0.0, 0.4, 0.6), (1.0, 0.7, 1.0)):
        parts = [
            sample(images, pd.DataFrame(rng.normal(size=(600, 3)) + shift * label[:, None]))
            for _ in range(3)
        ]
        score = judges.tree_judge(*(judges.Labelled(part, label) for part in parts[:2]))
        assert low < roc_auc(label, score(parts[2])) < high


def test_a_judge_scores_real_jets_first_and_jets_that_it_has_not_seen(trained) -> None:
    seen = []

    def learn(fit: judges.Labelled, stop: judges.Labelled) -> judges.Score:
        seen.extend([fit.sample.images.dense(), stop.sample.images.dense()])
        return lambda sample: sample.images.dense().sum((1, 2, 3)).numpy()

    real = {
        name: jet_samples.of_images(trained.jets, rows)
        for name, rows in trained.splits.__dict__.items()
    }
    made = jet_samples.of_images(trained.jets, trained.splits.train[:20])
    (scores,) = judges.verdict(learn, made, ("test",), real)
    assert [len(part) for part in seen] == [20, 4]  # half real each
    assert torch.equal(seen[0][:10], real["train"].images.dense(np.arange(10)))
    assert torch.equal(seen[0][10:], made.images.dense(np.arange(10)))
    assert torch.equal(seen[1][2:], made.images.dense(np.arange(10, 12)))
    jets = torch.cat([real["test"].images.dense(), made.images.dense(np.arange(12, 20))])
    assert scores == pytest.approx(jets.sum((1, 2, 3)).numpy())
    y = np.repeat([0, 1], [8, 8])
    comparison = judges.compared(8, {"a": [scores]}, "a")
    assert comparison.interval("a")[0] == roc_auc(y, scores)


def test_a_planted_defect_is_graded_down_to_the_first_that_is_not_found(trained) -> None:
    whole = jet_samples.of_images(trained.jets, np.arange(20))
    real = dict.fromkeys(("train", "validation", "calibration"), whole)

    def shifted(x: np.ndarray, rng: np.random.Generator, grade: float) -> np.ndarray:
        return x * 10 if grade > 0.2 else x

    def learn(fit: judges.Labelled, stop: judges.Labelled) -> judges.Score:
        return lambda sample: sample.images.dense().sum((1, 2, 3)).numpy()

    found = judges.aucs_of_grades(learn, whole, shifted, (1.0, 0.3, 0.1, 0.01), real)
    assert list(found) == [1.0, 0.3, 0.1]
    assert found[1.0][0] == 1
    assert judges.smallest_grade(found) == 0.3
    assert judges.smallest_grade({1.0: (0.5, 0.4, 0.6)}) == np.inf


def test_the_network_judge_finds_dz_without_a_track(notebook) -> None:
    x = to_towers(SparseImages.from_dense(toy_jets(120, 3)), np.arange(120)).x
    x[60:] = planted_defects.DEFECTS["swapped pixel layers"](x[60:], np.random.default_rng(0), 1.0)
    x[60:, 1] = np.roll(x[60:, 1], 3, axis=1)
    part, label = sample(SparseImages.from_dense(x)), np.repeat([0, 1], 60)
    both = 2 * [judges.Labelled(part, label)]
    score = judges.network_judge(partial(notebook.Judge, False), 0, 12, *both)
    assert roc_auc(label, score(part)) > 0.9


def test_samples_keep_their_jets_together() -> None:
    images, rows = SparseImages.from_dense(toy_jets(6)), np.arange(6)
    whole = jet_samples.of_images(images, rows)
    both = jet_samples.joined([whole.rows(slice(2)), whole.rows(np.arange(2, 6))])
    assert len(both) == 6
    assert torch.equal(both.images.dense(), whole.images.dense())
    pd.testing.assert_frame_equal(both.table, whole.table)
    assert both.largest == pytest.approx(to_towers(images, rows).largest)
    assert not whole.impossible().to_numpy().any()


def test_defects_planted_in_pixels(trained) -> None:
    images = trained.jets.subset(np.arange(8))
    before = images.dense()
    for name, counted in (("swapped pixel layers", None), ("dz without a track", DZ)):
        found = planted_in(images, planted_defects.DEFECTS[name], 0, 1.0).dense()
        changed = (found != before).flatten(1).any(1)
        assert changed.all()
        if counted is None:
            assert torch.equal(found[:, 5:7], before[:, 5:7].flip(1))
        else:
            assert impossible_pixels(found.numpy())["dz or d0 without track"].all()
            sums = [x[:, counted].sum((1, 2)) for x in (found, before)]
            torch.testing.assert_close(*sums)
        few = planted_in(images, planted_defects.DEFECTS[name], 0, 0.4).dense()
        assert 0 < (few != before).flatten(1).any(1).sum() < 8


def test_permuted_pixels_keep_the_towers(trained) -> None:
    images = trained.jets.subset(np.arange(6))
    found = shuffled(images, 0)
    assert to_towers(found, np.arange(6)).x == pytest.approx(
        to_towers(images, np.arange(6)).x, abs=0.01
    )
    assert not torch.equal(found.dense(), images.dense())
    some = (shuffled(images, 0, 0.5).dense() != images.dense()).flatten(1).any(1)
    assert 0 < some.sum() < 6
    x = images.dense().numpy()
    assert (in_images(in_towers(x)) == x).all()
    assert in_towers(x).sum(4) == pytest.approx(to_towers(images, np.arange(6)).x, abs=0.01)


def test_all_channels_of_a_tower_take_their_pixels_from_one_real_tower(trained) -> None:
    library = WholeTowers(trained.jets, np.arange(30))
    whole = jet_samples.of_images(trained.jets, np.arange(20, 40))  # ten are not in the library
    found = library.rendered(whole, 0).dense().numpy()
    impossible = impossible_pixels(found).drop(columns="a broken hit")  # as above
    assert not impossible.to_numpy().any()
    real, made = (by_tower(x) > 0 for x in (trained.jets.dense(np.arange(30)).numpy(), found))
    channels = {tuple(tower.any(1)) for tower in real}
    patterns = {tower.tobytes() for tower in real}
    known = [tower for tower in made if tuple(tower.any(1)) in channels]
    assert all(tower.tobytes() in patterns for tower in known)
    assert len(known) > 0.9 * len(made)
    sums = to_towers(SparseImages.from_dense(found), np.arange(20)).x
    expected = whole.images.dense().numpy()
    assert ((sums > 0) == (expected > 0)).all()
    assert np.abs(sums - expected).sum() < 0.2 * expected.sum()


def test_pairs_are_counted_that_touch_across_the_borders_of_towers(trained) -> None:
    x = trained.jets.dense(np.arange(4)).numpy()
    broken, pairs = counted_in(trained.jets.subset(np.arange(4)))
    assert not broken.any()
    on, expected = np.delete(x, 4, 1) > 0, np.zeros(4)
    for jet, channel, i, j in np.argwhere(on):
        below, beside = i % 5 == 4 and i < 124, j % 5 == 4 and j < 124
        expected[jet] += below and on[jet, channel, i + 1, j]
        expected[jet] += beside and on[jet, channel, i, j + 1]
    assert pairs.tolist() == expected.tolist()
    assert expected.any()


def test_modes_are_counted() -> None:
    rng = np.random.default_rng(0)
    points = toy.MODES[rng.integers(10, size=2000)]
    points = points + toy.WIDTH * rng.normal(size=(2000, 2))
    assert toy.modes_found(points) == 10
    assert toy.modes_found(np.full((100, 2), 50.0)) == 0
    assert toy.share_at_modes(points) == pytest.approx(1 - np.exp(-4.5), abs=0.01)
    assert toy.share_at_modes(points + 0.5) == 0


@pytest.mark.parametrize("cured", [False, True])
def test_training_on_the_toy_is_looked_at_while_it_changes(notebook, cured) -> None:
    looks = notebook.train_toy(cured, 0, 40, looks=4)
    assert [x.shape for x in looks] == 4 * [(4000, 2)]
    assert all(np.isfinite(x).all() for x in looks)
    assert not np.allclose(looks[0], looks[-1])
    assert len(notebook.train_toy(cured, 0, 2)) == 2  # no more looks than steps


def test_observables_are_named_for_people() -> None:
    names = ["track", "dz", "d0", "ECAL", "HCAL", "BPIX1", "BPIX2", "BPIX3"]
    assert in_words("bpix2_bpix3_cosine", names) == "overlap of patterns (cosine)\nBPIX2 and BPIX3"
    assert in_words("hcal_width_eta", names) == "width in eta\nHCAL"
    assert in_words("mass_proxy", names) == "mass proxy\n"


def test_results_of_trainings_are_listed() -> None:
    assert two_samples.each([0.0871, 32, 100.2]) == "0.0871, 32, 100"


def test_figures_have_an_axis_per_jet_and_per_observable() -> None:
    images = SparseImages.from_dense(toy_jets(2))
    fig = figures.jet_figure({"a": images, "b": images}, "abcdefgh")
    assert [axis.get_title() for axis in fig.axes] == ["a", "b", "", ""]
    table = jet_samples.of_images(images, np.arange(2)).table
    fig = figures.observables_figure(table, {"b": table}, {"mass_proxy": "t"}, "abcdefgh")
    assert fig.axes[0].get_title() == "t"
    assert fig.axes[0].get_xlabel() == "mass proxy\n"
    plt.close("all")
