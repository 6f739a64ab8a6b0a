# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Task 2f: the electron/photon network inside CMSSW
#
# **Task.** Convert the model of common task 1 to ONNX, run it inside the CMS software framework (CMSSW) on a file of
# two-photon events, and measure the time of the inference.
#
# **What was run here, and what was not.** `cmsRun` needs a CMSSW installation (a container image of some 15 GB, or
# cvmfs), and *no `cmsRun` was run for this notebook*. What it does instead is to prove every part that does not need
# CMSSW: the conversion, the cropping of the detector's hits into frames in Python and in the very C++ file that the
# CMSSW plugin compiles, the inference with the ONNX Runtime versions that the releases carry, and the timing. The
# folder [`cmssw/`](cmssw) holds the plugin, its configuration and one script that does the rest in a container; section
# 9 says which statements are still to be confirmed there.
#
# The table below is filled in by the last cell, from the run that you are looking at.

# %%
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = ""  # @param {type:"string"}  Without a clone, as on Colab: this repository's address.

places = [Path.cwd(), Path.cwd() / "e2e", *Path.cwd().parents]
root = next((place for place in places if (place / "e2e_utils").is_dir()), None)
if root is None:  # a notebook alone: fetch what it needs
    assert REPOSITORY, "enter the address of this repository in the form field of this cell"
    git = ["git", "clone", "--quiet", "--depth=1", REPOSITORY, "e2e"]
    fetched = subprocess.run(git, capture_output=True, text=True)
    assert fetched.returncode == 0, f"{REPOSITORY} could not be fetched: {fetched.stderr}"
    root = Path.cwd() / "e2e"
os.chdir(root)
sys.path.insert(0, str(root))

from e2e_utils.colab import install_missing
from e2e_utils.notebook import show_results

install_missing()
show_results("task2f_cmssw_inference")

# %% [markdown]
# ## 1. Set-up
# The network is that of common task 1 and is not written down a second time: `load_definitions` executes the
# definitions of that notebook, and its published weights are loaded into them.

# %%
import platform
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import awkward as ak
import matplotlib.pyplot as plt
import numpy as np
import onnx
import pandas as pd
import torch
import uproot
from IPython.display import Markdown, display
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullLocator
from scipy.stats import bootstrap, ks_2samp
from torch import nn
from torch.nn.functional import pad

from data.loaders import load_electron_photon, two_photon_file
from e2e_utils import paths, plotting
from e2e_utils.checkpoints import load_weights, read_card
from e2e_utils.errors import InputError
from e2e_utils.evaluation import CLASSIFIER_METRICS, evaluate, metric_entry
from e2e_utils.machine import available_cores
from e2e_utils.metrics import paired_bootstrap, roc_auc
from e2e_utils.notebook import (
    load_definitions,
    results_frame,
    start_run,
    update_results,
)
from e2e_utils.onnx_export import check_parity, export_onnx, open_session
from e2e_utils.splits import duplicate_groups, split
from task2f_cmssw_inference.cmssw import parse_timing
from task2f_cmssw_inference.cmssw.standalone import build
from task2f_cmssw_inference.engines import (
    OLD_ENGINES,
    EngineMissing,
    current_python,
    interpreter,
    run_worker,
)

# %% tags=["parameters"]
PROFILE = os.environ.get("PROFILE", "quick")  # smoke (tests), quick, standard, full
DATA_SOURCE = os.environ.get("DATA_SOURCE", "auto")  # auto, official, standin
DATA = os.environ.get("DATA") or None  # another ROOT file with two-photon events


# %%
@dataclass(frozen=True)
class Config:
    """How much is timed; nothing is trained here."""

    timed_events: int
    timed_sessions: int  # events of the slow way, a session for each
    n_resamples: int = 400  # of the bootstrap


CONFIGS = {
    "smoke": Config(timed_events=30, timed_sessions=3, n_resamples=50),
    "quick": Config(timed_events=1000, timed_sessions=100, n_resamples=200),
    "standard": Config(timed_events=1000, timed_sessions=1000),
    "full": Config(timed_events=1000, timed_sessions=1000),
}
CONFIG = CONFIGS[PROFILE]

# %%
run = start_run("task2f_cmssw_inference", PROFILE, DATA_SOURCE)
plotting.set_style()
print(run.summary())

# %% [markdown]
# ## 2. The network and its events
# RecoE2E, the reference package, crops frames of *energies*: it has no time channel. A network that was trained on
# energy and time would have to be fed with invented times, so the honest choice is the energy-only network that common
# task 1 trained for this purpose. Section 6 measures what leaving out the time costs.

# %%
TASK1 = load_definitions("common_task1")
TASK1_WEIGHTS = paths.WEIGHTS / "common_task1"


def trained_network(arm: str, seed: int = 0) -> nn.Module:
    """A published network of common task 1, in evaluation mode."""
    return load_weights(
        TASK1_WEIGHTS / f"{arm}_seed{seed}.safetensors", TASK1.build_model(arm)
    ).eval()


networks = {arm: trained_network(arm) for arm in ("energy_only", "resnet")}
card = read_card(TASK1_WEIGHTS / "energy_only_seed0.safetensors")
display(Markdown(
    f"> **The network** was trained in the {card['profile']} profile on {card['data']}; "
    f"AUC on its validation events {card['validation_roc_auc']}."
))  # fmt: skip

# %% [markdown]
# **Events to score it on** must be new to it. Stand-in events are simulated with another seed than those of common
# task 1. Of the official files there are no others, so the test part of that notebook's split is used: the same split
# of the same events, in the profile in which the network was trained.

# %%
profile = card["profile"] if DATA_SOURCE == "official" else PROFILE
dataset = load_electron_photon(DATA_SOURCE, profile, fresh=True)
if dataset.source == "official":
    test = split(dataset.y, seed=0, groups=duplicate_groups(dataset.images)).test
else:
    test = np.random.default_rng(0).permutation(len(dataset))
images, y = dataset.images, dataset.y[test]
display(Markdown(f"> **Data of this run:** {dataset.description}; {len(test):,} of them scored"))

