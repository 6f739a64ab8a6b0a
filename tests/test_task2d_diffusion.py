"""The notebook of task 2d: representation, noise, samplers, flow, GAN, VAE, tests of the tests."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

from e2e_utils.fidelity import fpd, kpd
from e2e_utils.notebook import load_definitions
from e2e_utils.onnx_export import check_parity, export_onnx
from e2e_utils.seeds import torch_generator
from e2e_utils.sparse_images import SparseImages
from tests.interrupted_training import assert_same_weights, in_two_parts


def toy_jets(n: int, seed: int = 0) -> np.ndarray:
    """Images (n, 8, 125, 125): energies in five channels, counted hits in three."""
    rng = np.random.default_rng(seed)
    x = np.zeros((n, 8, 125, 125), np.float32)
    for jet in range(n):
        for channel in range(8):
            row, column = np.clip(62 + rng.normal(0, 15, (2, 40)), 0, 124).astype(int)
            value = rng.exponential(1, 40) if channel < 5 else rng.integers(1, 3 + jet % 3, 40)
            if channel >= 5:
                value[0] = 1
            x[jet, channel, row, column] = value
            x[jet, channel] *= 255 / x[jet, channel].max()
    return x


@pytest.fixture(scope="module")
def notebook():
    return load_definitions("task2d_diffusion")


@pytest.fixture
def trained(notebook, tmp_path):
    """The definitions with toy jets in place of the notebook's variables."""
    jets = SparseImages.from_dense(toy_jets(40))
    rows, rng = np.arange(40), np.random.default_rng(0)
    part = notebook.to_towers(jets, rows)
    notebook.codec = notebook.Codec(part, True)
    notebook.towers, notebook.largest = SparseImages.from_dense(part.x), part.largest
    notebook.encoded = SparseImages.from_dense(notebook.codec.encode(part, rng))
    notebook.conditions = torch.from_numpy(notebook.codec.conditions(part, rng))
    notebook.splits = SimpleNamespace(train=rows[:24], validation=rows[24:32], test=rows[32:])
    notebook.run = SimpleNamespace(directory=tmp_path)
    notebook.jets = jets
    return notebook


# Representation -----------------------------------------------------------------------------------


def test_towers_are_sums_of_pixels_and_count_hits(notebook):
    x = toy_jets(5)
    found = notebook.to_towers(SparseImages.from_dense(x), np.arange(5))
    expected = x.reshape(5, 8, 25, 5, 25, 5).sum((3, 5))
    assert found.x == pytest.approx(expected, abs=2e-3)
    largest = [[255 / frame[frame > 0].min() for frame in jet[5:]] for jet in x]
    assert found.largest == pytest.approx(np.array(largest), rel=1e-4)
    assert notebook.multiples(SparseImages.from_dense(x), np.arange(5)) > 0.999


def test_randomised_transform_makes_normal_numbers_of_atoms_and_goes_back(notebook):
    rng = np.random.default_rng(0)
    sample = np.where(rng.random(20_000) < 0.4, 255.0, rng.exponential(20, 20_000))
    quantiles = notebook.Quantiles(sample)
    z = quantiles.forward(sample, rng)
    assert z.mean() == pytest.approx(0, abs=0.03)
    assert z.std() == pytest.approx(1, abs=0.03)
    assert np.mean(z < 1) == pytest.approx(0.8413, abs=0.01)
    back = quantiles.inverse(z)
    assert (back[sample == 255] == 255).mean() > 0.99
    free = sample < 100
    assert back[free] == pytest.approx(sample[free], rel=0.02, abs=0.1)
    assert list(quantiles.atoms()) == [255.0]


def test_a_jet_survives_the_way_there_and_back(trained):
    rows = np.arange(20)
    part = trained.towers_at(rows)
    v = trained.batch_of(rows, torch_generator(0, 0), flip=False).numpy()
    back = trained.codec.decode(v, trained.conditions[rows].numpy())
    occupancy = (back.x > 0).sum((2, 3)), (part.x > trained.THRESHOLD).sum((2, 3))
    assert np.mean(np.abs(occupancy[0] - occupancy[1]) <= 1) > 0.97
    same = np.isclose(back.x, part.x, rtol=0.1, atol=1.0)
    assert same.mean() > 0.98
    assert (back.largest == part.largest).mean() > 0.9


