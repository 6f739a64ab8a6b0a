"""The catalog holds every official file, and refuses entries that are wrong."""

import math

import numpy as np
import pytest

from data import catalog
from e2e_utils import paths
from e2e_utils.errors import InputError

# Dataset: (number of files, tokens or folders that the URLs must go through).
EXPECTED = {
    "electron_photon": (2, {"AtBT8y4MiQYFcgc", "FbXw3V4XNyYB3oA"}),
    "higgs": (1, {"00280"}),
    "quark_gluon_superresolution": (3, {"EYgmOkI9BjwxNqy"}),
    "quark_gluon": (3, {"oolDBdQegsITFcv"}),
    "jets8": (3, {"G25"}),
    "top_mass": (7, {"zUvpkKhXIp0MJ0g"}),
    "cmssw_double_photon": (1, {"Yp3oZl8cUU6JoFC"}),
    "mnist": (5, {"mnist"}),
}
TASKS = {
    "common_task1",
    "task2a_higgs_transformer",
    "task2b_superres_gan",
    "task2c_sparse_vae",
    "task2d_diffusion",
    "task2e_mass_regression",
    "task2f_cmssw_inference",
    "task2g_ssl_vit",
    "task2h_graph_jets",
    "task2i_foundation",
    "task2j_symmetry",
}
ENTRY = """
[digits]
task = ["common_task1"]
description = "d"
licence = "l"
citation = "c"
[[digits.file]]
name = "a.hdf5"
url = "https://example.org/a.hdf5"
bytes = [10]
format = "hdf5"
[digits.file.keys]
X = { shape = [5, 2], dtype = "float32" }
"""


def all_files():
    return [file for entry in catalog.load_catalog().values() for file in entry["file"]]


def test_every_dataset_and_file_is_there():
    loaded = catalog.load_catalog()
    assert {name: len(entry["file"]) for name, entry in loaded.items()} == {
        name: count for name, (count, _) in EXPECTED.items()
    }
    assert {task for entry in loaded.values() for task in entry["task"]} == TASKS
    for entry in loaded.values():
        assert entry["licence"]
        assert entry["citation"]


@pytest.mark.parametrize(("name", "parts"), [(n, parts) for n, (_, parts) in EXPECTED.items()])
def test_urls_go_to_the_right_share(name, parts):
    urls = [file["url"] for file in catalog.dataset(name)["file"] if "url" in file]
    assert {url.split("/")[-2] for url in urls} == parts
    for file in catalog.dataset(name)["file"]:
        if "url" in file:
            assert file["url"].startswith("https://")
            assert file["url"].endswith("/" + file["name"].split("/")[-1])


def test_sizes_and_hashes_are_of_the_right_kind():
    for file in all_files():
        assert all(type(size) is int and size > 0 for size in file["bytes"])
        assert len(set(file["bytes"])) == len(file["bytes"])
        assert file["bytes"] or "approximate_bytes" in file or file["format"] == "root"
    hashed = [file["name"] for file in all_files() if "sha256" in file or "md5" in file]
    assert hashed == [file["name"] for file in catalog.dataset("mnist")["file"]]


def test_shapes_are_sane_and_agree_within_a_file():
    for file in all_files():
        assert len({key["shape"][0] for key in file["keys"].values()} - {-1}) <= 1 or (
            file["format"] == "wheel"
        )
        for key in file["keys"].values():
            np.dtype(key["dtype"])
            assert all(n > 0 or n == -1 for n in key["shape"])


def test_contiguous_file_has_the_size_of_its_pixels():
    file = catalog.dataset("jets8")["file"][0]
    assert file["bytes"] == [2048 + 4 * math.prod(file["keys"]["jet"]["shape"])]


def test_jets_of_both_quark_gluon_editions_are_the_same():
    counts = [
        [file["keys"]["y"]["shape"][0] for file in catalog.dataset(name)["file"]]
        for name in ("quark_gluon", "quark_gluon_superresolution")
    ]
    assert counts[0] == counts[1]
    assert sum(counts[0]) == 139306


def test_electron_photon_has_events_and_one_class_a_file():
    entry = catalog.dataset("electron_photon")
    assert [file["label"] for file in entry["file"]] == [0, 1]
    everything = sum(file["keys"]["y"]["shape"][0] for file in entry["file"])
    assert entry["events"]["standard"] == entry["events"]["full"] == everything


def test_official_paths_leave_out_the_fallback():
    files = catalog.dataset("mnist")["file"]
    assert [file["name"] for file in files if file.get("fallback")] == [files[-1]["name"]]
    expected = [paths.OFFICIAL / file["name"] for file in files[:4]]
    assert catalog.official_paths("mnist") == expected


def test_unknown_dataset_lists_the_known_ones():
    with pytest.raises(InputError, match=r"electron_photon.*mnist.*found 'cats'"):
        catalog.dataset("cats")


def test_select_by_task_takes_only_its_files():
    assert [file["name"] for file in catalog.select(["task2d_diffusion"])] == [
        "Dataset_Specific_Unlabelled.h5"
    ]
    assert len(catalog.select(["task2c_sparse_vae", "jets8"])) == 3
    assert catalog.select(["all"]) == all_files()
    with pytest.raises(InputError, match=r"task2h_graph_jets.*found 'task9'"):
        catalog.select(["task9"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "a.hdf5"\n', "", "the field name, found none"),
        ('name = "a.hdf5"', 'name = "../a.hdf5"', "below the folder of official files"),
        ("bytes = [10]", "bytes = [10.5]", r"positive integers, found \[10.5\]"),
        ("bytes = [10]", "bytes = 10", "bytes as list, found 10"),
        ("bytes = [10]", 'bytes = [10]\nmd5 = "1234"', "32 lower-case hex digits"),
        ("bytes = [10]", "byts = [10]\nbytes = [10]", "only fields of .* found byts"),
        ('"https://example.org/a.hdf5"', '"example.org"', "https url, found example.org"),
        ('"https://', '"http://', "https url, found http://example.org"),
        ('url = "https://example.org/a.hdf5"\n', "", "either url or requirement"),
        ('format = "hdf5"', 'format = "zarr"', "found 'zarr'"),
        ("[5, 2]", "[5, 0]", r"found \[5, 0\]"),
        ('"float32"', '"real"', "a NumPy dtype, found 'real'"),
        ("[[digits.file]]", "[digits.events]\nquick = 3\n[[digits.file]]", "events for smoke"),
        ("[digits]", "[digits", "a TOML catalog"),
    ],
)
def test_wrong_entries_are_refused_in_one_line(tmp_path, old, new, message):
    assert ENTRY.count(old)
    path = tmp_path / "catalog.toml"
    path.write_text(ENTRY.replace(old, new, 1))
    with pytest.raises(InputError, match=message) as refusal:
        catalog.load_catalog(path)
    assert "\n" not in str(refusal.value)
    assert str(refusal.value).startswith("catalog.toml")


def test_a_name_used_twice_is_refused(tmp_path):
    path = tmp_path / "catalog.toml"
    path.write_text(ENTRY + ENTRY.replace("digits", "letters"))
    with pytest.raises(InputError, match="a second file of this name"):
        catalog.load_catalog(path)
