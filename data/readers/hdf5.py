"""Checks of HDF5 files against the official schema, and reading them chunk by chunk.

Every refusal is one line: which file, what was expected, what was found, what to do.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import h5py
import numpy as np

from data.readers.source import FETCH_AGAIN, Source, check_present
from e2e_utils.errors import InputError

CHUNK_EVENTS = 2000
CHUNK_BYTES = 64_000_000  # of a chunk of large images, so that memory does not grow with the file


@contextmanager
def open_hdf5(path: Source) -> Iterator[h5py.File]:
    """Open for reading; raises InputError if missing, empty, cut short or not HDF5."""
    check_present(path, "an HDF5 file")
    try:
        # A lock guards against a writer, and our files are complete before they get their name. It
        # would fail on file systems without flock (DVS, some mounts of Lustre).
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        kind = "a truncated file" if "truncated" in str(error) else "something else"
        raise InputError(
            f"{path}: expected a complete HDF5 file, found {kind}; {FETCH_AGAIN}"
        ) from error
    with file:
        yield file


def check_images_file(path: Source, keys: Mapping[str, Mapping], label: str | None = "y") -> int:
    """Compare a file's datasets with ``keys`` of data/catalog.toml; return its number of events.

    ``keys`` maps each name to its ``shape`` (the first axis, events, may have any length) and
    ``dtype``. Floats of another precision are accepted, since they hold the same quantity;
    integers are refused where floats are expected: such images were rescaled to grey levels.
    Only ``label`` may have any numeric type, its values tell. No event is read.
    """
    with open_hdf5(path) as file:
        for key, schema in keys.items():
            kinds = "iubf" if key == label else np.dtype(schema["dtype"]).kind
            _check_dataset(path, file, key, schema, kinds)
        lengths = {key: len(file[key]) for key in keys}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{n} in {key!r}" for key, n in lengths.items())
        raise InputError(
            f"{path}: expected as many events in every dataset, found {found}; {FETCH_AGAIN}"
        )
    n_events = next(iter(lengths.values()))
    if n_events == 0:
        raise InputError(f"{path}: expected events, found none in {list(keys)}; {FETCH_AGAIN}")
    return n_events


def iter_columns(
    path: Source, images: str, numbers: Sequence[str], n_events: int | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Yield `iter_images` of ``images`` with the ``numbers`` of the same events, (b,) float64.

    Numbers are stored as (n,) or (n, 1). All of them are read and checked before any image is.
    """
    columns = {key: _read_numbers(path, key, n_events) for key in numbers}
    first = 0
    for chunk in iter_images(path, images, n_events):
        rows = slice(first, first + len(chunk))
        yield {images: chunk} | {key: column[rows] for key, column in columns.items()}
        first += len(chunk)


def _read_numbers(path: Source, key: str, n_events: int | None) -> np.ndarray:
    with open_hdf5(path) as file, readable(path, key):
        values = file[key][:n_events].astype(np.float64).reshape(-1)  # (n, 1) -> (n,)
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        raise InputError(
            f"{path}: expected finite values, found NaN or infinity in event {wrong[0]} of "
            f"{key!r}; remove or repair the event"
        )
    return values


def iter_images(path: Source, key: str = "X", n_events: int | None = None) -> Iterator[np.ndarray]:
    """Yield chunks (b, C, H, W) float32 of the first ``n_events`` channel-last images.

    Raises InputError for a NaN or an infinity (file and event) and for unreadable chunks.
    """
    with open_hdf5(path) as file:
        images = file[key]
        stop = len(images) if n_events is None else min(n_events, len(images))
        image_bytes = images.dtype.itemsize * int(np.prod(images.shape[1:]))
        step = max(1, min(CHUNK_EVENTS, CHUNK_BYTES // max(image_bytes, 1)))
        for start in range(0, stop, step):
            with readable(path, key), np.errstate(over="ignore"):
                chunk = images[start : min(start + step, stop)].astype(np.float32, copy=False)
            finite = np.isfinite(chunk).reshape(len(chunk), -1).all(axis=1)  # (b,)
            if not finite.all():
                raise InputError(
                    f"{path}: expected finite pixels, found NaN or infinity in event "
                    f"{start + int(np.argmin(finite))} of {key!r}; remove or repair the event"
                )
            yield chunk.transpose(0, 3, 1, 2)  # (b, H, W, C) -> (b, C, H, W)


@contextmanager
def readable(path: Source, key: str) -> Iterator[None]:
    """Report compressed chunks that cannot be decoded as an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path}: expected readable data in {key!r}, found damaged chunks; {FETCH_AGAIN}"
        ) from error


def _check_dataset(path: Source, file: h5py.File, key: str, schema: Mapping, kinds: str) -> None:
    if not isinstance(file.get(key), h5py.Dataset):
        found = ", ".join(map(repr, file)) or "no dataset"
        raise InputError(f"{path}: expected dataset {key!r}, found {found}; rename or add it")
    dataset, shape = file[key], schema["shape"]
    if dataset.ndim != len(shape) or dataset.shape[1:] != tuple(shape[1:]):
        expected = "(" + ", ".join(["n", *map(str, shape[1:])]) + ")"
        raise InputError(
            f"{path}: expected {key!r} of shape {expected}, found {dataset.shape}; "
            "bring it to the official shape (data/README.md)"
        )
    if dataset.dtype.kind not in kinds:
        raise InputError(
            f"{path}: expected {key!r} of type {schema['dtype']}, found {dataset.dtype}; "
            "give the values in the official units (data/README.md)"
        )
