"""What the calibrations share: intervals, figures, and the one writer of data/README.md's parts."""

import io
from typing import TYPE_CHECKING

import numpy as np

from e2e_utils.figures import palette_png
from e2e_utils.files import atomic_path, with_part, write_text
from e2e_utils.paths import ROOT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

README = ROOT / "data" / "README.md"
FIGURES = ROOT / "data" / "figures"


def update_readme(text: str, part: str) -> None:
    """Replace what stands between ``<!-- part:begin -->`` and ``<!-- part:end -->``."""
    content = README.read_text(encoding="utf-8")
    write_text(README, with_part(content, part, text, "data/README.md"))


def save(figure: "Figure", name: str) -> None:
    """Write a figure to data/figures/ and close it."""
    import matplotlib.pyplot as plt

    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, bbox_inches="tight")
    with atomic_path(FIGURES / name) as temporary:
        temporary.write_bytes(palette_png(stream.getvalue()))
    plt.close(figure)


def auc_interval(labels: np.ndarray, scores: np.ndarray, rounds: int = 1000) -> tuple:
    """ROC-AUC with its 95 % bootstrap interval."""
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    values = []
    while len(values) < rounds:
        rows = rng.integers(0, len(labels), len(labels))
        if 0 < labels[rows].sum() < len(labels):
            values.append(roc_auc_score(labels[rows], scores[rows]))
    return roc_auc_score(labels, scores), *np.quantile(values, (0.025, 0.975))


class Editions:
    """Markdown table: official numbers, those of the stand-ins' first edition, and today's."""

    def __init__(self) -> None:
        self._lines = ["| | official | first edition | second edition |", "| --- |" + " --- |" * 3]

    def line(
        self, label: str, official: object, first: object, now: object, form: str = ""
    ) -> None:
        """Add a row; strings stand as they are, numbers in the format ``form``."""
        cells = (x if isinstance(x, str) else format(x, form) for x in (official, first, now))
        self._lines.append(f"| {label} | " + " | ".join(cells) + " |")

    def __str__(self) -> str:
        return "\n".join(self._lines)
