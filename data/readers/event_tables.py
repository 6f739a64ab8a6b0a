"""Tables of labelled events as text (UCI's HIGGS format), parsed once into a memory-mapped store.

A table has one event per line: the label (0 or 1) first, then a fixed number of features. Commas,
tabs, semicolons or blanks separate the numbers; gzip where the name ends in .gz. UCI's file has no
header. A first line with exactly the expected names, in any order, is understood as one; case,
blanks and punctuation in names do not matter.
A store is a folder with ``features.npy`` (N, F) float32, ``y.npy`` (N,) uint8 and ``store.json``.
"""

import gzip
import hashlib
import io
import json
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import csv

from data.readers.source import FETCH_AGAIN
from e2e_utils.errors import InputError
from e2e_utils.files import atomic_path

BLOCK_BYTES = 16_000_000  # of text a step: with the parsed numbers, 60 MB of memory
MOST_PACKED = 200  # times smaller than its text is no table (UCI's: 3), but a gzip bomb may be
CORRECT = "correct the line, or leave it out"
LARGEST = float(np.finfo(np.float32).max)
LABEL_NAMES = ("label", "class", "classlabel")  # what a header may call the label


class Layout(NamedTuple):
    """How the lines of one table are written."""

    separator: bytes  # a blank stands for any run of blanks
    columns: list[int]  # of the label and of each feature in a line
    header: int  # lines of header: 0 or 1


