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
# # Task 2b: jet images from 64 to 125 pixels with a GAN
#
# **Task.** Quark and gluon jets are given as three-channel images (track $p_T$, ECAL, HCAL) at high resolution,
# $125\times125$ (`X_jets`), and at low resolution, $64\times64$ (`X_jets_LR`). Train a generative adversarial network that
# turns the second into the first, and discuss the choices.

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
show_results("task2b_superres_gan")

# %% [markdown]
# **What was found.** The low resolution fixes more than it seems: the energy of every cell, and the whole HCAL, which needs no
# network at all. What is left is how four pixels share the tracks and the ECAL energy of a cell, and there the difficulty is
# that cells depend on each other: around a high hit a square of pixels is read out, across the borders of cells. A
# generator that draws the cells in turns, peaks first, each knowing what was drawn around it, makes patches that boosted trees and
# a convolutional network can hardly tell from true ones. Cells drawn independently, a conditional flow per cell, a table of
# training cells and image networks are told far more easily, and the image networks break what no jet can break. The
# adversarial part was given every chance: a likelihood that does not punish the latent map, a penalty that lets the
# discriminator tell, a discriminator trained before it teaches, four steps for one. Where the likelihood already
# contains the neighbours, it adds nothing that we could measure, since an exact joint density leaves it nothing to teach; the
# line for independent cells shows what it does where something is missing. For tagging, super-resolution adds nothing: a
# tagger on generated jets is no better than one on the low resolution.

# %% [markdown]
# ## 1. Set-up

# %%
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from typing import NamedTuple

import joblib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import display
from scipy.ndimage import uniform_filter
from sklearn.ensemble import HistGradientBoostingClassifier
from torch import nn
from torch.nn import functional as F

from data.loaders import load_super_resolution
from e2e_utils import plotting
from e2e_utils.boosting import tuned_trees
from e2e_utils.checkpoints import save_weights
from e2e_utils.comparison import Comparison, half_width
from e2e_utils.complexity import complexity
from e2e_utils.distributed import OnePass
from e2e_utils.evaluation import metric_entry
from e2e_utils.fidelity import fpd, separation_power
from e2e_utils.files import atomic_path
from e2e_utils.jet_observables import NAMES, jet_observables, ratio_of_sums
from e2e_utils.jet_resolution import HIGH, LOW
from e2e_utils.machine import make_accelerator
from e2e_utils.metric_text import format_entry
from e2e_utils.metrics import roc_auc
from e2e_utils.notebook import show_claims, start_run, update_results
from e2e_utils.onnx_export import check_parity, export_onnx
from e2e_utils.parallel import side_by_side
from e2e_utils.seeds import seed_everything, torch_generator
from e2e_utils.splits import duplicate_groups, split
from e2e_utils.training import Training

# %% tags=["parameters"]
PROFILE = os.environ.get("PROFILE", "quick")  # smoke (tests), quick, standard, full
DATA_SOURCE = os.environ.get("DATA_SOURCE", "auto")  # auto, official, standin
DATA = os.environ.get("DATA") or None  # other files of the official schema, comma separated

# %% [markdown]
# A profile changes the number of jets, passes and trainings, never the method.


# %%
@dataclass(frozen=True)
class Config:
    """What a profile changes."""

    seeds: tuple[int, ...]
    passes: dict[str, int]  # over the training jets, by arm
    batch_size: int = 32  # jets
    pretraining: int = 400  # most steps of the discriminator alone, of 8 jets
    weights: tuple[float, ...] = ()  # of the adversarial term, that are tried
    judged: int = 12  # patches of a test jet that the judges get
    tagger_jets: int = 8_000
    resamples: int = 100  # of the bootstrap of FPD


PASSES = {"start": 7, "likelihood": 3, "gan": 2, "independent": 7, "gan_independent": 2, "flow": 4,
          "srresnet": 2, "esrgan": 1}  # fmt: skip
QUICK = dict.fromkeys(PASSES, 1) | {"start": 3, "independent": 2}
CONFIGS = {
    "smoke": Config((0, 1), dict.fromkeys(PASSES, 1), 32, 2, (0.03, 0.3), 4, 60, 4),
    "quick": Config((0, 1), QUICK, pretraining=50, judged=8, tagger_jets=1_500, resamples=20),
    "standard": Config((0, 1, 2), PASSES, weights=(0.1, 0.3)),
    "full": Config((0, 1, 2, 3, 4), {arm: 4 * n for arm, n in PASSES.items()}, 64, 2_000, (0.03, 0.1, 0.3), 24, 50_000),
}  # fmt: skip
CONFIG = CONFIGS[PROFILE]
CHANNELS = ("track pT", "ECAL", "HCAL")
run = start_run("task2b_superres_gan", PROFILE, DATA_SOURCE)
plotting.set_style()
print(run.summary())

# %% [markdown]
# ## 2. Data
# `load_super_resolution` reads the official parquet files where they are on disk, and otherwise stand-in jets simulated with
# Pythia 8 and a CMS-like detector in the same schema (`data/README.md`). The low resolution *is* the high one, padded with
# zeros to 128 and averaged over $2\times2$ pixels; a file in which the two do not fit is refused. 20 % of the jets are the
# test set, scored once in section 5; 5 % settle every choice; the rest trains.

# %%
dataset = load_super_resolution(DATA_SOURCE, PROFILE, path=DATA)
y = dataset.y
splits = split(y, seed=0, fractions=(0.75, 0.05, 0.2), groups=duplicate_groups(dataset.images))
parts = splits._asdict().items()
print(dataset.description)
print(", ".join(f"{p}: {len(rows):,} jets, {y[rows].mean():.1%} quarks" for p, rows in parts))


# %%
def to_blocks(high: torch.Tensor) -> torch.Tensor:
    """Images (B, C, 125, 125) -> the four pixels of every low-resolution cell, (B, 4096, C, 4)."""
    blocks = F.pad(high, (1, 2, 1, 2)).view(high.shape[0], -1, LOW, 2, LOW, 2)
    return blocks.permute(0, 2, 4, 1, 3, 5).flatten(4).flatten(1, 2)


