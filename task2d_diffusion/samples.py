"""Samples of jets for two-sample tests: sparse images, with their observables."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from e2e_utils.sparse_images import SparseImages, concatenate
from task2d_diffusion.observables import tower_observables
from task2d_diffusion.towers import Towers, impossible_towers, in_parts, to_towers


@dataclass(frozen=True)
class Sample:
    """Jets: images, the hits that 255 is worth (n, 3), and observables (n, k)."""

    images: SparseImages
    largest: np.ndarray
    table: pd.DataFrame

    def __len__(self) -> int:
        return len(self.images)

    def rows(self, rows: slice | np.ndarray) -> "Sample":
        """Some of the jets."""
        return Sample(self.images.subset(rows), self.largest[rows], self.table.iloc[rows])

    def towers(self, rows: np.ndarray) -> Towers:
        """Some of the jets, dense."""
        return Towers(self.images.dense(rows).numpy(), self.largest[rows])

    def impossible(self) -> pd.DataFrame:
        """What no real jet can have: a row of booleans per jet."""
        parts = [self.towers(rows) for rows in in_parts(np.arange(len(self)))]
        return pd.concat(map(impossible_towers, parts), ignore_index=True)


def joined(samples: Sequence[Sample]) -> Sample:
    """Samples one after the other."""
    return Sample(
        concatenate([one.images for one in samples]),
        np.concatenate([one.largest for one in samples]),
        pd.concat([one.table for one in samples], ignore_index=True),
    )


def of_towers(part: Towers) -> Sample:
    """Jets in towers, with the observables of `tower_observables`."""
    return Sample(SparseImages.from_dense(part.x), part.largest, tower_observables(part.x))


def of_images(images: SparseImages, rows: np.ndarray) -> Sample:
    """Some jets of a store of pixel images, in towers."""
    return joined([of_towers(to_towers(images, part)) for part in in_parts(rows)])


def of_pixels(images: SparseImages) -> Sample:
    """Pixel images as they are, without observables."""
    n = len(images)
    return Sample(images, np.zeros((n, 0)), pd.DataFrame(index=range(n)))
