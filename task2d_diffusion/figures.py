"""The two figures of task 2d that compare generators."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from e2e_utils import plotting
from e2e_utils.sparse_images import SparseImages
from task2d_diffusion.observables import in_words
from task2d_diffusion.towers import ECAL, HCAL, PIXELS, TRACK

FIRST_LAYER = 5  # of the pixel detector
BLUE, ORANGE, GREEN, *_, BLACK = plotting.PALETTE
MARKERS = {HCAL: ("lightgrey", 1.3), ECAL: (BLUE, 2.2), FIRST_LAYER: (ORANGE, 3), TRACK: (BLACK, 3)}


def jet_figure(columns: Mapping[str, SparseImages], channels: Sequence[str]) -> Figure:
    """The active pixels of as many jets of each kind, a column per kind, a colour per channel."""
    rows = min(map(len, columns.values()))
    size = 2.6 * len(columns), 2.6 * rows + 0.7
    fig, axes = plt.subplots(rows, len(columns), figsize=size, sharex=True, sharey=True)
    for line, (name, images) in zip(np.reshape(axes, (rows, -1)).T, columns.items(), strict=True):
        for axis, image in zip(line, images.dense(np.arange(rows)).numpy(), strict=True):
            for channel, (color, marker_size) in MARKERS.items():
                row, column = np.nonzero(image[channel])
                options = {"color": color, "ms": marker_size, "mew": 0, "label": channels[channel]}
                axis.plot(column, row, "s", **options)
            axis.set(xlim=(0, PIXELS), ylim=(0, PIXELS), aspect="equal")
            axis.grid(False)
        line[0].set_title(name)
    fig.supxlabel("iphi")
    fig.supylabel("ieta")
    handles, labels = fig.axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=len(labels), markerscale=2)
    return fig


def observables_figure(
    real: pd.DataFrame,
    made: Mapping[str, pd.DataFrame],
    titles: Mapping[str, str],
    channels: Sequence[str],
) -> Figure:
    """Distributions of the observables in ``titles`` (at most eight), four in a row."""
    lines = -(-len(titles) // 4)
    fig, axes = plt.subplots(lines, 4, figsize=(11, 2.8 * lines + 0.2), squeeze=False)
    for axis, (column, title) in zip(axes.flat, titles.items(), strict=False):
        bins = np.linspace(*np.quantile(real[column], [0.003, 0.997]), 31)
        axis.hist(real[column], bins, density=True, color="lightgrey", label="test jets")
        styles = zip((BLUE, ORANGE, GREEN, BLACK), plotting.LINES, strict=True)
        for (name, table), (color, line) in zip(made.items(), styles, strict=False):
            options = {"histtype": "step", "color": color, "ls": line, "label": name}
            axis.hist(table[column], bins, density=True, **options)
        axis.set(xlabel=in_words(column, channels), title=title, yticks=[])
    for axis in axes[:, 0]:
        axis.set_ylabel("density of jets")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return fig
