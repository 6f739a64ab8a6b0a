"""Plots in one style. Functions draw on the given axes and return them."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, SymLogNorm
from matplotlib.ticker import MaxNLocator

from e2e_utils.metrics import Interval, calibration_bins, roc_auc, roc_band

# Okabe & Ito (2008), readable with every kind of colour blindness; yellow left out.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LINES = ("-", "--", "-.", ":")
ENERGY_FLOOR = 1e-3  # GeV, lower end of the logarithmic colour scale


def set_style() -> None:
    """Fonts, colours and resolution of every figure; call it once, at the top."""
    plt.rcParams.update(
        {
            "figure.dpi": 90,
            "savefig.dpi": 90,
            "figure.constrained_layout.use": True,
            "font.size": 11,
            "axes.titlesize": 11,
            "axes.prop_cycle": plt.cycler(color=PALETTE),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "legend.frameon": False,
            "legend.fontsize": 9.5,
            "lines.linewidth": 1.6,
            "image.origin": "lower",
            "image.interpolation": "nearest",
        }
    )


def heat_image(
    axis: Axes, image: np.ndarray, title: str = "", label: str = "", **options: object
) -> Axes:
    """One (rows, columns) image over ieta (rows) and iphi (columns) with a colour bar."""
    mesh = axis.imshow(image, **({"cmap": "viridis"} | options))
    axis.set(title=title, xlabel="iphi", ylabel="ieta")
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_locator(MaxNLocator(4, integer=True))
    axis.grid(False)
    axis.spines[:].set_visible(True)
    bar = axis.inset_axes([1.03, 0, 0.05, 1])  # as high as the image, whatever its aspect
    bar.grid(False)
    axis.figure.colorbar(mesh, cax=bar, label=label)
    bar.minorticks_off()
    return axis


def event_image(axis: Axes, energy: np.ndarray, title: str = "", label: str = "E [GeV]") -> Axes:
    """Energy (rows, columns) in GeV on a logarithmic scale; pixels without a hit stay white."""
    top = max(float(energy.max()), 10 * ENERGY_FLOOR)
    norm = LogNorm(vmin=ENERGY_FLOOR, vmax=top)
    return heat_image(axis, np.ma.masked_less_equal(energy, 0), title, label, norm=norm)


def difference_image(
    axis: Axes, difference: np.ndarray, title: str = "", label: str = "ΔE [GeV]"
) -> Axes:
    """Signed image (rows, columns): colours linear up to a hundredth of the largest, then log."""
    span = max(float(np.abs(difference).max()), 1e-12)
    decade = 10 ** np.floor(np.log10(span))
    norm = SymLogNorm(linthresh=decade / 30, vmin=-span, vmax=span)
    heat_image(axis, difference, title, label, cmap="RdBu_r", norm=norm)
    ticks = [-decade, -decade / 10, 0, decade / 10, decade]
    axis.images[0].colorbar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    return axis


def class_histogram(
    axis: Axes,
    values: np.ndarray,
    y: np.ndarray,
    label: str,
    names: Sequence[str],
    bins: int | np.ndarray = 50,
) -> Axes:
    """Unit-area histograms of a variable, one outline per class, between its 0.5 % quantiles."""
    values, y = np.asarray(values), np.asarray(y)
    if np.ndim(bins) == 0:
        bins = np.linspace(*np.quantile(values, [0.005, 0.995]), bins + 1)
    for number, name in enumerate(names):
        axis.hist(
            values[y == number], bins, density=True, histtype="step", lw=1.6, label=name,
            ls=LINES[number], color=PALETTE[number],
        )  # fmt: skip
    axis.set(xlabel=label, ylabel="probability density")
    axis.legend()
    return axis


def score_distributions(axis: Axes, y: np.ndarray, score: np.ndarray, names: Sequence[str]) -> Axes:
    """Distribution of the predicted probability of class 1 for each true class."""
    label = f"predicted P({names[1]})"
    return class_histogram(axis, score, y, label, names, bins=np.linspace(0, 1, 41))


def learning_curves(
    axis: Axes, histories: Sequence[pd.DataFrame], metric: str, choose: str
) -> Axes:
    """Training and validation ``metric`` per epoch, one line pair a seed.

    A history has the columns ``epoch``, ``train_<metric>`` and ``validation_<metric>``. The epoch
    with the highest validation value of ``choose`` (lowest for a loss) is marked.
    """
    for number, history in enumerate(histories):
        first = number == 0
        chosen = history[f"validation_{choose}"]
        best = chosen.idxmin() if choose.endswith("loss") else chosen.idxmax()
        for part, color, line in (("train", PALETTE[1], "--"), ("validation", PALETTE[0], "-")):
            values = history[f"{part}_{metric}"]
            axis.plot(
                history.epoch, values, line, color=color, marker=".", alpha=1 if first else 0.5,
                label=part if first else None,
            )  # fmt: skip
        axis.plot(
            history.epoch[best], values[best], "o", ms=9, mfc="none", mec=PALETTE[6],
            label="chosen epoch" if first else None,
        )  # fmt: skip
    names = {"roc_auc": "ROC-AUC"}
    axis.set(xlabel="epoch", ylabel=names.get(metric, metric.replace("_", " ")))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend()
    return axis


def roc_curves(
    axis: Axes, y: np.ndarray, scores: Mapping[str, np.ndarray], n_resamples: int = 100
) -> Axes:
    """ROC curves with 95 % bootstrap bands, signal efficiency against background efficiency."""
    fpr = np.linspace(0, 1, 201)
    for number, (name, score) in enumerate(scores.items()):
        value, low, high = roc_band(y, score, fpr, n_resamples)
        color = PALETTE[number % len(PALETTE)]
        label = f"{name}: AUC {roc_auc(y, score):.4f}"
        axis.plot(fpr, value, color=color, ls=LINES[number % len(LINES)], label=label)
        axis.fill_between(fpr, low, high, color=color, alpha=0.2, lw=0)
    axis.plot([0, 1], [0, 1], color="grey", lw=0.8, zorder=0)
    axis.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(0, 1), ylim=(0, 1.01))
    axis.legend(loc="lower right")
    return axis


def reliability_diagram(
    axis: Axes, y: np.ndarray, scores: Mapping[str, np.ndarray], n_bins: int = 15
) -> Axes:
    """Share of class 1 against the mean prediction per bin, with binomial error bars."""
    axis.plot([0, 1], [0, 1], color="grey", lw=0.8, label="perfectly calibrated")
    for number, (name, score) in enumerate(scores.items()):
        mean, share, count = calibration_bins(y, score, n_bins=n_bins)
        error = np.sqrt(np.clip(share * (1 - share), 1e-4, None) / count)
        axis.errorbar(
            mean, share, error, fmt="os^D"[number % 4], ms=4.5, capsize=2, label=name,
            color=PALETTE[number % len(PALETTE)],
        )  # fmt: skip
    axis.set(xlabel="mean predicted probability", ylabel="share of class 1", xlim=(0, 1))
    axis.legend()
    return axis


def with_intervals(
    axis: Axes, x: np.ndarray, intervals: Sequence[Interval], label: str = ""
) -> Axes:
    """Values with their bootstrap intervals as error bars."""
    value, low, high = np.array(intervals).T
    axis.errorbar(x, value, [value - low, high - value], fmt="o-", ms=4.5, capsize=3, label=label)
    return axis
