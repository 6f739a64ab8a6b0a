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
# # Task 2e: the mass of a boosted top
#
# **Task.** A boosted top quark decays to three jets that merge into one. From the image of that jet in the detector
# ($125\times125$ pixels: tracks with their transverse momentum, impact parameters $d_z$ and $d_0$, and the
# electromagnetic calorimeter) estimate the mass of the particle. The sample was made with masses from 85 to 500 GeV, so
# that a network cannot simply answer 173.
#
# **What can be known.** The invariant mass of all particles of the jet, $m^2=(\sum E)^2-(\sum\vec p)^2$, would be the
# answer if all of them were seen. The images lack the hadronic calorimeter (which the task excludes) and with it the
# neutral hadrons, the energy of charged particles is counted twice, and what leaves the cone or is added by pile-up is
# not told apart. A network has to learn what is missing; how well it can is limited by fluctuations that no image shows.
#
# The table below is filled in by the last cell of this notebook, from the run that you are looking at.

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
show_results("task2e_mass_regression")

# %% [markdown]
# ## 1. Set-up
# Data, splits, metrics, plots and checkpoints come from `e2e_utils`; features, networks, losses and the training loop
# are in this notebook.

# %%
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display
from scipy.stats import norm
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import QuantileRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import SplineTransformer
from torch import nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal
from torch.optim.swa_utils import AveragedModel
from torch.utils.flop_counter import FlopCounterMode

from data.loaders import load_top_mass
from e2e_utils import plotting
from e2e_utils.boosting import fit_trees
from e2e_utils.checkpoints import load_training_state, save_training_state, save_weights
from e2e_utils.distributed import share_buffers
from e2e_utils.evaluation import evaluate_regression, metric_entry
from e2e_utils.machine import make_accelerator, pick_device
from e2e_utils.metrics import mean_absolute_error, paired_bootstrap
from e2e_utils.notebook import results_frame, start_run, update_results
from e2e_utils.onnx_export import check_parity, export_onnx
from e2e_utils.parallel import side_by_side
from e2e_utils.seeds import epoch_batches, seed_everything, torch_generator
from e2e_utils.sparse_images import SparseImages
from e2e_utils.splits import split

# %% tags=["parameters"]
PROFILE = os.environ.get("PROFILE", "quick")  # smoke (tests), quick, standard, full
DATA_SOURCE = os.environ.get("DATA_SOURCE", "auto")  # auto, official, standin
DATA = os.environ.get("DATA") or None  # other files of the official schema, comma separated

# %% [markdown]
# The profiles differ in the number of jets, passes and seeds, never in the method.


# %%
@dataclass(frozen=True)
class Config:
    """Everything that a training needs to be repeated, except the data."""

    epochs: int
    seeds: tuple[int, ...]
    ablation_jets: int  # training jets of one ablation; 0 leaves the ablations out
    ablation_epochs: int = 4
    batch_size: int = 64
    learning_rate: float = 4e-3
    weight_decay: float = 0.02
    ema_decay: float = 0.995
    loss: str = "student"  # likelihood; or "normal"; or "absolute": no width is learned
    target: str = "log"  # of the mass, or "linear"
    prior: float = np.inf  # GeV: events are weighted by exp(-m / prior); inf: flat in the mass
    flips: bool = True
    density_steps: int = 1500
    mass_bins: int = 12  # of figures and biases


CONFIGS = {
    "smoke": Config(
        epochs=1, seeds=(0, 1), ablation_jets=128, ablation_epochs=1, density_steps=60, mass_bins=3
    ),
    "quick": Config(epochs=4, seeds=(0, 1), ablation_jets=0),
    "standard": Config(epochs=7, seeds=(0, 1, 2), ablation_jets=5_000),
    "full": Config(epochs=30, seeds=(0, 1, 2, 3, 4), ablation_jets=50_000, batch_size=256),
}
CONFIG = CONFIGS[PROFILE]
TASK = "task2e_mass_regression"
DEVICE = pick_device()

# %%
run = start_run(TASK, PROFILE, DATA_SOURCE)
plotting.set_style()
print(run.summary())

# %% [markdown]
# ## 2. Data
# `load_top_mass` reads the official parquet files where they are on disk, and otherwise stand-in jets simulated with
# Pythia 8 and a detector model in the same schema (see `data/README.md`). Of the eight channels only the first four are
# read, as the task asks. The next line says which jets this run used.

# %%
dataset = load_top_mass(DATA_SOURCE, PROFILE, path=DATA)
images, mass, pt = dataset.images, dataset.m, dataset.pt
ETA_MIDDLE, TOWER = 28, 5 * np.pi / 180  # ieta counts HCAL towers from the end of the detector
eta = (dataset.ieta + 0.5 - ETA_MIDDLE) * TOWER
display(Markdown(f"> **Data of this run:** {dataset.description}"))

# %% [markdown]
# **Split.** 64 % of the jets train, 16 % (the validation part of the 80 %) settle every choice, and the remaining 20 %
# are the test set, scored once in section 6. The parts are stratified in ten bins of the mass.

# %%
LOW, HIGH = 85.0, 500.0  # GeV, the range of the sample
bins = np.digitize(mass, np.linspace(LOW, HIGH, 11)[1:-1])
splits = split(bins)
pd.DataFrame(
    {
        part: {"jets": len(rows), "mean mass [GeV]": round(float(mass[rows].mean()), 1)}
        for part, rows in splits._asdict().items()
    }
).T

# %%
fig, axes = plt.subplots(1, 3, figsize=(11, 3))
for axis, values, label in zip(
    axes, (mass, pt, eta), ("$m$ [GeV]", "$p_T$ [GeV]", r"$\eta$"), strict=True
):
    edges = TOWER * np.arange(-16, 17) if values is eta else 40  # eta: one for every tower
    axis.hist(values[splits.train], edges, histtype="step", lw=1.6)
    axis.set(xlabel=label, ylabel="jets")
axes[0].set_ylim(bottom=0)
plt.show()

# %% [markdown]
# **Single jets** of increasing mass. The heavier the particle at a given momentum, the wider its decay products are
# apart, $\Delta R\approx 2m/p_T$: the mass is written in the *distances* between the clusters and in their *energies*.

# %%
wanted = (100, 200, 300, 450)
nearest = [splits.train[np.argmin(np.abs(mass[splits.train] - m))] for m in wanted]
frames = images.dense(np.array(nearest)).numpy()  # (4, 4, 125, 125)
fig, axes = plt.subplots(2, 4, figsize=(11, 5.4))
for column, (frame, event) in enumerate(zip(frames, nearest, strict=True)):
    last = column == 3
    title = f"$m$ = {mass[event]:.0f}, $p_T$ = {pt[event]:.0f} GeV"
    plotting.event_image(axes[0, column], frame[0], title, "track $p_T$ [GeV]" if last else "")
    plotting.event_image(axes[1, column], frame[3], "", "ECAL $E$ [GeV]" if last else "")
for axis in axes.flat:
    axis.label_outer()
plt.show()

# %% [markdown]
# ## 3. What physicists would compute
# Each pixel is a massless particle with transverse momentum $w$ in its direction, relative to the middle of the image.
# The invariant mass of all pixels needs no loop over pairs:
# $$m^2=\Big(\sum w\cosh\eta\Big)^2-\Big(\sum w\sinh\eta\Big)^2-\Big(\sum w\cos\varphi\Big)^2-\Big(\sum w\sin\varphi\Big)^2 .$$
# It is computed from the tracks, from the ECAL, and from both, together with sums, multiplicities, widths, and the share
# of the hardest pixels. The ECAL holds energies, $E=p_T\cosh\eta$, and the image does not say at which $\eta$ the jet
# is: one more thing that limits the ECAL alone.
#
# **Robust scaling.** A few tracks are reconstructed with an absurd momentum (up to 74,000 GeV) or impact parameter. Once,
# inside the model, momenta and energies are limited to what a jet of this sample can hold, and impact parameters beyond
# $|d_z|=20$ or $|d_0|=10$ are set to zero as unknown, the limits that the task's authors use.

