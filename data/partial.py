"""The first events of an official file, without the rest of it.

Only the bytes that hold them are fetched, into ``official/parts/<name>.fetched``, resumable like
every download. They become a small complete file of the same format and schema,
``official/parts/<name>.first-<events>.<ext>``, which is checked before it is put into place.
"""

import gzip
import zlib
from contextlib import nullcontext
from pathlib import Path

import h5py
import numpy as np
from tqdm import tqdm

from data.catalog import OfficialFile
from data.download import by_hand, expected_bytes, fetch, known_sizes, only_one, open_remote
from data.readers.event_tables import iter_events
from data.readers.hdf5 import check_images_file
from data.readers.nested_parquet import check_parquet
from data.readers.parquet_footer import data_end, ending, first_row_groups
from data.readers.remote_file import BLOCK_BYTES, RemoteFile, once_more
from e2e_utils import paths
from e2e_utils.errors import InputError
from e2e_utils.files import atomic_path, remove

WHOLE_BYTES = 150_000_000  # smaller files are fetched whole
STEP_BYTES = 32 << 20  # of images in memory
LINE_BYTES = 4096  # at most; a line of HIGGS.csv has about 700


def fetch_first(file: OfficialFile, n_events: int | None) -> Path:
    """A file on disk with the first events (None: all) of an official one; fetched if missing.

    A small file, one of another format and one without more events is fetched whole. Raises
    InputError where it cannot be had.
    """
    may_be_part = n_events is not None and file["format"] in FORMATS
    with only_one(file["name"]):
        found = on_disk(file, n_events)
        if found is None and may_be_part and (expected_bytes(file) or 0) >= WHOLE_BYTES:
            found = once_more(lambda: _fetch_part(file, n_events))
    if found is None:
        fetch(file)
    return found or paths.OFFICIAL / file["name"]


def on_disk(file: OfficialFile, n_events: int | None) -> Path | None:
    """The official file, else its smallest part with enough events, else None."""
    if (whole := paths.OFFICIAL / file["name"]).is_file():
        return whole
    enough = [part for part in _parts(file) if n_events is not None and part[0] >= n_events]
    return min(enough)[1] if enough else None


def event_count(source: Path | RemoteFile, file: OfficialFile) -> int:
    """How many events an official file holds, given by its place or at its address.

    Of a table the catalog says it: to count its lines would be to read all of it.
    """
    if file["format"] == "hdf5":
        return check_images_file(source, file["keys"], label="Y")
    if file["format"] == "parquet":
        with source.open("rb") if isinstance(source, Path) else nullcontext(source) as stream:
            return first_row_groups(stream, 0)[2]
    return next(iter(file["keys"].values()))["shape"][0]


def _parts(file: OfficialFile) -> list[tuple[int, Path]]:
    """Number of events and place of every part on disk."""
    before, after = _part(file, "*").name.split("*")
    found = (paths.OFFICIAL / "parts").glob(f"{before}*{after}")
    return [(int(part.name[len(before) : -len(after)]), part) for part in found]


def _part(file: OfficialFile, n_events: int | str) -> Path:
    stem, _, suffix = file["name"].partition(".")
    return paths.OFFICIAL / "parts" / f"{stem}.first-{n_events}.{suffix}"


def _fetch_part(file: OfficialFile, n_events: int) -> Path | None:
    """A new part in place of smaller ones, checked; None where the file has no more events."""
    target, smaller = _part(file, n_events), _parts(file)
    write, count = FORMATS[file["format"]]
    fetched = target.with_name(f"{file['name']}.fetched")
    with open_remote(file, fetched, known_sizes(file)) as remote:
        remote.fetch(0, BLOCK_BYTES)  # here, since HDF5 garbles the errors of what it calls back
        if n_events < event_count(remote, file):
            with atomic_path(target) as new:
                write(remote, file, n_events, new)
                if (found := count(new, file)) < n_events:
                    raise InputError(
                        f"{file['name']}: expected {n_events:,} events, found {found:,}; "
                        f"{by_hand(file)}"
                    )
        remote.forget()
    if not target.exists():
        return None
    for _, part in smaller:
        remove(part)
    return target


# Formats ------------------------------------------------------------------------------------------


def _write_hdf5(remote: RemoteFile, file: OfficialFile, n_events: int, path: Path) -> None:
    """Copy the first events of every dataset, images compressed. A contiguous one is one range."""
    with h5py.File(remote, "r") as source, h5py.File(path, "w") as target:
        for key in file["keys"]:
            stored = source[key]
            shape = n_events, *stored.shape[1:]
            event_bytes = stored.dtype.itemsize * int(np.prod(shape[1:]))
            if (offset := stored.id.get_offset()) is not None:
                remote.fetch(offset, offset + n_events * event_bytes)
            packed = {"chunks": (1, *shape[1:]), "compression": "gzip", "compression_opts": 1}
            copy = target.create_dataset(
                key, shape, stored.dtype, **packed if len(shape) > 2 else {}
            )
            step = max(1, STEP_BYTES // event_bytes)
            for start in tqdm(range(0, n_events, step), f"writing {key}", disable=None):
                rows = slice(start, min(start + step, n_events))
                copy[rows] = stored[rows]


def _write_parquet(remote: RemoteFile, file: OfficialFile, n_events: int, path: Path) -> None:
    """Copy the first row groups byte for byte, with a footer of their own."""
    footer, *_ = first_row_groups(remote, n_events)
    left = data_end(footer)
    remote.fetch(0, left)
    remote.seek(0)
    with path.open("wb") as target:
        while left:
            left -= target.write(remote.read(min(left, STEP_BYTES)))
        target.write(ending(footer))


def _write_table(remote: RemoteFile, file: OfficialFile, n_events: int, path: Path) -> None:
    """Pack the first lines again; about as many bytes as they should take are fetched at once."""
    about = int(1.02 * remote.size * n_events / event_count(remote, file))
    remote.fetch(0, min(remote.size, about + BLOCK_BYTES))
    try:
        with gzip.open(remote) as lines, gzip.open(path, "wb", compresslevel=1) as target:
            for number in range(n_events):
                line = lines.readline(LINE_BYTES)
                if not line.endswith(b"\n"):
                    found = f"{len(line)} bytes without its end"
                    raise InputError(f"{file['name']}: expected line {number + 1}, found {found}")
                target.write(line)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"{file['name']}: expected a gzip file, found a damaged one; {by_hand(file)}"
        ) from error


def _count_table(path: Path, file: OfficialFile) -> int:
    packed = path.rename(path.with_name(f"{path.name}.csv.gz"))  # the reader goes by the name
    try:
        return sum(len(y) for _, y in iter_events(packed, list(file["keys"])[1:]))
    finally:
        packed.rename(path)


def _count_jets(path: Path, file: OfficialFile) -> int:
    images = {key: schema for key, schema in file["keys"].items() if len(schema["shape"]) > 1}
    return check_parquet(path, images)


# Format -> how a part is written, and how it is checked and its events are counted.
FORMATS = {
    "hdf5": (_write_hdf5, event_count),
    "parquet": (_write_parquet, _count_jets),
    "csv.gz": (_write_table, _count_table),
}
