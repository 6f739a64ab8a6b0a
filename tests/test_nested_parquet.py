"""Nested lists in parquet: any row groups, no more rows than asked for, broken files refused."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.readers.nested_parquet import (
    check_parquet,
    dense,
    iter_columns,
    layout_of,
    nested,
)
from data.readers.source import name_of
from e2e_utils.errors import InputError

SHAPE = (3, 4, 5)
KEYS = {"X": {"shape": [-1, *SHAPE], "dtype": "float64"}, "y": {"shape": [-1], "dtype": "float64"}}


@pytest.fixture
def images(sparse_array) -> np.ndarray:
    return sparse_array(23, SHAPE, 0.3)


@pytest.fixture
def write(tmp_path, images):
    def write(row_group: int = 5, name: str = "a.parquet", **columns):
        table = pa.table({"X": nested(images), "y": np.arange(23.0) % 2} | columns)
        pq.write_table(table, tmp_path / name, row_group_size=row_group)
        return tmp_path / name

    return write


def test_layout_is_that_of_lists_of_lists(images) -> None:
    assert nested(images).to_pylist() == images.astype(float).tolist()
    assert nested(images).type == pa.list_(pa.list_(pa.list_(pa.float64())))
    np.testing.assert_array_equal(dense(nested(images), SHAPE), images)
    np.testing.assert_array_equal(dense(nested(images).slice(4, 7), SHAPE), images[4:11])


@pytest.mark.parametrize("row_group", [1, 5, 100])
@pytest.mark.parametrize("chunk", [1, 4, 50])
def test_any_row_groups_give_the_same_rows(write, images, row_group, chunk) -> None:
    path = write(row_group)
    assert check_parquet(path, KEYS) == 23
    for n_events in (None, 1, 7, 23, 99):
        chunks = list(iter_columns(path, KEYS, n_events, chunk))
        assert max(len(part["y"]) for part in chunks) <= chunk
        np.testing.assert_array_equal(
            np.concatenate([part["X"] for part in chunks]), images[:n_events]
        )
        np.testing.assert_array_equal(
            np.concatenate([part["y"] for part in chunks]), (np.arange(23) % 2)[:n_events]
        )
    assert chunks[0]["X"].dtype == np.float32


def test_first_layout_that_fits(write) -> None:
    more, other = {**KEYS, "pt": KEYS["y"]}, {"X": KEYS["X"], "z": KEYS["y"]}
    assert layout_of(write(), more, KEYS) == (23, KEYS)
    assert layout_of(write(pt=np.ones(23)), more, KEYS) == (23, more)
    with pytest.raises(InputError, match="'pt', found X, y"):
        layout_of(write(), more, other)


def test_any_number_of_channels(write, images) -> None:
    keys = {"X": {"shape": [-1, -1, 4, 5]}}
    for channels in (1, 3):
        (part,) = iter_columns(write(X=nested(images[:, :channels])), keys)
        np.testing.assert_array_equal(part["X"], images[:, :channels])


def test_more_row_groups_than_the_format_can_number(tmp_path) -> None:
    """A row group's ordinal has 16 bits; official files have up to 150,327 groups."""
    n = 2**15 + 500
    table = pa.table({"y": np.arange(float(n))})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1, write_statistics=False)
    keys = {"y": KEYS["y"]}
    assert check_parquet(tmp_path / "a.parquet", keys) == n
    with pq.ParquetFile(tmp_path / "a.parquet") as file:
        assert file.num_row_groups == n
    for stop in (None, 2**15 + 1):
        parts = [part["y"] for part in iter_columns(tmp_path / "a.parquet", keys, stop)]
        np.testing.assert_array_equal(np.concatenate(parts), np.arange(stop or n))


def test_open_files_are_read_too(write, images) -> None:
    with write().open("rb") as stream:
        (part,) = iter_columns(stream, KEYS)
        assert name_of(stream).endswith("a.parquet")
    np.testing.assert_array_equal(part["X"], images)


def refusal(path, shape=SHAPE) -> str:
    keys = {"X": {"shape": [-1, *shape], "dtype": "float64"}, "y": KEYS["y"]}

    def read() -> None:
        check_parquet(path, keys)
        list(iter_columns(path, keys))

    with pytest.raises(InputError) as error:
        read()
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


def test_wrong_columns_types_and_shapes_are_refused(write, images) -> None:
    keys = {**KEYS, "pt": KEYS["y"]}
    with pytest.raises(InputError, match="'pt', found X, y"):
        check_parquet(write(), keys)
    assert "list<list<list<double>>>, found double" in refusal(write(X=np.zeros(23)))
    assert "found list<" in refusal(write(X=nested(images[:, :1]).flatten()))
    assert "found string" in refusal(write(y=pa.array(["a"] * 23)))
    assert "shape (3, 4, 6)" in refusal(write(), (3, 4, 6))
    assert "shape (2, 4, 5)" in refusal(write(), (2, 4, 5))
    ragged = images.astype(float).tolist()
    ragged[17][2][3].pop()
    assert "another in event 17" in refusal(write(X=pa.array(ragged)))
    assert "another in event 17" in refusal(write(X=pa.array(ragged)), (-1, 4, 5))
    for broken in (None, [], [None] * 3, [[None] * 4] * 3, [[[None] * 5] * 4] * 3):
        ragged[17] = broken
        assert "another in event 17" in refusal(write(X=pa.array(ragged)))


def test_nan_infinity_and_missing_values_are_refused(write, images) -> None:
    broken = images.copy()
    broken[17, 1, 2, 3] = np.nan
    assert "event 17 of 'X'" in refusal(write(X=nested(broken)))
    assert "event 3 of 'y'" in refusal(write(y=np.where(np.arange(23) == 3, np.inf, 0.0)))
    assert "event 4 of 'y'" in refusal(write(y=pa.array([1.0] * 4 + [None] + [1.0] * 18)))
    huge = images.astype(np.float64)
    huge[2, 0, 0, 0] = 1e300
    assert "event 2 of 'X'" in refusal(write(X=nested(huge)))


def test_damaged_files_are_refused(write, tmp_path) -> None:
    content = write().read_bytes()
    assert "found none" in refusal(tmp_path / "missing.parquet")
    for name, kept, words in (
        ("empty", b"", "empty"),
        ("cut", content[:-50], "truncated"),
        ("text", b"<html></html>" * 9, "truncated"),
        ("holed", content[:4] + bytes(600) + content[604:], "damage"),
    ):
        path = tmp_path / f"{name}.parquet"
        path.write_bytes(kept)
        assert words in refusal(path)


def test_no_rows_are_refused(tmp_path, images) -> None:
    pq.write_table(pa.table({"X": nested(images[:0]), "y": np.zeros(0)}), tmp_path / "a.parquet")
    assert "found none" in refusal(tmp_path / "a.parquet")