# %%
SIZE, PIXEL = 125, np.pi / 180
TRACKS, DZ, D0, ECAL = range(4)
LARGEST = 1000.0  # GeV in one pixel
DZ_UNIT, D0_UNIT = 20.0, 10.0
ANGLES = torch.tensor((np.arange(SIZE) - SIZE // 2) * PIXEL, dtype=torch.float32)  # of pixels
MOMENTS = (
    "sum", "mass", "width", "pixels", "hardest", "five hardest", "eta width", "phi width",
)  # fmt: skip


def robust(x: torch.Tensor) -> torch.Tensor:
    """Official units (B, 4, 125, 125) with outliers limited (momenta, energies) or removed (dz, d0)."""
    energies = x[:, (TRACKS, ECAL)].clamp(0, LARGEST)
    dz, d0 = x[:, DZ], x[:, D0]
    dz = dz * (dz.abs() < DZ_UNIT)
    d0 = d0 * (d0.abs() < D0_UNIT)
    return torch.stack([energies[:, 0], dz, d0, energies[:, 1]], 1)


def image_moments(w: torch.Tensor) -> torch.Tensor:
    """Momenta (B, 125, 125) in GeV -> MOMENTS of each image, (B, 8); zero for an empty image."""
    angles = ANGLES.to(w)
    total = w.sum((1, 2)).clamp(min=1e-3)
    along_eta, along_phi = w.sum(2), w.sum(1)  # (B, 125) each
    # sinh and cosh by exponentials, which every ONNX opset has
    up, down = angles.exp(), (-angles).exp()
    cosh, sinh = (along_eta * (up + down) / 2).sum(1), (along_eta * (up - down) / 2).sum(1)
    cos, sin = (along_phi * angles.cos()).sum(1), (along_phi * angles.sin()).sum(1)
    mass = (cosh.square() - sinh.square() - cos.square() - sin.square()).clamp(min=0.01).sqrt()
    spreads = []
    for profile in (along_eta, along_phi):
        mean = (profile * angles).sum(1) / total
        spread = (profile * (angles - mean.unsqueeze(1)).square()).sum(1) / total
        spreads.append((spread + 1e-8).sqrt())
    width = (spreads[0].square() + spreads[1].square()).sqrt()
    hardest = w.flatten(1).topk(5).values  # (B, 125 * 125) -> (B, 5)
    return torch.stack(
        [
            total.log(), mass.log(), width.log(), (w > 0).sum((1, 2)).to(w.dtype).log1p(),
            hardest[:, 0] / total, hardest.sum(1) / total, spreads[0].log(), spreads[1].log(),
        ], 1,
    )  # fmt: skip


def jet_moments(x: torch.Tensor) -> torch.Tensor:
    """Robust images (B, 4, 125, 125) -> moments of tracks, of the ECAL and of their sum, (B, 24)."""
    tracks, ecal = x[:, TRACKS], x[:, ECAL]
    return torch.cat([image_moments(w) for w in (tracks, ecal, tracks + ecal)], 1)


def moments_of(
    images: SparseImages, rows: np.ndarray, visible: torch.Tensor | float = 1.0
) -> np.ndarray:
    """Moments (len(rows), 24) of jets, batch by batch; hidden channels are zero in ``visible`` (1, 4, 1, 1)."""
    with torch.no_grad():
        parts = [
            jet_moments(robust(x) * visible).cpu() for _, x in images.iter_dense(512, rows, DEVICE)
        ]
    return torch.cat(parts).numpy()


moments = {part: moments_of(images, rows) for part, rows in splits._asdict().items()}
MOMENT_NAMES = tuple(f"{name}, {of}" for of in ("tracks", "ECAL", "both") for name in MOMENTS)

# %%
fig, axes = plt.subplots(1, 3, figsize=(11, 3.4), sharey=True)
for axis, of in zip(axes, ("tracks", "ECAL", "both"), strict=True):
    proxy = np.exp(moments["train"][:, MOMENT_NAMES.index(f"mass, {of}")])
    axis.hist2d(
        mass[splits.train], proxy, bins=(50, np.linspace(0, 600, 61)), cmap="viridis", cmin=1
    )
    axis.plot([LOW, HIGH], [LOW, HIGH], color="grey", lw=0.8)
    correlation = np.corrcoef(mass[splits.train], proxy)[0, 1]
    axis.set(xlabel="true mass [GeV]", title=f"{of}: correlation {correlation:.2f}")
axes[0].set_ylabel("mass of the pixels [GeV]")
plt.show()

# %% [markdown]
# ## 4. Model
# **Views.** Momenta and energies enter twice: linear, because masses are made of sums, and as logarithms, because soft
# pixels tell about radiation; $d_z$ and $d_0$ in units of their limits.
#
# **Network.** 97 to 99.8 % of the pixels are empty. A stem of $5\times5$ pixels with stride 5, the size of an HCAL tower,
# reads each pixel once and leaves $25\times25$ places, on which residual blocks (He et al., arXiv:1512.03385) work at an affordable
# price. The image is centred on the jet, so that a place has a meaning: a learned map is added after the stem. The pooled
# features and the moments of section 3 go together to the head: what is known in closed form need not be learned from
# 20,000 jets.
#
# **Speed.** In training the views are made from the *hits*, mirrored by their coordinates, and written into the empty
# batch; the moments, which no mirror changes, are computed once. Both are the same numbers as those of the graph that
# takes complete images (checked below).
#
# **Output.** Masses differ by a factor of six and the resolution is rather constant in $\ln m$, so the network predicts
# $\mu$ and $\sigma$ of $\ln m$. $e^\mu$, the median, is the estimate.


# %%
class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where it strides."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        nn.init.zeros_(self.convolutions[-1].weight)  # every block begins as the identity
        self.shortcut = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False),
                nn.BatchNorm2d(outputs),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.convolutions(x) + self.shortcut(x))


VIEWS = (TRACKS, ECAL, TRACKS, ECAL, DZ, D0)  # channel of each view; the first two are linear


def to_views(x: torch.Tensor) -> torch.Tensor:
    """Robust images (B, 4, 125, 125) -> views (B, 6, 125, 125) of order one."""
    momenta = x[:, (TRACKS, ECAL)]
    parts = [momenta / 20, (momenta / 0.1).log1p() / 4, x[:, DZ : DZ + 1] / DZ_UNIT, x[:, D0 : D0 + 1] / D0_UNIT]  # fmt: skip
    return torch.cat(parts, 1)


def views_of_hits(
    images: SparseImages, rows: np.ndarray, channels: tuple[int, ...], mirrors: tuple[bool, bool]
) -> torch.Tensor:
    """The views (B, 6, 125, 125) of jets from their hits, mirrored in eta and phi or not, on the device."""
    offsets, index, value = images.events(rows)
    jet = np.repeat(np.arange(len(rows)), np.diff(offsets))
    channel, pixel = np.divmod(index.astype(np.int64), SIZE**2)
    place = list(np.divmod(pixel, SIZE))  # rows (eta) and columns (phi)
    for axis, odd in enumerate((DZ, D0)):
        if mirrors[axis]:
            place[axis] = SIZE - 1 - place[axis]
            value = np.where(channel == odd, -value, value)
    energy, limit = np.clip(value, 0, LARGEST), np.where(channel == DZ, DZ_UNIT, D0_UNIT)
    parameter = np.where(np.abs(value) < limit, value / limit, 0)
    first = (jet * SIZE + place[0]) * SIZE + place[1]  # pixel of the batch; views are the last axis
    batch = torch.zeros(len(rows) * SIZE**2 * len(VIEWS), device=DEVICE)
    for number, of in enumerate(VIEWS):
        chosen = (channel == of) & (of in channels)
        linear = energy / 20 if number < 2 else np.log1p(energy / 0.1) / 4
        values = (parameter if of in (DZ, D0) else linear)[chosen].astype(np.float32)
        target = torch.from_numpy(first[chosen] * len(VIEWS) + number).to(DEVICE)
        batch[target] = torch.from_numpy(values).to(DEVICE)
    return batch.view(len(rows), SIZE, SIZE, len(VIEWS)).permute(0, 3, 1, 2)  # channels last


# %%
LOG_MIDDLE, LOG_UNIT = 5.5, 0.5  # of ln(m / GeV): the target is of order one
MIDDLE, UNIT = 290.0, 120.0  # GeV, of the linear target


