"""Notebooks as PDF: everything that a notebook can hold, offline and reproducible."""

import base64
import json
import re
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from e2e_utils.errors import InputError
from tools.notebook_pdf import TypstPDFExporter
from tools.notebook_pdf.__main__ import export
from tools.notebook_pdf.exporter import (
    notebook_parts,
    notebook_title,
    notebook_to_pdf,
    pandoc_body,
    typst_string,
)
from tools.provenance import layout_hash, notebook_hash, pdf_hashes

REPOSITORY = Path(__file__).resolve().parent.parent
PNG = (  # 1 x 1 pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
    "gg=="
)
FORMULAS = [
    r"\begin{aligned} a &= b \\ c &= \begin{cases} 1 & x > 0 \\ 0 & \text{else} \end{cases} "
    r"\end{aligned}",
    r"\bigl( x \bigr) \Bigl\| y \Bigr\|_2 \bigm| \Big| z \Big|",
    r"\begin{aligned} \bigl\| x \\ y \bigr\| & = \bigl[ 1 \bigr] \end{aligned}",
    r"\int_0^1 \! f(x) \, dx \; \|x\|_1 \quad \lVert x \rVert \; |x|",
    r"\bigcap_i A_i \cup \bigcup B \cap C \sqcap \bigotimes \odot \ominus \triangleleft \lll",
    r"\mathcal{L}(\theta) = \operatorname{softmax}(z), \operatorname*{arg\,max}_x \mathbb{E}[x]",
    r"\begin{pmatrix} a & b \\ c & d \end{pmatrix} \begin{vmatrix} a & b \\ c & d \end{vmatrix}",
    r"\sum_{\substack{i \\ j}} \widehat{xy} \overline{x} \underbrace{a}_{b} \mathtt{x} \tfrac12",
    r"D_{\mathrm{KL}}\!\left(q\,\|\,p\right) \le \sqrt{s} = 13\,\mathrm{TeV}, \Delta R",
]


def body(nb: nbformat.NotebookNode, folder: Path) -> str:
    return pandoc_body(notebook_parts(nb, folder), folder, folder, "test")


def markdown_body(text: str, folder: Path) -> str:
    return body(new_notebook(cells=[new_markdown_cell(text)]), folder)


def text_of(pdf: bytes, folder: Path) -> str:
    """The words of a PDF, by pdftotext; the test is skipped where that is not installed."""
    path = folder / "text.pdf"
    path.write_bytes(pdf)
    try:
        result = subprocess.run(
            ["pdftotext", "-layout", path, "-"], capture_output=True, text=True, check=True
        )
    except FileNotFoundError:
        pytest.skip("pdftotext is not installed")
    return result.stdout


def stress_notebook() -> nbformat.NotebookNode:
    outputs = [
        new_output("stream", name="stdout", text="\x1b[31mred\x1b[0m AUC → 0.8 ≤ σ²\n" + "x" * 300),
        new_output("stream", name="stderr", text="\rloss:  10%|█ | 1/10 [00:00<00:09,  1.0it/s]"),
        new_output("display_data", data={"image/png": PNG, "text/plain": "<Figure size 1x1>"}),
        new_output(
            "display_data",
            data={
                "image/svg+xml": '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
            },
        ),
        new_output(
            "execute_result",
            execution_count=1,
            data={
                "text/html": "<div><style>.a{}</style><table class='dataframe'><thead><tr><th></th>"
                + "".join(f"<th>column {i}</th>" for i in range(20))
                + "</tr></thead><tbody><tr><th>0</th>"
                + "".join(f"<td>{i / 7:.6f}</td>" for i in range(20))
                + "</tr></tbody></table></div>",
                "text/plain": "table",
            },
        ),
        new_output("display_data", data={"text/latex": r"$\displaystyle \frac{1}{2}$"}),
    ]
    cells = [
        new_markdown_cell("# The *title* with $p_T$\n\n![badge](https://host/badge.svg)"),
        *(new_markdown_cell(f"## Part {i}\n\n$${formula}$$") for i, formula in enumerate(FORMULAS)),
        new_markdown_cell("\\begin{align}\nE &= mc^2 \\\\\np &= mv\n\\end{align}"),
        new_markdown_cell("| a | b |\n|---|---|\n| + | = 5 |\n| / x | - |\n\n<b>x</b><br>y"),
        new_code_cell(
            "α = 'é \\\\ \"quoted\" `#let`'  # σ\n\n\tx", execution_count=1, outputs=outputs
        ),
        new_code_cell(
            "raise", outputs=[new_output("error", ename="E", evalue="v", traceback=["T"])]
        ),
        new_code_cell(""),
    ]
    run = {"profile": "quick", "data_source": "standin", "device": "cpu", "seconds": 200}
    return new_notebook(cells=cells, metadata={"e2e": run})


