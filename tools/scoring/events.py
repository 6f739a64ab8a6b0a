"""Events of a sample as a model takes them, and tables of results as files."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from data.loaders.common import LoadedDataset
from e2e_utils.errors import InputError
from e2e_utils.files import atomic_path

BATCH = 512


def official_layout(batch: np.ndarray, expected: tuple[int, ...], name: str) -> np.ndarray:
    """(B, C, H, W) images in the layout of a model's input without its batch axis.

    Official files keep the channels last, (B, H, W, C), or first. Raises InputError for images
    of another shape.
    """
    channel_last = np.moveaxis(batch, 1, -1)  # (B, H, W, C)
    if channel_last.shape[1:] == expected:
        return np.ascontiguousarray(channel_last)
    if batch.shape[1:] == expected:
        return batch
    raise InputError(
        f"{name}: expected images {expected} as the model does, found {channel_last.shape[1:]}; "
        "choose the task that these events belong to"
    )


def raw_batches(
    sample: LoadedDataset, expected: tuple[int, ...], name: str
) -> Iterator[np.ndarray]:
    """Events of a sample as a model takes them: images, pictures, or a table's low-level columns.

    ``expected`` is the shape of one event. Raises InputError for events of another shape.
    """
    if hasattr(sample, "images"):
        for _, dense in sample.images.iter_dense(BATCH):
            yield official_layout(dense.numpy(), expected, name)
        return
    events = sample.pictures if hasattr(sample, "pictures") else sample.low_level
    if events.shape[1:] != expected:
        raise InputError(
            f"{name}: expected events {expected} as the model does, found {events.shape[1:]}; "
            "choose the task that these events belong to"
        )
    for first in range(0, len(sample.y), BATCH):
        yield np.ascontiguousarray(events[first : first + BATCH], dtype=np.float32)


def write_table(path: Path, table: pd.DataFrame) -> None:
    """A table as CSV or parquet, by the suffix; atomic."""
    with atomic_path(path) as temporary:
        if path.suffix == ".parquet":
            table.to_parquet(temporary, index=False)
        else:
            table.to_csv(temporary, index=False, float_format="%.7g")
