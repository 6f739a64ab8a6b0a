"""Shower shapes of stand-in images beside those of real ones.

    python -m data.calibration.egamma --events 60000

makes stand-in images if they are missing, draws data/figures/egamma_*.png, and rewrites the table
between the markers in data/README.md. The 100 real images are optional: they are looked for in the
folder that the environment variable E2E_REAL_SAMPLES names; without them, only the published
numbers are compared.
"""

import argparse

import h5py
import numpy as np

from data.calibration import probes
from data.calibration.report import auc_interval, save, update_readme
from data.simulate import egamma
from e2e_utils.errors import command_line
from e2e_utils.paths import REAL_SAMPLES
from e2e_utils.shower_shapes import shapes_of

CLASSES = ("photon", "electron")

# Measured on 200 real events, 100 a class: mean and standard deviation.
REAL_SHAPES = {
    "energy_sum": ((1.24, 0.26), (1.25, 0.22)),
    "e1": ((0.58, 0.15), (0.52, 0.15)),
    "e3x3": ((0.889, 0.110), (0.852, 0.139)),
    "e5x5": ((0.952, 0.062), (0.926, 0.100)),
    "eta_width": ((0.73, 0.17), (0.77, 0.18)),
    "phi_width": ((1.05, 0.57), (1.27, 0.68)),
    "hits": ((45.0, 12.0), (51.0, 15.0)),
}
REAL_EVENTS = 100  # a class, behind REAL_SHAPES
# Over all pixels of the 249,000 images of a class: mean, standard deviation, maximum.
REAL_PIXELS = ((0.0012235, 0.0248, 1.4849), (0.0012158, 0.0226, 1.4318))
REAL_TIME_MEAN = (-0.00023, -0.00031)
REAL_TIME_STD = (0.066, 0.069)
REAL_TIME_RANGE = (-2.51, 2.28)  # of both classes together
PROBED = 6000  # images a class that the probes see
QUANTILES = (0.01, 0.10, 0.50, 0.90, 0.99)
REAL_QUANTILES = (6e-5, 5e-4, 2.2e-3, 0.03, 0.7)  # of the pixels that are not zero

LABELS = {
    "energy_sum": "energy sum / 50 GeV",
    "e1": "E1 / sum",
    "e3x3": "E3x3 / sum",
    "e5x5": "E5x5 / sum",
    "eta_width": "eta width (crystals)",
    "phi_width": "phi width (crystals)",
    "hits": "hits",
}

# The stand-in of the first edition: rows of `table` (photon, electron), and of `probe_table`.
FIRST_EDITION = {
    "energy sum / 50 GeV": ("1.249 (0.236)", "1.246 (0.231)"),
    "E1 / sum": ("0.560 (0.156)", "0.508 (0.146)"),
    "E3x3 / sum": ("0.882 (0.115)", "0.864 (0.111)"),
    "E5x5 / sum": ("0.941 (0.083)", "0.935 (0.074)"),
    "eta width (crystals)": ("0.721 (0.130)", "0.727 (0.129)"),
    "phi width (crystals)": ("1.101 (0.603)", "1.299 (0.685)"),
    "hits": ("47.6 (12.0)", "51.1 (14.4)"),
    "pixel mean": ("0.0012201", "0.0012166"),
    "pixel std": ("0.0246", "0.0226"),
    "pixel max": ("1.503", "1.372"),
    "time channel, pixel mean": ("0.00000", "0.00000"),
    "time channel, pixel std": ("0.066", "0.069"),
    "time channel, range": ("-2.50 to 2.28", "-2.50 to 2.28"),
    "hit energy, 1 % quantile": ("6.3e-05", "5.7e-05"),
    "hit energy, 10 % quantile": ("0.00054", "0.0005"),
    "hit energy, 50 % quantile": ("0.0022", "0.0022"),
    "hit energy, 90 % quantile": ("0.024", "0.025"),
    "hit energy, 99 % quantile": ("0.7", "0.61"),
}
FIRST_EDITION_PROBES = {
    "energy": ("0.766", "74.5, 65.7", "0.96, 1.09"),
    "time": ("0.600", "62.8, 51.5", "1.36, 1.11"),
    "both": ("0.765", "74.8, 65.5", "1.03, 1.03"),
}