# %% [markdown]
# ## 3. What RecoE2E feeds, and what the network expects
# | | training image (official HDF5 file) | frame of RecoE2E |
# | --- | --- | --- |
# | unit | energy / 50 GeV | GeV |
# | channels | energy, time | energy |
# | seed crystal | row 16, column 16 | row 15, column 15 |
# | rows | seed − 16 … seed + 15 | seed − 15 … seed + 16 |
# | beyond the barrel in $\eta$ | such events were dropped | zeros |
# | $\varphi$ | continues across $360°$ | continues across $360°$ |
# | photon outside the barrel | does not occur | all zeros, and inferred nevertheless |
#
# A frame is therefore brought to the training's form by a division and a shift by one crystal down and to the right.
# Row and column 16 before the seed were not in the frame and become zeros; row and column 16 after it are cut off:
# $$x_{ij} = \begin{cases}\dfrac{1}{50\,\mathrm{GeV}}\,f_{i-1,\,j-1} & i, j \ge 1\\ 0 & \text{otherwise}\end{cases}$$
# The adapter is *inside the exported graph*, so nobody has to remember it: what the plugin crops goes in unchanged.


# %%
GEV_PER_UNIT = 50.0


def to_training_form(frames: torch.Tensor) -> torch.Tensor:
    """Frames (B, 1, 32, 32) in GeV, seed at [15][15] -> energy images in units of 50 GeV, seed at [16][16]."""
    return pad(frames, (1, -1, 1, -1)) / GEV_PER_UNIT


def to_frames(x: torch.Tensor) -> torch.Tensor:
    """Official images (B, 2, 32, 32) -> the frames (B, 1, 32, 32) that RecoE2E would crop.

    The crystals 16 after the seed are not in an image and stay zero; the adapter cuts them off.
    """
    return pad(x[:, :1], (-1, 1, -1, 1)) * GEV_PER_UNIT


