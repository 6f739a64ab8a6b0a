"""The notebook of task 2h: shapes, nodes, edges, invariances, networks, training, export."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from torch import nn
from torch_geometric.nn import EdgeConv

from e2e_utils.notebook import load_definitions
from e2e_utils.onnx_export import check_parity, export_onnx
from e2e_utils.sparse_images import SparseImages
from e2e_utils.splits import split
from tests.interrupted_training import assert_same_weights, in_two_parts

COUNTS = (6, 6, 3)
ON_NODES = ("dynamic_edges", "pair_attention", "deep_sets")


def toy_jets(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 3, 125, 125) of random hits near the centre; class 1 is wider."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    x = np.zeros((n, 3, 125, 125), np.float32)
    for jet in range(n):
        width = 4 + 8 * y[jet]
        for channel in (0, 1):
            row, column = np.clip(62 + rng.normal(0, width, (2, 9)), 0, 124).astype(int)
            x[jet, channel, row, column] = rng.exponential(5, 9) + 0.3
        for tower in np.clip(12 + rng.normal(0, width / 5, (3, 2)), 0, 24).astype(int) * 5:
            block = (jet, 2, slice(tower[0], tower[0] + 5), slice(tower[1], tower[1] + 5))
            x[block] = (rng.exponential(5) + 1.3) / 25
    return x, y


@pytest.fixture
def notebook(tmp_path):
    """The notebook's definitions with toy jets in place of its variables."""
    module = load_definitions("task2h_graph_jets")
    x, y = toy_jets(200)
    module.CONFIG = replace(module.CONFIGS["smoke"], counts=COUNTS)
    module.y, module.splits = y, split(y, seed=0)
    module.main = module.prepare(SparseImages.from_dense(x), y)
    module.samples, module.trained = {"main": module.main}, {}
    module.run = SimpleNamespace(directory=tmp_path)
    return module


@pytest.fixture
def short(notebook):
    return notebook.Schedule(2, 32, 3e-3)


def random_nodes(notebook, n: int = 5, size: int = 15, padded: int = 4) -> torch.Tensor:
    """Nodes at random whole pixels, the last ones padding."""
    generator = torch.Generator().manual_seed(1)
    nodes = torch.rand(n, size, 7, generator=generator)
    place = [torch.randperm(125 * 125, generator=generator)[:size] for _ in range(n)]
    place = torch.stack(place)
    nodes[..., 0], nodes[..., 1] = place // 125, place % 125
    nodes[..., 2:6] = nodes[..., 2:6] * 10 + 0.1
    nodes[..., 6] = torch.randint(0, 3, (n, size), generator=generator)
    nodes[:, size - padded :, notebook.ENERGY] = 0
    return nodes


# Shapes, nodes, attributes -----------------------------------------------------------------------


def test_a_tower_counts_once_whatever_its_pixels(notebook):
    x = np.zeros((1, 3, 125, 125), np.float32)
    x[0, 2, 60:65, 60:65] = 2 / 25
    nodes, attributes = notebook.to_graph(torch.from_numpy(x), COUNTS)
    assert (nodes[0, :, notebook.ENERGY] > 0).sum() == 1
    tower = nodes[0, 12]
    assert tower[notebook.ENERGY].item() == pytest.approx(2, rel=1e-5)
    assert tower[: notebook.COLUMN + 1].tolist() == [62, 62]
    table = attributes.view(3, 6, 3)  # energy, number and squares, region, channel
    assert table[0, :, 2].numpy() == pytest.approx(np.log(1 + 2), rel=1e-5)
    assert table[1, :, 2].numpy() == pytest.approx(np.log(1 + 25), rel=1e-5)
    assert (table[:, :, :2] == 0).all()


def test_attributes_count_pixels_within_circles(notebook):
    x = torch.zeros(1, 3, 125, 125)
    x[0, 1, 62, [62, 75, 90, 120]] = torch.tensor([1.0, 2.0, 4.0, 8.0])  # 0, 0.23, 0.49, 1.0 away
    table = notebook.graph_attributes(x).view(3, 6, 3).exp() - 1
    np.testing.assert_allclose(table[0, :, 1], [15, 7, 3, 1, 1, 1], rtol=1e-4)
    np.testing.assert_allclose(table[1, :, 1], [4, 3, 2, 1, 1, 1], rtol=1e-4)
    np.testing.assert_allclose(table[2, :, 1] * 10, [85, 21, 5, 1, 1, 1], rtol=1e-4)


