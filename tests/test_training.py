"""The context of a training: resumed bit for bit, averaged, best weights kept."""

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.functional import mse_loss

from e2e_utils.seeds import seed_everything
from e2e_utils.training import BestWeights, Training, moving_average

X = torch.linspace(-1, 1, 64)[:, None]
Y = (X**2).squeeze(1)


class Interrupted(Exception):
    pass


def train(folder: Path, epochs: int = 4, stop: int | None = None, **options) -> Training:
    """Fit a parabola; interrupted in the middle of epoch ``stop``."""
    seed_everything(1)
    model = nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.2), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=epochs * 8)
    fit = Training(
        folder, model, optimizer, schedule, Accelerator(cpu=True), higher_is_better=False, **options
    )
    for epoch in fit.epochs(epochs):
        for number, batch in enumerate(fit.batches(np.arange(64), 8, seed=3)):
            if epoch == stop and number == 4:
                raise Interrupted
            loss = mse_loss(fit.network(X[batch]).squeeze(1), Y[batch])
            fit.backward(loss)
            fit.step()
        fit.averaged.eval()
        with torch.no_grad():
            error = mse_loss(fit.averaged(X).squeeze(1), Y).item()
        fit.record(error, last_loss=loss.item())
    return fit


def losses(fit: Training) -> list[tuple[float, float]]:
    return [(line["score"], line["last_loss"]) for line in fit.history]


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_an_interrupted_training_ends_as_an_uninterrupted_one(tmp_path, decay, capsys) -> None:
    whole = train(tmp_path / "whole", ema_decay=decay)
    assert capsys.readouterr().out.count("\n") == 1
    with pytest.raises(Interrupted):
        train(tmp_path / "parts", ema_decay=decay, stop=2)
    resumed = train(tmp_path / "parts", ema_decay=decay)
    assert losses(resumed) == losses(whole)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])
    again = train(tmp_path / "parts", ema_decay=decay)  # nothing is left to do
    assert losses(again) == losses(whole)


def test_the_model_ends_with_the_weights_of_the_best_epoch(tmp_path) -> None:
    fit = train(tmp_path / "fit")
    fit.model.eval()
    scores = [score for score, _ in losses(fit)]
    assert fit.best.epoch == int(np.argmin(scores))
    assert mse_loss(fit.model(X).squeeze(1), Y).item() == pytest.approx(min(scores))


def test_an_epoch_without_a_score_is_refused(tmp_path) -> None:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    fit = Training(tmp_path / "fit", model, optimizer, schedule, Accelerator(cpu=True))
    with pytest.raises(RuntimeError, match="record"):
        list(fit.epochs(2))


def test_best_weights_ignore_nan_and_ties() -> None:
    best, model = BestWeights(higher_is_better=True), nn.Linear(1, 1, bias=False)
    for epoch, (score, weight) in enumerate([(0.5, 1.0), (float("nan"), 2.0), (0.5, 3.0)]):
        nn.init.constant_(model.weight, weight)
        best.update(score, epoch, model)
    assert (best.score, best.epoch, best.weights["weight"].item()) == (0.5, 0, 1.0)


def test_moving_average_against_the_recursion() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.0)
    average, expected = moving_average(model, 0.5), 0.0
    for count in range(1, 12):
        nn.init.constant_(model.weight, float(count))
        average.update_parameters(model)
        if count == 1:  # the first update copies
            expected = 1.0
            continue
        keep = min(0.5, count / (9 + count))
        expected = keep * expected + (1 - keep) * count
    assert average.module.weight.item() == pytest.approx(expected, rel=1e-5)
