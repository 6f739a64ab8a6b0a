"""The notebook of task 2e: moments, scaling, weights, losses, symmetries, densities, export."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import norm
from scipy.stats import t as student

from e2e_utils.notebook import load_definitions
from e2e_utils.onnx_export import check_parity, export_onnx
from e2e_utils.sparse_images import SparseImages
from e2e_utils.splits import split
from tests.interrupted_training import assert_same_weights, in_two_parts


def toy_images(n: int, seed: int = 0, size: int = 125) -> torch.Tensor:
    """Images (n, 4, 125, 125) with a few dozen pixels each; dz and d0 only where tracks are."""
    rng = np.random.default_rng(seed)
    x = np.zeros((n, 4, size, size), np.float32)
    for event in range(n):
        place = rng.integers(20, size - 20, (2, 40))
        x[event, 0, place[0, :15], place[1, :15]] = rng.exponential(10, 15)
        x[event, 1, place[0, :15], place[1, :15]] = rng.normal(0, 2, 15)
        x[event, 2, place[0, :15], place[1, :15]] = rng.normal(0, 0.5, 15)
        x[event, 3, place[0], place[1]] = rng.exponential(5, 40)
    return torch.from_numpy(x)


@pytest.fixture
def notebook(tmp_path):
    """The notebook's definitions with toy jets in place of its variables."""
    module = load_definitions("task2e_mass_regression")
    rng = np.random.default_rng(1)
    x, m = toy_images(120), rng.uniform(85, 500, 120)
    x[:, [0, 3]] *= torch.from_numpy(m / 300).float().view(-1, 1, 1, 1)  # something to learn
    module.dataset = SimpleNamespace(
        images=SparseImages.from_dense(x.numpy()), m=m, ieta=rng.integers(12, 44, 120)
    )
    module.images, module.mass = module.dataset.images, m
    module.eta = (module.dataset.ieta + 0.5 - module.ETA_MIDDLE) * module.TOWER
    module.splits = split(np.digitize(m, [300]))
    module.run = SimpleNamespace(directory=tmp_path)
    return module


def test_moments_are_those_of_massless_particles(notebook):
    w = toy_images(3)[:, 3].double()
    names = notebook.MOMENTS
    found = notebook.image_moments(w).numpy()
    for image, values in zip(w.numpy(), found, strict=True):
        rows, columns = np.nonzero(image)
        pt = image[rows, columns]
        eta, phi = ((place - 62) * np.pi / 180 for place in (rows, columns))
        p = [pt * np.cosh(eta), pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)]
        energy, *momentum = (component.sum() for component in p)
        mass = np.sqrt(energy**2 - np.square(momentum).sum())
        expected = {"sum": np.log(pt.sum()), "mass": np.log(mass), "pixels": np.log1p(len(pt)),
                    "hardest": pt.max() / pt.sum()}  # fmt: skip
        spread = [np.average((a - np.average(a, weights=pt)) ** 2, weights=pt) for a in (eta, phi)]
        expected["width"] = np.log(np.sqrt(sum(spread)))
        for name, value in expected.items():
            assert values[names.index(name)] == pytest.approx(value, rel=1e-5), name


def test_mass_of_two_pixels_in_single_precision(notebook):
    w = torch.zeros(1, 125, 125)
    w[0, 40, 62], w[0, 80, 70] = 300.0, 200.0
    d_eta, d_phi = 40 * np.pi / 180, 8 * np.pi / 180
    expected = np.sqrt(2 * 300 * 200 * (np.cosh(d_eta) - np.cos(d_phi)))
    found = notebook.image_moments(w)[0, notebook.MOMENTS.index("mass")].exp()
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_empty_and_absurd_images_stay_finite(notebook):
    x = torch.zeros(2, 4, 125, 125)
    x[1, 0, 3, 3], x[1, 1, 3, 3], x[1, 2, 3, 3], x[1, 3, 5, 5] = 74054, -4174, 1234, -3
    scaled = notebook.robust(x)
    assert scaled[1, 0].max() == notebook.LARGEST
    assert (scaled[1, 1:] == 0).all()  # impact parameters unknown, negative energy cut
    assert torch.isfinite(notebook.jet_moments(scaled)).all()
    assert torch.isfinite(notebook.MassNetwork().eval()(x)).all()
    inside = torch.zeros(1, 4, 125, 125)
    inside[0, :, 3, 3] = torch.tensor([5.0, -19.0, 9.0, 7.0])
    torch.testing.assert_close(notebook.robust(inside), inside)


