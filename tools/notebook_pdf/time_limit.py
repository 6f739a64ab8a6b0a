"""A time limit for the programs of an export: no notebook keeps `make all` waiting for ever."""

import subprocess
import time

from e2e_utils.errors import InputError

# Seconds. This project's notebooks take 3, a hundred times as long where others use the machine.
TIME_LIMIT = 600.0


class Deadline:
    """The moment at which the export of a notebook has to be over."""

    def __init__(self, seconds: float, name: str, nb: dict | None = None) -> None:
        self.seconds, self.name, self.nb = seconds, name, nb or {}
        self.end = time.monotonic() + seconds

    def run(
        self, command: list, program: str, text: str | None = None
    ) -> subprocess.CompletedProcess:
        """Run a program to its end, with ``text`` as its input.

        Raises InputError, and ends the program, where it is still running at the deadline.
        """
        try:
            return subprocess.run(
                command,
                input=text,
                capture_output=True,
                encoding="utf-8",
                check=False,
                timeout=max(0.001, self.end - time.monotonic()),
            )
        except subprocess.TimeoutExpired as error:
            raise InputError(
                f"{self.name}: expected an export within {self.seconds:g} s, found {program} still "
                f"at work{largest_cell(self.nb)}; shorten the notebook's largest outputs or give "
                "it more time with --time-limit"
            ) from error


def largest_cell(nb: dict) -> str:
    """The cell that holds most, in words; "" for a notebook without cells."""
    sizes = [len(str(cell)) for cell in nb.get("cells", [])]
    if not sizes:
        return ""
    largest = max(sizes)
    return f" (largest: cell {sizes.index(largest) + 1}, {largest / 1e6:.1f} MB)"