def test_counted_channels_are_whole_multiples_and_sparsity_is_exact(trained):
    condition = torch.randn(6, trained.N_SUMMARY, generator=torch_generator(1, 1)).numpy()
    v = torch.randn(6, 8, 25, 25, generator=torch_generator(2, 2)).numpy()
    made = trained.codec.decode(v, condition)
    numbers = [q.inverse(z) for q, z in zip(trained.codec.summary, condition.T, strict=True)]
    _, count, top, _ = np.split(np.stack(numbers, 1), [8, 16, 24], 1)
    assert (made.x > 0).sum((2, 3)) == pytest.approx(np.rint(count))
    assert made.x[:, :5].max((2, 3)) == pytest.approx(top[:, :5], rel=1e-4)
    hits = made.x[:, 5:] * made.largest[:, :, None, None] / 255
    assert hits == pytest.approx(np.rint(hits), abs=1e-3)
    assert hits.max((2, 3)) == pytest.approx(np.rint(top[:, 5:]), abs=1e-3)


def test_stretched_scores_go_back_and_keep_their_order(notebook):
    z = np.linspace(-4, 4, 801)
    g = notebook.stretched(z)
    assert notebook.unstretched(g) == pytest.approx(z, abs=1e-9)
    assert (np.diff(g) > 0).all()
    assert g[z <= 1] == pytest.approx(z[z <= 1])
    assert g[-1] == pytest.approx(4 + 9 * notebook.STRETCH)


def test_values_are_scaled_to_the_sum_but_fixed_ones_stay(notebook):
    w = np.array([[1.0, 4.0, 2.0, 7.0], [1.0, 4.0, 2.0, 7.0]])
    active = np.array([[True, True, True, False]] * 2)
    fixed = w == 1.0
    made = notebook.rescaled(w, active, fixed, np.array([10.0, 1000.0]))
    assert made[0, :3] == pytest.approx([1, 6, 3])  # 9 / 6 for what is free
    assert made[1, :3] == pytest.approx([1, 40, 20])  # tenfold at most


def test_empty_towers_get_fresh_noise_and_hits_keep_their_value(trained):
    a = trained.batch_of(np.arange(4), torch_generator(0, 0), flip=False)
    b = trained.batch_of(np.arange(4), torch_generator(0, 1), flip=False)
    hit = trained.encoded.dense(np.arange(4)) > 0
    assert torch.equal(a[hit], b[hit])
    assert not torch.equal(a[~hit], b[~hit])
    assert a[~hit].mean().item() == pytest.approx(-1, abs=0.01)
    assert a[~hit].std().item() == pytest.approx(trained.EMPTY_WIDTH, rel=0.02)
    assert a[~hit].max() < 0.5


# Generators ---------------------------------------------------------------------------------------


def test_moments_of_the_noise_schedule(notebook):
    log_sigma = notebook.drawn_sigma(100_000, torch_generator(0, 0)).log()
    assert log_sigma.mean().item() == pytest.approx(notebook.P_MEAN, abs=0.02)
    assert log_sigma.std().item() == pytest.approx(notebook.P_STD, abs=0.02)
    grid = notebook.sigma_grid(18)
    assert len(grid) == 19
    assert grid[0] == pytest.approx(notebook.SIGMA_MAX)
    assert grid[-2:] == pytest.approx([notebook.SIGMA_MIN, 0])
    roots = np.array(grid[:-1]) ** (1 / notebook.RHO)
    assert np.diff(roots) == pytest.approx(np.full(17, roots[1] - roots[0]))


def test_untrained_denoiser_is_the_posterior_mean_of_single_towers(notebook):
    model = notebook.Denoiser().eval()
    with torch.no_grad():
        model.prior.logit.fill_(np.log(0.3 / 0.7))
        model.prior.mean.fill_(1.2)
        model.prior.width.fill_(0.4)
    grid = np.linspace(-5, 5, 20_001)
    density = 0.3 * norm.pdf(grid, 1.2, 0.4) + 0.7 * norm.pdf(grid, -1, notebook.EMPTY_WIDTH)
    for level in (0.05, 0.6, 5.0):
        for x in (-1.3, 0.1, 0.9):
            weight = density * norm.pdf(x, grid, level)
            found = model(
                torch.full((1, 8, 25, 25), x),
                torch.tensor([level]),
                torch.zeros(1, notebook.N_SUMMARY),
            )
            expected = (weight * grid).sum() / weight.sum()
            assert found.detach().numpy() == pytest.approx(expected, abs=2e-4)