class CmsswGraph(nn.Module):
    """The graph that CMSSW runs: frames (B, 1, 32, 32) in GeV -> P(electron) (B, 1)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.network(to_training_form(frames)).sigmoid().unsqueeze(1)  # (B,) -> (B, 1)


example = images.dense(test[y == 1][:1])  # (1, 2, 32, 32)
frame = to_frames(example)
shown = {
    "training image": example[0, 0] * GEV_PER_UNIT,
    "frame of RecoE2E": frame[0, 0],
    "frame after the adapter": to_training_form(frame)[0, 0] * GEV_PER_UNIT,
}
fig, axes = plt.subplots(1, 3, figsize=(11, 3.4))
for axis, (title, image) in zip(axes, shown.items(), strict=True):
    row, column = np.unravel_index(int(image.argmax()), image.shape)
    last = axis is axes[-1]
    plotting.event_image(
        axis, image.numpy(), f"{title}\nseed at [{row}][{column}]", "E [GeV]" if last else ""
    )
    axis.axhline(15.5, color="grey", lw=0.6)
    axis.axvline(15.5, color="grey", lw=0.6)
plt.show()

# %% [markdown]
# ## 4. Export
# **Format.** Every CMSSW release has one ONNX Runtime, and each version of it reads models up to a certain operator
# set (opset) and file format (IR): 11_0_1, the release that the task names, has 1.0.0 and reads opset 10 and IR 5; all
# later ones read these too. PyTorch's present exporter starts at opset 18, so the tracing exporter is used, and the two
# numbers are asserted rather than trusted.
#
# **Contract.** RecoE2E replaces only a first dimension of −1, and takes one float per photon: `modelInput`
# [batch, 1, 32, 32] → `modelOutput` [batch, 1], with the sigmoid inside.

# %%
INPUT, OUTPUT = ("modelInput", (1, 32, 32)), ("modelOutput", (1,))
OPSET, IR_VERSION = 10, 5


def signature(value: onnx.ValueInfoProto) -> tuple[str, list[int | str], str]:
    """Name, dimensions (text where free) and element type of an input or output."""
    tensor = value.type.tensor_type
    shape = [d.dim_param or d.dim_value or "?" for d in tensor.shape.dim]
    return value.name, shape, onnx.TensorProto.DataType.Name(tensor.elem_type)


def check_model(path: str | Path) -> onnx.ModelProto:
    """The model of a file that RecoE2E and our plugin can run in every release with ONNX Runtime.

    Raises InputError for a file that is no model, for other names, shapes or types, and for an
    opset or IR version that the oldest engine does not read.
    """
    advice = "export it again with this notebook"
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # onnx raises its own, protobuf's and plain errors
        found = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: expected an ONNX model, found {found}; {advice}") from error
    initial = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initial]
    for kind, values, (name, rest) in (
        ("input", inputs, INPUT),
        ("output", model.graph.output, OUTPUT),
    ):
        found = [signature(value) for value in values]
        wanted = f"one {kind} {name} [batch, {', '.join(map(str, rest))}] FLOAT"
        good = len(found) == 1 and found[0][0] == name and found[0][2] == "FLOAT"
        good = good and isinstance(found[0][1][0], str) and tuple(found[0][1][1:]) == rest
        if not good:
            seen = "; ".join(f"{n} {shape} {dtype}" for n, shape, dtype in found)
            raise InputError(f"{path}: expected {wanted}, found {seen}; {advice}")
    opsets = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    if opsets != {"ai.onnx": OPSET} or model.ir_version != IR_VERSION:
        raise InputError(
            f"{path}: expected opset {OPSET} and IR {IR_VERSION}, which ONNX Runtime 1.0.0 of "
            f"CMSSW_11_0_1 reads, found {opsets} and IR {model.ir_version}; {advice}"
        )
    return model


# %% [markdown]
# Averaging over the four mirror images, as common task 1 does, would cost four passes through the network for every
# photon. Both graphs are exported; the single pass is the main one, and section 6 says what that costs.

# %%
graphs = {
    "task2f_cmssw_inference": CmsswGraph(networks["energy_only"]),
    "mirror_average": CmsswGraph(TASK1.FlipAverage(networks["energy_only"])),
}
description = {
    "task": "task2f_cmssw_inference",
    "profile": card["profile"],
    "data_source": card["source"],
    "data": card["data"],
    "input": "energy frames in GeV, seed crystal at [15][15]",
    "output": "P(electron)",
}
for name, graph in graphs.items():
    path = run.directory / f"{name}.onnx"
    export_onnx(graph.eval(), frame, path, [INPUT[0]], [OUTPUT[0]], description, OPSET, IR_VERSION)
    exported = check_model(path)
    operators = sorted({node.op_type for node in exported.graph.node})
    print(
        f"{path.name}: {path.stat().st_size / 1e6:.2f} MB, {len(exported.graph.node)} nodes of {len(operators)} kinds"
    )
model_path = run.directory / "task2f_cmssw_inference.onnx"
print("operators:", ", ".join(operators))

# %% [markdown]
# **Refusals.** The check has to be able to fail. Four models that would run somewhere, or run and be wrong, are refused:


# %%
def refusal(**changes: object) -> str:
    """What `check_model` says of a graph exported with something changed."""
    options = {
        "inputs": [INPUT[0]],
        "opset": OPSET,
        "ir_version": IR_VERSION,
        "channels": 1,
    } | changes
    channels = options["channels"]
    network = networks["energy_only"] if channels == 1 else networks["resnet"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "changed.onnx"
        export_onnx(
            CmsswGraph(network).eval(), torch.zeros(2, channels, 32, 32), path,
            options["inputs"], [OUTPUT[0]], {}, options["opset"], options["ir_version"],
        )  # fmt: skip
        try:
            check_model(path)
        except InputError as error:
            return str(error).replace(f"{path}: ", "")
    return "accepted"


refusals = {
    "another input name": refusal(inputs=["x"]),
    "two channels": refusal(channels=2),
    "opset 17": refusal(opset=17),
    "IR 9": refusal(ir_version=9),
}
assert "accepted" not in refusals.values(), refusals
display(Markdown("\n".join(["| model with | refused: |", "| --- | --- |", *(f"| {k} | {v} |" for k, v in refusals.items())])))  # fmt: skip

# %% [markdown]
# ## 5. Parity
# The same frames through PyTorch and through every engine at hand: batches of 0 (an event without photons), 1, 2, 7 and
# 64 real showers, and an all-zero frame (a photon outside the barrel). The old engines are the PyPI wheels of the
# versions that CMSSW carries. `make` installs them where it finds interpreters as old as they are; elsewhere they are
# left out, by name.

# %%
BATCHES = (0, 1, 2, 7, 64)
TOLERANCE = 1e-5

frame_sets = {f"batch of {n}": to_frames(images.dense(test[:n])).numpy() for n in BATCHES}
frame_sets["zero frame"] = np.zeros((1, 1, 32, 32), np.float32)
with torch.no_grad():
    expected = {
        name: graphs["task2f_cmssw_inference"](torch.from_numpy(x)).numpy()
        for name, x in frame_sets.items()
    }
for name, graph in graphs.items():
    difference = check_parity(
        graph, run.directory / f"{name}.onnx", list(frame_sets.values()), TOLERANCE
    )
    print(f"{name}.onnx: largest difference to PyTorch {difference:.1e}")

# %%


def release_number(version: str) -> tuple[int, ...]:
    """Version "1.10.0" as (1, 10, 0), so that versions sort."""
    return tuple(map(int, version.split(".")))


interpreters, missing = {"current": current_python()}, {}
for engine in OLD_ENGINES:
    try:
        interpreters[engine.version] = interpreter(engine)
    except EngineMissing as reason:
        missing[engine.version] = str(reason)

reports, parity = {}, {}
for name, python in interpreters.items():
    scores, report = run_worker(
        python,
        model_path,
        frame_sets,
        run.directory / "state",
        CONFIG.timed_events,
        CONFIG.timed_sessions,
    )
    reports[name] = report
    for batch, found in scores.items():
        assert found.shape == expected[batch].shape, (name, batch, found.shape)
        parity[report["engine"], batch] = np.abs(found - expected[batch]).max(initial=0.0)
releases = {engine.version: engine.releases for engine in OLD_ENGINES}
frame_of_parity = pd.Series(parity).unstack()[list(frame_sets)]
frame_of_parity = frame_of_parity.sort_index(key=lambda index: index.map(release_number))
frame_of_parity.index.name = "ONNX Runtime"
assert frame_of_parity.to_numpy().max() <= TOLERANCE, frame_of_parity
display(frame_of_parity.map("{:.1e}".format))
for version, reason in missing.items():
    print(f"ONNX Runtime {version} (CMSSW {releases[version]}) was not run: {reason}")

# %% [markdown]
# ## 6. What it costs: energy only, one pass, the shift, and what goes wrong without the adapter
# All rows score the same events. The first two take the images as they stand in the official files; all others
# take the frames that RecoE2E would crop from the same hits.
#
# - **Frames not shifted / not scaled**: the energy-only network without one half of the adapter. Nothing crashes and
#   every score is a number between 0 and 1.
# - **Two channels through RecoE2E's buffer**: the reference fills its input buffer channel-last, (photon, row, column,
#   channel), and labels it with the model's dimensions, (photon, channel, row, column). With one channel both orders are
#   the same memory. With two, energies and times end up interleaved in both channels; again nothing complains.
# - **Scores discarded**: in the reference's `EGTagger` the product keeps its initial value, −1 for every photon: the
#   constant row.

# %%
session = open_session(model_path, threads=1)
mirrored = open_session(run.directory / "mirror_average.onnx", threads=1)


def in_engine(session: object, x: torch.Tensor) -> np.ndarray:
    """P(electron) (B,) of the frames of images (B, 2, 32, 32), by an ONNX Runtime session."""
    return session.run(None, {INPUT[0]: to_frames(x).numpy()})[0][:, 0]


def interleaved(x: torch.Tensor) -> torch.Tensor:
    """Images (B, 2, 32, 32) written channel-last and read as if channel-first."""
    return x.permute(0, 2, 3, 1).reshape(
        x.shape
    )  # (B, 32, 32, 2) in memory, labelled (B, 2, 32, 32)


def in_torch(network: nn.Module, x: torch.Tensor) -> np.ndarray:
    """P(electron) (B,) of network inputs."""
    with torch.inference_mode():
        return network(x).sigmoid().numpy()


energy_only, two_channel = networks["energy_only"], networks["resnet"]
WAYS: dict[str, Callable[[torch.Tensor], np.ndarray]] = {
    "exported": lambda x: in_engine(session, x),
    "mirror_average": lambda x: in_engine(mirrored, x),
    "energy_and_time_images": lambda x: in_torch(two_channel, x),
    "energy_images": lambda x: in_torch(energy_only, x),
    "not_shifted": lambda x: in_torch(energy_only, to_frames(x) / GEV_PER_UNIT),
    "not_scaled": lambda x: in_torch(energy_only, pad(to_frames(x), (1, -1, 1, -1))),
    "interleaved": lambda x: in_torch(two_channel, interleaved(x)),
}
LABELS = {
    "exported": "exported graph on frames",
    "mirror_average": "exported graph, mean of four mirror images",
    "energy_and_time_images": "energy and time, official images",
    "energy_images": "energy only, official images",
    "not_shifted": "frames not shifted",
    "not_scaled": "frames not divided by 50 GeV",
    "interleaved": "two channels through RecoE2E's buffer",
    "constant": "scores discarded (constant)",
}
parts = {way: [] for way in WAYS}
for _, x in images.iter_dense(512, test):
    for way, function in WAYS.items():
        parts[way].append(function(x))
scores = {way: np.concatenate(batches) for way, batches in parts.items()}
scores["constant"] = np.full(len(y), 0.5)
REPORTED = {
    name: CLASSIFIER_METRICS[name] for name in ("roc_auc", "accuracy", "background_rejection_50")
}
results = {way: evaluate(REPORTED, y, score, CONFIG.n_resamples) for way, score in scores.items()}
display(results_frame({LABELS[way]: results[way] for way in LABELS}))

# %%
COMPARED = {
    "energy_and_time_images": "energy_images",
    "energy_images": "exported",
    "mirror_average": "exported",
    "exported": "not_shifted",
}
rows = {}
differences = {}
for better, worse in COMPARED.items():
    d = paired_bootstrap(roc_auc, y, scores[better], scores[worse], CONFIG.n_resamples)
    differences[better, worse] = d
    rows[f"{LABELS[better]} − {LABELS[worse]}"] = {
        "ΔAUC": f"{d.difference:+.4f}", "95 % interval": f"[{d.low:+.4f}, {d.high:+.4f}]",
    }  # fmt: skip
display(pd.DataFrame(rows).T)


# %%
def cost(better: str, worse: str) -> str:
    """A paired difference of AUC in words."""
    d = differences[better, worse]
    if d.low > 0:
        return f"costs {d.difference:.4f} [{d.low:.4f}, {d.high:.4f}]"
    if d.high < 0:
        return f"costs nothing, it gains {-d.difference:.4f} [{-d.high:.4f}, {-d.low:.4f}]"
    return f"makes no significant difference, {-d.difference:+.4f} [{-d.high:+.4f}, {-d.low:+.4f}]"


trap = {
    way: results[way]["roc_auc"]["value"]
    for way in ("exported", "not_shifted", "not_scaled", "interleaved")
}
surviving = np.mean((scores["interleaved"] > 0.5) == (scores["energy_and_time_images"] > 0.5))
display(Markdown(
    f"On {dataset.words}, in AUC: leaving out the time {cost('energy_and_time_images', 'energy_images')}; "
    f"the strip of crystals that the shifted frame lacks {cost('energy_images', 'exported')}; "
    f"one pass instead of four mirror images {cost('mirror_average', 'exported')}. Without the shift the AUC is "
    f"{trap['not_shifted']:.4f} instead of {trap['exported']:.4f}, without the division {trap['not_scaled']:.4f}. Two "
    f"channels through the reference's buffer give {trap['interleaved']:.4f}: {surviving:.0%} of the decisions "
    "are those of the correct input, and no message says so."
))  # fmt: skip

# %% [markdown]
# **Real images.** Where the folder named by `E2E_REAL_SAMPLES` holds a sample of real images, the exported graph is scored
# on frames made from them.

# %%
REAL_SAMPLE = Path(os.environ.get("E2E_REAL_SAMPLES", "")) / "egamma_real_100.npz"
real_results = {}
text = "*No sample of real images is at hand in this run, or the network was trained on real ones.*"
if card["source"] == "standin" and REAL_SAMPLE.is_file():
    real = np.load(REAL_SAMPLE)
    x = torch.from_numpy(real["X"]).float()[:, None]  # (100, 1, 32, 32)
    real_results = evaluate(REPORTED, real["y"].astype(int), in_engine(session, x))
    auc = real_results["roc_auc"]
    text = f"On {len(x)} real images the exported graph has an AUC of **{auc['value']:.3f}** [{auc['low']:.3f}, {auc['high']:.3f}]."
display(Markdown(text))

# %% [markdown]
# ## 7. From a ROOT file to scores
# The input of the task is a file of reconstructed events (AODSIM). uproot reads its branches without CMSSW: the crystal
# number (`EBDetId`), energy and time of the barrel's hits, and $p_T$, $\eta$, $\varphi$ of the photons. Where the official
# file is not on disk, stand-in events are used, in a ROOT file with the same branch names; only CMSSW can write
# complete EDM files, so `cmsRun` cannot read the stand-in.

# %%
HITS = "EcalRecHitsSorted_reducedEcalRecHitsEB__*.obj.obj."
PHOTONS = "recoPhotons_gedPhotons__*.obj.m_state.p4Polar_.fCoordinates."
BRANCHES = {
    "raw_id": f"{HITS}id_.id_", "energy": f"{HITS}energy_",
    "pt": f"{PHOTONS}fPt", "eta": f"{PHOTONS}fEta", "phi": f"{PHOTONS}fPhi",
}  # fmt: skip


@dataclass(frozen=True)
class BarrelEvents:
    """Hits and photons of events one after the other; ``*_offsets`` (N + 1,) say where each begins."""

    hit_offsets: np.ndarray
    raw_id: np.ndarray  # (H,) uint32 EBDetId
    energy: np.ndarray  # (H,) float32 GeV
    photon_offsets: np.ndarray
    pt: np.ndarray  # (P,) GeV
    eta: np.ndarray  # (P,)
    phi: np.ndarray  # (P,) rad

    def __len__(self) -> int:
        return len(self.hit_offsets) - 1


def read_events(path: str | Path) -> BarrelEvents:
    """The barrel hits and photons of a ROOT file's tree ``Events``.

    Raises InputError for a file that is not ROOT, has no such tree, or lacks branches (named).
    """
    advice = "take an AOD file with reducedEcalRecHitsEB and gedPhotons"
    try:
        file = uproot.open(path)
    except (OSError, ValueError) as error:
        found = " ".join(str(error).split())[:80] or type(error).__name__
        raise InputError(f"{path}: expected a ROOT file, found {found}; {advice}") from error
    with file:
        if "Events" not in file.keys(cycle=False):
            found = ", ".join(file.keys(cycle=False)[:5]) or "nothing"
            raise InputError(f"{path}: expected a tree Events, found {found}; {advice}")
        tree = file["Events"]
        names = {
            field: tree.keys(filter_name=pattern, full_paths=False)
            for field, pattern in BRANCHES.items()
        }
        absent = [BRANCHES[field] for field, found in names.items() if not found]
        if absent:
            raise InputError(
                f"{path}: expected the branches {', '.join(BRANCHES.values())}, "
                f"found none for {', '.join(absent)}; {advice}"
            )
        try:
            columns = {field: tree[found[0]].array() for field, found in names.items()}
        except (OSError, ValueError) as error:
            found = " ".join(str(error).split())[:80]
            raise InputError(
                f"{path}: expected whole branches, found {found}; the file is damaged or was cut "
                "off, fetch it again"
            ) from error
    offsets = {
        field: np.concatenate([[0], np.cumsum(ak.num(columns[field]).to_numpy())])
        for field in ("raw_id", "pt")
    }
    flat = {field: ak.flatten(column).to_numpy() for field, column in columns.items()}
    for field, counted in (("energy", "raw_id"), ("eta", "pt"), ("phi", "pt")):
        if len(flat[field]) != len(flat[counted]):
            raise InputError(
                f"{path}: expected as many values in {names[field][0]} as in {names[counted][0]}, found "
                f"{len(flat[field])} and {len(flat[counted])}; the file is damaged, fetch it again"
            )
    return BarrelEvents(
        offsets["raw_id"], flat["raw_id"].astype(np.uint32), flat["energy"].astype(np.float32),
        offsets["pt"], flat["pt"], flat["eta"], flat["phi"],
    )  # fmt: skip


events_path, events_source = two_photon_file(DATA_SOURCE, PROFILE, DATA)
events = read_events(events_path)
display(Markdown(f"> **Two-photon events of this run:** {len(events):,} events, {len(events.pt):,} photons, {len(events.energy):,} hits; source: {events_source} (`{events_path.name}`)"))  # fmt: skip

# %% [markdown]
# **Cropping.** A crystal's number holds $|i\eta|$ (1 to 85), the side of the barrel and $i\varphi$ (1 to 360); there is no
# crystal 0, so that the row of the $170\times360$ map is $i\eta + 85$ for the negative and $i\eta + 84$ for the positive
# side. The frame runs from 15 crystals before the seed to 16 after it, with zeros beyond the barrel's ends and across
# the seam in $\varphi$. A photon with $p_T < 10$ GeV or $|\eta| > 1.44$ gets an empty frame, as in RecoE2E.
#
# CMSSW takes as seed the highest barrel hit of the photon's supercluster. The clusters are not among the branches read
# here; the highest hit within ten crystals of the photon's direction takes their place.

# %%
FRAME, SEED_AT = 32, 15
PT_CUT, ETA_CUT = 10.0, 1.44
SEARCH = 10  # crystals each way: the vertex moves the impact by several


def decode(raw_id: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row (0 to 169) and column (0 to 359) of EBDetIds on the barrel map."""
    raw_id = raw_id.astype(np.int64)
    absolute, side, iphi = raw_id >> 9 & 0x7F, raw_id & 0x10000, raw_id & 0x1FF
    return np.where(side > 0, 84 + absolute, 85 - absolute), iphi - 1


