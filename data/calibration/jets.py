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

from data.calibration.report import Editions, auc_interval, save, update_readme
from data.catalog import dataset
from data.loaders import load_quark_gluon
from data.loaders.jets import CHANNELS, JetDataset
from data.readers.nested_parquet import nested
from data.simulate.jets import generate
from e2e_utils.errors import command_line
from e2e_utils.jet_resolution import low_resolution

CLASSES = ("gluon", "quark")  # label 0, 1
SIZE, CHUNK, STATISTICS = 125, 200, 3000  # pixels a side; jets at a time, and of the statistics
CORE = 28.6  # pixels: the jet radius of 0.5
RINGS = (0, 2, 5, 10, 20, 30)  # pixels from the image's centre

# What public notebooks print of the official files, and the first edition's numbers; by channel
PT_MEAN, PT_RANGE = 117.0, (70.4, 337.1)  # GeV; the range is that of all 139,306 jets
MASS_MEAN, MASS_RANGE = 21.0, (7.8, 46.5)  # GeV; the range is that of a part of them
ACTIVE = ((82.8, 271.9, 440.6), (73.4, 220.3, 400.0))  # pixels above 0 of a jet: gluons, quarks
UNION = 681.0  # pixels that are above 0 in any channel
SUMS = (124.2, 76.7, 47.3)  # GeV per jet
STDS = (2.099, 0.1871, 0.0458)  # GeV per pixel
HIGHEST = (75660.0, 933.0, 43.3)  # GeV
SPREAD = 27.8 / 23.3  # mean radius of the hundred highest pixels over that of the first edition
NEIGHBOURS = (0.16, 0.35, 0.84)  # correlation of pixels that follow each other
BICUBIC = (44.28, 1.085, 21.3)  # PSNR (dB), energy over the true one, its mean error (GeV)
FIRST_ACTIVE = ((48.5, 327.9, 357.6), (42.6, 282.5, 304.2))
FIRST_UNION, FIRST_SUMS, FIRST_STDS = 592.0, (93.0, 97.0, 68.0), (0.85, 0.161, 0.054)
FIRST_HIGHEST, FIRST_RADIUS = (3708.0, 95.0, 6.7), 20.9  # of 1,400 jets; pixels
FIRST_NEIGHBOURS, FIRST_BICUBIC = (0.04, 0.38, 0.87), (43.99, 1.063, 16.1)
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


def image_statistics(images: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray | float]:
    """What is known of the official images, of images (n, 3, 125, 125); lists are by channel."""
    positive = np.maximum(images, 0.0)
    active, total = positive > 0, positive.sum(axis=1).reshape(len(images), -1)
    position = np.arange(SIZE) - SIZE // 2
    radius = np.hypot(position[:, None], position[None, :]).ravel()
    highest = np.argpartition(-total, 100, axis=1)[:, :100]
    counts = active.sum(axis=(2, 3))
    return {
        "active": np.stack([counts[y == label].mean(axis=0) for label in (0, 1)]),
        "union": float(active.any(axis=1).sum(axis=(1, 2)).mean()),
        "sums": images.sum(axis=(2, 3), dtype=np.float64).mean(axis=0),
        "stds": images.std(axis=(0, 2, 3), dtype=np.float64),
        "highest": images.max(axis=(0, 2, 3)),
        "radius": float(radius[highest].mean()),
        "neighbours": np.array([neighbour_correlation(images[:, k]) for k in range(3)]),
        "bicubic": np.array(bicubic_scores(positive)),
    }


def neighbour_correlation(pixels: np.ndarray) -> float:
    """Correlation of pixels (n, 125, 125) that follow each other in phi, the mean over jets."""
    left, right = (
        pixels[..., :-1].reshape(len(pixels), -1),
        pixels[..., 1:].reshape(len(pixels), -1),
    )
    left, right = (side - side.mean(axis=1, keepdims=True) for side in (left, right))
    size = np.sqrt((left**2).sum(axis=1) * (right**2).sum(axis=1))
    return float(((left * right).sum(axis=1) / np.maximum(size, 1e-12)).mean())


