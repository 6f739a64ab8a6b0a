"""The notebook of task 2b: coordinates, colours, generators, losses, training, measurements."""

from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.loaders.jets import pooled
from e2e_utils.notebook import load_definitions
from e2e_utils.onnx_export import export_onnx
from e2e_utils.sparse_images import SparseImages
from e2e_utils.splits import split
from task2b_superres_gan.cells import FRAME
from tests.interrupted_training import assert_same_weights, in_two_parts

CUT = 0.2  # GeV, of the toy tracks
NETWORKS = ("gan", "likelihood", "independent", "flow")  # that share out cells


def toy_jets(n: int, seed: int = 0) -> np.ndarray:
    """Images (n, 3, 125, 125): tracks above CUT, a shower with negative pixels, towers."""
    rng = np.random.default_rng(seed)
    x = np.zeros((n, 3, 125, 125), np.float32)
    for jet in range(n):
        for row, column in rng.integers(10, 50, (8, 2)):
            x[jet, 0, 2 * row - 1, 2 * column - 1] = rng.exponential(3) + 1.1 * CUT
        x[jet, 0, 41, 42] = x[jet, 0, 42, 42] = 1.5 * CUT  # two tracks in one cell
        a, b = rng.integers(40, 80, 2)
        x[jet, 1, a : a + 7, b : b + 7] = rng.exponential(1, (7, 7)) - 0.2
        for row, column in rng.integers(0, 25, (4, 2)):
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


def with_toys(folder, jets: np.ndarray):
    """The notebook's definitions with toy jets in place of its variables."""
    module = load_definitions("task2b_superres_gan")
    module.dataset, module.y = ToyDataset(jets), np.arange(len(jets)) % 2
    module.splits = split(module.y, seed=0)
    module.run, module.cut = SimpleNamespace(directory=folder), CUT
    module.trained = {}
    module.CONFIG = replace(module.CONFIGS["smoke"], batch_size=8)
    return module


@pytest.fixture(scope="module")
def jets() -> np.ndarray:
    return toy_jets(60)


@pytest.fixture
def notebook(tmp_path, jets):
    return with_toys(tmp_path, jets)


def cells_of(notebook, rows):
    """Low resolution, jets and cells, true pixels and energies of tracks and ECAL."""
    low, high = notebook.dataset.pair(rows)
    jet, cell = notebook.active_cells(low)
    return low, jet, cell, notebook.to_blocks(high[:, :2])[jet, cell], energies(low, jet, cell)


def energies(low, jet, cell):
    return 4 * low[:, :2].flatten(2)[jet, :, cell]


def noise_for(network, low, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(low), network.noise, 64, 64, generator=generator)


def random_network(notebook, arm: str, scale: float = 0.1):
    """A network with random weights, also where they begin at zero."""
    torch.manual_seed(0)
    network = notebook.build(arm, CUT)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=scale)
    return network.eval()


# Coordinates ---------------------------------------------------------------------------------


def test_blocks_and_images_are_inverse(notebook):
    _, high = notebook.dataset.pair(np.arange(5))
    blocks = notebook.to_blocks(high)
    assert torch.equal(notebook.from_blocks(blocks), high)
    row, column = 21, 33  # of a cell: pixels (2 row - 1, 2 column - 1) and the next ones
    window = high[:, :, 2 * row - 1 : 2 * row + 1, 2 * column - 1 : 2 * column + 1].flatten(2)
    assert torch.equal(blocks[:, row * 64 + column], window)
    exists = FRAME.view(64, 64, 4)
    assert exists[5, 5].tolist() == [1, 1, 1, 1]
    assert exists[0, 0].tolist() == [0, 0, 0, 1]
    assert not exists[63].any()


def test_contrasts_are_orthonormal_and_blind_to_the_sum(notebook):
    for pattern in range(15):
        matrix, used = notebook.CONTRASTS[pattern], notebook.USED[pattern].bool()
        assert used.sum() == notebook.HITS[pattern].sum() - 1
        gram = matrix @ matrix.T
        torch.testing.assert_close(gram[used][:, used], torch.eye(int(used.sum())))
        torch.testing.assert_close(matrix.sum(1), torch.zeros(3), atol=1e-6, rtol=0)
        assert (matrix[:, notebook.HITS[pattern] == 0] == 0).all()


def test_pixels_and_contrasts_are_inverse(notebook):
    *_, truth, energy = cells_of(notebook, np.arange(20))
    pattern = notebook.pattern_of(truth)
    matrix, y = notebook.CONTRASTS[pattern], notebook.coordinates(truth, CUT)
    u = (matrix * y.unsqueeze(2)).sum(3)
    back = notebook.shared_out(energy, notebook.HITS[pattern], (u[..., None] * matrix).sum(2), CUT)
    torch.testing.assert_close(back, truth, rtol=1e-4, atol=1e-4)


