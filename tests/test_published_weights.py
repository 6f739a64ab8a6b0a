"""The published weights: every file loads into its class, and a published number comes out again.

Events are simulated here, some hundreds of each kind, with the arguments of the simulations' own
tests, so that both share them. A run that was published with other stand-ins than today's is scored
all the same, but need not agree; nor need weights fit a script that was rewritten since.
"""

import ast
import math
from collections.abc import Callable
from functools import reduce
from operator import getitem
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from data.loaders import SuperResolutionDataset, load_rotated_mnist
from data.simulate import boosted, egamma, higgs, jets, jets8, top_gun
from e2e_utils.checkpoints import load_weights, read_card
from e2e_utils.errors import InputError
from e2e_utils.evaluation import evaluate, load_metrics, metric_entry
from e2e_utils.jet_observables import ratio_of_sums
from e2e_utils.metrics import accuracy, mean_absolute_error, roc_auc
from e2e_utils.notebook import load_definitions
from e2e_utils.onnx_export import open_session
from e2e_utils.paths import WEIGHTS, list_tasks
from e2e_utils.sparse_images import SparseImages
from tools.provenance import data_state
from tools.scoring.classification import predict
from tools.scoring.super_resolution import generated_observables
from tools.staleness import is_stale

Card = dict[str, str]
Entry = dict[str, float]

# Weights ------------------------------------------------------------------------------------------


def vae_2c(task: ModuleType, card: Card) -> nn.Module:
    start = task.average_jet(torch.ones(2, task.N_FEATURES, task.GRID, task.GRID))
    return task.Autoencoder(task.ARMS[card["arm"]], start)


def classifier_2c(task: ModuleType, card: Card) -> nn.Module:
    return task.Classifier(task.ARMS[card["arm"]], ast.literal_eval(card["widths"]))


def encoder_2g(task: ModuleType, card: Card) -> nn.Module:
    known = "vit" in card["arm"] or "transformer" in card["arm"]
    return task.ENCODERS["vit" if known else "resnet"]()


def network_2i(task: ModuleType, _: Card) -> nn.Module:
    return task.TASK2G.JetNetwork(task.TASK2G.TowerTransformer())


def of_latents(name: str) -> Callable[[ModuleType, Card], nn.Module]:
    """A class of task 2j that is built from the number of latent dimensions."""
    return lambda task, card: getattr(task, name)(int(card["latent_dimension"]))


