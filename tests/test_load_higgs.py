"""HIGGS tables: official schema, other separators, the cache, and every broken file's error."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data.calibration import higgs as calibration_higgs
from data.catalog import dataset as catalog_dataset
from data.loaders import higgs, load_higgs, load_official_rows
from data.readers import event_tables
from e2e_utils import paths
from e2e_utils.errors import InputError
from e2e_utils.splits import exact_twins

TASK = "task2a_higgs_transformer"
_, *NAMES = catalog_dataset("higgs")["file"][0]["keys"]


@pytest.fixture
def events() -> np.ndarray:
    """(60, 29): label and 28 features, as in the official file."""
    rng = np.random.default_rng(0)
    return np.column_stack([rng.integers(0, 2, 60), rng.normal(1, 0.5, (60, 28)).round(3)])


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, events: np.ndarray, separator: str = ",", fmt: str = "%.18e") -> Path:
        path = tmp_path / name
        np.savetxt(path, events, fmt=fmt, delimiter=separator)  # gzips by the name
        return path

    return write


@pytest.fixture
def broken(write, events, data_folder) -> Callable[..., str]:
    """The one-line error for a file one of whose lines is changed."""

    def broken(change: Callable[[list[str]], list[str]], row: int = 30) -> str:
        path = write("broken.csv", events)
        lines = path.read_text().splitlines()
        lines[row] = ",".join(change(lines[row].split(",")))
        path.write_text("\n".join(lines) + "\n")
        with pytest.raises(InputError) as error:
            load_higgs(path=path)
        assert "\n" not in str(error.value)
        assert str(path) in str(error.value)
        assert not list(paths.CACHE.glob("*"))
        return str(error.value)

    return broken


def put(column: int, text: str) -> Callable[[list[str]], list[str]]:
    return lambda cells: [*cells[:column], text, *cells[column + 1 :]]


# Good files


@pytest.mark.parametrize(
    ("name", "separator", "fmt"),
    [
        ("a.csv", ",", "%.18e"),
        ("a.csv.gz", ",", "%.18e"),
        ("a.tsv", "\t", "%.3f"),
        ("a.txt", "  ", "%9.3f"),
        ("a.csv", ";", "%.3f"),
    ],
)
def test_all_formats_give_the_same_events(write, events, data_folder, name, separator, fmt) -> None:
    dataset = load_higgs(path=write(name, events, separator, fmt))
    np.testing.assert_array_equal(dataset.features, events[:, 1:].astype(np.float32))
    np.testing.assert_array_equal(dataset.y, events[:, 0])
    assert dataset.features.dtype == np.float32
    assert dataset.y.dtype == np.int64
    assert isinstance(dataset.features, np.memmap)
    assert dataset.source == "file"
    assert dataset.words == "events of the given files"
    assert dataset.files == [name]
    assert len(dataset) == 60


def test_low_level_is_a_view_of_the_first_21_features(write, events, data_folder) -> None:
    dataset = load_higgs(path=write("a.csv", events))
    assert dataset.low_level.shape == (60, 21)
    assert dataset.low_level.base is not None
    assert len(dataset.feature_names) == 28
    assert dataset.feature_names[0] == "lepton_pt"
    assert dataset.feature_names[20] == "jet4_btag"
    assert dataset.feature_names[21] == "m_jj"


def test_copies_in_a_given_sample_are_counted(write, events, data_folder) -> None:
    assert "(0 exact copies of another)" in load_higgs(path=write("a.csv", events)).description
    repeated = write("b.csv", events[[0, *range(40), 7, 7]])
    assert "(3 exact copies of another)" in load_higgs(path=repeated).description


def spoken(names: list[str]) -> list[str]:
    """As UCI's page writes them: "jet 1 b-tag"."""
    words = [name.replace("_", " ").replace("btag", "b-tag") for name in names]
    return [word.replace("jet", "jet ") if word[:3] == "jet" else word for word in words]


@pytest.mark.parametrize(
    ("names", "columns", "separator"),
    [
        (["label", *NAMES], range(29), ","),
        (['"class_label"', *(f'"{name.upper()}"' for name in NAMES)], range(29), ","),
        ([*NAMES, "label"], [*range(1, 29), 0], "\t"),
        ([*spoken(NAMES[::-1]), "Class"], [*range(28, 0, -1), 0], ";"),
        ([*NAMES[14:], "label", *NAMES[:14]], [*range(15, 29), *range(15)], " "),
    ],
    ids=("label first", "quoted", "label last", "backwards", "mixed"),
)
def test_a_header_says_which_column_is_which(
    write, events, data_folder, monkeypatch, names, columns, separator
) -> None:
    monkeypatch.setattr(event_tables, "BLOCK_BYTES", 5000)
    path = write("a.csv", events[:, list(columns)], separator)
    path.write_text(separator.join(names) + "\n" + path.read_text())
    dataset = load_higgs(path=path)
    np.testing.assert_array_equal(dataset.features, events[:, 1:].astype(np.float32))
    np.testing.assert_array_equal(dataset.y, events[:, 0])


