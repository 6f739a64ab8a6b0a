"""The stand-ins of boosted jets (tasks 2e; 2c, 2d, 2g, 2i) against published numbers.

    python -m data.calibration.boosted --tops 6000 --jets 10500

makes stand-in jets if they are missing, draws data/figures/boosted_*.png, and rewrites the tables
between the markers in data/README.md. No official jet is needed: the published numbers stand here.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.calibration.report import auc_interval, save, update_readme
from data.catalog import dataset
from data.loaders import load_jets8, load_top_mass
from data.loaders.jets8 import CHANNELS, CLASSES, Jets8Dataset
from data.loaders.top_mass import TopMassDataset
from data.readers.nested_parquet import iter_columns, nested
from data.simulate import jets8, top_gun
from e2e_utils.errors import command_line
from e2e_utils.paths import STANDIN
from e2e_utils.sparse_images import SparseImages

SIZE, CHUNK = 125, 100
FEWEST = 200  # labelled jets that trees can be trained on
PITCH = np.pi / 180  # of a pixel

# Printed by public notebooks that read the official files (facts behind data/README.md).
TOP_ZEROS = (99.8, 99.8, 99.8, 97.0)  # % of the pixels of the first four channels
TOP_RANGES = ((0.0, 74054.0), (-4174.0, 1800.0), (-1190.0, 1234.0), (None, 549.0))
TOP_MASS, TOP_PT = (85.3, 500.0, 293.0, 120.0), (400.0, 1000.0)  # GeV: least, most, mean, std
TOP_IETA, TOP_IPHI = (12, 43), (0, 71)
CHANNEL_MEANS = (0.0785, 0.0843, 0.0575, 0.1210, 1.290, 1.110, 1.158, 1.116)
CHANNEL_STDS = (3.07, 3.28, 2.98, 3.25, 13.5, 12.4, 12.1, 11.7)
ACTIVE = {0: 45.0, 4: 725.0}  # pixels an image, by channel
MASS_RANGE, MASS_MEAN, MASS_STD = (31.9, 728.4), 142.5, 50.6  # GeV, of the jets
MASS_PEAKS = (80.0, 200.0)
PT_RANGE, PT_STD = (400.0, 2040.0), 106.0
NETWORK_AUC = (0.9427, 0.9553)


def official_bytes() -> float:
    """Bytes of a jet in the official file whose length is known."""
    file = dataset("top_mass")["file"][0]
    return file["bytes"][0] / file["keys"]["m"]["shape"][0]


def bytes_as_official(path: Path, n_events: int = 100) -> float:
    """Bytes of a jet when the first ones of a file are written as the official files are.

    That is, a row group a jet: a measure of how many different values a jet has.
    """
    keys = dataset("top_mass")["file"][0]["keys"]
    chunks = list(iter_columns(path, keys, n_events, chunk=25))
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "jets.parquet"
        tables = [
            pa.table({k: nested(v) if v.ndim > 1 else v for k, v in chunk.items()})
            for chunk in chunks
        ]
        with pq.ParquetWriter(copy, tables[0].schema, compression="snappy") as writer:
            for table in tables:
                writer.write_table(table, row_group_size=1)
        return copy.stat().st_size / sum(len(table) for table in tables)


class Moments:
    """Sums over the pixels of each channel, an image chunk at a time."""

    def __init__(self, images: SparseImages) -> None:
        channels = images.shape[0]
        self.count, self.active = 0, np.zeros(channels)
        first, second = np.zeros(channels), np.zeros(channels)
        self.low, self.high = np.full(channels, np.inf), np.full(channels, -np.inf)
        for _, chunk in images.iter_dense(CHUNK):
            pixels = chunk.numpy().astype(np.float64)
            self.count += len(pixels)
            self.active += (pixels != 0).sum(axis=(0, 2, 3))
            first += pixels.sum(axis=(0, 2, 3))
            second += (pixels**2).sum(axis=(0, 2, 3))
            self.low = np.minimum(self.low, pixels.min(axis=(0, 2, 3)))
            self.high = np.maximum(self.high, pixels.max(axis=(0, 2, 3)))
        n = self.count * SIZE**2
        self.mean = first / n
        self.std = np.sqrt(np.maximum(second / n - self.mean**2, 0.0))
        self.active /= self.count
        self.zeros = 100.0 * (1.0 - self.active / SIZE**2)


def shapes_of(images: SparseImages) -> dict[str, np.ndarray]:
    """Shapes of images (n, C, 125, 125) for trees; each entry (n,).

    Of every channel its sum and active pixels; of tracks, ECAL (and HCAL) also the weighted mean
    distance from the centre in pixels and the mass of the pixels as massless particles.
    """
    position = np.arange(SIZE) - SIZE // 2
    eta, phi = (grid.ravel() * PITCH for grid in np.meshgrid(position, position, indexing="ij"))
    distance = np.hypot(eta, phi) / PITCH
    # Momentum of a pixel of unit transverse momentum: px, py, pz, E
    unit = np.stack([np.cos(phi), np.sin(phi), np.sinh(eta), np.cosh(eta)], axis=1)
    parts = []
    for _, chunk in images.iter_dense(CHUNK):
        flat = chunk.numpy().reshape(len(chunk), images.shape[0], -1).astype(np.float64)
        columns = {}
        for channel in range(flat.shape[1]):
            name, value = CHANNELS[channel], flat[:, channel]
            columns[f"sum {name}"] = np.abs(value).sum(axis=1)
            columns[f"hits {name}"] = (value != 0).sum(axis=1).astype(np.float64)
            if name not in ("track pT", "ECAL", "HCAL"):
                continue
            value = np.maximum(value, 0.0)
            momentum = value @ unit  # (b, 4)
            square = momentum[:, 3] ** 2 - (momentum[:, :3] ** 2).sum(axis=1)
            total = np.maximum(value.sum(axis=1), 1e-9)
            columns[f"width {name}"] = value @ distance / total
            columns[f"mass {name}"] = np.sqrt(np.maximum(square, 0.0))
        parts.append(columns)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def boosted_mass_error(shapes: dict[str, np.ndarray], m: np.ndarray) -> float:
    """Mean absolute error (GeV) of gradient boosting on the shapes, 5 folds."""
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.model_selection import KFold, cross_val_predict

    model = HistGradientBoostingRegressor(
        loss="absolute_error", max_iter=150, learning_rate=0.08, max_leaf_nodes=15, random_state=0
    )
    folds = KFold(5, shuffle=True, random_state=0)
    matrix = np.stack(list(shapes.values()), axis=1)
    return float(np.abs(cross_val_predict(model, matrix, m, cv=folds) - m).mean())


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


def top_table(tops: TopMassDataset, moments: Moments, shapes: dict[str, np.ndarray]) -> str:
    """Markdown: published numbers of task 2e and the stand-in's."""
    lines = ["| | published | stand-in |", "| --- | --- | --- |"]
    least, most, mean, std = TOP_MASS
    m = tops.m
    lines += [
        f"| mass, range (GeV) | {least:g} to {most:g} | {m.min():.1f} to {m.max():.1f} |",
        f"| mass, mean and std (GeV) | {mean:g}, {std:g} | {m.mean():.1f}, {m.std():.1f} |",
        f"| pT, range (GeV) | {TOP_PT[0]:g} to {TOP_PT[1]:g} | {tops.pt.min():.1f} to "
        f"{tops.pt.max():.1f} |",
        f"| ieta | {TOP_IETA[0]} to {TOP_IETA[1]} | {tops.ieta.min():.0f} to "
        f"{tops.ieta.max():.0f} |",
        f"| iphi | {TOP_IPHI[0]} to {TOP_IPHI[1]} | {tops.iphi.min():.0f} to "
        f"{tops.iphi.max():.0f} |",
    ]
    for k, published in enumerate(TOP_ZEROS):
        lines.append(f"| zero pixels, {CHANNELS[k]} (%) | {published} | {moments.zeros[k]:.2f} |")
    for k, (low, high) in enumerate(TOP_RANGES):
        published = f"to {high:,.0f}" if low is None else f"{low:,.0f} to {high:,.0f}"
        lines.append(
            f"| pixels, {CHANNELS[k]} | {published} | {moments.low[k]:,.1f} to "
            f"{moments.high[k]:,.1f} |"
        )
    size = bytes_as_official(STANDIN / tops.files[0])
    label = "bytes a jet, written as the official files"
    lines.append(f"| {label} | {official_bytes():,.0f} | {size:,.0f} |")
    trivial = np.abs(m - np.median(m)).mean()
    error = boosted_mass_error(shapes, m)
    correlation = np.corrcoef(m, tops.pt)[0, 1]
    lines += [
        "",
        f"{len(m):,} stand-in jets. Mean absolute error of the mass: {trivial:.1f} GeV for the "
        f"median, {error:.1f} GeV for gradient boosting on {len(shapes)} shapes of the four "
        f"channels (5 folds); a good network on official jets: 55.5 GeV. Correlation of mass and "
        f"pT: {correlation:.2f}.",
    ]
    return "\n".join(lines)


