"""A training that is stopped and started again must end as if nothing had happened."""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TypeVar

import numpy as np
import pytest
import torch

from e2e_utils import training as training_context

T = TypeVar("T")


def in_two_parts(
    notebook: ModuleType, training: Callable[[], T], total: int, stop: int | None = None
) -> T:
    """What ``training`` returns when it is interrupted once and called again.

    It is stopped after its state was saved ``stop`` times (one less than ``total``), and must
    save it ``total`` times in all: parts that were done are not done again.
    """
    # Notebooks with their own loop save by themselves, the others through `Training`.
    saver = notebook if hasattr(notebook, "save_training_state") else training_context
    save, saved = saver.save_training_state, []
    stop = stop or total - 1

    def save_then_stop(*arguments: object) -> None:
        save(*arguments)
        saved.append(arguments)
        if len(saved) == stop:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saver, "save_training_state", save_then_stop)
        with pytest.raises(KeyboardInterrupt):
            training()
        torch.rand(7)  # the world moves on
        result = training()
    assert len(saved) == total
    return result


def assert_same_weights(found: Mapping, expected: Mapping) -> None:
    """Bit for bit, arrays or tensors by name."""
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
