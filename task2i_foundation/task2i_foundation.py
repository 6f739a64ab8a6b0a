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
# **Task.** Build an encoder by self-supervised learning that maps jets to latent vectors. From the latent vectors of
# labelled jets classify $y$ and estimate $p_T$ and $m$, with heads as shallow as possible: ROC curve and AUC for the
# class, true against predicted values with MSE and F1 for the regressions. Bonus: a mixture of a variational, a
# contrastive and a supervised expert, distilled into one encoder that is better at all three.

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
# **What was found.** The encoder is a small transformer, trained without labels and then frozen; validation jets chose the
# contrastive pre-training over a variational one, and a head with one hidden layer. Every arm also reads 136 simple *shapes* of the
# jet. To these the features add in $y$, $m$ and $p_T$, under a linear head as well. The self-supervised encoder is better than
# boosted trees on the shapes for $m$ and $p_T$, and level with them for $y$. Alone, under a linear head, its features know less of
# $y$ and $m$ than the shapes, but more of $p_T$, and far more of all three than those of a transformer with random weights.
#
# **The bonus.** The mixture of three experts is better than each of them for $y$, $m$ and $p_T$. A student that has the trunks of
# transformer and convolution side by side holds all of it: it is level with the mixture, and better than every expert and than trees
# for all three. But the same network, continued on labels without any teacher, is level with it for $y$ and $m$ and better for
# $p_T$. So the gain comes from joining trunks that have learned different things, and the teacher's answers add nothing to it. A
# student with the transformer alone stays where it started.
#
# Brackets are 95 % intervals over jets and trainings; ▲, ▼ and = mean better, worse, or no measurable difference, compared
# with the self-supervised encoder. The table has the test jets of the task; what the text asserts is checked on the independent
# sample of section 2, which is larger.

# %% [markdown]
# ## 1. Set-up

# %%
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from itertools import combinations, product
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import display
from numpy.random import Generator
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.manifold import TSNE
from torch import nn
from torch.nn import functional

from data.loaders import load_jets8, load_quark_gluon, load_top_mass
from data.loaders.jets8 import CHANNELS
from e2e_utils import paths, plotting
from e2e_utils.boosting import tuned_trees
from e2e_utils.checkpoints import computed_once, save_weights
from e2e_utils.comparison import Comparison
from e2e_utils.complexity import complexity
from e2e_utils.evaluation import load_metrics
from e2e_utils.machine import make_accelerator, pick_device
from e2e_utils.metrics import r_squared, roc_auc, root_mean_squared_error
from e2e_utils.notebook import load_definitions, show_claims, start_run, update_results
from e2e_utils.parallel import side_by_side
from e2e_utils.seeds import epoch_generator, seed_everything, torch_generator
from e2e_utils.sparse_images import SparseImages
from e2e_utils.splits import Splits, split
from e2e_utils.training import Training

# %% tags=["parameters"]
PROFILE = os.environ.get("PROFILE", "quick")  # smoke (tests), quick, standard, full
DATA_SOURCE = os.environ.get("DATA_SOURCE", "auto")  # auto, official, standin
DATA = os.environ.get("DATA") or None  # other files of the official schema, comma separated

# %% [markdown]
# A profile changes the number of jets, passes and trainings, never the method. The notebook is longer than most: the bonus
# needs three experts, four students and networks that learn from labels only, and section 9 takes the student to other
# problems.


# %%
@dataclass(frozen=True)
class Config:
    """What a profile changes."""

    passes: int  # of the variational pre-training, one view each; the contrastive one makes half as many, with two
    updates: dict[str, int]  # of trainings with labels
    trainings: int = 3  # of every arm, each with experts of its own
    rates: tuple[float, ...] = (3e-3, 1e-2)
    few_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)  # on other jets, with few labels
    batch_size: int = 128  # jets per update, with labels or half with and half without
    transfer_labels: tuple[int, ...] = (100,)
    shown: int = 1500  # jets of the map and of the generative page
    head_steps: int = 400


# %%
CONFIGS = {
    "smoke": Config(2, {"expert": 4, "student": 4, "transfer": 2}, 2, (3e-3, 1e-3), (3e-3,), 16, (32,), 40, 20),
    "quick": Config(
        2, {"expert": 20, "student": 10, "transfer": 10}, 2, (3e-3,), (3e-3,),
        shown=200, head_steps=60,
    ),
    "standard": Config(12, {"expert": 1500, "student": 1000, "transfer": 100}),
    "full": Config(200, {"expert": 6000, "student": 6000, "transfer": 1000}, 5, batch_size=512),
}  # fmt: skip
CONFIG, DEVICE = CONFIGS[PROFILE], pick_device()
run = start_run("task2i_foundation", PROFILE, DATA_SOURCE)
plotting.set_style()
print(run.summary())

# %% [markdown]
# **The trunk is a network of task 2g.** Its notebook explains and tests the towers, the views, the 136 jet shapes, SimCLR and two
# networks; its definitions are loaded here, so that both notebooks speak of the same networks and the same trees. Of the two,
# the small transformer gains most from pre-training there, so it is the encoder here.

# %%
TASK2G = load_definitions("task2g_ssl_vit")
GRID, N_CHANNELS, SUMS = TASK2G.GRID, TASK2G.N_CHANNELS, TASK2G.SUMS  # 19 x 19 towers, 8 x 5 sums
VIEWS = TASK2G.Views(dropout=0.3)  # those that task 2g's short pre-trainings prefer
WITH_LABELS = TASK2G.Views(dropout=0.0)  # jets are scored with all their hits
TARGETS = ("y", "m", "pT")

# %% [markdown]
# ## 2. Data
# `load_jets8` reads the official files where they are on disk, and otherwise stand-in jets simulated with Pythia 8 and
# a detector model in the same schema (`data/README.md` compares them with official ones). Experts learn from the
# unlabelled file. Of the labelled jets 75 % train, 5 % settle every choice, and 20 % are the test set, scored once in
# section 7. It is the split of task 2g, which shows the spectra of $m$ and $p_T$. Stand-in jets with another seed are
# the **independent sample**: nothing is chosen on them either, and there are more of them. Both jets of a simulated event are
# kept, and the split does not know which ones belong together; no event reaches into the independent sample.


# %%
class Jets(NamedTuple):
    """Labelled jets of one kind, what is known of them, and their parts."""

    images: SparseImages
    truth: np.ndarray  # (N, 3): class, mass and transverse momentum in GeV; NaN: not known
    shapes: np.ndarray  # (N, 136)
    train: np.ndarray  # rows
    validation: np.ndarray
    test: np.ndarray
    scale: tuple[np.ndarray, np.ndarray]  # mean and spread of shapes; no label enters


def with_shapes(images: SparseImages, columns: Sequence[np.ndarray], parts: Splits, seen: np.ndarray | None = None) -> Jets:  # fmt: skip
    """Jets with their shapes; ``columns``: class, m and pT; ``seen``: shapes that set the scale (training jets)."""
    shapes = TASK2G.shapes_of(images, np.arange(len(images)))
    seen = shapes[parts.train] if seen is None else seen
    scale = seen.mean(0), seen.std(0).clip(1e-3)
    return Jets(images, np.stack(columns, 1).astype(float), shapes, *parts, scale)


# %%
dataset = load_jets8(DATA_SOURCE, PROFILE, path=DATA, require_both_classes=True)
unlabelled, splits = dataset.unlabelled, dataset.splits(validation=0.05)
of_unlabelled = TASK2G.shapes_of(unlabelled, np.arange(min(5000, len(unlabelled))))
main = with_shapes(dataset.images, (dataset.y, dataset.m, dataset.pt), splits, of_unlabelled)
assert np.isfinite(main.truth).all(), "masses missing: take the file with m and pT"
sets = {"jets": main}  # what trainings with labels read
samples = {"test": main}  # what is scored: the test rows
if dataset.source == "standin":
    fresh = load_jets8(DATA_SOURCE, PROFILE, require_both_classes=True, fresh=True)
    none, every = np.arange(0), np.arange(len(fresh))
    columns, parts = (fresh.y, fresh.m, fresh.pt), Splits(none, none, every)
    samples["independent"] = with_shapes(fresh.images, columns, parts, of_unlabelled)
judge = list(samples)[-1]  # the sample on which claims are checked
print({part: len(rows) for part, rows in splits._asdict().items()}, len(samples[judge].test))

# %% [markdown]
# Every channel of every image is scaled so that its largest pixel is 255. With the energies the direct way to $p_T$ is
# lost; what remains are multiplicities, shares and angles, of which $\Delta R\approx2m/p_T$ is one.
#
# ## 3. Model
# **Latent vector.** Active pixels become $19\times19$ towers that keep sums, numbers of hits, centres of gravity and
# dispersions. The transformer reads the 32 most active ones, each with its position, through three blocks of attention; mean and
# maximum of the last tokens are 96 features. The *latent vector* of a jet is these features and its 136 shapes
# (multiplicities, widths, rings of each channel). The shapes are known in closed form, so every arm and the trees get
# them: an encoder is worth something only if its features add to them, and more than those of the same transformer with
# random weights, which is a control.
#
# **Heads.** *Linear*: logistic regression for $y$, ridge regression for $m$ and $p_T$, by the recipe of task 2g: shapes in units
# of their spread over unlabelled jets, features in units of theirs over training jets, both within five units of the mean. *One
# hidden layer* of 64 units beside the linear one. The module is that of task 2g but for the limit on features, so that a frozen
# encoder with a fitted head and a network trained from end to end are the same object, with the same export.


# %%
def scales_of(jets: Jets) -> tuple[np.ndarray, np.ndarray]:
    """Mean and spread of m and pT of the training jets, (2,) each; 0 and 1 where not known."""
    values = jets.truth[jets.train, 1:]
    known = np.isfinite(values).all(0)
    return np.where(known, values.mean(0), 0.0), np.where(known, values.std(0).clip(1.0), 1.0)


def scaled(jets: Jets, values: np.ndarray) -> np.ndarray:
    """Columns class, m and pT in GeV -> m and pT in units of the spread, (n, 3) float32."""
    middle, unit = scales_of(jets)
    return np.column_stack([values[:, 0], (values[:, 1:] - middle) / unit]).astype(np.float32)


# %%
class FeatureNorm(nn.BatchNorm1d):
    """Standardised features, within 5 units of the mean like the shapes."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward(features).clamp(-5, 5)


def answering(encoder: nn.Module | None, jets: Jets) -> nn.Module:
    """Encoder (none: shapes alone) with a head that knows nothing yet, in the units of ``jets``."""
    model = TASK2G.JetNetwork(encoder)
    if encoder is not None:
        model.norm = FeatureNorm(encoder.width, affine=False)
    names = "middle", "unit", "shape_middle", "shape_unit"
    for name, value in zip(names, (*scales_of(jets), *jets.scale), strict=True):
        getattr(model, name).copy_(torch.as_tensor(value))
    return model


# %% [markdown]
# **Contrastive pre-training** (SimCLR, Chen et al., arXiv:2002.05709; for jets Dillon et al., arXiv:2108.04253): that of
# task 2g. Among all views in the batch, the other view of the same jet should have the nearest projection.
#
# **Variational pre-training** (Kingma & Welling, arXiv:1312.6114), with masks inspired by He et al. (arXiv:2111.06377): 40 % of
# the towers are set to zero before the encoder sees them. The features give mean and variance of a normal distribution with 32 dimensions, and a
# decoder draws the logarithmic sums $t$ of *all* towers from a sample of it:
# $$\mathcal L=\frac{\sum w\,(\hat t-t)^2}{\sum w}+\frac{\beta}{2L}\sum_{l=1}^{L}\left(\mu_l^2+\sigma_l^2-1-\ln\sigma_l^2\right),\qquad w=0.05+t,\quad\beta=10^{-3}.$$
# The weights keep the empty towers from being all that counts. $\beta$ is small, because the features are to be read
# and not sampled from.

# %%
HIDDEN, LATENT, BETA, FLOOR = 0.4, 32, 1e-3, 0.05


def tower_levels(towers: torch.Tensor) -> torch.Tensor:
    """ln(1 + sum of pixels) / ln 256 of towers (B, 19, 19, 40), by channel: (B, 19, 19, 8)."""
    return (255 * towers[..., ::SUMS]).log1p() / float(np.log(256))


def hide(towers: torch.Tensor, rng: Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Towers with a random share of them empty, and which are hidden: (B, 19, 19) bool."""
    hidden = torch.from_numpy(rng.random(towers.shape[:3]) < HIDDEN)
    return towers * ~hidden.unsqueeze(3), hidden


