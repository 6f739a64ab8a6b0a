"""What all loaders have in common: sources, limits, the cache, URLs, and refusals of bad files."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data.catalog import dataset as catalog_dataset
from data.loaders import PREPARATIONS, higgs, prepare, stores
from e2e_utils import paths
from e2e_utils.errors import InputError
from tests.flaky_server import Served, flaky_server
from tests.official_files import CASES, Case, Columns, N

OFFICIAL = ("higgs", "quark_gluon", "super_resolution", "top_mass")  # one sample in several files


@pytest.fixture(scope="module", params=CASES, ids=lambda name: name)
def case(request) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def columns(case: Case) -> Columns:
    return case.make()


@pytest.fixture
def write(case: Case, columns: Columns, tmp_path: Path) -> Callable[..., Path]:
    def write(name: str = case.name, **changes: np.ndarray) -> Path:
        return case.write(tmp_path / name, {**columns, **changes})

    return write


def second(name: str) -> str:
    return "b" + name[1:]


# Good files


def test_given_files_are_one_sample_in_order(case, columns, write, data_folder, capsys) -> None:
    alone = case.load(path=write())
    case.check(alone, columns)
    assert alone.source == "file"
    assert alone.words == "events of the given files"
    assert alone.files == [case.name]
    assert len(alone) == N
    assert f"Data: {alone.description}\n" in capsys.readouterr().out
    changed = {key: values[::-1] for key, values in columns.items()}
    files = [write(), write(second(case.name), **changed)]
    both = {key: np.concatenate([columns[key], changed[key]]) for key in columns}
    for given in (files, ", ".join(map(str, files))):
        loaded = case.load(path=given)
        case.check(loaded, both)
        assert loaded.files == [case.name, second(case.name)]
    assert (
        len({alone.fingerprint, loaded.fingerprint, case.load(path=files[::-1]).fingerprint}) == 3
    )


def test_url_is_read_like_the_file(case, columns, write, data_folder) -> None:
    if case.dataset == "higgs":
        pytest.skip("tables are read from files only")
    with flaky_server() as server:
        server.files[f"/{case.name}"] = Served([write().read_bytes()])
        loaded = case.load(path=f"{server.address}/{case.name}")
        case.check(loaded, columns)
    assert loaded.files == [case.name]


def test_cache_is_built_once_and_follows_the_content(
    case, columns, write, data_folder, monkeypatch
) -> None:
    path = write()
    first = case.load(path=path)
    with monkeypatch.context() as patch:  # building again would fail
        patch.setattr(stores.SparseImages, "from_chunks", None)
        patch.setattr(higgs, "build_store", None)
        assert case.load(path=path).fingerprint == first.fingerprint
    key = list(columns)[-1]
    other = write(**{key: columns[key][::-1]})
    assert case.load(path=other).fingerprint != first.fingerprint


def test_stand_in_is_made_where_official_files_are_missing(
    case, columns, write, data_folder, monkeypatch
) -> None:
    made = []

    def generate(n_events: int, folder: Path, **_: object) -> Path | tuple[Path, ...]:
        made.append(n_events)
        assert folder in (paths.STANDIN, paths.STANDIN / "fresh")
        if case.simulation == "egamma":
            rows = columns["y"].argsort(kind="stable")
            halves = rows[: N // 2], rows[N // 2 :]
            return tuple(
                write(f"{k}.hdf5", **{key: values[part] for key, values in columns.items()})
                for k, part in enumerate(halves)
            )
        file = write()
        return (file, file, file) if case.simulation == "jets8" else file

    monkeypatch.setitem(
        sys.modules,
        f"data.simulate.{case.simulation}",
        SimpleNamespace(generate=generate, sizes_of=lambda n: {"labelled": n, "unlabelled": n}),
    )
    for source, profile in (("auto", "smoke"), ("standin", "quick")):
        loaded = case.load(source, profile)
        assert loaded.source == "standin"
        assert "simulated stand-in events" in loaded.description
    expected = [catalog_dataset(case.dataset)["events"][p] for p in ("smoke", "quick")]
    assert made == expected
    (task, *_) = [t for t in catalog_dataset(case.dataset)["task"] if t in PREPARATIONS]
    assert "stand-in" in prepare(task, "smoke", "standin")
    with pytest.raises(InputError, match="make data DATA_SOURCE=official"):
        case.load("official", "smoke")


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_files_are_one_sample_up_to_the_limit(
    name, data_folder, monkeypatch, capsys
) -> None:
    case, sizes = CASES[name], {"smoke": 2, "quick": 5, "standard": 7, "full": 60}
    columns, entry = case.make(), catalog_dataset(case.dataset)
    names = [file["name"] for file in entry["file"]]
    ends = np.linspace(0, N, len(names) + 1).astype(int)
    for file, start, stop in zip(names, ends, ends[1:], strict=False):
        part = {key: values[start:stop] for key, values in columns.items()}
        case.write(paths.OFFICIAL / file, part)
    module = sys.modules[case.load.__module__]
    monkeypatch.setattr(module, "dataset", _with_sizes(module.dataset, case.dataset, sizes))
    for profile, size in sizes.items():
        loaded = case.load("auto", profile)
        case.check(loaded, columns, slice(size))
        assert loaded.source == "official"
    assert loaded.files == names
    assert "official events" in capsys.readouterr().out
    if name != "higgs":  # the files that are needed, and no others
        assert case.load("official", "smoke").files == names[: int((ends < 2).sum())]


def _with_sizes(dataset: Callable, name: str, sizes: dict[str, int]) -> Callable:
    return lambda asked: {**dataset(asked), "events": sizes} if asked == name else dataset(asked)


# Bad files


def refusal(case: Case, path: Path) -> str:
    with pytest.raises(InputError) as error:
        case.load(path=path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    assert "; " in str(error.value)  # what to do
    assert not list(paths.CACHE.glob("*"))
    return str(error.value)


def test_missing_values_are_named_with_their_event(case, columns, write, data_folder) -> None:
    for key in set(case.attributes.values()):
        values = columns[key].astype(np.float32, order="C")
        values.reshape(N, -1)[7, -1] = np.nan
        message = refusal(case, write(**{key: values}))
        assert "line 8" in message or f"event 7 of {key!r}" in message


def test_wrong_labels(case, columns, write, data_folder) -> None:
    if case.label is None:
        pytest.skip("masses have no classes")
    three = columns[case.label].copy()
    three[:4] = 3
    message = refusal(case, write(**{case.label: three}))
    assert "found 3 and 3 more" in message or "line 1: expected label 0 or 1" in message
    one = write(second(case.name), **{case.label: 0 * columns[case.label]})
    assert len(case.load(path=one, require_both_classes=False)) == N
    with pytest.raises(InputError, match="only label 0"):
        case.load(path=one, require_both_classes=True)


def test_damaged_files(case, write, data_folder) -> None:
    path = write()
    content = path.read_bytes()
    for damaged, words in (
        (content[: len(content) // 2], "truncated"),
        (b"", "empty"),
        (b"<html>404 not found</html>", "expected a"),
    ):
        path.write_bytes(damaged)
        assert words in refusal(case, path)
    path.unlink()
    assert "found no" in refusal(case, path)


@pytest.mark.parametrize("arguments", [{"source": "x"}, {"profile": "x"}, {"path": " "}])
def test_wrong_arguments(case, data_folder, arguments) -> None:
    with pytest.raises(InputError, match="expected"):
        case.load(**arguments)
