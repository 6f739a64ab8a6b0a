"""The notebook of task 2h: shapes, nodes, edges, invariances, networks, training, export."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from e2e_utils.notebook import load_definitions
from e2e_utils.onnx_export import check_parity, export_onnx
from e2e_utils.sparse_images import SparseImages
from e2e_utils.splits import split
from tests.interrupted_training import assert_same_weights, in_two_parts

COUNTS = (6, 6, 3)
GRAPH_ARMS = ("dynamic edges", "pair attention", "deep sets")


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
    module.images, module.y, module.splits = SparseImages.from_dense(x), y, split(y, seed=0)
    module.graphs = {"channels": module.to_graph(torch.from_numpy(x), COUNTS)}
    module.run = SimpleNamespace(directory=tmp_path)
    return module


@pytest.fixture
def short(notebook):
    return notebook.Schedule(2, 32, 3e-3)


def random_nodes(notebook, n: int = 5, size: int = 20, padded: int = 4) -> torch.Tensor:
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


def test_shapes_of_two_tracks_in_closed_form(notebook):
    x = np.zeros((1, 3, 125, 125), np.float32)
    x[0, 0, 60, 60], x[0, 0, 60, 70] = 3.0, 1.0
    x[0, 1, 60, 60] = -2.0  # noise is left out
    shapes = notebook.jet_shapes(SparseImages.from_dense(x), np.arange(1)).iloc[0]
    apart = 10 * notebook.PIXEL
    assert shapes.track_multiplicity == 2
    assert shapes.track_n_hard == 1
    assert shapes.ecal_multiplicity == 0
    assert shapes.track_sum == pytest.approx(4, rel=1e-5)
    assert shapes.track_ptd == pytest.approx(np.sqrt(10) / 4, rel=1e-5)
    assert shapes.track_leading == pytest.approx(0.75, rel=1e-5)
    # distances to the centroid: a quarter and three quarters of the way
    assert shapes.track_width == pytest.approx((3 * 0.25 + 0.75) * apart / 4, rel=1e-5)
    assert shapes.track_major == pytest.approx((3 * 0.25**2 + 0.75**2) * apart**2 / 4, rel=1e-4)
    assert shapes.track_minor == pytest.approx(0, abs=1e-8)
    assert shapes["track_ring_0.05"] == pytest.approx(0.75, rel=1e-5)
    assert shapes["track_ring_0.2"] == pytest.approx(0.25, rel=1e-5)


def test_a_tower_counts_once_whatever_its_pixels(notebook):
    x = np.zeros((1, 3, 125, 125), np.float32)
    x[0, 2, 60:65, 60:65] = 2 / 25
    shapes = notebook.jet_shapes(SparseImages.from_dense(x), np.arange(1)).iloc[0]
    assert shapes.hcal_multiplicity == pytest.approx(1, rel=1e-5)
    assert shapes.hcal_sum == pytest.approx(2, rel=1e-4)
    nodes, attributes = notebook.to_graph(torch.from_numpy(x), COUNTS)
    assert (nodes[0, :, notebook.ENERGY] > 0).sum() == 1
    tower = nodes[0, 12]
    assert tower[notebook.ENERGY].item() == pytest.approx(2, rel=1e-5)
    assert tower[: notebook.COLUMN + 1].tolist() == [62, 62]
    table = attributes.view(3, 6, 3)  # energy, number and squares, region, channel
    assert table[0, :, 2].numpy() == pytest.approx(np.log(1 + 2) / 2 - 2, rel=1e-5)
    assert table[1, :, 2].numpy() == pytest.approx(np.log(1 + 25) / 2 - 2, rel=1e-5)
    assert (table[:, :, :2] == -2).all()


def test_attributes_count_pixels_within_circles(notebook):
    x = torch.zeros(1, 3, 125, 125)
    x[0, 1, 62, [62, 75, 90, 120]] = torch.tensor([1.0, 2.0, 4.0, 8.0])  # 0, 0.23, 0.49, 1.0 away
    table = ((notebook.graph_attributes(x).view(3, 6, 3) + 2) * 2).exp() - 1
    np.testing.assert_allclose(table[0, :, 1], [15, 7, 3, 1, 1, 1], rtol=1e-4)
    np.testing.assert_allclose(table[1, :, 1], [4, 3, 2, 1, 1, 1], rtol=1e-4)
    np.testing.assert_allclose(table[2, :, 1] * 10, [85, 21, 5, 1, 1, 1], rtol=1e-4)


def test_nodes_are_the_highest_pixels_of_each_channel(notebook):
    x, _ = toy_jets(4)
    nodes = notebook.channel_nodes(torch.from_numpy(x), COUNTS).numpy()
    for jet in range(4):
        for channel in (0, 1):
            part = nodes[jet, channel * 6 : channel * 6 + 6]
            highest = np.sort(x[jet, channel].ravel())[::-1][:6]
            np.testing.assert_allclose(part[:, notebook.ENERGY], highest, rtol=1e-5)
            assert (part[:, notebook.KIND] == channel).all()
            for row, column, track, ecal, hcal, *_ in part:
                near = np.s_[
                    max(int(row) - 1, 0) : int(row) + 2, max(int(column) - 1, 0) : int(column) + 2
                ]
                assert x[jet, channel, int(row), int(column)] > 0
                assert track == pytest.approx(x[jet, 0][near].sum(), rel=1e-4, abs=1e-5)
                assert ecal == pytest.approx(x[jet, 1][near].sum(), rel=1e-4, abs=1e-5)
                tower = np.s_[
                    int(row) // 5 * 5 : int(row) // 5 * 5 + 5,
                    int(column) // 5 * 5 : int(column) // 5 * 5 + 5,
                ]
                assert hcal == pytest.approx(x[jet, 2][tower].sum(), rel=1e-4, abs=1e-5)


def test_equal_energies_are_chosen_by_place(notebook):
    x = torch.zeros(1, 3, 125, 125)
    x[0, 1, 40:42, 40:42] = 1.0
    first = notebook.channel_nodes(x, (1, 2, 1))[0, 1:3]
    assert first[:, : notebook.COLUMN + 1].tolist() == [[41, 41], [41, 40]]
    order = notebook.TIE_BREAKER.view(125, 125)[10:15, 10:15].flatten()
    assert len(order.unique()) == 25


@pytest.mark.parametrize("selection", ["merged", "towers"])
def test_other_selections_keep_the_energy(notebook, selection):
    x, _ = toy_jets(3)
    nodes = notebook.to_graph(torch.from_numpy(x), (100, 100, 100), selection)[0]
    found = nodes[..., notebook.ENERGY].sum(1).numpy()
    np.testing.assert_allclose(found, x.sum((1, 2, 3)), rtol=0.05)
    channels = nodes[..., 2 : notebook.ENERGY].sum((1, 2)).numpy()
    np.testing.assert_allclose(channels, x.sum((1, 2, 3)), rtol=1e-3)


def test_nearest_neighbours_against_scipy(notebook):
    nodes = random_nodes(notebook)
    mask = nodes[..., notebook.ENERGY] > 0
    neighbour, real = notebook.knn_in_space(nodes, mask, 5)
    assert real[mask].all()
    assert not real[~mask].any()
    for jet in range(len(nodes)):
        place = nodes[jet, mask[jet], : notebook.COLUMN + 1].numpy()
        distance, _ = cKDTree(place).query(place, 6)
        for node in range(len(place)):
            found = neighbour[jet, node].tolist()
            assert node not in found
            assert len(set(found)) == 5
            ours = np.linalg.norm(place[found] - place[node], axis=1)
            np.testing.assert_allclose(np.sort(ours), distance[node, 1:], rtol=1e-6)


def test_nearest_in_features_against_scipy(notebook):
    x = torch.randn(3, 12, 7, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(3, 12, dtype=torch.bool)
    neighbour, real = notebook.knn_in_features(x, mask, 4)
    assert real.all()
    for jet in range(3):
        _, expected = cKDTree(x[jet].numpy()).query(x[jet].numpy(), 5)
        np.testing.assert_array_equal(neighbour[jet].numpy(), expected[:, 1:])


def test_radius_graph_against_scipy(notebook):
    nodes = random_nodes(notebook)
    mask = nodes[..., notebook.ENERGY] > 0
    radius = 0.6
    neighbour, real = notebook.within_radius(nodes, mask, radius)
    for jet in range(len(nodes)):
        place = nodes[jet, mask[jet], : notebook.COLUMN + 1].numpy() * notebook.PIXEL
        expected = cKDTree(place).query_ball_point(place, radius)
        for node, others in enumerate(expected):
            found = neighbour[jet, node][real[jet, node]].tolist()
            assert sorted(found) == sorted(set(others) - {node})


def test_more_neighbours_than_nodes_are_marked_as_not_real(notebook):
    nodes = random_nodes(notebook, size=6, padded=3)
    mask = nodes[..., notebook.ENERGY] > 0
    _, real = notebook.knn_in_space(nodes, mask, 16)
    assert real.shape[2] == 5
    assert (real.sum(2)[mask] == 2).all()


def test_layer_is_the_edgeconv_of_pytorch_geometric(notebook):
    torch.manual_seed(0)
    nodes = random_nodes(notebook)
    cloud = notebook.to_cloud(nodes)
    neighbour, real = notebook.knn_in_space(nodes, cloud.mask, 5)
    layer = notebook.EdgeLayer(4, 8)
    torch.nn.init.zeros_(layer.edge.weight)
    x = torch.randn(*cloud.mask.shape, 4)
    ours = layer.messages(x, neighbour, real, notebook.edge_features(cloud.place, neighbour))
    index = notebook.edge_index(neighbour, real)
    theirs = notebook.reference_layer(layer)(x.flatten(0, 1), index).view(*ours.shape)
    torch.testing.assert_close(ours[cloud.mask], theirs[cloud.mask], rtol=1e-4, atol=1e-5)


def test_messages_against_a_loop_over_edges(notebook):
    torch.manual_seed(0)
    nodes = random_nodes(notebook, n=2, size=8, padded=2)
    cloud = notebook.to_cloud(nodes)
    neighbour, real = notebook.knn_in_space(nodes, cloud.mask, 6)
    layer, x = notebook.EdgeLayer(3, 4), torch.randn(2, 8, 3)
    edges = notebook.edge_features(cloud.place, neighbour)
    found = layer.messages(x, neighbour, real, edges)
    for jet in range(2):
        for node in range(6):
            messages = []
            for other in range(6):
                if other == node:
                    continue
                d = cloud.place[jet, node] - cloud.place[jet, other]
                e = torch.stack(
                    [*(d.abs() * 4), 0.5 * ((d @ d + notebook.PIXEL**2 / 4).sqrt()).log() + 1]
                )
                h = layer.own(x[jet, node]) + layer.other(x[jet, other]) + layer.edge(e)
                messages.append(h.relu())
            expected = torch.stack(messages).mean(0)
            torch.testing.assert_close(found[jet, node], expected, rtol=1e-4, atol=1e-5)


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


@pytest.mark.parametrize("arm", GRAPH_ARMS)
def test_order_of_nodes_and_padding_do_not_matter(notebook, arm):
    torch.manual_seed(0)
    model = notebook.build(arm).eval()
    nodes, attributes = notebook.graphs["channels"]
    nodes, attributes = nodes[:20], attributes[:20]
    # Equally distant neighbours are chosen by the order of the nodes: this test shall have none.
    nodes = nodes.clone()
    nodes[..., : notebook.COLUMN + 1] += torch.rand(*nodes.shape[:2], 2)
    expected = model(nodes, attributes)
    mixed = nodes[:, torch.randperm(nodes.shape[1])]
    torch.testing.assert_close(model(mixed, attributes), expected, rtol=1e-3, atol=1e-4)
    padding = torch.rand(20, 7, 7)
    padding[..., notebook.ENERGY] = 0
    longer = torch.cat([nodes, padding], 1)
    torch.testing.assert_close(model(longer, attributes), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("arm", GRAPH_ARMS)
def test_mirror_images_give_the_same_logit(notebook, arm):
    torch.manual_seed(0)
    model = notebook.build(arm).eval()
    x = torch.from_numpy(toy_jets(8)[0])
    expected = model(*notebook.to_graph(x, COUNTS))
    for axes in ((2,), (3,), (2, 3)):
        mirrored = notebook.to_graph(x.flip(axes), COUNTS)
        # the earlier of equally distant neighbours may be another one
        torch.testing.assert_close(model(*mirrored), expected, rtol=1e-2, atol=2e-2)


def test_rotation_keeps_distances_and_full_turns_change_nothing(notebook):
    nodes = random_nodes(notebook)
    plain = notebook.to_cloud(nodes)
    turned = notebook.to_cloud(nodes, angle=torch.full((len(nodes),), 0.7))
    distances = [c.place.norm(dim=-1) for c in (plain, turned)]
    torch.testing.assert_close(*distances, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain.place, turned.place)
    again = notebook.to_cloud(nodes, angle=torch.full((len(nodes),), 2 * np.pi))
    torch.testing.assert_close(again.x, plain.x, rtol=1e-4, atol=1e-4)


def test_hidden_channels_really_are_hidden(notebook):
    x, other = (torch.from_numpy(toy_jets(6, seed)[0]) for seed in (0, 1))
    torch.manual_seed(0)
    for channel in range(3):
        mixed = other.clone()
        mixed[:, channel] = x[:, channel]
        for arm in ("dynamic edges", "pair attention"):
            model = notebook.build(arm, (("channels", (channel,)),)).eval()
            logits = [model(*notebook.to_graph(jets, COUNTS)) for jets in (x, mixed, other)]
            torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-5)
            assert not torch.allclose(logits[0], logits[2], atol=1e-4)


@pytest.mark.parametrize(
    ("arm", "options"),
    [
        ("dynamic edges", {}),
        ("dynamic edges", {"edges": "static", "k": 3}),
        ("dynamic edges", {"edges": "radius", "attributes": False}),
        ("pair attention", {}),
        ("pair attention", {"pairs": False}),
        ("deep sets", {}),
        ("cnn", {}),
    ],
)
def test_every_network_gives_one_logit_and_reaches_every_weight(notebook, arm, options):
    torch.manual_seed(0)
    model = notebook.build(arm, tuple(options.items()))
    inputs = notebook.inputs_of(arm, np.arange(32))
    logits = model(*inputs)
    assert logits.shape == (32,)
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("arm", GRAPH_ARMS)
def test_empty_images_give_finite_logits(notebook, arm):
    model = notebook.build(arm).eval()
    assert torch.isfinite(model(*notebook.to_graph(torch.zeros(2, 3, 125, 125), COUNTS))).all()


@pytest.mark.parametrize("arm", ["dynamic edges", "pair attention"])
def test_network_learns_one_batch_by_heart(notebook, arm):
    assert notebook.overfit_one_batch(arm, steps=80) < 0.1


def test_loss_is_the_formula(notebook):
    logits, target = torch.tensor([-1.3, 0.2, 4.0]), torch.tensor([0.0, 1.0, 1.0])
    expected = 0.0
    for z, t in zip(logits.tolist(), target.tolist(), strict=True):
        smooth, p = t * (1 - 0.1) + 0.05, 1 / (1 + np.exp(-z))
        expected += -(smooth * np.log(p) + (1 - smooth) * np.log(1 - p)) / 3
    assert notebook.smoothed_bce_loss(logits, target, 0.1).item() == pytest.approx(expected, 1e-6)


def test_jobs_have_names_of_their_own(notebook, short):
    job = notebook.Job("dynamic edges", 0, short)
    others = [
        replace(job, arm="cnn"),
        replace(job, seed=1),
        replace(job, jets=50),
        replace(job, selection="merged"),
        replace(job, note="ablation"),
    ]
    assert len({job.name, *(other.name for other in others)}) == 6
    names = [job.name for note in notebook.ABLATIONS for job in notebook.ablation_jobs(note)]
    assert len(set(names)) == len(names)


def test_training_learns_and_comes_back_with_its_best_weights(notebook, short):
    job = notebook.Job("dynamic edges", 0, replace(short, epochs=6))
    history, weights = notebook.run_job(job)
    assert len(history) == 6
    assert history.validation_roc_auc.max() > 0.8
    model = notebook.restored(job, weights)
    rows = notebook.splits.validation
    again = notebook.roc_auc(notebook.y[rows], notebook.predict(job.arm, model, rows))
    assert again == pytest.approx(history.validation_roc_auc.max(), abs=1e-6)
    assert all(isinstance(array, np.ndarray) for array in weights.values())  # cross processes


def test_interrupted_training_continues_where_it_stopped(notebook, short):
    job = notebook.Job("pair attention", 0, replace(short, epochs=3), jets=64)
    _, straight = notebook.run_job(replace(job, note="straight"))
    _, resumed = in_two_parts(notebook, lambda: notebook.run_job(job), 3)
    assert_same_weights(resumed, straight)


def test_exported_graphs_take_official_images(notebook, tmp_path):
    torch.manual_seed(0)
    raw = [torch.from_numpy(toy_jets(n, seed=n)[0]) for n in (2, 1, 7)]
    raw += [torch.zeros(3, 3, 125, 125), -raw[0]]
    networks = [notebook.build(arm) for arm in GRAPH_ARMS]
    for number, group in enumerate((networks, [notebook.build("cnn")])):
        graph, path = notebook.RawInput(group, COUNTS).eval(), tmp_path / f"{number}.onnx"
        export_onnx(graph, raw[0], path, ["x"], ["probability"], {"task": "toy"})
        assert check_parity(graph, path, raw, tolerance=1e-3) <= 1e-3