def from_blocks(blocks: torch.Tensor) -> torch.Tensor:
    """The inverse: (B, 4096, C, 4) -> (B, C, 125, 125)."""
    blocks = blocks.view(blocks.shape[0], LOW, LOW, -1, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return blocks.flatten(4).flatten(2, 3)[:, :, 1 : HIGH + 1, 1 : HIGH + 1]


FRAME = to_blocks(torch.ones(1, 1, HIGH, HIGH))[0, :, 0]  # (4096, 4): 1 for pixels in the image


# %% [markdown]
# **What is unknown?** Nothing about the energy of a cell, only how its four pixels share it. And of the HCAL nothing at all:
# a tower is $5\times5$ pixels that share one energy evenly, and every tower contains whole cells, from which its
# energy can be read. The rest of the notebook is about tracks and the ECAL. The table counts active cells by their hit
# pixels.

# %%
sample = splits.train[:500]
high = dataset.pair(sample)[1]
x = to_blocks(high).flatten(0, 1)  # (cells, 3, 4)
lines = {}
for c, name in enumerate(CHANNELS):
    active = x[:, c][(x[:, c] != 0).any(1)]
    hits = (active != 0).sum(1)
    shares = [f"{(hits == n).float().mean():.1%}" for n in (1, 2, 3, 4)]
    lines[name] = [
        f"{len(active) / len(sample):.0f}",
        *shares,
        f"{(active < 0).any(1).float().mean():.1%}",
    ]
columns = ["active cells a jet", *(f"{n} hit" for n in (1, 2, 3, 4)), "with negative pixels"]
display(pd.DataFrame.from_dict(lines, orient="index", columns=columns))

# %% [markdown]
# A track is one pixel, and only its surroundings could say which of the four. The ECAL has the granularity of the image:
# showers cover several pixels, and around high hits $5\times5$ pixels are read out whatever they hold, also
# below zero.
#
# **What no jet can have**, and what is counted below for every image: a cell whose pixels do not add up to its energy; a
# track below the cut-off of the reconstruction, for which the lowest track of the training jets stands; a tower
# of the HCAL with unequal pixels.


# %%
def lowest_track(rows: np.ndarray) -> float:
    """The smallest track pixel of jets ``rows`` in GeV, less one per cent."""
    parts = np.array_split(rows, 1 + len(rows) // 200)
    pixels = (dataset.pair(part)[1][:, 0] for part in parts)
    return 0.99 * min(float(x[x > 0].min()) for x in pixels)


def impossible(images: torch.Tensor, low: torch.Tensor, cut: float) -> np.ndarray:
    """How many of each (3,): cells that do not add up, tracks below ``cut``, unequal towers."""
    energy = 4 * low.flatten(2).permute(0, 2, 1)
    blocks = to_blocks(images)
    off = (blocks.sum(3) - energy).abs() > 1e-4 * energy.abs() + 1e-4
    track, enough = blocks[:, :, 0], energy[:, :, 0, None] >= cut
    below = (track != 0) & (track < 0.999 * cut) & enough
    towers = images[:, 2].unflatten(2, (25, 5)).unflatten(1, (25, 5))  # (B, 25, 5, 25, 5)
    unequal = towers.amax((2, 4)) - towers.amin((2, 4)) > 1e-3 * towers.abs().amax((2, 4))
    return np.array([off.sum().item(), below.sum().item(), unequal.sum().item()])


cut = lowest_track(splits.train)
print(
    f"cut-off {cut:.3f} GeV; of {len(sample)} true jets:",
    impossible(high, dataset.pair(sample)[0], cut),
)

# %% [markdown]
# ## 3. Model
# **One scale.** Both resolutions enter in GeV through one function, $\mathrm{asinh}(E/50\,\mathrm{MeV})/3$, linear at the noise
# and logarithmic above. Normalising them apart would lose the relation $E_{\mathrm{cell}}=\sum_i x_i$.
#
# **Only active cells.** The network works on the list of cells with tracks or ECAL energy and sees for each the $7\times7$
# cells around it in all channels: a convolutional network that is evaluated where there is something to share out.
#
# **Cells see each other.** Given the low resolution, neighbouring cells are not independent: one shower fills both, and a high
# hit makes all pixels within two of it be read out. So cells are drawn in turns: first peaks, whose ECAL energy is higher
# than that of the eight cells around; then other cells that may hold a high hit, in four colours of a checkerboard; then
# the rest in four colours. In each turn a cell knows the pixels that were drawn around it before. The product of these
# conditional probabilities is a joint density of all pixels, and exact:
# $$p(x\,|\,\ell)=\prod_{k=0}^{8}\;\prod_{i\in\text{turn }k}p\bigl(x_i\,|\,\ell,\;x_j:\,j\text{ beside }i,\ \text{turn}(j)<k\bigr).$$

# %%
ECAL_SCALE = 0.05  # GeV, about the noise of a crystal
REACH = 3  # low-resolution cells on each side that a network sees
WINDOW = (2 * REACH + 1) ** 2
INSIDE = FRAME.any(1)  # (4096,): the last row and column of cells have no pixel
COLOUR = torch.tensor([[0, 2], [3, 1]]).repeat(LOW // 2, LOW // 2)  # (64, 64)
HOT = 0.5  # GeV of a cell: below, none of its pixels has the surroundings read out
TURNS = 9


def turns(low: torch.Tensor) -> torch.Tensor:
    """When each cell is drawn, (B, 64, 64): 0 for peaks, 1 to 4 for hot cells, 5 to 8 for others."""
    ecal = low[:, 1:2]
    peak = (ecal > 0) & (ecal == F.max_pool2d(ecal, 3, 1, 1))
    turn = 1 + COLOUR.to(low.device) + torch.where(4 * ecal < HOT, 4, 0)
    return torch.where(peak, 0, turn)[:, 0]


def signed_log(x: torch.Tensor) -> torch.Tensor:
    """asinh(x / 0.05 GeV) / 3: linear at the noise, logarithmic above, from 0 to about 3."""
    z = x.abs() / ECAL_SCALE  # not every ONNX runtime has an asinh
    return x.sign() * (z + (z.square() + 1).sqrt()).log() / 3


def signed_exp(v: torch.Tensor) -> torch.Tensor:
    """The inverse, in GeV."""
    return ECAL_SCALE * ((3 * v).exp() - (-3 * v).exp()) / 2


# %%
def active_cells(low: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Jet and cell number (row * 64 + column) of the cells with tracks or ECAL energy; (n,) each."""
    active = (low[:, :2] != 0).any(1).flatten(1) & INSIDE.to(low.device)
    jet, cell = active.nonzero().unbind(1)
    return jet, cell


def windows(values: torch.Tensor, jet: torch.Tensor, cell: torch.Tensor, reach: int) -> torch.Tensor:  # fmt: skip
    """Windows of (B, C, 64, 64) around cells: (n, C, (2 reach + 1)^2), zero outside."""
    channels, side = values.shape[1], LOW + 2 * reach
    flat = F.pad(values, (reach,) * 4).reshape(-1)
    steps = torch.arange(2 * reach + 1, device=values.device)
    window = (steps[:, None] * side + steps).flatten()
    plane = torch.arange(channels, device=values.device) * side * side
    first = jet * channels * side * side + cell // LOW * side + cell % LOW
    return flat[first[:, None, None] + plane[:, None] + window]


def around(jet: torch.Tensor, cell: torch.Tensor, jets: int) -> torch.Tensor:
    """Rows of the list of cells that are the 3 x 3 around each: (n, 9), n for inactive ones."""
    rows = torch.arange(jet.shape[0], device=jet.device) + 1
    number = torch.zeros(jets, LOW * LOW, dtype=torch.long, device=jet.device)
    number = number.index_put((jet, cell), rows).view(-1, 1, LOW, LOW)
    found = windows(number, jet, cell, 1)[:, 0] - 1
    return torch.where(found < 0, jet.shape[0], found)


# %%
def cell_features(low: torch.Tensor, jet: torch.Tensor, cell: torch.Tensor) -> torch.Tensor:
    """What a network sees of the low resolution around a cell: (n, FEATURES).

    Energies of the 7 x 7 cells on the signed log scale, whether they are active, whether a cell beside
    has exactly the same energy (crystals of the endcaps share it), and whether it is at the edge.
    """
    window = windows(signed_log(4 * low), jet, cell, REACH)  # (n, 3, 49)
    centre, side = window[:, :2, WINDOW // 2, None], 2 * REACH + 1
    near = [WINDOW // 2 + a * side + b for a in (-1, 0, 1) for b in (-1, 0, 1) if a or b]
    same = ((window[:, :2, near] - centre).abs() < 1e-5) & (centre != 0)  # (n, 2, 8)
    edge = torch.stack([cell < LOW, cell % LOW == 0], 1)
    features = [window.flatten(1), (window != 0).flatten(1), same.flatten(1), edge]
    return torch.cat([part.to(window.dtype) for part in features], 1)


FEATURES = 2 * 3 * WINDOW + 2 * 8 + 2

# %% [markdown]
# **HCAL.** The tower's energy is that of a cell inside. Where an input does not fit this (it is no HCAL image then), the cell is
# shared evenly, so that every image keeps its energies.

# %%
SOURCE = [5 * (pixel // 5) // 2 + 1 for pixel in range(HIGH)]  # a whole cell of the pixel's tower


def hcal_image(low: torch.Tensor) -> torch.Tensor:
    """The HCAL at high resolution (B, 1, 125, 125) of (B, 3, 64, 64)."""
    blocks = to_blocks(low[:, 2:][:, :, SOURCE][:, :, :, SOURCE])[:, :, 0]  # (B, 4096, 4)
    energy, frame = 4 * low[:, 2].flatten(1).unsqueeze(2), FRAME.to(low)
    fits = (blocks.sum(2, keepdim=True) - energy).abs() <= 1e-5 * energy.abs()
    even = energy * frame / frame.sum(1, keepdim=True).clamp(min=1)
    return from_blocks(torch.where(fits, blocks, even).unsqueeze(2))


# %% [markdown]
# **Occupancy.** Which of the four pixels are hit is one of 15 patterns, drawn from a softmax, tracks first, then ECAL given the
# tracks. Patterns with more tracks than the energy can pay for have probability zero.
#
# **Shares.** With $k$ hit pixels, $k-1$ numbers are free: contrasts $u=Hy$ with orthonormal rows. Tracks take
# $y=\ln(x-c)$ with the cut-off $c$, so that $x_i=c+(E-kc)\,e^{y_i}/\sum_je^{y_j}$. ECAL pixels can be negative; there
# $y=\mathrm{asinh}(x/s)$, $s=50$ MeV, and $x_i=s\sinh(y_i+t)$ with the one $t$ that conserves the energy,
# $$e^{t}=\frac{e+\sqrt{e^2+AB}}{A},\qquad e=\frac{E}{s},\quad A=\sum_j e^{y_j},\quad B=\sum_j e^{-y_j}.$$
# Both maps are one-to-one between pixels and $(E,u)$. The density of $u$ is a mixture of correlated normals.

# %%
PATTERNS = 15  # non-empty subsets of four pixels: number p stands for the bits of p + 1
NONE = 15  # a channel without energy in this cell
HITS = torch.tensor(
    [[(p + 1) >> bit & 1 for bit in range(4)] for p in range(15)] + [[0] * 4]
).float()
ALLOWED = ~((HITS[None, :15] > 0) & (FRAME[:, None] == 0)).any(2)  # (4096, 15)


def contrast_matrix(hits: tuple[float, ...]) -> np.ndarray:
    """Orthonormal contrasts (3, 4) of the hit pixels: rows that sum to zero, unused ones zero."""
    chosen = np.flatnonzero(hits)
    if len(chosen) == 4:  # Haar: rows, columns, diagonals
        return np.array([[1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]) / 2
    matrix = np.zeros((3, 4))
    for row in range(len(chosen) - 1):  # Helmert: the next pixel against the mean of those before
        n = row + 1
        matrix[row, chosen[:n]] = 1 / np.sqrt(n * (n + 1))
        matrix[row, chosen[n]] = -n / np.sqrt(n * (n + 1))
    return matrix


CONTRASTS = torch.tensor(np.array([contrast_matrix(row) for row in HITS.tolist()])).float()
USED = (CONTRASTS.abs().sum(2) > 0).float()  # (16, 3) contrasts that a pattern has


def pattern_of(x: torch.Tensor) -> torch.Tensor:
    """Hit pattern (n, C) of pixels (n, C, 4): 0 to 14, or NONE."""
    number = ((x != 0) * torch.tensor([1, 2, 4, 8], device=x.device)).sum(2)
    return torch.where(number == 0, NONE, number - 1)


# %%
def coordinates(x: torch.Tensor, cut: float) -> torch.Tensor:
    """Pixels of tracks and ECAL (n, 2, 4) -> y of the hit ones: ln(x - cut) and asinh(x / s)."""
    track = torch.where(x[:, 0] != 0, (x[:, 0] - cut).clamp(min=1e-3), 1.0).log()
    return torch.stack([track, 3 * signed_log(x[:, 1])], 1)


def shared_out(energy: torch.Tensor, hits: torch.Tensor, y: torch.Tensor, cut: float) -> torch.Tensor:  # fmt: skip
    """Pixels (n, 2, 4) that add up to ``energy`` (n, 2); ``hits`` (n, 2, 4) is 0 or 1, y any number."""
    count = hits.sum(2)
    y = (y - (hits * y).sum(2, keepdim=True) / count.clamp(min=1).unsqueeze(2)).clamp(-15, 15)
    up = hits * (y * hits).exp()
    total = up.sum(2).clamp(min=1e-12)  # (n, 2)
    free = energy[:, 0] - cut * count[:, 0]
    track = cut * hits[:, 0] + free[:, None] * up[:, 0] / total[:, 0, None]
    y, hit, a = y[:, 1], hits[:, 1], total[:, 1]
    b = (hit * (-y * hit).exp()).sum(1).clamp(min=1e-12)
    e = energy[:, 1] / ECAL_SCALE
    root = e.abs() + (e.square() + a * b).sqrt()  # the sum without cancellation
    w = torch.where(e >= 0, root / a, b / root)[:, None]  # e^t
    x = torch.stack([track, ECAL_SCALE / 2 * hit * (y.exp() * w - (-y).exp() / w)], 1)
    # Rounding is given back evenly, so that the sum is the energy to the last digits.
    return x + hits * ((energy - x.sum(2)) / count.clamp(min=1)).unsqueeze(2)


# %% [markdown]
# **The networks' frame** is the same for every way to share out a cell; a subclass says how `draw` does it. Noise is an input:
# the same noise gives the same jet.


# %%
class CellByCell(nn.Module):
    """Low resolution (B, 3, 64, 64) and standard normal noise (B, noise, 64, 64) -> (B, 3, 125, 125)."""

    noise = 1

    def draw(self, low: torch.Tensor, noise: torch.Tensor, jet: torch.Tensor, cell: torch.Tensor) -> tuple:  # fmt: skip
        """Pixels and hits of tracks and ECAL in active cells, (n, 2, 4) each."""
        raise NotImplementedError

    def forward(self, low: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        jet, cell = active_cells(low)
        pixels, _ = self.draw(low, noise, jet, cell)
        blocks = torch.zeros_like(low[:, :2]).flatten(2).permute(0, 2, 1).unsqueeze(3).repeat(1, 1, 1, 4)  # fmt: skip
        return torch.cat([from_blocks(blocks.index_put((jet, cell), pixels)), hcal_image(low)], 1)


def seen(pixels: torch.Tensor, hits: torch.Tensor) -> torch.Tensor:
    """How a network sees pixels and hits (n, 2, 4): (n + 1, 16), the last row an inactive cell."""
    return F.pad(torch.cat([signed_log(pixels), hits], 1).flatten(1), (0, 0, 0, 1))


def pick(p: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Classes (n,) with probabilities p (n, k) by the inverse of the distribution function."""
    below = p.cumsum(1)  # its last column, not 1, ends the range: rounding must not draw beyond it
    return (below[:, :-1] < uniform[:, None].clamp(min=1e-7) * below[:, -1:]).sum(1)


def uniform_of(normal: torch.Tensor) -> torch.Tensor:
    """Standard normal numbers -> uniform ones."""
    return 0.5 * (1 + torch.erf(normal / 2**0.5))


def log_normal_density(u: torch.Tensor, mean: torch.Tensor, log_width: torch.Tensor) -> torch.Tensor:  # fmt: skip
    """ln Normal(u; mean, width^2 + d^2) elementwise; d is the width of the dequantisation."""
    variance = (2 * log_width).exp() + DEQUANTISATION**2
    return -0.5 * ((u - mean).square() / variance + variance.log() + np.log(2 * np.pi))


DEQUANTISATION = 0.01  # width of the noise on targets: an exactly even share has a bounded density

# %% [markdown]
# **The generator.** A multilayer perceptron takes what surrounds a cell to hidden features; from them come the patterns' logits
# and the mixture. A *latent* map of two more random numbers a cell, which the cells beside it see too, can make
# neighbours agree beyond what the colours do. The likelihood is evaluated without it, so that nothing rewards
# ignoring it; its weights start at random, not at zero, and only the adversarial training changes them.


# %%
class CellNetwork(CellByCell):
    """Hidden features, pattern logits and mixtures of cells."""

    noise = 12  # a cell: 2 latent, 2 patterns, 2 components, 6 contrasts

    def __init__(self, coloured: bool = True, latent: bool = False, cut: float = 0.0, width: int = 128) -> None:  # fmt: skip
        super().__init__()
        self.components, self.coloured = 6, int(coloured)
        self.register_buffer("cut", torch.tensor(float(cut)))
        inputs = FEATURES + 9 * 17 + 4
        hidden = [layer for _ in range(2) for layer in (nn.Linear(width, width), nn.SiLU())]
        self.body = nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), *hidden)
        self.latent = nn.Linear(2 * 9, width, bias=False) if latent else None
        if latent:
            nn.init.normal_(self.latent.weight, std=0.05)
        self.patterns = nn.Linear(width, 2 * PATTERNS)
        self.after_track = nn.Parameter(torch.zeros(PATTERNS + 1, PATTERNS))
        self.given = nn.Linear(2 * (PATTERNS + 1), width)
        self.shares = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * self.components * 10))
        with torch.no_grad():  # components begin at different widths
            bias = self.shares[1].bias.view(2, self.components, 10)
            bias[..., 4:7] = torch.linspace(0, -4, self.components)[:, None]

    def before(self, low: torch.Tensor, jet: torch.Tensor, cell: torch.Tensor) -> torch.Tensor:
        """1 for those of the 3 x 3 cells around that are drawn before, (n, 9)."""
        turn = windows(turns(low).unsqueeze(1), jet, cell, 1)[:, 0]
        return self.coloured * (turn < turn[:, 4:5]).to(low)

    def hidden(self, features: torch.Tensor, values: torch.Tensor, before: torch.Tensor, latent: torch.Tensor | None = None) -> torch.Tensor:  # fmt: skip
        """Hidden features (n, width); ``values`` (n, 9, 16) are pixels around, as `seen`."""
        known = values * before.unsqueeze(2)
        ecal = known[..., 4:8].view(-1, 3, 3, 2, 2).transpose(2, 3).reshape(-1, 1, 6, 6)
        highest = F.max_pool2d(ecal, 5, 1).flatten(1)  # drawn around each of the four pixels
        h = self.body[0](torch.cat([features, known.flatten(1), before, highest], 1))
        return self.body[1:](h if latent is None else h + self.latent(latent))

    def pattern_logits(self, h: torch.Tensor, energy: torch.Tensor, cell: torch.Tensor, track: torch.Tensor | None = None) -> torch.Tensor:  # fmt: skip
        """Logits (n, 15) of the tracks' pattern, or of the ECAL's given that of the ``track`` (n, 16)."""
        allowed, logits = ALLOWED.to(cell.device)[cell], self.patterns(h)
        if track is not None:
            return (logits[:, PATTERNS:] + track @ self.after_track).masked_fill(~allowed, -30.0)
        count = HITS[:15].sum(1).to(h)
        paid = (count == 1) | (count * self.cut <= energy[:, :1])
        return logits[:, :PATTERNS].masked_fill(~(allowed & paid), -30.0)

    def mixture(self, h: torch.Tensor, chosen: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Given patterns (n, 32): log weights (n, 2, K), means, log widths, slopes (n, 2, K, 3)."""
        out = self.shares(h + self.given(chosen)).view(-1, 2, self.components, 10)
        return F.log_softmax(out[..., 0], 2), out[..., 1:4], out[..., 4:7].clamp(-7, 2), out[..., 7:]  # fmt: skip


# %% [markdown]
# **Drawing**, turn by turn. A contrast's mean depends on the contrasts before it, linearly: correlated normals.


# %%
class Drawing(CellNetwork):
    """`CellNetwork` that draws."""

    def draw(self, low: torch.Tensor, noise: torch.Tensor, jet: torch.Tensor, cell: torch.Tensor) -> tuple:  # fmt: skip
        energy = 4 * low[:, :2].flatten(2)[jet, :, cell]  # (n, 2)
        own, index = noise.flatten(2)[jet, :, cell], around(jet, cell, low.shape[0])
        features, before = cell_features(low, jet, cell), self.before(low, jet, cell)
        latent = windows(noise[:, :2], jet, cell, 1).flatten(1) if self.latent else None
        turn = turns(low).flatten(1)[jet, cell] * self.coloured
        pixels = energy.new_zeros(cell.shape[0], 2, 4)
        hits = pixels.clone()
        for number in range(TURNS if self.coloured else 1):
            now = (turn == number).nonzero()[:, 0]
            values = seen(pixels, hits)[index[now]]  # (m, 9, 16)
            h = self.hidden(
                features[now], values, before[now], latent[now] if self.latent else None
            )
            x, hit = self.draw_cells(h, energy[now], own[now, 2:], cell[now])
            pixels, hits = pixels.index_put((now,), x), hits.index_put((now,), hit)
        return pixels, hits

    def draw_cells(self, h: torch.Tensor, energy: torch.Tensor, own: torch.Tensor, cell: torch.Tensor) -> tuple:  # fmt: skip
        """Pixels and hits (n, 2, 4) given features, energies (n, 2) and noise (n, 10).

        Gradients pass a drawn pattern as if it were its probabilities (straight through).
        """
        uniform, eye, chosen = uniform_of(own[:, :4]), torch.eye(PATTERNS + 1).to(h), []
        for channel in range(2):
            p = self.pattern_logits(h, energy, cell, *chosen).softmax(1)
            drawn, p = eye[pick(p, uniform[:, channel])], F.pad(p, (0, 1))
            drawn = drawn + p - p.detach() if torch.is_grad_enabled() else drawn
            active = (energy[:, channel, None] != 0).to(p)
            chosen.append(active * drawn + (1 - active) * eye[NONE])
        patterns = torch.stack(chosen, 1)  # (n, 2, 16)
        log_weight, mean, log_width, slope = self.mixture(h, patterns.flatten(1))
        k = torch.stack([pick(log_weight[:, c].exp(), uniform[:, 2 + c]) for c in range(2)], 1)
        k = k[:, :, None, None].expand(-1, -1, 1, 3)
        mean, log_width, slope = (t.gather(2, k)[:, :, 0] for t in (mean, log_width, slope))
        first, second, third = (log_width.exp() * own[:, 4:].view(-1, 2, 3)).unbind(2)
        second = second + slope[..., 0] * first
        third = third + slope[..., 1] * first + slope[..., 2] * second
        u = mean + torch.stack([first, second, third], 2)
        hits, matrix = patterns @ HITS.to(h), CONTRASTS.to(h)[patterns.argmax(2)]  # (n, 2, 3, 4)
        return shared_out(energy, hits, (u.unsqueeze(3) * matrix).sum(2), self.cut), hits


# %%
class Generator(Drawing):
    """Cells in four colours (or all at once: ``coloured=False``), with or without the latent map."""

    def cell_losses(self, h: torch.Tensor, blocks: torch.Tensor, energy: torch.Tensor, cell: torch.Tensor) -> torch.Tensor:  # fmt: skip
        """Negative log-likelihood (n,) of true pixels (n, 2, 4), in nats."""
        pattern = pattern_of(blocks)  # (n, 2)
        chosen = torch.eye(PATTERNS + 1).to(h)[pattern]  # (n, 2, 16)
        logits = [self.pattern_logits(h, energy, cell, *track) for track in ((), (chosen[:, 0],))]
        log_p = F.log_softmax(torch.stack(logits, 1), 2)
        log_p = log_p.gather(2, pattern.unsqueeze(2).clamp(max=14))[..., 0] * (pattern != NONE)
        log_weight, mean, log_width, slope = self.mixture(h, chosen.flatten(1))
        u = (CONTRASTS.to(h)[pattern] * coordinates(blocks, self.cut).unsqueeze(2)).sum(3)
        u = (u + DEQUANTISATION * torch.randn_like(u)).unsqueeze(2)  # (n, 2, 1, 3)
        first, second, _ = (u - mean).unbind(3)  # (n, 2, K) each
        third = slope[..., 1] * first + slope[..., 2] * second
        expected = torch.stack([torch.zeros_like(first), slope[..., 0] * first, third], 3)
        density = log_normal_density(u - mean, expected, log_width)
        used = USED.to(h)[pattern]  # (n, 2, 3)
        log_density = ((density * used.unsqueeze(2)).sum(3) + log_weight).logsumexp(2)
        return -(log_p + log_density * used.amax(2)).sum(1)

    def loss(self, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        """Mean negative log-likelihood of a cell; in training of a random half of the cells."""
        jet, cell = active_cells(low)
        blocks, share = to_blocks(high[:, :2])[jet, cell], 0.5 if self.training else 2.0
        kept = (torch.rand(len(cell), device=cell.device) < share).nonzero()[:, 0]
        values = seen(blocks, (blocks != 0).to(blocks))[around(jet, cell, len(low))[kept]]
        jet, cell, blocks = jet[kept], cell[kept], blocks[kept]
        energy = 4 * low[:, :2].flatten(2)[jet, :, cell]
        h = self.hidden(cell_features(low, jet, cell), values, self.before(low, jet, cell))
        return self.cell_losses(h, blocks, energy, cell).mean()


# %% [markdown]
# **Rivals.** *Independent cells*: the same network without colours. *Flow*: a conditional normalising flow for the eight pixels of
# a cell, as SuperCalo does it (arXiv:2308.11700), given the same low resolution; pixels without a hit get a value of
# their own, far from the others. It is autoregressive, and the monotone function of each step is the distribution
# function of a mixture. *Table*: a cell takes over the shares of a training cell of the same channel and
# energy, whose neighbours are active on the same sides.

# %%
ABSENT = -2.0  # a pixel without a hit, on the signed log scale
BEFORE = torch.tril(torch.ones(8, 8), -1)  # pixel i of a cell is drawn given those before


def legal(hits: torch.Tensor, y: torch.Tensor, energy: torch.Tensor, cell: torch.Tensor, cut: float) -> torch.Tensor:  # fmt: skip
    """Hits (n, 2, 4) inside the image that the energy can pay for; else the one with the largest y."""
    frame = FRAME.to(y)[cell].unsqueeze(1)  # (n, 1, 4)
    hits = hits * frame
    count = hits.sum(2)
    paid = (count > 0) & ((count == 1) | (count * torch.stack([cut, 0 * cut]) <= energy.abs()))
    single = F.one_hot(torch.where(frame > 0, y, -torch.inf).argmax(2), 4).to(hits)
    return torch.where(paid.unsqueeze(2), hits, single) * (energy != 0).unsqueeze(2)


# %%
class CellFlow(CellByCell):
    """Autoregressive flow of the eight pixels of a cell, given the low resolution around it."""

    noise = 16  # a cell: a component and a normal number for each pixel

    def __init__(self, cut: float = 0.0, width: int = 128, hidden: int = 48, components: int = 8) -> None:  # fmt: skip
        super().__init__()
        self.register_buffer("cut", torch.tensor(float(cut)))
        self.components = components
        self.body = nn.Sequential(
            nn.Linear(FEATURES, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, 8 * hidden),
        )  # fmt: skip
        self.previous = nn.Parameter(0.3 * torch.randn(8, 8, hidden))
        self.out = nn.Parameter(torch.randn(8, hidden, 3 * components) * hidden**-0.5)
        self.bias = nn.Parameter(torch.linspace(-2, 1, components).repeat(8, 3, 1).flatten(1))

    def steps(self, h: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Log weights, means, log widths (n, 8, K) of every pixel given the ones before in v (n, 8)."""
        before = torch.einsum("nj,ij,ijh->nih", v, BEFORE.to(v), self.previous)
        z = F.silu(h.view(len(h), 8, -1) + before)
        out = (torch.einsum("nih,ihk->nik", z, self.out) + self.bias).unflatten(2, (3, -1))
        return F.log_softmax(out[:, :, 0], 2), out[:, :, 1], out[:, :, 2].clamp(-7, 1)

    def draw(self, low: torch.Tensor, noise: torch.Tensor, jet: torch.Tensor, cell: torch.Tensor) -> tuple:  # fmt: skip
        h, own = self.body(cell_features(low, jet, cell)), noise.flatten(2)[jet, :, cell]
        v = torch.zeros_like(own[:, :8])
        for i in range(8):
            log_weight, mean, log_width = (t[:, i] for t in self.steps(h, v))
            k = pick(log_weight.exp(), uniform_of(own[:, i])).unsqueeze(1)
            drawn = mean.gather(1, k) + log_width.gather(1, k).exp() * own[:, 8 + i, None]
            v = v + drawn * torch.eye(8).to(v)[i]
        energy, v = 4 * low[:, :2].flatten(2)[jet, :, cell], v.view(-1, 2, 4)
        y = coordinates(signed_exp(v.clamp(-3, 4)), self.cut)
        hits = legal((v > ABSENT / 2 - 0.5).to(v), v, energy, cell, self.cut)
        return shared_out(energy, hits, y, self.cut), hits

    def loss(self, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        """Mean negative log-likelihood of a cell, with noise on the pixels."""
        jet, cell = active_cells(low)
        kept = torch.rand(len(cell), device=cell.device) < (0.5 if self.training else 2.0)
        jet, cell = jet[kept], cell[kept]
        x = to_blocks(high[:, :2])[jet, cell].flatten(1)  # (n, 8)
        v = torch.where(x != 0, signed_log(x), ABSENT)
        v = v + torch.where(x != 0, DEQUANTISATION, 0.1) * torch.randn_like(v)
        log_weight, mean, log_width = self.steps(self.body(cell_features(low, jet, cell)), v)
        density = log_normal_density(v.unsqueeze(2), mean, log_width) + log_weight
        return -density.logsumexp(2).sum(1).mean()


# %%
class Table(CellByCell):
    """Shares of training cells of the same channel, energy and active sides."""

    noise = 2  # a cell: which training cell, for each channel

    def __init__(self, rows: np.ndarray, cut: float, bins: int = 30) -> None:
        super().__init__()
        self.cut, self.kinds, parts = torch.tensor(cut), [], []
        for part in np.array_split(rows, 1 + len(rows) // 100):
            low, high = dataset.pair(part)
            jet, cell = active_cells(low)
            parts.append((*self.kind(low, jet, cell), to_blocks(high[:, :2])[jet, cell]))
        energy, sides, blocks = (torch.cat(column) for column in zip(*parts, strict=True))
        for c in range(2):
            active = energy[:, c] != 0
            ends = np.quantile(energy[active, c].numpy(), np.linspace(0, 1, bins + 1)[1:-1])
            edges = torch.as_tensor(ends, dtype=energy.dtype)
            key, order = (16 * torch.bucketize(energy[active, c], edges) + sides[active, c]).sort()
            count = torch.bincount(key, minlength=16 * bins)
            last, whole = count.cumsum(0), count.view(bins, 16).sum(1).repeat_interleave(16)
            first = torch.where(count > 0, last - count, last[15::16].repeat_interleave(16) - whole)
            count = torch.where(count > 0, count, whole)  # none of its kind: any of its energy
            self.kinds.append((edges, first, count, blocks[active, c][order]))

    def kind(self, low: torch.Tensor, jet: torch.Tensor, cell: torch.Tensor) -> tuple:
        """Energies (n, 2) of cells, and which of their four sides are active as a number (n, 2)."""
        sides = windows(low[:, :2], jet, cell, 1)[:, :, [1, 3, 5, 7]] != 0
        bits = (sides * torch.tensor([1, 2, 4, 8])).sum(2)
        return 4 * low[:, :2].flatten(2)[jet, :, cell], bits

    def draw(self, low: torch.Tensor, noise: torch.Tensor, jet: torch.Tensor, cell: torch.Tensor) -> tuple:  # fmt: skip
        energy, sides = self.kind(low, jet, cell)
        uniform, taken = uniform_of(noise.flatten(2)[jet, :, cell]), []
        for c, (edges, first, count, blocks) in enumerate(self.kinds):
            key = 16 * torch.bucketize(energy[:, c].contiguous(), edges) + sides[:, c]
            row = first[key] + (uniform[:, c] * count[key]).long().clamp(max=count[key] - 1)
            taken.append(blocks[row])
        x = torch.stack(taken, 1)
        hits = legal((x != 0).to(x), x, energy, cell, self.cut)
        return shared_out(energy, hits, coordinates(x, self.cut), self.cut), hits


# %% [markdown]
# **Image networks.** What is usual for photographs: SRResNet (residual blocks, pixel shuffle, pixel loss), and with an adversarial
# loss after that ESRGAN (arXiv:1609.04802, 1809.00219), at about the cost of the generator. They paint all pixels freely.


# %%
class ImageNetwork(nn.Module):
    """SRResNet on the signed log scale: (B, 3, 64, 64) and noise, unused -> (B, 3, 125, 125)."""

    noise = 1

    def __init__(self, width: int = 12, blocks: int = 2) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        pair = [nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))
                for _ in range(blocks)]  # fmt: skip
        self.blocks = nn.ModuleList(pair)
        self.last = nn.Sequential(nn.Conv2d(width, 12, 3, padding=1), nn.PixelShuffle(2))

    def painted(self, low: torch.Tensor) -> torch.Tensor:
        """Images on the signed log scale; small values are exactly zero."""
        x = self.first(signed_log(4 * low))
        for block in self.blocks:
            x = x + block(F.silu(x))
        x = self.last(F.silu(x)) + F.interpolate(signed_log(low), scale_factor=2)
        return F.softshrink(x, 0.05)[:, :, 1 : HIGH + 1, 1 : HIGH + 1]

    def forward(self, low: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return signed_exp(self.painted(low).clamp(-4, 4))

    def draw(self, low: torch.Tensor, noise: torch.Tensor, jet: torch.Tensor, cell: torch.Tensor) -> tuple:  # fmt: skip
        """Pixels and hits of tracks and ECAL in active cells, (n, 2, 4) each."""
        x = to_blocks(self(low, noise)[:, :2])[jet, cell]
        return x, (x != 0).to(x)

    def loss(self, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        """Absolute difference on the signed log scale, per hit pixel of the truth."""
        return (self.painted(low) - signed_log(high)).abs().sum() / (high != 0).sum()


# %%
def uniform_split(low: torch.Tensor) -> torch.Tensor:
    """Every cell's energy shared evenly among its pixels: (B, 3, 125, 125)."""
    frame = FRAME.to(low)
    share = (frame / frame.sum(1, keepdim=True).clamp(min=1)).unsqueeze(1)  # (4096, 1, 4)
    return from_blocks(4 * low.flatten(2).permute(0, 2, 1).unsqueeze(3) * share)


def enlarged(low: torch.Tensor, mode: str) -> torch.Tensor:
    """Interpolation of the cells' values at the pixels: "nearest" or "bicubic"."""
    return F.interpolate(low, scale_factor=2, mode=mode)[:, :, 1 : HIGH + 1, 1 : HIGH + 1]


def build(arm: str, cut: float = 0.0) -> nn.Module:
    """A fresh network of an arm; seed the generators first."""
    if arm in ("srresnet", "esrgan"):
        return ImageNetwork()
    if arm == "flow":
        return CellFlow(cut)
    return Generator("independent" not in arm, "gan" in arm, cut)


# %% [markdown]
# Checked at once, on random numbers: energies are kept. And what each network costs for one jet.

# %%
seed_everything(0)
anything = torch.randn(4, 3, LOW, LOW) * torch.tensor([0.1, 10.0, 1000.0])[:, None, None]
anything = torch.where(FRAME.any(1).view(LOW, LOW), anything, 0.0)
with torch.no_grad():
    out = build("gan", cut)(anything, torch.randn(4, Generator.noise, LOW, LOW))
sums = to_blocks(out).sum(3).permute(0, 2, 1).view_as(anything)
print(
    f"energies of random images kept to {((sums - 4 * anything).abs() / (1 + anything.abs())).max():.1e}"
)
one = dataset.pair(splits.train[:1])[0]
ARMS = ("gan", "likelihood", "gan_independent", "independent", "flow", "srresnet", "esrgan")
sizes = {
    arm: complexity(build(arm, cut), one, torch.zeros(1, build(arm).noise, LOW, LOW))
    for arm in ARMS
}
display(pd.DataFrame(sizes).T.rename_axis("arm"))

# %% [markdown]
# ## 4. Training
# **Likelihood.** Everything but the latent map is trained by the negative log-likelihood of the true pixels, each cell given the
# true pixels of the colours before.
#
# **Adversarial term.** A discriminator sees $6\times6$ pixels, nine cells, with the low resolution around them, real or drawn. Its
# loss is relativistic (arXiv:1807.00734): real and drawn patches of the *same* place are compared, and the slope at real
# patches is bounded by the penalty $R_1$ (arXiv:1801.04406), which leaves the discriminator free to tell:
# $$\mathcal L_D=\langle\mathrm{softplus}(D(\tilde x\,|\,\ell)-D(x\,|\,\ell))\rangle+\tfrac\gamma2\langle|\nabla_xD(x\,|\,\ell)|^2\rangle,\qquad
# \mathcal L_G=\mathrm{NLL}+\lambda\,\langle\mathrm{softplus}(D(x\,|\,\ell)-D(\tilde x\,|\,\ell))\rangle.$$
# A discriminator that cannot tell teaches nothing. So it is trained alone first, against the generator as the
# likelihood left it, until it tells held-out patches with an AUC of 0.6 or its steps are used up; then it gets four steps for
# each one of the generator. Gradients pass drawn patterns straight through (arXiv:1308.3432).

# %%
R1 = 0.1  # gamma
CENTRES = 64  # patches of a jet
TELLS = 0.6  # AUC at which the discriminator begins to teach


class Discriminator(nn.Module):
    """Score (m,) of 3 x 3 cells as `seen` (m, 9, 16), given the low resolution around (m, FEATURES)."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(9 * 16 + FEATURES, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1),
        )  # fmt: skip

    def forward(self, patches: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        return self.layers(torch.cat([patches.flatten(1), features], 1))[:, 0]


def relativistic_loss(better: torch.Tensor, worse: torch.Tensor) -> torch.Tensor:
    """mean F.softplus(worse - better): -ln of the probability that each pair is ranked right."""
    return F.softplus(worse - better).mean()


def discriminator_loss(judge: nn.Module, real: torch.Tensor, fake: torch.Tensor, features: torch.Tensor) -> torch.Tensor:  # fmt: skip
    """Real patches are to score higher than drawn ones of the same place, with a bounded slope."""
    real = real.detach().requires_grad_()
    score = judge(real, features)
    (slope,) = torch.autograd.grad(score.sum(), real, create_graph=True)
    penalty = R1 / 2 * slope.square().sum((1, 2)).mean()
    return relativistic_loss(score, judge(fake.detach(), features)) + penalty


def patch_pairs(low: torch.Tensor, high: torch.Tensor, drawn: tuple) -> tuple[torch.Tensor, ...]:
    """Real and drawn patches (m, 9, 16) at the same random places, and the features there."""
    jet, cell = active_cells(low)
    centre = torch.randint(len(cell), (CENTRES * len(low),), device=cell.device)
    index = around(jet, cell, len(low))[centre]
    blocks = to_blocks(high[:, :2])[jet, cell]
    real = seen(blocks, (blocks != 0).to(blocks))[index]
    return real, seen(*drawn)[index], cell_features(low, jet[centre], cell[centre])


# %%
def pass_of(network: nn.Module, low: torch.Tensor, high: torch.Tensor, drawn: int) -> tuple:
    """The network's own loss on a batch, and what it draws for the first ``drawn`` jets."""
    loss, few = network.loss(low, high), low[:drawn]
    return loss, drawing(network, few) if drawn else None


def drawing(network: nn.Module, low: torch.Tensor) -> tuple:
    """Pixels and hits of the active cells, with fresh noise."""
    noise = torch.randn(len(low), network.noise, LOW, LOW, device=low.device)
    return network.draw(low, noise, *active_cells(low))


@torch.no_grad()
def told_apart(judge: nn.Module, network: nn.Module, rows: np.ndarray, device: torch.device) -> float:  # fmt: skip
    """AUC of a discriminator on patches of held-out jets."""
    scores = []
    for part in np.array_split(rows, 1 + len(rows) // 32):
        low, high = dataset.pair(part, device)
        real, fake, features = patch_pairs(low, high, drawing(network, low))
        scores.append(torch.stack([judge(fake, features), judge(real, features)]))
    score = torch.cat(scores, 1).cpu().numpy()
    return roc_auc(np.repeat([0, 1], score.shape[1]), score.ravel())


# %% [markdown]
# **The loop** is the same for every network. A batch of 32 jets makes one step of the generator and four of the discriminator,
# on eight jets each. After every pass the moving average of the weights is scored on validation jets, by its own loss, or in the
# adversarial training by how well small trees tell its patches from true ones.


# %%
class Job(NamedTuple):
    """One training: passes over the training jets, highest learning rate, adversarial weight."""

    arm: str
    seed: int
    passes: int
    rate: float
    weight: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.passes}-{self.rate:g}-{self.weight:g}-{self.seed}"


# %%
class Opponent:
    """The discriminator with its optimiser and steps."""

    def __init__(self, accelerator: object) -> None:
        network = OnePass(Discriminator().to(accelerator.device), discriminator_loss)
        optimizer = torch.optim.AdamW(network.parameters(), 1e-3, betas=(0.0, 0.98))
        self.network, self.optimizer = accelerator.prepare(network, optimizer)
        self.accelerator, self.judge = accelerator, accelerator.unwrap_model(self.network).network

    def step(self, generator: nn.Module, low: torch.Tensor, high: torch.Tensor) -> float:
        """One step on the jets of a batch; the loss."""
        with torch.no_grad():
            drawn = drawing(generator, low)
        self.judge.requires_grad_(True)
        loss = self.network(*patch_pairs(low, high, drawn))
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        self.optimizer.step()
        self.judge.requires_grad_(False)  # the generator's gradients pass it and change nothing
        return loss.item()

    def generator_loss(self, low: torch.Tensor, high: torch.Tensor, drawn: tuple) -> torch.Tensor:
        """Drawn patches are to score higher than real ones."""
        real, fake, features = patch_pairs(low, high, drawn)
        return relativistic_loss(self.judge(fake, features), self.judge(real, features))

    def prepare(self, generator: nn.Module, rows: np.ndarray, seed: int) -> float:
        """Train alone until held-out patches are told apart; the AUC reached."""
        check, device, told = splits.validation[:100], self.accelerator.device, 0.0
        order = np.random.default_rng(seed)
        for number in range(CONFIG.pretraining):
            low, high = dataset.pair(order.choice(rows, min(len(rows), 8), replace=False), device)
            self.step(generator, low, high)
            if (number + 1) % 50 == 0 or number + 1 == CONFIG.pretraining:
                told = told_apart(self.judge, generator, check, device)
                if told >= TELLS:
                    break
        return told


# %%
def train(job: Job, network: nn.Module, rows: np.ndarray) -> pd.DataFrame:
    """Train ``network`` in place on jets ``rows``; the history. The best validation is kept."""
    accelerator, check = make_accelerator(), splits.validation[:100]
    size = min(CONFIG.batch_size, len(rows) // accelerator.num_processes)
    steps = job.passes * (len(rows) // (size * accelerator.num_processes))
    network = network.to(accelerator.device)
    optimizer = torch.optim.AdamW(network.parameters(), job.rate, (0.9, 0.98), weight_decay=1e-4)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, job.rate, steps, pct_start=0.1)
    opponent = Opponent(accelerator) if job.weight else None
    few = max(1, size // 4) if opponent else 0  # jets of a step of the discriminator
    folder, step = run.directory / "state" / job.name, OnePass(network, pass_of)
    fit = Training(folder, step, optimizer, cycle, accelerator, ema_decay=0.995, higher_is_better=False)  # fmt: skip
    for number in fit.epochs(job.passes):
        torch.manual_seed(torch_generator(job.seed, number).initial_seed())  # noise of this pass
        line, losses = {}, []
        if opponent and number == 0:
            line["before"] = opponent.prepare(network, rows, job.seed)
        for batch in fit.batches(rows, size, job.seed):
            low, high = dataset.pair(batch, fit.device)
            if opponent:
                quarters = zip(low.split(few)[:4], high.split(few)[:4], strict=True)
                judged = np.mean([opponent.step(network, *quarter) for quarter in quarters])
            loss, drawn = fit.network(low, high, few)
            losses.append([loss.item()])
            if opponent:
                adversarial = opponent.generator_loss(low[:few], high[:few], drawn)
                loss = loss + job.weight * adversarial
                losses[-1] += [judged, adversarial.item()]
            fit.backward(loss)
            fit.step()
        averaged, names = fit.averaged.network, ("train_loss", "discriminator_loss", "generator_loss")  # fmt: skip
        line |= dict(zip(names, np.mean(losses, 0), strict=False))
        line["validation_loss"] = score = validation_loss(averaged)
        if opponent:
            line["told"] = told_apart(opponent.judge, averaged, check, fit.device)
            score = quick_auc(averaged)
        fit.record(score, **line)
    return pd.DataFrame(fit.history)


# %%
@torch.no_grad()
def validation_loss(network: nn.Module, batch_size: int = 50) -> float:
    """Mean loss of validation jets, with the same dequantisation noise at every call."""
    network.eval()
    device, values = next(network.parameters()).device, []
    rows = splits.validation[:500]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for batch in np.array_split(rows, 1 + len(rows) // batch_size):
            values.append(network.loss(*dataset.pair(batch, device)).item())
    network.train()
    return float(np.mean(values))


@torch.no_grad()
def image_patches(images: torch.Tensor, low: torch.Tensor, seed: int) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """6 x 6 pixels around random active cells and their place modulo 5 (k, 110), and their jets (k,).

    On the signed log scale; the same cells for one seed, whatever the images are.
    """
    jet, cell = (t.cpu() for t in active_cells(low))
    order = np.random.default_rng(seed).permutation(len(jet))
    chosen = torch.as_tensor(np.sort(order[: CONFIG.judged * len(low)]))
    jet, cell = jet[chosen], cell[chosen]
    planes = signed_log(to_blocks(images.cpu())).flatten(2).permute(0, 2, 1).unflatten(2, (LOW, LOW))  # fmt: skip
    place = torch.stack([cell // LOW % 5, cell % LOW % 5], 1)
    values = windows(planes, jet, cell, 1).flatten(1)  # (k, 12 x 9)
    return torch.cat([values, place], 1).numpy(), jet.numpy()


# %%
def drawn_by(network: nn.Module, seed: int) -> Callable:
    """Maker of a network's images: the noise depends on the seed and the batch alone."""
    device = next(network.parameters(), torch.zeros(0)).device

    def make(low: torch.Tensor, number: int) -> torch.Tensor:
        noise = torch.randn(len(low), network.noise, LOW, LOW, generator=torch_generator(seed, number))  # fmt: skip
        return network(low.to(device), noise.to(device)).cpu()

    return make


@torch.no_grad()
def real_and_made(make: Callable, rows: np.ndarray) -> tuple[np.ndarray, ...]:
    """Patches of true and of made images at the same cells, and their jets: (k, 110) twice, (k,)."""
    parts = []
    for number, first in enumerate(range(0, len(rows), 50)):
        low, high = dataset.pair(rows[first : first + 50])
        (real, jet), (fake, _) = (image_patches(x, low, number) for x in (high, make(low, number)))
        parts.append((real, fake, jet + first))
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def quick_auc(network: nn.Module) -> float:
    """How well small trees tell patches of one half of the validation jets, trained on the other."""
    real, fake, jet = real_and_made(drawn_by(network.eval(), 0), splits.validation[:1000])
    network.train()
    x, label = np.concatenate([real, fake]), np.repeat([0, 1], len(real))
    first = np.tile(jet % 2 == 0, 2)
    trees = HistGradientBoostingClassifier(max_iter=60, random_state=0).fit(x[first], label[first])
    return roc_auc(label[~first], trees.predict_proba(x[~first])[:, 1])


# %% [markdown]
# **Judges.** The number that decides in the end: how well a classifier tells generated patches from true ones of the same
# place, 0.5 if it cannot. Two judges that the generator has never met try it: tuned boosted trees on the pixels, and a
# convolutional network. They train on one half of the test jets and are scored on the other half; the worse
# result counts.


# %%
class PatchCNN(nn.Module):
    """Logit (k,) of `image_patches` (k, 110)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(6, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1), nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3), nn.SiLU(), nn.Flatten(),
            nn.Linear(2 * width * 16, 64), nn.SiLU(),
        )  # fmt: skip
        self.out = nn.Linear(64 + 10, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        image = x[:, :108].view(-1, 3, 2, 2, 3, 3).permute(0, 1, 4, 2, 5, 3).reshape(-1, 3, 6, 6)
        z = self.layers(torch.cat([image, (image != 0).to(x)], 1))
        place = F.one_hot(x[:, 108:].long(), 5).flatten(1).to(x)
        return self.out(torch.cat([z, place], 1))[:, 0]


# %%
@torch.enable_grad()
def cnn_judge(x: np.ndarray, label: np.ndarray, stop: np.ndarray, passes: int = 6) -> PatchCNN:
    """A CNN trained on the patches that are not in ``stop``, as it was at its best on those."""
    seed_everything(0)
    network, rows = PatchCNN(), np.flatnonzero(~stop)
    x, target = torch.as_tensor(x), torch.as_tensor(label, dtype=torch.float32)
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=1e-3)
    steps, best = passes * (1 + len(rows) // 256), (np.inf, {})
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for number in range(passes):
        order = np.random.default_rng(number).permutation(rows)
        for batch in np.array_split(order, 1 + len(rows) // 256):
            loss = F.binary_cross_entropy_with_logits(network(x[batch]), target[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cycle.step()
        scores = torch.as_tensor(cnn_scores(network, x[stop]))
        missed = F.binary_cross_entropy_with_logits(scores, target[stop])
        if missed < best[0]:
            best = missed.item(), {k: v.clone() for k, v in network.state_dict().items()}
    network.load_state_dict(best[1])
    return network


@torch.no_grad()
def cnn_scores(network: nn.Module, x: np.ndarray | torch.Tensor) -> np.ndarray:
    """Logits (k,) of patches."""
    return torch.cat([network(part) for part in torch.as_tensor(x).split(2048)]).numpy()


# %%
def judged(name: str, real: np.ndarray, fake: np.ndarray, jet: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of both judges on the patches of the second half of the jets, true ones first, and their jets; kept."""
    file = run.directory / "state" / f"judged-{name}-{joblib.hash((real, fake))[:12]}.joblib"
    if not file.exists():
        x, label, number = np.concatenate([real, fake]), np.repeat([0, 1], len(real)), np.tile(jet, 2)  # fmt: skip
        learn = number < (jet.max() + 1) // 2
        stop = learn & (number % 6 == 0)  # one jet in six settles when to stop
        order = np.random.default_rng(0).permutation(np.flatnonzero(learn & ~stop))
        trees = tuned_trees(x[order], label[order], x[stop], label[stop], tuning_events=20_000)
        scores = {
            "trees": trees.model.decision_function(x[~learn]),
            "CNN": cnn_scores(cnn_judge(x[learn], label[learn], stop[learn]), x[~learn]),
            "jet": number[~learn],
        }
        with atomic_path(file) as temporary:
            joblib.dump(scores, temporary)
    return joblib.load(file)


# %% [markdown]
# Before minutes are spent: a generator of this kind must learn one batch by heart.


# %%
def overfit_one_batch(steps: int, jets: int = 2) -> tuple[float, float]:
    """Loss (nats a cell) of the same jets before and after ``steps`` updates."""
    seed_everything(0)
    network, (low, high) = build("likelihood"), dataset.pair(splits.train[:jets])
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    values = []
    for _ in range(steps):
        loss = network.eval().loss(low, high)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    return values[0], values[-1]


print(
    "loss of memorised jets: {:.2f} -> {:.2f} nats a cell".format(
        *overfit_one_batch(20 if PROFILE == "smoke" else 60)
    )
)

# %% [markdown]
# **The arms.** *Likelihood* and *GAN* start from the same likelihood training of a seed and go on with the lower rate, without and
# with the adversarial term. *Independent cells* get the passes of both stages. On a CPU the trainings run side by side.

# %%
RATES = {"start": 3e-3, "independent": 3e-3, "flow": 2e-3, "srresnet": 2e-3}  # else the lower rate
SECOND_RATE, WEIGHT = 3e-4, 0.1
START = {
    "likelihood": "start",
    "gan": "start",
    "gan_independent": "independent",
    "esrgan": "srresnet",
}
ADVERSARIAL = ("gan", "gan_independent", "esrgan")
trained = {}  # job -> (history, weights as arrays)


def job_of(arm: str, seed: int, weight: float = WEIGHT) -> Job:
    """The training of an arm and seed."""
    rate, weight = RATES.get(arm, SECOND_RATE), weight if "gan" in arm else 0.0
    return Job(arm, seed, CONFIG.passes[arm], rate, weight)


def run_job(job: Job) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Train a job: its history, and its weights as arrays, which cross processes."""
    seed_everything(job.seed)
    network = build(job.arm, cut)
    if job.arm in START:
        weights = trained[job_of(START[job.arm], job.seed)][1]
        network.load_state_dict({k: torch.as_tensor(v) for k, v in weights.items()}, strict=False)
    with redirect_stdout(StringIO()):  # a table says it better
        history = train(job, network, splits.train)
    return history, {k: v.detach().cpu().numpy() for k, v in network.state_dict().items()}


def restored(job: Job) -> nn.Module:
    """The trained network of a job, for evaluation."""
    network = build(job.arm, cut)
    network.load_state_dict({k: torch.as_tensor(v) for k, v in trained[job][1].items()})
    return network.eval()


def run_jobs(jobs: list[Job]) -> None:
    """Train all jobs side by side."""
    done = side_by_side(run_job, [(job,) for job in jobs])
    trained.update(zip(jobs, done, strict=True))
    minutes = sum(history.seconds.sum() for history, _ in done) / 60
    print(f"{len(jobs)} trainings, {minutes:.1f} minutes of one process")


# %%
FIRST = ("start", "independent", "flow", "srresnet")
run_jobs([job_of(arm, seed) for arm in FIRST for seed in CONFIG.seeds])

# %% [markdown]
# **The weight** of the adversarial term is chosen on validation jets: small trees learn to tell the patches of half of them and are
# scored on the other half.

# %%
weight, tried = WEIGHT, {}
if CONFIG.weights:
    trials = {w: [job_of("gan", seed, w) for seed in CONFIG.seeds] for w in CONFIG.weights}
    run_jobs([job for jobs in trials.values() for job in jobs])
    tried = {w: [trained[job][0].score.min() for job in jobs] for w, jobs in trials.items()}
    weight = min(tried, key=lambda w: np.mean(tried[w]))
    frame = pd.DataFrame(
        {w: [np.mean(s), np.std(s, ddof=1)] for w, s in tried.items()}, ["validation AUC", "spread"]
    )
    display(frame.rename_axis(columns="weight").round(4))
print(f"adversarial weight: {weight:g}")

# %%
second = [job_of("likelihood", seed) for seed in CONFIG.seeds]
second += [job_of(arm, seed, weight) for arm in ADVERSARIAL for seed in CONFIG.seeds]
run_jobs([job for job in second if job not in trained])
networks = {arm: [restored(job_of(arm, seed, weight)) for seed in CONFIG.seeds] for arm in ARMS}
print("held-out AUC of the discriminator before it teaches:")
told = {}
for arm in ("gan", "gan_independent"):
    told[arm] = [trained[job_of(arm, seed, weight)][0].before[0] for seed in CONFIG.seeds]
    print(f"  {arm}:", ", ".join(f"{value:.3f}" for value in told[arm]))

# %% [markdown]
# **History.** Left: the likelihood. Right: how well the discriminator tells held-out patches of the moving average of the
# generator, and how well small trees tell patches of validation jets.

# %%
fig, axes = plt.subplots(1, 2, figsize=(11, 3.4))
for arm, color in zip(("start", "independent"), plotting.PALETTE, strict=False):
    for seed in CONFIG.seeds:
        history, first = trained[job_of(arm, seed)][0], seed == CONFIG.seeds[0]
        name = {"start": "cells in turns", "independent": "independent cells"}[arm]
        axes[0].plot(
            history.epoch, history.validation_loss, "o-", color=color, label=name if first else None
        )
        axes[0].plot(
            history.epoch, history.train_loss, ":", color=color, label="training" if first else None
        )
for seed in CONFIG.seeds:
    history, first = trained[job_of("gan", seed, weight)][0], seed == CONFIG.seeds[0]
    for column, color, name in (
        ("told", 2, "discriminator"),
        ("score", 3, "trees on validation jets"),
    ):
        axes[1].plot(
            history.epoch,
            history[column],
            "o-",
            color=plotting.PALETTE[color],
            label=name if first else None,
        )
axes[0].set(xlabel="pass", ylabel="nats a cell")
axes[1].set(xlabel="pass of the adversarial training", ylabel="AUC")
for axis in axes:
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## 5. Evaluation
# The test set, scored once by every arm.

# %%
PEAK = float(np.log1p(100.0))
SPECTRUM = np.geomspace(0.02, 200, 41)  # GeV
RINGS = np.arange(0, 64, 2)  # pixels
SIMILAR = 300  # jets for PSNR and SSIM


def log_image(x: np.ndarray) -> np.ndarray:
    """The scale of PSNR and SSIM."""
    return np.log1p(np.clip(x, 0, None).astype(np.float64))


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """10 log10(peak^2 / mean squared difference) of image pairs (n, 3, H, W), in dB; (n,)."""
    squared = ((log_image(a) - log_image(b)) ** 2).mean((1, 2, 3))
    return 10 * np.log10(PEAK**2 / np.maximum(squared, 1e-12))


def ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Structural similarity (n,) (Wang et al. 2004), windows of 7 x 7 pixels, mean over channels."""
    blur = partial(uniform_filter, size=(1, 1, 7, 7))
    a, b = log_image(a), log_image(b)
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    both = blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    ratio = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    return (ratio / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean((1, 2, 3))


# %%
CORNERS = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])  # of the pixels of a cell


def track_errors(made: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Of every cell with a track: distance of the p_T-weighted centres in pixels, and that of a blind draw, (n, 2)."""
    made, true = (to_blocks(x[:, :1]).clamp(min=0)[:, :, 0] for x in (made, true))  # (B, 4096, 4)
    cells = (true > 0).any(2)
    made, true = (
        x[cells] @ CORNERS / x[cells].sum(1, keepdim=True).clamp(min=1e-9) for x in (made, true)
    )
    exists = FRAME.expand(len(cells), -1, -1)[cells]  # (n, 4)
    blind = (torch.cdist(true, CORNERS) * exists).sum(1) / exists.sum(1)
    return torch.stack([(made - true).norm(dim=1), blind], 1)


def across_borders(images: torch.Tensor) -> torch.Tensor:
    """ECAL pixels beside each other in two cells, less the mean of their cells, signed log: (n, 2)."""
    v = signed_log(to_blocks(images[:, 1:2])[:, :, 0])
    active = (v != 0).any(2).view(-1, LOW, LOW)
    v = (v - v.mean(2, keepdim=True)).view(-1, LOW, LOW, 2, 2)
    both = active[:, :, 1:] & active[:, :, :-1]
    return torch.stack([v[:, :, :-1, :, 1][both], v[:, :, 1:, :, 0][both]], 2).flatten(0, 1)


# %%
class Measured(NamedTuple):
    """What is kept of the images that one training made of the test jets."""

    observables: pd.DataFrame  # (n, 34)
    track_errors: np.ndarray  # (cells, 2): made, blind
    correlation: float  # of ECAL pixels across the border of two cells
    impossible: np.ndarray  # (n, 3)
    spectrum: np.ndarray  # (3, 40) pixels
    radial: np.ndarray  # (3, 31) GeV
    similarity: np.ndarray  # (2, m): PSNR, SSIM
    judged: dict[str, np.ndarray]  # scores of the judges


GRID = np.hypot(*np.mgrid[-62:63, -62:63])  # pixels from the middle


@torch.no_grad()
def measure(name: str, make: Callable, rows: np.ndarray) -> Measured:
    """Measure what ``make(low, number of the batch)`` makes of jets ``rows``, 50 at a time."""
    tables, errors, pairs, counts, similar, patches = [], [], [], [], [], []
    spectrum, radial = np.zeros((3, len(SPECTRUM) - 1)), np.zeros((3, len(RINGS) - 1))
    for number, first in enumerate(range(0, len(rows), 50)):
        low, high = dataset.pair(rows[first : first + 50])
        made = high if make is None else make(low, number)
        x = made.numpy()
        tables.append(jet_observables(x))
        errors.append(track_errors(made, high))
        pairs.append(across_borders(made))
        counts += [impossible(made[j : j + 1], low[j : j + 1], cut) for j in range(len(low))]
        for c in range(3):
            spectrum[c] += np.histogram(x[:, c], SPECTRUM)[0]
            radial[c] += np.histogram(GRID, RINGS, weights=x[:, c].sum(0))[0]
        if first < SIMILAR:
            similar.append((psnr(x, high.numpy()), ssim(x, high.numpy())))
        real, jet = image_patches(high, low, number)
        # True patches are compared with those of other cells: no classifier may tell them apart.
        fake, _ = image_patches(made, low, number if make else number + 1_000_000)
        patches.append((real, fake, jet + first))
    scores = judged(name, *(np.concatenate(p) for p in zip(*patches, strict=True)))
    with np.errstate(invalid="ignore"):  # evenly shared cells have none
        correlation = float(np.corrcoef(torch.cat(pairs).T.numpy())[0, 1])
    return Measured(pd.concat(tables, ignore_index=True), torch.cat(errors).numpy(), correlation, np.array(counts),
                    spectrum, radial, np.concatenate(similar, 1), scores)  # fmt: skip


# %%
LABELS = {
    "gan": "GAN, cells in turns", "likelihood": "the same by likelihood alone",
    "gan_independent": "independent cells, GAN", "independent": "independent cells, likelihood", "flow": "conditional flow per cell",
    "table": "table of training cells", "esrgan": "image network, adversarial (ESRGAN)",
    "srresnet": "image network, pixel loss (SRResNet)", "uniform": "uniform split", "nearest": "nearest",
    "bicubic": "bicubic", "truth": "true jets",
}  # fmt: skip
test, y_test = splits.test, y[splits.test]
makers = {
    arm: [drawn_by(n, s) for n, s in zip(networks[arm], CONFIG.seeds, strict=True)] for arm in ARMS
}
makers["table"] = [drawn_by(Table(splits.train[:5_000], cut), 0)]
makers |= {"uniform": [lambda low, _: uniform_split(low)], "truth": [None]}
makers |= {mode: [lambda low, _, mode=mode: enlarged(low, mode)] for mode in ("nearest", "bicubic")}
jobs = [(arm, seed) for arm in makers for seed in range(len(makers[arm]))]
found = side_by_side(lambda arm, seed: measure(f"{arm}-{seed}", makers[arm][seed], test), jobs)
measured = {arm: [m for (a, _), m in zip(jobs, found, strict=True) if a == arm] for arm in makers}
true = measured["truth"][0]

# %% [markdown]
# **Can they be told from true jets?** AUC of the judge that tells better, on patches of test jets that it was not trained on.
# The intervals (95 %) contain which jets are in the test set, patches of one jet drawn together, and how a training
# ends; ▲ marks jets that are harder to tell than those of the likelihood arm, ▼ easier ones. The difference column
# is the answer to the question whether the adversarial part earns its place.

# %%
patch_jet, told_by = true.judged["jet"], {}  # arm -> the judge that tells better
label = np.repeat([0, 1], len(patch_jet) // 2)
for arm, runs in measured.items():
    auc = {j: np.mean([roc_auc(label, m.judged[j]) for m in runs]) for j in ("trees", "CNN")}
    told_by[arm] = max(auc, key=auc.get)
scores = {arm: [m.judged[told_by[arm]] for m in runs] for arm, runs in measured.items()}
comparison = Comparison(
    roc_auc, label, scores, "likelihood", higher_is_better=False, n_resamples=200, groups=patch_jet
)
frame = comparison.table()
frame.insert(1, "judge", [told_by[arm] for arm in frame.index])
frame = frame.rename(index=LABELS)
display(frame.rename_axis("two-sample AUC of patches"))

# %% [markdown]
# **One jet**, of middle energy. Tracks and towers are certain up to one of four pixels, the ECAL is where most is invented.

# %%
middle = test[np.argsort(dataset.pt[test])[len(test) // 2]][None]
low, high = dataset.pair(middle)
shown = {"low resolution": low, "GAN": None, "truth": high, "bicubic": enlarged(low, "bicubic")}
with torch.no_grad():
    shown["GAN"] = drawn_by(networks["gan"][0], 0)(low, 0)
fig, axes = plt.subplots(3, 4, figsize=(11, 8.4))
for line, (c, channel) in zip(axes, enumerate(CHANNELS), strict=True):
    for axis, (name, images) in zip(line, shown.items(), strict=True):
        zoom = slice(20, 44) if name == "low resolution" else slice(38, 87)
        unit = "GeV" if axis is line[-1] else ""
        plotting.event_image(axis, images[0, c, zoom, zoom].numpy(), f"{name}: {channel}", unit)
        axis.label_outer()
plt.show()

# %% [markdown]
# **Physics.** *Impossible*: cells, tracks and towers a thousand jets that no jet can have. *Energy* and *hits*: sums over all jets,
# generated over true, of the channel that is farthest from 1. *Correlation* of two ECAL pixels on the two sides of a border
# between cells, in excess of their cells. *FPD*: Fréchet distance of 34 observables (energies, hits, centres, widths, shares,
# mass) between different jets, one half true, the other generated, extrapolated to infinite samples; the interval is from a
# bootstrap over jets and contains the spread of trainings. Other true jets are its floor.


# %%
def fpd_entry(runs: list[Measured]) -> dict[str, float]:
    """FPD of an arm: mean over trainings with its 95 % interval."""
    half, rng = len(test) // 2, np.random.default_rng(0)
    reference = true.observables.to_numpy()[:half]
    others = [m.observables.to_numpy()[half:] for m in runs]
    values, draws = [fpd(reference, x)[0] for x in others], []
    for _ in range(CONFIG.resamples):
        i, j = rng.integers(half, size=half), rng.integers(len(others[0]), size=len(others[0]))
        draws.append(np.mean([fpd(reference[i], x[j], batches=2)[0] for x in others]))
    spread = np.std(values, ddof=1) if len(values) > 1 else None
    width = half_width(np.var(draws, ddof=1), [spread**2 if spread else 0.0], [len(values)])
    return metric_entry(np.mean(values), np.mean(values) - width, np.mean(values) + width, spread)


# %%
def details(runs: list[Measured]) -> dict[str, dict[str, float]]:
    """Entries of an arm that compare it with the truth jet by jet."""
    entries, ones = {}, np.ones(len(test))
    for name in NAMES:
        for quantity, title in (("energy", "energy_response"), ("hits", "occupancy")):
            column = f"{name}_{quantity}"
            made = [m.observables[column].to_numpy() for m in runs]
            entries[f"{title}_{name}"] = ratio_of_sums(made, true.observables[column].to_numpy())
        centre = [f"{name}_eta", f"{name}_phi"]
        off = [(m.observables[centre] - true.observables[centre]).to_numpy() for m in runs]
        entries[f"centre_error_{name}"] = ratio_of_sums([np.hypot(*x.T) for x in off], ones)
    for k, name in enumerate(("psnr", "ssim")):
        values = [m.similarity[k] for m in runs]
        entries[name] = ratio_of_sums(values, np.ones_like(values[0]))
    masses = [m.observables["mass"].to_numpy() for m in runs]
    entries["mass_response"] = ratio_of_sums(masses, true.observables["mass"].to_numpy())
    entries["impossible"] = ratio_of_sums([m.impossible.sum(1) for m in runs], ones / 1000)
    return entries


arms = [(arm,) for arm in measured]
full = dict(zip(measured, side_by_side(lambda arm: details(measured[arm]), arms), strict=True))
distances = dict(zip(measured, side_by_side(lambda arm: fpd_entry(measured[arm]), arms), strict=True))  # fmt: skip

# %%
rows = {}
for arm in LABELS:
    worst = []
    for what in ("energy_response", "occupancy"):
        ratios = [full[arm][f"{what}_{n}"]["value"] for n in NAMES]
        worst.append(max(ratios, key=lambda ratio: abs(ratio - 1)))
    rows[LABELS[arm]] = [f"{full[arm]['impossible']['value']:,.0f}", *(f"{v:.4g}" for v in worst),
                         f"{np.mean([m.correlation for m in measured[arm]]):.3f}".replace("nan", "–"), format_entry(distances[arm])]  # fmt: skip
columns = ["impossible", "energy", "hits", "correlation", "FPD"]
display(pd.DataFrame.from_dict(rows, orient="index", columns=columns))

# %% [markdown]
# **Spectra and profiles**, generated over true.

# %%
SHOWN = ("gan", "independent", "flow", "table", "esrgan", "uniform")
fig, axes = plt.subplots(2, 3, figsize=(11, 5.6), sharey=True)
centres = {"spectrum": np.sqrt(SPECTRUM[1:] * SPECTRUM[:-1]), "radial": (RINGS[1:] + RINGS[:-1]) / 2}  # fmt: skip
for line, (what, x) in zip(axes, centres.items(), strict=True):
    for c, axis in enumerate(line):
        reference = getattr(true, what)[c]
        good = reference > (100 if what == "spectrum" else 0)
        for arm in SHOWN:
            ratio = np.mean([getattr(m, what)[c][good] for m in measured[arm]], 0) / reference[good]
            axis.plot(x[good], ratio, label=LABELS[arm], lw=2.2 if arm == "gan" else 1.2)
        axis.set(title=CHANNELS[c] if what == "spectrum" else "", ylim=(0.6, 1.4))
        axis.set_xscale("log" if what == "spectrum" else "linear")
        axis.set_xlabel("GeV in a pixel" if what == "spectrum" else "pixels from the middle")
axes[0, 0].set_ylabel("pixels / true")
axes[1, 0].set_ylabel("energy / true")
axes[1, 2].legend(fontsize=7, ncol=2)
plt.show()

# %% [markdown]
# The same as separation power, 0 for equal histograms and 1 for disjoint ones.

# %%
powers = {}
for arm in SHOWN:
    pairs = [(what, c) for what in centres for c in range(3)]
    values = [[separation_power(getattr(m, what)[c], getattr(true, what)[c]) for m in measured[arm]]
              for what, c in pairs]  # fmt: skip
    powers[LABELS[arm]] = [f"{np.mean(value):.1e}" for value in values]
columns = [f"{what}, {c}" for what in ("pixels", "profile") for c in CHANNELS]
display(pd.DataFrame.from_dict(powers, orient="index", columns=columns))

# %% [markdown]
# **Where are the tracks?** Mean distance of the $p_T$-weighted centre of a cell's tracks from the true one, in pixels. A blind
# draw of one of four places costs $(2+\sqrt2)/4$ for a single track; answering with the middle of the cell costs less,
# $1/\sqrt2$, and is no track. The difference to the blind draw is what the surroundings tell.


# %%
def mean_score(_: np.ndarray, score: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Mean of the scores."""
    return float(np.average(score, weights=weight))


rows = np.array_split(test, 1 + len(test) // 100)
counts = np.concatenate([(dataset.pair(part)[0][:, 0] > 0).sum((1, 2)).numpy() for part in rows])
tracked = {"blind draw": true.track_errors[:, 1]}
for arm in ("gan", "likelihood", "flow", "table", "uniform"):
    tracked[arm] = [m.track_errors[:, 0] for m in measured[arm]]
track_jet = np.repeat(np.arange(len(test)), counts)
nothing = np.zeros(len(track_jet))
tracks = Comparison(mean_score, nothing, tracked, "blind draw", higher_is_better=False, groups=track_jet)  # fmt: skip
display(tracks.table(3).rename(index=LABELS).rename_axis("track error [pixels]"))

# %% [markdown]
# **Similarity of images**, on the scale $\ln(1+x/\mathrm{GeV})$ with the peak 100 GeV. A network that is trained to be close wins
# it, with hits in the wrong number of pixels; a track in a wrong pixel costs more than no track. It does not measure
# jets.

# %%
rows = {LABELS[arm]: [format_entry(full[arm][name]) for name in ("psnr", "ssim")] for arm in sorted(
    set(LABELS) - {"truth"}, key=lambda arm: -full[arm]["psnr"]["value"])}  # fmt: skip
display(pd.DataFrame.from_dict(rows, orient="index", columns=["PSNR [dB]", "SSIM"]))

# %% [markdown]
# **What super-resolution can add, and what not.** Quark or gluon? The same boosted trees on the same 34 observables, trained and
# tested on true high-resolution jets, on their low resolution, and on jets made by the GAN from the low resolution.
# Generated jets hold no information that the low resolution does not, so the best they can do is to be as good. The last
# row is another question: do they look right to a tagger that knows true jets only?


# %%
def tagger_inputs(make: Callable | None, rows: np.ndarray) -> np.ndarray:
    """Observables (n, 34) of jets: true ones, or what is made of their low resolution."""
    tables = []
    for number, first in enumerate(range(0, len(rows), 50)):
        low, high = dataset.pair(rows[first : first + 50])
        with torch.no_grad():
            tables.append(jet_observables((high if make is None else make(low, number)).numpy()))
    return pd.concat(tables).to_numpy()


def tagger(make: Callable | None) -> HistGradientBoostingClassifier:
    """Tuned trees on made training jets."""
    rows, check = splits.train[: CONFIG.tagger_jets], splits.validation
    x, x_check = tagger_inputs(make, rows), tagger_inputs(make, check)
    return tuned_trees(x, y[rows], x_check, y[check], tuning_events=5_000).model


others = [drawn_by(network, 100 + seed) for seed, network in enumerate(networks["gan"])]
taggers = side_by_side(tagger, [(make,) for make in (None, *makers["nearest"], *others)])
columns = {a: [m.observables.to_numpy() for m in measured[a]] for a in ("truth", "nearest", "gan")}
tags = {
    "high": taggers[0].predict_proba(columns["truth"][0])[:, 1],
    "low": taggers[1].predict_proba(columns["nearest"][0])[:, 1],
    "super": [t.predict_proba(x)[:, 1] for t, x in zip(taggers[2:], columns["gan"], strict=True)],
    "transfer": [taggers[0].predict_proba(x)[:, 1] for x in columns["gan"]],
}
TAGS = {"high": "true high resolution", "low": "low resolution", "super": "made by the GAN",
        "transfer": "trained on true jets, tested on the GAN's"}  # fmt: skip
tagging = Comparison(roc_auc, y_test, tags, "low")
display(tagging.table().rename(index=TAGS).rename_axis("quark or gluon, ROC-AUC"))

# %% [markdown]
# ## 6. What was tried
# **What the latent map does.** The same low resolution and the same numbers for every single cell, but another latent map: the
# share of the active cells whose hit pixels change, and how often two neighbours change together, relative to chance.


# %%
@torch.no_grad()
def latent_changes(network: Generator, low: torch.Tensor) -> tuple[float, float]:
    """Share of active cells with other hits; pairs of neighbours that change, over chance."""
    noise, other = torch.randn(2, len(low), network.noise, LOW, LOW, generator=torch_generator(0, 0))  # fmt: skip
    other[:, 2:] = noise[:, 2:]
    first, second = (to_blocks(network(low, z)[:, :2]) != 0 for z in (noise, other))
    active = (low[:, :2] != 0).any(1)  # (B, 64, 64)
    moved = (first != second).flatten(2).any(2).view_as(active)
    pairs, both = ((x[:, :, 1:] & x[:, :, :-1]).sum().item() for x in (active, moved))
    share = moved.sum().item() / active.sum().item()
    return share, both / pairs / max(share, 1e-9) ** 2


low = dataset.pair(splits.validation[:100])[0]
moved, together = np.mean([latent_changes(network, low) for network in networks["gan"]], 0)
print(f"cells that change: {moved:.1%}; pairs that change together, over chance: {together:.2f}")

# %% [markdown]
# ## 7. What this run shows
# The sentences of this notebook that assert something, checked on this run's numbers. A run in which one is false is not
# published.

# %%
harder = comparison.better
SHARED = (
    "gan",
    "likelihood",
    "gan_independent",
    "independent",
    "flow",
    "table",
)  # arms that share cells out
counted = sum(m.impossible.sum() for arm in SHARED for m in measured[arm])
claims = {
    "nothing impossible in images that are shared out cell by cell": counted == 0,
    "cells that know each other are harder to tell": harder("likelihood", "independent"),
    "the adversarial part adds nothing to cells in turns": not harder("gan", "likelihood"),
    "the discriminator tells independent cells before it teaches": min(told["gan_independent"])
    >= TELLS,
    "the adversarial part helps independent cells": harder("gan_independent", "independent"),
    "harder to tell than the conditional flow": harder("gan", "flow"),
    "harder to tell than the table of training cells": harder("gan", "table"),
    "harder to tell than image networks": harder("gan", "esrgan") and harder("gan", "srresnet"),
    "the latent map changes what is drawn": moved > 0.01,
    "a tagger gains nothing from super-resolution": not tagging.better("super"),
    "tracks are placed better than blindly": tracks.better("gan"),
}
show_claims(claims)

# %%
COLUMNS = ["patch AUC (0.5: perfect)", "minus likelihood alone", "FPD", "impossible a thousand jets"]  # fmt: skip
frame = comparison.table().drop(index=["nearest", "bicubic", "uniform", "srresnet"])
frame.insert(3, "fpd", [format_entry(distances[arm]) for arm in frame.index])
frame.insert(4, "impossible", [f"{full[arm]['impossible']['value']:,.0f}" for arm in frame.index])
frame = frame.drop(columns="spread of trainings").set_axis(COLUMNS, axis=1)
update_results(frame.rename(index=LABELS).rename_axis("images"))

# %% [markdown]
# ## 8. Speed, weights and metrics
# Milliseconds a jet on one thread of a CPU, in batches of one and of 32 jets.


# %%
@torch.no_grad()
def milliseconds(make: Callable, jets: int, seconds: float) -> float:
    """Best of three measurements of a jet in batches of ``jets``."""
    low, best = dataset.pair(test[:jets])[0], np.inf
    for _ in range(3):
        count, start = 0, time.perf_counter()
        while time.perf_counter() < start + seconds or not count:
            make(low, 0)
            count += 1
        best = min(best, (time.perf_counter() - start) / count / len(low))
    return 1000 * best


threads, seconds = torch.get_num_threads(), 0.05 if PROFILE == "smoke" else 0.3
torch.set_num_threads(1)
timed = ("gan", "independent", "esrgan", "bicubic")
speeds = {arm: [milliseconds(makers[arm][0], n, seconds) for n in (1, 32)] for arm in timed}
torch.set_num_threads(threads)
frame = pd.DataFrame.from_dict(speeds, orient="index", columns=["1 jet", "32 jets"])
display(frame.rename(index=LABELS).round(2))

# %% [markdown]
# The ONNX graph takes raw `X_jets_LR` (batch, 3, 64, 64) and noise (batch, 12, 64, 64), standard normal numbers, and gives
# `X_jets` (batch, 3, 125, 125) in GeV. `make score TASK=task2b_superres_gan DATA=file.parquet` draws the noise with NumPy's
# `default_rng(0)`.

# %%
warnings.filterwarnings("ignore", "Exporting aten::index")  # no index here is negative
card = {"task": run.task, "profile": PROFILE, "data": dataset.description, "source": dataset.source}
about = card | {"kind": "super_resolution", "data_source": dataset.source, "noise_seed": 0}
batches = []
for n in (2, 1, 7):
    noise = torch.randn(n, Generator.noise, LOW, LOW, generator=torch_generator(0, n))
    batches.append((dataset.pair(splits.validation[:n])[0], noise))
for name, arm in ((run.task, "gan"), ("likelihood", "likelihood")):
    path, network = run.directory / f"{name}.onnx", networks[arm][0]
    export_onnx(network, batches[0], path, ["X_jets_LR", "noise"], ["X_jets"], about)
    off = check_parity(network, path, batches, tolerance=0.05)
    print(f"{path.name}: differs from PyTorch by at most {off:.1e} GeV")
for arm in ARMS:
    for seed, network in zip(CONFIG.seeds, networks[arm], strict=True):
        path = run.directory / f"{arm}_seed{seed}.safetensors"
        save_weights(path, network, card | {"arm": arm, "seed": seed})


# %%
def described(arm: str) -> dict:
    """Results of one arm for metrics.json."""
    entries = {"c2st_auc_low": comparison.entry(arm), "fpd": distances[arm]}
    entries |= {name: full[arm][name] for name in ("psnr", "ssim", "impossible")}
    return entries | {"info": {"description": LABELS[arm], **sizes.get(arm, {})}}


metrics = run.save_metrics(
    title="Task 2b: super-resolution of jet images with a GAN",
    data={"source": dataset.source, "fingerprint": dataset.fingerprint, "description": dataset.description}
    | {part: len(rows) for part, rows in parts},
    published=[f"{run.task}.onnx", "likelihood.onnx", "gan_seed0.*"],
    seeds=list(CONFIG.seeds),
    headline="c2st_auc_low",
    metrics={k: v for k, v in described("gan").items() if k != "info"} | {"tagger_auc": tagging.entry("super")},
    baselines={arm: described(arm) for arm in ("table", "esrgan", "srresnet", "uniform", "nearest", "bicubic")},
    arms={arm: described(arm) for arm in ("likelihood", "gan_independent", "independent", "flow")},
    floors={"true_jets": described("truth")},
    variants={
        "per_channel": full,
        "tagger": {name: tagging.entry(name) for name in tags},
        "track_error": {name: tracks.entry(name) for name in tracked},
        "milliseconds_per_jet": speeds,
    },
    claims={sentence: bool(true) for sentence, true in claims.items()},
    **sizes["gan"],
)  # fmt: skip

# %% [markdown]
# ## 9. Discussion, limits, references
# **Choices.** *What is known is not learned.* Energies of cells, towers of the HCAL and the cut-off of tracks hold by construction;
# a network that paints pixels freely has to spend its capacity on them and still gets them wrong. *Exact zeros.* A pixel is hit, or
# it is exactly empty. A softmax over patterns says so; a flow or an image network has to imitate it with a gap in a
# continuous density. *Turns.* The readout of whole $5\times5$ squares around high hits ties pixels of
# different cells together by a rule, not by a smooth correlation. A cell that is drawn after its neighbours can obey it, and
# peaks and hot cells come first because they are what reads the others out. With four plain colours and no such order the
# likelihood of validation cells was clearly worse in short trainings. Each turn is one small batch, so a jet still costs only nine
# passes over a part of its cells. *A summary of the whole jet* as a further input did not help in a short trial and was left
# out.
#
# **Optimisation.** One cycle of the learning rate, batches of a few thousand cells. The peak rate hardly matters between two and
# three thousandths; the number of passes matters much: the rule of the squares is learned late, and a generator stopped after
# two passes over a few thousand jets is told from the truth as easily as one of independent cells. The adversarial stage has
# a tenth of that rate, since it starts from a density that is already good; its weight is chosen above. The first edition of this notebook
# bounded its discriminator with spectrally normalised layers and never saw it tell anything; its latent map began at
# zero and was part of the likelihood, so that it stayed there.
#
# **Limits.** A judge's AUC grows with the number of patches that train it: it compares arms on equal terms and is no absolute
# number. Patches of $6\times6$ pixels do not show what is wrong at larger distances; FPD looks at whole jets. The order of the
# turns and the threshold for hot cells are physics of the CMS calorimeter as the simulation has it; on the official files they
# are still a valid order, if perhaps not the best. Cells in the last row and column of the low resolution have no pixels
# and must be empty, as they are in the files. Numbers obtained on stand-in jets say how the arms compare on the same
# jets; they do not predict those on the official files. A jet's tracks can be placed only as well as their
# surroundings tell, and no method that sees the low resolution alone can do better.
#
# **References.** I. Goodfellow et al., *Generative adversarial nets*, arXiv:1406.2661. A. Jolicoeur-Martineau, *The relativistic
# discriminator*, arXiv:1807.00734. L. Mescheder et al., *Which training methods for GANs do actually converge?*,
# arXiv:1801.04406. Y. Bengio et al., *Estimating or propagating gradients through stochastic neurons*, arXiv:1308.3432. S. Reed
# et al., *Parallel multiscale autoregressive density estimation*, arXiv:1703.03664. I. Pang, J. Raine, D. Shih, *SuperCalo*,
# arXiv:2308.11700. C. Ledig et al., *SRGAN*, arXiv:1609.04802. X. Wang et al., *ESRGAN*, arXiv:1809.00219. R. Kansal et al.,
# *Evaluating generative models in high energy physics*, arXiv:2211.10295. C. Krause et al., *CaloChallenge 2022*,
# arXiv:2410.21611. Z. Wang et al., *Image quality assessment*, IEEE TIP 13 (2004) 600.