def hits_of_photons(events: BarrelEvents) -> tuple[np.ndarray, np.ndarray]:
    """Every pair (photon, hit of its event) as two arrays of indices, sorted by photon."""
    photons_per_event = np.diff(events.photon_offsets)
    event = np.repeat(np.arange(len(events)), photons_per_event)
    counts = np.diff(events.hit_offsets)[event]
    photon = np.repeat(np.arange(len(event)), counts)
    place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return photon, events.hit_offsets[event][photon] + place


def find_seeds(events: BarrelEvents) -> np.ndarray:
    """EBDetId (P,) of each photon's seed crystal; 0 where the photon gets an empty frame."""
    row, column = decode(events.raw_id)
    photon, hit = hits_of_photons(events)
    crystal = np.pi / 180
    expected_row = np.floor(events.eta / crystal) + 85
    expected_column = (
        np.floor(np.mod(events.phi, 2 * np.pi) / crystal) + 10
    )  # iphi 1 is at -10 degrees
    apart = np.abs((column[hit] - expected_column[photon] + 180) % 360 - 180)
    near = (np.abs(row[hit] - expected_row[photon]) <= SEARCH) & (apart <= SEARCH)
    near &= ((events.pt >= PT_CUT) & (np.abs(events.eta) <= ETA_CUT))[photon] & (
        events.energy[hit] > 0
    )
    photon, hit = photon[near], hit[near]
    order = np.lexsort((events.energy[hit], photon))  # the last of each photon is its highest hit
    seeds = np.zeros(len(events.pt), np.uint32)
    seeds[photon[order]] = events.raw_id[hit[order]]
    return seeds


