"""Gradient-boosted trees whose number is chosen on validation events, as a network's epochs are.

scikit-learn takes validation events in ``fit`` since 1.7 only, and then keeps the trees after the
best one. Here any release since 1.6 will do.
"""

from collections.abc import Iterator
from copy import deepcopy
from itertools import islice
from typing import TypeVar

from numpy.typing import ArrayLike
from sklearn.base import clone, is_classifier
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.metrics import log_loss, mean_absolute_error, mean_squared_error

Trees = TypeVar("Trees", HistGradientBoostingClassifier, HistGradientBoostingRegressor)
BLOCK = 50  # trees between two looks at the validation events; each costs a binning of ``x``


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
        model.set_params(max_iter=min(trees + BLOCK, limit)).fit(x, y)
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
