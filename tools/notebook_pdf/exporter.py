"""nbconvert exporter: notebook to PDF through pandoc and Typst, offline and reproducible.

``jupyter nbconvert --to typstpdf any.ipynb`` or ``python -m tools.notebook_pdf any.ipynb``.
pandoc translates Markdown, HTML tables and formulas (reader.lua); the look is in notebook.typ.
The same notebook gives the same bytes: no dates, no fonts of the system.
"""

import base64
import hashlib
import json
import re
import shutil
import struct
import sys
import tempfile
from pathlib import Path

from nbconvert.exporters import Exporter
from nbformat import NotebookNode
from traitlets import Float

from e2e_utils.errors import InputError
from tools.notebook_outputs import clean_outputs, joined
from tools.notebook_pdf.time_limit import TIME_LIMIT, Deadline
from tools.provenance import layout_hash, notebook_hash
from tools.readable_outputs import DATA_URI, NOTE, readable

HERE = Path(__file__).resolve().parent
TEMPLATE = HERE / "notebook.typ"
READER = HERE / "reader.lua"

# Typst's own process: inside this one nothing could end it.
COMPILE = """
import sys, typst
try:
    typst.compile(sys.argv[1], output=sys.argv[2], root=sys.argv[1].rpartition("/")[0],
                  format="pdf", ignore_system_fonts=True)
except typst.TypstError as error:
    sys.exit(str(error))
"""
SOURCE_LABELS = {
    "official": "official data",
    "standin": "simulated stand-in data",
    "file": "given data",
}
MAX_LINES = 120  # of one text output; the notebook has them all
MAX_CHARACTERS = 2000  # of one of its lines
PIXELS_PER_INCH = 100  # of the notebooks' figures
PRINT_SCALE = 0.74  # figures shrink with the text, so that two fit on a page beside their code
# Imported by name: Typst's formulas know functions called accent, mono, ...
TEMPLATE_NAMES = (
    "notebook",
    "title-block",
    "contents",
    "input-cell",
    "plain-output",
    "note-output",
    "figure-output",
    "fitted-table",
    "horizontalrule",
)
SUFFIXES = {"png": "png", "jpeg": "jpg", "gif": "gif", "webp": "webp", "svg+xml": "svg"}
# A drawing in HTML; icons that refer to drawings elsewhere in it are left out.
INLINE_SVG = re.compile(r"<svg\b.*?</svg\s*>", re.DOTALL | re.IGNORECASE)
SVG_NAMESPACE = 'xmlns="http://www.w3.org/2000/svg"'


class TypstPDFExporter(Exporter):
    """PDF via pandoc and Typst (no browser, no TeX)."""

    export_from_notebook = "PDF via Typst"
    output_mimetype = "application/pdf"
    time_limit = Float(TIME_LIMIT, help="seconds that a notebook may take").tag(config=True)

    def _file_extension_default(self) -> str:
        return ".pdf"

    def from_notebook_node(
        self, nb: NotebookNode, resources: dict | None = None, **kw: object
    ) -> tuple[bytes, dict]:
        """The interface of nbconvert: PDF bytes of a notebook, and its resources."""
        nb, resources = super().from_notebook_node(nb, resources, **kw)
        metadata = resources.get("metadata", {})
        folder = Path(metadata.get("path") or ".")
        name = metadata.get("name", "notebook")
        return notebook_to_pdf(nb, folder, name, self.time_limit), resources


def notebook_to_pdf(
    nb: dict, base: Path, name: str = "notebook", seconds: float = TIME_LIMIT
) -> bytes:
    """PDF bytes of a notebook; images of Markdown cells are looked up below ``base``.

    Raises InputError for formulas that pandoc cannot translate, for missing images, and for a
    notebook that takes longer than ``seconds``.
    """
    deadline = Deadline(seconds, name, nb)
    with tempfile.TemporaryDirectory(prefix="typst-") as temporary:
        folder = Path(temporary)
        body = pandoc_body(notebook_parts(nb, folder), base, folder, name, deadline)
        shutil.copy(TEMPLATE, folder / TEMPLATE.name)
        document = folder / "document.typ"
        document.write_text(preamble(nb, name) + body, encoding="utf-8")
        return compile_typst(document, name, deadline)


