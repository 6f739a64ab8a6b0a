"""The HIGGS stand-in against real rows: distributions, distances, and transfer of a classifier.

    python -m data.calibration.higgs --events 22000

makes stand-in events if they are missing, draws data/figures/higgs_*.png, and rewrites the tables
between the markers in data/README.md. The 7,500 real rows (higgs_real_7500.tsv) are looked for in
the folder that the environment variable E2E_REAL_SAMPLES names; without them there is nothing to
compare, and it stops.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import ks_2samp

from data.calibration.report import auc_interval, save, update_readme
from data.readers.event_tables import iter_events
from data.simulate.higgs import generate
from data.simulate.higgs_detector import FEATURE_NAMES, SCALES
from e2e_utils.errors import InputError, command_line
from e2e_utils.paths import REAL_SAMPLES

if TYPE_CHECKING:
    from sklearn.ensemble import HistGradientBoostingClassifier

CLASSES = ("background", "signal")  # label 0, 1
LOW_LEVEL = 21
GROUPS = {
    "21 low-level": slice(0, LOW_LEVEL),
    "7 high-level": slice(LOW_LEVEL, None),
    "all 28": slice(None),
}
FOLDS = 5

Sample = tuple[np.ndarray, np.ndarray]


def real_sample() -> Sample | None:
    """The 7,500 real rows (7500, 28) and labels, or None where they are not at hand."""
    path = REAL_SAMPLES / "higgs_real_7500.tsv"
    return read(path) if path.exists() else None


def read(path: Path) -> Sample:
    """Features (n, 28) float32 and labels (n,) int64 of a file in UCI's format."""
    features, labels = zip(*iter_events(path, FEATURE_NAMES), strict=True)
    return np.concatenate(features), np.concatenate(labels).astype(np.int64)


def distances(ours: Sample, real: Sample) -> np.ndarray:
    """(28, 2): Kolmogorov distance of every feature, background and signal.

    The b-tags are compared as levels 0, 1, 2: the real rows' values are rounded to three decimals.
    """
    tag = np.array([name.endswith("btag") for name in FEATURE_NAMES])
    one, two = (np.where(tag, np.round(x * SCALES), x) for x, _ in (ours, real))
    return np.array(
        [
            [
                ks_2samp(one[ours[1] == label, k], two[real[1] == label, k]).statistic
                for label in range(2)
            ]
            for k in range(len(FEATURE_NAMES))
        ]
    )


def boosting() -> "HistGradientBoostingClassifier":
    """The classifier that tries to tell simulated from real events."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(
        max_iter=150, learning_rate=0.06, max_leaf_nodes=15, l2_regularization=1.0, random_state=0
    )


def scores(train: Sample, test: np.ndarray, columns: slice | np.ndarray) -> np.ndarray:
    """P(signal) of gradient boosting trained on these columns."""
    model = boosting().fit(train[0][:, columns], train[1])
    return model.predict_proba(test[:, columns])[:, 1]


def cross_validated(sample: Sample, columns: slice | np.ndarray) -> np.ndarray:
    """P(signal) of every event from the fold that did not train on it."""
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    return cross_val_predict(
        boosting(), sample[0][:, columns], sample[1], cv=folds, method="predict_proba"
    )[:, 1]


def cell(labels: np.ndarray, score: np.ndarray) -> str:
    """AUC with its interval, as the table shows it."""
    value, low, high = auc_interval(labels, score, rounds=200)
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def transfer_table(ours: Sample, real: Sample) -> str:
    """Markdown: AUC of boosting on stand-in test rows, on real rows, and trained on real rows."""
    n_train = (10 * len(ours[1])) // 11
    train, test = [
        (ours[0][part], ours[1][part]) for part in (slice(n_train), slice(n_train, None))
    ]
    lines = [
        f"| features | stand-in to stand-in ({n_train:,} to {len(test[1]):,}) "
        f"| stand-in to real ({len(real[1]):,}) | real to real ({FOLDS}-fold) |",
        "| --- | --- | --- | --- |",
    ]
    for name, columns in GROUPS.items():
        cells = [
            cell(test[1], scores(train, test[0], columns)),
            cell(real[1], scores(train, real[0], columns)),
            cell(real[1], cross_validated(real, columns)),
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def distance_table(ours: Sample, real: Sample) -> str:
    """Markdown: mean, spread and Kolmogorov distance of every feature in both classes."""
    lines = [
        "| feature, mean (std) | real background | stand-in | distance "
        "| real signal | stand-in | distance |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for k, (name, row) in enumerate(zip(FEATURE_NAMES, distances(ours, real), strict=True)):
        cells = []
        for label in range(2):
            for features, labels in (real, ours):
                values = features[labels == label, k]
                cells.append(f"{values.mean():.3f} ({values.std():.3f})".replace("-0.000", "0.000"))
            cells.append(f"{row[label]:.3f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(ours: Sample, real: Sample) -> None:
    """All 28 distributions: stand-in as filled histograms, real rows as points with errors."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(7, 4, figsize=(15, 21))
    for k, (axis, name) in enumerate(zip(axes.flat, FEATURE_NAMES, strict=True)):
        pooled = np.concatenate([ours[0][:, k], real[0][:, k]])
        tagged = name.endswith("btag")
        low, high = (-0.1, pooled.max() + 0.1) if tagged else np.quantile(pooled, (0.001, 0.995))
        bins = np.linspace(low, high, 10 if tagged else 31)
        width = bins[1] - bins[0]
        for label, colour in enumerate(("tab:blue", "tab:orange")):
            mine = ours[0][ours[1] == label, k]
            theirs = real[0][real[1] == label, k]
            axis.hist(
                mine,
                bins,
                weights=np.full(len(mine), 1 / len(mine) / width),
                histtype="stepfilled",
                alpha=0.3,
                color=colour,
                label=f"stand-in {CLASSES[label]}",
            )
            count, _ = np.histogram(theirs, bins)
            axis.errorbar(
                (bins[1:] + bins[:-1]) / 2,
                count / len(theirs) / width,
                np.sqrt(count) / len(theirs) / width,
                fmt="o",
                markersize=3,
                color=colour,
                label=f"real {CLASSES[label]}",
            )
        axis.set_xlabel(name)
        axis.set_ylim(bottom=0)
    axes.flat[0].legend(fontsize=8)
    figure.suptitle("Stand-in (filled) and real HIGGS rows (points, statistical errors); densities")
    figure.tight_layout(rect=(0, 0, 1, 0.985))
    save(figure, "higgs_features.png")


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--events", type=int, default=22000, help="stand-in events to compare")
    arguments = parser.parse_args()
    real = real_sample()
    if real is None:
        raise InputError(
            "higgs_real_7500.tsv: expected the real rows, found none; name their folder in "
            "E2E_REAL_SAMPLES"
        )
    ours = read(generate(arguments.events))
    draw(ours, real)
    text = f"{distance_table(ours, real)}\n\n{transfer_table(ours, real)}"
    update_readme(text, "higgs")
    print(text)


if __name__ == "__main__":
    main()
