"""Images of any source files as one sparse store in the cache, built once, with their numbers."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.loaders.common import files_fingerprint
from e2e_utils import paths
from e2e_utils.files import atomic_path
from e2e_utils.sparse_images import Shape, SparseImages, index_dtype

NO_CONTENT = "0" * 16  # fingerprint of a store without events

Keys = Mapping[str, Mapping]  # datasets or columns, in the form of data/catalog.toml
Chunk = dict[str, np.ndarray]  # "images" (b, C, H, W), and numbers (b,) by name


class Part(NamedTuple):
    """The first events of a file."""

    file: Path
    rows: int
    keys: Keys  # what of the file is read


class Store(NamedTuple):
    """Events in the cache, and where they are from."""

    images: SparseImages  # N events
    numbers: dict[str, np.ndarray]  # (N,) each
    fingerprint: str  # 16 hex digits
    files: list[Path]


def first_events(
    files: Iterable[Path], limit: int | None, check: Callable[[Path], tuple[int, Keys]]
) -> list[Part]:
    """The files that are needed for the first ``limit`` events (None: all), and how many of each.

    ``check`` makes sure that a file can be used: its number of events, and what is read of it.
    """
    parts: list[Part] = []
    for file in files:
        left = None if limit is None else limit - sum(part.rows for part in parts)
        if left == 0:
            break
        rows, keys = check(file)
        parts.append(Part(file, rows if left is None else min(rows, left), keys))
    return parts


def stored(
    name: str,
    parts: Sequence[Part],
    read: Callable[[Part], Iterator[Chunk]],
    shape: Shape,
    numbers: Sequence[str] = (),
) -> Store:
    """The events of all parts, from the cache; where they are not in it they are streamed there.

    ``read`` yields the chunks of a part: images of ``shape`` and ``numbers``. ``name`` tells stores
    of one layout from those of another. A store is built completely or not at all.
    """
    files = [part.file for part in parts]
    if not parts:
        pixels = np.zeros(0, index_dtype(shape)), np.zeros(0, np.float32)
        none = SparseImages(np.zeros(1, np.int64), *pixels, shape)
        return Store(none, {key: np.zeros(0) for key in numbers}, NO_CONTENT, files)
    fingerprint = files_fingerprint(name, files, [part.rows for part in parts])
    folder = paths.CACHE / f"{name}_{fingerprint}"
    if not folder.is_dir():
        columns: dict[str, list[np.ndarray]] = {key: [] for key in numbers}

        def images() -> Iterator[np.ndarray]:
            for part in parts:
                for chunk in read(part):
                    for key in numbers:
                        columns[key].append(chunk[key])
                    yield chunk["images"]

        with atomic_path(folder) as temporary:
            temporary.mkdir()
            SparseImages.from_chunks(images(), temporary / "images")
            for key, values in columns.items():
                np.save(temporary / f"{key}.npy", np.concatenate(values))
    loaded = {key: np.load(folder / f"{key}.npy") for key in numbers}
    return Store(SparseImages.open(folder / "images"), loaded, fingerprint, files)
