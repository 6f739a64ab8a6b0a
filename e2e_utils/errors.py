"""The one error for bad input, and how command lines report it."""

import functools
import sys
from collections.abc import Callable


class InputError(Exception):
    """Input that cannot be used.

    The message is one line: which file, what was expected, what was found, what to do.
    Command lines print it without a traceback and exit with code 2.
    """

    exit_code = 2


def command_line(main: Callable[..., int | None]) -> Callable[..., None]:
    """Turn ``main`` into an entry point: exit code 0, its own, or 2 with a one-line error."""

    @functools.wraps(main)
    def run(*args: object, **kwargs: object) -> None:
        try:
            code = main(*args, **kwargs)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            code = InputError.exit_code
        sys.exit(code or 0)

    return run
