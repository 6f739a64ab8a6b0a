"""Boosted tops: channels, names of columns, conditions of the stand-in, what is refused."""

import inspect
from functools import partial

import numpy as np
import pytest

from data.catalog import dataset
from data.loaders import load_top_mass
from data.loaders.top_mass import FRESH_SEED
from data.simulate import top_gun
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


def test_fresh_stand_ins_have_a_seed_of_their_own(write, columns, data_folder, monkeypatch) -> None:
    made, ordinary = [], inspect.signature(top_gun.generate).parameters["seed"].default

    def generate(n_events, folder, seed=ordinary, conditions="nominal"):
        made.append((n_events, folder, seed, conditions))
        return write(m=columns["m"] + (seed != ordinary))

    monkeypatch.setattr(top_gun, "generate", generate)
    seen = load_top_mass("standin", "smoke")
    fresh, harsh = (
        load_top_mass("standin", "smoke", conditions=c, fresh=True) for c in ("nominal", "harsh")
    )
    sizes = [dataset("top_mass")[key]["smoke"] for key in ("events", "fresh_events")]
    assert made == [
        (sizes[0], paths.STANDIN, ordinary, "nominal"),
        *((sizes[1], paths.STANDIN / "fresh", FRESH_SEED, c) for c in ("nominal", "harsh")),
    ]
    assert ordinary != FRESH_SEED
    np.testing.assert_array_equal(fresh.m, seen.m + 1)
    assert harsh.fingerprint == fresh.fingerprint != seen.fingerprint


def test_images_alone_will_do_where_no_masses_are_required(tmp_path, columns, data_folder) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"X_jet": columns["X_jet"]})
    with pytest.raises(InputError, match="expected a column 'm', found X_jet"):
        load_top_mass(path=path)
    jets = load_top_mass(path=path, require_masses=False)
    np.testing.assert_array_equal(jets.images.dense().numpy(), columns["X_jet"][:, :4])
    assert all(np.isnan(numbers).all() for numbers in (jets.m, jets.pt, jets.ieta, jets.iphi))
    whole = write_parquet(tmp_path / "b.parquet", columns)
    check(load_top_mass(path=whole, require_masses=False), columns)


def test_given_files_have_no_fresh_jets(write, data_folder) -> None:
    """Nor have official ones: their user takes the test part of the split."""
    path = write()
    seen, fresh = (load_top_mass(path=path, fresh=f) for f in (False, True))
    assert seen.source == fresh.source == "file"
    assert seen.fingerprint == fresh.fingerprint


@pytest.mark.parametrize("profile", ["smoke", "quick", "standard"])
def test_a_fifth_of_the_jets_is_fresh(profile) -> None:
    entry = dataset("top_mass")
    events, fresh = (entry[key][profile] for key in ("events", "fresh_events"))
    assert fresh / (events + fresh) == pytest.approx(0.2)


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
