"""The notebook of task 2a: tokens, masking, losses, symmetries, training, export, fractions."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from e2e_utils.notebook import load_definitions
from e2e_utils.onnx_export import check_parity, export_onnx
from e2e_utils.splits import split_last
from tests.interrupted_training import assert_same_weights, in_two_parts

TAG_UNITS = (1.0865, 1.1074, 1.2741, 1.551)


def toy_rows(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n, 21) in the units of the file: class 1 has harder leptons, jet 4 no tag."""
    rng = np.random.default_rng(seed)
    y = (np.arange(n) % 2)[rng.permutation(n)]
    x = np.zeros((n, 21), np.float32)
    x[:, [0, 3, 5, 9, 13, 17]] = rng.gamma(25, 0.04, (n, 6))
    x[:, [1, 6, 10, 14, 18]] = rng.normal(0, 1, (n, 5))
    x[:, [2, 4, 7, 11, 15, 19]] = rng.uniform(-1.7438, 1.7438, (n, 6))
    x[:, [8, 12, 16, 20]] = rng.integers(0, 3, (n, 4)) * np.array(TAG_UNITS)
    x[:, 0] *= 1 + 0.5 * y
    x[:, 20] = 0.0
    return x, y


@pytest.fixture
def notebook(tmp_path):
    """The notebook's definitions with toy events in place of its variables."""
    module = load_definitions("task2a_higgs_transformer")
    x, y = toy_rows(900)
    module.y, module.splits = y, split_last(y)
    module.objects = module.to_objects(torch.from_numpy(x))
    module.labels = torch.tensor(y, dtype=torch.float32)
    module.choice_rows = module.splits.validation
    module.run = SimpleNamespace(directory=tmp_path)
    return module


@pytest.fixture
def short(notebook):
    return notebook.Schedule(2, 64, 3e-3, rounds=2)


def test_columns_become_objects_in_physical_units(notebook):
    x = toy_rows(5)[0]
    o = notebook.to_objects(torch.from_numpy(x)).numpy()
    jets = x[:, 5:].reshape(5, 4, 4)
    np.testing.assert_allclose(o[:, 2, notebook.PT], jets[:, 0, 0] * 109.2, rtol=1e-6)
    np.testing.assert_allclose(o[:, 5, notebook.ETA], jets[:, 3, 1] * 1.2008, rtol=1e-6)
    np.testing.assert_allclose(o[:, 1, notebook.PHI], x[:, 4] * np.pi / 1.7438, rtol=1e-6)
    np.testing.assert_array_equal(o[:, 2:, notebook.TAG], np.round(jets[..., 3] / TAG_UNITS))
    assert (o[:, ~notebook.PRESENT.numpy()] == 0).all()
    assert notebook.PRESENT.sum() == 21


def test_pairs_against_four_vectors(notebook):
    o = notebook.objects[:20].double()
    masses, distances = (q.numpy() for q in notebook.pair_quantities(o))
    o = o.numpy()
    for pair, (i, j) in enumerate(zip(notebook.FIRST, notebook.SECOND, strict=True)):
        for event in range(20):
            (pt1, eta1, phi1, _), (pt2, eta2, phi2, _) = o[event, i], o[event, j]
            if 1 in (i, j):  # missing energy: transverse
                eta1 = eta2 = 0.0
            momentum = [
                np.array([pt * np.cosh(eta), pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)])
                for pt, eta, phi in ((pt1, eta1, phi1), (pt2, eta2, phi2))
            ]
            energy, *p = sum(momentum)
            mass = np.sqrt(max(energy**2 - np.dot(p, p), 1.0))
            angle = np.angle(np.exp(1j * (phi1 - phi2)))
            assert masses[event, pair] == pytest.approx(mass, rel=1e-6, abs=1e-5)
            assert distances[event, pair] == pytest.approx(np.hypot(eta1 - eta2, angle), rel=1e-6)


def test_symmetries_leave_masses_and_distances_alone(notebook):
    o = notebook.objects[:200].double()
    moved = notebook.augment(o, torch.Generator().manual_seed(0))
    for changed in (moved, notebook.lepton_frame(o)):
        assert not torch.allclose(changed, o)
        for a, b in zip(
            notebook.pair_quantities(changed), notebook.pair_quantities(o), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-6)
        values = [notebook.pair_values(x) for x in (changed, o)]
        torch.testing.assert_close(*values, rtol=1e-6, atol=1e-5)
    assert torch.equal(moved[..., notebook.PT], o[..., notebook.PT])
    assert torch.equal(moved[..., notebook.TAG], o[..., notebook.TAG])
    flipped = (moved[:, 0, notebook.ETA] * o[:, 0, notebook.ETA] < 0).double().mean()
    assert 0.35 < flipped < 0.65


