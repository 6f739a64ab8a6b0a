"""The site: structure, links and figures of its pages; how they look and behave in Chromium."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from browser import Tab, chromium, find_chromium
from fake_project import TASK, finished_run, make_project, metrics_of
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from e2e_utils.errors import InputError
from tools.publish import publish
from tools.results_table import results_block
from tools.site.__main__ import build_site, elsewhere
from tools.site.figures import Figure, gallery_figure
from tools.site.front_page import introduction
from tools.site.notebook_page import code_summary
from tools.site.pages import THIN_SPACE, space_functions

PNG = (  # 1 x 1 pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
    "gg=="
)
OPTIONAL_END = ("html", "head", "body", "p", "li", "td", "th", "tr", "dt", "dd", "option")
VOID = ("meta", "link", "img", "br", "hr", "input", "col", "source", "wbr", "area", "base")


class Document(HTMLParser):
    """What a page refers to, what it holds, and whether its elements are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.identifiers: list[str] = []
        self.counts: dict[str, int] = {}
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.feed(text)
        self.wrong += self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.references += [found[name] for name in ("href", "src", "srcset") if name in found]
        self.identifiers += [found["id"]] if "id" in found else []
        if tag not in VOID and tag not in OPTIONAL_END:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open and tag not in VOID and tag not in OPTIONAL_END:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID or tag in OPTIONAL_END:
            return
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"</{tag}>")