def test_weights_make_the_spectrum_flat_or_falling(notebook):
    rng = np.random.default_rng(0)
    m = rng.triangular(85, 120, 500, 50_000)
    edges = np.linspace(85, 500, 11)
    for prior in (np.inf, 120.0):
        weight = notebook.mass_weights(m, prior)
        assert weight.mean() == pytest.approx(1)
        counts = np.histogram(m, edges, weights=weight)[0]
        expected = np.ones(10)
        if np.isfinite(prior):
            expected = np.exp(-edges[:-1] / prior) - np.exp(-edges[1:] / prior)
        np.testing.assert_allclose(counts / counts.sum(), expected / expected.sum(), rtol=0.03)


def test_target_and_mass_are_inverse(notebook):
    m = torch.tensor([85.0, 173.0, 500.0])
    for kind in ("log", "linear"):
        back = notebook.to_mass(notebook.to_target(m, kind).numpy(), kind)
        np.testing.assert_allclose(back, m.numpy(), rtol=1e-5)


@pytest.mark.parametrize(("loss", "density"), [("normal", norm), ("student", student(4))])
def test_loss_is_a_likelihood_without_its_constant(notebook, loss, density):
    generator = torch.Generator().manual_seed(0)
    output, target = torch.randn(50, 2, generator=generator), torch.randn(50, generator=generator)
    weight = torch.rand(50, generator=generator)
    found = notebook.regression_loss(output, target, weight, loss)
    expected = 0.0
    for (location, log_width), t, w in zip(output.tolist(), target, weight, strict=True):
        pull = (float(t) - location) / np.exp(log_width)
        expected -= float(w) * (density.logpdf(pull) - density.logpdf(0) - log_width)
    assert float(found) == pytest.approx(expected / float(weight.sum()), rel=1e-5)
    absolute = notebook.regression_loss(output, target, weight, "absolute")
    naive = sum(
        float(w) * abs(float(t) - a)
        for (a, _), t, w in zip(output.tolist(), target, weight, strict=True)
    )
    assert float(absolute) == pytest.approx(naive / float(weight.sum()), rel=1e-5)


def test_mirrors_change_the_sign_of_one_impact_parameter(notebook):
    x = toy_images(2)
    for axis, odd in ((2, 1), (3, 2)):
        mirrored = notebook.mirror(x, axis)
        for channel in range(4):
            sign = -1 if channel == odd else 1
            torch.testing.assert_close(mirrored[:, channel], sign * x[:, channel].flip(axis - 1))
        torch.testing.assert_close(notebook.mirror(mirrored, axis), x)
        found, expected = (notebook.jet_moments(notebook.robust(v)) for v in (mirrored, x))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mirrors", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("arm", ["all channels", "ECAL only"])
