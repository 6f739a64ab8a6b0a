"""The parameters that every notebook has: PROFILE and DATA_SOURCE."""

from collections.abc import Sequence

from e2e_utils.errors import InputError

PROFILES = ("smoke", "quick", "standard", "full")
SOURCES = ("auto", "official", "standin")


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Raise InputError for a ``value`` that is not among the known ones."""
    if value not in known:
        raise InputError(f"{name}: expected one of {', '.join(known)}, found {value!r}; correct it")
