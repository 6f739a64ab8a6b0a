"""The only splitter: deterministic, stratified, disjoint; 80 % training (a fifth of it for
validation) and 20 % test."""

import hashlib
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.model_selection import train_test_split

from e2e_utils.errors import InputError
from e2e_utils.sparse_images import SparseImages

FRACTIONS = (0.64, 0.16, 0.20)
HASHED_ROWS = 50_000  # at a time
TEST_LAST = 1 / 11  # of the HIGGS rows: the last 100,000 of 1,100,000


class Splits(NamedTuple):
    """Row numbers of each part, shuffled, so that a prefix of a part is a random sample of it."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split(
    y_or_n: ArrayLike | int,
    seed: int = 0,
    fractions: tuple[float, float, float] = FRACTIONS,
    groups: ArrayLike | None = None,
) -> Splits:
    """Split events into train, validation and test by ``fractions``.

    Labels (N,) are stratified: every part has each class in proportion; a plain number of events
    is split without (for regression). Events with the same entry in ``groups`` (N,), such as
    rotated copies of one image, stay in one part; a group counts with its most frequent label.
    The same arguments give the same parts. Raises InputError if a part would lack a class.
    """
    stratified = np.ndim(y_or_n) > 0
    y = np.asarray(y_or_n) if stratified else np.zeros(int(y_or_n), np.int64)
    if groups is None:
        member, labels = np.arange(len(y)), y
    else:
        member = np.unique(np.asarray(groups), return_inverse=True)[1]  # (N,) group number
        labels = _group_labels(member, y)
    classes = np.unique(labels)
    try:
        rest, test = _halve(np.arange(len(labels)), labels, fractions[2], seed)
        share = fractions[1] / (fractions[0] + fractions[1])
        train, validation = _halve(rest, labels, share, seed)
    except ValueError as error:
        raise _too_few(labels) from error
    for part in (train, validation, test):
        if len(part) == 0 or len(np.unique(labels[part])) < len(classes):
            raise _too_few(labels)
    if groups is None:
        return Splits(train, validation, test)
    order = np.random.default_rng(seed).permutation(len(y))
    return Splits(*(order[np.isin(member[order], part)] for part in (train, validation, test)))


def split_last(
    y_or_n: ArrayLike | int,
    test_fraction: float = TEST_LAST,
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> Splits:
    """The last rows are the test set, in file order; the others are shuffled and divided.

    This is the protocol of the HIGGS data: of 1,100,000 rows the last 100,000, so of any number of
    rows the last eleventh. ``validation_fraction`` of the other rows is for validation, stratified
    where labels (N,) are given. No row is in two parts; but rows are not compared, and the official
    file repeats some: `exact_twins` finds test rows whose copy is in another part.

    Raises InputError if a part would be empty or lack a class.
    """
    stratified = np.ndim(y_or_n) > 0
    y = np.asarray(y_or_n) if stratified else np.zeros(int(y_or_n), np.int64)
    n_test = round(test_fraction * len(y))
    return _split_rest(y, np.arange(len(y)) >= len(y) - n_test, validation_fraction, seed)


def split_originals(
    label: np.ndarray,
    official_test: np.ndarray,
    validation_fraction: float = 1 / 6,
    seed: int = 0,
) -> Splits:
    """Split rotated MNIST by its originals, so that no turned copy of one is in another part.

    All originals of MNIST's test file (``official_test``, (N,) bool) are the test set, in file
    order; of the others ``validation_fraction`` is for validation, stratified by ``label`` (N,).
    Raises InputError if a part would be empty or lack a digit.
    """
    return _split_rest(np.asarray(label), np.asarray(official_test), validation_fraction, seed)


def _split_rest(y: np.ndarray, is_test: np.ndarray, fraction: float, seed: int) -> Splits:
    """The marked rows for test, in their order; the others shuffled, ``fraction`` to validate."""
    rest, test = np.flatnonzero(~is_test), np.flatnonzero(is_test)
    try:
        train, validation = _halve(rest, y, fraction, seed)
    except ValueError as error:
        raise _too_few(y) from error
    for part in (train, validation, test):
        if len(part) == 0 or len(np.unique(y[part])) < len(np.unique(y)):
            raise _too_few(y)
    return Splits(train, validation, test)


def duplicate_groups(images: SparseImages) -> np.ndarray:
    """Group number (N,) of each event: bit-identical images share one.

    As ``groups`` of ``split`` it keeps a copy of a test event out of the training events.
    """
    offsets, index, value = images.events()
    numbers: dict[bytes, int] = {}
    groups = np.empty(len(images), np.int64)
    for event, (start, stop) in enumerate(pairwise(offsets)):
        digest = hashlib.blake2b(index[start:stop].tobytes(), digest_size=16)
        digest.update(value[start:stop].tobytes())
        groups[event] = numbers.setdefault(digest.digest(), len(numbers))
    return groups


def exact_twins(x: np.ndarray, splits: Splits) -> np.ndarray:
    """Which test rows of ``x`` (N, F) equal a training or validation row in all columns: (T,) bool.

    Memory beside ``x``: 8 bytes a row and a block of rows.
    """
    hashes = row_hashes(x)
    return np.isin(hashes[splits.test], hashes[np.concatenate(splits[:2])])


def row_hashes(x: np.ndarray) -> np.ndarray:
    """64 bits (N,) for the rows of ``x`` (N, F): equal for equal rows.

    Among a million different rows two agree with a probability of 3e-8.
    """
    hashes = np.empty(len(x), np.uint64)
    for start in range(0, len(x), HASHED_ROWS):
        block = x[start : start + HASHED_ROWS] + x.dtype.type(0)  # -0 as 0
        rows = pd.DataFrame(np.ascontiguousarray(block))
        hashes[start : start + len(rows)] = pd.util.hash_pandas_object(rows, index=False)
    return hashes


def _halve(
    rows: np.ndarray, labels: np.ndarray, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Shuffle ``rows`` and split off ``fraction`` of them, stratified by their labels."""
    size = round(fraction * len(rows))
    return tuple(train_test_split(rows, test_size=size, random_state=seed, stratify=labels[rows]))


def _group_labels(member: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The most frequent label of every group (the smaller one of a tie)."""
    classes, label = np.unique(y, return_inverse=True)
    pairs, counts = np.unique(np.stack([member, label], axis=1), axis=0, return_counts=True)
    order = np.lexsort((pairs[:, 1], -counts, pairs[:, 0]))  # by group, most frequent first
    first = np.unique(pairs[order, 0], return_index=True)[1]
    return classes[pairs[order][first, 1]]


def _too_few(labels: np.ndarray) -> InputError:
    counts = dict(zip(*(a.tolist() for a in np.unique(labels, return_counts=True)), strict=True))
    return InputError(
        f"split: expected enough events of every class for train, validation and test, found "
        f"{counts} (class: events); give more events"
    )