def test_a_stress_notebook_gives_the_same_pdf_every_time(tmp_path: Path) -> None:
    nb = stress_notebook()
    pdf = notebook_to_pdf(nb, tmp_path, "stress")
    assert pdf.startswith(b"%PDF")
    assert pdf == notebook_to_pdf(nb, tmp_path, "stress")
    (tmp_path / "a.pdf").write_bytes(pdf)
    assert pdf_hashes(tmp_path / "a.pdf") == {
        "notebook": notebook_hash(nb),
        "layout": layout_hash(),
    }


def test_a_pdf_shows_outputs_and_hides_their_wrapping(tmp_path: Path) -> None:
    text = text_of(notebook_to_pdf(stress_notebook(), tmp_path, "stress"), tmp_path)
    for expected in (
        "quick profile",
        "simulated stand-in data",
        "red AUC → 0.8",
        "[1]",
        "2.714286",
    ):
        assert expected in text
    for unwanted in ("[31m", "it/s", "Figure size", "https://host", "\\frac"):
        assert unwanted not in text


@pytest.mark.parametrize("formula", FORMULAS)
def test_formulas_become_typst_math(formula: str, tmp_path: Path) -> None:
    typst = markdown_body(f"$${formula}$$ and ${formula}$", tmp_path)
    assert "\\begin" not in typst
    assert "#h(-1em)" not in typst
    assert "#h(0em)" not in typst
    assert notebook_to_pdf(new_notebook(cells=[new_markdown_cell(f"$${formula}$$")]), tmp_path)


def test_norms_are_written_without_gaps(tmp_path: Path) -> None:
    assert markdown_body(r"$\| x \|_1$", tmp_path).strip() == "$‖x‖_1$"
    assert markdown_body(r"$\bigl( x \bigr)$", tmp_path).strip() == "$(x)$"


def test_unknown_tex_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"test: expected a formula .*slashed"):
        markdown_body(r"$\slashed{E}$", tmp_path)


