"""Arrows go one way: e2e_utils <- data <- notebooks and tools."""

import ast
import re
import tomllib
from importlib.metadata import packages_distributions

import pytest
from packaging.utils import canonicalize_name

from e2e_utils.paths import ROOT, list_tasks

PACKAGES = ("e2e_utils", "data", "tools", "benchmarks", "tests")
MAY_IMPORT = {
    "e2e_utils": {"e2e_utils"},
    "data": {"e2e_utils", "data"},
    "tools": {"e2e_utils", "data", "tools"},
}


def imported_packages(source: str) -> set[str]:
    """Top-level names that a module imports anywhere, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_what_lies_below_it(package: str) -> None:
    wrong = {
        path.relative_to(ROOT).as_posix(): above
        for path in sorted((ROOT / package).rglob("*.py"))
        if (above := imported_packages(path.read_text()) & set(PACKAGES) - MAY_IMPORT[package])
    }
    assert not wrong


def test_an_installation_has_every_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = {
        path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for package in MAY_IMPORT
        for path in (ROOT / package).rglob("__init__.py")
    }
    assert found == set(project["tool"]["setuptools"]["packages"])


def test_what_is_imported_is_pinned() -> None:
    """What comes only through another package may change, or stay away, with that package."""
    folders = [*PACKAGES, *list_tasks()]
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    names = set().union(*(imported_packages(path.read_text()) for path in files)) - {*folders}
    known = packages_distributions()
    needed = {canonicalize_name(package) for name in names for package in known.get(name, [])}
    pinned = {
        canonicalize_name(name)
        for file in ("requirements.txt", "requirements-simulation.txt")
        for name in re.findall(r"^[\w.-]+", (ROOT / file).read_text(), re.MULTILINE)
    }
    assert needed - pinned == set()


def test_imports_inside_functions_count() -> None:
    assert imported_packages("def f():\n    from data.loaders import load_higgs") == {"data"}
