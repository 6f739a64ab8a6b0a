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
# # Task 2i: one encoder for jets, shallow heads for everything else
#
# **Task.** Learn an encoder from jets without labels, by self-supervision; map the labelled jets to latent vectors; and
# from these, with heads as shallow as possible, classify the label $y$ and estimate $p_T$ and $m$. Bonus: a mixture of
# experts (variational, contrastive, supervised) and its distillation into one encoder that is better at all three.
#
# **Why this is worth trying.** Labels are expensive in real data, images are not: only one jet in seven of this sample has a
# label. What an encoder learns from images alone (how a shower looks, how many prongs a jet has and how far apart they
# are) serves many questions. A *linear* head then tells how much of an answer is written plainly into the latent
# vector: a deep head could find it by itself and would hide a poor encoder.
#
# **What no encoder can know.** Every channel of every image is scaled so that its largest pixel is 255. The absolute energies
# are gone, and with them the direct way to $p_T$. What is left of it are shares, multiplicities and angles,
# $\Delta R\approx 2m/p_T$: they fix the *ratio* of $m$ and $p_T$ better than either.
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
show_results("task2i_foundation")

# %% [markdown]
# ## 1. Set-up
# Data, the split, metrics, plots and checkpoints come from `e2e_utils`; patches, encoder, losses, gate and the training
# loop are in this notebook.

# %%
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display
from scipy.special import expit, logit
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.manifold import TSNE
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cosine_similarity,
    cross_entropy,
    normalize,
    pad,
    scaled_dot_product_attention,
    silu,
    smooth_l1_loss,
)
from torch.utils.flop_counter import FlopCounterMode

from data.loaders import load_jets8, load_quark_gluon, load_top_mass
from e2e_utils import plotting
from e2e_utils.checkpoints import load_training_state, save_training_state, save_weights
from e2e_utils.evaluation import evaluate
from e2e_utils.machine import make_accelerator, pick_device
from e2e_utils.metrics import (
    bootstrap_interval,
    paired_bootstrap,
    roc_auc,
    root_mean_squared_error,
)
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
# The profiles differ in the number of jets, passes and seeds and in the size of the encoder, never in the method.


# %%
@dataclass(frozen=True)
class Config:
    """Everything that a run needs to be repeated, except the data."""

    epochs: dict[str, int]  # arm -> passes over its jets
    seeds: tuple[int, ...]
    patches: int  # per jet at most
    label_counts: tuple[int, ...]  # of the label-efficiency figure; all of them is added
    transfer_jets: int  # of each other data set, test jets included
    transfer_labels: tuple[int, ...]
    width: int = 64
    depth: int = 3
    latent: int = 64
    batch_size: int = 128
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.03
    shown_jets: int = 600  # of the map of the latent space, and of the generative heads
    gate_steps: int = 300


CONFIGS = {
    "smoke": Config(
        epochs={"masked": 1, "contrastive": 1, "variational": 1, "supervised": 2, "distilled": 1},
        seeds=(0, 1), patches=12, label_counts=(16,), transfer_jets=120, transfer_labels=(32,),
        width=16, depth=1, latent=16, batch_size=32, shown_jets=60, gate_steps=20,
    ),
    "quick": Config(
        epochs={"masked": 2, "contrastive": 2, "variational": 1, "supervised": 10, "distilled": 2},
        seeds=(0, 1), patches=24, label_counts=(60, 240), transfer_jets=1_000,
        transfer_labels=(100, 400), depth=2, shown_jets=300,
    ),
    "standard": Config(
        epochs={"masked": 5, "contrastive": 3, "variational": 2, "supervised": 14, "distilled": 3},
        seeds=(0, 1), patches=36, label_counts=(60, 240, 960), transfer_jets=4_000,
        transfer_labels=(100, 400, 1_600), depth=2, shown_jets=1_500,
    ),
    "full": Config(
        epochs={"masked": 60, "contrastive": 40, "variational": 40, "supervised": 40, "distilled": 40},
        seeds=(0, 1, 2), patches=64, label_counts=(100, 400, 1_600), transfer_jets=30_000,
        transfer_labels=(100, 1_000, 10_000), width=128, depth=6, latent=128, batch_size=512,
        shown_jets=2_000,
    ),
}  # fmt: skip
CONFIG = CONFIGS[PROFILE]
TASK = "task2i_foundation"
DEVICE = pick_device()
EXPERTS = ("masked", "contrastive", "variational", "supervised")
TARGETS = ("y", "m", "pT")

# %%
run = start_run(TASK, PROFILE, DATA_SOURCE)
plotting.set_style()
print(run.summary())

# %% [markdown]
# ## 2. Data
# `load_jets8` reads the official HDF5 files where they are on disk, and otherwise stand-in jets simulated with Pythia 8 and
# a detector model in the same schema (see `data/README.md`). The next line says which of the two this run used. Label 1 is
# taken for boosted tops and 0 for QCD jets, and the channels for those of task 2e with the HCAL and three pixel layers
# added; the official files document neither.

# %%
dataset = load_jets8(DATA_SOURCE, PROFILE, path=DATA)
NAMES = ("QCD", "top")
display(Markdown(f"> **Data of this run:** {dataset.description}"))

# %% [markdown]
# **Split.** The labelled jets are divided as in tasks 2c, 2d and 2g: 64 % train, 16 % validate, 20 % are the test set, which
# nothing sees before section 8. The gate of the mixture must not be fitted to training jets, whose answers the supervised
# expert knows by heart, nor choose what it is judged by: one half of the validation jets is for the gate, the other
# for every choice. Jets without a label have no test set: the labelled ones are it.

# %%
splits = dataset.splits()
half = len(splits.validation) // 2
parts = {"train": splits.train, "gate": splits.validation[:half], "choose": splits.validation[half:],
         "test": splits.test}  # fmt: skip
pd.DataFrame({
    part: {"jets": len(rows), "tops": int(dataset.y[rows].sum()), "mean m [GeV]": round(dataset.m[rows].mean(), 1),
           "mean pT [GeV]": round(dataset.pt[rows].mean(), 1)}
    for part, rows in parts.items()
}).T  # fmt: skip

# %%
CHANNELS = ("track pT", "dz", "d0", "ECAL", "HCAL", "BPIX1", "BPIX2", "BPIX3")
SHOWN = (0, 3, 4, 5)
fig, axes = plt.subplots(2, 4, figsize=(12, 5.6))
for line, label in zip(axes, (0, 1), strict=True):
    frame = dataset.images.dense(splits.train[dataset.y[splits.train] == label][:1])[0].numpy()
    for axis, channel in zip(line, SHOWN, strict=True):
        bar = "0 to 255" if axis is line[-1] else ""
        plotting.event_image(axis, frame[channel], f"{NAMES[label]}: {CHANNELS[channel]}", bar)
        axis.label_outer()
plt.show()

# %%
fig, axes = plt.subplots(1, 3, figsize=(11, 3.2))
y_train, m_train, pt_train = (values[splits.train] for values in (dataset.y, dataset.m, dataset.pt))
plotting.class_histogram(axes[0], m_train, y_train, "$m$ [GeV]", NAMES)
plotting.class_histogram(axes[1], pt_train, y_train, "$p_T$ [GeV]", NAMES)
plotting.class_histogram(axes[2], m_train / pt_train, y_train, "$m/p_T$", NAMES)
plt.show()

# %% [markdown]
# ## 3. From sparse images to patches
# **Patches.** The image is cut into $13\times13$ patches of $10\times10$ pixels, that is $2\times2$ HCAL towers; five empty rows and
# columns are added so that no tower is cut. A transformer's price grows with the number of patches, and most of them
# hold next to nothing: only the *active* ones are kept, up to a cap, by their share of the energy in tracks, ECAL and
# HCAL (an HCAL tower's energy is written into all its 25 pixels and counts once). They are gathered straight from the
# sparse store into a padded batch; no dense image is made.
#
# **What a patch says.** Its 800 pixels as $\ln(1+x)/\ln 256$, and for each channel the logarithms of their sum and of the number of
# active ones, because a sum of logarithms does not tell the logarithm of a sum. Patches beyond the cap are not lost: one
# further token holds the sums and counts of all the rest.