def test_lines_below_a_header_are_counted_and_checked(write, events, data_folder) -> None:
    path = write("a.csv", events[:, [*range(1, 29), 0]])
    lines = [",".join([*NAMES, "label"]), *path.read_text().splitlines()]
    lines[20] = lines[20].rpartition(",")[0] + ",3"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match="line 21: expected label 0 or 1 in column 29, found 3"):
        load_higgs(path=path)
    path.write_text(lines[0] + "\n")
    with pytest.raises(InputError, match="expected events, found an empty file"):
        load_higgs(path=path)


def test_small_blocks_change_nothing(write, events, data_folder, monkeypatch) -> None:
    path = write("a.csv.gz", events)
    whole = list(event_tables.iter_events(path, NAMES))
    monkeypatch.setattr(event_tables, "BLOCK_BYTES", 1000)
    blocks = list(event_tables.iter_events(path, NAMES))
    assert len(whole) == 1
    assert len(blocks) > 10
    for k in range(2):
        np.testing.assert_array_equal(whole[0][k], np.concatenate([block[k] for block in blocks]))


def test_last_line_may_lack_its_newline(write, events, data_folder) -> None:
    path = write("a.csv", events)
    path.write_text(path.read_text().rstrip("\n"))
    assert len(load_higgs(path=path)) == 60


def test_official_file_is_read_up_to_the_limit_only(
    write, events, data_folder, monkeypatch, capsys
) -> None:
    catalog = catalog_dataset("higgs")
    sizes = {"smoke": 20, "quick": 40, "standard": 50, "full": 60}
    monkeypatch.setattr(higgs, "dataset", lambda _: {**catalog, "events": sizes})
    monkeypatch.setattr(event_tables, "BLOCK_BYTES", 1000)
    text = write("a.csv", events).read_bytes()
    # What follows row 60 is not a number and not even complete: nobody may look at it.
    official = gzip.compress(text) + gzip.compress(b"garbage\n" * 100_000)[:60]
    (paths.OFFICIAL / "HIGGS.csv.gz").write_bytes(official)
    for profile, size in sizes.items():
        dataset = load_higgs("auto", profile)
        assert dataset.source == "official"
        np.testing.assert_array_equal(dataset.features, events[:size, 1:].astype(np.float32))
    assert "official events (HIGGS.csv.gz)" in capsys.readouterr().out


def test_real_rows_are_read() -> None:
    sample = calibration_higgs.real_sample()
    if sample is None:
        pytest.skip("the real sample is not at hand")
    features, labels = sample
    assert features.shape == (7500, 28)
    assert labels.mean() == pytest.approx(0.53, abs=0.01)


# Official rows beside a run on stand-ins


@pytest.fixture
def sample(tmp_path, monkeypatch, data_folder) -> np.ndarray:
    """(90, 29) rows of a sample, of which every third calibrated; all different."""
    rows = np.arange(90 * 29, dtype=np.float32).reshape(90, 29)
    rows[:, 0] = np.arange(90) % 2
    np.savez(tmp_path / higgs.OFFICIAL_SAMPLE, rows=rows, calibration=np.arange(90) % 3 == 0)
    monkeypatch.setattr(paths, "REAL_SAMPLES", tmp_path)
    monkeypatch.setattr(higgs, "OFFICIAL_TRAIN", 30)
    monkeypatch.setattr(higgs, "OFFICIAL_VALIDATION", 10)
    return rows


