"""The notebook of task 2e: moments, towers, symmetry, losses, calibration, likelihood, export."""

from dataclasses import dataclass, replace
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import t as student

from e2e_utils.metrics import mean_absolute_error
from e2e_utils.notebook import load_definitions
from e2e_utils.onnx_export import check_parity, export_onnx
from e2e_utils.sparse_images import SparseImages
from tests.interrupted_training import assert_same_weights, in_two_parts

TASK = "task2e_mass_regression"
NETWORKS = ("all", "pt_ecal", "ecal", "tracks", "moments", "picture")


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


def mirrored(x: torch.Tensor, axis: int) -> torch.Tensor:
    """Mirror images along eta (axis 2: dz changes its sign) or phi (axis 3: d0 does)."""
    signs = torch.ones(4)
    signs[1 if axis == 2 else 2] = -1
    return x.flip(axis) * signs.view(1, 4, 1, 1)


@pytest.fixture
def notebook(tmp_path) -> ModuleType:
    """The notebook's definitions with toy jets in place of its variables."""
    module = load_definitions(TASK)
    rng = np.random.default_rng(1)
    x, m = toy_images(120), rng.uniform(85, 500, 120)
    x[:, [0, 3]] *= torch.from_numpy(m / 300).float().view(-1, 1, 1, 1)  # something to learn
    images = SparseImages.from_dense(x.numpy())
    module.run = SimpleNamespace(directory=tmp_path)
    module.sources = [
        Toys(images.subset(part), m[part], 2 * m[part] + 300, name)
        for name, part in (("a", slice(0, 96)), ("b", slice(96, 120)))
    ]
    module.mass, module.pt = m, 2 * m + 300
    module.jets = module.prepared(module.sources)
    module.splits = module.divided(m, 24)
    return module


@dataclass(frozen=True)
class Toys:
    """A data set."""

    images: SparseImages
    m: np.ndarray
    pt: np.ndarray
    fingerprint: str

    def __len__(self) -> int:
        return len(self.m)


def with_last_layer(model: torch.nn.Module) -> torch.nn.Module:
    """The network with answers that differ between jets: its last layer begins with zeros."""
    torch.nn.init.normal_(model.head[-1].weight, std=0.1)
    return model


# Splits and samples


def test_the_fresh_jets_test_and_no_jet_is_in_two_parts(notebook):
    m = np.random.default_rng(0).uniform(85, 500, 1000)
    for fresh in (200, 0):
        splits = notebook.divided(m, fresh)
        assert sorted(np.concatenate(splits)) == list(range(1000))
        assert [len(part) for part in splits] == pytest.approx([640, 160, 200], abs=2)
        if fresh:
            np.testing.assert_array_equal(splits.test, np.arange(800, 1000))


def test_pictures_finds_jets_of_either_sample(notebook):
    seen, fresh = (one.images.dense() for one in notebook.sources)
    expected = torch.stack([fresh[4], seen[3], fresh[0], seen[95], fresh[23]])
    torch.testing.assert_close(notebook.pictures(np.array([100, 3, 96, 95, 119])), expected)


