"""The official files of every task: typed, validated access to ``catalog.toml``."""

import tomllib
from functools import cache
from pathlib import Path, PurePosixPath
from typing import NotRequired, TypedDict

import numpy as np

from data.readers.remote_file import is_safe
from e2e_utils import paths
from e2e_utils.errors import InputError
from e2e_utils.profiles import PROFILES

CATALOG_FILE = Path(__file__).with_name("catalog.toml")

FORMATS = ("hdf5", "parquet", "csv.gz", "idx.gz", "root", "wheel")


class Key(TypedDict):
    """One HDF5 key, column, leaf or array: ``shape`` with the events first (-1: not known)."""

    shape: list[int]
    dtype: str


class OfficialFile(TypedDict):
    """One official file; ``bytes`` lists every size known to be served (may be empty)."""

    name: str
    dataset: str
    task: list[str]
    format: str
    bytes: list[int]
    keys: dict[str, Key]
    url: NotRequired[str]
    requirement: NotRequired[str]
    page: NotRequired[str]
    approximate_bytes: NotRequired[int]
    sha256: NotRequired[str]
    md5: NotRequired[str]
    unpacked_md5: NotRequired[str]
    label: NotRequired[int]
    notes: NotRequired[list[str]]
    fallback: NotRequired[bool]


class Dataset(TypedDict):
    """One dataset: the folders that use it, its files, and events per profile where fixed."""

    task: list[str]
    description: str
    licence: str
    citation: str
    file: list[OfficialFile]
    notes: NotRequired[list[str]]
    page: NotRequired[str]
    events: NotRequired[dict[str, int]]


# Field: (type, required). Unknown fields are refused, so that a misspelt one is not ignored.
DATASET_FIELDS = {
    "task": (list, True),
    "description": (str, True),
    "licence": (str, True),
    "citation": (str, True),
    "file": (list, True),
    "notes": (list, False),
    "page": (str, False),
    "events": (dict, False),
    "fresh_events": (dict, False),
}
FILE_FIELDS = {
    "name": (str, True),
    "format": (str, True),
    "bytes": (list, True),
    "keys": (dict, True),
    "url": (str, False),
    "requirement": (str, False),
    "task": (list, False),
    "page": (str, False),
    "approximate_bytes": (int, False),
    "sha256": (str, False),
    "md5": (str, False),
    "unpacked_md5": (str, False),
    "label": (int, False),
    "notes": (list, False),
    "fallback": (bool, False),
}


def load_catalog(path: str | Path | None = None) -> dict[str, Dataset]:
    """Read and validate the catalog; files inherit ``task`` and ``page`` of their dataset.

    Raises InputError naming the entry when a field is missing, unknown or of the wrong kind.
    """
    return _load(Path(path or CATALOG_FILE))


def dataset(name: str) -> Dataset:
    """One dataset by name; InputError lists the known names."""
    catalog = load_catalog()
    if name not in catalog:
        known = ", ".join(catalog)
        raise InputError(f"catalog.toml: expected a dataset of {known}, found {name!r}; use one")
    return catalog[name]


def official_paths(name: str) -> list[Path]:
    """Where the official files of a dataset belong, in catalog order, present or not.

    Fallback files are left out: they replace the others where those cannot be had.
    """
    return [
        paths.OFFICIAL / file["name"] for file in dataset(name)["file"] if not file.get("fallback")
    ]


def select(names: list[str]) -> list[OfficialFile]:
    """Files of datasets, of tasks, of single file names, or of ``all``; each once, in order."""
    files = [file for entry in load_catalog().values() for file in entry["file"]]
    chosen = []
    for name in names:
        matching = [
            file for file in files if name in ("all", file["dataset"], file["name"], *file["task"])
        ]
        if not matching:
            datasets = ", ".join(load_catalog())
            tasks = ", ".join(sorted({task for file in files for task in file["task"]}))
            raise InputError(
                f"catalog.toml: expected 'all', a file name, a dataset ({datasets}) or a task "
                f"({tasks}), found {name!r}; python -m data.download --list shows the files"
            )
        chosen += matching
    return [file for file in files if file in chosen]