def test_views_of_hits_are_those_of_complete_images(notebook, mirrors, arm):
    """So that what was trained on hits is what the exported graph computes from images."""
    torch.manual_seed(0)
    model, rows = notebook.build_model(arm).eval(), np.array([5, 3, 100])
    torch.nn.init.normal_(model.head[-1].weight)
    x = notebook.images.dense(rows)
    x[0, :, 1, 2] = torch.tensor([1e5, -50, 12, 4000])  # outliers
    x[1, 0] = 0  # no tracks
    images = SparseImages.from_dense(x.numpy())
    for axis, wanted in zip((2, 3), mirrors, strict=True):
        x = notebook.mirror(x, axis) if wanted else x
    views = notebook.views_of_hits(images, np.arange(3), model.channels, mirrors)
    assert views.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(views, notebook.to_views(notebook.robust(x) * model.visible))
    moments = notebook.moments_of(images, np.arange(3), model.visible)  # no mirror changes them
    with torch.no_grad():
        found = model(views, None, torch.from_numpy(moments))
        torch.testing.assert_close(found, model(x), rtol=1e-3, atol=1e-3)


def test_flip_average_is_invariant(notebook):
    torch.manual_seed(0)
    network = notebook.MassNetwork()
    torch.nn.init.normal_(network.head[-1].weight)
    model, x = notebook.FlipAverage(network).eval(), toy_images(3)
    with torch.no_grad():
        reference = model(x)
        assert (network(x) - network(notebook.mirror(x, 2))).abs().max() > 1e-4
        for axis in (2, 3):
            torch.testing.assert_close(
                model(notebook.mirror(x, axis)), reference, rtol=1e-4, atol=1e-4
            )


@pytest.mark.parametrize(
    "arm",
    [
        "all channels",
        "ECAL only",
        "tracks only",
        "images only",
        "moments only",
        "all channels and eta",
    ],
)
def test_networks_have_the_right_shape_and_reach_their_weights(notebook, arm):
    torch.manual_seed(0)
    model = notebook.build_model(arm)
    torch.nn.init.normal_(model.head[-1].weight)
    for block in model.stages:
        torch.nn.init.ones_(block.convolutions[-1].weight)
    output = model(toy_images(8), torch.linspace(-1, 1, 8))
    assert output.shape == (8, 2)
    output.square().sum().backward()
    for name, parameter in model.named_parameters():
        used = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        of_images = name.startswith(("stem", "norm", "position", "stages"))
        of_moments = name.startswith("moment_norm")
        unused = (arm == "moments only" and of_images) or (arm == "images only" and of_moments)
        assert used != unused, name


def test_hidden_channels_do_not_matter(notebook):
    model, x = notebook.build_model("ECAL only").eval(), toy_images(2)
    torch.nn.init.normal_(model.head[-1].weight)
    other = x.clone()
    other[:, :3] = 7.0
    torch.testing.assert_close(model(x), model(other))
    other[:, 3] = 0.0
    assert (model(x) - model(other)).abs().max() > 1e-4


def test_one_batch_is_learned_by_heart(notebook):
    torch.manual_seed(0)
    assert notebook.overfit_one_batch(notebook.build_model("all channels"), steps=60) < 30


def test_interrupted_training_continues_exactly(notebook):
    config = replace(notebook.CONFIGS["smoke"], epochs=3, batch_size=16)
    rows, check = notebook.splits.train[:48], notebook.splits.validation

    def trained(name: str) -> dict[str, torch.Tensor]:
        torch.manual_seed(3)
        model = notebook.build_model("all channels")
        notebook.train(name, model, notebook.dataset, rows, check, config, 0)
        return model.state_dict()

    straight = trained("straight")
    assert_same_weights(in_two_parts(notebook, lambda: trained("interrupted"), 3), straight)


def test_width_factor_gives_the_wanted_coverage(notebook):
    rng = np.random.default_rng(0)
    location, log_width = rng.normal(0, 1, 20_000), rng.normal(-1, 0.3, 20_000)
    target = location + 1.7 * np.exp(log_width) * rng.normal(size=20_000)
    m = notebook.to_mass(target, "log")
    factor = notebook.width_factor(np.stack([location, log_width], 1), m)
    assert factor == pytest.approx(1.7, rel=0.02)


