"""The notebook of task 2j: closed motions, discovery, cosines, losses, angles, networks, loop."""

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from data.loaders import load_rotated_mnist
from data.loaders.rotations import rotate_steps
from e2e_utils.notebook import load_definitions
from e2e_utils.onnx_export import check_parity, export_onnx
from e2e_utils.splits import split_originals
from tests.interrupted_training import assert_same_weights, in_two_parts

LABEL_FREE = (
    "paper_loss",
    "group_loss",
    "motion_problem",
    "shared_motions",
    "motion_of",
    "moved_pairs",
    "chart_terms",
    "pointwise",
)


@pytest.fixture
def notebook(tmp_path):
    """The notebook's definitions, with a folder for training states."""
    module = load_definitions("task2j_symmetry")
    module.run = SimpleNamespace(directory=tmp_path)
    module.CONFIG, module.latent_dim = module.CONFIGS["smoke"], 6
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


# Closed motions -----------------------------------------------------------------------------------


def spiral(notebook) -> object:
    return notebook.Motion(torch.tensor([0.1, -0.05]), torch.tensor([[0.3, 1.4], [-0.9, -0.1]]))


def test_without_its_trace_a_linear_field_returns_after_two_pi_over_omega(notebook):
    closed = spiral(notebook).closed()
    omega = float(torch.linalg.det(closed.matrix).sqrt())
    assert closed.period == pytest.approx(2 * np.pi / omega, rel=1e-5)
    u = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(closed.after(torch.tensor([1.0]), u)[0], u, rtol=1e-4, atol=1e-4)
    half = closed.after(torch.tensor([0.5]), u)[0]
    centre = -torch.linalg.solve(closed.matrix, closed.shift)
    torch.testing.assert_close(half, 2 * centre - u, rtol=1e-4, atol=1e-4)


def test_period_from_eigenvalues_and_magnification_of_a_spiral(notebook):
    values = torch.linalg.eigvals(spiral(notebook).matrix)
    motion = spiral(notebook)
    assert motion.period == pytest.approx(2 * np.pi / float(values.imag.abs().max()), rel=1e-5)
    growth = float(torch.exp(values.real[0] * motion.period))
    assert motion.magnification == pytest.approx(growth, rel=1e-4)
    u, centre = torch.randn(9, 2), -torch.linalg.solve(motion.matrix, motion.shift)
    moved = motion.after(torch.tensor([1.0]), u)[0]
    torch.testing.assert_close(moved, centre + growth * (u - centre), rtol=1e-3, atol=1e-3)


def test_closed_orbit_is_the_formula(notebook):
    motion = spiral(notebook).closed()
    u, t = torch.randn(9, 2), 0.37
    omega = float(torch.linalg.det(motion.matrix).sqrt())
    centre = -torch.linalg.solve(motion.matrix, motion.shift)
    turn = np.cos(2 * np.pi * t) * torch.eye(2) + np.sin(2 * np.pi * t) * motion.matrix / omega
    expected = centre + (u - centre) @ turn.T
    torch.testing.assert_close(
        motion.after(torch.tensor([t]), u)[0], expected, rtol=1e-3, atol=1e-4
    )


def test_missed_distance_is_zero_for_closed_and_the_growth_for_spirals(notebook):
    notebook.ink = torch.exp(-notebook.plane_positions().square().sum(-1) / 0.2)
    assert notebook.missed_after(spiral(notebook).closed()) < 1e-3
    growing = notebook.Motion(torch.zeros(2), torch.tensor([[0.05, 1.0], [-1.0, 0.05]]))
    assert notebook.missed_after(growing) == pytest.approx(np.exp(0.1 * np.pi) - 1, rel=1e-3)