class MassNetwork(nn.Module):
    """Official images (B, 4, 125, 125) -> location and log-width of the scaled target, (B, 2).

    Given ``moments`` (B, 24) as well, it takes views (B, 6, 125, 125). ``channels`` are visible, the others count as empty. ``use_eta``: the head also sees the jet's |eta|
    (B,), which no image holds.
    """

    def __init__(
        self, channels: tuple[int, ...] = (TRACKS, DZ, D0, ECAL), use_moments: bool = True,
        use_images: bool = True, use_eta: bool = False, widths: tuple[int, ...] = (24, 32, 64),
    ) -> None:  # fmt: skip
        super().__init__()
        self.channels = channels
        self.use_moments, self.use_images, self.use_eta = use_moments, use_images, use_eta
        self.register_buffer(
            "visible", torch.tensor([c in channels for c in range(4)]).float().view(1, 4, 1, 1)
        )
        self.stem = nn.Conv2d(len(VIEWS), widths[0], 5, 5, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        self.position = nn.Parameter(torch.zeros(widths[0], 25, 25))
        stages = []
        for inputs, outputs in pairwise(widths):
            stages += [ResidualBlock(inputs, outputs, 2), ResidualBlock(outputs, outputs)]
        self.stages = nn.Sequential(*stages)
        self.moment_norm = nn.BatchNorm1d(len(MOMENT_NAMES))
        features = 2 * widths[-1] * use_images + len(MOMENT_NAMES) * use_moments + use_eta
        self.head = nn.Sequential(
            nn.Dropout(0.1), nn.Linear(features, 96), nn.SiLU(), nn.Dropout(0.1), nn.Linear(96, 2)
        )
        nn.init.zeros_(self.head[-1].weight)  # begins with the same answer for every jet

    def forward(
        self, x: torch.Tensor, eta: torch.Tensor | None = None, moments: torch.Tensor | None = None
    ) -> torch.Tensor:
        if moments is None:
            x = robust(x) * self.visible
            moments = jet_moments(x) if self.use_moments else None
            x = to_views(x) if self.use_images else x
        features = []
        if self.use_images:
            z = torch.relu(self.norm(self.stem(x)) + self.position)  # (B, 24, 25, 25)
            z = self.stages(z)  # (B, 64, 7, 7)
            features += [z.mean((2, 3)), z.amax((2, 3))]
        if self.use_moments:
            features.append(self.moment_norm(moments))
        if self.use_eta:
            features.append(eta.abs().unsqueeze(1))
        out = self.head(torch.cat(features, 1))
        return torch.stack([out[:, 0], out[:, 1].clamp(-4, 2)], 1)


# %% [markdown]
# **Mirror images.** $\varphi\to-\varphi$ exchanges the charges and $\eta\to-\eta$ the beams; both leave the mass alone and
# turn the sign of $d_0$ and of $d_z$, respectively. In training each batch is mirrored along each axis with probability one
# half; the prediction averages over all four.


# %%
def mirror(x: torch.Tensor, axis: int) -> torch.Tensor:
    """Mirror images (B, 4, 125, 125) along eta (axis 2, dz changes sign) or phi (axis 3, d0 does)."""
    signs = x.new_ones(4)
    signs[DZ if axis == 2 else D0] = -1.0
    return x.flip(axis) * signs.view(1, 4, 1, 1)


class FlipAverage(nn.Module):
    """Mean output over the four mirror images: test-time augmentation as part of the model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor, eta: torch.Tensor | None = None) -> torch.Tensor:
        flipped = mirror(x, 3)
        outputs = [self.model(v, eta) for v in (x, flipped, mirror(x, 2), mirror(flipped, 2))]
        return torch.stack(outputs).mean(0)


ARMS = {
    "all channels": {},
    "ECAL only": {"channels": (ECAL,)},
    "tracks only": {"channels": (TRACKS, DZ, D0)},
    "track pT and ECAL": {"channels": (TRACKS, ECAL)},
    "all channels and eta": {"use_eta": True},
}


def build_model(arm: str) -> nn.Module:
    """A fresh network by name; seed the generators first."""
    options = {"images only": {"use_moments": False}, "moments only": {"use_images": False}}
    return MassNetwork(**(ARMS | options)[arm])


def complexity(model: nn.Module) -> tuple[int, int]:
    """Trainable parameters, and FLOPs (2 per multiply-add) of one jet, counted not scaled."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.cpu().eval()(torch.zeros(1, 4, SIZE, SIZE), torch.zeros(1))
    return sum(p.numel() for p in model.parameters() if p.requires_grad), counter.get_total_flops()


parameters, flops = complexity(build_model("all channels"))
print(f"{parameters:,} parameters, {flops / 1e6:.1f} MFLOPs a jet")

# %%
everything, few = (TRACKS, DZ, D0, ECAL), splits.train[:64]
turned = mirror(mirror(images.dense(few, device=DEVICE), 2), 3)
from_hits = views_of_hits(images, few, everything, (True, True))
difference = (to_views(robust(turned)) - from_hits).abs().max().item()
assert difference < 1e-5
ways = {
    "complete images": lambda: to_views(robust(mirror(images.dense(few, device=DEVICE), 2))),
    "hits": lambda: views_of_hits(images, few, everything, (True, False)),
}
times = {}
for way, make in ways.items():
    start = time.perf_counter()
    for _ in range(5):
        make()
    times[way] = (time.perf_counter() - start) / 5
print(
    f"views of hits: largest difference {difference:.1e}, "
    f"{times['complete images'] / times['hits']:.1f} times faster than from complete images"
)

# %% [markdown]
# ## 5. Training
# **Loss.** The negative log-likelihood of Student's distribution, with $\nu=4$ degrees of freedom, of $t=(\ln m-5.5)/0.5$,
# $$\mathcal L=\frac{1}{\sum_i w_i}\sum_i w_i\left[\frac{\nu+1}{2}\ln\left(1+\frac{(t_i-\mu_i)^2}{\nu\sigma_i^2}\right)+\ln\sigma_i\right],$$
# which lets the network say how sure it is. A normal distribution would pay any price for the jets that lost a
# decay product; one with tails lets them go, and what is left is closer to the median, which the MAE asks for (section 9
# has both). The weights $w_i$ make the training sample exactly flat in $m$: what it has
# learned about the *prior* then is "nothing between 85 and 500 GeV". That is still something: near the edges a network
# that minimises an error must answer towards the middle. Section 7 has a method that does not.
#
# **Optimiser**: AdamW, one cycle (Smith & Topin, arXiv:1708.07120), moving average of the weights; the epoch with the lowest MAE
# on validation jets is kept.


# %%
def to_target(m: torch.Tensor, kind: str) -> torch.Tensor:
    """Masses [GeV] in the units of the network's output."""
    return (m.log() - LOG_MIDDLE) / LOG_UNIT if kind == "log" else (m - MIDDLE) / UNIT


def to_mass(output: np.ndarray, kind: str) -> np.ndarray:
    """Locations in the units of the network's output as masses in GeV."""
    return np.exp(output * LOG_UNIT + LOG_MIDDLE) if kind == "log" else output * UNIT + MIDDLE


def mass_weights(m: np.ndarray, prior: float = np.inf, bins: int = 20) -> np.ndarray:
    """Weights (N,) that make masses (N,) in GeV flat, or exp(-m / prior); of mean one."""
    edges = np.linspace(LOW, HIGH, bins + 1)
    number = np.digitize(m, edges[1:-1])
    counts = np.bincount(number, minlength=bins)
    weight = np.exp(-m / prior) / counts[number]
    return weight / weight.mean()


FREEDOM = 4.0  # degrees of freedom of Student's distribution


def regression_loss(
    output: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, loss: str
) -> torch.Tensor:
    """Weighted mean of a negative log-likelihood, or of the absolute error; (B, 2), (B,), (B,) -> ()."""
    location, log_width = output.unbind(1)
    pull = (target - location) / log_width.exp()
    if loss == "absolute":
        terms = (target - location).abs()
    elif loss == "normal":
        terms = 0.5 * pull.square() + log_width
    else:  # Student's distribution
        terms = (FREEDOM + 1) / 2 * torch.log1p(pull.square() / FREEDOM) + log_width
    return (weight * terms).sum() / weight.sum()


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average of weights and buffers, with a decay that warms up from 0.1."""

    @torch.no_grad()
    def update(
        averaged: list[torch.Tensor], current: list[torch.Tensor], count: torch.Tensor | int
    ) -> None:
        if not averaged[0].is_floating_point():  # batch counters
            torch._foreach_copy_(averaged, current)
            return
        step = 1 - min(decay, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(averaged, current, step)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)


class BestWeights:
    """The weights of the epoch with the lowest error."""

    def __init__(self) -> None:
        self.error, self.weights = np.inf, {}

    def update(self, error: float, model: nn.Module) -> None:
        if error < self.error:
            self.error = error
            self.weights = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}

    def state_dict(self) -> dict:
        return {"error": self.error, "weights": self.weights}

    def load_state_dict(self, state: dict) -> None:
        self.error, self.weights = state["error"], state["weights"]


@torch.inference_mode()
def outputs(model: nn.Module, sample, rows: np.ndarray) -> np.ndarray:
    """Network outputs (len(rows), 2) of jets of a data set, in evaluation mode."""
    model = model.eval().to(DEVICE)
    angle = torch.as_tensor((sample.ieta + 0.5 - ETA_MIDDLE) * TOWER, dtype=torch.float32)
    parts = [
        model(x, angle[batch].to(DEVICE)).float().cpu()
        for batch, x in sample.images.iter_dense(256, rows, DEVICE)
    ]
    return torch.cat(parts).numpy()


# %%
def train(
    name: str,
    model: nn.Module,
    sample,
    rows: np.ndarray,
    check: np.ndarray,
    config: Config,
    seed: int,
) -> pd.DataFrame:
    """Train ``model`` in place on jets ``rows`` of a data set; returns the history, one line an epoch."""
    accelerator = make_accelerator(("bf16", "fp16"))
    device, world = accelerator.device, accelerator.num_processes
    batch_size = min(config.batch_size, len(rows) // world)
    steps = len(rows) // (batch_size * world)
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        model.parameters(), config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=config.epochs * steps, pct_start=0.15
    )
    average, best = moving_average(model, config.ema_decay), BestWeights()
    network, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(schedule, average, best)
    target = to_target(torch.as_tensor(sample.m, dtype=torch.float32), config.target)
    weight = torch.ones(len(sample.m))
    weight[rows] = torch.as_tensor(mass_weights(sample.m[rows], config.prior), dtype=torch.float32)
    angle = torch.as_tensor((sample.ieta + 0.5 - ETA_MIDDLE) * TOWER, dtype=torch.float32)
    known = torch.zeros(len(sample.m), len(MOMENT_NAMES))
    known[rows] = torch.from_numpy(moments_of(sample.images, rows, model.visible))

    state = run.directory / "state" / name.replace(" ", "-")
    history = (load_training_state(accelerator, state) or {"history": []})["history"]
    for epoch in range(len(history), config.epochs):
        generator, total = torch_generator(seed, epoch), 0.0
        network.train()
        for batch in epoch_batches(rows, batch_size, seed, epoch, accelerator.process_index, world):
            mirrors = (torch.rand(2, generator=generator) < 0.5).tolist()
            x = views_of_hits(sample.images, batch, model.channels, mirrors if config.flips else (False, False))  # fmt: skip
            with accelerator.autocast():
                output = network(x, angle[batch].to(device), known[batch].to(device)).float()
            loss = regression_loss(
                output, target[batch].to(device), weight[batch].to(device), config.loss
            )
            optimizer.zero_grad()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            if not accelerator.optimizer_step_was_skipped:  # by the scaler of float16
                schedule.step()
            average.update_parameters(accelerator.unwrap_model(network))
            total += loss.item()
        share_buffers(average.module)
        found = outputs(average.module, sample, check)
        error = mean_absolute_error(sample.m[check], to_mass(found[:, 0], config.target))
        history.append({"epoch": epoch + 1, "loss": total / steps, "validation_mae": error})
        best.update(error, average.module)
        save_training_state(accelerator, state, {"history": history})
    model.load_state_dict(best.weights)
    print(f"{name}: validation MAE {best.error:.1f} GeV", flush=True)
    return pd.DataFrame(history)


# %% [markdown]
# Before minutes are spent: the network must be able to learn one batch by heart.


# %%
def overfit_one_batch(model: nn.Module, steps: int = 60) -> float:
    """Mean absolute error [GeV] after ``steps`` updates on the same 16 jets."""
    rows = splits.train[:16]
    optimizer = torch.optim.AdamW(model.train().parameters(), 3e-3)
    x, target = (
        images.dense(rows),
        to_target(torch.as_tensor(mass[rows], dtype=torch.float32), "log"),
    )
    angle = torch.as_tensor(eta[rows], dtype=torch.float32)
    for _ in range(steps):
        optimizer.zero_grad()
        output = model(x, angle)
        regression_loss(output, target, torch.ones(len(rows)), "absolute").backward()
        optimizer.step()
    return mean_absolute_error(mass[rows], to_mass(output[:, 0].detach().numpy(), "log"))


seed_everything(0)
print(f"MAE on one memorised batch: {overfit_one_batch(build_model('all channels')):.1f} GeV")

# %% [markdown]
# **The arms**: all channels with every seed; each set of channels once; with the jet's $\eta$, which the file holds and the
# image does not, once; and all channels trained with a *falling* mass spectrum, $e^{-m/120\,\mathrm{GeV}}$, which section 7
# needs. All see the same jets for the same number of passes.

# %%
FALLING = 120.0  # GeV
MAIN, CHANGED = "all channels", "falling prior"
plan = [(MAIN, seed) for seed in CONFIG.seeds] + [
    (arm, 0) for arm in (*ARMS, CHANGED) if arm != MAIN
]


def train_arm(
    name: str, arm: str, sample, rows: np.ndarray, check: np.ndarray, config: Config, seed: int
) -> tuple:
    """Train a fresh network of an arm: its history, and its weights as arrays."""
    seed_everything(seed)
    model = build_model(arm)
    history = train(name, model, sample, rows, check, config, seed)
    return history, {k: v.cpu().numpy() for k, v in model.state_dict().items()}


def restored(arm: str, weights: dict[str, np.ndarray]) -> nn.Module:
    """The network of an arm with trained weights, averaged over mirror images."""
    model = build_model(arm)
    model.load_state_dict({k: torch.as_tensor(v) for k, v in weights.items()})
    return FlipAverage(model).eval()


jobs = []
for arm, seed in plan:
    config = replace(CONFIG, prior=FALLING) if arm == CHANGED else CONFIG
    built = MAIN if arm == CHANGED else arm
    jobs.append((f"{arm} {seed}", built, dataset, splits.train, splits.validation, config, seed))
trained = dict(zip(plan, side_by_side(train_arm, jobs), strict=True))
models = {
    (arm, seed): restored(MAIN if arm == CHANGED else arm, weights)
    for (arm, seed), (_, weights) in trained.items()
}

# %%
fig, axis = plt.subplots(figsize=(6, 3.4))
for number, (arm, seed) in enumerate(plan):
    if seed == 0 and arm != CHANGED:
        history = trained[arm, seed][0]
        color = plotting.PALETTE[number % len(plotting.PALETTE)]
        axis.plot(history.epoch, history.validation_mae, ".-", color=color, label=arm)
axis.set(xlabel="epoch", ylabel="MAE on validation jets [GeV]")
axis.legend(fontsize=8)
plt.show()

# %% [markdown]
# **Baselines.** The median of the training masses; the mass of the pixels (tracks and ECAL), calibrated by a monotonic
# function; and gradient boosting on all 24 moments, with squared or absolute error and the number of trees as the validation
# jets prefer.


# %%
def boosted(loss: str) -> HistGradientBoostingRegressor:
    """Gradient boosting of ln m on the moments, stopped on validation jets."""
    return fit_trees(
        HistGradientBoostingRegressor(loss=loss, max_iter=800, learning_rate=0.05, random_state=0),
        moments["train"], np.log(mass[splits.train]),
        moments["validation"], np.log(mass[splits.validation]),
    )  # fmt: skip


boosting = min(
    (boosted(loss) for loss in ("squared_error", "absolute_error")),
    key=lambda model: mean_absolute_error(
        mass[splits.validation], np.exp(model.predict(moments["validation"]))
    ),
)
PROXY = MOMENT_NAMES.index("mass, both")
calibrated = IsotonicRegression(out_of_bounds="clip").fit(
    moments["train"][:, PROXY], mass[splits.train]
)

# %% [markdown]
# **Calibration of the widths.** The networks have seen the training jets many times and are too sure of themselves on
# new ones. One factor on $\sigma$, chosen on validation jets so that 68.3 % of the masses lie within $\mu\pm\sigma$,
# corrects for that.

# %%
ONE_SIGMA = float(norm.cdf(1) - norm.cdf(-1))


def width_factor(output: np.ndarray, m: np.ndarray) -> float:
    """Factor on the widths (N, 2) that makes 68.3 % of the masses (N,) lie within one of them."""
    target = to_target(torch.as_tensor(m), "log").numpy()
    return float(np.quantile(np.abs(target - output[:, 0]) / np.exp(output[:, 1]), ONE_SIGMA))


m_validation = mass[splits.validation]
checked = {key: outputs(model, dataset, splits.validation) for key, model in models.items()}
factors = {key: width_factor(output, m_validation) for key, output in checked.items()}
print({f"{arm} {seed}": round(factor, 3) for (arm, seed), factor in factors.items()})

# %% [markdown]
# **Numerical inversion.** The estimate with the smallest error answers towards the middle of the spectrum. An experiment that looks
# for a peak prefers one that is right in the median *at every true mass*, and calibrates for it as jet energies are: $R(m)$, the
# median estimate of validation jets of mass $m$, is fitted with a spline by quantile regression, and $R^{-1}$ of the estimate is
# a further arm, kept within the masses of the sample. It undoes the pull to the middle and pays with larger errors.


# %%
def inversion(estimate: np.ndarray, m: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Function from estimates [GeV] to masses of median response one, from estimates (N,) and masses (N,)."""
    curve = make_pipeline(
        SplineTransformer(6, degree=3, extrapolation="linear"),
        QuantileRegressor(quantile=0.5, alpha=0.0, solver="highs"),
    ).fit(m[:, None], estimate)
    grid = np.linspace(LOW, HIGH, 2001)  # beyond these masses the spline is a guess
    rising = np.maximum.accumulate(curve.predict(grid[:, None])) + 1e-9 * grid
    return lambda values: np.interp(values, rising, grid)


unbiased = {
    seed: inversion(to_mass(checked[MAIN, seed][:, 0], "log"), m_validation)
    for seed in CONFIG.seeds
}

# %% [markdown]
# ## 6. Evaluation
# Everything above was chosen on validation jets. The test set is scored here, once, by every arm.

# %%
test, m_test = splits.test, mass[splits.test]
found = {key: outputs(model, dataset, test) for key, model in models.items()}
predictions = {arm: [] for arm, _ in plan}
for (arm, _), output in found.items():
    predictions[arm].append(to_mass(output[:, 0], "log"))
predictions["inverted"] = [
    unbiased[seed](values) for seed, values in zip(CONFIG.seeds, predictions[MAIN], strict=True)
]
predictions["ensemble"] = [np.mean(predictions[MAIN], axis=0)]
predictions["gradient boosting"] = [np.exp(boosting.predict(moments["test"]))]
predictions["mass of the pixels"] = [calibrated.predict(moments["test"][:, PROXY])]
predictions["median"] = [np.full(len(test), np.median(mass[splits.train]))]
results = {arm: evaluate_regression(m_test, values) for arm, values in predictions.items()}

# %%
LABELS = {
    MAIN: "this network, all four channels",
    "ensemble": "ensemble of its seeds",
    "all channels and eta": "with the jet's eta",
    "track pT and ECAL": "track pT and ECAL",
    "tracks only": "tracks only (pT, dz, d0)",
    "ECAL only": "ECAL only",
    "inverted": "this network, calibrated by numerical inversion",
    "gradient boosting": "gradient boosting on moments",
    "mass of the pixels": "mass of the pixels, calibrated",
    "median": "median of the training masses (trivial)",
}
display(Markdown(
    f"**Test set**, {len(test):,} jets, {dataset.words}. MAE and RMSE in GeV. Brackets: 95 % bootstrap interval; "
    "±: spread over seeds."
))  # fmt: skip
display(results_frame({label: results[arm] for arm, label in LABELS.items()}))

# %%
differences = {
    arm: paired_bootstrap(mean_absolute_error, m_test, predictions[MAIN], predictions[arm])
    for arm in LABELS if arm != MAIN
}  # fmt: skip


def verdict(arm: str) -> str:
    """The comparison with one arm as a clause, from the interval and not from the central value."""
    d = differences[arm]
    word = (
        "better than"
        if d.high < 0
        else "worse than"
        if d.low > 0
        else "not significantly different from"
    )
    return f"{word} {LABELS[arm]} ({d.difference:+.2f} GeV in MAE, 95 % interval {d.low:+.2f} to {d.high:+.2f})"


mae = results[MAIN]["mae"]
share = mae["value"] / results["median"]["mae"]["value"]
display(Markdown(
    f"The network has a mean absolute error of **{mae['value']:.1f} GeV** [{mae['low']:.1f}, {mae['high']:.1f}], "
    f"{share:.0%} of that of the median predictor. It is {verdict('gradient boosting')}, "
    f"{verdict('tracks only')}, {verdict('ECAL only')} and {verdict('track pT and ECAL')}."
))  # fmt: skip


# %% [markdown]
# **Response**, that is predicted over true mass, and resolution, half the width of its central 68 %: against the mass, the
# momentum and $|\eta|$.


# %%
RESPONSE = ("x", "median", "median error", "resolution", "resolution error")


def binned_response(prediction: np.ndarray, x: np.ndarray, edges: np.ndarray) -> pd.DataFrame:
    """Median and half 68 % width of prediction / truth, with errors, in bins of ``x``."""
    rng, lines = np.random.default_rng(0), []
    for low, high in pairwise(edges):
        inside = (x >= low) & (x < high)
        if inside.sum() < 5:
            continue  # no width to speak of
        response = prediction[inside] / m_test[inside]
        draws = rng.choice(response, (200, len(response)))  # bootstrap
        quantiles = np.quantile(np.vstack([response, draws]), [0.1587, 0.5, 0.8413], axis=1)
        median, width = quantiles[1], (quantiles[2] - quantiles[0]) / 2
        lines.append({
            "x": x[inside].mean(), "median": median[0], "median error": median[1:].std(),
            "resolution": width[0] / median[0], "resolution error": width[1:].std(),
        })  # fmt: skip
    return pd.DataFrame(lines, columns=RESPONSE)


best = MAIN, min(CONFIG.seeds, key=lambda s: trained[MAIN, s][0].validation_mae.min())
estimate = to_mass(found[best][:, 0], "log")
MASS_EDGES = np.linspace(LOW, HIGH, CONFIG.mass_bins + 1)
fig, axes = plt.subplots(1, 2, figsize=(11, 4.2))
axes[0].hist2d(m_test, estimate, bins=60, range=[[LOW, HIGH], [50, 550]], cmap="viridis", cmin=1)
axes[0].plot([LOW, HIGH], [LOW, HIGH], color="grey", lw=0.8)
in_bins = [estimate[(m_test >= a) & (m_test < b)] for a, b in pairwise(MASS_EDGES)]
bands = np.array(
    [np.quantile(v, [0.1587, 0.5, 0.8413]) if len(v) else [np.nan] * 3 for v in in_bins]
)
centres = (MASS_EDGES[:-1] + MASS_EDGES[1:]) / 2
axes[0].plot(centres, bands[:, 1], "o-", ms=3, color=plotting.PALETTE[1], label="median")
axes[0].fill_between(
    centres, bands[:, 0], bands[:, 2], color=plotting.PALETTE[1], alpha=0.25, label="68 %"
)
axes[0].set(xlabel="true mass [GeV]", ylabel="predicted mass [GeV]")
axes[0].legend(loc="upper left")
response = estimate / m_test
axes[1].hist(response, np.linspace(0.4, 1.8, 71), histtype="step", lw=1.6, label="this network")
boosted_response = predictions["gradient boosting"][0] / m_test
axes[1].hist(
    boosted_response, np.linspace(0.4, 1.8, 71), histtype="step", lw=1.4, label="gradient boosting"
)
axes[1].set(xlabel="predicted / true mass", ylabel="jets")
axes[1].legend()
plt.show()

# %%
variables = {
    "true mass [GeV]": (m_test, MASS_EDGES),
    "$p_T$ [GeV]": (pt[test], np.linspace(400, 1000, 8)),
    r"$|\eta|$": (np.abs(eta[test]), np.linspace(0, 1.4, 7)),
}
fig, axes = plt.subplots(2, 3, figsize=(11, 5.6), sharex="col", sharey="row")
responses = {}
for column, (name, (values, edges)) in zip(axes.T, variables.items(), strict=True):
    for arm, shown in {
        MAIN: estimate, "inverted": predictions["inverted"][CONFIG.seeds.index(best[1])],
        "gradient boosting": predictions["gradient boosting"][0],
    }.items():  # fmt: skip
        frame = binned_response(shown, values, edges)
        responses[arm, name] = frame
        column[0].errorbar(
            frame.x, frame["median"], frame["median error"], fmt="o-", ms=4, capsize=2, label=arm
        )
        column[1].errorbar(
            frame.x, frame.resolution, frame["resolution error"], fmt="o-", ms=4, capsize=2
        )
    column[0].axhspan(0.98, 1.02, color="grey", alpha=0.2, lw=0)
    column[1].set_xlabel(name)
axes[0, 0].set_ylabel("median response")
axes[1, 0].set_ylabel("resolution")
axes[0, 0].legend(fontsize=8)
plt.show()


def largest_bias(arm: str) -> tuple[float, float]:
    """Largest distance of the median response from one between 120 and 450 GeV, and its own error."""
    frame = responses[arm, "true mass [GeV]"]
    middle = frame[(frame.x > 120) & (frame.x < 450)]
    if not len(middle):
        return np.nan, np.nan
    worst = (middle["median"] - 1).abs().idxmax()
    return abs(middle["median"][worst] - 1), middle["median error"][worst]


frame = responses[MAIN, "true mass [GeV]"]
(worst_bias, _), (inverted_bias, inverted_error) = largest_bias(MAIN), largest_bias("inverted")
price = results["inverted"]["mae"]["value"] - results[MAIN]["mae"]["value"]
display(Markdown(
    f"Between 120 and 450 GeV the median response of the direct estimate is within {worst_bias:.1%} of one. At the edges it bends "
    f"towards the middle, {frame['median'].iloc[0]:.3f} in the lowest and {frame['median'].iloc[-1]:.3f} in the highest bin, "
    "as it must for an estimate that minimises an error on a bounded spectrum. After the numerical inversion it is within "
    f"**{inverted_bias:.1%} ± {inverted_error:.1%}** (aim: 2 %), at a price of {price:+.1f} GeV in MAE."
))  # fmt: skip

# %% [markdown]
# **Is the predicted width right?** The pull $(t-\mu)/\sigma$ should be normal, and 68.3 % of the masses should lie within
# $\mu\pm\sigma$: in all, and at every mass.

# %%
truth = to_target(torch.as_tensor(m_test), "log").numpy()
pulls = {key: (truth - o[:, 0]) / (factors[key] * np.exp(o[:, 1])) for key, o in found.items()}
covered = {key: np.abs(p) < 1 for key, p in pulls.items()}
rng = np.random.default_rng(0)
coverage_values = [covered[MAIN, seed].mean() for seed in CONFIG.seeds]
draws = [np.mean([covered[MAIN, s][rows].mean() for s in CONFIG.seeds])
         for rows in rng.integers(len(test), size=(500, len(test)))]  # fmt: skip
coverage = metric_entry(
    np.mean(coverage_values), *np.quantile(draws, [0.025, 0.975]),
    np.std(coverage_values, ddof=1) if len(coverage_values) > 1 else None,
)  # fmt: skip
fig, axes = plt.subplots(1, 3, figsize=(11, 3.3))
grid = np.linspace(-4, 4, 81)
axes[0].hist(pulls[best], grid[::2], density=True, histtype="step", lw=1.6, label="test jets")
axes[0].plot(grid, norm.pdf(grid), color="grey", lw=1, label="normal")
axes[0].set(xlabel="pull", ylabel="density")
axes[0].legend(fontsize=8)
number = np.digitize(m_test, MASS_EDGES[1:-1])
inside = [covered[best][number == b] for b in range(len(centres))]
shares = np.array([v.mean() if len(v) else np.nan for v in inside])
errors = np.array(
    [np.sqrt(s * (1 - s) / max(len(v), 1)) for s, v in zip(shares, inside, strict=True)]
)
axes[1].errorbar(centres, shares, errors, fmt="o", ms=4, capsize=2)
axes[1].axhline(ONE_SIGMA, color="grey", lw=0.8)
axes[1].set(xlabel="true mass [GeV]", ylabel=r"share within $\mu\pm\sigma$", ylim=(0, 1))
relative = factors[best] * np.exp(found[best][:, 1]) * LOG_UNIT
parts = np.array_split(np.argsort(relative), 8)
axes[2].plot([relative[p].mean() for p in parts],
             [np.quantile(np.abs(truth - found[best][:, 0])[p], ONE_SIGMA) * LOG_UNIT for p in parts], "o-", ms=4)  # fmt: skip
axes[2].plot(
    [relative.min(), relative.max()], [relative.min(), relative.max()], color="grey", lw=0.8
)
axes[2].set(xlabel="predicted relative width", ylabel="observed (68.3 % quantile)")
plt.show()
display(Markdown(
    f"Coverage {coverage['value']:.1%} [{coverage['low']:.1%}, {coverage['high']:.1%}] (aim: 66 to 70 %), pulls of mean "
    f"{pulls[best].mean():+.2f} and width {pulls[best].std():.2f}."
))  # fmt: skip

# %% [markdown]
# **Worst cases**, the largest errors in units of the predicted width.

# %%
order = np.argsort(-np.abs(pulls[best]))[:4]
frames = images.dense(test[order]).numpy()
fig, axes = plt.subplots(2, 4, figsize=(11, 5.4))
for column, (frame, event) in enumerate(zip(frames, order, strict=True)):
    last = column == 3
    title = f"true {m_test[event]:.0f}, predicted {estimate[event]:.0f} GeV"
    plotting.event_image(
        axes[0, column], np.clip(frame[0], 0, LARGEST), title, "track $p_T$ [GeV]" if last else ""
    )
    plotting.event_image(
        axes[1, column], np.clip(frame[3], 0, LARGEST), "", "ECAL $E$ [GeV]" if last else ""
    )
    axes[0, column].title.set_fontsize(9)
for axis in axes.flat:
    axis.label_outer()
plt.show()

# %% [markdown]
# ## 7. A mass that does not know the spectrum
# What the network learns is $p(m\,|\,x)\propto p(x\,|\,m)\,p(m)$: with another spectrum $p(m)$ in the training sample, or in the
# data, its answer would be biased. The likelihood $p(x\,|\,m)$ alone does not depend on the spectrum. Images are too large
# for a density, but the two numbers $f=(\mu,\ln\sigma)$ of the network are a good summary of $x$: a small *conditional*
# mixture of normal distributions learns $p(f\,|\,m)$, the estimate is
# $$\hat m=\arg\max_m\ \ln p(f\,|\,m),$$
# and the masses where $\ln p$ is at most $\tfrac12$ lower are its 68 % interval: the shape of the likelihood gives the
# resolution jet by jet. The density is trained on validation jets, because on training jets the summary is better than it
# will ever be again.


# %%
class ConditionalDensity(nn.Module):
    """Mixture of normal distributions p(f | m) of features (N, F), with parameters that depend on m."""

    def __init__(self, features: int = 2, components: int = 4, width: int = 48) -> None:
        super().__init__()
        self.features, self.components = features, components
        triangle = features * (features + 1) // 2
        self.sizes = (components, components * features, components * triangle)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.layers = nn.Sequential(
            nn.Linear(1, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, sum(self.sizes)),
        )

    def distribution(self, m: torch.Tensor) -> MixtureSameFamily:
        """p(f | m) of whitened features for masses (M,) in GeV; batch shape (M,)."""
        z = to_target(m, "log").unsqueeze(1)
        weights, means, triangles = self.layers(z).split(self.sizes, 1)
        means = means.unflatten(1, (self.components, self.features)) + z.unsqueeze(2)
        rows, columns = torch.tril_indices(self.features, self.features)
        lower = means.new_zeros(*means.shape, self.features)  # (M, K, F, F)
        lower[:, :, rows, columns] = triangles.unflatten(1, (self.components, -1))
        diagonal = torch.diagonal(lower, dim1=-2, dim2=-1)
        lower = lower - torch.diag_embed(diagonal) + torch.diag_embed(diagonal.clamp(-4, 2).exp())
        return MixtureSameFamily(
            Categorical(logits=weights), MultivariateNormal(means, scale_tril=lower)
        )

    def log_prob(self, f: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        """ln p(f | m) of features (N, F) at masses (N,)."""
        return self.distribution(m).log_prob((f - self.mean) / self.scale) - self.scale.log().sum()


def fit_density(
    features: np.ndarray, m: np.ndarray, steps: int, seed: int = 0
) -> ConditionalDensity:
    """Maximum-likelihood fit of p(f | m) to features (N, F) and masses (N,); a fifth of them stops it."""
    seed_everything(seed)
    f, m = torch.as_tensor(features, dtype=torch.float32), torch.as_tensor(m, dtype=torch.float32)
    density = ConditionalDensity(f.shape[1])
    density.mean.copy_(f.mean(0))
    density.scale.copy_(f.std(0))
    order = torch.randperm(len(f), generator=torch_generator(seed, 0))
    held_out, fitted = order[: len(f) // 5], order[len(f) // 5 :]
    optimizer = torch.optim.AdamW(density.parameters(), 4e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    best = BestWeights()
    for step in range(steps):
        batch = fitted[
            torch.randint(
                len(fitted), (min(512, len(fitted)),), generator=torch_generator(seed, step + 1)
            )
        ]
        optimizer.zero_grad()
        (-density.log_prob(f[batch], m[batch]).mean()).backward()
        nn.utils.clip_grad_norm_(density.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 50 == 0 or step + 1 == steps:
            with torch.no_grad():
                best.update(-density.log_prob(f[held_out], m[held_out]).mean().item(), density)
    density.load_state_dict(best.weights)
    return density.eval()


MASS_GRID = np.arange(LOW, HIGH + 0.1, 2.5)


@torch.no_grad()
def likelihood(density: ConditionalDensity, features: np.ndarray) -> np.ndarray:
    """ln p(f | m) on MASS_GRID, (N, G)."""
    distribution = density.distribution(torch.as_tensor(MASS_GRID, dtype=torch.float32))
    f = (torch.as_tensor(features, dtype=torch.float32) - density.mean) / density.scale
    return torch.cat([distribution.log_prob(part.unsqueeze(1)) for part in f.split(500)]).numpy()


def maximum_likelihood(log_density: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Estimate and the ends of the interval where ln p is within 1/2 of its maximum, (N,) each in GeV.

    The maximum is that of the parabola through the highest point of the grid and its neighbours.
    """
    rows = np.arange(len(log_density))
    top = log_density.argmax(1)
    middle = top.clip(1, len(MASS_GRID) - 2)
    left, centre, right = (log_density[rows, middle + shift] for shift in (-1, 0, 1))
    bend = left - 2 * centre + right
    shift = np.where(bend < 0, 0.5 * (left - right) / np.where(bend < 0, bend, 1), 0.0).clip(-1, 1)
    step = MASS_GRID[1] - MASS_GRID[0]
    estimate = np.where(top == middle, MASS_GRID[middle] + shift * step, MASS_GRID[top])
    near = log_density > log_density.max(1, keepdims=True) - 0.5
    low = MASS_GRID[near.argmax(1)] - step / 2
    high = MASS_GRID[len(MASS_GRID) - 1 - near[:, ::-1].argmax(1)] + step / 2
    return estimate, low, high


# %%
by_method, intervals = {}, {}
for name, key in {"flat": best, "falling": (CHANGED, 0)}.items():
    validation_features = outputs(models[key], dataset, splits.validation)
    density = fit_density(validation_features, mass[splits.validation], CONFIG.density_steps)
    log_density = likelihood(density, found[key])
    by_method[f"direct, {name} training spectrum"] = to_mass(found[key][:, 0], "log")
    by_method[f"likelihood, {name} training spectrum"], low, high = maximum_likelihood(log_density)
    intervals[name] = low, high
    if name == "flat":
        shown_curves, main_density = log_density, density
for name, values in by_method.items():
    results[name] = evaluate_regression(m_test, values)

fig, axes = plt.subplots(1, 3, figsize=(11, 3.5))
for event in range(4):
    axes[0].plot(
        MASS_GRID,
        shown_curves[event] - shown_curves[event].max(),
        label=f"true {m_test[event]:.0f} GeV",
    )
axes[0].set(ylim=(-8, 0.5), xlabel="mass [GeV]", ylabel=r"$\ln p(f|m)$ relative to its maximum")
axes[0].legend(fontsize=7.5)
bias = {}
for number, (name, values) in enumerate(by_method.items()):
    frame = binned_response(values, m_test, MASS_EDGES)
    bias[name] = frame
    line = plotting.LINES[number % 2 * 2]
    for axis, column in zip(axes[1:], ("median", "resolution"), strict=True):
        axis.plot(
            frame.x, frame[column], "o" + line, ms=3.5, color=plotting.PALETTE[number], label=name
        )
axes[1].axhspan(0.98, 1.02, color="grey", alpha=0.2, lw=0)
axes[1].set(xlabel="true mass [GeV]", ylabel="median response")
axes[2].set(xlabel="true mass [GeV]", ylabel="resolution")
axes[2].legend(fontsize=6.5)
plt.show()

# %%
rows = {}
for name in by_method:
    frame = bias[name]
    middle = frame[(frame.x > 120) & (frame.x < 450)]
    rows[name] = {
        "MAE [GeV]": f"{results[name]['mae']['value']:.1f}",
        "largest bias, 120 to 450 GeV": f"{(middle['median'] - 1).abs().max():.1%}",
        "median response, lowest bin": f"{frame['median'].iloc[0]:.3f}",
        "highest bin": f"{frame['median'].iloc[-1]:.3f}",
    }
    if name.startswith("likelihood"):
        low, high = intervals[name.split()[1]]
        rows[name]["coverage of the interval"] = f"{np.mean((m_test > low) & (m_test < high)):.1%}"
display(pd.DataFrame(rows).T.fillna(""))
moved = {
    kind: np.median(
        by_method[f"{kind}, falling training spectrum"]
        / by_method[f"{kind}, flat training spectrum"]
    )
    for kind in ("direct", "likelihood")
}
display(Markdown(
    f"With the falling instead of the flat training spectrum the direct estimates of the same jets change by "
    f"{moved['direct'] - 1:+.1%} in the median, those of the likelihood by {moved['likelihood'] - 1:+.1%}. "
    + ("The likelihood is the less dependent of the two" if abs(moved["likelihood"] - 1) < abs(moved["direct"] - 1)
       else "The likelihood is not less dependent in this run")
    + f"; its price in MAE on the flat test sample is "
    f"{results['likelihood, flat training spectrum']['mae']['value'] - results['direct, flat training spectrum']['mae']['value']:+.1f} GeV."
))  # fmt: skip

# %% [markdown]
# ## 8. Another detector
# A network that has learned the noise of one detector may fail in another. Stand-in jets can be made with twice the noise
# and pile-up: networks trained on either sample are tested on both. With official files there is one sample only.

# %%
cross = {}
if dataset.source == "standin":
    harsh = load_top_mass("standin", PROFILE, conditions="harsh")
    harsh_splits = split(np.digitize(harsh.m, np.linspace(LOW, HIGH, 11)[1:-1]))
    job = ("harsh 0", MAIN, harsh, harsh_splits.train, harsh_splits.validation, CONFIG, 0)
    harsh_model = restored(MAIN, side_by_side(train_arm, [job])[0][1])
    samples = {"standard": (dataset, test), "harsh": (harsh, harsh_splits.test)}
    networks = {"standard": models[MAIN, CONFIG.seeds[0]], "harsh": harsh_model}
    for trained_on, network in networks.items():
        for tested_on, (sample, rows) in samples.items():
            values = to_mass(outputs(network, sample, rows)[:, 0], "log")
            cross[f"trained on {trained_on}, tested on {tested_on}"] = evaluate_regression(
                sample.m[rows], values
            )
    display(results_frame(cross))
    own, other = (
        cross[f"trained on {name}, tested on harsh"]["mae"]["value"]
        for name in ("harsh", "standard")
    )
    display(Markdown(
        f"In the harsh detector the network that was trained for it has an MAE of {own:.1f} GeV, the one that was not "
        f"{other:.1f} GeV."
    ))  # fmt: skip
else:
    display(Markdown("*One sample only: this check needs stand-in jets.*"))

# %% [markdown]
# ## 9. Ablations
# One change at a time, one seed, fewer jets and passes, scored on *validation* jets. The interval is that of the paired
# difference on the same jets; it does not contain the spread between seeds.

# %%
ABLATIONS = {
    "reference": (MAIN, {}),
    "images only, no moments": ("images only", {}),
    "moments only, no images": ("moments only", {}),
    "no mirror images in training": (MAIN, {"flips": False}),
    "normal likelihood": (MAIN, {"loss": "normal"}),
    "absolute error instead of likelihood": (MAIN, {"loss": "absolute"}),
    "linear instead of logarithmic target": (MAIN, {"target": "linear"}),
    "no weight averaging": (MAIN, {"ema_decay": 0.0}),
}
ablated = {}
if CONFIG.ablation_jets:
    jobs = [
        (f"ablation {name}", arm, dataset, splits.train[: CONFIG.ablation_jets], splits.validation,
         replace(CONFIG, epochs=CONFIG.ablation_epochs, **changes), 0)
        for name, (arm, changes) in ABLATIONS.items()
    ]  # fmt: skip
    for (name, (arm, changes)), (_, weights) in zip(
        ABLATIONS.items(), side_by_side(train_arm, jobs), strict=True
    ):
        values = outputs(restored(arm, weights), dataset, splits.validation)[:, 0]
        ablated[name] = to_mass(values, changes.get("target", "log"))

# %%
if ablated:
    m_validation, lines = mass[splits.validation], {}
    for name, values in ablated.items():
        d = paired_bootstrap(
            mean_absolute_error, m_validation, values, ablated["reference"], n_resamples=300
        )
        lines[name] = {
            "validation MAE [GeV]": f"{mean_absolute_error(m_validation, values):.2f}",
            "change": ""
            if name == "reference"
            else f"{d.difference:+.2f} [{d.low:+.2f}, {d.high:+.2f}]",
        }
    display(
        Markdown(f"{CONFIG.ablation_jets:,} training jets, {CONFIG.ablation_epochs} epochs each:")
    )
    display(pd.DataFrame(lines).T)
else:
    display(Markdown(f"*The {PROFILE} profile trains no ablations; standard and full do.*"))

# %% [markdown]
# ## 10. Weights and metrics
# The ONNX graph carries the scaling, the mirror images and the calibration of the width: the four channels as they stand in
# the official file go in, mass and its uncertainty in GeV come out. `make score TASK=task2e_mass_regression DATA=file.parquet`
# runs it on an independent sample without PyTorch.


# %%
class RawInput(nn.Module):
    """Official images (B, 4, 125, 125) -> mass and its uncertainty in GeV, (B,) each."""

    def __init__(self, network: nn.Module, factor: float) -> None:
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        location, log_width = self.network(x).unbind(1)
        m = (location * LOG_UNIT + LOG_MIDDLE).exp()
        return m, m * self.factor * LOG_UNIT * log_width.exp()


card = {"task": TASK, "profile": PROFILE, "data": dataset.description, "source": dataset.source}
batches = [images.dense(splits.validation[:n]).numpy() for n in (1, 2, 7)]
graph, path = RawInput(models[best].cpu(), factors[best]).eval(), run.directory / f"{TASK}.onnx"
export_onnx(graph, torch.from_numpy(batches[1]), path, ["x"], ["mass", "sigma"],
            {**card, "kind": "regression", "data_source": dataset.source})  # fmt: skip
print(
    f"{path.name}: largest difference to PyTorch {check_parity(graph, path, batches, tolerance=1e-2):.1e} GeV"
)
for (arm, seed), (history, weights) in trained.items():
    name = f"{arm.replace(' ', '_')}_seed{seed}"
    save_weights(
        run.directory / f"{name}.safetensors",
        {k: torch.as_tensor(v) for k, v in weights.items()},
        {**card, "arm": arm, "seed": seed, "width_factor": f"{factors[arm, seed]:.4f}",
         "validation_mae": f"{history.validation_mae.min():.2f}"},
    )  # fmt: skip
save_weights(
    run.directory / "conditional_density.safetensors", main_density, {**card, "arm": "p(f | m)"}
)


# %%
def key(arm: str) -> str:
    """An arm's name in metrics.json."""
    return arm.replace(",", "").replace(" ", "_")


def described(arm: str) -> dict:
    """Results of one arm, with its size, for metrics.json."""
    info = {"description": LABELS.get(arm, arm)}
    if (arm, 0) in models:
        info["parameters"], info["flops"] = complexity(models[arm, 0])
    return {**results[arm], "info": info}


parameters, flops = complexity(models[best])
metrics = run.save_metrics(
    title="Task 2e: mass of boosted tops",
    data={
        "source": dataset.source,
        "fingerprint": dataset.fingerprint,
        "description": dataset.description,
        **{part: len(rows) for part, rows in splits._asdict().items()},
    },
    published=[
        f"{TASK}.onnx",
        "conditional_density.*",
        *(f"all_channels_seed{s}.*" for s in CONFIG.seeds if s != best[1]),
    ],
    seeds=list(CONFIG.seeds),
    headline="mae",
    metrics=results[MAIN] | {"coverage_68": coverage},
    baselines={
        key(arm): described(arm) for arm in ("median", "mass of the pixels", "gradient boosting")
    },
    arms={key(arm): described(arm) for arm in ("ensemble", *ARMS, *by_method) if arm != MAIN},
    floors={},
    variants={
        "cross_detector": cross,
        "largest_bias_120_to_450": {
            name: float((f[(f.x > 120) & (f.x < 450)]["median"] - 1).abs().max())
            for name, f in bias.items()
        },
    },
    parameters=parameters,
    flops=flops,
)
update_results(metrics)

# %% [markdown]
# ## 11. Conclusion, limits, references

# %%
conclusions = [
    f"On {dataset.words} the network's MAE is {share:.0%} of the median predictor's (aim: at most 40 %), and it is "
    f"{verdict('gradient boosting')}.",
    f"Channels: it is {verdict('track pT and ECAL')}; the impact parameters "
    + ("help." if differences["track pT and ECAL"].high < 0 else "do not help significantly."),
    f"The jet's pseudorapidity, which no image shows: the network is {verdict('all channels and eta')}.",
    f"68 % intervals cover {coverage['value']:.1%} of the test masses.",
    f"Changing the training spectrum moves direct estimates by {moved['direct'] - 1:+.1%} and the likelihood's by "
    f"{moved['likelihood'] - 1:+.1%}.",
]
display(Markdown("\n".join(f"- {line}" for line in conclusions)))

# %% [markdown]
# - The headline is the mean over single networks; their ensemble is listed beside it and not instead of it.
# - A number obtained on stand-in jets compares methods on the same jets. It does not predict the error on the official files,
#   whose detector, pile-up and outliers are harder; the best public solutions there have an MAE of about 55 GeV.
# - The conditional density rests on two numbers of the network, not on the image: information that the network discards
#   is lost to it.
# - Not studied: the hadronic calorimeter and the pixel layers, which the task excludes.
#
# **References.** M. Andrews et al., *End-to-end jet classification of boosted top quarks with the CMS Open Data*,
# arXiv:2104.14659. CMS Collaboration, *Reconstruction of decays to
# merged photons using end-to-end deep learning*, arXiv:2204.12313. K. He et al., *Deep residual
# learning*, arXiv:1512.03385. C. Bishop, *Mixture density networks* (1994). L. Smith, N. Topin, *Super-convergence*,
# arXiv:1708.07120. R. Gambhir, B. Nachman, J. Thaler, *Learning uncertainties the frequentist way*, arXiv:2205.03413.