def test_shares_against_the_formulas(notebook):
    y = torch.tensor([[0.3, -1.0, 2.0, 0.1]]).repeat(1, 2, 1)
    hits = torch.tensor([1.0, 1.0, 0.0, 1.0]).expand(1, 2, 4)
    for energy in (-0.7, 0.0, 3.0):
        x = notebook.shared_out(torch.full((1, 2), energy), hits, y, CUT)[0]
        share = np.exp([0.3, -1.0, 0.1]) / np.exp([0.3, -1.0, 0.1]).sum()
        expected = CUT + (energy - 3 * CUT) * share
        np.testing.assert_allclose(x[0][[0, 1, 3]], expected, rtol=1e-5, atol=1e-6)
        low, high = -50.0, 50.0  # ECAL: s sinh(y + t) with t found by bisection
        for _ in range(200):
            t = (low + high) / 2
            found = sum(0.05 * np.sinh(v + t) for v in (0.3, -1.0, 0.1))
            low, high = (t, high) if found < energy else (low, t)
        expected = [0.05 * np.sinh(v + t) for v in (0.3, -1.0, 0.1)]
        np.testing.assert_allclose(x[1][[0, 1, 3]], expected, rtol=1e-4, atol=1e-5)
        assert (x[:, 2] == 0).all()


def test_scales_are_inverse_and_logarithmic(notebook):
    x = torch.tensor([-2.0, -0.01, 0.0, 0.03, 5.0, 900.0])
    torch.testing.assert_close(notebook.signed_exp(notebook.signed_log(x)), x, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(
        notebook.signed_log(x).numpy(), np.arcsinh(x.numpy() / 0.05) / 3, rtol=1e-4, atol=1e-6
    )


def test_windows_against_slices(notebook):
    x = torch.randn(2, 3, 64, 64)
    jet, cell = torch.tensor([0, 1, 1]), torch.tensor([0, 5 * 64 + 9, 63 * 64 + 63])
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2))
    found = notebook.windows(x, jet, cell, 2)
    for n, (j, c) in enumerate(zip(jet, cell, strict=True)):
        row, column = divmod(int(c), 64)
        assert torch.equal(found[n], padded[j, :, row : row + 5, column : column + 5].flatten(1))


def test_cells_around_are_found_in_the_list(notebook):
    low, jet, cell, _, _ = cells_of(notebook, np.arange(3))
    index = notebook.around(jet, cell, len(low))
    place = {(int(j), int(c)): n for n, (j, c) in enumerate(zip(jet, cell, strict=True))}
    for n in range(0, len(cell), 7):
        row, column = divmod(int(cell[n]), 64)
        for k, (a, b) in enumerate(product((-1, 0, 1), repeat=2)):
            inside = 0 <= row + a < 64 and 0 <= column + b < 64
            key = (int(jet[n]), (row + a) * 64 + column + b)
            assert index[n, k] == (place.get(key, len(cell)) if inside else len(cell))


def test_peaks_come_first_and_colours_never_touch(notebook):
    low = torch.zeros(1, 3, 64, 64)
    low[0, 1, 20, 20], low[0, 1, 20, 21], low[0, 1, 40, 40] = 3.0, 2.0, -1.0
    turn = notebook.turns(low)[0]
    assert (turn == 0).nonzero().tolist() == [[20, 20]]
    low, _ = notebook.dataset.pair(np.arange(10))
    for one, ecal in zip(notebook.turns(low), low[:, 1], strict=True):
        for row, column in product(range(1, 63), repeat=2):
            beside = ecal[row - 1 : row + 2, column - 1 : column + 2]
            peak = ecal[row, column] > 0 and ecal[row, column] == beside.max()
            hot = 4 * ecal[row, column] >= notebook.HOT
            later = 1 if hot else 5
            expected = 0 if peak else later + [[0, 2], [3, 1]][row % 2][column % 2]
            assert one[row, column] == expected
    colour = notebook.COLOUR
    for row, column in product((10, 11), repeat=2):
        beside = colour[row - 1 : row + 2, column - 1 : column + 2]
        assert (beside == colour[row, column]).sum() == 1  # itself