def test_density_recovers_a_known_gaussian_whatever_the_spectrum(notebook):
    rng = np.random.default_rng(0)
    estimates = []
    for spectrum in (rng.uniform(85, 500, 4000), 85 + 415 * rng.beta(1, 3, 4000)):
        z = np.log(spectrum)
        f = np.stack([2 * z + 0.2 * rng.normal(size=4000), 0.5 * rng.normal(size=4000) - z], 1)
        density = notebook.fit_density(f.astype(np.float32), spectrum, 600)
        check = np.array([[2 * np.log(m), -np.log(m)] for m in (150.0, 250.0, 350.0)])
        log_density = notebook.likelihood(density, check.astype(np.float32))
        estimate, low, high = notebook.maximum_likelihood(log_density)
        estimates.append(estimate)
        np.testing.assert_allclose(estimate, [150, 250, 350], rtol=0.04)
        # ln m from two measurements of widths 0.1 and 0.5: together 0.098
        np.testing.assert_allclose((high - low) / 2 / estimate, 0.098, rtol=0.25)
    np.testing.assert_allclose(*estimates, rtol=0.05)


def test_numerical_inversion_makes_the_median_response_one(notebook):
    rng = np.random.default_rng(0)
    m = rng.uniform(85, 500, 8000)
    estimate = 120 + 0.6 * m + 3e-4 * (m - 300) ** 2 + rng.standard_t(4, len(m)) * 5
    corrected = notebook.inversion(estimate[:4000], m[:4000])(estimate[4000:])
    for low, high in ((100, 150), (200, 300), (400, 450)):
        inside = (m[4000:] > low) & (m[4000:] < high)
        assert np.median(corrected[inside] / m[4000:][inside]) == pytest.approx(1, abs=0.02)
        assert abs(np.median(estimate[4000:][inside] / m[4000:][inside]) - 1) > 0.02


def test_density_is_normalised(notebook):
    torch.manual_seed(0)
    density = notebook.ConditionalDensity()
    density.mean.copy_(torch.tensor([1.0, -2.0]))
    density.scale.copy_(torch.tensor([0.5, 2.0]))
    a, b = torch.linspace(-9, 11, 801), torch.linspace(-42, 38, 801)
    f = torch.cartesian_prod(a, b)
    with torch.no_grad():
        p = density.log_prob(f, torch.full((1,), 173.0)).exp().view(801, 801)
    area = torch.trapezoid(torch.trapezoid(p, b), a)
    assert float(area) == pytest.approx(1, abs=2e-3)


def test_maximum_likelihood_of_parabolas(notebook):
    grid, true = notebook.MASS_GRID, np.array([151.3, 300.0, 421.7, 85.0])
    log_density = -0.5 * ((grid[None] - true[:, None]) / 20) ** 2
    estimate, low, high = notebook.maximum_likelihood(log_density)
    np.testing.assert_allclose(estimate, true, atol=1e-6)
    np.testing.assert_allclose((high - low)[:3] / 2, 20, atol=2.6)


def test_export_gives_mass_and_uncertainty(notebook, tmp_path):
    torch.manual_seed(0)
    network = notebook.MassNetwork()
    torch.nn.init.normal_(network.head[-1].weight)
    graph = notebook.RawInput(notebook.FlipAverage(network).eval(), 1.3).eval()
    x = toy_images(3)
    with torch.no_grad():
        m, sigma = graph(x)
        location, log_width = notebook.FlipAverage(network).eval()(x).unbind(1)
    np.testing.assert_allclose(m, notebook.to_mass(location.numpy(), "log"), rtol=1e-5)
    np.testing.assert_allclose(sigma / m, 1.3 * notebook.LOG_UNIT * log_width.exp(), rtol=1e-5)
    path = tmp_path / "graph.onnx"
    export_onnx(graph, x[:2], path, ["x"], ["mass", "sigma"], {"kind": "regression"})
    assert check_parity(graph, path, [x[:1].numpy(), x.numpy()], tolerance=1e-2) < 1e-2