# %%
class VariationalExpert(nn.Module):
    """Visible towers (B, 19, 19, 40) -> levels of all (B, 19, 19, 8), mean and log variance (B, L)."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.mean, self.log_variance = (nn.Linear(encoder.width, LATENT) for _ in range(2))
        nn.init.zeros_(self.log_variance.weight)
        nn.init.constant_(self.log_variance.bias, -3.0)  # begins with little noise
        self.decoder = nn.Sequential(
            nn.Linear(LATENT, 256), nn.SiLU(), nn.Linear(256, GRID**2 * N_CHANNELS)
        )

    def forward(self, towers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        features = self.encoder(towers)
        mean, log_variance = self.mean(features), self.log_variance(features).clamp(-10, 5)
        z = mean
        if self.training:
            z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        levels = self.decoder(z).view(-1, GRID, GRID, N_CHANNELS)  # (B, 2888) -> (B, 19, 19, 8)
        return levels, mean, log_variance


# %%
def kl_divergence(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """KL(N(mean, variance) || N(0, 1)) in nats per dimension; (B, L) twice -> ()."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()


def variational_loss(
    levels: torch.Tensor, mean: torch.Tensor, log_variance: torch.Tensor, truth: torch.Tensor
) -> torch.Tensor:
    """Weighted squared error of the levels and BETA times the divergence."""
    weight = FLOOR + truth
    error = (weight * (levels - truth).square()).sum() / weight.sum()
    return error + BETA * kl_divergence(mean, log_variance)


# %% [markdown]
# **Three experts** for the mixture. The *contrastive* and the *variational expert* are the pre-trained transformers after a
# training of the whole network with labels; the *supervised expert* is the ResNet-15 of task 2g, from random weights: networks of
# another kind err on other jets, and a mixture lives from that. The loss is the cross-entropy of $y$ plus the squared errors of
# $m$ and $p_T$ in units of their spread. A target that a data set does not know is left out (section 9 needs that). All
# trainings with labels see flipped, shifted and smeared jets, but no drop-out: jets are scored with all their hits.