# Constraints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", NETWORKS)
def test_energy_is_conserved_for_any_input(notebook, arm):
    network = random_network(notebook, arm)
    scale = torch.tensor([0.01, 1.0, 100.0, 5000.0])[:, None, None, None]
    generator = torch.Generator().manual_seed(0)
    low = scale * torch.randn(4, 3, 64, 64, generator=generator)
    low = low * (torch.rand(4, 3, 64, 64, generator=generator) < 0.2)
    low[:, :, -1] = low[:, :, :, -1] = 0  # these cells have no pixels
    with torch.no_grad():
        high = network(low, noise_for(network, low))
    assert high.shape == (4, 3, 125, 125)
    torch.testing.assert_close(pooled(high), low, rtol=1e-4, atol=1e-4)


def test_uniform_split_conserves_energy_also_at_the_frame(notebook):
    low, _ = notebook.dataset.pair(np.arange(6))
    made = notebook.uniform_split(low)
    torch.testing.assert_close(pooled(made), low, rtol=1e-5, atol=1e-6)
    inner = (slice(None), slice(None), slice(3, -3), slice(3, -3))
    assert torch.equal(made[inner], notebook.enlarged(low, "nearest")[inner])


def test_the_hcal_is_read_off_exactly(notebook):
    low, high = notebook.dataset.pair(np.arange(30))
    assert torch.equal(notebook.hcal_image(low), high[:, 2:])
    strange = torch.rand(2, 3, 64, 64)  # no towers: shared evenly
    strange[:, :, -1] = strange[:, :, :, -1] = 0
    made = notebook.hcal_image(strange)
    torch.testing.assert_close(pooled(made), strange[:, 2:], rtol=1e-5, atol=1e-6)
    expected = notebook.uniform_split(strange)[:, 2:]
    assert (made == expected).float().mean() > 0.95


@pytest.mark.parametrize("arm", NETWORKS)
def test_what_is_drawn_is_possible(notebook, arm):
    network = random_network(notebook, arm)
    low, _ = notebook.dataset.pair(np.arange(20))
    with torch.no_grad():
        made = network(low, noise_for(network, low))
    assert not notebook.impossible(made, low, CUT).any()
    assert (made[:, 0] > 0).sum() > (low[:, 0] > 0).sum()  # some cells have two tracks


def test_impossible_pixels_are_counted(notebook):
    low, high = notebook.dataset.pair(np.arange(3))
    assert not notebook.impossible(high, low, CUT).any()
    changed = high.clone()
    row, column = (changed[0, 0] > 2 * CUT).nonzero()[0].tolist()
    changed[0, 0, row, column] = 0.5 * CUT  # a track below the cut-off: its cell does not add up
    changed[1, 2, 7, 8] += 1.0  # an unequal tower, in a cell that does not add up
    assert notebook.impossible(changed, low, CUT).tolist() == [[1, 1, 0], [1, 0, 1], [0, 0, 0]]


# Generator -----------------------------------------------------------------------------------


def test_drawing_follows_the_probabilities(notebook):
    p = torch.tensor([[0.1, 0.0, 0.6, 0.3]]).repeat(40_000, 1)
    uniform = torch.rand(40_000, generator=torch.Generator().manual_seed(0))
    share = torch.bincount(notebook.pick(p, uniform), minlength=4) / 40_000
    torch.testing.assert_close(share, p[0], atol=0.01, rtol=0)
    assert notebook.pick(p[:2], torch.tensor([0.0, 1.0])).max() <= 3
    uniform = notebook.uniform_of(torch.randn(40_000, generator=torch.Generator().manual_seed(1)))
    assert torch.histc(uniform, 4, 0, 1).sub(10_000).abs().max() < 400


