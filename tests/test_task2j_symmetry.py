"""The notebook of task 2j: group algebra, distances, discovery, scores, angles, networks, loop."""

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from e2e_utils.notebook import load_definitions
from e2e_utils.onnx_export import check_parity, export_onnx
from tests.interrupted_training import assert_same_weights, in_two_parts

LABEL_FREE = (
    "plain_loss",
    "group_loss",
    "motion_matrices",
    "shared_motions",
    "plane_flow",
    "moved_pairs",
    "chart_terms",
    "closed_form_generator",
)


@pytest.fixture
def notebook(tmp_path):
    """The notebook's definitions, with a folder for training states."""
    module = load_definitions("task2j_symmetry")
    module.run = SimpleNamespace(directory=tmp_path)
    module.latent_dim = 6
    return module


class Bar(nn.Module):
    """A picture of a soft bar with a knob: latent (cos, sin, length, brightness) -> image."""

    dimension = 4

    def __init__(self, positions: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("positions", positions)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        unit = z[:, :2] / z[:, :2].norm(dim=1, keepdim=True)
        c, s = unit[:, 0, None, None], unit[:, 1, None, None]
        x, y = self.positions[..., 0], self.positions[..., 1]
        along, across = x * c - y * s, x * s + y * c
        length = 0.25 + 0.05 * torch.tanh(z[:, 2, None, None])
        bar = torch.exp(-(along**2) / (2 * length**2) - across**2 / (2 * 0.1**2))
        knob = torch.exp(-((along - 0.5) ** 2 + across**2) / (2 * 0.12**2))
        return ((0.6 + 0.1 * torch.tanh(z[:, 3, None, None])) * (bar + knob).clamp(max=1))[:, None]


@pytest.fixture
def bar(notebook):
    return Bar(notebook.plane_positions())


@pytest.fixture
def bar_latents():
    generator = torch.Generator().manual_seed(0)
    angle = 2 * np.pi * torch.rand(120, generator=generator)
    rest = torch.randn(120, 2, generator=generator)
    return torch.cat([angle.cos()[:, None], angle.sin()[:, None], rest], 1)


class BrightnessOracle(nn.Module):
    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return 2 * z[:, 3:]


def test_planes_are_antisymmetric_and_closed_form_is_their_exponential(notebook):
    frequencies = (1, 3, 0)
    j = notebook.planes(frequencies, 7)
    assert torch.equal(j, -j.T)
    h, t = torch.randn(5, 7), torch.tensor([0.0, 0.3, -1.1, 2.0, 2 * np.pi])
    expected = torch.einsum("bij,bj->bi", torch.linalg.matrix_exp(t[:, None, None] * j), h)
    found = notebook.turn_planes(h, t, frequencies)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[-1], h[-1], rtol=1e-4, atol=1e-5)  # closed after 2 pi


