"""Boosted trees stopped on validation events: as scikit-learn itself does it, in any release."""

import inspect
from itertools import islice

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.metrics import log_loss

from e2e_utils import boosting
from e2e_utils.boosting import fit_trees, staged_losses, tuned_trees

SETTINGS = {"max_iter": 120, "max_leaf_nodes": 8, "learning_rate": 0.2, "random_state": 0}


@pytest.fixture(scope="module")
def events():
    """x (n, 4) and y (n,) of 1500 training and 1500 validation events, which overfit early."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3000, 4))
    y = (rng.random(3000) < 1 / (1 + np.exp(-x[:, 0] * x[:, 1]))).astype(int)
    return x[:1500], y[:1500], x[1500:], y[1500:]


def test_the_number_of_trees_is_the_one_with_the_lowest_validation_loss(events):
    x, y, x_validation, y_validation = events
    trees = fit_trees(HistGradientBoostingClassifier(**SETTINGS), *events, patience=120)
    everything = HistGradientBoostingClassifier(**SETTINGS, early_stopping=False).fit(x, y)
    stages = list(everything.staged_predict_proba(x_validation))
    losses = [log_loss(y_validation, stage) for stage in stages]
    best = int(np.argmin(losses))
    assert 0 < best < 119
    assert trees.n_iter_ == best + 1
    np.testing.assert_allclose(trees.predict_proba(x_validation), stages[best], rtol=1e-6)


def test_the_size_of_a_block_changes_nothing(events, monkeypatch):
    wanted = fit_trees(HistGradientBoostingClassifier(**SETTINGS), *events, patience=4)
    monkeypatch.setattr(boosting, "BLOCK", 3)
    found = fit_trees(HistGradientBoostingClassifier(**SETTINGS), *events, patience=4)
    assert found.n_iter_ == wanted.n_iter_
    np.testing.assert_allclose(
        found.predict_proba(events[0]), wanted.predict_proba(events[0]), rtol=1e-6
    )


@pytest.mark.skipif(
    "X_val" not in inspect.signature(HistGradientBoostingClassifier.fit).parameters,
    reason="scikit-learn before 1.7 takes no validation events",
)
@pytest.mark.parametrize(
    ("kind", "loss"),
    [
        (HistGradientBoostingClassifier, "log_loss"),
        (HistGradientBoostingRegressor, "squared_error"),
        (HistGradientBoostingRegressor, "absolute_error"),
    ],
)
def test_scikit_learn_stops_at_the_same_tree(events, kind, loss):
    x, y, x_validation, y_validation = events
    if loss != "log_loss":
        noise = np.random.default_rng(1).normal(size=(2, len(x)))
        y, y_validation = x[:, 0] + noise[0], x_validation[:, 0] + noise[1]
    parts = x, y, x_validation, y_validation
    ours = fit_trees(kind(**SETTINGS, loss=loss), *parts, patience=10)
    assert ours.n_iter_ < 110
    theirs = kind(**SETTINGS, loss=loss, early_stopping=True, scoring="loss", n_iter_no_change=10)
    theirs.fit(x, y, X_val=x_validation, y_val=y_validation)
    assert theirs.n_iter_ == ours.n_iter_ + 10  # it keeps the trees after the best one
    stage = "staged_predict_proba" if loss == "log_loss" else "staged_predict"
    best = next(islice(getattr(theirs, stage)(x_validation), ours.n_iter_ - 1, None))
    found = getattr(ours, stage.removeprefix("staged_"))(x_validation)
    np.testing.assert_allclose(found, best, rtol=1e-6)


def test_the_model_that_was_given_stays_unfitted(events):
    model = HistGradientBoostingClassifier(**SETTINGS)
    fitted = fit_trees(model, *events, patience=2)
    assert not hasattr(model, "classes_")
    assert model.max_iter == 120
    assert not fitted.warm_start


@pytest.mark.parametrize("loss", ["log_loss", "squared_error"])
@pytest.mark.parametrize("tuning_events", [500, 5000])
def test_tuned_trees_are_those_that_validation_prefers(events, monkeypatch, loss, tuning_events):
    stump, deep = {"max_leaf_nodes": 2}, {"max_leaf_nodes": 12}  # y is the sign of a product
    monkeypatch.setattr(boosting, "SETTINGS", (stump, deep))
    found = tuned_trees(*events, loss=loss, tuning_events=tuning_events)
    assert found.table["validation loss"].idxmin() == 1
    assert found.model.max_leaf_nodes == 12
    kind = HistGradientBoostingClassifier if loss == "log_loss" else HistGradientBoostingRegressor
    assert isinstance(found.model, kind)
    *_, reached = staged_losses(found.model, *events[2:])
    alone = fit_trees(kind(loss=loss, max_iter=1500, **deep, random_state=0), *events)
    *_, expected = staged_losses(alone, *events[2:])
    assert reached == pytest.approx(expected, rel=1e-9)  # fitted to all events, however tuned
