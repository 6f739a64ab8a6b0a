"""The stand-ins of boosted jets (tasks 2e; 2c, 2d, 2g, 2i) against published numbers.

    python -m data.calibration.boosted --tops 6000 --jets 10500

makes stand-in jets if they are missing, draws data/figures/boosted_*.png, and rewrites the tables
between the markers in data/README.md. No official jet is needed: the published numbers stand here.
"""

import argparse
import tempfile
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.calibration.report import Editions, auc_interval, save, update_readme
from data.catalog import dataset
from data.loaders import load_jets8, load_top_mass
from data.loaders.jets8 import CHANNELS, CLASSES, Jets8Dataset
from data.loaders.top_mass import TopMassDataset
from data.readers.nested_parquet import iter_columns, nested
from data.simulate import jets8, top_gun
from e2e_utils.errors import command_line
from e2e_utils.paths import STANDIN
from e2e_utils.sparse_images import SparseImages

SIZE, CHUNK, STATISTICS = 125, 100, 3000  # pixels a side; jets at a time, and of the statistics
FEWEST = 200  # labelled jets that trees can be trained on
PITCH = np.pi / 180  # of a pixel

# What public notebooks print of the official files, and the first edition's numbers
TOP_MASS, TOP_PT = (85.3, 500.0), (400.0, 1000.0)  # GeV
TOP_IETA, TOP_IPHI, TOP_IETA_STD = (12, 43), (0, 71), 8.27
TOP_MASSES = (293.0, 120.0)  # GeV: mean, std
TOP_PTS = (693.0, 172.6, 541.0, 687.0, 845.0)  # GeV: mean, std, quartiles
TOP_CORRELATION = -0.027  # of mass and pT
TOP_ZEROS = (99.8, 99.8, 99.8, 97.0, 95.6, 99.8, 99.8, 99.8)  # % of the pixels, by channel
TOP_ACTIVE_MEANS = (14.3, -0.006, 0.31, 0.823, 0.479, 1.08, 1.11, 1.13)  # of pixels that are not 0
TOP_POSITIVE = {1: 1 / 1.9, 2: 1 / 0.75}  # mean of pixels above 0 over that of the first edition
TOP_RANGES = ((0.0, 74054.0), (-4174.0, 1800.0), (-1190.0, 1234.0), (None, 549.0))
TOP_LOG = (0.00365, 0.0727)  # mean, std of sign(x) log(1 + |x|), all channels
NETWORK_ERROR = 55.5  # GeV, mean absolute error of the mass
# Mean absolute errors of a public network by mass
MASS_BINS, NETWORK_ERRORS = (85.3, 137.0, 396.0, 448.0, 500.0), ("71", "34 to 42", "", "105")
MEANS = (0.0785, 0.0843, 0.0575, 0.1210, 1.290, 1.110, 1.158, 1.116)  # G25, of all pixels
STDS = (3.07, 3.28, 2.98, 3.25, 13.5, 12.4, 12.1, 11.7)
# Of pixels that are not 0, over 255
ACTIVE_MEANS = (0.0889, 0.2041, 0.2254, 0.0341, 0.1202, 0.5002, 0.4453, 0.4255)
ACTIVE_STDS = (0.185, 0.247, 0.294, 0.100, 0.215, 0.149, 0.139, 0.144)
ACTIVE_ALL, ACTIVE_RANGE = (1327.0, 1775.0), (350, 3697)  # pixels of all channels: Y = 0, 1
MASS_RANGE, MASS_MEAN, MASS_STD = (31.9, 728.4), 142.5, 50.6  # GeV, of the jets
MASS_PEAKS = (80.0, 200.0)
PT_RANGE, PT_STD = (400.0, 2040.0), 106.0
NETWORK_AUC = (0.9427, 0.9553)
# The first edition, 3,000 jets of each sample
FIRST_TOP_PTS = (746.8, 150.0, 634.9, 753.4, 870.0)
FIRST_CORRELATION, FIRST_IETA_STD = 0.165, 8.72
FIRST_TOP_ZEROS = (99.78, 99.78, 99.78, 97.11, 95.14, 99.60, 99.60, 99.61)
FIRST_TOP_ACTIVE_MEANS = (11.86, -1.521, 0.177, 1.147, 0.611, 1.149, 1.150, 1.152)
FIRST_TOP_POSITIVE = {1: 50.7, 2: 5.91}
FIRST_TOP_RANGES = ("0 to 579", "-3,726 to 4,161", "-894 to 1,361", "-0.1 to 394")
FIRST_TOP_LOG = (0.00534, 0.0867)
FIRST_ERROR, FIRST_ERRORS = 45.4, (52.4, 43.6, 42.2, 50.3)
FIRST_ACTIVE = (34.5, 17.2, 17.3, 282.2, 709.6, 152.9, 154.8, 152.0)
FIRST_ACTIVE_MEANS = (0.1316, 0.2210, 0.2018, 0.0294, 0.1185, 0.4527, 0.4543, 0.4527)
FIRST_ACTIVE_STDS = (0.218, 0.331, 0.285, 0.092, 0.222, 0.156, 0.157, 0.157)
FIRST_MEANS = (0.0741, 0.0620, 0.0569, 0.1353, 1.3723, 1.1294, 1.1474, 1.1231)
FIRST_STDS = (3.05, 3.37, 2.96, 3.30, 13.62, 12.02, 12.14, 12.00)
FIRST_ACTIVE_ALL, FIRST_ACTIVE_RANGE = (1356.0, 1684.7), (538, 3483)
FIRST_MASS = (138.8, 50.2, 104.4, 173.3, "30.7 to 372.5")
FIRST_PT = (509.2, 104.1, 502.9, 515.6, "400.1 to 1183.9")
FIRST_AUC = 0.923


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