def test_prepared_jets_are_those_of_the_images_and_are_kept(notebook, monkeypatch):
    rows = np.array([5, 110])
    towers, moments = notebook.measured(notebook.pictures(rows))
    torch.testing.assert_close(notebook.jets.towers.dense(rows), towers, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(notebook.jets.moments[rows], moments, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(notebook, "measured", None)  # measuring again would fail
    again = notebook.prepared(notebook.sources)
    np.testing.assert_array_equal(again.moments, notebook.jets.moments)
    np.testing.assert_array_equal(again.mass, notebook.mass)


def test_falling_spectrum(notebook):
    rng = np.random.default_rng(0)
    notebook.mass = rng.uniform(85, 500, 60_000)
    rows = rng.permutation(50_000)
    kept = notebook.falling(rows)
    assert set(kept) <= set(rows)
    assert len(np.unique(kept)) == len(kept)
    edges = np.linspace(85, 500, 9)
    weight = np.exp(-edges / notebook.FALLING)
    expected = (weight[:-1] - weight[1:]) / (weight[0] - weight[-1])
    found = np.histogram(notebook.mass[kept], edges)[0] / len(kept)
    np.testing.assert_allclose(found, expected, rtol=0.08)


# Moments and the crystal grid


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
        spread = [np.average((a - np.average(a, weights=pt)) ** 2, weights=pt) for a in (eta, phi)]
        expected = {
            "sum": np.log(pt.sum()), "mass": np.log(mass), "pixels": np.log1p(len(pt)),
            "hardest": pt.max() / pt.sum(), "dispersion": np.sqrt((pt**2).sum()) / pt.sum(),
            "width": np.log(np.sqrt(sum(spread))), "eta width": np.log(spread[0]) / 2,
            "phi width": np.log(spread[1]) / 2,
        }  # fmt: skip
        assert expected.keys() == set(names)
        for name, value in expected.items():
            assert values[names.index(name)] == pytest.approx(value, rel=1e-4), name


def test_mass_of_two_pixels_in_single_precision(notebook):
    w = torch.zeros(1, 125, 125)
    w[0, 40, 62], w[0, 80, 70] = 300.0, 200.0
    d_eta, d_phi = 40 * np.pi / 180, 8 * np.pi / 180
    expected = np.sqrt(2 * 300 * 200 * (np.cosh(d_eta) - np.cos(d_phi)))
    found = notebook.image_moments(w)[0, notebook.MOMENTS.index("mass")].exp()
    assert float(found) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("up", [True, False])
def test_crystal_grid_finds_the_end_of_the_barrel(notebook, up):
    rng = np.random.default_rng(0)
    energy = torch.zeros(1, 125, 125)
    rows, columns = np.arange(40, 90), rng.integers(0, 125, 50)
    energy[0, rows, columns] = torch.from_numpy(rng.exponential(5, 50).astype(np.float32))
    for row, column in ((92, 30), (92, 80), (98, 50)):  # blocks of four equal pixels
        energy[0, row : row + 2, column : column + 2] = float(rng.exponential(2))
    energy[0, 124, 3] = 1.5  # a block that the edge cuts, beyond the first one: no barrel
    blocks = energy.clone()
    blocks[0, :92] = 0
    blocks[0, 124] = 0
    if not up:
        energy, blocks = energy.flip(1), blocks.flip(1)
    endcap, grid = notebook.crystal_grid(energy)
    torch.testing.assert_close(endcap, (blocks > 0).float())
    share = float(blocks.sum() / energy.sum())
    expected = [92 - 62, 62 - 40, 89 - 62, share, np.log1p(12)]
    np.testing.assert_allclose(grid[0], expected, rtol=1e-5)
    x = torch.stack([torch.zeros_like(energy)] * 3 + [energy], 1)
    images, _ = notebook.cleaned(x)
    torch.testing.assert_close(images[:, 3], energy + 3 * blocks)


def test_without_an_endcap_the_grid_says_so(notebook):
    energy = toy_images(4)[:, 3]
    endcap, grid = notebook.crystal_grid(energy)
    assert not endcap.any()
    assert (grid[:, 0] == 63).all()
    assert (grid[:, 3:] == 0).all()
    for image, (_, near, far, *_) in zip(energy.numpy(), grid.tolist(), strict=True):
        rows = np.flatnonzero(image.any(1))
        assert sorted([62 - rows.min(), rows.max() - 62]) == [near, far]


def test_empty_and_absurd_images_stay_finite(notebook):
    x = torch.zeros(2, 4, 125, 125)
    x[1, 0, 3, 3], x[1, 1, 3, 3], x[1, 2, 3, 3], x[1, 3, 5, 5] = 74054, -4174, 1234, -3
    images, _ = notebook.cleaned(x)
    assert images[1, 0].max() == notebook.LARGEST
    assert (images[1, 1:] == 0).all()  # impact parameters unknown, negative energy cut
    for values in notebook.measured(x):
        assert torch.isfinite(values).all()
    assert torch.isfinite(notebook.build_model("all").eval()(*notebook.measured(x))).all()
    inside = torch.zeros(1, 4, 125, 125)
    inside[0, :, 3, 3] = torch.tensor([5.0, -19.0, 9.0, 7.0])
    torch.testing.assert_close(notebook.cleaned(inside)[0], inside)


# Towers and their symmetry


def test_towers_against_a_loop_over_pixels(notebook):
    images = toy_images(3)
    images[:, 1] = images[:, 1].clamp(-19, 19)
    found = notebook.tower_maps(images)
    assert found.shape == (3, 12, 25, 25)
    expected = np.zeros((3, 12, 25, 25))
    for event, (tracks, dz, d0, ecal) in enumerate(images.numpy().astype(float)):
        for a in range(25):
            for b in range(25):
                block = np.s_[5 * a : 5 * a + 5, 5 * b : 5 * b + 5]
                for first, w in ((0, tracks[block]), (7, ecal[block])):
                    if w.sum() > 0:
                        rows, columns = np.mgrid[-1:1:5j, -1:1:5j]
                        centre = [np.average(place, weights=w) for place in (rows, columns)]
                        count = np.log1p((w > 0).sum())
                        total = [w.sum() / 20, np.log1p(w.sum() / 0.1) / 4]
                        expected[event, first : first + 5, a, b] = [*total, *centre, count]
                count = max((tracks[block] > 0).sum(), 1)
                expected[event, 5:7, a, b] = (
                    dz[block].sum() / count / 20,
                    d0[block].sum() / count / 10,
                )
    expected = torch.from_numpy(expected).float()
    for event in range(3):  # turned to the orientation with more momentum at positive eta and phi
        ways = [expected[event : event + 1]]
        for axis in (2, 3):
            ways += [notebook.mirror(way, axis) for way in ways]
        agree = [torch.allclose(found[event], way[0], rtol=1e-4, atol=1e-5) for way in ways]
        assert sum(agree) == 1
        momentum = found[event, 0] + found[event, 7]
        for axis in (0, 1):
            assert float((momentum.sum(1 - axis) * torch.arange(-12, 13)).sum()) > 0


def test_mirror_images_are_the_same_to_every_network(notebook):
    x = toy_images(4)
    towers, moments = notebook.measured(x)
    for axis in (2, 3):
        other_towers, other_moments = notebook.measured(mirrored(x, axis))
        torch.testing.assert_close(other_towers, towers, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(other_moments, moments, rtol=1e-3, atol=1e-3)
        twice = notebook.mirror(notebook.mirror(towers, axis), axis)
        torch.testing.assert_close(twice, towers)
        assert (notebook.mirror(towers, axis) - towers).abs().max() > 0.1


@pytest.mark.parametrize("arm", NETWORKS)
def test_networks_have_the_right_shape_and_reach_their_weights(notebook, arm):
    torch.manual_seed(0)
    model = notebook.build_model(arm)
    for parameter in model.parameters():  # zero-initialised scales hide the weights behind them
        torch.nn.init.normal_(parameter, std=0.1)
    output = model(*notebook.measured(toy_images(8)))
    assert output.shape == (8, 4)
    output.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("arm", "channels", "words"),
    [
        ("ecal", range(7, 12), ("ECAL", "row", "endcap")),
        ("tracks", range(7), ("tracks",)),
        ("pt_ecal", (*range(5), *range(7, 12)), ("",)),
    ],
)
def test_hidden_channels_do_not_matter(notebook, arm, channels, words):
    model = with_last_layer(notebook.build_model(arm)).eval()
    towers, moments = notebook.measured(toy_images(3))
    other, other_moments = notebook.measured(toy_images(3, seed=5))
    changed, changed_moments = other.clone(), other_moments.clone()
    changed[:, list(channels)] = towers[:, list(channels)]
    names = notebook.MOMENT_NAMES
    columns = [k for k, name in enumerate(names) if any(word in name for word in words)]
    changed_moments[:, columns] = moments[:, columns]
    with torch.no_grad():
        expected = model(towers, moments)
        torch.testing.assert_close(model(changed, changed_moments), expected)
        assert (model(other, other_moments) - expected).abs().max() > 1e-4


# Losses and scores


def test_scaled_logarithms_and_masses_are_inverse(notebook):
    m = np.array([85.0, 173.0, 500.0])
    u = notebook.scaled(m, 85, 500)
    np.testing.assert_allclose(u[[0, 2]], [-1, 1])
    np.testing.assert_allclose(notebook.to_mass(u), m)
    np.testing.assert_allclose(notebook.to_mass(np.array([-3.0, 2.0])), [85, 500])


def test_student_loss_is_a_likelihood_without_its_constant(notebook):
    generator = torch.Generator().manual_seed(0)
    output, target = torch.randn(50, 2, generator=generator), torch.randn(50, generator=generator)
    found = notebook.student_loss(output, target)
    expected = 0.0
    for (location, log_width), t in zip(output.tolist(), target.tolist(), strict=True):
        width = np.exp(log_width)
        expected -= student(4, location, width).logpdf(t) - student(4).logpdf(0)
    assert float(found) == pytest.approx(expected / 50, rel=1e-5)


def test_median_loss_moves_the_location_by_the_absolute_error_alone(notebook):
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(50, 2, generator=generator).requires_grad_()
    target = torch.randn(50, generator=generator)
    found = notebook.median_loss(output, target)
    pairs = zip(output.tolist(), target.tolist(), strict=True)
    naive = 4 * np.mean([abs(t - location) for (location, _), t in pairs])
    around = notebook.student_loss(output, target)
    assert found.item() == pytest.approx(naive + around.item(), rel=1e-5)
    (slope,) = torch.autograd.grad(found, output)
    (slope_around,) = torch.autograd.grad(around, output)
    torch.testing.assert_close(slope[:, 0], 4 * torch.sign(output[:, 0].detach() - target) / 50)
    torch.testing.assert_close(slope[:, 1], slope_around[:, 1])


@pytest.mark.parametrize(("pull", "width"), [(0.0, 1.0), (1.3, 0.2), (-4.0, 2.5)])
def test_crps_against_its_integral(notebook, pull, width):
    x = np.linspace(-400, 400, 800_001)
    step = (x >= pull).astype(float)
    expected = width * np.trapezoid((student(4).cdf(x) - step) ** 2, x)
    found = notebook.student_crps(np.array([pull]), width)[0]
    assert found == pytest.approx(expected, rel=2e-3)


def test_one_batch_is_memorised(notebook):
    assert notebook.overfit_one_batch("all", steps=1) > 60
    assert notebook.overfit_one_batch("all") < 20


def test_interrupted_training_continues_exactly(notebook):
    config = replace(notebook.CONFIGS["smoke"], epochs=3, batch_size=16)
    rows, check = notebook.splits.train[:48], notebook.splits.validation

    def trained(name: str) -> dict[str, np.ndarray]:
        return notebook.run_job(notebook.Job("all", 3, rows, check, name), config)[1]

    straight = trained("straight")
    assert_same_weights(in_two_parts(notebook, lambda: trained("interrupted"), 3), straight)


def test_training_lowers_the_error_and_keeps_the_best_pass(notebook):
    config = replace(notebook.CONFIGS["smoke"], epochs=20, batch_size=4, ema_decay=0.8)
    rows, check = notebook.splits.train, notebook.splits.validation
    history, weights = notebook.run_job(notebook.Job("moments", 0, rows, check), config)
    model = notebook.restored("moments", weights)
    found = notebook.to_mass(notebook.predict(model, notebook.jets, check)[:, 0])
    error = mean_absolute_error(notebook.mass[check], found)
    assert error == pytest.approx(history.score.min(), rel=1e-4)
    assert error < 0.8 * np.abs(notebook.mass[check] - np.median(notebook.mass[rows])).mean()


def test_trainings_on_fewer_jets_have_as_many_updates(notebook):
    notebook.splits = notebook.splits._replace(train=np.arange(152_000))
    for profile in ("standard", "full"):
        config = notebook.CONFIGS[profile]
        updates = 152_000 // notebook.batch_size_of(152_000, config)
        assert updates == 152_000 // config.batch_size
        for n_jets in (51_500, config.few):
            assert n_jets // notebook.batch_size_of(n_jets, config) == pytest.approx(updates, 0.03)


def test_variants_differ_from_the_network_in_one_thing(notebook):
    notebook.CONFIG = replace(notebook.CONFIG, few=30)
    reference, *others = (notebook.variant_jobs(name) for name in notebook.VARIANTS)
    for jobs in (reference, *others):
        assert [job.seed for job in jobs] == list(notebook.CONFIG.seeds)
        np.testing.assert_array_equal(jobs[0].rows, notebook.splits.train[:30])
    for jobs in others:
        pairs = (
            (getattr(jobs[0], f), getattr(reference[0], f)) for f in ("arm", "pt_weight", "loss")
        )
        assert sum(a != b for a, b in pairs) == 1
    names = [(job.arm, job.name, job.seed) for jobs in (reference, *others) for job in jobs]
    assert len(set(names)) == len(names)  # each has a folder of its own


# Calibration


def biased_outputs(n: int, seed: int, falling: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Outputs (n, 4) that answer towards the middle in mass and momentum, and targets (n, 2)."""
    rng = np.random.default_rng(seed)
    m, pt = rng.uniform(85, 500, 6 * n), rng.uniform(400, 1000, 6 * n)
    kept = rng.random(6 * n) < np.exp((85 - m) / 150) if falling else np.ones(6 * n, bool)
    m, pt = m[kept][:n], pt[kept][:n]
    notebook = load_definitions(TASK)
    u, v = notebook.scaled(m, 85, 500), notebook.scaled(pt, 400, 1000)
    width = np.exp(rng.normal(np.log(0.1), 0.3, n))
    error = rng.standard_t(4, (n, 2))
    # A jet of more momentum than it seems is heavier than it seems.
    seen_v = 0.7 * v + 0.15 * error[:, 1]
    seen_u = 0.75 * u - 0.2 * v + 0.05 * u**2 + width * error[:, 0]
    output = np.stack([seen_u, np.log(width), seen_v, np.full(n, -2.0)], 1)
    return output, np.stack([u, v], 1)


def worst_share(notebook: ModuleType, mass: np.ndarray, target: np.ndarray, wanted: float) -> float:
    """Largest deviation of the share of true masses below ``mass`` in bins of either truth."""
    true = notebook.to_mass(target[:, 0])
    middle, below = (true > 120) & (true < 450), true < mass
    worst = 0.0
    for values, edges in ((true, np.linspace(120, 450, 9)), (target[:, 1], np.linspace(-1, 1, 7))):
        number = np.digitize(values, edges)
        shares = [below[middle & (number == k)].mean() for k in range(1, len(edges))]
        worst = max(worst, np.abs(np.array(shares) - wanted).max())
    return worst


@pytest.mark.parametrize("falling", [False, True])
def test_calibration_makes_the_median_response_one_whatever_the_spectrum(notebook, falling):
    output, target = biased_outputs(40_000, 1, falling)
    function = notebook.Calibration().fit(output, target)
    output, target = biased_outputs(40_000, 2)
    direct = worst_share(notebook, notebook.to_mass(output[:, 0]), target, 0.5)
    assert direct > 0.25
    assert worst_share(notebook, function(output), target, 0.5) < 0.05
    masses = function(output)
    assert masses.min() >= 85
    assert masses.max() <= 500


def test_calibration_in_the_mass_alone_leaves_the_momentum(notebook):
    output, target = biased_outputs(40_000, 1)
    function = notebook.Calibration(degrees=(4, 0)).fit(output, target)
    assert len(function.theta) == 5
    assert worst_share(notebook, function(output), target, 0.5) > 0.15


@pytest.mark.parametrize("level", [0.025, 0.16, 0.84, 0.975])
def test_limits_have_their_share_in_every_bin(notebook, level):
    output, target = biased_outputs(40_000, 1)
    limit = notebook.Calibration(level).fit(output, target)
    output, target = biased_outputs(40_000, 2)
    assert worst_share(notebook, limit(output), target, level) < 0.04


def test_cells_are_those_of_a_loop(notebook):
    low, high = notebook.CALIBRATED
    m, pt = np.array([101, 474, 250, 250.0]), np.array([401, 999, 700, 1050.0])
    target = np.stack([notebook.scaled(m, 85, 500), notebook.scaled(pt, 400, 1000)], 1)
    sums = notebook.cell_sums(target)
    assert sums.shape == (notebook.MASS_CELLS * notebook.PT_CELLS, 4)
    rows = [int(np.log(x / low) / np.log(high / low) * notebook.MASS_CELLS) for x in m]
    columns = [
        min(int(np.log(p / 400) / np.log(2.5) * notebook.PT_CELLS), notebook.PT_CELLS - 1)
        for p in pt
    ]
    expected = np.zeros(sums.shape)
    for jet, (row, column) in enumerate(zip(rows, columns, strict=True)):
        expected[row * notebook.PT_CELLS + column, jet] = 1
    np.testing.assert_array_equal(sums.toarray(), expected)


def test_statistics_per_bin(notebook):
    notebook.numbers = {"mass": np.array([0, 1, 1, -1, 0, 1])}
    notebook.centres = {"mass": np.array([100.0, 200.0])}
    values = np.array([1.0, 2.0, 4.0, 99.0, 3.0, 9.0])
    np.testing.assert_allclose(notebook.per_bin(values, "mass", np.median), [2, 4])
    rows = np.array([0, 0, 2])
    np.testing.assert_allclose(notebook.per_bin(values[rows], "mass", np.mean, rows), [1, 4])
    notebook.m_test = np.array([1.0, 1.0, 2.0, 1.0, 1.0, 3.0])
    one_training = notebook.in_bins(values, "mass", np.median)
    np.testing.assert_allclose(one_training, [[2, 2]])
    several = notebook.in_bins([values, 2 * values], "mass", np.mean, np.array([1, 4, 2]))
    np.testing.assert_allclose(several, [[3, 2], [6, 4]])
    response = np.random.default_rng(0).normal(1, 0.2, 200_000)
    assert notebook.half_width(response) == pytest.approx(0.2 * 0.9945, rel=0.01)


# Likelihood


def test_density_is_normalised(notebook):
    torch.manual_seed(0)
    density = notebook.ConditionalDensity(components=2)
    for parameter in density.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    density.mean.copy_(torch.tensor([1.0, -2.0, 0.5]))
    density.scale.copy_(torch.tensor([0.5, 2.0, 1.0]))
    axes = [
        m + s * torch.linspace(-12, 12, 121)
        for m, s in zip(density.mean, density.scale, strict=True)
    ]
    f = torch.cartesian_prod(*axes).unsqueeze(1)
    with torch.no_grad():
        p = torch.cat([density(part, torch.tensor([[0.3, -0.4]])) for part in f.split(200_000)])
    area = p.exp().view(121, 121, 121)
    for x in reversed(axes):
        area = torch.trapezoid(area, x)
    assert float(area) == pytest.approx(1, abs=5e-3)


def test_density_of_pairs_is_the_diagonal_of_that_of_all(notebook):
    torch.manual_seed(0)
    density = notebook.ConditionalDensity()
    f, truth = torch.randn(5, 1, 3), torch.randn(5, 2)
    with torch.no_grad():
        everything = density(f, truth)  # (5, 5)
        torch.testing.assert_close(density(f, truth.unsqueeze(1))[:, 0], everything.diagonal())


@pytest.mark.parametrize("falling", [False, True])
def test_likelihood_finds_known_masses_whatever_the_spectrum(notebook, falling):
    output, target = biased_outputs(12_000, 1, falling)
    density = notebook.fit_density(output, target, 800, 0)
    m, pt = np.repeat([150.0, 250.0, 350.0], 3), np.tile([500.0, 700.0, 900.0], 3)
    u, v = notebook.scaled(m, 85, 500), notebook.scaled(pt, 400, 1000)
    seen = np.stack([0.75 * u - 0.2 * v + 0.05 * u**2, np.full(9, np.log(0.07)), 0.7 * v, v], 1)
    curve = notebook.profile_likelihood(density, seen)
    assert curve.shape == (9, len(notebook.MASS_GRID))
    estimate, low, high = notebook.maximum_likelihood(curve)
    np.testing.assert_allclose(estimate, m, rtol=0.08)
    assert ((low < m) & (m < high)).all()


def test_maximum_likelihood_of_parabolas(notebook):
    grid, true = notebook.MASS_GRID, np.array([151.3, 300.0, 421.7, 85.0])
    curve = -0.5 * ((grid[None] - true[:, None]) / 20) ** 2
    estimate, low, high = notebook.maximum_likelihood(curve)
    np.testing.assert_allclose(estimate, true, atol=1e-6)
    np.testing.assert_allclose((high - low)[:3] / 2, 20, atol=5.1)


# Export


def test_export_gives_mass_and_uncertainty(notebook, tmp_path):
    torch.manual_seed(0)
    network = with_last_layer(notebook.build_model("all")).eval()
    graph = notebook.RawInput(network, 1.3).eval()
    x = toy_images(7)
    x[0, 3, 110:112, 60:62] = 2.0  # an endcap
    x[1, 0, 3, 3] = 74054.0
    with torch.no_grad():
        m, sigma = graph(x)
        output = network(*notebook.measured(x)).numpy()
    np.testing.assert_allclose(m, notebook.to_mass(output[:, 0]), rtol=1e-5)
    factor = 1.3 * student(4).ppf(0.84) * np.log(500 / 85) / 2
    np.testing.assert_allclose(sigma / m, factor * np.exp(output[:, 1]), rtol=1e-5)
    path = tmp_path / "graph.onnx"
    export_onnx(graph, x[:2], path, ["x"], ["mass", "sigma"], {"kind": "regression"})
    batches = [x[:1].numpy(), x.numpy(), np.zeros((2, 4, 125, 125), np.float32)]
    assert check_parity(graph, path, batches, tolerance=1e-2) < 1e-2