class Tensors(nn.Module):
    """No network: tensors of these shapes."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))


def codec_2d(task: ModuleType, _: Card) -> nn.Module:
    from task2d_diffusion.normal_scores import KNOTS  # found once the task is loaded

    knots = KNOTS + 1
    return Tensors(value=(task.N_CHANNELS, knots), summary=(task.N_SUMMARY, knots))


def arm_2d(task: ModuleType, card: Card) -> nn.Module:
    arm, options = task.ARMS.get(card["arm"], (card["arm"], ()))
    return task.NETWORKS[arm][0](**dict(options))


def motion_2j(*_: object) -> nn.Module:
    return Tensors(shift=(2,), matrix=(2, 2))


# (task, pattern of the file's name) -> the module that its card describes; the first that fits.
BUILDERS: dict[tuple[str, str], Callable[[ModuleType, Card], nn.Module]] = {
    ("common_task1", "*"): lambda task, card: task.build_model(card["arm"]),
    ("task2a_higgs_transformer", "*"): lambda task, card: task.build(card["arm"]),
    ("task2b_superres_gan", "*"): lambda task, card: task.build(card["arm"]),
    ("task2c_sparse_vae", "autoencoder*"): vae_2c,
    ("task2c_sparse_vae", "*"): classifier_2c,
    ("task2d_diffusion", "codec*"): codec_2d,
    ("task2d_diffusion", "*"): arm_2d,
    ("task2e_mass_regression", "density*"): lambda task, _: task.ConditionalDensity(),
    ("task2e_mass_regression", "falling*"): lambda task, _: task.build_model("all"),
    ("task2e_mass_regression", "*"): lambda task, card: task.build_model(card["arm"]),
    ("task2g_ssl_vit", "*pretrained*"): encoder_2g,
    ("task2g_ssl_vit", "*"): lambda task, card: task.JetNetwork(encoder_2g(task, card)),
    ("task2h_graph_jets", "*"): lambda task, card: task.build(card["arm"]),
    ("task2i_foundation", "*"): network_2i,
    ("task2j_symmetry", "vae*"): of_latents("VariationalAutoencoder"),
    ("task2j_symmetry", "oracle*"): (
        lambda task, card: task.perceptron(int(card["latent_dimension"]), 1)
    ),
    ("task2j_symmetry", "supervised_map*"): of_latents("StepMap"),
    ("task2j_symmetry", "discovered_chart*"): of_latents("Chart"),
    ("task2j_symmetry", "discovered_motion*"): motion_2j,
    ("task2j_symmetry", "invariant_network*"): (
        lambda task, _: task.OrbitAverage(task.SmallCNN(2, 12), torch.zeros(12, 28, 28, 2))
    ),
}


def published(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(WEIGHTS)) for path in WEIGHTS.glob(f"*/{pattern}"))


@pytest.mark.parametrize("name", published("*.safetensors"))
def test_every_published_file_loads_into_its_class(name: str) -> None:
    path = WEIGHTS / name
    card = read_card(path)
    assert card["task"] == path.parent.name
    build = next(
        build
        for (task, pattern), build in BUILDERS.items()
        if task == path.parent.name and path.match(pattern)
    )
    try:
        model = load_weights(path, build(load_definitions(path.parent.name), card))
    except (InputError, LookupError, AttributeError, TypeError) as error:
        if not is_stale(path.parent.name):
            raise
        pytest.skip(f"published before the script was rewritten: {error}")
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


# Numbers ------------------------------------------------------------------------------------------

SIGMAS = 3.5  # one chance in 2,000 a number that a sound one fails


def standard_error(entry: Entry) -> float:
    """Of an entry of metrics.json: its 95 % interval, and the spread between seeds."""
    return math.hypot((entry["high"] - entry["low"]) / (2 * 1.96), entry.get("seed_std", 0.0))


def session(task: str) -> onnxruntime.InferenceSession:
    """The published graph of a task."""
    return open_session(WEIGHTS / task / f"{task}.onnx")


def classified(task: str, x: np.ndarray, y: np.ndarray) -> Entry:
    """ROC-AUC of the published graph on raw events, as `make score` computes it."""
    name = "low_level" if x.ndim == 2 else "images"
    sample = SimpleNamespace(y=y, **{name: x if x.ndim == 2 else SparseImages.from_dense(x)})
    parts = predict(session(task), sample, "simulated")
    probability = np.concatenate([part["probability"] for part in parts])
    return evaluate({"roc_auc": roc_auc}, y, probability, 300)["roc_auc"]


@pytest.fixture(scope="module")
def electrons_and_photons() -> tuple[np.ndarray, np.ndarray]:
    """Images (2000, 2, 32, 32) and labels."""
    parts = [egamma.simulate_images(1000, label == 1, seed=11 + label)[0] for label in range(2)]
    return np.concatenate(parts).transpose(0, 3, 1, 2), np.repeat((0, 1), 1000)


@pytest.fixture(scope="module")
def quarks_and_gluons(simulated) -> tuple[np.ndarray, np.ndarray]:
    """Images (300, 3, 125, 125) and labels."""
    parts = [simulated(jets, 150, gluon, seed=int(gluon)) for gluon in (False, True)]
    return np.concatenate([jets._dense(part) for part in parts]), np.repeat((0, 1), 150)


@pytest.fixture(scope="module")
def tops_and_qcd(simulated) -> tuple[np.ndarray, np.ndarray]:
    """Images (120, 8, 125, 125) and labels."""
    parts = [simulated(jets8, 60, top, seed=int(top)) for top in (False, True)]
    return np.concatenate([boosted.unpacked(part) for part in parts]), np.repeat((0, 1), 60)


@pytest.fixture(scope="module")
def boosted_tops(simulated) -> tuple[np.ndarray, np.ndarray]:
    """Images (60, 4, 125, 125) and masses in GeV."""
    shard = simulated(top_gun, 60, "nominal", seed=1)
    return boosted.unpacked(shard)[:, :4], shard["m"]


@pytest.fixture(scope="module")
def higgs_rows(simulated) -> tuple[np.ndarray, np.ndarray]:
    """Low-level columns (800, 21) and labels."""
    parts = [simulated(higgs, 400, label == 1, seed=label)["features"] for label in range(2)]
    return np.concatenate(parts)[:, :21], np.repeat((0, 1), 400)


@pytest.fixture(scope="module")
def test_digits(mnist_store: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (200, 12, 28, 28) of MNIST's test file and whether they show a two."""
    if mnist_store is None:
        pytest.skip("MNIST is not at hand")
    digits = load_rotated_mnist("auto", "standard")
    rows = np.flatnonzero(digits.official_test)[:200]
    return digits.images[rows], (digits.label[rows] == 2).astype(int)


