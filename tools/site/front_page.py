"""The front page: README's introduction, a gallery of the tasks, README's table of results."""

import html
import re
from pathlib import Path

from e2e_utils.metric_text import format_entry
from tools.notebook_pdf.exporter import part
from tools.results_table import REPOSITORY, results_block
from tools.site.figures import Figure
from tools.site.notebook_page import source_badge
from tools.site.pages import Page, raw
from tools.wording import name_in_full, title

FOOTER = (
    "<footer>Made by <code>make site</code> from the published notebooks and their "
    "<code>metrics.json</code>; no result of ours is typed by hand.</footer>"
)


def front_page(
    readme: str, published: dict[str, dict], figures: dict[str, Figure | None], root: Path
) -> Page:
    """index.html; ``figures`` are those of the gallery, by task."""
    name = notable(r"^# +(.+)$", readme) or "E2E tasks"
    cards = [card(task, metrics, figures[task]) for task, metrics in published.items()]
    results = f"## Results\n\n{results_block(published, notable(REPOSITORY.pattern, readme))}"
    parts = [
        raw('<div class="hero">'),
        part("markdown", introduction(readme), 1),
        raw("</div>"),
        raw(f'<h2 id="tasks">The tasks</h2>\n<div class="gallery">{"".join(cards)}</div>'),
        part("markdown", results, 2),
    ]
    bar = '<a class="wide" href="#tasks">Tasks</a><a href="#results">Results</a>'
    return Page("index", name, parts, root, bar=bar, after=FOOTER)


def notable(pattern: str, text: str) -> str | None:
    """The first group of a pattern's first match."""
    match = re.search(pattern, text, re.MULTILINE)
    return match[1] if match else None


def introduction(readme: str) -> str:
    """README's text before its first section."""
    return re.split(r"^## |^<!-- ", readme, maxsplit=1, flags=re.MULTILINE)[0]


def card(task: str, metrics: dict, figure: Figure | None) -> str:
    """A task in the gallery: its figure, its title, its headline result, the origin of its data."""
    name = metrics["headline"]
    value, _, interval = format_entry(metrics["metrics"][name]).partition(" ")
    picture = figure.image(f"A figure of {title(metrics)}", lazy=False) if figure else ""
    return (
        f'<a class="card" href="{task}.html"><span class="picture">{picture}</span>'
        f'<span class="text"><span class="title">{html.escape(title(metrics))}</span>'
        f"{source_badge(metrics['data']['source'])}"
        f'<span class="result">{html.escape(name_in_full(name))} <strong>{value}</strong>'
        f"<span>{html.escape(interval)}</span></span></span></a>"
    )
