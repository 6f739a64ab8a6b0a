"""`make site`: build/site/, the published notebooks as static pages that need no other host.

A front page with the results and a gallery, and one page per notebook. Any web server can publish
the folder, and index.html opens from the disk as well.
"""

import argparse
import html
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import nbformat

from e2e_utils import paths
from e2e_utils.errors import InputError, command_line
from e2e_utils.files import atomic_path, readable_size
from e2e_utils.paths import display_path
from tools.results_table import REPOSITORY, published_metrics, readme_path
from tools.site.figures import gallery_figure
from tools.site.front_page import front_page, notable
from tools.site.notebook_page import notebook_page
from tools.site.pages import HERE, Page, Site, write_page

ASSETS = ("site.css", "site.js", "icon.svg")


def build_site(folder: Path) -> list[str]:
    """Write the whole site into a new ``folder``; the tasks that it shows.

    Raises InputError where nothing is published, and for what a page cannot be made of.
    """
    published = published_metrics()
    notebooks = {task: paths.ROOT / task / f"{task}.ipynb" for task in published}
    published = {task: published[task] for task, path in notebooks.items() if path.is_file()}
    if not published:
        raise InputError(
            f"{display_path(paths.WEIGHTS)}: expected a published run, found none; "
            "run make publish PROFILE=standard"
        )
    readme = readme_path().read_text(encoding="utf-8")
    site = Site(folder, addresses(list(published)), elsewhere(readme))
    (folder / "assets").mkdir(parents=True)
    for name in ASSETS:
        shutil.copy(HERE / name, folder / "assets")
    pages, figures = [], {}
    with tempfile.TemporaryDirectory(prefix="site-") as temporary:
        for task in published:
            nb = nbformat.read(notebooks[task], as_version=4)
            page, found = notebook_page(nb, task, site, paths.ROOT, Path(temporary))
            pages.append(page)
            figures[task] = gallery_figure(found)
            report = paths.WEIGHTS / task / f"{task}.pdf"
            if report.is_file():
                shutil.copy(report, folder / task)
        for index in range(len(pages)):
            write_page(site, with_neighbours(pages, index))
    write_page(site, front_page(readme, published, figures, paths.ROOT))
    return list(published)


def addresses(tasks: list[str]) -> dict[str, str]:
    """Where the site has files of the repository."""
    found = {"README.md": "index.html"}
    for task in tasks:
        found |= dict.fromkeys((task, f"{task}/{task}.ipynb", f"{task}/{task}.py"), f"{task}.html")
        found[f"weights/{task}/{task}.pdf"] = f"{task}/{task}.pdf"
    return found


def elsewhere(readme: str) -> str:
    """Address of the repository's files on GitHub; "" where README does not name it."""
    repository = notable(REPOSITORY.pattern, readme)
    return f"https://github.com/{repository}/tree/main/" if repository else ""


def with_neighbours(pages: list[Page], index: int) -> Page:
    """A notebook's page with links to all others at its side, and to two of them at its end."""
    page = pages[index]

    def link(other: Page, mark: str = "{}") -> str:
        return f'<a href="{other.name}.html">{mark.format(html.escape(other.title))}</a>'

    others = "".join(f"<li>{link(other)}</li>" for other in pages if other is not page)
    side = f'<div class="tasks"><h2>Other tasks</h2><ul>{others}</ul></div>' if others else " "
    ends = [link(pages[index - 1], "← {}")] if index else []
    ends += [link(pages[index + 1], "{} →")] if index + 1 < len(pages) else []
    after = f'<nav class="neighbours" aria-label="Neighbouring tasks">{"".join(ends)}</nav>'
    return replace(page, side=side, after=after)


@command_line
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.site", description=__doc__)
    parser.parse_args(arguments)
    folder = paths.BUILD / "site"
    with atomic_path(folder) as temporary:
        tasks = build_site(temporary)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    index = display_path(folder / "index.html")
    print(f"{index}: {len(tasks)} notebook(s), {readable_size(size)}")


if __name__ == "__main__":
    main()
