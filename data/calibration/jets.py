"""The quark/gluon stand-in against published numbers of the official files.

    python -m data.calibration.jets --events 6000

makes stand-in jets if they are missing, draws data/figures/jets_*.png, and rewrites the table
between the markers in data/README.md. No official jet is needed: the published numbers stand here.
"""

import argparse
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.calibration.report import auc_interval, save, update_readme
from data.catalog import dataset
from data.loaders import load_quark_gluon
from data.loaders.jets import CHANNELS, JetDataset
from data.readers.nested_parquet import nested
from data.simulate.jets import generate
from e2e_utils.errors import command_line
from e2e_utils.jet_resolution import low_resolution

CLASSES = ("gluon", "quark")  # label 0, 1
SIZE, CHUNK = 125, 200
CORE = 28.6  # pixels: the jet radius of 0.5
RINGS = (0, 2, 5, 10, 20, 30)  # pixels from the image's centre

# Printed by public notebooks that read the official files (facts behind data/README.md).
PT_MEAN, PT_RANGE = 117.0, (70.4, 337.1)  # GeV; the range is that of all 139,306 jets
MASS_MEAN, MASS_RANGE = 21.0, (7.8, 46.5)  # GeV; the range is that of a part of them
ZEROS = (99.7, 97.8, 97.8)  # % of the pixels: tracks, ECAL, HCAL
NETWORK_AUC = (0.7885, 0.8146)  # EdgeConv, ensembles of image networks


def official_bytes() -> float:
    """Bytes of a jet in the official files: a measure of how many different values it has."""
    files = dataset("quark_gluon")["file"]
    jets = sum(file["keys"]["y"]["shape"][0] for file in files)
    return sum(file["bytes"][0] for file in files) / jets


def bytes_as_official(images: np.ndarray) -> float:
    """Bytes of a jet when images (n, 3, 125, 125) are written as the official files are."""
    n = len(images)
    columns = {"X_jets": nested(images)} | {name: np.zeros(n) for name in ("pt", "m0", "y")}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "jets.parquet"
        pq.write_table(pa.table(columns), path, row_group_size=1, compression="snappy")
        return path.stat().st_size / n


def jet_shapes(images: np.ndarray) -> dict[str, np.ndarray]:
    """Shapes of images (n, 3, 125, 125); each entry (n,) float64.

    For every channel, within the jet's radius: ``sum``, ``hits``, ``width`` (mean distance from
    the centre in pixels, weighted), ``ptd`` (sqrt of the sum of squares over the sum) and the share
    of the sum in RINGS.
    """
    position = np.arange(SIZE) - SIZE // 2
    distance = np.hypot(position[:, None], position[None, :]).ravel()
    inside = distance < CORE
    flat = images.reshape(len(images), len(CHANNELS), -1)  # (n, 3, 125, 125) -> (n, 3, 15625)
    value = np.maximum(flat[..., inside], 0.0).astype(np.float64)
    total = value.sum(axis=2)
    safe = np.maximum(total, 1e-9)
    columns = {
        "sum": total,
        "hits": (value > 0).sum(axis=2).astype(np.float64),
        "width": (value @ distance[inside]) / safe,
        "ptd": np.sqrt((value**2).sum(axis=2)) / safe,
    }
    for low, high in pairwise(RINGS):
        ring = (distance[inside] >= low) & (distance[inside] < high)
        columns[f"ring{low}"] = value[..., ring].sum(axis=2) / safe
    return {
        f"{name} {channel}": values[:, k]
        for name, values in columns.items()
        for k, channel in enumerate(CHANNELS)
    }


def shapes_of(jets: JetDataset) -> dict[str, np.ndarray]:
    """`jet_shapes` of all jets with their pT and mass, a chunk in memory at a time."""
    parts = [jet_shapes(images.numpy()) for _, images in jets.images.iter_dense(CHUNK)]
    shapes = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {"pt": jets.pt, "m0": jets.m0} | shapes


def zero_shares(jets: JetDataset) -> np.ndarray:
    """(3,): % of the pixels that are zero, of every channel."""
    counts = np.zeros(len(CHANNELS))
    for _, images in jets.images.iter_dense(CHUNK):
        counts += (images != 0).sum(dim=(0, 2, 3)).numpy()
    return 100.0 * (1.0 - counts / (len(jets) * SIZE**2))