def crop_frames(events: BarrelEvents, seeds: np.ndarray) -> np.ndarray:
    """Frames (P, 1, 32, 32) float32 in GeV around the seeds; zeros where there is none."""
    row, column = decode(events.raw_id)
    seed_row, seed_column = decode(seeds)
    photon, hit = hits_of_photons(events)
    r = row[hit] - seed_row[photon] + SEED_AT
    c = (column[hit] - seed_column[photon] + SEED_AT) % 360
    inside = (seeds[photon] > 0) & (r >= 0) & (r < FRAME) & (c < FRAME) & (events.energy[hit] > 0)
    frames = np.zeros((len(seeds), 1, FRAME, FRAME), np.float32)
    frames[photon[inside], 0, r[inside], c[inside]] = events.energy[hit[inside]]
    return frames


seeds = find_seeds(events)
event_frames = crop_frames(events, seeds)
event_scores = session.run(None, {INPUT[0]: event_frames})[0][:, 0]
print(f"{np.sum(seeds > 0):,} photons with a frame, {np.sum(seeds == 0):,} with an empty one")

# %%
both = np.flatnonzero((seeds.reshape(-1, 2) > 0).all(1)) if len(seeds) == 2 * len(events) else []
chosen = int(both[0]) if len(both) else 0
first, last = events.hit_offsets[chosen : chosen + 2]
row, column = decode(events.raw_id[first:last])
mine = np.arange(*events.photon_offsets[chosen : chosen + 2])
fig = plt.figure(figsize=(11, 6.6))
top, *below = fig.subplot_mosaic([["map"] * 2, ["a", "b"]], height_ratios=[1.15, 1]).values()
# One crystal is too small to be seen on the whole map: hits are drawn as dots.
hits = top.scatter(column, row, c=events.energy[first:last], s=14, norm="log", cmap="viridis")
fig.colorbar(hits, ax=top, label="E [GeV]", pad=0.01)
for photon in mine[seeds[mine] > 0]:
    r, c = decode(seeds[photon])
    for turn in (-360, 0, 360):
        top.add_patch(
            Rectangle((c - 15.5 + turn, r - 15.5), 32, 32, fill=False, color=plotting.PALETTE[1])
        )