def test_statistics_of_single_towers_are_counted_and_mirrored(notebook):
    generator = torch_generator(0, 0)
    chance = torch.linspace(0.1, 0.6, 625).view(25, 25)  # not symmetric
    hit = torch.rand(4000, 8, 25, 25, generator=generator) < chance
    v = 1.1 + 0.2 * torch.randn(hit.shape, generator=generator)
    prior = notebook.TowerPrior()
    prior.count(torch.where(hit, v - notebook.EMPTY, 0))
    expected = (chance + chance.flip(0) + chance.flip(1) + chance.flip(0, 1)) / 4
    assert prior.logit.sigmoid()[2].numpy() == pytest.approx(expected.numpy(), abs=0.02)
    assert prior.mean.numpy() == pytest.approx(1.1, abs=0.03)
    assert prior.width.numpy() == pytest.approx(0.2, abs=0.02)
    mean = prior.mean_of_v(torch.zeros(1, notebook.N_SUMMARY)).detach()
    assert mean[0, 2].numpy() == pytest.approx((-1 + expected * 2.1).numpy(), abs=0.06)


def test_velocity_leads_to_the_denoised_jet(notebook):
    model = notebook.Velocity().eval()
    t, noise = torch.tensor([0.3, 0.8]), torch.randn(2, 8, 25, 25, generator=torch_generator(0, 0))
    v = torch.ones_like(noise)
    x = torch.lerp(noise, v / notebook.SIGMA_DATA, t.view(-1, 1, 1, 1))
    sigma = notebook.SIGMA_DATA * (1 - t) / t
    condition = torch.zeros(2, notebook.N_SUMMARY)
    denoised = model.denoiser(v + sigma.view(-1, 1, 1, 1) * noise, sigma, condition)
    reached = x + (1 - t.view(-1, 1, 1, 1)) * model(x, t, condition)
    assert reached.detach().numpy() * notebook.SIGMA_DATA == pytest.approx(
        denoised.detach().numpy(), abs=1e-4
    )


class PerfectDenoiser(nn.Module):
    """E[v | v + n] of v ~ N(0, 0.7^2)."""

    def forward(self, x, sigma, condition):
        return x * 0.49 / (0.49 + sigma.view(-1, 1, 1, 1) ** 2)


def test_sampler_with_the_perfect_denoiser_gives_the_data_distribution(notebook):
    noise = torch.randn(64, 8, 5, 5, generator=torch_generator(0, 0))
    made = notebook.sample_diffusion(
        PerfectDenoiser(), torch.zeros(64, notebook.N_SUMMARY), noise, 18
    )
    # exact solution: x(0) = x(sigma_max) sd / sqrt(sd^2 + sigma_max^2)
    factor = notebook.SIGMA_MAX * 0.7 / np.hypot(0.7, notebook.SIGMA_MAX)
    assert made.numpy() == pytest.approx((noise * factor).numpy(), rel=0.04, abs=1e-3)
    trail = []
    notebook.sample_diffusion(
        PerfectDenoiser(), torch.zeros(64, notebook.N_SUMMARY), noise, 6, trail
    )
    assert [s for s, _ in trail] == pytest.approx(notebook.sigma_grid(6)[:5])


def test_flow_matching_sampler_follows_straight_lines_in_any_number_of_steps(notebook):
    noise = torch.randn(4, 8, 25, 25, generator=torch_generator(0, 0))
    target = torch.ones_like(noise)

    def velocity(x, t, condition):
        return (target - x) / (1 - t.view(-1, 1, 1, 1))

    for steps in (1, 4):
        made = notebook.sample_flow(velocity, torch.zeros(4, notebook.N_SUMMARY), noise, steps)
        assert made.numpy() == pytest.approx(notebook.SIGMA_DATA, abs=1e-4)


