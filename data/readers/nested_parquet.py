"""Images as nested lists in parquet: written, checked, and streamed without a loop over pixels.

The official files hold an image as list<list<list<double>>> and one row group a jet. The readers
take row groups of any length, and any seekable binary file in place of a path.

The footer of a file describes every row group and column: as long as one with 150,000 row groups of
five columns is open it takes 0.75 GB, which does not grow as the row groups are read (and 1.6 s to
open). So a file is opened once to be checked and once to be read, and never two at a time.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.readers.source import FETCH_AGAIN, Source, check_present, name_of
from e2e_utils.errors import InputError

CHUNK_EVENTS = 100  # jets of 3 x 125 x 125 doubles: 38 MB, and as much again while they are decoded
BUFFER_BYTES = 1 << 20  # of a column, so that a row group need not fit into memory
OFFICIAL_SHAPE = "bring it to the official schema (data/README.md)"

Keys = Mapping[str, Mapping]  # columns with their shapes, as in data/catalog.toml


def nested(images: np.ndarray) -> pa.Array:
    """Images (n, C, H, W) as an Arrow array of n lists of C lists of H lists of W doubles."""
    array = pa.array(np.ascontiguousarray(images, np.float64).reshape(-1))  # (n*C*H*W,)
    for axis in (3, 2, 1):
        offsets = np.arange(math.prod(images.shape[:axis]) + 1, dtype=np.int32)
        array = pa.ListArray.from_arrays(pa.array(offsets * images.shape[axis]), array)
    return array


def dense(lists: pa.Array, shape: Sequence[int]) -> np.ndarray | None:
    """The n images of an Arrow array as (n, C, H, W) float32, or None where ``shape`` differs.

    A first length of -1 is that of the first image.
    """
    if shape[0] < 0:
        shape = (len(lists[0]) if len(lists) and lists[0].is_valid else 0, *shape[1:])
    values = lists
    for length in shape:
        if values.null_count or np.any(np.diff(values.offsets) != length):
            return None
        values = values.flatten()
    if values.null_count:
        return None
    with np.errstate(over="ignore"):
        return np.asarray(values).astype(np.float32).reshape(len(lists), *shape)


@contextmanager
def open_parquet(source: Source) -> Iterator[pq.ParquetFile]:
    """Open for reading; raises InputError if missing, empty, cut short or not parquet."""
    check_present(source, "a parquet file")
    try:
        file = pq.ParquetFile(source, buffer_size=BUFFER_BYTES, pre_buffer=False)
    except pa.ArrowInvalid as error:
        raise InputError(
            f"{name_of(source)}: expected a complete parquet file, found a truncated one or "
            f"something else; {FETCH_AGAIN}"
        ) from error
    with file:
        yield file


def check_parquet(source: Source, keys: Keys) -> int:
    """Compare the columns with ``keys``, as `layout_of` does; return the number of rows."""
    return layout_of(source, keys)[0]


def layout_of(source: Source, *layouts: Keys) -> tuple[int, Keys]:
    """The number of rows, and which of the ``layouts`` the file has: the first that fits.

    Images must be lists of lists of lists of floats; the lengths of the lists are checked as they
    are read. Floats of another precision are accepted. Reads the footer only.
    """
    with open_parquet(source) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
    name = name_of(source)
    keys = min(layouts, key=lambda layout: len(set(layout) - set(schema.names)))
    for key, expected in keys.items():
        if key not in schema.names:
            found = ", ".join(schema.names)
            raise InputError(f"{name}: expected a column {key!r}, found {found}; rename or add it")
        kind, depth = schema.field(key).type, len(expected["shape"]) - 1
        for _ in range(depth):
            is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
            kind = kind.value_type if is_list else pa.null()
        if not (pa.types.is_floating(kind) or (key == "y" and pa.types.is_integer(kind))):
            raise InputError(
                f"{name}: expected {key!r} as {'list<' * depth}double{'>' * depth}, found "
                f"{schema.field(key).type}; {OFFICIAL_SHAPE}"
            )
    if rows == 0:
        raise InputError(f"{name}: expected jets, found none; {FETCH_AGAIN}")
    return rows, keys


def iter_columns(
    source: Source, keys: Keys, n_events: int | None = None, chunk: int = CHUNK_EVENTS
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the columns of ``keys`` in chunks of rows: images float32, numbers float64.

    Stops after ``n_events`` rows; at most a chunk more is decoded. Raises InputError for an image
    of another shape, a missing value, a NaN or an infinity (file and event), or damage.
    """
    name, done = name_of(source), 0
    with open_parquet(source) as file:
        stop = min(file.metadata.num_rows, math.inf if n_events is None else n_events)
        batches = file.iter_batches(min(chunk, stop), columns=list(keys), use_threads=False)
        while done < stop:
            try:
                batch = next(batches).slice(0, stop - done)
            except (pa.ArrowException, OSError, StopIteration) as error:
                raise InputError(
                    f"{name}: expected readable data, found damage after event {done}; "
                    f"{FETCH_AGAIN}"
                ) from error
            yield {
                key: _column(name, key, batch.column(key), schema["shape"][1:], done)
                for key, schema in keys.items()
            }
            done += len(batch)


def _column(name: str, key: str, values: pa.Array, shape: Sequence[int], start: int) -> np.ndarray:
    if shape:
        images = dense(values, shape)
        if images is None:
            expected = ", ".join("any" if length < 0 else str(length) for length in shape)
            events = (k for k in range(len(values)) if dense(values.slice(k, 1), shape) is None)
            raise InputError(
                f"{name}: expected {key!r} of shape ({expected}), found another in event "
                f"{start + next(events, 0)}; {OFFICIAL_SHAPE}"
            )
    else:
        images = values.to_numpy(zero_copy_only=False).astype(np.float64)
    finite = np.isfinite(images).reshape(len(images), -1).all(axis=1)  # (b,)
    if not finite.all():
        raise InputError(
            f"{name}: expected finite values, found NaN, infinity or nothing in event "
            f"{start + int(np.argmin(finite))} of {key!r}; remove or repair the event"
        )
    return images
