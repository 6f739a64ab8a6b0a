"""Weights with their card, training states that resume bit for bit, and seeds."""

import errno

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from e2e_utils.checkpoints import (
    computed_once,
    load_training_state,
    load_weights,
    read_card,
    save_training_state,
    save_weights,
)
from e2e_utils.errors import InputError
from e2e_utils.seeds import epoch_batches, epoch_generator, seed_everything, torch_generator

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
Y = (X.sum(1) > 0).float()


def make_model(width: int = 16) -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.3), nn.Linear(width, 1)
    )


class Best:
    """An object of a notebook with a state of its own."""

    def __init__(self) -> None:
        self.loss, self.weights = np.inf, {}

    def state_dict(self) -> dict:
        return {"loss": self.loss, "weights": self.weights}

    def load_state_dict(self, state: dict) -> None:
        self.loss, self.weights = state["loss"], state["weights"]


def train(folder, epochs: int, stop: int | None = None, schedule: str = "one cycle") -> dict:
    """Train a small network; ``stop`` ends it after so many epochs, as an interruption would."""
    seed_everything(7)
    accelerator = Accelerator(cpu=True)
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    if schedule == "one cycle":
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=epochs * 4)
    else:
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * 4)
    model, optimizer, rate = accelerator.prepare(model, optimizer, rate)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    best = Best()
    accelerator.register_for_checkpointing(ema, best)
    state = load_training_state(accelerator, folder) or {"losses": []}
    losses = state["losses"]
    for epoch in range(len(losses), epochs):
        if epoch == stop:
            break
        noise = torch_generator(7, epoch)
        for rows in epoch_batches(np.arange(64), 16, 7, epoch):
            x = X[rows] + 0.1 * torch.randn(16, 6, generator=noise)
            x = x + 0.01 * np.random.normal() + 0.01 * torch.rand(())  # noqa: NPY002 global states
            loss = nn.functional.binary_cross_entropy_with_logits(model(x).squeeze(1), Y[rows])
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            rate.step()
            ema.update_parameters(model)
        losses.append(loss.item())
        if loss.item() < best.loss:
            best.loss = loss.item()
            best.weights = {k: v.clone() for k, v in model.state_dict().items()}
        save_training_state(accelerator, folder, {"losses": losses})
    return {
        "losses": losses,
        "best": best.loss,
        **{f"model.{k}": v for k, v in model.state_dict().items()},
        **{f"ema.{k}": v for k, v in ema.state_dict().items()},
        **{f"best.{k}": v for k, v in best.weights.items()},
    }


def assert_identical(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, b[name]), name
        else:
            assert value == b[name], name


@pytest.mark.parametrize("schedule", ["one cycle", "cosine"])
def test_resumed_training_is_bit_for_bit_the_same(tmp_path, schedule: str) -> None:
    straight = train(tmp_path / "straight", 4, schedule=schedule)
    train(tmp_path / "resumed", 4, stop=2, schedule=schedule)
    torch.rand(5)
    resumed = train(tmp_path / "resumed", 4, schedule=schedule)
    assert_identical(straight, resumed)