def demo_notebook(run: dict) -> nbformat.NotebookNode:
    """A notebook with everything that a page treats in its own way."""
    table = "<table><thead><tr><th></th>" + "<th>wide column</th>" * 20 + "</tr></thead><tbody><tr>"
    table += "<th>a</th>" + "<td>0.123456</td>" * 20 + "</tr></tbody></table>"
    outputs = [
        new_output("stream", text="AUC < 1 & more\n" + "x" * 500),
        new_output("display_data", data={"image/png": PNG}),
        new_output("execute_result", data={"text/html": table}, execution_count=1),
        new_output("display_data", data={"text/html": "<script>alert(1)</script>"}),
        new_output("display_data", data={"text/markdown": "**bold** $\\frac{a}{b}$"}),
    ]
    formula = r"\begin{aligned} \mathcal{L} &= \sum_i \bigl\| x_i \bigr\|^2 \\ &\le 1 \end{aligned}"
    cells = [
        new_markdown_cell("# Demo: a *page* with $p_T$\n\nSee [the end](#End) and [nothing](#no)."),
        new_markdown_cell(f"## 1. Data\n\n$${formula}$$\n\n![badge](https://host/x.svg)"),
        new_code_cell(
            "import os\n\ndef f(x):\n    return x < 1", execution_count=1, outputs=outputs
        ),
        new_markdown_cell(
            "## 2. Evaluation\n\n### Detail\n\n[table](../README.md) [w](../weights)"
        ),
        new_code_cell("plot()", execution_count=2, outputs=outputs[1:2]),
        new_markdown_cell("## End\n\n| a | b |\n|---|---|\n| 1 | 2 |"),
    ]
    return new_notebook(cells=cells, metadata={"e2e": run})


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of a small project with one published task, whose notebook has everything."""
    with pytest.MonkeyPatch.context() as patch:
        root = make_project(tmp_path_factory.mktemp("project"), patch)
        (root / "plot.png").write_bytes(b"no image of the site needs to be one here")
        readme = root / "README.md"
        picture = '<img src="plot.png" width="620" alt="plot">'
        text = readme.read_text().replace(
            "# Title\n", f"# Title\n\nWhy.\n\n{picture}\n\n## Results\n"
        )
        readme.write_text(text)
        finished_run()
        publish(TASK, "quick")
        notebook = root / TASK / f"{TASK}.ipynb"
        run = nbformat.read(notebook, as_version=4).metadata["e2e"]
        nbformat.write(demo_notebook(run), notebook)
        build_site(root / "site")
    return root / "site"


def document(path: Path) -> Document:
    return Document(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["index", TASK])
def test_everything_that_a_page_refers_to_is_there_and_on_this_host(site: Path, name: str) -> None:
    page = document(site / f"{name}.html")
    assert page.wrong == []
    assert len(set(page.identifiers)) == len(page.identifiers)
    assert len(page.references) > 5
    for reference in page.references:
        assert not re.match(r"\w+:|//", reference)
        path, _, fragment = reference.partition("#")
        target = site / (path or f"{name}.html")
        assert target.is_file(), reference
        assert not fragment or fragment in document(target).identifiers, reference


def test_a_notebook_has_folded_code_open_outputs_and_contents(site: Path) -> None:
    text = (site / f"{TASK}.html").read_text()
    page = Document(text)
    assert page.counts["details"] == 1 + 2  # the contents, and each code cell
    assert "<summary><span>[1]</span><code>def f</code>" in text
    assert "AUC &lt; 1 &amp; more" in text
    assert 'class="badge standin">simulated stand-in data' in text
    assert text.count('<figure class="plot">') == 2
    assert (site / TASK / "figure-5-0.png").is_file()
    assert 'alt="Figure 2: 2. Evaluation"' in text
    assert "Output of type text/html" in text
    assert "alert(1)" not in text
    contents = text[text.index('<details class="contents"') : text.index("<main>")]
    assert re.findall(r'href="#([\w-]+)"', contents) == [
        "1-data",
        "2-evaluation",
        "detail",
        "end",
    ]
    assert '<a href="#end">the end</a> and nothing.' in text
    assert f'href="{TASK}/{TASK}.pdf"' in text
    assert '<a href="index.html">table</a> w' in text


def test_formulas_are_mathml(site: Path) -> None:
    text = (site / f"{TASK}.html").read_text()
    assert text.count("<math") == 3
    assert "\\frac" not in re.sub(r"<annotation.*?</annotation>", "", text)


def test_functions_in_formulas_have_room() -> None:
    name = '<mrow><mi mathvariant="normal">ln</mi><mo>\u2061</mo></mrow>'
    assert space_functions(f"<mi>h</mi>{name}<mi>x</mi>") == (
        f"<mi>h</mi>{THIN_SPACE}{name}{THIN_SPACE}<mi>x</mi>"
    )
    for alone in (f"<mo>(</mo>{name}<mo>(</mo>", f"<msub>{name}<mn>2</mn></msub>"):
        assert space_functions(alone) == alone


def test_the_front_page_has_the_table_of_the_readme_and_the_gallery(site: Path) -> None:
    text = (site / "index.html").read_text()
    assert "<p>Why.</p>" in text
    table = results_block({TASK: metrics_of("quick")})
    cells = re.findall(r"<td[^>]*>(.*?)</td>", text)
    row = next(line for line in table.splitlines() if TASK in line)
    assert len(cells) == row.count("|") - 1
    assert "<strong>0.8000</strong> [0.7900,\xa00.8100] ±\xa00.0020" in cells[1]
    files = [
        f'<a href="{TASK}.html">notebook</a>',
        f'<a href="{TASK}/{TASK}.pdf">PDF</a>',
        "weights",
    ]
    assert cells[-1] == " · ".join(files)
    assert f'<a class="card" href="{TASK}.html">' in text
    assert f'src="{TASK}/figure-5-0.png"' in text  # of the section Evaluation


def test_which_figure_stands_for_a_task() -> None:
    data = Figure("a", "2. Data", (), 1000, 900)
    small, large = (Figure(n, "6. Evaluation", (), 900, h) for n, h in (("b", 300), ("c", 600)))
    tagged = Figure("d", "9. Speed", ("gallery",), 10, 10)
    assert gallery_figure([data, small, large]) is large
    assert gallery_figure([data, small, tagged, large]) is tagged
    assert gallery_figure([data]) is data
    assert gallery_figure([]) is None


def test_texts_of_pages() -> None:
    assert code_summary("import a\n\n@b\nclass C:\n    def d(self): ...\n\ndef e(): ...") == (
        "class C, def e"
    )
    assert code_summary("import a\n\nx = 1") == "x = 1"
    assert code_summary("from a import b\nimport c") == "from a import b"
    assert introduction("# T\n\nx\n\n<!-- a -->\n## R") == "# T\n\nx\n\n"
    line = "<!-- repository: owner/name -->\n"
    assert elsewhere(line) == "https://github.com/owner/name/tree/main/"
    assert elsewhere("") == ""


def test_without_results_there_is_no_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_project(tmp_path, monkeypatch)
    with pytest.raises(InputError, match="expected a published run, found none"):
        build_site(tmp_path / "site")


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium here")
    with chromium(path) as opened:
        yield opened


@pytest.fixture(scope="module")
def published_site(tmp_path_factory: pytest.TempPathFactory, tab: Tab) -> Path:
    """The site of what this repository has published."""
    folder = tmp_path_factory.mktemp("published") / "site"
    try:
        build_site(folder)
    except InputError as error:
        if "found none" not in str(error):
            raise
        pytest.skip("nothing published yet")
    return folder


LOADED = """
Promise.all([...document.images].map(image => {
  image.loading = "eager";
  return image.decode().then(() => true, () => image.src);
})).then(results => results.filter(result => result !== true))
"""
BEYOND = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
FORMULA = (
    "[...document.querySelectorAll('main math')].every(m => m.getBoundingClientRect().height > 5)"
)


@pytest.mark.parametrize("width", [1280, 390], ids=["desk", "phone"])
def test_chromium_shows_every_page(tab: Tab, published_site: Path, width: int) -> None:
    """No complaint, no other host, every figure drawn, nothing wider than the page."""
    problems = []
    for path in sorted(published_site.glob("*.html")):
        tab.open(path.as_uri(), width)
        missing, beyond = tab.evaluate(LOADED), tab.evaluate(BEYOND)
        others = [url for url in tab.requests if not url.startswith(published_site.as_uri())]
        formulas = tab.evaluate(FORMULA)
        if missing or beyond or others or tab.complaints or not formulas:
            problems.append((path.name, missing, beyond, others, tab.complaints, formulas))
    assert problems == []


def test_code_opens_on_a_click_and_contents_fold_on_a_phone(tab: Tab, site: Path) -> None:
    tab.open((site / f"{TASK}.html").as_uri())
    shown = "[...document.querySelectorAll('details.code')].map(code => code.open)"
    assert tab.evaluate(shown) == [False, False]
    tab.evaluate("document.querySelector('.all-code').click()")
    assert tab.evaluate(shown) == [True, True]
    tab.evaluate("document.querySelector('details.code summary').click()")
    assert tab.evaluate(shown) == [False, True]
    assert tab.evaluate("document.querySelector('details.contents').open")
    tab.open((site / f"{TASK}.html").as_uri(), width=390)
    assert not tab.evaluate("document.querySelector('details.contents').open")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    tab.open((site / f"{TASK}.html").as_uri(), dark=True)
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 29)"