def test_images_of_markdown_cells(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(base64.b64decode(PNG))
    local = markdown_body('![](a.png) and <img src="a.png" width="50">', tmp_path)
    assert len(re.findall(r"image\(\"image-\d\.png\"", local)) == 2
    inline = markdown_body(f"![](data:image/png;base64,{PNG})", tmp_path)
    assert "image-1.png" in inline
    cell = new_markdown_cell("![](attachment:b.png)", attachments={"b.png": {"image/png": PNG}})
    assert "image-1.png" in body(new_notebook(cells=[cell]), tmp_path)
    remote = markdown_body("[![Open in Colab](https://host/x.svg)](https://host/y)", tmp_path)
    assert remote.strip() == '#link("https://host/y")[Open in Colab]'
    with pytest.raises(InputError, match=r"cell 1: expected the image 'b\.png'"):
        markdown_body("![](b.png)", tmp_path)


def test_html_tables_are_real_tables_with_numbers_to_the_right(tmp_path: Path) -> None:
    html = (
        "<table><thead><tr><th>name</th><th>AUC</th></tr></thead>"
        "<tbody><tr><td>ResNet</td><td>0.80 ± 0.01</td></tr></tbody></table>"
    )
    for text in (html, f"before\n\n{html}\n\nafter"):
        typst = markdown_body(text, tmp_path)
        assert "#table(" in typst
        assert "align: (left,right,)" in typst


def test_html_tables_may_hold_formulas_and_prices(tmp_path: Path) -> None:
    table = "<table><tbody><tr><td>true $p_T$</td><td>$5 to $10</td></tr></tbody></table>"
    output = new_output("display_data", data={"text/html": table})
    typst = body(new_notebook(cells=[new_code_cell("x", outputs=[output])]), tmp_path)
    assert "true $p_T$" in typst
    assert r"\$5 to \$10" in typst


def rows_per_page(rows: int, lines: int, folder: Path) -> list[int]:
    """Rows of a table on each page of a notebook that has some lines before it."""
    pypdf = pytest.importorskip("pypdf")
    before = "\n\n".join(f"line {n}" for n in range(lines))
    table = "| row | value |\n|---|---|\n" + "".join(f"| row{n:03d} | {n} |\n" for n in range(rows))
    cells = [new_markdown_cell(text) for text in ("# Title", before, table)]
    pdf = pypdf.PdfReader(BytesIO(notebook_to_pdf(new_notebook(cells=cells), folder, "table")))
    return [len(re.findall(r"row\d{3}", page.extract_text())) for page in pdf.pages]


def test_short_tables_stay_in_one_piece_and_long_ones_do_not(tmp_path: Path) -> None:
    short = [rows_per_page(12, lines, tmp_path) for lines in range(24, 40, 3)]
    assert all(max(pages) == 12 for pages in short)
    assert [0, 12] in short  # it would have begun on the first page
    long = rows_per_page(200, 3, tmp_path)
    assert sum(long) == 200
    assert len(long) > 2


def test_an_open_fence_does_not_swallow_the_next_cell(tmp_path: Path) -> None:
    cells = [new_markdown_cell("```python\nx = 1"), new_markdown_cell("**next**")]
    assert "#strong[next]" in body(new_notebook(cells=cells), tmp_path)


def test_long_outputs_are_cut(tmp_path: Path) -> None:
    output = new_output("stream", text="\n".join(map(str, range(500))))
    typst = body(new_notebook(cells=[new_code_cell("1", outputs=[output])]), tmp_path)
    assert "119\\n… 380 more lines" in typst


def test_strings_and_titles() -> None:
    assert typst_string('a\\b "c"\n\td\r') == '"a\\\\b \\"c\\"\\n    d"'
    nb = new_notebook(cells=[new_markdown_cell("text\n\n# A [link](x) to `code` and $p_T$")])
    assert notebook_title(nb) == "A link to code and p_T"
    assert notebook_title(new_notebook()) is None


def test_the_hash_sees_content_and_not_its_storage(tmp_path: Path) -> None:
    nb = stress_notebook()
    path = tmp_path / "a.ipynb"
    nbformat.write(nb, path)
    assert notebook_hash(json.loads(path.read_text())) == notebook_hash(nb)
    nb.cells[-3].outputs[0].text += "."
    assert notebook_hash(json.loads(path.read_text())) != notebook_hash(nb)


def test_the_exporter_of_nbconvert(tmp_path: Path) -> None:
    nbformat.write(stress_notebook(), tmp_path / "a.ipynb")
    pdf, resources = TypstPDFExporter().from_filename(str(tmp_path / "a.ipynb"))
    assert pdf.startswith(b"%PDF")
    assert resources["output_extension"] == ".pdf"


def test_broken_notebooks_are_input_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found no file"):
        export(tmp_path / "missing.ipynb", tmp_path / "a.pdf")
    (tmp_path / "bad.ipynb").write_text("no notebook")
    with pytest.raises(InputError, match="expected a notebook"):
        export(tmp_path / "bad.ipynb", tmp_path / "a.pdf")
    result = subprocess.run(
        [sys.executable, "-m", "tools.notebook_pdf", "missing.ipynb"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 2
    assert result.stderr.startswith("error: missing.ipynb: expected a notebook")
    assert not (tmp_path / "a.pdf").exists()
