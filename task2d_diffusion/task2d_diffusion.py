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
# # Task 2d: a diffusion model of jets, and judges that were tested first
#
# **Task.** Train a generative model on the unlabelled jets by the principle of diffusion, and compare what it generates
# with the data by statistical tests of one's own. Bonus: train a GAN and a VAE of similar architecture and compare all
# three by the same tests; demonstrate the complexity bias of VAEs and the mode collapse of GANs. A jet is an image of
# $125\times125$ pixels with eight channels: track momentum, impact parameters dz and d0, ECAL, HCAL, and three pixel layers.

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
# *Columns*: AUC of judges that learned from so many generated jets and as many real ones, and scored the last 40 % of the
# sample; "images": their best judge. ± is half of a 95 % interval; ▲ (better) and ▼ mark a clear difference from the short
# trainings "diffusion" (images: from real jets). *Rows*: "with rejection" keeps one in three jets of the long training;
# "independent towers" are those of an untrained network.

# %%
from IPython.display import display

_ = display("Real and generated jets are shown here when the run ends.", display_id="jets")

# %% [markdown]
# **The idea.** Most of a jet image is empty, and its sums span decades: a diffusion model is good at neither. So the work is
# divided. A small normalising flow draws what a physicist would histogram first: sum, occupancy and highest tower of each
# channel. The diffusion model draws *where* everything lies. What no jet can have, as far as we know the format, is excluded by
# construction. Before a classifier may say that generated jets look real, it is shown real ones with planted defects (section 6).
#
# **What was found.** "Real" jets are simulated stand-ins in the official schema here. The table has the AUC with which judges
# distinguish generated jets from real ones: less is better, 0.5 is perfect. **Images of $125\times125$ pixels, the official
# format, are the weakest part**: the number of pixel pairs that touch across the borders of towers is enough to recognise most
# of them. In towers of $5\times5$ pixels, boosted trees on observables still distinguish most generated jets of the long
# training from real ones, and more if they learn from four times as many (second column). A network that looks at towers
# recognises far fewer, also with four times as many (section 7). The planted defects do not explain why the two disagree; the
# judge with the higher AUC counts. Rejection helps: by the trees, which also did the selecting, about as much as the longer
# training; by every other measure half as much or less. **The aims that were set before the run (section 10) are all missed.**
#
# At equal compute the diffusion model is far ahead of VAE and GAN. But that compute is a few hundred updates, after which both
# are recognised almost with certainty, as independent towers are: the comparison shows which principle learns fast, not which
# is best in the end.

# %% [markdown]
# ## 1. Set-up

# %%
import re
import time
import warnings
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache, partial
from io import StringIO
from itertools import pairwise
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import update_display
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import binary_cross_entropy_with_logits, silu, softplus

# %%
from data.loaders import load_jets8
from e2e_utils import plotting
from e2e_utils.checkpoints import computed_once, save_weights
from e2e_utils.complexity import complexity
from e2e_utils.distributed import OnePass
from e2e_utils.machine import device_name, make_accelerator, pick_device
from e2e_utils.metric_text import format_entry
from e2e_utils.metrics import roc_auc
from e2e_utils.notebook import results_frame, show_claims, start_run, update_results
from e2e_utils.parallel import side_by_side
from e2e_utils.seeds import seed_everything, torch_generator
from e2e_utils.sparse_images import SparseImages, concatenate
from e2e_utils.training import Training
from task2d_diffusion import figures, judges, toy, two_samples
from task2d_diffusion import samples as jet_samples
from task2d_diffusion import towers as jet_towers
from task2d_diffusion.codec import (
    BORDER,
    COUNTS,
    EMPTY,
    HIGHEST,
    HIT,
    HIT_WIDTH,
    N_SUMMARY,
    OTHER_WIDTH,
    Codec,
)
from task2d_diffusion.copies import CopyTest, memorised
from task2d_diffusion.judges import compared, grown_trees, interval
from task2d_diffusion.normal_scores import KNOTS, MOST
from task2d_diffusion.observables import next_to
from task2d_diffusion.pixels import TowerLibrary, WholeTowers, counted_in, planted_in, shuffled
from task2d_diffusion.planted_defects import DEFECTS
from task2d_diffusion.samples import Sample, joined
from task2d_diffusion.towers import D0, DZ, GRID, N_CHANNELS, THRESHOLD, TOWER, TRACK
from task2d_diffusion.two_samples import distance_entry, each, entries_of, mean_and_error

# %% tags=["parameters"]
PROFILE = os.environ.get("PROFILE", "quick")  # smoke (tests), quick, standard, full
DATA_SOURCE = os.environ.get("DATA_SOURCE", "auto")  # auto, official, standin
DATA = os.environ.get("DATA") or None  # other files of the official schema, comma separated

# %% [markdown]
# A profile changes the number of jets, steps and trainings, never the method. Rivals of the diffusion network see as many jets as
# the same number of floating-point operations allows. This notebook is longer than most: it holds three kinds of generator,
# and judges that have to show first what they can find.


# %%
@dataclass(frozen=True)
class Config:
    """What a profile changes."""

    long: int  # jets that the long training sees, repetitions included
    jets: int  # that each compared training of the diffusion model sees
    sweep: int  # the same for each VAE of section 8
    made: int  # generated jets of a training: half fit a judge, a tenth stops it
    rounds: int = 8  # looks at the validation jets in a training
    batch: int = 32
    long_batch: int = 32
    seeds: tuple[int, ...] = (0, 1, 2)
    passes: int = 12  # of stage one
    judge_passes: int = 6  # of a network that judges
    grades: tuple[float, ...] = (1.0, 0.3, 0.1)  # of the planted defects
    toy_steps: int = 20_000
    null_draws: int = 300
    largest_batch: int = 500  # of the timing
    library: int = 2_000  # jets whose towers give their pixels to generated ones


# %%
CONFIGS = {
    "smoke": Config(64, 32, 32, 24, 2, 16, 16, (0, 1), 1, 1, (1.0,), 20, 20, 4, 20),
    "quick": Config(960, 192, 32, 40, 4, 32, 32, (0, 1), 2, 2, (1.0,), 200, 40, 40, 100),
    "standard": Config(350_000, 20_000, 16_000, 2_400, judge_passes=10),
    "full": Config(4_000_000, 150_000, 60_000, 3_000, 10, 64, 256, passes=30),
}  # fmt: skip
CONFIG, DEVICE = CONFIGS[PROFILE], pick_device()
run = start_run("task2d_diffusion", PROFILE, DATA_SOURCE)
plotting.set_style()
print(run.summary())

# %% [markdown]
# ## 2. Data
# `load_jets8` reads the official HDF5 file of unlabelled jets where it is on disk, and otherwise stand-in jets simulated in
# the same schema (`data/README.md` compares both). Every channel of every image is scaled to 0 to 255, so values have no
# unit. Of the jets 76 % train, 4 % are for validation, and 20 % are the test set, on which nothing is trained or chosen.
# Stand-ins have an **independent sample** besides: jets simulated with another seed, the only ones with a label, half of them top
# quarks. From each set, judges score twice as many jets as a training generates; more would hardly narrow an interval.

# %%
dataset = load_jets8(DATA_SOURCE, PROFILE, path=DATA, labelled=False)
jets, splits = dataset.unlabelled, dataset.unlabelled_splits(validation=0.04)
fresh = None
if dataset.source == "standin":
    print("The independent sample:")
    fresh = load_jets8("standin", PROFILE, fresh=True)
parts = splits._asdict().items()
print(", ".join(f"{part}: {len(rows):,} jets" for part, rows in parts))

# %% [markdown]
# **What is generated.** Sums of $5\times5$ pixels, $8\times25\times25$ *towers*. An HCAL tower is such a square, whose pixels are
# equal; in the other channels the detail within a tower comes from a library of real towers (section 7).
#
# **What no jet can have, as far as we know the format.** dz and d0 belong to tracks: without a track there is neither. Pixel
# layers hold whole numbers of hits. The largest pixel of each channel is 255. Real jets that break one of these rules are
# counted here, generated ones in section 7.

# %%
CHANNELS = ("track $p_T$", "dz", "d0", "ECAL", "HCAL", "BPIX1", "BPIX2", "BPIX3")


def observed(images: SparseImages, rows: np.ndarray) -> Sample:
    """Towers and observables of many jets."""
    parts = [(images, part) for part in jet_towers.in_parts(rows, 1000)]
    return joined(side_by_side(jet_samples.of_images, parts))


