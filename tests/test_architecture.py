"""Arrows go one way: e2e_utils <- data <- notebooks and tools."""

import ast
import tomllib
from pathlib import Path

import pytest

from e2e_utils.paths import ROOT

PACKAGES = ("e2e_utils", "data", "tools", "benchmarks", "tests")
MAY_IMPORT = {
    "e2e_utils": {"e2e_utils"},
    "data": {"e2e_utils", "data"},
    "tools": {"e2e_utils", "data", "tools"},
}
# Notebooks that were published before the loaders moved import them by their old name.
FORWARDING = {"e2e_utils/datasets/__init__.py"}


def imported_packages(source: str) -> set[str]:
    """Top-level names that a module imports anywhere, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def sources(package: str) -> list[Path]:
    return [
        path
        for path in sorted((ROOT / package).rglob("*.py"))
        if path.relative_to(ROOT).as_posix() not in FORWARDING
    ]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_what_lies_below_it(package: str) -> None:
    wrong = {
        path.relative_to(ROOT).as_posix(): above
        for path in sources(package)
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


def test_imports_inside_functions_count() -> None:
    assert imported_packages("def f():\n    from data.loaders import load_higgs") == {"data"}
