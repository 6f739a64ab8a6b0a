"""The notebook of task 2a: masses, masking, losses, symmetries, training, drawing, export."""

from dataclasses import replace
from itertools import combinations
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
    module.splits = split_last(y)
    objects = module.to_objects(torch.from_numpy(x)).to(module.DEVICE)
    module.samples = {"main": module.Sample(objects, y, module.splits)}
    module.trained, module.rates, module.chosen = {}, {}, {}
    module.run = SimpleNamespace(directory=tmp_path)
    return module


@pytest.fixture
def objects(notebook):
    """Events (900, 6, 4)."""
    return notebook.samples["main"].objects.cpu()


@pytest.fixture
def short(notebook):
    return notebook.Schedule(2, 2, 64, 3e-3)


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


def four_vector(pt: float, eta: float, phi: float) -> np.ndarray:
    return np.array([pt * np.cosh(eta), pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)])


def mass_of(vectors: list[np.ndarray]) -> float:
    energy, *momentum = sum(vectors)
    return np.sqrt(max(energy**2 - np.dot(momentum, momentum), 0.0))


def test_the_neutrino_makes_a_w_with_the_lepton(notebook, objects):
    o = objects.double()
    eta = notebook.neutrino_eta(o).numpy()
    solved = 0
    for event, nu_eta in zip(o.numpy(), eta, strict=True):
        lepton, nu = event[0, :3], event[1, [0, 1, 2]]
        nu[1] = nu_eta
        transverse = np.sqrt(2 * lepton[0] * nu[0] * (1 - np.cos(lepton[2] - nu[2])))
        if transverse > notebook.M_W:
            assert nu_eta == pytest.approx(lepton[1])
            continue
        solved += 1
        assert mass_of([four_vector(*lepton), four_vector(*nu)]) == pytest.approx(80.4, rel=1e-6)
        assert abs(nu_eta) <= abs(2 * lepton[1] - nu_eta) + 1e-9  # the other solution
    assert 100 < solved < len(o)


def test_baselines_get_what_loops_over_four_vectors_give(notebook, objects):
    o = objects[:20].double()
    found = notebook.physics(o).numpy()
    values, masses = found[:, :35], found[:, 35 : 35 + 57]
    transverse, distance = (found[:, 92:].reshape(20, 15, 2)[..., k] for k in range(2))
    o, _ = notebook.by_tag(notebook.lepton_frame(o))
    assert (o[:, 0, notebook.PHI] == 0).all()
    assert (o[:, 0, notebook.ETA] >= 0).all()
    eta = notebook.neutrino_eta(o).numpy()
    o = o.numpy()
    o[:, 1, notebook.ETA] = eta
    groups = [g for size in range(2, 7) for g in combinations(range(6), size)]
    centres = {2: 4.6, 3: 5.3, 4: 5.7, 5: 6.0, 6: 6.2}
    for event in range(20):
        vectors = [four_vector(*o[event, i, :3]) for i in range(6)]
        for k, group in enumerate(groups):
            log_mass = np.log(1 + mass_of([vectors[i] for i in group]) ** 2) / 2
            assert masses[event, k] == pytest.approx(2 * (log_mass - centres[len(group)]), abs=1e-5)
        for k, (i, j) in enumerate(groups[:15]):
            (pt1, eta1, phi1, _), (pt2, eta2, phi2, _) = o[event, i], o[event, j]
            m_t2 = 2 * pt1 * pt2 * (1 - np.cos(phi1 - phi2))
            assert transverse[event, k] == pytest.approx(np.log(1 + m_t2) / 2 - 4, abs=1e-5)
            delta = np.hypot(eta1 - eta2, np.angle(np.exp(1j * (phi1 - phi2))))
            assert distance[event, k] == pytest.approx(delta - 2, abs=1e-5)
        log_pt = 2 * np.log(o[event, :, 0] / notebook.TYPICAL.numpy())
        np.testing.assert_allclose(values[event, [0, 4, 7, 14, 21, 28]], log_pt, rtol=1e-5)


def test_without_the_neutrino_its_pairs_are_transverse(notebook, objects):
    m2, transverse2, _ = notebook.pair_quantities(objects, neutrino=False)
    with_missing = np.array([1 in pair for pair in notebook.PAIRS])
    torch.testing.assert_close(m2[:, with_missing], transverse2[:, with_missing])
    full = notebook.pair_quantities(objects)[0]
    torch.testing.assert_close(m2[:, ~with_missing], full[:, ~with_missing])


