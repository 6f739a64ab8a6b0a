"""Boosted tops: channels, names of columns, conditions of the stand-in, what is refused."""

from functools import partial

import numpy as np
import pytest

from data.loaders import load_top_mass
from e2e_utils import paths
from e2e_utils.errors import InputError
from tests.official_files import CASES, top_columns, write_parquet

check = CASES["top_mass"].check


@pytest.fixture(scope="module")
def columns() -> dict[str, np.ndarray]:
    return top_columns()


@pytest.fixture
def write(tmp_path, columns):
    def write(**changes):
        return write_parquet(tmp_path / "a.parquet", columns | changes)

    return write


@pytest.mark.parametrize("row_group", [5, 100])
def test_first_four_channels_with_negative_values(tmp_path, columns, data_folder, row_group):
    check(load_top_mass(path=write_parquet(tmp_path / "a", columns, row_group)), columns)
    assert columns["X_jet"][:, 1].min() < 0


def test_names_of_the_task_s_text(tmp_path, columns, data_folder) -> None:
    names = {"m": "am", "pt": "apt"}
    renamed = {names.get(key, key): values for key, values in columns.items()}
    check(load_top_mass(path=write_parquet(tmp_path / "a.parquet", renamed)), columns)


@pytest.mark.parametrize("channels", [4, 13])
def test_other_numbers_of_channels(write, columns, data_folder, channels) -> None:
    images = np.concatenate([columns["X_jet"]] * 2, axis=1)[:, :channels]
    check(load_top_mass(path=write(X_jet=images)), columns)


def test_harsh_conditions_are_a_stand_in(write, data_folder, monkeypatch) -> None:
    made = []

    def generate(n_events, folder, conditions):
        made.append((n_events, folder, conditions))
        return write()

    monkeypatch.setattr("data.simulate.top_gun.generate", generate)
    assert load_top_mass("auto", "smoke", conditions="harsh").source == "standin"
    assert made == [(300, paths.STANDIN, "harsh")]


def test_bad_files_are_refused(write, columns, data_folder) -> None:
    images, mass = columns["X_jet"], columns["m"].copy()
    mass[4] = -1
    for changes, words in (
        ({"X_jet": images[:, :3]}, "expected 4 or more channels in 'X_jet', found 3"),
        ({"X_jet": images[:, :, :64]}, "of shape (any, 125, 125), found another in event 0"),
        ({"X_jet": columns["pt"]}, "list<list<list<double>>>"),
        ({"m": mass}, "found -1 in event 4"),
        ({"m": np.array(["a"] * len(mass))}, "expected 'm' as double, found string"),
    ):
        load = partial(load_top_mass, path=write(**changes))
        with pytest.raises(InputError) as error:
            load()
        assert words in str(error.value)
        assert "a.parquet" in str(error.value)
        assert not list(paths.CACHE.glob("*"))


def test_missing_column(tmp_path, columns, data_folder) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path, {key: values for key, values in columns.items() if key != "m"})
    with pytest.raises(InputError, match="expected a column 'm', found X_jet, iphi"):
        load_top_mass(path=path)
