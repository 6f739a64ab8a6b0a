"""Images with few active pixels, kept sparse from disk to device.

A calorimeter image has 0.2 to 5 % active pixels. Events are stored as three flat arrays,
``offsets`` (N+1,), ``index`` (nnz,) into the flattened (C, H, W) image and ``value`` (nnz,), the
layout of compressed sparse rows, and become dense only as one batch on the device.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import ArrayLike

from e2e_utils.errors import InputError
from e2e_utils.files import atomic_path
from e2e_utils.kernels import kernel

Shape = tuple[int, int, int]


def index_dtype(shape: Shape) -> np.dtype:
    """The smallest unsigned type that numbers every pixel of one (C, H, W) image."""
    return np.dtype(np.uint16 if int(np.prod(shape)) <= 2**16 else np.uint32)


def to_sparse(dense: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(counts (B,), index (nnz,), value (nnz,)) of the nonzero pixels of a (B, C, H, W) array."""
    flat = np.ascontiguousarray(dense, dtype=np.float32).reshape(len(dense), -1)  # (B, C*H*W)
    size = flat.shape[1]
    position = np.flatnonzero(flat)
    counts = np.bincount(position // size, minlength=len(flat))
    index = (position % size).astype(index_dtype(dense.shape[1:]))
    return counts, index, flat.reshape(-1)[position]


@kernel
def _gather(starts, target, index, value, out_index, out_value):
    """Copy the events that begin at ``starts`` to ``target[i]:target[i + 1]`` of the output."""
    for event in range(len(starts)):
        shift = starts[event] - target[event]
        for hit in range(target[event], target[event + 1]):
            out_index[hit] = index[hit + shift]
            out_value[hit] = value[hit + shift]


@kernel
def _scatter(starts, stops, index, value, out):
    """Write the hits of event i, ``starts[i]:stops[i]``, into row i of zeros (B, C*H*W)."""
    for event in range(len(starts)):
        for hit in range(starts[event], stops[event]):
            out[event, index[hit]] = value[hit]


class SparseImages:
    """N images of shape (C, H, W); see the module's docstring for the layout.

    ``rows`` makes the object a view: its event i is the stored event ``rows[i]``.
    """

    def __init__(
        self,
        offsets: np.ndarray,
        index: np.ndarray,
        value: np.ndarray,
        shape: Sequence[int],
        rows: np.ndarray | None = None,
    ) -> None:
        channels, height, width = (int(n) for n in shape)
        self.shape: Shape = (channels, height, width)
        self._offsets = np.asarray(offsets)
        self._index = np.asarray(index)  # plain view of a memory map: numba knows it, no copy
        self._value = np.asarray(value)
        self._rows = rows

    @classmethod
    def from_dense(cls, dense: np.ndarray) -> "SparseImages":
        """From an array (N, C, H, W); pixels that are exactly zero are dropped."""
        counts, index, value = to_sparse(dense)
        return cls(_cumulative(counts), index, value, dense.shape[1:])

    @classmethod
    def from_chunks(cls, chunks: Iterable[np.ndarray], folder: str | Path) -> "SparseImages":
        """Stream dense chunks (b, C, H, W) into a store at ``folder``; atomic."""
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            _write_chunks(temporary, chunks)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: str | Path) -> "SparseImages":
        """Open a store memory-mapped; raises InputError for a folder that is not a store."""
        folder = Path(folder)
        try:
            shape = json.loads((folder / "store.json").read_text())["shape"]
            offsets, index, value = (
                np.load(folder / f"{name}.npy", mmap_mode="r")
                for name in ("offsets", "index", "value")
            )
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{folder.name}: expected a sparse image store, found {error}; delete the folder, "
                "it is built again from the source files"
            ) from error
        return cls(offsets, index, value, shape)

    def __len__(self) -> int:
        return len(self._offsets) - 1 if self._rows is None else len(self._rows)

    @property
    def nnz(self) -> int:
        """Number of active pixels of all events."""
        return int(self.hits().sum())

    def hits(self) -> np.ndarray:
        """Active pixels of each event, all channels together: (N,) int64."""
        starts, stops = self._bounds(None)
        return stops - starts

    def subset(self, rows: ArrayLike) -> "SparseImages":
        """The chosen events, in the given order, as a view that shares the stored pixels."""
        return SparseImages(
            self._offsets, self._index, self._value, self.shape, self._stored_rows(rows)
        )

    def events(self, rows: ArrayLike | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The chosen events packed: offsets (B+1,) int64, index (nnz,), value (nnz,) float32."""
        starts, stops = self._bounds(rows)
        target = _cumulative(stops - starts)
        index = np.empty(target[-1], self._index.dtype)
        value = np.empty(target[-1], np.float32)
        _gather(starts, target, self._index, self._value, index, value)
        return target, index, value

    def dense(
        self, rows: ArrayLike | None = None, device: str | torch.device = "cpu"
    ) -> torch.Tensor:
        """The chosen events as a (B, C, H, W) float32 tensor made on ``device``.

        Only the active pixels travel to the device; the zeros are made there.
        """
        device, size = torch.device(device), int(np.prod(self.shape))
        if device.type == "cpu":
            starts, stops = self._bounds(rows)
            images = torch.zeros(len(starts), size)
            _scatter(starts, stops, self._index, self._value, images.numpy())
            return images.view(-1, *self.shape)  # (B, C*H*W) -> (B, C, H, W)
        offsets, index, value = self.events(rows)
        batch = len(offsets) - 1
        counts = torch.from_numpy(np.diff(offsets)).to(device)
        pixel = torch.from_numpy(index.astype(np.int32)).to(device)
        event = torch.repeat_interleave(counts, output_size=len(index))
        images = torch.zeros(batch * size, device=device)
        images[event * size + pixel] = torch.from_numpy(value).to(device)
        return images.view(batch, *self.shape)  # (B*C*H*W,) -> (B, C, H, W)

    def iter_dense(
        self,
        batch_size: int,
        order: ArrayLike | None = None,
        device: str | torch.device = "cpu",
    ) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Yield (rows (b,), images (b, C, H, W)) over all events or over ``order``."""
        order = np.arange(len(self)) if order is None else np.asarray(order)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            yield rows, self.dense(rows, device)

    def _stored_rows(self, rows: ArrayLike) -> np.ndarray:
        """Rows of this view as rows of the store; slices, masks and negative rows are allowed."""
        if isinstance(rows, slice):
            rows = np.arange(len(self))[rows]
        rows = np.asarray(rows)
        if rows.dtype == bool:
            rows = np.flatnonzero(rows)
        rows = rows.astype(np.int64)
        rows = np.where(rows < 0, rows + len(self), rows)
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self)} events")
        return rows if self._rows is None else self._rows[rows]

    def _bounds(self, rows: ArrayLike | None) -> tuple[np.ndarray, np.ndarray]:
        """First and past-the-last stored hit of each chosen event."""
        if rows is None and self._rows is None:
            return self._offsets[:-1], self._offsets[1:]
        stored = self._rows if rows is None else self._stored_rows(rows)
        return self._offsets[stored], self._offsets[stored + 1]


