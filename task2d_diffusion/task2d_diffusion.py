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
# # Task 2d: a diffusion model of jets, and tests that can reject it
#
# **Task.** Train a generative model on the unlabelled jets by the principle of diffusion, compare what it generates with
# the data by statistical tests of one's own, do the same for a GAN and a VAE of similar architecture, and demonstrate the
# complexity bias of VAEs and the mode collapse of GANs.
#
# **Idea.** A jet is an image with few active pixels in eight channels whose sums span decades. A diffusion model is good at
# textures and bad at both of these, so the work is divided: a small normalising flow draws what a physicist would
# histogram first, *total and occupancy of each channel*; the diffusion model draws *where* it lies, in a
# representation in which "no hit" is a value like any other. What a generator is worth is then asked of tests, each of
# which must first say of real jets against other real jets that it sees no difference.
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
show_results("task2d_diffusion")

# %% [markdown]
# ## 1. Set-up
# Data, splits, distances between samples, plots and checkpoints come from `e2e_utils`; representation, networks, losses,
# samplers, training loops and tests are in this notebook.

# %%
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display
from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator, NullFormatter
from scipy.special import ndtr, ndtri
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.isotonic import IsotonicRegression
from threadpoolctl import threadpool_limits
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, silu, softplus
from torch.optim.swa_utils import AveragedModel
from torch.utils.flop_counter import FlopCounterMode

from data.loaders import load_jets8
from e2e_utils import plotting
from e2e_utils.boosting import fit_trees
from e2e_utils.checkpoints import load_training_state, save_training_state, save_weights
from e2e_utils.distributed import OnePass
from e2e_utils.evaluation import evaluate, metric_entry
from e2e_utils.fidelity import fpd, kpd, separation_power
from e2e_utils.machine import device_name, make_accelerator, pick_device
from e2e_utils.metrics import log_loss, paired_bootstrap, roc_auc
from e2e_utils.notebook import results_frame, start_run, update_results
from e2e_utils.onnx_export import check_parity, export_onnx
from e2e_utils.parallel import side_by_side, worker_count
from e2e_utils.seeds import epoch_batches, seed_everything, torch_generator
from e2e_utils.sparse_images import SparseImages, concatenate

# %% tags=["parameters"]
PROFILE = os.environ.get("PROFILE", "quick")  # smoke (tests), quick, standard, full
DATA_SOURCE = os.environ.get("DATA_SOURCE", "auto")  # auto, official, standin
DATA = os.environ.get("DATA") or None  # other files of the official schema, comma separated

# %% [markdown]
# The profiles differ in the number of jets, passes and seeds, never in the method.


# %%
@dataclass(frozen=True)
class Schedule:
    """One training: passes over its jets, batch size, highest learning rate, seeds."""

    epochs: int
    batch_size: int = 64
    learning_rate: float = 2e-3
    seeds: int = 1


@dataclass(frozen=True)
class Config:
    """Everything that a run needs to be repeated, except the data."""

    schedules: dict[str, Schedule]
    test_epochs: int  # passes of the neural classifiers of the tests
    test_seeds: int  # trainings of each classifier
    pairs: int  # teacher's jets that the student learns from
    sweep: Schedule = field(default_factory=lambda: Schedule(1))  # VAEs of section 8
    sweep_jets: int = 2_000
    toy_steps: int = 1_000
    null_draws: int = 200
    largest_batch: int = 10_000  # of the timing
    library_jets: int = 300  # whose towers give their pixels to generated ones


# %%
CONFIGS = {
    "smoke": Config(
        schedules={"totals": Schedule(2, 32), "diffusion": Schedule(1, 32, seeds=2),
                   "flow matching": Schedule(1, 32), "gan": Schedule(1, 32, 5e-4),
                   "gan, plain": Schedule(1, 32, 5e-4), "vae": Schedule(1, 32),
                   "flow": Schedule(1, 32), "student": Schedule(1, 32)},
        test_epochs=1, test_seeds=1, pairs=64, sweep=Schedule(1, 32), sweep_jets=64, toy_steps=20,
        null_draws=20, largest_batch=4, library_jets=20,
    ),
    "quick": Config(
        schedules={"totals": Schedule(14), "diffusion": Schedule(5),
                   "flow matching": Schedule(4), "gan": Schedule(1, 32, 5e-4),
                   "gan, plain": Schedule(1, 32, 5e-4), "vae": Schedule(2),
                   "flow": Schedule(8), "student": Schedule(14)},
        test_epochs=6, test_seeds=1, pairs=3_000, sweep_jets=1_000, toy_steps=600,
        largest_batch=100,
    ),
    "standard": Config(
        schedules={"totals": Schedule(12), "diffusion": Schedule(8, seeds=2),
                   "flow matching": Schedule(6), "gan": Schedule(2, 64, 5e-4),
                   "gan, plain": Schedule(2, 64, 5e-4), "vae": Schedule(3),
                   "flow": Schedule(10), "student": Schedule(16)},
        test_epochs=8, test_seeds=2, pairs=6_000, sweep=Schedule(10, 64, 4e-3), sweep_jets=4_000,
        toy_steps=2_500, library_jets=1_000,
    ),
    "full": Config(
        schedules={"totals": Schedule(60, 256), "diffusion": Schedule(200, 256, seeds=3),
                   "flow matching": Schedule(200, 256, seeds=3), "gan": Schedule(60, 256, 5e-4, 3),
                   "gan, plain": Schedule(60, 256, 5e-4), "vae": Schedule(60, 256, seeds=3),
                   "flow": Schedule(60, 256, seeds=3), "student": Schedule(100, 256, seeds=3)},
        test_epochs=30, test_seeds=3, pairs=50_000, sweep=Schedule(10, 256), sweep_jets=30_000,
        toy_steps=5_000, null_draws=500, library_jets=2_000,
    ),
}  # fmt: skip
CONFIG = CONFIGS[PROFILE]
TASK = "task2d_diffusion"
DEVICE = pick_device()

# %%
run = start_run(TASK, PROFILE, DATA_SOURCE)
plotting.set_style()
print(run.summary())

# %% [markdown]
# ## 2. Data
# `load_jets8` reads the official HDF5 file of unlabelled jets where it is on disk, and otherwise stand-in jets simulated in
# the same schema (see `data/README.md`). The next line says which of the two this run used. Every channel of every image is
# scaled to 0 to 255, so values have no unit: they are relative to the largest pixel of the channel.

# %%
dataset = load_jets8(DATA_SOURCE, PROFILE, path=DATA, labelled=False)
jets, splits = dataset.unlabelled, dataset.unlabelled_splits()
display(Markdown(f"> **Data of this run:** {dataset.description}"))
pd.DataFrame({"jets": {part: len(rows) for part, rows in splits._asdict().items()}}).T

# %% [markdown]
# **Split.** 64 % train, 16 % validate, 20 % are the test set, scored once. The first half of the test jets is the *reference*
# of every test; the second half is given to the tests in place of generated jets and makes the **real-versus-real row**.
#
# **What is generated.** Images summed in towers of $5\times5$ pixels, $8\times25\times25$ values. An HCAL tower *is* such a square,
# whose 25 pixels are equal, so nothing is lost there; in the other channels it is detail below 0.09 in $\eta$ and $\varphi$.
# Section 9 gives it back by drawing the pixels of a tower from real towers.
#
# **Counted channels.** The pixel detector's channels hold numbers of hits, divided by the largest one of the image. The smallest
# pixel of a channel is then one hit, and all are multiples of it. The next cell checks it; where it holds, these channels are
# generated as whole numbers in units of that pixel.

# %%
CHANNELS = ("track $p_T$", "dz", "d0", "ECAL", "HCAL", "BPIX1", "BPIX2", "BPIX3")
N_CHANNELS, PIXELS, TOWER, GRID = (
    8,
    125,
    5,
    25,
)  # pixels a side of an image and of a tower; towers a side
COUNTED = np.array([5, 6, 7])  # channels of hit counts
TOP = 255.0  # largest pixel of an image and channel
THRESHOLD = 1e-3  # towers below it count as empty; values are rounded to it


class Towers(NamedTuple):
    """Jets in towers: values (n, 8, 25, 25) and the number of hits that the value 255 stands for (n, 3)."""

    x: np.ndarray
    largest: np.ndarray


