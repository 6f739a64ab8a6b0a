"""Every training loop of the notebooks on a few toy events, for tests of machines.

``TRAININGS[name](folder)`` is a notebook's module and a function that trains and returns weights
and buffers by name.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import torch

from e2e_utils.machine import launched_processes
from e2e_utils.notebook import load_definitions
from e2e_utils.seeds import seed_everything
from tests import (
    test_common_task1,
    test_task2a_higgs_transformer,
    test_task2b_superres_gan,
    test_task2c_sparse_vae,
    test_task2d_diffusion,
    test_task2e_mass_regression,
    test_task2g_ssl_vit,
    test_task2h_graph_jets,
    test_task2i_foundation,
)

Weights = Mapping[str, np.ndarray | torch.Tensor]
Training = tuple[ModuleType, Callable[[], Weights]]


def notebook_of(module: ModuleType, folder: Path, *arguments: object) -> ModuleType:
    """What the fixture ``notebook`` of a test file gives."""
    return inspect.unwrap(module.notebook)(folder, *arguments)


def electron_photon(folder: Path) -> Training:
    notebook = notebook_of(test_common_task1, folder)
    config = replace(notebook.CONFIGS["smoke"], epochs=2, batch_size=32)
    rows = notebook.splits.train[:128]
    return notebook, lambda: notebook.train_arm("energy_and_time", 0, rows, config)[1]


def higgs(folder: Path, arm: str = "scratch") -> Training:
    notebook = notebook_of(test_task2a_higgs_transformer, folder)
    job = notebook.Job(arm, 256, 0, notebook.Schedule(2, 2, 64, 3e-3))
    return notebook, lambda: notebook.run_job(job, {})[1]


def super_resolution(folder: Path, arm: str = "gan") -> Training:
    jets = test_task2b_superres_gan.toy_jets(32)
    notebook = test_task2b_superres_gan.with_toys(folder, jets)
    notebook.CONFIG = replace(notebook.CONFIG, batch_size=4)
    job = notebook.Job(arm, 0, 1, 3e-3, 0.1 if arm == "gan" else 0.0)

    def train() -> Weights:
        seed_everything(0)
        network = notebook.build(arm, 0.2)
        notebook.train(job, network, np.arange(16))
        return network.state_dict()

    return notebook, train


def sparse(folder: Path, classes: bool = False) -> Training:
    notebook = notebook_of(test_task2c_sparse_vae, folder, test_task2c_sparse_vae.toy_jets(150))
    arm, schedule = notebook.ARMS["sparse"], notebook.Schedule(2, 16)
    if not classes:
        return notebook, lambda: notebook.pretrain("a", arm, 0, schedule, np.arange(64)).weights

    def train() -> Weights:
        seed_everything(0)
        model = notebook.Classifier(arm)
        return notebook.classify("a", model, 0, schedule, notebook.splits.train).weights

    return notebook, train


def generators(folder: Path, arm: str) -> Training:
    notebook = load_definitions("task2d_diffusion")
    inspect.unwrap(test_task2d_diffusion.trained)(notebook, folder)
    smoke = notebook.CONFIGS["smoke"]
    notebook.CONFIG = replace(smoke, rounds=2, passes=2, batch=8 // launched_processes())
    return notebook, lambda: notebook.train(notebook.Job(arm, 0, 48))[1]


def mass(folder: Path) -> Training:
    notebook = notebook_of(test_task2e_mass_regression, folder)
    config = replace(notebook.CONFIGS["smoke"], epochs=2, batch_size=8)
    job = notebook.Job("all", 0, notebook.splits.train[:32], notebook.splits.validation)
    return notebook, lambda: notebook.run_job(job, config)[1]


def self_supervision(folder: Path, labels: bool = False) -> Training:
    notebook = notebook_of(test_task2g_ssl_vit, folder)
    if labels:
        return notebook, lambda: notebook.run_job(notebook.Job("scratch_one", 0, 0, 0, 1e-3, 4))[1]
    job = notebook.PreTraining("resnet", 0, 40, 2)
    return notebook, lambda: notebook.run_pretraining(job)[1]


def graphs(folder: Path, arm: str) -> Training:
    notebook = notebook_of(test_task2h_graph_jets, folder)
    job = notebook.Job(arm, 0, notebook.Schedule(2, 16, 3e-3, jets=64))
    return notebook, lambda: notebook.run_job(job)[1]


def foundation(folder: Path, arm: str) -> Training:
    notebook = notebook_of(test_task2i_foundation, folder)
    return notebook, lambda: notebook.run_job(notebook.Job(arm, 0, 4))[1]


def symmetry(folder: Path, chart: bool = False) -> Training:
    notebook = load_definitions("task2j_symmetry")
    notebook.run = SimpleNamespace(directory=folder)
    images = torch.randint(0, 256, (64, 28, 28), dtype=torch.uint8, generator=torch.manual_seed(0))
    schedule = notebook.Schedule(6, 8, rounds=2)

    def train() -> Weights:
        if not chart:
            return notebook.arrays(notebook.train_vae("a", 4, images, images[:16], schedule, 0)[1])
        seed_everything(0)
        z = torch.randn(64, 6).to(notebook.DEVICE)

        def loss(model: torch.nn.Module, generator: torch.Generator) -> dict[str, torch.Tensor]:
            x = z[notebook.draw(64, 8, generator)]
            return notebook.chart_terms(model, x, x.flip(1), torch.ones_like(x[:, 0]), x.var())

        model = notebook.Chart(6)
        notebook.train("a", model, loss, schedule, 0)
        return notebook.arrays(model)

    return notebook, train


TRAININGS: dict[str, Callable[[Path], Training]] = {
    "common task 1": electron_photon,
    "2a": higgs,
    "2a pre-training": lambda folder: higgs(folder, "pre-training"),
    "2b adversarial": super_resolution,
    "2b flow": lambda folder: super_resolution(folder, "flow"),
    "2c autoencoder": sparse,
    "2c classifier": lambda folder: sparse(folder, classes=True),
    "2d stage one": lambda folder: generators(folder, "totals"),
    "2d diffusion": lambda folder: generators(folder, "diffusion"),
    "2d VAE": lambda folder: generators(folder, "vae"),
    "2d GAN": lambda folder: generators(folder, "gan"),
    "2e": mass,
    "2g pre-training": self_supervision,
    "2g fine-tuning": lambda folder: self_supervision(folder, labels=True),
    "2h dynamic edges": lambda folder: graphs(folder, "dynamic_edges"),
    "2h pair attention": lambda folder: graphs(folder, "pair_attention"),
    "2h CNN": lambda folder: graphs(folder, "cnn"),
    "2i variational": lambda folder: foundation(folder, "variational"),
    "2i student": lambda folder: foundation(folder, "student"),
    "2j autoencoder": symmetry,
    "2j chart": lambda folder: symmetry(folder, chart=True),
}
