"""README names every package under the GPL that an installation brings."""

import re
from importlib.metadata import PackageNotFoundError, metadata

from e2e_utils import paths

HIDDEN = {"pythia8mc", "fastjet", "pypandoc_binary"}  # not everywhere, or inside a package


def required() -> set[str]:
    """Names of the packages in requirements.txt and in the file that it includes."""
    names = set()
    for file in ("requirements.txt", "requirements-simulation.txt"):
        names |= set(re.findall(r"^[\w.-]+", (paths.ROOT / file).read_text(), re.MULTILINE))
    return {name for name in names if not name.startswith("-")}


def test_packages_under_the_gpl_are_named() -> None:
    found = set()
    for name in required():
        try:
            about = metadata(name)
        except PackageNotFoundError:  # Pythia has no wheel for this system
            continue
        words = [about.get("License-Expression", ""), about.get("License", "").split("\n")[0]]
        words += about.get_all("Classifier", [])
        if any(re.search(r"\bL?GPL|GNU", word) for word in words):
            found.add(name)
    section = (paths.ROOT / "README.md").read_text().split("## Licence and citation")[1]
    missing = sorted(name for name in found | HIDDEN if f"`{name}`" not in section)
    assert missing == []
