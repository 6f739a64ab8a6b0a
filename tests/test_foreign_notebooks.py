"""The exporter on notebooks of others: outputs, links and sizes that this project does not have."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from e2e_utils.errors import InputError
from tools.notebook_pdf.exporter import (
    compile_typst,
    notebook_parts,
    notebook_title,
    notebook_to_pdf,
    pandoc_body,
)
from tools.notebook_pdf.time_limit import Deadline
from tools.readable_outputs import MOST_CHARACTERS, readable

REPOSITORY = Path(__file__).resolve().parent.parent
PNG = (  # 1 x 1 pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
    "gg=="
)
FRAMES = (
    f'frames[0] = "data:image/png;base64,{PNG}"\\\n' * 16_000
)  # 2 MB, as to_jshtml() writes them
ANIMATION = (
    '<link rel="stylesheet" href="https://host/a.css"><script>let frames = [];</script>'
    '<div class="animation"><img id="frame"><div><button>play</button>'
    f"<form>Loop</form></div></div>\n<script>{FRAMES}</script>\n"
)
VIDEO = '<video controls><source src="data:video/mp4;base64,AAAA">No videos here</video>'


def typst_of(folder: Path, *texts: str, outputs: list | None = None) -> str:
    cells = [new_markdown_cell(text) for text in texts]
    cells += [new_code_cell("1", outputs=outputs)] if outputs else []
    return pandoc_body(notebook_parts(new_notebook(cells=cells), folder), folder, folder, "test")


@pytest.mark.parametrize(
    "html", [ANIMATION, VIDEO, "<p>" + "x " * MOST_CHARACTERS], ids=["animation", "video", "long"]
)
def test_what_no_page_can_show_becomes_its_plain_text_or_a_note(html: str) -> None:
    assert readable({"text/html": html, "text/plain": "a film"}) == ("text/plain", "a film")
    kind, note = readable({"text/html": html})
    assert kind == "note"
    assert note.startswith("Output of type text/html (")


def test_unknown_types_are_named_and_those_that_set_up_a_library_are_not() -> None:
    kind = "application/vnd.plotly.v1+json"
    plotly = {kind: {"data": ["x" * 1500]}}
    line = f"Output of type {kind} (1.51 kB): only the notebook itself shows it."
    assert readable(plotly) == ("note", line)
    assert readable(plotly | {"text/plain": "Figure()"}) == ("text/plain", "Figure()")
    assert readable({"application/javascript": "alert(1)"}) is None
    assert (
        readable({"application/vnd.bokehjs_load.v0+json": "", "application/javascript": ""}) is None
    )
    assert readable({}) is None


def test_large_images_do_not_make_a_table_too_large() -> None:
    html = f'<b>wide</b><img src="data:image/png;base64,{"A" * MOST_CHARACTERS}">'
    assert readable({"text/html": html, "text/plain": "t"}) == ("text/html", html)


def test_a_notebook_with_an_animation_and_unknown_outputs_is_exported(tmp_path: Path) -> None:
    outputs = [
        new_output("display_data", data={"text/html": ANIMATION, "text/plain": "<x.HTML object>"}),
        new_output("display_data", data={"application/x-own+json": {"a": 1}}),
        new_output("stream", text="y" * 1_000_000),
        new_output(
            "display_data",
            data={"text/html": '<b>drawn</b><svg width="9" height="9"><rect width="5"/></svg>'},
        ),
    ]
    nb = new_notebook(cells=[new_code_cell("1", outputs=outputs)])
    typst = pandoc_body(notebook_parts(nb, tmp_path), tmp_path, tmp_path, "test")
    assert typst.count("#note-output(") == 2
    assert "… 998000 more characters" in typst
    assert 'image("image-1.svg")' in typst
    assert notebook_to_pdf(nb, tmp_path, "foreign").startswith(b"%PDF")


@pytest.mark.parametrize("anchor", ['<a id="there"></a>', '<a name="there"></a>', '<b id="there">'])
def test_a_link_finds_its_anchor_in_another_cell(anchor: str, tmp_path: Path) -> None:
    typst = typst_of(tmp_path, "[go](#there)", f"{anchor} Some text")
    assert "#link(<there>)[go]" in typst
    assert "#metadata(none)<there>" in typst


@pytest.mark.parametrize("target", ["A-Long-Title", "a-long-title", "here", "in-a-div"])
def test_links_to_headings_as_jupyter_and_github_name_them(target: str, tmp_path: Path) -> None:
    texts = (
        "# Title",
        "## A Long Title <a id='here'></a>",
        "<div id='in-a-div'>\n\ntext\n\n</div>",
    )
    typst = typst_of(tmp_path, f"[go](#{target})", *texts)
    label = "in-a-div" if target == "in-a-div" else "a-long-title"
    assert f"#link(<{label}>)[go]" in typst
    assert typst.count(f"<{label}>") == 2


def test_a_link_without_a_target_is_text(tmp_path: Path) -> None:
    texts = (
        "# Title\n\n[nowhere](#gone), [top](#), [out](https://host/#a)",
        "## Twice",
        "## Twice",
    )
    typst = typst_of(tmp_path, *texts)
    assert "nowhere, top, " in typst
    assert '#link("https://host/#a")[out]' in typst


def test_every_kind_of_link_compiles(tmp_path: Path) -> None:
    texts = (
        '# <a id="top"></a>Title',
        "[up](#top) [a](#twice) [b](#Twice) [c](#gone) [d](#gr%C3%B6%C3%9Fe) [e](#odd.id!)",
        "## Twice",
        "## Twice",
        "## Größe",
        '<a id="odd.id!"></a>',
    )
    nb = new_notebook(cells=[new_markdown_cell(text) for text in texts])
    assert notebook_title(nb) == "Title"
    assert notebook_to_pdf(nb, tmp_path, "links").startswith(b"%PDF")


def test_pandoc_has_to_end_in_time(tmp_path: Path) -> None:
    nb = new_notebook(cells=[new_markdown_cell("a"), new_markdown_cell("b" * 1_000_000)])
    message = r"slow: expected an export within 0\.001 s, found pandoc .*cell 2, 1\.0 MB"
    with pytest.raises(InputError, match=message):
        notebook_to_pdf(nb, tmp_path, "slow", seconds=0.001)


def test_typst_has_to_end_in_time(tmp_path: Path) -> None:
    document = tmp_path / "document.typ"
    document.write_text("#for i in range(1000000000) { i }")
    with pytest.raises(InputError, match=r"slow: expected .* 1 s, found Typst still at work"):
        compile_typst(document, "slow", Deadline(1, "slow"))


def test_errors_of_typst_are_one_line(tmp_path: Path) -> None:
    document = tmp_path / "document.typ"
    document.write_text("#link(<nowhere>)[x]")
    with pytest.raises(RuntimeError, match="Typst failed on bad: label `<nowhere>` does not exist"):
        compile_typst(document, "bad")


def test_the_command_ends_with_2_at_its_time_limit(tmp_path: Path) -> None:
    nbformat.write(new_notebook(cells=[new_markdown_cell("a")]), tmp_path / "a.ipynb")
    command = [sys.executable, "-m", "tools.notebook_pdf", str(tmp_path / "a.ipynb")]
    result = subprocess.run(
        [*command, "--time-limit", "0.001"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 2
    assert result.stderr.startswith("error: a: expected an export within 0.001 s, found pandoc")
    assert not (tmp_path / "a.pdf").exists()