def concatenate(parts: Sequence[SparseImages]) -> SparseImages:
    """One SparseImages that holds a copy of the events of all parts, in order."""
    shapes = {part.shape for part in parts}
    if len(shapes) != 1:
        raise ValueError(f"images of one shape expected, found {sorted(shapes)}")
    offsets, index, value = zip(*(part.events() for part in parts), strict=True)
    counts = np.concatenate([np.diff(o) for o in offsets])
    return SparseImages(_cumulative(counts), np.concatenate(index), np.concatenate(value), *shapes)


def _cumulative(counts: np.ndarray) -> np.ndarray:
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def _write_chunks(folder: Path, chunks: Iterable[np.ndarray]) -> None:
    """Append every chunk's active pixels to ``index.npy`` and ``value.npy`` as it arrives."""
    counts, hits, shape = [np.zeros(0, np.int64)], 0, None
    with (folder / "index.npy").open("wb") as indices, (folder / "value.npy").open("wb") as values:
        for chunk in chunks:
            if shape is None:
                shape = chunk.shape[1:]
                _write_header(indices, index_dtype(shape), 0)
                _write_header(values, np.dtype(np.float32), 0)
            chunk_counts, index, value = to_sparse(chunk)
            indices.write(index.tobytes())
            values.write(value.tobytes())
            counts.append(chunk_counts)
            hits += len(index)
        if shape is None:
            raise ValueError("at least one chunk of images expected")
        _write_header(indices, index_dtype(shape), hits)
        _write_header(values, np.dtype(np.float32), hits)
    np.save(folder / "offsets.npy", _cumulative(np.concatenate(counts)))
    (folder / "store.json").write_text(json.dumps({"shape": shape}))


def _write_header(stream: BinaryIO, dtype: np.dtype, length: int) -> None:
    """(Re)write the header of a one-dimensional .npy; NumPy pads it so that the length may grow."""
    stream.seek(0)
    header = {"descr": dtype.str, "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(stream, header)
