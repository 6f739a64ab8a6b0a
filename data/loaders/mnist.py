"""MNIST with every digit turned in steps of 30 degrees.

All 70,000 x 12 images lie in one chunked, compressed HDF5 file, sorted by digit, so that a few
digits are read without the others.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import h5py
import numpy as np

from data.catalog import dataset
from data.loaders.common import LoadedDataset, Paths, as_paths
from data.loaders.rotations import ANGLES, rotate_steps
from data.readers.hdf5 import check_images_file, open_hdf5, readable
from e2e_utils import paths
from e2e_utils.errors import InputError
from e2e_utils.files import atomic_path
from e2e_utils.profiles import PROFILES, SOURCES, check_choice

STORE_NAME = "rotated_mnist.hdf5"
RECIPE = 1  # raise it when the stored images or their layout change
FIRST_TEST = 60000  # number of the first original of MNIST's test file
CHUNK = 250  # originals; 2.4 MB of images
TEST_SHARE = 1 / 6  # of the originals of a smaller profile
KEYS = {
    "X": {"shape": [-1, len(ANGLES), 28, 28], "dtype": "uint8"},
    "label": {"shape": [-1], "dtype": "int64"},
    "original": {"shape": [-1], "dtype": "int64"},
}
MAKE_AGAIN = "give a file with the keys of data/README.md"


def load_rotated_mnist(
    source: str = "auto",
    profile: str = "quick",
    digits: Sequence[int] = (1, 2),
    path: Paths | None = None,
) -> "RotatedDigits":
    """Handwritten digits at twelve angles, in the order of MNIST: training file, then test file.

    MNIST is public: where it is missing it is fetched, and there is no stand-in, so every
    ``source`` gives the same digits. ``profile`` limits the number of originals: of every digit the
    first ones, a sixth of them from the test file. ``path`` reads all originals of these digits
    from another HDF5 file with the same keys, also a URL. Raises InputError where the digits cannot
    be had.
    """
    check_choice("source", source, SOURCES)
    check_choice("profile", profile, PROFILES)
    digits = _check_digits(digits)
    if path is not None:
        file, *others = as_paths(path)
        if others:
            raise InputError(f"DATA: expected one file, found {1 + len(others)}; name one")
        found = "file"
        images, label, original, _ = _read(file, digits)
        words = file.name
    else:
        if source == "standin":
            print("MNIST is public: no stand-in digits are made, these are the official ones")
        file, found = paths.CACHE / STORE_NAME, "official"
        limit = dataset("mnist")["events"][profile]
        images, label, original, origin = _read_store(file, digits, limit)
        words = f"idx files {origin}"
    digest = hashlib.sha256(images)
    for numbers in (label, original):
        digest.update(numbers.tobytes())
    n_test = int((original >= FIRST_TEST).sum())
    description = (
        f"{len(label):,} originals of the digits {', '.join(map(str, digits))} at {len(ANGLES)} "
        f"angles each, {len(label) - n_test:,} of MNIST's training file, {n_test:,} of its test "
        f"file ({words})"
    )
    print(f"Data: {description}")
    return RotatedDigits(
        images,
        label,
        original,
        source=found,
        fingerprint=digest.hexdigest()[:16],
        description=description,
        files=[file.name],
    )


def load_digit_images(path: Paths, require_both_classes: bool = True) -> "DigitImages":
    """Every picture of a given file of digits 1 and 2 as an event of its own, for `make score`.

    ``path``: HDF5 with the keys of the store. Raises InputError for a file that is not complete,
    and, unless ``require_both_classes`` is false, for a single digit.
    """
    digits = load_rotated_mnist(path=path)
    found = np.unique(digits.label)
    if require_both_classes and len(found) < 2:
        raise InputError(f"{path}: expected digits 1 and 2, found only {found[0]}; {MAKE_AGAIN}")
    print("Turned copies of one digit are scored as independent pictures: intervals are too narrow")
    return DigitImages(
        digits.images.reshape(-1, *digits.images.shape[2:]),  # (N, 12, ...) -> (12 N, 28, 28)
        np.repeat((digits.label == 2).astype(np.int64), len(ANGLES)),
        source=digits.source,
        fingerprint=digits.fingerprint,
        description=digits.description,
        files=digits.files,
    )


def _check_digits(digits: Sequence[int]) -> tuple[int, ...]:
    chosen = tuple(sorted({int(digit) for digit in digits}))
    if not chosen or not set(chosen) <= set(range(10)):
        raise InputError(f"digits: expected some of 0 to 9, found {tuple(digits)}; correct them")
    return chosen


def _read_store(
    store: Path, digits: tuple[int, ...], limit: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """`_read` of the store, which is made first where it is missing, outdated or damaged."""
    try:
        return _read(store, digits, limit, RECIPE)
    except InputError:
        _build(store)
        return _read(store, digits, limit, RECIPE)


def _build(store: Path) -> None:
    """Turn all digits of MNIST and write them, chunk by chunk."""
    from data.mnist import read_digits  # the downloader is only needed here

    (train, test), labels, origin = read_digits()
    images, label = np.concatenate([train, test]), np.concatenate(labels).astype(np.int64)
    original = np.r_[np.arange(len(train)), FIRST_TEST + np.arange(len(test))]
    order = np.lexsort((original, label))
    shape = (len(images), *KEYS["X"]["shape"][1:])
    with atomic_path(store) as temporary, h5py.File(temporary, "w") as file:
        stored = file.create_dataset(
            "X",
            shape,
            np.uint8,
            chunks=(min(CHUNK, len(images)), *shape[1:]),
            compression="gzip",
            fletcher32=True,  # damaged pixels are noticed when they are read
        )
        for start in range(0, len(images), CHUNK):
            rows = order[start : start + CHUNK]
            stored[start : start + len(rows)] = rotate_steps(images[rows])
        file["label"], file["original"] = label[order], original[order]
        file.attrs.update(recipe=RECIPE, origin=origin)


def _read(
    path: Path, digits: tuple[int, ...], limit: int | None = None, recipe: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """Images (n, 12, 28, 28), digits (n,) and numbers (n,) of the originals, and their origin.

    Raises InputError for a file that is not complete, and for another ``recipe`` than that given.
    """
    check_images_file(path, KEYS, label="label")
    with open_hdf5(path) as file:
        found = file.attrs.get("recipe")
        if recipe is not None and found != recipe:
            raise InputError(f"{path}: expected recipe {recipe}, found {found}; it is made again")
        if file["X"].dtype != np.uint8:
            raise InputError(
                f"{path}: expected uint8, found {file['X'].dtype} in 'X'; {MAKE_AGAIN}"
            )
        with readable(path, "label"):
            label = file["label"][:].astype(np.int64)
        with readable(path, "original"):
            original = file["original"][:].astype(np.int64)
        rows = _select(label, original, digits, limit)
        if len(rows) == 0:
            raise InputError(f"{path}: expected digits {digits}, found none of them; {MAKE_AGAIN}")
        with readable(path, "X"):
            images = _read_rows(file["X"], rows)
        return images, label[rows], original[rows], file.attrs.get("origin", "")


def _select(
    label: np.ndarray, original: np.ndarray, digits: tuple[int, ...], limit: int | None
) -> np.ndarray:
    """Rows of the digits, by number of the original; with a limit the first ones of every digit."""
    rows = np.flatnonzero(np.isin(label, digits))
    rows = rows[np.argsort(original[rows], kind="stable")]
    if limit is None or limit >= len(rows):
        return rows
    n_test = round(TEST_SHARE * limit / len(digits))
    n_train = limit // len(digits) - n_test
    keep = np.zeros(len(rows), bool)
    for digit in digits:
        for from_test, count in ((False, n_train), (True, n_test)):
            fits = (label[rows] == digit) & ((original[rows] >= FIRST_TEST) == from_test)
            keep[np.flatnonzero(fits)[:count]] = True
    return rows[keep]


def _read_rows(stored: h5py.Dataset, rows: np.ndarray) -> np.ndarray:
    """The images of these rows, in this order; every chunk that holds one is read once."""
    images = np.empty((len(rows), *stored.shape[1:]), np.uint8)
    for start in range(0, len(stored), CHUNK):
        places = np.flatnonzero((rows >= start) & (rows < start + CHUNK))
        if len(places):
            images[places] = stored[start : start + CHUNK][rows[places] - start]
    return images


@dataclass(frozen=True)
class RotatedDigits(LoadedDataset):
    """Originals of MNIST at twelve angles; ``images[:, k]`` is turned by ``ANGLES[k]`` degrees."""

    source_words: ClassVar[dict[str, str]] = {
        "official": "digits of MNIST",
        "file": "digits of the given file",
    }

    images: np.ndarray  # (N, 12, 28, 28) uint8; [:, 0] are the untouched originals
    label: np.ndarray  # (N,) int64: the digit
    original: np.ndarray  # (N,) int64: 0 to 59999 of the training, 60000 to 69999 of the test file

    def __len__(self) -> int:
        """Number of originals."""
        return len(self.label)

    @property
    def official_test(self) -> np.ndarray:
        """(N,) bool: whether the original is from MNIST's test file."""
        return self.original >= FIRST_TEST


@dataclass(frozen=True)
class DigitImages(LoadedDataset):
    """Pictures of two digits, each at twelve angles, as labelled events."""

    pictures: np.ndarray  # (N, 28, 28) uint8, grey levels
    y: np.ndarray  # (N,) int64: 0 digit 1, 1 digit 2