def test_patches_go_back_and_keep_neighbours_together(notebook):
    x = torch.arange(8 * 625.0).view(1, 8, 25, 25)
    patches = notebook.to_patches(x)
    assert patches.shape == (1, 25, 25, 8)
    assert torch.equal(notebook.from_patches(patches), x)
    assert torch.equal(patches[0, 6, :, 0].view(5, 5), x[0, 0, 5:10, 5:10])


def test_flow_is_autoregressive_invertible_and_normalised(notebook):
    torch.manual_seed(0)
    flow = notebook.AutoregressiveFlow(4, 2, 32, 3)
    for parameter in flow.parameters():
        nn.init.normal_(parameter, std=0.3)
    condition, z = torch.randn(5, 2), torch.randn(5, 4)
    x = flow.sample(z, condition)[-1]
    assert flow.to_noise(x, condition)[0].detach().numpy() == pytest.approx(z.numpy(), abs=1e-4)
    jacobian = torch.autograd.functional.jacobian(
        lambda a: flow.to_noise(a, condition[:1])[0], x[:1]
    )
    expected = torch.linalg.slogdet(jacobian.view(4, 4))[1].item()
    assert flow.to_noise(x[:1], condition[:1])[1].item() == pytest.approx(expected, abs=1e-4)
    block = flow.blocks[0]
    shift = torch.autograd.functional.jacobian(lambda a: block(a, condition[:1])[0], x[:1])
    assert torch.equal(torch.triu(shift.view(4, 4)), torch.zeros(4, 4))