def jet_table(jets: Jets8Dataset, moments: Moments, shapes: dict[str, np.ndarray]) -> str:
    """Markdown: published numbers of the G25 jets and the stand-in's, classes apart."""
    lines = [
        f"| | published | stand-in | {CLASSES[0]} | {CLASSES[1]} |",
        "| --- | --- | --- | --- | --- |",
    ]
    for k, name in enumerate(CHANNELS):
        active = [shapes[f"hits {name}"][jets.y == label].mean() for label in (0, 1)]
        lines += [
            f"| {name}, mean | {CHANNEL_MEANS[k]} | {moments.mean[k]:.4f} | | |",
            f"| {name}, std | {CHANNEL_STDS[k]} | {moments.std[k]:.2f} | | |",
            f"| {name}, active pixels | {f'about {ACTIVE[k]:g}' if k in ACTIVE else ''} | "
            f"{moments.active[k]:.1f} | {active[0]:.1f} | {active[1]:.1f} |",
        ]
    for label, values, limits, mean, std in (
        ("mass", jets.m, MASS_RANGE, f"{MASS_MEAN}", MASS_STD),
        ("pT", jets.pt, PT_RANGE, "", PT_STD),
    ):
        rows = [jets.y >= 0, jets.y == 0, jets.y == 1]
        cells = [f"{values[row].mean():.1f} | " for row in rows]
        lines.append(f"| {label}, mean (GeV) | {mean} | {''.join(cells)}".rstrip())
        cells = [f"{values[row].std():.1f} | " for row in rows]
        lines.append(f"| {label}, std (GeV) | {std:g} | {''.join(cells)}".rstrip())
        cells = [f"{values[row].min():.1f} to {values[row].max():.1f} | " for row in rows]
        lines.append(
            f"| {label}, range (GeV) | {limits[0]:g} to {limits[1]:g} | {''.join(cells)}".rstrip()
        )
    text = (
        f"Channels: {moments.count:,} unlabelled stand-in jets; classes, mass and pT: "
        f"{len(jets):,} labelled ones."
    )
    if len(jets) >= FEWEST:
        value, low, high = separation(shapes, jets.y)
        text += (
            f" Gradient boosting on {len(shapes)} shapes: ROC-AUC {value:.3f} [{low:.3f}, "
            f"{high:.3f}] (5 folds, 95 % interval). Networks on official jets reach "
            f"{NETWORK_AUC[0]:.3f} to {NETWORK_AUC[1]:.3f}."
        )
    lines += ["", text]
    return "\n".join(lines)