def test_jets_are_sorted_by_visible_tag_and_momentum(notebook, objects):
    hidden = notebook.hide(objects, torch.Generator().manual_seed(0))
    for mask in (None, hidden):
        found, moved = (t.numpy() for t in notebook.by_tag(objects, mask))
        mask = torch.zeros_like(hidden) if mask is None else mask
        events = zip(found, moved, objects.numpy(), mask.numpy(), strict=True)
        for event, lost, before, was in events:
            level = np.where(was[:, 3], 0, before[:, 3])
            order = [0, 1, *sorted(range(2, 6), key=lambda i: (-level[i], i))]
            np.testing.assert_array_equal(event, before[order])
            np.testing.assert_array_equal(lost, was[order])


def test_symmetries_leave_masses_and_distances_alone(notebook, objects):
    o = objects[:200].double()
    moved = notebook.augment(o, torch.Generator().manual_seed(0))
    for changed in (moved, notebook.lepton_frame(o)):
        assert not torch.allclose(changed, o)
        pairs = zip(notebook.pair_quantities(changed), notebook.pair_quantities(o), strict=True)
        for a, b in pairs:
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-6)
    assert torch.equal(moved[..., notebook.PT], o[..., notebook.PT])
    assert torch.equal(moved[..., notebook.TAG], o[..., notebook.TAG])
    flipped = (moved[:, 0, notebook.ETA] * o[:, 0, notebook.ETA] < 0).double().mean()
    assert 0.35 < flipped < 0.65


def test_networks_in_the_lepton_frame_are_exactly_invariant(notebook, objects):
    o = objects[:100]
    moved = notebook.augment(o, torch.Generator().manual_seed(1))
    for arm in notebook.FINAL:
        torch.manual_seed(0)
        model = notebook.build(arm).eval()
        torch.testing.assert_close(model(moved), model(o), rtol=1e-3, atol=1e-3)
    free = notebook.ObjectEncoder().eval()
    assert (free(moved) - free(o)).abs().max() > 1e-3


def test_hidden_values_do_not_reach_the_encoder(notebook, objects):
    o, other = objects[:64], objects[64:128]
    model = notebook.MaskedAutoencoder().eval()
    whole = torch.zeros(6, 64, 6, 4, dtype=torch.bool)
    for which in range(6):
        whole[which, :, which] = notebook.PRESENT[which]
    for hidden in (notebook.hide(o, torch.Generator().manual_seed(0)), *whole):
        assert torch.equal(model(o, hidden), model(torch.where(hidden, other, o), hidden))
        visible = ~hidden & notebook.PRESENT
        assert not torch.equal(model(o, hidden), model(torch.where(visible, other, o), hidden))


def test_every_visible_feature_reaches_the_encoder(notebook, objects):
    o = objects[:8]
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
        hidden = notebook.hide(o, torch.Generator().manual_seed(0), share)
        assert not hidden[:, ~notebook.PRESENT].any()
        found = hidden[:, notebook.PRESENT].float().mean().item()
        assert found == pytest.approx(share, abs=0.02)
        jets = hidden[:, 2:]
        whole = jets.all(-1).float().mean()
        assert whole > 0.8 * (1 - (1 - share) ** 0.5)


def test_likelihood_against_a_loop_over_objects(notebook, objects):
    torch.manual_seed(0)
    o = objects[:6].double()
    mixture = torch.randn(6, 6, notebook.COMPONENTS, notebook.PARAMETERS, dtype=torch.float64)
    hidden = notebook.hide(o, torch.Generator().manual_seed(2), 0.5)
    found = notebook.log_likelihood(mixture, o, hidden)
    for event in range(6):
        for which in range(6):
            weights = np.exp(mixture[event, which, :, 0].numpy())
            density = 0.0
            for k in range(notebook.COMPONENTS):
                p = mixture[event, which, k].numpy()
                pt, eta, phi, tag = o[event, which].numpy()
                log_pt = 2 * np.log(pt / notebook.TYPICAL[which].item())
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