def iter_events(
    path: str | Path, names: Sequence[str], max_rows: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (features (b, F) float32, labels (b,) uint8) of the first ``max_rows`` events.

    ``names`` of the F features, for files with a header. What follows these rows is not read.
    Raises InputError, with the number of the line, for a missing, empty or truncated file, a header
    of other names, a wrong number of columns, text, values that are not finite and labels other
    than 0 and 1.
    """
    path, rows, layout = Path(path), 0, None
    for block in _blocks(path):
        if layout is None:
            layout = _layout(block, names)
            block = block.partition(b"\n")[2] if layout.header else block
        if max_rows is not None and block.count(b"\n") > max_rows - rows:
            block = _first_lines(block, max_rows - rows)
        if not block:
            continue
        table = _parse(path, block, layout, rows)
        rows += len(table)
        yield table[:, 1:], table[:, 0].astype(np.uint8)
        if max_rows is not None and rows >= max_rows:
            return
    if rows == 0:
        raise InputError(f"{path}: expected events, found an empty file; {FETCH_AGAIN}")


def build_store(
    files: Sequence[Path], names: Sequence[str], folder: Path, max_rows: int | None = None
) -> None:
    """Parse the files, one after the other, into a store; atomic, and bounded in memory."""
    digest, rows, labels = hashlib.sha256(), 0, []
    with atomic_path(folder) as temporary:
        temporary.mkdir(parents=True)
        with (temporary / "features.npy").open("wb") as stream:
            _write_header(stream, (0, len(names)))
            for file in files:
                left = None if max_rows is None else max_rows - rows
                for features, y in iter_events(file, names, left):
                    features = np.ascontiguousarray(features)
                    digest.update(features.tobytes())
                    stream.write(features.tobytes())
                    labels.append(y)
                    rows += len(y)
                if max_rows is not None and rows >= max_rows:
                    break
            _write_header(stream, (rows, len(names)))
        y = np.concatenate(labels)
        digest.update(y.tobytes())
        np.save(temporary / "y.npy", y)
        content = {"rows": rows, "fingerprint": digest.hexdigest()[:16]}
        (temporary / "store.json").write_text(json.dumps(content))


def open_store(folder: Path) -> tuple[np.ndarray, np.ndarray, str]:
    """(features, memory-mapped; labels as int64; fingerprint of the content) of a store."""
    try:
        fingerprint = json.loads((folder / "store.json").read_text())["fingerprint"]
        features = np.load(folder / "features.npy", mmap_mode="r")
        y = np.load(folder / "y.npy").astype(np.int64)
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise InputError(
            f"{folder.name}: expected a store of events, found {error}; delete the folder, "
            "it is built again from the source files"
        ) from error
    return features, y, fingerprint


def _open(path: Path) -> BinaryIO:
    if not path.is_file():
        raise InputError(f"{path}: expected a table of events, found no file; check the path")
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _blocks(path: Path) -> Iterator[bytes]:
    """Whole lines, about ``BLOCK_BYTES`` at a time; the last line may lack its newline."""
    rest = b""
    with _open(path) as stream:
        left = MOST_PACKED * path.stat().st_size + BLOCK_BYTES
        while True:
            try:
                block = stream.read(BLOCK_BYTES)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                found = "a truncated one" if isinstance(error, EOFError) else "a damaged one"
                raise InputError(
                    f"{path}: expected a complete gzip file, found {found}; {FETCH_AGAIN}"
                ) from error
            if not block:
                break
            left -= len(block)
            lines, newline, rest = (rest + block).rpartition(b"\n")
            if left < 0 or len(rest) > BLOCK_BYTES:
                found = "more text than a table packs" if left < 0 else "a line without an end"
                raise InputError(f"{path}: expected events, found {found}; {FETCH_AGAIN}")
            if newline:
                yield lines + newline
    if rest.strip():
        yield rest + b"\n"


def _layout(block: bytes, names: Sequence[str]) -> Layout:
    """Separator, and columns by the header where the first line is one."""
    first = block.partition(b"\n")[0]
    separator = next((one for one in (b",", b";", b"\t") if one in first), b" ")
    mark = None if separator == b" " else separator.decode()  # None: any run of blanks
    cells = [_plain(cell) for cell in first.decode(errors="replace").split(mark)]
    cells = ["label" if cell in LABEL_NAMES else cell for cell in cells]
    wanted = ["label", *map(_plain, names)]
    if sorted(cells) == sorted(wanted):
        return Layout(separator, [cells.index(name) for name in wanted], 1)
    return Layout(separator, list(range(len(wanted))), 0)


def _plain(name: str) -> str:
    """Letters and digits of a name: "Jet 1 b-tag" and "jet1_btag" are the same."""
    return "".join(filter(str.isalnum, name)).lower()


def _first_lines(block: bytes, count: int) -> bytes:
    return b"".join(block.splitlines(keepends=True)[:count])


def _parse(path: Path, block: bytes, layout: Layout, before: int) -> np.ndarray:
    """(lines, 1 + F) float32, label first; ``before`` is the number of events before this block."""
    if layout.separator == b" ":
        block = re.sub(rb"(?m)^ +| +$", b"", re.sub(rb"[ \t\r]+", b" ", block))
    names = [str(column) for column in layout.columns]
    try:
        table = csv.read_csv(
            io.BytesIO(block),
            read_options=csv.ReadOptions(
                column_names=sorted(names, key=int), block_size=len(block) + 1
            ),
            parse_options=csv.ParseOptions(
                delimiter=layout.separator.decode(), quote_char=False, ignore_empty_lines=False
            ),
            convert_options=csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.float64()), null_values=[]
            ),
        )
    except pa.ArrowInvalid as error:
        raise _defect(path, block, layout, before) from error
    values = np.stack([table[name].to_numpy() for name in names], axis=1)
    labels = values[:, 0]
    if not (np.isfinite(values).all() and ((labels == 0) | (labels == 1)).all()):
        raise _defect(path, block, layout, before)
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise _defect(path, block, layout, before)
    return values


def _defect(path: Path, block: bytes, layout: Layout, before: int) -> InputError:
    """The error for the first line of a block that is not an event."""
    for number, raw in enumerate(block.splitlines(), before + layout.header + 1):
        cells = raw.decode(errors="replace").split(layout.separator.decode())
        problem = _line_defect(cells, layout)
        if problem:
            expected, found = problem
            return InputError(
                f"{path}: line {number}: expected {expected}, found {found}; {CORRECT}"
            )
    return InputError(
        f"{path}: expected {len(layout.columns)} numbers a line, found another layout after line "
        f"{before + layout.header}; {FETCH_AGAIN}"
    )


def _line_defect(cells: list[str], layout: Layout) -> tuple[str, str] | None:
    """(expected, found) of one line that is not an event."""
    if len(cells) != len(layout.columns):
        found = f"{len(cells)} columns" if any(map(str.strip, cells)) else "an empty line"
        return f"a label and {len(layout.columns) - 1} features", found
    for column, cell in enumerate(cells):
        try:
            value = float(cell)
        except ValueError:
            return f"a number in column {column + 1}", repr(cell.strip()[:20])
        if not math.isfinite(value) or abs(value) > LARGEST:
            return f"a finite number in column {column + 1}", cell.strip()[:20]
        if column == layout.columns[0] and value not in (0, 1):
            return f"label 0 or 1 in column {column + 1}", cell.strip()[:20]
    return None


def _write_header(stream: BinaryIO, shape: tuple[int, int]) -> None:
    """(Re)write the header of a .npy file; NumPy pads it so that the first axis may grow."""
    stream.seek(0)
    header = {"descr": np.dtype(np.float32).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    stream.seek(0, io.SEEK_END)
