"""The published networks on real events, where a sample of them is at hand."""

import numpy as np
import pytest
import torch

from e2e_utils.checkpoints import load_weights
from e2e_utils.errors import InputError
from e2e_utils.metrics import bootstrap_interval, roc_auc
from e2e_utils.notebook import load_definitions
from e2e_utils.onnx_export import open_session
from e2e_utils.paths import REAL_SAMPLES, WEIGHTS
from tools.results_table import published_metrics
from tools.staleness import is_stale

SAMPLE = REAL_SAMPLES / "egamma_real_100.npz"
MODEL = WEIGHTS / "common_task1" / "energy_only_seed0.safetensors"
TRIVIAL = (
    "constant", "trivial", "median", "nearest", "independent", "session_per_event",
    "random_generator",
)  # fmt: skip
CMSSW_MODEL = WEIGHTS / "task2f_cmssw_inference" / "task2f_cmssw_inference.onnx"


@pytest.mark.skipif(not SAMPLE.is_file(), reason="no sample of real images here")
@pytest.mark.skipif(not MODEL.is_file(), reason="nothing published yet")
def test_network_trained_on_stand_ins_orders_real_images() -> None:
    task = load_definitions("common_task1")
    try:
        members = load_weights(MODEL, task.build_model("energy_only"))
    except InputError as error:
        if not is_stale("common_task1"):
            raise
        pytest.skip(f"published before the script was rewritten: {error}")
    network = task.FlipAverage(task.MeanLogit(members)).eval()
    real = np.load(SAMPLE)
    images = np.stack([real["X"], np.zeros_like(real["X"])], axis=1)  # time unknown
    with torch.no_grad():
        score = network(torch.from_numpy(images.astype(np.float32))).numpy()
    interval = bootstrap_interval(roc_auc, real["y"], score)
    assert interval.low > 0.5  # 0.5 would mean that the simulation has nothing to do with reality


@pytest.mark.skipif(not CMSSW_MODEL.is_file(), reason="nothing published yet")
def test_the_model_for_cmssw_keeps_its_contract() -> None:
    task = load_definitions("task2f_cmssw_inference")
    model = task.check_model(CMSSW_MODEL)  # names, shapes, opset 10, IR 5
    card = {entry.key: entry.value for entry in model.metadata_props}
    assert card["data_source"] in ("official", "standin")
    frames = np.zeros((3, 1, 32, 32), np.float32)
    frames[0, 0, 13:18, 13:18] = [  # an unconverted photon is narrow ...
        [0.03, 0.0, 0.44, 0.04, 0.03],
        [0.24, 0.31, 1.21, 0.63, 0.26],
        [0.32, 2.26, 70.2, 2.59, 0.37],
        [0.16, 1.02, 4.67, 0.93, 0.13],
        [0.05, 0.13, 0.31, 0.10, 0.04],
    ]
    frames[1, 0, 15, 10:21] = 5.0  # ... and an electron that radiated wide in phi
    photon, electron, _ = open_session(CMSSW_MODEL).run(None, {"modelInput": frames})[0][:, 0]
    assert 0 < photon < electron < 1


def has_trivial_baseline(metrics: dict) -> bool:
    """Whether a baseline that needs no learning has the headline metric."""
    baselines, headline = metrics["baselines"], metrics["headline"]
    return any(headline in baselines.get(name, {}) for name in TRIVIAL)


def test_every_published_run_has_its_trivial_baseline() -> None:
    published = published_metrics()
    assert [task for task, metrics in published.items() if not has_trivial_baseline(metrics)] == []