def notebook_parts(nb: dict, folder: Path) -> list[dict]:
    """The notebook as a list of Markdown, HTML and Typst pieces; images are put into ``folder``."""
    parts = []
    for number, cell in enumerate(nb["cells"], 1):
        if cell["cell_type"] == "markdown":
            attachments = write_attachments(cell.get("attachments", {}), folder, number)
            text = extract_data_uris(joined(cell["source"]), folder, number)
            parts.append(part("markdown", text, number, attachments))
        elif cell["cell_type"] == "code" and joined(cell["source"]).strip():
            count = cell.get("execution_count")
            source = typst_string(joined(cell["source"]).rstrip())
            shown = "none" if count is None else f'"[{count}]"'
            outputs = enumerate(clean_outputs(cell.get("outputs", [])))
            pieces = [output_part(output, folder, number, index) for index, output in outputs]
            pieces = [piece for piece in pieces if piece]
            call = f"#input-cell({source}, count: {shown}, outputs: {str(bool(pieces)).lower()})"
            parts += [part("typst", call, number), *pieces]
    return parts


def part(kind: str, text: str, cell: int, attachments: dict[str, str] | None = None) -> dict:
    """A piece of the document, of one cell; ``kind`` says how it is set."""
    return {"kind": kind, "text": text, "cell": cell, "attachments": attachments or {}}


def output_part(output: dict, folder: Path, cell: int, index: int) -> dict | None:
    """One cleaned output as a piece of the document, None where it has nothing to show."""
    if output["output_type"] == "stream":
        return plain_part(output["text"], output["name"], cell)
    if output["output_type"] == "error":
        return plain_part("\n".join(output["traceback"]), "error", cell)
    chosen = readable(output["data"])
    if chosen is None:
        return None
    kind, content = chosen
    if kind == NOTE:
        return part("typst", f"#note-output({typst_string(content)})", cell)
    if kind == "text/plain":
        return plain_part(content, "stdout", cell)
    if kind == "text/html":
        content = extract_drawings(content, folder, cell)
        return part("html", extract_data_uris(content, folder, cell), cell)
    if kind.startswith("text/"):
        return part("markdown", extract_data_uris(content, folder, cell), cell)
    return figure_part(kind, content, folder, cell, index)


def plain_part(text: str, kind: str, cell: int) -> dict | None:
    """Printed text as a piece of the document; None where there is only white space."""
    lines = plain_lines(text)
    if not lines:
        return None
    content = typst_string("\n".join(lines))
    return part("typst", f'#plain-output({content}, kind: "{kind}")', cell)


def plain_lines(text: str) -> list[str]:
    """Lines of printed text, at most MAX_LINES of them; none where there is only white space."""
    lines = [shortened(line.rstrip()) for line in text.strip("\n").split("\n")]
    if not any(lines):
        return []
    left_out = len(lines) - MAX_LINES
    if left_out > 0:
        lines = [*lines[:MAX_LINES], f"… {left_out} more lines in the notebook"]
    return lines


def shortened(line: str) -> str:
    """A line of printed text, at most MAX_CHARACTERS of it."""
    left_out = len(line) - MAX_CHARACTERS
    return line if left_out <= 0 else f"{line[:MAX_CHARACTERS]} … {left_out} more characters"


def figure_part(kind: str, content: str, folder: Path, cell: int, index: int) -> dict:
    """A figure of that MIME type, written to ``folder``."""
    suffix = SUFFIXES[kind.removeprefix("image/")]
    path = folder / f"figure-{cell}-{index}.{suffix}"
    if suffix == "svg":
        path.write_text(content, encoding="utf-8")
        return part("typst", f'#figure-output("{path.name}")', cell)
    image = base64.b64decode(content)
    path.write_bytes(image)
    width = "auto"
    if suffix == "png":
        pixels = struct.unpack(">I", image[16:20])[0]  # IHDR begins with the width
        width = f"{pixels / PIXELS_PER_INCH * 72 * PRINT_SCALE:.1f}pt"
    return part("typst", f'#figure-output("{path.name}", width: {width})', cell)


def extract_drawings(html: str, folder: Path, cell: int) -> str:
    """Replace SVG elements by files: pandoc would keep them as addresses that nothing reads."""

    def write(match: re.Match) -> str:
        svg = match[0]
        if "<use" in svg:
            return ""
        if SVG_NAMESPACE not in svg:
            svg = svg.replace("<svg", f"<svg {SVG_NAMESPACE}", 1)
        return f'<img src="{write_image(svg.encode(), "svg", folder, cell)}">'

    return INLINE_SVG.sub(write, html)


def write_attachments(attachments: dict, folder: Path, cell: int) -> dict[str, str]:
    """Write images that are stored in a Markdown cell; name -> path."""
    paths = {}
    for index, (name, data) in enumerate(sorted(attachments.items())):
        path = folder / f"attachment-{cell}-{index}{Path(name).suffix}"
        path.write_bytes(base64.b64decode(joined(next(iter(data.values())))))
        paths[name] = str(path)
    return paths


def extract_data_uris(text: str, folder: Path, cell: int) -> str:
    """Replace images written inside the text by files."""

    def write(match: re.Match) -> str:
        return write_image(base64.b64decode(match[2]), SUFFIXES[match[1]], folder, cell)

    return DATA_URI.sub(write, text)


