"""One PDF of all reports of a profile: build/<profile>/book.pdf, with a bookmark for each task.

`make all` calls it at its end. Each report keeps its own bookmarks below that of its task.
"""

from collections.abc import Collection, Iterable
from pathlib import Path

from e2e_utils import paths
from e2e_utils.errors import InputError
from e2e_utils.files import atomic_path
from e2e_utils.paths import display_path
from tools.provenance import hash_files

TITLE = "End-to-end deep learning on CMS detector data: all reports"


def book_path(profile: str) -> Path:
    """Where the book of a profile lies."""
    return paths.BUILD / profile / "book.pdf"


def update_book(profile: str, tasks: Iterable[str], failed: Collection[str] = ()) -> str:
    """Bind the reports of ``tasks`` unless the book holds just these; one line about it.

    A task that failed or has no report is named and left out; without any report no book is
    written. Raises InputError for a report that is not a PDF.
    """
    reports = {task: paths.run_directory(profile, task) / f"{task}.pdf" for task in tasks}
    found = {t: report for t, report in reports.items() if t not in failed and report.is_file()}
    missing = [task for task in reports if task not in found]
    without = f"; without {', '.join(missing)} (no finished report)" if missing else ""
    book = book_path(profile)
    if not found:
        return f"book: none{without}"
    if not is_book_of(book, found.values()):
        bind(book, found)
    return f"book: {display_path(book)}, {len(found)} report(s){without}"


def is_book_of(book: Path, reports: Iterable[Path]) -> bool:
    """Whether a book was bound from exactly these reports; reads no PDF structure."""
    return book.is_file() and keywords(reports).encode() in book.read_bytes()


def keywords(reports: Iterable[Path]) -> str:
    """What a book says about its origin: a hash over the names and contents of its reports."""
    return f"reports {hash_files(reports)}"


def bind(book: Path, reports: dict[str, Path]) -> None:
    """Write the reports one after the other, atomically; bookmarks are their titles."""
    from pypdf import PdfReader, PdfWriter  # takes 0.2 s: only where a book is made
    from pypdf.errors import PyPdfError

    writer = PdfWriter()
    for task, report in reports.items():
        try:
            reader = PdfReader(report)
            title = reader.metadata.title if reader.metadata else None
            writer.append(reader, outline_item=title or task)
        except PyPdfError as error:
            raise InputError(
                f"{display_path(report)}: expected a PDF, found {type(error).__name__}; "
                "delete it and run make all again"
            ) from error
    writer.compress_identical_objects()
    writer.add_metadata({"/Title": TITLE, "/Keywords": keywords(reports.values())})
    with atomic_path(book) as temporary, temporary.open("wb") as stream:
        writer.write(stream)