def test_the_same_noise_gives_the_same_jet_and_other_noise_another(notebook):
    network = random_network(notebook, "gan")
    low, _ = notebook.dataset.pair(np.arange(4))
    with torch.no_grad():
        one, same, other = (network(low, noise_for(network, low, seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one[:, :2], other[:, :2])


def test_cells_follow_those_drawn_before_unless_they_are_independent(notebook):
    low, _ = notebook.dataset.pair(np.arange(20))
    assert notebook.followers(random_network(notebook, "gan", 0.3), low) > 0.02
    assert notebook.followers(random_network(notebook, "independent", 0.3), low) == 0


def test_a_cell_depends_on_drawn_neighbours_only(notebook):
    network = random_network(notebook, "likelihood")
    low, jet, cell, truth, _ = cells_of(notebook, np.arange(4))
    index, turn = notebook.around(jet, cell, len(low)), notebook.turns(low).flatten(1)[jet, cell]
    values = notebook.seen(truth, (truth != 0).float())
    changed = values.clone()
    moved = torch.arange(len(cell))[turn == 7]
    changed[moved] += 1.0  # pixels of the last turn but one
    with torch.no_grad():
        fixed = notebook.cell_features(low, jet, cell), network.before(low, jet, cell)
        before, after = (network.hidden(fixed[0], v[index], fixed[1]) for v in (values, changed))
    differs = (before - after).abs().amax(1) > 1e-6
    assert torch.equal(differs, torch.isin(index, moved).any(1) & (turn == 8))
    alone = random_network(notebook, "independent")
    with torch.no_grad():
        fixed = notebook.cell_features(low, jet, cell), alone.before(low, jet, cell)
        before, after = (alone.hidden(fixed[0], v[index], fixed[1]) for v in (values, changed))
    assert torch.equal(before, after)


def test_the_highest_drawn_pixel_is_found_in_the_readout_window(notebook):
    network = random_network(notebook, "likelihood")
    with torch.no_grad():  # the first feature is the window's maximum around the first pixel
        network.body[0].weight.zero_()
        network.body[0].bias.zero_()
        network.body[0].weight[:4, -4:] = torch.eye(4)
    low, jet, cell, truth, _ = cells_of(notebook, np.arange(3))
    low, high = notebook.dataset.pair(np.arange(3))
    index, turn = notebook.around(jet, cell, 3), notebook.turns(low)
    values = notebook.seen(truth, (truth != 0).float())[index]
    seen = []
    network.body[1].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    with torch.no_grad():
        network.hidden(
            notebook.cell_features(low, jet, cell), values, network.before(low, jet, cell)
        )
    scaled = notebook.signed_log(high[:, 1])
    for n in range(0, len(cell), 11):
        row, column = divmod(int(cell[n]), 64)
        for k, (a, b) in enumerate(product((0, 1), repeat=2)):
            best = 0.0
            for r, c in product(range(-2, 3), repeat=2):
                y, x = 2 * row - 1 + a + r, 2 * column - 1 + b + c
                inside = 0 <= y < 125 and 0 <= x < 125
                if inside and turn[jet[n], (y + 1) // 2, (x + 1) // 2] < turn[jet[n], row, column]:
                    best = max(best, float(scaled[jet[n], y, x]))
            assert seen[0][n, k].item() == pytest.approx(best, abs=1e-5)


def test_neighbours_agree_where_they_are_made_to(notebook):
    """A generator whose ECAL hits the pixels that its drawn neighbours hit."""
    low = torch.zeros(40, 3, 64, 64)
    low[:, 1, 20:30, 20:30] = -1.0  # no peaks: four colours only
    network = notebook.build("likelihood", 0.0)
    state = {k: torch.zeros_like(v) for k, v in network.state_dict().items()}
    network.load_state_dict(state)
    with torch.no_grad():
        first = network.body[0].weight  # features, summary of the jet, 9 x 16 drawn values
        start = notebook.FEATURES
        hits = [start + 16 * k + 12 for k in range(9)]  # first ECAL pixel of neighbours
        first[0, hits] = 20.0
        network.body[2].weight[0, 0] = network.body[4].weight[0, 0] = 1.0
        for p in range(15):
            sign = 1.0 if (p + 1) & 1 else -1.0
            network.patterns.weight[15 + p, 0] = sign
            network.patterns.bias[15 + p] = -5.0 * sign
        made = network(low, noise_for(network, low))
    hit = notebook.to_blocks(made[:, 1:2])[:, :, 0, 0].view(40, 64, 64)[:, 20:30, 20:30] != 0
    colour = notebook.COLOUR[20:30, 20:30]
    last = [(r, c) for r in range(1, 9) for c in range(1, 9) if colour[r, c] == 3]
    any_beside = [
        torch.stack([hit[:, r + a, c + b] for a, b in product((-1, 0, 1), repeat=2) if a or b]).any(
            0
        )
        for r, c in last
    ]
    agree = torch.stack([hit[:, r, c] == any_beside[n] for n, (r, c) in enumerate(last)])
    assert agree.float().mean() > 0.95
    assert 0.05 < hit[:, colour == 0].float().mean() < 0.95 or not hit[:, colour == 0].any()


def test_gradients_reach_every_weight(notebook):
    network = random_network(notebook, "gan").train()
    low, high = notebook.dataset.pair(np.arange(6))
    network.loss(low, high).backward()
    trained = {n for n, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == {n for n, _ in network.named_parameters()}


def test_adversarial_loss_against_a_loop(notebook, monkeypatch):
    """Every cell's log-probability is charged with the patches that contain it."""
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)  # no dequantisation noise
    network = random_network(notebook, "gan")
    low, jet, cell, truth, _ = cells_of(notebook, np.arange(4))
    _, high = notebook.dataset.pair(np.arange(4))
    noise = noise_for(network, low)
    monkeypatch.setattr(torch, "randn", lambda *_, **__: noise)
    with torch.no_grad():
        made, index = network(low, noise), notebook.around(jet, cell, 4)
        blocks = notebook.to_blocks(made[:, :2])[jet, cell]

        def score(x):  # of the patch around every cell: pixels of tracks and ECAL
            return notebook.seen(x, 0 * x)[index].sum((1, 2))

        told = np.log1p(np.exp((score(truth) - score(blocks)).double().numpy()))
        told = (told - told.mean()) / told.std(ddof=1)
        each = network.losses(low, blocks, slice(None)).numpy()
        expected = 0.0
        for n in range(len(cell)):
            beside = [told[k] for k in index[n].tolist() if k < len(cell)]
            expected -= sum(beside) / 9 * each[n] / len(cell)
        found = network.adversarial_loss(low, high, lambda x: x[:, :2].sum((1, 2, 3))).item()
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_adversarial_loss_lowers_what_is_told(notebook):
    """A judge that takes ECAL hits for drawn: fewer of them are drawn."""
    network = random_network(notebook, "gan").train()
    low, high = notebook.dataset.pair(np.arange(20))

    def hits() -> float:
        torch.manual_seed(1)
        with torch.no_grad():
            return (notebook.drawn(network, low)[:, 1] != 0).float().sum().item()

    before, optimizer = hits(), torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        network.adversarial_loss(low, high, lambda x: -x[:, 4].sum((1, 2))).backward()
        optimizer.step()
    assert hits() < 0.8 * before


# Losses --------------------------------------------------------------------------------------


def normal_log_density(x, mean, sigma):
    return -0.5 * ((x - mean) / sigma) ** 2 - np.log(sigma) - 0.5 * np.log(2 * np.pi)


def test_likelihood_against_a_loop_over_cells(notebook, monkeypatch):
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)  # no dequantisation noise
    network = random_network(notebook, "likelihood")
    cell, truth, energy = (t[:40] for t in cells_of(notebook, np.arange(3))[2:])
    eye, pattern = torch.eye(16), notebook.pattern_of(truth)
    with torch.no_grad():
        h = torch.randn(40, 128)
        found = network.cell_losses(h, truth, energy, cell).numpy()
        u = (notebook.CONTRASTS[pattern] * notebook.coordinates(truth, CUT).unsqueeze(2)).sum(3)
        for n in range(40):
            expected = 0.0
            logits = [
                network.pattern_logits(h[n : n + 1], energy[n : n + 1], cell[n : n + 1]),
                network.pattern_logits(
                    h[n : n + 1], energy[n : n + 1], cell[n : n + 1], eye[pattern[n : n + 1, 0]]
                ),
            ]
            parts = network.mixture(h[n : n + 1], eye[pattern[n]].flatten()[None])
            weight, mean, width, slope = (part[0].numpy() for part in parts)
            for c in range(2):
                p = int(pattern[n, c])
                if p == notebook.NONE:
                    continue
                expected -= logits[c][0].log_softmax(0)[p].item()
                count = int(notebook.HITS[p].sum()) - 1
                density = 0.0
                for k in range(network.components if count else 0):
                    off = (u[n, c].numpy() - mean[c, k])[:count]
                    at = [0.0, 0.0, 0.0]
                    if count > 1:
                        at[1] = slope[c, k, 0] * off[0]
                    if count > 2:
                        at[2] = slope[c, k, 1] * off[0] + slope[c, k, 2] * off[1]
                    sigma = np.sqrt(np.exp(2 * width[c, k]) + 0.01**2)
                    one = weight[c, k] + sum(
                        normal_log_density(off[i], at[i], sigma[i]) for i in range(count)
                    )
                    density += np.exp(one)
                expected -= np.log(density) if count else 0.0
            assert found[n] == pytest.approx(expected, rel=1e-3)


def test_draws_have_the_density_that_is_learnt(notebook):
    """Contrasts of one cell drawn many times: means and covariance of the mixture."""
    network = random_network(notebook, "likelihood", 0.05)
    n = 20_000
    h = torch.randn(1, 128).repeat(n, 1)
    energy, cell = torch.tensor([[0.0, 6.0]]).repeat(n, 1), torch.full((n,), 20 * 64 + 20)
    with torch.no_grad():
        network.patterns.bias[15 + 14] = 60.0  # all four pixels
        noise = torch.randn(n, 10, generator=torch.Generator().manual_seed(0))
        x, hits = network.draw_cells(h, energy, noise, cell)
        assert (hits[:, 1] == 1).all()
        assert (hits[:, 0] == 0).all()
        u = torch.einsum("dk,nk->nd", notebook.CONTRASTS[14], notebook.coordinates(x, CUT)[:, 1])
        chosen = torch.eye(16)[[15, 14]].flatten()[None]
        weight, mean, width, slope = (part[0, 1] for part in network.mixture(h[:1], chosen))
    first = torch.zeros(3)
    second = torch.zeros(3, 3)
    for k in range(network.components):
        lower = torch.eye(3)
        lower[1, 0] = slope[k, 0]
        lower[2, 0], lower[2, 1] = slope[k, 1] + slope[k, 2] * slope[k, 0], slope[k, 2]
        spread = lower @ torch.diag((2 * width[k]).exp()) @ lower.T
        first += weight[k].exp() * mean[k]
        second += weight[k].exp() * (spread + torch.outer(mean[k], mean[k]))
    torch.testing.assert_close(u.mean(0), first, atol=0.06, rtol=0.06)
    torch.testing.assert_close(u.T.cov(), second - torch.outer(first, first), atol=0.1, rtol=0.1)


def test_flow_is_normalised_and_draws_what_it_learns(notebook):
    flow = random_network(notebook, "flow", 0.5)
    h = torch.randn(1, 8 * 48)
    grid = torch.linspace(-12, 12, 2401)
    v = torch.zeros(len(grid), 8)
    v[:, :3] = torch.tensor([0.4, -1.0, 0.2])
    v[:, 3] = grid
    with torch.no_grad():
        weight, mean, width = (t[:, 3] for t in flow.steps(h.repeat(len(grid), 1), v))
        density = notebook.log_normal_density(grid[:, None], mean, width) + weight
    assert (weight[0] == weight[-1]).all()  # pixel 3 does not condition itself
    assert torch.trapezoid(density.logsumexp(1).exp(), grid).item() == pytest.approx(1, abs=1e-2)


def test_table_gives_back_what_it_holds(notebook):
    table = notebook.Table(np.arange(60), CUT, bins=4)
    low, jet, cell, truth, energy = cells_of(notebook, np.arange(60))
    held = {c: {tuple(np.round(b, 5)) for b in truth[:, c].numpy()} for c in range(2)}
    for c, (edges, keys, blocks) in enumerate(table.kinds):
        assert len(keys) == len(blocks) == (energy[:, c] != 0).sum()
        assert all(tuple(np.round(b, 5)) in held[c] for b in blocks.numpy())
        inside = torch.bucketize(blocks.sum(1), edges)  # cells of one kind lie together
        assert torch.equal(inside, keys // 16)
        assert (keys.diff() >= 0).all()
    pixels, hits = table.draw(low, noise_for(table, low), jet, cell)
    torch.testing.assert_close(pixels.sum(2), energy, rtol=1e-5, atol=1e-5)
    assert torch.equal(hits != 0, pixels != 0)


def test_legal_hits_exist_and_can_be_paid(notebook):
    cell = torch.tensor([0, 20 * 64 + 20, 20 * 64 + 20])
    energy = torch.tensor([[1.0, 1.0], [1.5 * CUT, 0.0], [5 * CUT, 1.0]])
    y = torch.tensor([0.1, 0.9, 0.2, 0.3]).expand(3, 2, 4)
    hits = notebook.legal(torch.ones(3, 2, 4), y, energy, cell, torch.tensor(CUT))
    assert hits[0].tolist() == [[0, 0, 0, 1]] * 2  # the corner has one pixel
    assert hits[1].tolist() == [[0, 1, 0, 0], [0, 0, 0, 0]]  # one track; no ECAL energy
    assert hits[2].tolist() == [[1, 1, 1, 1]] * 2
    none = notebook.legal(torch.zeros(3, 2, 4), y, energy, cell, torch.tensor(CUT))
    assert none[2].tolist() == [[0, 1, 0, 0]] * 2


def test_image_network_starts_from_the_pixels_means(notebook):
    network = notebook.build("srresnet")
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    low, high = notebook.dataset.pair(np.arange(3))
    with torch.no_grad():
        made = network(low, None)
        loss = network.loss(low, high).item()
    value = np.arcsinh(notebook.enlarged(low, "nearest").numpy() / 0.05) / 3
    shrunk = np.sign(value) * np.clip(np.abs(value) - 0.05, 0, None)
    np.testing.assert_allclose(made, 0.05 * np.sinh(3 * shrunk), rtol=1e-3, atol=1e-4)
    difference = np.abs(shrunk - np.arcsinh(high.numpy() / 0.05) / 3).sum()
    assert loss == pytest.approx(difference / (high != 0).sum().item(), rel=1e-3)


def test_discriminator_loss_has_the_penalty_on_its_slope(notebook):
    class Linear(torch.nn.Module):
        weight = torch.linspace(-1, 2, 6 * 36).view(6, 6, 6)

        def forward(self, x):
            return (x * self.weight).sum((1, 2, 3))

    real, fake = torch.randn(2, 5, 6, 6, 6)
    found = notebook.discriminator_loss(Linear(), real, fake).item()
    margin = ((fake - real) * Linear.weight).sum((1, 2, 3)).numpy()
    penalty = notebook.R1 / 2 * Linear.weight.square().sum().item()
    assert found == pytest.approx(np.log1p(np.exp(margin)).mean() + penalty, rel=1e-4)


def test_patches_are_pixels_around_cells(notebook):
    low, high = notebook.dataset.pair(np.arange(4))
    jet, cell = notebook.active_cells(low)
    real, fake = notebook.patch_pairs(low, high, 2 * high)
    assert real.shape == fake.shape == (len(cell), 6, 6, 6)
    assert torch.equal(real[:, 3:], (real[:, :3] != 0).float())
    assert torch.equal(real[:, 3:], fake[:, 3:])
    images = torch.nn.functional.pad(high, (3, 4, 3, 4))
    for n in range(0, len(cell), 5):
        row, column = (2 * int(x) for x in divmod(int(cell[n]), 64))
        window = images[jet[n], :, row : row + 6, column : column + 6]
        torch.testing.assert_close(real[n, :3], notebook.signed_log(window))
        torch.testing.assert_close(fake[n, :3], notebook.signed_log(2 * window))


def test_classifier_learns_one_batch_and_tells_held_out_patches(notebook):
    torch.manual_seed(0)
    network, x = notebook.PatchCNN(), torch.randn(32, 6, 6, 6)
    label = torch.arange(32) % 2
    notebook.fit_classifier(network, x, label.float(), passes=60)
    assert ((network(x) > 0) == label).all()
    assert network(x).shape == (32,)

    class Even(torch.nn.Module):  # tells hits in every pixel from others
        def forward(self, x):
            return -x[:, 4].mean((1, 2))

    generator = random_network(notebook, "likelihood")
    with torch.no_grad():
        generator.patterns.bias[15 + 14] = 60.0
    assert notebook.told_apart(Even(), generator, "cpu") > 0.55


# Training ------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ["likelihood", "flow"])
def test_one_batch_is_memorised(notebook, arm):
    torch.manual_seed(0)
    network, (low, high) = notebook.build(arm, CUT).eval(), notebook.dataset.pair(np.arange(2))
    optimizer, losses = torch.optim.AdamW(network.parameters(), 3e-3), []
    for _ in range(60):
        loss = network.loss(low, high)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 2


@pytest.mark.parametrize("arm", ["likelihood", "gan", "flow", "srresnet"])
def test_training_lowers_the_loss(notebook, arm):
    torch.manual_seed(0)
    network = notebook.build(arm, CUT)
    before = notebook.validation_loss(network)
    job = notebook.Job(arm, 0, 3, 3e-3, 0.1 if arm == "gan" else 0.0)
    history = notebook.train(job, network, notebook.splits.train)
    assert len(history) == 3
    assert history.validation_loss.iloc[-1] < before
    if arm == "gan":
        assert 0 <= history.before[0] <= 1
        assert history.told.between(0, 1).all()


def test_interrupted_training_continues_bit_for_bit(notebook, tmp_path):
    def trained(folder):
        notebook.run = SimpleNamespace(directory=tmp_path / folder)
        torch.manual_seed(0)
        network = notebook.build("gan", CUT)
        job = notebook.Job("gan", 0, 2, 3e-3, 0.1)
        notebook.train(job, network, notebook.splits.train[:16])
        return network.state_dict()

    straight = trained("straight")
    resumed = in_two_parts(notebook, lambda: trained("interrupted"), 2)
    assert_same_weights(resumed, straight)


# Measurements --------------------------------------------------------------------------------


def test_judges_find_a_shift_and_nothing_in_noise(notebook):
    jet = np.repeat(np.arange(300), 4)
    a, b = np.random.default_rng(0).normal(size=(2, len(jet), 6, 6, 6)).astype(np.float32)
    for fake, tells in ((b + 0.5, True), (b, False)):
        scores = notebook.judged("toy", a, fake, jet)
        label = np.repeat([0, 1], len(scores["jet"]) // 2)
        for judge in ("trees", "CNN"):
            auc = notebook.roc_auc(label, scores[judge])
            assert auc > 0.9 if tells else abs(auc - 0.5) < 0.08
        assert scores["jet"].min() == 150


def test_measurements_of_the_truth_are_perfect(notebook):
    rows, jets = np.arange(40), notebook.dataset
    found = notebook.measure("truth", lambda _, n: jets.pair(rows[50 * n :][:50])[1], jets, rows)
    assert (found.tracks[:, 0] == 0).all()
    assert (found.similarity[0] > 100).all()
    np.testing.assert_allclose(found.similarity[1], 1)
    assert found.impossible.tolist() == [0] * 40
    assert len(found.observables) == 40
    _, high = jets.pair(rows)
    for name, pixels in (
        ("track pT", high[:, 0]),
        ("ECAL", high[:, 1]),
        ("ECAL, below zero", -high[:, 1]),
    ):
        assert found.spectrum[name].sum() == ((pixels >= 0.02) & (pixels <= 200)).sum()
    row, column = np.mgrid[-62:63, -62:63]
    inside = torch.as_tensor(row**2 + column**2 <= 40**2)  # of the last ring
    np.testing.assert_allclose(found.radial.sum(1), (high * inside).sum((0, 2, 3)), rtol=1e-4)


def test_intervals_of_ratios_contain_the_spread_of_trainings(notebook):
    true = np.ones(50)
    entry = notebook.ratio_entry([0.9 * true, 1.0 * true, 1.1 * true], [true] * 3)
    width = 4.3027 * 0.1 / 3**0.5  # Student's t for two degrees of freedom; jets add nothing here
    assert entry["value"] == pytest.approx(1)
    assert entry["high"] - 1 == pytest.approx(width, rel=1e-3)
    assert 1 - entry["low"] == pytest.approx(width, rel=1e-3)
    alone = notebook.ratio_entry([np.arange(50.0)], [true])
    error = np.arange(50).std() / 50**0.5
    assert alone["high"] - alone["value"] == pytest.approx(1.96 * error, rel=0.2)


def test_true_patches_are_compared_with_those_of_other_cells(notebook):
    rows, jets, each = np.arange(20), notebook.dataset, 4
    ((number, low, high, made),) = notebook.images_of(None, jets, rows)
    real, fake, jet = notebook.patches_of(number, low, high, made, each)
    assert real.shape == fake.shape == (20 * each, 6, 6, 6)
    assert jet.tolist() == np.repeat(rows, each).tolist()
    assert not np.array_equal(real, fake)
    real, fake, jet = notebook.patches_of(number + 3, low, high, 2 * high, each)
    np.testing.assert_array_equal(real[:, 3:], fake[:, 3:])
    assert jet.min() == 150
    held = notebook.patches(high, *notebook.active_cells(low)).numpy()
    owner = notebook.active_cells(low)[0].numpy()
    for patch, k in zip(real, jet - 150, strict=True):
        assert (np.abs(held[owner == k] - patch).max((1, 2, 3)) < 1e-6).any()


def test_track_errors_are_those_of_cells_with_one_track_each(notebook):
    true = torch.zeros(3, 3, 125, 125)
    true[:, 0, 39, 39] = 1.0  # upper left pixel of cell (20, 20)
    true[1, 0, 41, 41] = 2.0  # another track, in cell (21, 21)
    made = true.roll((1, 1), (2, 3))  # lower right pixels
    made[2, 0, 39, 40] = 1.0  # a second track of the third jet: its cell does not count
    error, blind = notebook.track_errors(made, true).T
    np.testing.assert_allclose(error, [2**0.5, 2 * 2**0.5, 0], rtol=1e-5)
    one = (2 + 2**0.5) / 4
    np.testing.assert_allclose(blind, [one, 2 * one, 0], rtol=1e-5)


def test_exported_graph_takes_the_official_layout_and_its_noise(notebook, tmp_path):
    network = random_network(notebook, "gan", 0.05)
    batches = []
    for n in (2, 1, 5):
        low = notebook.dataset.pair(np.arange(n))[0]
        batches.append((low, noise_for(network, low, n)))
    path = tmp_path / "graph.onnx"
    export_onnx(network, batches[0], path, ["X_jets_LR", "noise"], ["X_jets"], {"task": "toy"})
    assert notebook.differing(network, path, batches) < 0.01
    assert notebook.differing(random_network(notebook, "gan", 0.3), path, batches) > 0.1
    assert path.stat().st_size < 1_250_000  # two graphs and weights: 3 MB are published