def test_classifier_in_the_lepton_frame_is_exactly_invariant(notebook):
    o = notebook.objects[:100]
    moved = notebook.augment(o, torch.Generator().manual_seed(1))
    for build in (notebook.HiggsClassifier, notebook.PlainNetwork):
        torch.manual_seed(0)
        invariant, free = build(frame=True).eval(), build(frame=False).eval()
        torch.testing.assert_close(invariant(moved), invariant(o), rtol=1e-3, atol=1e-4)
        assert (free(moved) - free(o)).abs().max() > 1e-3


def test_hidden_values_do_not_reach_the_encoder(notebook):
    generator = torch.Generator().manual_seed(0)
    o = notebook.objects[:64]
    hidden = notebook.hide(o, 0.4, generator)
    other = notebook.objects[64:128]
    model = notebook.MaskedAutoencoder().eval()
    assert torch.equal(model(o, hidden), model(torch.where(hidden, other, o), hidden))
    visible = ~hidden & notebook.PRESENT
    assert not torch.equal(model(o, hidden), model(torch.where(visible, other, o), hidden))


def test_every_visible_feature_reaches_the_encoder(notebook):
    o = notebook.objects[:8]
    model = notebook.ObjectEncoder().eval()
    for which, feature in notebook.PRESENT.nonzero().tolist():
        changed = o.clone()
        changed[:, which, feature] = (changed[:, which, feature] + 1) % 3
        assert not torch.allclose(model(changed), model(o)), (which, feature)
    hidden = torch.zeros(8, 6, 4, dtype=torch.bool)
    torch.testing.assert_close(model(o, hidden), model(o))


def test_the_wanted_share_is_hidden_and_nothing_absent(notebook):
    o = torch.zeros(4000, 6, 4)
    for share in (0.2, 0.6):
        hidden = notebook.hide(o, share, torch.Generator().manual_seed(0))
        assert not hidden[:, ~notebook.PRESENT].any()
        found = hidden[:, notebook.PRESENT].float().mean().item()
        assert found == pytest.approx(share, abs=0.02)
        jets = hidden[:, 2:]
        whole = jets.all(-1).float().mean()
        assert whole > 0.8 * (1 - (1 - share) ** 0.5)


def test_likelihood_against_a_loop_over_objects(notebook):
    torch.manual_seed(0)
    o = notebook.objects[:6].double()
    mixture = torch.randn(6, 6, notebook.COMPONENTS, notebook.PARAMETERS, dtype=torch.float64)
    hidden = notebook.hide(o, 0.5, torch.Generator().manual_seed(2))
    found = notebook.log_likelihood(mixture, o, hidden)
    for event in range(6):
        for which in range(6):
            weights = np.exp(mixture[event, which, :, 0].numpy())
            density = 0.0
            for k in range(notebook.COMPONENTS):
                p = mixture[event, which, k].numpy()
                pt, eta, phi, tag = o[event, which].numpy()
                log_pt = 2 * np.log(pt / notebook.GEV[which].item())
                logits = np.exp(p[7:]) / np.exp(p[7:]).sum()
                factors = (
                    np.exp(-0.5 * ((log_pt - p[1]) / np.exp(p[2])) ** 2)
                    / (np.exp(p[2]) * np.sqrt(2 * np.pi)),
                    np.exp(-0.5 * ((eta - p[3]) / np.exp(p[4])) ** 2)
                    / (np.exp(p[4]) * np.sqrt(2 * np.pi)),
                    np.exp(p[5] * np.cos(phi) + p[6] * np.sin(phi))
                    / (2 * np.pi * np.i0(np.hypot(p[5], p[6]))),
                    logits[int(tag)],
                )
                product = np.prod(
                    [f for f, h in zip(factors, hidden[event, which], strict=True) if h]
                )
                density += weights[k] / weights.sum() * product
            assert found[event, which].item() == pytest.approx(np.log(density), rel=1e-5, abs=1e-5)


def test_densities_are_normalised_and_periodic(notebook):
    torch.manual_seed(1)
    mixture = torch.randn(1, 6, notebook.COMPONENTS, notebook.PARAMETERS).expand(4001, -1, -1, -1)
    o = notebook.objects[:1].expand(4001, -1, -1).clone()
    o[..., notebook.PHI] = torch.linspace(-np.pi, np.pi, 4001).unsqueeze(1)
    log_density = notebook.feature_log_densities(mixture, o)[..., notebook.PHI]
    area = torch.trapezoid(log_density.exp(), dx=2 * np.pi / 4000, dim=0)
    torch.testing.assert_close(area, torch.ones_like(area), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(log_density[0], log_density[-1], rtol=1e-4, atol=1e-4)
    strong = mixture[:1].clone()
    strong[..., 5] = 500.0  # I0 would overflow
    assert torch.isfinite(notebook.feature_log_densities(strong, o[:1])).all()


@pytest.mark.parametrize(
    "options",
    [{}, {"pairs": ()}, {"pairs": ("bias",)}, {"frame": False}],
)
def test_classifier_gives_one_logit_and_reaches_every_weight(notebook, options):
    model = notebook.HiggsClassifier(**options)
    logits = model(notebook.objects[:32])
    assert logits.shape == (32,)
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        if "unknown" in name:  # of hidden features only
            continue
        used = parameter.grad is not None and parameter.grad.abs().sum() > 0
        unused = "pair_bias" in name and "bias" not in options.get("pairs", ("bias",))
        unused |= "pair_token" in name and "tokens" not in options.get("pairs", ("tokens",))
        assert used != unused, name


def test_reconstruction_reaches_every_weight(notebook):
    torch.manual_seed(0)
    model = notebook.MaskedAutoencoder()
    schedule = notebook.Schedule(1, 64, augment=True)
    generator = torch.Generator().manual_seed(0)
    notebook.reconstruction_loss(model, notebook.objects, None, schedule, generator).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    "options", [{}, {"depth": 5}, {"frame": True}, {"frame": True, "engineered": True}]
)
def test_plain_network_has_the_size_of_the_transformer(notebook, options):
    wanted = notebook.count_parameters(notebook.HiggsClassifier())
    found = notebook.count_parameters(notebook.PlainNetwork(**options))
    assert found == pytest.approx(wanted, rel=0.1)
    assert notebook.PlainNetwork(**options)(notebook.objects[:3]).shape == (3,)


