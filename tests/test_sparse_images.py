"""SparseImages against the dense arrays that they were made from."""

import errno
import json

import numpy as np
import pytest
import torch

from data.readers.hdf5 import iter_images
from e2e_utils.errors import InputError
from e2e_utils.sparse_images import SparseImages, concatenate, index_dtype

SHAPES = [(1, 1, 1), (2, 32, 32), (3, 5, 7), (8, 125, 125)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("occupancy", [0.0, 0.01, 0.5, 1.0])
def test_dense_gives_back_the_array(sparse_array, shape: tuple, occupancy: float) -> None:
    dense = sparse_array(9, shape, occupancy)
    images = SparseImages.from_dense(dense)
    assert len(images) == 9
    assert images.shape == shape
    assert images.nnz == np.count_nonzero(dense)
    assert images.dense().dtype == torch.float32
    np.testing.assert_array_equal(images.dense().numpy(), dense)


@pytest.mark.parametrize("seed", range(10))
def test_rows_of_subsets_of_subsets(sparse_array, seed: int) -> None:
    rng = np.random.default_rng(seed)
    dense = sparse_array(40, (2, 6, 5), 0.2, seed)
    images = SparseImages.from_dense(dense)
    first = rng.integers(-40, 40, 25)  # repeated and negative rows
    second = rng.permutation(25)[:11]
    view = images.subset(first).subset(second)
    expected = dense[first][second]
    np.testing.assert_array_equal(view.dense().numpy(), expected)
    np.testing.assert_array_equal(view.dense([3, 3, -1]).numpy(), expected[[3, 3, -1]])
    np.testing.assert_array_equal(view.dense(slice(2, 9, 3)).numpy(), expected[2:9:3])
    np.testing.assert_array_equal(view.dense(torch.tensor([4, 0])).numpy(), expected[[4, 0]])
    mask = rng.random(11) < 0.5
    np.testing.assert_array_equal(view.dense(mask).numpy(), expected[mask])
    np.testing.assert_array_equal(view.hits(), np.count_nonzero(expected, axis=(1, 2, 3)))


def test_views_share_the_stored_pixels(sparse_array) -> None:
    images = SparseImages.from_dense(sparse_array(10))
    view = images.subset([1, 2])
    assert view._value is images._value
    assert view._index is images._index


def test_no_rows_and_wrong_rows(sparse_array) -> None:
    images = SparseImages.from_dense(sparse_array(4))
    assert images.dense([]).shape == (0, 2, 32, 32)
    assert len(images.subset([])) == 0
    for rows in ([4], [-5]):
        with pytest.raises(IndexError):
            images.dense(rows)


def test_events_are_packed() -> None:
    dense = np.zeros((3, 1, 2, 2), np.float32)
    dense[0, 0, 1, 0], dense[2, 0, 0, 1], dense[2, 0, 1, 1] = 5, 6, 7
    offsets, index, value = SparseImages.from_dense(dense).events([2, 1, 0])
    assert offsets.tolist() == [0, 2, 2, 3]
    assert index.tolist() == [1, 3, 2]
    assert value.tolist() == [6, 7, 5]
    assert (offsets.dtype, index.dtype, value.dtype) == (np.int64, np.uint16, np.float32)


def test_index_type_is_the_smallest(sparse_array) -> None:
    assert index_dtype((1, 256, 256)) == np.uint16
    assert index_dtype((1, 256, 257)) == np.uint32
    assert SparseImages.from_dense(sparse_array(1, (8, 125, 125)))._index.dtype == np.uint32


def test_device_path_equals_cpu_path(sparse_array, monkeypatch: pytest.MonkeyPatch) -> None:
    images = SparseImages.from_dense(sparse_array(20)).subset(np.arange(19, -1, -1))
    expected = images.dense([3, 0, 17])

    class OtherDevice:  # makes the CPU take the path of accelerators
        type = "other"

    monkeypatch.setattr(torch, "device", lambda _: OtherDevice())
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, _: tensor)
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, device=None: zeros(*size))
    assert torch.equal(images.dense([3, 0, 17], "other"), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_equals_cpu(sparse_array) -> None:
    images = SparseImages.from_dense(sparse_array(50, (8, 125, 125)))
    rows = np.array([4, 49, 0, 4])
    assert torch.equal(images.dense(rows, "cuda").cpu(), images.dense(rows))


def test_iter_dense_covers_the_order(sparse_array) -> None:
    dense = sparse_array(10)
    order = np.array([7, 1, 9, 0, 3])
    batches = list(SparseImages.from_dense(dense).iter_dense(2, order))
    assert [len(rows) for rows, _ in batches] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate([rows for rows, _ in batches]), order)
    np.testing.assert_array_equal(torch.cat([x for _, x in batches]).numpy(), dense[order])


def test_concatenate_copies_in_order(sparse_array) -> None:
    dense = sparse_array(12)
    images = SparseImages.from_dense(dense)
    joined = concatenate([images.subset([5, 3]), images.subset([]), images.subset([11])])
    np.testing.assert_array_equal(joined.dense().numpy(), dense[[5, 3, 11]])
    with pytest.raises(ValueError, match="one shape"):
        concatenate([images, SparseImages.from_dense(sparse_array(2, (1, 2, 3)))])


def test_streamed_store_equals_dense(sparse_array, tmp_path) -> None:
    dense = sparse_array(31, (3, 4, 5), 0.3)
    chunks = (dense[start : start + 7] for start in range(0, 31, 7))
    images = SparseImages.from_chunks(chunks, tmp_path / "store")
    np.testing.assert_array_equal(images.dense().numpy(), dense)
    assert isinstance(images._value.base, np.memmap)


def test_from_hdf5_turns_channels_first(sparse_array, tmp_path, write_events) -> None:
    x = sparse_array(6, (32, 32, 2))
    path = write_events("x.hdf5", np.zeros(6), x)
    images = SparseImages.from_chunks(iter_images(path, "X", 4), tmp_path / "store")
    np.testing.assert_array_equal(images.dense().numpy(), x[:4].transpose(0, 3, 1, 2))


def test_interrupted_stream_leaves_nothing(sparse_array, tmp_path) -> None:
    def chunks():
        yield sparse_array(3)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(InputError, match="full disk"):
        SparseImages.from_chunks(chunks(), tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["no folder", "no values", "bad json", "cut"])
def test_open_refuses_damaged_stores(sparse_array, tmp_path, damage: str) -> None:
    folder = tmp_path / "store"
    if damage != "no folder":
        SparseImages.from_chunks([sparse_array(5)], folder)
    if damage == "no values":
        (folder / "value.npy").unlink()
    if damage == "bad json":
        (folder / "store.json").write_text(json.dumps({}))
    if damage == "cut":
        content = (folder / "value.npy").read_bytes()
        (folder / "value.npy").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="store"):
        SparseImages.open(folder)
