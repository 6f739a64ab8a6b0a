"""Shorten the footer of a parquet file, so that its first row groups are a file of their own.

No library does it, and to decode and encode the images instead takes minutes. The footer is a
struct in Thrift's compact protocol (apache/thrift, doc/specs/thrift-compact-protocol.md) whose
fields apache/parquet-format defines.
"""

import io
import math
from typing import BinaryIO

import pyarrow.parquet as pq

from e2e_utils.errors import InputError

MAGIC = b"PAR1"
READ_BYTES = 1 << 20  # of a footer at first, four times as many at every further attempt
BINARY, LIST, SET, STRUCT = 8, 9, 10, 12  # types of Thrift
BYTES = {1: 0, 2: 0, 3: 1, 7: 8}  # of true, false, a byte, a double; others are varints
SCHEMA, NUM_ROWS, ROW_GROUPS = 2, 3, 4  # fields of FileMetaData; what follows them is optional
GROUP_ROWS = 3  # field of RowGroup


def first_row_groups(file: BinaryIO, n_rows: int) -> tuple[bytes, int, int]:
    """The footer of the row groups with the first rows; how many rows these and all groups have.

    Of the footer, which has 90 MB in the largest official files, only what is kept is read. Raises
    InputError where the file is not parquet.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - 8))
    tail = file.read(8)
    length, taken = int.from_bytes(tail[:4], "little"), READ_BYTES
    while tail[4:] == MAGIC and length + 12 <= size:
        file.seek(size - 8 - length)
        footer = file.read(min(taken, length))
        try:
            return _shortened(footer, n_rows)
        except (IndexError, KeyError):
            if taken >= length:
                break
        taken *= 4
    raise InputError(
        f"{file.name}: expected a complete parquet file, found a truncated one or something else; "
        "get the file again (make data)"
    )


def ending(footer: bytes) -> bytes:
    """The last bytes of a file with this footer."""
    return footer + len(footer).to_bytes(4, "little") + MAGIC


def data_end(footer: bytes) -> int:
    """Where the last page that a footer names ends."""
    metadata = pq.read_metadata(io.BytesIO(MAGIC + ending(footer)))
    group = metadata.row_group(metadata.num_row_groups - 1)
    ends = []
    for column in map(group.column, range(group.num_columns)):
        start = min(column.data_page_offset, column.dictionary_page_offset or math.inf)
        ends.append(start + column.total_compressed_size)
    return max(ends)


def _shortened(footer: bytes, n_rows: int) -> tuple[bytes, int, int]:
    """`first_row_groups` of the beginning of a footer; IndexError where more of it is needed."""
    fields, _ = _struct(footer, 0, ROW_GROUPS)
    all_rows = _varint(footer, fields[NUM_ROWS][0])[0] >> 1
    count, first = _list(footer, fields[ROW_GROUPS][0])
    rows, taken, at = 0, 0, first
    while taken < count and rows < n_rows:
        group, at = _struct(footer, at)
        rows += _varint(footer, group[GROUP_ROWS][0])[0] >> 1
        taken += 1
    # Headers of the fields 3 (a 64-bit integer, zigzag) and 4 (a list of structs).
    head = b"\x16" + _coded(rows << 1) + b"\x19\xfc" + _coded(taken)
    return footer[: fields[SCHEMA][1]] + head + footer[first:at] + b"\0", rows, all_rows


def _struct(data: bytes, at: int, last: int | None = None) -> tuple[dict[int, tuple], int]:
    """Start and end of every field, and the end of the struct; stops at field ``last``."""
    fields, number = {}, 0
    while data[at]:
        number, kind, at = number + (data[at] >> 4), data[at] & 15, at + 1
        fields[number] = at, at if number == last else (end := _end(data, at, kind))
        if number == last:
            break
        at = end
    return fields, at + 1


def _end(data: bytes, at: int, kind: int) -> int:
    """Where a value that begins at ``at`` ends."""
    if kind in BYTES:
        return at + BYTES[kind]
    if kind == STRUCT:
        return _struct(data, at)[1]
    if kind in (LIST, SET):
        kind = data[at] & 15
        count, at = _list(data, at)
        for _ in range(count):
            at = _end(data, at, kind) + (kind in (1, 2))  # booleans of a list take a byte
        return at
    value, at = _varint(data, at)
    return at + value if kind == BINARY else at


def _list(data: bytes, at: int) -> tuple[int, int]:
    """Length of a list and where its elements begin."""
    short = data[at] >> 4
    return (short, at + 1) if short < 15 else _varint(data, at + 1)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """An integer of seven bits a byte, and where it ends."""
    value = shift = 0
    while data[at] > 127:
        value, shift, at = value | (data[at] & 127) << shift, shift + 7, at + 1
    return value | data[at] << shift, at + 1


def _coded(value: int) -> bytes:
    """The inverse of `_varint`."""
    low = []
    while value > 127:
        low.append(value & 127 | 128)
        value >>= 7
    return bytes([*low, value])
