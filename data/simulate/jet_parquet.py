"""Parquet files of simulated jets: what a file says of itself, and how it is written."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.readers.nested_parquet import nested
from e2e_utils.files import atomic_path


def record(n_events: int, seed: int, simulation: str) -> dict[bytes, bytes]:
    """Parquet's key-value metadata of a finished file; ``simulation``: its version."""
    entries = {"source": "standin", "seed": seed, "events": n_events, "simulation": simulation}
    return {name.encode(): str(value).encode() for name, value in entries.items()}


def is_complete(path: Path, n_events: int, expected: dict[bytes, bytes]) -> bool:
    """Whether ``path`` is a finished file of this size with this record."""
    try:
        with pq.ParquetFile(path) as file:
            metadata = file.schema_arrow.metadata or {}
            rows = file.metadata.num_rows
    except (OSError, pa.ArrowException):
        return False
    return rows == n_events and expected.items() <= metadata.items()


def write(
    path: Path,
    columns: Iterator[dict[str, np.ndarray]],
    entries: dict[bytes, bytes],
    use_dictionary: bool = True,
) -> None:
    """Write chunks of columns (images (b, C, H, W), numbers (b,)) as row groups; atomic."""
    with atomic_path(path) as temporary:
        writer = None
        try:
            for chunk in columns:
                arrays = {
                    key: nested(values) if values.ndim > 1 else values.astype(np.float64)
                    for key, values in chunk.items()
                }
                table = pa.table(arrays).replace_schema_metadata(entries)
                if writer is None:
                    writer = pq.ParquetWriter(
                        temporary,
                        table.schema,
                        compression="zstd",
                        compression_level=1,
                        use_dictionary=use_dictionary,
                    )
                writer.write_table(table)
        finally:
            if writer is not None:
                writer.close()