top.set(xlim=(-0.5, 359.5), ylim=(-0.5, 169.5), xlabel="column (iphi − 1)", ylabel="row", title=f"event {chosen}: barrel map and the frames")  # fmt: skip
for axis, photon in zip(below, mine, strict=False):
    plotting.event_image(
        axis,
        event_frames[photon, 0],
        f"photon {photon - mine[0]}: P(e) = {event_scores[photon]:.2f}",
    )
    axis.set(xlabel="frame column", ylabel="frame row")
plt.show()

# %% [markdown]
# **Does this path give the same scores as the images?** Both samples are single photons of the same momentum. If
# branches, decoding, seed and cropping are right, the photons of the file have the same distribution of scores as
# photon images (which exist for $|\eta| < 1.2$ only).

# %%
central = (seeds > 0) & (np.abs(events.eta) < 1.2)
comparison = ks_2samp(event_scores[central], scores["exported"][y == 0])
empty_score = float(expected["zero frame"][0, 0])
fig, axis = plt.subplots(figsize=(6.5, 3.6))
bins = np.linspace(0, 1, 31)
for label, values, color in (
    ("photons of the ROOT file", event_scores[central], plotting.PALETTE[0]),
    ("photon images", scores["exported"][y == 0], plotting.PALETTE[2]),
    ("electron images", scores["exported"][y == 1], plotting.PALETTE[1]),
):
    axis.hist(values, bins, density=True, histtype="step", lw=1.6, label=label, color=color)
axis.axvline(empty_score, color="grey", ls=":", label="empty frame")
axis.set(xlabel="P(electron)", ylabel="probability density")
axis.legend()
plt.show()
verdict = (
    "which is compatible with one distribution: the path from the file is consistent with the images."
    if comparison.pvalue > 0.01
    else "**which is not compatible with one distribution**; the two samples differ."
)
display(Markdown(
    f"Kolmogorov distance {comparison.statistic:.3f} between {central.sum():,} photons of the file and "
    f"{np.sum(y == 0):,} photon images, $p$ = {comparison.pvalue:.2f}, {verdict} An empty frame scores "
    f"{empty_score:.3f}, which looks like a photon: whoever uses the scores must ask whether the photon was in the barrel."
))  # fmt: skip

# %% [markdown]
# ## 8. The C++ core of the plugin, and the timing
# The plugin's core (decoding, cropping, batching, one inference call an event) is plain C++ without any CMSSW header,
# `cmssw/E2EInference/ElectronPhoton/src/PhotonFrames.cc`. Here g++ compiles this same file with a small program
# that reads events from a file and calls the C library of ONNX Runtime inside the installed wheel. Its frames and scores
# must be those of Python.


# %%
def cpp_events(counts: int | None = None) -> Iterator[tuple]:
    """Each event as the C++ program takes it: hits' ids and energies, and (the first) photons' seeds."""
    for i in range(len(events)):
        first, last = events.hit_offsets[i : i + 2]
        mine = seeds[slice(*events.photon_offsets[i : i + 2])]
        yield events.raw_id[first:last], events.energy[first:last], mine[:counts]


cpp, cpp_missing, state = {}, "", run.directory / "state"
try:
    program, library = build.build(state), build.find_library()
except InputError as reason:  # no compiler, or a wheel without the C library (not on Linux)
    cpp_missing = str(reason)
if not cpp_missing:
    for count, mode in ((1, False), (2, False), (1, True), (2, True)):
        source = build.write_events(state / "events.bin", cpp_events(count))
        cpp[count, mode] = build.score_events(
            program, library, model_path, source, session_per_event=mode, warmup=0 if mode else 50,
            frames=state / "frames.f32",
        )  # fmt: skip
    source = build.write_events(state / "events.bin", cpp_events())
    found, _ = build.score_events(program, library, model_path, source, frames=state / "frames.f32")
    cpp_frames = np.fromfile(state / "frames.f32", np.float32).reshape(
        event_frames.shape
    )  # (P, 1, 32, 32)
    assert np.array_equal(cpp_frames, event_frames), "C++ and Python crop different frames"
    assert len(found) == len(event_scores)
    cpp_difference = np.abs(found["score"].to_numpy() - event_scores).max()
    assert cpp_difference <= TOLERANCE, cpp_difference
    text = (
        f"{len(found):,} photons of {len(events):,} events: all frames identical, largest difference of a score "
        f"{cpp_difference:.1e}."
    )
else:
    text = f"**The C++ core was not run here ({cpp_missing}).** Timing is that of Python."
display(Markdown(text))

# %% [markdown]
# **Timing.** One thread, as CMSSW gives an event; wall-clock time of every single event. *One session*: the model is
# opened once a job, as our plugin does. *Session per event*: the reference opens the model anew for every event. The C++
# rows contain cropping, batching and inference; the Python rows contain the inference only, and are there to compare the
# engines. Photons are inferred together, in one batch an event.


