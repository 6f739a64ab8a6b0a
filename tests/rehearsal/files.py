"""The official files, by name, schema and size, made of a few stand-in events each.

What no profile but ``full`` reads is a hole in a sparse file, or the same events once more: a file
of 30 GB takes no more room than the events that are in it.
"""

import os
import shutil
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.catalog import OfficialFile, dataset
from data.readers import parquet_footer as thrift
from data.readers.nested_parquet import iter_columns, nested
from data.simulate import egamma, higgs, jets, jets8, top_gun, two_photons
from e2e_utils.jet_resolution import low_resolution

CHUNK = 1000  # events of a packed piece of an HDF5 file
OUTLIERS = {"quark_gluon": (75_660.0, -10.5), "top_mass": (74_054.0, -4_174.0)}  # published ones


def make_all(profile: str, folder: Path, whole: bool = True) -> dict[str, Path]:
    """Every official file below ``folder``, with the events that a profile takes; name -> place.

    ``whole``: as long and as large as officially; else these events are all there are. Not MNIST:
    its content is known, and another one would be refused.
    """
    made = {}
    for name, writer in WRITERS.items():
        entry = dataset(name)
        made |= writer(entry["file"], entry["events"][profile], folder, whole)
    return made


def place(file: OfficialFile, folder: Path) -> Path:
    """Where a file is written; its folder is made."""
    path = folder / file["name"]
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def length(file: OfficialFile) -> int:
    """Official number of events; that of the first file of the dataset where it is not known."""
    shape = next(iter(file["keys"].values()))["shape"]
    return shape[0] if shape[0] > 0 else length(dataset(file["dataset"])["file"][0])


def official_bytes(file: OfficialFile) -> int:
    """Official size, or about."""
    return file["bytes"][0] if file["bytes"] else file["approximate_bytes"]


def lengthen(path: Path, size: int) -> None:
    """Add a hole at the end of a file; its format must bear it."""
    found = path.stat().st_size
    assert found <= size, f"{path.name}: {found:,} bytes, officially {size:,}"
    os.truncate(path, size)


# HDF5 ---------------------------------------------------------------------------------------------