def test_network_learns_one_batch_by_heart(notebook):
    torch.manual_seed(0)
    assert notebook.overfit_one_batch(notebook.HiggsClassifier(), steps=120) < 0.1


def test_labelled_subsets_are_nested_and_of_the_training_part(notebook):
    for seed in (0, 1):
        small, large, every = (notebook.labelled(n, seed) for n in (50, 200, 0))
        np.testing.assert_array_equal(small, large[:50])
        np.testing.assert_array_equal(large, every[:200])
        assert set(every) == set(notebook.splits.train)
    held_out = {*notebook.splits.validation, *notebook.splits.test}
    assert not held_out & set(notebook.labelled(0, 0))
    assert set(notebook.labelled(50, 0)) != set(notebook.labelled(50, 1))


def test_jobs_have_names_of_their_own(notebook, short):
    job = notebook.Job("scratch", 100, 0, short)
    others = [
        replace(job, seed=1),
        replace(job, count=0),
        replace(job, options=(("frame", False),)),
        replace(job, note="ablation"),
        replace(job, schedule=replace(short, learning_rate=1e-4)),
    ]
    assert len({job.name, *(other.name for other in others)}) == 6


def test_pretraining_learns_and_its_encoder_starts_a_classifier(notebook, short):
    job = notebook.Job("pre-training", 0, 0, replace(short, epochs=4, augment=True))
    history, weights = notebook.run_job(job)
    assert history.quality.iloc[-1] > history.quality.iloc[0]
    start = {k: v for k, v in weights.items() if k.startswith("encoder.")}
    tuned = notebook.Job("fine-tuned", 100, 0, replace(short, learning_rate=0.0))
    _, after = notebook.run_job(tuned, start)
    for name, value in start.items():
        np.testing.assert_array_equal(after[name], value)


def test_training_learns_and_comes_back_with_its_best_weights(notebook, short):
    job = notebook.Job("scratch", 0, 0, replace(short, epochs=8, rounds=4))
    history, weights = notebook.run_job(job)
    assert history.epoch.tolist() == [2, 4, 6, 8]
    assert history.quality.max() > 0.8
    assert all(isinstance(array, np.ndarray) for array in weights.values())  # cross processes
    model = notebook.restored(job, weights)
    again = notebook.classification_quality(
        model, notebook.objects, notebook.choice_rows, job.schedule
    )
    assert again == pytest.approx(history.quality.max(), abs=1e-6)


def test_interrupted_training_continues_where_it_stopped(notebook, short):
    job = notebook.Job("scratch", 300, 0, replace(short, epochs=4, rounds=4))
    _, straight = notebook.run_job(replace(job, note="straight"))
    _, resumed = in_two_parts(notebook, lambda: notebook.run_job(job), 4, stop=2)
    assert_same_weights(resumed, straight)


def test_decoder_trains_on_latent_vectors(notebook, short):
    model = notebook.HiggsClassifier().eval()
    with torch.no_grad():
        notebook.latents = model.latent(notebook.objects)
    _, weights = notebook.run_job(notebook.Job("frozen", 200, 0, short))
    model.decoder.load_state_dict({k: torch.as_tensor(v) for k, v in weights.items()})
    expected = model.decoder(notebook.latents[:10])
    torch.testing.assert_close(model(notebook.objects[:10]), expected)


def test_exported_graph_takes_rows_of_the_file(notebook, tmp_path):
    torch.manual_seed(0)
    networks = [notebook.HiggsClassifier(), notebook.HiggsClassifier(frame=False)]
    graph = notebook.RawInput(networks).eval()
    rows = [torch.from_numpy(toy_rows(n)[0]) for n in (2, 1, 7, 64)]
    rows.append(torch.zeros(3, 21))
    path = tmp_path / "graph.onnx"
    export_onnx(graph, rows[0], path, ["x"], ["probability"], {"task": "toy"})
    assert check_parity(graph, path, rows, tolerance=1e-5) <= 1e-5