def to_towers(images: SparseImages, rows: np.ndarray) -> Towers:
    """Sum the chosen images in towers, from their active pixels."""
    offsets, index, value = images.events(rows)
    n = len(rows)
    jet = np.repeat(np.arange(n), np.diff(offsets))
    channel, pixel = np.divmod(index.astype(np.int64), PIXELS**2)
    row, column = np.divmod(pixel, PIXELS)
    place = ((jet * N_CHANNELS + channel) * GRID + row // TOWER) * GRID + column // TOWER
    x = np.bincount(place, value, n * N_CHANNELS * GRID**2).round(3)
    smallest = np.full(n * N_CHANNELS, TOP, np.float32)
    np.minimum.at(smallest, jet * N_CHANNELS + channel, value)
    largest = np.rint(TOP / smallest.reshape(n, N_CHANNELS)[:, COUNTED]).clip(min=1)
    return Towers(x.reshape(n, N_CHANNELS, GRID, GRID).astype(np.float32), largest.astype(np.float32))  # fmt: skip


def multiples(images: SparseImages, rows: np.ndarray) -> float:
    """Share of the counted channels' pixels that are whole multiples of the smallest of their channel."""
    value = images.dense(rows)[:, COUNTED].numpy()
    unit = np.where(value > 0, value, np.inf).min((2, 3), keepdims=True)
    ratio = (value / unit)[value > 0]
    return float(np.mean(np.abs(ratio - np.rint(ratio)) < 1e-3))


# %%
def in_chunks(rows: np.ndarray, size: int = 500) -> list[np.ndarray]:
    """Consecutive parts of at most ``size`` rows."""
    return [rows[k : k + size] for k in range(0, len(rows), size)]


share = multiples(jets, splits.train[:100])
counts_hold = share > 0.99
print(f"{100 * share:.2f} % of the pixels are whole multiples: counted channels are "
      f"{'whole numbers' if counts_hold else 'treated as continuous'}")  # fmt: skip

# %%
every = np.arange(len(jets))
parts = [to_towers(jets, rows) for rows in in_chunks(every)]
towers = concatenate([SparseImages.from_dense(part.x) for part in parts])
largest = np.concatenate([part.largest for part in parts])
del parts
fig, axes = plt.subplots(2, 4, figsize=(11, 5.6))
mean = np.mean([towers.dense(rows).numpy().mean(0) for rows in in_chunks(splits.train[:2000])], 0)
for axis, channel, name in zip(axes.flat, mean, CHANNELS, strict=True):
    plotting.event_image(axis, channel, f"{name}, mean", "")
    axis.set(xlabel="tower in $\\varphi$", ylabel="tower in $\\eta$")
    axis.label_outer()
plt.show()

# %% [markdown]
# ## 3. Representation
# **Stage one** has 27 numbers a jet: the sum, the highest tower and the number of active towers of each channel, and the number
# of hits that 255 stands for in the three counted ones.
#
# **Randomised probability integral transform.** A value $w$ with distribution function $F$ becomes
#
# $$z=\Phi^{-1}(u),\qquad u\sim\mathcal U\left[F(w^-),F(w)\right],$$
#
# a standard normal number *exactly*, whatever $F$: heavy tails become normal ones, and an atom (one hit; the tower with
# the largest pixel, 255 in every image) becomes an interval. Its inverse, $w=F^{-1}(\Phi(z))$, gives the atom back. This is
# dequantisation with noise as wide as the quantum.
#
# **Stage two** has one number $v$ a tower and channel: $v=-1+0.25\,\epsilon$ for an empty tower, with normal $\epsilon$, and
# $v=1+g(z)/3$ for an active one, with $g(z)=z$ up to 1 and $g(z)=z+(z-1)^2$ above. Two clouds that do not touch, each with noise of its own: no
# network has to make a point mass. The parabola spreads the highest towers, which normal scores crowd within a few tenths: they carry most of the
# energy, and which tower is the highest in all channels at once is what the overlap of two channels consists of. A squared error
# in $v$ should feel it.
#
# **Back to a jet.** Of each channel the $n_c$ towers with the highest $v$ are active, $n_c$ from stage one: sparsity is exact,
# and there is no threshold to tune. The first of them gets stage one's highest value. The others are scaled to what the sum of stage one leaves
# them, except atoms (in counted channels: single hits), and counted ones rounded to whole hits. All generators below share stage one and this
# way back: what differs is the image.

# %%
KNOTS = 512  # of a distribution function
HIT, EMPTY = 1.0, -1.0  # centres of the two clouds
HIT_WIDTH, EMPTY_WIDTH = 1 / 3, 0.25
STRETCH = 1.0  # of the highest values; 0 leaves normal scores as they are
N_SUMMARY = 3 * N_CHANNELS + len(COUNTED)


class Quantiles:
    """Randomised probability integral transform of one variable, from a sample (n,)."""

    def __init__(self, sample: np.ndarray) -> None:
        self.p = np.linspace(0, 1, KNOTS + 1)
        self.table = np.quantile(sample if len(sample) else [1.0], self.p)

    def forward(self, w: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Normal scores (n,) of values (n,); an atom's are drawn within its interval."""
        left = np.searchsorted(self.table, w, "left")
        right = np.searchsorted(self.table, w, "right") - 1
        low, high = self.p[np.minimum(left, KNOTS)], self.p[np.clip(right, 0, KNOTS)]
        u = np.where(right > left, low + (high - low) * rng.random(len(w)), np.interp(w, self.table, self.p))  # fmt: skip
        return ndtri(np.clip(u, 0.25 / KNOTS, 1 - 0.25 / KNOTS))

    def inverse(self, z: np.ndarray) -> np.ndarray:
        """Values of normal scores, any shape."""
        return np.interp(ndtr(z), self.p, self.table)

    def atoms(self, least: int = 4) -> np.ndarray:
        """Values that ``least`` knots or more share."""
        value, count = np.unique(self.table, return_counts=True)
        return value[count >= least]


def stretched(z: np.ndarray) -> np.ndarray:
    """g(z) of normal scores: their tail above 1 grows with the square."""
    return z + STRETCH * np.maximum(z - 1, 0) ** 2


def unstretched(g: np.ndarray) -> np.ndarray:
    """The inverse of `stretched`."""
    t = np.maximum(g - 1, 0)
    return np.where(g > 1, 1 + 2 * t / (1 + np.sqrt(1 + 4 * STRETCH * t)), g)


def units_of(largest: np.ndarray, counted: bool) -> np.ndarray:
    """What one hit is worth in each channel (n, 8, 1, 1); 1 in those that are not counted."""
    unit = np.ones((len(largest), N_CHANNELS), np.float32)
    if counted:
        unit[:, COUNTED] = TOP / largest
    return unit[:, :, None, None]


def summaries(part: Towers, counted: bool) -> np.ndarray:
    """Stage one's numbers (n, 27): sum and highest tower in units of a hit, active towers, hits that 255 stands for."""
    w = part.x / units_of(part.largest, counted)
    active = (part.x > THRESHOLD).sum((2, 3))
    return np.concatenate([w.sum((2, 3)), active, w.max((2, 3)), part.largest], 1)


# %%
class Codec:
    """Between towers and the numbers that the generators see; fitted on training jets."""

    def __init__(self, part: Towers, counted: bool) -> None:
        self.counted = counted
        w, active = self.own_units(part), part.x > THRESHOLD
        self.value = [Quantiles(w[:, c][active[:, c]]) for c in range(N_CHANNELS)]
        self.summary = [Quantiles(column) for column in summaries(part, counted).T]

    def own_units(self, part: Towers) -> np.ndarray:
        """Values in units of a hit; whole numbers where counted."""
        w = part.x / units_of(part.largest, self.counted)
        if self.counted:
            w[:, COUNTED] = np.rint(w[:, COUNTED])
        return w

    def conditions(self, part: Towers, rng: np.random.Generator) -> np.ndarray:
        """Normal scores (n, 27) of stage one's numbers."""
        columns = summaries(part, self.counted).T
        z = [q.forward(column, rng) for q, column in zip(self.summary, columns, strict=True)]
        return np.stack(z, 1).astype(np.float32)

    def encode(self, part: Towers, rng: np.random.Generator) -> np.ndarray:
        """v + 1 of active towers, 0 of empty ones: sparse still; (n, 8, 25, 25)."""
        w, active = self.own_units(part), part.x > THRESHOLD
        v = np.zeros(w.shape, np.float32)
        for c, quantiles in enumerate(self.value):
            hit = active[:, c]
            v[:, c][hit] = HIT - EMPTY + HIT_WIDTH * stretched(quantiles.forward(w[:, c][hit], rng))
        return v

    def decode(self, v: np.ndarray, condition: np.ndarray) -> Towers:
        """Towers from v (n, 8, 25, 25) and conditions (n, 27)."""
        numbers = [q.inverse(z) for q, z in zip(self.summary, condition.T, strict=True)]
        parts = N_CHANNELS * np.array([1, 2, 3])
        total, count, top, largest = np.split(np.stack(numbers, 1), parts, 1)
        count, largest = np.rint(count), np.rint(largest).clip(min=1)
        v = v.reshape(len(v), N_CHANNELS, GRID**2)  # (n, 8, 25, 25) -> (n, 8, 625)
        order = np.argsort(-v, axis=2)
        rank = np.empty_like(order)
        np.put_along_axis(rank, order, np.arange(GRID**2)[None, None], 2)
        x = np.zeros_like(v)
        unit = units_of(largest, self.counted)[..., 0]  # (n, 8, 1)
        for c, quantiles in enumerate(self.value):
            whole = self.counted and c in COUNTED
            highest = np.rint(top[:, c]).clip(min=1) if whole else top[:, c]
            w = quantiles.inverse(unstretched((v[:, c] - HIT) / HIT_WIDTH))
            fixed = w <= 1 if whole else np.isin(w, quantiles.atoms())
            others = (rank[:, c] > 0) & (rank[:, c] < count[:, c, None])
            w = np.minimum(w, highest[:, None])
            w = rescaled(w, others, fixed, total[:, c] - highest)
            if whole:
                w = np.rint(w).clip(min=1)
            w = np.minimum(w, highest[:, None])
            w = np.where(rank[:, c] == 0, highest[:, None], w) * unit[:, c]
            x[:, c] = np.where(rank[:, c] < count[:, c, None], np.maximum(w, 2 * THRESHOLD), 0)
        return Towers(x.reshape(-1, N_CHANNELS, GRID, GRID), largest)


# %%
def rescaled(w: np.ndarray, active: np.ndarray, fixed: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Values (n, 625) whose active ones, fixed ones apart, are scaled to the sum (n,), at most tenfold."""
    kept, free = (w * (active & fixed)).sum(1), (w * (active & ~fixed)).sum(1)
    factor = np.clip((total - kept) / np.maximum(free, 1e-9), 0.1, 10.0)
    return np.where(fixed, w, w * factor[:, None])


# %%
def towers_at(rows: np.ndarray) -> Towers:
    """Towers of jets of the data set."""
    return Towers(towers.dense(rows).numpy(), largest[rows])


rng = np.random.default_rng(0)
codec = Codec(towers_at(splits.train[:6000]), counts_hold)
used = np.concatenate([splits.train, splits.validation])
encoded = concatenate([SparseImages.from_dense(codec.encode(towers_at(r), rng)) for r in in_chunks(every)])  # fmt: skip
conditions = torch.from_numpy(np.concatenate([codec.conditions(towers_at(r), rng) for r in in_chunks(every)]))  # fmt: skip


def batch_of(rows: np.ndarray, generator: torch.Generator | None = None, flip: bool = True) -> torch.Tensor:  # fmt: skip
    """v (B, 8, 25, 25) of jets on the device, with fresh noise in empty towers, mirrored at random."""
    x = encoded.dense(rows)
    noise = torch.randn(x.shape, generator=generator) * EMPTY_WIDTH
    v = torch.where(x > 0, x, noise) + EMPTY
    for axis in (2, 3) if flip else ():
        chosen = torch.rand(len(v), 1, 1, 1, generator=generator) < 0.5
        v = torch.where(chosen, v.flip(axis), v)
    return v.to(DEVICE)


sample = splits.validation[: min(500, len(splits.validation))]
there = towers_at(sample)
back = codec.decode(batch_of(sample, flip=False).cpu().numpy(), conditions[sample].numpy())
SIGMA_DATA = 0.7  # of v, over towers and channels
print(
    f"standard deviation of v: {batch_of(sample).std():.2f} (assumed in the networks: {SIGMA_DATA})"
)
display(pd.DataFrame({
    name: {"sum, back / there": back.x[:, c].sum() / max(there.x[:, c].sum(), 1e-9),
           "active towers, back / there": (back.x[:, c] > 0).sum() / max((there.x[:, c] > THRESHOLD).sum(), 1),
           "share of towers within 2 %": np.mean(np.isclose(back.x[:, c], there.x[:, c], 0.02, 0.02))}
    for c, name in enumerate(CHANNELS)}).T.round(4))  # fmt: skip

# %% [markdown]
# The way there and back changes next to nothing: what the tests find below is the generators' doing. Mirroring in $\eta$ and
# in $\varphi$ is a symmetry of proton collisions and, for both charges together, of the magnetic field; all generators learn
# from mirrored jets.
#
# ## 4. One network for all
# At this budget a convolutional U-Net would see each jet a handful of times. Towers are grouped in $5\times5$ patches instead: 25
# tokens of 200 values, mixed along tokens and along features (MLP-Mixer, arXiv:2105.01601; scale and shift from
# conditions as in DiT, arXiv:2212.09748). A token of 128 features cannot carry the 200 independent noises of its patch, which a
# denoiser has to know, so a per-tower layer at the end sees the tower's own input beside the token's context. Everything
# is a matrix product, which is what a CPU is good at.
#
# The diffusion model, the flow-matching model, the generator of the GAN and the decoder of the VAE are this trunk; the GAN's
# critic and the VAE's encoder are its tokens with a pooled last layer.
#
# **What single towers say is counted, not learned.** Chance of a hit, mean and width of a hit's $v$ differ from tower to tower
# by the distance to the jet's axis; the training jets give them, mirrored, without a gradient step. Every image network starts there,
# so that training is spent on what is hard: the relations between towers and between channels.


# %%
FREQUENCIES = 2.0 ** torch.arange(-2, 6)
N_TOKENS = (GRID // TOWER) ** 2
PATCH = TOWER**2  # towers a token


def to_patches(x: torch.Tensor) -> torch.Tensor:
    """(B, C, 25, 25) -> (B, 25 tokens, 25 towers, C)."""
    n, channels = x.shape[:2]
    x = x.view(
        n, channels, TOWER, TOWER, TOWER, TOWER
    )  # (B, C, token row, row, token column, column)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(n, N_TOKENS, PATCH, channels)


def from_patches(x: torch.Tensor) -> torch.Tensor:
    """(B, 25 tokens, 25 towers, C) -> (B, C, 25, 25)."""
    n, channels = x.shape[0], x.shape[3]
    x = x.view(n, TOWER, TOWER, TOWER, TOWER, channels)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(n, channels, GRID, GRID)


class MixerBlock(nn.Module):
    """Mixes tokens, then features, both scaled and shifted by an embedding; (B, 25, D) -> (B, 25, D)."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.shift = nn.Linear(embedding, 4 * width)
        self.tokens = nn.Sequential(nn.Linear(N_TOKENS, 50), nn.SiLU(), nn.Linear(50, N_TOKENS))
        self.features = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))  # fmt: skip

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        a, b, c, d = self.shift(embedding).unsqueeze(1).chunk(4, 2)  # (B, 1, D) each
        h = self.norm(x) * (1 + a) + b
        x = x + self.tokens(h.transpose(1, 2)).transpose(1, 2)
        return x + self.features(self.norm(x) * (1 + c) + d)


# %%
class Tokens(nn.Module):
    """v (B, 8, 25, 25), noise level (B,), numbers (B, 27 + extra) -> tokens (B, 25, D), embedding (B, 64)."""

    def __init__(self, extra: int = 0, width: int = 128, depth: int = 2) -> None:
        super().__init__()
        inputs = 2 * len(FREQUENCIES) + N_SUMMARY + extra
        self.embed = nn.Sequential(nn.Linear(inputs, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU())
        self.into = nn.Linear(PATCH * N_CHANNELS, width)
        self.place = nn.Parameter(0.3 * torch.randn(N_TOKENS, width))
        self.blocks = nn.ModuleList(MixerBlock(width, 64) for _ in range(depth))

    def tokens(self, patches: torch.Tensor, level: torch.Tensor, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        angle = level[:, None] * FREQUENCIES.to(level)
        embedding = self.embed(torch.cat([angle.sin(), angle.cos(), numbers], 1))
        x = self.into(patches.flatten(2)) + self.place
        for block in self.blocks:
            x = block(x, embedding)
        return x, embedding


class Trunk(Tokens):
    """v (B, 8, 25, 25) -> (B, outputs, 25, 25): tokens give context to a layer on each tower."""

    def __init__(self, extra: int = 0, width: int = 128, depth: int = 2, context: int = 16, hidden: int = 32,
                 outputs: int = N_CHANNELS) -> None:  # fmt: skip
        super().__init__(extra, width, depth)
        self.norm = nn.LayerNorm(width)
        self.context = nn.Linear(width, PATCH * context)
        self.tower = nn.Linear(N_CHANNELS + context, hidden)
        self.shift = nn.Linear(64, 2 * hidden)
        self.out = nn.Linear(hidden, outputs)

    def forward(self, x: torch.Tensor, level: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        patches = to_patches(x)
        tokens, embedding = self.tokens(patches, level, numbers)
        context = self.context(self.norm(tokens)).view(x.shape[0], N_TOKENS, PATCH, -1)
        a, b = self.shift(embedding)[:, None, None].chunk(2, 3)  # (B, 1, 1, hidden) each
        h = silu(self.tower(torch.cat([patches, context], 3)) * (1 + a) + b)
        return from_patches(self.out(h))


# %%
class Pooled(Tokens):
    """v (B, 8, 25, 25) -> (B, outputs); optionally the spread of the features over the batch beside them."""

    def __init__(self, outputs: int, minibatch: bool = False, width: int = 128) -> None:
        super().__init__(width=width)
        self.minibatch = minibatch
        self.hidden = nn.Linear(2 * width, width)
        self.out = nn.Linear(width * (1 + minibatch), outputs)

    def forward(self, x: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        tokens, _ = self.tokens(to_patches(x), x.new_zeros(len(x)), numbers)
        h = silu(self.hidden(torch.cat([tokens.mean(1), tokens.amax(1)], 1)))
        if self.minibatch:
            spread = (h.var(0, unbiased=False) + 1e-6).sqrt()  # (D,)
            h = torch.cat([h, spread.expand_as(h)], 1)
        return self.out(h)


# %%
class TowerPrior(nn.Module):
    """What single towers say: chance of a hit, mean and width of a hit's v, (8, 25, 25) each."""

    def __init__(self) -> None:
        super().__init__()
        shape = N_CHANNELS, GRID, GRID
        self.register_buffer("logit", torch.zeros(shape))
        self.register_buffer("mean", torch.full(shape, HIT))
        self.register_buffer("width", torch.full(shape, HIT_WIDTH))
        self.lift = nn.Linear(N_SUMMARY, N_CHANNELS)  # more hits or fewer, by the conditions
        nn.init.zeros_(self.lift.weight)
        nn.init.zeros_(self.lift.bias)

    def count(self, encoded: torch.Tensor, least: float = 10.0) -> None:
        """Set the buffers from encoded jets (n, 8, 25, 25), mirrored in both axes; ``least`` hits of the channel's mean are added."""
        hit = encoded > 0
        v = (encoded + EMPTY) * hit

        def mirrored(x: torch.Tensor) -> torch.Tensor:
            return sum(x.flip(axes) for axes in ((), (1,), (2,), (1, 2)))

        hits, first, second = (mirrored(x.double().sum(0)) for x in (hit, v, v.square()))
        share = (hits + 0.5) / (4 * len(encoded) + 1)
        centre = first.sum((1, 2), keepdim=True) / hits.sum((1, 2), keepdim=True).clamp(min=1)
        mean = (first + least * centre) / (hits + least)
        variance = (second - 2 * mean * first + hits * mean.square() + least * HIT_WIDTH**2) / (hits + least)  # fmt: skip
        self.logit.copy_(torch.logit(share))
        self.mean.copy_(mean)
        self.width.copy_(variance.clamp(min=1e-4).sqrt())

    def log_odds(self, condition: torch.Tensor) -> torch.Tensor:
        """Of a hit, (B, 8, 25, 25)."""
        return self.logit + self.lift(condition)[:, :, None, None]

    def mean_of_v(self, condition: torch.Tensor) -> torch.Tensor:
        """Over hit and empty, (B, 8, 25, 25)."""
        return EMPTY + self.log_odds(condition).sigmoid() * (self.mean - EMPTY)

    def posterior_mean(self, x: torch.Tensor, sigma: torch.Tensor, log_odds: torch.Tensor, change: torch.Tensor) -> torch.Tensor:  # fmt: skip
        """E[v | x] of v + noise of level sigma (B,), for given log-odds; ``change`` moves the hit's value, in posterior widths."""
        s = sigma.view(-1, 1, 1, 1)
        hit_variance, empty_variance = self.width.square() + s.square(), EMPTY_WIDTH**2 + s.square()
        from_hit, from_empty = x - self.mean, x - EMPTY
        evidence = (from_empty.square() / empty_variance - from_hit.square() / hit_variance
                    + (empty_variance / hit_variance).log()) / 2  # fmt: skip
        hit = self.mean + from_hit * self.width.square() / hit_variance
        hit = hit + change * self.width * s / hit_variance.sqrt()
        empty = EMPTY + from_empty * EMPTY_WIDTH**2 / empty_variance
        return empty + (log_odds + evidence).sigmoid() * (hit - empty)


# %% [markdown]
# **Diffusion**, with noise levels, weights of the loss and sampler as in EDM (Karras et al., arXiv:2206.00364). Data $v$ with noise
# $n\sim\mathcal N(0,\sigma^2)$, $x=v+n$; the best denoiser is the posterior mean $\mathrm E[v|x]$. EDM's network corrects a linear guess
# of it. For a tower alone there is a better one: $v$ is a mixture of two normal clouds, so Bayes' theorem gives the mean in closed form,
#
# $$D(x;\sigma)=(1-r)\,m_0+r\,(m_1+g\,\delta),\qquad \ln\frac{r}{1-r}=\ell+\Delta+\ln\frac{\mathcal N(x;\mu,w^2+\sigma^2)}{\mathcal N(x;-1,w_0^2+\sigma^2)},$$
#
# $$m_1=\mu+\frac{w^2}{w^2+\sigma^2}(x-\mu),\qquad m_0=-1+\frac{w_0^2}{w_0^2+\sigma^2}(x+1),\qquad g=\frac{w\,\sigma}{\sqrt{w^2+\sigma^2}},$$
#
# with the tower's log-odds $\ell$ of a hit, mean $\mu$ and width $w$ of a hit's $v$, and $w_0=0.25$. What a tower alone cannot know is
# what the others say: that is the network's part, a shift $\Delta$ of the log-odds and a move $\delta$ of the value for each tower and
# channel, $(\Delta,\delta)=F(c_\mathrm{in}\,x;\frac14\ln\sigma)$ with $c_\mathrm{in}=(\sigma^2+\sigma_d^2)^{-1/2}$. Its last layer starts at zero:
# the untrained model generates independent towers, and training adds relations. Empty towers are pure noise and need no network.
#
# Loss: $(D-v)^2/c_\mathrm{out}^2$, $c_\mathrm{out}=\sigma\sigma_d/\sqrt{\sigma^2+\sigma_d^2}$; $\ln\sigma\sim\mathcal N(-0.8,1.2^2)$ in training. The centre is
# higher than the paper's $-1.2$ because hit and empty tower lie 2 apart: which of them it is, is decided near $\sigma=1/2$. Sampling
# solves $\mathrm dv/\mathrm d\sigma=(v-D)/\sigma$ from $\sigma=20$ to 0 with Heun's method on the paper's grid ($\rho=7$). 20 and not 80, as the
# sums, which would need it, are conditions.
#
# **Flow matching** (Lipman et al., arXiv:2210.02747): straight lines $v_t=(1-t)\,\epsilon+t\,v/\sigma_d$ with velocity $v/\sigma_d-\epsilon$, whose mean
# given $v_t$ is $(D/\sigma_d-v_t)/(1-t)$ with the same $D$ at $x=v_t\sigma_d/t$, $\sigma=\sigma_d(1-t)/t$: the same network, other weights of the loss,
# another path. Straighter paths should need fewer steps.


# %%
SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 20.0, 7
P_MEAN, P_STD = -0.8, 1.2


def drawn_sigma(n: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """Noise levels (n,) of the training: log-normal."""
    return (P_MEAN + P_STD * torch.randn(n, generator=generator)).exp()


def sigma_grid(steps: int) -> list[float]:
    """Levels of ``steps`` steps from SIGMA_MAX to SIGMA_MIN, then 0 (Karras et al., eq. 5)."""
    ends = SIGMA_MAX ** (1 / RHO), SIGMA_MIN ** (1 / RHO)
    return [*(np.linspace(*ends, steps) ** RHO).tolist(), 0.0]


class Denoiser(nn.Module):
    """D(x; sigma) for x (B, 8, 25, 25), sigma (B,), conditions (B, 27)."""

    def __init__(self) -> None:
        super().__init__()
        self.prior, self.trunk = TowerPrior(), Trunk(outputs=2 * N_CHANNELS)
        nn.init.zeros_(self.trunk.out.weight)
        nn.init.zeros_(self.trunk.out.bias)

    def forward(
        self, x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor
    ) -> torch.Tensor:
        scale = (sigma.square() + SIGMA_DATA**2).rsqrt().view(-1, 1, 1, 1)
        shift, change = self.trunk(scale * x, sigma.log() / 4, condition).chunk(2, 1)
        return self.prior.posterior_mean(x, sigma, self.prior.log_odds(condition) + shift, change)


def edm_loss(model: Denoiser, v: torch.Tensor, condition: torch.Tensor, generator: torch.Generator) -> torch.Tensor:  # fmt: skip
    """Mean of (D - v)^2 / c_out^2 over noise levels."""
    sigma = drawn_sigma(len(v), generator).to(v)
    s = sigma.view(-1, 1, 1, 1)
    noise = torch.randn(v.shape, generator=generator).to(v) * s
    weight = 1 / s.square() + 1 / SIGMA_DATA**2
    return (weight * (model(v + noise, sigma, condition) - v).square()).mean()


# %%
class Velocity(nn.Module):
    """The velocity of flow matching at x (B, 8, 25, 25) and time (B,) in [0, 1], from a denoiser."""

    def __init__(self) -> None:
        super().__init__()
        self.denoiser = Denoiser()

    def forward(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        t = t.clamp(1e-3, 1 - 1e-3)
        s = t.view(-1, 1, 1, 1)
        v = self.denoiser(x * SIGMA_DATA / s, SIGMA_DATA * (1 - t) / t, condition)
        return (v / SIGMA_DATA - x) / (1 - s)


def flow_matching_loss(model: Velocity, v: torch.Tensor, condition: torch.Tensor, generator: torch.Generator) -> torch.Tensor:  # fmt: skip
    """Mean squared error of the velocity; times are logistic-normal."""
    t = torch.randn(len(v), generator=generator).sigmoid().to(v)
    noise, target = torch.randn(v.shape, generator=generator).to(v), v / SIGMA_DATA
    x = torch.lerp(noise, target, t.view(-1, 1, 1, 1))
    return (model(x, t, condition) - (target - noise)).square().mean()


# %%
def heun_step(model: Denoiser, x: torch.Tensor, sigma: torch.Tensor, following: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:  # fmt: skip
    """One step of the sampler from levels (B,) to the following ones (B,), which are above 0."""
    s, f = sigma.view(-1, 1, 1, 1), following.view(-1, 1, 1, 1)
    slope = (x - model(x, sigma, condition)) / s
    guess = x + (f - s) * slope
    return x + (f - s) * (slope + (guess - model(guess, following, condition)) / f) / 2


@torch.inference_mode()
def sample_diffusion(model: Denoiser, condition: torch.Tensor, noise: torch.Tensor, steps: int = 18,
                     keep: list | None = None) -> torch.Tensor:  # fmt: skip
    """v from standard normal noise (B, 8, 25, 25): 2 steps - 1 evaluations; ``keep`` collects (sigma, x)."""
    grid = sigma_grid(steps)
    x = noise * grid[0]
    level = lambda s: x.new_full((len(x),), s)  # noqa: E731
    for sigma, following in pairwise(grid[:-1]):
        if keep is not None:
            keep.append((sigma, x))
        x = heun_step(model, x, level(sigma), level(following), condition)
    return model(x, level(grid[-2]), condition)  # the Euler step to 0 ends on D


@torch.inference_mode()
def sample_flow(model: Velocity, condition: torch.Tensor, noise: torch.Tensor, steps: int = 10) -> torch.Tensor:  # fmt: skip
    """v by ``steps`` midpoint steps, two evaluations each; a single step is Euler's."""
    x, h = noise, 1 / steps
    at = lambda t: x.new_full((len(x),), t)  # noqa: E731
    for number in range(steps):
        t = number * h
        slope = model(x, at(t), condition)
        if steps > 1:
            slope = model(x + h / 2 * slope, at(t + h / 2), condition)
        x = x + h * slope
    return x * SIGMA_DATA


# %% [markdown]
# **GAN.** The generator is the trunk with noise for input, added to the towers' mean $v$. The critic sees $v$ and the conditions; non-saturating logistic loss
# and $R_1$ penalty (Mescheder et al., arXiv:1801.04406), the latter every eighth step. The spread of its features over the
# batch tells the critic when a batch is too uniform (arXiv:1710.10196); the arm *GAN, plain* goes without, and section 8 asks
# what that does.
#
# **VAE.** Encoder, 32 latent numbers $u$, decoder (the towers' mean $v$ and the trunk fed by $u$) with a normal likelihood whose width per channel is
# learned ($\sigma$-VAE, arXiv:2006.13202). Loss: $-\ln p(v|u)+\beta\,\mathrm{KL}$, summed over towers, per jet. Generated jets are drawn from the
# likelihood, width included; section 8 looks at its mean, which many take for the sample.


# %%
class Generator(nn.Module):
    """Noise (B, 8, 25, 25) and conditions (B, 27) -> v."""

    def __init__(self) -> None:
        super().__init__()
        self.prior, self.trunk = TowerPrior(), Trunk()

    def forward(self, noise: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        made = self.trunk(noise, noise.new_zeros(len(noise)), condition)
        return self.prior.mean_of_v(condition) + made


class Adversaries(nn.Module):
    """Generator and critic, kept together for saving."""

    def __init__(self, minibatch: bool = True) -> None:
        super().__init__()
        self.generator, self.critic = Generator(), Pooled(1, minibatch)


LATENT = 32


class VAE(nn.Module):
    """Encoder to a diagonal normal, decoder from (latent, conditions), width of the likelihood per channel."""

    def __init__(self, beta: float = 1.0, width: int = 128, free_bits: float = 0.0) -> None:
        super().__init__()
        self.beta, self.free_bits = beta, free_bits
        self.encoder = Pooled(2 * LATENT)
        self.prior, self.decoder = TowerPrior(), Trunk(extra=LATENT, width=width)
        self.log_width = nn.Parameter(torch.zeros(N_CHANNELS, 1, 1))

    def encode(self, v: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log variance (B, 32) each."""
        mean, log_variance = self.encoder(v, condition).chunk(2, 1)
        return mean, log_variance.clamp(-12, 6)

    def decode(self, latent: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Mean of v."""
        empty = latent.new_zeros(len(latent), N_CHANNELS, GRID, GRID)
        made = self.decoder(empty, empty.new_zeros(len(latent)), torch.cat([condition, latent], 1))
        return self.prior.mean_of_v(condition) + made


# %%
def kl_divergence(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """KL from the standard normal distribution, per latent number, in nats."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)


def vae_loss(model: VAE, v: torch.Tensor, condition: torch.Tensor, generator: torch.Generator) -> torch.Tensor:  # fmt: skip
    """-ln p(v | latent) + beta KL per jet, over the number of towers; ``free_bits`` nats a number cost nothing."""
    mean, log_variance = model.encode(v, condition)
    noise = torch.randn(mean.shape, generator=generator).to(v)
    residual = (v - model.decode(mean + noise * (log_variance / 2).exp(), condition)) / model.log_width.exp()  # fmt: skip
    likelihood = (residual.square() / 2 + model.log_width).mean()
    kl = kl_divergence(mean, log_variance).mean(0).clamp(min=model.free_bits).sum()
    return likelihood + model.beta * kl / v[0].numel()


# %% [markdown]
# **Normalising flow, and its student.** A masked autoregressive flow (MAF, arXiv:1705.07057): in each block
# $z_i=(x_i-\mu_i(x_{<i}))\,e^{-s_i(x_{<i})}$, so that the likelihood takes one pass, but sampling one pass *per dimension*. It does two
# jobs. With 27 dimensions it is stage one for all generators. With the first principal components of $v$ for $x$, and
# normal noise for the rest, it is a generator of its own. As in CaloFlow (arXiv:2110.11377) the slow teacher is
# distilled: a student with the same blocks the other way round, $x_i=\mu_i(z_{<i})+e^{s_i(z_{<i})}z_i$, learns to map the same noise to the
# same jet, block by block, and samples in one pass.

# %%
COMPONENTS = 48


class AutoregressiveBlock(nn.Module):
    """Shift and log scale of each of ``size`` numbers from the earlier ones and conditions."""

    def __init__(self, size: int, conditions: int, hidden: int) -> None:
        super().__init__()
        degree = torch.arange(hidden) % max(size - 1, 1)  # of a hidden unit: sees numbers 0..degree
        number = torch.arange(size)
        self.register_buffer("mask_in", (degree[:, None] >= number).float(), persistent=False)
        mask_out = (number[:, None] > degree).float()  # (size, hidden)
        self.register_buffer("mask_out", mask_out.repeat(2, 1), persistent=False)
        self.first, self.condition = nn.Linear(size, hidden), nn.Linear(conditions, hidden)
        self.last, self.direct = nn.Linear(hidden, 2 * size), nn.Linear(conditions, 2 * size)
        for layer in (self.last, self.direct):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, x: torch.Tensor, condition: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        h = nn.functional.linear(x, self.first.weight * self.mask_in, self.first.bias)
        h = silu(h + self.condition(condition))
        out = nn.functional.linear(h, self.last.weight * self.mask_out, self.last.bias)
        shift, scale = (out + self.direct(condition)).chunk(2, 1)
        return shift, 2 * torch.tanh(scale / 2)


# %%
class AutoregressiveFlow(nn.Module):
    """Blocks on reversed orders; a MAF by ``log_likelihood`` and ``sample``, its student by ``one_pass``."""

    def __init__(self, size: int = COMPONENTS, conditions: int = N_SUMMARY, hidden: int = 256, blocks: int = 4) -> None:  # fmt: skip
        super().__init__()
        self.blocks = nn.ModuleList(AutoregressiveBlock(size, conditions, hidden) for _ in range(blocks))  # fmt: skip

    def to_noise(
        self, x: torch.Tensor, condition: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Noise (B, size) of data and the log determinant (B,)."""
        total = 0
        for block in self.blocks:
            shift, scale = block(x, condition)
            x = ((x - shift) * (-scale).exp()).flip(1)
            total = total - scale.sum(1)
        return x, total

    def log_likelihood(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """In nats, (B,)."""
        z, log_determinant = self.to_noise(x, condition)
        return log_determinant - 0.5 * (z.square() + np.log(2 * np.pi)).sum(1)

    @torch.no_grad()
    def sample(self, z: torch.Tensor, condition: torch.Tensor) -> list[torch.Tensor]:
        """Data of noise (B, size): the output of every block, the data last; one pass per dimension and block."""
        outputs = []
        for block in reversed(self.blocks):
            z = z.flip(1)
            x = torch.zeros_like(z)
            for i in range(z.shape[1]):
                shift, scale = block(x, condition)
                x[:, i] = shift[:, i] + scale[:, i].exp() * z[:, i]
            z = x
            outputs.append(x)
        return outputs

    def one_pass(self, z: torch.Tensor, condition: torch.Tensor) -> list[torch.Tensor]:
        """The same in the inverse direction: one pass per block."""
        outputs = []
        for block in reversed(self.blocks):
            z = z.flip(1)
            shift, scale = block(z, condition)
            z = shift + scale.exp() * z
            outputs.append(z)
        return outputs


# %%
def likelihood_loss(model: AutoregressiveFlow, x: torch.Tensor, condition: torch.Tensor, generator: torch.Generator) -> torch.Tensor:  # fmt: skip
    """Negative log-likelihood in nats a dimension."""
    return -model.log_likelihood(x, condition).mean() / x.shape[1]


def distillation_loss(model: AutoregressiveFlow, pair: torch.Tensor, condition: torch.Tensor, generator: torch.Generator) -> torch.Tensor:  # fmt: skip
    """Mean squared distance to the teacher's blocks; ``pair`` (B, 1 + blocks, size): noise and outputs."""
    made = torch.stack(model.one_pass(pair[:, 0], condition), 1)
    return (made - pair[:, 1:]).square().mean()


# %%
NETWORKS = {
    "totals": partial(AutoregressiveFlow, N_SUMMARY, 1, 128, 5),
    "diffusion": Denoiser, "flow matching": Velocity,
    "gan": Adversaries, "gan, plain": partial(Adversaries, minibatch=False),
    "vae": VAE, "flow": AutoregressiveFlow, "student": AutoregressiveFlow,
}  # fmt: skip
LABELS = {
    "totals": "stage one", "diffusion": "diffusion", "flow matching": "flow matching", "gan": "GAN",
    "gan, plain": "GAN, plain", "vae": "VAE", "flow": "flow (teacher)", "student": "flow (student)",
    "independent": "independent towers", "real": "real jets (floor)",
}  # fmt: skip


counted = TowerPrior()
counted.count(encoded.dense(splits.train[:6000]))


def with_prior(model: nn.Module) -> nn.Module:
    """The model, its towers' statistics set to those of training jets."""
    for part in model.modules():
        if isinstance(part, TowerPrior):
            part.load_state_dict(counted.state_dict())
    return model


class OneJet(nn.Module):
    """What one evaluation of a trained generator computes, for counting."""

    def __init__(self, arm: str, model: nn.Module) -> None:
        super().__init__()
        self.arm, self.model = arm, model

    def forward(self, v: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        if self.arm in ("diffusion", "flow matching"):
            return self.model(v, v.new_full((1,), 0.5), condition)
        if self.arm.startswith("gan"):
            return self.model.generator(v, condition)
        if self.arm == "vae":
            return self.model.decode(v.new_zeros(1, LATENT), condition)
        return self.model.one_pass(v.new_zeros(1, COMPONENTS), condition)[-1]


def complexity(arm: str, model: nn.Module) -> tuple[int, int]:
    """Parameters of the generator, FLOPs (2 per multiply-add) of one evaluation for one jet."""
    generating = getattr(model, "generator", getattr(model, "decoder", model))
    v = torch.zeros(1, N_CHANNELS, GRID, GRID)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        OneJet(arm, model.cpu())(v, torch.zeros(1, N_SUMMARY))
    return sum(p.numel() for p in generating.parameters()), counter.get_total_flops()


# %%
GENERATORS = ("diffusion", "flow matching", "gan", "gan, plain", "vae", "flow", "student")
sizes = {arm: complexity(arm, NETWORKS[arm]()) for arm in GENERATORS}
x = batch_of(splits.train[:3])
assert Denoiser().to(DEVICE)(x, drawn_sigma(3).to(DEVICE), conditions[:3].to(DEVICE)).shape == x.shape  # fmt: skip
assert torch.equal(from_patches(to_patches(x)), x)
display(pd.DataFrame({LABELS[arm]: {"parameters": f"{p:,}", "MFLOPs an evaluation": f"{f / 1e6:.1f}"} for arm, (p, f) in sizes.items()}).T)  # fmt: skip

# %% [markdown]
# **Noising and denoising.** The ECAL of one jet in $v$ with more and more noise: this is what the network is trained on.
# Section 5 shows the way back.

# %%
LEVELS = (0.0, 0.1, 0.3, 1.0, 3.0, SIGMA_MAX)
ECAL = 3


def v_image(axis: plt.Axes, v: np.ndarray, title: str) -> None:
    """One channel of v (25, 25)."""
    axis.imshow(v, cmap="viridis", vmin=-2, vmax=2)
    axis.set(title=title, xticks=[], yticks=[])
    axis.grid(False)


noise = torch.randn(N_CHANNELS, GRID, GRID, generator=torch_generator(0, 0))
fig, axes = plt.subplots(1, len(LEVELS), figsize=(11, 2.3))
for axis, level in zip(axes, LEVELS, strict=True):
    noisy = x[0].cpu() + level * noise
    v_image(axis, noisy[ECAL] * SIGMA_DATA / np.hypot(SIGMA_DATA, level), f"$\\sigma={level:g}$")
plt.show()

# %% [markdown]
# ## 5. Training
# AdamW with a one-cycle schedule and an exponential moving average of the weights, which is what generates. Order of the jets,
# mirrors and noise depend on seed and epoch only; the state is saved after every epoch, so that an interrupted run goes on
# where it stopped. The GAN's two players need a loop of their own.


# %%
class Batch(NamedTuple):
    """What a loss takes: v, components of it, or pairs; and the conditions."""

    target: torch.Tensor
    condition: torch.Tensor


class Components:
    """First principal components of v, in units of their standard deviation, and what is left."""

    def __init__(self, v: torch.Tensor) -> None:
        flat = v.flatten(1).cpu()  # (n, 5000)
        self.mean = flat.mean(0)
        size = min(COMPONENTS, len(flat) - 1)
        _, singular, vectors = torch.pca_lowrank(flat - self.mean, size)
        scale = (singular / len(flat) ** 0.5).clamp(min=1e-3)
        pad = COMPONENTS - size  # only where there are fewer jets than components
        self.vectors = nn.functional.pad(vectors, (0, pad))  # (5000, 48)
        self.scale = nn.functional.pad(scale, (0, pad), value=1.0)
        self.width = (flat - self.mean - (flat - self.mean) @ vectors @ vectors.T).std(0)

    def forward(self, v: torch.Tensor) -> torch.Tensor:
        """(B, 8, 25, 25) -> (B, 48)."""
        return (v.flatten(1).cpu() - self.mean) @ self.vectors / self.scale

    def inverse(self, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """(B, 48) -> (B, 8, 25, 25), with normal noise for the other components."""
        flat = self.mean + (x.cpu() * self.scale) @ self.vectors.T
        flat = flat + self.width * torch.randn(flat.shape, generator=generator)
        return flat.view(-1, N_CHANNELS, GRID, GRID)  # (B, 5000) -> (B, 8, 25, 25)


seed_everything(0)
components = Components(batch_of(splits.train[:4000], torch_generator(0, 1)))
LOSSES: dict[str, Callable] = {
    "totals": likelihood_loss, "diffusion": edm_loss, "flow matching": flow_matching_loss,
    "vae": vae_loss, "flow": likelihood_loss, "student": distillation_loss,
}  # fmt: skip


# %%
def training_batch(arm: str, rows: np.ndarray, generator: torch.Generator) -> Batch:
    """What ``arm`` learns from for jets ``rows``."""
    condition = conditions[rows].to(DEVICE)
    if arm == "totals":
        return Batch(condition, condition.new_zeros(len(rows), 1))
    if arm == "student":  # rows number the teacher's pairs
        return Batch(pairs[rows].to(DEVICE), pair_conditions[rows].to(DEVICE))
    v = batch_of(rows, generator)
    return Batch(components.forward(v).to(DEVICE) if arm == "flow" else v, condition)


def moving_average(model: nn.Module, decay: float = 0.999) -> AveragedModel:
    """Exponential moving average of the weights, with a decay that warms up."""

    @torch.no_grad()
    def update(averaged: list, current: list, count: torch.Tensor | int) -> None:
        now = min(decay, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(averaged, current, 1 - now)

    return AveragedModel(model, multi_avg_fn=update)


# %%
@torch.no_grad()
def validation_loss(arm: str, model: nn.Module, rows: np.ndarray) -> float:
    """Loss on jets not trained on, with the same noise in every epoch."""
    generator, total = torch_generator(0, 10**6), 0.0
    for part in in_chunks(rows):
        batch = training_batch(arm, part, generator)
        total += LOSSES[arm](model, *batch, generator).item() * len(part)
    return total / len(rows)


# %%
def train(name: str, arm: str, model: nn.Module, schedule: Schedule, seed: int, rows: np.ndarray, held_out: np.ndarray) -> pd.DataFrame:  # fmt: skip
    """Train ``model`` in place, the average over the last weights at the end; one line an epoch."""
    accelerator, started = make_accelerator(), time.monotonic()
    size = schedule.batch_size
    steps = len(rows) // (size * accelerator.num_processes)
    optimizer = torch.optim.AdamW(model.parameters(), schedule.learning_rate, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)  # fmt: skip
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, schedule.learning_rate, total_steps=schedule.epochs * steps, pct_start=0.1)  # fmt: skip
    average = moving_average(model.to(accelerator.device))
    network, optimizer = accelerator.prepare(OnePass(model, LOSSES[arm]), optimizer)
    accelerator.register_for_checkpointing(cycle, average)
    state = run.directory / "state" / "".join(c if c.isalnum() else "-" for c in name)
    extra = load_training_state(accelerator, state) or {"history": [], "seconds": 0.0}
    history, earlier = extra["history"], extra["seconds"]
    for epoch in range(len(history), schedule.epochs):
        generator, total = torch_generator(seed, epoch), 0.0
        for chosen in epoch_batches(rows, size, seed, epoch, accelerator.process_index, accelerator.num_processes):  # fmt: skip
            batch = training_batch(arm, chosen, generator)
            loss = network(*batch, generator)
            optimizer.zero_grad()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            cycle.step()
            average.update_parameters(model)
            total += loss.detach()
        history.append({"epoch": epoch + 1, "train_loss": float(total) / steps,
                        "validation_loss": validation_loss(arm, average.module, held_out)})  # fmt: skip
        seconds = earlier + time.monotonic() - started
        save_training_state(accelerator, state, {"history": history, "seconds": seconds})
    model.load_state_dict(average.module.state_dict())
    frame = pd.DataFrame(history)
    frame.attrs["seconds"] = earlier + time.monotonic() - started
    print(f"{name}: {history[-1]['validation_loss']:.4f} after {frame.attrs['seconds']:.0f} s", flush=True)  # fmt: skip
    return frame


# %%
R1_EVERY, R1_WEIGHT = 8, 1.0


def gradient_penalty(critic: nn.Module, v: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
    """Mean squared norm of the critic's gradient at real jets."""
    v = v.detach().requires_grad_()
    (slope,) = torch.autograd.grad(critic(v, condition).sum(), v, create_graph=True)
    return slope.flatten(1).square().sum(1).mean()


def critic_step(model: Adversaries, batch: Batch, generator: torch.Generator, number: int) -> torch.Tensor:  # fmt: skip
    """Loss of the critic: real up, generated down; the penalty in one step of R1_EVERY."""
    v, condition = batch
    noise = torch.randn(v.shape, generator=generator).to(v)
    with torch.no_grad():
        made = model.generator(noise, condition)
    loss = softplus(-model.critic(v, condition)).mean() + softplus(model.critic(made, condition)).mean()  # fmt: skip
    if number % R1_EVERY == 0:
        loss = loss + R1_WEIGHT / 2 * R1_EVERY * gradient_penalty(model.critic, v, condition)
    return loss


def generator_step(model: Adversaries, batch: Batch, generator: torch.Generator) -> torch.Tensor:
    """Non-saturating loss of the generator."""
    noise = torch.randn(batch.target.shape, generator=generator).to(batch.target)
    made = model.generator(noise, batch.condition)
    return softplus(-model.critic(made, batch.condition)).mean()


def adversarial_loss(model: Adversaries, player: int, batch: Batch, generator: torch.Generator, number: int) -> torch.Tensor:  # fmt: skip
    """Loss of the critic (0) or of the generator (1)."""
    if player == 0:
        return critic_step(model, batch, generator, number)
    return generator_step(model, batch, generator)


# %%
def train_gan(name: str, model: Adversaries, schedule: Schedule, seed: int, rows: np.ndarray) -> pd.DataFrame:  # fmt: skip
    """Train both players in turn; the generator's moving average is kept at the end."""
    accelerator, started = make_accelerator(), time.monotonic()
    rate, size = schedule.learning_rate, schedule.batch_size
    players = [torch.optim.Adam(part.parameters(), rate, betas=(0.0, 0.99), fused=True) for part in (model.critic, model.generator)]  # fmt: skip
    average = moving_average(model.generator.to(accelerator.device), 0.995)
    network, *players = accelerator.prepare(OnePass(model, adversarial_loss), *players)
    accelerator.register_for_checkpointing(average)
    state = run.directory / "state" / "".join(c if c.isalnum() else "-" for c in name)
    extra = load_training_state(accelerator, state) or {"history": [], "seconds": 0.0}
    history, earlier = extra["history"], extra["seconds"]
    for epoch in range(len(history), schedule.epochs):
        generator, totals, number = torch_generator(seed, epoch), np.zeros(2), 0
        for number, chosen in enumerate(epoch_batches(rows, size, seed, epoch, accelerator.process_index, accelerator.num_processes)):  # fmt: skip
            batch = training_batch("gan", chosen, generator)
            for player, optimizer in enumerate(players):
                loss = network(player, batch, generator, number)
                for each in players:
                    each.zero_grad()
                accelerator.backward(loss)
                optimizer.step()
                totals[player] += loss.item()
            average.update_parameters(model.generator)
        critic, made = totals / (number + 1)
        history.append({"epoch": epoch + 1, "critic_loss": critic, "generator_loss": made})
        seconds = earlier + time.monotonic() - started
        save_training_state(accelerator, state, {"history": history, "seconds": seconds})
    model.generator.load_state_dict(average.module.state_dict())
    frame = pd.DataFrame(history)
    frame.attrs["seconds"] = earlier + time.monotonic() - started
    print(f"{name}: after {frame.attrs['seconds']:.0f} s", flush=True)
    return frame


# %% [markdown]
# Before minutes are spent: the denoiser must be able to learn one batch by heart.


# %%
def overfit_one_batch(steps: int) -> tuple[float, float]:
    """EDM loss on 16 jets, mean over the first and over the last tenth of ``steps`` updates."""
    seed_everything(0)
    model, rows = with_prior(Denoiser()).to(DEVICE), splits.train[:16]
    v, condition = batch_of(rows, flip=False), conditions[rows].to(DEVICE)
    optimizer, generator, values = torch.optim.AdamW(model.parameters(), 3e-3), torch_generator(0, 0), []  # fmt: skip
    for _ in range(steps):
        loss = edm_loss(model, v, condition, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    part = max(1, steps // 10)
    return float(np.mean(values[:part])), float(np.mean(values[-part:]))


print("loss on one memorised batch: {:.3f} -> {:.3f}".format(*overfit_one_batch(40 if PROFILE == "smoke" else 150)))  # fmt: skip


# %%
def run_job(arm: str, seed: int) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Train an arm from random weights: history, and weights as arrays."""
    seed_everything(seed)
    model, schedule, name = with_prior(NETWORKS[arm]()), CONFIG.schedules[arm], f"{arm} {seed}"
    if arm.startswith("gan"):
        history = train_gan(name, model, schedule, seed, splits.train)
    elif arm == "student":
        count = len(pairs) - len(pairs) // 10
        history = train(name, arm, model, schedule, seed, np.arange(count), np.arange(count, len(pairs)))  # fmt: skip
    else:
        history = train(name, arm, model, schedule, seed, splits.train, splits.validation)
    return history, {k: v.detach().cpu().numpy() for k, v in model.state_dict().items()}


def restored(arm: str, weights: dict[str, np.ndarray]) -> nn.Module:
    """The trained network of an arm."""
    model = NETWORKS[arm]()
    model.load_state_dict({k: torch.as_tensor(v) for k, v in weights.items()})
    return model.eval().to(DEVICE)


def run_jobs(jobs: list[tuple[str, int]]) -> None:
    """Train side by side and keep networks and histories."""
    for job, (history, weights) in zip(jobs, side_by_side(run_job, jobs), strict=True):
        models[job], histories[job] = restored(job[0], weights), history


models, histories = {}, {}
FIRST = (
    "diffusion",
    "flow matching",
    "gan",
    "gan, plain",
    "vae",
    "totals",
    "flow",
)  # the dearest first
run_jobs([(arm, seed) for arm in FIRST for seed in range(CONFIG.schedules[arm].seeds)])

# %% [markdown]
# **Stage one** draws the conditions of all generators; the same draws for all, so that they differ in the image alone. **The
# student** then learns from jets of the teacher.


# %%
@torch.no_grad()
def stage_one(n: int, seed: int) -> torch.Tensor:
    """Conditions (n, 27) of ``n`` new jets."""
    z = torch.randn(n, N_SUMMARY, generator=torch_generator(seed, 77))
    return models["totals", 0].sample(z.to(DEVICE), z.new_zeros(n, 1).to(DEVICE))[-1].clamp(-4, 4)


seed_everything(0)
pair_conditions = stage_one(CONFIG.pairs, 5).cpu()
z = torch.randn(CONFIG.pairs, COMPONENTS, generator=torch_generator(5, 5))
outputs = models["flow", 0].sample(z.to(DEVICE), pair_conditions.to(DEVICE))
pairs = torch.stack([z, *[part.cpu() for part in outputs]], 1)
run_jobs([("student", seed) for seed in range(CONFIG.schedules["student"].seeds)])

# %%
fig, axes = plt.subplots(2, 4, figsize=(11, 5))
for axis, arm in zip(axes.flat, (*GENERATORS, "totals"), strict=True):
    curves = [histories[arm, seed] for seed in range(CONFIG.schedules[arm].seeds)]
    if arm.startswith("gan"):
        for number, player in enumerate(("critic", "generator")):
            axis.plot(curves[0].epoch, curves[0][f"{player}_loss"], plotting.LINES[number] + "o", ms=3, label=player)  # fmt: skip
        axis.set(xlabel="epoch", ylabel="loss")
        axis.legend()
    else:
        plotting.learning_curves(axis, curves, "loss", choose="loss")
    axis.set_title(LABELS[arm])
plt.show()
display(pd.DataFrame({LABELS[arm]: {
    "epochs": CONFIG.schedules[arm].epochs, "seeds": CONFIG.schedules[arm].seeds,
    "seconds a seed": round(np.mean([h.attrs["seconds"] for (a, _), h in histories.items() if a == arm]), 1)}
    for arm in (*GENERATORS, "totals")}).T)  # fmt: skip
print(f"{worker_count(7)} training(s) at a time on {DEVICE}")

# %% [markdown]
# **The way back.** One generated jet on its way from noise, ECAL: above the state of the sampler, below the denoiser's guess of
# the end at that moment.

# %%
trail: list = []
condition = stage_one(1, 9)
noise = torch.randn(1, N_CHANNELS, GRID, GRID, generator=torch_generator(9, 9)).to(DEVICE)
sample_diffusion(models["diffusion", 0], condition, noise, 18, trail)
shown = [trail[k] for k in (0, 4, 7, 10, 13, 16)]
fig, axes = plt.subplots(2, len(shown), figsize=(11, 4.2))
for column, (sigma, state) in zip(axes.T, shown, strict=True):
    with torch.inference_mode():
        guess = models["diffusion", 0](state, state.new_full((1,), sigma), condition)
    v_image(column[0], state[0, ECAL].cpu() * SIGMA_DATA / np.hypot(SIGMA_DATA, sigma), f"$\\sigma={sigma:.2g}$")  # fmt: skip
    v_image(column[1], guess[0, ECAL].cpu(), "guess")
plt.show()

# %% [markdown]
# ## 6. The tests, and why these
# Every test compares a sample with the reference, half of the test jets; the *floor* is the other half. No single number is
# enough: a distance of marginals is blind to correlations, a classifier is blind to missing modes that are rare, a
# coverage is blind to details.
#
# | test | what it would miss nothing of | blind to |
# | --- | --- | --- |
# | separation power, $\chi^2$ per observable | one-dimensional distributions | correlations |
# | FPD, KPD of observables | means, covariances; up to fourth moments | details of the image |
# | classifier on observables (trees), on towers (dense), on images (CNN) | whatever it can learn; 0.5 is perfect | rare losses; what it cannot learn |
# | precision, density | jets that should not be | missing jets |
# | recall, coverage | missing jets, collapse | wrong proportions |
# | nearest neighbours | copies of training jets | everything else |
# | power spectrum, overlap of channels | texture, relations between channels | amplitudes |
# | worst direction (own) | the single most wrong observable or combination, with a p-value | effects spread thinly over all |
#
# **Observables** of each channel: sum, active towers, centre and widths in $\eta$ and $\varphi$, share of the leading tower,
# $p_T^D$, shares inside 1.5 and within 1.5 to 4.5 towers; a mass proxy from ECAL and HCAL; overlaps of pairs of channels.

# %%
AXIS = np.arange(GRID) - GRID // 2
RADIUS = np.hypot(*np.meshgrid(AXIS, AXIS, indexing="ij"))
OVERLAPS = ((0, 3), (0, 4), (3, 4), (0, 5), (5, 6), (6, 7))
SHORT = ("track", "dz", "d0", "ecal", "hcal", "bpix1", "bpix2", "bpix3")


def observables(x: np.ndarray) -> pd.DataFrame:
    """High-level observables of towers (n, 8, 25, 25), positions in towers; one line a jet."""
    x = x.astype(np.float64)
    total = x.sum((2, 3))
    share = x / np.maximum(total, 1e-9)[..., None, None]
    profile = share.sum(3), share.sum(2)  # (n, 8, 25) over eta, over phi
    columns = {"sum": np.log1p(total), "active": (x > THRESHOLD).sum((2, 3))}
    for name, p in zip(("eta", "phi"), profile, strict=True):
        columns[name] = p @ AXIS
        columns[f"width_{name}"] = np.sqrt(np.maximum(p @ AXIS**2 - columns[name] ** 2, 0))
    columns["leading"], columns["ptd"] = share.max((2, 3)), np.sqrt((share**2).sum((2, 3)))
    for name, low, high in (("core", -1, 1.5), ("ring", 1.5, 4.5)):
        columns[name] = share[..., (low < RADIUS) & (high >= RADIUS)].sum(2)
    table = {f"{s}_{k}": v[:, c] for k, v in columns.items() for c, s in enumerate(SHORT)}
    both = (total[:, 3] * columns["width_eta"][:, 3] + total[:, 4] * columns["width_eta"][:, 4]), (
        total[:, 3] * columns["width_phi"][:, 3] + total[:, 4] * columns["width_phi"][:, 4])  # fmt: skip
    table["mass_proxy"] = np.log1p(np.hypot(*both))
    length = np.sqrt((x**2).sum((2, 3))) + 1e-9
    for a, b in OVERLAPS:
        overlap = (x[:, a] * x[:, b]).sum((1, 2)) / (length[:, a] * length[:, b])
        table[f"{SHORT[a]}_{SHORT[b]}"] = overlap
    return pd.DataFrame(table)


class Sample(NamedTuple):
    """Jets in towers, kept sparse, and their observables."""

    images: SparseImages
    table: pd.DataFrame

    @property
    def features(self) -> np.ndarray:
        return self.table.to_numpy()


# %%
def real_sample(rows: np.ndarray) -> Sample:
    """Jets of the data set."""
    chosen = towers.subset(rows)
    return Sample(chosen, pd.concat([observables(towers.dense(part).numpy()) for part in in_chunks(rows)], ignore_index=True))  # fmt: skip


# %%
def independent_v(n: int, generator: torch.Generator) -> torch.Tensor:
    """The trivial generator: every tower of a jet from another training jet; (n, 8, 25, 25)."""
    pool = batch_of(splits.train[:1000], generator).flatten(1)  # (m, 5000)
    donor = torch.randint(len(pool), (n, pool.shape[1]), generator=generator)
    return pool.cpu().gather(0, donor).view(n, N_CHANNELS, GRID, GRID)


EVALUATIONS = {  # of the network for a batch of jets
    "diffusion": 35, "diffusion, 9 steps": 17, "diffusion, 4 steps": 7, "flow matching": 20,
    "flow matching, 4 steps": 8, "flow matching, 1 step": 1, "gan": 1, "gan, plain": 1, "vae": 1,
    "flow": COMPONENTS, "student": 1,
}  # fmt: skip


@torch.inference_mode()
def make_v(name: str, seed: int, condition: torch.Tensor, generator: torch.Generator) -> torch.Tensor:  # fmt: skip
    """v of new jets with given conditions (B, 27), by a generator or a variant "arm, k steps"."""
    arm, _, variant = name.partition(", ") if "step" in name else (name, "", "")
    steps = {"steps": int(variant.split()[0])} if variant else {}
    if arm == "independent":
        return independent_v(len(condition), generator)
    model = models[arm, seed]
    if arm in ("flow", "student"):
        z = torch.randn(len(condition), COMPONENTS, generator=generator).to(condition)
        made = (model.sample if arm == "flow" else model.one_pass)(z, condition)[-1]
        return components.inverse(made, generator)
    noise = torch.randn(len(condition), N_CHANNELS, GRID, GRID, generator=generator).to(condition)
    if arm == "diffusion":
        return sample_diffusion(model, condition, noise, **steps)
    if arm == "flow matching":
        return sample_flow(model, condition, noise, **steps)
    if arm == "vae":
        latent = torch.randn(len(condition), LATENT, generator=generator).to(condition)
        return model.decode(latent, condition) + model.log_width.exp() * noise
    return model.generator(noise, condition)


# %%
def generate(name: str, seed: int, n: int) -> Sample:
    """``n`` new jets: conditions from stage one (the same for all generators), images by ``name``."""
    condition, images, tables = stage_one(n, 1000 + seed), [], []
    for number, part in enumerate(in_chunks(np.arange(n))):
        v = make_v(name, seed, condition[part], torch_generator(2000 + seed, number))
        x = codec.decode(v.float().cpu().numpy(), condition[part].cpu().numpy()).x
        images.append(SparseImages.from_dense(x))
        tables.append(observables(x))
    return Sample(concatenate(images), pd.concat(tables, ignore_index=True))


# %%
half = len(splits.test) // 2
reference, floor = real_sample(splits.test[:half]), real_sample(splits.test[half : 2 * half])
names = ["diffusion", *[n for n in EVALUATIONS if n != "diffusion"], "independent"]
LABELS |= {name: name for name in names if "step" in name} | {"diffusion": "diffusion, 18 steps", "flow matching": "flow matching, 10 steps"}  # fmt: skip
wanted = [(name, seed, half) for name in names
          for seed in range(CONFIG.schedules[name].seeds if name in CONFIG.schedules else 1)]  # fmt: skip
samples = dict(zip([job[:2] for job in wanted], side_by_side(generate, wanted), strict=True))
samples["real", 0] = floor
runs = {name: [s for (n, _), s in samples.items() if n == name] for name in (*names, "real")}

# %%
PICTURED = ("real", "diffusion", "flow matching", "gan", "vae", "student", "independent")
fig, axes = plt.subplots(4, len(PICTURED), figsize=(11.5, 7.2))
for column, name in zip(axes.T, PICTURED, strict=True):
    pair = runs[name][0].images.dense(np.arange(2)).numpy()
    for axis, (jet, channel) in zip(column, ((0, 3), (1, 3), (0, 0), (0, 5)), strict=True):
        image = np.ma.masked_less_equal(pair[jet, channel], 0)
        axis.imshow(np.ma.log10(image), cmap="viridis", vmin=-1, vmax=3)
        axis.set(xticks=[], yticks=[])
        axis.grid(False)
        if column is axes[:, 0].T or name == PICTURED[0]:
            axis.set_ylabel(f"jet {jet + 1}: {CHANNELS[channel]}", fontsize=9)
    column[0].set_title(LABELS[name].split(",")[0].replace(" (floor)", ""), fontsize=9)
plt.show()

# %% [markdown]
# Colour: $\log_{10}$ of a tower from $-1$ to 3. Jets in one row have nothing to do with each other, except that all generated
# ones of a row share the numbers of stage one.
#
# **Classifier two-sample tests** (Lopez-Paz & Oquab, arXiv:1610.06545). 60 % of the jets of both samples train, 20 % choose the pass and
# calibrate (isotonic), 20 % are scored. Beside the AUC stands $\mathrm{JSD}=(\ln2-\mathrm{BCE})/\ln2$ of the calibrated probabilities, 0 for
# samples that cannot be told apart.


# %%
class Judge(NamedTuple):
    """Scores of held-out jets of both samples, raw and calibrated; label 1: generated."""

    label: np.ndarray
    score: np.ndarray
    probability: np.ndarray


def parts_of(n: int) -> np.ndarray:
    """0: train (60 %), 1: stop (20 %), 2: score (20 %), for each of two samples of n jets; (2 n,)."""
    return np.tile(np.array([0, 0, 0, 1, 2])[np.arange(n) % 5], 2)


def calibrated(label: np.ndarray, score: np.ndarray, part: np.ndarray) -> Judge:
    """The held-out jets, with isotonic probabilities fitted on the second part."""
    stop, held = part == 1, part == 2
    curve = IsotonicRegression(y_min=0.02, y_max=0.98, out_of_bounds="clip").fit(score[stop], label[stop])  # fmt: skip
    return Judge(label[held], score[held], curve.predict(score[held]))


def judge_high(real: Sample, made: Sample, seed: int) -> Judge:
    """Gradient boosting on the observables."""
    x = np.concatenate([real.features, made.features])
    label, part = np.repeat([0, 1], len(x) // 2), parts_of(len(x) // 2)
    model = HistGradientBoostingClassifier(max_iter=150, learning_rate=0.07, max_leaf_nodes=15, random_state=seed)  # fmt: skip
    model = fit_trees(
        model, x[part == 0], label[part == 0], x[part == 1], label[part == 1], patience=15
    )
    return calibrated(label, model.decision_function(x), part)


def judge_network(kind: str) -> nn.Module:
    """Dense network on all towers, or a CNN on images; (B, 8, 25, 25) -> (B, 1)."""
    if kind == "low":
        return nn.Sequential(nn.Flatten(), nn.Linear(N_CHANNELS * GRID**2, 128), nn.ReLU(), nn.Dropout(0.3),
                             nn.Linear(128, 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, 1))  # fmt: skip
    return nn.Sequential(
        nn.Conv2d(N_CHANNELS, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(64, 64, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 16, 1),
    )  # fmt: skip


# %%
def judge_low(kind: str, real: Sample, made: Sample, seed: int) -> Judge:
    """A network on ln(1 + x) of the towers, the pass with the lowest loss on the second part."""
    seed_everything(seed)
    n = len(real.images)
    x = torch.cat([sample.images.dense().log1p() / 3 for sample in (real, made)])
    label, part = np.repeat([0, 1], n), parts_of(n)
    target = torch.as_tensor(label, dtype=torch.float32)
    model = judge_network(kind).to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.02)
    best, score = np.inf, np.zeros(2 * n)
    train_rows, stop = np.flatnonzero(part == 0), part == 1
    for epoch in range(CONFIG.test_epochs):
        model.train()
        for rows in epoch_batches(train_rows, min(64, len(train_rows)), seed, epoch):
            logit = model(x[rows].to(DEVICE)).squeeze(1)
            loss = binary_cross_entropy_with_logits(logit, target[rows].to(DEVICE))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.inference_mode():
            now = torch.cat([model(part.to(DEVICE)).squeeze(1).cpu() for part in x.split(500)])
        value = binary_cross_entropy_with_logits(now[stop], target[stop]).item()
        if value < best:
            best, score = value, now.numpy()
    return calibrated(label, score, part)


JUDGES = {"high": judge_high, "low": partial(judge_low, "low"), "cnn": partial(judge_low, "cnn")}
sped_up = [name for name in names if "step" in name]  # variants: judged on observables only
plan = [(name, k, judge, seed) for name in runs for k in range(len(runs[name])) for judge in JUDGES
        if judge == "high" or name not in sped_up for seed in range(CONFIG.test_seeds)]  # fmt: skip
found = side_by_side(
    lambda name, k, judge, seed: JUDGES[judge](reference, runs[name][k], seed), plan
)
judged: dict[tuple[str, str], list[Judge]] = {}
for (name, _, judge, _), result in zip(plan, found, strict=True):
    judged.setdefault((name, judge), []).append(result)

# %% [markdown]
# **Distances, coverage, copies.** Precision and recall (Kynkäänniemi et al., arXiv:1904.06991), density and coverage (Naeem et al.,
# arXiv:2002.09797) with the fifth neighbour, on standardised observables. *Copies*: the share of generated jets that lie nearer
# to a training jet than to an equal number of validation jets, in $\ln(1+x)$ of the towers less the mean jet, by angle; about one
# half for a generator that invents, one for one that copies. *Support*: by the birthday paradox (Arora & Zhang, arXiv:1706.08224), $s$ jets with a 50 %
# chance of two that are duplicates mean a support of about $s^2$; here a duplicate is a pair nearer than 0.1 % of real pairs, and
# the number is relative to that of real jets.


# %%
def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean, (n, m)."""
    a, b = (torch.as_tensor(np.ascontiguousarray(x), dtype=torch.float32) for x in (a, b))
    return torch.cdist(a, b).numpy()


def neighbourhood(real: np.ndarray, made: np.ndarray, k: int = 5) -> dict[str, np.ndarray]:
    """Precision and density of each generated jet, recall and coverage of each real one."""
    k = min(k, len(real) - 1, len(made) - 1)
    radius_real, radius_made = (np.partition(distances(x, x), k, 1)[:, k] for x in (real, made))
    d = distances(real, made)  # (real, made)
    inside = d <= radius_real[:, None]
    return {"precision": inside.any(0), "recall": (d <= radius_made).any(1), "density": inside.sum(0) / k, "coverage": inside.any(1)}  # fmt: skip


def nearer_to_training(made: np.ndarray, train_jets: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Whether each jet lies nearer to one of ``train_jets`` than to one of equally many others; 1/2 if equal."""
    d = distances(made, train_jets).min(1) - distances(made, other).min(1)
    return np.where(d == 0, 0.5, d < 0)


def duplicate_rate(x: np.ndarray, threshold: float) -> float:
    """Share of pairs of jets that are nearer than ``threshold``; at least one pair counts."""
    pair = torch.nn.functional.pdist(torch.as_tensor(x, dtype=torch.float32))
    return max(int((pair < threshold).sum()), 1) / len(pair)


def birthday_support(rate: float) -> float:
    """s^2 of the batch size s with a 50 % chance of a duplicate, when a pair is one with ``rate``."""
    return 2 * np.log(2) / rate


def patterns(images: SparseImages, rows: np.ndarray) -> np.ndarray:
    """ln(1 + x) less the mean jet, of unit length: (n, 5000). Without it the faintest jets are near to all."""
    x = images.dense(rows).log1p().flatten(1) - mean_pattern
    return (x / x.norm(dim=1, keepdim=True).clamp(min=1e-9)).numpy()


def standardised(x: np.ndarray) -> np.ndarray:
    """Observables in units of the reference's spread; constant ones are left out."""
    return ((x - centre_spread[0]) / centre_spread[1])[:, centre_spread[1] > 1e-9].clip(-20, 20)


# %%
spread = reference.features.std(0)
centre_spread = (reference.features.mean(0), np.where(spread > 1e-9, spread, 1e-12))
closest = np.quantile(torch.nn.functional.pdist(torch.as_tensor(standardised(reference.features), dtype=torch.float32)).numpy()[:2_000_000], 1e-3)  # fmt: skip
n_copies = min(len(splits.validation), 2000)
mean_pattern = towers.dense(splits.train[:1000]).log1p().flatten(1).mean(0)
near = [patterns(towers, part[:n_copies]) for part in (splits.train, splits.validation)]


# %% [markdown]
# **Power spectrum** of $\ln(1+x)$, averaged over jets and rings of equal frequency; the number is the mean $|\ln|$ of the ratio to the
# reference. **Overlap**: the correlation over towers of $\ln(1+x)$ of two channels, averaged over jets: an $8\times8$ matrix; the
# number is the largest difference. **Separation power** and $\chi^2$ per degree of freedom: 86 observables in 20 bins of equal
# population of the reference.


# %%
def radial_spectrum(images: SparseImages) -> np.ndarray:
    """Power in rings of frequency (8, 13), mean over jets."""
    ring = np.rint(np.hypot(*np.meshgrid(*2 * [np.fft.fftfreq(GRID) * GRID], indexing="ij"))).astype(int)  # fmt: skip
    total = np.zeros((N_CHANNELS, GRID, GRID))
    for _, x in images.iter_dense(500):
        total += torch.fft.fft2(x.log1p()).abs().square().sum(0).double().numpy()
    rings = np.arange(GRID // 2 + 1)
    return np.stack([total[:, ring == r].mean(1) for r in rings], 1) / len(images)


def channel_overlap(images: SparseImages) -> np.ndarray:
    """Correlation over towers of all pairs of channels, mean over jets (8, 8)."""
    total = torch.zeros(N_CHANNELS, N_CHANNELS)
    for _, x in images.iter_dense(500):
        x = x.log1p().flatten(2)  # (B, 8, 625)
        x = x - x.mean(2, keepdim=True)
        x = x / x.norm(dim=2, keepdim=True).clamp(min=1e-9)
        total += (x @ x.transpose(1, 2)).sum(0)
    return (total / len(images)).numpy()


def bin_counts(x: np.ndarray, edges: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """Histograms (k, bins) of observables (n, k) with inner edges (bins - 1, k)."""
    bins = len(edges) + 1
    number = (x[:, None] > edges[None]).sum(1) + bins * np.arange(x.shape[1])  # (n, k)
    weight = np.ones(len(x)) if weight is None else weight
    return np.bincount(number.ravel(), np.repeat(weight, x.shape[1]), bins * x.shape[1]).reshape(-1, bins)  # fmt: skip


def histogram_distances(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Mean over observables of separation power and of chi2 per degree of freedom; histograms (k, bins)."""
    filled = (a + b) > 0
    chi2 = np.where(filled, (a - b) ** 2 / np.maximum(a + b, 1e-9), 0).sum(1) / np.maximum(filled.sum(1) - 1, 1)  # fmt: skip
    return float(np.mean([separation_power(*pair) for pair in zip(a, b, strict=True)])), float(chi2.mean())  # fmt: skip


# %%
def histogram_entries(real: np.ndarray, made: list[np.ndarray], resamples: int = 40) -> dict[str, dict]:  # fmt: skip
    """Entries of both distances, intervals by resampling the jets (reflected: resampling adds its own distance)."""
    edges, rng = np.quantile(real, np.linspace(0, 1, 21)[1:-1], axis=0), np.random.default_rng(0)
    counts = [bin_counts(x, edges) for x in made]
    value = np.array(
        [histogram_distances(bin_counts(real, edges), c) for c in counts]
    )  # (seeds, 2)
    draws = []
    for _ in range(resamples):
        a, b = (bin_counts(x, edges, rng.poisson(1, len(x))) for x in (real, made[0]))
        draws.append(histogram_distances(a, b * a.sum() / b.sum()))
    centre, entries = value.mean(0), {}
    width = 1.96 * np.std(draws, axis=0)
    for k, name in enumerate(("separation", "chi2")):
        spread = value[:, k].std(ddof=1) if len(value) > 1 else None
        entries[name] = metric_entry(centre[k], max(0.0, centre[k] - width[k]), centre[k] + width[k], spread)  # fmt: skip
    return entries


# %% [markdown]
# **The worst direction: a test of its own.** Distances say how far, not whether that is more than chance; a classifier's AUC
# needs a training. Wanted: a test without training, sensitive to *one* badly modelled quantity or pair of quantities among
# very many, with an honest p-value. Take all standardised observables and 150 fixed random combinations of two or three of them (which
# see correlations that marginals do not). For every such direction $d$ compute the Kolmogorov–Smirnov distance and keep the worst,
#
# $$T=\max_d\ \sqrt{\tfrac{nm}{n+m}}\ \sup_t\left|F_d^{\mathrm{ref}}(t)-F_d^{\mathrm{gen}}(t)\right| .$$
#
# The directions are strongly correlated and many observables are discrete, so no table gives the distribution of $T$. It is
# *drawn*: the real jets of both halves are mixed and divided again, many times, **real against real**. With $T_k$ from $K$ such
# divisions $p=(1+\#\{T_k\ge T\})/(K+1)$, which is exact if generated jets are like real ones, whatever the number of directions: the
# maximum pays for having looked everywhere, and equal values of $T$ count against a rejection. With thousands of jets every generator of this size is rejected. The question then is
# how many jets it takes: the **detection size**, the smallest sample with a median $p<0.05$, which grows as the generator improves.

# %%
COMBINATIONS = 150


def directions(k: int, seed: int = 0) -> np.ndarray:
    """Observables themselves and random combinations of two or three of them: (k, k + COMBINATIONS)."""
    rng = np.random.default_rng(seed)
    mixed = np.zeros((k, COMBINATIONS))
    for column in range(COMBINATIONS):
        chosen = rng.choice(k, min(k, 2 + column % 2), replace=False)
        mixed[chosen, column] = rng.choice([-1, 1], len(chosen)) * rng.uniform(0.5, 1, len(chosen))
    return np.concatenate([np.eye(k), mixed], 1)


def ks_statistics(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """sqrt(n m / (n + m)) sup |F_a - F_b| of every column; equal values count as one step."""
    pooled = np.concatenate([a, b])
    order = np.argsort(pooled, 0)
    step = np.where(order < len(a), 1 / len(a), -1 / len(b))
    gap = np.abs(np.cumsum(step, 0))
    value = np.take_along_axis(pooled, order, 0)
    gap[:-1][value[1:] == value[:-1]] = 0  # within a tie
    return gap.max(0) * np.sqrt(len(a) * len(b) / (len(a) + len(b)))


def null_distribution(real: np.ndarray, n: int, draws: int, seed: int = 0) -> np.ndarray:
    """T of random divisions of real jets (N, d), N >= 2 n, into n against n."""
    rng, values = np.random.default_rng(seed), []
    for _ in range(draws):
        rows = rng.permutation(len(real))[: 2 * n]
        values.append(ks_statistics(real[rows[:n]], real[rows[n:]]).max())
    return np.sort(values)


def p_value(statistic: float | np.ndarray, null: np.ndarray) -> np.ndarray:
    """(1 + number of null values at or above) / (1 + number of null values)."""
    return (1 + len(null) - np.searchsorted(null, statistic, "left")) / (1 + len(null))


# %%
def median_p(real: np.ndarray, made: np.ndarray, n: int, null: np.ndarray, draws: int = 9) -> float:  # fmt: skip
    """Median p-value of samples of n jets each."""
    rng = np.random.default_rng(n)
    draws = draws if n < len(made) else 1
    values = [ks_statistics(real[rng.permutation(len(real))[:n]], made[rng.permutation(len(made))[:n]]).max()
              for _ in range(draws)]  # fmt: skip
    return float(np.median(p_value(np.array(values), null)))


# %%
turn = directions(int((centre_spread[1] > 1e-9).sum()))
turned = {name: standardised(runs[name][0].features) @ turn for name in runs}
turned_reference = standardised(reference.features) @ turn
real_pool = np.concatenate([turned_reference, turned["real"]])
test_sizes = [n for n in (12, 25, 50, 100, 200, 400, 800, 1600, 3200) if n < half] + [half]
fewer = lambda n: max(20, min(CONFIG.null_draws, CONFIG.null_draws * 800 // n))  # noqa: E731 large samples are dear
nulls = dict(zip(test_sizes, side_by_side(null_distribution, [(real_pool, n, fewer(n)) for n in test_sizes]), strict=True))  # fmt: skip
p_values = {name: {n: median_p(turned_reference, turned[name], n, nulls[n]) for n in test_sizes} for name in runs}  # fmt: skip
statistics = {name: ks_statistics(turned_reference, turned[name]) for name in runs}


def detection_size(name: str) -> int | None:
    """The smallest sample whose median p-value is below 0.05; None if no size is."""
    return next((n for n in test_sizes if p_values[name][n] < 0.05), None)


# How often the test rejects real jets: divisions that the null distribution has not seen.
again = null_distribution(real_pool, test_sizes[len(test_sizes) // 2], CONFIG.null_draws, seed=1)
false_positives = float(np.mean(p_value(again, nulls[test_sizes[len(test_sizes) // 2]]) < 0.05))


# %%
def round_ticks(axis: Axis) -> None:
    """1, 2, 5, 10 as ticks of a logarithmic axis that spans few powers of ten."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


kept = centre_spread[1] > 1e-9
titles = [*reference.table.columns[kept], *["a combination"] * COMBINATIONS]
fig, axes = plt.subplots(1, 2, figsize=(11, 3.8))
axes[0].hist(nulls[half], 20, color="grey", alpha=0.6, label="real against real")
for number, name in enumerate(("real", "diffusion", "flow matching", "gan", "vae", "student")):
    axes[0].axvline(statistics[name].max(), color=plotting.PALETTE[number], ls=plotting.LINES[number % 4], label=LABELS[name])  # fmt: skip
    axes[1].plot(test_sizes, [p_values[name][n] for n in test_sizes], "o" + plotting.LINES[number % 4], color=plotting.PALETTE[number])  # fmt: skip
axes[0].set(xlabel=f"worst Kolmogorov–Smirnov statistic T, {half} jets each", ylabel="divisions", xscale="log")  # fmt: skip
round_ticks(axes[0].xaxis)
axes[0].legend(fontsize=8)
axes[1].axhline(0.05, color="grey", lw=0.8)
axes[1].set(xlabel="jets of each sample", ylabel="median p-value", xscale="log", yscale="log")
plt.show()
display(Markdown(f"Real jets against real jets, divisions not used for the null distribution: rejected at 5 % in {100 * false_positives:.1f} % of {len(again)}."))  # fmt: skip
display(pd.DataFrame({LABELS[name]: {
    "T": f"{statistics[name].max():.2f}", "p-value": f"{p_values[name][half]:.4f}", "worst direction": titles[int(statistics[name].argmax())],
    "jets needed to tell": detection_size(name) or f"more than {half}"} for name in runs}).T)  # fmt: skip

# %% [markdown]
# ## 7. Evaluation
# The test set, scored once by all generators.


# %%
def mean_entry(values: list[np.ndarray]) -> dict[str, float]:
    """Entry of a mean over jets and seeds, normal interval over jets."""
    mean = [float(np.mean(v)) for v in values]
    error = 1.96 * float(np.std(values[0])) / np.sqrt(len(values[0]))
    spread = np.std(mean, ddof=1) if len(mean) > 1 else None
    low, high = np.mean(mean) - error, np.mean(mean) + error
    if all(v.min() >= 0 and v.max() <= 1 for v in values):
        low, high = max(low, 0.0), min(high, 1.0)
    return metric_entry(np.mean(mean), low, high, spread)


def fit_entry(values: list[tuple[float, float]]) -> dict[str, float]:
    """Entry of a distance: mean over seeds, 95 % interval from the mean error of the fits."""
    value, error = np.mean(values, axis=0)
    spread = np.std([v for v, _ in values], ddof=1) if len(values) > 1 else None
    return metric_entry(value, value - 1.96 * error, value + 1.96 * error, spread)


def auc_entry(name: str, judge: str) -> dict[str, float]:
    """AUC over seeds of the classifier and of the generator, interval over jets."""
    found = judged[name, judge]
    return evaluate({"auc": roc_auc}, found[0].label, [j.score for j in found], n_resamples=300)["auc"]  # fmt: skip


def divergence(label: np.ndarray, probability: np.ndarray, weight: np.ndarray | None = None) -> float:  # fmt: skip
    """(ln 2 - cross-entropy) / ln 2: a lower bound of the Jensen-Shannon divergence in bits."""
    return 1 - log_loss(label, probability, weight) / np.log(2)


reference_spectrum, reference_overlap = radial_spectrum(reference.images), channel_overlap(reference.images)  # fmt: skip
spectra = {name: radial_spectrum(s[0].images) / np.maximum(reference_spectrum, 1e-12) for name, s in runs.items()}  # fmt: skip
overlaps = {name: channel_overlap(s[0].images) for name, s in runs.items()}


# %%
@threadpool_limits.wrap(limits=1)  # one job a core: NumPy's threads would only wait for each other
def results_of(name: str) -> dict[str, dict[str, float]]:
    """All entries of a generator, or of the real jets in place of one."""
    features = [s.features for s in runs[name]]
    entries = {
        "fpd": fit_entry([fpd(reference.features, x) for x in features]),
        "kpd": fit_entry([kpd(reference.features, x, size=1000) for x in features]),
        **{f"c2st_auc_{judge}": auc_entry(name, judge) for judge in JUDGES if (name, judge) in judged},
        **histogram_entries(reference.features, features),
    }  # fmt: skip
    found = [neighbourhood(standardised(reference.features), standardised(x)) for x in features]
    entries |= {key: mean_entry([f[key] for f in found]) for key in found[0]}
    if name not in sped_up:
        first = judged[name, "high"][0]
        entries["jsd_high"] = evaluate({"jsd": divergence}, first.label, first.probability, n_resamples=200)["jsd"]  # fmt: skip
        tested = np.arange(min(half, 500))
        copies = [nearer_to_training(patterns(s.images, tested), *near) for s in runs[name]]
        entries["copies"] = mean_entry(copies)
    return entries


found = side_by_side(results_of, [(name,) for name in runs])
results = dict(zip(runs, found, strict=True))
TESTS = ("c2st_auc_high", "c2st_auc_low", "c2st_auc_cnn", "fpd", "kpd", "separation", "chi2")
display(Markdown(
    f"**{half:,} reference jets against as many of each generator**, {dataset.words}. Brackets: 95 % interval; ±: spread over seeds of "
    "generators and classifiers. The last row is what a perfect generator gets."
))  # fmt: skip
table = {LABELS[name]: results[name] for name in runs}
main_table = {LABELS[name]: results[name] for name in runs if name not in sped_up}
display(results_frame(main_table, TESTS[:3]))
display(results_frame(table, TESTS[3:]))
display(results_frame(table, ("precision", "recall", "density", "coverage")))
display(results_frame(main_table, ("copies", "jsd_high")))

# %% [markdown]
# **Single observables**, the eight that the diffusion model does worst: separation power of each.


# %%
def separations(made: np.ndarray) -> np.ndarray:
    """Separation power of every observable (k,) from the reference."""
    edges = np.quantile(reference.features, np.linspace(0, 1, 21)[1:-1], axis=0)
    both = zip(bin_counts(reference.features, edges), bin_counts(made, edges), strict=True)
    return np.array([separation_power(*pair) for pair in both])


powers = pd.DataFrame(
    {LABELS[name]: separations(runs[name][0].features) for name in runs if name not in sped_up},
    index=reference.table.columns,
)
display(powers.sort_values(LABELS["diffusion"], ascending=False).head(8).round(4))

# %% [markdown]
# **Does the test for copies find copies?** Training jets, taken as generated ones, must score near one.

# %%
copied = patterns(towers, splits.train[: min(200, len(splits.train))])
memoriser = float(np.mean(nearer_to_training(copied, *near)))
per_name = {}
for name in [n for n in runs if n not in sped_up]:
    ratio = np.abs(np.log(np.maximum(spectra[name], 1e-6)))
    difference = np.abs(overlaps[name] - reference_overlap)
    rate = duplicate_rate(standardised(runs[name][0].features)[:2000], closest)
    per_name[name] = {"spectrum, mean |ln ratio|": ratio.mean(), "largest change of an overlap": difference.max(),
                      "support / that of real jets": birthday_support(rate) / birthday_support(1e-3)}  # fmt: skip
print(f"share of copied jets found as copies: {memoriser:.2f} (memorised jets among {n_copies} of each kind)")  # fmt: skip
display(pd.DataFrame({LABELS[n]: v for n, v in per_name.items()}).T.round(3))

# %%
COLORS = dict(zip(("real", "diffusion", "flow matching", "gan", "vae", "student"), ("black", *plotting.PALETTE), strict=False))  # fmt: skip
fig, axes = plt.subplots(2, 4, figsize=(11.5, 5.6))
for axis, channel in zip(axes[0], (0, 3, 4, 5), strict=True):
    for number, (name, color) in enumerate(COLORS.items()):
        axis.plot(spectra[name][channel], plotting.LINES[number % 4], color=color, label=LABELS[name].split(",")[0])  # fmt: skip
    axis.set(xlabel="frequency [1/image]", title=CHANNELS[channel], yscale="log")
    round_ticks(axis.yaxis)
axes[0, 0].set_ylabel("power / reference")
for axis, name in zip(axes[1], ("diffusion", "flow matching", "gan", "vae"), strict=True):
    axis.imshow(overlaps[name] - reference_overlap, cmap="RdBu_r", vmin=-0.2, vmax=0.2)
    axis.set(title=f"{LABELS[name].split(',')[0]} − reference", xticks=range(8), yticks=range(8))
    axis.set_yticklabels(CHANNELS if axis is axes[1, 0] else [], fontsize=7)
    axis.set_xticklabels(CHANNELS, fontsize=7, rotation=90)
    axis.grid(False)
axes[0, 3].legend(fontsize=7)
plt.show()

# %% [markdown]
# Above: power spectra. Below: overlap of channels, generated minus real; the colour scale ends at $\pm0.2$.
#
# **Observables** that stage one does not fix.

# %%
SHOWN = {
    "track_core": "track $p_T$ within 1.5 towers", "track_width_eta": "track width in $\\eta$ [towers]",
    "ecal_ptd": "ECAL $p_T^D$", "ecal_width_phi": "ECAL width in $\\varphi$ [towers]", "track_ecal": "overlap of tracks and ECAL",
    "hcal_core": "HCAL within 1.5 towers", "bpix1_width_eta": "BPIX1 width in $\\eta$ [towers]", "bpix1_bpix2": "overlap of BPIX1 and 2",
}  # fmt: skip
fig, axes = plt.subplots(2, 4, figsize=(11.5, 5.4))
for axis, (column, label) in zip(axes.flat, SHOWN.items(), strict=True):
    edges = np.linspace(*np.quantile(reference.table[column], [0.003, 0.997]), 31)
    for number, (name, color) in enumerate(COLORS.items()):
        axis.hist(runs[name][0].table[column], edges, weights=np.full(half, 1 / half), histtype="step", color=color,
                  ls=plotting.LINES[number % 4], lw=1.3, label=LABELS[name].split(",")[0])  # fmt: skip
    axis.set(xlabel=label, yticks=[])
axes[0, 0].set_ylabel("share of jets")
fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
plt.show()

# %% [markdown]
# **Which generator is nearest to nature?** As in the CaloChallenge (arXiv:2410.21611): a classifier learns to name the generator
# of a jet and is then shown *real* jets; the mean logarithm of the probability that it gives to each generator is highest for
# the one whose jets are most like real ones.

# %%
CLASSES = (
    "diffusion",
    "flow matching",
    "gan",
    "gan, plain",
    "vae",
    "flow",
    "student",
    "independent",
)
made = np.concatenate([runs[name][0].features for name in CLASSES])
number = np.repeat(np.arange(len(CLASSES)), half)
namer = HistGradientBoostingClassifier(max_iter=40, learning_rate=0.1, max_leaf_nodes=15, early_stopping=False, random_state=0)  # fmt: skip
fitted = np.tile(np.arange(half) % 5 < 4, len(CLASSES))
namer.fit(made[fitted], number[fitted])
posterior = np.log(np.clip(namer.predict_proba(reference.features), 1e-7, None))  # (n, classes)
named = float(np.mean(namer.predict(made[~fitted]) == number[~fitted]))
posteriors = {name: mean_entry([posterior[:, k]]) for k, name in enumerate(CLASSES)}
print(f"generators of held-out generated jets named correctly: {named:.2f} (by chance {1 / len(CLASSES):.2f})")  # fmt: skip
display(results_frame({LABELS[n]: {"log-posterior": e} for n, e in posteriors.items()}))

# %% [markdown]
# **Calibration and time.** Times are of everything: stage one, image, way back to towers. Batches above 500 jets go through in parts of
# 500, one of which is timed.


# %%
def seconds_a_jet(name: str, n: int) -> float:
    """Seconds per jet in a batch of ``n``, after one call to warm up where that is cheap."""
    size = min(n, 500)
    if size <= 100:
        generate(name, 0, size)
    started = time.perf_counter()
    generate(name, 0, size)
    return (time.perf_counter() - started) / size


batch_sizes = (1, min(100, CONFIG.largest_batch), CONFIG.largest_batch)
speeds = {name: [1e3 * seconds_a_jet(name, n) for n in batch_sizes] for name in names}
display(Markdown(f"Milliseconds a jet on {device_name()}, {torch.get_num_threads()} thread(s):"))
display(pd.DataFrame({LABELS[name]: {
    "evaluations": EVALUATIONS.get(name, 0), "parameters": f"{sizes[name.split(', ')[0] if name not in sizes else name][0]:,}" if name != "independent" else "",
    **{f"batch of {n:,}": f"{t:.2f}" for n, t in zip(batch_sizes, times, strict=True)}} for name, times in speeds.items()}).T)  # fmt: skip

# %%
fig, axes = plt.subplots(1, 3, figsize=(11.5, 4))
reliability = {
    LABELS[n].split(",")[0]: judged[n, "high"][0].probability for n in ("diffusion", "gan")
}
plotting.reliability_diagram(axes[0], judged["diffusion", "high"][0].label, reliability, n_bins=8)
for axis, key, title in ((axes[1], "c2st_auc_high", "two-sample AUC, observables"), (axes[2], "fpd", "FPD")):  # fmt: skip
    for number, name in enumerate(names):
        entry, color = results[name][key], plotting.PALETTE[number % 7]
        error = [[max(0, entry["value"] - entry["low"])], [max(0, entry["high"] - entry["value"])]]
        axis.errorbar(speeds[name][1], max(entry["value"], 1e-5), error, fmt="os^Dv<>P*Xhp"[number % 12], color=color, capsize=2, label=LABELS[name])  # fmt: skip
    axis.axhline(max(results["real"][key]["high"], 1e-5), color="grey", lw=0.8, ls="--", label="real jets, upper end")  # fmt: skip
    axis.set(xscale="log", xlabel=f"ms a jet, batch of {batch_sizes[1]}", ylabel=title)
axes[2].set_yscale("log")
fig.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
axes[0].set_title("classifier on observables, calibrated")
plt.show()

# %% [markdown]
# **Fidelity against speed**, middle and right: down and to the left is better. Below, what the comparison comes to; a generator
# wins a test against another if the intervals of both do not overlap, classifier AUCs by the paired bootstrap over
# the same jets and the same draws of stage one.

# %%
DIRECTION = {"precision": 1, "recall": 1, "coverage": 1}  # more is better; distances: less
COMPARED = (*TESTS, *DIRECTION)


def better(a: str, b: str, test: str) -> int:
    """1 if generator a is better than b in a test, -1 if worse, 0 if the intervals allow both."""
    judge = test.removeprefix("c2st_auc_")
    if (a, judge) in judged and (b, judge) in judged:
        first, second = judged[a, judge], judged[b, judge]
        k = min(len(first), len(second))
        d = paired_bootstrap(roc_auc, first[0].label, [j.score for j in first[:k]], [j.score for j in second[:k]], n_resamples=300)  # fmt: skip
        return -int(np.sign(d.low)) if d.low * d.high > 0 else 0
    x, y = results[a][test], results[b][test]
    sign = DIRECTION.get(test, -1)
    return sign * ((x["low"] > y["high"]) - (x["high"] < y["low"]))


RIVALS = ("flow matching", "gan", "vae", "flow", "student", "independent")
contest = {(rival, test): better("diffusion", rival, test) for rival in RIVALS for test in COMPARED}
words = {1: "better", -1: "worse", 0: "open"}
display(pd.DataFrame({f"against {LABELS[r].split(',')[0]}": {t: words[contest[r, t]] for t in COMPARED} for r in RIVALS}).T)  # fmt: skip


def tally(rival: str) -> str:
    """How often the diffusion model is better, worse, or neither."""
    found = [contest[rival, test] for test in COMPARED]
    most = "in most tests" if found.count(1) > len(found) / 2 else "not in most tests"
    return f"{LABELS[rival].split(',')[0]}: better in {found.count(1)}, worse in {found.count(-1)}, open in {found.count(0)} ({most})"  # fmt: skip


display(Markdown(f"The diffusion model (18 steps) in {len(COMPARED)} tests against\n\n" + "\n".join(f"- {tally(r)}" for r in RIVALS)))  # fmt: skip

# %% [markdown]
# ## 8. What goes wrong, shown and cured
# ### Complexity bias and posterior collapse of the VAE
# The decoder's mean averages over all that the latent numbers do not say: fine texture, placed at random, is the dearest to
# say and goes first. That is the complexity bias: a spectrum that falls short at high frequency, the more so the larger $\beta$ and
# the narrower the decoder. Where a latent number is not worth its KL at all, the posterior collapses onto the prior. A
# number is *active* if $\mathrm{Var}_v\,\mathrm{E}[u|v]>0.01$ (Burda et al., arXiv:1509.00519). Two cures: *free bits* (arXiv:1606.04934), which let
# every number say one nat for nothing, against the collapse; and drawing from the likelihood instead of taking its mean,
# against the missing power.

# %%
SWEEP = {
    "beta 0.3": {"beta": 0.3}, "beta 1": {}, "beta 10": {"beta": 10.0}, "beta 100": {"beta": 100.0},
    "beta 1, narrow decoder": {"width": 24}, "beta 10, free bits": {"beta": 10.0, "free_bits": 1.0},
}  # fmt: skip


def sweep_job(name: str) -> dict[str, np.ndarray]:
    """A short training of a VAE; KL and variance of the mean of each latent number, spectra of mean and draw."""
    seed_everything(0)
    model = with_prior(VAE(**SWEEP[name]))
    train(f"sweep {name}", "vae", model, CONFIG.sweep, 0, splits.train[: CONFIG.sweep_jets], splits.validation[:500])  # fmt: skip
    model.eval()
    rows, generator = splits.validation[:500], torch_generator(0, 3)
    v, condition = batch_of(rows, generator), conditions[rows].to(DEVICE)
    with torch.no_grad():
        mean, log_variance = model.encode(v, condition)
        made = model.decode(torch.randn(len(v), LATENT, generator=generator).to(v), condition)
        drawn = made + model.log_width.exp() * torch.randn(made.shape, generator=generator).to(v)
    power = lambda a: v_spectrum(a.cpu())  # noqa: E731
    return {"kl": kl_divergence(mean, log_variance).mean(0).cpu().numpy(), "variance": mean.var(0).cpu().numpy(),
            "mean": power(made), "drawn": power(drawn), "real": power(v)}  # fmt: skip


def v_spectrum(v: torch.Tensor) -> np.ndarray:
    """Radial power of v less its mean image, over jets and channels: (13,)."""
    frequency = np.fft.fftfreq(GRID) * GRID
    ring = np.rint(np.hypot(*np.meshgrid(frequency, frequency, indexing="ij"))).astype(int)
    power = torch.fft.fft2(v - v.mean(0)).abs().square().mean((0, 1)).numpy()
    return np.array([power[ring == r].mean() for r in range(GRID // 2 + 1)])


# %%
swept = dict(zip(SWEEP, side_by_side(sweep_job, [(name,) for name in SWEEP]), strict=True))
display(pd.DataFrame({name: {
    "active numbers": int((s["variance"] > 0.01).sum()), "of": LATENT, "KL [nats]": round(float(s["kl"].sum()), 2),
    "power of the mean, f > 6": round(float((s["mean"] / s["real"])[7:].mean()), 3), "power of draws, f > 6": round(float((s["drawn"] / s["real"])[7:].mean()), 3),
} for name, s in swept.items()}).T)  # fmt: skip
fig, axes = plt.subplots(1, 2, figsize=(11, 3.6))
for number, (name, s) in enumerate(swept.items()):
    style = {"color": plotting.PALETTE[number], "ls": plotting.LINES[number % 4]}
    axes[0].plot(np.sort(s["kl"])[::-1] + 1e-4, label=name, **style)
    axes[1].plot(s["mean"] / s["real"], label=name, **style)
axes[1].plot(swept["beta 1"]["drawn"] / swept["beta 1"]["real"], "k-", lw=1, label="beta 1, drawn")
axes[0].set(xlabel="latent number, sorted", ylabel="KL [nats]", yscale="log")
axes[1].set(xlabel="frequency [1/image]", ylabel="power of the mean / real", yscale="log")
axes[0].legend(fontsize=8)
plt.show()


# %%
def active(name: str) -> int:
    """Active latent numbers of a VAE of the sweep."""
    return int((swept[name]["variance"] > 0.01).sum())


def high_power(name: str, which: str = "mean") -> float:
    """Power above frequency 6 relative to real jets."""
    return float((swept[name][which] / swept[name]["real"])[7:].mean())


collapse = (
    "collapses"
    if active("beta 100") < active("beta 1")
    else "loses no active numbers here"
    if active("beta 1")
    else "has not left the prior, for which this training is too short"
)
cured = (
    "brings numbers back" if active("beta 10, free bits") > active("beta 10") else "does not help"
)
biased = "shown" if high_power("beta 1") < 0.5 else "not seen"
nearer = abs(np.log(high_power("beta 1", "drawn"))) < abs(np.log(high_power("beta 1")))
display(Markdown(
    f"From $\\beta=1$ to 100 the posterior {collapse}: {active('beta 1')} and {active('beta 100')} of {LATENT} numbers are active. At $\\beta=10$ free bits "
    f"{cured}: {active('beta 10, free bits')} instead of {active('beta 10')}. Complexity bias is {biased}: at high frequency the mean of the decoder has {high_power('beta 1'):.3f} of the "
    f"real power at $\\beta=1$, {high_power('beta 100'):.3f} at 100 and {high_power('beta 1, narrow decoder'):.3f} with the narrow decoder. A draw has "
    f"{high_power('beta 1', 'drawn'):.3f}, {'nearer to' if nearer else 'not nearer to'} one; where its power lies is another matter, as its towers are independent."
))  # fmt: skip

# %% [markdown]
# ### Mode collapse of the GAN
# **A toy of known modes**: 25 narrow normal clouds on a grid. A generated point belongs to a mode if it lies within four
# widths of its centre; a mode is found if it gets at least a fifth of its due. Three GANs of equal size and equal steps: plain; with the
# spread over the batch in the critic; with that and the gradient penalty. **Jets**: the two GANs of section 5, with and without that spread.

# %%
TOY_WIDTH = 0.05
TOY_MODES = np.stack(np.meshgrid(*2 * [np.arange(-2.0, 3.0)]), -1).reshape(-1, 2)  # (25, 2)


class ToyCritic(nn.Module):
    """Points (B, 2) -> (B, 1), optionally with the spread of its features over the batch."""

    def __init__(self, minibatch: bool) -> None:
        super().__init__()
        self.minibatch = minibatch
        self.hidden = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.out = nn.Linear(64 * (1 + minibatch), 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.hidden(x)
        if self.minibatch:
            h = torch.cat([h, (h.var(0, unbiased=False) + 1e-6).sqrt().expand_as(h)], 1)
        return self.out(h)


def mode_shares(points: np.ndarray) -> np.ndarray:
    """Share of the points (n, 2) within four widths of each mode (25,)."""
    d = np.linalg.norm(points[:, None] - TOY_MODES[None], axis=2)
    return (d < 4 * TOY_WIDTH).mean(0)


def modes_found(points: np.ndarray) -> int:
    """Modes with at least a fifth of their due."""
    return int((mode_shares(points) > 0.2 / len(TOY_MODES)).sum())


# %%
def train_toy(minibatch: bool, penalty: float, seed: int, steps: int) -> np.ndarray:
    """4,000 points of a small GAN trained on the grid."""
    seed_everything(seed)
    rng = np.random.default_rng(seed)
    generator = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))  # fmt: skip
    critic = ToyCritic(minibatch)
    players = [torch.optim.Adam(p.parameters(), 1e-3, betas=(0.5, 0.99)) for p in (critic, generator)]  # fmt: skip
    for _ in range(steps):
        real = TOY_MODES[rng.integers(25, size=128)] + TOY_WIDTH * rng.normal(size=(128, 2))
        real = torch.as_tensor(real, dtype=torch.float32).requires_grad_(penalty > 0)
        score = critic(real)
        loss = softplus(-score).mean() + softplus(critic(generator(torch.randn(128, 2)).detach())).mean()  # fmt: skip
        if penalty:
            (slope,) = torch.autograd.grad(score.sum(), real, create_graph=True)
            loss = loss + penalty / 2 * slope.square().sum(1).mean()
        for player, cost in ((0, lambda: loss), (1, lambda: softplus(-critic(generator(torch.randn(128, 2)))).mean())):  # noqa: B023  # fmt: skip
            value = cost()
            players[player].zero_grad()
            value.backward()
            players[player].step()
    with torch.no_grad():
        return generator(torch.randn(4000, 2)).numpy()


# %%
TOYS = {"plain": (False, 0.0), "spread over the batch": (True, 0.0), "spread and penalty": (True, 0.3)}  # fmt: skip
toy_jobs = [(*options, seed, CONFIG.toy_steps) for options in TOYS.values() for seed in range(2)]
toys = dict(zip(toy_jobs, side_by_side(train_toy, toy_jobs), strict=True))
toy_found = {name: [modes_found(points) for job, points in toys.items() if job[:2] == options] for name, options in TOYS.items()}  # fmt: skip
fig, axes = plt.subplots(1, 3, figsize=(10, 3.3), sharey=True)
for axis, (name, options) in zip(axes, TOYS.items(), strict=True):
    axis.plot(*toys[*options, 0, CONFIG.toy_steps][:1500].T, ".", ms=2, alpha=0.5)
    axis.plot(*TOY_MODES.T, "o", mfc="none", color=plotting.PALETTE[1], ms=7)
    axis.set(title=f"{name}: {toy_found[name][0]} of 25 modes", xlim=(-3, 3), ylim=(-3, 3), aspect="equal", xlabel="x")  # fmt: skip
axes[0].set_ylabel("y")
plt.show()
GAN_ARMS = ("gan, plain", "gan", "diffusion", "real")
display(pd.DataFrame({LABELS[n]: {
    "recall": f"{results[n]['recall']['value']:.3f} [{results[n]['recall']['low']:.3f}, {results[n]['recall']['high']:.3f}]",
    "coverage": f"{results[n]['coverage']['value']:.3f} [{results[n]['coverage']['low']:.3f}, {results[n]['coverage']['high']:.3f}]",
    "support / that of real jets": round(per_name[n]["support / that of real jets"], 3)} for n in GAN_ARMS}).T)  # fmt: skip

# %%
lost = [name for name, found in toy_found.items() if np.mean(found) < 20]
best_toy = max(TOYS, key=lambda name: np.mean(toy_found[name]))
collapsed = "collapses" if np.mean(toy_found["plain"]) < 20 else "keeps most modes"
gain = np.mean(toy_found[best_toy]) - np.mean(toy_found["plain"])
remedy = "is a cure" if gain > 0 and np.mean(toy_found[best_toy]) >= 20 else "helps" if gain > 0 else "does not help"  # fmt: skip
jets_help = {key: better("gan", "gan, plain", key) for key in ("recall", "coverage")}
missing = better("real", "gan, plain", "recall")
display(Markdown(
    f"**Toy.** The plain GAN {collapsed}: {np.mean(toy_found['plain']):.1f} of 25 modes (mean of two seeds); *{best_toy}* {remedy} with "
    f"{np.mean(toy_found[best_toy]):.1f}. **Jets.** The plain GAN's recall is {'below' if missing > 0 else 'not clearly below'} that of real jets; with the "
    f"spread over the batch recall is {words[jets_help['recall']]} and coverage {words[jets_help['coverage']]} (*open*: the intervals allow both)."
))  # fmt: skip

# %% [markdown]
# ## 9. Pixels, weights, metrics
# **From towers to $125\times125$ pixels.** The task's images are finer than what the generators make. Each active tower
# takes the pattern of a real training tower of the same channel and nearly the same value (one of the ten nearest), drawn at random, and
# scales it. The patterns are real ones by construction; what the step cannot make is a relation between the pixels of neighbouring
# towers or channels, such as a track and the crystal that it hits.


# %%
class TowerLibrary:
    """Pixels of real towers, sorted by value, for each channel."""

    def __init__(self, images: SparseImages, rows: np.ndarray) -> None:
        found = [[] for _ in range(N_CHANNELS)]
        for part in in_chunks(rows, 50):
            x = images.dense(part).numpy().reshape(-1, N_CHANNELS, GRID, TOWER, GRID, TOWER)
            x = x.transpose(0, 1, 2, 4, 3, 5).reshape(-1, N_CHANNELS, GRID**2, PATCH)
            for c in range(N_CHANNELS):
                found[c].append(x[:, c][x[:, c].sum(2) > THRESHOLD])  # (towers, 25)
        found = [np.concatenate(patterns) for patterns in found]
        self.patterns = [p[np.argsort(p.sum(1))] for p in found]

    def pixels(self, x: np.ndarray, rng: np.random.Generator, near: int = 10) -> np.ndarray:
        """Towers (n, 8, 25, 25) -> pixels (n, 8, 125, 125) with the same sums."""
        out = np.zeros((len(x), N_CHANNELS, GRID**2, PATCH), np.float32)
        flat = x.reshape(len(x), N_CHANNELS, GRID**2)
        for c, patterns in enumerate(self.patterns):
            active = flat[:, c] > 0
            if len(patterns) == 0:
                continue
            sums, wanted = patterns.sum(1), flat[:, c][active]
            low, high = (
                np.searchsorted(sums, wanted * 0.9999),
                np.searchsorted(sums, wanted * 1.0001),
            )
            start = np.where(high - low >= near, low, low - near // 2)
            place = start + (rng.random(len(wanted)) * np.maximum(high - low, near)).astype(int)
            place = place.clip(0, len(patterns) - 1)
            out[:, c][active] = patterns[place] * (wanted / sums[place])[:, None]
        out = out.reshape(-1, N_CHANNELS, GRID, GRID, TOWER, TOWER).transpose(0, 1, 2, 4, 3, 5)
        return out.reshape(-1, N_CHANNELS, PIXELS, PIXELS)


# %%
library = TowerLibrary(jets, splits.train[: CONFIG.library_jets])
count = np.arange(min(half, 100))
fine = library.pixels(runs["diffusion"][0].images.dense(count).numpy(), np.random.default_rng(0))
real_fine = jets.dense(splits.test[count]).numpy()
display(pd.DataFrame({name: {
    "active pixels a jet, generated": round(float((fine[:, c] > 0).sum((1, 2)).mean()), 1),
    "real": round(float((real_fine[:, c] > 0).sum((1, 2)).mean()), 1)} for c, name in enumerate(CHANNELS)}).T)  # fmt: skip
fig, axes = plt.subplots(2, 4, figsize=(11, 5.6))
for line, images, name in zip(axes, (real_fine, fine), ("real", "generated"), strict=True):
    for axis, channel in zip(line, (0, 3, 4, 5), strict=True):
        plotting.event_image(axis, images[0, channel], f"{name}: {CHANNELS[channel]}", "")
        axis.label_outer()
plt.show()

# %% [markdown]
# **Weights.** All generators as safetensors, with the quantiles of the representation beside them; the ONNX file is one Heun step of
# the sampler, $(x,\sigma,\sigma',\mathrm{condition})\to x'$, to be called once a step from $\sigma=20$ down (the last, to 0, is the denoiser, `denoiser.onnx`).


# %%
class SamplerStep(nn.Module):
    """x (B, 8, 25, 25), levels (B,), following levels (B,), conditions (B, 27) -> x at the following level."""

    def __init__(self, model: Denoiser) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor, sigma: torch.Tensor, following: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:  # fmt: skip
        return heun_step(self.model, x, sigma, following, condition)


warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # sizes are constants here
card = {"task": TASK, "profile": PROFILE, "data": dataset.description, "source": dataset.source}
network = models["diffusion", 0].cpu()


def step_inputs(n: int) -> tuple[torch.Tensor, ...]:
    """Noisy validation jets at level 1 on their way to 1/2."""
    rows = splits.validation[:n]
    v = batch_of(rows, torch_generator(0, n)).cpu()
    ones = torch.ones(len(v))
    return (
        v + torch.randn(v.shape, generator=torch_generator(1, n)),
        ones,
        ones / 2,
        conditions[rows],
    )


def denoiser_inputs(n: int) -> tuple[torch.Tensor, ...]:
    """The same without the following level."""
    x, sigma, _, condition = step_inputs(n)
    return x, sigma, condition


# %%
graphs = {
    TASK: (SamplerStep(network), ("x", "sigma", "following", "condition"), step_inputs),
    "denoiser": (network, ("x", "sigma", "condition"), denoiser_inputs),
}
for name, (graph, inputs, example) in graphs.items():
    path = run.directory / f"{name}.onnx"
    export_onnx(graph.eval(), example(2), path, inputs, ["v"], {**card, "kind": "sampler_step", "data_source": dataset.source})  # fmt: skip
    difference = check_parity(graph, path, [example(n) for n in (1, 3, 8)], 1e-3)
    print(f"{path.name}: largest difference to PyTorch {difference:.1e}")
for (arm, seed), model in models.items():
    name = "".join(c if c.isalnum() else "_" for c in arm)
    save_weights(run.directory / f"{name}_seed{seed}.safetensors", model, {**card, "arm": arm, "seed": seed})  # fmt: skip
quantiles = {"value": np.stack([q.table for q in codec.value]), "summary": np.stack([q.table for q in codec.summary])}  # fmt: skip
save_weights(run.directory / "codec.safetensors", {k: torch.as_tensor(v) for k, v in quantiles.items()},
             {**card, "counted": codec.counted, "hit_width": HIT_WIDTH, "empty_width": EMPTY_WIDTH})  # fmt: skip


# %%
def described(name: str) -> dict:
    """Results of one generator, with size and speed, for metrics.json."""
    parameters, flops = sizes.get(name, sizes.get(name.split(", ")[0], (0, 0)))
    times = {f"milliseconds_batch_{n}": t for n, t in zip(batch_sizes, speeds.get(name, []), strict=False)}  # fmt: skip
    info = {"description": LABELS[name], "parameters": parameters, "flops": flops * EVALUATIONS.get(name, 0), **times}  # fmt: skip
    return {**results[name], "info": info}


def key(name: str) -> str:
    """A generator's name in metrics.json."""
    return "_".join("".join(c if c.isalnum() else " " for c in name).split())


metrics = run.save_metrics(
    title="Task 2d: diffusion model of jets in two stages",
    data={
        "source": dataset.source,
        "fingerprint": dataset.fingerprint,
        "description": dataset.description,
        **{part: len(rows) for part, rows in splits._asdict().items()},
    },
    published=[f"{TASK}.onnx", "diffusion_seed0.*", "codec.*", "totals_seed0.*"],
    seeds=list(range(CONFIG.schedules["diffusion"].seeds)),
    headline="c2st_auc_high",
    metrics=results["diffusion"],
    baselines={"independent": described("independent")},
    floors={"real": described("real")},
    arms={key(name): described(name) for name in names if name not in ("diffusion", "independent")},
    variants={
        "detection_size": {key(name): detection_size(name) for name in runs},
        "p_values": {key(name): p_values[name][half] for name in runs},
        "false_positives": false_positives,
        "log_posterior": {key(name): entry for name, entry in posteriors.items()},
        "vae": {name: {"active": active(name), "power": high_power(name)} for name in SWEEP},
        "toy_modes": toy_found,
    },
    parameters=sizes["diffusion"][0],
    flops=sizes["diffusion"][1] * EVALUATIONS["diffusion"],
)
update_results(metrics)

# %% [markdown]
# ## 10. Conclusion, limits, references

# %%
own, real = results["diffusion"], results["real"]


def against(title: str, entry: dict[str, float], bar: float) -> str:
    """Whether an entry is below a bar, above it, or its interval contains it."""
    verdict = "reached" if entry["high"] <= bar else "**not reached**" if entry["low"] > bar else "open"  # fmt: skip
    return f"{title} at most {bar:.3g}: {verdict}, {entry['value']:.3g} [{entry['low']:.3g}, {entry['high']:.3g}]."


conclusions = [
    against("Classifier on observables, AUC", own["c2st_auc_high"], 0.75),
    against("Classifier on towers, AUC", own["c2st_auc_low"], 0.85),
    against("FPD, ten times the largest magnitude within the floor's interval,", own["fpd"],
            10 * max(abs(real["fpd"]["low"]), abs(real["fpd"]["high"]))),
    *[f"Diffusion against {tally(rival)}." for rival in ("gan", "vae", "independent")],
]  # fmt: skip
best = max(posteriors, key=lambda name: posteriors[name]["value"])
fast = min((n for n in names if n != "independent"), key=lambda n: speeds[n][1])
size = detection_size("diffusion")
suspect = own["copies"]["low"] > max(real["copies"]["high"], 0.5)
giveaways = powers[LABELS["diffusion"]].nlargest(4)
conclusions += [
    "What gives the diffusion model's jets away, by separation power: "
    + ", ".join(f"`{observable}` {power:.2f}" for observable, power in giveaways.items())
    + f" (median of all {len(powers)} observables: {powers[LABELS['diffusion']].median():.3f}).",
    f"The worst-direction test needs {size or f'more than {half}'} diffusion jets to tell them from real ones, "
    f"{detection_size('gan') or f'more than {half}'} of the GAN, {detection_size('vae') or f'more than {half}'} of the VAE.",
    f"Shown real jets, the classifier of generators names *{LABELS[best]}* with the highest mean log-posterior.",
    f"The fastest generator is *{LABELS[fast]}* with {speeds[fast][1]:.2f} ms a jet in a batch of {batch_sizes[1]}; diffusion takes {speeds['diffusion'][1]:.1f} ms.",
    f"The student's AUC on observables is {results['student']['c2st_auc_high']['value']:.3f}, its teacher's {results['flow']['c2st_auc_high']['value']:.3f}, "
    f"at {speeds['flow'][1] / speeds['student'][1]:.1f} times the speed.",
    f"Copies: the diffusion model's jets are {'nearer to training jets than chance allows' if suspect else 'no nearer to training jets than real ones are'}.",
]  # fmt: skip
display(Markdown(f"On {dataset.words}:\n\n" + "\n".join(f"- {line}" for line in conclusions)))

# %% [markdown]
# - Sums, occupancies and highest towers come from stage one for *every* generator here, the trivial one included: the tests
#   compare images given these. Tests on sums alone would say nothing of the second stage.
# - A posterior in closed form is open to models that denoise; GAN and VAE start from the towers' mean only. Part of what lies
#   between them is this knowledge, not the principle. The row of independent towers shows what the knowledge alone is worth.
# - The classifiers are as strong as their training samples: half of the test jets, 60 % of it for training. With more jets they
#   would see more, which is why the floor has the same number.
# - Generated are towers; pixels are drawn from a library of real towers and not tested beyond their number.
# - Steps of the samplers, noise levels and sizes of networks follow the papers and the budget; nothing was tuned on test jets.
# - A number obtained on stand-in jets says how the generators compare on the same jets, not how they do on the official files.
#
# **References.** T. Karras et al., *EDM*, arXiv:2206.00364. J. Ho et al., *Denoising diffusion*, arXiv:2006.11239. Y. Lipman et al.,
# *Flow matching*, arXiv:2210.02747. V. Mikuni, B. Nachman, *CaloScore*, arXiv:2206.11898. O. Amram, K. Pedro, *CaloDiffusion*,
# arXiv:2308.03876. C. Krause, D. Shih, *CaloFlow I, II*, arXiv:2106.05285, 2110.11377. G. Papamakarios et al., *MAF*, arXiv:1705.07057.
# C. Krause et al., *CaloChallenge*, arXiv:2410.21611. R. Kansal et al., *FPD and KPD*, arXiv:2211.10295. D. Lopez-Paz, M. Oquab,
# arXiv:1610.06545. T. Kynkäänniemi et al., arXiv:1904.06991. M. Naeem et al., arXiv:2002.09797. S. Arora, Y. Zhang,
# arXiv:1706.08224. L. Mescheder et al., arXiv:1801.04406. T. Karras et al., arXiv:1710.10196. Y. Burda et al., arXiv:1509.00519.
# O. Rybkin et al., *σ-VAE*, arXiv:2006.13202. D. Kingma et al., *Free bits*, arXiv:1606.04934. I. Tolstikhin et al.,
# *MLP-Mixer*, arXiv:2105.01601. W. Peebles, S. Xie, *DiT*, arXiv:2212.09748.