def separation(shapes: dict[str, np.ndarray], y: np.ndarray) -> tuple[float, float, float]:
    """ROC-AUC of gradient boosting on the shapes (5 folds), with its 95 % interval."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    model = HistGradientBoostingClassifier(
        max_iter=100, learning_rate=0.06, max_leaf_nodes=8, l2_regularization=1.0, random_state=0
    )
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    matrix = np.stack(list(shapes.values()), axis=1)
    scores = cross_val_predict(model, matrix, y, cv=folds, method="predict_proba")[:, 1]
    return auc_interval(y, scores, rounds=200)


def single_aucs(shapes: dict[str, np.ndarray], y: np.ndarray) -> dict[str, float]:
    """ROC-AUC of each shape alone; above 0.5: larger for quarks."""
    from sklearn.metrics import roc_auc_score

    return {name: float(roc_auc_score(y, values)) for name, values in shapes.items()}


def table(jets: JetDataset, shapes: dict[str, np.ndarray]) -> str:
    """Markdown: published numbers, stand-in, and the stand-in's classes apart."""
    y = jets.y
    lines = ["| | published | stand-in | gluon | quark |", "| --- | --- | --- | --- | --- |"]

    def line(label: str, published: str, values: np.ndarray, digits: int) -> None:
        cells = [f"{values[rows].mean():.{digits}f}" for rows in (y >= 0, y == 0, y == 1)]
        lines.append(f"| {label} | {published} | " + " | ".join(cells) + " |")

    line("jet pT, mean (GeV)", f"{PT_MEAN:g}", shapes["pt"], 1)
    low, high = shapes["pt"].min(), shapes["pt"].max()
    lines.append(
        f"| jet pT, range (GeV) | {PT_RANGE[0]} to {PT_RANGE[1]} | {low:.1f} to {high:.1f} | | |"
    )
    line("jet mass, mean (GeV)", f"{MASS_MEAN:g}", shapes["m0"], 1)
    low, high = np.quantile(shapes["m0"], (0.005, 0.995))
    lines.append(
        f"| jet mass, range (stand-in: 0.5 to 99.5 %; GeV) | {MASS_RANGE[0]} to {MASS_RANGE[1]} "
        f"| {low:.1f} to {high:.1f} | | |"
    )
    for channel, published, ours in zip(CHANNELS, ZEROS, zero_shares(jets), strict=True):
        lines.append(f"| zero pixels, {channel} (%) | {published} | {ours:.2f} | | |")
    images = jets.images.dense(np.arange(min(CHUNK, len(jets)))).numpy().astype(np.float64)
    size = bytes_as_official(images)
    label = "bytes a jet, written as the official files"
    lines.append(f"| {label} | {official_bytes():,.0f} | {size:,.0f} | | |")
    ratio = images.sum() / low_resolution(images).sum()
    lines.append(f"| energy, high over low resolution | 4.0000 | {ratio:.4f} | | |")
    for name in ("hits", "width", "ptd"):
        for channel in CHANNELS:
            label = {"hits": "active pixels", "width": "width (pixels)", "ptd": "pT-D"}[name]
            line(f"{label}, {channel}, in the jet", "", shapes[f"{name} {channel}"], 2)
    value, low, high = separation(shapes, y)
    best = sorted(single_aucs(shapes, y).items(), key=lambda pair: -abs(pair[1] - 0.5))[:3]
    singles = ", ".join(f"{name} {max(auc, 1 - auc):.3f}" for name, auc in best)
    lines += [
        "",
        f"Gradient boosting on {len(shapes)} shapes, {len(jets):,} stand-in jets, 5 folds: ROC-AUC "
        f"{value:.3f} [{low:.3f}, {high:.3f}] (95 % interval). Best single shapes: {singles}. "
        f"Networks on the official jets reach {NETWORK_AUC[0]:.3f} to {NETWORK_AUC[1]:.3f}.",
    ]
    return "\n".join(lines)


def draw_shapes(jets: JetDataset, shapes: dict[str, np.ndarray]) -> None:
    """Distributions of both classes."""
    import matplotlib.pyplot as plt

    names = ["pt", "m0", *(f"{n} {c}" for n in ("hits", "width") for c in CHANNELS)]
    figure, axes = plt.subplots(2, 4, figsize=(15, 6.5))
    for axis, name in zip(axes.flat, names, strict=True):
        bins = np.linspace(*np.quantile(shapes[name], (0.002, 0.995)), 31)
        for label, colour in enumerate(("tab:blue", "tab:orange")):
            values = shapes[name][jets.y == label]
            style = {"histtype": "stepfilled", "alpha": 0.4, "density": True}
            axis.hist(values, bins, color=colour, label=CLASSES[label], **style)
        unit = " (GeV)" if name in ("pt", "m0") else ""
        axis.set(xlabel=f"{name}{unit}", ylabel="density")
    published = {"pt": PT_MEAN, "m0": MASS_MEAN}
    for axis, mean in zip(axes.flat, published.values(), strict=False):
        axis.axvline(mean, color="black", linestyle="--", label="published mean")
    axes.flat[0].legend()
    figure.suptitle("Stand-in jets: pT, mass, active pixels and widths (pixels) within R = 0.5")
    figure.tight_layout()
    save(figure, "jets_shapes.png")


def draw_images(jets: JetDataset) -> None:
    """One jet and the mean image of each class, in every channel."""
    import matplotlib.pyplot as plt
    from matplotlib.colors import LogNorm

    figure, axes = plt.subplots(4, 3, figsize=(10, 12.5), sharex=True, sharey=True)
    for label, name in enumerate(CLASSES):
        rows = np.flatnonzero(jets.y == label)
        single = jets.images.dense(rows[:1])[0].numpy()
        mean = jets.images.dense(rows[:1000]).mean(dim=0).numpy()
        for line, (title, image, floor) in enumerate(
            ((f"one {name} jet", single, 0.02), (f"mean of {name} jets", mean, 1e-4))
        ):
            for axis, channel, pixels in zip(axes[2 * label + line], CHANNELS, image, strict=True):
                shown = np.ma.masked_less_equal(pixels, floor)
                axis.imshow(shown, origin="lower", norm=LogNorm(floor, max(pixels.max(), 1.0)))
                axis.set_title(f"{title}, {channel}", fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("phi (pixels)")
    for axis in axes[:, 0]:
        axis.set_ylabel("eta (pixels)")
    figure.tight_layout()
    save(figure, "jets_images.png")


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--events", type=int, default=6000, help="stand-in jets to compare")
    arguments = parser.parse_args()
    jets = load_quark_gluon(path=generate(arguments.events))
    shapes = shapes_of(jets)
    draw_shapes(jets, shapes)
    draw_images(jets)
    text = table(jets, shapes)
    update_readme(text, "jets")
    print(text)


if __name__ == "__main__":
    main()