# %%
n_made = CONFIG.made
wanted_rows = splits.train[: 2 * n_made]  # real jets that judges learn from, and more
wanted = {"train": wanted_rows, "validation": splits.validation, "test": splits.test[: 2 * n_made]}
real = {name: observed(jets, rows) for name, rows in wanted.items()}
real["calibration"] = real["validation"].rows(slice(n_made // 10, None))  # no judge stops on them
if fresh:
    real["independent"] = observed(fresh.images, np.arange(min(len(fresh), 2 * n_made)))
print("impossible:", {name: int(s.impossible().any(axis=1).sum()) for name, s in real.items()})

# %% [markdown]
# ## 3. Representation
# **Stage one** has 27 numbers per jet: sum, number of active towers and highest tower of each channel, and the number of
# hits that 255 stands for in the three counted ones.
#
# **Randomised probability integral transform.** A value $w$ with distribution function $F$ becomes
# $$z=\Phi^{-1}(u),\qquad u\sim\mathcal U\left[F(w^-),F(w)\right],$$
# a standard normal number, whatever $F$ (here, a table of quantiles): tails become normal, and an atom (one hit; a tower that
# is one pixel of 255) becomes an interval. The inverse $w=F^{-1}(\Phi(z))$ gives the atom back.
#
# **Stage two** (`task2d_diffusion/codec.py`) has one number $v$ per tower and channel: $-1+0.25\,\epsilon$ for an empty
# tower, with normal $\epsilon$, $1+0.3\,z$ for an active one, and $3+0.25\,\epsilon$ for the channel's highest, whose value
# stage one knows: three clouds that do not touch, so no network has to make a point
# mass, and *which* tower is the highest stands out of the noise before anything else.
#
# **Back to a jet.** Of each channel the $n_c$ towers that rank highest are active, with $n_c$ from stage one; *dz and d0 rank
# within the towers that have a track*. The first gets stage one's highest value, the others are scaled to what the sum leaves
# them, and counted ones are rounded to whole hits. All generators share stage one and this way back, so nothing
# impossible comes from any of them, by construction.

# %%
rng = np.random.default_rng(0)
codec = Codec(jet_towers.to_towers(jets, splits.train[:6000]))
encoded, scores_of = [], []
for part in jet_towers.in_parts(np.arange(len(jets))):
    found = jet_towers.to_towers(jets, part)
    encoded.append(SparseImages.from_dense(codec.encode(found, rng)))
    scores_of.append(codec.conditions(found, rng))
encoded, conditions = concatenate(encoded), torch.from_numpy(np.concatenate(scores_of))


# %%
class Batch(NamedTuple):
    """What a loss takes: v, which towers are active or the highest (B, 8, 25, 25), conditions."""

    v: Tensor
    hit: Tensor
    highest: Tensor
    condition: Tensor  # (B, 27)


def normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers of a tensor's shape, drawn where the generator is."""
    device = generator.device if generator else like.device
    return torch.randn(like.shape, generator=generator, device=device).to(like)


def uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """The same, between 0 and 1."""
    return torch.rand(like.shape, generator=generator, device=generator.device).to(like)


def batch_of(
    rows: np.ndarray, generator: torch.Generator | None = None, with_images: bool = True
) -> Batch:
    """Some jets with fresh noise and, with a generator, mirrored: a symmetry of beam and field."""
    if not with_images:  # stage one needs none
        return Batch(*(conditions[rows].to(DEVICE),) * 4)
    x = encoded.dense(rows, DEVICE)  # sparse until here
    for axis in (2, 3) if generator else ():
        chosen = uniform(x[:, :1, :1, :1], generator) < 0.5
        x = torch.where(chosen, x.flip(axis), x)
    noise = normal(x, generator) * OTHER_WIDTH
    v = torch.where(x > 0, x, noise) + EMPTY
    return Batch(v, (x > 0).float(), (v > BORDER).float(), conditions[rows].to(DEVICE))


# %% [markdown]
# ## 4. Model
# **One network at tower resolution for all generators.** Every tower keeps a vector of 48 features. A block mixes the vectors
# along rows and along columns with learned matrices (what centred jets have in common is *where* things are), and among
# neighbours with a convolution of each feature; then the features of every tower (MLP-Mixer, arXiv:2105.01601). Noise levels
# and stage one's numbers scale, shift and gate each step (adaptive layer norm, arXiv:2212.09748). Nothing is squeezed through a
# bottleneck: relations within one tower, such as a track and its dz, stay where they are.

# %%
FREQUENCIES = 2.0 ** torch.arange(-2, 6)
GROUPS = (1, 1, 1, 0, 0, 2, 2, 2)  # of the channels: 0 calorimeters, 1 tracks, 2 pixel layers
N_GROUPS = 3


class Block(nn.Module):
    """Mixes rows, columns, then the features of every tower; (B, 25, 25, D), embedding (B, E)."""

    def __init__(self, width: int, embedding: int, heads: int = 8) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width, elementwise_affine=False)
        self.film = nn.Linear(embedding, 6 * width)
        self.rows, self.columns = (nn.Parameter(torch.randn(heads, GRID, GRID) / 5) for _ in "ab")
        self.near = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        a, b, gate, c, d, gate_2 = self.film(embedding)[:, None, None].chunk(6, -1)  # (B, 1, 1, D)
        y = self.norm(x) * (1 + a) + b
        near = self.near(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # (B, 25, 25, D)
        y = y.unflatten(-1, (self.heads, -1))  # (B, 25, 25, heads, d)
        up_down = torch.einsum("hij,bjkhd->bikhd", self.rows, y)
        left_right = torch.einsum("hij,bkjhd->bkihd", self.columns, y)
        x = x + (1 + gate) * ((up_down + left_right).flatten(-2) + near)
        return x + (1 + gate_2) * self.down(silu(self.up(self.norm(x) * (1 + c) + d)))


# %%
class TowerNetwork(nn.Module):
    """x (B, C, 25, 25), levels (B, 3), numbers (B, n) -> maps (B, outputs, 25, 25).

    Before training all maps are zero.
    """

    def __init__(
        self, outputs: int, inputs: int = N_CHANNELS, numbers: int = N_SUMMARY,
        width: int = 48, depth: int = 2,
    ) -> None:  # fmt: skip
        super().__init__()
        waves = 2 * len(FREQUENCIES) * N_GROUPS
        layers = nn.Linear(waves + numbers, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU()
        self.embed = nn.Sequential(*layers)
        self.into = nn.Linear(inputs, width)
        self.place = nn.Parameter(0.3 * torch.randn(GRID, GRID, width))
        self.blocks = nn.ModuleList(Block(width, 96) for _ in range(depth))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, outputs)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def features(self, x: Tensor, levels: Tensor, numbers: Tensor | None) -> Tensor:
        """Of every tower, (B, 25, 25, D)."""
        angle = (levels[..., None] * FREQUENCIES.to(levels)).flatten(1)  # (B, 3, 8) -> (B, 24)
        known = [angle.sin(), angle.cos()] + ([] if numbers is None else [numbers])
        embedding = self.embed(torch.cat(known, 1))
        h = self.into(x.permute(0, 2, 3, 1)) + self.place  # (B, C, 25, 25) -> (B, 25, 25, D)
        for block in self.blocks:
            h = block(h, embedding)
        return self.norm(h)

    def forward(self, x: Tensor, levels: Tensor, numbers: Tensor) -> Tensor:
        maps = self.out(self.features(x, levels, numbers))  # (B, 25, 25, outputs)
        return maps.permute(0, 3, 1, 2)


# %%
class Pooled(TowerNetwork):
    """x (B, C, 25, 25), numbers (B, n) -> (B, outputs); ``spread``: of features over the batch."""

    def __init__(self, outputs: int, spread: bool = False, **options: int) -> None:
        super().__init__(outputs, **({"width": 32, "depth": 1} | options))
        self.spread, width = spread, self.place.shape[-1]
        self.hidden = nn.Linear(2 * width, 64)
        self.out = nn.Linear(64 * (1 + spread), outputs)

    def forward(self, x: Tensor, numbers: Tensor | None) -> Tensor:
        h = self.features(x, x.new_zeros(x.shape[0], N_GROUPS), numbers)
        h = silu(h).flatten(1, 2)  # (B, 25, 25, D) -> (B, 625, D)
        h = silu(self.hidden(torch.cat([h.mean(1), h.amax(1)], 1)))
        if self.spread:
            h = torch.cat([h, (h.var(0, unbiased=False) + 1e-6).sqrt().expand_as(h)], 1)
        return self.out(h)


# %% [markdown]
# **What single towers say is counted, not learned.** The chance of a hit, the mean and width of a hit's $v$, and the chance to
# be the highest differ from tower to tower. Training jets give them, mirrored, without a gradient step, and every generator
# starts there or near: *untrained, it draws independent towers*. What training adds is relations. Every network answers with
# the same three maps for each channel: a shift of the log-odds of a hit, a move of its value, and a shift of the log-chance to
# be the highest.


# %%
class TowerPrior(nn.Module):
    """What single towers say, (8, 25, 25) each, and quantiles of the numbers of hits, (8, 513)."""

    def __init__(self) -> None:
        super().__init__()
        shape = N_CHANNELS, GRID, GRID
        for name, value in (("logit", 0), ("mean", HIT), ("width", HIT_WIDTH), ("first", 0)):
            self.register_buffer(name, torch.full(shape, float(value)))
        self.register_buffer("table", torch.zeros(N_CHANNELS, KNOTS + 1))
        self.lift = nn.Linear(N_SUMMARY, N_CHANNELS)  # more hits or fewer, by stage one's numbers
        nn.init.zeros_(self.lift.weight)
        nn.init.zeros_(self.lift.bias)

    def count(self, batch: Batch, table: Tensor) -> None:
        """Set the buffers from jets and from the codec's table of summaries (27, 513)."""
        v, hit, highest, _ = (tensor.cpu() for tensor in batch)  # sums are in double precision
        found = jet_towers.single_towers(v, hit.bool(), highest.bool(), HIT_WIDTH)
        for name, values in found._asdict().items():
            getattr(self, name).copy_(values)
        self.table.copy_(table[COUNTS])

    def counts(self, condition: Tensor) -> Tensor:
        """Numbers of active towers (B, 8) that stage one means."""
        place = torch.special.ndtr(condition[:, COUNTS]) * KNOTS
        low = place.floor().long().clamp(max=KNOTS - 1)
        each = torch.arange(N_CHANNELS, device=low.device)
        ends = self.table[each, low], self.table[each, low + 1]
        return torch.lerp(*ends, place - low).round()

    def log_odds(self, condition: Tensor) -> Tensor:
        """Of a hit, (B, 8, 25, 25)."""
        return self.logit + self.lift(condition)[:, :, None, None]


# %% [markdown]
# ### Diffusion
# Data $v$ with noise of level $\sigma$, $x=v+\sigma\epsilon$; the best denoiser is the posterior mean $D=\mathrm E[v|x]$ (EDM,
# Karras et al., arXiv:2206.00364). Of a single tower $v$ is a mixture of three normal clouds, so Bayes' theorem gives $D$ in
# closed form,
# $$D=p\,m_\top+(1-p)\left[r\,(m_1+g\,\delta)+(1-r)\,m_0\right],$$
# with the posterior means of the clouds $m_0$, $m_1$, $m_\top$, a hit's posterior width $g$ and the network's move $\delta$.
# The two chances obey **rules that hold exactly**. Each channel has one highest tower: of the towers' chances $p$ one softmax,
# of the network's log-chance plus the evidence of $x$, makes a distribution. And an expectation of a known number is that
# number: the chances of all towers of a channel add up to the $n$ hits that stage one knows, $\sum p+(1-p)\,r=n$. One number
# $\lambda$ per channel,
# $$\ln\frac r{1-r}=\ell+\Delta+\lambda+\ln\frac{\mathcal N(x;\mu,w^2+\sigma^2)}{\mathcal N(x;-1,w_0^2+\sigma^2)},$$
# sees to that at every noise level, in training and in the sampler, which drifts towards too many hits without it. Here $\ell$
# are the log-odds of a hit in this tower, counted in training jets, and $\Delta$ is what the network adds to them; $\mu$ and
# $w$ are mean and width of $v$ for hits in this tower, and $w_0=0.25$ is the width of the cloud of empty towers about $-1$.


# %%
def log_normal(x: Tensor, mean: Tensor | float, variance: Tensor) -> Tensor:
    """Logarithm of the normal density, but for a constant."""
    return -((x - mean).square() / variance + variance.log()) / 2


def with_sum(logit: Tensor, weight: Tensor, total: Tensor, steps: int = 6) -> Tensor:
    """Logits plus one number per channel, so that weighted sums of chances are total (B, C).

    Newton's steps without gradients, and a last one with them: its gradient is the exact one.
    """

    def step(shift: Tensor) -> Tensor:
        chance = (logit + shift).sigmoid()
        slope = (weight * chance * (1 - chance)).sum((2, 3), keepdim=True).detach()
        missing = total[:, :, None, None] - (weight * chance).sum((2, 3), keepdim=True)
        return shift + (missing / slope.clamp(min=0.1)).clamp(-1, 1)

    shift = torch.zeros_like(total)[:, :, None, None]
    with torch.no_grad():
        for _ in range(steps):
            shift = step(shift)
    return logit + step(shift).clamp(-4, 4)


# %%
class Posterior(NamedTuple):
    """What x says of v, (B, 8, 25, 25) each, and the means of the outer clouds."""

    first: Tensor  # log-chance to be the highest
    logit: Tensor  # of a hit, if it is not
    value: Tensor  # mean of a hit's v
    width: Tensor  # and its width
    outer: tuple[Tensor, Tensor]  # mean of v if empty, and if the highest

    def mean(self) -> Tensor:
        """E[v | x]."""
        empty, highest = self.outer
        rest = empty + self.logit.sigmoid() * (self.value - empty)
        return rest + self.first.exp() * (highest - rest)


def posterior_of(
    prior: TowerPrior, x: Tensor, s: Tensor, condition: Tensor, answer: Tensor
) -> Posterior:
    """Of x = v + noise of level s (B, 8, 1, 1), for a network's answer (B, 24, 25, 25)."""
    shift, move, first = answer.chunk(3, 1)
    hits = prior.counts(condition)
    hit_variance, other_variance = prior.width.square() + s.square(), OTHER_WIDTH**2 + s.square()
    empty = log_normal(x, EMPTY, other_variance)
    odds = prior.log_odds(condition) + shift
    logit = odds + log_normal(x, prior.mean, hit_variance) - empty
    highest = log_normal(x, HIGHEST, other_variance) - empty + softplus(odds) - softplus(logit)
    first = (prior.first + first + highest).flatten(2).log_softmax(2).view_as(x)
    first = first - 1e4 * (hits == 0)[:, :, None, None]
    width = prior.width * s / hit_variance.sqrt()
    value = prior.mean + (x - prior.mean) * prior.width.square() / hit_variance + move * width
    outer = (m + (x - m) * OTHER_WIDTH**2 / other_variance for m in (EMPTY, HIGHEST))
    logit = with_sum(logit, 1 - first.exp(), (hits - 1).clamp(min=0.05))
    return Posterior(first, logit, value, width, tuple(outer))


# %% [markdown]
# **One noise level, or one per group of channels?** All channels share a level. The alternative gives calorimeters, tracks and
# pixel layers levels of their own, drawn independently in training; in two thirds of the jets the first group, or the first two,
# are clean. So the sampler can let the calorimeters lead, the tracks follow some steps behind, and the pixel layers come last.
# Section 9 compares both on validation jets.
#
# **Loss.** The network is trained by what it says of each tower: minus the logarithm of the probability it assigned to the
# tower's true state (empty, hit or highest), and for hits the squared error of $v$ in posterior widths. The best answer is the
# same posterior, no weights of noise levels have to be chosen, and rare things count. Levels have
# $\ln\sigma\sim\mathcal N(0,1.2^2)$: what a whole jet has in common is decided where single towers are still deep in the noise.
#
# **Flow matching and EDM are weightings of the squared error**, compared in section 9. On straight lines
# $v_t=(1-t)\epsilon+t\,v/\sigma_d$ (arXiv:2210.02747) the mean velocity is $(D/\sigma_d-v_t)/(1-t)$ with
# $\sigma=\sigma_d(1-t)/t$. Logistic-normal times make $\ln\sigma\sim\mathcal N(\ln\sigma_d,1)$, and the squared error of the
# velocity is $(D-v)^2(\sigma+\sigma_d)^2/(\sigma\sigma_d)^2$. EDM has $(\sigma^2+\sigma_d^2)/(\sigma\sigma_d)^2$, at most a
# factor of two less, and $\ln\sigma\sim\mathcal N(-1.2,1.2^2)$.

# %%
SIGMA_DATA, SIGMA_MIN, SIGMA_MAX, RHO = 0.7, 0.02, 20.0, 7
LEVELS = {  # mean and spread of ln sigma
    "likelihood": (0.0, 1.2), "flow": (np.log(SIGMA_DATA), 1.0), "edm": (-1.2, 1.2),
}  # fmt: skip


# %%
def of_channels(sigma: Tensor) -> Tensor:
    """Levels of the groups (B, 3) as those of the channels (B, 8, 1, 1)."""
    return sigma[:, GROUPS, None, None]


def drawn_levels(n: int, weighting: str, grouped: bool, generator: torch.Generator) -> Tensor:
    """Levels (n, 3): log-normal; none, one or two of the first groups are clean (0)."""
    mean, spread = LEVELS[weighting]
    where = {"generator": generator, "device": generator.device}
    sigma = (mean + spread * torch.randn(n, N_GROUPS, **where)).exp()
    clean = torch.randint(N_GROUPS, (n, 1), **where)
    if not grouped:
        return sigma[:, :1].expand(-1, N_GROUPS)
    return sigma * (torch.arange(N_GROUPS, device=clean.device) >= clean)


# %% [markdown]
# **What the network sees.** Beside $x$ the chances that each tower's own $x$ gives, less those before it, and the values of
# likely hits. A tower's answer is the network's plus a *direct* one, linear in these: in the neighbours by a convolution, and
# in the sums along rows and along columns. So first-order relations need no detour through the network.


# %%
class Direct(nn.Module):
    """Linear answer (B, 24, 25, 25) to what is seen (B, 32, 25, 25); zero before training."""

    def __init__(self) -> None:
        super().__init__()
        self.near = nn.Conv2d(4 * N_CHANNELS, 3 * N_CHANNELS, 3, padding=1, bias=False)
        size = 2 * N_CHANNELS * GRID
        self.lines = nn.ModuleList(nn.Linear(size, size, bias=False) for _ in "ab")
        for weight in self.parameters():
            nn.init.zeros_(weight)

    def forward(self, seen: Tensor) -> Tensor:
        beliefs, far = seen[:, N_CHANNELS : 3 * N_CHANNELS] / 4, 0
        for axis, line in zip((3, 2), self.lines, strict=True):  # sums over columns, over rows
            moved = line(beliefs.sum(axis).flatten(1))  # (B, 16, 25) -> (B, 400)
            far = far + moved.unflatten(1, (2 * N_CHANNELS, GRID)).unsqueeze(axis)
        (shift, move, first), (hit, highest) = self.near(seen).chunk(3, 1), far.chunk(2, 1)
        return torch.cat([shift + hit, move, first + highest], 1)


# %%
class Denoiser(nn.Module):
    """D(x; sigma) for x (B, 8, 25, 25), sigma (B, 3), conditions (B, 27)."""

    def __init__(self, weighting: str = "likelihood", grouped: bool = False) -> None:
        super().__init__()
        self.weighting, self.grouped = weighting, grouped
        self.prior, self.direct = TowerPrior(), Direct()
        self.network = TowerNetwork(3 * N_CHANNELS, inputs=4 * N_CHANNELS)

    @torch.no_grad()
    def seen(self, x: Tensor, s: Tensor, condition: Tensor) -> Tensor:
        """Scaled x, what each tower's own x makes of its chances, values; (B, 32, 25, 25)."""
        none = x.new_zeros(len(x), 3 * N_CHANNELS, GRID, GRID)
        alone = posterior_of(self.prior, x, s, condition, none)
        highest, hit = alone.first.exp(), alone.logit.sigmoid()
        width = (self.prior.width.square() + s.square()).sqrt()
        value = (1 - highest) * hit * (x - self.prior.mean) / width
        changes = highest - self.prior.first.exp(), hit - self.prior.logit.sigmoid()
        scaled = x * (s.square() + SIGMA_DATA**2).rsqrt()
        return torch.cat([scaled, *(4 * change for change in changes), value], 1)

    def posterior(self, x: Tensor, sigma: Tensor, condition: Tensor) -> Posterior:
        """What the network makes of x."""
        s = of_channels(sigma)
        seen = self.seen(x, s, condition)
        answer = self.network(seen, sigma.clamp(min=SIGMA_MIN).log() / 4, condition)
        return posterior_of(self.prior, x, s, condition, answer + self.direct(seen))

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor) -> Tensor:
        return self.posterior(x, sigma, condition).mean()


# %%
def squared_error(guess: Tensor, v: Tensor, s: Tensor, weighting: str) -> Tensor:
    """(D - v)^2 by a weighting; channels that are clean do not count."""
    both = (s + SIGMA_DATA).square() if weighting == "flow" else s.square() + SIGMA_DATA**2
    weight = (s > 0) * both / (s.clamp(min=1e-3) * SIGMA_DATA).square()
    return weight * (guess - v).square()


def surprise(found: Posterior, batch: Batch, s: Tensor) -> Tensor:
    """-ln p of what each tower is, and the squared error of a hit's v in its width."""
    v, hit, highest, _ = batch
    occupancy = binary_cross_entropy_with_logits(found.logit, hit, reduction="none")
    value = ((v - found.value) / found.width.clamp(min=1e-3)).square() / 2
    return (s > 0) * ((1 - highest) * (occupancy + hit * value) - highest * found.first)


def denoising_loss(model: Denoiser, batch: Batch, generator: torch.Generator) -> Tensor:
    """Mean loss over towers, at levels that are drawn."""
    sigma = drawn_levels(len(batch.v), model.weighting, model.grouped, generator).to(batch.v)
    s = of_channels(sigma)
    found = model.posterior(batch.v + s * normal(batch.v, generator), sigma, batch.condition)
    if model.weighting == "likelihood":
        return surprise(found, batch, s).mean()
    return squared_error(found.mean(), batch.v, s, model.weighting).mean()


# %% [markdown]
# **Sampler.** $\mathrm dx/\mathrm d\ln\sigma=x-D$ is solved from $\sigma=20$ to 0 with the second-order multistep method of
# DPM-Solver++ (arXiv:2211.01095), one evaluation per step: with $h=\ln\sigma_k/\sigma_{k+1}$,
# $x\leftarrow e^{-h}x+(1-e^{-h})\tilde D$ and $\tilde D$ extrapolated from the last two. Groups with levels of their own lag
# each other by some steps.

# %%
STEPS, LAG = 20, 4


def level_grid(steps: int = STEPS, lag: int = LAG) -> Tensor:
    """Levels of the groups (steps + 2 lag + 1, 3), down to 0; the grid of Karras et al., eq. 5."""
    ends = SIGMA_MAX ** (1 / RHO), SIGMA_MIN ** (1 / RHO)
    one = np.append(np.linspace(*ends, steps) ** RHO, 0.0)
    step = np.arange(steps + 2 * lag + 1)[:, None] - lag * np.arange(N_GROUPS)
    return torch.tensor(one[step.clip(0, steps)], dtype=torch.float32)


# %%
@torch.inference_mode()
def sample_diffusion(model: nn.Module, condition: Tensor, noise: Tensor, lag: int = LAG) -> Tensor:
    """v from standard normal noise (B, 8, 25, 25)."""
    x, grid = noise * SIGMA_MAX, level_grid(lag=lag).to(noise)
    last, last_step = torch.zeros_like(x), torch.zeros_like(grid[0])
    for now, following in pairwise(grid):  # (3,) each
        guess = model(x, now.expand(len(x), -1), condition)
        moving = (now > 0) & (following < now)  # the others wait, or have arrived
        ratio = torch.where(moving, following / now.clamp(min=1e-9), torch.ones_like(now))
        step = torch.where(ratio > 0, -ratio.clamp(min=1e-9).log(), 0 * now)
        past = torch.where(last_step > 0, step / last_step.clamp(min=1e-9) / 2, 0 * now)
        r, p = (of_channels(number[None]) for number in (ratio, past))
        x = r * x + (1 - r) * (guess + p * (guess - last))
        last, last_step = guess, step
    return x


# %% [markdown]
# ### GAN and VAE
# **VAE.** 32 latent numbers $u$ per jet. The decoder gives a *hurdle* likelihood, which suits the variable: a choice among the
# towers for the highest, a Bernoulli distribution for "hit" of the others, and a normal one of $v$ for such hits; dz and d0
# count only where a track is. Loss $-\ln p(v|u)+\beta\,\mathrm{KL}$ per jet. Generated jets are drawn from the likelihood, with
# as many hits as stage one says. The latent numbers also reach the log-odds of all towers by one matrix, and start with a
# narrow posterior: otherwise the decoder learns to do without them first, and the posterior collapses at every $\beta$.
#
# **GAN.** The generator gets noise of the size of a jet, and draws highest tower, hit and value as the VAE does; a
# straight-through estimate lets gradients pass the draws. The number of hits and the places of dz and d0 are imposed before the
# critic, too. The critic sees $v$ and the conditions: non-saturating loss and $R_1$ penalty (arXiv:1801.04406) on an eighth of
# every batch. The spread of its features over the batch tells it when a batch is too uniform (arXiv:1710.10196). The *plain*
# GAN has neither penalty nor spread, and sees as many jets. Section 8 asks what that does.

# %%
LATENT = 32


class VAE(nn.Module):
    """Encoder to a diagonal normal distribution, decoder from latent numbers and conditions."""

    def __init__(self, beta: float = 1.0, free_bits: float = 0.0, alone: bool = False) -> None:
        super().__init__()
        self.beta, self.free_bits, self.alone = beta, free_bits, alone  # alone: no conditions
        self.prior, self.encoder = TowerPrior(), Pooled(2 * LATENT)
        self.decoder = TowerNetwork(4 * N_CHANNELS, numbers=N_SUMMARY + LATENT)
        self.direct = nn.Linear(LATENT, N_CHANNELS * GRID**2, bias=False)
        nn.init.normal_(self.direct.weight, std=0.02)
        with torch.no_grad():
            self.encoder.out.weight[:LATENT] *= 4
            self.encoder.out.bias[LATENT:] = -4

    def encode(self, v: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance (B, 32) each."""
        mean, log_variance = self.encoder(v, condition * (not self.alone)).chunk(2, 1)
        return mean, log_variance.clamp(-12, 6)

    def decode(self, latent: Tensor, condition: Tensor) -> "Likelihood":
        """The distribution of a jet."""
        condition = condition * (not self.alone)
        empty = latent.new_zeros(len(latent), N_CHANNELS, GRID, GRID)
        numbers = torch.cat([condition, latent], 1)
        levels = latent.new_zeros(len(latent), N_GROUPS)
        shift, move, wider, first = self.decoder(empty, levels, numbers).chunk(4, 1)
        log_odds = self.prior.log_odds(condition) + shift + self.direct(latent).view_as(shift)
        mean = self.prior.mean + self.prior.width * move
        log_width = self.prior.width.log() + wider.clamp(-2, 2)
        return Likelihood(log_odds, mean, log_width, self.prior.first + first)


# %%
class Likelihood(NamedTuple):
    """Log-odds of a hit, mean and log width of its v, log-chance of the highest, (B, 8, 25, 25)."""

    log_odds: Tensor
    mean: Tensor
    log_width: Tensor
    first: Tensor


def on_tracks(score: Tensor, track: Tensor) -> Tensor:
    """Scores (B, 8, 25, 25), those of dz and d0 out of reach where no track (B, 1, 25, 25) is."""
    possible = torch.ones_like(score)
    possible[:, DZ : D0 + 1] = track
    return score + (possible - 1) * 1e4


def hurdle_loss(decoded: Likelihood, batch: Batch) -> Tensor:
    """-ln p of the highest towers, of other hits and of their v; dz and d0 are given the track."""
    v, hit, highest, _ = batch
    possible = torch.ones_like(hit)
    possible[:, DZ : D0 + 1] = hit[:, :1]
    chances = on_tracks(decoded.first, hit[:, :1]).flatten(2).log_softmax(2).view_as(hit)
    occupancy = binary_cross_entropy_with_logits(decoded.log_odds, hit, reduction="none")
    value = ((v - decoded.mean) / decoded.log_width.exp()).square() / 2 + decoded.log_width
    rest = 1 - highest
    return (possible * rest * occupancy + hit * rest * value - highest * chances).mean()


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL from the standard normal distribution, per latent number, in nats."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)


# %%
def vae_loss(model: VAE, batch: Batch, generator: torch.Generator) -> Tensor:
    """Hurdle loss + beta KL per tower; ``free_bits`` nats of each latent number cost nothing."""
    mean, log_variance = model.encode(batch.v, batch.condition)
    noise = normal(mean, generator)
    decoded = model.decode(mean + noise * (log_variance / 2).exp(), batch.condition)
    kl = kl_divergence(mean, log_variance).mean(0).clamp(min=model.free_bits).sum()
    return hurdle_loss(decoded, batch) + model.beta * kl / batch.v[0].numel()


# %%
def logistic(like: Tensor, generator: torch.Generator) -> Tensor:
    """Noise whose sum with log-odds is positive with the probability that they mean."""
    return uniform(like, generator).clamp(1e-6, 1 - 1e-6).logit()


def drawn_highest(first: Tensor, hits: Tensor, generator: torch.Generator) -> Tensor:
    """One tower of each channel with hits (B, 8), drawn by log-chances; 0 and 1 of that shape.

    Gradients pass the draw as if it were a softmax.
    """
    lot = -(-uniform(first, generator).clamp(1e-6, 1 - 1e-6).log()).log()
    soft = (first + lot).flatten(2).softmax(2)  # (B, 8, 625)
    hard = nn.functional.one_hot(soft.argmax(2), soft.shape[2]).to(soft)
    chosen = (hard + soft - soft.detach()) * (hits > 0)[:, :, None]
    return chosen.view_as(first)


def less_cut(order: Tensor, highest: Tensor, hits: Tensor) -> Tensor:
    """``order`` (B, C, 25, 25), positive in as many towers as are hit (B, C), the highest among them."""
    ranked = order.detach().masked_fill(highest > 0.5, 1e3)  # it is a hit
    ranked = ranked.flatten(2).sort(2, descending=True).values  # (B, C, 625)
    last = hits.long().clamp(1, ranked.shape[2] - 1).unsqueeze(2) - 1
    cut = (ranked.gather(2, last) + ranked.gather(2, last + 1)) / 2
    return order - torch.where(hits > 0, cut[..., 0], 2e4)[:, :, None, None]


def settled(order: Tensor, first: Tensor, hits: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What is hit, positive in ``hits`` (B, 8) towers, and the drawn highest: (B, 8, 25, 25) each.

    As in a finished jet: tracks are drawn first, and nothing of dz and d0 is where there is none.
    """
    of_tracks = drawn_highest(first[:, :1], hits[:, :1], generator)
    track = (less_cut(order[:, :1], of_tracks, hits[:, :1]) > 0).to(order)
    track = torch.maximum(track, of_tracks.detach())
    order, first = on_tracks(order, track), on_tracks(first, track)
    highest = torch.cat([of_tracks, drawn_highest(first[:, 1:], hits[:, 1:], generator)], 1)
    return less_cut(order, highest, hits), highest


def noise_like(condition: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise (B, 8, 25, 25) for conditions (B, 27)."""
    return normal(condition.new_empty(len(condition), N_CHANNELS, GRID, GRID), generator)


# %%
class Adversaries(nn.Module):
    """Generator and critic; ``plain``: without penalty and spread."""

    def __init__(self, plain: bool = False) -> None:
        super().__init__()
        self.plain, self.prior = plain, TowerPrior()
        self.network, self.critic = TowerNetwork(3 * N_CHANNELS), Pooled(1, spread=not plain)

    def made(self, condition: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """v of hits, what decides on one where it is positive, the highest; (B, 8, 25, 25) each."""
        noise = noise_like(condition, generator)
        levels = noise.new_zeros(len(noise), N_GROUPS)
        shift, move, first = self.network(noise, levels, condition).chunk(3, 1)
        order = self.prior.log_odds(condition) + shift
        order = order + logistic(order, generator)
        value = self.prior.mean + self.prior.width * (move + normal(move, generator))
        hits = self.prior.counts(condition)
        return value, *settled(order, self.prior.first + first, hits, generator)

    def as_v(
        self, value: Tensor, order: Tensor, highest: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Jets as the critic sees them; gradients pass the decision as if it were a sigmoid."""
        soft = (2 * order).sigmoid()
        hit = soft + ((order > 0).float() - soft).detach()
        other = OTHER_WIDTH * normal(value, generator)
        v = hit * value + (1 - hit) * (EMPTY + other)
        return highest * (HIGHEST + other) + (1 - highest) * v


# %%
def gradient_penalty(critic: nn.Module, v: Tensor, condition: Tensor) -> Tensor:
    """Half the mean squared norm of the critic's gradient at real jets."""
    v = v.detach().requires_grad_()
    (slope,) = torch.autograd.grad(critic(v, condition).sum(), v, create_graph=True)
    return slope.flatten(1).square().sum(1).mean() / 2


# %%
def adversarial_loss(model: Adversaries, batch: Batch, generator: torch.Generator) -> Tensor:
    """Losses of both players in one pass: each one's gradient reaches its own weights alone."""
    v, condition = batch.v, batch.condition
    fake, critic = model.as_v(*model.made(condition, generator), generator), model.critic
    loss = softplus(-critic(v, condition)).mean()
    loss = loss + softplus(critic(fake.detach(), condition)).mean()
    if not model.plain:
        few = max(1, len(v) // 8)
        loss = loss + gradient_penalty(critic, v[:few], condition[:few])
    fixed = {name: weight.detach() for name, weight in critic.named_parameters()}
    return loss + softplus(-functional_call(critic, fixed, (fake, condition))).mean()


# %% [markdown]
# ### Stage one
# A masked autoregressive flow (arXiv:1705.07057) of the 27 numbers: in each block $z_i=(x_i-\mu_i(x_{<i}))\,e^{-s_i(x_{<i})}$,
# so the likelihood takes one pass. All generators use its draws, the same ones.


# %%
class MaskedLinear(nn.Linear):
    """A linear layer of which only the weights in a mask (outputs, inputs) count."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__(*mask.T.shape)
        self.register_buffer("mask", mask.float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight * self.mask, self.bias)


# %%
class AutoregressiveFlow(nn.Module):
    """Blocks in alternating order between 27 numbers and standard normal ones."""

    def __init__(self, size: int = N_SUMMARY, hidden: int = 128, blocks: int = 5) -> None:
        super().__init__()
        degree, number = torch.arange(hidden) % (size - 1), torch.arange(size)
        into, out = degree[:, None] >= number, (number[:, None] > degree).repeat(2, 1)
        layers = [(MaskedLinear(into), nn.SiLU(), MaskedLinear(out)) for _ in range(blocks)]
        self.blocks = nn.ModuleList(nn.Sequential(*block) for block in layers)
        for block in self.blocks:  # the identity before training
            nn.init.zeros_(block[2].weight)
            nn.init.zeros_(block[2].bias)

    def shift_and_scale(self, block: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and log scale of each number from the earlier ones, (B, size) each."""
        shift, scale = block(x).chunk(2, 1)
        return shift, 2 * torch.tanh(scale / 2)

    def to_noise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Noise (B, size) and log determinant (B,)."""
        total = x.new_zeros(len(x))
        for block in self.blocks:
            shift, scale = self.shift_and_scale(block, x)
            x, total = ((x - shift) * (-scale).exp()).flip(1), total - scale.sum(1)
        return x, total

    @torch.no_grad()
    def sample(self, z: Tensor) -> Tensor:
        """Numbers of noise (B, size): one pass per number and block."""
        for block in reversed(self.blocks):
            z, x = z.flip(1), torch.zeros_like(z)
            for i in range(z.shape[1]):
                shift, scale = self.shift_and_scale(block, x)
                x[:, i] = shift[:, i] + scale[:, i].exp() * z[:, i]
            z = x
        return z


# %%
def likelihood_loss(model: AutoregressiveFlow, batch: Batch, _: torch.Generator) -> Tensor:
    """Negative log-likelihood of the conditions in nats per number."""
    z, log_determinant = model.to_noise(batch.condition)
    return (0.5 * (z.square() + np.log(2 * np.pi)).sum(1) - log_determinant).mean() / z.shape[1]


# %%
NETWORKS = {
    "diffusion": (Denoiser, denoising_loss), "vae": (VAE, vae_loss),
    "gan": (Adversaries, adversarial_loss), "totals": (AutoregressiveFlow, likelihood_loss),
}  # fmt: skip


# %%
counted = TowerPrior()
counted.count(batch_of(splits.train[:6000]), codec.tables()["summary"])


def build(arm: str, options: tuple = ()) -> nn.Module:
    """A fresh network by name, with its options as pairs, and the towers' statistics in it."""
    model = NETWORKS[arm][0](**dict(options))
    for part in model.modules():
        if isinstance(part, TowerPrior):
            part.load_state_dict(counted.state_dict())
    return model


# %% [markdown]
# **Equal compute.** FLOPs of one jet in training: a backward pass costs two forward ones. The GAN's generator is trained
# through the critic, which sees real and generated jets and has the penalty: three passes of the one, about nine of the other.

# %%
one_jet = torch.zeros(1, N_CHANNELS, GRID, GRID), torch.zeros(1, N_SUMMARY)
flat = torch.zeros(1, N_GROUPS)
sizes = {
    "diffusion": complexity(Denoiser(), one_jet[0], flat + 1, one_jet[1]),
    "diffusion: direct answer": complexity(Direct(), torch.zeros(1, 4 * N_CHANNELS, GRID, GRID)),
    "VAE: encoder": complexity(Pooled(2 * LATENT), *one_jet),
    "VAE: decoder": complexity(VAE().decoder, one_jet[0], flat, torch.zeros(1, N_SUMMARY + LATENT)),
    "VAE: matrix of latent numbers": complexity(VAE().direct, torch.zeros(1, LATENT)),
    "GAN: generator": complexity(TowerNetwork(3 * N_CHANNELS), one_jet[0], flat, one_jet[1]),
    "GAN: critic": complexity(Pooled(1), *one_jet),
}
flops = {name: size["flops"] for name, size in sizes.items()}
cost = {  # of one jet in training
    "diffusion": 3 * flops["diffusion"],
    "vae": 3 * sum(n for name, n in flops.items() if name.startswith("VAE")),
    "gan": 3 * flops["GAN: generator"] + 9 * flops["GAN: critic"],
}
direct, whole = (sizes[name]["parameters"] for name in ("diffusion: direct answer", "diffusion"))
print(f"{direct / whole:.0%} of the diffusion network's parameters are in its direct answer")
frame = {name: (f"{x['parameters']:,}", f"{x['flops'] / 1e6:.1f}") for name, x in sizes.items()}
columns = ["parameters", "MFLOPs of one call"]
pd.DataFrame.from_dict(frame, "index", columns=columns).rename_axis("network")

# %% [markdown]
# ## 5. Training
# AdamW, one cycle (arXiv:1708.07120), a moving average of the weights, which is what generates. An interrupted run continues
# bit for bit. The weights with the lowest validation loss are kept; a GAN's losses do not tell how good it is, so it
# keeps its last ones.


# %%
class Job(NamedTuple):
    """One training: an arm, its seed, how many jets it sees, options of its network as pairs."""

    arm: str
    seed: int
    jets: int
    options: tuple[tuple[str, object], ...] = ()

    @property
    def name(self) -> str:
        return re.sub(r"[^\w.]+", "-", "-".join(map(str, self)))

    @property
    def batch(self) -> int:
        """Jets per step."""
        return CONFIG.long_batch if self.jets == CONFIG.long else CONFIG.batch


# %%
@torch.no_grad()
def validation_loss(job: Job, model: nn.Module) -> float:
    """Loss on at most 1,000 validation jets, nearly with the same noise every time."""
    generator = torch_generator(0, 10**6, DEVICE)
    total, rows = 0.0, splits.validation[:1000]
    _, loss = NETWORKS[job.arm]
    for part in jet_towers.in_parts(rows, 100):
        batch = batch_of(part, with_images=job.arm != "totals")
        total += loss(model.eval(), batch, generator).item() * len(part)
    return total / len(rows)


# %%
def train(job: Job) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Train a job's network from random weights: its history and weights."""
    seed_everything(job.seed)
    accelerator, model, gan = make_accelerator(), build(job.arm, job.options), job.arm == "gan"
    rounds = CONFIG.passes if job.arm == "totals" else CONFIG.rounds
    order = np.random.default_rng(job.seed).permutation(splits.train)
    chunks = np.array_split(np.resize(order, max(job.jets, rounds * job.batch)), rounds)
    steps = sum(len(c) // (job.batch * accelerator.num_processes) for c in chunks)
    rate, betas = (5e-4, (0.0, 0.99)) if gan else (2e-3, (0.9, 0.99))
    optimizer = torch.optim.AdamW(model.parameters(), rate, betas, weight_decay=1e-3, fused=True)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps, pct_start=0.1, cycle_momentum=False
    )
    fit = Training(
        run.directory / "state" / job.name, OnePass(model, NETWORKS[job.arm][1]), optimizer, cycle,
        accelerator, ema_decay=0.998, higher_is_better=False,
    )  # fmt: skip
    for number in fit.epochs(rounds):
        generator = torch_generator(job.seed, number, fit.device)
        total = torch.zeros((), device=fit.device)
        for rows in fit.batches(chunks[number], job.batch, job.seed):
            batch = batch_of(rows, generator, with_images=job.arm != "totals")
            loss = fit.network(batch, generator)
            fit.backward(loss)
            fit.step()
            total += loss.detach()
        score = -number if gan else validation_loss(job, fit.averaged.network)
        fit.record(score, train=total.item() * job.batch / len(chunks[number]))
    return pd.DataFrame(fit.history), {k: v.cpu().numpy() for k, v in model.state_dict().items()}


# %%
trained = {}  # job -> (history, weights as arrays)


@cache
def restored(job: Job) -> nn.Module:
    """The trained network of a job; one of no jets is not trained."""
    seed_everything(job.seed)
    model = build(job.arm, job.options)
    if job.jets:
        model.load_state_dict({k: torch.as_tensor(v) for k, v in trained[job][1].items()})
    return model.eval().to(DEVICE)


# %%
def seconds_of(job: Job) -> float:
    """Duration of a training, from its median look: other work, or an interruption, is not counted."""
    seconds = trained[job][0].seconds
    return seconds.median() * len(seconds)


def run_jobs(jobs: list[Job]) -> None:
    """Train all jobs side by side, the longest first."""
    jobs = sorted(jobs, key=lambda job: -job.jets * cost.get(job.arm, 0))
    with redirect_stdout(StringIO()):  # there are too many trainings for a line each
        trained.update(zip(jobs, side_by_side(train, [(job,) for job in jobs]), strict=True))
    restored.cache_clear()
    minutes = sum(map(seconds_of, jobs)) / 60
    print(f"{len(jobs)} trainings, {minutes:.1f} minutes of one process")


# %% [markdown]
# **Which trainings.** One long diffusion training is the headline. The comparison of principles has three trainings of each
# arm (two in the smaller profiles), short ones of equal compute: they show how each principle starts, not where it ends. The
# ablations of section 9 are trained likewise. Validation losses, after the first and the last look, compare only where the loss
# is the same; seconds are those of trainings side by side, which slow each other down, so equal trainings differ in them.

# %%
ARMS = {  # name -> network, options
    "long": ("diffusion", ()),
    "diffusion": ("diffusion", ()),
    "vae": ("vae", ()),
    "gan": ("gan", ()),
    "gan_plain": ("gan", (("plain", True),)),
    "flow": ("diffusion", (("weighting", "flow"),)),
    "edm": ("diffusion", (("weighting", "edm"),)),
    "by_group": ("diffusion", (("grouped", True),)),
    "independent": ("gan", ()),  # not trained
}
ABLATIONS = ("flow", "edm", "by_group")
LABELS = {
    "long": "diffusion, long training", "rejection": "with rejection",
    "diffusion": "diffusion", "vae": "VAE", "gan": "GAN", "gan_plain": "GAN, plain",
    "independent": "independent towers", "real": "real jets (floor)",
    "flow": "flow matching's weighting", "edm": "EDM's weighting",
    "by_group": "a noise level per group",
}  # fmt: skip


# %%
def jobs_of(name: str) -> list[Job]:
    """The trainings of an arm, one per seed, all of the compute of the short diffusion training."""
    arm, options = ARMS[name]
    if name in ("long", "independent"):
        return [Job(arm, 0, CONFIG.long * (name == "long"))]
    n = round(CONFIG.jets * cost["diffusion"] / cost[arm])
    return [Job(arm, seed, n, options) for seed in CONFIG.seeds]


# %%
totals = Job("totals", 0, CONFIG.passes * len(splits.train))
run_jobs([totals, *(job for name in ARMS for job in jobs_of(name) if job.jets)])
rows = {}
for name in (name for name in ARMS if name != "independent"):
    job = jobs_of(name)[0]
    seconds, score = seconds_of(job), trained[job][0].score
    loss = f"{score.iloc[0]:.3f} to {score.iloc[-1]:.3f}" if job.arm != "gan" else ""  # says little
    rows[LABELS[name]] = f"{job.jets:,}", f"{job.jets // job.batch:,}", f"{seconds:.0f}", loss
columns = ["jets seen", "updates", "seconds", "validation loss"]
pd.DataFrame.from_dict(rows, "index", columns=columns).rename_axis("first training of an arm")

# %% [markdown]
# ### Generating
# Stage one draws the conditions; all generators get the same ones, so they differ in the image alone. *Independent
# towers* are what an untrained generator makes.


# %%
@torch.no_grad()
def stage_one(n: int, seed: int) -> Tensor:
    """Conditions (n, 27) of new jets, on the device."""
    z = torch.randn(n, N_SUMMARY, generator=torch_generator(seed, 77)).to(DEVICE)
    return restored(totals).sample(z).clamp(-MOST, MOST)  # as the scores of real jets


# %%
@torch.inference_mode()
def drawn(model: nn.Module, condition: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """v and what ranks the activity of towers, (B, 8, 25, 25) each, for conditions (B, 27)."""
    noise = noise_like(condition, generator)
    if isinstance(model, Denoiser):
        v = sample_diffusion(model, condition, noise, LAG if model.grouped else 0)
        return v, v
    if isinstance(model, Adversaries):
        value, order, highest = model.made(condition, generator)
    else:
        latent = normal(condition.new_empty(len(condition), LATENT), generator)
        log_odds, mean, log_width, first = model.decode(latent, condition)
        value, order = mean + log_width.exp() * noise, log_odds + logistic(log_odds, generator)
        order, highest = settled(order, first, model.prior.counts(condition), generator)
    chosen = highest > 0.5
    return value.masked_fill(chosen, HIGHEST), order.masked_fill(chosen, 1e3)  # it is a hit


# %%
def new_towers(name: str, number: int, condition: Tensor, seed: int) -> jet_towers.Towers:
    """Towers of new jets for conditions (n, 27)."""
    model, generator = restored(jobs_of(name)[number]), torch_generator(2000 + number, seed)
    v, order = drawn(model, condition, generator)
    v, order, condition = (tensor.float().cpu().numpy() for tensor in (v, order, condition))
    return codec.decode(v, condition, order)


def make(name: str, number: int, condition: Tensor, seed: int) -> Sample:
    """New jets for conditions (n, 27), with their observables."""
    return jet_samples.of_towers(new_towers(name, number, condition, seed))


# %%
def made_once(name: str, number: int) -> Sample:
    """The jets of one training of an arm, kept with the state of the run."""
    path = run.directory / "state" / f"made-{name}-{number}.joblib"
    parts = enumerate(given[: sizes_made.get(name, n_made)].split(250))
    return computed_once(path, lambda: joined([make(name, number, part, k) for k, part in parts]))


# %% [markdown]
# **Rejection, an extra arm.** The long training makes four times as many jets. Trees learn to distinguish the first quarter
# from *training* jets. Of the rest one jet in three is kept, so a jet costs three: weighted selection without replacement, with
# weights $p/(1-p)$ where the trees give a jet the probability $p$ of being real. Since no jet is kept twice, the selection is
# only approximately proportional to the weights. Trees on the same observables, though trained anew, are also among the judges:
# for this arm the other measures are fairer.

# %%
given = stage_one(4 * n_made, 1000)
sizes_made = {"long": 4 * n_made} | dict.fromkeys(ABLATIONS, n_made // 2)
plan = [(name, k) for name in ARMS for k in range(len(jobs_of(name)))]
made = dict(zip(plan, side_by_side(made_once, plan), strict=True))
samples = {name: [made[name, k] for k in range(len(jobs_of(name)))] for name in ARMS}
everything = samples["long"][0]
samples["long"] = [everything.rows(slice(n_made))]
samples["real"] = [real["train"].rows(slice(n_made // 2, n_made + n_made // 2))]

# %% [markdown]
# ## 6. Judges, tested first
# A two-sample test trains a classifier to tell generated jets from real ones (Lopez-Paz & Oquab, arXiv:1610.06545): an AUC of
# 0.5 on new jets means that it cannot. That is praise only if the classifier is good. Ours are **boosted trees on observables**
# (sums, shapes, neighbours, and for each pair of channels how often both are active in the same tower), **a network on towers**
# ("network" in tables) with a block of section 4, which is shown for each pair of channels where both are active, and in how
# many towers one is without the other, and **one on pixels**, which first makes 32 features of each tower's pixels. All learn
# from half of the generated jets and as many training jets, stop on a tenth and as many validation jets, and score test jets
# and the last 40 % of the generated ones, which nothing has seen (`task2d_diffusion/judges.py`). The network on towers was
# chosen among five by the defects below, with validation jets, so its column in the table is a little too good; the first did
# not find a dz without a track, since one tower in 625 drowned in the mean over all.


# %%
PAIRS = torch.triu_indices(N_CHANNELS, N_CHANNELS, 1)  # (2, 28)


class Judge(nn.Module):
    """Towers (B, 8, 25, 25), or images (B, 8, 125, 125) if ``pixels``, -> logit of "generated"."""

    def __init__(self, pixels: bool) -> None:
        super().__init__()
        self.pixels, inputs, maps = pixels, 2 * N_CHANNELS, 32 if pixels else N_CHANNELS**2
        self.towers = nn.Sequential(nn.Conv2d(inputs, 32, TOWER, TOWER), nn.ReLU())
        self.network = Pooled(1, inputs=32 if pixels else inputs + PAIRS.shape[1], numbers=0)
        layers = nn.BatchNorm1d(maps), nn.Linear(maps, 32), nn.SiLU(), nn.Linear(32, 1)
        self.sums = nn.Sequential(*layers)  # one tower that is wrong would drown in a mean

    def forward(self, x: Tensor) -> Tensor:
        x = x.clamp(min=0)
        on = (x > THRESHOLD).to(x)
        seen = torch.cat([(x + 1).log() / 3, on], 1)
        if self.pixels:
            seen = summed = self.towers(seen)
        else:  # of pairs of channels, where both are active, and where one is without the other
            seen = torch.cat([seen, on[:, PAIRS[0]] * on[:, PAIRS[1]]], 1)
            summed = (on.unsqueeze(2) * (1 - on.unsqueeze(1))).flatten(1, 2)  # (B, 64, 25, 25)
        logit = self.network(seen, None) + self.sums(summed.sum((2, 3)))
        return logit.squeeze(1)  # (B, 1) -> (B,)


# %%
def judge_of(kind: str, seed: int = 0) -> judges.Learner:
    """Trees, or a network: what learns from labelled jets and then scores others."""
    if kind == "trees":
        return judges.tree_judge
    network = partial(Judge, pixels=kind == "pixels")
    return partial(judges.network_judge, network, seed, CONFIG.judge_passes)


# %% [markdown]
# **Planted defects.** Real training jets with one thing wrong, in a share of the jets or by a size. The judges score them
# against validation jets on which they have not stopped. The first defect is impossible in nature, the others are what a
# mediocre generator would get wrong. In the ECAL all towers but the highest get 10 % more. (A wrong energy scale would cancel,
# as a channel is scaled to its largest pixel.) The table gives the AUC if all jets have the defect, **here the more the
# better**, and the smallest grade that is still found, with an interval above 0.5.

# %%
KINDS = ("network", "trees")
plan = [(kind, defect) for kind in KINDS for defect in DEFECTS]
jobs = [
    (judge_of(kind), samples["real"][0], DEFECTS[defect], CONFIG.grades, real)
    for kind, defect in plan
]
path = run.directory / "state" / "planted.joblib"
planted = computed_once(path, lambda: side_by_side(judges.aucs_of_grades, jobs))
planted = dict(zip(plan, planted, strict=True))
smallest = {key: judges.smallest_grade(aucs) for key, aucs in planted.items()}
frame = {}
for kind in KINDS[::-1]:
    frame[f"{kind}, AUC"] = [f"{planted[kind, d][CONFIG.grades[0]][0]:.3f}" for d in DEFECTS]
    frame[f"{kind}, smallest found"] = [smallest[kind, d] for d in DEFECTS]
pd.DataFrame(frame, list(DEFECTS)).replace(np.inf, "none").rename_axis("planted defect")

# %% [markdown]
# **Do we copy?** A jet is a copy if it lies much nearer to a training jet than to any jet that was not trained on. For each jet
# we take $\ln(d_\mathrm{train}/d_\mathrm{new})$, with the nearest of *all* training jets, in four mirrors, and the nearest of
# validation jets and half of the test jets (`task2d_diffusion/copies.py`). Of the other test jets 2 % lie below the threshold,
# by definition. The controls are such jets with some training jets among them, mirrored, a tenth of their towers erased; 0 %
# memorised is what the long training is compared with. Here few jets are tested; section 7 has all.

# %%
half = len(real["test"]) // 2
few = min(600, half, n_made)
nearer = CopyTest(jets, splits.train, np.concatenate([splits.validation, splits.test[:half]]))
new = np.concatenate([nearer(real["test"].images.dense(part)) for part in jet_towers.in_parts(np.arange(half, 2 * half), few)])  # fmt: skip
threshold = np.quantile(new, 0.02)
learned = nearer(memorised(jets, splits.train[-max(1, few // 10) :]))
suspects = {}
for share in (0.1, 0.03, 0.01, 0):
    k = round(share * few)
    suspects[f"control: {share:.0%} memorised"] = np.concatenate([learned[:k], new[k:few]])
suspects[LABELS["long"]] = nearer(samples["long"][0].images.dense(np.arange(few)))
found = {name: mean_and_error(x < threshold) for name, x in suspects.items()}
copies = {name: distance_entry([pair]) for name, pair in found.items()}
share = "share below the threshold"
results_frame({name: {share: entry} for name, entry in copies.items()}).rename_axis("copies")

# %% [markdown]
# **All arms before the judges**, also what the rejection keeps. Every generated sample has judges of its own, trained anew.

# %%
own, true = samples["long"][0], samples["real"][0]
cuts = slice(n_made * 9 // 10), slice(n_made * 9 // 10, None)
score = judges.tree_judge(*(judges.mixed(true.rows(k), own.rows(k)) for k in cuts))
pool = everything.rows(slice(n_made, None))
weight = np.exp(-score(pool))  # p / (1 - p)
# Sorted, since the draws are ordered by weight and judges learn from the first half.
kept = np.sort(rng.choice(len(weight), n_made, replace=False, p=weight / weight.sum()))
samples["rejection"] = [pool.rows(kept)]
effective, most = weight.sum() ** 2 / np.square(weight).sum(), weight.max() / weight.sum()
print(
    f"kept: {n_made:,} of {len(pool):,} jets, whose weights have an effective size of {effective:,.0f}"
)
print(f"in proportion to its weight, one jet would be drawn {n_made * most:.0f} times")

# %%
TABLE = ("long", "rejection", "diffusion", "vae", "gan", "gan_plain", "independent", "real")
sets = [name for name in ("test", "independent") if name in real]


def verdict_once(kind: str, name: str, number: int) -> list[np.ndarray]:
    """Scores of real and generated jets by a judge of one training, kept with the state of the run."""
    path = run.directory / "state" / f"verdict-{kind}-{name}-{number}.joblib"
    job = judge_of(kind, number), samples[name][number], sets, real
    return computed_once(path, lambda: judges.verdict(*job))


# %%
plan = [(kind, name, k) for kind in KINDS for name in TABLE for k in range(len(samples[name]))]
answers = dict(zip(plan, side_by_side(verdict_once, plan), strict=True))
more = {}
for kind, file in {"trees": "verdict-of-more", "network": "verdict-of-more-network"}.items():
    path = run.directory / "state" / f"{file}.joblib"
    job = judge_of(kind), everything, sets[:1], real
    scores = {"long": computed_once(path, lambda job=job: judges.verdict(*job))}
    more[kind] = compared(len(real["test"]), scores, "long")

# %% [markdown]
# ## 7. Evaluation
# **The judges' verdict** is the table below the title. Intervals (95 %) include the sampling error of the jets and, where there
# are several trainings, the spread between them and between their judges. ▲ (better) and ▼ mark a difference from the short
# diffusion trainings whose interval excludes zero. All rivals have an AUC near 1, as independent towers have: **there the
# judges are saturated**, and only FPD below, with its spread between trainings, can rank.

# %%
broken = {n: np.concatenate([x.impossible().any(axis=1) for x in samples[n]]) for n in TABLE}
comparisons = {}
for place, which in enumerate(sets):
    for kind in KINDS:
        scores = {n: [answers[kind, n, k][place] for k in range(len(samples[n]))] for n in TABLE}
        comparisons[kind, which] = compared(len(real[which]), scores, "diffusion")
both = high, low = [comparisons[kind, "test"] for kind in ("trees", "network")]
checked = np.concatenate(list(broken.values()))
print(f"impossible: {checked.sum()} of {len(checked):,} jets")
means = {key: np.array([x.values[n].mean() for n in TABLE]) for key, x in comparisons.items()}
shift = max(np.abs(x - means[kind, "test"]).max() for (kind, _), x in means.items())
print(f"AUCs of independent and of test jets differ by at most {shift:.3f}")
for kind, judge in more.items():
    print(
        f"long training, {kind} with {2 * n_made:,} generated jets: AUC {interval(judge, 'long')}"
    )

# %% [markdown]
# **Is stage one sound?** Its 27 numbers bound everything that follows. Trees get nothing but these, and tell a few jets by them.


# %%
def numbers_of(part: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Stage one's numbers of real jets, at most 10,000, and of as many draws; labels."""
    rows = getattr(splits, part)[:10_000]
    both = conditions[rows].numpy(), stage_one(len(rows), seed).cpu().numpy()
    return np.concatenate(both), np.repeat([0, 1], len(rows))


fit, stop, (x, y) = (numbers_of(part, 3000 + k) for k, part in enumerate(splits._fields))
answer = grown_trees(*fit, *stop).decision_function(x)
first_stage = compared((y == 0).sum(), {"stage one": [answer]}, "stage one").entry("stage one")
print("two-sample AUC of trees: {value:.4f} [{low:.4f}, {high:.4f}]".format(**first_stage))

# %% [markdown]
# **Copies, with all jets.** The threshold has an error of its own: 2 % of the test jets that set it lie below, of others more or
# fewer. So this chance level $p_0$ is counted anew with other test jets. With a share $p_1$ of memorised jets below the
# threshold, $(p-p_0)/(p_1-p_0)$ of the long training's jets are copies; the upper end of the interval says how many might have
# escaped. Below zero means fewer than by chance. A second threshold is that of one jet in a thousand.

# %%
new_rows = splits.test[min(2 * n_made, len(splits.test) - few) :]  # they set no threshold
jets_of = {
    "test jets: chance level": [torch.as_tensor(jet_towers.to_towers(jets, p).x) for p in jet_towers.in_parts(new_rows)],
    LABELS["long"]: [everything.images.dense(p) for p in jet_towers.in_parts(np.arange(len(everything)))],
    "memorised jets": [memorised(jets, splits.train[-few:])],
}  # fmt: skip
answers = iter(side_by_side(nearer, [(x,) for parts in jets_of.values() for x in parts]))
ratios = {name: np.concatenate([next(answers) for _ in parts]) for name, parts in jets_of.items()}
copied = {}
for level in (0.02, 0.001):
    below = {n: mean_and_error(x < np.quantile(new, level)) for n, x in ratios.items()}
    (chance, error), (own, own_error), (sure, _) = below.values()
    share = (own - chance) / (sure - chance)
    below["share of copies"] = share, np.hypot(error, own_error) / (sure - chance)
    copied[f"threshold {level:.1%}"] = {n: distance_entry([pair]) for n, pair in below.items()}
columns = [name for name in copied["threshold 2.0%"] if name != "memorised jets"]
sure = [f"{x['memorised jets']['value']:.1%}" for x in copied.values()]
print("memorised jets below the thresholds:", *sure)
results_frame(copied, columns).rename_axis("share below")

# %% [markdown]
# **Distances**, as in the CaloChallenge (arXiv:2410.21611): separation power, mean over observables in 20 bins; Fréchet and
# kernel distance of the observables (FPD, KPD, arXiv:2211.10295). With one training, the bracket of FPD is the error of its
# extrapolation to many jets, that of KPD the error of a median over batches. Precision: generated jets lie among real ones;
# recall: real ones lie among generated ones (arXiv:1904.06991), in each training.

# %%
test_table = real["test"].table.to_numpy()
plan = [(name, number) for name in TABLE for number in range(len(samples[name]))]
pairs = [(test_table, samples[name][number].table.to_numpy()) for name, number in plan]
found = dict(zip(plan, side_by_side(two_samples.table_distances, pairs), strict=True))
entries = {name: entries_of([found[name, k] for k in range(len(samples[name]))]) for name in TABLE}
frame = results_frame(entries, ["separation", "fpd", "kpd"])
for column in ("precision", "recall"):
    frame[column] = [
        each([x[column][0] for (n, _), x in found.items() if n == name]) for name in TABLE
    ]
frame.rename(index=LABELS)

# %% [markdown]
# **The worst direction: a test of our own.** Distances say how far, not whether that is more than chance. Take every
# observable and 150 fixed random combinations of two or three, and keep the worst Kolmogorov–Smirnov statistic. Its
# distribution without a difference comes from random divisions of real test jets, so having looked everywhere is paid for. The
# result is the smallest sample whose median $p$ is below 0.05: the more jets a test needs, the better they are.
#
# **Which generator is nearest to nature?** A classifier learns to name the generator of a jet and is then shown real jets: the
# mean logarithm of the probability that it gives to a generator is highest for the one whose jets look most real. The first
# training of each arm takes part, at equal compute.
#
# **Times** hold everything from stage one to towers. A single jet is the median of five, a batch is timed once. Why diffusion
# takes longer per jet in the largest batch was not examined.

# %%
units = two_samples.Standardised(test_table)
worst = two_samples.WorstDirection(units(test_table), CONFIG.null_draws)
features = [(units(samples[name][0].table.to_numpy()),) for name in TABLE]
needed = dict(zip(TABLE, side_by_side(worst.events_needed, features), strict=True))
classes = [name for name in TABLE if name not in ("rejection", "long", "real")]
fits = [samples[name][0].table.to_numpy()[: n_made // 2] for name in classes]
posterior = zip(classes, two_samples.log_posteriors(test_table, fits).T, strict=True)
log_posterior = {n: distance_entry([mean_and_error(x)]) for n, x in posterior}


# %%
def milliseconds(name: str, n: int) -> float:
    """Per jet in a batch of n, from stage one to towers."""
    new_towers(name, 0, given[:1], 0)
    times = []
    for _ in range(5 if n == 1 else 1):
        started = time.perf_counter()
        new_towers(name, 0, stage_one(n, 1), 0)
        times.append(time.perf_counter() - started)
    return 1e3 * float(np.median(times)) / n


def hardware() -> str:
    """The device, or the processor where Linux tells its name."""
    about = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", about.read_text()) if about.is_file() else []
    return names[0] if names and device_name() == "CPU" else device_name()


# %%
batches = (1, min(100, CONFIG.largest_batch), CONFIG.largest_batch)
timed = ("long", "vae", "gan", "independent")
speeds = {name: [milliseconds(name, n) for n in batches] for name in timed}
rows, smallest_size, largest_size = {}, min(worst.nulls), max(worst.nulls)
for name, n in needed.items():
    few_or_many = {smallest_size: f"<= {smallest_size}", np.inf: f"> {largest_size:,}"}
    row = rows[LABELS[name]] = {"jets needed": few_or_many.get(n, f"{n:,.0f}")}
    if name in log_posterior:
        row["log-posterior"] = "{value:.2f}".format(**log_posterior[name])
    for size, time_per_jet in zip(batches, speeds.get(name, ()), strict=False):
        row[f"ms per jet, batch of {size:,}"] = f"{time_per_jet:.3g}"
print(f"times: {hardware()}, {torch.get_num_threads()} threads")
pd.DataFrame.from_dict(rows, orient="index").fillna("").rename_axis("arm")

# %% [markdown]
# **What gives the long training away**: above the four observables with the largest separation power, below four that a
# physicist would look at first. One alone says little; the judges see all of them together.

# %%
PHYSICS = ["mass_proxy", "ecal_core", "hcal_width_eta", "track_ecal_both"]
long = samples["long"][0].table
power = pd.Series(two_samples.separations(test_table, long.to_numpy()), long.columns)
columns = [*power.drop(PHYSICS).nlargest(4).index, *PHYSICS]
titles = {column: f"diffusion: separation {power[column]:.3f}" for column in columns}
first = {n: LABELS[n] + ", first training" * (len(samples[n]) > 1) for n in timed}
shown = {first[name]: samples[name][0].table for name in timed}
figures.observables_figure(real["test"].table, shown, titles, CHANNELS)
plt.show()

# %% [markdown]
# ### Pixels
# Towers become $125\times125$ images with patterns of real training towers. *Channel by channel*
# (`task2d_diffusion/pixels.py`), each channel of a tower gets one of nearly its value, and dz and d0 lie on pixels that have a
# track; no other relation between channels is kept. *Whole towers* (the same file) take all channels from one real tower: of
# those in which the same channels are active the nearest in value, preferably with the highest value in the same channels and
# as many hits behind 255. Neither makes relations between pixels of neighbouring towers.

# %% [markdown]
# **Judged** are both kinds of images, with generated towers and with real ones, which show what the pixels alone give away;
# rows without a remark have whole towers, and marks compare with real jets. The network learns once for each row, from at most
# 1,000 generated images, and has planted defects of its own, in a share of real jets: pixels permuted within each tower, the
# first two pixel layers exchanged, a pixel with a dz but no track. No judge sees the jets of the library. In all images rules
# are checked and pairs of active pixels counted that touch across the border of two towers; their number alone is a judge, too.

# %%
n_pixels = min(n_made, 2000)
spare = splits.train[len(wanted_rows) :][: CONFIG.library]
real_pixels = jets.subset(wanted_rows[n_made // 2 : n_made // 2 + n_pixels])
long, true = (samples[name][0].rows(slice(n_pixels)) for name in ("long", "real"))
libraries = {"": WholeTowers(jets, spare), ", channel by channel": TowerLibrary(jets, spare)}
towers = {LABELS["long"]: long, "real towers": true}
plan = [(one, x, k) for one in libraries.values() for k, x in enumerate(towers.values())]
images = side_by_side(TowerLibrary.rendered, plan)
images = dict(zip([name + end for end in libraries for name in towers], images, strict=True))
images[LABELS["real"]] = real_pixels
in_pixels = {"pixels permuted": shuffled}
for name in ("swapped pixel layers", "dz without a track"):
    in_pixels[name] = partial(planted_in, defect=DEFECTS[name])
broken_images = {
    f"{name} in {share:.0%}": plant(real_pixels, seed=2, share=share)
    for name, plant in in_pixels.items() for share in CONFIG.grades
}  # fmt: skip
pixels = {name: jet_samples.of_pixels(x) for name, x in (images | broken_images).items()}
parts = wanted_rows[: n_made // 2], splits.validation, splits.test[:n_pixels]
stores = [jet_samples.of_pixels(jets.subset(rows)) for rows in parts]
others = dict(zip(("train", "validation", "test"), stores, strict=True))


# %%
plan = [(judge_of("pixels"), x, ("test",), others) for x in pixels.values()]
scores = dict(zip(pixels, side_by_side(judges.verdict, plan), strict=True))
pixel_judge = compared(len(others["test"]), scores, LABELS["real"])
plan = [(x,) for x in (others["test"].images, *images.values())]
(_, of_test), *counts = side_by_side(counted_in, plan)
broken_rules, pairs = (dict(zip(images, x, strict=True)) for x in zip(*counts, strict=True))
scores = {name: [-np.concatenate([of_test, x])] for name, x in pairs.items()}  # too few
touching = compared(len(of_test), scores, LABELS["real"])
rows = {}
for name, x in broken_rules.items():
    aucs = interval(pixel_judge, name), interval(touching, name)
    rows[name] = *aucs, f"{pairs[name].mean():.1f}", f"{x.sum():,} of {len(x):,}"
columns = ["network", "number of pairs", "pairs across borders, mean", "impossible"]
frame = pd.DataFrame.from_dict(rows, "index", columns=columns)
display(frame.rename_axis("images: AUC of"))
frame = {}
for name in in_pixels:
    planted["pixels", name] = {g: pixel_judge.interval(f"{name} in {g:.0%}") for g in CONFIG.grades}
    smallest["pixels", name] = judges.smallest_grade(planted["pixels", name])
    frame[name] = f"{planted['pixels', name][CONFIG.grades[0]][0]:.3f}", smallest["pixels", name]
columns = ["network, AUC", "smallest share found"]
frame = pd.DataFrame.from_dict(frame, "index", columns=columns).replace(np.inf, "none")
frame.rename_axis("planted in pixels: more is better")

# %%
opening, size = {}, f"{n_made // 2:,} jets"
for name in sorted(TABLE, key=lambda name: high.interval(name)[0]):
    of_images = [judge for judge in (pixel_judge, touching) if LABELS[name] in judge.values]
    of_images.sort(key=lambda judge: judge.interval(LABELS[name])[0])
    opening[LABELS[name]] = {
        f"trees, {size}": interval(high, name),
        f"trees, {4 * n_made // 2:,} jets": interval(more["trees"], name) if name == "long" else "",
        f"network, {size}": interval(low, name),
        "images": interval(of_images[-1], LABELS[name]) if of_images else "",
    }
update_results(pd.DataFrame.from_dict(opening, "index").rename_axis("AUC: less is better"))

# %%
shown = {"test jets": jets.subset(splits.test[:2])}
for name in timed[:3]:
    shown[first[name]] = libraries[""].rendered(samples[name][0].rows(slice(2)), 0)
fig = figures.jet_figure(shown, CHANNELS)
plt.close(fig)
update_display(fig, display_id="jets")  # below the title

# %% [markdown]
# The figure below the title shows such images, a colour per channel. Generated jets of a row share the numbers of stage one, so
# they differ only in where the generators put things.

# %% [markdown]
# ## 8. What goes wrong, and what the cure costs
# ### Complexity bias and posterior collapse of the VAE
# A VAE pays for every bit that its latent numbers carry, and its likelihood treats towers as independent given them. What is
# complex, many small deposits in a pattern of their own, is dear to say and is left out: the complexity bias. Stage one would
# hide it by fixing the number of active towers, so **these VAEs generate without stage one**. At a larger $\beta$ latent
# numbers are not worth their KL and fall back to the prior. The cure is *free bits* (arXiv:1606.04934): one nat of each costs
# nothing.
#
# *Complex* jets have more active towers than the upper decile of real ones, *simple* ones fewer than the lower. How many active
# towers has the reconstruction, drawn from the decoder for the latent numbers of a real jet, in % of that jet's? An average jet
# as the answer gives too few to complex jets and too many to simple ones (regression to the mean); a bias *against complexity*
# is what complex jets lose while simple ones gain nothing. Of new jets: how many are complex and how large is the spread of the
# number of active towers, in % of real ones, and which share of active towers has an active neighbour? The *untrained* VAE
# draws independent towers, but for the random first weights of its latent numbers. *Test jets* and the short *diffusion*, whose
# number of active towers comes from stage one, are shown for comparison.

# %%
SWEEP = {
    "beta 0.1": (("beta", 0.1),), "beta 1": (), "beta 10": (("beta", 10.0),),
    "beta 10, free bits": (("beta", 10.0), ("free_bits", 1.0)),
}  # fmt: skip
sweep = {
    name: [Job("vae", seed, CONFIG.sweep, (*options, ("alone", True))) for seed in CONFIG.seeds]
    for name, options in SWEEP.items()
}
run_jobs([job for trainings in sweep.values() for job in trainings])
sweep["untrained"] = [Job("vae", seed, 0, (("alone", True),)) for seed in CONFIG.seeds]

# %%
hit = batch_of(splits.validation[:500]).hit.cpu().numpy()
active = hit.sum((1, 2, 3))
lowest, highest = np.quantile(active, [0.1, 0.9])  # a tenth of the jets beyond each, but for ties
tenths = {"complex": active > highest, "simple": active < lowest}


def drawn_hits(decoded: Likelihood, generator: torch.Generator) -> np.ndarray:
    """Active towers (B, 8, 25, 25), drawn without stage one; dz and d0 only where a track is."""
    log_odds, *_, first = decoded
    hits = (log_odds + logistic(log_odds, generator) > 0).float()
    one = first.new_ones(first.shape[:2])
    hits = hits.maximum(drawn_highest(on_tracks(first, hits[:, :1]), one, generator))
    hits[:, DZ : D0 + 1] *= hits[:, TRACK : TRACK + 1]
    return hits.cpu().numpy()


def of_new(hits: np.ndarray) -> dict[str, tuple[float, float]]:
    """How complex new jets (n, 8, 25, 25) are, in %; with errors."""
    counts = hits.sum((1, 2, 3))
    spread = 100 * counts.std() / active.std()
    return {
        "new: complex": mean_and_error(100 * (counts > highest) / tenths["complex"].mean()),
        "new: spread": (spread, spread / np.sqrt(2 * len(counts))),
        "new: towers with a neighbour": mean_and_error(
            100 * (hits * next_to(hits > 0)).sum((1, 2, 3)) / counts
        ),
    }


@torch.no_grad()
def biases_of(job: Job) -> dict[str, tuple[float, float]]:
    """What latent numbers carry (arXiv:1509.00519), what becomes of complexity; with errors."""
    model, generator = restored(job), torch_generator(job.seed, 3)
    batch = batch_of(splits.validation[:500])
    posterior, condition = model.encode(batch.v, batch.condition), batch.condition
    latent = normal(posterior[0], generator)
    new, again = (drawn_hits(model.decode(x, condition), generator) for x in (latent, posterior[0]))
    kept = 100 * again.sum((1, 2, 3)) / active
    carried = {
        "active latent numbers": ((posterior[0].var(0) > 0.01).sum().item(), 0.0),
        "KL, nats per jet": mean_and_error(kl_divergence(*posterior).sum(1).cpu().numpy()),
    }
    towers = {f"towers of {name} jets": mean_and_error(kept[x]) for name, x in tenths.items()}
    return (carried if job.jets else {}) | towers | of_new(new)


# %%
single = {name: [biases_of(job) for job in ones] for name, ones in sweep.items()}
biases = {name: entries_of(ones) for name, ones in single.items()}
for name, ones in (("diffusion", samples["diffusion"]), ("test jets", [real["test"]])):
    towers = [one.images.dense(np.arange(few)) for one in ones]
    single[name] = [of_new((x > THRESHOLD).float().numpy()) for x in towers]
columns = list(biases["beta 1"])
frame = {
    name: [each([one[c][0] for one in ones]) if c in ones[0] else "" for c in columns]
    for name, ones in single.items()
}
pd.DataFrame.from_dict(frame, "index", columns=columns).rename_axis("trainings, one by one")

# %% [markdown]
# ### Mode collapse of the GAN
# **On a toy** of 25 known modes the loss of modes can be counted: a mode is found if one in 500 points lies within three
# widths. Uniform points find nearly all modes, too, so the share of points that lie so near to any mode is shown as well
# ($1-e^{-9/2}$ is expected of the toy itself). The plain GAN has Adam's usual momentum and no penalty; the cure is no momentum
# and the penalty that the critic of jets has as well, with less weight.


# %%
def small_network(outputs: int) -> nn.Sequential:
    """Of pairs of numbers (B, 2), with three hidden layers."""
    sizes = pairwise((2, 64, 64, 64))
    hidden = [layer for a, b in sizes for layer in (nn.Linear(a, b), nn.LeakyReLU(0.2))]
    return nn.Sequential(*hidden, nn.Linear(64, outputs))


def train_toy(cured: bool, seed: int, steps: int, looks: int = 20) -> list[np.ndarray]:
    """Points (4000, 2) of a GAN after each of ``looks`` equal parts of its training."""
    seed_everything(seed)
    generator, critic = small_network(2), small_network(1)
    momenta, points = (0.0, 0.99) if cured else (0.9, 0.99), []
    players = [torch.optim.Adam(one.parameters(), 1e-3, momenta) for one in (critic, generator)]
    for step in range(steps):
        for player in players:  # the rate falls in the second half
            player.param_groups[0]["lr"] = 1e-3 * min(1, 2 * (1 - step / steps))
        real = toy.drawn_points(128)
        fake = generator(torch.randn(128, 2))
        loss = softplus(-critic(real)).mean() + softplus(critic(fake.detach())).mean()
        if cured:
            loss = loss + 0.02 * gradient_penalty(lambda x, _: critic(x), real, None)
        players[0].zero_grad()
        loss.backward()
        players[0].step()
        players[1].zero_grad()
        softplus(-critic(generator(torch.randn(128, 2)))).mean().backward()
        players[1].step()
        if (step + 1) * looks // steps > step * looks // steps:
            points.append(generator(torch.randn(4000, 2)).detach().numpy())
    return points


# %%
plan = [(cured, seed, CONFIG.toy_steps) for cured in (False, True) for seed in range(3)]
looks = side_by_side(train_toy, plan)
looks = {"plain": looks[:3], "cured": looks[3:]}
points = {name: [look[-1] for look in ones] for name, ones in looks.items()}
points["uniform points"] = list(rng.uniform(-2.5, 2.5, (3, 4000, 2)))
seed_everything(0)
points["the toy itself"] = [toy.drawn_points(4000).numpy() for _ in range(3)]
toy_modes = {name: [toy.modes_found(x) for x in ones] for name, ones in points.items()}
toy_shares = {name: [toy.share_at_modes(x) for x in ones] for name, ones in points.items()}
fig, axes = plt.subplots(1, 3, figsize=(9, 2.7))
for (name, ones), color in zip(looks.items(), plotting.PALETTE, strict=False):
    for number, look in enumerate(ones):
        steps = np.arange(1, len(look) + 1) * CONFIG.toy_steps / len(look)
        label = name if number == 0 else None
        axes[0].plot(
            steps, [toy.modes_found(x) for x in look], color=color, marker=".", label=label
        )
axes[0].set(xlabel="updates", ylabel="modes found of 25", ylim=(0, 26))
axes[0].legend()
for axis, name in zip(axes[1:], looks, strict=True):
    axis.plot(*points[name][0][:1500].T, ".", ms=2, alpha=0.5)
    axis.plot(*toy.MODES.T, "o", mfc="none", color=plotting.PALETTE[1], ms=7)
    axis.set(title=name, xlim=(-3, 3), ylim=(-3, 3))
plt.show()
frame = {name: (each(toy_modes[name]), each(ones)) for name, ones in toy_shares.items()}
columns = ["modes found of 25", "share of points at modes"]
pd.DataFrame.from_dict(frame, "index", columns=columns).rename_axis("toy, three trainings")

# %% [markdown]
# Early on the plain GAN finds few modes, and their number goes up and down: mode collapse. Later it finds most, but none of its trainings ends
# with all. Every cured training finds most of them from the beginning and ends with all; more of its points lie at modes, though
# not as many as of the toy itself.
#
# **On jets: are both kinds made?** Half of the stand-ins are top quarks, half QCD jets. Trees learn to distinguish them from
# one half of the labelled independent jets; their AUC is measured on the other half. The table has the share of jets that they
# call like a top (probability above 0.8) and like QCD (below 0.2), in each training. A generator that drops a mode loses one of
# both. A classifier extrapolates on jets as unnatural as those of the rivals, so only large changes mean something.

# %%
kinds = {}
if fresh:  # the only jets with a label
    x = real["independent"].table.to_numpy()
    y, (a, b) = fresh.y[: len(x)], (len(x) * 2 // 5, len(x) // 2)
    tagger = grown_trees(x[:a], y[:a], x[a:b], y[a:b])
    auc = roc_auc(y[b:], tagger.decision_function(x[b:]))
    print(f"top or QCD, AUC of the other half: {auc:.3f}")
    for name in TABLE:
        top = [tagger.predict_proba(one.table.to_numpy())[:, 1] for one in samples[name]]
        kinds[name] = {"like a top": [(p > 0.8).mean() for p in top], "like QCD": [(p < 0.2).mean() for p in top]}  # fmt: skip
frame, rarest = {}, {}
for name, shares in kinds.items():
    frame[LABELS[name]] = {kind: each(x) for kind, x in shares.items()}
    rarest[name] = min(min(x) / np.mean(kinds["real"][kind]) for kind, x in shares.items())
display(pd.DataFrame.from_dict(frame, "index").rename_axis("share of jets"))

# %% [markdown]
# The trainings of the cured GAN end at different mixtures: one makes hardly any jets like a top, another hardly any like QCD,
# while those of the VAE agree and make both. In this sense the GAN drops modes. The plain GAN makes few jets like QCD, too, but
# so do independent towers, from which it starts. The diffusion model makes both kinds, those like a top somewhat too often and
# those like QCD too rarely; rejection brings both shares nearer to the real ones.
#
# **What the cure costs on jets.** Recall, in the table of distances, asks for more than two modes: the share of real jets that
# lie among generated ones. On jets the cure is the penalty and a critic that sees the spread over a batch; momentum is zero
# with and without it. Its time is measured with nothing else running, loss and gradients of a batch for each GAN in turn.

# %%
players = [build(*ARMS[name]).to(DEVICE) for name in ("gan", "gan_plain")]
batch, seconds = batch_of(splits.train[: CONFIG.batch]), np.zeros((13, 2))
for turn, one in np.ndindex(seconds.shape):
    started = time.perf_counter()
    adversarial_loss(players[one], batch, torch_generator(0, turn, DEVICE)).backward()
    players[one].critic.out.weight.grad.sum().item()  # waits for a GPU
    seconds[turn, one] = time.perf_counter() - started
cure_time = distance_entry([mean_and_error(np.divide(*seconds[1:].T))])  # the first one warms up
print("time of loss and gradients, ratio cured / plain:", format_entry(cure_time))

# %% [markdown]
# ## 9. What was tried
# Ablations of the short diffusion training, three trainings each, judged by trees on validation jets: squared errors with flow
# matching's or EDM's noise levels and weights in place of the likelihood, and a noise level per group of channels in place of
# one for all. These trees learn from half as many jets as in section 7, so the same diffusion has a lower AUC here.

# %%
names = ("diffusion", *ABLATIONS)
parts = [one.rows(slice(n_made // 2)) for name in names for one in samples[name]]
plan = [(judges.tree_judge, one, ("calibration",), real) for one in parts]
answers = iter(side_by_side(judges.verdict, plan))
scores = {name: [next(answers)[0] for _ in CONFIG.seeds] for name in names}
ablation = compared(len(real["calibration"]), scores, "diffusion")
ablation.table().rename(index=LABELS).rename_axis("AUC of trees, validation jets: less is better")

# %% [markdown]
# **Given up earlier**, on validation jets: ranking all channels independently, which gave jets a dz without a track; squeezing
# each $5\times5$ patch of towers through one vector; two clouds, with the highest towers in the tail of one; chances that do
# not add up to the number of hits, with which the sampler made too many; a VAE whose latent numbers come in through the network
# alone, and a normal likelihood for a variable with two peaks.

# %% [markdown]
# ## 10. What this run shows
# **The aims** were set before the run. The floor is real training jets in place of generated ones; its FPD is corrected for
# bias and may be below zero, so the aim is twice the upper limit of its interval. "The strongest judge" is the one with the
# highest AUC, whatever number of jets it learned from.

# %%
few_jets, many_jets = (f"{n:,} + {n:,} jets" for n in (n_made // 2, 2 * n_made))
judged = {f"trees, {few_jets}": high, f"network, {few_jets}": low}
judged |= {f"{kind}, {many_jets}": judge for kind, judge in more.items()}
auc = {name: judge.interval("long")[0] for name, judge in judged.items()}
strongest, rejected = max(auc, key=auc.get), max(x.interval("rejection")[0] for x in both)
aims = {
    f"AUC of trees, {few_jets}": (high.interval("long")[0], 0.75),
    f"AUC of the strongest judge ({strongest})": (auc[strongest], 0.80),
    "with rejection, AUC of the stronger judge": (rejected, 0.62),
    "FPD": (entries["long"]["fpd"]["value"], 2 * entries["real"]["fpd"]["high"]),
}
rows = [
    (f"{x:.3f}", f"{aim:.3f}", "reached" if x <= aim else "not reached") for x, aim in aims.values()
]
pd.DataFrame(rows, list(aims), ["this run", "at most", "aim"]).rename_axis("long training")

# %% [markdown]
# **Checks computed in this run.** The first four have to hold, or the tests mean nothing and the run is not published. The
# others are questions. Their answers are computed, and may be no.

# %%
columns = "active latent numbers", "towers of complex jets", "towers of simple jets", "new: complex"
latents, complex_towers, simple_towers, complex_new = (
    {name: biases[name][column] for name in SWEEP} for column in columns
)
fpd, recall = ({n: entry[key] for n, entry in entries.items()} for key in ("fpd", "recall"))
all_have_it = CONFIG.grades[0]
claims = {
    "no generated jet is impossible, in towers of any arm or images of the long training":
        not any(x.any() for x in broken.values()) and not any(x.any() for x in broken_rules.values()),
    "trees find a dz without a track, planted in all jets, with an AUC above 0.9": planted["trees", "dz without a track"][all_have_it][1] > 0.9,
    "neither trees nor network give real jets an AUC above 0.53": max(c.interval("real")[0] for c in both) < 0.53,
    "the copy test finds a sample of which 10 % are memorised":
        copies["control: 10% memorised"]["low"] > copied["threshold 2.0%"]["test jets: chance level"]["high"],
}  # fmt: skip
findings = {
    "fewer than 0.5 % of the long training's jets are copies, by the upper limit at both thresholds":
        all(row["share of copies"]["high"] < 0.005 for row in copied.values()),
    "images: the network finds pixels permuted within towers": planted["pixels", "pixels permuted"][all_have_it][1] > 0.5,
    "images: the network finds less in patterns of whole towers than in those of single channels (real towers)":
        pixel_judge.better("real towers", "real towers, channel by channel"),
    "images: the number of pairs across borders alone reveals patterns of whole towers (real towers)": touching.interval("real towers")[1] > 0.5,
    "trees, equal compute: the diffusion model beats the VAE and the GAN": all(high.better("diffusion", x) for x in ("vae", "gan")),
    "trees and network: the long diffusion training beats the short ones": all(c.better("long", "diffusion") for c in both),
    "trees and FPD: rejection improves on the long training": high.better("rejection", "long") and fpd["rejection"]["high"] < fpd["long"]["low"],
    "FPD: the VAE is nearer to real jets than independent towers are": fpd["vae"]["high"] < fpd["independent"]["low"],
    "FPD: the GAN is nearer to real jets than independent towers are": fpd["gan"]["high"] < fpd["independent"]["low"],
    "VAE: fewer latent numbers are active at beta 10 than at beta 1, and free bits activate them again":
        latents["beta 10"]["high"] < min(latents[name]["low"] for name in ("beta 1", "beta 10, free bits")),
    "VAE, beta 1: complex jets lose towers in their reconstruction": complex_towers["beta 1"]["high"] < 100,
    "VAE, beta 1: simple jets do not clearly gain towers, as by regression to the mean they would": simple_towers["beta 1"]["low"] <= 100,
    "VAE: complex jets lose more towers at beta 10 than at beta 1": complex_towers["beta 10"]["high"] < complex_towers["beta 1"]["low"],
    "VAE, every beta: complex jets are rarer among new jets than among real ones": all(x["high"] < 100 for x in complex_new.values()),
    "toy: every training of the cured GAN ends with all modes": min(toy_modes["cured"]) == 25,
    "toy: no training of the plain GAN does": max(toy_modes["plain"]) < 25,
    "toy: in the middle of each plain training fewer modes are found than in any cured one":
        max(toy.modes_found(x[len(x) // 2 - 1]) for x in looks["plain"]) < min(toy.modes_found(x[len(x) // 2 - 1]) for x in looks["cured"]),
    "toy: in the end more points of every cured GAN lie at modes than of any plain one":
        min(toy_shares["cured"]) > max(toy_shares["plain"]),
    "jets: in some training of the cured GAN tops or QCD jets have less than a third of their real share":
        bool(kinds) and rarest["gan"] < 1 / 3,
    "jets: in every training of the VAE both have more": bool(kinds) and rarest["vae"] > 1 / 3,
    "jets: the cured GAN has more recall than the plain one": recall["gan"]["low"] > recall["gan_plain"]["high"],
}  # fmt: skip
show_claims(claims | findings)
claims |= {
    sentence if true else f"not shown: {sentence}": True for sentence, true in findings.items()
}

# %% [markdown]
# ## 11. Weights and metrics
# Weights are stored as safetensors, with the quantiles of the representation beside them. `task2d_diffusion.onnx` is the
# network that judges images: official ones (8, 125, 125) go in, the probability that a jet was generated comes out. `make score
# TASK=task2d_diffusion DATA=file.h5` thus shows what it makes of any file. It was trained against this generator with pixels
# of whole towers: of other generators it knows only what they have in common.

# %%
warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # sizes are constants here
about = {"profile": PROFILE, "data": dataset.description, "data_source": dataset.source}
fit, stop, _ = judges.divided(pixels[LABELS["long"]], others)
network = judges.trained_network(partial(Judge, True), 0, CONFIG.judge_passes, fit, stop)
graph = nn.Sequential(network.cpu(), nn.Sigmoid())
raw = [jets.dense(splits.validation[:n]) for n in (8, 1, 3)]
run.save_onnx(run.task, graph, raw, about | {"kind": "generated_or_real"}, tolerance=1e-4)
about |= {"task": run.task, "source": dataset.source}
save_weights(run.directory / "codec.safetensors", codec.tables(), about)
for name, job in {"long": jobs_of("long")[0], "totals": totals}.items():
    path = run.directory / f"{name}_seed{job.seed}.safetensors"
    save_weights(path, restored(job), about | {"arm": name, "seed": job.seed})


# %%
def described_arm(name: str) -> dict:
    """Results of one arm for metrics.json."""
    times = zip(batches, speeds.get(name, ()), strict=False)
    info = {"description": LABELS[name]} | {f"milliseconds_batch_{n}": t for n, t in times}
    aucs = {"c2st_auc_high": high.entry(name), "c2st_auc_low": low.entry(name)}
    return aucs | entries[name] | {"info": info}


results = {name: described_arm(name) for name in TABLE}
variants = {
    "independent_sample": {name: comparisons["trees", s].entry(name) for s in sets[1:] for name in TABLE},
    "independent_sample_towers": {name: comparisons["network", s].entry(name) for s in sets[1:] for name in TABLE},
    "smallest_defect_found": {": ".join(k): g for k, g in smallest.items() if np.isfinite(g)},
    "copies": copies, "copies_of_all_jets": copied, "stage_one": first_stage,
    "judges_with_more_jets": {kind: judge.entry("long") for kind, judge in more.items()}, "like_top_or_qcd": kinds,
    "log_posterior": log_posterior, "pixels": {name: pixel_judge.entry(name) for name in pixels},
    "pixels_touching_across_towers": {name: touching.entry(name) for name in images},
    "toy_modes": toy_modes, "toy_points_at_modes": toy_shares, "vae_sweep": biases,
    "seconds_of_an_update_cured_to_plain": cure_time,
    "ablations": {name: ablation.entry(name) for name in names},
}  # fmt: skip

# %%
metrics = run.save_metrics(
    title="Task 2d: diffusion model of jets, judged by tested judges",
    data={
        "source": dataset.source, "fingerprint": dataset.fingerprint,
        "description": dataset.description, **{p: len(r) for p, r in splits._asdict().items()},
    },
    published=[f"{run.task}.onnx", "long_seed0.*", "totals_seed0.*", "codec.*"],
    seeds=list(CONFIG.seeds),
    headline="c2st_auc_high",
    metrics={key: entry for key, entry in results["long"].items() if key != "info"},
    baselines={"independent": results["independent"]},
    arms={name: results[name] for name in TABLE if name not in ("long", "independent", "real")},
    floors={"real": results["real"]},
    variants=variants,
    claims={sentence: bool(true) for sentence, true in claims.items()},
    parameters=sizes["diffusion"]["parameters"],
    flops=flops["diffusion"] * (len(level_grid(lag=0)) - 1),
)  # fmt: skip

# %% [markdown]
# ## 12. Discussion, limits, references
# **Choices.** A rule that holds without exception is not worth a network's capacity, and one forgotten rule gives every jet
# away: hence constraints by construction. All generators start at independent towers and keep stage one's numbers, so training is
# spent on relations alone.
#
# **What was found.** More training and rejection both help the diffusion model (section 7): by the trees, which also select,
# about equally; by the network, FPD, KPD and separation power rejection brings half of what the longer training does, or less.
# What is left is not hidden from our own test, which needs few jets to unmask the long training, and a jet costs it much more
# time than the VAE or the GAN. Some of it begins in stage one, whose numbers trees can distinguish from real ones, if not well.
# Both judges find every planted defect at full grade but one: neither sees 10 % more in all ECAL towers below the highest, so a
# 10 % softer sharing between the hottest tower and the rest would pass. Which judge finds smaller grades depends on the defect.
# No copying was found. Within the ablations flow matching's weighting does as well as the likelihood and EDM's is worse;
# trainings with a noise level per group differ too much to say. By FPD the VAE comes a little nearer to real jets than
# independent towers; the trainings of the GAN differ too much to say. A reason may be that both have to say a whole jet at
# once, and the diffusion model only what is missing from a noisy one.
#
# *Images.* Channel by channel, patterns give away real towers as easily as generated ones. In whole towers the network finds
# less, so part of what it saw were relations between channels inside a tower. Still most images are recognised, also those of
# real towers. One fault is known: far too few pixels touch across the borders of towers, and their number alone reveals more
# images than the network does. That network is a weak judge. It learned from 1,000 generated images, once for each row, and
# finds more in real towers than in generated ones, which may be chance. It is blind to a single pixel with a dz and no track,
# which is why that rule is counted and not judged.
#
# *What goes wrong* (section 8). At the largest $\beta$ the latent numbers fall back to the prior, and complex jets lose many of
# their towers, nearly as before training: posterior collapse. A smaller $\beta$ or free bits undo it. At $\beta=1$ complex jets
# still lose some towers, but simple ones gain some, as by regression to the mean: in reconstructions a complexity bias beyond
# that is not shown. Among new jets complex ones are all but missing at every $\beta$,
# and the number of active towers spreads far less than in real jets, which a smaller $\beta$ does not steadily cure: what
# latent numbers say of real jets is not what their prior draws, after so short a training at least. On the toy the plain GAN
# collapses to a few modes and in the end still lacks some; the cured one has all of them. On jets the trainings of a GAN end at
# different mixtures of tops and QCD jets. That the cure gives more recall is not shown, and after so few updates neither GAN has much.
#
# **Limits.** Sums and occupancies come from stage one for all generators, the trivial one included: the arms differ only in
# where they put what it says. A judge sees more with more jets: the floor has the same number, and trees with four times as
# many find clearly more. The long training has no spread between trainings, so its interval includes the sampling error of the
# jets alone, not even another training of its judges; principles are compared by the short ones, which see less than half of
# the training jets once, and their order may change with more compute. Architectures are similar, not equal: most parameters of
# the diffusion network (share in section 4) are in its direct answer to what it sees of a noisy jet, which the others lack, and
# what it owes to them was not measured. Stand-in jets say how generators compare on the same jets, not how they do on the
# official files.
#
# **References** stand where they are used. Besides: J. Ho et al., *Denoising diffusion*, arXiv:2006.11239; V. Mikuni, B. Nachman,
# *CaloScore*, arXiv:2206.11898; O. Amram, K. Pedro, *CaloDiffusion*, arXiv:2308.03876.
