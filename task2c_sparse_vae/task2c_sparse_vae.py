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
# # Task 2c: a variational autoencoder, pruned, and a sparse one beside it
#
# **Task.** Train a variational autoencoder (VAE) on jets without labels, fine-tune its encoder as a classifier on the labelled
# ones, prune it, and plot the error against the FLOPs. Bonus: do the same with a sparse autoencoder and put both on one plot.
#
# **Why.** A trigger decides within microseconds, and every multiplication costs silicon or time. Three kinds of sparsity
# could save some: of the *weights* (pruning whole channels, or single numbers), of the *input* (most of a jet image is empty, and
# a convolution need not visit empty places), and of the *code* (few latent variables active for any one jet). They save very
# different things. What counts here is what is executed: FLOPs are counted on the network that runs, never scaled with a ratio,
# and the time is measured beside them.
#
# The table below is filled in by the last cells of this notebook, from the run that you are looking at.

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
show_results("task2c_sparse_vae")

# %% [markdown]
# ## 1. Set-up
# Data, splits, metrics, plots and checkpoints come from `e2e_utils`; networks, losses, sparse convolution and training loop are
# in this notebook. Channels are removed by Torch-Pruning (Fang et al., arXiv:2301.12900), which finds out which layers have
# to shrink together.

# %%
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch_pruning
from IPython.display import Markdown, display
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn.functional import (
    avg_pool2d,
    binary_cross_entropy_with_logits,
    max_pool2d,
    pad,
    relu,
)
from torch.utils.flop_counter import FlopCounterMode

from data.loaders import load_jets8
from data.loaders.jets8 import CHANNELS, CLASSES
from e2e_utils import plotting
from e2e_utils.boosting import fit_trees
from e2e_utils.checkpoints import load_training_state, save_training_state, save_weights
from e2e_utils.distributed import share_buffers
from e2e_utils.evaluation import CLASSIFIER_METRICS, evaluate
from e2e_utils.machine import make_accelerator, pick_device
from e2e_utils.metrics import Difference, accuracy, paired_bootstrap, roc_auc
from e2e_utils.notebook import results_frame, start_run, update_results
from e2e_utils.onnx_export import check_parity, export_onnx, open_session
from e2e_utils.parallel import side_by_side, worker_count
from e2e_utils.seeds import epoch_batches, seed_everything, torch_generator
from e2e_utils.sparse_images import SparseImages, concatenate

# %% tags=["parameters"]
PROFILE = os.environ.get("PROFILE", "quick")  # smoke (tests), quick, standard, full
DATA_SOURCE = os.environ.get("DATA_SOURCE", "auto")  # auto, official, standin
DATA = os.environ.get("DATA") or None  # other files of the official schema, comma separated

# %% [markdown]
# The profiles differ in the number of jets, passes, ratios and seeds, never in the method. `full` is what one would run on
# a GPU with the official files.


# %%
@dataclass(frozen=True)
class Schedule:
    """One training: passes over its jets, batch size, highest learning rate, weight decay."""

    epochs: int
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.02


@dataclass(frozen=True)
class Config:
    """Everything that a run needs to be repeated, except the data."""

    pretraining: Schedule  # on unlabelled jets
    tuning: Schedule  # on labelled jets
    extra: Schedule  # after pruning; the dense network gets it too; a multiple of ITERATIONS epochs
    seeds: int
    ratios: tuple[float, ...] = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # of channels removed
    unstructured: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95)  # of weights set to zero
    sweep: Schedule = field(default_factory=lambda: Schedule(2))
    sweep_jets: int = 0  # unlabelled jets for the choice of beta and k
    mixed_seeds: int = 1  # of the arms with one kind of sparsity only


CONFIGS = {
    "smoke": Config(
        pretraining=Schedule(1, 32), tuning=Schedule(2, 8), extra=Schedule(3, 8, 5e-4), seeds=2,
        ratios=(0.0, 0.8), unstructured=(0.8,), sweep=Schedule(1, 32), sweep_jets=32,
    ),
    "quick": Config(
        pretraining=Schedule(2, 32), tuning=Schedule(6), extra=Schedule(3, 64, 5e-4), seeds=2,
        ratios=(0.0, 0.5, 0.6, 0.8, 0.95), unstructured=(0.8, 0.95),
        sweep=Schedule(1), sweep_jets=1200,
    ),
    "standard": Config(
        pretraining=Schedule(3), tuning=Schedule(8), extra=Schedule(3, 32, 5e-4), seeds=3,
        unstructured=(0.5, 0.8, 0.95), sweep=Schedule(3, 32), sweep_jets=5_000,
    ),
    "full": Config(
        pretraining=Schedule(30, 256), tuning=Schedule(20, 128), extra=Schedule(12, 128, 5e-4),
        seeds=3, sweep=Schedule(6, 256), sweep_jets=30_000, mixed_seeds=3,
    ),
}  # fmt: skip
CONFIG = CONFIGS[PROFILE]
TASK = "task2c_sparse_vae"
DEVICE = pick_device()

# %%
run = start_run(TASK, PROFILE, DATA_SOURCE)
plotting.set_style()
print(run.summary())

# %% [markdown]
# ## 2. Data
# `load_jets8` reads the official HDF5 files where they are on disk, and otherwise simulated stand-in jets in the same schema
# (see `data/README.md`). The next line says which of the two this run used. Every image and channel is scaled to 0 to 255, so
# that no absolute energy is left. The official files document neither the channels nor the label: the names are those that fit.

# %%
dataset = load_jets8(DATA_SOURCE, PROFILE, path=DATA, require_both_classes=True)
y = dataset.y
display(Markdown(f"> **Data of this run:** {dataset.description}"))

# %% [markdown]
# **Split.** Of the labelled jets 64 % train, 16 % settle every choice (epoch, $\beta$, $k$, which pruned network to recommend),
# 20 % are the test set, which is scored once, in section 7. Of the unlabelled jets 16 % watch the autoencoder; all others
# train it.

# %%
splits = dataset.splits()
held = dataset.unlabelled_splits()
unlabelled_train = np.concatenate([held.train, held.test])
unlabelled_validation = held.validation
pd.DataFrame(
    {part: {"jets": len(rows), "of class 1": int(y[rows].sum())} for part, rows in splits._asdict().items()}
    | {"unlabelled, train": {"jets": len(unlabelled_train), "of class 1": "unknown"},
       "unlabelled, validation": {"jets": len(unlabelled_validation), "of class 1": "unknown"}}
).T  # fmt: skip

# %% [markdown]
# **Towers.** On a CPU, hundreds of trainings on $125\times125$ pixels are out of reach. An HCAL tower is $5\times5$ pixels anyway:
# all channels are summed in these towers, and what goes into the networks is $x=\frac14\ln(1+\sum)$ on $25\times25$ places.
# Lost is where a track or an ECAL hit lies within its tower of $0.087\times0.087$, and how many pixels share the sum. Gradient
# boosting on variables of the *pixels* (section 6) is a check of how much that costs. The towers are made from the hits,
# without ever making an image dense.

# %%
SIZE, TOWER = 125, 5  # pixels a side of an image, of a tower
GRID = SIZE // TOWER  # towers a side
N_CHANNELS = len(CHANNELS)
SCALE = 4.0  # of the logarithm
PIXEL = 0.0174  # width of a pixel in eta and phi


def hits_of(images: SparseImages, rows: np.ndarray) -> tuple[np.ndarray, ...]:
    """Jet, channel, row, column (int64) and value >= 0 of every hit of the chosen jets, (hits,) each."""
    offsets, index, value = images.events(rows)
    jet = np.repeat(np.arange(len(rows)), np.diff(offsets))
    channel, pixel = np.divmod(index.astype(np.int64), SIZE**2)
    return jet, channel, *np.divmod(pixel, SIZE), np.clip(value, 0, None)