def write_image(content: bytes, suffix: str, folder: Path, cell: int) -> str:
    """Write an image that stood inside a text; its path."""
    path = folder / f"inline-{cell}-{hashlib.sha256(content).hexdigest()[:12]}.{suffix}"
    path.write_bytes(content)
    return str(path)


def typst_string(text: str) -> str:
    """A Typst string literal."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\t", "    ")
    return '"' + escaped.replace("\r", "").replace("\n", "\\n") + '"'


def preamble(nb: dict, name: str) -> str:
    """Typst lines before the body: the template with title, profile, data source and hashes."""
    run = nb.get("metadata", {}).get("e2e", {})
    source = run.get("data_source")
    label = SOURCE_LABELS.get(source, source)
    facts = [
        ("profile", run.get("profile")),
        ("data", label and label.removesuffix(" data")),
        ("device", run.get("device")),
        ("run time", duration(run["seconds"]) if run.get("seconds") else None),
    ]
    shown = "".join(
        f"({typst_string(key)}, {typst_string(str(value))}), " for key, value in facts if value
    )
    keywords = f'"notebook {notebook_hash(nb)}", "layout {layout_hash()}"'
    return (
        f'#import "{TEMPLATE.name}": {", ".join(TEMPLATE_NAMES)}\n'
        f"#let facts = ({shown})\n"
        "#show: notebook.with(\n"
        f"  title: {typst_string(notebook_title(nb) or name)},\n"
        f"  profile: {optional(run.get('profile'))}, source: {optional(source)},\n"
        f"  source-label: {optional(label)}, keywords: ({keywords}),\n"
        ")\n\n"
    )


def optional(text: str | None) -> str:
    """A Typst string, or Typst's ``none``."""
    return "none" if text is None else typst_string(text)


def duration(seconds: float) -> str:
    """Seconds in the unit that reads best."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def notebook_title(nb: dict) -> str | None:
    """Text of the first heading of level 1, without Markdown's marks."""
    for cell in nb["cells"]:
        if cell["cell_type"] == "markdown":
            match = re.search(r"^# +(.+)$", joined(cell["source"]), re.MULTILINE)
            if match:
                text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", match[1])
                text = re.sub(r"</?[a-zA-Z][^>]*>", "", text)  # anchors
                return re.sub(r"[*`$\\]", "", text).strip()
    return None


def pandoc_body(
    parts: list[dict], base: Path, folder: Path, name: str, deadline: Deadline | None = None
) -> str:
    """Typst text of the parts, by pandoc with our reader."""
    document = {"base": str(base.resolve()), "folder": str(folder), "parts": parts}
    return run_pandoc(
        ["--from", str(READER), "--to", "typst", "--wrap=none"], document, name, deadline
    )


def run_pandoc(arguments: list, document: dict, name: str, deadline: Deadline | None = None) -> str:
    """What pandoc makes of a document that one of our readers understands.

    Raises InputError for a missing image, for TeX that pandoc does not know, and at the deadline.
    """
    import pypandoc  # takes 0.1 s: only where something is exported

    result = (deadline or Deadline(TIME_LIMIT, name)).run(
        [pypandoc.get_pandoc_path(), *arguments], "pandoc", json.dumps(document)
    )
    missing = re.search(r"missing image: (.+) in cell (\d+)", result.stderr)
    if missing:
        raise InputError(
            f"{name}: cell {missing[2]}: expected the image {missing[1]!r} beside the notebook, "
            "found no such file; add it or remove the reference"
        )
    formula = re.search(r"Could not convert TeX math (.+?), rendering", result.stderr, re.DOTALL)
    if formula:
        raise InputError(
            f"{name}: expected a formula that pandoc understands, found {one_line(formula[1])}; "
            "write it with simpler commands"
        )
    if result.returncode:
        raise RuntimeError(f"pandoc failed on {name}: {result.stderr.strip()}")
    return result.stdout


def compile_typst(document: Path, name: str, deadline: Deadline | None = None) -> bytes:
    """PDF bytes of a Typst document, by a process of its own, which a deadline can stop.

    Raises InputError at the deadline, RuntimeError with Typst's message.
    """
    pdf = document.with_suffix(".pdf")
    command = [sys.executable, "-c", COMPILE, str(document), str(pdf)]
    result = (deadline or Deadline(TIME_LIMIT, name)).run(command, "Typst")
    if result.returncode:
        raise RuntimeError(f"Typst failed on {name}: {one_line(result.stderr)}")
    return pdf.read_bytes()


def one_line(text: str) -> str:
    """The text with every white space a single blank."""
    return " ".join(text.split())