def test_exact_rotation_as_a_motion_turns_as_the_data_set(notebook):
    ink = torch.exp(-notebook.plane_positions().square().sum(-1) / 0.2)
    for sign in (1, -1):  # a generator has no sign of its own
        motion = notebook.motion_of(sign * 3 * notebook.ROTATION, ink)
        assert motion.period == pytest.approx(2 * np.pi, rel=1e-4)
        np.testing.assert_allclose(motion.coefficients(), notebook.ROTATION, atol=1e-5)
    x = torch.rand(2, 1, 28, 28)
    quarter = motion.grids(torch.tensor([0.25]))
    expected = torch.rot90(x, 1, (2, 3))  # counter-clockwise with the origin at the upper left
    torch.testing.assert_close(notebook.resample(x, quarter), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(quarter, notebook.turned_grid(torch.tensor([np.pi / 2])).float())


# Discovery ----------------------------------------------------------------------------------------


def test_discovery_finds_the_rotation_of_synthetic_pictures(notebook, bar, bar_latents):
    slopes = notebook.logit_slopes(BrightnessOracle(), bar_latents)
    motions = notebook.shared_motions(bar, bar_latents, slopes)
    assert motions.residuals[0] < 0.05
    assert motions.residuals[1] > 3 * motions.residuals[0]
    assert motions.residual(motions.coefficients[:, 0]) == pytest.approx(
        motions.residuals[0], rel=1e-2
    )
    ink = bar.decode(bar_latents).mean((0, 1))
    motion = notebook.motion_of(motions.coefficients[:, 0], ink).closed()
    assert motion.period == pytest.approx(2 * np.pi, rel=0.05)
    notebook.ink = ink
    assert notebook.field_cosine(motions.coefficients[:, 0], notebook.ROTATION) > 0.98
    space = notebook.Space(bar, BrightnessOracle(), bar_latents, bar_latents, 0.0)
    g = notebook.pointwise(space, bar_latents, motion.coefficients())
    truth = torch.stack([-bar_latents[:, 1], bar_latents[:, 0], *torch.zeros(2, 120)], 1)
    found = notebook.cosines(space, bar_latents, g, truth)
    assert found["image"].mean() > 0.98
    assert found["latent"].mean() > 0.98


def test_image_space_cosine_ignores_what_the_decoder_does_not_show(notebook, bar, bar_latents):
    class Padded(nn.Module):
        def decode(self, z: torch.Tensor) -> torch.Tensor:
            return bar.decode(z[:, :4])  # the fifth component changes nothing

    space = notebook.Space(Padded(), None, None, None, 0.0)
    z = torch.cat([bar_latents, torch.zeros(120, 1)], 1)
    tangent = torch.stack([-z[:, 1], z[:, 0], *torch.zeros(3, 120)], 1)
    g = tangent + 5 * torch.eye(5)[4]
    found = notebook.cosines(space, z, g, tangent)
    np.testing.assert_allclose(found["image"], 1, atol=1e-4)
    assert found["latent"].max() < 0.5
    assert notebook.cosines(space, z, tangent, tangent)["latent"].min() > 0.999
    sigma, share = notebook.along_singular(space, z, g, tangent)
    radial_or_last = share[:, -2:].sum(1)  # the length of (cos, sin) does not show either
    assert float(sigma[:, -2:].max()) < 1e-4
    assert float(radial_or_last.min()) > 0.3


def test_oracle_forbids_motions_that_change_its_logits(notebook, bar, bar_latents):
    class AngleOracle(nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return 3 * z[:, :1] / z[:, :2].norm(dim=1, keepdim=True)

    def residual(oracle: nn.Module) -> float:
        slopes = notebook.logit_slopes(oracle, bar_latents)
        return notebook.shared_motions(bar, bar_latents, slopes).residual(notebook.ROTATION)

    assert residual(BrightnessOracle()) < 0.05
    assert residual(AngleOracle()) > 3 * residual(BrightnessOracle())


def test_effects_of_a_shift_and_of_scaling_on_a_smooth_picture(notebook):
    u = notebook.plane_positions()
    x, y = u[..., 0], u[..., 1]
    image = torch.exp(-(x**2 + 2 * y**2) / 0.3)[None]
    changes = notebook.image_changes(image, 1).view(28, 28, 6)  # (1, y, x) along x, then along y
    shift, scaling = 2 * x / 0.3 * image[0], (2 * x**2 + 4 * y**2) / 0.3 * image[0]
    inner = slice(3, -3)
    for found, wanted in ((changes[..., 0], shift), (changes[..., 2] + changes[..., 4], scaling)):
        assert float((found - wanted)[inner, inner].abs().max()) < 0.1 * float(wanted.abs().max())


@pytest.mark.parametrize("name", LABEL_FREE)
def test_unsupervised_functions_take_neither_angles_nor_originals(notebook, name):
    parameters = inspect.signature(getattr(notebook, name)).parameters
    assert not {"angle", "angles", "tangent", "label", "labels", "turn"} & set(parameters)
    names = getattr(notebook, name).__code__.co_names
    assert not {"pixels", "latents", "target", "rotation_tangent", "digits", "splits"} & set(names)


# Controls -----------------------------------------------------------------------------------------


def test_scaled_copies_and_wider_than_tall(notebook):
    x = np.zeros((2, 28, 28), np.uint8)
    x[0, 12:16, 4:24], x[1, 4:24, 12:16] = 200, 200
    x = torch.from_numpy(x)
    assert notebook.wider_than_tall(x).tolist() == [1, 0]
    line = torch.linspace(-1, 1, 28)
    blob = 200 * torch.exp(-(line[:, None] ** 2 + line**2) / (2 * 0.25**2))
    copies = notebook.scaled_copies(blob.to(torch.uint8).expand(2, -1, -1))
    assert copies.shape == (2, 12, 28, 28)
    ink = copies.float().sum((2, 3))
    assert (ink.diff(dim=1) > 0).all()
    assert float(ink[0, -1] / ink[0, 0]) == pytest.approx((1.3 / 0.6) ** 2, rel=0.05)


def test_brackets_of_rotations_are_their_commutators(notebook):
    so3 = torch.zeros(3, 3, 3)
    for a, b, c in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        so3[a, c, b], so3[a, b, c] = 1.0, -1.0  # so(3)
    z = torch.randn(5, 3)
    found = notebook.brackets(lambda x: torch.einsum("aij,bj->bai", so3, x), z)
    for a in range(3):
        for b in range(3):
            # The bracket of linear fields is minus the commutator of their matrices.
            commutator = so3[b] @ so3[a] - so3[a] @ so3[b]
            torch.testing.assert_close(found[:, a, b], z @ commutator.T, rtol=1e-5, atol=1e-5)


def test_paper_loss_vanishes_for_so3_and_its_invariant(notebook):
    so3 = torch.zeros(3, 3, 3)
    for a, b, c in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        so3[a, c, b], so3[a, b, c] = 1.0, -1.0
    size = np.sqrt(1.5)  # E|g|^2 = 2/3 E|z|^2
    generators = notebook.Generators(3, 3)
    generators.layers = nn.Linear(3, 9, bias=False)
    generators.layers.weight.data = size * so3.reshape(9, 3)
    generators.structure.data = -size * so3.transpose(1, 2)  # f_abc = -size x epsilon_abc
    z = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0))

    class Radius(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.square().sum(1, keepdim=True)

    terms = notebook.paper_loss(z, Radius(), 20_000)(generators, torch.Generator().manual_seed(0))
    assert set(terms) == {"invariance", "length", "orthogonality", "closure"}
    assert all(v.item() < 0.02 for v in terms.values()), terms


def test_sliced_wasserstein_of_a_shift_is_the_shift(notebook):
    x = torch.randn(300, 4)
    shift = torch.tensor([1.0, 0, 0, 0])
    found = notebook.sliced_wasserstein(x, x[torch.randperm(300)] + shift, torch.eye(4))
    assert float(found) == pytest.approx(1 / 4, rel=1e-5)  # mean over 4 directions


def test_exponential_flow_is_a_rotation_group_and_its_field_the_derivative(notebook):
    torch.manual_seed(0)
    flow, z = notebook.ExponentialFlow(6), torch.randn(4, 6)
    s, t = torch.full((4,), 0.4), torch.full((4,), 1.3)
    torch.testing.assert_close(
        flow.flow(flow.flow(z, s), t), flow.flow(z, s + t), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(flow.flow(z, s).norm(dim=1), z.norm(dim=1), rtol=1e-4, atol=1e-5)
    g = flow.generator().detach()
    torch.testing.assert_close(g, -g.T)
    assert float(g.square().sum()) == pytest.approx(6, rel=1e-5)
    step = torch.full((4,), 1e-2)
    slope = (flow.flow(z, step) - flow.flow(z, -step)) / 2e-2
    torch.testing.assert_close(slope, flow(z)[:, 0], rtol=1e-2, atol=2e-3)


def test_over_spaces_is_students_interval(notebook):
    values = [0.1, 0.2, 0.3, 0.15, 0.25]
    mean, low, high = notebook.over_spaces(values)
    assert mean == pytest.approx(0.2)
    expected = 2.776 * np.std(values, ddof=1) / np.sqrt(5)  # t of four degrees of freedom
    assert high - mean == pytest.approx(expected, rel=1e-3)
    assert mean - low == pytest.approx(expected, rel=1e-3)


# Angles -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("angle", [-150.0, -30.0, 7.0, 90.0, 171.0])
def test_angle_between_turned_pictures(notebook, bar, bar_latents, angle):
    x = bar.decode(bar_latents[:30])
    grid = notebook.turned_grid(torch.full((1,), np.deg2rad(angle)))
    near = torch.full((30,), angle + 20)
    found = notebook.turn_between(x, notebook.resample(x, grid.float()), near)
    assert float((found - angle).abs().max()) < 3


def test_angles_are_followed_over_a_full_turn(notebook, bar, bar_latents):
    x = bar.decode(bar_latents[:5])
    expected = torch.arange(0, 391, 30.0)
    grids = notebook.turned_grid(expected.deg2rad())
    frames = torch.stack([notebook.resample(x, grid[None]) for grid in grids], 1)
    assert float((notebook.tracked_angles(frames) - expected).abs().max()) < 3


def test_angles_between_those_of_the_data_set(notebook):
    x = np.zeros((1, 28, 28), np.uint8)
    x[0, 12:16, 14:25] = 255  # a bar to the right
    images = notebook.at_24_angles(rotate_steps(x))
    assert images.shape == (1, 24, 28, 28)
    position = np.arange(28) - 13.5
    for number in range(24):
        image = images[0, number].astype(float)
        cx, cy = (image.sum(0) @ position) / image.sum(), -(image.sum(1) @ position) / image.sum()
        angle = np.rad2deg(np.arctan2(cy, cx))
        assert (angle - 15 * number + 180) % 360 - 180 == pytest.approx(0, abs=1.5)


def test_rotation_tangent_is_the_derivative_of_the_encoding(notebook, bar, bar_latents):
    class Moments(nn.Module):
        def encode(self, x: torch.Tensor) -> torch.Tensor:
            u = notebook.plane_positions()
            return torch.einsum("bhw,hwc->bc", x[:, 0], u) / x.sum((1, 2, 3))[:, None]

    x = bar.decode(bar_latents)
    centre = Moments().encode(x)
    expected = torch.stack([centre[:, 1], -centre[:, 0]], 1)  # counter-clockwise, y down
    found = notebook.rotation_tangent(Moments(), x)
    assert float((found - expected).abs().max()) < 0.02


# Networks and losses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build",
    [
        lambda n: (n.StepMap(6), (6,), (6,)),
        lambda n: (n.perceptron(6, 10), (6,), (10,)),
        lambda n: (n.Generators(6, 3), (6,), (3, 6)),
        lambda n: (n.ExponentialFlow(6), (6,), (1, 6)),
        lambda n: (n.Chart(6), (6,), (6,)),
        lambda n: (n.SmallCNN(10, 4), (1, 28, 28), (10,)),
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


def test_chart_generator_is_the_derivative_of_its_flow_and_planes_close(notebook):
    torch.manual_seed(0)
    chart, z = notebook.Chart(5).double(), torch.randn(6, 5).double()
    step = torch.full((6,), 1e-4).double()
    slope = (chart.flow(z, step) - chart.flow(z, -step)) / 2e-4
    torch.testing.assert_close(chart(z), slope, rtol=1e-4, atol=1e-6)
    h = torch.randn(3, 2 * len(notebook.FREQUENCIES) + notebook.INVARIANTS).double()
    full = torch.full((3,), 2 * np.pi).double()
    torch.testing.assert_close(notebook.turn_planes(h, full), h, rtol=1e-5, atol=1e-5)


def test_elbo_terms_are_the_formulas(notebook):
    torch.manual_seed(0)
    model = notebook.VariationalAutoencoder(3)
    x, noise = torch.rand(2, 1, 28, 28), torch.randn(2, 3)
    terms = notebook.elbo_terms(model, x, noise)
    mean, log_variance = model.encoder(x)
    p = model.decode(mean + (log_variance / 2).exp() * noise)
    expected = -(x * p.log() + (1 - x) * (1 - p).log()).sum() / 2
    assert terms["reconstruction"].item() == pytest.approx(float(expected), rel=1e-4)
    q = torch.distributions.Normal(mean, (log_variance / 2).exp())
    prior = torch.distributions.Normal(torch.zeros(2, 3), torch.ones(2, 3))
    expected = torch.distributions.kl_divergence(q, prior).sum(1).mean()
    assert terms["kl"].item() == pytest.approx(float(expected), rel=1e-4)


def test_rollout_loss_is_the_naive_loop(notebook):
    z = torch.randn(7, 12, 3, generator=torch.Generator().manual_seed(0))
    model = notebook.StepMap(3)
    found = notebook.rollout_loss(z, 5)(model, torch.Generator().manual_seed(3))["rollout"]
    generator = torch.Generator().manual_seed(3)
    rows, turns = (notebook.draw(n, 5, generator).tolist() for n in (7, 12))
    total = 0.0
    for row, turn in zip(rows, turns, strict=True):
        state = z[row, turn][None]
        for step in range(1, 13):
            state = model(state)
            total += float((state[0] - z[row, (turn + step) % 12]).square().sum())
    expected = total / (5 * 12) / float(z.var((0, 1)).sum())
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_supervised_maps_learn_a_rotation(notebook):
    t = torch.arange(12) * (np.pi / 6)
    phase = 2 * np.pi * torch.rand(200, 1, generator=torch.Generator().manual_seed(0))
    z = torch.stack([(t + phase).cos(), (t + phase).sin()], -1)
    model = notebook.train_steps("toy", z, notebook.Schedule(300, 64), 0)
    assert float((model(z.flatten(0, 1)) - z.roll(-1, 1).flatten(0, 1)).square().mean()) < 0.01
    path = notebook.rollout(model, z[:, 0])
    assert path.shape == (200, 13, 2)
    assert float((path[:, -1] - path[:, 0]).norm(dim=1).mean()) < 0.3
    affine = notebook.affine_map(z)
    torch.testing.assert_close(affine(z), z.roll(-1, 1), rtol=1e-3, atol=1e-4)


def test_interrupted_training_continues_bit_for_bit(notebook):
    z = torch.randn(100, 12, 3)
    schedule = notebook.Schedule(12, 16, rounds=3)
    straight = notebook.train_steps("straight", z, schedule, 0)
    resumed = in_two_parts(notebook, lambda: notebook.train_steps("interrupted", z, schedule, 0), 3)
    assert_same_weights(resumed.state_dict(), straight.state_dict())


def test_autoencoder_learns_a_few_pictures(notebook, bar, bar_latents):
    x = (bar.decode(bar_latents[:8])[:, 0] * 255).to(torch.uint8)
    _, model = notebook.train_vae("toy", 4, x, x, notebook.Schedule(400, 8, 5e-3), 0)
    images = notebook.as_images(x)
    error = (model.decode(model.encode(images)) - images).square().mean()
    assert error.item() < 0.5 * images.var(0).mean().item()
    z = notebook.encoded(model, x.view(2, 4, 28, 28))
    assert z.shape == (2, 4, 4)
    torch.testing.assert_close(z.flatten(0, 1), model.encode(images), rtol=1e-4, atol=1e-5)


def test_classifier_learns_one_batch_by_heart(notebook):
    x = torch.randint(0, 256, (16, 28, 28), dtype=torch.uint8, generator=torch.manual_seed(0))
    y = torch.arange(16) % 4
    torch.manual_seed(0)
    model = notebook.SmallCNN(4, 8)
    loss = notebook.classifier_loss(x, y, notebook.turned_grid(torch.zeros(1)), 64)
    notebook.train("toy", model, loss, notebook.Schedule(150, 64), 0)
    assert (model(notebook.as_images(x)).argmax(1) == y).float().mean() == 1


def test_orbit_average_is_invariant(notebook, bar, bar_latents):
    torch.manual_seed(0)
    grids = notebook.turned_grid(torch.arange(4) * np.pi / 2).float()
    network = notebook.OrbitAverage(notebook.SmallCNN(2, 4), grids).eval()
    x = 30 * bar.decode(bar_latents[:6])  # makes differences of an untrained network visible
    turned = torch.rot90(x, 1, (2, 3))
    torch.testing.assert_close(network(turned), network(x), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(network.network(turned), network.network(x), atol=1e-3)


def test_exported_graph_takes_raw_grey_levels(notebook, tmp_path):
    torch.manual_seed(0)
    grids = notebook.turned_grid(torch.arange(3) * 2 * np.pi / 3).float()
    graph = notebook.RawInput(notebook.OrbitAverage(notebook.SmallCNN(2, 4), grids)).eval()
    rows = [torch.randint(0, 256, (n, 28, 28)).float() for n in (2, 1, 5)]
    path = tmp_path / "graph.onnx"
    export_onnx(graph, rows[0], path, ["x"], ["probability"], {"task": "toy"})
    assert check_parity(graph, path, rows, tolerance=1e-4) <= 1e-4


def test_no_original_is_in_two_parts():
    digits = load_rotated_mnist(profile="smoke", digits=(1, 2))
    parts = split_originals(digits.label, digits.official_test)
    originals = [set(digits.original[rows]) for rows in parts]
    assert not any(originals[i] & originals[j] for i, j in ((0, 1), (0, 2), (1, 2)))
    assert digits.official_test[parts.test].all()
    assert not digits.official_test[parts.train].any()
