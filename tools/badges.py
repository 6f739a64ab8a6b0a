"""`make badges REPO=owner/name`: Colab badges in README's results table.

Only README.md is stamped: its line ``<!-- repository: owner/name -->`` names the repository, and
the results table follows from it. The notebooks stay as they were executed, since a cell changed
afterwards would be one that never ran; in Colab their first cell has a field for the address.
"""

import argparse
import re

from e2e_utils.errors import InputError, command_line
from tools.results_table import stamp_repository

# GitHub's rules: no hyphen at an end of the owner's name, and no "." or ".." as a repository.
OWNER = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,37}[A-Za-z0-9])?"
REPOSITORY = re.compile(rf"{OWNER}/(?!\.{{1,2}}$)[\w.-]{{1,100}}", re.ASCII)


def check_repository(repository: str) -> str:
    """``owner/name`` as it is. Raises InputError for anything else, an address included."""
    if not REPOSITORY.fullmatch(repository) or repository.endswith(".git"):
        raise InputError(
            f"REPO: expected owner/name of a GitHub repository, found {repository!r}; "
            "run make badges REPO=owner/name"
        )
    return repository


@command_line
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.badges", description=__doc__)
    parser.add_argument("repository", nargs="?", default="", help="owner/name on GitHub")
    repository = check_repository(parser.parse_args(arguments).repository)
    changed = stamp_repository(repository)
    print(f"README.md: badges of {repository} " + ("written" if changed else "are up to date"))


if __name__ == "__main__":
    main()
