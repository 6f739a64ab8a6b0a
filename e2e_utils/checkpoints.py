"""Weights as safetensors with a card, and training states that resume bit for bit."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import joblib
import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from e2e_utils.errors import InputError
from e2e_utils.files import atomic_path, remove, reporting_full_disk

STATE_NAME = re.compile(r"\d{6}")
Result = TypeVar("Result")


def computed_once(path: str | Path, compute: Callable[[], Result]) -> Result:
    """What ``compute`` returns, kept in ``path`` (joblib): whoever comes again reads it; atomic."""
    if not Path(path).is_file():
        result = compute()
        with atomic_path(path) as temporary:
            joblib.dump(result, temporary)
    return joblib.load(path)


def save_weights(
    path: str | Path, model: nn.Module | Mapping[str, torch.Tensor], card: Mapping[str, object]
) -> None:
    """Write the weights and, in the file's metadata, the card (task, data, result, ...); atomic."""
    state = model.state_dict() if isinstance(model, nn.Module) else model
    # Clones: safetensors refuses tied weights and slices of larger buffers.
    tensors = {name: t.detach().cpu().clone().contiguous() for name, t in state.items()}
    content = save(tensors, {key: str(value) for key, value in card.items()})
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def load_weights(path: str | Path, model: nn.Module) -> nn.Module:
    """Load weights strictly into ``model`` (also returned); raises InputError for any mismatch."""
    with _opened(path) as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 not a dict
    expected = model.state_dict()
    differences = [f"{name} missing" for name in expected.keys() - found.keys()]
    differences += [f"{name} unknown" for name in found.keys() - expected.keys()]
    differences += [
        f"{name} {tuple(found[name].shape)} for {tuple(expected[name].shape)}"
        for name in expected.keys() & found.keys()
        if found[name].shape != expected[name].shape
    ]
    if differences:
        shown = ", ".join(sorted(differences)[:3])
        raise InputError(
            f"{path}: expected the weights of {type(model).__name__}, found {len(differences)} "
            f"differences ({shown}); train again or take the file of this model"
        )
    model.load_state_dict(found)
    return model


def read_card(path: str | Path) -> dict[str, str]:
    """The card that was saved with the weights."""
    with _opened(path) as file:
        return dict(file.metadata() or {})


def save_training_state(
    accelerator: Accelerator, folder: str | Path, extra: Mapping[str, object]
) -> None:
    """Save all that ``accelerator`` prepared or registered, its random states, and ``extra``.

    ``extra`` is JSON: the epochs done, curves, the best value. An exponential moving average of
    the weights is registered with ``accelerator.register_for_checkpointing(ema)``. The states are
    numbered: the previous one is deleted only after the new one is complete, so an interruption at
    any moment leaves a usable one. Every process of a distributed run calls this.
    """
    folder = Path(folder)
    previous = _states(folder)
    number = int(previous[-1].name) + 1 if previous else 0
    partial = folder / f".{number:06d}.part"  # one name for all processes
    if accelerator.is_main_process:
        for leftover in folder.glob(".*.part"):
            remove(leftover)
    accelerator.wait_for_everyone()
    try:
        with reporting_full_disk(folder):
            accelerator.save_state(str(partial))
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                (partial / "extra.json").write_text(json.dumps(extra))
                partial.rename(folder / f"{number:06d}")
    finally:
        if accelerator.is_main_process:
            remove(partial)
    if accelerator.is_main_process:
        for state in previous:
            remove(state)
    accelerator.wait_for_everyone()


def load_training_state(accelerator: Accelerator, folder: str | Path) -> dict | None:
    """Restore the last complete state and return its ``extra``; None where there is none.

    Call it after ``accelerator.prepare`` and ``register_for_checkpointing``, with the same objects
    in the same order as when it was saved. Raises InputError for a state of another model.
    """
    states = _states(Path(folder))
    if not states:
        return None
    try:
        accelerator.load_state(str(states[-1]))
        return json.loads((states[-1] / "extra.json").read_text())
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{folder}: expected a training state of this model, found {reason}; delete the folder "
            "to train from the start"
        ) from error


def _states(folder: Path) -> list[Path]:
    """Complete states, the oldest first."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in found if STATE_NAME.fullmatch(path.name))


@contextmanager
def _opened(path: str | Path) -> Iterator[safe_open]:
    if not Path(path).is_file():
        raise InputError(f"{path}: expected a safetensors file, found none; train the task first")
    try:
        file = safe_open(path, framework="pt")
    except SafetensorError as error:
        raise InputError(
            f"{path}: expected a complete safetensors file, found {error}; train again or fetch it "
            "again"
        ) from error
    with file:
        yield file