@pytest.mark.parametrize("moment", ["while saving", "before the move"])
def test_interrupted_save_leaves_the_previous_state(tmp_path, monkeypatch, moment: str) -> None:
    straight = train(tmp_path / "straight", 4)
    train(tmp_path / "resumed", 4, stop=2)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    if moment == "while saving":
        monkeypatch.setattr("accelerate.accelerator.save_accelerator_state", interrupted)
    else:
        monkeypatch.setattr("pathlib.Path.rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "resumed", 4, stop=3)
    monkeypatch.undo()
    assert len(list((tmp_path / "resumed").iterdir())) == 1
    assert_identical(straight, train(tmp_path / "resumed", 4))


def test_leftovers_of_a_killed_process_are_ignored_and_removed(tmp_path) -> None:
    train(tmp_path, 4, stop=1)
    (tmp_path / ".000001.part").mkdir()
    train(tmp_path, 4, stop=2)
    assert [path.name for path in tmp_path.iterdir()] == ["000001"]


def test_full_disk_while_saving_a_state(tmp_path, monkeypatch) -> None:
    train(tmp_path, 4, stop=1)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("accelerate.accelerator.save_accelerator_state", full)
    with pytest.raises(InputError, match="full disk"):
        train(tmp_path, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["000000"]


def test_no_state(tmp_path) -> None:
    assert load_training_state(Accelerator(cpu=True), tmp_path / "none") is None


@pytest.mark.parametrize("damage", ["other model", "cut"])
def test_unusable_states_are_refused(tmp_path, damage: str) -> None:
    train(tmp_path, 2)
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(make_model(8 if damage == "other model" else 16))
    if damage == "cut":
        file = tmp_path / "000001" / "model.safetensors"
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match="delete the folder") as error:
        load_training_state(accelerator, tmp_path)
    assert "\n" not in str(error.value)


def test_weights_round_trip(tmp_path) -> None:
    path = tmp_path / "model.safetensors"
    model = make_model().eval()
    save_weights(path, model, {"task": "common_task1", "roc_auc": 0.81})
    other = load_weights(path, make_model()).eval()
    assert torch.equal(model(X), other(X))
    assert read_card(path) == {"task": "common_task1", "roc_auc": "0.81"}
    save_weights(path, model.state_dict(), {})
    assert read_card(path) == {}


def test_computed_once(tmp_path) -> None:
    file, calls = tmp_path / "new" / "trees.joblib", []

    def compute() -> list:
        calls.append(1)
        return [len(calls)]

    assert computed_once(file, compute) == computed_once(file, compute) == [1]

    def broken() -> list:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        computed_once(tmp_path / "other.joblib", broken)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new"]  # nothing half-written


def test_tied_and_sliced_tensors_can_be_saved(tmp_path) -> None:
    tied = torch.arange(12.0).view(3, 4)
    save_weights(tmp_path / "x", {"a": tied, "b": tied, "c": tied[:, 1], "d": tied.T}, {})
    model = nn.Module()
    for name, shape in {"a": (3, 4), "b": (3, 4), "c": (3,), "d": (4, 3)}.items():
        model.register_buffer(name, torch.zeros(shape))
    assert torch.equal(load_weights(tmp_path / "x", model).d, tied.T)


def test_weights_of_another_model(tmp_path) -> None:
    save_weights(tmp_path / "w", make_model(8), {})
    with pytest.raises(InputError, match=r"0\.weight \(8, 6\) for \(16, 6\)"):
        load_weights(tmp_path / "w", make_model(16))
    state = make_model(8).state_dict()
    state["extra"] = state.pop("4.bias")
    save_weights(tmp_path / "w", state, {})
    with pytest.raises(InputError, match=r"2 differences \(4\.bias missing, extra unknown\)"):
        load_weights(tmp_path / "w", make_model(8))


@pytest.mark.parametrize("content", [None, b"", b"{}", "cut"])
def test_broken_weights(tmp_path, content: bytes | str | None) -> None:
    path = tmp_path / "w.safetensors"
    if content == "cut":
        save_weights(path, make_model(), {})
        content = path.read_bytes()[:-10]
    if content is not None:
        path.write_bytes(content)
    for read in (read_card, lambda path: load_weights(path, make_model())):
        with pytest.raises(InputError, match=r"w\.safetensors: expected a"):
            read(path)


def test_full_disk_keeps_the_previous_weights(tmp_path, monkeypatch) -> None:
    path = tmp_path / "w"
    save_weights(path, make_model(), {"run": 1})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(InputError, match="full disk"):
        save_weights(path, make_model(), {"run": 2})
    assert read_card(path) == {"run": "1"}
    assert list(tmp_path.iterdir()) == [path]


def test_seed_everything() -> None:
    draws = []
    for _ in range(2):
        seed_everything(3)
        draws.append((np.random.random(), torch.rand(()).item()))  # noqa: NPY002
    assert draws[0] == draws[1]


def test_epochs_depend_on_seed_and_epoch_alone() -> None:
    assert epoch_generator(1, 2).random() == epoch_generator(1, 2).random()
    assert epoch_generator(1, 2).random() != epoch_generator(2, 1).random()
    a, b = (torch.rand(3, generator=torch_generator(1, 2)) for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, torch.rand(3, generator=torch_generator(1, 3)))


def test_batches_are_a_shuffled_cover_without_the_rest() -> None:
    rows = np.arange(100, 203)
    batches = list(epoch_batches(rows, 10, seed=0, epoch=0))
    assert [len(batch) for batch in batches] == [10] * 10
    seen = np.concatenate(batches)
    assert len(np.unique(seen)) == 100
    assert set(seen) <= set(rows)
    assert not np.array_equal(np.sort(seen), seen)


def test_processes_share_the_batches() -> None:
    shares = [list(epoch_batches(np.arange(110), 10, 0, 0, p, 3)) for p in range(3)]
    assert [len(share) for share in shares] == [3, 3, 3]
    joined = np.concatenate([np.concatenate(share) for share in shares])
    assert len(np.unique(joined)) == 90