# %%
SIZE, PATCH, TOWER = 125, 10, 5  # pixels a side of image, patch, HCAL tower
GRID = -(-SIZE // PATCH)  # 13 patches a side
PADDING = GRID * PATCH - SIZE
N_CHANNELS, N_PIXELS = 8, PATCH**2
FEATURES = N_CHANNELS * (N_PIXELS + 2)
TOP = 255.0  # value of the largest pixel
# What a pixel counts when patches are chosen; impact parameters and pixel hits only break ties.
IMPORTANCE = (1.0, 1e-3, 1e-3, 1.0, 1 / TOWER**2, 1e-3, 1e-3, 1e-3)


class Hits(NamedTuple):
    """Active pixels of a batch of ``count`` jets, all (n,) but the last."""

    jet: torch.Tensor  # number within the batch
    channel: torch.Tensor
    row: torch.Tensor
    column: torch.Tensor
    value: torch.Tensor  # 0 to 255
    count: int


class Patches(NamedTuple):
    """The most active patches of each jet, the most important first."""

    features: torch.Tensor  # (B, K, 816): 8 x 100 pixels, 8 sums, 8 counts, all logarithmic
    place: torch.Tensor  # (B, K) number of the patch, 0 to 168
    valid: torch.Tensor  # (B, K) bool: false for padding
    rest: torch.Tensor  # (B, 16) sums and counts of all other patches


# %%
def hits_of(stores: Sequence[SparseImages], rows: np.ndarray, device: str = "cpu") -> Hits:
    """Pixels above zero of jets, numbered through all ``stores`` one after the other."""
    first, parts = 0, []
    for store in stores:
        inside = np.flatnonzero((rows >= first) & (rows < first + len(store)))
        if len(inside):
            offsets, index, value = store.events(rows[inside] - first)
            parts.append((np.repeat(inside, np.diff(offsets)), index.astype(np.int64), value))
        first += len(store)
    jet, index, value = (
        torch.from_numpy(np.concatenate(c)).to(device) for c in zip(*parts, strict=True)
    )
    kept = value > 0
    jet, index, value = jet[kept], index[kept], value[kept]
    channel, pixel = index // SIZE**2, index % SIZE**2
    return Hits(jet, channel, pixel // SIZE, pixel % SIZE, value, len(rows))


def level(x: torch.Tensor, top: float = TOP) -> torch.Tensor:
    """ln(1 + x) in units of its value at ``top``."""
    return x.log1p() / float(np.log1p(top))


def tie_breaker(like: torch.Tensor) -> torch.Tensor:
    """Factors (169,) near one that decide between equally important patches, for every library alike."""
    return 1 + 1e-6 * torch.arange(GRID**2, device=like.device, dtype=like.dtype)


# %%
def to_patches(hits: Hits, cap: int, place: torch.Tensor | None = None) -> Patches:
    """Gather the ``cap`` most important patches of each jet, or those at ``place`` (B, cap)."""
    jets, value = hits.count, hits.value
    patch = hits.row // PATCH * GRID + hits.column // PATCH
    inside = hits.row % PATCH * PATCH + hits.column % PATCH
    key = hits.jet * GRID**2 + patch
    worth = value.new_tensor(IMPORTANCE)[hits.channel]
    importance = value.new_zeros(jets * GRID**2).index_add_(0, key, value * worth)
    importance = importance.view(jets, GRID**2) * tie_breaker(value)  # (B, 169)
    if place is None:
        place = importance.topk(cap).indices
    valid = importance.gather(1, place) > 0
    slot = torch.full((jets, GRID**2), cap, device=value.device)  # cap: not among the chosen
    slot.scatter_(1, place, torch.arange(cap, device=value.device).expand_as(place))
    slot = hits.jet * (cap + 1) + slot.flatten()[key]
    pixels = value.new_zeros(jets * (cap + 1) * N_CHANNELS * N_PIXELS)
    pixels[(slot * N_CHANNELS + hits.channel) * N_PIXELS + inside] = level(value)
    group = slot * N_CHANNELS + hits.channel
    sums, counts = (
        value.new_zeros(jets * (cap + 1) * N_CHANNELS).index_add_(0, group, part)
        for part in (value, torch.ones_like(value))
    )
    summary = [level(sums), level(counts, N_PIXELS)]
    parts = [part.view(jets, cap + 1, -1) for part in (pixels, *summary)]  # (B, K + 1, 800 or 8)
    rest = torch.cat([part[:, cap] for part in parts[1:]], 1)
    return Patches(torch.cat(parts, 2)[:, :cap], place, valid, rest)


# %%
def patches_of_images(x: torch.Tensor, cap: int) -> Patches:
    """The same from dense images (B, 8, 125, 125), with operations that ONNX has."""
    x = pad(x.clamp(min=0), (0, PADDING, 0, PADDING))
    x = x.view(-1, N_CHANNELS, GRID, PATCH, GRID, PATCH).permute(0, 2, 4, 1, 3, 5)
    x = x.reshape(-1, GRID**2, N_CHANNELS, N_PIXELS)  # (B, 169, 8, 100)
    sums, counts = x.sum(3), (x > 0).to(x.dtype).sum(3)
    importance = (sums * x.new_tensor(IMPORTANCE)).sum(2) * tie_breaker(x)
    worth, place = importance.topk(cap)
    chosen = x.gather(1, place[:, :, None, None].expand(-1, -1, N_CHANNELS, N_PIXELS))
    at = place.unsqueeze(2).expand(-1, -1, N_CHANNELS)
    summary = [level(sums.gather(1, at)), level(counts.gather(1, at), N_PIXELS)]
    others = torch.ones_like(importance).scatter(1, place, 0.0).unsqueeze(2)
    rest = [level((sums * others).sum(1)), level((counts * others).sum(1), N_PIXELS)]
    features = torch.cat([level(chosen).flatten(2), *summary], 2)
    return Patches(features, place, worth > 0, torch.cat(rest, 1))


def selected(patches: Patches, index: torch.Tensor) -> Patches:
    """The patches numbered ``index`` (B, k) of each jet."""
    at = index.unsqueeze(2).expand(-1, -1, FEATURES)
    return Patches(patches.features.gather(1, at), patches.place.gather(1, index),
                   patches.valid.gather(1, index), patches.rest)  # fmt: skip


# %% [markdown]
# Both ways must agree, and the cap should cost little energy:

# %%
some = splits.train[:64]
gathered = to_patches(hits_of([dataset.images], some), CONFIG.patches)
dense = patches_of_images(dataset.images.dense(some), CONFIG.patches)
largest = max(
    (a.float() - b.float()).abs().max().item() for a, b in zip(gathered, dense, strict=True)
)
assert largest < 1e-3, largest
kept = torch.expm1(gathered.features[:, :, -16:-8] * np.log1p(TOP)).sum((0, 1))
total = dataset.images.dense(some).clamp(min=0).sum((0, 2, 3))
active = torch.bincount(gathered.valid.sum(1)).argmax().item()
print(
    f"largest difference of the two ways {largest:.1e}; most jets have {active} of {CONFIG.patches} patches filled"
)
display(
    pd.DataFrame(
        {"share of the pixel sum in the patches": (kept / total).numpy().round(3)}, index=CHANNELS
    ).T
)

# %% [markdown]
# **Views for contrastive learning.** Two views of a jet should differ in what we do not want to learn, and in nothing else:
#
# - mirror images in $\eta$ and $\varphi$ (for all arms): exact symmetries of what is asked here;
# - shifts of the whole image by one tower: the jet axis is not known better. By *whole* towers, or HCAL towers would be cut;
# - a gain of each readout (channel and tower) within $\pm15\,\%$, of mean one, and 10 % of the readouts dropped: noise;
# - half of the patches, at random. It makes the pairs hard enough, and halves the price.
#
# No scaling of all energies: the images have none left. Nothing is rotated or stretched: distances are the mass.

# %%
GAIN, DROPPED = 0.15, 0.10


def augmented(hits: Hits, generator: torch.Generator, strong: bool) -> Hits:
    """Mirrored at random; if ``strong`` also shifted, with gains per readout, and readouts dropped."""
    jet, channel, row, column, value, count = hits
    draw = partial(torch.rand, generator=generator)
    mirrored = (draw(2, count) < 0.5).to(value.device)
    row = torch.where(mirrored[0, jet], SIZE - 1 - row, row)
    column = torch.where(mirrored[1, jet], SIZE - 1 - column, column)
    if not strong:
        return Hits(jet, channel, row, column, value, count)
    towers = SIZE // TOWER
    readout = (jet * N_CHANNELS + channel) * towers**2 + row // TOWER * towers + column // TOWER
    noise = draw(count * N_CHANNELS * towers**2).to(value.device)[readout]  # below DROPPED: lost
    value = value * (1 + GAIN * (2 * (noise - DROPPED) / (1 - DROPPED) - 1))
    shift = TOWER * torch.randint(-1, 2, (2, count), generator=generator).to(value.device)
    row, column = row + shift[0, jet], column + shift[1, jet]
    kept = (noise >= DROPPED) & (row >= 0) & (row < SIZE) & (column >= 0) & (column < SIZE)
    return Hits(jet[kept], channel[kept], row[kept], column[kept], value[kept], count)


def tower_levels(hits: Hits) -> torch.Tensor:
    """Logarithms of the sums in towers, (B, 8 x 25 x 25): what the variational decoder draws."""
    towers = SIZE // TOWER
    key = (hits.jet * N_CHANNELS + hits.channel) * towers**2
    key = key + hits.row // TOWER * towers + hits.column // TOWER
    sums = hits.value.new_zeros(hits.count * N_CHANNELS * towers**2).index_add_(0, key, hits.value)
    return level(sums.view(hits.count, -1))


# %% [markdown]
# ## 4. One trunk, four ways to train it
# **Trunk.** A small vision transformer (Dosovitskiy et al., arXiv:2010.11929): a linear map of each patch, plus a learned vector for its
# place, pre-normalised attention blocks, and a class token, which here begins as the token of "all the rest". Class token and
# mean of the patches, mapped linearly, are the **latent vector** $z$. All experts have this trunk: they differ in what they
# were asked, not in what they could know.


# %%
class Block(nn.Module):
    """Pre-normalised attention and a small network, each with a shortcut."""

    def __init__(self, width: int, heads: int = 4, ratio: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.network = nn.Sequential(
            nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width)
        )

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        qkv = self.qkv(self.norms[0](x)).unflatten(2, (3, self.heads, -1))  # (B, N, 3, h, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, h, N, d) each
        found = scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(found.transpose(1, 2).flatten(2))  # (B, h, N, d) -> (B, N, h * d)
        return x + self.network(self.norms[1](x))


class Encoder(nn.Module):
    """Patches -> latent vectors (B, latent)."""

    def __init__(self, width: int, depth: int, latent: int) -> None:
        super().__init__()
        self.embed, self.rest = nn.Linear(FEATURES, width), nn.Linear(2 * N_CHANNELS, width)
        self.place = nn.Parameter(0.1 * torch.randn(GRID**2, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm, self.latent = nn.LayerNorm(width), nn.Linear(2 * width, latent)

    def tokens(self, patches: Patches) -> torch.Tensor:
        """Class token and one token a patch, (B, K + 1, width)."""
        x = self.embed(patches.features) + self.place[patches.place]
        x = torch.cat([self.rest(patches.rest).unsqueeze(1), x], 1)
        mask = torch.cat([torch.ones_like(patches.valid[:, :1]), patches.valid], 1)
        for block in self.blocks:
            x = block(x, mask[:, None, None])
        return self.norm(x)

    def forward(self, patches: Patches) -> torch.Tensor:
        x = self.tokens(patches)
        weight = patches.valid.unsqueeze(2).to(x.dtype)
        mean = (x[:, 1:] * weight).sum(1) / weight.sum(1).clamp(min=1)
        return self.latent(torch.cat([x[:, 0], mean], 1))


# %% [markdown]
# **Masked autoencoder** (He et al., arXiv:2111.06377). 60 % of the patches are hidden, the encoder sees the others only, and a
# decoder draws each hidden patch from $z$ *and its place alone*. In the original the decoder attends to
# all visible tokens; here all that is known of them must pass through the latent vector, because the latent vector is what
# the task is about. With $x$ the logarithmic pixels and $s$ the sums and counts of the hidden patches,
# $$\mathcal L_{\mathrm{masked}}=\frac{\sum w\,(\hat x-x)^2}{\sum w}+\frac{1}{16}\big|\hat s-s\big|^2,\qquad w=0.05+x:$$
# energy-weighted, or the empty pixels, 98 % of them, would be all that counts.

# %%
HIDDEN = 0.6  # of the patches
FLOOR = 0.05  # weight of an empty pixel


def masked_loss(found: torch.Tensor, truth: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Energy-weighted squared error of pixels, and of sums and counts; (B, k, 816) twice, (B, k) -> ()."""
    split_at = N_CHANNELS * N_PIXELS
    error, valid = (found - truth).square(), valid.unsqueeze(2).to(found.dtype)
    weight = (FLOOR + truth[..., :split_at]) * valid
    pixels = (weight * error[..., :split_at]).sum() / weight.sum().clamp(min=1e-6)
    summary = (error[..., split_at:] * valid).sum() / (2 * N_CHANNELS * valid.sum()).clamp(min=1)
    return pixels + summary


class MaskedAutoencoder(nn.Module):
    """Encoder of visible patches, decoder of hidden ones from latent vector and place."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.encoder = Encoder(config.width, config.depth, config.latent)
        self.context = nn.Linear(config.latent, 2 * config.width)
        self.place = nn.Parameter(0.1 * torch.randn(GRID**2, 2 * config.width))
        self.hidden = nn.Linear(2 * config.width, 2 * config.width)
        self.draw = nn.Linear(2 * config.width, FEATURES)

    def reconstructed(self, z: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """Features (B, k, 816) of the patches at ``place`` (B, k)."""
        x = silu(self.context(z).unsqueeze(1) + self.place[place])
        return self.draw(silu(self.hidden(x)))

    def forward(self, patches: Patches, noise: torch.Tensor) -> torch.Tensor:
        visible, hidden = divided(patches, noise)
        found = self.reconstructed(self.encoder(visible), hidden.place)
        return masked_loss(found, hidden.features, hidden.valid)


def divided(
    patches: Patches, noise: torch.Tensor, hidden: float = HIDDEN
) -> tuple[Patches, Patches]:
    """Visible and hidden patches, at random by ``noise`` (B, K) in [0, 1); padding counts as hidden."""
    order = (noise + (~patches.valid).to(noise.dtype)).argsort(1)
    count = max(1, round((1 - hidden) * noise.shape[1]))
    return selected(patches, order[:, :count]), selected(patches, order[:, count:])


# %% [markdown]
# **Contrastive** (Chen et al., arXiv:2002.05709; for jets Dillon et al., arXiv:2108.04253). Two views of each jet; a projection $p(z)$ of one must be
# nearer to the other view than to all other jets of the batch. With unit vectors $u_i$ and $j(i)$ the other view of $i$,
# $$\mathcal L_{\mathrm{contrastive}}=-\frac{1}{2B}\sum_i\ln\frac{e^{u_i\cdot u_{j(i)}/\tau}}{\sum_{k\neq i}e^{u_i\cdot u_k/\tau}},\qquad\tau=0.1 .$$
# An encoder that maps all jets to one point has $\ln(2B-1)$: a value to compare with.

# %%
TEMPERATURE = 0.1


def contrastive_loss(
    a: torch.Tensor, b: torch.Tensor, temperature: float = TEMPERATURE
) -> torch.Tensor:
    """Normalised cross-entropy of two views, (B, d) each, of the same jets."""
    u = normalize(torch.cat([a, b]).float(), dim=1)
    similarity = u @ u.T / temperature  # (2B, 2B)
    itself = torch.eye(len(u), dtype=torch.bool, device=u.device)
    return cross_entropy(
        similarity.masked_fill(itself, -torch.inf),
        torch.arange(len(u), device=u.device).roll(len(a)),
    )


class Contrastive(nn.Module):
    """Encoder and projection; only the encoder is kept."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.encoder = Encoder(config.width, config.depth, config.latent)
        self.project = nn.Sequential(
            nn.Linear(config.latent, 2 * config.width), nn.SiLU(), nn.Linear(2 * config.width, config.width)
        )  # fmt: skip

    def forward(self, first: Patches, second: Patches) -> torch.Tensor:
        return contrastive_loss(*(self.project(self.encoder(view)) for view in (first, second)))


# %% [markdown]
# **Variational autoencoder** (Kingma & Welling, arXiv:1312.6114). $z$ is the mean of a normal distribution; a sample of it is decoded to
# the logarithmic sums in all $25\times25$ towers of the eight channels, with the same energy weights, and
# $$\mathcal L_{\mathrm{VAE}}=\frac{\sum w\,(\hat t-t)^2}{\sum w}+\frac{\beta}{2L}\sum_{l=1}^{L}\big(\mu_l^2+\sigma_l^2-1-\ln\sigma_l^2\big).$$
# A small $\beta$: latent vectors are to be read, not sampled from.

# %%
BETA = 1e-3


def kl_divergence(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """Mean over batch and components of KL(N(mean, variance) || N(0, 1)) in nats; (B, L) twice -> ()."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()


def weighted_error(found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Squared error with weights 0.05 + truth."""
    weight = FLOOR + truth
    return (weight * (found - truth).square()).sum() / weight.sum()


class Variational(nn.Module):
    """Encoder of means, a layer for variances, decoder to towers."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.encoder = Encoder(config.width, config.depth, config.latent)
        self.log_variance = nn.Linear(config.latent, config.latent)
        nn.init.zeros_(self.log_variance.weight)
        nn.init.constant_(self.log_variance.bias, -3.0)
        self.decoder = nn.Sequential(
            nn.Linear(config.latent, 4 * config.width), nn.SiLU(),
            nn.Linear(4 * config.width, N_CHANNELS * (SIZE // TOWER) ** 2),
        )  # fmt: skip

    def forward(self, patches: Patches, towers: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        mean = self.encoder(patches)
        log_variance = self.log_variance(mean).clamp(-10, 5)
        sample = mean + noise[:, : mean.shape[1]] * (log_variance / 2).exp()
        return weighted_error(self.decoder(sample), towers) + BETA * kl_divergence(
            mean, log_variance
        )


# %% [markdown]
# **Supervised.** A linear layer gives the logit of $y$, and $m$ and $p_T$ in units of their spread. Cross-entropy plus two
# Huber losses: $p_T$ has a long tail, and single jets should not rule a step. This network from random weights is also the
# reference of all others: what the labels alone can teach.


# %%
def task_loss(found: torch.Tensor, truth: torch.Tensor, robust: bool = True) -> torch.Tensor:
    """Cross-entropy of y plus errors of scaled m and pT, (B, 3) twice -> (); NaN in ``truth``: not known."""
    known = truth.isfinite()
    truth = torch.where(known, truth, 0.0)
    error = (
        smooth_l1_loss(found, truth, reduction="none") * 2 if robust else (found - truth).square()
    )
    first = binary_cross_entropy_with_logits(found[:, 0], truth[:, 0], reduction="none")
    terms = torch.cat([first.unsqueeze(1), error[:, 1:]], 1) * known
    return (terms.sum(0) / known.sum(0).clamp(min=1)).sum()


class Supervised(nn.Module):
    """Encoder and one linear layer for the three targets."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.encoder = Encoder(config.width, config.depth, config.latent)
        self.drop, self.answer = nn.Dropout(0.1), nn.Linear(config.latent, len(TARGETS))

    def forward(self, patches: Patches, truth: torch.Tensor) -> torch.Tensor:
        return task_loss(self.answer(self.drop(self.encoder(patches))), truth)


# %% [markdown]
# **Distilled**, the student of section 7, has the same trunk again. It answers the three questions where the label is known, imitates
# the mixture's answers $t$ on *all* jets, softened by a temperature $T=2$ (Hinton et al., arXiv:1503.02531), and, through one linear adaptor per
# teacher $A_k$, the standardised latent vectors $z_k$ of all experts (as in Ranzinger et al., arXiv:2312.06709):
# $$\mathcal L=\mathcal L_{\mathrm{task}}+T^2\,\mathrm{CE}\big(\sigma(t_y/T),\sigma(a_y/T)\big)+H(a_m-t_m)+H(a_{p_T}-t_{p_T})+\frac1K\sum_k\big[1-\cos(A_kz,z_k)+H(A_kz-z_k)\big].$$
# Six jets in seven have no label: on these the mixture is the only teacher.

# %%
SOFTNESS = 2.0


def imitation_loss(
    found: torch.Tensor, opinion: torch.Tensor, softness: float = SOFTNESS
) -> torch.Tensor:
    """Soft cross-entropy of logits, Huber losses of scaled m and pT; (B, 3) twice -> ()."""
    target = (opinion[:, 0] / softness).sigmoid()
    soft = softness**2 * binary_cross_entropy_with_logits(found[:, 0] / softness, target)
    return soft + 2 * len(TARGETS[1:]) * smooth_l1_loss(found[:, 1:], opinion[:, 1:])


def feature_loss(found: torch.Tensor, latents: torch.Tensor, teachers: int) -> torch.Tensor:
    """1 - cosine plus Huber loss, mean over teachers; (B, teachers x L) twice -> ()."""
    found, latents = (x.unflatten(1, (teachers, -1)) for x in (found, latents))  # (B, K, L)
    return (1 - cosine_similarity(found, latents, dim=2)).mean() + smooth_l1_loss(found, latents)


class Distilled(nn.Module):
    """Encoder, linear answers, one adaptor a teacher."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.encoder = Encoder(config.width, config.depth, config.latent)
        self.answer = nn.Linear(config.latent, len(TARGETS))
        self.adaptors = nn.Linear(config.latent, len(EXPERTS) * config.latent)

    def forward(
        self, patches: Patches, truth: torch.Tensor, opinion: torch.Tensor, latents: torch.Tensor
    ) -> torch.Tensor:
        z = self.encoder(patches)
        answer, features = self.answer(z), feature_loss(self.adaptors(z), latents, len(EXPERTS))
        return task_loss(answer, truth) + imitation_loss(answer, opinion) + features


ARMS = {"masked": MaskedAutoencoder, "contrastive": Contrastive, "variational": Variational,
        "supervised": Supervised, "distilled": Distilled}  # fmt: skip


def count(module: nn.Module) -> int:
    """Parameters."""
    return sum(p.numel() for p in module.parameters())


# %%
seed_everything(0)
encoder = Encoder(CONFIG.width, CONFIG.depth, CONFIG.latent).eval()
assert encoder(gathered).shape == (len(some), CONFIG.latent)
one = to_patches(hits_of([dataset.images], some[:1]), CONFIG.patches)
with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
    encoder(one)  # the fused attention of a CPU would not be counted
parameters, flops = count(encoder), counter.get_total_flops()  # 2 FLOPs a multiply-add, counted
print(f"encoder: {parameters:,} parameters, {flops / 1e6:.1f} MFLOPs a jet")
print("parameters in training:", {arm: count(build(CONFIG)) for arm, build in ARMS.items()})

# %% [markdown]
# ## 5. Training
# One loop for all arms. AdamW with a one-cycle schedule (Smith & Topin, arXiv:1708.07120); the epoch with the lowest loss on the
# "choose" jets is kept, for a self-supervised arm its own loss on their images. The order of the batches and all noise
# depend on seed and epoch only, and the full state is saved after every epoch: an interrupted run continues where it stopped.


# %%
class Sample(NamedTuple):
    """Jets of one data set, numbered through all stores, and what is known of them."""

    stores: tuple[SparseImages, ...]
    truth: np.ndarray  # (N, 3) float32: y, scaled m, scaled pT; NaN where not known
    free: np.ndarray  # rows of jets without labels
    train: np.ndarray  # rows with labels
    check: np.ndarray  # rows for choices


@dataclass(frozen=True)
class Job:
    """One training: what to build, on which jets, for how long."""

    arm: str
    seed: int
    epochs: int
    sample: str = "jets"
    labels: int = 0  # training jets with a label; 0: all
    start: str = ""  # key of ``starts``: weights of an encoder to begin with

    @property
    def name(self) -> str:
        text = f"{self.arm} {self.seed} {self.epochs} {self.sample} {self.labels or 'all'} {self.start}"
        return "".join(c if c.isalnum() else "-" for c in text.strip())

    def rows(self) -> np.ndarray:
        """Training jets: those without labels for self-supervision, with for answers, both to distil."""
        sample = samples[self.sample]
        labelled = sample.train[: self.labels or None]
        if self.arm == "distilled":
            return np.concatenate([sample.free, labelled])
        return labelled if self.arm == "supervised" else sample.free


# %%
def inputs_of(
    job: Job, rows: np.ndarray, generator: torch.Generator, device: str | torch.device, training: bool = True
) -> tuple:  # fmt: skip
    """What the module of a job takes: views of the jets made on ``device``, and targets."""
    sample, cap = samples[job.sample], CONFIG.patches
    hits = hits_of(sample.stores, rows, device)

    def noise() -> torch.Tensor:
        return torch.rand(len(rows), cap, generator=generator).to(device)

    if job.arm == "contrastive":
        views = (to_patches(augmented(hits, generator, strong=True), cap) for _ in range(2))
        return tuple(divided(view, noise(), hidden=0.5)[0] for view in views)
    hits = augmented(hits, generator, strong=False) if training else hits
    patches = to_patches(hits, cap)
    if job.arm == "masked":
        return patches, noise()
    if job.arm == "variational":
        normal = torch.randn(len(rows), CONFIG.latent, generator=generator).to(device)
        return patches, tower_levels(hits), normal
    truth = torch.from_numpy(sample.truth[rows]).to(device)
    if job.arm == "supervised":
        return patches, truth
    return patches, truth, *(torch.from_numpy(part[rows]).to(device) for part in teachers[job.seed])


# %%
class BestWeights:
    """The weights of the epoch with the lowest loss."""

    def __init__(self) -> None:
        self.loss, self.weights = np.inf, {}

    def update(self, loss: float, model: nn.Module) -> None:
        if loss < self.loss:
            self.loss = loss
            self.weights = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}

    def state_dict(self) -> dict:
        return {"loss": self.loss, "weights": self.weights}

    def load_state_dict(self, state: dict) -> None:
        self.loss, self.weights = state["loss"], state["weights"]


def in_chunks(rows: np.ndarray, size: int = 256) -> list[np.ndarray]:
    """Consecutive parts of at most ``size`` rows."""
    return [rows[k : k + size] for k in range(0, len(rows), size)]


@torch.no_grad()
def validation_loss(job: Job, model: nn.Module, device: torch.device) -> float:
    """Loss on the jets for choices, with the same noise after every epoch."""
    generator, chunks = torch_generator(job.seed, 2**31), in_chunks(samples[job.sample].check)
    model.eval()
    inputs = (inputs_of(job, part, generator, device, training=False) for part in chunks)
    return float(np.average([model(*x).item() for x in inputs], weights=[*map(len, chunks)]))


# %%
def train(job: Job, model: nn.Module) -> pd.DataFrame:
    """Train ``model`` in place; returns the history, one line an epoch, with the seconds in ``attrs``."""
    accelerator = make_accelerator(("bf16",))
    world, started, rows = accelerator.num_processes, time.monotonic(), job.rows()
    batch = CONFIG.batch_size // 4 if job.arm == "supervised" else CONFIG.batch_size
    batch = max(2, min(batch, len(rows) // (2 * world)))
    steps = len(rows) // (batch * world)
    rate = CONFIG.learning_rate / (3 if job.start else 1)
    optimizer = torch.optim.AdamW(
        model.parameters(), rate, weight_decay=CONFIG.weight_decay, fused=True
    )
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=job.epochs * steps, pct_start=0.2
    )
    model, best = model.to(accelerator.device), BestWeights()
    network, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(cycle, best)
    state = run.directory / "state" / job.name
    extra = load_training_state(accelerator, state) or {"history": [], "seconds": 0.0}
    history, earlier = extra["history"], extra["seconds"]
    seconds = earlier
    for epoch in range(len(history), job.epochs):
        generator, total = torch_generator(job.seed, epoch), 0.0
        network.train()
        for part in epoch_batches(rows, batch, job.seed, epoch, accelerator.process_index, world):
            inputs = inputs_of(job, part, generator, accelerator.device)
            with accelerator.autocast():
                loss = network(*inputs)
            optimizer.zero_grad()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            cycle.step()
            total += loss.detach()
        check = validation_loss(job, model, accelerator.device)
        history.append(
            {"epoch": epoch + 1, "train_loss": float(total) / steps, "validation_loss": check}
        )
        best.update(check, model)
        seconds = earlier + time.monotonic() - started
        save_training_state(accelerator, state, {"history": history, "seconds": seconds})
    model.load_state_dict(best.weights)
    print(f"{job.name}: loss {best.loss:.4f} after {seconds:.0f} s", flush=True)
    frame = pd.DataFrame(history)
    frame.attrs["seconds"] = seconds
    return frame


# %%
def run_job(job: Job) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Train a job: its history, and its weights as arrays."""
    seed_everything(job.seed)
    model = ARMS[job.arm](CONFIG)
    if job.start:
        model.encoder.load_state_dict({k: torch.as_tensor(v) for k, v in starts[job.start].items()})
    history = train(job, model)
    return history, {k: v.cpu().numpy() for k, v in model.state_dict().items()}


COST = {"masked": 1.0, "contrastive": 2.0, "variational": 1.5, "supervised": 1.5, "distilled": 1.7}


def run_jobs(jobs: list[Job]) -> dict[Job, tuple]:
    """Train all jobs side by side, the dearest first: job -> (history, weights)."""
    jobs = sorted(jobs, key=lambda job: -COST[job.arm] * job.epochs * len(job.rows()))
    return dict(zip(jobs, side_by_side(run_job, [(job,) for job in jobs]), strict=True))


def restored(job: Job, weights: dict[str, np.ndarray]) -> nn.Module:
    """The trained module of a job."""
    model = ARMS[job.arm](CONFIG)
    model.load_state_dict({k: torch.as_tensor(v) for k, v in weights.items()})
    return model.eval()


# %%
def scaled_truth(y: np.ndarray, m: np.ndarray, pt: np.ndarray, scales: dict) -> np.ndarray:
    """y, and m and pT in units of the training jets' spread about their mean: (N, 3) float32."""
    pairs = zip((m, pt), scales.values(), strict=True)
    numbers = [(values - mean) / spread for values, (mean, spread) in pairs]
    return np.stack([y, *numbers], 1).astype(np.float32)


def scale_of(values: np.ndarray) -> tuple[float, float]:
    """Mean and spread."""
    return float(values.mean()), float(values.std())


n_free = len(dataset.unlabelled)  # number of the first labelled jet
scales = {"m": scale_of(m_train), "pT": scale_of(pt_train)}
unknown = np.full((n_free, len(TARGETS)), np.nan, np.float32)
truth = np.concatenate([unknown, scaled_truth(dataset.y, dataset.m, dataset.pt, scales)])
rows_of = {part: n_free + rows for part, rows in parts.items()}
stores = dataset.unlabelled, dataset.images
free = np.arange(n_free)
samples = {"jets": Sample(stores, truth, free, rows_of["train"], rows_of["choose"])}

# %% [markdown]
# Before minutes are spent: each arm must be able to learn one batch by heart, and the contrastive loss must leave the
# value of a collapsed encoder behind.


# %%
def overfit_one_batch(arm: str, steps: int = 60) -> tuple[float, float]:
    """Loss before and after ``steps`` updates on the same 32 jets with the same noise."""
    seed_everything(0)
    model = ARMS[arm](CONFIG).eval()  # without dropout
    job = Job(arm, 0, 1)
    inputs = inputs_of(job, job.rows()[:32], torch_generator(0, 0), "cpu", training=False)
    optimizer, losses = torch.optim.AdamW(model.parameters(), 2e-3), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(*inputs)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


for arm in EXPERTS:
    before, after = overfit_one_batch(arm, 10 if PROFILE == "smoke" else 40)
    print(f"{arm}: {before:.3f} -> {after:.3f}")

# %%
jobs = {(arm, seed): Job(arm, seed, CONFIG.epochs[arm]) for arm in EXPERTS for seed in CONFIG.seeds}
trained = run_jobs(list(jobs.values()))
modules = {key: restored(job, trained[job][1]) for key, job in jobs.items()}

# %%
fig, axes = plt.subplots(1, len(EXPERTS), figsize=(12, 3.1))
for axis, arm in zip(axes, EXPERTS, strict=True):
    curves = [trained[jobs[arm, seed]][0] for seed in CONFIG.seeds]
    plotting.learning_curves(axis, curves, "loss", choose="loss")
    axis.set_title(arm)
plt.show()

# %% [markdown]
# The loss of training is that of augmented views with dropout, and of an epoch's average: it may well be above the validation loss.
#
# ## 6. Latent vectors and shallow heads
# Latent vectors of all jets are computed once; the encoders are frozen from here on. Two heads, each for all three targets:
#
# - **linear**: logistic regression for $y$, ridge regression for $m$ and $p_T$;
# - **one hidden layer** of 64 units: what is in the latent vector, but not written plainly.
#
# Regularisation and number of steps are chosen on the "choose" jets. Where one head must stand for an encoder, it is the one of
# higher *skill* there: the mean over the three targets of the share of the loss of knowing nothing that is explained,
# $1-\mathrm{CE}/\ln2$ for $y$ and $1-\mathrm{MSE}/\mathrm{variance}$ for $m$ and $p_T$.


# %%
@torch.inference_mode()
def latents_of(encoder: nn.Module, stores: Sequence[SparseImages], rows: np.ndarray) -> np.ndarray:
    """Latent vectors (len(rows), L) of jets as they are, without augmentation."""
    encoder = encoder.eval().to(DEVICE)
    found = [
        encoder(to_patches(hits_of(stores, part, DEVICE), CONFIG.patches)).float().cpu()
        for part in in_chunks(rows)
    ]
    encoder.cpu()
    return torch.cat(found).numpy()


class Known(NamedTuple):
    """What a shallow model is fitted to, and what its settings are chosen by."""

    x: np.ndarray  # (N, F)
    truth: np.ndarray  # (N, 3), NaN where not known
    x_check: np.ndarray
    truth_check: np.ndarray


class Heads(nn.Module):
    """Latent vectors (B, L) -> logit of y, scaled m, scaled pT (B, 3); linear, or with one hidden layer."""

    def __init__(self, z: np.ndarray, hidden: int = 0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(z.mean(0)))
        self.register_buffer("spread", torch.as_tensor(z.std(0) + 1e-6))
        sizes = (z.shape[1], len(TARGETS))
        self.network = nn.Linear(*sizes)
        if hidden:
            first, last = nn.Linear(sizes[0], hidden), nn.Linear(hidden, sizes[1])
            self.network = nn.Sequential(first, nn.SiLU(), nn.Dropout(0.2), last)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.network((z - self.mean) / self.spread)


def skill(found: np.ndarray, truth: np.ndarray) -> float:
    """Mean over the known targets of 1 - loss / loss of knowing nothing; (N, 3) twice."""
    found, truth = torch.as_tensor(found), torch.as_tensor(truth)
    y_loss = binary_cross_entropy_with_logits(found[:, 0], truth[:, 0]) / np.log(2)
    losses = torch.stack([y_loss, *(found[:, 1:] - truth[:, 1:]).square().mean(0)])
    return float(1 - losses[losses.isfinite()].mean())


# %%
PENALTIES = (1e-1, 1.0, 1e1, 1e2, 1e3)


def linear_heads(known: Known) -> Heads:
    """Logistic and ridge regression, each with the penalty that the check jets prefer; else zero."""
    heads = Heads(known.x)
    x, x_check = ((z - heads.mean.numpy()) / heads.spread.numpy() for z in (known.x, known.x_check))
    nn.init.zeros_(heads.network.weight), nn.init.zeros_(heads.network.bias)
    for target in np.flatnonzero(np.isfinite(known.truth).all(0)):
        loss = nn.MSELoss() if target else nn.BCEWithLogitsLoss()
        wanted, fits = torch.as_tensor(known.truth_check[:, target]).double(), []
        for penalty in PENALTIES:
            model = Ridge(penalty) if target else LogisticRegression(C=1 / penalty, max_iter=500)
            model.fit(x, known.truth[:, target])
            weight, bias = model.coef_.reshape(-1), float(np.ravel(model.intercept_)[0])
            found = torch.as_tensor(x_check @ weight + bias).double()
            fits.append((loss(found, wanted).item(), weight, bias))
        _, weight, bias = min(fits, key=lambda fit: fit[0])
        with torch.no_grad():
            heads.network.weight[target], heads.network.bias[target] = torch.as_tensor(weight), bias
    return heads.eval()


# %%
def hidden_heads(known: Known, steps: int = 300) -> Heads:
    """One hidden layer for all targets, stopped where the loss on the check jets is lowest."""
    seed_everything(0)
    heads, best = Heads(known.x, hidden=64), BestWeights()
    x, truth, x_check, truth_check = map(torch.as_tensor, known)
    optimizer = torch.optim.AdamW(heads.parameters(), 3e-3, weight_decay=0.02)
    for step in range(steps):
        batch = torch.randint(len(x), (min(512, len(x)),), generator=torch_generator(0, step))
        optimizer.zero_grad()
        task_loss(heads.train()(x[batch]), truth[batch], robust=False).backward()
        optimizer.step()
        if step % 10 == 9:
            with torch.no_grad():
                found = heads.eval()(x_check)
            best.update(task_loss(found, truth_check, robust=False).item(), heads)
    heads.load_state_dict(best.weights)
    return heads.eval()


HEADS = {"linear": linear_heads, "one hidden layer": hidden_heads}


@torch.inference_mode()
def answers(heads: Heads, z: np.ndarray) -> np.ndarray:
    """Logit, scaled m, scaled pT: (N, 3)."""
    return heads(torch.as_tensor(z)).numpy()


# %%
def encoded(encoder: nn.Module) -> dict[str, np.ndarray]:
    """Latent vectors of the labelled jets, by part."""
    return {part: latents_of(encoder, stores, rows) for part, rows in rows_of.items()}


def known_of(x: dict[str, np.ndarray]) -> Known:
    """Inputs by part, with the truths."""
    return Known(x["train"], truth[rows_of["train"]], x["choose"], truth[rows_of["choose"]])


def fitted_heads(z: dict[str, np.ndarray]) -> dict[str, Heads]:
    """Heads of both kinds on the latent vectors of training jets."""
    return {kind: fit(known_of(z)) for kind, fit in HEADS.items()}


def skill_on(heads: Heads, z: dict[str, np.ndarray]) -> float:
    """Skill of heads on the jets for choices."""
    return skill(answers(heads, z["choose"]), truth[rows_of["choose"]])


def better_kind(heads: dict[str, Heads], z: dict[str, np.ndarray]) -> str:
    """The kind of head with the higher skill on the jets for choices."""
    return max(heads, key=lambda kind: skill_on(heads[kind], z))


# %%
latents = {key: encoded(module.encoder) for key, module in modules.items()}
heads = {key: fitted_heads(z) for key, z in latents.items()}
chosen = {key: better_kind(heads[key], latents[key]) for key in latents}
lines = {
    f"{arm}, seed {seed}": {kind: round(skill_on(h, latents[arm, seed]), 4) for kind, h in both.items()}
    | {"chosen": chosen[arm, seed]}
    for (arm, seed), both in heads.items()
}  # fmt: skip
pd.DataFrame(lines).T

# %% [markdown]
# **What networks have to beat.** The mean of the training jets (trivial), and gradient boosting on simple shapes of each channel:
# sum and number of its pixels, $\sqrt{\sum v^2}/\sum v$, width, and the axes of its second moment about the middle of the calorimeter energy. The
# number of trees is chosen on the "choose" jets.


# %%
def simple_shapes(stores: Sequence[SparseImages], rows: np.ndarray) -> np.ndarray:
    """Six shapes of each of the eight channels, (len(rows), 48)."""
    if len(rows) > 500:
        return np.concatenate([simple_shapes(stores, part) for part in in_chunks(rows, 500)])
    hits = hits_of(stores, rows)
    group, groups = hits.jet * N_CHANNELS + hits.channel, hits.count * N_CHANNELS

    def total(weight: torch.Tensor, key: torch.Tensor = group, size: int = groups) -> torch.Tensor:
        return torch.zeros(size).index_add_(0, key, weight)

    energy = hits.value * ((hits.channel == 3) | (hits.channel == 4))
    scale = total(energy, hits.jet, hits.count).clamp(min=1e-3)
    place = [
        axis.float() - (total(energy * axis, hits.jet, hits.count) / scale)[hits.jet]
        for axis in (hits.row, hits.column)
    ]
    sums = total(hits.value).clamp(min=1e-3)
    xx, yy, xy = (
        total(hits.value * place[a] * place[b]) / sums for a, b in ((0, 0), (1, 1), (0, 1))
    )
    root = ((xx - yy).square() / 4 + xy.square()).sqrt()
    width = total(hits.value * torch.hypot(*place)) / sums
    shapes = [sums.log(), total(torch.ones_like(hits.value)), total(hits.value.square()).sqrt() / sums,
              width, (xx + yy) / 2 + root, (xx + yy) / 2 - root]  # fmt: skip
    return torch.stack(shapes, 1).view(hits.count, -1).numpy()  # (B * 8, 6) -> (B, 48)


# %%
TREES = {"max_iter": 200, "learning_rate": 0.05, "early_stopping": False, "random_state": 0}


class Boosted:
    """Gradient boosting of each known target, with the number of trees that the check jets prefer."""

    def __init__(self, known: Known) -> None:
        self.models = {}
        for target in np.flatnonzero(np.isfinite(known.truth).all(0)):
            kind = HistGradientBoostingRegressor if target else HistGradientBoostingClassifier
            model = kind(**TREES).fit(known.x, known.truth[:, target])
            wanted = known.truth_check[:, target]
            losses = [np.square(p - wanted).mean() for p in self._stages(model, known.x_check)]
            self.models[int(target)] = model, int(np.argmin(losses))

    @staticmethod
    def _stages(model, x: np.ndarray) -> Iterator[np.ndarray]:
        """Probability or value after each tree, (N,)."""
        if hasattr(model, "classes_"):
            return (p[:, 1] for p in model.staged_predict_proba(x))
        return model.staged_predict(x)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Logit of y, scaled m, scaled pT (N, 3); zero where not known."""
        found = np.zeros((len(x), len(TARGETS)))
        for target, (model, stage) in self.models.items():
            found[:, target] = next(islice(self._stages(model, x), stage, None))
            if target == 0:
                found[:, 0] = logit(found[:, 0].clip(1e-6, 1 - 1e-6))
        return found


shapes = {part: simple_shapes(stores, rows) for part, rows in rows_of.items()}
boosting = Boosted(known_of(shapes))

# %% [markdown]
# ## 7. Mixture of experts, and one encoder in its place
# **Gate** (Jacobs et al. 1991; one gate a task as in Ma et al. 2018). Each expert $k$ has an opinion $o_{kt}$ on each target $t$, that of its
# head. The mixture answers
# $$a_t=\sum_kg_{kt}\,o_{kt},\qquad g_{kt}=\frac{e^{(Wo+b)_{kt}}}{\sum_{k'}e^{(Wo+b)_{k't}}}.$$
# The gate sees all opinions on a jet, and not its image: some hundred jets are there to learn from. It begins as the plain
# mean, and is stopped on the "choose" jets. Beside it: the plain mean, and weights that are the same for all jets ($W=0$). The
# best of the three on the "choose" jets becomes the teacher.


# %%
class Gate(nn.Module):
    """Opinions (B, K, 3) -> weights (B, K, 3), of sum one over the experts; equal to begin with."""

    def __init__(self, experts: int, adaptive: bool = True) -> None:
        super().__init__()
        self.adaptive = adaptive
        self.linear = nn.Linear(experts * len(TARGETS), experts * len(TARGETS))
        nn.init.zeros_(self.linear.weight), nn.init.zeros_(self.linear.bias)

    def forward(self, opinions: torch.Tensor) -> torch.Tensor:
        seen = opinions.clamp(-4, 4) if self.adaptive else torch.zeros_like(opinions)
        return self.linear(seen.flatten(1)).view_as(opinions).softmax(1)  # (B, K * 3) -> (B, K, 3)

    def answer(self, opinions: torch.Tensor) -> torch.Tensor:
        """The mixture's answers (B, 3)."""
        return (self(opinions) * opinions).sum(1)


def fit_gate(known: Known, adaptive: bool, steps: int) -> Gate:
    """Gate with the lowest loss on the check jets along the steps, of which the first is the plain mean."""
    opinions, truth, opinions_check, truth_check = map(torch.as_tensor, known)
    gate, best = Gate(opinions.shape[1], adaptive), BestWeights()
    optimizer = torch.optim.AdamW(gate.parameters(), 0.02, weight_decay=0.1)
    for _ in range(steps + 1):
        with torch.no_grad():
            check = task_loss(gate.answer(opinions_check), truth_check, robust=False).item()
        best.update(check, gate)
        optimizer.zero_grad()
        task_loss(gate.answer(opinions), truth, robust=False).backward()
        optimizer.step()
    gate.load_state_dict(best.weights)
    return gate.eval()


def opinions_of(seed: int, part: str) -> np.ndarray:
    """Opinions (N, K, 3) of all experts of a seed on a part of the labelled jets."""
    keys = [(arm, seed) for arm in EXPERTS]
    return np.stack([answers(heads[k][chosen[k]], latents[k][part]) for k in keys], 1)


@torch.no_grad()
def mixed(gate: Gate, opinions: np.ndarray) -> np.ndarray:
    """The mixture's answers (N, 3)."""
    return gate.answer(torch.as_tensor(opinions)).numpy()


# %%
MIXTURES = {"plain mean": (False, 0), "constant weights": (False, 1), "gate": (True, 1)}
gates, teacher_kind = {}, {}
for seed in CONFIG.seeds:
    opinions = {part: opinions_of(seed, part) for part in ("gate", "choose")}
    truths = {part: truth[rows_of[part]] for part in ("gate", "choose")}
    known = Known(opinions["gate"], truths["gate"], opinions["choose"], truths["choose"])
    for kind, (adaptive, fitted) in MIXTURES.items():
        gates[kind, seed] = fit_gate(known, adaptive, fitted * CONFIG.gate_steps)
    skills = {k: skill(mixed(gates[k, seed], known.x_check), known.truth_check) for k in MIXTURES}
    teacher_kind[seed] = max(skills, key=skills.get)
    words = ", ".join(f"{kind} {value:.4f}" for kind, value in skills.items())
    print(f"seed {seed}: skill of the {words}; teacher: {teacher_kind[seed]}")

# %%
first = CONFIG.seeds[0]
with torch.no_grad():
    weights = gates["gate", first](
        torch.as_tensor(opinions_of(first, "choose"))
    ).numpy()  # (N, K, 3)
fig, axes = plt.subplots(1, 3, figsize=(11, 3.1), sharey=True)
for axis, target, column in zip(axes, TARGETS, weights.transpose(2, 1, 0), strict=True):
    axis.boxplot(list(column), showfliers=False, medianprops={"color": plotting.PALETTE[1]})
    axis.axhline(1 / len(EXPERTS), color="grey", lw=0.8, ls=":")
    axis.set_xticks(range(1, len(EXPERTS) + 1), EXPERTS, rotation=20, fontsize=9)
    axis.set_title(f"answer: {target}")
axes[0].set_ylabel("weight of the expert")
plt.show()

# %% [markdown]
# **Distillation.** The mixture needs four encoders for a jet. The student needs one: it starts from the encoder of the expert
# whose heads have the most skill on the "choose" jets, and learns from the teacher on all training jets, labelled or not.


# %%
def standardised(z: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Latent vectors in units of the spread of ``like`` about its mean."""
    return (z - like.mean(0)) / (like.std(0) + 1e-6)


def teaching(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Opinions (N, 3) of the teacher and standardised latent vectors (N, K * L) of the experts; test jets stay zero."""
    sample, kind = samples["jets"], teacher_kind[seed]
    taught = np.concatenate([sample.free, rows_of["train"], rows_of["choose"]])
    opinions, features = [], []
    for arm in EXPERTS:
        free = latents_of(modules[arm, seed].encoder, sample.stores, sample.free)
        z = np.concatenate([free, latents[arm, seed]["train"], latents[arm, seed]["choose"]])
        opinions.append(answers(heads[arm, seed][chosen[arm, seed]], z))
        features.append(standardised(z, free))
    answer = mixed(gates[kind, seed], np.stack(opinions, 1))
    tables = []
    for part in (answer, np.concatenate(features, 1)):
        table = np.zeros((len(sample.truth), part.shape[1]), np.float32)
        table[taught] = part
        tables.append(table)
    return tuple(tables)


def skill_of(key: tuple[str, int]) -> float:
    """Skill of an encoder's chosen head on the jets for choices."""
    return skill_on(heads[key][chosen[key]], latents[key])


def encoder_weights(key: tuple[str, int]) -> dict[str, np.ndarray]:
    """The weights of an encoder, to begin another training with."""
    return {k: v.numpy() for k, v in modules[key].encoder.state_dict().items()}


# %%
seeds = CONFIG.seeds
teachers = dict(zip(seeds, side_by_side(teaching, [(seed,) for seed in seeds]), strict=True))
parents = {seed: max(EXPERTS, key=lambda arm, seed=seed: skill_of((arm, seed))) for seed in seeds}
starts = {f"{parents[seed]} {seed}": encoder_weights((parents[seed], seed)) for seed in seeds}
for seed, start in zip(seeds, starts, strict=True):
    jobs["distilled", seed] = Job("distilled", seed, CONFIG.epochs["distilled"], start=start)
trained |= run_jobs([jobs["distilled", seed] for seed in seeds])
for key in [("distilled", seed) for seed in seeds]:
    modules[key] = restored(jobs[key], trained[jobs[key]][1])
    latents[key] = encoded(modules[key].encoder)
    heads[key] = fitted_heads(latents[key])
    chosen[key] = better_kind(heads[key], latents[key])
    starts[f"distilled {key[1]}"] = encoder_weights(key)
    print(f"student {key[1]}: from {jobs[key].start}, skill {skill_of(key):.4f}, {chosen[key]}")

# %% [markdown]
# ## 8. Evaluation
# Everything above was chosen on validation jets. The test set is scored here, and in sections 9 and 11 by models in which
# nothing is chosen by it.
#
# **F1 of a regression.** F1 is made for classes, so a regression needs a threshold $t$: a jet is *positive* if its true value is above
# $t$, and *called* positive if the predicted one is. Then $F_1=2TP/(2TP+FP+FN)$. Two thresholds for each target:
#
# - a value of physics: $m>140$ GeV, between the W boson (80) and the top (173), where a window for tops would begin; and $p_T>500$ GeV, where
#   the decay products of a top, $\Delta R\approx2m_t/p_T\approx0.7$ apart, are safely inside a jet of radius 0.8;
# - the median of the training jets. $F_1$ grows with the share of positives $p$: whoever calls all jets positive has $2p/(1+p)$.
#   At the median that is 2/3 whatever the spectrum, so that numbers of $m$ and $p_T$, and of other samples, can be compared.
#
# A prediction of least squared error is drawn towards the mean, so its $F_1$ at a threshold far from the mean is not the
# best one could have; the threshold is not tuned, because a user of the regression would not do it.

# %%
CUTS = {"m": 140.0, "pT": 500.0}  # GeV


def mean_squared_error(y: np.ndarray, score: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Mean (prediction - truth)^2."""
    return root_mean_squared_error(y, score, weight) ** 2


def f1_above(
    y: np.ndarray, score: np.ndarray, weight: np.ndarray | None = None, threshold: float = 0.0
) -> float:
    """F1 of "above the threshold": true where y is, called where score is; 0 where neither ever is."""
    weight = np.ones(len(y)) if weight is None else weight
    true, called = np.asarray(y) > threshold, np.asarray(score) > threshold
    both = weight[true].sum() + weight[called].sum()
    return float(2 * weight[true & called].sum() / both) if both else 0.0


def regression_metrics(name: str, median: float) -> dict:
    """Metrics of m or pT by their names in metrics.json."""
    low = name.lower()
    return {
        f"{low}_mse": mean_squared_error,
        f"{low}_f1_{CUTS[name]:.0f}": partial(f1_above, threshold=CUTS[name]),
        f"{low}_f1_median": partial(f1_above, threshold=median),
    }


def physical(found: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Answers (N, 3) -> P(y = 1), m and pT in GeV."""
    (m_mean, m_spread), (pt_mean, pt_spread) = scales.values()
    m, pt = found[:, 1] * m_spread + m_mean, found[:, 2] * pt_spread + pt_mean
    return expit(found[:, 0]), m, pt


metrics_of = {"y": {"roc_auc": roc_auc}}
medians = {"m": float(np.median(m_train)), "pT": float(np.median(pt_train))}
metrics_of |= {name: regression_metrics(name, medians[name]) for name in CUTS}
columns = dataset.y, dataset.m, dataset.pt
test_truth = {t: values[splits.test] for t, values in zip(TARGETS, columns, strict=True)}

# %%
predictions = {}  # model -> one list of seeds a target


def predicted(model: str, found: list[np.ndarray]) -> None:
    """Enter the answers (N, 3) of a model, one array a seed."""
    seeds = zip(*(physical(answer) for answer in found), strict=True)
    predictions[model] = dict(zip(TARGETS, map(list, seeds), strict=True))


def answers_of(arm: str, kind: str = "") -> list[np.ndarray]:
    """Answers of all seeds of an encoder on test jets, with one kind of head or the chosen one."""
    keys = [(arm, seed) for seed in CONFIG.seeds]
    return [answers(heads[k][kind or chosen[k]], latents[k]["test"]) for k in keys]


ENCODERS = (*EXPERTS, "distilled")
for arm in ENCODERS:
    predicted(arm, answers_of(arm))
    for kind in HEADS:
        predicted(f"{arm}, {kind}", answers_of(arm, kind))
for kind in MIXTURES:
    found = [mixed(gates[kind, s], opinions_of(s, "test")) for s in CONFIG.seeds]
    predicted(f"mixture, {kind}", found)
predicted("gradient boosting", [boosting(shapes["test"])])
for name, far in {"constant": 0.0, "all positive": 99.0}.items():
    same = [logit(y_train.mean()), far, far]
    predicted(name, [np.tile(same, (len(splits.test), 1))])

results = {model: {} for model in predictions}
for model, found in predictions.items():
    for target in TARGETS:
        results[model] |= evaluate(metrics_of[target], test_truth[target], found[target], 500)

# %%
HEADLINE = "distilled"
LABELS = {
    "distilled": "distilled encoder", "masked": "masked autoencoder", "contrastive": "contrastive encoder",
    "variational": "variational encoder", "supervised": "supervised encoder, no pre-training",
    **{f"mixture, {kind}": f"mixture of the four, {kind}" for kind in MIXTURES},
    "gradient boosting": "gradient boosting on shapes", "constant": "mean of the training jets (trivial)",
}  # fmt: skip


def in_words(name: str) -> str:
    """Name of a metric for a table."""
    words = {"mse": "MSE", "f1": "F1 at", "pt": "pT"}
    return "ROC-AUC" if name == "roc_auc" else " ".join(words.get(p, p) for p in name.split("_"))


# %%
display(Markdown(
    f"**Test set**, {len(splits.test):,} jets, {dataset.words}; heads as chosen in section 6. Brackets: 95 % bootstrap interval; "
    f"±: spread over {len(CONFIG.seeds)} seeds. MSE in GeV². Medians: m {medians['m']:.1f}, pT {medians['pT']:.1f} GeV."
))  # fmt: skip
for target in TARGETS:
    shown = {label: results[model] for model, label in LABELS.items()}
    if target != "y":
        positive = {n: e for n, e in results["all positive"].items() if "f1" in n}
        shown["every jet called positive (trivial)"] = positive
    names = {n: in_words(n) for n in metrics_of[target]}
    display(results_frame(shown, list(names)).rename(columns=names))

# %% [markdown]
# **How shallow may the head be?** The same encoders with both heads:

# %%
DECIDING = {"y": "roc_auc", "m": "m_mse", "pT": "pt_mse"}
both = {f"{arm}, {kind}": results[f"{arm}, {kind}"] for arm in ENCODERS for kind in HEADS}
names = {name: in_words(name) for name in DECIDING.values()}
results_frame(both, list(names)).rename(columns=names)


# %%
def gain(a: str, b: str, target: str):
    """How much better model a is than b on a target, positive is better: paired bootstrap on the test jets."""
    metric = metrics_of[target][DECIDING[target]]
    first, second = (list(predictions[model][target]) for model in (a, b))
    if target != "y":
        first, second = second, first  # the smaller error is the better one
    return paired_bootstrap(metric, test_truth[target], first, second, n_resamples=500)


def gain_word(d) -> str:
    """Better, worse, or not to be told apart: from the interval and not from the central value."""
    return "better" if d.low > 0 else "worse" if d.high < 0 else "no clear difference"


opponents = (*EXPERTS, "mixture, gate", "gradient boosting", "constant")
gains = {other: {t: gain("distilled", other, t) for t in TARGETS} for other in opponents}
lines = {}
for other, line in gains.items():
    number = {
        t: "{:+.4f} [{:+.4f}, {:+.4f}]" if t == "y" else "{:+.0f} [{:+.0f}, {:+.0f}] GeV²"
        for t in TARGETS
    }
    lines[LABELS[other]] = {t: f"{gain_word(d)}: {number[t].format(*d[:3])}" for t, d in line.items()}  # fmt: skip
display(Markdown(
    "**The distilled encoder against each other model**: gain in AUC, reduction of the MSE (positive: the student "
    "is better), 95 % intervals of the paired difference."
))  # fmt: skip
pd.DataFrame(lines).T


# %%
def counted(other: str, word: str) -> list[str]:
    """Targets on which the student is better (or worse, or neither) than another model."""
    return [t for t, d in gains[other].items() if gain_word(d) == word]


def words_of(line: dict) -> str:
    """The verdicts on all targets."""
    return ", ".join(f"{t} {gain_word(d)}" for t, d in line.items())


better_than_all = [t for t in TARGETS if all(t in counted(e, "better") for e in EXPERTS)]
missing = {e: [t for t in TARGETS if t not in counted(e, "better")] for e in EXPERTS}
missing = "; ".join(f"the {LABELS[e]} on {' and '.join(t)}" for e, t in missing.items() if t)
aim = (
    f"**not reached in full**: it is not clearly better than {missing}"
    if missing
    else "**reached**"
)
lines = [f"The aim, one encoder that is better than each expert on all three targets, is {aim}."]
worse = {e: counted(e, "worse") for e in opponents if counted(e, "worse")}
if worse:
    words = "; ".join(f"{LABELS[e]} on {' and '.join(t)}" for e, t in worse.items())
    lines.append(f"It is clearly worse than {words}.")
for e in EXPERTS[:3]:
    words = words_of({t: gain(e, "supervised", t) for t in TARGETS})
    lines.append(f"The {LABELS[e]}, frozen, against the same network with labels only: {words}.")
gate_gain = {t: gain("mixture, gate", "mixture, plain mean", t) for t in TARGETS}
lines.append(f"The gate against the plain mean of its experts: {words_of(gate_gain)}.")
display(Markdown("\n".join(f"- {line}" for line in lines)))

# %% [markdown]
# **ROC curves**, of the first seed.

# %%
fig, axis = plt.subplots(figsize=(6.4, 5.2))
drawn = ("distilled", "mixture, gate", *EXPERTS, "gradient boosting")
curves = {LABELS[model].split(",")[0]: predictions[model]["y"][0] for model in drawn}
plotting.roc_curves(axis, test_truth["y"], curves, n_resamples=60)
axis.legend(loc="lower right", fontsize=7.5)
plt.show()

# %% [markdown]
# **True against predicted.** First seed; the numbers are means over the seeds. Grey: the diagonal; dotted: the thresholds of the F1; orange: median and central 68 % in bins of the *true*
# value. An estimate of least squared error is flatter than the diagonal: what it does not know it fills in with the mean.


# %%
def true_predicted(
    axis: plt.Axes, true: np.ndarray, found: np.ndarray, cuts: Sequence[float], label: str
) -> None:
    """Predictions over truths as a density, with the central 68 % in bins of equal population."""
    low, high = np.quantile(true, [0.005, 0.985])
    axis.hist2d(true, found, bins=45, range=[[low, high], [low, high]], cmap="viridis", cmin=1)
    axis.plot([low, high], [low, high], color="grey", lw=0.9)
    edges = np.quantile(true, np.linspace(0, 1, 9))
    number = np.digitize(true, edges[1:-1])
    filled = [b for b in range(8) if (number == b).sum() > 2]
    bands = [np.quantile(found[number == b], [0.16, 0.5, 0.84]) for b in filled]
    bands = np.reshape(bands, (-1, 3))
    middles = [true[number == b].mean() for b in filled]
    error = np.abs(bands[:, [0, 2]] - bands[:, [1]]).T
    axis.errorbar(middles, bands[:, 1], error, fmt="o", ms=4, capsize=2, color=plotting.PALETTE[1])
    for cut in cuts:
        for line in (axis.axvline, axis.axhline):
            line(cut, color="grey", lw=0.8, ls=":")
    axis.set(xlabel=f"true {label} [GeV]", ylabel=f"predicted {label} [GeV]")
    axis.set(xlim=(low, high), ylim=(low, high))


# %%
fig, axes = plt.subplots(2, 4, figsize=(13, 7.2))
models_shown = ("distilled", "masked", "supervised", "gradient boosting")
for line, (target, label) in zip(axes, (("m", "$m$"), ("pT", "$p_T$")), strict=True):
    for axis, model in zip(line, models_shown, strict=True):
        cuts = CUTS[target], medians[target]
        true_predicted(axis, test_truth[target], predictions[model][target][0], cuts, label)
        mse, trivial = (results[m][DECIDING[target]]["value"] for m in (model, "constant"))
        f1 = [results[model][name]["value"] for name in list(metrics_of[target])[1:]]
        title = f"{LABELS[model].split(',')[0]}\nMSE {mse:,.0f}, trivial {trivial:,.0f} GeV²\n"
        title += f"F1 {f1[0]:.3f} at {CUTS[target]:.0f} GeV, {f1[1]:.3f} at the median"
        axis.set_title(title, fontsize=9)
plt.show()

# %% [markdown]
# **Cost.** Training includes all jets that an arm sees; a student has its teachers' cost on top. The mixture runs all four encoders.

# %%
minutes, costs = {}, {}
for arm in ENCODERS:
    seconds = [trained[jobs[arm, s]][0].attrs["seconds"] for s in CONFIG.seeds]
    minutes[arm], rows = float(np.mean(seconds) / 60), jobs[arm, first].rows()
    costs[LABELS[arm]] = {
        "training of one seed [min]": f"{minutes[arm]:.2f}",
        "jets seen": f"{CONFIG.epochs[arm] * len(rows):,}",
        "with labels": f"{(rows >= n_free).mean():.0%}",
        "parameters to use it": f"{parameters:,}", "MFLOPs a jet": f"{flops / 1e6:.1f}",
    }  # fmt: skip
costs["mixture of the four"] = {
    "training of one seed [min]": f"{sum(minutes[e] for e in EXPERTS):.2f}",
    "parameters to use it": f"{len(EXPERTS) * parameters:,}",
    "MFLOPs a jet": f"{len(EXPERTS) * flops / 1e6:.1f}",
}
pd.DataFrame(costs).T.fillna("")

# %% [markdown]
# ## 9. The latent space
# t-SNE (van der Maaten & Hinton 2008) draws neighbours in the latent space as neighbours on paper; distances between far groups mean nothing. Test
# jets, the student above and the masked autoencoder, which has never seen a label, below.

# %%
fig, axes = plt.subplots(2, 3, figsize=(12, 7.4))
rows = np.arange(min(CONFIG.shown_jets, len(splits.test)))
colours = {"y": "coolwarm", "m": "viridis", "pT": "viridis"}
for line, arm in zip(axes, ("distilled", "masked"), strict=True):
    z = standardised(latents[arm, first]["test"][rows], latents[arm, first]["train"])
    perplexity = min(30.0, (len(rows) - 1) / 4)
    embedding = TSNE(perplexity=perplexity, init="pca", random_state=0)
    place = embedding.fit_transform(z.astype(np.float64))
    for axis, target in zip(line, TARGETS, strict=True):
        values = test_truth[target][rows].astype(float)
        low, high = np.quantile(values, [0.02, 0.98])
        options = {"cmap": colours[target], "vmin": low, "vmax": high, "lw": 0, "s": 7}
        dots = axis.scatter(*place.T, c=values, **options)
        axis.set(title=f"{arm}: {target}", xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2")
        bar = fig.colorbar(dots, ax=axis, label="y" if target == "y" else f"{target} [GeV]")
        bar.ax.grid(False)
        if target == "y":
            bar.set_ticks([0, 1])
plt.show()

# %% [markdown]
# **How much is a label worth?** Linear heads on frozen encoders that have seen no label, gradient boosting on shapes, and the same network from
# random weights, with more and more labels. Few labels get more passes: their number grows with the square root of the ratio.


# %%
def passes(labels: int, available: int) -> int:
    """Passes over ``labels`` jets of a network from scratch."""
    return max(1, round(CONFIG.epochs["supervised"] * (available / labels) ** 0.5))


available = len(splits.train)
counts = [n for n in CONFIG.label_counts if n < available]
wanted = [(n, s) for n in counts for s in CONFIG.seeds]
scratch = {(n, s): Job("supervised", s, passes(n, available), labels=n) for n, s in wanted}
trained |= run_jobs(list(scratch.values()))
scratch |= {(available, s): jobs["supervised", s] for s in CONFIG.seeds}


# %%
def first_labels(x: dict[str, np.ndarray], n: int) -> Known:
    """The first n training jets."""
    known = known_of(x)
    return known._replace(x=known.x[:n], truth=known.truth[:n])


def with_labels(model: str, n: int, seed: int) -> tuple[np.ndarray, ...]:
    """P(y = 1), m and pT of the test jets from a model that knows n labels."""
    if model == "gradient boosting":
        return physical(Boosted(first_labels(shapes, n))(shapes["test"]))
    if model == "supervised":
        module = restored(scratch[n, seed], trained[scratch[n, seed]][1])
        return physical(answers(module.answer, latents_of(module.encoder, stores, rows_of["test"])))
    z = latents[model, seed]
    return physical(answers(linear_heads(first_labels(z, n)), z["test"]))


def label_axis(axis: plt.Axes, counts: Sequence[int]) -> None:
    """Numbers of labels on a logarithmic axis."""
    axis.set(xscale="log", xlabel="labels")
    axis.set_xticks(counts, [f"{n:,}" for n in counts])
    axis.minorticks_off()


# %%
compared, steps = (*EXPERTS, "gradient boosting"), (*counts, available)
by_labels = {  # (model, labels) -> one tuple of answers a seed
    (model, n): [with_labels(model, n, s) for s in (CONFIG.seeds if model in EXPERTS else (first,))]
    for model in compared for n in steps
}  # fmt: skip

# %%
fig, axes = plt.subplots(1, 3, figsize=(12, 3.6))
for axis, (number, target) in zip(axes, enumerate(TARGETS), strict=True):
    metric = metrics_of[target][DECIDING[target]]
    for model in compared:
        values = [[found[number] for found in by_labels[model, n]] for n in steps]
        intervals = [bootstrap_interval(metric, test_truth[target], v, 100) for v in values]
        plotting.with_intervals(axis, np.array(steps), intervals, label=model)
    label_axis(axis, steps)
    axis.set_ylabel("ROC-AUC" if target == "y" else f"MSE of {target} [GeV²]")
    if target != "y":
        axis.axhline(results["constant"][DECIDING[target]]["value"], color="grey", lw=0.9, ls=":")
axes[0].legend(fontsize=8)
plt.show()

# %%
fewest, lines = steps[0], []
best_free = max(EXPERTS[:3], key=lambda e: skill_of((e, first)))
for number, target in enumerate(TARGETS):
    pair = [[found[number] for found in by_labels[m, fewest]] for m in (best_free, "supervised")]
    pair = pair if target == "y" else pair[::-1]  # positive: the frozen encoder is better
    d = paired_bootstrap(metrics_of[target][DECIDING[target]], test_truth[target], *pair, 300)
    form = "+.3f" if target == "y" else "+.0f"
    lines.append(
        f"{target} {gain_word(d)} ({d.difference:{form}} [{d.low:{form}}, {d.high:{form}}])"
    )
display(Markdown(
    f"Grey dots: the mean of the training jets. With {fewest} labels the {LABELS[best_free]}, frozen and with a linear "
    f"head, is against the network from scratch, in AUC or MSE: {', '.join(lines)}. Intervals do not contain the "
    "choice of the labelled jets."
))  # fmt: skip

# %% [markdown]
# ## 10. Other jets: does the encoder transfer?
# The quark and gluon jets of task 2h (track $p_T$, ECAL, HCAL; 70 to 240 GeV, radius 0.5) and the tops of any mass of task 2e (track $p_T$, $d_z$, $d_0$, ECAL) are written
# into the channels where they belong, the others stay empty, and are scaled to 0 to 255 as here. Both are far from the jets that
# the encoder knows. With few labels: the frozen student with linear heads; the student tuned further; the same network from random
# weights; trees on the shapes. The scale of the images is taken away on purpose, so that numbers are not those of tasks 2h and 2e.


# %%
def eight_channels(images: SparseImages, into: Sequence[int], rows: np.ndarray) -> SparseImages:
    """Jets with other channels as images of eight, channel k in place of ``into[k]``, each scaled to 0 to 255."""
    offsets, index, value = images.events(rows)
    jet = np.repeat(np.arange(len(rows)), np.diff(offsets))
    channel, pixel = np.divmod(index.astype(np.int64), SIZE**2)
    columns = jet, np.asarray(into)[channel], pixel, value
    jet, channel, pixel, value = (column[value > 0] for column in columns)
    largest = np.zeros((len(rows), N_CHANNELS), np.float32)
    np.maximum.at(largest, (jet, channel), value)
    order = np.lexsort((pixel, channel, jet))
    stored = (channel * SIZE**2 + pixel)[order]
    counts = np.bincount(jet, minlength=len(rows))
    return SparseImages(np.concatenate([[0], np.cumsum(counts)]), stored.astype(np.uint32),
                        (TOP * value / largest[jet, channel])[order], (N_CHANNELS, SIZE, SIZE))  # fmt: skip


class Other(NamedTuple):
    """Another data set with one known target."""

    sample: Sample
    test: np.ndarray  # rows
    target: int  # 0: y, 1: m
    scale: tuple[float, float]  # mean and spread of the target
    truth: np.ndarray  # (N,) its values

    def metric(self) -> Callable:
        """AUC of classes, squared error of masses."""
        return mean_squared_error if self.target else roc_auc


def other_jets(data, into: Sequence[int], target: int, values: np.ndarray) -> Other:
    """A part of a data set, split in four bins of the target or by class."""
    rows = np.random.default_rng(0).permutation(len(data))[: CONFIG.transfer_jets]
    values = values[rows]
    bins = np.digitize(values, np.quantile(values, [0.25, 0.5, 0.75])) if target else values
    own = split(bins)
    scale = scale_of(values[own.train]) if target else (0.0, 1.0)
    truth = np.full((len(rows), len(TARGETS)), np.nan, np.float32)
    truth[:, target] = (values - scale[0]) / scale[1]
    images = eight_channels(data.images, into, rows)
    sample = Sample((images,), truth, own.train[:0], own.train, own.validation)
    return Other(sample, own.test, target, scale, values)


# %%
quarks, tops = load_quark_gluon(DATA_SOURCE, PROFILE), load_top_mass(DATA_SOURCE, PROFILE)
others = {
    "quark and gluon": other_jets(quarks, (0, 3, 4), 0, quarks.y),
    "top mass": other_jets(tops, (0, 1, 2, 3), 1, tops.m),
}
samples |= {name: other.sample for name, other in others.items()}
display(Markdown(f"> **Data of this section:** {quarks.description}; {tops.description}"))

# %%
WAYS = {"from scratch": "", "student, tuned": f"distilled {CONFIG.seeds[0]}"}
most = CONFIG.transfer_labels[-1]
transfer_jobs = {
    (name, n, way): Job("supervised", first, passes(n, most), name, n, start)
    for name in others for n in CONFIG.transfer_labels for way, start in WAYS.items()
}  # fmt: skip
trained |= run_jobs(list(transfer_jobs.values()))


def transferred_to(name: str) -> dict[tuple[str, int], np.ndarray]:
    """(way, labels) -> predictions on the test jets of another data set."""
    sample, test, target, (mean, spread), _ = others[name]
    sets, found = {"train": sample.train, "check": sample.check, "test": test}, {}
    encoder = modules["distilled", first].encoder
    z = {part: latents_of(encoder, sample.stores, rows) for part, rows in sets.items()}
    x = {part: simple_shapes(sample.stores, rows) for part, rows in sets.items()}
    for n in CONFIG.transfer_labels:
        truths = sample.truth[sample.train[:n]], sample.truth[sample.check]
        by_z, by_x = (Known(v["train"][:n], truths[0], v["check"], truths[1]) for v in (z, x))
        found["student, frozen", n] = answers(linear_heads(by_z), z["test"])
        found["gradient boosting", n] = Boosted(by_x)(x["test"])
        for way in WAYS:
            job = transfer_jobs[name, n, way]
            module = restored(job, trained[job][1])
            found[way, n] = answers(module.answer, latents_of(module.encoder, sample.stores, test))
    return {key: answer[:, target] * spread + mean for key, answer in found.items()}


transferred = {name: transferred_to(name) for name in others}

# %%
fig, axes = plt.subplots(1, 2, figsize=(10, 3.8))
transfer, lines, labels = {}, [], np.array(CONFIG.transfer_labels)
for axis, (name, other) in zip(axes, others.items(), strict=True):
    metric, true = other.metric(), other.truth[other.test]
    for way in ("student, frozen", *WAYS, "gradient boosting"):
        found = [transferred[name][way, n] for n in labels]
        intervals = [bootstrap_interval(metric, true, values, 200) for values in found]
        plotting.with_intervals(axis, labels, intervals, label=way)
        transfer[f"{name}, {way}"] = {str(n): i._asdict() for n, i in zip(labels, intervals, strict=True)}  # fmt: skip
    trivial = metric(true, np.full(len(true), other.scale[0]))
    axis.axhline(trivial, color="grey", lw=0.9, ls=":", label="trivial")
    label_axis(axis, labels)
    axis.set_title(f"{name} jets")
    axis.set_ylabel("MSE of the mass [GeV²]" if other.target else "ROC-AUC")
    for n in labels:
        for way in ("student, frozen", "student, tuned"):
            pair = [transferred[name][w, n] for w in (way, "from scratch")]
            d = paired_bootstrap(metric, true, *(pair[::-1] if other.target else pair), 200)
            lines.append(f"{name}, {n} labels: the {way}, against the network from scratch: {gain_word(d)} ({d.difference:+.3g}).")  # fmt: skip
axes[1].legend(fontsize=8)
plt.show()
words = "\n".join(f"- {line}" for line in lines)
display(Markdown(f"{words}\n\nOne seed, one set of labelled jets; intervals are those of the test jets."))  # fmt: skip

# %% [markdown]
# ## 11. Generation: hidden patches, and finer pixels
# **Hidden patches.** The masked autoencoder sees 40 % of the patches of test jets and draws the others. What it should beat is the average
# patch at the same place, taken from training jets. Compared are the logarithmic sums of tracks, ECAL and HCAL of the hidden patches: $R^2$ is one minus
# the squared error over that of the average patch.

# %%
SUM_CHANNELS = (0, 3, 4)
DRAWN_JETS = 400  # at most, of generation


def average_patches(stores: Sequence[SparseImages], rows: np.ndarray, cap: int) -> torch.Tensor:
    """Mean features (169, 816) of the valid patches at each place; zero where there was none."""
    patches = to_patches(hits_of(stores, rows), cap)
    kept, features = patches.place[patches.valid], patches.features[patches.valid]
    total = torch.zeros(GRID**2, FEATURES).index_add_(0, kept, features)
    return total / torch.bincount(kept, minlength=GRID**2).clamp(min=1).unsqueeze(1)


# %%
model, cap = modules["masked", first].cpu(), CONFIG.patches
few = {part: rows[: min(DRAWN_JETS, CONFIG.shown_jets)] for part, rows in rows_of.items()}
patches = to_patches(hits_of(stores, few["test"]), cap)
visible, hidden = divided(patches, torch.rand(patches.place.shape, generator=torch_generator(0, 0)))
with torch.no_grad():
    drawn = model.reconstructed(model.encoder(visible), hidden.place)
average = average_patches(stores, few["train"], cap)[hidden.place]
at, errors = [N_CHANNELS * N_PIXELS + c for c in SUM_CHANNELS], {}
for name, found in {"drawn": drawn, "average": average}.items():
    errors[name] = (found - hidden.features)[hidden.valid][:, at].square().mean(0)
explained = (1 - errors["drawn"] / errors["average"]).tolist()
explained = {CHANNELS[c]: value for c, value in zip(SUM_CHANNELS, explained, strict=True)}
beaten = [name for name, value in explained.items() if value > 0]
words = ", ".join(f"{name} {value:+.3f}" for name, value in explained.items())
display(Markdown(f"R² of the sums of hidden patches: {words}. The average patch is beaten in: {', '.join(beaten) or 'none'}."))  # fmt: skip


# %%
def picture(
    patches: Patches, jet: int, channel: int, features: torch.Tensor | None = None
) -> np.ndarray:
    """One channel (130, 130) of the given patches, logarithmic; the rest is not a number."""
    image = np.full((GRID, PATCH, GRID, PATCH), np.nan)
    features = patches.features if features is None else features
    for place, values in zip(patches.place[jet].tolist(), features[jet].detach(), strict=True):
        pixels = values[channel * N_PIXELS : (channel + 1) * N_PIXELS].view(PATCH, PATCH).numpy()
        image[place // GRID, :, place % GRID] = pixels
    return image.reshape(GRID * PATCH, GRID * PATCH)


fig, axes = plt.subplots(2, 4, figsize=(12, 5.8))
for line, channel in zip(axes, (3, 4), strict=True):
    panels = {"whole jet": picture(patches, 0, channel), "visible": picture(visible, 0, channel)}
    made = picture(hidden, 0, channel, drawn)
    panels["visible, rest drawn"] = np.where(np.isnan(panels["visible"]), made, panels["visible"])
    panels["average patches"] = picture(hidden, 0, channel, average)
    for axis, (title, image) in zip(line, panels.items(), strict=True):
        bar = r"$\ln(1+x)/\ln 256$" if axis is line[-1] else ""
        plotting.heat_image(axis, image, f"{CHANNELS[channel]}: {title}", bar, vmin=0, vmax=0.6)
        axis.label_outer()
plt.show()

# %% [markdown]
# **Finer pixels.** Each readout of a low-resolution image is an HCAL tower wide: the sum of its $5\times5$ pixels, spread evenly. The frozen student
# encodes that, and a *linear* head on each patch's token gives the shares of the 25 pixels of each tower, for tracks and ECAL; a softmax keeps
# the energy of every tower exactly. Score: the energy-weighted cross-entropy $-\sum E\ln p/\sum E$ in nats; an even split has
# $\ln25$. Compared with the average shares at each of the 25 places, and with the same head on what the patch itself says, without the encoder.

# %%
FINE = (0, 3)  # track pT, ECAL


def coarse(hits: Hits) -> Hits:
    """The same jets with the sum of each tower spread evenly over its 25 pixels."""
    towers = SIZE // TOWER
    key = (hits.jet * N_CHANNELS + hits.channel) * towers**2
    key = key + hits.row // TOWER * towers + hits.column // TOWER
    tower, number = key.unique(return_inverse=True)
    sums = hits.value.new_zeros(len(tower)).index_add_(0, number, hits.value) / TOWER**2
    tower, sums = tower.repeat_interleave(TOWER**2), sums.repeat_interleave(TOWER**2)
    step = torch.arange(len(tower), device=tower.device) % TOWER**2
    group, cell = tower // towers**2, tower % towers**2
    row, column = cell // towers * TOWER + step // TOWER, cell % towers * TOWER + step % TOWER
    return Hits(group // N_CHANNELS, group % N_CHANNELS, row, column, sums, hits.count)


def by_tower(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels of patches (..., 2, 100) by tower and place within it, (..., 2, 4, 25)."""
    side = PATCH // TOWER
    x = pixels.unflatten(-1, (side, TOWER, side, TOWER))  # (..., 2, 2, 5, 2, 5)
    return x.transpose(-3, -2).flatten(-2).flatten(-3, -2)


def fine_inputs(encoder: nn.Module, rows: np.ndarray) -> list[torch.Tensor]:
    """Of coarse patches: tokens (n, D), what the patch itself says (n, 32); true energies (n, 2, 4, 25)."""
    columns = []
    for part in in_chunks(rows, 100):
        hits = hits_of(stores, part)
        low = to_patches(coarse(hits), CONFIG.patches)
        high = to_patches(hits, CONFIG.patches, low.place)
        logarithms, blurred = (
            x.features[low.valid][:, : N_CHANNELS * N_PIXELS].unflatten(1, (N_CHANNELS, N_PIXELS))
            for x in (high, low)
        )  # (n, 8, 100)
        pixels = torch.expm1(logarithms[:, FINE] * np.log1p(TOP))
        with torch.no_grad():
            tokens = encoder.tokens(low)[:, 1:][low.valid]
        columns.append((tokens, by_tower(blurred)[..., 0].flatten(1), by_tower(pixels)))
    return [torch.cat(column) for column in zip(*columns, strict=True)]


# %%
def share_loss(logits: torch.Tensor, energy: torch.Tensor) -> torch.Tensor:
    """Energy-weighted cross-entropy of the shares of 25 pixels; (n, 2, 4, 25) twice -> (2,), one a channel."""
    terms = -(energy * logits.log_softmax(-1)).sum((0, 2, 3))
    return terms / energy.sum((0, 2, 3)).clamp(min=1e-6)


def fit_shares(x: torch.Tensor, energy: torch.Tensor, steps: int) -> nn.Module:
    """Linear map of standardised inputs (n, F) to logits of shares (n, 2, 4, 25)."""
    seed_everything(0)
    norm = nn.BatchNorm1d(x.shape[1], affine=False, momentum=None)
    head = nn.Sequential(norm, nn.Linear(x.shape[1], 200), nn.Unflatten(1, (2, 4, 25)))
    optimizer = torch.optim.AdamW(head.parameters(), 3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        batch = torch.randint(len(x), (1024,), generator=torch_generator(1, step))
        optimizer.zero_grad()
        share_loss(head(x[batch]), energy[batch]).sum().backward()
        optimizer.step()
        schedule.step()
    return head.eval()


# %%
student = modules["distilled", first].encoder.cpu()
tokens, own, energy = fine_inputs(student, few["train"])
tokens_test, own_test, energy_test = fine_inputs(student, few["test"])
average = (energy.sum((0, 2), keepdim=True) + 1e-3).log().expand(energy_test.shape)
sharing = {
    "even split": share_loss(torch.zeros_like(energy_test), energy_test),
    "average shares": share_loss(average, energy_test),
}
heads_on = {
    "patch alone": (own, own_test),
    "patch and student": (torch.cat([own, tokens], 1), torch.cat([own_test, tokens_test], 1)),
}
for name, (x, x_test) in heads_on.items():
    head = fit_shares(x, energy, CONFIG.gate_steps)
    with torch.no_grad():
        sharing[name] = share_loss(head(x_test), energy_test)
fine = [CHANNELS[c] for c in FINE]
sharing = {n: dict(zip(fine, v.tolist(), strict=True)) for n, v in sharing.items()}
display(pd.DataFrame(sharing).T.round(4).rename_axis("cross-entropy [nats]"))
helps = [c for c in fine if min(sharing, key=lambda name, c=c: sharing[name][c]) == "patch and student"]  # fmt: skip
display(Markdown(
    f"Lowest with the student's tokens for: {', '.join(helps) or 'neither channel'}. {len(tokens_test):,} patches of "
    f"{len(few['test']):,} test jets, one seed, no intervals: an indication."
))  # fmt: skip

# %% [markdown]
# ## 12. Weights and metrics
# The ONNX graphs carry everything from the official image (8, 125, 125) on: the choice of patches, the encoder, the heads, the scales. Out come
# `probability`, `m` and `pT` in GeV. `make score TASK=task2i_foundation DATA=file.h5` runs the student on an independent sample without PyTorch, `MODEL=masked` and
# so on an expert, `MODEL=mixture` all four with their gate.


# %%
class RawInput(nn.Module):
    """Official images (B, 8, 125, 125) -> P(y = 1), m and pT in GeV, (B,) each; several encoders need a gate."""

    def __init__(
        self, encoders: Sequence[nn.Module], heads: Sequence[nn.Module], scales: dict, cap: int,
        gate: nn.Module | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.encoders, self.heads = nn.ModuleList(encoders), nn.ModuleList(heads)
        self.gate, self.scales, self.cap = gate, list(scales.values()), cap

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        patches = patches_of_images(x, self.cap)
        pairs = zip(self.encoders, self.heads, strict=True)
        opinions = torch.stack([head(encoder(patches)) for encoder, head in pairs], 1)
        found = opinions[:, 0] if self.gate is None else self.gate.answer(opinions)
        m, pt = (found[:, k + 1] * spread + mean for k, (mean, spread) in enumerate(self.scales))
        return found[:, 0].sigmoid(), m, pt


# %%
TOLERANCE = 0.1  # of probabilities and GeV: rounding may exchange two equally unimportant patches
warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # sizes are constants here
card = {"task": TASK, "profile": PROFILE, "data": dataset.description, "source": dataset.source}
batches = [dataset.images.dense(splits.validation[:n]).numpy() for n in (1, 2, 7)]
best = {arm: max(CONFIG.seeds, key=lambda s, arm=arm: skill_of((arm, s))) for arm in ENCODERS}


def raw_input(keys: list[tuple[str, int]], gate: nn.Module | None = None) -> RawInput:
    """The graph of one encoder, or of several with a gate, by arm and seed."""
    encoders = [modules[key].encoder.cpu() for key in keys]
    return RawInput(encoders, [heads[key][chosen[key]] for key in keys], scales, cap, gate).eval()


graphs = {arm: raw_input([(arm, best[arm])]) for arm in ENCODERS}
graphs["mixture"] = raw_input([(arm, first) for arm in EXPERTS], gates["gate", first])
graphs[TASK] = graphs.pop("distilled")

# %%
for name, graph in graphs.items():
    path = run.directory / f"{name}.onnx"
    export_onnx(graph, torch.from_numpy(batches[1]), path, ["x"], ["probability", "m", "pT"],
                {**card, "kind": "binary_classification", "data_source": dataset.source})  # fmt: skip
    print(
        f"{path.name}: largest difference to PyTorch {check_parity(graph, path, batches, TOLERANCE):.1e}"
    )
for (arm, seed), module in modules.items():
    save_weights(run.directory / f"{arm}_seed{seed}.safetensors", module,
                 {**card, "arm": arm, "seed": seed, "patches": cap, "width": CONFIG.width, "depth": CONFIG.depth,
                  "latent": CONFIG.latent, "skill": f"{skill_of((arm, seed)):.4f}"})  # fmt: skip
    save_weights(run.directory / f"{arm}_seed{seed}_heads.safetensors", heads[arm, seed][chosen[arm, seed]],
                 {**card, "arm": arm, "seed": seed, "heads": chosen[arm, seed], "scales": scales})  # fmt: skip
for (kind, seed), gate in gates.items():
    name = f"{kind.replace(' ', '_')}_seed{seed}.safetensors"
    save_weights(run.directory / name, gate, {**card, "mixture": kind, "seed": seed})


# %%
def described(model: str) -> dict:
    """Results of one model, with its size, for metrics.json."""
    info = {"description": LABELS.get(model, model)}
    if model.split(",")[0] in (*ENCODERS, "mixture"):
        encoders = len(EXPERTS) if "mixture" in model else 1
        info |= {"parameters": encoders * parameters, "flops": encoders * flops}
    return {**results[model], "info": info}


def key(model: str) -> str:
    """A model's name in metrics.json."""
    return model.replace(",", "").replace(" ", "_")


arms = [m for m in LABELS if m not in (HEADLINE, "gradient boosting", "constant")]
metrics = run.save_metrics(
    title="Task 2i: foundation encoder for jets, distilled from a mixture of experts",
    data={
        "source": dataset.source, "fingerprint": dataset.fingerprint, "description": dataset.description,
        "unlabelled": n_free, **{part: len(rows) for part, rows in splits._asdict().items()},
    },
    published=[f"{TASK}.onnx", "distilled_seed*"],
    seeds=list(CONFIG.seeds),
    headline="roc_auc",
    metrics=results[HEADLINE],
    baselines={key(m): described(m) for m in ("constant", "gradient boosting")},
    arms={key(m): described(m) for m in arms},
    floors={},
    variants={
        "heads": both, "student_gains": {other: {t: d._asdict() for t, d in line.items()} for other, line in gains.items()},
        "transfer": transfer, "hidden_patches_r2": explained, "finer_pixels_nats": sharing, "minutes": minutes,
        "median_thresholds_gev": medians, "f1_all_positive": {n: e for n, e in results["all positive"].items() if "f1" in n},
    },
    parameters=parameters,
    flops=flops,
)  # fmt: skip
update_results(metrics)

# %% [markdown]
# ## 13. Conclusion, limits, references

# %%
auc, trivial = results[HEADLINE]["roc_auc"], results["constant"]
conclusions = [
    f"On {dataset.words} the distilled encoder has an AUC of {auc['value']:.4f} [{auc['low']:.4f}, {auc['high']:.4f}], and "
    f"{results[HEADLINE]['m_mse']['value'] / trivial['m_mse']['value']:.0%} and {results[HEADLINE]['pt_mse']['value'] / trivial['pt_mse']['value']:.0%} "
    "of the mean predictor's MSE of m and pT.",
    f"The aim, one encoder that is better than each expert on all three targets, is {aim}. It is clearly better than all "
    f"{len(EXPERTS)} experts on {' and '.join(better_than_all) or 'none of the targets'}.",
    f"The mixture takes {len(EXPERTS)} times the operations of the student for a jet. Against the mixture with the gate the student "
    f"is: {words_of(gains['mixture, gate'])}. Against the trees on shapes: {words_of(gains['gradient boosting'])}.",
    "Hidden patches: " + ", ".join(f"{c} R² {v:+.2f}" for c, v in explained.items()) + " against the average patch.",
]  # fmt: skip
display(Markdown("\n".join(f"- {line}" for line in conclusions)))

# %% [markdown]
# - Images without an energy scale cannot give $p_T$ as images with one would: compare with the trivial predictor, and not with task 2e.
# - A number obtained on stand-in jets compares methods on the same jets. It does not predict the one on the official files; README's table
#   names the best public results on these.
# - Intervals are those of the test jets; the ± is the spread over few seeds, in which everything is trained anew and the split stays.
# - Both jets of a simulated collision are in the stand-in sample, and may be in different parts of the split.
# - Not studied: longer pre-training, which self-supervision is known to need; a decoder that attends to visible patches, which draws better and
#   leaves less in the latent vector; other temperatures, masks, weights of the terms of the distillation.
#
# **References.** K. He et al., *Masked autoencoders*, arXiv:2111.06377. T. Chen et al., *SimCLR*, arXiv:2002.05709. B. Dillon et al.,
# *Symmetries, safety and self-supervision*, arXiv:2108.04253. D. Kingma, M. Welling, *Auto-encoding variational Bayes*, arXiv:1312.6114. A.
# Dosovitskiy et al., *ViT*, arXiv:2010.11929. R. Jacobs et al., *Adaptive mixtures of local experts* (1991). J. Ma et al., *Multi-gate mixture of
# experts* (KDD 2018). G. Hinton et al., *Distilling the knowledge in a neural network*, arXiv:1503.02531. M. Ranzinger et al., *AM-RADIO*,
# arXiv:2312.06709. L. van der Maaten, G. Hinton, *Visualizing data using t-SNE* (2008). L. Smith, N. Topin, arXiv:1708.07120. M. Andrews et al.,
# *End-to-end jet classification of boosted top quarks with the CMS Open Data*, arXiv:2104.14659.
