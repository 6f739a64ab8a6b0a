"""`make badges`: one line and the table's links, nothing else."""

from pathlib import Path

import pytest
from fake_project import TASK, finished_run, make_project

from e2e_utils.errors import InputError
from tools import badges
from tools.publish import publish
from tools.results_table import stamp_repository, update

NOTEBOOK = f"blob/main/{TASK}/{TASK}.ipynb"


@pytest.fixture
def readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """README of a project with one published task."""
    make_project(tmp_path, monkeypatch)
    finished_run("quick")
    publish(TASK, "quick")
    return tmp_path / "README.md"


def outside(text: str) -> tuple[str, str]:
    """What stands before and after the results, without the line that names the repository."""
    before, _, rest = text.partition("<!-- results:begin -->")
    lines = [line for line in before.splitlines() if not line.startswith("<!-- repository")]
    return "\n".join(lines), rest.partition("<!-- results:end -->")[2]


def test_every_published_notebook_gets_a_badge(readme: Path) -> None:
    before = readme.read_text()
    assert "colab" not in before
    files = {path: path.read_bytes() for path in readme.parent.rglob("*") if path.is_file()}
    assert stamp_repository("someone/e2e-tasks")
    after = readme.read_text()
    link = f"https://colab.research.google.com/github/someone/e2e-tasks/{NOTEBOOK}"
    (row,) = [line for line in after.splitlines() if line.startswith("| [Demo]")]
    assert f"colab-badge.svg)]({link})" in row
    assert "enter `https://github.com/someone/e2e-tasks`" in after
    assert outside(after) == outside(before)
    changed = {path for path, content in files.items() if path.read_bytes() != content}
    assert changed == {readme}


def test_stamping_again_changes_nothing_and_another_one_replaces(readme: Path) -> None:
    stamp_repository("someone/e2e-tasks")
    first = readme.read_text()
    assert not stamp_repository("someone/e2e-tasks")
    assert readme.read_text() == first
    assert stamp_repository("other/name")
    assert "someone" not in readme.read_text()
    assert readme.read_text() == first.replace("someone/e2e-tasks", "other/name")


def test_make_results_keeps_the_badges(readme: Path) -> None:
    stamp_repository("someone/e2e-tasks")
    before = readme.read_text()
    assert update() == []
    readme.write_text(before.replace("[Demo]", "[typed by hand]"))
    assert update() == [readme]
    assert readme.read_text() == before


@pytest.mark.parametrize("name", ["someone/e2e-tasks", "a/b", "A-1/x.y_z-0"])
def test_names_of_repositories(name: str) -> None:
    assert badges.check_repository(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "", "name", "a/b/c", "-a/b", "a-/b", "a/..", "a b/c", "a/b\n", "a/b.git", "é/b",
        "https://github.com/a/b", "a/b)[x](y",
    ],
)  # fmt: skip
def test_other_words_are_input_errors(name: str) -> None:
    with pytest.raises(InputError, match="REPO: expected owner/name"):
        badges.check_repository(name)


def test_the_command_line(readme: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = readme.read_text()
    with pytest.raises(SystemExit) as end:
        badges.main(["nonsense"])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: REPO: expected owner/name")
    assert readme.read_text() == before
    for words in ("written", "are up to date"):
        with pytest.raises(SystemExit) as end:
            badges.main(["a/b"])
        assert end.value.code == 0
        assert capsys.readouterr().out == f"README.md: badges of a/b {words}\n"