def real_sample() -> tuple[np.ndarray, np.ndarray] | None:
    """The 100 real images (100, 32, 32) and labels, or None where they are not at hand."""
    path = REAL_SAMPLES / "egamma_real_100.npz"
    if not path.exists():
        return None
    with np.load(path) as stored:
        return stored["X"], stored["y"].astype(np.int64)


def matrix(images: np.ndarray) -> np.ndarray:
    """Shower shapes as (n, features)."""
    return np.stack(list(shapes_of(images).values()), axis=1)


def boosted_scores(photons: np.ndarray, electrons: np.ndarray, others: list[np.ndarray]) -> list:
    """P(electron) of each array of ``others`` from gradient boosting trained on the first two."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    features = np.concatenate([matrix(photons), matrix(electrons)])
    labels = np.repeat((0, 1), (len(photons), len(electrons)))
    model = HistGradientBoostingClassifier(
        max_iter=300, learning_rate=0.05, max_leaf_nodes=15, early_stopping=True, random_state=0
    ).fit(features, labels)
    return [model.predict_proba(matrix(images))[:, 1] for images in others]


def _mean_std(mean: float, std: float) -> str:
    digits = 1 if mean > 10 else 3
    return f"{mean:.{digits}f} ({std:.{digits}f})"


def table(images: list[np.ndarray]) -> str:
    """Markdown: (energy, time) images of both classes against official and earlier numbers."""
    shapes = [shapes_of(image[..., 0]) for image in images]
    energies, times = [i[..., 0] for i in images], [i[..., 1] for i in images]
    rows = []
    for name, label in LABELS.items():
        official = [_mean_std(*REAL_SHAPES[name][c]) for c in range(2)]
        ours = [_mean_std(s[name].mean(), s[name].std()) for s in shapes]
        rows.append((label, official, ours))
    for k, (label, digits) in enumerate((("pixel mean", 7), ("pixel std", 4), ("pixel max", 3))):
        official = [f"{REAL_PIXELS[c][k]:.{digits}f}" for c in range(2)]
        ours = [f"{(e.mean(), e.std(), e.max())[k]:.{digits}f}" for e in energies]
        rows.append((label, official, ours))
    official = [f"{value:.5f}" for value in REAL_TIME_MEAN]
    rows.append(("time channel, pixel mean", official, [f"{t.mean():.5f}" for t in times]))
    official = [f"{value:.3f}" for value in REAL_TIME_STD]
    rows.append(("time channel, pixel std", official, [f"{t.std():.3f}" for t in times]))
    official = ["{:.2f} to {:.2f}".format(*REAL_TIME_RANGE)] * 2
    ours = [f"{t.min():.2f} to {t.max():.2f}" for t in times]
    rows.append(("time channel, range", official, ours))
    for q, real in zip(QUANTILES, REAL_QUANTILES, strict=True):
        ours = [f"{np.quantile(e[e > 0], q):.2g}" for e in energies]
        rows.append((f"hit energy, {100 * q:.0f} % quantile", [f"{real:.2g}"] * 2, ours))
    lines = [
        "| mean (std) | photon: official | 1st edition | 2nd edition "
        "| electron: official | 1st edition | 2nd edition |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for label, official, ours in rows:
        first = FIRST_EDITION[label]
        cells = [cell for c in range(2) for cell in (official[c], first[c], ours[c])]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def probe_table(images: list[np.ndarray]) -> str | None:
    """Markdown: how networks trained on official events see the images; None without them."""
    both = np.concatenate(images)
    labels = np.repeat((0, 1), [len(i) for i in images])
    lines = [
        "| network of | AUC: official | 1st edition | 2nd edition | photons, electrons right (%): "
        "1st edition | 2nd edition | width of last batch norms: 1st edition | 2nd edition |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, official in probes.PUBLISHED_AUC.items():
        reading = probes.read(name, both)
        if reading is None:
            return None
        auc, shares, widths = FIRST_EDITION_PROBES[name]
        value, low, high = auc_interval(labels, reading.scores, rounds=100)
        right = probes.right_shares(reading.scores, labels)
        ours = f"{reading.width('layer2.1'):.2f}, {reading.width():.2f}"
        lines.append(
            f"| {name} | {official} | {auc} | {value:.3f} [{low:.3f}, {high:.3f}] | {shares} | "
            f"{100 * right[0]:.1f}, {100 * right[1]:.1f} | {widths} | {ours} |"
        )
    return "\n".join(lines)


def separation(images: list[np.ndarray], train: int = 24000) -> str:
    """Markdown: how well shower shapes separate the classes, on stand-in and on real images."""
    n_train = min(train // 2, len(images[0]) // 2)
    training = [image[:n_train, ..., 0] for image in images]
    test = [image[n_train:, ..., 0] for image in images]
    labels = np.repeat((0, 1), (len(test[0]), len(test[1])))
    sample = real_sample()
    others = [np.concatenate(test)] + ([sample[0]] if sample else [])
    scores = boosted_scores(training[0], training[1], others)
    value, low, high = auc_interval(labels, scores[0], rounds=200)
    text = (
        f"Gradient boosting on {matrix(training[0][:1]).shape[1]} shower shapes, trained on "
        f"{2 * n_train:,} stand-in images: ROC-AUC {value:.3f} [{low:.3f}, {high:.3f}] on "
        f"{len(labels):,} other stand-in images"
    )
    if sample:
        value, low, high = auc_interval(sample[1], scores[1])
        text += f", {value:.2f} [{low:.2f}, {high:.2f}] on {len(sample[1])} real images"
    return text + " (95 % intervals)."


def draw_shapes(images: list[np.ndarray]) -> None:
    """Distributions of the shapes: stand-in as filled histograms, real as points with errors."""
    import matplotlib.pyplot as plt

    names = ["energy_sum", "e1", "e3x3", "e5x5", "eta_width", "phi_width", "hits", "phi_logwidth5"]
    shapes = [shapes_of(image[..., 0]) for image in images]
    sample = real_sample()
    ranges = {
        "energy_sum": (0.9, 1.9),
        "e1": (0.1, 0.9),
        "e3x3": (0.4, 1.0),
        "e5x5": (0.6, 1.0),
        "eta_width": (0.4, 1.4),
        "phi_width": (0.4, 3.5),
        "hits": (20, 110),
        "phi_logwidth5": (0.4, 1.3),
    }
    labels = LABELS | {"phi_logwidth5": "log-weighted phi width in 5x5 (crystals)"}
    figure, axes = plt.subplots(2, 4, figsize=(15, 6.5))
    for axis, name in zip(axes.flat, names, strict=True):
        bins = np.linspace(*ranges[name], 15)
        width = bins[1] - bins[0]
        for c, colour in enumerate(("tab:blue", "tab:orange")):
            clipped = np.clip(shapes[c][name], bins[0], bins[-1] - 1e-9)
            axis.hist(
                clipped,
                bins,
                weights=np.full(len(clipped), 1 / len(clipped) / width),
                histtype="stepfilled",
                alpha=0.3,
                color=colour,
                label=f"stand-in {CLASSES[c]}",
            )
            if sample:
                real = shapes_of(sample[0][sample[1] == c])[name]
                count, _ = np.histogram(np.clip(real, bins[0], bins[-1] - 1e-9), bins)
                scale = 1 / len(real) / width
                axis.errorbar(
                    (bins[1:] + bins[:-1]) / 2 + (c - 0.5) * 0.2 * width,
                    count * scale,
                    np.sqrt(count) * scale,
                    fmt="o",
                    color=colour,
                    markersize=4,
                    label=f"real {CLASSES[c]} ({len(real)})",
                )
        axis.set_xlabel(labels[name])
        axis.set_ylabel("density")
        axis.set_ylim(bottom=0)
    axes[1, 2].legend(fontsize=8)
    figure.suptitle("Shower shapes: stand-in (filled) and real images (points, statistical errors)")
    figure.tight_layout()
    save(figure, "egamma_shapes.png")


def draw_pixels(images: list[np.ndarray]) -> None:
    """Spectrum of the hits, and hits and energy against the distance from the seed crystal."""
    import matplotlib.pyplot as plt

    sample = real_sample()
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.2))
    bins = np.geomspace(1e-3, 100, 41)  # GeV
    distance = np.arange(-11, 12)
    for c, colour in enumerate(("tab:blue", "tab:orange")):
        sets = [("stand-in", images[c][..., 0], "-", "")]
        if sample:
            sets.append(("real", sample[0][sample[1] == c], "none", "o"))
        for source, energy, line, marker in sets:
            gev = energy * egamma.ENERGY_UNIT
            style = {"color": colour, "linestyle": line, "marker": marker, "markersize": 4}
            edges = bins if source == "stand-in" else bins[::2]
            count, _ = np.histogram(gev[gev > 0], edges)
            per_decade = count / len(gev) / np.diff(np.log10(edges))
            label = f"{source} {CLASSES[c]}"
            axes[0].plot(np.sqrt(edges[1:] * edges[:-1]), per_decade, label=label, **style)
            for axis, along in ((axes[1], 2), (axes[2], 1)):
                profile = (gev > 0).sum(axis=along).mean(axis=0)[distance + egamma.SEED_AT]
                axis.plot(distance, profile, label=label, **style)
    axes[0].set(
        xscale="log", yscale="log", xlabel="hit energy (GeV)", ylabel="hits / image / decade"
    )
    axes[1].set(xlabel="eta distance from the seed (crystals)", ylabel="hits / image")
    axes[2].set(xlabel="phi distance from the seed (crystals)", ylabel="hits / image")
    axes[0].legend()
    figure.tight_layout()
    save(figure, "egamma_hits.png")


def draw_examples(images: list[np.ndarray], each: int = 4) -> None:
    """Single images: stand-in and, where at hand, real ones."""
    import matplotlib.pyplot as plt
    from matplotlib.colors import LogNorm

    sample = real_sample()
    rows = [(f"stand-in {CLASSES[c]}", images[c][:each, ..., 0]) for c in range(2)]
    if sample:
        rows += [(f"real {CLASSES[c]}", sample[0][sample[1] == c][:each]) for c in range(2)]
    figure, axes = plt.subplots(
        len(rows), each, figsize=(2.6 * each + 1, 2.5 * len(rows)), sharex=True, sharey=True
    )
    for line, (title, energies) in zip(axes, rows, strict=True):
        for axis, energy in zip(line, energies, strict=True):
            gev = np.ma.masked_less_equal(energy * egamma.ENERGY_UNIT, 0)
            picture = axis.imshow(
                gev, origin="lower", norm=LogNorm(0.01, 50), extent=(-16.5, 15.5, -16.5, 15.5)
            )
        line[0].set_ylabel(f"{title}\neta (crystals)")
    for axis in axes[-1]:
        axis.set_xlabel("phi (crystals)")
    figure.colorbar(picture, ax=axes, label="hit energy (GeV)", shrink=0.6)
    save(figure, "egamma_examples.png")


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--events", type=int, default=60000, help="stand-in images to compare")
    arguments = parser.parse_args()
    images = []
    for path in egamma.generate(arguments.events):
        with h5py.File(path) as file:
            X = file["X"][:]
        images.append(X[X[..., 0].max(axis=(1, 2)) > 0])  # without the few empty ones
    draw_shapes(images)
    draw_pixels(images)
    draw_examples(images)
    seen = probe_table([image[:PROBED] for image in images])
    text = f"{table(images)}\n\n{separation(images)}"
    update_readme(text, "egamma")
    print(text)
    if seen:
        update_readme(seen, "egamma_probes")
        print(seen)


if __name__ == "__main__":
    main()
