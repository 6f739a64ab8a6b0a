"""Gradient-boosted trees, the classical baseline: all settings are chosen on validation events.

scikit-learn takes validation events in ``fit`` since 1.7 only, and then keeps the trees after the
best one. Here any release since 1.6 will do.
"""

from collections.abc import Iterator
from copy import deepcopy
from itertools import islice
from typing import NamedTuple, TypeVar

import pandas as pd
from numpy.typing import ArrayLike
from sklearn.base import clone, is_classifier
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.metrics import log_loss, mean_absolute_error, mean_squared_error

Trees = TypeVar("Trees", HistGradientBoostingClassifier, HistGradientBoostingRegressor)
# Trees before the first look at the validation events. Every look costs a binning of ``x`` and a
# prediction by all trees, so the looks become rarer: each after half as many trees again.
BLOCK = 50
MOST_TREES = 1500
# Small and large trees, slow and fast; what is between them differs by less than a training.
SETTINGS = tuple(
    {"max_leaf_nodes": leaves, "learning_rate": rate, "min_samples_leaf": least}
    for leaves, rate, least in ((15, 0.1, 50), (31, 0.05, 50), (63, 0.05, 200), (31, 0.02, 200))
)


class TunedTrees(NamedTuple):
    """The trees that validation prefers, and what it said of each of SETTINGS."""

    model: HistGradientBoostingClassifier | HistGradientBoostingRegressor
    table: pd.DataFrame  # a row a setting: the setting, its number of trees, its validation loss


def tuned_trees(
    x: ArrayLike,
    y: ArrayLike,
    x_validation: ArrayLike,
    y_validation: ArrayLike,
    loss: str = "log_loss",
    tuning_events: int = 60_000,
    seed: int = 0,
) -> TunedTrees:
    """Trees with leaves, rate and number chosen by the validation ``loss``.

    ``x`` (n, k), ``y`` (n,). ``loss``: "log_loss" makes a classifier, "absolute_error" or
    "squared_error" a regressor. The settings compete on the first ``tuning_events`` training events
    (shuffle them before), the best is fitted to all.
    """
    kind = HistGradientBoostingClassifier if loss == "log_loss" else HistGradientBoostingRegressor
    first, trees, rows = slice(tuning_events), [], []
    for setting in SETTINGS:
        model = kind(loss=loss, max_iter=MOST_TREES, random_state=seed, **setting)
        model = fit_trees(model, x[first], y[first], x_validation, y_validation)
        *_, reached = staged_losses(model, x_validation, y_validation)
        trees.append(model)
        rows.append({**setting, "trees": model.n_iter_, "validation loss": reached})
    table = pd.DataFrame(rows)
    best = int(table["validation loss"].idxmin())
    if len(y) <= tuning_events:
        return TunedTrees(trees[best], table)
    best_model = clone(trees[best]).set_params(max_iter=2 * MOST_TREES)
    return TunedTrees(fit_trees(best_model, x, y, x_validation, y_validation), table)


def fit_trees(
    model: Trees,
    x: ArrayLike,
    y: ArrayLike,
    x_validation: ArrayLike,
    y_validation: ArrayLike,
    patience: int = 30,
) -> Trees:
    """A copy of ``model``, fitted with the number of trees (``n_iter_``) that validation prefers.

    ``x`` (n, k), ``y`` (n,). The validation loss is the log loss of a classifier, the mean absolute
    or squared error of a regressor. Growing ends at ``max_iter`` trees, or once ``patience`` of
    them have brought no better loss; the ones after the best are dropped.
    """
    limit = model.max_iter
    model = clone(model).set_params(warm_start=True, early_stopping=False)
    losses: list[float] = []
    best, start = 0, model  # the tree with the lowest loss, and the model before its block
    while len(losses) < min(limit, best + 1 + patience):
        before, trees = deepcopy(model), len(losses)
        model.set_params(max_iter=min(trees + max(BLOCK, trees // 2), limit)).fit(x, y)
        for loss in islice(staged_losses(model, x_validation, y_validation), trees, None):
            losses.append(loss)
            if loss < losses[best]:
                best = len(losses) - 1
            elif len(losses) > best + patience:
                break
        if best >= trees:
            start = before
    # The block of the best tree once more, up to there.
    return start.set_params(max_iter=best + 1).fit(x, y).set_params(warm_start=False)


def staged_losses(model: Trees, x: ArrayLike, y: ArrayLike) -> Iterator[float]:
    """The loss on ``x`` (n, k), ``y`` (n,) after each tree of a fitted model."""
    if is_classifier(model):
        return (
            log_loss(y, stage, labels=model.classes_) for stage in model.staged_predict_proba(x)
        )
    loss = mean_absolute_error if model.loss == "absolute_error" else mean_squared_error
    return (loss(y, stage) for stage in model.staged_predict(x))
