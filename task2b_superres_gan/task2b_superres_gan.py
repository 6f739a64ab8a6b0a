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
#
# **What is asked for physically.** The low resolution *is* the high one, padded with zeros to 128 and averaged over
# $2\times2$ pixels. Nothing about the energy of such a block is therefore unknown, only how its four pixels share it. A
# network that paints 46,875 pixels freely first has to learn what is known exactly, and gets the energy wrong by a few per
# cent. This one *shares out* every low-resolution cell's energy: which of the four pixels are hit is drawn from a
# categorical distribution, the shares among them from a density, and the sum is the cell's energy by construction.
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
show_results("task2b_superres_gan")

# %% [markdown]
# ## 1. Set-up
# Data, splits, metrics, plots and checkpoints come from `e2e_utils`; the networks, the losses and the training loop are in
# this notebook.

# %%
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from IPython.display import Markdown, display
from scipy.ndimage import uniform_filter
from sklearn.ensemble import HistGradientBoostingClassifier
from torch import nn
from torch.nn.functional import interpolate, log_softmax, one_hot, pad, softplus
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.flop_counter import FlopCounterMode

from data.loaders import load_super_resolution
from e2e_utils import plotting
from e2e_utils.boosting import fit_trees
from e2e_utils.checkpoints import load_training_state, save_training_state, save_weights
from e2e_utils.evaluation import evaluate, metric_entry
from e2e_utils.fidelity import fpd, kpd, separation_power
from e2e_utils.jet_observables import NAMES, jet_observables, ratio_of_sums
from e2e_utils.jet_resolution import HIGH, LOW
from e2e_utils.machine import make_accelerator
from e2e_utils.metrics import paired_bootstrap, resample, roc_auc
from e2e_utils.notebook import results_frame, start_run, update_results
from e2e_utils.onnx_export import check_parity, export_onnx
from e2e_utils.parallel import side_by_side
from e2e_utils.seeds import epoch_batches, seed_everything, torch_generator
from e2e_utils.splits import duplicate_groups, split

# %% tags=["parameters"]
PROFILE = os.environ.get("PROFILE", "quick")  # smoke (tests), quick, standard, full
DATA_SOURCE = os.environ.get("DATA_SOURCE", "auto")  # auto, official, standin
DATA = os.environ.get("DATA") or None  # other files of the official schema, comma separated

# %% [markdown]
# The profiles differ in the number of jets, passes and seeds, never in the method.


# %%
@dataclass(frozen=True)
class Config:
    """Everything that a run needs to be repeated, except the data."""

    epochs: int  # of the likelihood
    further_epochs: int  # of the second stage, with or without the adversarial term
    seeds: tuple[int, ...]
    batch_size: int = 32  # jets
    learning_rate: float = 2e-3
    second_rate: float = 5e-4
    adversarial: float = 0.1  # weight of the adversarial term; the likelihood has weight 1
    ablation_jets: int = 0  # 0 leaves the ablations out
    ablation_epochs: int = 2
    tagger_jets: int = 50_000  # training jets of the tagger, at most
    patches: int = 64  # that the discriminator sees of a jet
    cells: float = 0.5  # share of a jet's cells that a likelihood step looks at


CONFIGS = {
    "smoke": Config(1, 1, (0, 1), batch_size=16, ablation_jets=32, ablation_epochs=1),
    "quick": Config(4, 1, (0, 1)),
    "standard": Config(6, 1, (0, 1, 2), ablation_jets=3_000, ablation_epochs=2),
    "full": Config(30, 10, (0, 1, 2), batch_size=64, ablation_jets=40_000, ablation_epochs=6),
}
CONFIG = CONFIGS[PROFILE]
TASK = "task2b_superres_gan"
CHANNELS = ("track pT", "ECAL", "HCAL")

# %%
run = start_run(TASK, PROFILE, DATA_SOURCE)
plotting.set_style()
print(run.summary())

# %% [markdown]
# ## 2. Data
# `load_super_resolution` reads the official parquet files where they are on disk, and otherwise stand-in jets simulated with
# Pythia 8 and a CMS-like detector in the same schema (see `data/README.md`). The next line says which this run used. The low
# resolution of a file is compared with the pooled high one as it is read; a file in which they differ is refused.

# %%
dataset = load_super_resolution(DATA_SOURCE, PROFILE, path=DATA)
y = dataset.y
display(Markdown(f"> **Data of this run:** {dataset.description}"))

# %% [markdown]
# **Split.** 64 % of the jets train, 16 % settle every choice, 20 % are the test set, scored once in section 6; identical
# images stay on one side.

# %%
splits = split(y, seed=0, groups=duplicate_groups(dataset.images))
pd.DataFrame({part: {"jets": len(rows), "quarks": int(y[rows].sum())} for part, rows in splits._asdict().items()}).T  # fmt: skip

# %% [markdown]
# **One jet.** Rows are eta, columns phi, the middle of the picture is magnified. Tracks are single pixels. The ECAL has the
# granularity of the image: showers cover several pixels, and around high hits $5\times5$ pixels are read out whatever they
# hold, also below zero. An HCAL tower is $5\times5$ pixels that share one energy evenly: here the high resolution follows
# almost entirely from the low one, if the network finds out where towers begin.

# %%
ZOOM = slice(37, 88)  # 51 x 51 pixels, 51 / 2 cells
example = splits.train[:1]
low, high = dataset.pair(example)
fig, axes = plt.subplots(2, 3, figsize=(11, 7))
for c, name in enumerate(CHANNELS):
    last = "E [GeV]" if c == 2 else ""
    plotting.event_image(axes[0, c], low[0, c, 19:45, 19:45].numpy(), f"low resolution, {name}", last)  # fmt: skip
    plotting.event_image(axes[1, c], high[0, c, ZOOM, ZOOM].numpy(), f"high resolution, {name}", last)  # fmt: skip
plt.show()

# %% [markdown]
# **What is unknown.** The table counts what happens to the four pixels of an active cell. A track's cell has one hit
# pixel out of four in nearly all cases, and only its neighbourhood could say which; an ECAL cell is open in both respects;
# an HCAL cell is evenly shared except where a tower's edge crosses it.


# %%
def to_blocks(high: torch.Tensor) -> torch.Tensor:
    """Images (B, 3, 125, 125) -> the four pixels of every cell, (B, 4096, 3, 4)."""
    blocks = pad(high, (1, 2, 1, 2)).view(-1, 3, LOW, 2, LOW, 2)  # (B, 3, 128, 128) -> blocks
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(-1, LOW * LOW, 3, 4)


sample = splits.train[:500]
blocks = to_blocks(dataset.pair(sample)[1]).reshape(-1, 3, 4)  # (B, 4096, 3, 4) -> (cells, 3, 4)
lines = {}
for c, name in enumerate(CHANNELS):
    x = blocks[:, c]
    x = x[(x != 0).any(1)]
    hits = (x != 0).sum(1)
    least = torch.where(x != 0, x, torch.inf).amin(1)
    even = (hits > 1) & (x.amax(1) - least < 1e-4 * x.amax(1))
    lines[name] = {
        "pixels hit": f"{100 * (blocks[:, c] != 0).float().mean() * 4096 * 4 / HIGH**2:.2f} %",
        "active cells a jet": f"{len(x) / len(sample):.0f}",
        "1 hit": f"{(hits == 1).float().mean():.1%}", "2 hits": f"{(hits == 2).float().mean():.1%}",
        "3 or 4": f"{(hits > 2).float().mean():.1%}", "evenly shared": f"{even.float().mean():.1%}",
        "with negative pixels": f"{(x < 0).any(1).float().mean():.1%}",
    }  # fmt: skip
display(pd.DataFrame(lines).T)

# %% [markdown]
# ## 3. The generator
# **One scale.** Low and high resolution enter in GeV and through one and the same function,
# $\mathrm{asinh}(E/50\,\mathrm{MeV})/3$, linear at the noise and logarithmic above. Normalising the two apart, as is often
# done, loses the relation $E_{\mathrm{cell}}=\sum_i x_i$ that makes the task well posed.
#
# **Only active cells.** Two per cent of the pixels have a hit. The network therefore works on the list of active cells
# (about seven per cent of the 4,096) and sees for each the $7\times7$ cells around it in all three channels, whether a
# neighbour has exactly the same energy, and its row and column modulo 5, the period of the towers. This is a
# convolutional network whose convolution is evaluated where there is something to share out.
#
# **Occupancy.** Which of the four pixels are hit is one of 15 patterns. A softmax over patterns is *exact*: it knows that two
# hits side by side are likelier than across. Channels are drawn one after the other, tracks, ECAL, HCAL, each given the
# patterns before.
#
# **Shares.** With $k$ hit pixels, $k-1$ numbers are free: contrasts $u=Hy$ with orthonormal rows (for $k=4$ the Haar basis).
# Tracks and HCAL take $y=\ln x$, so that $x_i=E\,e^{y_i}/\sum_j e^{y_j}$, a softmax times the energy. ECAL pixels can be
# negative, so there $y=\mathrm{asinh}(x/s)$ with $s=50$ MeV, and $x_i=s\sinh(y_i+t)$ with the one $t$ that conserves the energy,
# $$e^{t}=\frac{e+\sqrt{e^2+AB}}{A},\qquad e=\frac{E}{s},\quad A=\sum_j e^{y_j},\quad B=\sum_j e^{-y_j},$$
# which for $s\to0$ is the softmax again. Both maps are one-to-one between pixels and $(E,u)$ and conserve any energy, also a
# negative one. The density of $u$ is a mixture of normals.
#
# **Noise** is an input of the network, 17 standard normal numbers a cell: the same noise gives the same jet. Two of them
# are seen by the neighbouring cells as well: they can make neighbours agree, which independent draws cannot.


# %%
PATTERNS = 15  # non-empty subsets of four pixels: number p stands for the bits of p + 1
NONE = 15  # a channel without energy in this cell
HITS = torch.tensor([[(p + 1) >> bit & 1 for bit in range(4)] for p in range(15)] + [[0] * 4]).float()  # fmt: skip


