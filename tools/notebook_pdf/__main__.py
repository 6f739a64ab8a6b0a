"""``python -m tools.notebook_pdf in.ipynb [out.pdf]``: one notebook as PDF."""

import argparse
from pathlib import Path

import nbformat

from e2e_utils.errors import InputError, command_line
from e2e_utils.files import atomic_path
from tools.notebook_pdf.exporter import notebook_to_pdf
from tools.notebook_pdf.time_limit import TIME_LIMIT


def export(notebook: Path, pdf: Path, seconds: float = TIME_LIMIT) -> None:
    """Write ``pdf`` atomically.

    Raises InputError where ``notebook`` is not a notebook, or takes longer than ``seconds``.
    """
    if not notebook.is_file():
        raise InputError(f"{notebook}: expected a notebook, found no file; run it first")
    try:
        nb = nbformat.read(notebook, as_version=4)
    except (ValueError, nbformat.reader.NotJSONError) as error:
        raise InputError(
            f"{notebook}: expected a notebook (JSON), found {type(error).__name__}; run it again"
        ) from error
    content = notebook_to_pdf(nb, notebook.parent, notebook.stem, seconds)
    with atomic_path(pdf) as temporary:
        temporary.write_bytes(content)


@command_line
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.notebook_pdf", description=__doc__)
    parser.add_argument("notebook", type=Path)
    parser.add_argument("pdf", type=Path, nargs="?", help="default: beside the notebook")
    parser.add_argument(
        "--time-limit",
        type=float,
        default=TIME_LIMIT,
        metavar="SECONDS",
        help=f"default: {TIME_LIMIT:g}",
    )
    options = parser.parse_args(arguments)
    pdf = options.pdf or options.notebook.with_suffix(".pdf")
    export(options.notebook, pdf, options.time_limit)
    print(f"{pdf} ({pdf.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