def test_a_student_of_one_block_imitates_its_teacher(notebook):
    torch.manual_seed(0)
    teacher, student = (notebook.AutoregressiveFlow(3, 1, 32, 1) for _ in range(2))
    nn.init.normal_(teacher.blocks[0].last.weight, std=0.1)
    z, condition = torch.randn(256, 3), torch.zeros(256, 1)
    pair = torch.stack([z, *teacher.sample(z, condition)], 1)
    optimizer, values = torch.optim.Adam(student.parameters(), 1e-2), []
    for _ in range(100):
        loss = notebook.distillation_loss(student, pair, condition, None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < values[0] / 10


def test_kl_divergence_in_closed_form_and_free_bits(notebook):
    mean, log_variance = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    expected = [0.5, 0.5 * (np.e - 2)]
    assert notebook.kl_divergence(mean, log_variance).numpy() == pytest.approx(
        np.array([expected]), rel=1e-5
    )


def test_minibatch_spread_tells_a_collapsed_batch(notebook):
    torch.manual_seed(0)
    critic = notebook.Pooled(1, minibatch=True)
    x, numbers = torch.randn(6, 8, 25, 25), torch.zeros(6, notebook.N_SUMMARY)
    same = x[:1].expand_as(x)
    alone = critic(same[:1], numbers[:1])
    assert torch.allclose(critic(same, numbers)[0], alone[0], atol=1e-5)
    assert (critic(x, numbers)[0] - critic(same, numbers)[0]).abs() > 1e-5


def test_training_lowers_the_loss_and_resumes(trained):
    rows, held = trained.splits.train, trained.splits.validation
    schedule = trained.Schedule(2, 8, 2e-3)
    torch.manual_seed(0)
    model = trained.Denoiser()
    before = trained.validation_loss("diffusion", model, held)
    history = trained.train("toy", "diffusion", model, schedule, 0, rows, held)
    assert history.validation_loss.iloc[-1] < before
    again = trained.train("toy", "diffusion", trained.Denoiser(), schedule, 0, rows, held)
    assert again.validation_loss.to_list() == history.validation_loss.to_list()
    gan = trained.Adversaries()
    losses = trained.train_gan("toy gan", gan, trained.Schedule(1, 8, 5e-4), 0, rows)
    assert np.isfinite(losses[["critic_loss", "generator_loss"]]).to_numpy().all()


def test_interrupted_training_continues_where_it_stopped(trained):
    rows, held = trained.splits.train, trained.splits.validation
    folder = trained.run.directory

    def denoiser(name: str) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model, schedule = trained.Denoiser(), trained.Schedule(3, 8, 2e-3)
        trained.train(name, "diffusion", model, schedule, 0, rows, held)
        return model.state_dict()

    def adversaries(name: str) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = trained.Adversaries()
        trained.train_gan(name, model, trained.Schedule(3, 8, 5e-4), 0, rows)
        return model.state_dict()

    for number, training in enumerate((denoiser, adversaries)):
        trained.run.directory = folder / str(number)
        straight = training("straight")
        found = in_two_parts(trained, partial(training, "interrupted"), 3)
        assert_same_weights(found, straight)


def test_the_step_of_the_sampler_runs_in_onnx(notebook, tmp_path):
    torch.manual_seed(0)
    step, path = notebook.SamplerStep(notebook.Denoiser()), tmp_path / "step.onnx"

    def example(n):
        return (
            torch.randn(n, 8, 25, 25),
            torch.ones(n),
            torch.ones(n) / 2,
            torch.randn(n, notebook.N_SUMMARY),
        )

    names = ("x", "sigma", "following", "condition")
    export_onnx(step, example(2), path, names, ["v"], {"task": "t"})
    assert check_parity(step, path, [example(n) for n in (1, 3)], 1e-3) < 1e-3


# Tests of the tests -------------------------------------------------------------------------------


def test_observables_of_two_towers_in_closed_form(notebook):
    x = np.zeros((1, 8, 25, 25))
    x[0, 3, 12, 12], x[0, 3, 12, 16] = 3.0, 1.0
    x[0, 4, 12, 12] = 2.0
    row = notebook.observables(x).iloc[0]
    assert row.ecal_sum == pytest.approx(np.log(5))
    assert row.ecal_active == 2
    assert (row.ecal_eta, row.ecal_phi) == pytest.approx((0, 1))
    assert row.ecal_width_phi == pytest.approx(np.sqrt(3))
    assert row.ecal_leading == pytest.approx(0.75)
    assert row.ecal_ptd == pytest.approx(np.sqrt(10) / 4)
    assert (row.ecal_core, row.ecal_ring) == pytest.approx((0.75, 0.25))
    assert row.ecal_hcal == pytest.approx(3 / np.sqrt(10), rel=1e-6)
    assert row.track_ecal == 0


def test_coverage_and_precision_in_closed_form(notebook):
    real = np.arange(20.0)[:, None]
    same = notebook.neighbourhood(real, real + 0.1)
    assert all(same[key].mean() == 1 for key in ("precision", "recall", "coverage"))
    half = notebook.neighbourhood(real, np.concatenate([real[:10], real[:10] + 0.1]))
    assert half["precision"].mean() == 1
    assert half["coverage"].mean() == 0.65  # up to 12: the fifth neighbour is 3 away
    assert half["recall"].mean() < 0.7
    far = notebook.neighbourhood(real, real + 1000)
    assert not any(far[key].any() for key in ("precision", "recall", "density", "coverage"))
    # k real balls hold each generated point on average, so density is about 1
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 400, 3))
    assert notebook.neighbourhood(a, b)["density"].mean() == pytest.approx(1, abs=0.1)


def test_copies_are_found_and_new_jets_are_not(notebook):
    rng = np.random.default_rng(0)
    train, other, new = rng.normal(size=(3, 300, 4))
    assert notebook.nearer_to_training(train, train, other).mean() == 1
    assert notebook.nearer_to_training(new, train, other).mean() == pytest.approx(0.5, abs=0.1)


def test_birthday_support_of_a_finite_set(notebook):
    rng = np.random.default_rng(0)
    support = 200
    x = rng.normal(size=(support, 3))[rng.integers(support, size=1500)]
    rate = notebook.duplicate_rate(x, 1e-6)
    assert rate == pytest.approx(1 / support, rel=0.05)
    size = np.sqrt(notebook.birthday_support(rate))
    draws = rng.integers(support, size=(4000, round(size)))
    duplicates = np.mean([len(np.unique(draw)) < len(draw) for draw in draws])
    assert duplicates == pytest.approx(0.5, abs=0.05)


def test_ks_statistics_are_scipys_also_with_ties(notebook):
    from scipy.stats import ks_2samp

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(60, 3)), rng.normal(0.3, 1, size=(40, 3))
    a[:, 2], b[:, 2] = rng.integers(4, size=60), rng.integers(4, size=40)
    expected = [ks_2samp(a[:, k], b[:, k]).statistic * np.sqrt(24) for k in range(3)]
    assert notebook.ks_statistics(a, b) == pytest.approx(np.array(expected))