def draw_tops(tops: TopMassDataset, shapes: dict[str, np.ndarray]) -> None:
    """Mass and pT, what the pixels know of the mass, and one light and one heavy top."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, 4, figsize=(15, 10.5))
    axes[0, 0].hist(tops.m, np.linspace(85.3, 500, 29))
    axes[0, 0].set(xlabel="mass of the top (GeV)", ylabel="jets")
    axes[0, 1].hist(tops.pt, np.linspace(400, 1000, 31))
    axes[0, 1].set(xlabel="pT of the top (GeV)", ylabel="jets")
    axes[0, 2].hist2d(tops.m, tops.pt, bins=20)
    axes[0, 2].set(xlabel="mass of the top (GeV)", ylabel="pT of the top (GeV)")
    axes[0, 3].hist2d(tops.m, np.minimum(shapes["mass track pT"], 400.0), bins=(25, 25))
    axes[0, 3].set(xlabel="mass of the top (GeV)", ylabel="mass of the track pixels (GeV)")
    for line, row in ((1, int(np.argmin(tops.m))), (2, int(np.argmax(tops.m)))):
        _draw_image(axes[line], tops.images.dense([row])[0].numpy(), f"m = {tops.m[row]:.0f} GeV")
    figure.suptitle(
        "Stand-in tops of task 2e: spectra, and images of the lightest and the heaviest"
    )
    figure.tight_layout()
    save(figure, "boosted_tops.png")


def draw_jets(jets: Jets8Dataset, moments: Moments) -> None:
    """Channels against the published ones, mass and pT, and one jet of each class."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(5, 4, figsize=(15, 17))
    places = np.arange(len(CHANNELS))
    for axis, ours, published, label in (
        (axes[0, 0], moments.mean, CHANNEL_MEANS, "mean"),
        (axes[0, 1], moments.std, CHANNEL_STDS, "std"),
    ):
        axis.bar(places, ours, color="tab:blue", alpha=0.5, label="stand-in")
        axis.plot(places, published, "k_", markersize=18, label="published")
        axis.set(ylabel=f"{label} of the pixels", yscale="log")
        axis.set_xticks(places, CHANNELS, rotation=60)
        axis.legend()
    for axis, values, limits, label in (
        (axes[0, 2], jets.m, (30, 350), "mass"),
        (axes[0, 3], jets.pt, (400, 1200), "pT"),
    ):
        bins = np.linspace(*limits, 33)
        for y, name in enumerate(CLASSES):
            axis.hist(values[jets.y == y], bins, alpha=0.5, label=name)
        axis.set(xlabel=f"{label} of the jet (GeV)", ylabel="jets")
    for peak in MASS_PEAKS:
        axes[0, 2].axvline(peak, color="black", linestyle="--")
    axes[0, 2].plot([], [], "k--", label="published peaks")
    axes[0, 2].legend()
    axes[0, 3].set_yscale("log")
    for y, name in enumerate(CLASSES):
        image = jets.images.dense(np.flatnonzero(jets.y == y)[:1])[0].numpy()
        for half in range(2):
            _draw_image(axes[1 + 2 * y + half], image, name, 4 * half)
    figure.tight_layout()
    save(figure, "boosted_jets8.png")