# %%
def task_loss(output: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the class plus squared errors of scaled m and pT; (B, 3) twice -> ().

    The class may be a probability. NaN in ``truth``: not known.
    """
    known = truth.isfinite()
    truth = torch.where(known, truth, torch.zeros_like(truth))
    first = functional.binary_cross_entropy_with_logits(output[:, 0], truth[:, 0], reduction="none")
    terms = torch.cat([first.unsqueeze(1), (output[:, 1:] - truth[:, 1:]).square()], 1) * known
    return (terms.sum(0) / known.sum(0).clamp(min=1)).sum()


# %% [markdown]
# **Student.** It starts from the better of the two transformer experts. Half of its batch has labels. For the other half,
# unlabelled jets, a teacher answers: the probability and the two values that it gives for the complete jet are the truth in the
# same loss, while the student sees a *view* of that jet (Hinton et al., arXiv:1503.02531, at temperature one). The teacher of the
# bonus is the mixture of section 5. Three rivals have the same start, and as many updates and jets per update:
#
# - *continued on labels only*: no teacher, twice as many labelled jets in a batch;
# - *own teacher*: the expert that it starts from (self-distillation; Chen et al., arXiv:2006.10029);
# - *supervised teacher*: the supervised expert, which is the mixture without its pre-trained members.
#
# Two more learn from labels alone and from random weights, for the updates of expert and student together: the student's own
# network, and that of the supervised expert.
#
# The transformer turned out on validation jets to follow its teacher only in part, above all for $m$. A second student therefore
# has *both trunks*: features of transformer and convolution side by side, beginning as those of the two experts. It, too, has a
# rival that continues on labels only.

# %%
FREE = ("contrastive", "variational")  # pre-trainings, which see no label
EXPERTS = ("contrastive_expert", "variational_expert", "supervised")
CONTROLS = ("longer", "scratch")  # trained on labels for as long as expert and student together
STUDENTS = {
    "student": "student of the mixture", "continued": "its start, continued on labels only",
    "own_teacher": "student of its own start", "supervised_teacher": "student of the supervised expert",
}  # fmt: skip
WIDE = {"wide": "student with both trunks", "wide_continued": "both trunks, labels only"}


# %%
class Job(NamedTuple):
    """One training: a pre-training, an expert, a student, a control, or ("tuned") a student on other jets."""

    arm: str
    training: int
    updates: int
    rate: float = 3e-3  # of everything but a trained encoder
    data: str = "jets"

    @property
    def name(self) -> str:
        return "-".join(map(str, self)).replace(" ", "-").replace(",", "")


# %%
starts: dict[str, list[nn.Module]] = {}  # arm -> encoder to begin with, one per training
teachers: dict[str, list[np.ndarray]] = {}  # arm -> P, scaled m and pT of unlabelled jets (U, 3)


class TwoTrunks(nn.Module):
    """Transformer and convolution side by side: towers (B, 19, 19, 40) -> features (B, 96 + 128)."""

    def __init__(self) -> None:
        super().__init__()
        self.trunks = nn.ModuleList([TASK2G.TowerTransformer(), TASK2G.ResNet15()])
        self.width = sum(trunk.width for trunk in self.trunks)

    def forward(self, towers: torch.Tensor) -> torch.Tensor:
        return torch.cat([trunk(towers).float() for trunk in self.trunks], 1)


def trunk_of(arm: str) -> nn.Module:
    """A trunk with random weights: both for wide students, the convolution for the supervised expert."""
    if arm in WIDE:
        return TwoTrunks()
    return TASK2G.ResNet15() if arm in ("supervised", "longer") else TASK2G.TowerTransformer()


def new_network(job: Job) -> nn.Module:
    """The network of a job before its training."""
    seed_everything(job.training)
    encoder = trunk_of(job.arm)
    if job.arm == "variational":
        return VariationalExpert(encoder)
    if job.arm in starts:
        encoder.load_state_dict(starts[job.arm][job.training].state_dict())
    return answering(encoder, sets[job.data])


one_jet = torch.ones(1, GRID, GRID, N_CHANNELS * SUMS)
NETWORKS = {"student": "transformer", "supervised": "ResNet-15", "wide": "both trunks"}
sizes = {arm: complexity(answering(trunk_of(arm), main), one_jet) for arm in NETWORKS}
for arm, name in NETWORKS.items():
    print(f"{name} and head: {sizes[arm]['parameters']:,} parameters, {sizes[arm]['flops'] / 1e6:.1f} MFLOPs")  # fmt: skip

# %% [markdown]
# ## 4. Training
# One loop for all. Each arm says what a batch is and what its loss; AdamW, one cycle (Smith & Topin,
# arXiv:1708.07120) and a moving average of the weights are common. An encoder that has been trained before learns at a tenth of the
# head's rate. The state is saved after every round, and an interrupted run continues bit for bit.


# %%
def variational_step(fit: Training, _: Job, rows: np.ndarray, rng: Generator) -> torch.Tensor:
    """Visible towers of a view, and all of them as truth."""
    towers = TASK2G.towers_of(unlabelled, rows, VIEWS, rng)
    visible, _hidden = hide(towers, rng)
    with fit.accelerator.autocast():
        output = fit.network(visible.to(fit.device))
    return variational_loss(*(x.float() for x in output), tower_levels(towers.to(fit.device)))


# %%
def labelled_step(fit: Training, job: Job, rows: np.ndarray, rng: Generator) -> torch.Tensor:
    """Views of labelled jets and, for a student, of as many unlabelled ones with a teacher's answers."""
    jets, count = sets[job.data], len(rows)
    towers = TASK2G.towers_of(jets.images, rows, WITH_LABELS, rng)
    truth = torch.from_numpy(scaled(jets, jets.truth[rows]))
    if job.arm in teachers:
        free = rng.integers(len(unlabelled), size=count)
        towers = torch.cat([towers, TASK2G.towers_of(unlabelled, free, WITH_LABELS, rng)])
        truth = torch.cat([truth, torch.from_numpy(teachers[job.arm][job.training][free])])
    with fit.accelerator.autocast():
        output = fit.network(towers.to(fit.device))
    output, truth = output.float(), truth.to(fit.device)
    loss = task_loss(output[:count], truth[:count])
    return loss + task_loss(output[count:], truth[count:]) if job.arm in teachers else loss


# %% [markdown]
# **Quality** is what choices are made by: the mean of AUC, $R^2(m)$ and $R^2(p_T)$ on validation jets. With labels the
# best round is kept; of the variational pre-training the one with the lowest loss.


# %%
def quality(truth: np.ndarray, found: np.ndarray) -> float:
    """Mean of AUC and both R2 of predictions (N, 3), of the targets that are known."""
    known = np.flatnonzero(np.isfinite(truth).all(0))
    values = [
        r_squared(truth[:, k], found[:, k]) if k else roc_auc(truth[:, 0].astype(int), found[:, 0])
        for k in known
    ]
    return float(np.mean(values))


def validated(model: nn.Module, jets: Jets) -> float:
    """Quality of a network on validation jets."""
    rows = jets.validation
    return quality(jets.truth[rows], TASK2G.predict(model, jets.images, rows))


# %%
def plan_of(job: Job) -> tuple[np.ndarray, int, int, Callable]:
    """Rows to train on, jets per step, rounds, and the function of a step."""
    if job.arm == "variational":
        size = min(CONFIG.batch_size, len(unlabelled))
        return np.arange(len(unlabelled)), size, CONFIG.passes, variational_step
    rows = sets[job.data].train
    wanted = CONFIG.batch_size // (2 if job.arm in teachers else 1)
    return rows, min(wanted, len(rows)), int(np.clip(job.updates // 100, 5, 20)), labelled_step


# %%
def train(job: Job, model: nn.Module) -> pd.DataFrame:
    """Train ``model`` in place; the history, a line per round."""
    accelerator = make_accelerator(("bf16", "fp16"), on_cpu=True)
    rows, size, rounds, loss_of = plan_of(job)
    steps = max(1, job.updates // rounds)
    slow = list(model.encoder.parameters()) if job.arm in starts else []
    known = {id(p) for p in slow}
    groups = [{"params": [p for p in model.parameters() if id(p) not in known], "lr": job.rate}]
    if slow:
        groups.append({"params": slow, "lr": 0.1 * job.rate})
    optimizer = torch.optim.AdamW(groups, weight_decay=0.02, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in groups], total_steps=rounds * steps, pct_start=0.15
    )
    model = model.to(memory_format=torch.channels_last)
    folder = run.directory / "state" / job.name
    fit = Training(folder, model, optimizer, schedule, accelerator, ema_decay=0.99)
    for number in fit.epochs(rounds):
        rng, total = epoch_generator(job.training, number), torch.zeros((), device=fit.device)
        # Every jet equally often, or one time more or less.
        pool = np.resize(rng.permutation(rows), steps * size * accelerator.num_processes)
        for batch in fit.batches(pool, size, job.training):
            loss = loss_of(fit, job, batch, rng)
            fit.backward(loss)
            fit.step()
            total += loss.detach()
        mean = accelerator.reduce(total, "mean").item() / steps  # the same in every process
        fit.record(-mean if job.arm == "variational" else validated(fit.averaged, sets[job.data]))
    return pd.DataFrame(fit.history)


# %%
def run_job(job: Job) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Train a job: its history and its weights as arrays."""
    model = new_network(job)
    with redirect_stdout(StringIO()):  # there are too many trainings for a line each
        return train(job, model), TASK2G.as_arrays(model)


trained: dict[Job, tuple] = {}  # history and weights of each


def run_jobs(jobs: Sequence[Job]) -> None:
    """Train side by side what has not been trained, the longest first."""
    TASK2G.once(run_job, sorted(jobs, key=lambda job: -job.updates), trained)


def network_of(job: Job) -> nn.Module:
    """The trained network of a job."""
    return TASK2G.loaded(new_network(job), trained[job][1])


# %% [markdown]
# **Pre-trainings and experts.** The contrastive pre-training is that of task 2g, by its code. The variational one sees as many
# images: it makes twice as many passes, with one view of each jet instead of two. Both encoders are kept as they are for section
# 5; what labels then make of them are the contrastive and the variational expert.


# %%
def with_rates(plans: Sequence[Job], rates: Sequence[float] = CONFIG.rates) -> list[Job]:
    """Jobs of first trainings, each with the rate that gives it the best quality."""
    if len(rates) == 1:
        return [job._replace(rate=rates[0]) for job in plans]
    tried = [[job._replace(rate=rate) for rate in rates] for job in plans]
    run_jobs([job for jobs in tried for job in jobs])
    return [max(jobs, key=lambda job: trained[job][0].score.max()) for jobs in tried]


# %%
numbers = range(CONFIG.trainings)
TASK2G.run, TASK2G.unlabelled = run, unlabelled  # its functions read these
simclr = [TASK2G.PreTraining("vit", s, len(unlabelled), CONFIG.passes // 2, VIEWS) for s in numbers]
pretrained: dict[TASK2G.PreTraining, tuple] = {}
TASK2G.once(TASK2G.run_pretraining, simclr, pretrained)
steps = CONFIG.passes * max(1, len(unlabelled) // CONFIG.batch_size)
jobs = {("variational", s): Job("variational", s, steps) for s in numbers}
run_jobs(list(jobs.values()))
encoders = {("variational", s): network_of(jobs["variational", s]).encoder for s in numbers}
for s, job in enumerate(simclr):
    encoders["contrastive", s] = TASK2G.loaded(TASK2G.TowerTransformer(), pretrained[job][1])
    seed_everything(s)
    encoders["random", s] = TASK2G.TowerTransformer()


# %%
@torch.no_grad()
def settle(encoder: nn.Module) -> None:
    """Give the normalisations of an encoder the mean and spread of whole unlabelled jets."""
    for layer in encoder.train().cpu().modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.reset_running_stats()
            layer.momentum = None  # average over all batches
    for part in TASK2G.in_parts(np.arange(min(2000, len(unlabelled)))):
        encoder(TASK2G.towers_of(unlabelled, part))
    encoder.eval()


for encoder in encoders.values():
    settle(encoder)

# %%
updates = CONFIG.updates["expert"], CONFIG.updates["expert"] + CONFIG.updates["student"]
for arm in FREE:
    starts[f"{arm}_expert"] = [encoders[arm, s] for s in numbers]
firsts = with_rates([Job(arm, 0, updates[arm in CONTROLS]) for arm in (*EXPERTS, *CONTROLS)])
jobs |= {(job.arm, s): job._replace(training=s) for job in firsts for s in numbers}
run_jobs([jobs[job.arm, s] for job in firsts for s in numbers])

# %% [markdown]
# ## 5. Latent vectors, shallow heads, mixture
# The pre-trained encoders are frozen, as they were before any label. Heads are fitted to the latent vectors of training jets;
# validation jets choose the penalty of each target, and for a hidden layer the number of steps. Controls tell what the
# features are worth: the same heads on *shapes alone*, linear heads on *features alone*, and on the features of an encoder with
# *random weights*, of which only the normalisations have seen jets. Pre-training showed views and masked jets; the normalisations
# of all three kinds of encoder are therefore set by the same whole jets.


# %%
def latent_vectors(model: nn.Module, jets: Jets, rows: np.ndarray) -> np.ndarray:
    """What the head of a network reads, (len(rows), W): standardised features, then shapes."""
    middle, unit = model.shape_middle.cpu().numpy(), model.shape_unit.cpu().numpy()
    parts = [(jets.shapes[rows] - middle) / unit]
    if model.encoder is not None:
        features = TASK2G.features_of(model.encoder, jets.images, rows)
        mean, variance = (
            v.cpu().numpy() for v in (model.norm.running_mean, model.norm.running_var)
        )
        parts.insert(0, (features - mean) / np.sqrt(variance + model.norm.eps))
    return np.concatenate(parts, 1).clip(-5, 5).astype(np.float32)


# %%
@torch.no_grad()
def fit_linear(model: nn.Module, x: np.ndarray, x_check: np.ndarray, jets: Jets) -> None:
    """Logistic and ridge regression into ``model.linear``, each with the best of four penalties."""
    truth, check = (scaled(jets, jets.truth)[rows] for rows in (jets.train, jets.validation))
    for layer in (model.linear, model.head[-1]):  # the hidden layer adds nothing
        nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
    for k in np.flatnonzero(np.isfinite(truth).all(0)):
        fits = []
        for option in (Ridge(a) for a in (1, 1e1, 1e2, 1e3)) if k else (
            LogisticRegression(C=c, max_iter=1000) for c in (1e-3, 1e-2, 1e-1, 1)
        ):  # fmt: skip
            option.fit(x, truth[:, k])
            weight, bias = option.coef_.reshape(-1), float(np.ravel(option.intercept_)[0])
            found = x_check @ weight + bias
            good = r_squared(check[:, k], found) if k else roc_auc(check[:, 0].astype(int), found)
            fits.append((good, weight, bias))
        _, weight, bias = max(fits, key=lambda fit: fit[0])
        model.linear.weight[k], model.linear.bias[k] = torch.as_tensor(weight), bias


# %%
def fit_hidden(model: nn.Module, x: np.ndarray, x_check: np.ndarray, jets: Jets) -> None:
    """One hidden layer beside the linear one, stopped where the loss of validation jets is lowest."""
    truth, check = (torch.from_numpy(scaled(jets, jets.truth)[rows]) for rows in (jets.train, jets.validation))  # fmt: skip
    x, x_check = torch.from_numpy(x), torch.from_numpy(x_check)
    layers = nn.ModuleList([model.linear, model.head])
    optimizer = torch.optim.AdamW(layers.parameters(), 3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 3e-3, total_steps=CONFIG.head_steps, pct_start=0.15
    )
    best, weights, generator = np.inf, {}, torch_generator(0, 0)
    for step in range(CONFIG.head_steps):
        batch = torch.randint(len(x), (min(256, len(x)),), generator=generator)
        seen = functional.dropout(x[batch], 0.1)
        optimizer.zero_grad()
        task_loss(model.linear(seen) + model.head(seen), truth[batch]).backward()
        optimizer.step()
        schedule.step()
        if step % 10 == 9:
            with torch.no_grad():
                loss = task_loss(model.linear(x_check) + model.head(x_check), check).item()
            if loss < best:
                best, weights = loss, {k: v.clone() for k, v in layers.state_dict().items()}
    layers.load_state_dict(weights)


# %%
HEADS = {"linear": fit_linear, "one hidden layer": fit_hidden}


def with_head(encoder: nn.Module | None, kind: str, jets: Jets, seed: int = 0, blind: bool = False) -> nn.Module:  # fmt: skip
    """A frozen encoder (none: shapes alone) and a head fitted to training jets; ``blind``: without shapes."""
    seed_everything(seed)
    model = answering(encoder, jets).cpu()
    if encoder is not None:
        model.encoder.cpu()
        features = TASK2G.features_of(encoder, jets.images, jets.train)
        model.norm.running_mean.copy_(torch.as_tensor(features.mean(0)))
        model.norm.running_var.copy_(torch.as_tensor(features.var(0)))
    x, x_check = (latent_vectors(model, jets, rows) for rows in (jets.train, jets.validation))
    if blind:
        x[:, -TASK2G.N_SHAPES :], x_check[:, -TASK2G.N_SHAPES :] = 0, 0
    HEADS[kind](model.cpu(), x, x_check, jets)
    return model.eval()


# %%
def headed(arm: str, kind: str, s: int, blind: bool = False) -> dict[str, np.ndarray]:
    """Weights of a frozen encoder with its head."""
    encoder = None if arm == "shapes" else encoders[arm, s]
    return TASK2G.as_arrays(with_head(encoder, kind, main, s, blind))


plans = {
    (f"{arm}, {kind}", s): (arm, kind, s)
    for arm, kind, s in product((*FREE, "shapes"), HEADS, numbers)
    if arm != "shapes" or kind != "linear" or s == 0  # the linear fit to shapes is always the same
}
alone_arms = (*FREE, "random")
plans |= {(f"{a} alone, linear", s): (a, "linear", s, True) for a in alone_arms for s in numbers}
plans |= {("random, linear", s): ("random", "linear", s) for s in numbers}
state = run.directory / "state"
fitted = computed_once(state / "heads.joblib", partial(side_by_side, headed, list(plans.values())))
fitted = dict(zip(plans, fitted, strict=True))
models = {
    key: TASK2G.loaded(
        answering(None if "shapes" in key[0] else TASK2G.TowerTransformer(), main), weights
    )
    for key, weights in fitted.items()
}
models |= {(arm, s): network_of(jobs[arm, s]) for arm in (*EXPERTS, *CONTROLS) for s in numbers}


# %%
def mean_quality(arm: str) -> float:
    """Mean over the trainings of an arm."""
    return float(np.mean([validated(model, main) for (a, _), model in models.items() if a == arm]))


arms = list(dict.fromkeys(arm for arm, _ in models))
qualities = {arm: mean_quality(arm) for arm in arms}
kinds = {arm: max(HEADS, key=lambda kind, arm=arm: qualities[f"{arm}, {kind}"]) for arm in FREE}
free_best = max(FREE, key=lambda arm: qualities[f"{arm}, {kinds[arm]}"])
HEADLINE = "self-supervised"  # the best of the self-supervised encoders, with its better head
frame = pd.Series(qualities, name="quality (validation)").to_frame()
display(frame.rename_axis("latent vector, head").style.format(precision=4))
print(f"headline: {free_best}, {kinds[free_best]}")

# %% [markdown]
# **Opinions.** Every network answers once for the validation jets and for the samples of section 7; the experts also for the
# unlabelled jets, which students learn from.


# %%
def asked(model: nn.Module, free: bool) -> dict[str, np.ndarray]:
    """P(class 1), m and pT (n, 3) of validation jets, of each sample and, if ``free``, unlabelled jets."""
    found = {"validation": TASK2G.predict(model, main.images, main.validation)}
    found |= {n: TASK2G.predict(model, jets.images, jets.test) for n, jets in samples.items()}
    if free:
        found["unlabelled"] = TASK2G.predict(model, unlabelled, np.arange(len(unlabelled)))
    return found


predictions: dict[str, dict[str, list]] = {}  # arm -> part -> one array per training


# %%
def enter(name: str, arms: Sequence[str], free: bool = False) -> None:
    """Ask the networks of some arms; ``name``: of the file that keeps the answers."""
    pairs = [(arm, model) for (arm, _), model in models.items() if arm in arms]
    ask = partial(side_by_side, asked, [(model, free) for _, model in pairs])
    answers = computed_once(state / f"answers-{name}.joblib", ask)
    for (arm, _), found in zip(pairs, answers, strict=True):
        for part, values in found.items():
            predictions.setdefault(arm, {}).setdefault(part, []).append(values)


enter("experts", EXPERTS, free=True)
enter("heads", [arm for arm in arms if arm not in EXPERTS])

# %% [markdown]
# **Mixture of experts** (Jacobs et al. 1991; a gate per target as in Ma et al. 2018). With opinions $o_{kt}$ of expert $k$ on
# target $t$ (logit, scaled $m$ and $p_T$) the mixture answers $a_t=\sum_kg_{kt}o_{kt}$, $g_{kt}=\mathrm{softmax}_k(Wo+b)_{kt}$.
# *Gate* has $W$ and $b$, *constant* only $b$, and *mean* neither. They are fitted to validation jets, since all
# experts know the training jets; the lowest loss in five-fold cross-validation on these jets chooses among the three.


# %%
class Gate(nn.Module):
    """Opinions (B, K, 3) -> answers (B, 3); begins as their mean."""

    def __init__(self, experts: int, kind: str) -> None:
        super().__init__()
        self.kind, size = kind, experts * len(TARGETS)
        self.linear = nn.Linear(size, size)
        nn.init.zeros_(self.linear.weight), nn.init.zeros_(self.linear.bias)

    def weights(self, opinions: torch.Tensor) -> torch.Tensor:
        """What each expert counts, (B, K, 3); adds up to one over the experts."""
        seen = opinions.clamp(-4, 4) if self.kind == "gate" else torch.zeros_like(opinions)
        return self.linear(seen.flatten(1)).view_as(opinions).softmax(1)  # (B, 3K) -> (B, K, 3)

    def forward(self, opinions: torch.Tensor) -> torch.Tensor:
        return (self.weights(opinions) * opinions).sum(1)


# %%
def fit_gate(kind: str, opinions: torch.Tensor, truth: torch.Tensor, steps: int = 1000) -> Gate:
    """A mixture of some kind, fitted to opinions (n, K, 3) and truth (n, 3)."""
    gate = Gate(opinions.shape[1], kind)
    optimizer = torch.optim.AdamW(gate.parameters(), 0.02, weight_decay=0.1)
    for _ in range(0 if kind == "mean" else steps):
        optimizer.zero_grad()
        task_loss(gate(opinions), truth).backward()
        optimizer.step()
    return gate.eval()


# %%
@torch.no_grad()
def cross_validated(kind: str, opinions: torch.Tensor, truth: torch.Tensor) -> float:
    """Loss of a mixture on the folds that it was not fitted to."""
    fold, answer = torch.arange(len(truth)) % 5, torch.zeros_like(truth)
    for k in range(5):
        with torch.enable_grad():
            gate = fit_gate(kind, opinions[fold != k], truth[fold != k])
        answer[fold == k] = gate(opinions[fold == k])
    return task_loss(answer, truth).item()


# %%
def opinions_of(s: int, part: str) -> torch.Tensor:
    """Logits, scaled m and pT of all experts of a training: (n, K, 3)."""
    found = [scaled(main, predictions[name][part][s]) for name in EXPERTS]
    for one in found:
        one[:, 0] = logit(one[:, 0].clip(1e-4, 1 - 1e-4))
    return torch.from_numpy(np.stack(found, 1))


@torch.no_grad()
def mixed(gate: Gate, s: int, part: str) -> np.ndarray:
    """P(class 1), m and pT of a mixture, (n, 3)."""
    answer, (middle, unit) = gate(opinions_of(s, part)).numpy(), scales_of(main)
    return np.column_stack([expit(answer[:, 0]), answer[:, 1:] * unit + middle])


# %%
MIXTURES = ("mean", "constant", "gate")
known = torch.from_numpy(scaled(main, main.truth)[main.validation])
losses = {
    kind: float(np.mean([cross_validated(kind, opinions_of(s, "validation"), known) for s in numbers]))
    for kind in MIXTURES
}  # fmt: skip
mixture = min(losses, key=losses.get)
gates = [fit_gate(mixture, opinions_of(s, "validation"), known) for s in numbers]
parts = ("validation", "unlabelled", *samples)
predictions["mixture"] = {part: [mixed(gates[s], s, part) for s in numbers] for part in parts}
print(
    {kind: round(loss, 4) for kind, loss in losses.items()}, f"(held-out folds); teacher: {mixture}"
)
with torch.no_grad():
    counted = [gates[s].weights(opinions_of(s, "validation")).mean(0) for s in numbers]
weights = torch.stack(counted).mean(0).numpy()
display(pd.DataFrame(weights, EXPERTS, TARGETS).rename_axis("weight, mean").style.format("{:.2f}"))

# %% [markdown]
# ## 6. Distillation, trees, other jets
# **Students** and the control with labels only start from the expert that is best on validation jets, of those with the trunk of
# the student; those with both trunks from this one and the supervised one. The rate of all is the one that the control with one
# trunk prefers.


# %%
headline = f"{free_best}, {kinds[free_best]}"
start = max(("contrastive_expert", "variational_expert"), key=qualities.get)
for arm in STUDENTS:
    starts[arm] = [models[start, s].encoder for s in numbers]
for arm, name in (
    ("student", "mixture"), ("own_teacher", start), ("supervised_teacher", "supervised"),
):  # fmt: skip
    teachers[arm] = [scaled(main, found) for found in predictions[name]["unlabelled"]]
(gentle,) = with_rates([Job("continued", 0, CONFIG.updates["student"])])
for arm in WIDE:
    starts[arm] = [TwoTrunks() for _ in numbers]
    for s, both in enumerate(starts[arm]):
        for trunk, expert in zip(both.trunks, (start, "supervised"), strict=True):
            trunk.load_state_dict(models[expert, s].encoder.state_dict())
teachers["wide"] = teachers["student"]
taught = [(arm, s) for arm in (*STUDENTS, *WIDE) for s in numbers]
jobs |= {(arm, s): gentle._replace(arm=arm, training=s) for arm, s in taught}
run_jobs([jobs[key] for key in taught])
models |= {key: network_of(jobs[key]) for key in taught}
enter("students", list(STUDENTS))
enter("wide", list(WIDE))
predictions = {HEADLINE: predictions.pop(headline)} | predictions
print(f"students start from: {start}")

# %% [markdown]
# **Trees** on the same shapes, settings and number of trees chosen on validation jets: the call of task 2g with the same
# jets. With few labels, in section 9, its smaller leaves compete.


# %%
def boosted_trees(jets: Jets) -> list:
    """Trees for class, m and pT; None for what is not known."""
    fits = []
    for k in range(len(TARGETS)):
        known, target = np.isfinite(jets.truth[:, k]).all(), jets.truth[:, k]
        target = target.astype(int) if known and k == 0 else target
        data = [x[rows] for rows in (jets.train, jets.validation) for x in (jets.shapes, target)]
        if not known:
            fits.append(None)
        elif len(jets.train) <= TASK2G.FEW:
            fits.append(TASK2G.tuned_few(TASK2G.TREES[k], *data))
        else:
            fits.append(tuned_trees(*data, loss="squared_error" if k else "log_loss").model)
    return fits


# %%
def tree_answers(fits: list, shapes: np.ndarray) -> np.ndarray:
    """P(class 1), m and pT (n, 3); NaN for what is not known."""
    found = np.full((len(shapes), len(TARGETS)), np.nan)
    for k, fit in enumerate(fits):
        if fit is not None:
            found[:, k] = fit.predict(shapes) if k else fit.predict_proba(shapes)[:, 1]
    return found


trees = computed_once(state / "trees.joblib", partial(boosted_trees, main))
predictions["trees"] = {
    name: [tree_answers(trees, jets.shapes[jets.test])] for name, jets in samples.items()
}

# %% [markdown]
# **Other jets.** The quark and gluon jets of task 2h (tracks, ECAL, HCAL; lower momenta, radius 0.5) and the tops of any
# mass of task 2e (tracks, $d_z$, $d_0$, ECAL) are written into the channels where they belong and scaled to 0 to 255.
# They differ from the jets that the encoder knows in momentum, size and missing channels.


# %%
def eight_channels(images: SparseImages, into: Sequence[int]) -> SparseImages:
    """Jets with other channels as images of eight, channel k in place of ``into[k]``, scaled to 255."""
    offsets, index, value = images.events(np.arange(len(images)))
    pixels = TASK2G.SIDE**2
    jet = np.repeat(np.arange(len(images)), np.diff(offsets))
    channel, pixel = np.divmod(index.astype(np.int64), pixels)
    jet, channel, pixel, value = (
        c[value > 0] for c in (jet, np.asarray(into)[channel], pixel, value)
    )
    largest = np.zeros((len(images), N_CHANNELS), np.float32)
    np.maximum.at(largest, (jet, channel), value)
    order = np.lexsort((pixel, channel, jet))
    counts = np.bincount(jet, minlength=len(images))
    stored = (channel * pixels + pixel)[order].astype(np.uint32)
    value = (TASK2G.LARGEST * value / largest[jet, channel])[order]
    shape = (N_CHANNELS, TASK2G.SIDE, TASK2G.SIDE)
    return SparseImages(np.concatenate([[0], np.cumsum(counts)]), stored, value, shape)


# %%
few = "smoke" if PROFILE == "smoke" else "quick"  # some thousand jets are enough
quarks, tops = load_quark_gluon(DATA_SOURCE, few), load_top_mass(DATA_SOURCE, few)
bins = np.digitize(tops.m, np.quantile(tops.m, [0.25, 0.5, 0.75]))
for name, images, columns, strata in (
    ("quark and gluon jets", eight_channels(quarks.images, (0, 3, 4)), [quarks.y, None, None], quarks.y),
    ("mass of tops", eight_channels(tops.images, (0, 1, 2, 3)), [None, tops.m, None], bins),
):  # fmt: skip
    columns = [np.full(len(images), np.nan) if c is None else c for c in columns]
    other = with_shapes(images, columns, split(strata))
    for count in CONFIG.transfer_labels:  # a prefix of the training jets is a random sample
        sets[f"{name}, {count}"] = other._replace(train=other.train[:count])

# %% [markdown]
# Five ways with few labels: the student's encoder frozen, with a linear head; the same tuned further; the network from
# random weights, also with four times the updates; trees on the shapes. The labelled jets are the same for all. Tuning and
# scratch choose their rates, the longer scratch takes that of the shorter.

# %%
starts["tuned"] = [models["student", s].encoder for s in numbers]
WAYS = {
    "frozen": "student, frozen, linear head", "tuned": "student, tuned", "fresh": "from scratch",
    "fresh_longer": "from scratch, four times the updates", "trees": "boosted trees on shapes",
}  # fmt: skip
short = CONFIG.updates["transfer"]
others = [name for name in sets if name != "jets"]
plans = [Job(way, 0, short, data=n) for n in others for way in ("tuned", "fresh")]
chosen = with_rates(plans, CONFIG.few_rates)
chosen += [
    job._replace(arm="fresh_longer", updates=4 * short) for job in chosen if job.arm == "fresh"
]
transfer_jobs = {(j.data, j.arm, s): j._replace(training=s) for j in chosen for s in numbers}
run_jobs(list(transfer_jobs.values()))


# %%
def transferred(name: str, way: str, s: int) -> np.ndarray:
    """Answers (n, 3) for the test jets of another data set."""
    jets = sets[name]
    if way == "trees":
        return tree_answers(boosted_trees(jets), jets.shapes[jets.test])
    if way == "frozen":
        model = with_head(starts["tuned"][s], "linear", jets)
    else:
        model = network_of(transfer_jobs[name, way, s])
    return TASK2G.predict(model, jets.images, jets.test)


keys = [(n, w, s) for n in others for w in WAYS for s in numbers if w != "trees" or s == 0]
of_transfer = computed_once(state / "transfer.joblib", partial(side_by_side, transferred, keys))
of_transfer = dict(zip(keys, of_transfer, strict=True))

# %% [markdown]
# ## 7. Evaluation
# Everything above was chosen on validation jets; the test set is scored here. **F1 of a regression** needs a threshold: a jet is
# *positive* if its true value is above the median of the training jets, and *called* positive if the predicted value is;
# then $F_1=2TP/(2TP+FP+FN)$. Calling every jet positive scores about 2/3. The threshold is fixed and not tuned.
#
# Intervals (95 %) contain the jets of the sample and the trainings, from the experts on. ▲ marks an arm that is better than the
# self-supervised headline by more than the interval, ▼ one that is worse. The table at the top has the test jets, those below
# the sample with the most jets and more arms.

# %%
medians = dict(zip(TARGETS, np.median(main.truth[main.train], 0), strict=True))


def mean_squared_error(y: np.ndarray, score: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Mean (prediction - truth)^2."""
    return root_mean_squared_error(y, score, weight) ** 2


def f1_above(
    y: np.ndarray, score: np.ndarray, weight: np.ndarray | None = None, *, threshold: float
) -> float:
    """F1 of "above the threshold": true where y is, called where score is; 0 where neither is."""
    weight = np.ones(len(y)) if weight is None else weight
    true, called = np.asarray(y) > threshold, np.asarray(score) > threshold
    both = weight[true].sum() + weight[called].sum()
    return float(2 * weight[true & called].sum() / both) if both else 0.0


# %%
class Score(NamedTuple):
    """A metric: column of the target, function, digits, and its name in tables."""

    column: int
    metric: Callable
    digits: int
    label: str

    @property
    def higher(self) -> bool:
        return "MSE" not in self.label


METRICS = {
    "roc_auc": Score(0, roc_auc, 4, "AUC"),
    "m_mse": Score(1, mean_squared_error, 0, "MSE of m [GeV²]"),
    "pt_mse": Score(2, mean_squared_error, 0, "MSE of pT [GeV²]"),
    "m_f1": Score(1, f1_above, 3, "F1 of m"),
    "pt_f1": Score(2, f1_above, 3, "F1 of pT"),
}
DECIDING = ("roc_auc", "m_mse", "pt_mse")


# %%
def compared(name: str, sample: str) -> Comparison:
    """All arms by one metric on one sample."""
    score, jets = METRICS[name], samples[sample]
    truth = jets.truth[jets.test, score.column].astype(float if score.column else int)
    scores = {
        arm: [p[:, score.column] for p in parts[sample]] for arm, parts in predictions.items()
    }
    metric = score.metric
    if metric is f1_above:
        metric = partial(f1_above, threshold=medians[TARGETS[score.column]])
    return Comparison(
        metric, truth, scores, HEADLINE, higher_is_better=score.higher, n_resamples=100
    )


keys = list(product(METRICS, samples))
results = dict(zip(keys, side_by_side(compared, keys), strict=True))
labels = STUDENTS | WIDE | {
    HEADLINE: f"self-supervised ({free_best}), {kinds[free_best]}", "mixture": f"mixture of the three ({mixture})",
    "contrastive_expert": "contrastive expert", "variational_expert": "variational expert", "supervised": "supervised expert",
    "longer": "supervised expert's network, longer", "scratch": "student's network, labels only, as long",
    "trees": "boosted trees on shapes", "shapes, linear": "shapes alone, linear",
    "shapes, one hidden layer": "shapes alone, one hidden layer",
}  # fmt: skip
alone = f"{free_best} alone, linear"
labels[alone] = f"self-supervised ({free_best}), features alone, linear"
labels = {a: a.replace(" alone", ", features alone").replace("random", "random weights") for a in qualities} | labels  # fmt: skip


# %%
def entry_text(name: str, sample: str, arm: str, against: str = HEADLINE, brackets: bool = True) -> str:  # fmt: skip
    """A value with its interval and its mark."""
    comparison, digits = results[name, sample], METRICS[name].digits
    value, low, high = (f"{x:.{digits}f}" for x in comparison.interval(arm))
    sign = "" if arm == against else comparison.mark(arm, against)
    return f"{value} [{low}, {high}] {sign}" if brackets else f"{value} {sign}"


# %%
def results_table(sample: str, arms: Sequence[str]) -> pd.DataFrame:
    """The deciding metrics with intervals and both F1 in one column, the best AUC first."""
    order = sorted(arms, key=lambda arm: -results["roc_auc", sample].values[arm].mean())
    rows = {}
    for arm in order:
        row = {METRICS[name].label: entry_text(name, sample, arm) for name in DECIDING}
        f1 = [entry_text(name, sample, arm, brackets=False) for name in ("m_f1", "pt_f1")]
        rows[labels[arm]] = row | {"F1 of m; of pT": "; ".join(f1)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(
        f"{len(samples[sample].test):,} jets ({sample})"
    )


shown = HEADLINE, alone, "shapes, one hidden layer"
frozen = [HEADLINE if arm == headline else arm for arm in qualities if "," in arm]
display(results_table(judge, [arm for arm in predictions if arm in shown or arm not in frozen]))
jets = samples[judge]
truth = jets.truth[jets.test]
variance = truth[:, 1:].var(0)
everyone = {  # F1 of calling every jet positive
    name: f1_above(truth[:, k], np.full(len(truth), np.inf), threshold=medians[name])
    for k, name in enumerate(TARGETS) if k
}  # fmt: skip
print(f"always the mean: MSE {variance[0]:,.0f} and {variance[1]:,.0f} GeV²")

# %% [markdown]
# F1 with its intervals:

# %%
f1_lines = {
    labels[arm]: {METRICS[n].label: entry_text(n, judge, arm) for n in ("m_f1", "pt_f1")}
    for arm in (HEADLINE, "supervised", "scratch", "wide", "trees")
}
f1_lines["every jet positive"] = {
    METRICS[f"{name.lower()}_f1"].label: f"{value:.3f}" for name, value in everyone.items()
}
display(pd.DataFrame(f1_lines).T)

# %% [markdown]
# **How shallow may the head be?** Both heads on each latent vector, and the controls: shapes alone, and features alone, also those
# of random weights. Where "alone" is not said, shapes stand beside the features.

# %%
display(results_table(judge, frozen))

# %% [markdown]
# **ROC curves** of first trainings, on the sample with the most jets: complete, and the corner where they differ.

# %%
fig, axes = plt.subplots(1, 2, figsize=(10.6, 4.4))
drawn = (HEADLINE, "wide", "scratch", "trees")
named = {arm: labels[arm] if arm == "scratch" else labels[arm].split(",")[0] for arm in drawn}
curves = {name: predictions[arm][judge][0][:, 0] for arm, name in named.items()}
for axis in axes:
    plotting.roc_curves(axis, truth[:, 0].astype(int), curves, n_resamples=30)
axes[0].legend(loc="lower right", fontsize=8)
axes[1].set(xlim=(0, 0.2), ylim=(0.7, 1))
axes[1].legend().remove()
plt.show()

# %% [markdown]
# **True against predicted**, first training. Grey: the diagonal; dotted: the threshold of F1. An estimate of least
# squared error is flatter than the diagonal: what it does not know it replaces by the mean.


# %%
def true_predicted(axis: plt.Axes, name: str, arm: str) -> None:
    """Density of predictions over truths with MSE and F1."""
    k = TARGETS.index(name)
    low, high = np.quantile(truth[:, k], [0.003, 0.99])
    found, kind = predictions[arm][judge][0][:, k], name.lower()
    axis.hist2d(truth[:, k], found, 50, range=[[low, high]] * 2, cmin=1, cmap="viridis")
    axis.plot([low, high], [low, high], color="grey", lw=0.9)
    for line in (axis.axvline, axis.axhline):
        line(medians[name], color="grey", lw=0.8, ls=":")
    mse, f1 = (results[f"{kind}_{metric}", judge].values[arm][0] for metric in ("mse", "f1"))
    axis.set(xlabel=f"true {name} [GeV]", ylabel=f"predicted {name} [GeV]")
    axis.set_title(f"{labels[arm].split(',')[0]}\nMSE {mse:,.0f} GeV², F1 {f1:.3f}", fontsize=9)


fig, axes = plt.subplots(2, 3, figsize=(11, 7))
for line, name in zip(axes, ("m", "pT"), strict=True):
    for axis, arm in zip(line, (HEADLINE, "wide", "trees"), strict=True):
        true_predicted(axis, name, arm)
plt.show()

# %% [markdown]
# **The bonus: is the student better?** Differences to every expert, to its teacher and to the controls, on the sample with the
# most jets; AUC up and MSE down are better. Then the same for the mixture.


# %%
def difference_text(name: str, arm: str, other: str) -> str:
    """A difference with its interval and mark."""
    comparison, digits = results[name, judge], METRICS[name].digits
    value, low, high = (f"{x:+.{digits}f}" for x in comparison.difference(arm, other))
    return f"{value} [{low}, {high}] {comparison.mark(arm, other)}"


rivals_of_student = (*EXPERTS, "mixture", *list(STUDENTS)[1:], *CONTROLS, "trees", HEADLINE)
pairs = [("student", other) for other in rivals_of_student]
rivals_of_wide = (*EXPERTS, "mixture", "student", "wide_continued", *CONTROLS, "trees")
pairs += [("wide", other) for other in rivals_of_wide]
pairs += [("mixture", other) for other in (*EXPERTS, "continued", *CONTROLS)]
lines = {
    (arm.replace("_", " "), f"minus {labels[other]}"): {METRICS[n].label: difference_text(n, arm, other) for n in DECIDING}
    for arm, other in pairs
}  # fmt: skip
display(pd.DataFrame(lines).T)

# %% [markdown]
# **Why?** A mixture gains from experts that err on different jets: the correlation of their errors, mean over trainings. And a student
# can lag because it does not follow its teacher, or because its teacher knows no more: $R^2$ of a student's answers with the
# mixture's as truth, on the same jets.


# %%
def error_correlation(one: str, other: str, k: int) -> float:
    """Correlation of two arms' errors of a target on the judge's sample, mean over trainings."""
    return float(np.mean([
        np.corrcoef(*(predictions[arm][judge][s][:, k] - truth[:, k] for arm in (one, other)))[0, 1]
        for s in numbers
    ]))  # fmt: skip


def followed(arm: str, k: int) -> float:
    """R2 of a student's answers with its teacher's as truth, mean over trainings."""
    teacher, student = (predictions[name][judge] for name in ("mixture", arm))
    return float(np.mean([r_squared(teacher[s][:, k], student[s][:, k]) for s in numbers]))


frame = {
    f"errors: {labels[one]} and {labels[other]}": [error_correlation(one, other, k) for k in range(3)]
    for one, other in combinations(EXPERTS, 2)
} | {f"R²: {labels[arm]}": [followed(arm, k) for k in range(3)] for arm in ("student", "wide", "supervised_teacher")}  # fmt: skip
display(pd.DataFrame(frame, TARGETS).T.style.format("{:.3f}"))

# %% [markdown]
# **Cost.** Parameters and operations of one jet, and the time per jet in batches of 250 on this machine: networks from towers
# to answers, shapes included; trees from shapes, which have a row of their own. The mixture runs all three experts. Below, one
# training of each arm; a student has the cost of its pre-training and of its teachers besides. Seconds are wall-clock times of
# trainings side by side on shared cores: updates and images compare arms, seconds do not.


# %%
BATCH = 250


def milliseconds(answer: Callable[[], object]) -> float:
    """Per jet: the fastest of five answers for a batch."""
    times = []
    for _ in range(5):
        began = time.perf_counter()
        answer()
        times.append(time.perf_counter() - began)
    return min(times) / BATCH * 1000


@torch.inference_mode()
def ask_all(networks: Sequence[nn.Module], towers: torch.Tensor) -> list[torch.Tensor]:
    """P(class 1) of every network, on the CPU: waits for the device."""
    return [model.physical(towers)[0].cpu() for model in networks]


def size_of(arms: Sequence[str]) -> dict[str, int]:
    """Parameters and FLOPs of networks that are all asked."""
    kinds = ["wide" if arm in WIDE else "supervised" if arm in ("supervised", "longer") else "student" for arm in arms]  # fmt: skip
    found = [sizes[kind] for kind in kinds]
    return {what: sum(one[what] for one in found) for what in found[0]}


# %%
towers = TASK2G.towers_of(jets.images, np.resize(jets.test, BATCH)).to(DEVICE)
asked_for = {name: [arm] for arm, name in NETWORKS.items()} | {"mixture of the three": EXPERTS}
costs = {}
for name, arms in asked_for.items():
    networks = [models[arm, 0].eval().to(DEVICE) for arm in arms]
    row = {"ms per jet": f"{milliseconds(lambda group=networks: ask_all(group, towers)):.3f}"}
    costs[name] = row | {what: f"{value:,}" for what, value in size_of(arms).items()}
by_trees = partial(tree_answers, trees, jets.shapes[np.resize(jets.test, BATCH)])
costs["boosted trees, from shapes"] = {"ms per jet": f"{milliseconds(by_trees):.3f}"}
by_formula = partial(TASK2G.jet_shapes, towers.cpu())
costs["shapes, from towers"] = {"ms per jet": f"{milliseconds(by_formula):.3f}"}
display(pd.DataFrame(costs).T.fillna("").rename(columns={"flops": "FLOPs per jet"}))
effort = {}
for arm in ("variational", *EXPERTS, *CONTROLS, *STUDENTS, *WIDE):
    job = jobs[arm, 0]
    seconds = [trained[jobs[arm, s]][0].seconds.sum() for s in numbers]
    effort[labels.get(arm, f"{arm} pre-training")] = {
        "updates": f"{job.updates:,}", "images": f"{job.updates * CONFIG.batch_size:,}",
        "rate": f"{job.rate:g}", "seconds": f"{np.mean(seconds):,.0f}",
    }  # fmt: skip
seconds = [pretrained[job][0].seconds.sum() for job in simclr]
updates_made = CONFIG.passes // 2 * (len(unlabelled) // TASK2G.CONFIG.pretraining_batch)
effort["contrastive pre-training"] = {
    "updates": f"{updates_made:,}", "images": f"{2 * updates_made * TASK2G.CONFIG.pretraining_batch:,}",
    "rate": "0.003", "seconds": f"{np.mean(seconds):,.0f}",
}  # fmt: skip
display(pd.DataFrame(effort).T.rename_axis("one training"))

# %% [markdown]
# **How they trained**, first training of each: losses of the pre-trainings, and the quality of trainings with labels
# on validation jets, of which the best round is kept (rounds below 0.65 are cut).

# %%
fig, axes = plt.subplots(1, 3, figsize=(12, 3.3))
histories = pretrained[simclr[0]][0], trained[jobs["variational", 0]][0]
for axis, arm, history in zip(axes, FREE, histories, strict=False):
    axis.plot(history.epoch, history.score.abs(), marker=".")
    axis.set(xlabel="pass", ylabel="loss", title=f"{arm} pre-training")
for number, arm in enumerate((*EXPERTS, *CONTROLS, *STUDENTS, *WIDE)):
    style = {"color": f"C{number}", "ls": "-" if number < len(plotting.PALETTE) else "--"}
    history = trained[jobs[arm, 0]][0]
    steps = np.arange(1, len(history) + 1) * jobs[arm, 0].updates / len(history)
    axes[2].plot(steps, history.score, marker=".", label=labels[arm], **style)
axes[2].set(xlabel="updates", ylabel="quality", title="with labels", ylim=(0.65, 0.83))
axes[2].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# ## 8. What this run shows
# Aims, and whether this run reaches them on the sample with the most jets: ▲, ▼ or = for $y$, $m$ and $p_T$. "Better" means by
# more than the interval.


# %%
def marks(arm: str, other: str) -> str:
    """▲, ▼ or = for AUC, m and pT."""
    return "".join(results[name, judge].mark(arm, other) for name in DECIDING)


deep = HEADLINE if kinds[free_best] != "linear" else f"{free_best}, one hidden layer"
linear = HEADLINE if kinds[free_best] == "linear" else f"{free_best}, linear"
aims = {
    "self-supervised features add to the shapes under a linear head": [marks(linear, "shapes, linear")],
    "self-supervised features add to the shapes under one hidden layer": [marks(deep, "shapes, one hidden layer")],
    "self-supervised features alone know more than those of random weights": [marks(alone, "random alone, linear")],
    "self-supervised encoder better than trees": [marks(HEADLINE, "trees")],
    "mixture better than every expert": [marks("mixture", other) for other in EXPERTS],
    "student better than every expert": [marks("student", other) for other in EXPERTS],
    "student better than its teacher": [marks("student", "mixture")],
    "student better than its start, continued on labels only": [marks("student", "continued")],
    "student better than with its own start as teacher": [marks("student", "own_teacher")],
    "student better than with the supervised teacher": [marks("student", "supervised_teacher")],
    "student better than networks that learned from labels only for as long": [marks("student", other) for other in CONTROLS],
    "student better than trees": [marks("student", "trees")],
    "student with both trunks better than every expert": [marks("wide", other) for other in EXPERTS],
    "student with both trunks better than its teacher": [marks("wide", "mixture")],
    "student with both trunks better than its start, continued on labels only": [marks("wide", "wide_continued")],
    "student with both trunks better than networks that learned from labels only for as long":
        [marks("wide", other) for other in CONTROLS],
}  # fmt: skip
frame = {aim: {"y, m, pT": "; ".join(found), "all three": "yes" if set(found) == {"▲▲▲"} else "no"}
         for aim, found in aims.items()}  # fmt: skip
display(pd.DataFrame(frame).T.rename_axis("aim"))

# %% [markdown]
# What the text asserts is checked besides. A run in which one of these is false is not published, but for a *finding*, which is
# then recorded as not shown.


# %%
def published_task2g() -> dict:
    """What task 2g published, if it was on the same jets."""
    path = paths.WEIGHTS / "task2g_ssl_vit" / "metrics.json"
    theirs = load_metrics(path) if path.is_file() else {}
    same = theirs.get("profile") == PROFILE
    return theirs if same and theirs["data"]["description"] == dataset.description else {}


def beats_constants(arm: str, name: str) -> bool:
    """Whether the error of a target is below that of its mean, and F1 above that of all positive."""
    error, f1 = (results[f"{name.lower()}_{of}", judge].interval(arm) for of in ("mse", "f1"))
    return error[2] < variance[TARGETS.index(name) - 1] and f1[1] > everyone[name]


def compared_transfer(name: str) -> Comparison:
    """All ways on another data set."""
    jets, k = sets[name], int(name.startswith("mass"))
    scores = {
        w: [of_transfer[name, w, s][:, k] for s in numbers if (name, w, s) in of_transfer]
        for w in WAYS
    }
    truth, metric = jets.truth[jets.test, k], mean_squared_error if k else roc_auc
    return Comparison(metric, truth if k else truth.astype(int), scores, "fresh", higher_is_better=not k, n_resamples=100)  # fmt: skip


# %%
transfers = {name: compared_transfer(name) for name in others}
of_tops, of_quarks = (
    next(c for name, c in transfers.items() if name.startswith(kind)) for kind in ("mass", "quark")
)
claims = {
    "self-supervised features add to the shapes for y, m and pT, under a linear head and under one hidden layer":
        {marks(linear, "shapes, linear"), marks(deep, "shapes, one hidden layer")} == {"▲▲▲"},
    "alone they know more of all three than features of random weights": marks(alone, "random alone, linear") == "▲▲▲",
    "alone they know less of y and m than the shapes, and more of pT": marks(alone, "shapes, linear") == "▼▼▲",
    "self-supervised encoder: better than trees for m and pT, no measurable difference for y": marks(HEADLINE, "trees") == "=▲▲",
    "self-supervised encoder: errors of m and pT below those of the mean, F1 above that of calling every jet positive":
        all(beats_constants(HEADLINE, name) for name in everyone),
    "the mixture is better than every expert for y, m and pT": {marks("mixture", other) for other in EXPERTS} == {"▲▲▲"},
    "constant weights were chosen for the mixture; every expert has one for every target": mixture == "constant" and weights.min() > 0.1,
    "the student starts from the contrastive expert": start == "contrastive_expert",
    "the contrastive encoder is the better one on validation jets, with one hidden layer": headline == "contrastive, one hidden layer",
    "the mixture is better than the start continued on labels, and than the transformer on labels for as long, for all three":
        {marks("mixture", other) for other in ("continued", "scratch")} == {"▲▲▲"},
    "labels alone, for longer: the transformer is worse in pT than the contrastive expert, no measurable difference for y and m":
        marks("contrastive_expert", "scratch") == "==▲",
    "the student with the transformer is not measurably different from its start, nor from that continued on labels":
        {marks("student", other) for other in (start, "continued")} == {"==="},
    "the student with the transformer is not measurably better with the mixture as teacher than with its own start":
        marks("student", "own_teacher") == "===",
    "the student with the transformer is better with the mixture as teacher than with the supervised expert, in pT":
        marks("student", "supervised_teacher") == "==▲",
    "the student with the transformer is worse than its teacher for y, m and pT": marks("student", "mixture") == "▼▼▼",
    "the student with both trunks is better than every expert, trees, the other student and the transformer on labels for as long":
        {marks("wide", other) for other in (*EXPERTS, "trees", "student", "scratch")} == {"▲▲▲"},
    "the student with both trunks is not measurably different from the mixture": marks("wide", "mixture") == "===",
    "its start, continued on labels only, is better for pT, without a measurable difference for y and m":
        marks("wide_continued", "wide") == "==▲",
    "mixture and student with both trunks: better than the convolution on labels for longer in y and pT, no measurable difference in m":
        {marks(arm, "longer") for arm in ("mixture", "wide")} == {"▲=▲"},
    "both pre-trained experts are better than the supervised one for pT":
        {marks(arm, "supervised")[2] for arm in EXPERTS[:2]} == {"▲"},
    "the variational expert is better than the contrastive one for m": marks("variational_expert", "contrastive_expert")[1] == "▲",
    "the student with the transformer is better than trees and than the self-supervised encoder for y, m and pT":
        {marks("student", other) for other in ("trees", HEADLINE)} == {"▲▲▲"},
}  # fmt: skip
if theirs := published_task2g():
    for arm, key in (("trees", "trees"), ("shapes, linear", "linear")):
        claims[f"{labels[arm]}: the same AUC and errors as in task 2g"] = all(
            np.isclose(results[n, "test"].values[arm].mean(), theirs["baselines"][key][other]["value"], rtol=1e-5)
            for n, other in zip(DECIDING, ("roc_auc", "mass_mse", "pt_mse"), strict=True)
        )  # fmt: skip
    claims["the views are those of task 2g"] = theirs["variants"]["views"] == str(VIEWS)
findings = {}
for what, comparison in (("tops", of_tops), ("quarks and gluons", of_quarks)):
    for way in ("frozen", "tuned"):
        found = "".join(comparison.mark(way, other) for other in ("fresh", "fresh_longer", "trees"))
        sentence = f"{what}, fewest labels: the {way} student is better than"
        findings |= {
            f"{sentence} from scratch": found[0] == "▲",
            f"{sentence} from scratch with four times the updates": found[1] == "▲",
            f"{sentence} trees": found[2] == "▲",
        }
show_claims(claims | {f"finding: {sentence}": true for sentence, true in findings.items()})
claims |= {("" if true else "not shown: ") + s: True for s, true in findings.items()}

# %%
update_results(
    results_table(
        "test",
        (
            HEADLINE,
            "trees",
            "contrastive_expert",
            "supervised",
            "mixture",
            "student",
            "wide",
            "wide_continued",
        ),
    )
)

# %% [markdown]
# ## 9. Beyond the task
# ### Other jets
# The student with the transformer, the same network from scratch, and trees on two other data sets, with few labels. Intervals contain the trainings and the
# test jets, not the choice of the labelled jets, which are the same for all. The marks compare with scratch, with the longer
# scratch and with trees; a dot stands for the arm itself.

# %%
table = {}
for name, comparison in transfers.items():
    digits = 0 if name.startswith("mass") else 3
    for way, label in WAYS.items():
        value, low, high = (f"{x:.{digits}f}" for x in comparison.interval(way))
        against = ("fresh", "fresh_longer", "trees")
        sign = "".join("·" if way == other else comparison.mark(way, other) for other in against)
        table.setdefault(label, {})[name + " labels"] = f"{value} [{low}, {high}] {sign}"
    if digits == 0:
        variance_there = sets[name].truth[sets[name].test, 1].var()
        table.setdefault("always the mean", {})[name + " labels"] = f"{variance_there:,.0f}"
display(pd.DataFrame(table).T.fillna("").rename_axis("AUC of quarks; MSE of m [GeV²]"))

# %% [markdown]
# The scale of the images is taken away here on purpose, so the numbers are not those of tasks 2h and 2e, where networks see
# energies in GeV and many more labels.
#
# ### A map of the latent space
# t-SNE (van der Maaten & Hinton 2008) keeps neighbours together; distances between far groups mean nothing. Test jets; above,
# features of the self-supervised encoder, which is trained without labels; below, those of the student.

# %%
rows = main.test[: CONFIG.shown]
fig, axes = plt.subplots(2, 3, figsize=(11, 6.6))
mapped = {"self-supervised": encoders[free_best, 0], "student": models["student", 0].encoder}
for line, (name, encoder) in zip(axes, mapped.items(), strict=True):
    f = TASK2G.features_of(encoder, main.images, rows).astype(np.float64)
    f = (f - f.mean(0)) / f.std(0).clip(1e-6)
    perplexity = min(30.0, (len(rows) - 1) / 4)
    place = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(f)
    for axis, target, values in zip(line, TARGETS, main.truth[rows].T, strict=True):
        low, high = np.quantile(values, [0.02, 0.98])
        options = {"cmap": "coolwarm" if target == "y" else "viridis", "vmin": low, "vmax": high}
        dots = axis.scatter(*place.T, c=values, s=6, lw=0, **options)
        axis.set(title=f"{name}: {target}", xticks=[], yticks=[])
        fig.colorbar(dots, ax=axis, label="" if target == "y" else "GeV").ax.grid(False)
plt.show()

# %% [markdown]
# ### Generation: hidden towers
# The variational expert sees 60 % of the towers of a test jet and predicts the others from the mean of its latent distribution
# ("drawn" in the figure, though nothing is sampled). What it should beat is the mean level of a tower at that position, over
# training jets. $R^2$ is one minus the squared error of hidden towers over that of the mean; errors and mean have the weights
# $w$ of the expert's loss.


# %%
@torch.inference_mode()
def drawn_towers(s: int, rows: np.ndarray) -> tuple[torch.Tensor, ...]:
    """Levels of towers and those drawn, (n, 19, 19, 8), and which towers were hidden."""
    towers = TASK2G.towers_of(main.images, rows)
    visible, hidden = hide(towers, epoch_generator(1, 0))
    drawn = network_of(jobs["variational", s]).eval()(visible)[0]
    return tower_levels(towers), drawn, hidden


seen = tower_levels(TASK2G.towers_of(main.images, main.train[: CONFIG.shown]))
average = ((FLOOR + seen) * seen).mean(0) / (FLOOR + seen).mean(0)  # (19, 19, 8)
generated = {}
for s in numbers:
    levels, drawn, hidden = drawn_towers(s, main.test[: CONFIG.shown])
    errors = [
        ((FLOOR + levels) * (x - levels).square())[hidden].sum(0)
        for x in (drawn, average.expand_as(levels))
    ]
    generated[s] = (1 - errors[0] / errors[1]).numpy()  # (8,)
explained = pd.DataFrame(generated, CHANNELS).T
display(explained.agg(["mean", "std"]).rename_axis("R² of hidden towers").style.format("{:+.3f}"))

# %% [markdown]
# The test jet with the most activity in the ECAL, drawn by the expert of the last training.

# %%
fig, axes = plt.subplots(1, 4, figsize=(12, 2.9))
ecal = CHANNELS.index("ECAL")
jet = int(levels[..., ecal].flatten(1).sum(1).argmax())  # the one with most to see
whole, own, lost = levels[jet, ..., ecal], drawn[jet, ..., ecal], hidden[jet]
pictures = {
    "ECAL of a jet": whole, "visible": whole.masked_fill(lost, torch.nan),
    "visible, rest drawn": torch.where(lost, own, whole), "mean of jets": average[..., ecal],
}  # fmt: skip
for axis, (title, picture) in zip(axes, pictures.items(), strict=True):
    plotting.heat_image(axis, picture.numpy(), title, vmin=0, vmax=float(whole.max()))
    axis.set(xlabel="", ylabel="", xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ### Finer pixels
# Super-resolution in the same language: the input knows of each tower only its sum, spread evenly. A *linear* head shares it
# among the 25 pixels; a softmax keeps the sum exact. It reads the tower and its eight neighbours in all channels, and in
# addition the student's maps at that place, or, as a control, those of an encoder with random weights. Score: cross-entropy
# $-\sum E\ln p/\sum E$ in nats, on the jets that the head was fitted to and on others; an even split has $\ln25$. ±: standard
# deviation over trainings, where a row has any.

# %%
FINE = tuple(CHANNELS.index(name) for name in ("track pT", "ECAL"))


def coarse(towers: torch.Tensor) -> torch.Tensor:
    """Towers (B, 19, 19, 40) whose sum is spread evenly over their 25 pixels."""
    v = towers[..., ::SUMS]
    zero = torch.zeros_like(v)
    kinds = [v, TASK2G.TOWER**2 * (v > 0).to(v), zero, zero, v.square() / TASK2G.TOWER**2]
    return torch.stack(kinds, -1).flatten(3)  # (B, 19, 19, 8, 5) -> (B, 19, 19, 40)


def maps_of(encoder: nn.Module, towers: torch.Tensor) -> torch.Tensor:
    """Tokens after the last block, each at its tower, zero where there is none: (B, 48, 19, 19)."""
    found = {}
    hook = encoder.norm.register_forward_hook(lambda *passed: found.update(x=passed[2]))
    encoder(towers)
    hook.remove()
    activity = towers[..., 1::SUMS].sum(3).flatten(1)  # (B, 361), as the transformer ranks them
    earlier = torch.arange(GRID**2) * 1e-4
    place = (activity - earlier).topk(encoder.tokens, 1).indices.unsqueeze(2)  # (B, N, 1)
    maps = torch.zeros(len(towers), GRID**2, found["x"].shape[2])
    maps.scatter_(1, place.expand_as(found["x"]), found["x"])
    return maps.transpose(1, 2).unflatten(2, (GRID, GRID))  # (B, 361, C) -> (B, C, 19, 19)


# %%
@torch.no_grad()
def fine_data(encoder: nn.Module, rows: np.ndarray) -> tuple[torch.Tensor, ...]:
    """Of active towers: what they and their neighbours say, the maps besides, and pixels (n, 2, 25)."""
    columns, crop = [], slice(TASK2G.BORDER, TASK2G.SIDE - TASK2G.BORDER)
    encoder = encoder.cpu().eval()
    for part in TASK2G.in_parts(rows, 100):
        low = coarse(TASK2G.towers_of(main.images, part))
        pixels = main.images.dense(part)[:, FINE, crop, crop]  # (B, 2, 95, 95)
        pixels = pixels.reshape(len(part), 2, GRID, 5, GRID, 5).permute(0, 2, 4, 1, 3, 5).flatten(4)
        own = tower_levels(low).permute(0, 3, 1, 2)  # (B, 8, 19, 19)
        own = functional.unfold(own, 3, padding=1).unflatten(2, (GRID, GRID))  # (B, 72, 19, 19)
        active = pixels.sum((3, 4)) > 0  # (B, 19, 19)
        inputs = torch.cat([own, maps_of(encoder, low)], 1).permute(0, 2, 3, 1)[active]
        columns.append((inputs[:, : own.shape[1]], inputs, pixels[active]))
    return tuple(torch.cat(column) for column in zip(*columns, strict=True))


# %%
def share_loss(logits: torch.Tensor, energy: torch.Tensor) -> torch.Tensor:
    """Energy-weighted cross-entropy of the shares of 25 pixels; (n, 2, 25) twice -> (2,)."""
    terms = -(energy * logits.log_softmax(2)).sum((0, 2))
    return terms / energy.sum((0, 2)).clamp(min=1e-6)


# %%
def fit_shares(x: torch.Tensor, energy: torch.Tensor) -> nn.Module:
    """Linear map of standardised inputs (n, F) to logits (n, 2, 25)."""
    seed_everything(0)
    norm = nn.BatchNorm1d(x.shape[1], affine=False, momentum=None)
    head = nn.Sequential(norm, nn.Linear(x.shape[1], 50), nn.Unflatten(1, (2, 25)))
    optimizer = torch.optim.AdamW(head.parameters(), 3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 3e-3, total_steps=CONFIG.head_steps, pct_start=0.15
    )
    for step in range(CONFIG.head_steps):
        batch = torch.randint(len(x), (1024,), generator=torch_generator(1, step))
        optimizer.zero_grad()
        share_loss(head(x[batch]), energy[batch]).sum().backward()
        optimizer.step()
        schedule.step()
    return head.eval()


@torch.no_grad()
def losses_of(head: nn.Module, seen: tuple, new: tuple) -> torch.Tensor:
    """Losses of a head on inputs and pixels that it was fitted to and on others: (2, 2)."""
    return torch.stack([share_loss(head(x), energy) for x, energy in (seen, new)])


# %%
sharing: dict[str, list] = {}  # row -> losses (2: seen and new jets, 2 channels) of each training
for s in numbers:
    for kind, encoder in {"the student": models["student", s].encoder, "random weights": encoders["random", s]}.items():  # fmt: skip
        x, with_maps, energy = fine_data(encoder, main.train[: CONFIG.shown])
        x_test, with_maps_test, truth_test = fine_data(encoder, main.test[: CONFIG.shown])
        head = fit_shares(with_maps, energy)
        sharing.setdefault(f"with maps of {kind}", []).append(
            losses_of(head, (with_maps, energy), (with_maps_test, truth_test))
        )
constant_heads = {  # no training touches these
    "tower and neighbours": losses_of(fit_shares(x, energy), (x, energy), (x_test, truth_test)),
    "mean shares": torch.stack([share_loss((energy.sum(0) + 1e-3).log().expand_as(e), e) for e in (energy, truth_test)]),
    "even": torch.stack([share_loss(torch.zeros_like(e), e) for e in (energy, truth_test)]),
}  # fmt: skip
frame = {}
for row, found in (sharing | {name: [value] for name, value in constant_heads.items()}).items():
    values = torch.stack(found)  # (trainings, 2, 2)
    for (part, jets_of), (k, channel) in product(
        enumerate(("fitted", "new")), enumerate(CHANNELS[c] for c in FINE)
    ):
        spread = f" ± {values[:, part, k].std():.4f}" if len(values) > 1 else ""
        column = f"{channel}, {jets_of} jets"
        frame.setdefault(row, {})[column] = f"{values[:, part, k].mean():.4f}{spread}"
display(pd.DataFrame(frame).T.rename_axis("nats"))

# %% [markdown]
# ## 10. Weights and metrics
# The ONNX graphs take official images (8, 125, 125); towers, shapes, encoder and head are inside, and $P(y=1)$, $m$ and
# $p_T$ in GeV come out. `make score TASK=task2i_foundation DATA=file.h5` runs the self-supervised encoder on an
# independent sample without PyTorch, `MODEL=student` the student.

# %%
card = {"profile": PROFILE, "data": dataset.description, "data_source": dataset.source, "task": run.task}  # fmt: skip
batches = [main.images.dense(splits.validation[:n]) for n in (5, 1, 7)]
better = max(("student", "wide"), key=mean_quality)
for file, name, arm in (("selfsupervised", run.task, HEADLINE), ("student", "student", better)):
    networks = [models[headline if arm == HEADLINE else arm, s] for s in numbers]
    best = int(np.argmax([validated(model, main) for model in networks]))
    about, model = card | {"kind": "binary_classification"}, networks[best].cpu()
    run.save_onnx(name, TASK2G.RawInput(model), batches, about, ("probability", "m", "pT"), tolerance=0.05)  # fmt: skip
    save_weights(run.directory / f"{file}.safetensors", model, card | {"arm": arm, "training": best})  # fmt: skip


# %%
def described(arm: str) -> dict:
    """Results of one arm on the test set, with its size, for metrics.json."""
    info = {"description": labels.get(arm, arm)}
    if arm != "trees" and "shapes" not in arm:
        info |= size_of(EXPERTS if arm == "mixture" else [arm])
    scores = {name: results[name, "test"].entry(arm, HEADLINE) for name in METRICS}
    return scores | {"info": info}


constant = {"roc_auc": {"value": 0.5, "low": 0.5, "high": 0.5}, "info": {"description": "constant"}}
rivals = "trees", "shapes, linear", "shapes, one hidden layer", "supervised", *CONTROLS
metrics = run.save_metrics(
    title="Task 2i: self-supervised encoder for jets with shallow heads, and a distilled mixture",
    data={"source": dataset.source, "fingerprint": dataset.fingerprint, "description": dataset.description,
          "unlabelled": len(unlabelled)} | {part: len(rows) for part, rows in splits._asdict().items()},
    published=[f"{run.task}.onnx", "student.onnx", "selfsupervised.*"],
    seeds=list(numbers),
    headline="roc_auc",
    metrics={name: results[name, "test"].entry(HEADLINE) for name in METRICS},
    baselines={"constant": constant} | {arm.replace(", ", "_").replace(" ", "_"): described(arm) for arm in rivals},
    arms={arm.replace(", ", "_").replace(" ", "_"): described(arm) for arm in predictions if arm not in (*rivals, HEADLINE)},
    floors={},
    variants={
        "judge": judge, "medians_gev": {name: float(medians[name]) for name in TARGETS[1:]},
        "on_judge": {arm: {name: results[name, judge].entry(arm) for name in METRICS} for arm in predictions},
        "differences": {f"{arm}, {other}, {name}": list(results[name, judge].difference(arm, other))
                        for (arm, other), name in product(pairs, DECIDING)},
        "transfer": {name: {way: c.entry(way) for way in WAYS} for name, c in transfers.items()},
        "hidden_towers_r2": explained.mean().to_dict(), "costs": costs, "aims": aims,
        "findings": {sentence: bool(true) for sentence, true in findings.items()},
    },
    claims={sentence: bool(true) for sentence, true in claims.items()},
    **sizes["student"],
)  # fmt: skip

# %% [markdown]
# ## 11. Discussion, limits, references
# **Choices.** *The encoder* is a transformer over the most active towers. An edition of this notebook before had ResNet-15 in its
# place, whose self-supervised features knew little of $p_T$; in task 2g the transformer gained more from pre-training, on
# validation jets as well. *One latent vector for every arm*, with the shapes in it: an encoder is not credited with what a formula
# knows. *Heads*: the linear one says what can be read off the latent vector directly; the hidden layer finds what is only
# non-linearly accessible. A deeper head could find it by itself and would hide a poor encoder. *Answers, not features, are
# distilled*: they are what is scored.
#
# **The self-supervised encoder.** Contrasting views keeps what survives smearing and lost hits, such as the pattern of prongs and
# how narrow the jet is, which tells $p_T$. Reconstruction is paid for towers with much energy, and is the weaker of the two on
# validation jets, with as many images seen; but after a training with labels the variational expert estimates $m$ better than the contrastive one,
# so the two know different things. All this is after a few passes over the unlabelled jets, where the papers make hundreds.
#
# **The mixture** gains where its experts err on different jets. A convolution and two transformers with different beginnings
# do; in the edition before, all experts were one network, two of them frozen, and their mixture was better than the best in
# nothing. A gate that reads the answers lost to constant weights: there are only the validation jets to learn it from.
#
# **The student.** With the transformer alone it is limited by what this network can hold. It reads the most active towers only, and
# ends with the same $y$ and $m$ whether the mixture, its own start or nobody teaches it, and with the supervised expert, a
# convolution, as well; only in $p_T$ the mixture is the better teacher of the two. With both trunks it reaches the mixture, and
# costs less than three experts. Its rival, whose whole batch has labels, is better for $p_T$ and level for the rest: labels are worth
# at least as much as the answers of a teacher who learned from the same labels. A convolution on labels alone, for as long, is
# level with mixture and student for $m$, and worse for $y$ and $p_T$.
#
# **Momentum.** Images scaled to their largest pixel have lost the energy. Both pre-trained experts find more of $p_T$ than the
# convolution does, and the contrastive one more than the same network after a longer training from random weights.
#
# **Other jets.** With a hundred labels, four times the updates make scratch worse, so the short training is the one that counts. For
# quarks and gluons the tuned student is better than it, and not measurably better than trees. For tops neither the frozen nor the
# tuned student is measurably better than scratch, and trees are better than all of them.
#
# **Generation** here is a test of what the features remember, not a simulation: the decoder gives a (weighted) mean of what
# could be behind a hidden tower, and means have no fluctuations. It explains part of the hidden towers of tracks, ECAL and HCAL, and
# little elsewhere. For finer pixels of new jets the student's maps help no more than those of random weights; what the tower and
# its neighbours tell is nearly all there is to know.
#
# **Limits.** Numbers on stand-in jets compare methods on the same jets; they do not predict those on the official files. All
# arms are better on the test jets than on the independent ones. So are plain shapes, so the test jets seem to be easier, but
# partners of test jets among the training jets may contribute: absolute values are those of the independent sample. Nothing is
# trained or chosen on that sample in a run, but editions with other encoders had been scored on it before, and the student with both
# trunks was added when the experts had been. What the label means is undocumented; we take 1 for a top. All arms train for
# minutes, and self-supervision is known to need hundreds of passes. No label enters the training of a self-supervised encoder,
# but some choices use labels: task 2g chose the drop-out of the views with linear probes on labelled training jets, and
# validation jets chose the better encoder and its head. The rate of the pre-trainings is that of task 2g and was not tuned; other
# rates were two values, tried once. The mixture is fitted to the jets on which heads and rounds were chosen, which flatters its
# choice a little but touches no test jet. Networks that learn from labels only, for as long, have no pre-training in their budget.
# All trainings share one set of labelled and one of unlabelled jets, and trees and linear fits to shapes enter without any spread;
# how much another set would change is in no interval. The bootstrap draws the two jets of an event as if they were independent.
# Students take the rate that their control prefers. On other jets, rates and rounds are chosen on more validation jets than there
# are training labels, for all networks alike. Spreads of arms that share experts are added as if they were independent, so the
# intervals are rather too wide. The controls with labels only have twice as many labelled jets in a batch as a student: equal
# images per update, not equal label noise. Not studied: distilling latent vectors (Ranzinger et al., arXiv:2312.06709), other
# temperatures, longer students.
#
# **References.** T. Chen et al., *SimCLR*, arXiv:2002.05709. B. Dillon et al., *Symmetries, safety, and
# self-supervision*, arXiv:2108.04253. D. Kingma, M. Welling, *Auto-encoding variational Bayes*, arXiv:1312.6114. K. He et
# al., *Masked autoencoders*, arXiv:2111.06377. K. He et al., *Deep residual learning*, arXiv:1512.03385. R. Jacobs et
# al., *Adaptive mixtures of local experts* (1991). J. Ma et al., *Multi-gate mixture-of-experts* (KDD 2018). G. Hinton et
# al., *Distilling the knowledge in a neural network*, arXiv:1503.02531. T. Chen et al., *Big self-supervised models are
# strong semi-supervised learners*, arXiv:2006.10029. M. Ranzinger et al., *AM-RADIO*, arXiv:2312.06709. L. van der Maaten,
# G. Hinton, *Visualizing data using t-SNE* (2008). L. Smith, N. Topin, *Super-convergence*, arXiv:1708.07120.