@cache
def _load(path: Path) -> dict[str, Dataset]:
    try:
        catalog = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InputError(
            f"{path.name}: expected a TOML catalog, found {error}; restore it from the repository"
        ) from error
    names = set()
    for name, entry in catalog.items():
        _check_dataset(f"{path.name} [{name}]", entry)
        for file in entry["file"]:
            where = f"{path.name} [{name}] file {file.get('name', '(without a name)')}"
            _check_file(where, file)
            if file["name"] in names:
                raise _refusal(where, "a name used once", "a second file of this name")
            names.add(file["name"])
            file["dataset"] = name
            file.setdefault("task", entry["task"])
            if page := entry.get("page", file.get("url")):
                file.setdefault("page", page)
    return catalog


def _check_dataset(where: str, entry: object) -> None:
    _check_fields(where, entry, DATASET_FIELDS)
    if not entry["file"]:
        raise _refusal(where, "at least one file", "none")
    for field in ("events", "fresh_events"):
        events = entry.get(field, {})
        if events and (tuple(events) != PROFILES or not all(_is_count(n) for n in events.values())):
            raise _refusal(where, f"{field} for {', '.join(PROFILES)}", str(events))


def _check_file(where: str, file: object) -> None:
    _check_fields(where, file, FILE_FIELDS)
    name = PurePosixPath(file["name"])
    if name.is_absolute() or ".." in name.parts:
        raise _refusal(where, "a path below the folder of official files", str(name))
    if ("url" in file) == ("requirement" in file):
        raise _refusal(where, "either url or requirement", "both or none")
    if "url" in file and not is_safe(file["url"]):
        raise _refusal(where, "an https url", file["url"])
    if file["format"] not in FORMATS:
        raise _refusal(where, f"a format of {', '.join(FORMATS)}", repr(file["format"]))
    if not all(_is_count(size) for size in file["bytes"]):
        raise _refusal(where, "bytes as a list of positive integers", str(file["bytes"]))
    for algorithm, digits in (("sha256", 64), ("md5", 32), ("unpacked_md5", 32)):
        digest = file.get(algorithm, "0" * digits)
        if len(digest) != digits or not set(digest) <= set("0123456789abcdef"):
            raise _refusal(where, f"{digits} lower-case hex digits as {algorithm}", digest)
    for key, schema in file["keys"].items():
        _check_key(f"{where} key {key}", schema)


def _check_key(where: str, schema: object) -> None:
    _check_fields(where, schema, {"shape": (list, True), "dtype": (str, True)})
    shape = schema["shape"]
    if not shape or not all(_is_count(n) or n == -1 for n in shape):
        raise _refusal(where, "a shape of positive integers (or -1)", str(shape))
    try:
        np.dtype(schema["dtype"])
    except TypeError as error:
        raise _refusal(where, "a NumPy dtype", repr(schema["dtype"])) from error


def _check_fields(where: str, table: object, fields: dict[str, tuple[type, bool]]) -> None:
    if not isinstance(table, dict):
        raise _refusal(where, "a table", type(table).__name__)
    for field, (kind, required) in fields.items():
        if field not in table:
            if required:
                raise _refusal(where, f"the field {field}", "none")
        elif type(table[field]) is not kind:  # a bool is an int for isinstance
            raise _refusal(where, f"{field} as {kind.__name__}", repr(table[field]))
    if unknown := set(table) - set(fields):
        raise _refusal(where, f"only fields of {', '.join(fields)}", ", ".join(sorted(unknown)))


def _is_count(number: object) -> bool:
    return type(number) is int and number > 0


def _refusal(where: str, expected: str, found: str) -> InputError:
    return InputError(f"{where}: expected {expected}, found {found}; correct the catalog")