def write_showers(files: list, n_events: int, folder: Path, whole: bool) -> dict[str, Path]:
    """Electrons and photons, packed; the first events again and again. One image is empty."""
    sources, made = egamma.generate(n_events, folder / "standin"), {}
    for source, file in zip(sources, files, strict=True):
        path = made[file["name"]] = place(file, folder)
        with h5py.File(source) as old, h5py.File(path, "w") as new:
            n_all = length(file) if whole else len(old["y"])
            chunk = min(CHUNK, len(old["y"]))
            x = new.create_dataset(
                "X", (n_all, 32, 32, 2), "f4", chunks=(chunk, 32, 32, 2),
                compression="gzip", compression_opts=9, shuffle=True,
            )  # fmt: skip
            events = old["X"][:]
            events[1] = 0
            x[: len(events)] = events
            repeat_chunks(x, len(events) // chunk)
            new["y"] = np.full(n_all, file["label"], np.float32)
        if whole:
            lengthen(path, official_bytes(file))
    return made


def repeat_chunks(x: h5py.Dataset, count: int) -> None:
    """Fill the rest of a packed dataset with its first ``count`` chunks, without unpacking them."""
    step = x.chunks[0]
    for number in range(count, -(-len(x) // step)):
        mask, packed = x.id.read_direct_chunk((number % count * step, 0, 0, 0))
        x.id.write_direct_chunk((number * step, 0, 0, 0), packed, mask)


def write_jets8(files: list, n_events: int, folder: Path, whole: bool) -> dict[str, Path]:
    """Jets of eight channels, not packed: the pixels are one range of bytes, holes behind ours."""
    sources, made = jets8.generate(n_events, folder / "standin"), {}
    for source, file in zip(sources, files, strict=True):
        path = made[file["name"]] = place(file, folder)
        with h5py.File(source) as old, h5py.File(path, "w") as new:
            n_all = length(file) if whole else len(old["jet"])
            for key in file["keys"]:
                values = contiguous(new, key, (n_all, *old[key].shape[1:]))
                for first in range(0, len(old[key]), CHUNK):
                    some = old[key][first : first + CHUNK]
                    values[first : first + len(some)] = some
            new["jet"][1] = 0
    return made


def contiguous(file: h5py.File, key: str, shape: tuple[int, ...]) -> h5py.Dataset:
    """A float32 dataset whose bytes are reserved in one piece and written by nobody yet."""
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_layout(h5py.h5d.CONTIGUOUS)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    space = h5py.h5s.create_simple(shape)
    h5py.h5d.create(file.id, key.encode(), h5py.h5t.IEEE_F32LE, space, layout)
    return file[key]


# Parquet ------------------------------------------------------------------------------------------


def write_quark_gluon(files: list, n_events: int, folder: Path, whole: bool) -> dict[str, Path]:
    """Quark and gluon jets, a row group each."""
    source = jets.generate(n_events, folder / "standin")
    columns = columns_of(source, files[0], OUTLIERS["quark_gluon"])
    return {file["name"]: write_parquet(columns, file, folder, whole) for file in files}


def write_low_resolution(files: list, n_events: int, folder: Path, whole: bool) -> dict[str, Path]:
    """The same jets with their images of low resolution."""
    source, keys = jets.generate(n_events, folder / "standin"), dict(files[0]["keys"])
    del keys["X_jets_LR"]
    columns = columns_of(source, files[0] | {"keys": keys}, OUTLIERS["quark_gluon"])
    columns = {"X_jets_LR": low_resolution(columns["X_jets"].astype(np.float64))} | columns
    return {file["name"]: write_parquet(columns, file, folder, whole) for file in files}


def write_tops(files: list, n_events: int, folder: Path, whole: bool) -> dict[str, Path]:
    """Boosted tops; the mass is called ``m`` in the first file and ``am`` in the others."""
    source = top_gun.generate(n_events, folder / "standin")
    columns = columns_of(source, files[0], OUTLIERS["top_mass"])
    renamed = {{"m": "am"}.get(key, key): values for key, values in columns.items()}
    return {
        file["name"]: write_parquet(renamed if number else columns, file, folder, whole)
        for number, file in enumerate(files)
    }


def columns_of(source: Path, file: OfficialFile, outliers: tuple[float, ...]) -> dict:
    """All events of a stand-in file: an empty image, wild pixels in the first two channels."""
    chunks = list(iter_columns(source, file["keys"]))
    columns = {key: np.concatenate([chunk[key] for chunk in chunks]) for key in file["keys"]}
    images = columns[next(iter(file["keys"]))]
    images[1] = 0
    for channel, value in enumerate(outliers):
        images[2 + channel, channel, 60, 60] = value
    return columns


def write_parquet(columns: dict, file: OfficialFile, folder: Path, whole: bool) -> Path:
    """One row group per jet. Behind ours stand row groups that are the same jets again."""
    path = place(file, folder)
    arrays = {k: nested(v) if v.ndim > 1 else v.astype(float) for k, v in columns.items()}
    with tempfile.TemporaryFile(dir=folder) as packed:
        pq.write_table(pa.table(arrays), packed, row_group_size=1, compression="snappy")
        packed.seek(-8, os.SEEK_END)
        n_bytes = int.from_bytes(packed.read(4), "little")
        end = packed.seek(-8 - n_bytes, os.SEEK_END)
        tail = thrift.ending(repeated(packed.read(n_bytes), length(file) if whole else None))
        size = official_bytes(file) if whole else end + len(tail)
        assert end + len(tail) <= size, f"{path.name}: more than {size:,} bytes"
        packed.seek(0)
        with path.open("wb") as target:
            shutil.copyfileobj(packed, target)
            target.truncate(end)
            target.seek(size - len(tail))  # a hole before the footer
            target.write(tail)
    return path


def repeated(footer: bytes, n_groups: int | None) -> bytes:
    """A footer with ``n_groups`` row groups: its own ones in turn (None: once). A jet each."""
    fields, _ = thrift._struct(footer, 0, thrift.ROW_GROUPS)
    count, first = thrift._list(footer, fields[thrift.ROW_GROUPS][0])
    starts = [first]
    for _ in range(count):
        starts.append(thrift._struct(footer, starts[-1])[1])
    rounds, rest = divmod(count if n_groups is None else n_groups, count)
    body = footer[first : starts[-1]] * rounds + footer[first : starts[rest]]
    total = rounds * count + rest
    head = b"\x16" + thrift._coded(total << 1) + b"\x19\xfc" + thrift._coded(total)
    return footer[: fields[thrift.SCHEMA][1]] + head + body + b"\0"


# Others -------------------------------------------------------------------------------------------


def write_higgs(files: list, n_events: int, folder: Path, whole: bool) -> dict[str, Path]:
    """Rows as text; gzip members may follow each other, so that the same one is all of them."""
    member, path = higgs.generate(n_events, folder / "standin"), place(files[0], folder)
    size = official_bytes(files[0])
    with path.open("wb") as target:
        for _ in range(size // member.stat().st_size if whole else 1):
            with member.open("rb") as rows:
                shutil.copyfileobj(rows, target)
    if whole:
        lengthen(path, size)
    return {files[0]["name"]: path}


def write_photons(files: list, n_events: int, folder: Path, whole: bool) -> dict[str, Path]:
    """Events of two photons, as many as there are officially where it is whole."""
    n_all = dataset(files[0]["dataset"])["events"]["full"] if whole else n_events
    path = place(files[0], folder)
    shutil.copyfile(two_photons.generate(n_all, folder / "standin"), path)
    return {files[0]["name"]: path}


WRITERS = {
    "electron_photon": write_showers,
    "higgs": write_higgs,
    "quark_gluon": write_quark_gluon,
    "quark_gluon_superresolution": write_low_resolution,
    "jets8": write_jets8,
    "top_mass": write_tops,
    "cmssw_double_photon": write_photons,
}
