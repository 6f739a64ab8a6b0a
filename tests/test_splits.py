"""The splitter: deterministic, stratified, disjoint, and groups stay together."""

from itertools import combinations

import numpy as np
import pytest

from e2e_utils import splits as splitter
from e2e_utils.errors import InputError
from e2e_utils.sparse_images import SparseImages
from e2e_utils.splits import duplicate_groups, exact_twins, split, split_last, split_originals


@pytest.mark.parametrize("n", [50, 101, 998, 5003])
@pytest.mark.parametrize("share", [0.5, 0.2])
def test_parts_are_disjoint_complete_and_stratified(n: int, share: float) -> None:
    y = (np.arange(n) < share * n).astype(np.int64)
    parts = split(y, seed=1)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(n))
    for part, fraction in zip(parts, (0.64, 0.16, 0.20), strict=True):
        assert abs(len(part) - fraction * n) <= 1
        assert abs(y[part].sum() - share * len(part)) <= 1.5


def test_deterministic_and_seeded() -> None:
    y = np.arange(500) % 2
    for a, b in zip(split(y, seed=3), split(y, seed=3), strict=True):
        np.testing.assert_array_equal(a, b)
    assert set(split(y, seed=3).test) != set(split(y, seed=4).test)


def test_sorted_classes_come_out_shuffled() -> None:
    y = np.repeat([0, 1], 1000)
    for part in split(y):
        assert 0.35 < y[part[: len(part) // 4]].mean() < 0.65


def test_plain_number_of_events() -> None:
    parts = split(1000, seed=0)
    assert [len(part) for part in parts] == [640, 160, 200]
    assert len(np.unique(np.concatenate(parts))) == 1000


def test_other_fractions() -> None:
    assert [len(part) for part in split(1000, fractions=(0.5, 0.25, 0.25))] == [500, 250, 250]


def test_groups_stay_together() -> None:
    groups = np.repeat(np.arange(300), 4)  # four rotated copies of each of 300 images
    y = np.repeat(np.arange(300) % 3, 4)
    order = np.random.default_rng(0).permutation(1200)
    groups, y = groups[order], y[order]
    parts = split(y, groups=groups)
    assert len(np.unique(np.concatenate(parts))) == 1200
    train, validation, test = (set(groups[part]) for part in parts)
    assert train.isdisjoint(validation)
    assert test.isdisjoint(train | validation)
    for part, fraction in zip(parts, (0.64, 0.16, 0.20), strict=True):
        assert abs(len(part) / 1200 - fraction) < 0.01
        np.testing.assert_allclose(np.bincount(y[part]) / len(part), 1 / 3, atol=0.01)


def test_copies_of_an_event_never_cross(sparse_array) -> None:
    dense = sparse_array(200)
    dense[150:] = dense[:50]  # 50 events occur twice, once with the other label
    y = np.r_[np.zeros(100, int), np.ones(100, int)]
    groups = duplicate_groups(SparseImages.from_dense(dense))
    assert len(np.unique(groups)) == 150
    np.testing.assert_array_equal(groups[150:], groups[:50])
    part_of = np.empty(200, int)
    for number, part in enumerate(split(y, groups=groups)):
        part_of[part] = number
    np.testing.assert_array_equal(part_of[150:], part_of[:50])


def test_duplicates_differ_in_pixels_or_values() -> None:
    dense = np.zeros((4, 1, 2, 2), np.float32)
    dense[0, 0, 0, 0] = dense[1, 0, 0, 1] = 1.0  # the same value elsewhere
    dense[2, 0, 0, 0] = 2.0  # another value there
    assert duplicate_groups(SparseImages.from_dense(dense)).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("y", [[0, 1], [0] * 50 + [1], [0] * 50 + [1] * 3, []])
def test_too_few_events(y: list) -> None:
    with pytest.raises(InputError, match="enough events of every class"):
        split(np.array(y, int))


def test_one_large_group_is_too_few() -> None:
    with pytest.raises(InputError):
        split(np.arange(100) % 2, groups=np.zeros(100))


@pytest.mark.parametrize(("n", "n_test"), [(1_100_000, 100_000), (22_000, 2_000), (7_500, 682)])
def test_last_rows_are_the_test_set(n: int, n_test: int) -> None:
    y = (np.random.default_rng(0).random(n) < 0.53).astype(np.int64)
    parts = split_last(y)
    np.testing.assert_array_equal(parts.test, np.arange(n - n_test, n))
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(n))
    assert len(parts.validation) == round(0.1 * (n - n_test))
    shares = [y[part].mean() for part in parts[:2]]
    assert abs(shares[0] - shares[1]) < 2 / len(parts.validation)
    assert (np.diff(parts.train[:100]) < 0).any()  # shuffled: a prefix is a random sample


def test_split_last_is_deterministic_and_seeded() -> None:
    y = np.arange(1100) % 2
    for a, b in zip(split_last(y, seed=3), split_last(y, seed=3), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (split_last(y, seed=3).train != split_last(y, seed=4).train).any()
    np.testing.assert_array_equal(split_last(y, seed=3).test, split_last(y, seed=4).test)
    assert [len(part) for part in split_last(1100)] == [900, 100, 100]


def test_split_last_refuses_too_few_events() -> None:
    for y in (np.arange(8) % 2, np.repeat((0, 1), 50)):  # too few; sorted by class
        with pytest.raises(InputError, match="enough events of every class"):
            split_last(y)


def test_originals_are_split_by_mnists_files() -> None:
    rng = np.random.default_rng(0)
    label, official_test = rng.choice((1, 2), 1200), np.arange(1200) >= 1000
    parts = split_originals(label, official_test, seed=1)
    np.testing.assert_array_equal(parts.test, np.arange(1000, 1200))
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(1200))
    assert len(parts.validation) == round(1000 / 6)
    shares = [(label[part] == 1).mean() for part in parts[:2]]
    assert abs(shares[0] - shares[1]) < 2 / len(parts.validation)
    # Twelve turned copies of every original: the pixels of one part never come from another.
    copies = [set(np.repeat(part, 12)) for part in parts]
    assert all(a.isdisjoint(b) for a, b in combinations(copies, 2))
    for a, b in zip(parts, split_originals(label, official_test, seed=1), strict=True):
        np.testing.assert_array_equal(a, b)
    assert set(parts.validation) != set(split_originals(label, official_test, seed=2).validation)


@pytest.mark.parametrize("n_test", [0, 1, 100])
def test_split_originals_refuses_a_part_without_a_digit(n_test: int) -> None:
    with pytest.raises(InputError, match="enough events of every class"):
        split_originals(np.arange(100) % 2 + 1, np.arange(100) >= 100 - n_test)


@pytest.mark.parametrize("block", [7, 10_000])
def test_exact_twins_of_test_rows(monkeypatch, block: int) -> None:
    monkeypatch.setattr(splitter, "HASHED_ROWS", block)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 3, (1100, 5)).astype(np.float32)  # 243 different rows
    x[:, 0] += np.arange(1100) % 40  # and most of these different
    splits = split_last(len(x))
    seen = {tuple(row) for row in x[np.concatenate([splits.train, splits.validation])]}
    expected = [tuple(row) in seen for row in x[splits.test]]
    assert 0 < sum(expected) < len(expected)
    np.testing.assert_array_equal(exact_twins(x, splits), expected)


def test_twins_are_equal_in_every_column_and_in_another_part() -> None:
    x = np.random.default_rng(0).normal(size=(220, 4)).astype(np.float32)
    splits = split_last(len(x))
    x[splits.test[3]] = x[splits.train[0]]
    x[splits.test[5]] = x[splits.validation[0]]
    x[splits.test[7]] = x[splits.test[8]]  # twins within the test set are none
    x[splits.test[9], :3] = x[splits.train[1], :3]
    x[splits.train[2], 1], x[splits.train[2], 2] = 0.0, 1e-45
    x[splits.test[11]] = x[splits.train[2]]
    x[splits.test[11], 1] = -0.0  # equals 0
    np.testing.assert_array_equal(np.flatnonzero(exact_twins(x, splits)), [3, 5, 11])
    # A view of the first columns, as the low-level ones are
    np.testing.assert_array_equal(np.flatnonzero(exact_twins(x[:, :3], splits)), [3, 5, 9, 11])
