"""Better words around the outputs of a published run; other code is refused."""

from pathlib import Path

import pytest
from fake_project import SCRIPT, TASK, finished_run, make_project

from e2e_utils import paths
from e2e_utils.errors import InputError
from tools.check_notebooks import task_problems
from tools.imported_code import settled
from tools.provenance import read_json
from tools.publish import publish
from tools.reword import reword
from tools.staleness import is_stale


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a published quick run."""
    root = make_project(tmp_path, monkeypatch)
    finished_run("quick", auc=0.8)
    publish(TASK, "quick")
    return root


def edit(old: str, new: str) -> None:
    assert old in SCRIPT
    paths.script_path(TASK).write_text(SCRIPT.replace(old, new))


def published() -> dict[Path, bytes]:
    folders = [paths.ROOT / TASK, paths.WEIGHTS / TASK]
    return {path: path.read_bytes() for folder in folders for path in folder.iterdir()}


def test_texts_and_comments_are_put_around_the_outputs(project: Path) -> None:
    edit("# # Demo: $x^2$\n", "# # Demo: a *square*\n\n# %% [markdown]\n# One more text.\n")
    script = paths.script_path(TASK)
    script.write_text(script.read_text().replace("1 + 1", "1 + 1  # two"))
    pdf = (paths.WEIGHTS / TASK / f"{TASK}.pdf").read_bytes()
    assert is_stale(TASK)
    reword(TASK)
    assert not is_stale(TASK)
    assert task_problems(TASK) == []
    cells = read_json(project / TASK / f"{TASK}.ipynb")["cells"]
    assert [cell["cell_type"] for cell in cells] == ["markdown", "markdown", "code", "code"]
    assert "1 + 1  # two" in "".join(cells[3]["source"])
    assert cells[3]["execution_count"] == 2
    assert "".join(cells[3]["outputs"][0]["data"]["text/plain"]) == "2"
    assert (paths.WEIGHTS / TASK / f"{TASK}.pdf").read_bytes() != pdf
    assert not (paths.BUILD / "reworded" / TASK).exists()


def test_it_can_be_done_again_and_whatever_the_events_of_other_profiles(project: Path) -> None:
    settings = "CONFIGS = {{'smoke': {}, 'quick': 2}}\nprint(CONFIGS['quick'])"
    script = paths.script_path(TASK)
    script.write_text(SCRIPT.replace("1 + 1", settings.format(1)))
    finished_run("quick", cell=settings.format(1))
    publish(TASK, "quick")
    catalog = project / "data" / "catalog.toml"
    catalog.parent.mkdir(exist_ok=True)
    for smoke in (2, 3):
        catalog.write_text(f"[demo]\ntask = ['{TASK}']\n[demo.events]\nsmoke = {smoke}\n")
        script.write_text(SCRIPT.replace("1 + 1", settings.format(smoke)))
        reword(TASK)
        assert not is_stale(TASK)


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("1 + 1", "1 + 2", "other code in its cell 2"),
        ("1 + 1\n", "1 + 1\n\n# %%\n1\n", "3 cells of code where the published notebook has 2"),
    ],
)
def test_other_code_is_refused_and_nothing_is_changed(
    project: Path, old: str, new: str, found: str
) -> None:
    edit(old, new)
    before = published()
    with pytest.raises(InputError, match=found):
        reword(TASK)
    assert published() == before


def test_a_source_beside_the_script_has_to_be_that_of_the_run(project: Path) -> None:
    edit("Demo", "A demo")
    (project / TASK / "network.py").write_text("WIDTH = 3\n")
    with pytest.raises(InputError, match="other sources beside it"):
        reword(TASK)


def test_a_task_without_a_published_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_project(tmp_path, monkeypatch)
    with pytest.raises(InputError, match="expected a published run, found none"):
        reword(TASK)


def test_only_settings_of_other_profiles_may_differ() -> None:
    source = "CONFIGS = {{'quick': Config({}), 'standard': Config({})}}\nA = {}"
    assert settled(source.format(1, 2, 3), "standard") == settled(
        source.format(9, 2, 3), "standard"
    )
    for other in ((1, 9, 3), (1, 2, 9)):
        assert settled(source.format(1, 2, 3), "standard") != settled(
            source.format(*other), "standard"
        )