def to_towers(images: SparseImages, chunk: int = 1000) -> SparseImages:
    """Images (N, 8, 125, 125) as x = ln(1 + sum) / 4 of towers, (N, 8, 25, 25); sparse to sparse."""
    parts = []
    for start in range(0, len(images), chunk):
        rows = np.arange(start, min(start + chunk, len(images)))
        jet, channel, row, column, value = hits_of(images, rows)
        place = ((jet * N_CHANNELS + channel) * GRID + row // TOWER) * GRID + column // TOWER
        sums = np.bincount(place, value, len(rows) * N_CHANNELS * GRID**2)
        x = (np.log1p(sums) / SCALE).astype(np.float32)
        parts.append(SparseImages.from_dense(x.reshape(len(rows), N_CHANNELS, GRID, GRID)))
    return concatenate(parts)


def towers_of(x: torch.Tensor) -> torch.Tensor:
    """The same from dense images (B, 8, 125, 125): (B, 8, 25, 25)."""
    return (avg_pool2d(x.clamp(min=0), TOWER) * TOWER**2).log1p() / SCALE


towers = {"unlabelled": to_towers(dataset.unlabelled), "labelled": to_towers(dataset.images)}
few = splits.train[:20]
difference = towers["labelled"].dense(few) - towers_of(dataset.images.dense(few))
assert difference.abs().max() < 1e-4
for kind, part in towers.items():
    print(f"{kind}: {part.nnz / len(part):.0f} towers with a hit a jet, summed over channels")

# %% [markdown]
# One jet of each class as the file has it and in towers, and the average jets.

# %%
SHOWN = (0, 3, 4, 5)  # channels: tracks, ECAL, HCAL, first pixel layer
examples = [splits.train[y[splits.train] == label][0] for label in (0, 1)]
fig, axes = plt.subplots(4, 4, figsize=(11, 10.5))
for label, row in enumerate(examples):
    image, summed = (part.dense([row])[0].numpy() for part in (dataset.images, towers["labelled"]))
    for axis, pair in zip(axes[2 * label : 2 * label + 2].T, SHOWN, strict=True):
        plotting.heat_image(axis[0], np.ma.masked_equal(np.log1p(image[pair]) / SCALE, 0), f"{CLASSES[label]}: {CHANNELS[pair]}")  # fmt: skip
        plotting.heat_image(axis[1], np.ma.masked_equal(summed[pair], 0), "towers")
for axis in axes.flat:
    axis.set(xlabel="", ylabel="")
axes[-1, 0].set(xlabel="column (φ)", ylabel="row (η)")
plt.show()

# %%
train_x = towers["labelled"].dense(splits.train).numpy()
fig, axes = plt.subplots(2, 4, figsize=(11, 5))
for label, line in enumerate(axes):
    mean = train_x[y[splits.train] == label].mean(0)
    for axis, channel in zip(line, SHOWN, strict=True):
        plotting.heat_image(axis, mean[channel], f"{CLASSES[label]}: {CHANNELS[channel]}", "mean $x$" if channel == SHOWN[-1] else "")  # fmt: skip
        axis.set(xlabel="", ylabel="")
axes[-1, 0].set(xlabel="tower (φ)", ylabel="tower (η)")
plt.show()

# %% [markdown]
# **How empty?** The pixel layers have hits nearly everywhere, mostly of other particles than the jet's. A *site* of the sparse
# network therefore is a tower with a track or with energy in a calorimeter; it sees all eight channels there, and nothing
# anywhere else. What that leaves out, and what it saves, is measured below.

# %%
SITE_CHANNELS = 5  # the first five channels make a site: track pT, dz, d0, ECAL, HCAL


def active_sites(x: torch.Tensor) -> torch.Tensor:
    """Towers (B, 8, 25, 25) -> where a track or a calorimeter has something, (B, 25, 25) bool."""
    return x[:, :SITE_CHANNELS].amax(1) > 0


x = torch.from_numpy(train_x)
occupancy = {
    "pixels with any hit": float((dataset.images.dense(splits.train[:200]).amax(1) > 0).float().mean()),
    "towers with any hit": float((x.amax(1) > 0).float().mean()),
    "towers that are sites": float(active_sites(x).float().mean()),
}  # fmt: skip
display(pd.DataFrame({"share": {k: f"{100 * v:.1f} %" for k, v in occupancy.items()}}))

# %% [markdown]
# ## 3. Autoencoders
# **Likelihood.** A tower is empty or it has a value, so neither squared error (which calls an image of nothing a good
# reconstruction) nor Bernoulli pixels fit. The decoder gives for every tower and channel $i$ the probability of a hit
# $\pi_i$ and the mean $m_i$ of $x_i$ given a hit, a hurdle model:
# $$-\ln p(x|z)=\sum_i\left[-h_i\ln\pi_i-(1-h_i)\ln(1-\pi_i)+h_i\left(\frac{(x_i-m_i)^2}{2\sigma_c^2}+\ln\sigma_c+\frac12\ln2\pi\right)\right],$$
# with $h_i=1$ where $x_i>0$, and a learned width $\sigma_c\ge0.05$ for each channel (the floor keeps near-discrete pixel hits from
# giving unbounded densities). It is in nats, so that $\beta=1$ below is the evidence bound itself.
#
# **VAE** (Kingma & Welling, arXiv:1312.6114; $\beta$: Higgins et al., ICLR 2017). The encoder gives mean and variance of $q(z|x)$, and
# $$\mathcal L=\mathbb E_{q(z|x)}\left[-\ln p(x|z)\right]+\beta\,\mathrm{KL}\left(q(z|x)\,\Vert\,\mathcal N(0,1)\right),\qquad
# \mathrm{KL}=\frac12\sum_j\left(\mu_j^2+\sigma_j^2-1-\ln\sigma_j^2\right).$$
#
# **k-sparse autoencoder** (Makhzani & Frey, arXiv:1312.5663). The code is $\mathrm{ReLU}(Wh+b)$ with all but its $k$ largest entries set to
# zero: sparsity is exact and chosen, where an $L_1$ penalty would shrink what it keeps and could be evaded by a larger decoder.
#
# **Decoder.** It starts from the average jet: a map of hit probabilities and means, set from the training jets, to which
# the network adds. It therefore begins as the trivial model that it will be compared with.


# %%
def hurdle_nll(
    x: torch.Tensor, logit: torch.Tensor, mean: torch.Tensor, log_sigma: torch.Tensor
) -> torch.Tensor:
    """Negative log-likelihood in nats, (B,), of towers (B, 8, 25, 25); ``log_sigma`` (8,)."""
    hit, log_sigma = (x > 0).to(x), log_sigma.view(1, -1, 1, 1)
    empty_or_not = binary_cross_entropy_with_logits(logit, hit, reduction="none")
    pull = (x - mean) * (-log_sigma).exp()
    value = 0.5 * pull.square() + log_sigma + 0.5 * np.log(2 * np.pi)
    return (empty_or_not + hit * value).flatten(1).sum(1)


def kl_to_normal(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """KL divergence of N(mean, variance) from N(0, 1) of every latent, (B, K)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)


def keep_largest(code: torch.Tensor, k: int) -> torch.Tensor:
    """ReLU of a code (B, K), all but its ``k`` largest entries set to zero."""
    value, place = relu(code).topk(k, 1)
    return torch.zeros_like(code).scatter(1, place, value)


# %%
class AverageJet(NamedTuple):
    """Averages of training jets; each (8, 25, 25) but the width (8,)."""

    logit: torch.Tensor  # of the probability of a hit
    mean: torch.Tensor  # of x where there is a hit
    log_sigma: torch.Tensor


SIGMA_FLOOR = 0.05


def average_jet(images: SparseImages, rows: np.ndarray) -> AverageJet:
    """Hit probability, mean and width from towers of jets, with one pseudo-hit at the channel's mean."""
    totals = torch.zeros(3, N_CHANNELS, GRID, GRID, dtype=torch.float64)
    for _, x in images.iter_dense(1000, rows):
        totals += torch.stack([part.sum(0, dtype=torch.float64) for part in (x > 0, x, x.square())])
    hits, sums, squares = totals
    level = sums.sum((1, 2), keepdim=True) / hits.sum((1, 2), keepdim=True).clamp(min=1)
    probability = (hits + 0.5) / (len(rows) + 1)
    mean = (sums + level) / (hits + 1)
    spread = (squares - 2 * mean * sums + mean**2 * hits).sum((1, 2))
    sigma = (spread / hits.sum((1, 2)).clamp(min=1)).clamp(min=0).sqrt().clamp(min=SIGMA_FLOOR)
    return AverageJet(probability.logit().float(), mean.float(), sigma.log().float())


average = average_jet(towers["unlabelled"], unlabelled_train)
check_x = towers["unlabelled"].dense(unlabelled_validation[:1000])
trivial_nll = hurdle_nll(check_x, average.logit.expand_as(check_x), average.mean, average.log_sigma).mean().item()  # fmt: skip
print(f"the average jet as model of every jet: {trivial_nll:.1f} nats a jet")

# %% [markdown]
# **Trunk.** Residual blocks (He et al., arXiv:1512.03385) at $25\times25$, $13\times13$ and $7\times7$ places; the last map is flattened, not
# averaged, because the jet stands in the middle and a place has a meaning. A convolution runs in one of three ways, with
# the *same* weights:
#
# - *dense*: every place, whether there is something or not;
# - *on sites* (submanifold convolution, Graham & van der Maaten, arXiv:1706.01307): outputs exist where the input is active, so that
#   activity does not spread, and only active neighbours are visited, $u_s=\sum_{o:\,s+o\in S}W_o\,x_{s+o}$ with $S$ the sites;
# - *masked*: the dense convolution, set to zero outside the sites. The same numbers at the full price: it exports to
#   every format, and tests the other.
#
# A step of stride two makes a site of every $2\times2$ places that hold one. The list of pairs (input site, output site) for
# each offset, the *rulebook*, is made once a resolution; a convolution is then a handful of matrix products.


# %%
class Rulebook(NamedTuple):
    """Pairs of sites of a sparse convolution."""

    pairs: list[tuple[torch.Tensor, ...]]  # (inputs, outputs) for each offset of the kernel
    count: int  # output sites


def coarser(sites: torch.Tensor, kernel: int, stride: int) -> torch.Tensor:
    """Sites (B, H, W) bool after a convolution with padding 1: unchanged at stride 1."""
    if stride == 1:
        return sites
    return max_pool2d(sites.unsqueeze(1).float(), kernel, stride, 1).squeeze(1) > 0


def rulebook(sites: torch.Tensor, kernel: int, stride: int) -> tuple[Rulebook, torch.Tensor]:
    """The pairs of a convolution with padding 1 on sites (B, H, W), and the sites of its output."""
    number = torch.zeros_like(sites, dtype=torch.int64)
    number[sites] = torch.arange(1, int(sites.sum()) + 1, device=sites.device)
    number = pad(number, (1, 2, 1, 2))  # 0: no site
    _, height, width = number.shape
    outputs = coarser(sites, kernel, stride)
    jet, row, column = outputs.nonzero(as_tuple=True)
    corner = (jet * height + row * stride) * width + column * stride  # of the kernel, flat
    pairs, number = [], number.flatten()
    for offset in range(kernel**2):
        down, right = divmod(offset, kernel)
        found = number.index_select(0, corner + down * width + right)
        (there,) = found.nonzero(as_tuple=True)
        pairs.append((found[there] - 1, there))
    return Rulebook(pairs, len(jet)), outputs


# %%
def site_convolution(x: torch.Tensor, weight: torch.Tensor, book: Rulebook) -> torch.Tensor:
    """Features of sites (n, C) and kernel (C', C, k, k) -> features of output sites (n', C')."""
    kernels = weight.flatten(2).permute(2, 1, 0)  # (C', C, k*k) -> (k*k, C, C')
    result = x.new_zeros(book.count, weight.shape[0])
    for (source, target), kernel in zip(book.pairs, kernels, strict=True):
        result.index_add_(0, target, x.index_select(0, source) @ kernel)
    return result


class Layer(nn.Module):
    """Convolution and batch normalisation: dense, masked (B, 1, H, W), or on the sites of a rulebook."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor, where: Rulebook | torch.Tensor | None) -> torch.Tensor:
        if isinstance(where, Rulebook):
            x = site_convolution(x, self.conv.weight, where)
            return self.norm(x[:, :, None, None]).flatten(1)  # (n, C') as n images of one place
        x = self.norm(self.conv(x))
        return x if where is None else x * where


# %%
WIDTHS = (16, 16, 32, 32, 32, 32)  # channels of stage and of its block's inside, three times
GEOMETRY = ((3, 1), (2, 2), (3, 1), (2, 2), (3, 1))  # kernel and stride of the five steps
LAST = 7  # places a side of the last map: 25, 13, 7


class Trunk(nn.Module):
    """Towers (B, 8, 25, 25) -> flat features (B, 49 * widths[4]); dense, or on sites if ``sparse``.

    ``masked`` executes a sparse trunk with dense convolutions: the same numbers.
    """

    def __init__(self, sparse: bool = False, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        self.sparse, self.masked = sparse, False
        a, inner_a, b, inner_b, c, inner_c = widths
        self.stem = Layer(N_CHANNELS, a)
        self.block_a = nn.ModuleList([Layer(a, inner_a), Layer(inner_a, a)])
        self.down_b = Layer(a, b, 2, 2)
        self.block_b = nn.ModuleList([Layer(b, inner_b), Layer(inner_b, b)])
        self.down_c = Layer(b, c, 2, 2)
        self.block_c = nn.ModuleList([Layer(c, inner_c), Layer(inner_c, c)])

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels as they are now, after any pruning."""
        layers = (
            self.stem,
            self.block_a[0],
            self.down_b,
            self.block_b[0],
            self.down_c,
            self.block_c[0],
        )
        return tuple(layer.conv.out_channels for layer in layers)

    def places(
        self, sites: torch.Tensor
    ) -> tuple[list[Rulebook | torch.Tensor | None], torch.Tensor]:
        """Where each of the five steps has outputs, and the sites of the last map."""
        found = []
        for kernel, stride in GEOMETRY:
            if self.masked:
                sites = coarser(sites, kernel, stride)
                found.append(sites.unsqueeze(1).float())
            else:
                book, sites = rulebook(sites, kernel, stride)
                found.append(book)
        return found, sites

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        where, sites, batch = [None] * len(GEOMETRY), None, len(x)
        if self.sparse:
            first = active_sites(x)
            where, sites = self.places(first)
            # masked: (B, 8, 25, 25); else the features of the sites, (n, 8)
            x = x * first.unsqueeze(1).to(x) if self.masked else x.permute(0, 2, 3, 1)[first]
        x = relu(self.stem(x, where[0]))
        x = self.residual(x, self.block_a, where[0])
        x = relu(self.down_b(x, where[1]))
        x = self.residual(x, self.block_b, where[2])
        x = relu(self.down_c(x, where[3]))
        x = self.residual(x, self.block_c, where[4])
        if sites is not None and not self.masked:
            full = x.new_zeros(batch, LAST, LAST, x.shape[1])
            full[sites] = x
            x = full.permute(0, 3, 1, 2)  # (B, C, 7, 7)
        return x.flatten(1)

    @staticmethod
    def residual(x: torch.Tensor, block: nn.ModuleList, where: object) -> torch.Tensor:
        return relu(x + block[1](relu(block[0](x, where)), where))


# %%
LATENT, CODE = 32, 64  # entries of the variational and of the k-sparse code
VARIATIONAL = 0  # in place of k


class Encoder(nn.Module):
    """Towers (B, 8, 25, 25) -> code: means (B, 32) for k = 0 (variational), else k-sparse (B, 64)."""

    def __init__(self, sparse: bool, k: int, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        self.k = k
        self.trunk = Trunk(sparse, widths)
        self.code = nn.Linear(LAST**2 * widths[4], CODE if k else LATENT)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        code = self.code(self.trunk(x))
        return keep_largest(code, self.k) if self.k else code


# %%
class Decoder(nn.Module):
    """Code (B, K) -> logits of hits and means, (B, 8, 25, 25) each: the average jet plus a correction."""

    def __init__(self, size: int, start: AverageJet) -> None:
        super().__init__()
        self.first = nn.Linear(size, 32 * LAST**2)
        self.layers = nn.Sequential(
            nn.ReLU(), nn.ConvTranspose2d(32, 32, 2, 2, 1, output_padding=1), nn.ReLU(),  # 7 -> 13
            nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU(),
            nn.ConvTranspose2d(32, 16, 2, 2, 1, output_padding=1), nn.ReLU(),  # 13 -> 25
            nn.Conv2d(16, 2 * N_CHANNELS, 3, 1, 1),
        )  # fmt: skip
        nn.init.zeros_(self.layers[-1].weight)
        self.logit, self.mean = nn.Parameter(start.logit.clone()), nn.Parameter(start.mean.clone())
        self.log_sigma = nn.Parameter(start.log_sigma.clone())

    def forward(self, code: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.layers(self.first(code).view(-1, 32, LAST, LAST))  # (B, 1568) -> (B, 32, 7, 7)
        return x[:, :N_CHANNELS] + self.logit, x[:, N_CHANNELS:] + self.mean


# %%
class Autoencoder(nn.Module):
    """Towers (B, 8, 25, 25) -> negative log-likelihood (B,) and KL divergence (B,), in nats."""

    def __init__(self, sparse: bool, k: int, start: AverageJet) -> None:
        super().__init__()
        self.encoder = Encoder(sparse, k)
        self.decoder = Decoder(self.encoder.code.out_features, start)
        self.log_variance = nn.Linear(self.encoder.code.in_features, LATENT) if not k else None
        if self.log_variance is not None:
            nn.init.constant_(
                self.log_variance.bias, -4.0
            )  # sharp: the decoder first hears the code

    def posterior(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log-variance of q(z|x), (B, 32) each."""
        features = self.encoder.trunk(x)
        return self.encoder.code(features), self.log_variance(features).clamp(-8, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        kl = x.new_zeros(len(x))
        if self.log_variance is None:
            code = self.encoder(x)
        else:
            mean, log_variance = self.posterior(x)
            kl = kl_to_normal(mean, log_variance).sum(1)
            code = mean
            if self.training:
                code = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        logit, mean = self.decoder(code)
        log_sigma = self.decoder.log_sigma.clamp(min=np.log(SIGMA_FLOOR))
        return hurdle_nll(x, logit, mean, log_sigma), kl


# %%
class Classifier(nn.Module):
    """An encoder and a head with one hidden layer: towers (B, 8, 25, 25) -> logit (B,)."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Sequential(
            nn.Linear(encoder.code.out_features, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x)).squeeze(1)


# %% [markdown]
# At evaluation the VAE's bound is taken at the mean of $q$, which is a little better than the bound itself; only models of
# one kind are compared by it.
#
# **FLOPs** (two a multiply-add) are counted by PyTorch's own counter on the network that runs, on real jets. For a network on
# sites there are three numbers: *dense*, what the masked form executes; *active sites*, what a kernel would take that visits
# all nine neighbours of every site; and *active pairs*, what the rulebook executes. The last is what is plotted.


# %%
def counted_flops(model: nn.Module, x: torch.Tensor) -> float:
    """FLOPs a jet of the network as it is executed on towers (B, 8, 25, 25)."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(x)
    return counter.get_total_flops() / len(x)


def three_flops(model: Classifier, x: torch.Tensor) -> dict[str, float]:
    """FLOPs a jet of a sparse network: dense (masked form), active sites, active pairs."""
    trunk, flops = model.encoder.trunk, {}
    trunk.masked = True
    flops["dense"] = counted_flops(model, x)
    trunk.masked = False
    flops["active pairs"] = counted_flops(model, x)
    books, _ = trunk.places(active_sites(x))
    steps = (
        (trunk.stem, *trunk.block_a),
        (trunk.down_b,),
        trunk.block_b,
        (trunk.down_c,),
        trunk.block_c,
    )
    extra = 0  # of neighbours that are not there
    for book, layers in zip(books, steps, strict=True):
        missing = len(book.pairs) * book.count - sum(len(there) for _, there in book.pairs)
        extra += sum(
            2 * missing * layer.conv.in_channels * layer.conv.out_channels for layer in layers
        )
    flops["active sites"] = flops["active pairs"] + extra / len(x)
    return flops


seed_everything(0)
probe = towers["labelled"].dense(splits.validation[:64])
sizes = {}
for name, sparse in (("dense", False), ("on sites", True)):
    model = Classifier(Encoder(sparse, VARIATIONAL))
    assert model.eval()(probe).shape == (len(probe),)
    flops = three_flops(model, probe) if sparse else {"dense": counted_flops(model, probe)}
    sizes[name] = {"parameters": f"{sum(p.numel() for p in model.parameters()):,}",
                   **{f"MFLOPs, {kind}": f"{value / 1e6:.2f}" for kind, value in flops.items()}}  # fmt: skip
display(pd.DataFrame(sizes).T.fillna(""))

# %% [markdown]
# **Checked and timed**: the network on sites against its masked form, on real jets, forward and backward, with batch
# statistics of evaluation.


# %%
def milliseconds(function: Callable[[], object], repeats: int = 10) -> float:
    """Shortest time of a call, after one to warm up: what else the machine does only adds to it."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times[1:])


def forward_and_backward(model: nn.Module, masked: bool, x: torch.Tensor) -> torch.Tensor:
    """Logits of towers, and the gradients of their sum in the weights."""
    model.encoder.trunk.masked = masked
    model.zero_grad()
    logits = model(x)
    logits.sum().backward()
    return logits.detach()


outputs, gradients, speeds = [], [], {}
for masked, way in ((False, "on sites"), (True, "masked, dense convolutions")):
    outputs.append(forward_and_backward(model, masked, probe))
    gradients.append(model.encoder.trunk.stem.conv.weight.grad.clone())
    speeds[way] = milliseconds(lambda m=masked: forward_and_backward(model, m, probe)) / len(probe)
assert torch.allclose(*outputs, atol=1e-4)
assert torch.allclose(*gradients, rtol=1e-3, atol=1e-3)
display(pd.DataFrame({"ms a jet, forward and backward": speeds}).round(3))

# %% [markdown]
# ## 4. Training
# One loop serves all: what differs is the loss, the jets, and the score on validation jets that chooses the epoch. **Optimiser**:
# AdamW with one cycle of the learning rate (Smith & Topin, arXiv:1708.07120). **Augmentation**: every batch is mirrored along
# each axis with probability one half; neither beams nor charges are told apart by these labels. The order of the batches
# depends on seed and epoch only, and the full state is saved after every epoch, so that an interrupted run continues where it
# stopped.


# %%
class BestWeights:
    """The weights of the epoch with the highest validation score."""

    def __init__(self) -> None:
        self.value, self.weights = -np.inf, {}

    def update(self, value: float, model: nn.Module) -> None:
        if value > self.value:
            self.value = value
            self.weights = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}

    def state_dict(self) -> dict:
        return {"value": self.value, "weights": self.weights}

    def load_state_dict(self, state: dict) -> None:
        self.value, self.weights = state["value"], state["weights"]


def apply_masks(model: nn.Module, masks: dict[str, torch.Tensor]) -> None:
    """Set the pruned weights to zero again."""
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask.to(model.get_parameter(name)))


# %%
def train(
    name: str, model: nn.Module, source: SparseImages, rows: np.ndarray, schedule: Schedule,
    loss_of: Callable[[nn.Module, torch.Tensor, np.ndarray, float], torch.Tensor], score_of: Callable[[nn.Module], float], seed: int, masks: dict[str, torch.Tensor] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Train ``model`` in place on towers of ``rows``; returns the history, one line an epoch."""
    accelerator = make_accelerator(("bf16",))
    world = accelerator.num_processes
    batch_size = min(schedule.batch_size, len(rows) // world)
    steps = len(rows) // (batch_size * world)
    optimizer = torch.optim.AdamW(
        model.parameters(), schedule.learning_rate, weight_decay=schedule.weight_decay
    )
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, schedule.learning_rate, total_steps=schedule.epochs * steps, pct_start=0.2
    )
    model, best = model.to(accelerator.device), BestWeights()
    network, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(cycle, best)
    state = run.directory / "state" / name.replace(" ", "-")
    history = (load_training_state(accelerator, state) or {"history": []})["history"]
    for epoch in range(len(history), schedule.epochs):
        generator, total, started = torch_generator(seed, epoch), 0.0, time.monotonic()
        network.train()
        batches = epoch_batches(rows, batch_size, seed, epoch, accelerator.process_index, world)
        for step, batch in enumerate(batches):
            x = source.dense(batch, accelerator.device)
            mirrored = (torch.rand(2, generator=generator) < 0.5).tolist()
            x = x.flip([axis for axis, chosen in zip((2, 3), mirrored, strict=True) if chosen])
            with accelerator.autocast():
                loss = loss_of(network, x, batch, (epoch + step / steps) / schedule.epochs)
            optimizer.zero_grad()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
            cycle.step()
            apply_masks(model, masks or {})
            total += loss.item()
        share_buffers(model)
        score = score_of(accelerator.unwrap_model(network))
        best.update(score, accelerator.unwrap_model(network))
        line = {"epoch": epoch + 1, "loss": total / steps, "score": score}
        history.append(line | {"seconds": time.monotonic() - started})
        save_training_state(accelerator, state, {"history": history})
    model.load_state_dict(best.weights)
    return pd.DataFrame(history)


# %%
BATCH = 256  # jets a batch where nothing is trained


@torch.inference_mode()
def reconstruction(model: Autoencoder, rows: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean negative log-likelihood and KL divergence in nats, and the latter of every jet."""
    model = model.eval().to(DEVICE)
    parts = [model(x) for _, x in towers["unlabelled"].iter_dense(BATCH, rows, DEVICE)]
    nll, kl = (torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True))
    return float(nll.mean()), kl


@torch.inference_mode()
def outputs_of(model: nn.Module, kind: str, rows: np.ndarray) -> np.ndarray:
    """Codes (N, K) of an encoder or logits (N,) of a classifier, of labelled or unlabelled jets."""
    model = model.eval().to(DEVICE)
    parts = [model(x).float().cpu() for _, x in towers[kind].iter_dense(BATCH, rows, DEVICE)]
    return torch.cat(parts).numpy()


def probability(logits: np.ndarray) -> np.ndarray:
    """Sigmoid in double precision: single precision would tie the most certain jets."""
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


def probe_auc(encoder: Encoder) -> float:
    """Validation AUC of a logistic regression on the codes of the labelled training jets."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    probe.fit(outputs_of(encoder, "labelled", splits.train), y[splits.train])
    codes = outputs_of(encoder, "labelled", splits.validation)
    return roc_auc(y[splits.validation], probe.decision_function(codes))


# %% [markdown]
# **Pre-training.** Four arms: *dense* is the VAE of the task; *sparse* has both kinds of sparsity, input and code; the two between
# have one kind each, so that the effect of each can be told. All share decoder, likelihood, jets and passes. Empty towers are
# cheap to predict without any code, and a decoder that has learned to ignore $z$ does not come back: the posterior therefore
# begins sharp, and $\beta$ is zero for the first quarter of the training and grows to its value until three quarters (after
# Bowman et al., arXiv:1511.06349).


# %%
class Arm(NamedTuple):
    """What is sparse: the trunk's input, the code."""

    sparse_input: bool
    sparse_code: bool


ARMS = {
    "dense": Arm(False, False),
    "sparse": Arm(True, True),
    "sparse input": Arm(True, False),
    "sparse code": Arm(False, True),
}
MAIN = ("dense", "sparse")  # the arms that are pruned
BETAS, KS = (0.1, 0.3, 1.0), (4, 8, 16)


# %%
class Pretrained(NamedTuple):
    """A finished autoencoder; arrays, because they cross processes."""

    history: pd.DataFrame
    weights: dict[str, np.ndarray]
    nll: float  # on unlabelled validation jets, in nats
    kl: float
    probe_auc: float


def arrays_of(model: nn.Module) -> dict[str, np.ndarray]:
    """The weights of a model as arrays."""
    return {k: v.cpu().numpy() for k, v in model.state_dict().items()}


def tensors_of(weights: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Arrays as tensors."""
    return {k: torch.as_tensor(v) for k, v in weights.items()}


def pretrain(
    arm: str, seed: int, schedule: Schedule, beta: float, k: int, jets: int = 0, note: str = ""
) -> Pretrained:
    """Train an autoencoder on unlabelled jets (the first ``jets`` of them; 0: all)."""
    seed_everything(seed)
    kind = ARMS[arm]
    model = Autoencoder(kind.sparse_input, k if kind.sparse_code else VARIATIONAL, average)

    def loss_of(
        network: nn.Module, x: torch.Tensor, _: np.ndarray, progress: float
    ) -> torch.Tensor:
        nll, kl = network(x)
        ramp = min(max(2 * progress - 0.5, 0.0), 1.0)
        return (nll + beta * ramp * kl).mean() / 100  # of order one

    def score_of(network: nn.Module) -> float:
        nll, kl = reconstruction(network, unlabelled_validation[:2000])
        return -(nll + beta * float(kl.mean()))

    name = f"pretrain {arm} {seed} {note}".strip()
    rows = unlabelled_train[: jets or None]
    history = train(name, model, towers["unlabelled"], rows, schedule, loss_of, score_of, seed)
    nll, kl = reconstruction(model, unlabelled_validation)
    found = Pretrained(history, arrays_of(model), nll, float(kl.mean()), probe_auc(model.encoder))
    print(f"{name}: {nll:.1f} nats, probe AUC {found.probe_auc:.4f}, {history.seconds.sum():.0f} s", flush=True)  # fmt: skip
    return found


# %% [markdown]
# Before minutes are spent: a network must be able to learn one batch by heart, in either form.


# %%
def overfit_one_batch(sparse: bool, k: int, steps: int = 60) -> float:
    """Cross-entropy after ``steps`` updates on the same jets, from about 0.69."""
    seed_everything(0)
    model, rows = Classifier(Encoder(sparse, k)).train().to(DEVICE), splits.train[:32]
    model.head[2].p = 0.0
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    x = towers["labelled"].dense(rows, DEVICE)
    target = torch.as_tensor(y[rows], dtype=torch.float32, device=DEVICE)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = binary_cross_entropy_with_logits(model(x), target)
        loss.backward()
        optimizer.step()
    return loss.item()


for name, options in {"dense": (False, VARIATIONAL), "sparse": (True, KS[1])}.items():
    steps = 20 if PROFILE == "smoke" else 60
    print(f"{name}: loss on one memorised batch {overfit_one_batch(*options, steps):.4f}")

# %% [markdown]
# **Choice of $\beta$ and $k$** with short trainings. The bounds of different $\beta$ cannot be compared with each other; what
# the code is for can: the validation AUC of a linear probe on it. Small samples leave that choice within errors, which is why
# the likelihoods are printed beside it.

# %%
jobs = [("dense", 0, CONFIG.sweep, beta, 0, CONFIG.sweep_jets, f"beta {beta}") for beta in BETAS]
jobs += [("sparse", 0, CONFIG.sweep, 0.0, k, CONFIG.sweep_jets, f"k {k}") for k in KS]
swept = dict(zip((*BETAS, *KS), side_by_side(pretrain, jobs), strict=True))
chosen_beta = max(BETAS, key=lambda beta: swept[beta].probe_auc)
chosen_k = max(KS, key=lambda k: swept[k].probe_auc)
display(pd.DataFrame([
    {"setting": f"β = {value}" if value in BETAS else f"k = {value}", "nats a jet": f"{found.nll:.1f}", "KL": f"{found.kl:.1f}",
     "probe AUC (validation)": f"{found.probe_auc:.4f}", "chosen": "yes" if value in (chosen_beta, chosen_k) else ""}
    for value, found in swept.items()
]).set_index("setting"))  # fmt: skip

# %%
seeds_of = {arm: CONFIG.seeds if arm in MAIN else CONFIG.mixed_seeds for arm in ARMS}
plan = [(arm, seed) for arm in ("dense", "sparse code", "sparse", "sparse input") for seed in range(seeds_of[arm])]  # fmt: skip
jobs = [(arm, seed, CONFIG.pretraining, chosen_beta, chosen_k) for arm, seed in plan]
pretrained = dict(zip(plan, side_by_side(pretrain, jobs), strict=True))


def autoencoder_of(arm: str, seed: int) -> Autoencoder:
    """The trained autoencoder of an arm."""
    kind = ARMS[arm]
    model = Autoencoder(kind.sparse_input, chosen_k if kind.sparse_code else VARIATIONAL, average)
    model.load_state_dict(tensors_of(pretrained[arm, seed].weights))
    return model.eval()


print(f"{worker_count(len(jobs))} training(s) at a time on {DEVICE}")


def with_spread(values: list[float], digits: int) -> str:
    """Mean over seeds, and their spread where there are several."""
    text = f"{np.mean(values):.{digits}f}"
    return text + (f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else "")


lines = {"average jet (trivial)": {"nats a jet": f"{trivial_nll:.1f}", "KL": "0.0", "probe AUC (validation)": "0.5000"}}  # fmt: skip
for arm in ARMS:
    found = [pretrained[arm, seed] for seed in range(seeds_of[arm])]
    lines[arm] = {
        "nats a jet": with_spread([f.nll for f in found], 1),
        "KL": with_spread([f.kl for f in found], 1),
        "probe AUC (validation)": with_spread([f.probe_auc for f in found], 4),
        "minutes a seed": f"{np.mean([f.history.seconds.sum() for f in found]) / 60:.2f}",
    }
display(pd.DataFrame(lines).T.fillna(""))

# %% [markdown]
# ## 5. What the codes hold
# A jet, the decoder's expectation $\pi_i m_i$ for the VAE and for the sparse autoencoder, and the average jet. Hits of the pixel
# layers far from the jet are noise to any model of $z$: a good one gives their rate.

# %%
shown = unlabelled_validation[:2]
shown_x = towers["unlabelled"].dense(shown)
pictures = {"jet": shown_x}
with torch.inference_mode():
    for arm in MAIN:
        model = autoencoder_of(arm, 0)
        logit, mean = model.decoder(model.encoder(shown_x))
        pictures[f"{arm} autoencoder"] = logit.sigmoid() * mean
pictures["average jet"] = (average.logit.sigmoid() * average.mean).expand(len(shown), -1, -1, -1)
fig, axes = plt.subplots(4, 4, figsize=(11, 10.5))
for line, (jet, channel) in zip(axes, ((0, 0), (0, 3), (1, 3), (1, 5)), strict=True):
    top = float(shown_x[jet, channel].max()) or 1.0
    for axis, (name, stack) in zip(line, pictures.items(), strict=True):
        plotting.heat_image(
            axis, stack[jet, channel].numpy(), f"{name}, {CHANNELS[channel]}", vmin=0, vmax=top
        )
        axis.set(xlabel="", ylabel="")
        axis.title.set_size(9)
axes[-1, 0].set(xlabel="tower (φ)", ylabel="tower (η)")
plt.show()

# %%
fig, axes = plt.subplots(1, 2, figsize=(10, 3.4))
for number, arm in enumerate(ARMS):
    history = pretrained[arm, 0].history
    axes[0].plot(history.epoch, -history.score, ".-", color=plotting.PALETTE[number], label=arm)
axes[0].set(xlabel="epoch", ylabel="loss on validation jets [nats]")
axes[0].xaxis.get_major_locator().set_params(integer=True)
axes[0].legend()
rows = unlabelled_validation[:2000]
codes = {arm: outputs_of(autoencoder_of(arm, 0).encoder, "unlabelled", rows) for arm in MAIN}
vae = autoencoder_of("dense", 0)
with torch.inference_mode():
    parts = [
        kl_to_normal(*vae.posterior(x)) for _, x in towers["unlabelled"].iter_dense(BATCH, rows)
    ]
kl_of_unit = torch.cat(parts).mean(0).numpy()
use_of_unit = (codes["sparse"] > 0).mean(0)
axes[1].bar(np.arange(LATENT), np.sort(kl_of_unit)[::-1], color=plotting.PALETTE[0])
axes[1].set(xlabel="latent of the VAE, sorted", ylabel="KL divergence [nats]")
plt.show()
active_units = int((codes["dense"].var(0) > 0.01).sum())
used = int((use_of_unit > 0).sum())
display(Markdown(
    f"The VAE uses {active_units} of {LATENT} latents (variance of the mean above 0.01). The sparse code has {chosen_k} of {CODE} entries "
    f"active at most ({(codes['sparse'] > 0).sum(1).mean():.1f} on average); {used} of {CODE} are ever active, the busiest for "
    f"{100 * use_of_unit.max():.0f} % of the jets" + (", so that some entries carry everything." if used < CODE / 2 else ".")
))  # fmt: skip

# %% [markdown]
# **What single latents respond to.** For every entry of the sparse code: how often it is active, how well it alone separates
# the labels on validation jets (AUC), and its correlation with the jet's mass and momentum, where the file has them. Below,
# what the decoder adds to an empty code when the entry has its mean active value.


# %%
def responses(code: np.ndarray, rows: np.ndarray) -> pd.DataFrame:
    """One line a latent, from codes (N, K) of labelled jets: activity, AUC, correlations."""
    lines = []
    for number, values in enumerate(code.T):
        line = {"latent": number, "active for": (values != 0).mean(), "AUC alone": 0.5}
        line |= {"mean where active": values[values != 0].mean() if values.any() else 0.0}
        if values.std() > 0:
            line["AUC alone"] = roc_auc(y[rows], values)
        for name, quantity in (("m", dataset.m[rows]), ("pT", dataset.pt[rows])):
            known = np.isfinite(quantity)
            varies = known.sum() > 2 and values[known].std() > 0 and quantity[known].std() > 0
            line[f"correlation with {name}"] = np.corrcoef(values[known], quantity[known])[0, 1] if varies else np.nan  # fmt: skip
        lines.append(line)
    table = pd.DataFrame(lines).set_index("latent")
    return table.loc[(table["AUC alone"] - 0.5).abs().sort_values(ascending=False).index]


code = outputs_of(autoencoder_of("sparse", 0).encoder, "labelled", splits.validation)
table = responses(code, splits.validation)
display(table.head(8).round(3))
best_single = float((table["AUC alone"] - 0.5).abs().max() + 0.5)
probe_value = pretrained["sparse", 0].probe_auc
display(Markdown(f"The best single entry reaches an AUC of {best_single:.3f} on validation jets (the largest of {CODE}, hence "
                 f"optimistic), all entries together {probe_value:.3f} with a linear probe."))  # fmt: skip

# %%
decoder, chosen_units = autoencoder_of("sparse", 0).decoder, table.index[:4]
with torch.inference_mode():
    one_hot = torch.zeros(len(chosen_units) + 1, CODE)
    for line, unit in enumerate(chosen_units):
        one_hot[line + 1, unit] = float(table.loc[unit, "mean where active"])
    logit, mean = decoder(one_hot)
    expected = logit.sigmoid() * mean
added = (expected[1:] - expected[:1]).numpy()
fig, axes = plt.subplots(2, 4, figsize=(11, 5.2))
for axis, image, unit in zip(axes.T, added, chosen_units, strict=True):
    for side, channel in zip(axis, (0, 3), strict=True):
        span = max(float(np.abs(image[channel]).max()), 1e-6)
        plotting.heat_image(
            side,
            image[channel],
            f"latent {unit}: {CHANNELS[channel]}",
            cmap="RdBu_r",
            vmin=-span,
            vmax=span,
        )
        side.set(xlabel="", ylabel="")
axes[-1, 0].set(xlabel="tower (φ)", ylabel="tower (η)")
plt.show()

# %% [markdown]
# ## 6. Fine-tuning and pruning
# **Fine-tuning.** The encoder keeps its weights, gets a head of one hidden layer, and all of it is trained with binary
# cross-entropy on the labelled jets. The same network from random weights, with the same schedule, says what the unlabelled
# jets were worth.
#
# **Structured pruning** removes whole channels: smaller matrices, which every device executes faster. Channels that a
# shortcut adds have to go together; Torch-Pruning traces these groups, and ranks them by the norm of their weights. The
# latents and the head stay. At ratio $p$ each layer keeps $1-p$ of its channels (one at least), hence about $(1-p)^2$ of its
# FLOPs.
#
# - *One-shot*: prune to $p$, then $T$ more epochs.
# - *Iterative*: three times, prune so that $(1-p)^{j/3}$ of the channels are left and train $T/3$ epochs.
# - *Ratio 0* gets the same $T$ epochs: what pruning costs is the distance to *that* network, not to one trained less.
#
# **Unstructured pruning** sets the smallest share of each convolution's weights to zero, and trains $T$ epochs with
# the zeros held. It is the gentler cut, but a dense convolution multiplies by zero as fast as by anything: its honest cost is
# that of the dense network. What it would be if zeros were free is drawn as well, and labelled so.

# %%
ITERATIONS = 3
METHODS = {"dense": ("one-shot", "iterative", "unstructured"), "sparse": ("one-shot", "iterative")}


class Tuned(NamedTuple):
    """A finished classifier; arrays, because they cross processes."""

    history: pd.DataFrame
    weights: dict[str, np.ndarray]
    widths: tuple[int, ...]
    validation_auc: float


def restored(arm: str, tuned: Tuned) -> Classifier:
    """The trained classifier of an arm, in its pruned shape."""
    kind = ARMS[arm]
    model = Classifier(
        Encoder(kind.sparse_input, chosen_k if kind.sparse_code else VARIATIONAL, tuned.widths)
    )
    model.load_state_dict(tensors_of(tuned.weights))
    return model.eval()


# %%
def classify(
    name: str,
    model: Classifier,
    schedule: Schedule,
    seed: int,
    masks: dict[str, torch.Tensor] | None = None,
) -> Tuned:
    """Train a classifier on the labelled jets; the epoch with the best validation AUC is kept."""

    def loss_of(network: nn.Module, x: torch.Tensor, batch: np.ndarray, _: float) -> torch.Tensor:
        target = torch.as_tensor(y[batch], dtype=torch.float32, device=x.device)
        return binary_cross_entropy_with_logits(network(x).float(), target)

    def score_of(network: nn.Module) -> float:
        return roc_auc(y[splits.validation], outputs_of(network, "labelled", splits.validation))

    history = train(
        name, model, towers["labelled"], splits.train, schedule, loss_of, score_of, seed, masks
    )
    return Tuned(history, arrays_of(model), model.encoder.trunk.widths, score_of(model))


def tune(arm: str, seed: int, weights: dict[str, np.ndarray] | None) -> Tuned:
    """Fine-tune the encoder of a trained autoencoder; from random weights where there is none."""
    seed_everything(seed)
    kind = ARMS[arm]
    model = Classifier(Encoder(kind.sparse_input, chosen_k if kind.sparse_code else VARIATIONAL))
    if weights is not None:
        own = {
            k.removeprefix("encoder."): v for k, v in weights.items() if k.startswith("encoder.")
        }
        model.encoder.load_state_dict(tensors_of(own))
    name = f"tune {arm} {seed}{'' if weights else ' scratch'}"
    tuned = classify(name, model, CONFIG.tuning, seed)
    print(
        f"{name}: validation AUC {tuned.validation_auc:.4f}, {tuned.history.seconds.sum():.0f} s",
        flush=True,
    )
    return tuned


# %%
def channel_pruner(
    model: Classifier, ratio: float, steps: int = 1
) -> torch_pruning.pruner.BasePruner:
    """Removes channels of the trunk: each ``step()`` leaves (1 - ratio)^(1 / steps) of those before."""

    def schedule(ratio: float, steps: int) -> list[float]:
        return [1 - (1 - ratio) ** (step / steps) for step in range(steps + 1)]

    encoder = model.encoder
    encoder.trunk.masked = True  # is traced; the rulebook's indices are not
    layers = [m.conv for m in encoder.trunk.modules() if isinstance(m, Layer)]
    ratios = {
        conv: min(ratio, 1 - 1 / conv.out_channels) for conv in layers
    }  # one is left at least
    example = torch.ones(2, N_CHANNELS, GRID, GRID, device=next(model.parameters()).device)
    pruner = torch_pruning.pruner.BasePruner(
        model, example, importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio, pruning_ratio_dict=ratios,
        iterative_steps=steps, iterative_pruning_ratio_scheduler=schedule,
        ignored_layers=[encoder.code, *model.head],
        forward_fn=lambda network, x: network.encoder.code(network.encoder.trunk(x)),
    )  # fmt: skip
    encoder.trunk.masked = False
    return pruner


# %%
def magnitude_masks(model: Classifier, ratio: float) -> dict[str, torch.Tensor]:
    """Zeros for the ``ratio`` smallest weights of every convolution of the trunk, ones for the others."""
    masks = {}
    for name, weight in model.named_parameters():
        if name.endswith("conv.weight"):
            removed = round(ratio * weight.numel())
            order = weight.detach().abs().flatten().argsort()
            mask = torch.ones(weight.numel(), device=weight.device)
            mask[order[:removed]] = 0
            masks[name] = mask.view_as(weight)  # (C' * C * k * k,) -> (C', C, k, k)
    return masks


def prune_and_tune(arm: str, seed: int, method: str, ratio: float, start: Tuned) -> Tuned:
    """Prune a fine-tuned classifier and train it for the extra epochs."""
    seed_everything(seed)
    model, name = restored(arm, start).to(DEVICE), f"{method} {arm} {seed} {ratio}"
    if method == "unstructured":
        masks = magnitude_masks(model, ratio)
        apply_masks(model, masks)
        return classify(name, model, CONFIG.extra, seed, masks)
    if ratio == 0:
        return classify(name, model, CONFIG.extra, seed)
    steps = ITERATIONS if method == "iterative" else 1
    pruner = channel_pruner(model, ratio, steps)
    schedule = replace(CONFIG.extra, epochs=CONFIG.extra.epochs // steps)
    for step in range(steps):
        pruner.step()
        found = classify(f"{name} {step}", model, schedule, seed)
    return found


# %% [markdown]
# **Checked**: a network whose channels were removed gives the same as the original with these channels set to zero, for
# both trunks; and the counted FLOPs go down accordingly.


# %%
def with_channels_zeroed(model: Classifier, kept: dict[str, torch.Tensor]) -> Classifier:
    """All channels but the ``kept`` ones (numbers, by name of the layer) give zero: in place."""
    for name, layer in model.encoder.trunk.named_modules():
        if isinstance(layer, Layer):
            gone = torch.ones(layer.conv.out_channels, dtype=torch.bool)
            gone[kept[name]] = False
            with torch.no_grad():
                layer.norm.weight[gone] = 0
                layer.norm.bias[gone] = 0
    return model


def channels_kept(before: Classifier, after: Classifier) -> dict[str, torch.Tensor]:
    """Which channels a pruning has left, found by the weights of the normalisation (all different)."""
    layers = dict(before.encoder.trunk.named_modules())
    return {
        name: (layers[name].norm.weight.unsqueeze(0) == layer.norm.weight.unsqueeze(1)).nonzero()[
            :, 1
        ]
        for name, layer in after.encoder.trunk.named_modules()
        if isinstance(layer, Layer)
    }


for sparse in (False, True):
    seed_everything(0)
    original, pruned = (Classifier(Encoder(sparse, VARIATIONAL)) for _ in range(2))
    for parameter in original.parameters():
        nn.init.normal_(parameter, std=0.1)
    pruned.load_state_dict(original.state_dict())
    channel_pruner(pruned, 0.5).step()
    flops = [counted_flops(m, probe) for m in (original, pruned)]
    zeroed = with_channels_zeroed(original, channels_kept(original, pruned))
    with torch.no_grad():
        apart = (zeroed.eval()(probe) - pruned.eval()(probe)).abs().max().item()
    assert apart < 1e-4
    print(f"{'on sites' if sparse else 'dense'}: channels {original.encoder.trunk.widths} -> {pruned.encoder.trunk.widths}, "
          f"FLOPs {flops[0] / 1e6:.2f} -> {flops[1] / 1e6:.2f} million, difference {apart:.1e}")  # fmt: skip

# %%
scratch_plan = [("dense", seed) for seed in range(CONFIG.seeds)]
jobs = [(arm, seed, pretrained[arm, seed].weights) for arm, seed in plan]
jobs += [(arm, seed, None) for arm, seed in scratch_plan]
found = side_by_side(tune, jobs)
tuned = dict(zip(plan, found, strict=False))
scratch = {seed: one for (_, seed), one in zip(scratch_plan, found[len(plan) :], strict=True)}

# %%
points = []  # (arm, seed, method, ratio)
for arm in MAIN:
    for seed in range(CONFIG.seeds):
        points += [(arm, seed, "one-shot", ratio) for ratio in CONFIG.ratios]
        points += [(arm, seed, "iterative", ratio) for ratio in CONFIG.ratios if ratio]
        if "unstructured" in METHODS[arm]:
            points += [(arm, seed, "unstructured", ratio) for ratio in CONFIG.unstructured]
points.sort(key=lambda point: (point[0] != "dense", point[2] != "unstructured", point[3]))
jobs = [(*point, tuned[point[:2]]) for point in points]
pruned = dict(zip(points, side_by_side(prune_and_tune, jobs), strict=True))

# %%
fig, axes = plt.subplots(1, 2, figsize=(10, 3.4))
for number, arm in enumerate(ARMS):
    for axis, column in zip(axes, ("loss", "score"), strict=True):
        history = tuned[arm, 0].history
        axis.plot(history.epoch, history[column], ".-", color=plotting.PALETTE[number], label=arm)
for axis, column, label in zip(axes, ("loss", "score"), ("training cross-entropy", "validation AUC"), strict=True):  # fmt: skip
    axis.plot(
        scratch[0].history.epoch,
        scratch[0].history[column],
        ".--",
        color="grey",
        label="dense, from scratch",
    )
    axis.set(xlabel="epoch of fine-tuning", ylabel=label)
    axis.xaxis.get_major_locator().set_params(integer=True)
axes[0].legend()
plt.show()

# %% [markdown]
# **Gradient boosting** on variables of the *pixels*, which no tower has blurred: for each channel the number of active pixels,
# the sum, $p_T^D=\sqrt{\sum v^2}/\sum v$, the width about its centroid, and the share within two circles. The number of leaves is
# chosen on the validation jets.


# %%
def jet_shapes(images: SparseImages, rows: np.ndarray) -> np.ndarray:
    """Six variables of each of the eight channels, (N, 48)."""
    jet, channel, row, column, value = hits_of(images, rows)
    key, n = jet * N_CHANNELS + channel, len(rows) * N_CHANNELS
    total = np.bincount(key, value, n) + 1e-6
    place = [axis * PIXEL for axis in (row, column)]
    d = [axis - (np.bincount(key, value * axis, n) / total)[key] for axis in place]
    radius = np.hypot(*d)
    columns = [
        np.bincount(key, minlength=n), np.log(total), np.sqrt(np.bincount(key, value**2, n)) / total,
        np.bincount(key, value * radius, n) / total,
        *(np.bincount(key, value * (radius < cut), n) / total for cut in (0.1, 0.3)),
    ]  # fmt: skip
    return np.stack(columns, 1).reshape(len(rows), -1)  # (N * 8, 6) -> (N, 48)


shapes = {part: jet_shapes(dataset.images, rows) for part, rows in splits._asdict().items()}
boosted = []
for leaves in (4, 8, 16):
    trees = HistGradientBoostingClassifier(
        max_iter=400, learning_rate=0.05, max_leaf_nodes=leaves, random_state=0,
    )  # fmt: skip
    part = splits.validation
    trees = fit_trees(trees, shapes["train"], y[splits.train], shapes["validation"], y[part], 20)
    boosted.append(
        (roc_auc(y[part], trees.predict_proba(shapes["validation"])[:, 1]), leaves, trees)
    )
validation_auc, leaves, boosting = max(boosted, key=lambda entry: entry[0])
print(
    f"gradient boosting: {boosting.n_iter_} trees of {leaves} leaves, validation AUC {validation_auc:.4f}"
)

# %% [markdown]
# **Costs and the choice**, without the test set. Of the pruned dense networks the recommended one is the cheapest whose mean
# validation AUC lies within 0.01 of the dense network with the same extra training; of the sparse ones likewise, against the
# unpruned sparse one.

# %%
ALLOWED = 0.01  # AUC
curve = list(dict.fromkeys((arm, method, ratio) for arm, _, method, ratio in points))
costs, classifiers = {}, {}
for arm, method, ratio in curve:
    ones = [pruned[arm, seed, method, ratio] for seed in range(CONFIG.seeds)]
    networks = [restored(arm, one) for one in ones]
    classifiers[arm, method, ratio] = networks
    kernels = [p for n, p in networks[0].named_parameters() if n.endswith("conv.weight")]
    kept = sum(int((p != 0).sum()) for p in kernels) / sum(p.numel() for p in kernels)
    with torch.inference_mode():
        ms = milliseconds(lambda network=networks[0]: network(probe)) / len(probe)
    costs[arm, method, ratio] = {
        "flops": float(np.mean([counted_flops(network, probe) for network in networks])),
        "parameters": sum(p.numel() for p in networks[0].parameters()),
        "milliseconds": ms, "weights kept": kept,
        "validation_auc": float(np.mean([one.validation_auc for one in ones])),
    }  # fmt: skip


def start_of(arm: str) -> tuple[str, str, float]:
    """The network of an arm that was not pruned but trained as long."""
    return arm, "one-shot", 0.0


def recommended_of(arm: str) -> tuple[str, str, float]:
    """The cheapest structured point within the allowed loss of validation AUC."""
    least = costs[start_of(arm)]["validation_auc"] - ALLOWED
    good = [p for p in curve if p[0] == arm and p[1] != "unstructured" and costs[p]["validation_auc"] >= least]  # fmt: skip
    return min(good, key=lambda p: (costs[p]["flops"], -costs[p]["validation_auc"]))


recommended = {arm: recommended_of(arm) for arm in MAIN}
print({arm: f"{method}, ratio {ratio}" for arm, (_, method, ratio) in recommended.items()})

# %% [markdown]
# ## 7. Evaluation
# Every choice is made. The test set is scored here, once, by every network.

# %%
test, y_test = splits.test, y[splits.test]
scores = {
    p: [probability(outputs_of(network, "labelled", test)) for network in networks]
    for p, networks in classifiers.items()
}
named = {  # the networks of the table
    "dense": scores[start_of("dense")],
    "dense pruned": scores[recommended["dense"]],
    "sparse": scores[start_of("sparse")],
    "sparse pruned": scores[recommended["sparse"]],
}
for arm in ARMS:
    networks = [restored(arm, tuned[arm, seed]) for seed in range(seeds_of[arm])]
    named[f"{arm}, no extra training"] = [probability(outputs_of(n, "labelled", test)) for n in networks]  # fmt: skip
networks = [restored("dense", one) for one in scratch.values()]
named["scratch"] = [probability(outputs_of(network, "labelled", test)) for network in networks]
named["gradient boosting"] = [boosting.predict_proba(shapes["test"])[:, 1]]
named["constant"] = [np.full(len(test), y[splits.train].mean())]
results = {name: evaluate(CLASSIFIER_METRICS, y_test, found) for name, found in named.items()}


def described(point: tuple[str, str, float]) -> str:
    """A point of the curves in words."""
    arm, method, ratio = point
    return f"{arm} network, {method}, ratio {ratio:g}" if ratio else f"{arm} network, not pruned"


LABELS = {
    "dense": "VAE, fine-tuned, dense, T more epochs",
    "sparse": "sparse autoencoder, fine-tuned, T more epochs",
    "dense, no extra training": "VAE, fine-tuned, dense",
    "sparse, no extra training": "sparse autoencoder, fine-tuned",
    "sparse input, no extra training": "VAE on sites, fine-tuned",
    "sparse code, no extra training": "k-sparse code on dense trunk, fine-tuned",
    "scratch": "dense network from random weights",
    "gradient boosting": "gradient boosting on pixel shapes",
    "constant": "constant (trivial)",
}
labels = LABELS | {f"{arm} pruned": f"recommended: {described(recommended[arm])}" for arm in MAIN}
display(Markdown(
    f"**Test set**, {len(test):,} jets, {dataset.words}. Brackets: 95 % bootstrap interval; ±: spread over seeds. "
    f"The seed of an arm decides pre-training, fine-tuning and pruning."
))  # fmt: skip
columns = ("roc_auc", "accuracy", "background_rejection_50")
display(results_frame({labels[name]: entries for name, entries in results.items()}, columns))

# %% [markdown]
# **Performance and pruning ratio.** All points, with counted FLOPs, parameters and measured time (PyTorch, a batch of up to 64
# jets, from towers to logits; a time also depends on what else the machine does).

# %%
errors = {
    p: evaluate({"roc_auc": roc_auc, "accuracy": accuracy}, y_test, scores[p], n_resamples=300)
    for p in curve
}


def table_line(point: tuple[str, str, float]) -> dict[str, str]:
    """One line of the table of all points."""
    cost, error = costs[point], errors[point]
    auc, correct = error["roc_auc"], error["accuracy"]
    return {
        "network": point[0], "method": point[1] if point[2] else "not pruned", "ratio": f"{point[2]:g}",
        "MFLOPs": f"{cost['flops'] / 1e6:.3f}", "parameters": f"{cost['parameters']:,}", "ms a jet": f"{cost['milliseconds']:.3f}",
        "1 − AUC": f"{1 - auc['value']:.4f} [{1 - auc['high']:.4f}, {1 - auc['low']:.4f}]",
        "classification error": f"{1 - correct['value']:.4f} ± {correct.get('seed_std', 0):.4f}",
    }  # fmt: skip


table = pd.DataFrame([table_line(point) for point in curve])
display(table.set_index(["network", "method", "ratio"]))

# %%
STYLES = {  # (arm, method) -> colour, line, marker
    ("dense", "one-shot"): (0, "-", "o"),
    ("dense", "iterative"): (4, "--", "s"),
    ("dense", "unstructured"): (2, "-", "^"),
    ("sparse", "one-shot"): (1, "-", "D"),
    ("sparse", "iterative"): (5, "--", "v"),
}
ERRORS = {"1 − AUC": roc_auc, "classification error": accuracy}


def line_of(arm: str, method: str) -> list[tuple[str, str, float]]:
    """The points of one line, starting with the network that was not pruned."""
    ratios = [p[2] for p in curve if p[:2] == (arm, method) and p[2]]
    return [start_of(arm)] + [(arm, method, ratio) for ratio in ratios]


def draw_line(
    axis: plt.Axes, x: np.ndarray, line: list, metric: Callable, key: tuple[str, str]
) -> None:
    """Mean error over seeds against ``x`` (one a point), with a band from the lowest to the highest."""
    values = np.array([[1 - metric(y_test, score) for score in scores[p]] for p in line])
    color, style, marker = STYLES[key]
    color = plotting.PALETTE[color]
    axis.plot(x, values.mean(1), style, marker=marker, ms=4.5, color=color, label=" ".join(key))
    axis.fill_between(x, values.min(1), values.max(1), color=color, alpha=0.15, lw=0)
    if key[1] == "one-shot" and axis.get_xscale() == "log":  # the ratios, once an arm
        for point, place, value in zip(line, x, values.mean(1), strict=True):
            axis.annotate(f"{point[2]:g}", (place, value), (0, 6), textcoords="offset points", ha="center", fontsize=7, color=color)  # fmt: skip


fig, axes = plt.subplots(1, 2, figsize=(11.5, 4.6))
for axis, (label, metric) in zip(axes, ERRORS.items(), strict=True):
    axis.set_xscale("log")
    for arm in MAIN:
        for method in METHODS[arm]:
            line = line_of(arm, method)
            draw_line(axis, [costs[p]["flops"] for p in line], line, metric, (arm, method))
    axis.set(xlabel="FLOPs a jet, counted", ylabel=f"{label} on test jets")
line = line_of("dense", "unstructured")
values = [np.mean([1 - roc_auc(y_test, s) for s in scores[p]]) for p in line]
convolutions = counted_flops(classifiers[line[0]][0].encoder.trunk, probe)
linear = costs[line[0]]["flops"] - convolutions
x = [linear + convolutions * costs[p]["weights kept"] for p in line]
axes[0].plot(x, values, "^:", color="grey", ms=3.5, label="unstructured, if zeros were free")
handles, names = axes[0].get_legend_handles_labels()
fig.legend(handles, names, loc="outside lower center", ncols=3)
plt.show()

# %%
fig, axes = plt.subplots(1, 2, figsize=(11.5, 4.2))
for arm in MAIN:
    for method in METHODS[arm]:
        line = line_of(arm, method)
        draw_line(axes[0], [p[2] for p in line], line, roc_auc, (arm, method))
        color, _, marker = STYLES[arm, method]
        axes[1].plot(*np.array([[costs[p]["flops"], costs[p]["milliseconds"]] for p in line]).T, marker, color=plotting.PALETTE[color])  # fmt: skip
axes[0].set(xlabel="pruning ratio (share of channels or weights)", ylabel="1 − AUC on test jets")
axes[1].set(xscale="log", yscale="log", xlabel="FLOPs a jet, counted", ylabel="time a jet [ms], PyTorch, batches")  # fmt: skip
handles, names = axes[0].get_legend_handles_labels()
fig.legend(handles, names, loc="outside lower center", ncols=3)
plt.show()

# %% [markdown]
# The small numbers are the ratios; bands reach from the lowest to the highest seed.
#
# **Comparisons** on the same jets: the paired bootstrap resamples jets for both networks at once (all seeds of both). It does not
# contain the spread between seeds, which stands in the table above.


# %%
def compared(a: list[np.ndarray], b: list[np.ndarray]) -> Difference:
    """AUC of a minus AUC of b."""
    return paired_bootstrap(roc_auc, y_test, a, b)


def verdict(a: str, b: str) -> str:
    """The comparison of two networks as a clause, from the interval and not from the central value."""
    d = differences[a, b]
    word = (
        "better than" if d.low > 0 else "worse than" if d.high < 0 else "not significantly different from"
    )  # fmt: skip
    return (
        f"{word} {labels[b]} ({d.difference:+.4f} AUC, 95 % interval {d.low:+.4f} to {d.high:+.4f})"
    )


PAIRS = (
    ("dense", "dense, no extra training"), ("dense, no extra training", "scratch"), ("dense", "gradient boosting"),
    ("dense pruned", "dense"), ("sparse pruned", "sparse"), ("sparse", "dense"),
    ("sparse input, no extra training", "dense, no extra training"), ("sparse code, no extra training", "dense, no extra training"),
)  # fmt: skip
differences = {(a, b): compared(named[a], named[b]) for a, b in PAIRS}
display(pd.DataFrame([
    {"comparison": f"{labels[a]} − {labels[b]}", "AUC difference": f"{d.difference:+.4f}",
     "95 % interval": f"[{d.low:+.4f}, {d.high:+.4f}]"} for (a, b), d in differences.items()
]).set_index("comparison"))  # fmt: skip

# %% [markdown]
# **Five times fewer FLOPs.** Among the pruned dense networks with at most a fifth of the dense FLOPs the validation jets choose
# one; the test jets say whether it lies within 0.01 of the dense network.

# %%
FACTOR = 5
limit = costs[start_of("dense")]["flops"] / FACTOR
cheap = [p for p in curve if p[0] == "dense" and costs[p]["flops"] <= limit]
at_factor = max(cheap, key=lambda p: costs[p]["validation_auc"]) if cheap else None
bar = "No pruned network reaches a fifth of the FLOPs."
if at_factor:
    d = differences["fifth", "dense"] = compared(scores[at_factor], scores[start_of("dense")])
    reached = (
        "lies within 0.01 AUC of the dense network, with its whole interval" if d.low > -ALLOWED
        else "lies within 0.01 AUC of the dense network by its value, but not with its whole interval" if d.difference > -ALLOWED
        else "loses more than 0.01 AUC, with its whole interval" if d.high < -ALLOWED
        else "loses more than 0.01 AUC by its value, though the interval allows for less"
    )  # fmt: skip
    fewer = costs[start_of("dense")]["flops"] / costs[at_factor]["flops"]
    bar = (f"The network chosen for it ({described(at_factor)}) executes {fewer:.1f} times fewer counted FLOPs and {reached} "
           f"({d.difference:+.4f} AUC, 95 % interval {d.low:+.4f} to {d.high:+.4f}).")  # fmt: skip
display(Markdown(bar))

# %% [markdown]
# **Iterative against one-shot**, at equal ratio and equal training, and **the better front**: every sparse network is
# compared with the dense one that validation prefers among those that cost no more. Of many
# such comparisons one in twenty excludes zero by chance.

# %%
iterative_gain = {
    (arm, ratio): compared(scores[arm, "iterative", ratio], scores[arm, "one-shot", ratio])
    for arm in MAIN for ratio in CONFIG.ratios if ratio
}  # fmt: skip
display(pd.DataFrame([
    {"network": arm, "ratio": f"{ratio:g}", "iterative − one-shot, AUC": f"{d.difference:+.4f}", "95 % interval": f"[{d.low:+.4f}, {d.high:+.4f}]"}
    for (arm, ratio), d in iterative_gain.items()
]).set_index(["network", "ratio"]))  # fmt: skip
front = []
for point in [p for p in curve if p[0] == "sparse"]:
    rivals = [p for p in curve if p[0] == "dense" and costs[p]["flops"] <= costs[point]["flops"]]
    if rivals:
        rival = max(rivals, key=lambda p: costs[p]["validation_auc"])
        front.append((point, rival, compared(scores[point], scores[rival])))
lines = [{"sparse network": described(p), "MFLOPs": f"{costs[p]['flops'] / 1e6:.3f}", "best dense at no more": described(q),
          "its MFLOPs": f"{costs[q]['flops'] / 1e6:.3f}", "AUC difference": f"{d.difference:+.4f}",
          "95 % interval": f"[{d.low:+.4f}, {d.high:+.4f}]"} for p, q, d in front]  # fmt: skip
display(pd.DataFrame(lines))

# %%
wins = [entry for entry in front if entry[2].low > 0]
losses = [entry for entry in front if entry[2].high < 0]
unrivalled = [p for p in curve if p[0] == "sparse" and p not in [entry[0] for entry in front]]
pareto = (f"Of {len(front)} sparse networks with a dense rival of no more FLOPs, {len(wins)} are better with an interval that excludes "
          f"zero, {len(losses)} worse, the others undecided.")  # fmt: skip
if unrivalled:
    pareto += f" {len(unrivalled)} sparse networks are cheaper than any dense one of the curves."
if wins:
    point, rival, d = max(wins, key=lambda entry: entry[2].difference)
    pareto += (f" The largest gain: the {described(point)} is {d.difference:+.4f} AUC [{d.low:+.4f}, {d.high:+.4f}] above the "
               f"{described(rival)}.")  # fmt: skip
else:
    d = differences["sparse input, no extra training", "dense, no extra training"]
    halved = min(
        (p for p in curve if p[0] == "dense" and p[2]), key=lambda p: (p[1] == "unstructured", p[2])
    )
    factor = costs[start_of("dense")]["flops"] / costs[halved]["flops"]
    pareto += (
        f" Where both families reach, a better front of the sparse one is therefore not shown. Two numbers bear on it: to see the sites only "
        f"changes the AUC by {d.difference:+.4f} [{d.low:+.4f}, {d.high:+.4f}] before any pruning, and pruning at ratio {halved[2]:g} alone "
        f"makes the dense network {factor:.1f} times cheaper, sites {costs[start_of('dense')]['flops'] / costs[start_of('sparse')]['flops']:.1f} times."
    )  # fmt: skip
display(Markdown(pareto))

# %% [markdown]
# **Which FLOPs?** Dense, active-site and active-pair FLOPs of the sparse network, and its time on sites against masked: sparse
# execution has to look up its neighbours, and a small network on a CPU feels that.

# %%
kinds, lines = {}, []
for point in (start_of("sparse"), recommended["sparse"], start_of("dense"), recommended["dense"]):
    network, sparse = classifiers[point][0], point[0] == "sparse"
    flops = three_flops(network, probe) if sparse else {"dense": counted_flops(network, probe)}
    line = {f"MFLOPs, {kind}": f"{value / 1e6:.3f}" for kind, value in flops.items()}
    with torch.inference_mode():
        for masked in (False, True) if sparse else (True,):
            network.encoder.trunk.masked = masked
            for size in (1, len(probe)):
                ms = milliseconds(lambda n=network, s=size: n(probe[:s])) / size
                line[f"ms, {'dense' if masked else 'sites'}, batch {size}"] = f"{ms:.3f}"
    network.encoder.trunk.masked = False
    kinds[described(point)] = flops
    lines.append({"network": described(point)} | line)
display(pd.DataFrame(lines).drop_duplicates("network").set_index("network").fillna("").T)

# %%
fig, axes = plt.subplots(1, 3, figsize=(12, 3.8))
shown = ("dense", "dense pruned", "sparse", "gradient boosting")
plotting.roc_curves(axes[0], y_test, {name: named[name][0] for name in shown})
axes[0].legend(fontsize=8, loc="lower right")
plotting.score_distributions(axes[1], y_test, named["dense pruned"][0], CLASSES)
shown = ("dense", "dense pruned", "sparse pruned")
plotting.reliability_diagram(axes[2], y_test, {name: named[name][0] for name in shown}, n_bins=8)
axes[2].legend(fontsize=8)
plt.show()

# %% [markdown]
# ## 8. Weights, metrics
# The ONNX graphs carry everything: official images (8, 125, 125) go in, towers and network are inside, the probability of class 1 comes
# out. `make score TASK=task2c_sparse_vae DATA=file.h5` runs the recommended pruned network on an independent sample;
# `MODEL=dense`, `sparse` and `sparse_pruned` run the others. The sparse networks are exported in masked form: the same
# numbers, at the dense price.


# %%
class RawInput(nn.Module):
    """Official images (B, 8, 125, 125) -> P(class 1) (B,)."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier
        classifier.encoder.trunk.masked = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(towers_of(x)).sigmoid()


def best_seed(point: tuple[str, str, float]) -> int:
    """The seed with the highest validation AUC."""
    return int(np.argmax([pruned[point[0], seed, *point[1:]].validation_auc for seed in range(CONFIG.seeds)]))  # fmt: skip


exports = {"dense": start_of("dense"), "sparse": start_of("sparse"),
           "sparse_pruned": recommended["sparse"], TASK: recommended["dense"]}  # fmt: skip
card = {"task": TASK, "profile": PROFILE, "data": dataset.description, "source": dataset.source}
warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # sizes are constants here
batches = [dataset.images.dense(splits.validation[:n]).numpy() for n in (1, 2, 7)]
batches.append(np.zeros((2, N_CHANNELS, SIZE, SIZE), np.float32))
for name, point in exports.items():
    classifier = classifiers[point][best_seed(point)].cpu()
    save_weights(run.directory / f"{name}.safetensors", classifier, {
        **card, "network": described(point), "widths": classifier.encoder.trunk.widths, "k": classifier.encoder.k,
        "seed": best_seed(point), "validation_roc_auc": f"{pruned[point[0], best_seed(point), *point[1:]].validation_auc:.4f}"})  # fmt: skip
    with torch.no_grad():
        plain = classifier(towers_of(torch.from_numpy(batches[2]))).sigmoid()
    graph, path = RawInput(classifier).eval(), run.directory / f"{name}.onnx"
    export_onnx(graph, torch.from_numpy(batches[1]), path, ["x"], ["probability"],
                {**card, "kind": "binary_classification", "data_source": dataset.source})  # fmt: skip
    apart = check_parity(graph, path, batches)
    session = open_session(path, threads=1)
    apart = max(apart, float(np.abs(session.run(None, {"x": batches[2]})[0] - plain.numpy()).max()))
    assert apart < 1e-3
    ms = milliseconds(lambda s=session: s.run(None, {"x": batches[0]}))
    print(
        f"{path.name}: {described(point)}; largest difference to PyTorch {apart:.1e}; {ms:.2f} ms a jet, images to probability"
    )
for arm in MAIN:
    path = run.directory / f"autoencoder_{arm}.safetensors"
    save_weights(path, autoencoder_of(arm, 0), {**card, "arm": arm, "seed": 0})


# %%
def for_metrics(name: str, **info: object) -> dict:
    """Results of one network, with what is known of it, for metrics.json."""
    info = {"description": labels[name], "seeds": len(named[name]), **info}
    return {**results[name], "info": info}


def cost_of(point: tuple[str, str, float]) -> dict[str, float]:
    """What a point costs, for metrics.json."""
    return {key: value for key, value in costs[point].items() if key != "validation_auc"}


arms = {"sparse_pruned": for_metrics("sparse pruned", **cost_of(recommended["sparse"]))}
arms |= {arm: for_metrics(arm, **cost_of(start_of(arm))) for arm in MAIN}
arms |= {arm.replace(" ", "_"): for_metrics(f"{arm}, no extra training") for arm in ARMS if arm not in MAIN}  # fmt: skip
headline = recommended["dense"]
metrics = run.save_metrics(
    title=f"Task 2c: VAE, fine-tuned and pruned ({described(headline)})",
    data={
        "source": dataset.source, "fingerprint": dataset.fingerprint, "description": dataset.description,
        "unlabelled": len(dataset.unlabelled), **{part: len(rows) for part, rows in splits._asdict().items()},
    },
    published=[f"{TASK}.*", "dense.onnx", "sparse.onnx", "sparse_pruned.onnx"],
    seeds=list(range(CONFIG.seeds)), headline="roc_auc", metrics=results["dense pruned"],
    baselines={name.replace(" ", "_"): for_metrics(name) for name in ("constant", "gradient boosting", "scratch")},
    arms=arms, floors={},
    variants={
        "curve": [{"network": p[0], "method": p[1], "ratio": p[2], **costs[p], **errors[p]} for p in curve],
        "differences": {f"{a} - {b}": d._asdict() for (a, b), d in differences.items()},
        "flops": kinds, "beta": chosen_beta, "k": chosen_k,
        "autoencoders": {f"{arm} {seed}": {"nll": f.nll, "kl": f.kl, "probe_auc": f.probe_auc} for (arm, seed), f in pretrained.items()},
    },
    parameters=costs[headline]["parameters"], flops=round(costs[headline]["flops"]),
)  # fmt: skip
update_results(metrics)

# %% [markdown]
# ## 9. Conclusion, limits, references

# %%
saved = costs[start_of("dense")]["flops"] / costs[headline]["flops"]
faster = costs[start_of("dense")]["milliseconds"] / costs[headline]["milliseconds"]
site_saving = costs[start_of("dense")]["flops"] / costs[start_of("sparse")]["flops"]
site_speed = costs[start_of("dense")]["milliseconds"] / costs[start_of("sparse")]["milliseconds"]
better = [key for key, d in iterative_gain.items() if d.low > 0]
worse = [key for key, d in iterative_gain.items() if d.high < 0]
conclusions = [
    f"Pre-training: {labels['dense, no extra training']} is {verdict('dense, no extra training', 'scratch')}.",
    f"Extra training: {labels['dense']} is {verdict('dense', 'dense, no extra training')}.",
    f"Against trees that see pixels, {labels['dense']} is {verdict('dense', 'gradient boosting')}.",
    f"The pruned dense network that validation recommends ({described(headline)}) takes {saved:.1f} times fewer FLOPs; its time in "
    f"batches is that of the unpruned one divided by {faster:.1f}; it is {verdict('dense pruned', 'dense')}."
    if headline[2] else "Validation recommends none of the pruned dense networks: all lose more than 0.01 AUC there.",
    bar,
    f"Iterative pruning is better than one-shot with an interval that excludes zero in {len(better)} of {len(iterative_gain)} cases, worse in {len(worse)}.",
    f"Sites instead of all towers take {site_saving:.1f} times fewer FLOPs and multiply the time in batches by {1 / site_speed:.2f}; "
    f"the sparse network is {verdict('sparse', 'dense')}. Apart: sparse input alone is "
    f"{verdict('sparse input, no extra training', 'dense, no extra training')}, a sparse code alone "
    f"{verdict('sparse code, no extra training', 'dense, no extra training')}.",
    pareto,
]  # fmt: skip
display(Markdown(f"On {dataset.words}:\n\n" + "\n".join(f"- {line}" for line in conclusions)))

# %% [markdown]
# - The headline is the *pruned* network that the validation jets recommend, as the mean over seeds. Choosing among points by
#   validation AUC favours lucky ones; its test AUC does not.
# - FLOPs of looking up neighbours are none in any counter, yet take time; the measured times contain them. A library of
#   sparse kernels would shift the times, not the counts.
# - Towers, not pixels: a network on the pixels' sites would see the core of the jet in more detail, and would save more, since
#   pixels are emptier than towers. It did not fit a CPU's budget of trainings.
# - Sparse sites drop hits of the pixel layers where neither a track nor a calorimeter tower is found.
# - A number obtained on stand-in jets says how the methods compare on the same jets, not what the official files give;
#   README's table names the best public result on these.
#
# **References.** D. Kingma, M. Welling, *Auto-encoding variational Bayes*, arXiv:1312.6114. I. Higgins et al., *beta-VAE*, ICLR
# 2017. S. Bowman et al., *Generating sentences from a continuous space*, arXiv:1511.06349. A. Makhzani, B. Frey, *k-sparse autoencoders*, arXiv:1312.5663. B. Graham, L. van der Maaten, *Submanifold sparse
# convolutional networks*, arXiv:1706.01307. G. Fang et al., *DepGraph: towards any structural pruning*, arXiv:2301.12900. S. Han et al.,
# *Learning both weights and connections*, arXiv:1506.02626. H. Li et al., *Pruning filters for efficient ConvNets*,
# arXiv:1608.08710. K. He et al., arXiv:1512.03385. L. Smith, N. Topin, arXiv:1708.07120. M. Andrews et al., arXiv:2104.14659.