def test_nodes_are_the_highest_pixels_of_each_channel(notebook):
    x, _ = toy_jets(4)
    nodes = notebook.jet_nodes(torch.from_numpy(x), COUNTS).numpy()
    for jet in range(4):
        for channel in (0, 1):
            part = nodes[jet, channel * 6 : channel * 6 + 6]
            highest = np.sort(x[jet, channel].ravel())[::-1][:6]
            np.testing.assert_allclose(part[:, notebook.ENERGY], highest, rtol=1e-5)
            assert (part[:, notebook.KIND] == channel).all()
            for row, column, track, ecal, hcal, *_ in part:
                row, column = int(row), int(column)
                near = np.s_[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
                assert x[jet, channel, row, column] > 0
                assert track == pytest.approx(x[jet, 0][near].sum(), rel=1e-4, abs=1e-5)
                assert ecal == pytest.approx(x[jet, 1][near].sum(), rel=1e-4, abs=1e-5)
                first = row // 5 * 5, column // 5 * 5
                tower = np.s_[first[0] : first[0] + 5, first[1] : first[1] + 5]
                assert hcal == pytest.approx(x[jet, 2][tower].sum(), rel=1e-4, abs=1e-5)


def test_equal_energies_are_chosen_by_place(notebook):
    x = torch.zeros(1, 3, 125, 125)
    x[0, 1, 40:42, 40:42] = 1.0
    first = notebook.jet_nodes(x, (1, 2, 1))[0, 1:3]
    assert first[:, : notebook.COLUMN + 1].tolist() == [[41, 41], [41, 40]]
    order = notebook.TIE_BREAKER.view(125, 125)[10:15, 10:15].flatten()
    assert len(order.unique()) == 25


def test_a_prepared_sample_is_the_same_in_parts(notebook, monkeypatch):
    x, y = toy_jets(30)
    images = SparseImages.from_dense(x)
    whole = notebook.prepare(images, y)
    ordinary = notebook.in_parts
    monkeypatch.setattr(notebook, "in_parts", lambda rows: ordinary(rows, 7))
    parts = notebook.prepare(images, y)
    torch.testing.assert_close(parts.nodes, whole.nodes)
    torch.testing.assert_close(parts.attributes, whole.attributes)
    np.testing.assert_allclose(parts.shapes, whole.shapes, rtol=1e-4, atol=1e-6)
    assert not whole.shapes.columns.duplicated().any()


# Edges --------------------------------------------------------------------------------------------


def test_nearest_neighbours_against_scipy(notebook):
    nodes = random_nodes(notebook)
    mask = nodes[..., notebook.ENERGY] > 0
    neighbour, real = notebook.nearest_in_space(nodes[..., :2], mask)
    assert real[mask].all()
    assert not real[~mask].any()
    for jet in range(len(nodes)):
        place = nodes[jet, mask[jet], :2].numpy()
        distance, _ = cKDTree(place).query(place, notebook.NEIGHBOURS + 1)
        for node in range(len(place)):
            found = neighbour[jet, node].tolist()
            assert node not in found
            assert len(set(found)) == notebook.NEIGHBOURS
            ours = np.linalg.norm(place[found] - place[node], axis=1)
            np.testing.assert_allclose(np.sort(ours), distance[node, 1:], rtol=1e-6)


def test_of_equally_distant_neighbours_the_earlier_one_comes_first(notebook):
    grid = torch.tensor([[[60.0, 60], [61, 60], [60, 61], [59, 60], [60, 59]]])
    neighbour, _ = notebook.nearest_in_space(grid, torch.ones(1, 5, dtype=torch.bool))
    assert neighbour[0, 0].tolist() == [1, 2, 3, 4]


def test_nearest_in_features_against_scipy(notebook):
    x = torch.randn(3, 12, 7, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(3, 12, dtype=torch.bool)
    neighbour, real = notebook.nearest_in_features(x, mask)
    assert real.all()
    for jet in range(3):
        _, expected = cKDTree(x[jet].numpy()).query(x[jet].numpy(), notebook.NEIGHBOURS + 1)
        np.testing.assert_array_equal(neighbour[jet].numpy(), expected[:, 1:])


def test_more_neighbours_than_nodes_are_marked_as_not_real(notebook):
    nodes = random_nodes(notebook, size=6, padded=3)
    mask = nodes[..., notebook.ENERGY] > 0
    _, real = notebook.nearest_in_space(nodes[..., :2], mask)
    assert real.shape[2] == 5
    assert (real.sum(2)[mask] == 2).all()


def without_edge_features(notebook, inputs: int, outputs: int) -> tuple[nn.Module, EdgeConv]:
    """A layer whose edge features count nothing, and EdgeConv with the same weights."""
    layer = notebook.EdgeLayer(inputs, 16, outputs)
    nn.init.zeros_(layer.edge.weight)
    linear = nn.Linear(2 * inputs, outputs)  # acts on (x_i, x_j - x_i)
    reference = EdgeConv(nn.Sequential(linear, nn.ReLU()), aggr="mean")  # draws new weights
    with torch.no_grad():
        own = layer.own.weight + layer.other.weight
        linear.weight.copy_(torch.cat([own, layer.other.weight], 1))
        linear.bias.copy_(layer.own.bias)
    return layer, reference


def test_layer_is_the_edgeconv_of_pytorch_geometric(notebook):
    torch.manual_seed(0)
    cloud = notebook.to_cloud(random_nodes(notebook))
    neighbour, real = notebook.nearest_in_space(cloud.grid, cloud.mask)
    layer, reference = without_edge_features(notebook, 4, 8)
    x = torch.randn(*cloud.mask.shape, 4)
    ours = layer.heard(x, neighbour, real, notebook.edge_features(cloud.place, neighbour))
    batch, size, _ = neighbour.shape
    first = torch.arange(batch).view(-1, 1, 1) * size
    target = torch.arange(size).view(1, -1, 1) + first
    edges = torch.stack([neighbour + first, target.expand_as(neighbour)])[:, real]  # (2, E)
    theirs = reference(x.flatten(0, 1), edges).view(*ours.shape)
    torch.testing.assert_close(ours[cloud.mask], theirs[cloud.mask], rtol=1e-4, atol=1e-5)


def test_messages_against_a_loop_over_edges(notebook):
    torch.manual_seed(0)
    cloud = notebook.to_cloud(random_nodes(notebook, n=2, size=8, padded=2))
    neighbour, real = notebook.nearest_in_space(cloud.grid, cloud.mask)
    layer, x = notebook.EdgeLayer(3, 4, 5), torch.randn(2, 8, 3)
    found = layer.heard(x, neighbour, real, notebook.edge_features(cloud.place, neighbour))
    for jet in range(2):
        for node in range(6):
            messages = []
            for other in set(range(6)) - {node}:
                d = cloud.place[jet, node] - cloud.place[jet, other]
                log_r = (d @ d + notebook.PIXEL**2 / 4).sqrt().log()
                e = torch.stack([*(d.abs() * 4), 0.5 * log_r + 1])
                h = layer.own(x[jet, node]) + layer.other(x[jet, other]) + layer.edge(e)
                messages.append(h.relu())
            expected = torch.stack(messages).mean(0)
            torch.testing.assert_close(found[jet, node], expected, rtol=1e-4, atol=1e-5)


def test_only_the_last_layer_chooses_in_features_and_fixed_graphs_are_one_graph(notebook):
    torch.manual_seed(0)
    cloud = notebook.to_cloud(notebook.main.nodes[:10])
    space, _ = notebook.nearest_in_space(cloud.grid, cloud.mask)
    for edges in ("dynamic", "fixed"):
        _, graphs = notebook.DynamicEdgeNetwork(edges).graphs(cloud)
        assert len(graphs) == 3
        assert all(torch.equal(graph[0], space) for graph in graphs[:2])
        assert torch.equal(graphs[2][0], space) == (edges == "fixed")
    _, graphs = notebook.DynamicEdgeNetwork("none").graphs(cloud)
    assert graphs == [(), (), ()]


def test_pair_features_in_closed_form(notebook):
    nodes = random_nodes(notebook)
    cloud = notebook.to_cloud(nodes)
    found = notebook.pair_features(cloud)[0].numpy()
    energy, place = nodes[0, :, notebook.ENERGY].numpy(), cloud.place[0].numpy()
    for i, j in ((0, 1), (3, 2), (5, 9)):
        r = np.sqrt(((place[i] - place[j]) ** 2).sum() + (notebook.PIXEL / 2) ** 2)
        low, both = min(energy[i], energy[j]), energy[i] + energy[j]
        expected = [r, low * r, low / both, energy[i] * energy[j] * r**2]
        np.testing.assert_allclose(found[i, j], np.log(expected), rtol=1e-4, atol=1e-4)


def test_attention_against_a_loop_over_nodes(notebook):
    torch.manual_seed(0)
    layer = notebook.AttentionLayer(8, 2).eval()
    x, bias, pairs = torch.randn(1, 5, 8), torch.randn(1, 2, 5, 5), torch.randn(1, 5, 5, 4)
    q, k, v = layer.qkv(layer.norm(x))[0].split(8, 1)  # (N, 8) each
    heard = []
    for node in range(5):
        of_nodes, of_pairs = [], []
        for head in range(2):
            part = slice(4 * head, 4 * head + 4)
            score = torch.stack(
                [q[node, part] @ k[j, part] / 2 + bias[0, head, node, j] for j in range(5)]
            )
            weight = score.softmax(0)
            of_nodes.append(sum(weight[j] * v[j, part] for j in range(5)))
            of_pairs.append(sum(weight[j] * pairs[0, node, j] for j in range(5)))
        heard.append(torch.cat(of_nodes + of_pairs))
    between = x[0] + layer.out(torch.stack(heard))
    up = torch.nn.functional.gelu(layer.up(layer.norm_2(between)))
    expected = between + layer.down(up)
    torch.testing.assert_close(layer(x, bias, pairs)[0], expected, rtol=1e-4, atol=1e-5)


# Networks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ON_NODES)
def test_order_of_nodes_and_padding_do_not_matter(notebook, arm):
    torch.manual_seed(0)
    model = notebook.build(arm).eval()
    nodes, attributes = notebook.main.nodes[:20].clone(), notebook.main.attributes[:20]
    # Equally distant neighbours are chosen by the order of the nodes: this test shall have none.
    nodes[..., : notebook.COLUMN + 1] += torch.rand(*nodes.shape[:2], 2)
    expected = model(nodes, attributes)
    mixed = nodes[:, torch.randperm(nodes.shape[1])]
    torch.testing.assert_close(model(mixed, attributes), expected, rtol=1e-3, atol=1e-4)
    padding = torch.rand(20, 7, 7)
    padding[..., notebook.ENERGY] = 0
    model.kept = list(range(nodes.shape[1] + 7))
    longer = torch.cat([nodes, padding], 1)
    torch.testing.assert_close(model(longer, attributes), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("arm", ON_NODES)
def test_mirror_images_give_the_same_logit(notebook, arm):
    torch.manual_seed(0)
    model = notebook.build(arm).eval()
    x = torch.from_numpy(toy_jets(8)[0])
    expected = model(*notebook.to_graph(x, COUNTS))
    for axes in ((2,), (3,), (2, 3)):
        mirrored = notebook.to_graph(x.flip(axes), COUNTS)
        # the earlier of equally distant neighbours may be another one
        torch.testing.assert_close(model(*mirrored), expected, rtol=1e-2, atol=2e-2)


def test_mirrored_batches_hold_every_reflection_and_nothing_else(notebook):
    x = torch.from_numpy(toy_jets(1)[0]).expand(64, -1, -1, -1)
    found = notebook.mirrored(x, torch.Generator().manual_seed(0))
    expected = [x[0].flip(axes) for axes in ((), (1,), (2,), (1, 2))]
    kinds = [[torch.equal(one, other) for other in expected].index(True) for one in found]
    assert set(kinds) == {0, 1, 2, 3}


@pytest.mark.parametrize("arm", ON_NODES)
def test_hidden_channels_really_are_hidden(notebook, arm):
    x, other = (torch.from_numpy(toy_jets(6, seed)[0]) for seed in (0, 1))
    torch.manual_seed(0)
    for channel in range(3):
        mixed = other.clone()
        mixed[:, channel] = x[:, channel]
        model = notebook.build(arm, (("channels", (channel,)),)).eval()
        logits = [model(*notebook.to_graph(jets, COUNTS)) for jets in (x, mixed, other)]
        torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(logits[0], logits[2], atol=1e-4)


def test_half_the_nodes_are_the_hardest_of_each_kind(notebook):
    model = notebook.build("deep_sets", (("share", 0.5),))
    assert model.kept == [0, 1, 2, 6, 7, 8, 12, 13]
    energy = notebook.main.nodes[..., notebook.ENERGY]
    assert (energy[:, :3].amin(1) >= energy[:, 3:6].amax(1)).all()


def test_without_attributes_only_nodes_count(notebook):
    nodes, attributes = notebook.main.nodes[:8], notebook.main.attributes[:8]
    for options, same in (((), False), ((("attributes", False),), True)):
        torch.manual_seed(0)
        model = notebook.build("deep_sets", options).eval()
        logits = model(nodes, attributes), model(nodes, attributes.flip(0))
        assert torch.allclose(*logits) == same


@pytest.mark.parametrize(
    ("arm", "options", "unused"),
    [
        ("dynamic_edges", {}, ()),
        ("dynamic_edges", {"edges": "fixed", "share": 0.5}, ()),
        ("dynamic_edges", {"edges": "none"}, (".other.", ".edge.")),
        ("dynamic_edges", {"channels": (0,)}, ()),
        ("pair_attention", {}, ()),
        ("deep_sets", {}, ()),
        ("cnn", {}, ()),
    ],
)
def test_every_network_gives_one_logit_and_reaches_every_weight(notebook, arm, options, unused):
    torch.manual_seed(0)
    model = notebook.build(arm, tuple(options.items()))
    logits = model(*notebook.inputs_of(arm, notebook.main, np.arange(32)))
    assert logits.shape == (32,)
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        if any(part in name for part in unused):
            assert parameter.grad is None, name
            continue
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("arm", [*ON_NODES, "cnn"])
def test_empty_images_give_finite_logits(notebook, arm):
    model, empty = notebook.build(arm).eval(), torch.zeros(2, 3, 125, 125)
    nodes, attributes = notebook.to_graph(empty, COUNTS)
    x = empty[:, :, notebook.CENTRE, notebook.CENTRE] if arm == "cnn" else nodes
    assert torch.isfinite(model(x, attributes)).all()


# Training -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ["dynamic_edges", "pair_attention"])
def test_network_memorises_one_batch(notebook, arm):
    assert notebook.overfit_one_batch(arm, steps=60) < 0.1


def test_of_rates_that_noise_cannot_tell_the_middle_one_is_taken(notebook):
    aucs = {3e-4: 0.8080, 1e-3: 0.8082, 3e-3: 0.8078, 1e-2: 0.7900}
    assert notebook.middle_of_best(aucs) == 1e-3
    assert notebook.middle_of_best(aucs | {1e-2: 0.8100}) == 1e-2
    assert notebook.middle_of_best({1e-3: 0.81, 3e-3: 0.8098}) == 3e-3


def test_jobs_have_names_of_their_own(notebook, short):
    job = notebook.Job("dynamic_edges", 0, short)
    others = [
        job._replace(arm="cnn"),
        job._replace(seed=1),
        job._replace(schedule=replace(short, jets=50)),
        job._replace(schedule=replace(short, learning_rate=1e-3)),
        job._replace(options=(("edges", "fixed"),)),
    ]
    assert len({job.name, *(other.name for other in others)}) == 6
    names = [
        notebook.Job(arm, 0, short, options).name for arm, options in notebook.ABLATIONS.values()
    ]
    assert len(set(names)) == len(names)


def test_training_learns_and_comes_back_with_its_best_weights(notebook, short):
    job = notebook.Job("dynamic_edges", 0, replace(short, passes=6))
    history, weights = notebook.run_job(job)
    assert len(history) == 6
    assert history.score.max() > 0.8
    assert all(isinstance(array, np.ndarray) for array in weights.values())  # cross processes
    notebook.trained[job] = history, weights
    rows = notebook.splits.validation
    logits = notebook.predict(job.arm, notebook.restored(job), notebook.main, rows)
    assert notebook.roc_auc(notebook.y[rows], logits) == pytest.approx(notebook.best(job), abs=1e-6)


@pytest.mark.parametrize("arm", ["pair_attention", "cnn"])
def test_interrupted_training_continues_where_it_stopped(notebook, short, arm):
    job = notebook.Job(arm, 0, replace(short, passes=3, jets=64))
    directory = notebook.run.directory
    notebook.run = SimpleNamespace(directory=directory / "straight")
    _, straight = notebook.run_job(job)
    notebook.run = SimpleNamespace(directory=directory / "resumed")
    _, resumed = in_two_parts(notebook, lambda: notebook.run_job(job), 3)
    assert_same_weights(resumed, straight)


@pytest.mark.parametrize("arm", [*ON_NODES, "cnn"])
def test_exported_graphs_take_official_images(notebook, tmp_path, arm):
    torch.manual_seed(0)
    raw = [torch.from_numpy(toy_jets(n, seed=n)[0]) for n in (2, 1, 7)]
    raw += [torch.zeros(3, 3, 125, 125), -raw[0]]
    graph, path = notebook.RawInput(notebook.build(arm), COUNTS).eval(), tmp_path / "graph.onnx"
    export_onnx(graph, raw[0], path, ["x"], ["probability"], {"task": "toy"})
    assert check_parity(graph, path, raw, tolerance=1e-3) <= 1e-3
