"""One published notebook as a page: text, figures and tables open, code folded."""

import html
import re
from pathlib import Path

from nbconvert.filters import Highlight2HTML

from tools.notebook_outputs import clean_outputs, joined
from tools.notebook_pdf.exporter import (
    SOURCE_LABELS,
    duration,
    extract_data_uris,
    extract_drawings,
    notebook_title,
    part,
    plain_lines,
    write_attachments,
)
from tools.readable_outputs import NOTE, readable
from tools.site.figures import Figure, write_figure
from tools.site.pages import Page, Site, raw

DEFINITION = re.compile(r"^(?:async )?((?:def|class) \w+)", re.MULTILINE)
SECTION = re.compile(r"^## +(.+)$", re.MULTILINE)
BUTTON = '<button type="button" class="all-code" aria-pressed="false">Show code</button>'


class NotebookParts:
    """The parts of a notebook's page; figures are written while they are collected."""

    def __init__(self, folder: Path, temporary: Path) -> None:
        self.folder, self.temporary = folder, temporary
        self.parts: list[dict] = []
        self.figures: list[Figure] = []
        self.section = ""

    def add_cell(self, cell: dict, number: int) -> None:
        """Add a Markdown cell, or a code cell with its outputs; others have nothing to show."""
        source = joined(cell["source"])
        if cell["cell_type"] == "markdown":
            attachments = write_attachments(cell.get("attachments", {}), self.temporary, number)
            text = extract_data_uris(source, self.temporary, number)
            self.parts.append(part("markdown", text, number, attachments))
            self.section = (SECTION.findall(source) or [self.section])[-1]
        elif cell["cell_type"] == "code" and source.strip():
            self.parts.append(raw(folded_code(source.rstrip(), cell.get("execution_count"))))
            tags = tuple(cell.get("metadata", {}).get("tags", ()))
            for index, output in enumerate(clean_outputs(cell.get("outputs", []))):
                self.add_output(output, number, index, tags)

    def add_output(self, output: dict, cell: int, index: int, tags: tuple[str, ...]) -> None:
        """Add one cleaned output, unless it has nothing to show."""
        if output["output_type"] == "stream":
            kind, content = output["name"], output["text"]
        elif output["output_type"] == "error":
            kind, content = "error", "\n".join(output["traceback"])
        elif (chosen := readable(output["data"])) is not None:
            kind, content = chosen
        else:
            return
        if kind == NOTE:
            self.parts.append(raw(f'<p class="note">{html.escape(content)}</p>'))
        elif kind.startswith("image/"):
            path = self.folder / f"figure-{cell}-{index}"
            figure = write_figure(kind, content, path, self.section, tags)
            self.figures.append(figure)
            image = figure.image(f"Figure {len(self.figures)}: {self.section}")
            link = f'<a href="{figure.address}">{image}</a>'
            self.parts.append(raw(f'<figure class="plot">{link}</figure>'))
        elif kind == "text/html":
            content = extract_drawings(content, self.temporary, cell)
            self.parts.append(part("html", extract_data_uris(content, self.temporary, cell), cell))
        elif kind in ("text/markdown", "text/latex"):
            text = extract_data_uris(content, self.temporary, cell)
            self.parts.append(part("markdown", text, cell))
        elif lines := plain_lines(content):
            kind = "stdout" if kind == "text/plain" else kind
            text = html.escape("\n".join(lines))
            self.parts.append(raw(f'<pre class="output {kind}" tabindex="0">{text}</pre>'))


def folded_code(source: str, count: int | None) -> str:
    """A code cell that opens on a click; its summary says what is defined or done in it."""
    lines = source.count("\n") + 1
    return (
        f'<details class="code"><summary><span>[{count or " "}]</span>'
        f"<code>{html.escape(code_summary(source))}</code>"
        f'<span class="lines">{lines} line{"s" * (lines > 1)}</span></summary>\n'
        f"{Highlight2HTML()(source, language='ipython3')}</details>"
    )


def code_summary(source: str) -> str:
    """The definitions of a cell, else its first line that is no import."""
    definitions = DEFINITION.findall(source)
    if definitions:
        return ", ".join(definitions)
    lines = [line.strip() for line in source.split("\n") if line.strip()]
    others = [line for line in lines if not line.startswith(("import ", "from "))]
    return (others or lines)[0]


def notebook_page(
    nb: dict, task: str, site: Site, root: Path, temporary: Path
) -> tuple[Page, list[Figure]]:
    """The page of a task's notebook without its neighbours, and its figures, which are written."""
    folder = site.folder / task
    folder.mkdir()
    collected = NotebookParts(folder, temporary)
    for number, cell in enumerate(nb["cells"], 1):
        collected.add_cell(cell, number)
    page = Page(
        name=task,
        title=notebook_title(nb) or task,
        parts=collected.parts,
        base=root / task,
        here=task,
        images=task,
        below_title=facts(nb.get("metadata", {}).get("e2e", {})),
        bar=f'{BUTTON}<a class="button" href="{task}/{task}.pdf">PDF</a>',
    )
    return page, collected.figures


def facts(run: dict) -> str:
    """What a run was: profile, origin of its events, time and device."""
    badges = []
    if run.get("profile"):
        badges.append(f'<span class="badge">{html.escape(run["profile"])} profile</span>')
    if run.get("data_source"):
        badges.append(source_badge(run["data_source"]))
    if run.get("seconds"):
        badges.append(f"<span>ran for {duration(run['seconds'])}</span>")
    if run.get("device"):
        badges.append(f"<span>on {html.escape(run['device'])}</span>")
    return f'<div class="facts">{"".join(badges)}</div>'


def source_badge(source: str) -> str:
    """The origin of events in its colour: stand-ins must not be taken for official data."""
    label = html.escape(SOURCE_LABELS.get(source, source))
    return f'<span class="badge {html.escape(source)}">{label}</span>'