def moments(chunks: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    """What is known of official pixels, by channel, of images (b, C, 125, 125) in chunks.

    ``count`` of images; ``active`` pixels of one (not 0); mean and std of those (``active_mean``,
    ``active_std``) and of all (``mean``, ``std``), also after sign(x) log(1 + |x|) (``log_mean``,
    ``log_std``); mean of those above 0 (``positive``); ``low`` and ``high``, the extreme ones.
    """
    parts = []
    for chunk in chunks:
        pixels = np.asarray(chunk, np.float64)
        log = np.sign(pixels) * np.log1p(np.abs(pixels))
        above = np.maximum(pixels, 0.0)
        summed = (pixels != 0, pixels, pixels**2, log, log**2, above, above > 0)
        sums = [x.sum(axis=(0, 2, 3)) for x in summed]
        edges = -pixels.min(axis=(0, 2, 3)), pixels.max(axis=(0, 2, 3))
        parts.append([np.full(pixels.shape[1], len(pixels)), *sums, *edges])
    table = np.array(parts, np.float64)  # (chunks, 10, C)
    n, active, first, second, log, log_second, above, positive = table[:, :8].sum(axis=0)
    low, high = -table[:, 8].max(axis=0), table[:, 9].max(axis=0)
    some, pixels = np.maximum(active, 1.0), n * SIZE**2

    def spread(square: np.ndarray, total: np.ndarray, size: np.ndarray) -> np.ndarray:
        return np.sqrt(np.maximum(square / size - (total / size) ** 2, 0.0))

    return {
        "count": n,
        "active": active / n,
        "zeros": 100.0 * (1.0 - active / pixels),
        "active_mean": first / some,
        "active_std": spread(second, first, some),
        "mean": first / pixels,
        "std": spread(second, first, pixels),
        "log_mean": log / pixels,
        "log_std": spread(log_second, log, pixels),
        "positive": above / np.maximum(positive, 1.0),
        "low": low,
        "high": high,
    }


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


def boosted_masses(shapes: dict[str, np.ndarray], m: np.ndarray) -> np.ndarray:
    """Masses (GeV) that gradient boosting finds from the shapes, 5 folds."""
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.model_selection import KFold, cross_val_predict

    model = HistGradientBoostingRegressor(
        loss="absolute_error", max_iter=150, learning_rate=0.08, max_leaf_nodes=15, random_state=0
    )
    folds = KFold(5, shuffle=True, random_state=0)
    return cross_val_predict(model, np.stack(list(shapes.values()), axis=1), m, cv=folds)


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


def top_table(tops: TopMassDataset, shapes: dict[str, np.ndarray]) -> str:
    """Markdown: official numbers of task 2e and those of both editions of the stand-ins."""
    path = STANDIN / tops.files[0]
    keys = dataset("top_mass")["file"][0]["keys"]
    chunks = iter_columns(path, {"X_jet": keys["X_jet"]}, STATISTICS, chunk=25)
    ours, m, pt = moments(chunk["X_jet"] for chunk in chunks), tops.m, tops.pt
    lines = Editions()
    line = lines.line

    line("mass, range (GeV)", "{:g} to {:g}".format(*TOP_MASS), "85.5 to 498.9", _range(m, ".1f"))
    line("mass, mean (GeV)", TOP_MASSES[0], 300.1, m.mean(), ".1f")
    line("mass, std (GeV)", TOP_MASSES[1], 118.1, m.std(), ".1f")
    line("pT, range (GeV)", "{:g} to {:g}".format(*TOP_PT), "402.7 to 997.4", _range(pt, ".1f"))
    numbers = pt.mean(), pt.std(), *np.quantile(pt, (0.25, 0.5, 0.75))
    names = ("mean", "std", "quartile 1", "median", "quartile 3")
    for name, *values in zip(names, TOP_PTS, FIRST_TOP_PTS, numbers, strict=True):
        line(f"pT, {name} (GeV)", *values, ".0f")
    line(
        "correlation of mass and pT",
        TOP_CORRELATION,
        FIRST_CORRELATION,
        np.corrcoef(m, pt)[0, 1],
        ".3f",
    )
    line("ieta", "{} to {}".format(*TOP_IETA), "12 to 43", _range(tops.ieta, ".0f"))
    line("ieta, std", TOP_IETA_STD, FIRST_IETA_STD, tops.ieta.std(), ".2f")
    line("iphi", "{} to {}".format(*TOP_IPHI), "0 to 71", _range(tops.iphi, ".0f"))
    for k, name in enumerate(CHANNELS):
        values = TOP_ZEROS[k], FIRST_TOP_ZEROS[k], ours["zeros"][k]
        line(f"zero pixels, {name} (%)", *values, ".2f")
    for k, name in enumerate(CHANNELS):
        values = TOP_ACTIVE_MEANS[k], FIRST_TOP_ACTIVE_MEANS[k], ours["active_mean"][k]
        line(f"mean of the others, {name}", *values, ".3f")
    for k, official in TOP_POSITIVE.items():
        ratio = ours["positive"][k] / FIRST_TOP_POSITIVE[k]
        label = f"mean of those above 0 over the first edition's, {CHANNELS[k]}"
        line(label, official, 1.0, ratio, ".2f")
    for k, (low, high) in enumerate(TOP_RANGES):
        official = f"to {high:,.0f}" if low is None else f"{low:,.0f} to {high:,.0f}"
        second = f"{ours['low'][k]:,.1f} to {ours['high'][k]:,.1f}"
        line(f"pixels, {CHANNELS[k]}", official, FIRST_TOP_RANGES[k], second)
    mean = ours["log_mean"].mean()
    spread = np.sqrt((ours["log_std"] ** 2 + ours["log_mean"] ** 2).mean() - mean**2)
    line(
        "all channels, sign(x) log(1 + &#124;x&#124;), mean",
        TOP_LOG[0],
        FIRST_TOP_LOG[0],
        mean,
        ".5f",
    )
    line("the same, std", TOP_LOG[1], FIRST_TOP_LOG[1], spread, ".4f")
    size = bytes_as_official(path)
    line("bytes of a jet, as written officially", official_bytes(), 8141.0, size, ",.0f")
    found = boosted_masses(shapes, m)
    trivial, errors = np.abs(m - np.median(m)).mean(), np.abs(found - m)
    for (low, high), network, first in zip(
        pairwise(MASS_BINS), NETWORK_ERRORS, FIRST_ERRORS, strict=True
    ):
        label = f"error of the mass, {low:.0f} to {high:.0f} GeV"
        line(label, network, first, errors[(m >= low) & (m < high)].mean(), ".0f")
    line("error of the mass, all (GeV)", NETWORK_ERROR, FIRST_ERROR, errors.mean(), ".1f")
    text = (
        f"{len(m):,} stand-in jets, {ours['count'][0]:,.0f} for the pixels. The last rows are mean "
        f"absolute errors: official, of public networks; stand-ins, of gradient boosting on "
        f"{len(shapes)} shapes of the four channels (5 folds; the median of all masses: "
        f"{trivial:.1f} GeV)."
    )
    return f"{lines}\n\n{text}"


def _range(values: np.ndarray, form: str) -> str:
    return f"{values.min():{form}} to {values.max():{form}}"


def jet_table(jets: Jets8Dataset, ours: dict, shapes: dict[str, np.ndarray]) -> str:
    """Markdown: official numbers of the G25 jets and those of both editions of the stand-ins."""
    lines = Editions()
    line = lines.line

    for k, name in enumerate(CHANNELS):
        official = f"{MEANS[k] / 255 / ACTIVE_MEANS[k] * SIZE**2:.1f}"  # from both means
        second = f"{ours['active'][k]:.1f}"
        line(f"{name}, active pixels", official, FIRST_ACTIVE[k], second, ".1f")
        for label, key, values, first, scale, form in (
            ("mean of those / 255", "active_mean", ACTIVE_MEANS, FIRST_ACTIVE_MEANS, 255, ".4f"),
            ("std of those / 255", "active_std", ACTIVE_STDS, FIRST_ACTIVE_STDS, 255, ".3f"),
            ("mean of all", "mean", MEANS, FIRST_MEANS, 1, ".4f"),
            ("std of all", "std", STDS, FIRST_STDS, 1, ".2f"),
        ):
            line(f"{name}, {label}", values[k], first[k], ours[key][k] / scale, form)
    active = np.sum([shapes[f"hits {name}"] for name in CHANNELS], axis=0)
    for y, name in enumerate(CLASSES):
        label = f"active pixels of all channels, {name}"
        line(label, ACTIVE_ALL[y], FIRST_ACTIVE_ALL[y], active[jets.y == y].mean(), ",.0f")
    first = FIRST_ACTIVE_ALL[1] / FIRST_ACTIVE_ALL[0]
    ratio = active[jets.y == 1].mean() / active[jets.y == 0].mean()
    line("top over QCD of it", ACTIVE_ALL[1] / ACTIVE_ALL[0], first, ratio, ".3f")
    line(
        "range of it",
        "{} to {}".format(*ACTIVE_RANGE),
        "{} to {}".format(*FIRST_ACTIVE_RANGE),
        _range(active, ".0f"),
    )
    for label, values, numbers, first in (
        ("mass", jets.m, (MASS_MEAN, MASS_STD, MASS_RANGE), FIRST_MASS),
        ("pT", jets.pt, ("", PT_STD, PT_RANGE), FIRST_PT),
    ):
        line(f"{label}, mean (GeV)", numbers[0], first[0], values.mean(), ".1f")
        line(f"{label}, std (GeV)", numbers[1], first[1], values.std(), ".1f")
        for y, name in enumerate(CLASSES):
            line(
                f"{label}, mean, {name} (GeV)", "", first[2 + y], values[jets.y == y].mean(), ".1f"
            )
        official = "{:g} to {:g}".format(*numbers[2])
        line(f"{label}, range (GeV)", official, first[4], _range(values, ".1f"))
    text = (
        f"Channels: {ours['count'][0]:,.0f} unlabelled stand-in jets; classes, mass and pT: "
        f"{len(jets):,} labelled ones. Official active pixels: from the two means."
    )
    if len(jets) >= FEWEST:
        value, low, high = separation(shapes, jets.y)
        text += (
            f" Gradient boosting on {len(shapes)} shapes: ROC-AUC {value:.3f} [{low:.3f}, "
            f"{high:.3f}] (5 folds, 95 % interval; first edition: {FIRST_AUC}). Networks on "
            f"official jets reach {NETWORK_AUC[0]:.3f} to {NETWORK_AUC[1]:.3f}."
        )
    return f"{lines}\n\n{text}"


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


def draw_jets(jets: Jets8Dataset, ours: dict[str, np.ndarray]) -> None:
    """Channels against the published ones, mass and pT, and one jet of each class."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(5, 4, figsize=(15, 17))
    places = np.arange(len(CHANNELS))
    for axis, values, official, label in (
        (axes[0, 0], ours["mean"], MEANS, "mean"),
        (axes[0, 1], ours["std"], STDS, "std"),
    ):
        axis.bar(places, values, color="tab:blue", alpha=0.5, label="stand-in")
        axis.plot(places, official, "k_", markersize=18, label="official")
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
    axes[0, 2].plot([], [], "k--", label="official peaks")
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
    text = top_table(tops, shapes)
    update_readme(text, "top_mass")
    print(text)
    unlabelled, _, full = jets8.generate(arguments.jets)
    jets = load_jets8(path=[unlabelled, full])
    ours = moments(chunk.numpy() for _, chunk in jets.unlabelled.iter_dense(CHUNK))
    draw_jets(jets, ours)
    text = jet_table(jets, ours, shapes_of(jets.images))
    update_readme(text, "jets8")
    print(text)


if __name__ == "__main__":
    main()