def contrast_matrix(hits: tuple[float, ...]) -> np.ndarray:
    """Orthonormal contrasts (3, 4) of the hit pixels: rows that sum to zero, unused ones zero.

    Four hits: the Haar basis (upper against lower row, left against right column, diagonals), in
    which the even sharing of a tower, of half a block and of a row are all simple.
    """
    chosen = np.flatnonzero(hits)
    matrix = np.zeros((3, 4))
    if len(chosen) == 4:
        return np.array([[1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]) / 2
    for row in range(len(chosen) - 1):  # Helmert: pixel row + 1 against the mean of those before
        n = row + 1
        matrix[row, chosen[:n]] = 1 / np.sqrt(n * (n + 1))
        matrix[row, chosen[n]] = -n / np.sqrt(n * (n + 1))
    return matrix


CONTRASTS = torch.tensor(np.array([contrast_matrix(row) for row in HITS.tolist()])).float()
USED = (CONTRASTS.abs().sum(2) > 0).float()  # (16, 3) contrasts that a pattern has
ECAL_SCALE = 0.05  # GeV, about the noise of a crystal


def pixels_from_contrasts(
    energy: torch.Tensor, hits: torch.Tensor, y: torch.Tensor
) -> torch.Tensor:
    """Pixels (n, 3, 4) that add up to ``energy`` (n, 3); ``hits`` (n, 3, 4) is 0 or 1, y any number.

    Tracks and HCAL: x_i = E softmax(y)_i over the hit pixels. ECAL, where noise makes pixels
    negative: x_i = s sinh(y_i + t) with the one t that conserves E,
    e^t = (e + sqrt(e^2 + A B)) / A, e = E / s, A = sum e^y, B = sum e^-y. With s -> 0 this is the
    softmax again.
    """
    y = y - (hits * y).sum(2, keepdim=True) / hits.sum(2, keepdim=True).clamp(min=1)
    up = hits * (y * hits).clamp(-15, 15).exp()  # (n, 3, 4)
    total = up.sum(2).clamp(min=1e-12)  # (n, 3)
    shared = energy[:, (0, 2), None] * up[:, (0, 2)] / total[:, (0, 2), None]
    y, h, a = y[:, 1].clamp(-15, 15), hits[:, 1], total[:, 1]
    b = (h * (-y * h).exp()).sum(1).clamp(min=1e-12)
    e = energy[:, 1] / ECAL_SCALE
    root = e.abs() + (e.square() + a * b).sqrt()  # the sum without cancellation
    w = torch.where(e >= 0, root / a, b / root)[:, None]  # e^t
    ecal = ECAL_SCALE / 2 * h * (y.exp() * w - (-y).exp() / w)
    x = torch.stack([shared[:, 0], ecal, shared[:, 1]], 1)
    # Rounding is given back evenly, so that the sum is the energy to the last digits.
    missing = energy - x.sum(2)
    return x + hits * (missing / hits.sum(2).clamp(min=1))[:, :, None]


# %%
def contrasts_from_pixels(x: torch.Tensor, pattern: torch.Tensor) -> torch.Tensor:
    """The inverse: pixels (n, 3, 4) with patterns (n, 3) -> contrasts u = H y, (n, 3, 3)."""
    y = torch.where(x != 0, x.abs(), 1.0).log()
    ecal = torch.asinh(x[:, 1] / ECAL_SCALE)
    y = torch.stack([y[:, 0], ecal, y[:, 2]], 1)
    return torch.einsum("ncdk,nck->ncd", CONTRASTS.to(x)[pattern], y)


def pattern_of(x: torch.Tensor) -> torch.Tensor:
    """Hit pattern (n, 3) of pixels (n, 3, 4): 0 to 14, or NONE."""
    number = ((x != 0) * torch.tensor([1, 2, 4, 8], device=x.device)).sum(2)
    return torch.where(number == 0, NONE, number - 1)


# %%
REACH = 3  # low-resolution cells on each side that the network sees
SIDE = LOW + 2 * REACH
WINDOW = 2 * REACH + 1
NOISE = 17  # per cell: 3 patterns, 3 mixture components, 9 contrasts, 2 shared with the neighbours


def frame_pixels() -> torch.Tensor:
    """Which of the four pixels of a cell lie in the image: (64, 64, 4) bool."""
    exists = pad(torch.ones(HIGH, HIGH, dtype=torch.bool), (1, 2, 1, 2))  # (128, 128)
    return exists.view(LOW, 2, LOW, 2).transpose(1, 2).reshape(LOW, LOW, 4)


FRAME = frame_pixels()
INSIDE = FRAME.any(2).flatten()  # (4096,) cells with pixels: the last row and column have none
# A pattern is allowed where all of its hits exist, (4096, 15)
ALLOWED = ~((HITS[None, :15] > 0) & ~FRAME.view(-1, 1, 4)).any(2)
EYE = torch.eye(PATTERNS + 1)


def active_cells(low: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Jet and cell number (row * 64 + column) of the cells with energy of (B, 3, 64, 64)."""
    active = (low != 0).any(1).flatten(1) & INSIDE.to(low.device)  # (B, 4096)
    jet, cell = active.nonzero().unbind(1)
    return jet, cell


def neighbours(
    values: torch.Tensor, jet: torch.Tensor, cell: torch.Tensor, reach: int
) -> torch.Tensor:
    """Windows of (B, C, 64, 64) around cells: (n, C, (2 reach + 1)^2), zero outside."""
    channels, side = values.shape[1], LOW + 2 * reach
    flat = pad(values, (reach,) * 4).reshape(-1)  # (B * C * side * side,)
    steps = torch.arange(2 * reach + 1, device=values.device)
    window = (steps[:, None] * side + steps).reshape(-1)  # ((2 reach + 1)^2,)
    plane = torch.arange(channels, device=values.device) * side * side
    first = jet * channels * side * side + cell // LOW * side + cell % LOW
    return flat[first[:, None, None] + plane[:, None] + window]


def signed_log(x: torch.Tensor) -> torch.Tensor:
    """asinh(x / 0.05 GeV) / 3: linear at the noise, logarithmic above, from 0 to about 3."""
    z = x.abs() / ECAL_SCALE  # ONNX has no asinh for every runtime
    return x.sign() * (z + (z.square() + 1).sqrt()).log() / 3


# %%
def cell_features(low: torch.Tensor, jet: torch.Tensor, cell: torch.Tensor) -> torch.Tensor:
    """What the network sees of a cell: (n, 2 * 147 + 24 + 12) from the window of 7 x 7 cells.

    Energies (4 x low: the sum of the pixels) on the signed log scale, active or not, whether one of the
    8 nearest has exactly the same energy (then they share a crystal or tower), and the position modulo
    the five pixels of an HCAL tower.
    """
    window = neighbours(signed_log(4 * low), jet, cell, REACH)  # (n, 3, 49)
    centre = window[:, :, WINDOW * REACH + REACH, None]
    near = [REACH * WINDOW + REACH + a * WINDOW + b for a in (-1, 0, 1) for b in (-1, 0, 1) if a or b]  # fmt: skip
    same = ((window[:, :, near] - centre).abs() < 1e-5) & (centre != 0)  # (n, 3, 8)
    row, column = cell // LOW, cell % LOW
    place = [one_hot(row % 5, 5), one_hot(column % 5, 5), (row == 0)[:, None], (column == 0)[:, None]]  # fmt: skip
    parts = [window.flatten(1), (window != 0).flatten(1), same.flatten(1), *place]
    return torch.cat([part.float() for part in parts], 1)


FEATURES = 2 * 3 * WINDOW**2 + 24 + 12


def visible(hidden: tuple[str, ...]) -> torch.Tensor:
    """1 for the features that a generator sees (330,), 0 for the groups "far", "same", "place" (ablations)."""
    steps = torch.arange(WINDOW) - REACH
    near = torch.maximum(steps.abs()[:, None], steps.abs()).flatten() <= 1  # (49,)
    groups = {"far": ~near.repeat(6), "same": torch.ones(24).bool(), "place": torch.ones(12).bool()}
    return torch.cat([~mask if name in hidden else torch.ones(len(mask)).bool() for name, mask in groups.items()]).float()  # fmt: skip


# %%
def draw(p: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Classes (n,) with probabilities p (n, k) by the inverse of the distribution function."""
    below = p.cumsum(1)  # its last column, not 1, ends the range: rounding must not draw beyond it
    return (below[:, :-1] < uniform[:, None].clamp(min=1e-7) * below[:, -1:]).sum(1)


def to_image(
    x: torch.Tensor, jet: torch.Tensor, cell: torch.Tensor, low: torch.Tensor
) -> torch.Tensor:
    """Pixels (n, 3, 4) of active cells of ``low`` -> images (B, 3, 125, 125)."""
    blocks = torch.zeros_like(low).flatten(2).permute(0, 2, 1)[..., None].repeat(1, 1, 1, 4)
    blocks = blocks.index_put((jet, cell), x)  # (B, 4096, 3, 4)
    blocks = blocks.view(-1, LOW, LOW, 3, 2, 2).permute(0, 3, 1, 4, 2, 5)  # (B, 3, 64, 2, 64, 2)
    return blocks.reshape(-1, 3, 2 * LOW, 2 * LOW)[:, :, 1 : HIGH + 1, 1 : HIGH + 1]


# %%
class CellNetwork(nn.Module):
    """Distributions of a cell's patterns and contrasts, given what surrounds it.

    For an active cell with features f: h = body(f), pattern_c ~ Categorical(softmax(W_c h + patterns
    of earlier channels)), and the contrasts u_c ~ sum_k pi_k Normal(mu_k, sigma_k^2) given h and all
    three patterns. ``deterministic``: u_c is the first mean. ``hidden``: groups of `visible`.
    """

    def __init__(
        self,
        width: int = 128,
        components: int = 5,
        deterministic: bool = False,
        hidden: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.components, self.deterministic = components, deterministic
        self.register_buffer("seen", visible(hidden), persistent=False)
        self.body = nn.Sequential(
            nn.Linear(FEATURES, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(),
        )  # fmt: skip
        self.latent = nn.Linear(2 * 9, width, bias=False)  # noise that neighbouring cells share
        nn.init.zeros_(self.latent.weight)
        self.patterns = nn.Linear(width, 3 * PATTERNS)
        self.earlier = nn.Parameter(torch.zeros(2, 2, PATTERNS + 1, PATTERNS))
        self.given = nn.Linear(3 * (PATTERNS + 1), width)
        self.shares = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * components * 7))
        with torch.no_grad():  # components begin at different widths
            bias = self.shares[1].bias.view(3, components, 7)
            bias[:, :, 4:] = torch.linspace(0, -4, components)[None, :, None]

    def features(
        self, low: torch.Tensor, noise: torch.Tensor | None, jet: torch.Tensor, cell: torch.Tensor
    ) -> torch.Tensor:
        """Hidden features h (n, width) of cells."""
        f = cell_features(low, jet, cell) * self.seen
        z = self.body[0](f)
        if noise is not None:
            z = z + self.latent(neighbours(noise[:, 15:], jet, cell, 1).flatten(1))
        return self.body[1:](z)

    def pattern_logits(
        self, h: torch.Tensor, chosen: list[torch.Tensor], cell: torch.Tensor
    ) -> torch.Tensor:
        """Logits (n, 15) of the next channel's pattern, given those of the channels before, (n, 16)."""
        channel = len(chosen)
        logits = self.patterns(h)[:, channel * PATTERNS : (channel + 1) * PATTERNS]
        for before, pattern in enumerate(chosen):
            logits = logits + pattern @ self.earlier[channel - 1, before]
        return logits.masked_fill(~ALLOWED.to(cell.device)[cell], -1e4)

    def mixture(
        self, h: torch.Tensor, chosen: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log weights (n, 3, K), means and log widths (n, 3, K, 3) given patterns (n, 48)."""
        out = self.shares(h + self.given(chosen)).view(-1, 3, self.components, 7)
        return log_softmax(out[..., 0], 2), out[..., 1:4], out[..., 4:].clamp(-7, 2)


# %%
class Generator(CellNetwork):
    """Shares out each cell's energy: low (B, 3, 64, 64) and noise (B, 17, 64, 64) -> (B, 3, 125, 125)."""

    def sample(
        self, low: torch.Tensor, noise: torch.Tensor, jet: torch.Tensor, cell: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels and hits (n, 3, 4) of active cells; ``noise`` (B, 17, 64, 64) is standard normal.

        Patterns and components are drawn by inverting their distribution functions. Gradients pass a
        drawn pattern as if it were its probabilities (straight-through).
        """
        h = self.features(low, noise, jet, cell)
        own = noise.flatten(2)[jet, :, cell]  # (n, 17)
        uniform = 0.5 * (1 + torch.erf(own[:, :6] / 2**0.5))
        energy = 4 * low.flatten(2)[jet, :, cell]  # (n, 3)
        eye, chosen = EYE.to(low), []
        for channel in range(3):
            p = self.pattern_logits(h, chosen, cell).softmax(1)
            drawn = eye[draw(p, uniform[:, channel])]
            through = torch.cat([p, torch.zeros_like(p[:, :1])], 1)
            active = (energy[:, channel, None] != 0).to(p)
            drawn = drawn + through - through.detach() if torch.is_grad_enabled() else drawn
            chosen.append(active * drawn + (1 - active) * eye[NONE])
        patterns = torch.stack(chosen, 1)  # (n, 3, 16)
        log_weight, mean, log_width = self.mixture(h, patterns.flatten(1))
        if self.deterministic:
            u = mean[:, :, 0]
        else:
            k = torch.stack([draw(log_weight[:, c].exp(), uniform[:, 3 + c]) for c in range(3)], 1)
            k = k[:, :, None, None].expand(-1, -1, 1, 3)
            mean, width = mean.gather(2, k)[:, :, 0], log_width.gather(2, k)[:, :, 0].exp()
            u = mean + width * own[:, 6:15].view(-1, 3, 3)  # (n, 9) -> (n, 3 channels, 3 contrasts)
        matrix = CONTRASTS.to(low)[patterns.argmax(2)]  # (n, 3, 3, 4)
        hits = patterns @ HITS.to(low)
        return pixels_from_contrasts(energy, hits, (u[..., None] * matrix).sum(2)), hits

    def forward(self, low: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        jet, cell = active_cells(low)
        x, _ = self.sample(low, noise, jet, cell)
        return to_image(x, jet, cell, low)


# %%
DEQUANTISATION = 0.01  # width of the noise on the targets, of the order of one per cent of a pixel


def likelihood_loss(
    generator: Generator,
    low: torch.Tensor,
    blocks: torch.Tensor,
    jet: torch.Tensor,
    cell: torch.Tensor,
    noise: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean negative log-likelihood of a cell: of its patterns, and of its contrasts given them; nats.

    ``blocks`` (n, 3, 4) are the true pixels. Targets carry normal noise of width d = 0.01, the density
    has width sqrt(d^2 + sigma^2): a share that is exactly even gives a bounded likelihood, and sampling,
    which leaves d out, gives it back as it was.
    """
    h = generator.features(low, noise, jet, cell)
    pattern = pattern_of(blocks)  # (n, 3)
    chosen = [EYE.to(low)[pattern[:, c]] for c in range(3)]
    pattern_nll = h.new_zeros(())
    for channel in range(3):
        logits = generator.pattern_logits(h, chosen[:channel], cell)
        present = pattern[:, channel] != NONE
        log_p = log_softmax(logits, 1).gather(1, pattern[:, channel, None].clamp(max=14))[:, 0]
        pattern_nll = pattern_nll - (log_p * present).sum() / len(h)
    log_weight, mean, log_width = generator.mixture(h, torch.cat(chosen, 1))
    u, used = contrasts_from_pixels(blocks, pattern), USED.to(low)[pattern]  # (n, 3, 3)
    if generator.deterministic:
        return pattern_nll, ((u - mean[:, :, 0]).abs() * used).sum() / len(h)
    u = u + DEQUANTISATION * torch.randn_like(u)
    log_density = normal_log_density(u[:, :, None], mean, log_width)  # (n, 3, K, 3)
    log_density = (log_density * used[:, :, None]).sum(3) + log_weight
    any_used = used.amax(2)
    return pattern_nll, -(log_density.logsumexp(2) * any_used).sum() / len(h)


def normal_log_density(
    u: torch.Tensor, mean: torch.Tensor, log_width: torch.Tensor
) -> torch.Tensor:
    """ln Normal(u; mean, width^2 + d^2), elementwise."""
    variance = (2 * log_width).exp() + DEQUANTISATION**2
    return -0.5 * ((u - mean).square() / variance + variance.log() + np.log(2 * np.pi))


# %%
class Discriminator(nn.Module):
    """Score of 6 x 6 pixels around a cell, given the cells around it: (n, 3, 36) and features -> (n,)."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        sizes = [2 * 3 * 36 + FEATURES, width, width, width]
        layers = []
        for inputs, outputs in pairwise(sizes):
            layers += [spectral_norm(nn.Linear(inputs, outputs)), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, spectral_norm(nn.Linear(width, 1)))

    def forward(
        self, pixels: torch.Tensor, hits: torch.Tensor, features: torch.Tensor
    ) -> torch.Tensor:
        x = torch.cat([signed_log(pixels).flatten(1), hits.flatten(1), features], 1)
        return self.layers(x)[:, 0]


# %% [markdown]
# Checked at once, on real jets and on random numbers: energy is conserved, and the true pixels go through the
# coordinates and back unchanged.

# %%
seed_everything(0)
low, high = dataset.pair(splits.train[:32])
jet, cell = active_cells(low)
truth = to_blocks(high)[jet, cell]
pattern = pattern_of(truth)
u = contrasts_from_pixels(truth, pattern)
energy = 4 * low.flatten(2)[jet, :, cell]
back = pixels_from_contrasts(energy, HITS[pattern], (u[..., None] * CONTRASTS[pattern]).sum(2))
anything = torch.randn(4, 3, LOW, LOW) * torch.tensor([0.1, 10.0, 1000.0])[:, None, None]
anything[:, :, -1] = anything[:, :, :, -1] = 0  # outside of the frame
with torch.no_grad():
    out = Generator()(anything, torch.randn(4, NOISE, LOW, LOW))
sums = pad(out, (1, 2, 1, 2)).view(4, 3, LOW, 2, LOW, 2).sum((3, 5))  # (4, 3, 128, 128) -> cells
print(f"there and back: {(back - truth).abs().max():.1e} GeV; energy of random images kept to "
      f"{((sums - 4 * anything).abs() / (1 + anything.abs())).max():.1e}")  # fmt: skip


def complexity(model: nn.Module, low: torch.Tensor) -> tuple[int, int]:
    """Parameters, and FLOPs (2 per multiply-add) of an average jet of ``low``, counted."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(low, torch.zeros(len(low), NOISE, LOW, LOW))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // len(low)


parameters, flops = complexity(Generator(), low)
judge_parameters = sum(p.numel() for p in Discriminator().parameters())
display(Markdown(
    f"Generator: {parameters:,} parameters, {flops / 1e6:.0f} MFLOP a jet ({len(cell) / len(low):.0f} active cells on average). "
    f"Discriminator: {judge_parameters:,} parameters."
))  # fmt: skip

# %% [markdown]
# ## 4. Losses and training
# **Likelihood.** Patterns are trained by cross-entropy, contrasts by the negative log-density, both given the truth of the
# earlier channels: an exact conditional density of a cell's twelve pixels given the low resolution. This is what SuperCalo
# does with a conditional flow per block (its conditions: coarse energy, neighbours, position); a mixture in at most three
# dimensions needs no flow.
#
# **Adversarial term.** Cells are drawn independently, which the likelihood cannot notice: it judges each by itself. A
# discriminator sees $6\times6$ pixels, nine cells, in all channels with the low resolution around them, real or drawn. Its loss
# is relativistic (Jolicoeur-Martineau 2018): real and generated patches of the *same* place are compared,
# $$\mathcal L_D=\langle\mathrm{softplus}(D(\tilde x\,|\,\ell)-D(x\,|\,\ell))\rangle,\qquad
# \mathcal L_G=\mathrm{NLL}+\lambda\,\langle\mathrm{softplus}(D(x\,|\,\ell)-D(\tilde x\,|\,\ell))\rangle.$$
# Spectral normalisation (Miyato et al. 2018) bounds the slope of $D$; the likelihood keeps the generator from
# collapsing, since a pattern that never comes costs infinitely much. Gradients pass the drawn patterns straight through
# (Bengio et al. 2013).
#
# **Arms.** All begin from the same likelihood training and go on for the same number of passes: with the adversarial term
# (*GAN*), without it (*likelihood*), or with the expectation of the shares in place of their density (*expectation*:
# patterns are drawn, shares are the medians that an $L_1$ loss on the contrasts gives).


# %%
class GeneratorLoss(nn.Module):
    """The generator with its losses as one forward pass, which is what distributed training wraps."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(
        self, low: torch.Tensor, blocks: torch.Tensor, noise: torch.Tensor | None,
        kept: torch.Tensor, sampled: int = 0,
    ) -> tuple[torch.Tensor, ...]:  # fmt: skip
        """Losses on the ``kept`` cells; pixels and hits (n, 3, 4) drawn for the first ``sampled`` jets."""
        jet, cell = active_cells(low)
        losses = likelihood_loss(self.generator, low, blocks[kept], jet[kept], cell[kept], noise)
        if not sampled:
            return losses
        first = jet < sampled
        return *losses, *self.generator.sample(low, noise, jet[first], cell[first])


def patch_index(
    jet: torch.Tensor, cell: torch.Tensor, jets: int, centres: torch.Tensor
) -> torch.Tensor:
    """Rows of the 3 x 3 cells around the cells number ``centres`` (m,): (m, 9), n where inactive."""
    number = torch.full((jets, 1, LOW, LOW), -1, device=jet.device)
    number.view(jets, -1)[jet, cell] = torch.arange(len(jet), device=jet.device)
    window = neighbours(number + 1, jet[centres], cell[centres], 1)[:, 0] - 1  # (m, 9), -1 is empty
    return torch.where(window < 0, len(jet), window)


def gather_patches(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Pixels (n, 3, 4) -> patches (m, 3, 36)."""
    x = torch.cat([x, torch.zeros_like(x[:1])])[index]  # (m, 9, 3, 4)
    return x.transpose(1, 2).flatten(2)


def relativistic_loss(better: torch.Tensor, worse: torch.Tensor) -> torch.Tensor:
    """mean softplus(worse - better): -ln of the probability that each pair is ranked right."""
    return softplus(worse - better).mean()


# %%
def patch_views(
    low: torch.Tensor, blocks: torch.Tensor, drawn: list[torch.Tensor], jet: torch.Tensor, cell: torch.Tensor,
    jets: int, count: int,
) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:  # fmt: skip
    """Pixels and hits (m, 3, 36) of real and of drawn patches at the same places, and features there."""
    centres = torch.randint(len(cell), (count * jets,), device=cell.device)
    index = patch_index(jet, cell, jets, centres)
    real = [gather_patches(x, index) for x in (blocks, (blocks != 0).float())]
    fake = [gather_patches(x, index) for x in drawn]
    return real, fake, cell_features(low, jet[centres], cell[centres])


def discriminator_loss(
    judge: nn.Module, real: list, fake: list, features: torch.Tensor
) -> torch.Tensor:
    """Real patches are to score higher than drawn ones of the same place."""
    return relativistic_loss(judge(*real, features), judge(*(x.detach() for x in fake), features))


def generator_loss(
    judge: nn.Module, real: list, fake: list, features: torch.Tensor
) -> torch.Tensor:
    """And the other way round."""
    return relativistic_loss(judge(*fake, features), judge(*real, features))


@torch.inference_mode()
def validation_loss(
    generator: Generator, rows: np.ndarray, batch_size: int = 64
) -> dict[str, float]:
    """Mean negative log-likelihood of a cell, patterns and shares, with fixed noise."""
    totals, cells = np.zeros(2), 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for batch in np.array_split(rows, max(1, len(rows) // batch_size)):
            low, high = dataset.pair(batch, next(generator.parameters()).device)
            jet, cell = active_cells(low)
            losses = likelihood_loss(generator, low, to_blocks(high)[jet, cell], jet, cell, None)
            totals += len(cell) * np.array([loss.item() for loss in losses])
            cells += len(cell)
    return {"pattern_nll": totals[0] / cells, "share_nll": totals[1] / cells}


# %%
def judgement(
    judge: nn.Module, critic: torch.optim.Optimizer, accelerator: Accelerator, views: tuple
) -> list[torch.Tensor]:
    """One step of the discriminator on ``views``; its loss, and then the generator's against it."""
    judge.requires_grad_(True)
    loss = discriminator_loss(judge, *views)
    critic.zero_grad()
    accelerator.backward(loss)
    critic.step()
    judge.requires_grad_(False)  # the generator's gradients pass through it, and change nothing
    return [loss.detach(), generator_loss(judge, *views)]


def train(
    name: str, generator: Generator, rows: np.ndarray, config: Config, seed: int,
    epochs: int, rate: float, adversarial: float = 0.0,
) -> pd.DataFrame:  # fmt: skip
    """Train ``generator`` in place on jets ``rows``; returns the history, one line an epoch.

    With ``adversarial`` > 0 a discriminator is trained beside it, on patches of a quarter of the jets
    of every batch.
    """
    accelerator = make_accelerator()
    device, world, started = accelerator.device, accelerator.num_processes, time.monotonic()
    size = min(config.batch_size, max(1, len(rows) // world))
    steps = max(1, len(rows) // (size * world))
    optimizer = torch.optim.AdamW(generator.parameters(), rate, weight_decay=1e-4, betas=(0.9, 0.98))  # fmt: skip
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * steps, pct_start=0.15)  # fmt: skip
    discriminator = Discriminator().to(device)
    critic = torch.optim.AdamW(discriminator.parameters(), 1e-3, betas=(0.0, 0.98))
    network, judge, optimizer, critic = accelerator.prepare(
        GeneratorLoss(generator).to(device), discriminator, optimizer, critic
    )
    accelerator.register_for_checkpointing(schedule)
    state = run.directory / "state" / name
    extra = load_training_state(accelerator, state) or {"history": [], "seconds": 0.0}
    history, earlier = extra["history"], extra["seconds"]
    for epoch in range(len(history), epochs):
        torch.manual_seed(torch_generator(seed, epoch).initial_seed())  # noise of this epoch
        totals = np.zeros(4)
        network.train()
        for batch in epoch_batches(rows, size, seed, epoch, accelerator.process_index, world):
            low, high = dataset.pair(batch, device)
            jet, cell = active_cells(low)
            blocks = to_blocks(high)[jet, cell]  # (n, 3, 4)
            kept = torch.rand(len(cell), device=device) < config.cells
            sampled = max(1, len(batch) // 4) if adversarial else 0
            noise = torch.randn(len(low), NOISE, LOW, LOW, device=device) if adversarial else None
            pattern_nll, share_nll, *drawn = network(low, blocks, noise, kept, sampled)
            loss, judged = pattern_nll + share_nll, [torch.zeros(()), torch.zeros(())]
            if adversarial:
                n = len(drawn[0])  # cells of the first jets
                views = patch_views(
                    low, blocks[:n], drawn, jet[:n], cell[:n], sampled, config.patches
                )
                judged = judgement(judge, critic, accelerator, views)
                loss = loss + adversarial * judged[1]
            optimizer.zero_grad()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            totals += [x.item() for x in (pattern_nll, share_nll, *judged)]
        names = ("train_pattern_nll", "train_share_nll", "discriminator_loss", "generator_loss")
        scores = {f"validation_{k}": v for k, v in validation_loss(generator.eval(), splits.validation[:500]).items()}  # fmt: skip
        history.append({"epoch": epoch + 1, **dict(zip(names, totals / steps, strict=True)), **scores})  # fmt: skip
        seconds = earlier + time.monotonic() - started
        save_training_state(accelerator, state, {"history": history, "seconds": seconds})
        print(f"{name}: epoch {epoch + 1}, validation " + ", ".join(f"{v:.4f}" for v in scores.values()), flush=True)  # fmt: skip
    frame = pd.DataFrame(history)
    frame.attrs["seconds"] = earlier + time.monotonic() - started
    return frame


# %% [markdown]
# Before minutes are spent: a generator of this kind must learn one batch by heart.


# %%
def overfit_one_batch(steps: int = 60, jets: int = 2) -> tuple[float, float]:
    """Pattern loss (nats a cell) on the same jets before and after ``steps`` updates."""
    seed_everything(0)
    model, (low, high) = Generator(), dataset.pair(splits.train[:jets])
    jet, cell = active_cells(low)
    truth = to_blocks(high)[jet, cell]
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    values = []
    for _ in range(steps):
        losses = likelihood_loss(model, low, truth, jet, cell, None)
        optimizer.zero_grad()
        sum(losses).backward()
        optimizer.step()
        values.append(losses[0].item())
    return values[0], values[-1]


print("pattern loss of memorised jets: {:.2f} -> {:.2f}".format(*overfit_one_batch()))

# %% [markdown]
# On a CPU the trainings run side by side, one core each.

# %%
ARMS = ("gan", "likelihood", "expectation")


def first_stage(seed: int) -> tuple:
    """Likelihood training that all arms of a seed start from."""
    seed_everything(seed)
    model = Generator()
    history = train(f"first-{seed}", model, splits.train, CONFIG, seed, CONFIG.epochs, CONFIG.learning_rate)  # fmt: skip
    return history, arrays(model)


def second_stage(arm: str, seed: int, start: dict[str, np.ndarray]) -> tuple:
    """The further passes of one arm."""
    seed_everything(seed + 100)
    model = restored(arm, start)
    weight = CONFIG.adversarial if arm == "gan" else 0.0
    name = f"{arm}-{seed}"
    history = train(
        name,
        model.train(),
        splits.train,
        CONFIG,
        seed + 100,
        CONFIG.further_epochs,
        CONFIG.second_rate,
        weight,
    )
    return history, arrays(model)


def arrays(model: nn.Module) -> dict[str, np.ndarray]:
    """Weights as arrays, which cross processes."""
    return {k: v.detach().cpu().numpy() for k, v in model.state_dict().items()}


def restored(arm: str, weights: dict[str, np.ndarray]) -> Generator:
    """The generator of an arm with given weights, for evaluation."""
    model = Generator(deterministic=arm == "expectation")
    model.load_state_dict({k: torch.as_tensor(v) for k, v in weights.items()})
    return model.eval()


firsts = dict(zip(CONFIG.seeds, side_by_side(first_stage, [(s,) for s in CONFIG.seeds]), strict=True))  # fmt: skip
plan = [(arm, seed) for arm in ARMS for seed in CONFIG.seeds]  # the longest first
seconds_jobs = [(arm, seed, firsts[seed][1]) for arm, seed in plan]
trained = dict(zip(plan, side_by_side(second_stage, seconds_jobs), strict=True))
models = {key: restored(key[0], weights) for key, (_, weights) in trained.items()}

# %%
fig, axes = plt.subplots(1, 3, figsize=(11, 3.3))
for seed in CONFIG.seeds:
    first = firsts[seed][0]
    for axis, loss in zip(axes, ("pattern_nll", "share_nll"), strict=False):
        for color, part in zip(plotting.PALETTE, ("train", "validation"), strict=False):
            axis.plot(
                first.epoch,
                first[f"{part}_{loss}"],
                ".-",
                color=color,
                label=part if seed == CONFIG.seeds[0] else None,
            )
        axis.set(xlabel="epoch of the first stage", ylabel=f"{loss.split('_')[0]} loss [nats a cell]")  # fmt: skip
    gan = trained["gan", seed][0]
    axes[2].plot(
        gan.epoch,
        gan.discriminator_loss,
        "o-",
        color=plotting.PALETTE[0],
        label="discriminator" if seed == CONFIG.seeds[0] else None,
    )
    axes[2].plot(
        gan.epoch,
        gan.generator_loss,
        "s--",
        color=plotting.PALETTE[1],
        label="generator" if seed == CONFIG.seeds[0] else None,
    )
axes[2].axhline(np.log(2), color="grey", lw=0.8)
axes[2].set(xlabel="epoch of the second stage", ylabel="adversarial loss (grey: ln 2, undecided)")
axes[0].legend()
axes[2].legend()
plt.show()

# %%
changes = {arm: np.mean([trained[arm, s][0].validation_pattern_nll.iloc[-1] + trained[arm, s][0].validation_share_nll.iloc[-1] for s in CONFIG.seeds])
           for arm in ("gan", "likelihood")}  # fmt: skip
display(Markdown(
    f"Negative log-likelihood of a validation cell after the second stage: {changes['likelihood']:.4f} without and "
    f"{changes['gan']:.4f} with the adversarial term, which does not ask for likelihood: the difference is what it pays for "
    "looking real."
))  # fmt: skip

# %% [markdown]
# ## 5. What is measured
# All on jets that no training saw. Baselines: *nearest* (a cell's value in its pixels), *bicubic*, and the *uniform split*
# (energy shared evenly among the pixels that exist), which differs from nearest only at the frame.
#
# - **Energy response**: sum over jets of the energy of a channel, divided by the true one, and the width of the ratio of
#   single jets. **Occupancy**: the same ratio of the numbers of hit pixels. **Jet mass**: the mean over jets of the invariant mass
#   of ECAL and HCAL pixels as massless particles, over the true mean. **Centre**: mean distance to the true centre of energy.
# - **Track position**: mean distance in pixels of the $p_T$-weighted centre of the hits in a cell from the true one. For a
#   track at one of four places with no further information, drawing one costs $(2+\sqrt2)/4=0.85$ pixels and answering with the
#   middle $1/\sqrt2=0.71$: who draws must lose against an average here, and an average is no jet.
# - **FPD, KPD**: Fréchet and kernel distance of 34 observables (energies, hits, centres, widths, $p_TD$, leading pixel, radial
#   shares, mass) between *different* jets, one half true, the other half generated. **Separation power** of the pixel
#   spectrum and of the radial profile.
# - **Classifier two-sample test**: gradient boosting tells true from generated, on the observables of a jet (*high*) and on
#   $6\times6$ pixels of all channels around a cell, with the row and column modulo 5 (*low*); 60 % of the jets train it, 20 % stop
#   it, 20 % are scored. 0.5 is perfect.
# - **Tagger**: quark or gluon, gradient boosting on the observables of *true high-resolution* training jets, applied unchanged to
#   true, generated and low-resolution (nearest) test jets.
# - **PSNR, SSIM** on one scale: $\ln(1+\max(x,0)/\mathrm{GeV})$ with the peak $\ln 101$, all channels; images that differ in the
#   place of a single track differ in these as much as images without it, which is why they come last.


# %%
PEAK = float(np.log1p(100.0))
SPECTRUM = np.geomspace(0.02, 200, 41)  # GeV
RINGS = np.arange(0, 64, 2)  # pixels
SSIM_JETS = 300
MEASURED_BATCH = 50


@dataclass
class Measured:
    """What is kept of the images that one arm made of some jets."""

    observables: pd.DataFrame  # (n, 34)
    track_error: np.ndarray  # (n,) sum over the track cells of a jet, pixels
    spectrum: np.ndarray  # (3, 40) pixels
    radial: np.ndarray  # (3, 31) GeV
    psnr: np.ndarray  # (m,) first jets
    ssim: np.ndarray
    patches: np.ndarray  # (k, 110)
    patch_jet: np.ndarray  # (k,)


def uniform_split(low: torch.Tensor) -> torch.Tensor:
    """Every cell's energy shared evenly among its pixels."""
    frame = FRAME.view(1, LOW * LOW, 1, 4).to(low)
    share = frame / frame.sum(3, keepdim=True).clamp(min=1)
    blocks = 4 * low.flatten(2).permute(0, 2, 1)[..., None] * share  # (B, 4096, 3, 4)
    jet = torch.arange(len(low)).repeat_interleave(LOW * LOW)
    cell = torch.arange(LOW * LOW).repeat(len(low))
    return to_image(blocks.flatten(0, 1), jet, cell, low)


def nearest(low: torch.Tensor) -> torch.Tensor:
    """The cell's value in each of its pixels."""
    return interpolate(low, scale_factor=2)[:, :, 1 : HIGH + 1, 1 : HIGH + 1]


def bicubic(low: torch.Tensor) -> torch.Tensor:
    """Bicubic interpolation of the cell values at the centres of the pixels."""
    large = interpolate(low, scale_factor=2, mode="bicubic", align_corners=False)
    return large[:, :, 1 : HIGH + 1, 1 : HIGH + 1]


# %%
def log_image(x: np.ndarray) -> np.ndarray:
    """The scale of PSNR and SSIM."""
    return np.log1p(np.clip(x, 0, None))


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """10 log10(peak^2 / mean squared difference) of image pairs (n, 3, H, W), in dB; (n,)."""
    squared = ((log_image(a) - log_image(b)) ** 2).mean((1, 2, 3))
    return 10 * np.log10(PEAK**2 / np.maximum(squared, 1e-12))


def ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Structural similarity (Wang et al. 2004), windows of 7 x 7 pixels, mean over pixels and channels."""
    a, b = log_image(a).astype(np.float64), log_image(b).astype(np.float64)
    blur = lambda x: uniform_filter(x, (0, 0, 7, 7))  # noqa: E731
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    both = blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    ratio = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    return (ratio / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean((1, 2, 3))


def track_errors(made: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Distance of the p_T-weighted centres in every track cell, in pixels, summed over a jet: (B,)."""
    place = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    centres = []
    for images in (made, true):
        x = to_blocks(images)[:, :, 0].clamp(min=0)  # (B, 4096, 4)
        centres.append(x @ place / x.sum(2, keepdim=True).clamp(min=1e-9))
    present = (to_blocks(true)[:, :, 0] > 0).any(2)
    return ((centres[0] - centres[1]).norm(dim=2) * present).sum(1)


# %%
def image_patches(
    images: torch.Tensor, low: torch.Tensor, seed: int, count: int = 24
) -> tuple[np.ndarray, np.ndarray]:
    """Patches of 6 x 6 pixels around random active cells, (k, 110), and their jets; same cells for a seed."""
    jet, cell = active_cells(low)
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(len(jet))[: count * len(low)])
    jet, cell = jet[chosen], cell[chosen]
    planes = to_blocks(images).permute(0, 2, 3, 1).reshape(len(low), 12, LOW, LOW)
    values = signed_log(neighbours(planes, jet, cell, 1)).flatten(1)  # (k, 108)
    place = torch.stack([cell // LOW % 5, cell % LOW % 5], 1)
    return torch.cat([values, place], 1).numpy(), jet.numpy()


@torch.inference_mode()
def measure(make: Callable, rows: np.ndarray, batch_size: int = MEASURED_BATCH) -> Measured:
    """Measure the images (B, 3, 125, 125) of ``make(low, number of the batch)`` for jets ``rows``."""
    parts, errors, scores, patches = [], [], [], []
    spectrum, radial = np.zeros((3, len(SPECTRUM) - 1)), np.zeros((3, len(RINGS) - 1))
    grid = np.hypot(*np.mgrid[-62:63, -62:63])
    for number, first in enumerate(range(0, len(rows), batch_size)):
        low, high = dataset.pair(rows[first : first + batch_size])
        made = make(low, number)
        x = made.numpy()
        parts.append(jet_observables(x))
        errors.append(track_errors(made, high))
        for c in range(3):
            spectrum[c] += np.histogram(x[:, c], SPECTRUM)[0]
            radial[c] += np.histogram(grid, RINGS, weights=x[:, c].sum(0))[0]
        if first < SSIM_JETS:
            scores.append((psnr(x, high.numpy()), ssim(x, high.numpy())))
        patch, jet = image_patches(made, low, number)
        patches.append((patch, jet + first))
    similarity = [np.concatenate(s) for s in zip(*scores, strict=True)]
    return Measured(pd.concat(parts, ignore_index=True), torch.cat(errors).numpy(), spectrum, radial, *similarity,
                    *(np.concatenate(p) for p in zip(*patches, strict=True)))  # fmt: skip


def truth_of(rows: np.ndarray) -> Callable:
    """Maker of the true images of jets ``rows``."""
    return lambda low, number: dataset.pair(rows[MEASURED_BATCH * number :][: len(low)])[1]


def drawn_by(model: Generator, seed: int) -> Callable:
    """Maker of a generator's images: the noise depends on the seed and the batch alone."""

    def make(low: torch.Tensor, number: int) -> torch.Tensor:
        generator = torch_generator(seed, number)
        return model(low, torch.randn(len(low), NOISE, LOW, LOW, generator=generator))

    return make


# %%
class TwoSampleTest(NamedTuple):
    """What a classifier says about held-out jets, or about patches of them."""

    label: np.ndarray  # (n,) 1: generated
    score: np.ndarray  # (n,)
    jet: np.ndarray  # (n,) number of the jet: patches of one jet are resampled together


def two_sample_scores(
    real: np.ndarray, made: np.ndarray, real_jet: np.ndarray, made_jet: np.ndarray
) -> TwoSampleTest:
    """Gradient boosting on samples (n, k), on 60 % of the jets, stopped on 20 %, scored on 20 %."""
    x, jet = np.concatenate([real, made]), np.concatenate([real_jet, made_jet])
    label = np.repeat([0, 1], [len(real), len(made)])
    part = np.random.default_rng(0).integers(5, size=int(jet.max()) + 1)[jet]
    train, stop, held_out = part < 3, part == 3, part == 4
    model = HistGradientBoostingClassifier(max_iter=150, random_state=0)
    model = fit_trees(model, x[train], label[train], x[stop], label[stop], patience=10)
    return TwoSampleTest(label[held_out], model.decision_function(x[held_out]), jet[held_out])


def two_sample_tests(made: Measured, real: Measured) -> dict[str, TwoSampleTest]:
    """Both tests: the first half of the jets true, the second half as made by an arm."""
    n = len(real.observables)
    first, second = np.arange(n // 2), np.arange(n // 2, n)
    near, far = real.patch_jet < n // 2, made.patch_jet >= n // 2
    a, b = real.observables.to_numpy()[first], made.observables.to_numpy()[second]
    return {
        "c2st_auc_high": two_sample_scores(a, b, first, second),
        "c2st_auc_low": two_sample_scores(
            real.patches[near], made.patches[far], real.patch_jet[near], made.patch_jet[far]
        ),
    }


# %% [markdown]
# ## 6. Evaluation
# The test set, scored once by every arm. Where a number needs two independent samples (FPD, KPD, classifier tests), the
# first half of the test jets is true and the second half generated; the *floor* has true jets in both.

# %%
test = splits.test
y_test = y[test]
true = measure(truth_of(test), test)
measured = {arm: [measure(drawn_by(models[arm, s], s), test) for s in CONFIG.seeds] for arm in ARMS}  # fmt: skip
TRIVIAL = {"bicubic": bicubic, "nearest": nearest, "uniform": uniform_split}
measured |= {name: [measure(lambda low, _, f=f: f(low), test)] for name, f in TRIVIAL.items()}
LABELS = {
    "gan": "GAN (this network)", "likelihood": "likelihood per block", "expectation": "expectation of shares",
    "bicubic": "bicubic", "nearest": "nearest", "uniform": "uniform split", "truth": "other true jets (floor)",
}  # fmt: skip


# %%
def fit_entry(values: list[tuple[float, float]]) -> dict[str, float]:
    """Entry of a distance: mean over seeds, 95 % interval from the mean error of the fits."""
    value, error = np.mean(values, axis=0)
    spread = np.std([v for v, _ in values], ddof=1) if len(values) > 1 else None
    return metric_entry(value, value - 1.96 * error, value + 1.96 * error, spread)


def worst(entries: list[dict[str, float]]) -> dict[str, float]:
    """The entry of |ratio - 1| of the channel that is farthest from 1."""
    entry = max(entries, key=lambda e: abs(e["value"] - 1))
    ends = sorted(abs(entry[k] - 1) for k in ("low", "high"))
    low = 0.0 if (entry["low"] - 1) * (entry["high"] - 1) <= 0 else ends[0]
    value = abs(entry["value"] - 1)
    return metric_entry(value, min(low, value), max(ends[1], value), entry.get("seed_std"))


def auc_entry(tests: list[TwoSampleTest]) -> dict[str, float]:
    """AUC of classifiers, one a seed, on the same jets, with an interval over jets."""
    label, _, jet = tests[0]
    scores = [test.score for test in tests]
    return evaluate({"auc": roc_auc}, label, scores, n_resamples=300, groups=jet)["auc"]


def details(arm: str) -> dict[str, dict[str, float]]:
    """All entries of an arm that compare it with the truth jet by jet."""
    runs, ones = measured[arm], np.ones(len(test))
    columns = [m.observables for m in runs]
    entries = {}
    for name in NAMES:
        for quantity, title in (("energy", "energy_response"), ("hits", "occupancy")):
            of = f"{name}_{quantity}"
            entries[f"{title}_{name}"] = ratio_of_sums(
                [o[of].to_numpy() for o in columns], true.observables[of].to_numpy()
            )
        energy = true.observables[f"{name}_energy"].to_numpy()
        filled = energy > 0
        ratios = [(o[f"{name}_energy"].to_numpy() / np.where(filled, energy, 1))[filled] for o in columns]  # fmt: skip
        entries[f"energy_width_{name}"] = ratio_of_sums([np.abs(r - r.mean()) for r in ratios], ones[filled])  # fmt: skip
        centre = [f"{name}_eta", f"{name}_phi"]
        shifts = [(o[centre] - true.observables[centre]).to_numpy() for o in columns]
        entries[f"centre_error_{name}"] = ratio_of_sums([np.hypot(*s.T) for s in shifts], ones)
    masses = [o["mass"].to_numpy() for o in columns]
    entries["mass_response"] = ratio_of_sums(masses, true.observables["mass"].to_numpy())
    entries["track_position_error"] = ratio_of_sums([m.track_error for m in runs], track_cells)
    for name in ("psnr", "ssim"):
        entries[name] = ratio_of_sums([getattr(m, name) for m in runs], np.ones(len(true.psnr)))
    return entries


parts = np.array_split(test, max(1, len(test) // 100))
track_cells = np.concatenate([(dataset.pair(p)[0][:, 0] != 0).sum((1, 2)).numpy() for p in parts])
full = {arm: details(arm) for arm in measured}

# %% [markdown]
# **Tagger.** The same gradient boosting for all, trained on true high-resolution jets. One more is trained on low-resolution
# jets themselves, which says what is lost in the pooling rather than in the change of the input.


# %%
def tagger_inputs(rows: np.ndarray, make: Callable | None = None) -> np.ndarray:
    """Observables (n, 34) of training jets: true ones, or of their low resolution."""
    parts = []
    for batch in np.array_split(rows, max(1, len(rows) // 100)):
        low, high = dataset.pair(batch)
        parts.append(jet_observables((high if make is None else make(low)).numpy()))
    return pd.concat(parts).to_numpy()


def fitted_tagger(x: np.ndarray, labels: np.ndarray) -> HistGradientBoostingClassifier:
    """Gradient boosting with a fifth of the jets held out to stop it."""
    model = HistGradientBoostingClassifier(
        learning_rate=0.06, max_iter=300, max_leaf_nodes=15, early_stopping=True, validation_fraction=0.2, random_state=0
    )  # fmt: skip
    return model.fit(x, labels)


tagged = splits.train[: CONFIG.tagger_jets]
tagger = fitted_tagger(tagger_inputs(tagged), y[tagged])
low_tagger = fitted_tagger(tagger_inputs(tagged, nearest), y[tagged])
measured["truth"] = [true]
tags = {arm: [tagger.predict_proba(m.observables.to_numpy())[:, 1] for m in runs] for arm, runs in measured.items()}  # fmt: skip
tags["low"] = [low_tagger.predict_proba(measured["nearest"][0].observables.to_numpy())[:, 1]]


def auc_ratio(arm: str, n_resamples: int = 300) -> dict[str, float]:
    """AUC of the tagger on an arm's jets over that on true jets, the same jets resampled."""
    values = np.array([roc_auc(y_test, s) for s in (*tags[arm], *tags["truth"])])
    draws = resample(roc_auc, y_test, [*tags[arm], *tags["truth"]], n_resamples)
    ratios = values[:-1] / values[-1]
    low, high = np.quantile((draws[:, :-1] / draws[:, -1:]).mean(1), [0.025, 0.975])
    value, spread = ratios.mean(), ratios.std(ddof=1) if len(ratios) > 1 else None
    return metric_entry(value, min(low, value), max(high, value), spread)


# %%
half = len(test) // 2
reference = true.observables.to_numpy()[:half]
tests = {arm: [two_sample_tests(m, true) for m in runs] for arm, runs in measured.items()}
results = {}
for arm, runs in measured.items():
    others = [m.observables.to_numpy()[half:] for m in runs]
    results[arm] = {
        "fpd": fit_entry([fpd(reference, x) for x in others]),
        "kpd": fit_entry([kpd(reference, x) for x in others]),
        "c2st_auc_low": auc_entry([t["c2st_auc_low"] for t in tests[arm]]),
        "c2st_auc_high": auc_entry([t["c2st_auc_high"] for t in tests[arm]]),
        "tagger_auc": evaluate({"auc": roc_auc}, y_test, tags[arm], n_resamples=300)["auc"],
    }
    if arm != "truth":
        results[arm]["energy_error"] = worst([full[arm][f"energy_response_{n}"] for n in NAMES])
        results[arm]["occupancy_error"] = worst([full[arm][f"occupancy_{n}"] for n in NAMES])
        full[arm]["tagger_ratio"] = auc_ratio(arm)
results["low_tagger"] = {"tagger_auc": evaluate({"auc": roc_auc}, y_test, tags["low"][0])["auc"]}

display(Markdown(
    f"**Test set**, {len(test):,} jets, {dataset.words}. Brackets: 95 % interval (bootstrap over jets; for FPD and KPD the error of "
    f"the fit); ±: spread over {len(CONFIG.seeds)} seeds. Energy and occupancy: |ratio - 1| of the worst channel."
))  # fmt: skip
COLUMNS = ("fpd", "kpd", "c2st_auc_low", "c2st_auc_high", "energy_error", "occupancy_error", "tagger_auc")  # fmt: skip
shown = {LABELS[arm]: results[arm] for arm in LABELS}
display(results_frame(shown, COLUMNS[:4]))
display(results_frame(shown | {"tagger trained on low resolution": results["low_tagger"]}, COLUMNS[4:]))  # fmt: skip

# %% [markdown]
# **In detail**, every channel.

# %%
GROUPS = {
    "energy response": [f"energy_response_{n}" for n in NAMES],
    "mean absolute deviation of a jet's energy response": [f"energy_width_{n}" for n in NAMES],
    "occupancy, generated over true": [f"occupancy_{n}" for n in NAMES],
    "distance of the centres of energy [pixels]": [f"centre_error_{n}" for n in NAMES],
    "tracks, mass, tagger": ["track_position_error", "mass_response", "tagger_ratio"],
    "image similarity": ["psnr", "ssim"],
}
for title, names in GROUPS.items():
    display(Markdown(f"*{title.capitalize()}*"))
    display(results_frame({LABELS[arm]: full[arm] for arm in full}, names))

# %% [markdown]
# **Spectra and profiles.**

# %%
DRAWN = ("truth", "gan", "likelihood", "expectation", "bicubic", "uniform")
COLORS = dict(zip(DRAWN, ("black", *plotting.PALETTE), strict=False))


def curve(axis, arm: str, centres: np.ndarray, values: np.ndarray) -> None:
    """One arm's histogram as a line; the truth as points."""
    style = {"marker": "o", "ms": 3, "lw": 0} if arm == "truth" else {"lw": 1.3}
    label = "truth" if arm == "truth" else LABELS[arm]
    axis.plot(centres, np.where(values > 0, values, np.nan), color=COLORS[arm], label=label, **style)  # fmt: skip


fig, axes = plt.subplots(2, 3, figsize=(11, 6.4))
middle, ring = np.sqrt(SPECTRUM[1:] * SPECTRUM[:-1]), (RINGS[1:] + RINGS[:-1]) / 2
for c, name in enumerate(CHANNELS):
    for arm in COLORS:
        curve(axes[0, c], arm, middle, measured[arm][0].spectrum[c] / len(test))
        curve(axes[1, c], arm, ring, measured[arm][0].radial[c] / len(test))
    axes[0, c].set(xscale="log", yscale="log", xlabel=f"{name} of a pixel [GeV]", ylabel="pixels a jet" if c == 0 else "")  # fmt: skip
    axes[1, c].set(
        yscale="log",
        xlabel="distance from the middle [pixels]",
        ylabel="GeV a jet in a ring" if c == 0 else "",
    )
axes[0, 0].legend(fontsize=8)
plt.show()

# %%
powers = {
    LABELS[arm]: {f"{what}, {CHANNELS[c]}": f"{np.mean([separation_power(getattr(m, key)[c], getattr(true, key)[c]) for m in runs]):.2e}"
                  for what, key in (("spectrum", "spectrum"), ("profile", "radial")) for c in range(3)}
    for arm, runs in measured.items() if arm != "truth"
}  # fmt: skip
display(Markdown("Separation power (0: equal histograms, 1: disjoint):"))
display(pd.DataFrame(powers).T)

# %%
SHOWN = {
    "track_hits": "track pixels", "ecal_hits": "ECAL pixels", "hcal_hits": "HCAL pixels",
    "ecal_ptd": r"ECAL $p_TD$", "ecal_leading": "leading ECAL pixel / sum", "mass": "mass [GeV]",
}  # fmt: skip
fig, axes = plt.subplots(2, 3, figsize=(11, 6))
for axis, (name, text) in zip(axes.flat, SHOWN.items(), strict=True):
    edges = np.linspace(*np.quantile(true.observables[name], [0.002, 0.995]), 41)
    for arm in ("truth", "gan", "expectation", "bicubic"):
        values = np.histogram(measured[arm][0].observables[name], edges)[0]
        curve(axis, arm, (edges[1:] + edges[:-1]) / 2, values.astype(float))
    axis.set(xlabel=text, ylabel="jets")
axes[0, 0].legend(fontsize=8)
plt.show()

# %% [markdown]
# **Pictures** of the ECAL, the channel with most to invent, of jets of low, middle and high energy.

# %%
order = test[np.argsort(dataset.pt[test])]
chosen = order[[len(order) // 20, len(order) // 2, -max(1, len(order) // 20)]]
low, high = dataset.pair(chosen)
with torch.inference_mode():
    made = drawn_by(models["gan", CONFIG.seeds[0]], 0)(low, 0)
columns = {"low resolution": low, "truth": high, "GAN": made, "bicubic": bicubic(low)}
fig, axes = plt.subplots(3, 4, figsize=(11, 8))
for line in range(3):
    for axis, (name, images) in zip(axes[line], columns.items(), strict=True):
        zoom = slice(19, 45) if name == "low resolution" else ZOOM
        title = f"{dataset.pt[chosen[line]]:.0f} GeV, {name}"
        label = "E [GeV]" if axis is axes[line, -1] else ""
        plotting.event_image(axis, images[line, 1, zoom, zoom].numpy(), title, label)
        axis.label_outer()
plt.show()

# %% [markdown]
# All three channels of the middle jet, and a second draw with other noise: what is certain stays, what is open moves.

# %%
with torch.inference_mode():
    again = drawn_by(models["gan", CONFIG.seeds[0]], 1)(low, 0)
shown = {"truth": high, "first draw": made, "second draw": again}
fig, axes = plt.subplots(3, 3, figsize=(10, 9.4))
for c, name in enumerate(CHANNELS):
    for axis, (text, images) in zip(axes[:, c], shown.items(), strict=True):
        label = "E [GeV]" if c == 2 else ""
        plotting.event_image(axis, images[1, c, ZOOM, ZOOM].numpy(), f"{name}, {text}", label)
        axis.label_outer()
plt.show()
hit, both = made != 0, (made != 0) & (again != 0)
same = both.sum((0, 2, 3)) / hit.sum((0, 2, 3))
words = ", ".join(f"{n} {s:.0%}" for n, s in zip(CHANNELS, same.tolist(), strict=True))
display(Markdown(f"Share of hit pixels that a second draw hits again: {words}."))

# %% [markdown]
# ## 7. Ablations and choices
# On *validation* jets, with one seed and fewer training jets. First the inputs and the density of the generator, trained by
# likelihood alone, whose change is judged by the likelihood of a cell; then the weight of the adversarial term, which the
# likelihood cannot judge and the low-level classifier test can.

# %%
ABLATIONS = {
    "reference": {},
    "only the nearest cells (3 x 3)": {"hidden": ("far",)},
    "no position within the towers": {"hidden": ("place",)},
    "equal neighbours not marked": {"hidden": ("same",)},
    "one normal in place of five": {"components": 1},
    "half the width": {"width": 64},
}
WEIGHTS = (0.0, 0.03, 0.1, 0.3, 1.0)


def changed_training(name: str, options: dict) -> list[float]:
    """Short likelihood training with one change: loss of every batch of 25 validation jets."""
    seed_everything(0)
    model, rows = Generator(**options), splits.train[: CONFIG.ablation_jets]
    train(f"ablation-{name}", model, rows, CONFIG, 0, CONFIG.ablation_epochs, CONFIG.learning_rate)
    rows = splits.validation[:1000]
    batches = np.array_split(rows, max(2, len(rows) // 25))
    return [sum(validation_loss(model.eval(), batch, len(batch)).values()) for batch in batches]


def weighted_training(weight: float) -> TwoSampleTest:
    """Second stage with another adversarial weight: its low-level two-sample test on validation jets."""
    seed_everything(100)
    model = restored("gan", firsts[CONFIG.seeds[0]][1]).train()
    rows = splits.train[: CONFIG.ablation_jets]
    epochs, rate = CONFIG.ablation_epochs, CONFIG.second_rate
    train(f"weight-{weight}", model, rows, CONFIG, 100, epochs, rate, weight)
    rows = splits.validation[:1000]
    made = measure(drawn_by(model.eval(), 0), rows)
    return two_sample_tests(made, measure(truth_of(rows), rows))["c2st_auc_low"]


ablated, weighted = {}, {}
if CONFIG.ablation_jets:
    losses = side_by_side(changed_training, ABLATIONS.items())
    ablated = dict(zip(ABLATIONS, losses, strict=True))
    judged = side_by_side(weighted_training, [(weight,) for weight in WEIGHTS])
    weighted = dict(zip(WEIGHTS, judged, strict=True))

# %%
if ablated:
    lines = {}
    for name, losses in ablated.items():
        d = np.array(losses) - np.array(ablated["reference"])
        error = 1.96 * d.std(ddof=1) / np.sqrt(len(d))
        lines[name] = {"loss [nats a cell]": f"{np.mean(losses):.3f}",
                       "change": "" if name == "reference" else f"{d.mean():+.3f} [{d.mean() - error:+.3f}, {d.mean() + error:+.3f}]"}  # fmt: skip
    words = f"{CONFIG.ablation_jets:,} training jets, {CONFIG.ablation_epochs} passes; interval from batches of about 25 jets:"
    display(Markdown(words))
    display(pd.DataFrame(lines).T)
    lines = {}
    for weight, (label, score, jet) in weighted.items():
        d = paired_bootstrap(
            roc_auc, label, score, weighted[0.0].score, n_resamples=200, groups=jet
        )
        lines[weight] = {"low-level AUC (0.5: perfect)": f"{roc_auc(label, score):.4f}",
                         "change": "" if weight == 0 else f"{d.difference:+.4f} [{d.low:+.4f}, {d.high:+.4f}]"}  # fmt: skip
    display(pd.DataFrame(lines).T.rename_axis("adversarial weight"))
else:
    display(Markdown(f"*The {PROFILE} profile trains no ablations; standard and full do.*"))

# %% [markdown]
# ## 8. Speed, weights and metrics
# Time of one jet on one thread, without reading it.


# %%
def milliseconds_per_jet(make: Callable, jets: int, seconds: float) -> float:
    """Best of three measurements of ``make(low)`` on batches of ``jets``."""
    low = dataset.pair(test[:jets])[0]
    best = np.inf
    with torch.inference_mode():
        make(low)
        for _ in range(3):
            count, start = 0, time.perf_counter()
            while time.perf_counter() < start + seconds or not count:
                make(low)
                count += 1
            best = min(best, (time.perf_counter() - start) / count / len(low))
    return 1000 * best


threads, best_model = torch.get_num_threads(), models["gan", CONFIG.seeds[0]]
torch.set_num_threads(1)
speeds = {}
timed = {
    "GAN, with its noise": lambda low: drawn_by(best_model, 0)(low, 0),
    "bicubic": bicubic,
    "uniform split": uniform_split,
}
seconds, sizes = 0.05 if PROFILE == "smoke" else 0.3, (1, min(32, len(test)))
for name, make in timed.items():
    speeds[name] = {f"batch of {n}": milliseconds_per_jet(make, n, seconds) for n in sizes}
torch.set_num_threads(threads)
frame = pd.DataFrame(speeds).T
display(Markdown("Milliseconds a jet, CPU, one thread:"))
display(frame.round(2))

# %% [markdown]
# The ONNX graph takes raw `X_jets_LR` (batch, 3, 64, 64) and noise (batch, 17, 64, 64), standard normal numbers, and gives
# `X_jets` (batch, 3, 125, 125) in GeV. The same noise gives the same images.
# `make score TASK=task2b_superres_gan DATA=file.parquet` draws the noise with NumPy's `default_rng(0)` and needs no PyTorch for
# the network.

# %%
warnings.filterwarnings("ignore", "Exporting aten::index")  # no index here is negative
card = {"task": TASK, "profile": PROFILE, "data": dataset.description, "source": dataset.source}
batches = []
for n in (1, 2, 7):
    low = dataset.pair(splits.validation[:n])[0]
    batches.append((low, torch.randn(n, NOISE, LOW, LOW, generator=torch_generator(0, n))))
exports = {TASK: best_model, "likelihood": models["likelihood", CONFIG.seeds[0]]}
for name, model in exports.items():
    path = run.directory / f"{name}.onnx"
    export_onnx(model, batches[1], path, ["X_jets_LR", "noise"], ["X_jets"],
                {**card, "kind": "super_resolution", "data_source": dataset.source, "noise_seed": 0})  # fmt: skip
    print(f"{path.name}: largest difference to PyTorch {check_parity(model, path, batches, tolerance=0.05):.1e} GeV")  # fmt: skip
for (arm, seed), model in models.items():
    save_weights(run.directory / f"{arm}_seed{seed}.safetensors", model, {**card, "arm": arm, "seed": seed})  # fmt: skip

# %%
low = dataset.pair(test[:32])[0]
parameters, flops = complexity(best_model, low)


def described(arm: str) -> dict:
    """Results of one arm for metrics.json."""
    return {**results[arm], "info": {"description": LABELS[arm]}}


metrics = run.save_metrics(
    title="Task 2b: super-resolution of jet images with a GAN",
    data={
        "source": dataset.source,
        "fingerprint": dataset.fingerprint,
        "description": dataset.description,
        **{part: len(rows) for part, rows in splits._asdict().items()},
    },
    published=[f"{TASK}.onnx", "gan_seed*", "likelihood.onnx"],
    seeds=list(CONFIG.seeds),
    headline="fpd",
    metrics=results["gan"],
    baselines={arm: described(arm) for arm in TRIVIAL},
    arms={arm: described(arm) for arm in ("likelihood", "expectation")},
    floors={"other_true_jets": described("truth")},
    variants={
        "per_channel": full,
        "tagger_trained_on_low_resolution": results["low_tagger"],
        "milliseconds_per_jet": {k: {n: float(x) for n, x in v.items()} for k, v in speeds.items()},
    },
    parameters=parameters,
    flops=flops,
)
update_results(metrics)

# %% [markdown]
# ## 9. Conclusion, limits, references


# %%
def bar(text: str, reached: bool) -> str:
    """One bar and whether it was reached."""
    return f"{text}: {'reached' if reached else '**missed**'}."


def compared(subject: str, a: str, b: str, test: str = "c2st_auc_low") -> str:
    """Two arms by the paired bootstrap of a classifier test's AUC on the same held-out jets."""
    label, _, jet = tests[a][0][test]
    x, z = ([t[test].score for t in tests[arm]] for arm in (a, b))
    d = paired_bootstrap(roc_auc, label, x, z, n_resamples=300, groups=jet)
    word = (
        "neither easier nor harder"
        if d.low <= 0 <= d.high
        else "harder"
        if d.high < 0
        else "easier"
    )
    return f"{subject} of the arm *{a}* are {word} to tell from true ones than those of *{b}* ({d.difference:+.4f} AUC [{d.low:+.4f}, {d.high:+.4f}])."


gan, ratio = full["gan"], full["gan"]["tagger_ratio"]
responses = [gan[f"energy_response_{n}"]["value"] for n in NAMES]
occupancies = [gan[f"occupancy_{n}"]["value"] for n in NAMES]
conclusions = [
    bar(f"Energy response within 1 % in every channel ({', '.join(f'{r:.5f}' for r in responses)}), by construction",
        all(abs(r - 1) < 0.01 for r in responses)),
    bar(f"Occupancy within 5 % ({', '.join(f'{r:.4f}' for r in occupancies)})", all(abs(r - 1) < 0.05 for r in occupancies)),
    bar(f"FPD at most half of bicubic's ({results['gan']['fpd']['value']:.4f} against {results['bicubic']['fpd']['value']:.4g}; "
        f"other true jets {results['truth']['fpd']['value']:.4f})", results["gan"]["fpd"]["value"] <= 0.5 * results["bicubic"]["fpd"]["value"]),
    bar(f"Tagger AUC on generated jets at least 99 % of that on true ones ({ratio['value']:.4f} [{ratio['low']:.4f}, {ratio['high']:.4f}])",
        ratio["value"] >= 0.99),
    "The adversarial term: " + compared("patches", "gan", "likelihood"),
    "The same by observables: " + compared("jets", "gan", "likelihood", "c2st_auc_high"),
    "Shares that are drawn in place of their medians: " + compared("patches", "likelihood", "expectation"),
    f"A classifier still finds generated patches with an AUC of {results['gan']['c2st_auc_low']['value']:.4f} "
    f"(other true jets: {results['truth']['c2st_auc_low']['value']:.4f}).",
    f"PSNR: {full['gan']['psnr']['value']:.2f} dB, bicubic {full['bicubic']['psnr']['value']:.2f} dB, uniform split "
    f"{full['uniform']['psnr']['value']:.2f} dB. "
    + ("The smooth images win this, with hits in the wrong number of pixels: it is not a measure of jets."
       if full["gan"]["psnr"]["value"] < max(full[a]["psnr"]["value"] for a in TRIVIAL) else "Here too the generator is ahead."),
    f"Tracks: drawn hits are {full['gan']['track_position_error']['value']:.3f} pixels off, those of the uniform split "
    f"{full['uniform']['track_position_error']['value']:.3f}; drawing blindly would cost {(2 + 2**0.5) / 4:.3f}.",
]  # fmt: skip
display(Markdown("\n".join(f"- {line}" for line in conclusions)))

# %% [markdown]
# - The AUC of a classifier test grows with the number of jets that train the classifier. It compares arms on equal terms, and
#   is no absolute number. Patches of one jet are not independent: intervals resample whole jets.
# - Numbers obtained on stand-in jets say how the arms compare on the same jets. They do not predict those on the official files.
# - Cells in the last row and column of the low resolution lie outside of the frame of 125 pixels and must be empty, as they
#   are in the files; their energy would have no pixel to go to.
# - Not studied: cells drawn one after the other given their neighbours' pixels (an autoregressive arm), which would model the
#   correlation between cells exactly at the price of speed; classifier tests with a convolutional network on whole images.
#
# **References.** I. Pang, J. Raine, D. Shih, *SuperCalo*, arXiv:2308.11700. I. Goodfellow et al., *Generative adversarial
# nets*, arXiv:1406.2661. A. Jolicoeur-Martineau, *The relativistic discriminator*, arXiv:1807.00734. T. Miyato et al., *Spectral
# normalization*, arXiv:1802.05957. Y. Bengio et al., *Estimating or propagating gradients through stochastic neurons*,
# arXiv:1308.3432. R. Kansal et al., *Evaluating generative models in high energy physics*, arXiv:2211.10295. C. Krause et al.,
# *CaloChallenge 2022*, arXiv:2410.21611. Z. Wang et al., *Image quality assessment*, IEEE TIP 13 (2004) 600.