def _draw_image(axes: np.ndarray, image: np.ndarray, title: str, first: int = 0) -> None:
    """Four channels of an image (C, 125, 125); signed ones in two colours."""
    for axis, channel in zip(axes, range(first, first + 4), strict=True):
        pixels = image[channel]
        shown = np.ma.masked_equal(np.sign(pixels) * np.log1p(np.abs(pixels)), 0)
        limit = max(float(np.abs(shown).max() or 1.0), 1e-3)
        signed = pixels.min() < -0.5
        style = (
            {"cmap": "coolwarm", "vmin": -limit, "vmax": limit}
            if signed
            else {"cmap": "viridis", "vmin": 0, "vmax": limit}
        )
        axis.imshow(shown, origin="lower", **style)
        axis.set_title(f"{title}, {CHANNELS[channel]}: log(1 + x)", fontsize=9)


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tops", type=int, default=6000, help="stand-in tops to compare")
    parser.add_argument("--jets", type=int, default=10500, help="jets of tasks 2c, 2d, 2g, 2i")
    arguments = parser.parse_args()
    tops = load_top_mass(path=top_gun.generate(arguments.tops))
    shapes = shapes_of(tops.images)
    draw_tops(tops, shapes)
    text = top_table(tops, Moments(tops.images), shapes)
    update_readme(text, "top_mass")
    print(text)
    unlabelled, _, full = jets8.generate(arguments.jets)
    jets = load_jets8(path=[unlabelled, full])
    moments = Moments(jets.unlabelled)
    draw_jets(jets, moments)
    text = jet_table(jets, moments, shapes_of(jets.images))
    update_readme(text, "jets8")
    print(text)


if __name__ == "__main__":
    main()
