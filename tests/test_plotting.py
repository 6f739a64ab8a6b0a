"""Plots draw what they are given and label it."""

from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from e2e_utils import plotting
from e2e_utils.metrics import Interval

RNG = np.random.default_rng(0)
Y = RNG.integers(0, 2, 400)
SCORE = 1 / (1 + np.exp(-RNG.normal(2.0 * Y - 1)))
NAMES = ("photon", "electron")


@pytest.fixture
def axis() -> Iterator[Axes]:
    with plt.rc_context():
        plotting.set_style()
        figure, axis = plt.subplots()
        yield axis
        figure.canvas.draw()  # every artist can be rendered
        plt.close(figure)


def texts(axis: Axes) -> list[str]:
    return [text.get_text() for text in axis.get_legend().get_texts()]


def test_style(axis: Axes) -> None:
    assert axis.figure.dpi <= 100
    assert axis.figure.get_constrained_layout()
    assert len(set(plotting.PALETTE)) == 7
    (line,) = axis.plot([0, 1])
    assert to_hex(line.get_color()).upper() == plotting.PALETTE[0]


@pytest.mark.parametrize("energy", [np.abs(RNG.normal(size=(32, 32))), np.zeros((4, 5))])
def test_event_image(axis: Axes, energy: np.ndarray) -> None:
    energy[0, 0] = 0
    assert plotting.event_image(axis, energy, title="photon") is axis
    assert (axis.get_xlabel(), axis.get_ylabel(), axis.get_title()) == ("iphi", "ieta", "photon")
    image = axis.images[0]
    assert image.norm.vmin == plotting.ENERGY_FLOOR
    assert image.colorbar.ax.get_ylabel() == "E [GeV]"
    np.testing.assert_array_equal(image.get_array().mask, energy <= 0)
    assert image.origin == "lower"


def test_difference_image(axis: Axes) -> None:
    plotting.difference_image(axis, RNG.normal(size=(32, 32)), title="electron - photon")
    image = axis.images[0]
    assert image.norm(0.0) == pytest.approx(0.5)  # zero is the middle of the colours
    assert image.colorbar.ax.get_ylabel() == "ΔE [GeV]"


def test_heat_image(axis: Axes) -> None:
    plotting.heat_image(axis, np.eye(3), "saliency", "a. u.", cmap="magma")
    assert axis.images[0].get_cmap().name == "magma"


def test_class_histogram(axis: Axes) -> None:
    values = RNG.normal(size=400) + Y
    plotting.class_histogram(axis, pd.Series(values), Y, "width [crystals]", NAMES, bins=20)
    assert axis.get_xlabel() == "width [crystals]"
    assert texts(axis) == list(NAMES)
    for patch in axis.patches:
        x, height = patch.get_xy().T
        assert np.trapezoid(height, x) == pytest.approx(1)


def test_score_distributions(axis: Axes) -> None:
    plotting.score_distributions(axis, Y, SCORE, NAMES)
    assert axis.get_xlabel() == "predicted P(electron)"


@pytest.mark.parametrize(("metric", "best"), [("roc_auc", 2), ("loss", 1)])
def test_learning_curves_mark_the_chosen_epoch(axis: Axes, metric: str, best: int) -> None:
    history = pd.DataFrame(
        {
            "epoch": [1, 2, 3],
            "train_loss": [3.0, 2, 1],
            "validation_loss": [3.0, 1, 2],
            "train_roc_auc": [0.6, 0.7, 0.8],
            "validation_roc_auc": [0.5, 0.6, 0.7],
        }
    )
    plotting.learning_curves(axis, [history, history], metric, choose=metric)
    mark = axis.lines[2]
    assert mark.get_xdata()[0] == best + 1
    assert mark.get_ydata()[0] == history[f"validation_{metric}"][best]
    assert texts(axis) == ["train", "validation", "chosen epoch"]


def test_roc_curves(axis: Axes) -> None:
    plotting.roc_curves(axis, Y, {"network": SCORE, "chance": RNG.random(400)}, n_resamples=10)
    assert texts(axis)[0].startswith("network: AUC 0.9")
    assert len(axis.collections) == 2  # one band each


def test_reliability_diagram(axis: Axes) -> None:
    plotting.reliability_diagram(axis, Y, {"network": SCORE, "sure": Y.astype(float)})
    assert texts(axis)[1:] == ["network", "sure"]


def test_with_intervals(axis: Axes) -> None:
    plotting.with_intervals(axis, np.arange(2), [Interval(0.8, 0.7, 0.85)] * 2, label="network")
    (segment, _) = axis.collections[0].get_segments()
    np.testing.assert_allclose(segment[:, 1], [0.7, 0.85])