def bicubic_scores(high: np.ndarray) -> tuple[float, float, float]:
    """PSNR (dB), energy over the true one, and its mean error (GeV) of bicubic interpolation.

    From the low resolution of images (n, 3, 125, 125) without negative pixels, straight to 125.
    """
    import torch

    low = torch.from_numpy(low_resolution(high))
    made = torch.nn.functional.interpolate(low, (SIZE, SIZE), mode="bicubic").clamp(min=0).numpy()
    axes = (1, 2, 3)
    psnr = 10.0 * np.log10(high.max(axes) ** 2 / ((made - high) ** 2).mean(axes))
    energy, expected = made.sum(axes), high.sum(axes)
    return psnr.mean(), (energy / expected).mean(), np.abs(energy - expected).mean()


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
    """Markdown: official numbers, those of the first edition of the stand-ins, and of this one."""
    some = np.arange(min(STATISTICS, len(jets)))
    images, y = jets.images.dense(some).numpy(), jets.y[some]
    ours = image_statistics(images, y)
    lines = Editions()
    line = lines.line

    low, high = np.quantile(shapes["m0"], (0.005, 0.995))
    line("jet pT, mean (GeV)", PT_MEAN, 114.9, shapes["pt"].mean(), ".1f")
    second = f"{shapes['pt'].min():.1f} to {shapes['pt'].max():.1f}"
    line("jet pT, range (GeV)", "{} to {}".format(*PT_RANGE), "70.1 to 220.1", second)
    line("jet mass, mean (GeV)", MASS_MEAN, 22.7, shapes["m0"].mean(), ".1f")
    label = "jet mass, range (stand-ins: 0.5 to 99.5 %; GeV)"
    line(label, "{} to {}".format(*MASS_RANGE), "7.8 to 47.0", f"{low:.1f} to {high:.1f}")
    for k, channel in enumerate(CHANNELS):
        for name, number in zip(CLASSES, range(2), strict=True):
            values = (part[number][k] for part in (ACTIVE, FIRST_ACTIVE, ours["active"]))
            line(f"active pixels, {channel}, {name}", *values, ".1f")
    line("active pixels of any channel", UNION, FIRST_UNION, ours["union"], ".0f")
    for label, official, first, key, form in (
        ("sum of a jet (GeV)", SUMS, FIRST_SUMS, "sums", ".1f"),
        ("pixels, std (GeV)", STDS, FIRST_STDS, "stds", ".3g"),
        ("highest pixel (GeV)", HIGHEST, FIRST_HIGHEST, "highest", ",.1f"),
        ("correlation of neighbours", NEIGHBOURS, FIRST_NEIGHBOURS, "neighbours", ".2f"),
    ):
        for k, channel in enumerate(CHANNELS):
            line(f"{label}, {channel}", official[k], first[k], float(ours[key][k]), form)
    label = "mean radius of the hundred highest pixels, over the first edition's"
    line(label, SPREAD, 1.0, ours["radius"] / FIRST_RADIUS, ".2f")
    for k, (label, form) in enumerate(
        (("PSNR (dB)", ".2f"), ("energy over the true one", ".3f"), ("error of it (GeV)", ".1f"))
    ):
        line(f"bicubic: {label}", BICUBIC[k], FIRST_BICUBIC[k], float(ours["bicubic"][k]), form)
    few = images[:CHUNK].astype(np.float64)
    size = bytes_as_official(few)
    line("bytes of a jet, as written officially", official_bytes(), 5049.0, size, ",.0f")
    line("energy, high over low resolution", 4.0, 4.0, few.sum() / low_resolution(few).sum(), ".4f")
    value, low, high = separation(shapes, jets.y)
    best = sorted(single_aucs(shapes, jets.y).items(), key=lambda pair: -abs(pair[1] - 0.5))[:3]
    singles = ", ".join(f"{name} {max(auc, 1 - auc):.3f}" for name, auc in best)
    text = (
        f"{len(some):,} images; their official maxima are those of 139,306. Gradient boosting on "
        f"{len(shapes)} shapes, {len(jets):,} stand-in jets, 5 folds: ROC-AUC {value:.3f} "
        f"[{low:.3f}, {high:.3f}] (95 % interval; first edition: 0.785). Best single shapes: "
        f"{singles}. Networks on the official jets reach {NETWORK_AUC[0]:.3f} to "
        f"{NETWORK_AUC[1]:.3f}."
    )
    return f"{lines}\n\n{text}"


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