def generated_hits(task: str, x: np.ndarray, y: np.ndarray) -> Entry:
    """Active pixels of the ECAL, generated over true."""
    words = {"source": "file", "fingerprint": "", "description": "", "files": []}
    images, unknown = SparseImages.from_dense(x[::5]), np.ones(len(x[::5]))
    sample = SuperResolutionDataset(images, y[::5], unknown, unknown, **words)
    true, made = generated_observables(session(task), sample, 0)
    return ratio_of_sums([made.ecal_hits.to_numpy()], true.ecal_hits.to_numpy())


def trained_parameters(task: str) -> Entry:
    """Parameters of the diffusion network: 2d's other numbers need thousands of generated jets."""
    path = WEIGHTS / task / "long_seed0.safetensors"
    network = load_weights(path, load_definitions(task).NETWORKS["diffusion"][0]())
    count = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return metric_entry(count, count, count)


def mass_error(task: str, x: np.ndarray, m: np.ndarray) -> Entry:
    mass, _ = session(task).run(None, {"x": x})
    return evaluate({"mae": mean_absolute_error}, m, mass, 300)["mae"]


def classified_frames(task: str, x: np.ndarray, y: np.ndarray) -> Entry:
    """As CMSSW feeds the graph."""
    frames = load_definitions(task).to_frames(torch.from_numpy(x)).numpy()
    (probability,) = session(task).run(None, {"modelInput": frames})
    return evaluate({"roc_auc": roc_auc}, y, probability[:, 0], 300)["roc_auc"]


def classified_digits(task: str, images: np.ndarray, y: np.ndarray) -> Entry:
    pictures = images.reshape(-1, 28, 28).astype(np.float32)  # (n, 12, ...) -> (12 n, ...)
    (probability,) = session(task).run(None, {"x": pictures})
    groups = np.repeat(np.arange(len(images)), images.shape[1])
    return evaluate({"a": accuracy}, np.repeat(y, 12), probability, 300, groups=groups)["a"]


# task: where its number stands in metrics.json, fixture of the events, how it is computed again
NUMBERS: dict[str, tuple[tuple[str, ...], str | None, Callable[..., Entry]]] = {
    "common_task1": (("metrics", "roc_auc"), "electrons_and_photons", classified),
    "task2a_higgs_transformer": (("metrics", "roc_auc"), "higgs_rows", classified),
    "task2b_superres_gan": (
        ("variants", "per_channel", "gan", "ecal_hits"), "quarks_and_gluons", generated_hits,
    ),
    "task2c_sparse_vae": (("metrics", "roc_auc"), "tops_and_qcd", classified),
    "task2d_diffusion": (("parameters",), None, trained_parameters),
    "task2e_mass_regression": (("metrics", "mae"), "boosted_tops", mass_error),
    "task2f_cmssw_inference": (("metrics", "roc_auc"), "electrons_and_photons", classified_frames),
    "task2g_ssl_vit": (("metrics", "roc_auc"), "tops_and_qcd", classified),
    "task2h_graph_jets": (("metrics", "roc_auc"), "quarks_and_gluons", classified),
    "task2i_foundation": (("metrics", "roc_auc"), "tops_and_qcd", classified),
    "task2j_symmetry": (("metrics", "invariant_accuracy"), "test_digits", classified_digits),
}  # fmt: skip


@pytest.mark.parametrize("task", list_tasks())
def test_a_published_number_comes_out_again(task: str, request: pytest.FixtureRequest) -> None:
    if not (WEIGHTS / task / "metrics.json").is_file():
        pytest.skip("nothing published yet")
    metrics = load_metrics(WEIGHTS / task / "metrics.json")
    place, events, measure = NUMBERS[task]
    expected = reduce(getitem, place, metrics)
    if not isinstance(expected, dict):
        expected = metric_entry(expected, expected, expected)
    try:
        found = measure(task, *(request.getfixturevalue(events) if events else ()))
    except InputError as error:
        if not is_stale(task):
            raise
        pytest.skip(f"published before the script was rewritten: {error}")
    difference = abs(found["value"] - expected["value"])
    allowed = SIGMAS * math.hypot(standard_error(found), standard_error(expected))
    words = f"{found['value']:.4g} instead of {expected['value']:.4g} ± {allowed:.2g}"
    if difference > allowed and metrics["data"]["source"] == "standin" and events:
        provenance = metrics["provenance"]
        if provenance["data_state"] != data_state(task, provenance["requested_source"]):
            pytest.skip(f"published with other stand-ins than today's: {words}")
    assert difference <= allowed, words