# %%
def timing_row(engine: str, language: str, photons: int, mode: str, times: np.ndarray) -> dict:
    """Median with its interval, mean and tail of milliseconds per event."""
    interval = bootstrap((times,), np.median, n_resamples=999, method="percentile", random_state=0)
    low, high = interval.confidence_interval
    return {
        "ONNX Runtime": engine, "CMSSW": releases.get(engine, "–"), "language": language, "photons": photons,
        "session": mode, "median [ms]": np.median(times), "low": low, "high": high, "mean [ms]": times.mean(),
        "95 % [ms]": np.quantile(times, 0.95), "events": len(times),
    }  # fmt: skip


MODES = {"one_session": "one", "session_per_event": "per event"}
measured = {}
for (count, per_event), (_, timing) in cpp.items():
    times = timing["event_us"][0] / 1e3
    times = times[: CONFIG.timed_sessions] if per_event else times
    measured[
        timing["engine"], "C++", count, MODES["session_per_event" if per_event else "one_session"]
    ] = times
for report in reports.values():
    for count, modes in report["timing"].items():
        for mode, times in modes.items():
            measured[report["engine"], "Python", int(count), MODES[mode]] = np.array(times)
timings = pd.DataFrame(
    timing_row(engine, language, count, mode, times)
    for (engine, language, count, mode), times in measured.items()
)
timings.to_csv(run.directory / "timing.csv", index=False, float_format="%.5g")


