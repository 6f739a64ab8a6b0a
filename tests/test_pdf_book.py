"""The book of all reports: every page, a bookmark a task, and only finished reports."""

from pathlib import Path

import nbformat
import pytest
from fake_project import make_project
from nbformat.v4 import new_markdown_cell, new_notebook

from e2e_utils import paths
from e2e_utils.errors import InputError
from tools import regenerate
from tools.notebook_pdf.exporter import notebook_to_pdf
from tools.pdf_book import book_path, update_book

pypdf = pytest.importorskip("pypdf")
TITLES = {"task_a": "First task: images", "task_b": "Second task: jets"}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_project(tmp_path, monkeypatch)


def report(task: str, title: str | None = None, pages: int = 1) -> Path:
    """Write a report with a heading of the second level a page."""
    sections = "\n\n".join(f"## Section {n}\n\n" + "line\n\n" * 60 for n in range(1, pages + 1))
    nb: nbformat.NotebookNode = new_notebook(
        cells=[new_markdown_cell(f"# {title or TITLES[task]}"), new_markdown_cell(sections)]
    )
    path = paths.run_directory("quick", task) / f"{task}.pdf"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(notebook_to_pdf(nb, path.parent, task))
    return path


def page_count(path: Path) -> int:
    return len(pypdf.PdfReader(path).pages)


def test_the_book_holds_every_page_and_a_bookmark_a_task(project: Path) -> None:
    reports = [report("task_a", pages=3), report("task_b")]
    assert page_count(reports[0]) > page_count(reports[1]) > 0
    assert update_book("quick", TITLES) == "book: build/quick/book.pdf, 2 report(s)"
    book = pypdf.PdfReader(book_path("quick"))
    assert len(book.pages) == sum(map(page_count, reports))
    tasks = [entry for entry in book.outline if not isinstance(entry, list)]
    assert [entry.title for entry in tasks] == list(TITLES.values())
    starts = [book.get_destination_page_number(entry) for entry in tasks]
    assert starts == [0, page_count(reports[0])]
    assert [entry.title for entry in book.outline[1]] == ["Section 1", "Section 2", "Section 3"]


def test_the_book_is_bound_again_only_for_other_reports(project: Path) -> None:
    report("task_a")
    update_book("quick", ["task_a"])
    book = book_path("quick")
    before = book.stat().st_mtime_ns
    update_book("quick", ["task_a"])
    assert book.stat().st_mtime_ns == before
    report("task_a", "Another title")
    update_book("quick", ["task_a"])
    assert pypdf.PdfReader(book).outline[0].title == "Another title"


def test_failed_tasks_and_missing_reports_are_named_and_left_out(project: Path) -> None:
    assert update_book("quick", TITLES) == "book: none; without task_a, task_b (no finished report)"
    assert not book_path("quick").exists()
    only = report("task_a")
    line = update_book("quick", TITLES)
    assert line == "book: build/quick/book.pdf, 1 report(s); without task_b (no finished report)"
    report("task_b")
    assert update_book("quick", TITLES, failed=["task_b"]) == line
    assert page_count(book_path("quick")) == page_count(only)


def test_a_broken_report_leaves_the_last_book(project: Path) -> None:
    report("task_a")
    update_book("quick", ["task_a"])
    content = book_path("quick").read_bytes()
    broken = report("task_b")
    broken.write_bytes(b"%PDF-1.7 cut off")
    with pytest.raises(InputError, match=r"task_b\.pdf: expected a PDF"):
        update_book("quick", TITLES)
    assert book_path("quick").read_bytes() == content
    assert [path.name for path in book_path("quick").parent.glob("*book*")] == ["book.pdf"]


@pytest.mark.parametrize(("arguments", "bound"), [([], True), (["task_a"], False)])
def test_only_make_all_binds_the_book(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    bound: bool,
) -> None:
    (project / "task_a").mkdir()
    paths.script_path("task_a").write_text("# %%\n1\n")

    def finish(jobs: list[regenerate.Job], *_: object) -> None:
        for job in jobs:
            job.status = "ran" if job.task == "task_a" else "failed"
            report(job.task, "Some task")

    monkeypatch.setattr(regenerate, "run_jobs", finish)
    with pytest.raises(SystemExit):
        regenerate.main(arguments)
    assert ("1 report(s); without task_demo" in capsys.readouterr().out) == bound
    assert book_path("quick").is_file() == bound