def test_densities_are_normalised_and_periodic(notebook, objects):
    torch.manual_seed(1)
    mixture = torch.randn(1, 6, notebook.COMPONENTS, notebook.PARAMETERS).expand(4001, -1, -1, -1)
    o = objects[:1].expand(4001, -1, -1).clone()
    o[..., notebook.PHI] = torch.linspace(-np.pi, np.pi, 4001).unsqueeze(1)
    log_density = notebook.feature_log_densities(mixture, o)[..., notebook.PHI]
    area = torch.trapezoid(log_density.exp(), dx=2 * np.pi / 4000, dim=0)
    torch.testing.assert_close(area, torch.ones_like(area), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(log_density[0], log_density[-1], rtol=1e-4, atol=1e-4)
    strong = mixture[:1].clone()
    strong[..., 5] = 500.0  # I0 would overflow
    assert torch.isfinite(notebook.feature_log_densities(strong, o[:1])).all()


def test_ramps_rise_between_the_quantiles(notebook):
    x = torch.randn(500, 3, dtype=torch.float64).exp()
    ramps = notebook.Ramps((3,), 8).double()
    ramps.fit(x)
    expected = np.stack([np.quantile(x[:, i].numpy(), np.linspace(0, 1, 9)) for i in range(3)])
    np.testing.assert_allclose(ramps.edges.numpy(), expected)
    values = torch.cat([x[:20], torch.tensor([[-1.0] * 3, [1e3] * 3], dtype=torch.float64)])
    encoded = ramps(values)
    assert encoded.shape == (22, 3, 8)
    for i in range(3):
        for k in range(8):
            line = np.interp(values[:, i].numpy(), expected[i, k : k + 2], (-1, 1))
            np.testing.assert_allclose(encoded[:, i, k].numpy(), line)


def test_ramps_of_equal_values_are_finite(notebook):
    ramps = notebook.Ramps((2,), 4)
    ramps.fit(torch.zeros(10, 2))
    assert ramps(torch.zeros(3, 2)).isfinite().all()


@pytest.mark.parametrize("arm", ["pre-training", "scratch", "perceptron"])
def test_a_training_places_its_ramps_and_keeps_those_it_starts_from(notebook, short, arm):
    job = notebook.Job(arm, 100, 0, short)
    _, weights = notebook.run_job(job, {})
    edges = [name for name in weights if name.endswith("edges")]
    assert len(edges) == (1 if arm == "perceptron" else 2)
    other = {name: 3 * weights[name] for name in edges}
    _, again = notebook.run_job(job._replace(seed=1), other)
    for name in edges:
        assert not np.array_equal(weights[name][..., 0], np.full_like(weights[name][..., 0], -2))
        np.testing.assert_array_equal(again[name], other[name])


@pytest.mark.parametrize("off", [None, "ramps", "event", "neutrino", "sort"])
def test_classifier_gives_one_logit_and_reaches_every_weight(notebook, objects, off):
    torch.manual_seed(0)
    model = notebook.HiggsClassifier(**({off: False} if off else {}))
    logits = model(objects[:32])
    assert logits.shape == (32,)
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        used = parameter.grad.abs().sum() > 0
        assert used == ("unknown" not in name), name  # of hidden features only


def test_only_the_decoder_of_a_frozen_encoder_learns(notebook, objects):
    torch.manual_seed(0)
    model = notebook.build("frozen")
    model(objects[:32]).square().sum().backward()
    for name, parameter in model.named_parameters():
        learns = parameter.grad is not None and parameter.grad.abs().sum() > 0
        assert learns == name.startswith("decoder."), name
    _, *after = model.encoder.every_layer(objects[:2])
    assert len(after) + 1 == model.encoder.layers
    assert model.decoder.layers[0].normalized_shape == (3 * 64,)


def test_reconstruction_reaches_every_weight(notebook, objects):
    torch.manual_seed(0)
    model = notebook.MaskedAutoencoder()
    generator = torch.Generator().manual_seed(0)
    notebook.reconstruction_loss(model, objects, None, generator).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("arm", ["scratch", "frozen", "perceptron"])
def test_network_memorises_one_batch(notebook, objects, arm):
    torch.manual_seed(0)
    model = notebook.build(arm).train()
    (model if arm == "perceptron" else model.encoder).fit(objects)
    target = torch.tensor(notebook.samples["main"].y[:64], dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = notebook.classification_loss(model, objects[:64], target, None)
        loss.backward()
        optimizer.step()
    assert loss < 0.1


def test_labelled_subsets_are_nested_and_of_the_training_part(notebook, short):
    def rows(count: int, seed: int) -> np.ndarray:
        return notebook.labelled(notebook.Job("scratch", count, seed, short))

    for seed in (0, 1):
        small, large, every = (rows(n, seed) for n in (50, 200, 0))
        np.testing.assert_array_equal(small, large[:50])
        np.testing.assert_array_equal(large, every[:200])
        assert set(every) == set(notebook.splits.train)
    held_out = {*notebook.splits.validation, *notebook.splits.test}
    assert not held_out & set(rows(0, 0))
    assert set(rows(50, 0)) != set(rows(50, 1))


def test_jobs_have_names_of_their_own(notebook, short):
    job = notebook.Job("scratch", 100, 0, short)
    others = [
        job._replace(seed=1),
        job._replace(count=0),
        job._replace(sample="official"),
        job._replace(options=("sort",)),
        job._replace(schedule=replace(short, learning_rate=1e-4)),
        job._replace(schedule=replace(short, passes=4)),
        job._replace(schedule=replace(short, dropout=0.0)),
        job._replace(schedule=replace(short, decay=3.0)),
    ]
    assert len({job.name, *(other.name for other in others)}) == 9


def test_profiles_train_in_whole_passes(notebook):
    for config in notebook.CONFIGS.values():
        schedules = [config.pretraining, *config.trainings.values(), *config.official.values()]
        schedules += [schedule for _, _, schedule in config.trials]
        assert all(s.passes % s.rounds == 0 for s in schedules)
        assert {arm for arm, count in config.trainings if not count} == set(notebook.FINAL)
        rates = {schedule.learning_rate for _, _, schedule in config.trials}
        assert rates <= set(notebook.RATES)  # a trial starts from one of the list
        for arm in notebook.BOTH:  # both ensembles have members of both arms
            assert {n for a, n in config.official if a == f"{arm}, tuned"}


def test_scratch_has_as_many_passes_as_pretraining_and_fine_tuning(notebook):
    for config in notebook.CONFIGS.values():
        passes = {arm: config.trainings[arm, 0].passes for arm in notebook.BOTH}
        assert passes["scratch"] == config.pretraining.passes + passes["fine-tuned"]
        short = {count for arm, count in config.trainings if count}
        for count in short:
            one, other = (config.trainings[arm, count] for arm in notebook.BOTH)
            assert one == other


def test_rates_are_tried_until_the_best_has_worse_neighbours(notebook, short, monkeypatch):
    best_rates, asked = {"scratch": 8.1e-2, "frozen": 1e-3, "perceptron": 9e-3}, []
    monkeypatch.setattr(notebook, "run_jobs", asked.extend)
    monkeypatch.setattr(
        notebook,
        "best",
        lambda job: -abs(np.log(job.schedule.learning_rate / best_rates[job.arm])),
    )
    table = notebook.tune(tuple(best_rates), 50, replace(short, learning_rate=9e-3))
    expected = {(arm, key): rate for arm, rate in best_rates.items() for key in (True, 50)}
    assert notebook.rates == expected
    assert len(asked) == len(set(asked))
    assert {job.seed for job in asked} == set(notebook.CONFIG.seeds)
    tried = table.notna().sum(axis=1)
    assert tried["perceptron, 50 labels"] == 3
    assert tried["frozen, 50 labels"] == 5  # from 2.7e-2 down to 3e-4
    assert tried["scratch, 50 labels"] == 4  # the last of the list has one neighbour only


def test_softmax_is_that_of_pytorch(notebook):
    x = 30 * torch.randn(5, 4, 7, 7, dtype=torch.float64, requires_grad=True)
    ours, theirs = notebook.Softmax()(x), x.softmax(-1)
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn_like(x)
    gradients = [torch.autograd.grad((one * weights).sum(), x)[0] for one in (ours, theirs)]
    torch.testing.assert_close(*gradients)


def test_pretraining_learns_and_its_encoder_starts_the_other_arms(notebook, short):
    pretraining = replace(short, passes=8, rounds=2)
    notebook.CONFIG = replace(notebook.CONFIG, pretraining=pretraining)
    job = notebook.Job("pre-training", 0, 0, pretraining)
    notebook.run_jobs([job])
    assert notebook.trained[job][0].score.iloc[-1] > notebook.trained[job][0].score.iloc[0]
    for arm in ("fine-tuned", "frozen"):
        still = notebook.Job(arm, 100, 0, replace(short, learning_rate=0.0))
        start = notebook.start_of(still)
        assert start
        assert all(name.startswith("encoder.") for name in start)
        notebook.run_jobs([still])
        for name, value in start.items():
            np.testing.assert_array_equal(notebook.trained[still][1][name], value)


def test_the_networks_of_stand_ins_are_tuned_on_official_rows(notebook, short):
    official = {("scratch, tuned", 100): replace(short, learning_rate=0.0)}
    notebook.CONFIG = replace(notebook.CONFIG, trainings={("scratch", 0): short}, official=official)
    notebook.samples["official"] = notebook.samples["main"]
    notebook.run_jobs(notebook.jobs_of("scratch"))
    job = notebook.jobs_of("scratch, tuned", 100, "official")[1]
    notebook.run_jobs([job])
    _, second = notebook.jobs_of("scratch")
    assert_same_weights(notebook.trained[job][1], notebook.trained[second][1])


def test_a_chosen_schedule_is_that_of_all_seeds(notebook, short):
    notebook.CONFIG = replace(notebook.CONFIG, trainings={("scratch", n): short for n in (0, 50)})
    notebook.rates |= {("scratch", False): 7e-3, ("scratch", True): 7e-4}
    for count, rate in ((0, 7e-3), (50, 7e-4)):
        schedules = {job.schedule for job in notebook.jobs_of("scratch", count)}
        assert schedules == {replace(short, learning_rate=rate)}
    notebook.chosen["scratch"] = replace(short, passes=6)
    assert {job.schedule for job in notebook.jobs_of("scratch")} == {replace(short, passes=6)}


def test_what_is_trained_is_not_trained_again(notebook, short):
    job = notebook.Job("scratch", 100, 0, short)
    notebook.trained[job] = "done"
    notebook.run_jobs([job])
    assert notebook.trained == {job: "done"}


def test_weight_decay_is_that_of_the_whole_training(notebook, short, monkeypatch):
    built = []

    class Spy(torch.optim.AdamW):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)
            built.append(options["weight_decay"])

    monkeypatch.setattr(notebook.torch.optim, "AdamW", Spy)
    notebook.run_job(notebook.Job("perceptron", 256, 0, replace(short, decay=0.6)), {})
    steps = short.passes * (256 // short.batch_size)
    assert built == [pytest.approx(0.6 / (short.learning_rate * steps))]


def test_an_ensemble_is_the_mean_of_the_logits(notebook):
    logits = np.random.default_rng(0).normal(0, 4, (3, 50)).astype(np.float32)
    found = notebook.ensemble([notebook.probability(one) for one in logits])
    np.testing.assert_allclose(found, notebook.probability(logits.astype(float).mean(0)), rtol=1e-5)
    one = notebook.probability(logits[0])
    np.testing.assert_allclose(notebook.ensemble([one]), one, rtol=1e-9)


def test_dropout_acts_on_classifiers_in_training_only(notebook, objects):
    o = objects[:16]

    def differs(arm: str, part: str, *inputs: torch.Tensor) -> bool:
        torch.manual_seed(0)
        network = getattr(notebook.build(arm, dropout=0.5), part).train()
        first, second = (network(*inputs) for _ in range(2))
        assert torch.equal(network.eval()(*inputs), network(*inputs))
        return not torch.equal(first, second)

    assert differs("scratch", "encoder", o)
    assert not differs("frozen", "encoder", o)  # its decoder should see what evaluation sees
    assert not differs("pre-training", "encoder", o)  # hiding is noise enough


def test_training_learns_and_comes_back_with_its_best_weights(notebook, short):
    job = notebook.Job("scratch", 0, 0, replace(short, passes=8, rounds=4))
    notebook.run_jobs([job])
    history, weights = notebook.trained[job]
    assert history.epoch.tolist() == [1, 2, 3, 4]
    assert history.score.max() > 0.8
    assert all(isinstance(array, np.ndarray) for array in weights.values())  # cross processes
    sample = notebook.samples["main"]
    again = notebook.classification_quality(
        notebook.restored(job), sample, sample.splits.validation
    )
    assert again == pytest.approx(history.score.max(), abs=1e-6)


@pytest.mark.parametrize("arm", ["scratch", "pre-training", "perceptron"])
def test_interrupted_training_continues_where_it_stopped(notebook, short, arm):
    job = notebook.Job(arm, 300, 0, replace(short, passes=4, rounds=4))
    _, resumed = in_two_parts(notebook, lambda: notebook.run_job(job, {}), 4, stop=2)
    notebook.run = SimpleNamespace(directory=notebook.run.directory / "straight")
    _, straight = notebook.run_job(job, {})
    assert_same_weights(resumed, straight)


def test_one_object_is_drawn_and_the_others_stay(notebook, objects):
    torch.manual_seed(0)
    network, o = notebook.MaskedAutoencoder().eval(), objects[:50]
    for which in range(6):
        drawn = notebook.reconstructed(o, which, 3, network)
        assert torch.equal(drawn, notebook.reconstructed(o, which, 3, network))
        others = [i for i in range(6) if i != which]
        assert torch.equal(drawn[:, others], o[:, others])
        assert (drawn[:, which, notebook.PT] > 0).all()
        assert (drawn[:, which][:, ~notebook.PRESENT[which]] == 0).all()
        assert set(drawn[:, which, notebook.TAG].tolist()) <= {0.0, 1.0, 2.0}
        moved = notebook.of_another_event(o, which, 0, network)
        assert torch.equal(moved[1:, which], o[:-1, which])
        assert torch.equal(moved[:, others], o[:, others])


def test_drawn_objects_follow_their_mixture(notebook):
    p = torch.zeros(4000, notebook.COMPONENTS, notebook.PARAMETERS)
    p[:, 0, 0] = 20.0  # this component alone
    p[:, 0, 1:5] = torch.tensor([0.4, -2.0, 1.0, -1.0])
    p[:, 0, 5:7] = torch.tensor([0.0, 9.0])
    p[:, 0, 7:] = torch.tensor([0.0, 1.0, 2.0])
    pt, eta, phi, tag = notebook.draw_object(p, 2, 0).T
    log_pt = 2 * (pt / 70).log()
    assert log_pt.mean() == pytest.approx(0.4, abs=0.01)
    assert log_pt.std() == pytest.approx(np.exp(-2), rel=0.05)
    assert eta.mean() == pytest.approx(1.0, abs=0.03)
    assert phi.mean() == pytest.approx(np.pi / 2, abs=0.02)
    shares = torch.bincount(tag.long(), minlength=3) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.0, 1.0, 2.0]).softmax(0), rtol=0.1, atol=0)