def processor() -> str:
    """The processor's name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    names = (
        [
            line.split(":")[1].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        if info.is_file()
        else []
    )
    return names[0] if names and names[0] != "unknown" else platform.machine()


hardware = f"{processor()}, {available_cores()} cores"
if hasattr(os, "getloadavg"):
    hardware += f", load average at the end {os.getloadavg()[0]:.1f}"
print("hardware:", hardware)
display(timings.drop(columns=["low", "high"]).set_index("ONNX Runtime").round(3))

# %%
language = "C++" if cpp else "Python"
current = reports["current"]["engine"]
ours, reference = (measured[current, language, 2, mode] for mode in MODES.values())
fig, axes = plt.subplots(1, 2, figsize=(11, 3.6), width_ratios=[1.3, 1])
low, high = min(ours.min(), 0.1), max(reference.max(), 1.0)
bins = np.geomspace(low, high, 60)
for times, label, color in (
    (ours, "one session", plotting.PALETTE[0]), (reference, "session per event", plotting.PALETTE[1]),
):  # fmt: skip
    axes[0].hist(times, bins, histtype="step", lw=1.6, label=label, color=color)
axes[0].set(xscale="log", xlabel="time per event of two photons [ms]", ylabel="events", title=f"{language}, ONNX Runtime {current}")  # fmt: skip
axes[0].legend()
python_rows = timings[(timings.language == "Python") & (timings.photons == 2)]
for number, (mode, rows) in enumerate(python_rows.groupby("session", sort=False)):
    rows = rows.sort_values("ONNX Runtime", key=lambda column: column.map(release_number))
    median = rows["median [ms]"]
    axes[1].errorbar(
        range(len(rows)), median, [median - rows.low, rows.high - median], fmt="os"[number], capsize=3,
        color=plotting.PALETTE[number], label=f"session: {mode}",
    )  # fmt: skip
    axes[1].set_xticks(range(len(rows)), rows["ONNX Runtime"])
axes[1].set(
    yscale="log",
    xlabel="ONNX Runtime",
    ylabel="median time per event [ms]",
    title="engines, Python",
)
axes[1].set_yticks([0.2, 0.5, 1, 2, 5, 10], ["0.2", "0.5", "1", "2", "5", "10"])
axes[1].yaxis.set_minor_locator(NullLocator())
axes[1].legend()
plt.show()

# %% [markdown]
# **As FastTimerService would report it.** In CMSSW the time per module is measured by FastTimerService, which writes
# `resources.json`; `cmssw/parse_timing.py` turns that file into a table and a plot. Here the measured times are put into a
# file of the same layout and go through the same program, one job with a session for all events and one with a session
# for each. In a real job the other modules (source, output, the framework) stand beside this one.


# %%
def fast_timer_row(label: str, timing: dict) -> pd.DataFrame:
    """The row of the module in a job of nothing else, by way of a resources.json."""
    times = {
        "time_real": timing["event_us"][0] / 1e3,
        "time_thread": timing["event_cpu_us"][0] / 1e3,
    }
    path = run.directory / "state" / "resources.json"
    parse_timing.write_timing(
        path, "STANDALONE", {label: {"type": "ElectronPhotonProducer", **times}}
    )
    return parse_timing.read_timing(path).iloc[:1]


if cpp:
    fast_timer = pd.concat(
        [
            fast_timer_row("one session", cpp[2, False][1]),
            fast_timer_row("session per event", cpp[2, True][1]),
        ]
    )
    display(Markdown(parse_timing.timing_table(fast_timer)))
    fig, axis = plt.subplots(figsize=(7.5, 2.2))
    parse_timing.plot_timing(axis, fast_timer)
    plt.show()
else:
    display(Markdown("*Not shown: it needs the C++ program.*"))

# %% [markdown]
# **A path that is ignored.** The reference takes the model's name as an argument and then opens one fixed file of its
# authors' disk. Nothing in its output shows which network ran. How different would the scores have been? Two files of this
# notebook, on the photons of the ROOT file:

# %%
other_scores = mirrored.run(None, {INPUT[0]: event_frames[seeds > 0]})[0][:, 0]
path_shift = np.abs(other_scores - event_scores[seeds > 0])
ratio = np.median(reference) / np.median(ours)
traps = [
    ("Two channels, channel-last buffer", "an AUC, and no message", f"AUC {trap['interleaved']:.4f} instead of {results['energy_and_time_images']['roc_auc']['value']:.4f}", "one channel, checked when the plugin starts"),
    ("A session for every event", "time", f"{np.median(reference):.2f} ms instead of {np.median(ours):.2f} ms per event, factor {ratio:.0f}", "one session a job (GlobalCache)"),
    ("Scores discarded", "everything", f"AUC {results['constant']['roc_auc']['value']:.2f} from the product in the event", "scores are put into the event"),
    ("Hard-coded model path", "control", f"scores of the {len(path_shift):,} photons differ by {path_shift.mean():.3f} on average, up to {path_shift.max():.3f}, between two models, unnoticed", "parameter, VarParsing, name printed"),
    ("Seed at [15][15], raw GeV", "AUC", f"{trap['not_shifted']:.4f} without the shift, {trap['not_scaled']:.4f} without the division, {trap['exported']:.4f} with both", "adapter inside the graph"),
]  # fmt: skip
display(Markdown("\n".join([
    "| trap of the reference | it costs | measured here | what we do instead |", "| --- | --- | --- | --- |",
    *("| " + " | ".join(trap_row) + " |" for trap_row in traps),
])))  # fmt: skip

# %% [markdown]
# ## 9. What remains to be done with CMSSW
# On a machine with docker and the input file (`make data DATA_SOURCE=official` fetches it),
# ```
# cd task2f_cmssw_inference/cmssw
# model=../../weights/task2f_cmssw_inference/task2f_cmssw_inference.onnx
# ./run_in_docker.sh $model SIM_DoubleGammaPt50_Pythia8_1000Ev.root 12_0_2
# ```
# makes the project area, compiles the plugin, runs `cmsRun` with FastTimerService and prints the timing table.
# To be confirmed there, since nothing of it was run here:
#
# 1. the plugin compiles against the real headers (here it was compiled against stand-ins of the signatures only);
# 2. the file can be read: it was written by CMSSW_12_0_2, and older releases stop with `FormatIncompatibility`, among them
#    the two that the task names (10_6_8_patch1, which has no ONNX Runtime at all, and 11_0_1);
# 3. the scores in the event agree with those of `read_events` → `crop_frames` on the same file, which needs the same seeds:
#    CMSSW takes them from the supercluster, this notebook from a window around the photon;
# 4. the time of the module inside a job, beside the framework's own.

# %% [markdown]
# ## 10. Metrics


# %%
def time_entry(count: int, mode: str, key: tuple[str, str]) -> dict:
    """Median milliseconds per event with its interval; ``key`` is (engine, language)."""
    row = timing_row(*key, count, mode, measured[*key, count, mode])
    return {"milliseconds_per_event": metric_entry(row["median [ms]"], row["low"], row["high"])}


def arm(way: str) -> dict:
    """AUC and its companions of one way of scoring."""
    return {**results[way], "info": {"description": LABELS[way]}}


arms = {
    way: arm(way)
    for way in (
        "mirror_average",
        "energy_and_time_images",
        "energy_images",
        "not_shifted",
        "not_scaled",
        "interleaved",
    )
}
headline = (current, language)
arms["one_photon"] = {
    **time_entry(1, "one", headline),
    "info": {"description": "one photon per event"},
}
for report in reports.values():
    engine = report["engine"]
    arms[f"python_{engine}"] = {
        **time_entry(2, "one", (engine, "Python")),
        "info": {"description": f"ONNX Runtime {engine} in Python, two photons"},
    }
baselines = {
    "constant": arm("constant"),
    "session_per_event": {
        **time_entry(2, "per event", headline),
        "info": {"description": "session per event, two photons"},
    },
}
parameters, flops = TASK1.complexity(energy_only)
sources = {dataset.source, events_source}
metrics = run.save_metrics(
    title="Task 2f: ONNX inference for CMSSW",
    data={
        "source": "file" if "file" in sources else "standin" if "standin" in sources else "official",
        "fingerprint": dataset.fingerprint,
        "description": f"{dataset.description}; two-photon events: {events_source} ({events_path.name})",
        "train": 0, "validation": 0, "test": len(test),
    },
    seeds=[0],
    headline="milliseconds_per_event",
    metrics={**time_entry(2, "one", headline), **results["exported"]},
    baselines=baselines,
    arms=arms,
    floors={},
    variants={
        "real_sample": real_results,
        "network": {key: card[key] for key in ("task", "profile", "source", "data")},
        "hardware": hardware,
        "language": language,
        "engines_not_run": missing,
        "two_photon_events": {"events": len(events), "photons": len(events.pt), "source": events_source},
    },
    parameters=parameters,
    flops=flops,
)  # fmt: skip
update_results(metrics)

# %% [markdown]
# ## 11. Conclusion, limits, references

# %%
conclusions = [
    f"The exported graph agrees with PyTorch to {frame_of_parity.to_numpy().max():.0e} in {len(reports)} engine(s), "
    f"{', '.join(frame_of_parity.index)}, for batches from 0 to 64 and for the empty frame.",
    f"Inside the graph sits the adapter from RecoE2E's frames; without it the AUC on {dataset.words} falls from "
    f"{trap['exported']:.4f} to {trap['not_shifted']:.4f} (no shift) or {trap['not_scaled']:.4f} (no division).",
    f"An event of two photons takes {np.median(ours):.2f} ms ({language}, one thread), with a session per event "
    f"{np.median(reference):.2f} ms: opening the model is {1 - 1 / ratio:.0%} of the reference's time.",
    "No cmsRun was run: the times are those of the same C++ core and engine outside the framework."
    if cpp
    else "No cmsRun was run, and no C++ was compiled: the times are those of the engine in Python.",
]
if missing:
    conclusions.append(f"Not run, since not installed: ONNX Runtime {', '.join(missing)}.")
display(Markdown("\n".join(f"- {line}" for line in conclusions)))

# %% [markdown]
# - The wheels of ONNX Runtime contain kernels for newer processors than the build of 11_0_1 does, so that the times of the
#   old engines are optimistic for that release.
# - The stand-in photons have no pile-up and no tracker around them, and their seeds are the highest hits near the photon.
#
# **References.** RecoE2E, github.com/rchudasa/RecoE2E. CMSSW, `PhysicsTools/ONNXRuntime` and `HLTrigger/Timer`,
# github.com/cms-sw/cmssw. ONNX Runtime, onnxruntime.ai. M. Andrews et al., *End-to-end physics event classification with
# CMS open data*, arXiv:1807.11916. CMS Collaboration, *The CMS experiment at the CERN LHC*, JINST 3 (2008) S08004.
