"""Images as nested lists in parquet: written, checked, and streamed without a loop over pixels.

The official quark/gluon files hold an image as list<list<list<double>>> and one row group a jet.
The readers take row groups of any length, and any seekable binary file in place of a path.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from e2e_utils.errors import InputError

CHUNK_EVENTS = 100  # jets of 3 x 125 x 125 doubles: 38 MB, and as much again while they are decoded
BUFFER_BYTES = 1 << 20  # of a column, so that a row group need not fit into memory
FETCH_AGAIN = "get the file again (make data) or give another one"

Source = str | Path | BinaryIO


def nested(images: np.ndarray) -> pa.Array:
    """Images (n, C, H, W) as an Arrow array of n lists of C lists of H lists of W doubles."""
    n, channels, height, width = images.shape
    array = pa.array(np.ascontiguousarray(images, np.float64).reshape(-1))  # (n*C*H*W,)
    for length, count in ((width, n * channels * height), (height, n * channels), (channels, n)):
        offsets = np.arange(count + 1, dtype=np.int32) * length
        array = pa.ListArray.from_arrays(pa.array(offsets), array)
    return array


def dense(lists: pa.Array, shape: Sequence[int]) -> np.ndarray | None:
    """The n images of an Arrow array as (n, C, H, W) float32, or None where ``shape`` differs."""
    array, expected = lists, len(lists)
    for length in shape:
        if array.null_count or len(array) != expected:
            return None
        sizes = np.diff(np.asarray(array.offsets))
        if (sizes != length).any():
            return None
        array, expected = array.flatten(), expected * length
    if array.null_count:
        return None
    values = np.asarray(array)
    with np.errstate(over="ignore"):
        return values.astype(np.float32).reshape(len(lists), *shape)  # (n*C*H*W,) -> (n, C, H, W)


@contextmanager
def open_parquet(source: Source) -> Iterator[pq.ParquetFile]:
    """Open for reading; raises InputError if missing, empty, cut short or not parquet."""
    if isinstance(source, str | Path):
        path = Path(source)
        if not path.is_file():
            raise InputError(f"{path}: expected a parquet file, found none; check the path")
        if path.stat().st_size == 0:
            raise InputError(f"{path}: expected a parquet file, found an empty file; {FETCH_AGAIN}")
    try:
        # The footer of a row group a jet is 20 MB: a remote file fetches it once.
        footer = getattr(source, "footer", None)
        file = pq.ParquetFile(source, metadata=footer, buffer_size=BUFFER_BYTES, pre_buffer=False)
    except pa.ArrowInvalid as error:
        raise InputError(
            f"{name_of(source)}: expected a complete parquet file, found a truncated one or "
            f"something else; {FETCH_AGAIN}"
        ) from error
    if hasattr(source, "footer"):
        source.footer = file.metadata
    with file:
        yield file


def name_of(source: Source) -> str:
    """What error messages call a file."""
    return str(source if isinstance(source, str | Path) else getattr(source, "name", "the file"))


def column_names(source: Source) -> list[str]:
    """Names of the columns; raises InputError where the file is not parquet."""
    with open_parquet(source) as file:
        return file.schema_arrow.names


def has_column(source: Source, key: str) -> bool:
    """Whether the file has a column of that name."""
    return key in column_names(source)


def image_shape(source: Source, key: str) -> tuple[int, ...]:
    """Lengths of the nested lists of the first image of ``key``; () where there is none.

    Reads the first row only. Other images may differ: `iter_columns` checks every one.
    """
    with open_parquet(source) as file:
        batch = next(_batches(source, file, [key], min(1, file.metadata.num_rows), 1), None)
    shape = []
    array = None if batch is None else batch.column(0)
    while array is not None and len(array) and pa.types.is_list(array.type):
        array = array[0].values
        shape.append(0 if array is None else len(array))
    return tuple(shape)


def check_parquet(source: Source, keys: Mapping[str, Mapping]) -> int:
    """Compare the columns with ``keys`` of data/catalog.toml; return the number of rows.

    Images must be lists of lists of lists of floats; the lengths of the lists are checked as they
    are read. Floats of another precision are accepted. Reads the footer only.
    """
    with open_parquet(source) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
    name = name_of(source)
    for key, expected in keys.items():
        if key not in schema.names:
            raise InputError(
                f"{name}: expected a column {key!r}, found {', '.join(schema.names)}; rename or "
                "add it"
            )
        kind, depth = schema.field(key).type, 0
        while pa.types.is_list(kind) or pa.types.is_large_list(kind):
            kind, depth = kind.value_type, depth + 1
        numeric = pa.types.is_floating(kind) or (key == "y" and pa.types.is_integer(kind))
        if depth != len(expected["shape"]) - 1 or not numeric:
            nesting = "list<" * (len(expected["shape"]) - 1)
            raise InputError(
                f"{name}: expected {key!r} as {nesting}double{'>' * nesting.count('<')}, found "
                f"{schema.field(key).type}; bring it to the official schema (data/README.md)"
            )
    if rows == 0:
        raise InputError(f"{name}: expected jets, found none; {FETCH_AGAIN}")
    return rows


def iter_columns(
    source: Source,
    keys: Mapping[str, Mapping],
    n_events: int | None = None,
    chunk: int = CHUNK_EVENTS,
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the columns of ``keys`` in chunks of rows: images float32, numbers float64.

    Stops after ``n_events`` rows, of which only the row groups are read. Raises InputError for an
    image of another shape, a missing value, a NaN or an infinity (file and event), or damage.
    """
    with open_parquet(source) as file:
        total = file.metadata.num_rows
        stop = total if n_events is None else min(n_events, total)
        start = 0
        for batch in _batches(source, file, list(keys), stop, chunk):
            yield {
                key: _column(source, key, batch.column(key), schema["shape"][1:], start)
                for key, schema in keys.items()
            }
            start += len(batch)


def _batches(
    source: Source, file: pq.ParquetFile, names: list[str], stop: int, chunk: int
) -> Iterator[pa.RecordBatch]:
    """Record batches of at most ``chunk`` rows, the first ``stop`` rows together."""
    lengths = [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)]
    needed = 1 + int(np.searchsorted(np.cumsum(lengths), stop))
    batches = file.iter_batches(
        chunk, row_groups=range(min(needed, len(lengths))), columns=names, use_threads=False
    )
    done = 0
    while done < stop:
        try:
            batch = next(batches)
        except (pa.ArrowException, OSError, StopIteration) as error:
            raise InputError(
                f"{name_of(source)}: expected readable data, found damage after event {done}; "
                f"{FETCH_AGAIN}"
            ) from error
        batch = batch.slice(0, stop - done)
        yield batch
        done += len(batch)


def _column(
    source: Source, key: str, values: pa.Array, shape: Sequence[int], start: int
) -> np.ndarray:
    name = name_of(source)
    if shape:
        images = dense(values, shape)
        if images is None:
            raise InputError(
                f"{name}: expected {key!r} of shape {tuple(shape)}, found another between event "
                f"{start} and {start + len(values) - 1}; bring it to the official shape "
                "(data/README.md)"
            )
        finite = np.isfinite(images).reshape(len(images), -1).all(axis=1)  # (b,)
    else:
        images = values.to_numpy(zero_copy_only=False).astype(np.float64)
        finite = np.isfinite(images)
    if not finite.all():
        raise InputError(
            f"{name}: expected finite values, found NaN, infinity or nothing in event "
            f"{start + int(np.argmin(finite))} of {key!r}; remove or repair the event"
        )
    return images