def test_worst_direction_keeps_its_false_positive_rate_and_finds_a_correlation(notebook):
    rng = np.random.default_rng(0)
    turn = notebook.directions(4)
    pool = rng.normal(size=(400, 4)) @ turn
    null = notebook.null_distribution(pool, 100, 200)
    p = []
    for _ in range(200):  # new samples of the same distribution
        a, b = rng.normal(size=(2, 100, 4))
        p.append(float(notebook.p_value(notebook.ks_statistics(a @ turn, b @ turn).max(), null)))
    assert np.mean(np.array(p) < 0.05) < 0.10
    assert 0.45 < np.mean(p) < 0.7  # above one half: equal values count against a rejection
    b = rng.normal(size=(100, 4))
    b[:, 1] = b[:, 0]  # every marginal is as before
    found = notebook.ks_statistics(rng.normal(size=(100, 4)) @ turn, b @ turn)
    assert notebook.p_value(found.max(), null) < 0.05
    assert found.argmax() >= 4


def test_real_against_real_is_not_told_apart(notebook):
    rng = np.random.default_rng(0)
    a, b = (SimpleNamespace(features=x) for x in rng.normal(size=(2, 1000, 5)))
    judge = notebook.judge_high(a, b, 0)
    assert len(judge.label) == 400
    from e2e_utils.metrics import roc_auc

    assert roc_auc(judge.label, judge.score) == pytest.approx(0.5, abs=0.08)
    shifted = SimpleNamespace(features=b.features + 1)
    judge = notebook.judge_high(a, shifted, 0)
    assert roc_auc(judge.label, judge.score) > 0.9
    assert notebook.divergence(judge.label, judge.probability) > 0.3
    assert abs(fpd(a.features, b.features)[0]) < 0.1 * fpd(a.features, shifted.features)[0]
    assert abs(kpd(a.features, b.features)[0]) < 0.1 * kpd(a.features, shifted.features)[0]


def test_histogram_distances_in_closed_form(notebook):
    edges = np.array([[0.5]])
    a = notebook.bin_counts(np.array([[0.0], [1.0]]), edges)
    b = notebook.bin_counts(np.array([[1.0], [1.0]]), edges)
    assert a.tolist() == [[1, 1]]
    separation, chi2 = notebook.histogram_distances(a, b)
    # shares 1/2, 1/2 against 0, 1: (1/4 / (1/2) + 1/4 / (3/2)) / 2
    assert separation == pytest.approx(1 / 3)
    assert chi2 == pytest.approx(1 + 1 / 3)


def test_spectrum_of_a_wave_and_overlap_of_equal_channels(notebook):
    x = np.zeros((2, 8, 25, 25), np.float32)
    wave = np.cos(2 * np.pi * 4 * np.arange(25) / 25)
    x[:] = np.expm1(1 + wave)[None, None, None]
    power = notebook.radial_spectrum(SparseImages.from_dense(x))
    assert power.shape == (8, 13)
    assert power[0, 1:].argmax() + 1 == 4
    assert notebook.channel_overlap(SparseImages.from_dense(x)) == pytest.approx(
        np.ones((8, 8)), abs=1e-4
    )


def test_modes_are_counted(notebook):
    rng = np.random.default_rng(0)
    points = notebook.TOY_MODES[rng.integers(10, size=2000)]
    points = points + notebook.TOY_WIDTH * rng.normal(size=(2000, 2))
    assert notebook.modes_found(points) == 10
    assert notebook.modes_found(np.full((100, 2), 50.0)) == 0
    assert notebook.train_toy(True, 0.3, 0, 2).shape == (4000, 2)


def test_tower_library_keeps_sums_and_uses_real_patterns(trained):
    library = trained.TowerLibrary(trained.jets, np.arange(30))
    x = trained.towers.dense(np.arange(30, 33)).numpy()
    fine = library.pixels(x, np.random.default_rng(0))
    assert fine.shape == (3, 8, 125, 125)
    assert fine.reshape(3, 8, 25, 5, 25, 5).sum((3, 5)) == pytest.approx(x, rel=1e-3, abs=1e-3)
    assert ((fine > 0).sum() / (x > 0).sum()) < 25