def test_exchanging_a_mass_changes_it_everywhere_and_nothing_else(notebook, objects):
    torch.manual_seed(0)
    model, o = notebook.HiggsClassifier().eval(), objects[:40]
    plain = notebook.predict(model, o)
    changed = notebook.without_mass(model, o, 3)
    assert np.abs(changed - plain).max() > 1e-3
    np.testing.assert_array_equal(notebook.predict(model, o), plain)
    same = o[:1].expand(40, -1, -1)
    np.testing.assert_allclose(
        notebook.without_mass(model, same, 30), notebook.predict(model, same), rtol=1e-5, atol=1e-6
    )
    attention, bias = notebook.attention_and_bias(model, o)
    np.testing.assert_allclose(attention.sum(1), 1.0, rtol=1e-5)
    assert bias.shape == (6, 6)
    assert (bias[~np.eye(6, dtype=bool)] > 0).all()
    *_, full = model.encoder.tokens_and_bias(notebook.lepton_frame(o))
    assert (torch.stack(full)[..., 6, :] == 0).all()
    assert (torch.stack(full)[..., 6] == 0).all()


@pytest.mark.parametrize("arm", ["scratch", "frozen"])
def test_exported_graph_takes_rows_of_the_file(notebook, tmp_path, arm):
    torch.manual_seed(0)
    graph = notebook.RawInput(notebook.build(arm)).eval()
    rows = [torch.from_numpy(toy_rows(n)[0]) for n in (2, 1, 7, 64)]
    rows.append(torch.zeros(3, 21))
    path = tmp_path / "graph.onnx"
    export_onnx(graph, rows[0], path, ["x"], ["probability"], {"task": "toy"})
    assert check_parity(graph, path, rows, tolerance=1e-5) <= 1e-5