def test_rows_that_calibrated_are_in_no_part_and_parts_share_none(sample) -> None:
    official = load_official_rows()
    assert [len(part) for part in official.splits] == [30, 10, 20]
    numbers = np.concatenate(official.splits)
    assert len(np.unique(numbers)) == 60
    of_sample = (official.low_level[:, 0] // 29).astype(int)  # which row of the sample it is
    assert (of_sample % 3 > 0).all()
    assert len(np.unique(of_sample)) == 60
    np.testing.assert_array_equal(official.low_level, sample[of_sample, 1:22])
    np.testing.assert_array_equal(official.y, sample[of_sample, 0])
    assert "60 official rows" in official.description


def test_without_official_rows_there_are_none(sample, tmp_path) -> None:
    (tmp_path / higgs.OFFICIAL_SAMPLE).unlink()
    assert load_official_rows() is None


def test_the_official_file_comes_before_the_sample(sample, write, events, monkeypatch) -> None:
    sizes = {"smoke": 44, "quick": 55, "standard": 60, "full": 60}
    catalog = catalog_dataset("higgs")
    monkeypatch.setattr(higgs, "dataset", lambda _: {**catalog, "events": sizes})
    text = write("a.csv", events).read_bytes()
    (paths.OFFICIAL / "HIGGS.csv.gz").write_bytes(gzip.compress(text))
    official = load_official_rows("quick")
    assert official.splits.test.tolist() == list(range(50, 55))  # the task's own test rows
    np.testing.assert_array_equal(official.low_level, events[:55, 1:22].astype(np.float32))


def test_parts_of_the_sample_at_hand_share_no_row() -> None:
    official = load_official_rows("smoke")
    if official is None:
        pytest.skip("no official rows are at hand")
    columns = np.column_stack([official.y, official.low_level]).astype(np.float32)
    assert not exact_twins(columns, official.splits).any()
    assert official.y.mean() == pytest.approx(0.53, abs=0.01)


# Broken files


@pytest.mark.parametrize("row", [0, 30, 59])
def test_wrong_number_of_columns(broken, row) -> None:
    text = rf"line {row + 1}: expected a label and 28 features, found"
    assert text in broken(lambda cells: cells[:-1], row)
    assert "found 28 columns" in broken(lambda cells: cells[:-1], row)
    assert "found 30 columns" in broken(lambda cells: [*cells, "1.0"], row)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put(3, "abc"), "line 31: expected a number in column 4, found 'abc'"),
        (put(3, ""), "line 31: expected a number in column 4, found ''"),
        (put(5, "nan"), "line 31: expected a finite number in column 6, found nan"),
        (put(5, "inf"), "line 31: expected a finite number in column 6, found inf"),
        (put(5, "1e300"), "line 31: expected a finite number in column 6, found 1e300"),
        (put(0, "2"), "line 31: expected label 0 or 1 in column 1, found 2"),
        (put(0, "0.5"), "line 31: expected label 0 or 1 in column 1, found 0.5"),
        (put(0, "-1"), "line 31: expected label 0 or 1 in column 1, found -1"),
        (lambda _: [""], "line 31: expected a label and 28 features, found an empty line"),
    ],
)
def test_bad_values_are_named_with_their_line(broken, change, words) -> None:
    message = broken(change)
    assert words in message
    assert "correct the line" in message


def test_line_numbers_hold_across_blocks(broken, monkeypatch) -> None:
    monkeypatch.setattr(event_tables, "BLOCK_BYTES", 2000)
    assert "line 56: expected a number in column 2" in broken(put(1, "x"), row=55)


@pytest.mark.parametrize(
    "header",
    [
        ["label", *map(str, range(28))],
        ["label", *NAMES[:-1], "m_wwbb_2"],
        ["label", "label", *NAMES[1:]],
        ["", "label", *NAMES],
    ],
)
def test_other_headers_are_refused_as_text(write, events, data_folder, header) -> None:
    path = write("a.csv", events)
    path.write_text(",".join(header) + "\n" + path.read_text())
    with pytest.raises(InputError, match=r"line 1: expected a (number in column 1|label and 28)"):
        load_higgs(path=path)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"1," + b"0," * 27 + b"0\n", "more text than a table packs"),
        (b"0", "a line without an end"),
    ],
)
def test_gzip_bomb_is_not_unpacked(data_folder, tmp_path, monkeypatch, line, words) -> None:
    monkeypatch.setattr(event_tables, "BLOCK_BYTES", 10_000)
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(line * 1_000_000))
    with pytest.raises(InputError, match=words):
        load_higgs(path=path)
    assert not list(paths.CACHE.glob("*"))


def test_truncated_and_damaged_gzip(write, events, data_folder) -> None:
    path = write("a.csv.gz", events)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="complete gzip file, found a truncated one"):
        load_higgs(path=path)
    path.write_bytes(content[:200] + bytes(100) + content[300:])
    with pytest.raises(InputError, match="complete gzip file, found a damaged one"):
        load_higgs(path=path)
    path.write_bytes(b"not gzip at all")
    with pytest.raises(InputError, match="complete gzip file, found a damaged one"):
        load_higgs(path=path)
    assert not list(paths.CACHE.glob("*"))


@pytest.mark.parametrize("content", ["", "\n"])
def test_empty_file(tmp_path, data_folder, content) -> None:
    path = tmp_path / "a.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=r"a\.csv: .*expected .*, found an empty"):
        load_higgs(path=path)


def test_damaged_store_says_what_to_do(write, events, data_folder) -> None:
    path = write("a.csv", events)
    load_higgs(path=path)
    (folder,) = paths.CACHE.glob("higgs_*")
    (folder / "features.npy").write_bytes(b"")
    with pytest.raises(InputError, match="delete the folder"):
        load_higgs(path=path)