def test_compact_group_is_a_group_and_its_field_the_derivative(notebook):
    torch.manual_seed(0)
    group, z = notebook.CompactGroup(6), torch.randn(4, 6)
    s, t = torch.full((4,), 0.4), torch.full((4,), 1.3)
    twice = group.flow(group.flow(z, s), t)
    torch.testing.assert_close(twice, group.flow(z, s + t), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(group.flow(z, s).norm(dim=1), z.norm(dim=1), rtol=1e-4, atol=1e-5)
    step = torch.full((4,), 1e-2)
    slope = (group.flow(z, step) - group.flow(z, -step)) / 2e-2
    torch.testing.assert_close(slope, group(z)[:, 0], rtol=1e-2, atol=2e-3)


def test_brackets_of_rotations_are_their_commutators(notebook):
    generators = notebook.Generators(3, 3, linear=True)
    so3 = torch.zeros(3, 3, 3)
    for a, b, c in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        so3[a, c, b], so3[a, b, c] = 1.0, -1.0  # so(3)
    generators.layers.weight.data = so3.reshape(9, 3)
    z = torch.randn(5, 3)
    found = notebook.brackets(generators, z)
    for a in range(3):
        for b in range(3):
            # The bracket of linear fields is minus the commutator of their matrices.
            commutator = so3[b] @ so3[a] - so3[a] @ so3[b]
            torch.testing.assert_close(found[:, a, b], z @ commutator.T, rtol=1e-5, atol=1e-5)


def test_plain_loss_vanishes_for_so3_and_its_invariant(notebook):
    generators = notebook.Generators(3, 3, linear=True)
    so3 = torch.zeros(3, 3, 3)
    for a, b, c in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        so3[a, c, b], so3[a, b, c] = 1.0, -1.0
    size = np.sqrt(1.5)  # E|g|^2 = 2/3 E|z|^2
    generators.layers.weight.data = size * so3.reshape(9, 3)
    generators.structure.data = -size * so3.transpose(1, 2)  # f_abc = -size x epsilon_abc
    z = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0))

    class Radius(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.square().sum(1, keepdim=True)

    terms = notebook.plain_loss(z, Radius(), 20_000)(generators, torch.Generator().manual_seed(0))
    assert set(terms) == {"invariance", "length", "orthogonality", "closure"}
    assert all(v.item() < 0.02 for v in terms.values()), terms


def test_sliced_wasserstein_of_a_shift_is_the_shift(notebook):
    x = torch.randn(300, 4)
    shift = torch.tensor([1.0, 0, 0, 0])
    directions = torch.eye(4)
    found = notebook.sliced_wasserstein(x, x[torch.randperm(300)] + shift, directions)
    assert float(found) == pytest.approx(1 / 4, rel=1e-5)  # mean over 4 directions
    wide = notebook.sliced_wasserstein(x[:, :1], 3 * x[:, :1], torch.ones(1, 1))
    assert float(wide) == pytest.approx(4 * float(x[:, 0].square().mean()), rel=1e-4)


@pytest.mark.parametrize("angle", [-150.0, -30.0, 7.0, 90.0, 171.0])
def test_angle_between_turned_pictures(notebook, bar, bar_latents, angle):
    x = bar.decode(bar_latents[:30])
    grid = notebook.turned_grid(torch.full((30,), np.deg2rad(angle)))
    found = notebook.turn_between(x, notebook.resample(x, grid))
    assert float((found - angle).abs().max()) < 3


def test_turned_grid_turns_as_the_data_set(notebook):
    x = torch.rand(2, 1, 28, 28)
    grid = notebook.turned_grid(torch.full((2,), np.pi / 2))
    expected = torch.rot90(x, 1, (2, 3))  # counter-clockwise with the origin at the upper left
    torch.testing.assert_close(notebook.resample(x, grid), expected, rtol=1e-3, atol=1e-3)


def test_angles_are_followed_over_a_full_turn(notebook, bar, bar_latents):
    t = torch.arange(0, 391, 30) * np.pi / 180
    rotation = torch.stack([t.cos(), t.sin()], 1)
    z = bar_latents[:5]
    turned = torch.stack([z[:, :1] * rotation[:, 0] - z[:, 1:2] * rotation[:, 1],
                          z[:, :1] * rotation[:, 1] + z[:, 1:2] * rotation[:, 0]], -1)  # fmt: skip
    path = torch.cat([turned, z[:, None, 2:].expand(-1, len(t), -1)], 2)
    frames = bar.decode(path.flatten(0, 1)).unflatten(0, (5, len(t)))
    expected = torch.arange(0, 391, 30.0)
    assert float((notebook.tracked_angles(frames) - expected).abs().max()) < 3


def test_discovery_finds_the_rotation_of_synthetic_pictures(notebook, bar, bar_latents):
    oracle = BrightnessOracle()
    motions = notebook.shared_motions(bar, oracle, bar_latents)
    assert motions.residuals[0] < 0.05
    assert motions.residuals[1] > 3 * motions.residuals[0]
    ink = bar.decode(bar_latents).mean((0, 1))
    flow = notebook.plane_flow(motions.coefficients[:, 0], motions.degree, ink)
    assert flow.period == pytest.approx(2 * np.pi, rel=0.05)
    g = notebook.closed_form_generator(bar_latents, bar, oracle, flow)
    truth = torch.stack([-bar_latents[:, 1], bar_latents[:, 0], *torch.zeros(2, 120)], 1)
    assert float(notebook.cosines(g, truth).mean()) > 0.98


def test_discovery_depends_on_no_order(notebook, bar, bar_latents):
    oracle, order = BrightnessOracle(), torch.randperm(120)
    a = notebook.shared_motions(bar, oracle, bar_latents)
    b = notebook.shared_motions(bar, oracle, bar_latents[order])
    np.testing.assert_allclose(a.residuals, b.residuals, rtol=1e-2, atol=1e-4)
    first, second = (m.coefficients[:, 0] for m in (a, b))
    cosine = torch.nn.functional.cosine_similarity(first, second, dim=0)
    assert abs(float(cosine)) > 0.999


def test_oracle_forbids_motions_that_change_its_logits(notebook, bar, bar_latents):
    class AngleOracle(nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return 3 * z[:, :1] / z[:, :2].norm(dim=1, keepdim=True)

    names = [(i, j) for i in range(3) for j in range(3 - i)]
    rotation = torch.zeros(2, 6)
    rotation[0, names.index((0, 1))], rotation[1, names.index((1, 0))] = 1.0, -1.0

    def residual(oracle: nn.Module) -> float:
        motions = notebook.shared_motions(bar, oracle, bar_latents, weight=30.0)
        share = torch.linalg.solve(motions.coefficients, rotation.flatten()).square().numpy()
        return float(share @ motions.residuals / share.sum())

    assert residual(BrightnessOracle()) < 0.05
    assert residual(AngleOracle()) > 0.3


@pytest.mark.parametrize("name", LABEL_FREE)
def test_unsupervised_functions_take_neither_angles_nor_originals(notebook, name):
    parameters = inspect.signature(getattr(notebook, name)).parameters
    assert not {"angle", "angles", "tangent", "label", "labels", "turn", "turns"} & set(parameters)
    names = getattr(notebook, name).__code__.co_names
    assert not {"pixels", "latent", "target", "rotation_tangent", "digits", "splits"} & set(names)


def test_rotation_field_of_the_plane_closes_and_expansion_does_not(notebook):
    names = [(i, j) for i in range(3) for j in range(3 - i)]
    rotation, growth = torch.zeros(2, 6), torch.zeros(2, 6)
    rotation[0, names.index((0, 1))], rotation[1, names.index((1, 0))] = 1.7, -1.7
    growth[0, names.index((1, 0))], growth[1, names.index((0, 1))] = 1.0, 1.0
    ink = torch.exp(-notebook.plane_positions().square().sum(-1) / 0.2)
    closed = notebook.plane_flow(rotation.flatten(), 2, ink)
    assert closed.period == pytest.approx(2 * np.pi, rel=0.02)
    assert closed.defect < 1e-3
    assert notebook.plane_flow(growth.flatten(), 2, ink).period == 0.0
    quarter = closed.grids[18]
    x = torch.rand(1, 1, 28, 28)
    moved = notebook.resample(x, quarter[None])
    turned = [torch.rot90(x, k, (2, 3)) for k in (1, 3)]
    assert min(float((moved - y).abs().mean()) for y in turned) < 0.02


def test_cosine_is_one_for_the_truth_and_chance_for_random_generators(notebook):
    torch.manual_seed(0)
    z = torch.randn(2000, 8)
    j = notebook.planes((1, 2, 1, 0), 8)
    tangent = z @ j.T
    assert float(notebook.cosines(-tangent, tangent).mean()) == pytest.approx(1)
    mean, single = notebook.random_cosine(z, tangent)
    assert mean < 0.25
    assert single == pytest.approx(np.sqrt(2 / (np.pi * 8)), rel=0.15)


def test_span_capture(notebook):
    torch.manual_seed(0)
    tangent = torch.randn(3000, 6)
    g = torch.randn(3000, 2, 6)
    assert notebook.span_capture(g, tangent) == pytest.approx(2 / 6, abs=0.02)
    inside = torch.stack([tangent + g[:, 0], g[:, 0]], 1)
    assert notebook.span_capture(inside, tangent) == pytest.approx(1, abs=1e-4)


def test_line_fit_measures_swing_slope_and_straightness(notebook):
    times = notebook.TIMES
    straight = torch.tensor(-2 * np.rad2deg(times), dtype=torch.float32).expand(7, -1)
    swing, slope, fit = notebook.line_fit(straight, times)
    assert swing == pytest.approx(720, rel=1e-4)
    assert slope == pytest.approx(-2, rel=1e-4)
    assert fit == pytest.approx(1, abs=1e-4)
    assert notebook.line_fit(torch.randn(7, len(times)), times)[2] == 0.0


def test_scores_of_the_true_generator_of_synthetic_pictures(notebook, bar, bar_latents):
    matrix = torch.zeros(4, 4)
    matrix[1, 0], matrix[0, 1] = 1.0, -1.0
    model = notebook.LinearGenerator(matrix)
    tangent, oracle = bar_latents @ matrix.T, BrightnessOracle()
    s = notebook.rotation_scores(model, bar_latents, tangent, bar.decode, oracle)
    assert s["cosine"] == pytest.approx(1, abs=1e-5)
    assert s["swing"] == pytest.approx(360, abs=5)
    assert s["angle R2"] > 0.99
    assert abs(s["slope"]) == pytest.approx(1, abs=0.02)
    assert s["argmax kept"] == 1.0
    assert s["logit drift"] < 1e-4
    assert s["closure [deg]"] < 2
    assert s["closure, latent"] < 1e-4


def test_fitted_generator_and_integration_against_the_exponential(notebook):
    torch.manual_seed(0)
    matrix = torch.randn(5, 5) * 0.3
    z = torch.randn(50, 5)
    fitted = notebook.fitted_generator(z, z @ matrix.T)
    torch.testing.assert_close(fitted.matrix, matrix, rtol=1e-3, atol=1e-4)
    times = np.linspace(0, 1, 21)
    exact = notebook.flowed(fitted, z, times)
    torch.testing.assert_close(notebook.integrated(fitted, z, times), exact, rtol=1e-3, atol=1e-4)
    diverging = notebook.LinearGenerator(100 * torch.eye(5))
    assert torch.isfinite(notebook.flowed(diverging, z, times)).all()


@pytest.mark.parametrize(
    "build",
    [
        lambda n: (n.StepMap(6), (6,), (6,)),
        lambda n: (n.Oracle(6, 10), (6,), (10,)),
        lambda n: (n.Generators(6, 3, linear=False), (6,), (3, 6)),
        lambda n: (n.CompactGroup(6), (6,), (1, 6)),
        lambda n: (n.Chart(6), (6,), (1, 6)),
        lambda n: (n.SmallCNN(), (1, 28, 28), ()),
        lambda n: (n.Decoder(6), (6,), (1, 28, 28)),
    ],
)
def test_networks_have_the_right_shape_and_reach_every_weight(notebook, build):
    torch.manual_seed(0)
    model, inputs, outputs = build(notebook)
    x = torch.randn(4, *inputs)
    out = model(x)
    assert out.shape == (4, *outputs)
    loss = out.square().sum()
    if hasattr(model, "flow"):
        loss = loss + model.flow(x, torch.rand(4)).square().sum()
    loss.backward()
    for name, parameter in model.named_parameters():
        if name != "structure":  # of the closure term only
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_elbo_terms_are_the_formulas(notebook):
    torch.manual_seed(0)
    model = notebook.VariationalAutoencoder(3)
    x, noise = torch.rand(2, 1, 28, 28), torch.randn(2, 3)
    reconstruction, kl = notebook.elbo_terms(model, x, noise)
    mean, log_variance = model.encoder(x)
    p = model.decode(mean + (log_variance / 2).exp() * noise)
    expected = -(x * p.log() + (1 - x) * (1 - p).log()).sum() / 2
    assert float(reconstruction) == pytest.approx(float(expected), rel=1e-4)
    q = torch.distributions.Normal(mean, (log_variance / 2).exp())
    prior = torch.distributions.Normal(torch.zeros(2, 3), torch.ones(2, 3))
    expected = torch.distributions.kl_divergence(q, prior).mean(0)
    torch.testing.assert_close(kl, expected, rtol=1e-4, atol=1e-5)


def test_supervised_map_learns_a_rotation_by_rollouts(notebook):
    t = torch.arange(12) * (np.pi / 6)
    phase = 2 * np.pi * torch.rand(200, 1, generator=torch.Generator().manual_seed(0))
    z = torch.stack([(t + phase).cos(), (t + phase).sin()], -1)
    schedule = notebook.Schedule(250, 64, rounds=1)
    _, model = notebook.train_steps("toy", z, schedule)
    a, b = notebook.pairs(z)
    assert notebook.r2(model(a), b) > 0.99
    assert notebook.r2(notebook.affine_map(a, b)(a), b) == pytest.approx(1, abs=1e-4)
    entry = notebook.r2_entry(model, z)
    assert entry["low"] <= entry["value"] <= entry["high"]
    path = notebook.rollout(model, z[:, 0])
    assert path.shape == (200, 13, 2)
    assert float((path[:, -1] - path[:, 0]).norm(dim=1).mean()) < 0.3


def test_interrupted_training_continues_bit_for_bit(notebook):
    z = torch.randn(100, 12, 3)
    schedule = notebook.Schedule(12, 16, rounds=3)
    _, straight = notebook.train_steps("straight", z, schedule)
    _, resumed = in_two_parts(notebook, lambda: notebook.train_steps("interrupted", z, schedule), 3)
    assert_same_weights(resumed.state_dict(), straight.state_dict())


def test_autoencoder_learns_a_few_pictures_by_heart(notebook, bar, bar_latents):
    x = (bar.decode(bar_latents[:8])[:, 0] * 255).to(torch.uint8)
    schedule = notebook.Schedule(400, 8, 5e-3, rounds=1)
    history, weights = notebook.train_vae("toy", 4, x, x, schedule)
    model = notebook.restored(notebook.VariationalAutoencoder(4), weights)
    images = notebook.as_images(x)
    error = (model.decode(model.encode(images)) - images).square().mean()
    assert error.item() < 0.5 * images.var(0).mean().item()
    assert history.validation_mse.iloc[-1] == pytest.approx(float(error), rel=1e-3)


def test_orbit_averages_are_invariant(notebook, bar, bar_latents):
    torch.manual_seed(0)
    network = notebook.OrbitAverage(notebook.SmallCNN(), notebook.known_rotations(4)).eval()
    x = 30 * bar.decode(bar_latents[:6])  # makes differences of an untrained network visible
    turned = torch.rot90(x, 1, (2, 3))
    torch.testing.assert_close(network(turned), network(x), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(network.network(turned), network.network(x), atol=1e-3)
    chart = notebook.Chart(4)
    chart.to_planes, chart.from_planes = nn.Identity(), nn.Identity()
    chart.flow = lambda z, t: notebook.turn_planes(z, t, (1, 0))
    average = notebook.LatentOrbitAverage(notebook.Oracle(4), chart)
    step = torch.full((6,), np.pi / 6)
    z = bar_latents[:6]
    torch.testing.assert_close(average(chart.flow(z, step)), average(z), rtol=1e-4, atol=1e-5)


def test_exported_graphs_take_raw_grey_levels(notebook, tmp_path):
    torch.manual_seed(0)
    network = notebook.OrbitAverage(notebook.SmallCNN(), notebook.known_rotations(3))
    graph = notebook.RawInput(network).eval()
    rows = [torch.randint(0, 256, (n, 28, 28)).float() for n in (2, 1, 5)]
    path = tmp_path / "graph.onnx"
    export_onnx(graph, rows[0], path, ["x"], ["probability"], {"task": "toy"})
    assert check_parity(graph, path, rows, tolerance=1e-4) <= 1e-4
    flow = notebook.Flow(notebook.Chart(5)).eval()
    inputs = [(torch.randn(n, 5), torch.rand(n)) for n in (2, 1, 5)]
    export_onnx(flow, inputs[0], path, ["z", "t"], ["moved"], {"task": "toy"})
    assert check_parity(flow, path, inputs, tolerance=1e-4) <= 1e-4


def test_bootstrap_interval_of_a_mean(notebook):
    values = np.random.default_rng(0).normal(3, 1, 400)
    entry = notebook.bootstrapped(values)
    assert entry["value"] == pytest.approx(values.mean())
    assert entry["high"] - entry["low"] == pytest.approx(2 * 1.96 / 20, rel=0.2)
